// Input that workers find by index: they share it out among themselves (claims.hpp). The calling thread
// takes part, unless it is needed as the driver.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <iterator>
#include <ranges>
#include <span>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/source.hpp"

namespace pyarallel::detail {

template <class Runner, class Items>
class IndexedRun {
 public:
  template <class Invoke>
  IndexedRun(Items& items, Invoke& invoke, const typename Runner::Options& options, const Plan& plan)
      : runner_(items, invoke, options, plan, {.receipts = plan.measured()}),
        first_(std::ranges::begin(items)),
        claims_(runner_.size(), runner_.workers(), plan.items_at_once() == 1 && plan.chunk != 1) {}
  IndexedRun(const IndexedRun&) = delete;
  IndexedRun& operator=(const IndexedRun&) = delete;

  Runner& runner() noexcept { return runner_; }

  /// From beginning to end.
  void run() {
    const Plan& plan = runner_.plan();
    runner_.all_admitted();
    const auto work_as = [this](std::size_t worker) { work(worker); };
    const auto has_work = [this] { return claims_.any_left(); };
    if (plan.runs_inline() || (runner_.workers() == 1 && !plan.needs_driver())) {
      work(0);
    } else if (plan.needs_driver()) {
      runner_.driver().guarded([&] {
        runner_.driver().call_workers(runner_.workers(), runner_.workers(), work_as, has_work);
        drive();
      });
      runner_.driver().send_home();
    } else {
      runner_.driver().take_part(runner_.workers(), work_as, has_work);
    }
    for (const Range& range : claims_.rest()) runner_.run().add_unrun(range);
  }

 private:
  using Iterator = std::ranges::iterator_t<Items>;
  /// An element where it is, or an object made of it.
  using Item = std::conditional_t<stays_put<Items>, std::ranges::range_reference_t<Items>, const item_t<Items>>;

  void drive() {
    std::size_t resolved = 0;
    const auto nothing_to_admit = [] { return false; };
    const auto settle = [&](std::span<Resolved> items) {
      resolved += items.size();
      for (const Resolved& item : items) runner_.settle(item);
    };
    const bool outcomes_come = runner_.plan().reported;
    const auto finished = [&] {
      return outcomes_come ? resolved == runner_.size()
                           : !claims_.any_left() && runner_.run().handover().nobody_inside();
    };
    runner_.driver().drive(nothing_to_admit, settle, finished, !outcomes_come);
  }

  void work(std::size_t worker) {
    const Plan& plan = runner_.plan();
    Run& run = runner_.run();
    Task task = runner_.new_task(worker);
    const std::size_t most = plan.window > 0 ? plan.window / runner_.workers() : runner_.size();
    Pace pace{runner_.workers() == 1 ? runner_.size() : plan.items_at_once(), most};
    Claims::Taker taker{claims_, worker, most};
    bool initialized = false;

    while (!run.closed()) {
      const Range claim = claims_.one_by_one() ? taker.take_one() : claims_.take(pace.most(), pace.least());
      if (claim.empty()) return;
      if (taker.others_may_have_left()) runner_.driver().call_again();
      if (!initialized && !runner_.initialize_worker()) {
        claims_.give_back(claim);
        return;
      }
      initialized = true;
      pace.begin();
      std::size_t next = claim.first;
      bool quick = true;
      while (next < claim.last && quick) {
        const Range block{next, std::min(claim.last, next + pace.block())};
        next = runner_.through(
            [&]<Through what>(std::integral_constant<Through, what>) { return run_block<what>(block, task); });
        if (next < block.last) break;  // the run is closed
        // The clock tells nothing that anybody needs to know then.
        if (pace.chosen() && next == claim.last && !claims_.any_left()) return;
        quick = pace.keep_going(block.size());
      }
      pace.end();
      if (next < claim.last) {
        claims_.give_back({next, claim.last});
        if (!run.closed()) runner_.driver().call_again();
      }
    }
  }

  /// Returns the first item that did not run, or the block's end.
  template <Through what>
  std::size_t run_block(Range block, Task& task) {
    std::size_t index = block.first;
    LastLook last;
    bool reading = false;
    while (true) {
      // One try for as many items as go well.
      try {
        for (; index < block.last; ++index) {
          const auto offset = static_cast<std::iter_difference_t<Iterator>>(index);
          if (!stays_put<Items>) last.forget();  // to make an item may take long
          reading = true;
          Item item(first_[offset]);  // kept until its last attempt ended
          reading = false;
          if (!run_one<what>(index, item, task, last)) return index;
        }
        return index;
      } catch (...) {
        if (reading) {
          runner_.run().fail_call(std::current_exception());
          return index;
        }
        runner_.run().add_failure(index++, std::current_exception());
      }
    }
  }

  /// False if the item never ran. Throws what fn throws, where there is nothing but fn.
  template <Through what, class Arg>
  bool run_one(std::size_t index, Arg& item, Task& task, [[maybe_unused]] LastLook& last) {
    if constexpr (what == Through::nothing) {
      runner_.call(task, index, item, runner_.place(index));
    } else {
      Resolved resolved = runner_.template run_through<what>(task, index, item, runner_.place(index), last);
      if (!runner_.template record<what>(resolved)) return false;
      if constexpr (what == Through::attempts) {
        if (runner_.plan().runs_inline()) {
          runner_.settle(resolved);
          last.forget();  // nor does a callback belong to the next item
        } else if (runner_.plan().reported) {
          runner_.run().handover().resolve(std::move(resolved));
        }
      }
    }
    return true;
  }

  Runner runner_;
  const Iterator first_;
  Claims claims_;
};

}  // namespace pyarallel::detail

// The part of a run that knows the types of items and results: it runs an item by the policies that the
// options ask for. What becomes of the outcomes is its descendants' business: map_runner.hpp, stream_runner.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <new>
#include <ranges>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/driver.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/source.hpp"

namespace pyarallel::detail {

/// What stands between an item and fn: only what the options ask for.
enum class Through { nothing, stop_checks, attempts };

/// `Invoke`: as ItemFunction; called from any thread.
template <class R, class Items, class Invoke>
class ItemRunner {
 public:
  static constexpr bool sized = std::ranges::sized_range<Items>;
  static constexpr bool takes_task = Invoke::template takes_task<item_arg_t<Items>>;

  /// `state`, `workplace`: as in Run.
  ItemRunner(Items& items, Invoke& invoke, const Plan& plan, RunState* state, Workplace* workplace)
      : items_(items),
        invoke_(invoke),
        plan_(plan),
        through_(through_for(plan)),
        size_(known_size(items)),
        workers_(worker_count(plan, size_)),
        run_(plan, workers_, state, workplace),
        driver_(run_) {}

  /// Never more than there can be items at once.
  static std::size_t worker_count(const Plan& plan, std::size_t size) {
    if (plan.runs_inline()) return 1;
    std::size_t count = plan.workers;
    if (sized) count = std::min(count, size);
    if (plan.window > 0) count = std::min(count, plan.window);
    return count;
  }

  Items& items() const noexcept { return items_; }
  const Plan& plan() const noexcept { return plan_; }
  std::size_t size() const noexcept { return size_; }  // 0 if it is not known
  std::size_t workers() const noexcept { return workers_; }
  Run& run() noexcept { return run_; }
  Driver& driver() noexcept { return driver_; }

  // One item (any worker) ---------------------------------------------------------------------------

  Task new_task(std::size_t worker) const {
    return {
        .index = 0, .attempt = 1, .worker = worker, .stop = plan_.takes_task ? run_.stop_token() : std::stop_token{}};
  }

  /// Before a worker's first item. What it threw, if it did: the call throws that.
  std::exception_ptr try_worker_init() {
    if (!plan_.worker_init) return nullptr;
    try {
      plan_.worker_init();
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  /// The same on a thread. False if it threw: the run is over.
  bool initialize_worker() {
    std::exception_ptr exception = try_worker_init();
    if (!exception) return true;
    run_.fail_call(std::move(exception));
    return false;
  }

  /// `code` with the constant that fits the plan.
  template <class Code>
  auto through(Code&& code) {
    switch (through_) {
      case Through::attempts:
        return code(std::integral_constant<Through, Through::attempts>{});
      case Through::stop_checks:
        return code(std::integral_constant<Through, Through::stop_checks>{});
      case Through::nothing:
        break;
    }
    return code(std::integral_constant<Through, Through::nothing>{});
  }

  /// Runs an item; its value is made in `place`. `last`, `so_far`: as for run_item().
  template <Through what, class Arg>
  Resolved run_through(Task& task, std::size_t index, Arg& item, R* place, LastLook& last, Outcome so_far = {}) {
    Resolved resolved{.index = index};
    if constexpr (what == Through::attempts) {
      CallItem<Arg> call{invoke_, item, place};
      Outcome outcome = run_item(run_, task, index, call, last, std::move(so_far));
      resolved.ran = outcome.ran;
      resolved.receipt = outcome.receipt;
      resolved.error = std::move(outcome.error);
    } else {
      if constexpr (what == Through::stop_checks) {
        resolved.ran = !run_.closed();
        if (!resolved.ran) return resolved;
      }
      resolved.error = call_once(task, index, item, place);
    }
    return resolved;
  }

  /// Calls fn, and nothing else; its value is made in `place`. What it threw, if it did.
  template <class Arg>
  std::exception_ptr call_once(Task& task, std::size_t index, Arg& item, R* place) {
    try {
      call(task, index, item, place);
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  /// The same; throws what fn throws.
  template <class Arg>
  void call(Task& task, std::size_t index, Arg& item, R* place) {
    if constexpr (takes_task) task.index = index;
    construct(invoke_, item, task, place);
  }

  // The driver's side ---------------------------------------------------------------------------------

  /// The index of the next item.
  std::size_t next_index() noexcept { return admitted_++; }
  void all_admitted() noexcept { admitted_ = size_; }
  std::size_t admitted() const noexcept { return admitted_; }

 private:
  static Through through_for(const Plan& plan) {
    if (plan.measured()) return Through::attempts;
    return plan.may_stop_early() ? Through::stop_checks : Through::nothing;
  }

  template <class Arg>
  class CallItem final : public Call {
   public:
    CallItem(Invoke& invoke, Arg& item, R* place) : invoke_(invoke), item_(item), place_(place) {}
    void run(const Task& task) override { construct(invoke_, item_, task, place_); }
    void discard() noexcept override { std::destroy_at(place_); }

   private:
    Invoke& invoke_;
    Arg& item_;
    R* place_;
  };

  template <class Arg>
  static void construct(Invoke& invoke, Arg& item, const Task& task, R* place) {
    if constexpr (std::is_void_v<decltype(invoke(item, task))>) {
      invoke(item, task);
      std::construct_at(place);
    } else {
      ::new (static_cast<void*>(place)) R(invoke(item, task));  // a prvalue is made in place
    }
  }

  Items& items_;
  Invoke& invoke_;
  const Plan& plan_;
  const Through through_;
  const std::size_t size_;
  const std::size_t workers_;
  std::size_t admitted_ = 0;
  Run run_;
  Driver driver_;
};

}  // namespace pyarallel::detail

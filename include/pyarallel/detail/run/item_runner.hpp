// The part of a run that knows the types of items and results: it runs an item by the policies that the
// options ask for, keeps its value and receipt, and shows them to the callbacks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <ranges>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/driver.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/records.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

/// What stands between an item and fn: only what the options ask for.
enum class Through { nothing, stop_checks, attempts };

/// `Invoke` is invoke(item, task), from any thread.
template <class R, class Items, class Invoke>
class ItemRunner {
 public:
  static constexpr bool sized = std::ranges::sized_range<Items>;
  using Options = MapOptions<item_t<Items>, R>;

  ItemRunner(Items& items, Invoke& invoke, const Options& options, const Plan& plan)
      : ItemRunner(items, invoke, options, plan, {.memory = Memory::own, .receipts = plan.measured()}) {}

  /// What is different when workers are elsewhere.
  struct Placement {
    Memory memory = Memory::shared;  // for values
    bool receipts = true;            // one for each item; else blocks
    RunState* state = nullptr;       // as in Run
    Workplace* workplace = nullptr;
  };
  ItemRunner(Items& items, Invoke& invoke, const Options& options, const Plan& plan, const Placement& placement)
      : items_(items),
        invoke_(invoke),
        options_(options),
        plan_(plan),
        size_(known_size(items)),
        workers_(worker_count(plan, size_)),
        values_(size_, placement.memory),
        records_(placement.receipts, size_),
        run_(plan, workers_, placement.state, placement.workplace),
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
  Records& records() noexcept { return records_; }

  // One item (any worker) ---------------------------------------------------------------------------

  Task new_task(std::size_t worker) const {
    return {
        .index = 0, .attempt = 1, .worker = worker, .stop = plan_.takes_task ? run_.stop_token() : std::stop_token{}};
  }

  /// Before a worker's first item. What it threw, if it did: the call throws that.
  std::exception_ptr initialize_worker() {
    if (!plan_.worker_init) return nullptr;
    try {
      plan_.worker_init();
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  /// `code` with the constant that fits the plan_.
  template <class Code>
  auto through(Code&& code) {
    if (plan_.measured()) return code(std::integral_constant<Through, Through::attempts>{});
    if (plan_.may_stop_early()) {
      return code(std::integral_constant<Through, Through::stop_checks>{});
    }
    return code(std::integral_constant<Through, Through::nothing>{});
  }

  /// Runs an item; its value is made in `place`. `so_far`: as for run_item().
  template <Through what, class Arg>
  Resolved run_through(Task& task, std::size_t index, Arg& item, R* place, Outcome so_far = {}) {
    Resolved resolved{.index = index, .slot = 0, .error = nullptr, .ran = true, .receipt = {}, .interrupted = false};
    if constexpr (what == Through::attempts) {
      CallItem<Arg> call{invoke_, item, place};
      Outcome outcome = run_item(run_, task, index, call, std::move(so_far));
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
    task.index = index;
    try {
      construct(invoke_, item, task, place);
      return nullptr;
    } catch (...) {
      return std::current_exception();
    }
  }

  R* place(std::size_t index) const noexcept { return values_.at(index); }

  /// Writes down what became of an item. False if it never ran.
  template <Through what>
  bool record(const Resolved& item) {
    if constexpr (what != Through::nothing) {
      if (!item.ran) return false;
    }
    if constexpr (what == Through::attempts) records_[item.index] = item.receipt;
    if (item.error) run_.add_failure(item.index, item.error);
    if (item.interrupted) run_.add_interrupted(item.index);
    return true;
  }

  // The driver's side ---------------------------------------------------------------------------------

  /// The index of the next item.
  std::size_t next_index() noexcept { return admitted_++; }
  void all_admitted() noexcept { admitted_ = size_; }
  std::size_t admitted() const noexcept { return admitted_; }

  /// Admits a pulled item: its key, and whatever grows with the input. False if that threw.
  bool admit(std::size_t index, const Kept<Items>& item) {
    return driver_.guarded([&] {
      if (!sized) {
        values_.grow_to(index + 1);
        records_.grow_to(index + 1);
      }
      if (plan_.keyed) keys_.push_back(options_.item_key(std::as_const(item).get()));
    });
  }

  /// Shows an outcome to the callbacks, or writes down that there is none.
  void settle(const Resolved& item) {
    if (!item.ran) {
      run_.add_unrun({item.index, item.index + 1});
    } else if (plan_.reported && !item.interrupted && !driver_.call_failed()) {
      driver_.guarded([&] { report(item); });
    }
  }

  /// Everything, after all workers have left. `known_end`: the input has no more items. Throws what
  /// code of the user threw.
  MapResult<R> finish(bool known_end) {
    const std::size_t entries = sized ? size_ : admitted_;
    run_.add_unrun({admitted_, entries});
    Summary summary = run_.finish(entries, known_end);
    summary.keys = std::move(keys_);
    const auto has_value = [&](std::size_t index) { return summary.failure_at(index) == nullptr; };
    RawArray<R> values;
    try {
      records_.move_to(summary, entries);
      values = values_.release_contiguous(entries, has_value);
    } catch (...) {
      values_.destroy(entries, has_value);
      throw;
    }
    auto result = MapResultAccess<R>::make(std::move(values), std::move(summary));
    run_.rethrow_call_failure();  // here the result owns the values, and destroys them
    return result;
  }

 private:
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

  void report(const Resolved& item) {
    if (options_.on_result) {
      using Access = ItemResultAccess<R>;
      auto result =
          Access::make(item.index, records_[item.index], item.index < keys_.size() ? keys_[item.index] : ItemKey{});
      if (item.error) {
        Access::set_error(result, Error{item.error});
      } else {
        Access::look_at(result, values_.at(item.index));
      }
      options_.on_result(result);
    }
    ++reported_;
    if (options_.on_progress) options_.on_progress(reported_, sized ? size_ : admitted_);
  }

  Items& items_;
  Invoke& invoke_;
  const Options& options_;
  const Plan& plan_;
  const std::size_t size_;
  const std::size_t workers_;
  GrowingArray<R> values_;
  Records records_;
  std::vector<ItemKey> keys_;
  std::size_t admitted_ = 0;
  std::size_t reported_ = 0;
  Run run_;
  Driver driver_;
};

}  // namespace pyarallel::detail

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
      : items_(items),
        invoke_(invoke),
        options_(options),
        plan_(plan),
        size_(known_size(items)),
        workers_(worker_count(plan, size_)),
        values_(size_),
        receipts_(plan.measured() ? size_ : 0),
        run_(plan, workers_),
        driver_(run_) {}

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

  /// Before a worker's first item. False if it threw: the run is over.
  bool initialize_worker() {
    if (!plan_.worker_init) return true;
    std::exception_ptr exception;
    try {
      plan_.worker_init();
      return true;
    } catch (...) {
      exception = std::current_exception();
    }
    run_.fail_call(std::move(exception));
    return false;
  }

  /// `code` with the constant that fits the plan_.
  template <class Code>
  auto through(Code&& code) {
    if (plan_.measured()) return code(std::integral_constant<Through, Through::attempts>{});
    if (plan_.stop.stop_possible() || plan_.max_errors != std::numeric_limits<std::size_t>::max()) {
      return code(std::integral_constant<Through, Through::stop_checks>{});
    }
    return code(std::integral_constant<Through, Through::nothing>{});
  }

  /// Runs an item and writes down what it gave.
  template <Through what, class Arg>
  Resolved run_through(Task& task, std::size_t index, Arg& item) {
    Resolved resolved{.index = index, .slot = 0, .error = nullptr, .ran = true};
    if constexpr (what == Through::attempts) {
      CallItem<Arg> call{invoke_, item, values_.at(index)};
      Outcome outcome = run_item(run_, task, index, call);
      resolved.ran = outcome.ran;
      if (!outcome.ran) return resolved;
      *receipts_.at(index) = outcome.receipt;
      resolved.error = std::move(outcome.error);
    } else {
      if constexpr (what == Through::stop_checks) {
        resolved.ran = !run_.closed();
        if (!resolved.ran) return resolved;
      }
      task.index = index;
      try {
        construct(invoke_, item, task, values_.at(index));
      } catch (...) {
        resolved.error = std::current_exception();
      }
    }
    if (resolved.error) run_.add_failure(index, resolved.error);
    return resolved;
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
        if (plan_.measured()) receipts_.grow_to(index + 1);
      }
      if (plan_.keyed) keys_.push_back(options_.item_key(std::as_const(item).get()));
    });
  }

  /// Shows an outcome to the callbacks, or writes down that there is none.
  void settle(const Resolved& item) {
    if (!item.ran) {
      run_.add_unrun({item.index, item.index + 1});
    } else if (plan_.reported && !driver_.call_failed()) {
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
      if (plan_.measured()) {
        summary.receipts = receipts_.release_contiguous(entries, [](std::size_t) { return true; });
      }
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

  /// Never more than there can be items at once.
  static std::size_t worker_count(const Plan& plan, std::size_t size) {
    if (plan.runs_inline()) return 1;
    std::size_t count = plan.workers;
    if (sized) count = std::min(count, size);
    if (plan.window > 0) count = std::min(count, plan.window);
    return count;
  }

  void report(const Resolved& item) {
    if (options_.on_result) {
      using Access = ItemResultAccess<R>;
      auto result = Access::make(item.index, *receipts_.at(item.index),
                                 item.index < keys_.size() ? keys_[item.index] : ItemKey{});
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
  GrowingArray<Receipt, Fill::zero> receipts_;
  std::vector<ItemKey> keys_;
  std::size_t admitted_ = 0;
  std::size_t reported_ = 0;
  Run run_;
  Driver driver_;
};

}  // namespace pyarallel::detail

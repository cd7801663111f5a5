// A map: the part of a run that knows the types of items and results. It puts values in their places,
// reports to callbacks, and leaves everything else to the ledger (run.hpp) and the attempt loop.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <ranges>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/executor/thread_pool.hpp"
#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

/// `Invoke` is invoke(item, task), from any thread.
template <class R, class Items, class Invoke>
class Collection {
  using Options = MapOptions<item_t<Items>, R>;
  using Item = Kept<Items>;
  static constexpr bool sized = std::ranges::sized_range<Items>;

 public:
  Collection(Items& items, Invoke& invoke, const Options& options, const Plan& plan)
      : items_(items),
        invoke_(invoke),
        options_(options),
        plan_(plan),
        size_(known_size(items)),
        workers_(worker_count(plan, size_)),
        values_(size_),
        receipts_(plan.measured() ? size_ : 0),
        run_(plan, workers_) {}

  MapResult<R> collect() {
    bool known_end = true;
    if constexpr (IndexedInput<Items>) {
      if (plan_.keyed) {
        known_end = collect_pulled();  // the driver makes the keys, item by item
      } else {
        collect_indexed();
      }
    } else {
      known_end = collect_pulled();
    }
    const std::size_t size = sized ? size_ : pulled_;
    run_.add_unrun({pulled_, size});
    Summary summary = run_.finish(size, known_end);
    summary.keys = std::move(keys_);
    const auto has_value = [&](std::size_t index) { return summary.failure_at(index) == nullptr; };
    RawArray<R> values;
    try {
      if (plan_.measured()) {
        summary.receipts = receipts_.release_contiguous(size, [](std::size_t) { return true; });
      }
      values = values_.release_contiguous(size, has_value);
    } catch (...) {
      values_.destroy(size, has_value);
      throw;
    }
    auto result = MapResultAccess<R>::make(std::move(values), std::move(summary));
    run_.rethrow_call_failure();  // here the result owns the values, and destroys them
    return result;
  }

 private:
  // One item --------------------------------------------------------------------------------------

  template <class Arg>
  class CallItem final : public Call {
   public:
    CallItem(Invoke& invoke, Arg& item, R* place) : invoke_(invoke), item_(item), place_(place) {}
    void run(const Task& task) override { construct(invoke_, static_cast<Arg&>(item_), task, place_); }
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

  /// What stands between an item and fn: only what the options ask for.
  enum class Through { nothing, stop_checks, attempts };

  /// `code` with the constant that fits the plan.
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
      if (plan_.measured()) *receipts_.at(index) = outcome.receipt;
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

  // Callbacks (driver) ----------------------------------------------------------------------------

  /// What a callback throws becomes the call's exception; then no callback runs again.
  void report(const Resolved& item) {
    if (!plan_.reported || call_failed_) return;
    guarded([&] {
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
      ++done_;
      if (options_.on_progress) options_.on_progress(done_, sized ? size_ : pulled_);
    });
  }

  /// Runs code of the user that is no item's: what it throws ends the run and leaves the call.
  template <class Code>
  bool guarded(Code&& code) {
    std::exception_ptr exception;
    try {
      code();
      return true;
    } catch (...) {
      exception = std::current_exception();
    }
    call_failed_ = true;
    run_.fail_call(std::move(exception));
    return false;
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

  /// Admits the item: its key, and whatever grows with the input.
  bool admit(std::size_t index, const Item& item) {
    return guarded([&] {
      if (!sized) {
        values_.grow_to(index + 1);
        if (plan_.measured()) receipts_.grow_to(index + 1);
      }
      if (plan_.keyed) keys_.push_back(options_.item_key(std::as_const(item).get()));
    });
  }

  // Input by index ----------------------------------------------------------------------------------

  void collect_indexed() {
    const std::size_t size = size_;
    pulled_ = size;
    auto first = std::ranges::begin(items_);
    Claims claims{size, workers_};
    const auto work = [&](std::size_t worker) { work_indexed(first, claims, worker); };
    const auto has_work = [&] { return claims.any_left(); };

    if (plan_.runs_inline() || (workers_ == 1 && !plan_.needs_driver())) {
      work(0);
    } else if (!plan_.needs_driver()) {
      // The calling thread is worker 0; whether the others come, and when, does not matter.
      ThreadPool::Job job{1, workers_ - 1, workers_ - 1, work, has_work};
      job_ = &job;
      ThreadPool::instance().open(job);
      work(0);
      ThreadPool::instance().close(job);
    } else {
      std::size_t resolved = 0;
      const auto settle = [&](const Resolved& item) {
        ++resolved;
        report(item);
      };
      const auto finished = [&] {
        return plan_.reported ? resolved == size : !claims.any_left() && run_.handover().nobody_inside();
      };
      with_workers(workers_, work, has_work, [&] {
        drive(
            settle, [] { return false; }, finished, !plan_.reported);
      });
    }
    for (const Range& range : claims.rest()) run_.add_unrun(range);
  }

  template <class Iterator>
  void work_indexed(const Iterator& first, Claims& claims, std::size_t worker) {
    Task task = new_task(worker);
    const std::size_t most = plan_.window > 0 ? plan_.window / workers_ : size_;
    Pace pace{plan_.items_at_once(), most};
    bool initialized = false;

    while (!run_.closed()) {
      const Range claim = claims.take(pace.most(), pace.least());
      if (claim.empty()) return;
      if (!initialized && !initialize_worker()) {
        claims.give_back(claim);
        return;
      }
      initialized = true;
      pace.begin();
      std::size_t next = claim.first;
      bool quick = true;
      while (next < claim.last && quick) {
        const Range block{next, std::min(claim.last, next + pace.block())};
        next = run_block(first, block, task);
        if (next < block.last) break;  // the run was stopped
        quick = pace.keep_going(block.size());
      }
      pace.end();
      if (next < claim.last) {
        claims.give_back({next, claim.last});
        if (!run_.closed() && job_ != nullptr) ThreadPool::instance().call_again(*job_);
      }
    }
  }

  /// Runs items until the block's end, or the run is stopped; returns the first that did not run.
  template <class Iterator>
  std::size_t run_block(const Iterator& first, Range block, Task& task) {
    return through([&]<Through what>(std::integral_constant<Through, what>) {
      return run_block_through<what>(first, block, task);
    });
  }

  template <Through what, class Iterator>
  std::size_t run_block_through(const Iterator& first, Range block, Task& task) {
    std::size_t index = block.first;
    try {
      for (; index < block.last; ++index) {
        const auto offset = static_cast<std::iter_difference_t<Iterator>>(index);
        if constexpr (stays_put<Items>) {
          auto& item = first[offset];
          if (!run_indexed<what>(index, item, task)) break;
        } else {
          const item_t<Items> item(first[offset]);  // kept until its last attempt ended
          if (!run_indexed<what>(index, item, task)) break;
        }
      }
    } catch (...) {
      run_.fail_call(std::current_exception());  // of the source; those of fn are caught further in
    }
    return index;
  }

  /// False if the item never ran.
  template <Through what, class Arg>
  bool run_indexed(std::size_t index, Arg& item, Task& task) {
    Resolved resolved = run_through<what>(task, index, item);
    if (!resolved.ran) return false;
    if constexpr (what == Through::attempts) {
      if (plan_.runs_inline()) {
        report(resolved);
      } else if (plan_.reported) {
        run_.handover().resolve(std::move(resolved));
      }
    }
    return true;
  }

  // Input that is pulled ------------------------------------------------------------------------------

  /// Returns whether the input is known to have ended.
  bool collect_pulled() {
    Puller<Items> puller{items_};
    // An empty input is complete, also where the run is stopped before it begins.
    bool any = true;
    if (!sized && !guarded([&] { any = puller.has_next(); })) return false;
    if (any && plan_.runs_inline()) pull_inline(puller);
    if (any && !plan_.runs_inline()) pull_for_workers(puller);
    return puller.exhausted() || (sized && pulled_ == size_);
  }

  void pull_inline(Puller<Items>& puller) {
    Task task = new_task(0);
    Item item;
    bool initialized = false;
    while (!run_.closed() && !(plan_.timeout && run_.stop_if_due(clock().now()))) {
      bool more = false;
      const auto pull = [&] {
        more = puller.has_next();
        if (more) puller.take(item);
      };
      if (!guarded(pull) || !more) return;
      Resolved resolved{.index = pulled_++, .slot = 0, .error = nullptr, .ran = false};
      if (admit(resolved.index, item) && (initialized || initialize_worker())) {
        initialized = true;
        auto& arg = item.get();
        resolved = through([&]<Through what>(std::integral_constant<Through, what>) {
          return run_through<what>(task, resolved.index, arg);
        });
      }
      item.reset();
      if (resolved.ran) {
        report(resolved);
      } else {
        run_.add_unrun({resolved.index, resolved.index + 1});
      }
    }
  }

  /// A place in the window.
  struct Slot {
    std::size_t index = 0;
    Item item;
  };

  /// The window: as many slots as were needed at once so far. They never move, for workers use them
  /// while the driver adds more.
  struct Window {
    std::size_t size;
    GrowingArray<Slot> slots{};
    std::size_t made = 0;
    std::vector<std::size_t> free{};
    std::size_t unresolved = 0;

    explicit Window(std::size_t most) : size(most) {}
    Window(const Window&) = delete;
    Window& operator=(const Window&) = delete;
    ~Window() {
      while (made > 0) std::destroy_at(slots.at(--made));
    }

    std::size_t take() {
      if (free.empty()) {
        slots.grow_to(made + 1);
        std::construct_at(slots.at(made));
        free.push_back(made++);
      }
      const std::size_t slot = free.back();
      free.pop_back();
      return slot;
    }
  };

  void pull_for_workers(Puller<Items>& puller) {
    Window window{plan_.window > 0 ? plan_.window : 2 * workers_};
    bool more = true;

    const auto work = [&](std::size_t worker) { work_pulled(window, worker); };
    const auto has_work = [&] { return run_.handover().items_waiting(); };
    // Reads one item for the workers, if there is room for it. False if there is none to be had now.
    const auto admit_one = [&] {
      if (!more || window.unresolved == window.size || run_.closed()) return false;
      if (plan_.timeout && run_.stop_if_due(clock().now())) return false;
      more = false;
      guarded([&] {
        if (!puller.has_next()) return;
        const std::size_t place = window.take();
        Slot& slot = *window.slots.at(place);
        puller.take(slot.item);
        slot.index = pulled_++;
        ++window.unresolved;
        more = admit(slot.index, slot.item);
        if (!more) {
          settle(window, {.index = 0, .slot = place, .error = nullptr, .ran = false});
        } else if (better_run_here()) {
          settle(window, run_here(window, place));
        } else if (!run_.handover().offer(place) && !ThreadPool::instance().call_another(*job_)) {
          throw no_thread();
        }
      });
      return more;
    };
    with_workers(0, work, has_work, [&] {
      drive([&](Resolved& item) { settle(window, std::move(item)); }, admit_one,
            [&] { return !more && window.unresolved == 0; }, false);
    });
  }

  /// Handing over an item costs a microsecond or more. While items take less, the driver, which has to
  /// pull them anyway, runs them itself in the place of a worker that is free.
  bool better_run_here() const {
    constexpr double tiny = 1'000;
    const double pace = pulled_pace_.load(std::memory_order_relaxed);
    return pace > 0 && pace < tiny && plan_.items_at_once() == 0 && !plan_.takes_task &&
           busy_workers_.load(std::memory_order_relaxed) < workers_;
  }

  Resolved run_here(Window& window, std::size_t place) {
    constexpr std::size_t looks_every = 32;
    Task task;
    Resolved resolved = run_slot(window, place, task, true);
    if (++run_here_ % looks_every == 0) {
      const auto now = std::chrono::steady_clock::now();
      const std::chrono::duration<double, std::nano> spent = now - run_here_mark_;
      // Pulling included: where that is slow, the workers may as well have the items.
      pulled_pace_.store(spent.count() / looks_every, std::memory_order_relaxed);
      run_here_mark_ = now;
    }
    return resolved;
  }

  void settle(Window& window, Resolved item) {
    Slot& slot = *window.slots.at(item.slot);
    item.index = slot.index;
    slot.item.reset();
    window.free.push_back(item.slot);
    --window.unresolved;
    if (item.ran) {
      report(item);
    } else {
      run_.add_unrun({item.index, item.index + 1});
    }
  }

  void work_pulled(Window& window, std::size_t worker) {
    Task task = new_task(worker);
    Pace pace{plan_.items_at_once(), window.size / workers_};
    std::vector<Resolved> outcomes;
    std::vector<std::size_t> mine;
    bool initialized = false;
    while (run_.handover().exchange(outcomes, mine, pace.most())) {
      busy_workers_.fetch_add(1, std::memory_order_relaxed);
      const bool may_run = initialized || initialize_worker();
      initialized = true;
      pace.begin();
      std::size_t done = 0;
      for (bool quick = true; done < mine.size() && quick;) {
        const std::size_t block = std::min(mine.size(), done + pace.block());
        const std::size_t items = block - done;
        for (; done < block; ++done) outcomes.push_back(run_slot(window, mine[done], task, may_run));
        quick = pace.keep_going(items);
      }
      pace.end();
      pace.rest();
      pulled_pace_.store(pace.nanoseconds_per_item(), std::memory_order_relaxed);
      mine.erase(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(done));  // the rest goes back
      busy_workers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  Resolved run_slot(Window& window, std::size_t place, Task& task, bool may_run) {
    Slot& slot = *window.slots.at(place);
    Resolved resolved{.index = slot.index, .slot = place, .error = nullptr, .ran = false};
    if (may_run && !run_.closed()) {
      auto& arg = slot.item.get();
      resolved = through([&]<Through what>(std::integral_constant<Through, what>) {
        return run_through<what>(task, slot.index, arg);
      });
      resolved.slot = place;
    }
    slot.item.reset();
    return resolved;
  }

  // Workers and the driver ------------------------------------------------------------------------------

  Task new_task(std::size_t worker) const {
    return {
        .index = 0, .attempt = 1, .worker = worker, .stop = plan_.takes_task ? run_.stop_token() : std::stop_token{}};
  }

  /// Runs work(worker) on pooled threads, `at_once` of them from the start, while the calling thread drives. What
  /// leaves drive() is the call's exception; when this returns, all workers have left.
  template <class Work, class HasWork, class Drive>
  void with_workers(std::size_t at_once, const Work& work, const HasWork& has_work, Drive&& drive) {
    Handover& handover = run_.handover();
    const auto body = [&](std::size_t worker) noexcept {
      handover.enter();
      work(worker);
      handover.leave();
    };
    ThreadPool::Job job{0, workers_, at_once, body, has_work};
    job_ = &job;
    ThreadPool& pool = ThreadPool::instance();
    guarded([&] {
      if (!pool.open(job)) throw no_thread();
      drive();
    });
    handover.close();
    pool.close(job);
  }

  static std::system_error no_thread() {
    return {std::make_error_code(std::errc::resource_unavailable_try_again),
            "pyarallel: no worker thread can be started"};
  }

  /// The calling thread's part: admits while it can, settles outcomes, and keeps the time, until
  /// finished(), or the run is closed and nobody is inside any more. `until_left`: finished() depends
  /// on workers that leave, not on outcomes.
  template <class Settle, class Admit, class Finished>
  void drive(Settle&& settle, Admit&& admit, Finished&& finished, bool until_left) {
    constexpr int admitted_at_once = 64;  // so that callbacks do not wait for a large window to fill
    Handover& handover = run_.handover();
    std::vector<Resolved> outcomes;
    while (true) {
      int admitted = 0;
      while (admitted < admitted_at_once && admit()) ++admitted;
      if (finished()) return;

      const bool closed = run_.closed();
      if (closed) {
        for (const std::size_t slot : handover.close()) {
          Resolved item{.index = 0, .slot = slot, .error = nullptr, .ran = false};
          settle(item);
        }
        if (handover.nobody_inside()) return;
      }
      TimePoint due = TimePoint::max();
      if (!run_.stopped() && (plan_.timeout || plan_.task_timeout)) {
        const TimePoint now = clock().now();
        if (run_.stop_if_due(now)) continue;
        due = std::min(run_.deadline(), run_.stop_late_attempts(now));
      }
      if (admitted == admitted_at_once) due = TimePoint::min();  // there may be room for more
      handover.collect(outcomes, closed || until_left, due);
      for (Resolved& item : outcomes) settle(item);
    }
  }

  Items& items_;
  Invoke& invoke_;
  const Options& options_;
  const Plan& plan_;
  const std::size_t size_;  // 0 if it is not known
  const std::size_t workers_;
  GrowingArray<R> values_;
  GrowingArray<Receipt, Fill::zero> receipts_;
  std::vector<ItemKey> keys_;
  std::size_t pulled_ = 0;                    // items admitted
  std::size_t done_ = 0;                      // items reported
  std::atomic<double> pulled_pace_{0};        // nanoseconds per pulled item, as last seen; 0 if never
  std::atomic<std::size_t> busy_workers_{0};  // with pulled items
  std::size_t run_here_ = 0;                  // pulled items that the driver ran
  std::chrono::steady_clock::time_point run_here_mark_ = std::chrono::steady_clock::now();
  bool call_failed_ = false;
  ThreadPool::Job* job_ = nullptr;
  Run run_;
};

}  // namespace pyarallel::detail

// Input that is pulled, on threads: the driver admits the items (admission.hpp) and hands them to the workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/deputy.hpp"
#include "pyarallel/detail/run/handover.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/spin.hpp"

namespace pyarallel::detail {

template <class Runner, class Items>
class PulledRun {
 public:
  static constexpr bool runs_in_this_process = true;

  template <class Invoke>
  PulledRun(Items& items, Invoke& invoke, const typename Runner::Options& options, const Plan& plan)
      : runner_(items, invoke, options, plan, {.receipts = plan.measured()}),
        admission_(runner_, plan.window > 0 ? plan.window : 2 * runner_.workers()),
        window_(admission_.window()),
        deputy_(plan.deputy),
        inline_(plan.runs_inline()),
        nothing_but_fn_(!plan.measured()),
        driver_may_run_(deputy_ != nullptr || (!inline_ && plan.items_at_once() == 0 && !plan.takes_task)) {}
  PulledRun(const PulledRun&) = delete;
  PulledRun& operator=(const PulledRun&) = delete;

  Runner& runner() noexcept { return runner_; }
  Admission<Runner, Items>& admission() noexcept { return admission_; }
  /// The input is known to have no more items.
  bool exhausted() const noexcept { return admission_.exhausted(); }

  /// False if there is nothing to do.
  bool begin() {
    if (!admission_.begin()) return false;
    if (inline_) return true;
    // With a deputy, the driver is one of the workers.
    const std::size_t others = deputy_ != nullptr ? runner_.workers() - 1 : runner_.workers();
    if (others == 0) return true;
    runner_.driver().guarded([&] { runner_.driver().call_workers(others, 0, work_, has_work_); });
    return true;
  }

  /// Outcomes that are there already should not keep advance() from giving the workers more to do.
  bool workers_matter() { return !inline_ && !tiny_items(nanoseconds_per_item_.load(std::memory_order_relaxed)); }

  /// While items are tiny, handing them over would cost more than to run them: pulls one, and runs it here and now by
  /// run_item(index, item). False if this is not the time for it, and advance() should see to it. `alone`: only
  /// if there are no other items in the window.
  template <class RunItem>
  bool run_directly(RunItem run_item, bool alone) {
    const double pace = nanoseconds_per_item_.load(std::memory_order_relaxed);
    if (!nothing_but_fn_ || !tiny_items(pace)) return false;
    if (runner_.run().handover().outcomes_waiting() || !take_seat()) return false;
    Kept<Items> item;
    const auto index = admission_.pull_into(item, alone);
    if (index) {
      const Measurement measurement{*this};
      run_item(*index, item.get());
    }
    leave_seat();
    return index.has_value();
  }

  /// Goes on until enough() or, sooner or later, nothing is left to do.
  void advance(FunctionRef<bool()> enough) {
    if (inline_) {
      while (!enough() && run_inline()) continue;
      return;
    }
    const auto admit = [this] { return admit_one(); };
    const auto settle = [this](std::span<Resolved> items) { admission_.settle(items); };
    const auto finished = [&] {
      leave_seat();  // a worker may be waiting for it, and we for that worker
      return enough() || admission_.finished();
    };
    runner_.driver().guarded([&] {
      // Else what the driver runs itself might be enough for ever.
      if (runner_.run().handover().outcomes_waiting()) runner_.driver().settle_waiting(settle);
      runner_.driver().drive(admit, settle, finished, false);
    });
  }

  /// What still runs is wanted no more; but a thread cannot be killed.
  void abandon() noexcept {}

  /// When this returns, all workers have left.
  void end() { runner_.driver().send_home(); }

 private:
  struct Work {
    PulledRun* run;
    void operator()(std::size_t worker) const { run->work(worker); }
  };
  struct HasWork {
    PulledRun* run;
    bool operator()() const { return run->runner_.run().handover().items_waiting(); }
  };

  /// False if there are no more items.
  bool run_inline() {
    std::size_t place = 0;
    const Pull pull = admission_.pull(place);
    if (pull != Pull::placed) return pull == Pull::resolved;
    Resolved item = run_as_worker(place, 0);
    admission_.settle({&item, 1});
    return true;
  }

  /// The driver is a worker.
  Resolved run_as_worker(std::size_t place, std::size_t worker) {
    if (!task_) {
      task_ = runner_.new_task(worker);
      may_run_inline_ = runner_.initialize_worker();
    }
    return run_slot(place, *task_, may_run_inline_);
  }

  bool admit_one() {
    if constexpr (Runner::keeps_values_by_index) {
      const auto run_item = [this](std::size_t index, auto& item) { runner_.run_directly(index, item); };
      if (run_directly(run_item, false)) return true;
    }
    std::size_t place = 0;
    const Pull pull = admission_.pull(place);
    if (pull != Pull::placed) return pull == Pull::resolved;
    const double pace = nanoseconds_per_item_.load(std::memory_order_relaxed);
    Handover& handover = runner_.run().handover();
    if (better_run_here(pace) && take_seat()) {
      Resolved item = run_here(place);
      admission_.settle({&item, 1});
    } else if (!handover.offer(place, pace > 0 && pace < quick_time)) {
      // If there is nobody to take it, the call fails, and the item is settled as one that never ran.
      runner_.driver().guarded([this] { runner_.driver().call_another(); });
    }
    return true;
  }

  // Nanoseconds: handing over an item and its outcome costs about as much; it takes less than to wake a worker; and
  // less than a worker's share of many items.
  static constexpr double handover_time = 950;
  static constexpr double quick_time = 5'000;
  static constexpr double small_time = 20'000;

  /// While items are tiny, the driver, which has to pull them anyway, runs them itself. While they are small, it
  /// does so when the workers have not even taken the last one.
  bool better_run_here(double pace) {
    // There is room for one item more, which is the driver's, if the others have one each.
    if (deputy_ != nullptr) return !deputy_->stands_in() && (window_.full() || tiny_items(pace));
    return tiny_items(pace) || (may_run_here(pace) && pace < small_time && runner_.run().handover().items_waiting());
  }
  bool tiny_items(double pace) const {
    // Even n workers take handover_time for each item, and an n-th of its own.
    const auto workers = static_cast<double>(runner_.workers());
    return may_run_here(pace) && pace * (workers - 1) < handover_time * workers;
  }
  bool may_run_here(double pace) const { return pace > 0 && driver_may_run_; }

  /// In the place of a worker, if one is free: there are never more than `workers` calls at once. (Not of a certain
  /// one: it would wait for the driver with items in its hands that others could run.)
  bool take_seat() {
    if (driver_runs_.load(std::memory_order_relaxed)) return true;
    // Sequentially consistent, as in wait_for_seat(): of a worker and the driver that come at the same time, at
    // least one sees the other.
    driver_runs_.store(true, std::memory_order_seq_cst);
    if (busy_workers_.load(std::memory_order_seq_cst) < runner_.workers()) return true;
    leave_seat();
    return false;
  }
  void leave_seat() { driver_runs_.store(false, std::memory_order_release); }

  /// Until the driver has ended what it runs, or another worker has, if all places are taken. Those who wait take none:
  /// the driver's item may be waiting for theirs.
  void wait_for_seat() {
    const auto free = [this](std::size_t others) {
      return !driver_runs_.load(std::memory_order_seq_cst) || others + 1 < runner_.workers();
    };
    while (!free(busy_workers_.fetch_add(1, std::memory_order_seq_cst))) {
      busy_workers_.fetch_sub(1, std::memory_order_release);
      const auto worth_a_try = [&] { return free(busy_workers_.load(std::memory_order_relaxed)); };
      if (!spin_until(worth_a_try)) std::this_thread::sleep_for(std::chrono::microseconds{50});
    }
  }

  Resolved run_here(std::size_t place) {
    const Measurement measurement{*this};
    if (deputy_ != nullptr) {
      Resolved item;
      deputy_->while_out([&] { item = run_as_worker(place, runner_.workers() - 1); });
      return item;
    }
    Task task;
    return run_slot(place, task, true);
  }

  /// Of an item that the driver runs. A look at the clock costs more than many an item, so only now and then; but
  /// items that turn slow should soon be shared out.
  class Measurement {
   public:
    explicit Measurement(PulledRun& run) : run_(run) {
      constexpr std::size_t every = 8;
      if (++run_.run_here_ % every == 0) begun_ = std::chrono::steady_clock::now();
    }
    Measurement(const Measurement&) = delete;
    Measurement& operator=(const Measurement&) = delete;
    ~Measurement() {
      if (begun_) run_.note_pace(*begun_, 1);
    }

   private:
    PulledRun& run_;
    std::optional<std::chrono::steady_clock::time_point> begun_;
  };

  void note_pace(std::chrono::steady_clock::time_point begun, std::size_t items) {
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begun;
    nanoseconds_per_item_.store(spent.count() / static_cast<double>(items), std::memory_order_relaxed);
  }

  void work(std::size_t worker) {
    Task task = runner_.new_task(worker);
    Pace pace{runner_.plan().items_at_once(), window_.size() / runner_.workers()};
    std::vector<Resolved> outcomes;
    std::vector<std::size_t> mine;
    bool initialized = false;
    while (runner_.run().handover().exchange(outcomes, mine, pace.most())) {
      wait_for_seat();
      const bool may_run = initialized || runner_.initialize_worker();
      initialized = true;
      pace.begin();
      const auto begun = std::chrono::steady_clock::now();
      std::size_t done = 0;
      for (bool quick = true; done < mine.size() && quick;) {
        const std::size_t block = std::min(mine.size(), done + pace.block());
        const std::size_t items = block - done;
        for (; done < block; ++done) outcomes.push_back(run_slot(mine[done], task, may_run));
        quick = pace.keep_going(items);
      }
      pace.end();
      pace.rest();
      note_pace(begun, done);
      mine.erase(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(done));  // the rest goes back
      busy_workers_.fetch_sub(1, std::memory_order_release);
    }
  }

  Resolved run_slot(std::size_t place, Task& task, bool may_run) {
    auto& slot = window_[place];
    Resolved resolved{.index = slot.index, .slot = place, .ran = false};
    if (may_run && !runner_.run().closed()) {
      auto& item = slot.item.get();
      resolved = runner_.through([&]<Through what>(std::integral_constant<Through, what>) {
        LastLook last;
        auto* const value = runner_.place(slot.index, place);
        Resolved outcome = runner_.template run_through<what>(task, slot.index, item, value, last);
        runner_.template record<what>(outcome);
        return outcome;
      });
      resolved.slot = place;
    }
    slot.item.reset();
    return resolved;
  }

  Runner runner_;
  Admission<Runner, Items> admission_;
  Window<Items>& window_;
  std::atomic<double> nanoseconds_per_item_{0};  // as last seen; 0 if never
  std::atomic<std::size_t> busy_workers_{0};
  std::atomic<bool> driver_runs_{false};  // items; only the driver changes it
  Deputy* const deputy_;
  const bool inline_;
  const bool nothing_but_fn_;  // concerns an item
  const bool driver_may_run_;
  std::size_t run_here_ = 0;  // items that the driver ran
  std::optional<Task> task_;  // of items that run inline
  bool may_run_inline_ = false;
  Work work_{this};
  HasWork has_work_{this};
};

}  // namespace pyarallel::detail

// Input that is pulled, on threads: the driver admits the items (admission.hpp) and hands them to the workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/item_runner.hpp"

namespace pyarallel::detail {

template <class Runner, class Items>
class PulledRun {
 public:
  explicit PulledRun(Runner& runner)
      : runner_(runner),
        admission_(runner, runner.plan().window > 0 ? runner.plan().window : 2 * runner.workers()),
        window_(admission_.window()) {}

  /// Returns whether the input is known to have ended.
  bool run() {
    if (admission_.begin()) {
      if (runner_.plan().runs_inline()) {
        run_inline();
      } else {
        run_with_workers();
      }
    }
    return admission_.exhausted();
  }

 private:
  void run_inline() {
    Task task = runner_.new_task(0);
    bool initialized = false;
    while (const auto place = admission_.pull()) {
      const bool may_run = initialized || initialize_worker();
      initialized = true;
      admission_.settle(run_slot(*place, task, may_run));
    }
  }

  void run_with_workers() {
    const auto work_as = [this](std::size_t worker) { work(worker); };
    const auto has_work = [this] { return runner_.run().handover().items_waiting(); };
    const auto admit = [this] {
      const auto place = admission_.pull();
      if (!place) return false;
      if (better_run_here()) {
        admission_.settle(run_here(*place));
      } else if (!runner_.run().handover().offer(*place)) {
        // If there is nobody to take it, the call fails, and the item is settled as one that never ran.
        runner_.driver().guarded([this] { runner_.driver().call_another(); });
      }
      return true;
    };
    const auto settle = [this](Resolved& item) { admission_.settle(std::move(item)); };
    const auto finished = [this] { return admission_.finished(); };
    runner_.driver().with_workers(runner_.workers(), 0, work_as, has_work,
                                  [&] { runner_.driver().drive(admit, settle, finished, false); });
  }

  /// False if it threw: the run is over.
  bool initialize_worker() {
    auto exception = runner_.initialize_worker();
    if (exception) runner_.run().fail_call(exception);
    return !exception;
  }

  /// Handing over an item costs a microsecond or more. While items take less, the driver, which has to
  /// pull them anyway, runs them itself in the place of a worker that is free.
  bool better_run_here() const {
    constexpr double tiny = 1'000;
    const double pace = nanoseconds_per_item_.load(std::memory_order_relaxed);
    return pace > 0 && pace < tiny && runner_.plan().items_at_once() == 0 && !runner_.plan().takes_task &&
           busy_workers_.load(std::memory_order_relaxed) < runner_.workers();
  }

  Resolved run_here(std::size_t place) {
    constexpr std::size_t looks_every = 32;
    Task task;
    Resolved resolved = run_slot(place, task, true);
    if (++run_here_ % looks_every == 0) {
      const auto now = std::chrono::steady_clock::now();
      const std::chrono::duration<double, std::nano> spent = now - run_here_mark_;
      // Pulling included: where that is slow, the workers may as well have the items.
      nanoseconds_per_item_.store(spent.count() / looks_every, std::memory_order_relaxed);
      run_here_mark_ = now;
    }
    return resolved;
  }

  void work(std::size_t worker) {
    Task task = runner_.new_task(worker);
    Pace pace{runner_.plan().items_at_once(), window_.size() / runner_.workers()};
    std::vector<Resolved> outcomes;
    std::vector<std::size_t> mine;
    bool initialized = false;
    while (runner_.run().handover().exchange(outcomes, mine, pace.most())) {
      busy_workers_.fetch_add(1, std::memory_order_relaxed);
      const bool may_run = initialized || initialize_worker();
      initialized = true;
      pace.begin();
      std::size_t done = 0;
      for (bool quick = true; done < mine.size() && quick;) {
        const std::size_t block = std::min(mine.size(), done + pace.block());
        const std::size_t items = block - done;
        for (; done < block; ++done) outcomes.push_back(run_slot(mine[done], task, may_run));
        quick = pace.keep_going(items);
      }
      pace.end();
      pace.rest();
      nanoseconds_per_item_.store(pace.nanoseconds_per_item(), std::memory_order_relaxed);
      mine.erase(mine.begin(), mine.begin() + static_cast<std::ptrdiff_t>(done));  // the rest goes back
      busy_workers_.fetch_sub(1, std::memory_order_relaxed);
    }
  }

  Resolved run_slot(std::size_t place, Task& task, bool may_run) {
    auto& slot = window_[place];
    Resolved resolved{
        .index = slot.index, .slot = place, .error = nullptr, .ran = false, .receipt = {}, .interrupted = false};
    if (may_run && !runner_.run().closed()) {
      auto& item = slot.item.get();
      resolved = runner_.through([&]<Through what>(std::integral_constant<Through, what>) {
        Resolved outcome = runner_.template run_through<what>(task, slot.index, item, runner_.place(slot.index));
        runner_.template record<what>(outcome);
        return outcome;
      });
      resolved.slot = place;
    }
    slot.item.reset();
    return resolved;
  }

  Runner& runner_;
  Admission<Runner, Items> admission_;
  Window<Items>& window_;
  std::atomic<double> nanoseconds_per_item_{0};  // as last seen; 0 if never
  std::atomic<std::size_t> busy_workers_{0};
  std::size_t run_here_ = 0;  // items that the driver ran
  std::chrono::steady_clock::time_point run_here_mark_ = std::chrono::steady_clock::now();
};

}  // namespace pyarallel::detail

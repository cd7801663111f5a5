// Input that is pulled: the driver reads it item by item, at most a window ahead of what is resolved, and
// hands the items to the workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/source.hpp"

namespace pyarallel::detail {

/// As many slots as were needed at once so far. They never move, for workers use them while the driver
/// adds more.
template <class Items>
class Window {
 public:
  struct Slot {
    std::size_t index = 0;
    Kept<Items> item;
  };

  explicit Window(std::size_t size) : size_(size) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() {
    while (made_ > 0) std::destroy_at(slots_.at(--made_));
  }

  std::size_t size() const noexcept { return size_; }
  bool full() const noexcept { return unresolved_ == size_; }
  bool empty() const noexcept { return unresolved_ == 0; }
  Slot& operator[](std::size_t place) const noexcept { return *slots_.at(place); }

  /// A free place, for an item that is put there with fill().
  std::size_t find_place() {
    if (free_.empty()) {
      slots_.grow_to(made_ + 1);
      std::construct_at(slots_.at(made_));
      free_.push_back(made_++);
    }
    return free_.back();
  }
  void fill() noexcept {
    free_.pop_back();
    ++unresolved_;
  }
  void clear(std::size_t place) {
    slots_.at(place)->item.reset();
    free_.push_back(place);
    --unresolved_;
  }

 private:
  std::size_t size_;
  GrowingArray<Slot> slots_;
  std::size_t made_ = 0;
  std::vector<std::size_t> free_;
  std::size_t unresolved_ = 0;
};

template <class Runner, class Items>
class PulledRun {
 public:
  explicit PulledRun(Runner& runner)
      : runner_(runner),
        puller_(runner.items()),
        window_(runner.plan().window > 0 ? runner.plan().window : 2 * runner.workers()) {}

  /// Returns whether the input is known to have ended.
  bool run() {
    // An empty input is complete, also where the run is stopped before it begins.
    bool any = true;
    if (!Runner::sized && !runner_.driver().guarded([&] { any = puller_.has_next(); })) return false;
    if (any && runner_.plan().runs_inline()) run_inline();
    if (any && !runner_.plan().runs_inline()) run_with_workers();
    return puller_.exhausted() || (Runner::sized && runner_.admitted() == runner_.size());
  }

 private:
  bool may_admit() {
    return !runner_.run().closed() && !(runner_.plan().timeout && runner_.run().stop_if_due(clock().now()));
  }

  void run_inline() {
    Task task = runner_.new_task(0);
    bool initialized = false;
    while (const auto place = pull()) {
      const bool may_run = initialized || runner_.initialize_worker();
      initialized = true;
      settle(run_slot(*place, task, may_run));
    }
  }

  void run_with_workers() {
    const auto work_as = [this](std::size_t worker) { work(worker); };
    const auto has_work = [this] { return runner_.run().handover().items_waiting(); };
    const auto admit = [this] {
      const auto place = pull();
      if (!place) return false;
      if (better_run_here()) {
        settle(run_here(*place));
      } else if (!runner_.run().handover().offer(*place)) {
        runner_.driver().call_another();
      }
      return true;
    };
    const auto settle_it = [this](Resolved& item) { settle(std::move(item)); };
    const auto finished = [this] { return ended_ && window_.empty(); };
    runner_.driver().with_workers(runner_.workers(), 0, work_as, has_work,
                                  [&] { runner_.driver().drive(admit, settle_it, finished, false); });
  }

  /// Reads one item into the window, if there is room for it. Nothing if there is none to be had now.
  std::optional<std::size_t> pull() {
    if (ended_ || window_.full() || !may_admit()) return std::nullopt;
    std::size_t place = 0;
    const bool read = runner_.driver().guarded([&] {
      ended_ = !puller_.has_next();
      if (ended_) return;
      place = window_.find_place();
      puller_.take(window_[place].item);
      window_.fill();
      window_[place].index = runner_.next_index();
    });
    ended_ = ended_ || !read;
    if (ended_) return std::nullopt;
    if (runner_.admit(window_[place].index, window_[place].item)) return place;
    ended_ = true;
    settle({.index = 0, .slot = place, .error = nullptr, .ran = false});
    return std::nullopt;
  }

  void settle(Resolved item) {
    item.index = window_[item.slot].index;
    window_.clear(item.slot);
    runner_.settle(item);
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
      const bool may_run = initialized || runner_.initialize_worker();
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
    Resolved resolved{.index = slot.index, .slot = place, .error = nullptr, .ran = false};
    if (may_run && !runner_.run().closed()) {
      auto& item = slot.item.get();
      resolved = runner_.through([&]<Through what>(std::integral_constant<Through, what>) {
        return runner_.template run_through<what>(task, slot.index, item);
      });
      resolved.slot = place;
    }
    slot.item.reset();
    return resolved;
  }

  Runner& runner_;
  Puller<Items> puller_;
  Window<Items> window_;
  bool ended_ = false;                           // nothing more is to be pulled
  std::atomic<double> nanoseconds_per_item_{0};  // as last seen; 0 if never
  std::atomic<std::size_t> busy_workers_{0};
  std::size_t run_here_ = 0;  // items that the driver ran
  std::chrono::steady_clock::time_point run_here_mark_ = std::chrono::steady_clock::now();
};

}  // namespace pyarallel::detail

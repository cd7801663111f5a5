// A clock that only tests move, so that waits of hours are exact and take no time.
//
//   FakeClock clock;                            // automatic: whoever sleeps moves the time to the end of its sleep
//   FakeClock clock{FakeClock::Mode::manual};   // sleepers sleep until the test moves the time
//   ClockOverride use{clock};                   // while no run is in flight
//
// Automatic is for one thread at a time, or where the order of events does not matter. In manual mode
// a test of several threads is exact: wait_for_sleepers(n), look around, advance(d), and again.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include "pyarallel/detail/clock.hpp"

namespace support {

class FakeClock final : public pyarallel::detail::Clock {
 public:
  using Duration = pyarallel::Duration;
  using TimePoint = pyarallel::detail::TimePoint;
  enum class Mode { automatic, manual };

  explicit FakeClock(Mode mode = Mode::automatic) : mode_(mode) {}

  TimePoint now() noexcept override {
    const std::lock_guard lock{mutex_};
    return now_;
  }

  bool sleep_until(TimePoint due, const std::stop_token& stop) override {
    Sleeper sleeper{due};
    {
      const std::lock_guard lock{mutex_};
      sleeps_.push_back(std::max(Duration::zero(), due - now_));
      sleepers_.push_back(&sleeper);
    }
    const bool automatic = mode_ == Mode::automatic && !stop.stop_requested();
    if (automatic) advance_to(due);

    // Made and destroyed without our mutex, which its callback takes.
    const std::stop_callback on_stop{stop, WakeSleeper{this, &sleeper}};
    std::unique_lock lock{mutex_};
    changed_.notify_all();
    // Time never gets further than `never`: a sleep until then ends in automatic mode all the same.
    changed_.wait(lock, [&] { return sleeper.stopped || now_ >= due || automatic || released_; });
    std::erase(sleepers_, &sleeper);
    return !stop.stop_requested();
  }

  void wait_until(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, TimePoint due) override {
    // The caller's mutex is taken before ours, never after it.
    Waiter waiter{&condition, lock.mutex(), due};
    {
      const std::lock_guard ours{mutex_};
      if (now_ >= due) return;
      waiters_.push_back(&waiter);
      changed_.notify_all();
    }
    condition.wait(lock);  // as any wait: for the caller's reasons, for ours, or for none
    std::unique_lock ours{mutex_};
    std::erase(waiters_, &waiter);
    if (waiter.being_notified == 0) return;
    // Somebody who moved the time is about to lock the caller's mutex: both must outlive that.
    lock.unlock();
    changed_.wait(ours, [&] { return waiter.being_notified == 0; });
    ours.unlock();
    lock.lock();
  }

  /// The scripted numbers in their order, then 0.5, which makes the factor of jitter 1.
  double random() noexcept override {
    const std::lock_guard lock{mutex_};
    ++random_draws_;
    if (random_.empty()) return 0.5;
    const double next = random_.front();
    random_.pop_front();
    return next;
  }

  // The test's side ----------------------------------------------------------------------------------

  void advance(Duration d) { advance_to(pyarallel::detail::add_saturating(now(), d)); }

  /// Moves the time, never backwards, and wakes whoever is due.
  void advance_to(TimePoint time) {
    std::vector<Waiter*> due;
    {
      const std::lock_guard lock{mutex_};
      now_ = std::max(now_, std::min(time, never));
      for (Waiter* waiter : waiters_) {
        if (waiter->due > now_) continue;
        ++waiter->being_notified;
        due.push_back(waiter);
      }
      changed_.notify_all();
    }
    for (Waiter* waiter : due) {
      // Between its look at the time and its wait, the waiter holds this mutex: notified without it,
      // the wake-up could be lost.
      const std::lock_guard theirs{*waiter->mutex};
      waiter->condition->notify_all();
    }
    const std::lock_guard lock{mutex_};
    for (Waiter* waiter : due) --waiter->being_notified;
    changed_.notify_all();
  }

  /// To the first moment that a sleeper sleeps for. False if nobody sleeps.
  bool advance_to_next_sleeper() {
    TimePoint first = TimePoint::max();
    {
      const std::lock_guard lock{mutex_};
      for (const Sleeper* sleeper : sleepers_) {
        if (asleep(*sleeper)) first = std::min(first, sleeper->due);
      }
    }
    if (first == TimePoint::max()) return false;
    advance_to(first);
    return true;
  }

  /// Blocks until at least n threads sleep, not counting those that are due or stopped already.
  void wait_for_sleepers(std::size_t n) {
    wait_for(n, "asleep", [this] { return count_asleep(); });
  }

  /// Blocks until at least n threads are in wait_until, for a moment that has not come.
  void wait_for_waiters(std::size_t n) {
    wait_for(n, "waiting", [this] {
      return static_cast<std::size_t>(std::ranges::count_if(waiters_, [this](Waiter* w) { return w->due > now_; }));
    });
  }

  std::size_t sleepers() const {
    const std::lock_guard lock{mutex_};
    return count_asleep();
  }

  /// How long each sleep was to be, in the order in which they began.
  std::vector<Duration> sleeps() const {
    const std::lock_guard lock{mutex_};
    return sleeps_;
  }

  void script_random(std::deque<double> numbers) {
    const std::lock_guard lock{mutex_};
    random_ = std::move(numbers);
  }

  std::size_t random_draws() const {
    const std::lock_guard lock{mutex_};
    return random_draws_;
  }

  /// Since the clock was made.
  Duration elapsed() const {
    const std::lock_guard lock{mutex_};
    return now_ - start;
  }

 private:
  struct Sleeper {
    TimePoint due;
    bool stopped = false;
  };
  struct WakeSleeper {
    FakeClock* clock;
    Sleeper* sleeper;
    void operator()() const {
      const std::lock_guard lock{clock->mutex_};
      sleeper->stopped = true;
      clock->changed_.notify_all();
    }
  };
  struct Waiter {
    std::condition_variable* condition;
    std::mutex* mutex;
    TimePoint due;
    int being_notified = 0;
  };

  static constexpr TimePoint start{std::chrono::hours{1000}};
  static constexpr TimePoint never = TimePoint::max() - Duration{1};

  bool asleep(const Sleeper& sleeper) const { return !sleeper.stopped && sleeper.due > now_; }
  std::size_t count_asleep() const {
    return static_cast<std::size_t>(std::ranges::count_if(sleepers_, [this](Sleeper* s) { return asleep(*s); }));
  }

  // A test that waits in vain fails, and lets its threads go, so that they can be joined.
  template <class Count>
  void wait_for(std::size_t n, const char* doing, Count count) {
    std::unique_lock lock{mutex_};
    if (changed_.wait_for(lock, std::chrono::seconds{30}, [&] { return count() >= n; })) return;
    released_ = true;
    changed_.notify_all();
    throw std::runtime_error("FakeClock: " + std::to_string(count()) + " of " + std::to_string(n) + " threads " +
                             doing);
  }

  const Mode mode_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  TimePoint now_ = start;
  std::vector<Sleeper*> sleepers_;
  std::vector<Waiter*> waiters_;
  std::vector<Duration> sleeps_;
  std::deque<double> random_;
  std::size_t random_draws_ = 0;
  bool released_ = false;
};

/// The library's clock is this one until the override is destroyed.
class ClockOverride {
 public:
  explicit ClockOverride(pyarallel::detail::Clock& clock)
      : before_(pyarallel::detail::current_clock().exchange(&clock)) {}
  ~ClockOverride() { pyarallel::detail::current_clock().store(before_); }
  ClockOverride(const ClockOverride&) = delete;
  ClockOverride& operator=(const ClockOverride&) = delete;

 private:
  pyarallel::detail::Clock* before_;
};

}  // namespace support

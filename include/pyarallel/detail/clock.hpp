// Time and chance, through one seam: everything that reads a clock, sleeps or draws a random
// number asks here, so that tests of backoff, pauses, deadlines and rates are exact and take no time.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>
#include <thread>

namespace pyarallel {

/// Every std::chrono duration converts to it.
using Duration = std::chrono::nanoseconds;

namespace detail {

using TimePoint = std::chrono::time_point<std::chrono::steady_clock, Duration>;

/// `time + wait`, held at the far end instead of overflowing: Duration::max() means "never".
inline TimePoint add_saturating(TimePoint time, Duration wait) noexcept {
  if (wait > Duration::zero() && time.time_since_epoch() > Duration::max() - wait) return TimePoint::max();
  return time + wait;
}

class Clock {
 public:
  virtual TimePoint now() noexcept = 0;
  /// Sleeps until `due` (true), or until the token is stopped (false).
  virtual bool sleep_until(TimePoint due, const std::stop_token& stop) = 0;
  /// As condition.wait_until(lock, due): may return early, so callers look at their condition again.
  virtual void wait_until(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, TimePoint due) = 0;
  /// Uniform in [0, 1).
  virtual double random() noexcept = 0;

 protected:
  // Trivial, so that a static clock is never destroyed: threads and static objects may outlive main().
  ~Clock() = default;
};

class SteadyClock final : public Clock {
 public:
  TimePoint now() noexcept override { return std::chrono::steady_clock::now(); }

  bool sleep_until(TimePoint due, const std::stop_token& stop) override {
    // A woken thread arrives 50 us late or more; where the whole wait is that short, sleeping would
    // cost more slots of a fast rate limit than it saves CPU.
    if (due - now() < std::chrono::microseconds{100}) {
      while (now() < due) {
        if (stop.stop_requested()) return false;
        std::this_thread::yield();
      }
      return !stop.stop_requested();
    }
    std::mutex mutex;
    std::condition_variable_any condition;
    std::unique_lock lock{mutex};
    const auto never = [] { return false; };
    // In slices, because some standard libraries convert the deadline to another clock, which a
    // far-away deadline overflows.
    for (TimePoint time = now(); time < due; time = now()) {
      condition.wait_until(lock, stop, std::min(due, time + std::chrono::hours{1}), never);
      if (stop.stop_requested()) return false;
    }
    return !stop.stop_requested();
  }

  void wait_until(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, TimePoint due) override {
    condition.wait_until(lock, std::min(due, now() + std::chrono::hours{1}));
  }

  double random() noexcept override {
    // splitmix64 (Steele, Lea, Flood 2014) over the time and a counter: no state worth a lock, and
    // nothing that a forked child would repeat for long.
    static std::atomic<std::uint64_t> counter{0};
    std::uint64_t bits = static_cast<std::uint64_t>(now().time_since_epoch().count()) +
                         counter.fetch_add(1, std::memory_order_relaxed) * 0x9e3779b97f4a7c15U;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
    bits ^= bits >> 31;
    return static_cast<double>(bits >> 11) * 0x1.0p-53;
  }
};

/// The clock in use; tests point it at a fake one while no run is in flight.
inline std::atomic<Clock*>& current_clock() noexcept {
  static SteadyClock steady;
  static std::atomic<Clock*> current{&steady};
  return current;
}

inline Clock& clock() noexcept { return *current_clock().load(std::memory_order_acquire); }

}  // namespace detail
}  // namespace pyarallel

// A thread that keeps the time of a run on threads while its driver is away: the consumer of a stream may take long
// between two results, and running items are still asked to stop when their time is over.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/run.hpp"

namespace pyarallel::detail {

class Timekeeper {
 public:
  /// std::system_error if there can be no more threads.
  explicit Timekeeper(Run& run) : run_(run), thread_([this] { keep(); }) {}
  Timekeeper(const Timekeeper&) = delete;
  Timekeeper& operator=(const Timekeeper&) = delete;
  ~Timekeeper() {
    {
      const std::lock_guard lock{mutex_};
      ended_ = true;
    }
    condition_.notify_one();
  }

 private:
  void keep() {
    std::unique_lock lock{mutex_};
    while (!ended_) {
      lock.unlock();  // what asks items to stop runs callbacks of the user
      const TimePoint now = clock().now();
      if (run_.stopped() || run_.stop_if_due(now)) return;
      const TimePoint due = std::min(run_.deadline(), run_.stop_late_attempts(now));
      lock.lock();
      if (!ended_) clock().wait_until(condition_, lock, due);
    }
  }

  Run& run_;
  std::mutex mutex_;
  std::condition_variable condition_;
  bool ended_ = false;
  std::jthread thread_;  // last: it uses the others
};

}  // namespace pyarallel::detail

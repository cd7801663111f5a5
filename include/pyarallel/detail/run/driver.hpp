// The calling thread's part of a run on pooled threads: it admits, settles outcomes and keeps the time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <system_error>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/executor/thread_pool.hpp"
#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/run/handover.hpp"
#include "pyarallel/detail/run/run.hpp"

namespace pyarallel::detail {

class Driver {
 public:
  explicit Driver(Run& run) : run_(run) {}
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  /// Runs code of the user that is no item's, on the calling thread: what it throws ends the run and
  /// leaves the call. False then.
  bool guarded(FunctionRef<void()> code) {
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

  /// Code of the user has thrown: none of it runs again.
  bool call_failed() const noexcept { return call_failed_; }

  /// Runs work(worker) here as worker 0, and on up to workers - 1 pooled threads, whether they come or
  /// not, and whenever.
  void take_part(std::size_t workers, FunctionRef<void(std::size_t)> work, FunctionRef<bool()> has_work) {
    ThreadPool::Job job{1, workers - 1, workers - 1, work, has_work};
    job_ = &job;
    ThreadPool::instance().open(job);
    work(0);
    ThreadPool::instance().close(job);
  }

  /// Runs work(worker) on pooled threads, and drive() here. `at_once` threads from the start; the others
  /// by call_another(). When this returns, all workers have left.
  void with_workers(std::size_t workers, std::size_t at_once, FunctionRef<void(std::size_t)> work,
                    FunctionRef<bool()> has_work, FunctionRef<void()> drive) {
    Handover& handover = run_.handover();
    const auto body = [&](std::size_t worker) noexcept {
      handover.enter();
      work(worker);
      handover.leave();
    };
    ThreadPool::Job job{0, workers, at_once, body, has_work};
    job_ = &job;
    guarded([&] {
      if (!ThreadPool::instance().open(job)) throw no_thread();
      drive();
    });
    handover.close();
    ThreadPool::instance().close(job);
  }

  /// There is work again for workers that found none and left (any worker).
  void call_again() {
    if (job_ != nullptr) ThreadPool::instance().call_again(*job_);
  }

  /// There is work for one worker more. std::system_error if not a single one can be had.
  void call_another() {
    if (!ThreadPool::instance().call_another(*job_)) throw no_thread();
  }

  /// Admits while admit() can, settles outcomes, and keeps the time, until finished(), or the run is
  /// closed and nobody is inside any more. `until_left`: finished() depends on workers that leave, not
  /// on outcomes.
  void drive(FunctionRef<bool()> admit, FunctionRef<void(Resolved&)> settle, FunctionRef<bool()> finished,
             bool until_left) {
    constexpr int admitted_at_once = 64;  // so that callbacks do not wait for a large window to fill
    const Plan& plan = run_.plan();
    Workplace& workplace = run_.workplace();
    std::vector<Resolved> outcomes;
    while (true) {
      int admitted = 0;
      while (admitted < admitted_at_once && admit()) ++admitted;
      if (finished()) return;

      const bool closed = run_.closed();
      if (closed) {
        for (const std::size_t slot : workplace.close()) {
          Resolved item{.index = 0, .slot = slot, .error = nullptr, .ran = false, .receipt = {}, .interrupted = false};
          settle(item);
        }
        if (workplace.nobody_inside()) return;
      }
      TimePoint due = TimePoint::max();
      if (!run_.stopped() && (plan.timeout || plan.task_timeout)) {
        const TimePoint now = clock().now();
        if (run_.stop_if_due(now)) continue;
        due = std::min(run_.deadline(), run_.stop_late_attempts(now));
      }
      if (admitted == admitted_at_once) due = TimePoint::min();  // there may be room for more
      workplace.collect(outcomes, closed || until_left, due);
      for (Resolved& item : outcomes) settle(item);
    }
  }

 private:
  static std::system_error no_thread() {
    return {std::make_error_code(std::errc::resource_unavailable_try_again),
            "pyarallel: no worker thread can be started"};
  }

  Run& run_;
  bool call_failed_ = false;
  ThreadPool::Job* job_ = nullptr;
};

}  // namespace pyarallel::detail

// The calling thread's part of a run on pooled threads: it admits, settles outcomes and keeps the time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <optional>
#include <span>
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
  ~Driver() { send_home(); }

  /// Runs code of the user that is no item's, on the calling thread: what it throws ends the run and
  /// leaves the call. False then.
  template <class Code>
  bool guarded(Code&& code) {
    try {
      code();
      return true;
    } catch (...) {
      fail(std::current_exception());
      return false;
    }
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
    job_ = nullptr;
  }

  /// From now on work(worker) runs on up to `workers` pooled threads: `at_once` from the start, the others by
  /// call_another(). Both callables must live until send_home(). std::system_error if no thread can be had.
  void call_workers(std::size_t workers, std::size_t at_once, FunctionRef<void(std::size_t)> work,
                    FunctionRef<bool()> has_work) {
    shift_.emplace(run_.handover(), workers, at_once, work, has_work);
    job_ = &shift_->job;
    if (!ThreadPool::instance().open(*job_)) throw no_thread();
  }

  /// When this returns, all workers have left.
  void send_home() {
    if (!shift_) return;
    run_.handover().close();
    ThreadPool::instance().close(*job_);
    job_ = nullptr;
    shift_.reset();
  }

  /// drive() waits no longer than this, which may change under way: somebody else wants a look now and then.
  void look_again_at(const TimePoint& due) noexcept { look_again_at_ = &due; }

  /// There is work again for workers that found none and left (any worker).
  void call_again() {
    if (job_ != nullptr) ThreadPool::instance().call_again(*job_);
  }

  /// There is work for one worker more. std::system_error if not a single one can be had.
  void call_another() {
    if (!ThreadPool::instance().call_another(*job_)) throw no_thread();
  }

  /// Settles outcomes that came together.
  using Settle = FunctionRef<void(std::span<Resolved>)>;

  /// Settles the outcomes that are there.
  void settle_waiting(Settle settle) {
    run_.workplace().collect(outcomes_, false, TimePoint::min());
    settle(outcomes_);
  }

  /// Admits while admit() can, settles outcomes, and keeps the time, until finished(), or the run is
  /// closed and nobody is inside any more. May be called again after that. `until_left`: finished() depends on workers
  /// that leave, not on outcomes.
  void drive(FunctionRef<bool()> admit, Settle settle, FunctionRef<bool()> finished, bool until_left) {
    constexpr int admitted_at_once = 64;  // so that callbacks do not wait for a large window to fill
    const Plan& plan = run_.plan();
    Workplace& workplace = run_.workplace();
    while (true) {
      int admitted = 0;
      while (admitted < admitted_at_once && admit()) ++admitted;
      if (finished()) return;

      const bool closed = run_.closed();
      if (closed) {
        for (const std::size_t slot : workplace.close()) {
          Resolved item{.slot = slot, .ran = false};
          settle({&item, 1});
        }
        if (workplace.nobody_inside()) return;
      }
      TimePoint due = TimePoint::max();
      if (!run_.stopped() && (plan.timeout || plan.task_timeout)) {
        const TimePoint now = clock().now();
        if (run_.stop_if_due(now)) continue;
        due = std::min(run_.deadline(), run_.stop_late_attempts(now));
      }
      if (look_again_at_ != nullptr) due = std::min(due, *look_again_at_);
      if (admitted == admitted_at_once) due = TimePoint::min();  // there may be room for more
      workplace.collect(outcomes_, closed || until_left, due);
      settle(outcomes_);
    }
  }

 private:
  void fail(std::exception_ptr exception) {
    call_failed_ = true;
    run_.fail_call(std::move(exception));
  }

  static std::system_error no_thread() {
    return {std::make_error_code(std::errc::resource_unavailable_try_again),
            "pyarallel: no worker thread can be started"};
  }

  /// Pooled threads that come, work and leave.
  struct Shift {
    Shift(Handover& place, std::size_t workers, std::size_t at_once, FunctionRef<void(std::size_t)> work_as,
          FunctionRef<bool()> has_work)
        : handover(place), work(work_as), job(0, workers, at_once, *this, has_work) {}
    Shift(const Shift&) = delete;
    Shift& operator=(const Shift&) = delete;

    void operator()(std::size_t worker) noexcept {
      handover.enter();
      work(worker);
      handover.leave();
    }

    Handover& handover;
    FunctionRef<void(std::size_t)> work;
    ThreadPool::Job job;
  };

  Run& run_;
  bool call_failed_ = false;
  std::optional<Shift> shift_;
  ThreadPool::Job* job_ = nullptr;
  std::vector<Resolved> outcomes_;
  const TimePoint* look_again_at_ = nullptr;
};

}  // namespace pyarallel::detail

// The ledger of one run: why it stops, what failed, what never ran, and so how it ended. Written
// once for every executor; nothing here depends on the types of items and results.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/handover.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/run_state.hpp"
#include "pyarallel/detail/run/workplace.hpp"
#include "pyarallel/detail/spin.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel::detail {

/// What the driver must see of a worker's attempt, to ask it to stop after task_timeout. A cache line
/// of its own, for it is written at every attempt.
struct alignas(64) TimedAttempt {
  std::mutex mutex;
  bool running = false;
  TimePoint due;
  std::stop_source stop{std::nostopstate};
};

/// Told of every attempt that begins and ends, in a forked worker.
class AttemptWatch {
 public:
  virtual void begin_attempt(const Task& task, TimePoint start) noexcept = 0;
  virtual void end_attempt() noexcept = 0;

 protected:
  ~AttemptWatch() = default;
};

class Run {
 public:
  Run(const Plan& plan, std::size_t workers) : Run(plan, workers, nullptr, nullptr) {}

  /// A run whose workers are elsewhere: they share `state`, and `workplace` knows them.
  Run(const Plan& plan, std::size_t workers, RunState* state, Workplace* workplace)
      : plan_(plan),
        state_(state != nullptr ? *state : own_state_),
        workplace_(workplace != nullptr ? *workplace : handover_),
        source_(plan.needs_stop_token() ? std::stop_source{} : std::stop_source{std::nostopstate}),
        token_(source_.get_token()),
        deadline_(plan.timeout ? add_saturating(clock().now(), *plan.timeout) : TimePoint::max()),
        timed_attempts_(plan.task_timeout && !plan.runs_inline() && workplace == nullptr ? workers : 0) {
    // From here on a request may come at any moment, from any thread; it may have come already.
    if (plan.stop.stop_possible()) on_stop_.emplace(plan.stop, CancelRun{this});
    if (plan.timeout) stop_if_due(clock().now());
  }

  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  const Plan& plan() const noexcept { return plan_; }
  Handover& handover() noexcept { return handover_; }
  Workplace& workplace() noexcept { return workplace_; }
  const std::stop_token& stop_token() const noexcept { return token_; }
  TimePoint deadline() const noexcept { return deadline_; }

  // Stopping: the first reason wins ------------------------------------------------------------------

  /// Nothing more is admitted.
  bool closed() const noexcept { return phase() != Phase::open; }
  /// And what was admitted should come to an end: no further attempts, no waits.
  bool stopped() const noexcept { return phase() == Phase::stopped; }
  StopReason stop_reason() const noexcept { return state_.reason.load(std::memory_order_acquire); }

  /// No more items; those admitted go on.
  void close(StopReason reason) {
    enter(Phase::closed, reason);
    workplace_.wake();
  }

  void stop(StopReason reason) {
    if (!enter(Phase::stopped, reason)) {
      workplace_.wake();  // workers that were waited for may have to be killed now
      return;
    }
    if (watch_ != nullptr) {
      // In a worker there is nobody else to tell, and locks that the parent's threads held at the fork.
      workplace_.wake();
      return;
    }
    source_.request_stop();
    // An attempt that begins now looks at stopped() after it has shown itself here, so none is missed.
    for (TimedAttempt& attempt : timed_attempts_) stop_attempt(attempt, TimePoint::max());
    workplace_.wake();
  }

  /// True, and the run stopped, if the deadline has come.
  bool stop_if_due(TimePoint now) {
    if (now < deadline_) return false;
    stop(StopReason::timed_out);
    return true;
  }

  /// The call will throw this, unless an earlier one came first.
  void fail_call(std::exception_ptr exception) {
    {
      const std::lock_guard lock{mutex_};
      if (!exception_) exception_ = std::move(exception);
    }
    stop(StopReason::failed);
  }

  // In a forked worker -----------------------------------------------------------------------------------

  /// From now on this is a worker's copy of the run, and only what it shares with the parent's is true.
  void become_worker(AttemptWatch& watch) noexcept { watch_ = &watch; }

  /// Tasks that look at their token are told that the run has stopped.
  void request_stop() { source_.request_stop(); }

  /// One more item failed, whose failure is added later, by whoever hears of it (any process).
  void count_failure() noexcept {
    if (state_.failures.fetch_add(1, std::memory_order_relaxed) + 1 >= plan_.max_errors) stop(StopReason::aborted);
  }

  // Attempts ---------------------------------------------------------------------------------------------

  /// An attempt starts `now`: gives the task a token of its own where it can be late.
  void begin_attempt(Task& task, TimePoint now) {
    if (watch_ != nullptr) watch_->begin_attempt(task, now);
    if (timed_attempts_.empty()) return;
    TimedAttempt& attempt = timed_attempts_[task.worker];
    std::stop_source stop;
    task.stop = stop.get_token();
    {
      const std::lock_guard lock{attempt.mutex};
      attempt.stop = stop;
      attempt.due = add_saturating(now, *plan_.task_timeout);
      attempt.running = true;
    }
    if (stopped()) stop.request_stop();
  }

  void end_attempt(const Task& task) {
    if (watch_ != nullptr) watch_->end_attempt();
    if (timed_attempts_.empty()) return;
    const std::lock_guard lock{timed_attempts_[task.worker].mutex};
    timed_attempts_[task.worker].running = false;
  }

  /// Asks attempts that are past their time to stop (driver). Returns when to look again.
  TimePoint stop_late_attempts(TimePoint now) {
    if (timed_attempts_.empty()) return TimePoint::max();
    // An attempt that starts later than now is due later than this.
    TimePoint next = add_saturating(now, *plan_.task_timeout);
    for (TimedAttempt& attempt : timed_attempts_) next = std::min(next, stop_attempt(attempt, now));
    // Not in a busy loop, however short the task_timeout.
    return std::max(next, add_saturating(now, std::chrono::microseconds{100}));
  }

  // Outcomes (any worker) ------------------------------------------------------------------------------

  void add_failure(std::size_t index, const std::exception_ptr& error) noexcept {
    bool last_one = false;
    {
      const auto lock = lock_soon(mutex_);
      failures_.push_back({index, Error{error}});
      last_one = failures_.size() >= plan_.max_errors;
    }
    if (last_one) stop(StopReason::aborted);
  }

  void add_unrun(Range range) noexcept {
    if (range.empty()) return;
    const std::lock_guard lock{mutex_};
    unrun_.push_back(range);
  }

  /// The item was running when its worker had to be killed.
  void add_interrupted(std::size_t index) {
    const std::lock_guard lock{mutex_};
    interrupted_.push_back(index);
  }

  // The end (driver, after everybody left) ---------------------------------------------------------------

  /// How it ended. `known_end`: nothing more could have been read from the input.
  RunStatus end(bool known_end) {
    on_stop_.reset();
    return status(known_end);
  }

  /// The same, and the outcomes that are no values.
  Summary finish(std::size_t size, bool known_end) {
    Summary summary;
    summary.size = size;
    summary.status = end(known_end);
    if (!unrun_.empty()) summary.never_ran = placeholder(summary.status, "never ran");
    for (const Range& range : unrun_) {
      for (std::size_t index = range.first; index < range.last; ++index) {
        failures_.push_back({index, Error{summary.never_ran}});
      }
    }
    if (!interrupted_.empty()) summary.interrupted = placeholder(summary.status, "was killed while it ran");
    for (const std::size_t index : interrupted_) failures_.push_back({index, Error{summary.interrupted}});
    std::sort(failures_.begin(), failures_.end(), [](const Failure& a, const Failure& b) { return a.index < b.index; });
    summary.failures = std::move(failures_);
    return summary;
  }

  /// What fail_call() was given, if anything.
  const std::exception_ptr& call_failure() const noexcept { return exception_; }

 private:
  struct CancelRun {
    Run* run;
    void operator()() const { run->stop(StopReason::cancelled); }
  };

  // False if the run was as far already.
  bool enter(Phase phase, StopReason reason) {
    StopReason none = StopReason::none;
    state_.reason.compare_exchange_strong(none, reason, std::memory_order_acq_rel);
    const auto wanted = static_cast<std::uint32_t>(phase);
    std::uint32_t current = state_.phase.load(std::memory_order_relaxed);
    while (current < wanted) {
      // Release: who sees the phase may see why.
      if (state_.phase.compare_exchange_weak(current, wanted, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  Phase phase() const noexcept { return static_cast<Phase>(state_.phase.load(std::memory_order_relaxed)); }

  // Requests a stop if the attempt was due by `now`. Returns when it will be due, if it will.
  static TimePoint stop_attempt(TimedAttempt& attempt, TimePoint now) {
    std::stop_source stop{std::nostopstate};
    {
      const std::lock_guard lock{attempt.mutex};
      if (!attempt.running) return TimePoint::max();
      if (attempt.due > now) return attempt.due;
      stop = attempt.stop;
    }
    stop.request_stop();  // runs callbacks of the user: not under a lock
    return TimePoint::max();
  }

  RunStatus status(bool known_end) const {
    const bool aborted = failures_.size() >= plan_.max_errors;
    const StopReason reason = stop_reason();
    switch (reason) {
      case StopReason::aborted:
        return RunStatus::aborted;
      case StopReason::timed_out:
      case StopReason::cancelled:
        // A stop that left nothing unrun changed nothing (clause R5).
        if (known_end && unrun_.empty() && interrupted_.empty()) {
          return aborted ? RunStatus::aborted : RunStatus::completed;
        }
        return reason == StopReason::timed_out ? RunStatus::timed_out : RunStatus::cancelled;
      case StopReason::none:
      case StopReason::failed:
        break;
    }
    return RunStatus::completed;
  }

  std::exception_ptr placeholder(RunStatus status, const std::string& fate) const {
    switch (status) {
      case RunStatus::timed_out:
        return std::make_exception_ptr(
            TimeoutError(fate + ": the run's timeout of " + text_of(*plan_.timeout) + " was reached first"));
      case RunStatus::aborted:
        return std::make_exception_ptr(
            Aborted(fate + ": the run was aborted after max_errors = " + std::to_string(plan_.max_errors)));
      case RunStatus::cancelled:
      case RunStatus::completed:  // only when the call throws
        break;
    }
    return std::make_exception_ptr(Cancelled(fate + ": the run was stopped first"));
  }

  const Plan& plan_;
  RunState own_state_;
  RunState& state_;
  Handover handover_;
  Workplace& workplace_;
  AttemptWatch* watch_ = nullptr;  // not null: in a forked worker
  std::stop_source source_;
  const std::stop_token token_;  // kept, for a copy of a token is a write to a counter that all share
  const TimePoint deadline_;
  std::vector<TimedAttempt> timed_attempts_;

  std::mutex mutex_;
  std::vector<Failure> failures_;
  std::vector<Range> unrun_;
  std::vector<std::size_t> interrupted_;
  std::exception_ptr exception_;

  // Last, so that no request can arrive before the rest is there, or after it is gone.
  std::optional<std::stop_callback<CancelRun>> on_stop_;
};

}  // namespace pyarallel::detail

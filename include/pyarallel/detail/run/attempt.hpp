// One item's way through rate limit, attempts, retries and time limits to its final outcome. The
// same for every executor: what differs is where call() runs.
#pragma once

#include <algorithm>
#include <exception>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <typeinfo>
#include <utility>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/receipt.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/retry.hpp"

namespace pyarallel::detail {

/// An item's function and the place for its value.
class Call {
 public:
  /// Runs fn and keeps its value, or throws what fn throws.
  virtual void run(const Task& task) = 0;
  /// Destroys the value of the last run().
  virtual void discard() noexcept = 0;

 protected:
  ~Call() = default;
};

/// What became of an item. No error: it has a value, if it ran at all.
struct Outcome {
  bool ran = true;
  std::exception_ptr error;
  Receipt receipt;
};

/// A retry predicate threw something that is not one of the standard exception types; nested in it is
/// the item's own exception.
struct PredicateError : std::runtime_error {
  using runtime_error::runtime_error;
};

/// The exception of a retry predicate, with the item's own nested in it.
inline std::exception_ptr nest_in_predicate_error(const std::exception_ptr& predicate_error,
                                                  const std::exception_ptr& original) {
  const auto nested_as = [&](const auto& e) -> std::exception_ptr {
    try {
      try {
        std::rethrow_exception(original);
      } catch (...) {
        std::throw_with_nested(std::remove_cvref_t<decltype(e)>(e));  // nests the exception being handled
      }
    } catch (...) {
      return std::current_exception();
    }
  };
  // Throwing with nesting needs the static type. Where it is not one of these, the name and the text
  // of the predicate's exception are kept, and its exact type is not.
  try {
    std::rethrow_exception(predicate_error);
  } catch (const std::exception& e) {
    std::exception_ptr nested;
    const auto if_exactly = [&]<class E>(std::type_identity<E>) {
      if (typeid(e) != typeid(E)) return false;
      nested = nested_as(static_cast<const E&>(e));
      return true;
    };
    const auto if_any_of = [&]<class... E>(std::type_identity<E>... types) { return (if_exactly(types) || ...); };
    using std::type_identity;
    if (if_any_of(type_identity<std::runtime_error>{}, type_identity<std::logic_error>{},
                  type_identity<std::invalid_argument>{}, type_identity<std::out_of_range>{},
                  type_identity<std::domain_error>{}, type_identity<std::length_error>{},
                  type_identity<std::range_error>{}, type_identity<std::overflow_error>{},
                  type_identity<std::underflow_error>{}, type_identity<std::system_error>{},
                  type_identity<std::bad_alloc>{})) {
      return nested;
    }
    return nested_as(PredicateError("a retry predicate threw " + current_exception_type_name() + ": " + e.what()));
  } catch (...) {
    return nested_as(PredicateError("a retry predicate threw " + current_exception_type_name()));
  }
}

/// What to do about a failed attempt.
struct Verdict {
  bool again = false;
  Duration delay = {};
  std::exception_ptr error;  // what to report if it is not tried again
};

/// `matches`: what Retry::on says, where somebody else had the exception as it was thrown.
inline Verdict judge(const Plan& plan, const std::exception_ptr& exception, int attempt,
                     std::optional<bool> matches = std::nullopt) {
  if (plan.retry == nullptr) return {.again = false, .delay = {}, .error = exception};
  const Retry& retry = *plan.retry;
  const Error error{exception};
  try {
    if (!(matches ? *matches : retry.on.matches(error)) || !retry.retry_if(error, true)) {
      return {.again = false, .delay = {}, .error = exception};
    }
    std::optional<Duration> server_wait = retry.wait_from(error, std::nullopt);
    if (server_wait) {
      server_wait = std::max(*server_wait, Duration::zero());
      if (retry.max_server_wait) server_wait = std::min(*server_wait, *retry.max_server_wait);
      if (plan.limiter) Limiter{*plan.limiter}.pause(*server_wait);
    }
    if (attempt >= retry.attempts) return {.again = false, .delay = {}, .error = exception};
    const Duration delay =
        server_wait ? *server_wait : backoff_delay(retry, attempt, retry.jitter ? clock().random() : 0);
    return {.again = true, .delay = delay, .error = exception};
  } catch (...) {
    return {.again = false, .delay = {}, .error = nest_in_predicate_error(std::current_exception(), exception)};
  }
}

/// The time as a worker saw it last. Where one item follows the other, the end of the first is the start of the
/// second: a look at the clock costs more than many a function.
class LastLook {
 public:
  bool known() const noexcept { return time_ != unknown; }
  TimePoint time() const noexcept { return time_; }
  void note(TimePoint now) noexcept { time_ = now; }
  void forget() noexcept { time_ = unknown; }

 private:
  // (Of a std::optional g++ 12 warns that it may be used uninitialized.)
  static constexpr TimePoint unknown = TimePoint::min();
  TimePoint time_ = unknown;
};

/// Runs one item to its end in this thread, as `task.worker`. `task` is reused from item to item.
/// `outcome`: as far as the item came elsewhere, if it did: its attempts, and the last one's error.
inline Outcome run_item(Run& run, Task& task, std::size_t index, Call& call, LastLook& last, Outcome outcome = {}) {
  const Plan& plan = run.plan();
  Receipt& receipt = outcome.receipt;
  const auto unrun = [&]() -> Outcome& {
    outcome.ran = receipt.attempts > 0;  // else the last attempt's error stands (clause T4)
    return outcome;
  };
  std::optional<TimePoint> first_start;
  task.index = index;

  while (true) {
    if (receipt.attempts == 0 ? run.closed() : run.stopped()) return unrun();
    if (plan.limiter) {
      last.forget();
      const Grant grant = acquire(*plan.limiter, run.deadline(), run.stop_token());
      // The next token comes only after the deadline: no use waiting for either (clause L4). Others may
      // have got theirs in time.
      if (grant == Grant::too_late) run.close(StopReason::timed_out);
      if (grant != Grant::granted || run.stopped()) return unrun();
    }
    const TimePoint start = last.known() ? last.time() : clock().now();
    last.forget();
    if (run.stop_if_due(start)) return unrun();
    if (!first_start) first_start = start - receipt.duration;

    task.attempt = ++receipt.attempts;
    run.begin_attempt(task, start);
    bool has_value = false;
    outcome.error = nullptr;
    try {
      call.run(task);
      has_value = true;
    } catch (...) {
      outcome.error = std::current_exception();
    }
    run.end_attempt(task);
    const TimePoint end = clock().now();
    receipt.duration = end - *first_start;

    if (plan.task_timeout && end - start > *plan.task_timeout) {
      // Late is late, also with a value in hand: otherwise the outcome would depend on luck.
      if (has_value) call.discard();
      has_value = false;
      outcome.error = std::make_exception_ptr(TaskTimeout("task_timeout of " + text_of(*plan.task_timeout) +
                                                          " exceeded: the attempt took " + text_of(end - start)));
    }
    if (has_value) {
      last.note(end);
      return outcome;
    }

    Verdict verdict = judge(plan, outcome.error, receipt.attempts);
    outcome.error = std::move(verdict.error);
    if (!verdict.again) {
      receipt.duration = clock().now() - *first_start;
      return outcome;
    }
    const TimePoint due = add_saturating(end, verdict.delay);
    const bool slept = clock().sleep_until(std::min(due, run.deadline()), run.stop_token());
    receipt.duration = clock().now() - *first_start;
    if (!slept || run.stop_if_due(clock().now())) return outcome;
  }
}

}  // namespace pyarallel::detail

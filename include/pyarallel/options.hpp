// What a caller says about a run. Every field unset: the default.
#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>

#include "pyarallel/checkpoint_store.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/executor.hpp"
#include "pyarallel/rate_limit.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/retry.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel {

/// `size`: at most so many items admitted and unresolved at any moment (0: 2 x workers). Input that
/// is not random access is pulled lazily, on the calling thread, one window ahead; no barriers.
/// `chunk`: items handed to a worker at once (0: chosen by the library). Items that wait for each
/// other need chunk = 1.
struct Batch {
  std::size_t size = 0;
  std::size_t chunk = 0;
};

/// Called on the calling thread after each resolved item; total = items seen so far if the input's
/// size is not known.
using OnProgress = std::function<void(std::size_t done, std::size_t total)>;

namespace detail {

template <class Signature>
class Callback;

/// A std::function that says what is wrong with a callable that does not fit.
template <class Answer, class Arg>
class Callback<Answer(Arg)> : public std::function<Answer(Arg)> {
 public:
  Callback() = default;
  Callback(std::nullptr_t) {}

  template <class F>
    requires(!std::derived_from<std::remove_cvref_t<F>, Callback>)
  explicit(false) Callback(F&& f)
      : std::function<Answer(Arg)>([&]() -> decltype(auto) {
          constexpr bool fits = std::is_invocable_r_v<Answer, std::remove_cvref_t<F>&, Arg>;
          static_assert(
              fits,
              "pyarallel: item_key is called with a const T& and gives an ItemKey, on_result is called with a "
              "const ItemResult<R>&, where T is the type of the items and R that of the function's results");
          if constexpr (fits) {
            return std::forward<F>(f);
          } else {
            return nullptr;
          }
        }()) {}
};

}  // namespace detail

/// Untyped, storable, reusable: how to run, said once. The fields are those of MapOptions.
struct Options {
  std::optional<std::size_t> workers = {};
  std::optional<Executor> executor = {};
  std::optional<RateLimitArg> rate_limit = {};
  std::optional<Retry> retry = {};
  std::optional<Batch> batch = {};
  std::optional<Duration> timeout = {};
  std::optional<Duration> task_timeout = {};
  std::optional<std::size_t> max_errors = {};
  std::stop_token stop = {};
  OnProgress on_progress = {};
  std::function<void()> worker_init = {};
  std::optional<std::size_t> max_tasks_per_worker = {};
  std::optional<std::size_t> worker_memory_limit = {};
};

/// The options of one map. T: item type, R: result type. Field order is fixed (designated initializers).
template <class T, class R>
struct MapOptions {
  std::optional<std::size_t> workers = {};  ///< >= 1; 1 with threads: in the calling thread, in order.
  ExecutorArg<R, T> executor = {};          ///< Default: thread.
  std::optional<RateLimitArg> rate_limit = {};
  std::optional<Retry> retry = {};
  std::optional<Batch> batch = {};
  std::optional<Duration> timeout = {};  ///< The whole run; >= 0. Admission stops, running items are asked to stop and
                                         ///< awaited.
  std::optional<Duration> task_timeout = {};   ///< One attempt. Threads: needs fn(item, task), which should watch
                                               ///< task.stop; std::invalid_argument otherwise.
  std::optional<std::size_t> max_errors = {};  ///< >= 1; counted after retries.
  std::stop_token stop = {};
  CheckpointArg<T, R> checkpoint = {};                          ///< Successes are kept, and not repeated by later runs.
  detail::Callback<ItemKey(const T&)> item_key = {};            ///< Once per admitted item, on the calling thread.
  detail::Callback<void(const ItemResult<R>&)> on_result = {};  ///< On the calling thread, in completion order.
  OnProgress on_progress = {};                                  ///< On the calling thread.
  std::function<void()> worker_init = {};                       ///< Once in each worker before its first item.
  std::optional<std::size_t> max_tasks_per_worker = {};         ///< Processes only.
  std::optional<std::size_t> worker_memory_limit = {};          ///< Processes only.
};

/// The options of one stream. T: item type, R: result type. Field order is fixed (designated initializers).
/// What is not said here is as in MapOptions.
template <class T, class R>
struct StreamOptions {
  std::optional<std::size_t> workers = {};
  ExecutorArg<R, T> executor = {};
  std::optional<RateLimitArg> rate_limit = {};
  std::optional<Retry> retry = {};
  std::optional<Batch> batch = {};       ///< `size` counts results that the consumer has not left behind yet, too.
  bool ordered = false;                  ///< Input order; early results wait inside the window.
  std::optional<Duration> timeout = {};  ///< From the first begin() on.
  std::optional<Duration> task_timeout = {};
  std::optional<std::size_t> max_errors = {};  ///< The stream ends after the n-th failure is yielded.
  std::stop_token stop = {};
  detail::Callback<ItemKey(const T&)> item_key = {};
  OnProgress on_progress = {};
  std::function<void()> worker_init = {};
  std::optional<std::size_t> max_tasks_per_worker = {};
  std::optional<std::size_t> worker_memory_limit = {};
};

namespace detail {

/// `overrides`, with what it leaves unset taken from `shared`.
template <class Typed>
Typed merged(const Options& shared, Typed overrides) {
  const auto inherit = [](auto& field, const auto& from) {
    if (!field) field = from;
  };
  inherit(overrides.workers, shared.workers);
  if (!overrides.executor.get() && shared.executor) overrides.executor = runtime(*shared.executor);
  inherit(overrides.rate_limit, shared.rate_limit);
  inherit(overrides.retry, shared.retry);
  inherit(overrides.batch, shared.batch);
  inherit(overrides.timeout, shared.timeout);
  inherit(overrides.task_timeout, shared.task_timeout);
  inherit(overrides.max_errors, shared.max_errors);
  if (!overrides.stop.stop_possible()) overrides.stop = shared.stop;
  inherit(overrides.on_progress, shared.on_progress);
  inherit(overrides.worker_init, shared.worker_init);
  inherit(overrides.max_tasks_per_worker, shared.max_tasks_per_worker);
  inherit(overrides.worker_memory_limit, shared.worker_memory_limit);
  return overrides;
}

}  // namespace detail
}  // namespace pyarallel

// The options of one call, checked and untyped: what the ledger and the executors need to know.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <limits>
#include <optional>
#include <stop_token>

#include "pyarallel/detail/require.hpp"
#include "pyarallel/executor.hpp"
#include "pyarallel/rate_limit.hpp"
#include "pyarallel/retry.hpp"

namespace pyarallel::detail {

class Deputy;

struct Plan {
  Executor executor = Executor::thread;
  RemoteExecutor* remote = nullptr;  // where items run on other machines; `executor` is what those run them with
  MakeCrew* make_crew = nullptr;     // where the executor needs one
  std::size_t workers = 1;
  std::optional<Limiter> limiter;
  const Retry* retry = nullptr;
  std::size_t window = 0;  // 0: not said
  std::size_t chunk = 0;   // 0: not said
  std::optional<Duration> timeout;
  std::optional<Duration> task_timeout;
  std::size_t max_errors = std::numeric_limits<std::size_t>::max();
  std::stop_token stop;
  std::function<void()> worker_init;
  bool keyed = false;
  bool stored = false;              // results, in a checkpoint
  bool reported = false;            // on_result or on_progress
  bool takes_task = false;          // fn wants a Task
  bool may_change_threads = false;  // the driver may be one thread now, and another later
  bool never_inline = false;        // the driver must not be held up by an item, unless it has a deputy
  Deputy* deputy = nullptr;

  std::optional<std::size_t> max_tasks_per_worker;
  std::optional<std::size_t> worker_memory_limit;

  /// In the calling thread, in input order.
  bool runs_inline() const noexcept {
    if (remote != nullptr || never_inline) return false;
    return executor == Executor::sequential || (executor == Executor::thread && workers == 1);
  }
  /// Items run in other processes, here or elsewhere.
  bool has_crew() const noexcept { return executor == Executor::process || remote != nullptr; }

  /// An item goes through the attempt loop: something may hold it, repeat it or cut it short.
  bool has_policy() const noexcept { return limiter || retry != nullptr || task_timeout; }

  /// The driver looks at each item before a worker may have it.
  bool driver_looks() const noexcept { return keyed || stored; }

  /// How many items a worker takes at once; 0: as many as its pace suggests.
  std::size_t items_at_once() const noexcept {
    // A slow item must not hold back the next (clause W1).
    if (has_policy() || driver_looks() || reported) return 1;
    if (chunk > 0) return chunk;
    // A worker that gives items back may have to call others that left, and they would be new again.
    return worker_init ? 1 : 0;
  }

  /// Each item's attempts and duration are written down (clause R8). Forked workers measure several
  /// items at a time where nothing concerns them singly.
  bool measured() const noexcept { return has_policy() || driver_looks() || reported || (timeout && !has_crew()); }

  /// The run may end while there are items left.
  bool may_stop_early() const noexcept { return stop.stop_possible() || timeout || has_max_errors(); }
  bool has_max_errors() const noexcept { return max_errors != std::numeric_limits<std::size_t>::max(); }

  /// Somebody may have to be woken or told when the run stops.
  bool needs_stop_token() const noexcept { return takes_task || has_policy(); }

  /// The calling thread is needed for other things than items: callbacks, or asking tasks to stop at
  /// a moment in time. (Nor does it take part where worker_init would change it for good.)
  bool needs_driver() const noexcept {
    return reported || driver_looks() || worker_init || (takes_task && (timeout || task_timeout));
  }
};

/// std::invalid_argument for what clause C6 lists. `Options` is MapOptions or StreamOptions of any types.
template <class Options>
Plan make_plan(const Options& options, bool takes_task) {
  Plan plan;
  plan.executor = options.executor.get().value_or(Executor::thread);
  plan.make_crew = options.executor.make_crew();
  plan.takes_task = takes_task;
  if (options.workers) require(*options.workers >= 1, "workers must be >= 1, got ", *options.workers);
  plan.workers = options.workers.value_or(0);
  if (RemoteExecutor* const remote = options.executor.remote()) {
    if (plan.workers == 0) plan.workers = remote->slots();
    if (!remote->is_local()) plan.remote = remote;
  }
  if (plan.workers == 0) plan.workers = default_workers(plan.executor);
  if (options.rate_limit) plan.limiter = options.rate_limit->limiter();
  if (options.retry) {
    check(*options.retry);
    plan.retry = &*options.retry;
  }
  if (options.batch) {
    plan.window = options.batch->size;
    plan.chunk = options.batch->chunk;
  }
  if (options.timeout) require(*options.timeout >= Duration::zero(), "timeout must be >= 0, got ", *options.timeout);
  if (options.task_timeout) {
    require(*options.task_timeout >= Duration::zero(), "task_timeout must be >= 0, got ", *options.task_timeout);
    if (plan.executor == Executor::thread && !takes_task) {
      throw std::invalid_argument(
          "task_timeout with threads needs a function that takes a Task and watches task.stop: "
          "fn(item, task); got one that takes the item only");
    }
  }
  plan.timeout = options.timeout;
  plan.task_timeout = options.task_timeout;
  if (options.max_errors) {
    require(*options.max_errors >= 1, "max_errors must be >= 1, got ", *options.max_errors);
    plan.max_errors = *options.max_errors;
  }
  if (options.max_tasks_per_worker) {
    require(*options.max_tasks_per_worker >= 1, "max_tasks_per_worker must be >= 1, got ",
            *options.max_tasks_per_worker);
    if (plan.executor == Executor::thread) {
      throw std::invalid_argument(message({"max_tasks_per_worker is for Executor::process only, got ",
                                           *options.max_tasks_per_worker, " with Executor::thread"}));
    }
  }
  if (options.worker_memory_limit && plan.executor == Executor::thread) {
    throw std::invalid_argument(message({"worker_memory_limit is for Executor::process only, got ",
                                         *options.worker_memory_limit, " with Executor::thread"}));
  }
  plan.max_tasks_per_worker = options.max_tasks_per_worker;
  plan.worker_memory_limit = options.worker_memory_limit;
  plan.stop = options.stop;
  plan.worker_init = options.worker_init;
  if (plan.remote != nullptr && plan.worker_init) {
    throw std::invalid_argument(
        "worker_init cannot be sent to other machines: say it where they are started (mpi: in the options of Cluster)");
  }
  plan.keyed = static_cast<bool>(options.item_key);
  plan.reported = static_cast<bool>(options.on_progress);
  if constexpr (requires { options.on_result; }) plan.reported = plan.reported || static_cast<bool>(options.on_result);
  if constexpr (requires { options.checkpoint; }) plan.stored = options.checkpoint.store() != nullptr;
  return plan;
}

}  // namespace pyarallel::detail

// Where items run, and how many at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>

#include "pyarallel/detail/parallelism.hpp"

namespace pyarallel {

/// thread: pooled threads, for I/O and for work that is thread-safe. process: forked workers (not in
/// this version). sequential: in the calling thread, in order, for debugging.
enum class Executor { thread, process, sequential };

/// CPUs this process may really use: affinity mask and cgroup v1/v2 CPU quotas, not
/// hardware_concurrency alone; at least 1. Read afresh at each call (some tens of microseconds).
inline std::size_t available_parallelism() { return detail::read_available_parallelism("/"); }

/// thread: min(32, available_parallelism() + 4); process: available_parallelism(); sequential: 1.
/// As it was when first asked for: a process is not expected to change its CPUs under way.
inline std::size_t default_workers(Executor executor) {
  static const std::size_t cpus = available_parallelism();
  switch (executor) {
    case Executor::thread:
      return std::min<std::size_t>(32, cpus + 4);
    case Executor::process:
      return cpus;
    case Executor::sequential:
      break;
  }
  return 1;
}

/// An executor chosen at run time: `.executor = runtime(config.executor)`.
struct RuntimeExecutor {
  Executor value;
};
inline RuntimeExecutor runtime(Executor executor) { return {executor}; }

namespace detail {

// Not constexpr on purpose: a constant `.executor = Executor::process` stops compiling here.
inline void executor_process_is_not_in_this_version_of_pyarallel() {}

}  // namespace detail

/// What `.executor =` takes: a constant, checked at compile time, or runtime(...), checked at the call.
template <class R>
class ExecutorArg {
 public:
  constexpr ExecutorArg() = default;
  consteval ExecutorArg(Executor executor) : executor_(executor) {
    if (executor == Executor::process) detail::executor_process_is_not_in_this_version_of_pyarallel();
  }
  ExecutorArg(RuntimeExecutor executor) : executor_(executor.value) {}

  /// nullopt: not said. std::invalid_argument for what this version cannot do.
  std::optional<Executor> get() const {
    if (executor_ == Executor::process) {
      throw std::invalid_argument(
          "executor: Executor::process is not in this version of pyarallel; use Executor::thread");
    }
    return executor_;
  }

 private:
  std::optional<Executor> executor_;
};

}  // namespace pyarallel

// Where items run, and how many at a time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/computed_once.hpp"
#include "pyarallel/detail/parallelism.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"

namespace pyarallel {

/// thread: pooled threads, for I/O and for work that is thread-safe. process: forked workers, for CPU work
/// that is not thread-safe, for code that crashes, and for hard time limits. sequential: in the calling thread, in
/// order, for debugging.
enum class Executor { thread, process, sequential };

/// CPUs this process may really use: affinity mask and cgroup v1/v2 CPU quotas, not
/// hardware_concurrency alone; at least 1. Read afresh at each call (some tens of microseconds).
inline std::size_t available_parallelism() { return detail::read_available_parallelism("/"); }

/// thread: min(32, available_parallelism() + 4); process: available_parallelism(); sequential: 1.
/// As it was when first asked for: a process is not expected to change its CPUs under way.
inline std::size_t default_workers(Executor executor) {
  const std::size_t cpus = detail::computed_once<available_parallelism>();
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

struct Plan;
struct ForkedJob;
class Crew;
using MakeCrew = std::unique_ptr<Crew>(const Plan& plan, const ForkedJob& job);
/// In process/crew.hpp. Named only where a call may fork, so that others need not compile what is behind it.
std::unique_ptr<Crew> make_forked_crew(const Plan& plan, const ForkedJob& job);

// Not constexpr on purpose: a constant `.executor = Executor::process` that cannot work stops compiling here.
inline void executor_process_needs_a_Codec_for_the_type_that_the_function_returns() {}
inline void executor_process_needs_a_system_with_fork() {}

}  // namespace detail

/// What `.executor =` takes: a constant, checked at compile time, or runtime(...), checked at the call.
/// `Executor::process` needs a result type R that is Serializable.
template <class R>
class ExecutorArg {
 public:
  constexpr ExecutorArg() = default;
  consteval ExecutorArg(Executor executor) : executor_(executor) {
    if (executor == Executor::process) {
      if constexpr (!PYARALLEL_HAS_FORK) detail::executor_process_needs_a_system_with_fork();
      if constexpr (!Serializable<R>) {
        detail::executor_process_needs_a_Codec_for_the_type_that_the_function_returns();
      }
      if constexpr (PYARALLEL_HAS_FORK) make_crew_ = &detail::make_forked_crew;
    }
  }
  ExecutorArg(RuntimeExecutor executor) : executor_(executor.value) {
    if constexpr (PYARALLEL_HAS_FORK) make_crew_ = &detail::make_forked_crew;
  }

  /// nullopt: not said. std::invalid_argument for what cannot be done.
  std::optional<Executor> get() const {
    if (executor_ == Executor::process) {
      if (!PYARALLEL_HAS_FORK) {
        throw std::invalid_argument("executor: Executor::process needs fork(), which this system does not have");
      }
      if (!Serializable<R>) {
        throw std::invalid_argument(
            "executor: Executor::process needs a Codec for the type that the function returns; specialise "
            "pyarallel::Codec for it, or use Executor::thread");
      }
    }
    return executor_;
  }
  detail::MakeCrew* make_crew() const noexcept { return make_crew_; }

 private:
  std::optional<Executor> executor_;
  detail::MakeCrew* make_crew_ = nullptr;
};

}  // namespace pyarallel

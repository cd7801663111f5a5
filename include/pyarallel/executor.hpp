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
#include "pyarallel/remote_executor.hpp"

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
struct CrewJob;
class Crew;
using MakeCrew = std::unique_ptr<Crew>(const Plan& plan, const CrewJob& job);
/// In process/crew.hpp. Named only where a call may fork, so that others need not compile what is behind it.
std::unique_ptr<Crew> make_forked_crew(const Plan& plan, const CrewJob& job);
/// In remote/crew.hpp, which comes with whatever makes a RemoteExecutor.
std::unique_ptr<Crew> make_remote_crew(const Plan& plan, const CrewJob& job);

// Not constexpr on purpose: a constant `.executor = Executor::process` that cannot work stops compiling here.
inline void executor_process_needs_a_Codec_for_the_type_that_the_function_returns() {}
inline void executor_process_needs_a_system_with_fork() {}

}  // namespace detail

/// What `.executor =` takes: a constant, checked at compile time, runtime(...), checked at the call, or a
/// RemoteExecutor, which must outlive the call. `Executor::process` needs a result type R that is Serializable; a
/// RemoteExecutor an item type T, too.
template <class R, class T = R>
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

  ExecutorArg(RemoteExecutor& executor) : executor_(executor.kind()), remote_(&executor) {
    static_assert(Serializable<T>,
                  "pyarallel: items are sent to other machines, and there is no Codec for their type; specialise "
                  "pyarallel::Codec for it");
    static_assert(Serializable<R>,
                  "pyarallel: results come from other machines, and there is no Codec for the type that the function "
                  "returns; specialise pyarallel::Codec for it");
    if constexpr (PYARALLEL_HAS_FORK) make_crew_ = &detail::make_forked_crew;
    if (!executor.is_local()) make_crew_ = &detail::make_remote_crew;
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
  /// Null: none was said.
  RemoteExecutor* remote() const noexcept { return remote_; }
  detail::MakeCrew* make_crew() const noexcept { return make_crew_; }

 private:
  std::optional<Executor> executor_;
  RemoteExecutor* remote_ = nullptr;
  detail::MakeCrew* make_crew_ = nullptr;
};

}  // namespace pyarallel

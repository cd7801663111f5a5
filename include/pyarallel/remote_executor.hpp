// Workers on other machines: what a transport offers to the runs that use it. <pyarallel/mpi.hpp> has one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <typeinfo>

#include "pyarallel/detail/clock.hpp"

namespace pyarallel {

enum class Executor;

/// Which function of the program: of all that were served on the other machines, the one that is equal to this. A
/// function object that holds nothing is known by its type, others by their address; a function by its own.
struct RemoteFunction {
  const std::type_info* type = nullptr;
  const void* object = nullptr;  ///< Null: a function.
  void (*code)() = nullptr;      ///< Of a function.
  const void* tag = nullptr;     ///< Of the type of an object that holds nothing, else null.

  friend bool operator==(const RemoteFunction& a, const RemoteFunction& b) noexcept {
    if (a.tag != nullptr || b.tag != nullptr) return a.tag == b.tag;
    return *a.type == *b.type && a.code == b.code && a.object == b.object;
  }
};

/// What a run asks of the other machines, the same for all its items.
struct RemoteJob {
  RemoteFunction function;
  std::string_view call;    ///< Which code, the same in every copy of the program, decodes items and encodes values.
  std::size_t workers = 1;  ///< Items that run at once, at most, over all machines.
  std::size_t chunk = 0;    ///< Items that are sent together; 0: as many as seems best.
  bool together = false;    ///< An item may wait for those that follow at once, to be sent together with them.
  bool blocks = false;      ///< Items are handed over many at a time, and their outcomes may come so.
  std::string_view filter = {};  ///< Which code says of an exception whether it may be retried; empty: all may.
  bool takes_task = false;
  std::optional<Duration> task_timeout = {};
  std::optional<std::size_t> max_tasks_per_worker = {};
  std::optional<std::size_t> worker_memory_limit = {};
};

/// One attempt at an item, or items that follow each other.
struct RemoteItems {
  std::size_t place = 0;  ///< Names a single item among those that are out; free again with its outcome.
  std::size_t index = 0;  ///< Of the first one in the input.
  std::size_t count = 1;  ///< More than one only where RemoteJob::blocks says so.
  int attempt = 1;
  std::span<const std::byte> bytes;  ///< The items, encoded one behind the other; valid during the call.
};

/// What became of an item, or of several that follow each other.
struct RemoteOutcome {
  enum class Kind : std::uint32_t {
    value,        ///< `bytes`: the values, encoded one behind the other.
    failure,      ///< Of a single item; `bytes`: the exception, encoded.
    not_run,      ///< They came back, for there was no time for them.
    interrupted,  ///< A single item was running when the run was stopped, and was killed.
  };
  Kind kind = Kind::value;
  std::size_t place = 0;
  std::size_t index = 0;
  std::size_t count = 1;
  Duration duration = {};            ///< Of a single item.
  bool may_be_retried = true;        ///< Of a failure: what RemoteJob::filter says.
  std::span<const std::byte> bytes;  ///< Valid until the next wait().
};

/// One run on other machines. Used by one thread at a time, except wake().
class RemoteRun {
 public:
  RemoteRun() = default;
  RemoteRun(const RemoteRun&) = delete;
  RemoteRun& operator=(const RemoteRun&) = delete;
  virtual ~RemoteRun() = default;

  /// How many more items somebody should have now, who has nothing to do or soon will have; 0: nobody.
  virtual std::size_t wants_items() = 0;
  virtual void hand_over(const RemoteItems& items) = 0;
  /// Outcomes that have come, or that come before it is `due`. Empty also after wake(), and now and then for no
  /// reason. Throws what must end the run: once, if outcomes still come, or else again.
  virtual std::span<const RemoteOutcome> wait(detail::TimePoint due) = 0;
  /// What has not begun comes back as not_run, tasks are asked to stop; `kill`: and what runs in processes is killed.
  virtual void stop(bool kill) = 0;
  /// wait() should return soon (any thread, at any time).
  virtual void wake() noexcept = 0;
  /// What is still out is wanted no more. When this returns, nothing of the run is running anywhere.
  virtual void end() noexcept = 0;
};

/// Workers on other machines: `.executor = cluster`. Items and results travel by their Codec; functions do not, but
/// are known on the other side already. Everything else of a run (what is admitted and when, rate limits, retries,
/// callbacks, checkpoints, how it ends) stays with the calling thread, and behaves as with any other executor.
class RemoteExecutor {
 public:
  RemoteExecutor() = default;
  RemoteExecutor(const RemoteExecutor&) = delete;
  RemoteExecutor& operator=(const RemoteExecutor&) = delete;
  virtual ~RemoteExecutor() = default;

  /// How many items can run at once, over all machines.
  virtual std::size_t slots() const = 0;
  /// How each machine runs them: Executor::thread or Executor::process.
  virtual Executor kind() const = 0;
  /// There are no other machines, or this is one of them: runs are as by `.executor = runtime(kind())` here.
  virtual bool is_local() const = 0;
  /// std::invalid_argument if the other machines do not know the function.
  virtual void check(const RemoteFunction& function) const = 0;
  /// Never called where is_local().
  virtual std::unique_ptr<RemoteRun> begin(const RemoteJob& job) = 0;
};

}  // namespace pyarallel

// The workers of a run, where they are no threads of this process, as the calling thread sees them: forked ones
// (process/crew.hpp), or on other machines (remote/crew.hpp); and their items, as these see them (crew_run.hpp). Only a
// call that may have a crew brings the untyped half into the program.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <string>

#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/parallelism.hpp"
#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/driver.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/records.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/run_state.hpp"
#include "pyarallel/detail/run/workplace.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::detail {

/// What a run asks of its workers; the same for all of them.
struct CrewJob {
  std::size_t size = 0;         // of the input, where it is known
  std::size_t workers = 1;      // at most
  std::size_t entries = 1;      // of the queue through which the parent hands out items
  std::size_t inline_item = 0;  // bytes of an encoded item that fit behind its entry
  bool claims = false;          // workers find the items by index, and share them out among themselves
  bool sends_items = false;     // the driver reads the items, and sends them encoded
  bool one_by_one = false;      // each item goes through the attempt loop, and its outcome is told at once
  int watchers = 0;             // how many workers may look out for work before they sleep
  // On other machines:
  bool together = false;  // nothing but items and values concerns the driver
  RemoteFunction function = {};
  std::string call = {};
};

/// A worker, as its items see it.
class WorkerLink {
 public:
  /// To be set before each item of a block.
  virtual std::atomic<std::uint64_t>& current_item() noexcept = 0;
  /// The outcome of an item. `value` and `more`, one behind the other: its value, encoded; empty if that is in its
  /// place or there is none.
  virtual void send(const Resolved& item, std::span<const std::byte> value, std::span<const std::byte> more) = 0;
  /// An exception that must leave the call.
  virtual void fail_call(const std::exception_ptr& exception) = 0;

 protected:
  ~WorkerLink() = default;
};

struct AdmittedItem {
  std::size_t place = 0;  // in the window, which is its entry in the queue
  std::size_t index = 0;
  std::span<const std::byte> bytes;  // encoded, where items are sent; valid until the next is admitted
};

class CrewWork {
 public:
  // In a worker --------------------------------------------------------------------------------------

  /// First of all.
  virtual void enter_worker() noexcept = 0;
  /// Before the first item. What worker_init threw, if it did.
  virtual std::exception_ptr initialize() = 0;
  virtual Task new_task(std::size_t worker) = 0;
  /// Runs items one after the other: sets worker.current_item() before each, and sends failures, and values
  /// that are not in shared memory. Returns the first that did not run because the run ended, or block.last.
  virtual std::size_t run_block(Range block, const Task& task, WorkerLink& worker) = 0;
  /// Runs an item to its final outcome, and sends that. `bytes`: the item, where items are sent.
  virtual void run_one(std::size_t index, std::span<const std::byte> bytes, Outcome so_far, Task& task,
                       WorkerLink& worker) = 0;

  // In the parent ------------------------------------------------------------------------------------

  /// Pulls an item, where the driver does that.
  virtual Pull admit(AdmittedItem& item) = 0;
  /// An item that was admitted, encoded again; valid until the next one is. Throws what encoding throws.
  virtual std::span<const std::byte> encode(std::size_t place) = 0;
  /// Items that are found by index, one behind the other.
  virtual std::span<const std::byte> encode(Range items) = 0;
  /// There will be no more.
  virtual bool all_admitted() = 0;
  /// And all are settled.
  virtual bool all_settled() = 0;
  /// Puts an encoded value in its place. Throws what decoding throws.
  virtual void keep_value(const Resolved& item, std::span<const std::byte> bytes) = 0;
  /// Puts encoded values of items that are found by index in their places. Returns the first that could not be decoded,
  /// or items.last; what that threw is the current `error` then, and the bytes behind it are lost.
  virtual std::size_t keep_values(Range items, std::span<const std::byte> bytes, std::exception_ptr& error) = 0;
  virtual void settle(std::span<Resolved> items) = 0;
  virtual Records& records() = 0;

 protected:
  ~CrewWork() = default;
};

/// The workers of one run, as the calling thread sees them.
class Crew : public Workplace {
 public:
  virtual ~Crew() = default;

  virtual RunState& run_state() const noexcept = 0;
  /// Forks the workers. All three must live until end().
  virtual void begin(Run& run, Driver& driver, CrewWork& work) = 0;
  /// Goes on until enough() or, sooner or later, nothing is left to do.
  virtual void advance(FunctionRef<bool()> enough) = 0;
  /// Nobody wants to know what becomes of items any more: what runs is killed as soon as the run has stopped.
  virtual void abandon() noexcept = 0;
  /// When this returns, no worker is left.
  virtual void end() = 0;
};

/// `by_index`: workers find items by their index. `claims`: and share them out among themselves.
inline CrewJob make_crew_job(const Plan& plan, bool by_index, bool claims, bool sized, std::size_t size,
                             std::size_t workers) {
  constexpr std::size_t most_workers = 60'000;
  constexpr std::size_t most_window = std::size_t{1} << 16;
  constexpr std::size_t memory_for_items = std::size_t{1} << 22;
  CrewJob job;
  job.size = size;
  job.workers = std::min(workers, most_workers);
  job.claims = claims;
  job.sends_items = !by_index || plan.remote != nullptr;
  job.one_by_one = plan.remote != nullptr ? plan.measured() : !job.claims || plan.measured();
  if (job.one_by_one) job.watchers = static_cast<int>(cpus_of_affinity()) - 1;  // one is for the driver
  if (job.claims) {
    job.entries = 4 * job.workers + 16;  // for what dead workers leave
    return job;
  }
  std::size_t window = plan.window > 0 ? plan.window : 2 * job.workers;
  if (sized) window = std::min(window, size);
  job.entries = std::clamp<std::size_t>(window, 1, most_window);
  if (job.sends_items) {
    job.inline_item = std::clamp<std::size_t>(memory_for_items / job.entries, 256, std::size_t{1} << 16);
  }
  return job;
}

}  // namespace pyarallel::detail

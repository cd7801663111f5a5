// What the parent and the workers of one run share: the ledger's state, work to be claimed, what each
// worker is doing, and rings for what goes from one to the other. One mapping, made before the first fork.
//
// What a worker does is written down here before it is done, so that the parent can tell after any death
// which item was running, which were finished and which had not begun:
//
//   claim   `next_item` or another's `rest`   ->  `rest`      items that anybody may still take
//   block   taken from `rest`                 ->  `block`     a few items that are this worker's
//   item    `current`, `attempt`              ->  charged if the worker dies now
//   frames  in the outbox                     ->  outcomes, and blocks that are done
//
// A worker that is killed between two of these steps (nanoseconds) may leave items that nobody has. They
// have no outcome, so the parent finds them when all others have one, and hands them out again.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>

#include "pyarallel/detail/process/byte_ring.hpp"
#include "pyarallel/detail/process/futex.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"
#include "pyarallel/detail/process/work_queue.hpp"
#include "pyarallel/detail/run/crew.hpp"
#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/run_state.hpp"

namespace pyarallel::detail {

// A range in one word, so that it changes in one step.
inline constexpr int range_count_bits = 24;
inline constexpr std::size_t most_in_a_range = (std::size_t{1} << range_count_bits) - 1;
inline std::uint64_t pack(Range range) noexcept {
  return range.empty() ? 0 : std::uint64_t{range.first} << range_count_bits | range.size();
}
inline Range unpack(std::uint64_t word) noexcept {
  const auto first = static_cast<std::size_t>(word >> range_count_bits);
  return {first, first + static_cast<std::size_t>(word & most_in_a_range)};
}

enum class Stage : std::uint32_t { starting, ready, leaving, recycled };

/// What the parent must know of a worker's attempt at an item.
enum class AttemptState : std::uint64_t {
  none,       // none of the item in hand
  running,    //
  ended,      // the item waits for its next attempt, or its outcome is on the way
  condemned,  // it took too long: the worker waits to be killed, and its outcome is not heard
};

/// How a worker waits for work, which is counted in the queue.
enum class Waits : std::uint32_t { no, watching, sleeping };

struct alignas(64) WorkerStatus {
  std::atomic<Stage> stage{Stage::starting};
  std::atomic<std::uint64_t> attempt{0};  // how many attempts so far << 2 | AttemptState
  std::atomic<std::int64_t> attempt_start{0};
  std::atomic<std::int64_t> first_start{0};  // of the item's first attempt, in whichever process
  std::atomic<std::int32_t> attempts{0};     // of the item
  std::atomic<std::uint32_t> items{0};       // begun by this process
  std::atomic<std::uint64_t> block{0};
  std::atomic<std::uint64_t> current{0};
  std::atomic<std::size_t> entry{no_entry};  // of the work queue
  std::atomic<Waits> waits{Waits::no};
  Word wants_bytes{0};  // of the item that its entry promises
  alignas(64) std::atomic<std::uint64_t> rest{0};

  /// For the next process. Others may look at `rest` meanwhile, which is empty.
  void reset() noexcept {
    stage.store(Stage::starting, std::memory_order_relaxed);
    for (auto* word : {&attempt, &block, &current}) word->store(0, std::memory_order_relaxed);
    entry.store(no_entry, std::memory_order_relaxed);
    attempts.store(0, std::memory_order_relaxed);
    items.store(0, std::memory_order_relaxed);
    waits.store(Waits::no, std::memory_order_relaxed);
    wants_bytes.store(0, std::memory_order_relaxed);
  }
};

inline AttemptState state_of(std::uint64_t attempt) noexcept { return static_cast<AttemptState>(attempt & 3); }
inline std::uint64_t with_state(std::uint64_t attempt, AttemptState state) noexcept {
  return (attempt & ~std::uint64_t{3}) | static_cast<std::uint64_t>(state);
}

enum class FrameKind : std::uint32_t {
  value,         // encoded behind the head, or already in its place
  failure,       // the exception, encoded
  still_failed,  // as when it was handed out again: no further attempt began
  unrun,
  block,        // `count` items from `index` on are done, in `nanoseconds` each
  call_failed,  // an exception that must leave the call
};

struct FrameHead {
  std::size_t length = 0;  // of what follows
  FrameKind kind = FrameKind::value;
  std::int32_t attempts = 0;
  std::size_t index = 0;
  std::size_t count = 0;
  std::size_t entry = no_entry;  // of the work queue, if it came from there
  std::int64_t nanoseconds = 0;
};

class SharedRun {
 public:
  explicit SharedRun(const CrewJob& job) : workers_(job.workers) {
    const std::size_t stride = round_up(sizeof(WorkEntry) + job.inline_item);
    const std::size_t tickets = WorkQueue::tickets_for(job.entries);
    // Enough for some results to be on their way while others are made; touched as far as it is used.
    const std::size_t outbox = std::clamp(std::bit_floor(most_for_outboxes / workers_), least_outbox, most_outbox);
    const std::size_t inbox = job.sends_items ? inbox_size : 0;

    std::size_t size = 0;
    const auto place = [&](std::size_t bytes) { return std::exchange(size, size + round_up(bytes)); };
    const std::size_t common_at = place(sizeof(Common));
    const std::size_t statuses_at = place(workers_ * sizeof(WorkerStatus));
    const std::size_t tickets_at = place(tickets * sizeof(Word));
    const std::size_t entries_at = place(job.entries * stride);
    const std::size_t ring_states_at = place(2 * workers_ * sizeof(ByteRingState));
    const std::size_t outboxes_at = place(workers_ * outbox);
    const std::size_t inboxes_at = place(workers_ * inbox);
    memory_ = SharedMemory{size};

    common_ = make<Common>(common_at, 1);
    statuses_ = make<WorkerStatus>(statuses_at, workers_);
    ring_states_ = make<ByteRingState>(ring_states_at, 2 * workers_);
    outboxes_ = {memory_.data() + outboxes_at, workers_ * outbox};
    inboxes_ = {memory_.data() + inboxes_at, workers_ * inbox};
    queue_ = WorkQueue{common_->queue, {make<Word>(tickets_at, tickets), tickets}, memory_.data() + entries_at, stride};
  }

  RunState& run_state() const noexcept { return common_->run; }
  /// The first item of an input that workers find by index that nobody claimed.
  std::atomic<std::size_t>& next_item() const noexcept { return common_->next_item; }
  /// The parent wants to be woken by its bell.
  Word& parent_sleeps() const noexcept { return common_->parent_sleeps; }
  WorkQueue& queue() noexcept { return queue_; }
  std::size_t workers() const noexcept { return workers_; }
  WorkerStatus& status(std::size_t worker) const noexcept { return statuses_[worker]; }
  ByteRing outbox(std::size_t worker) const noexcept { return {ring_states_[2 * worker], part(outboxes_, worker)}; }
  ByteRing inbox(std::size_t worker) const noexcept { return {ring_states_[2 * worker + 1], part(inboxes_, worker)}; }

 private:
  static constexpr std::size_t inbox_size = std::size_t{1} << 18;
  static constexpr std::size_t least_outbox = std::size_t{1} << 16;
  static constexpr std::size_t most_outbox = std::size_t{1} << 22;
  static constexpr std::size_t most_for_outboxes = std::size_t{1} << 28;

  struct Common {
    alignas(64) RunState run;
    alignas(64) std::atomic<std::size_t> next_item{0};
    alignas(64) Word parent_sleeps{0};
    WorkQueueState queue;
  };

  static std::size_t round_up(std::size_t size) noexcept { return (size + 63) / 64 * 64; }

  template <class T>
  T* make(std::size_t at, std::size_t count) {
    auto* objects = reinterpret_cast<T*>(memory_.data() + at);
    for (std::size_t i = 0; i < count; ++i) ::new (static_cast<void*>(objects + i)) T();
    return objects;
  }

  std::span<std::byte> part(std::span<std::byte> whole, std::size_t worker) const noexcept {
    return whole.subspan(worker * (whole.size() / workers_), whole.size() / workers_);
  }

  std::size_t workers_;
  SharedMemory memory_;
  Common* common_ = nullptr;
  WorkerStatus* statuses_ = nullptr;
  ByteRingState* ring_states_ = nullptr;
  std::span<std::byte> outboxes_;
  std::span<std::byte> inboxes_;
  WorkQueue queue_;
};

}  // namespace pyarallel::detail

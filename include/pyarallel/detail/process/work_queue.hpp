// Work that the parent hands to whichever worker comes first: pulled items, and what dead workers left.
//
// First in, first out, without a lock that a dead process could hold. Each piece of work has an entry;
// a ring of tickets says in which order the entries came. A worker takes an entry by writing its own
// number into the entry's state, in one step, so the parent always knows whose each entry is. Moving
// the head past a ticket that was taken is done by anybody who meets it, so nobody's death stops it.
#pragma once

#include <atomic>
#include <bit>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <span>

#include "pyarallel/detail/process/futex.hpp"
#include "pyarallel/detail/run/range.hpp"

namespace pyarallel::detail {

inline constexpr std::size_t no_entry = ~std::size_t{0};

/// One piece of work, in shared memory. The parent writes it while nobody has it.
struct WorkEntry {
  std::atomic<std::uint64_t> state{0};  // ticket << 16 | owner + 1; no owner: it waits
  Range range;
  std::int64_t elapsed = 0;  // nanoseconds since the first attempt began
  std::int32_t attempts = 0;
  bool follows = false;         // the item's bytes come through the worker's inbox
  std::uint64_t item_size = 0;  // of an encoded item
};

struct WorkQueueState {
  alignas(64) std::atomic<std::uint64_t> head{0};
  alignas(64) std::atomic<std::uint64_t> tail{0};
  Word news{0};  // changes when there may be something to do
  // Workers that wait for that. Deaths leave it too high, never too low: then somebody is called in vain.
  Word sleepers{0};
  // Workers that look out for it. Deaths leave it too low, never too high.
  std::atomic<std::int32_t> watchers{0};
  Word called{0};  // a sleeper was woken, and is not up yet
  Word more_to_come{0};
  Word few_workers{0};  // the parent could fork more
};

class WorkQueue {
 public:
  /// Owners are numbered below that.
  static constexpr std::size_t most_owners = 0xfffe;

  WorkQueue() = default;
  /// `tickets`: a power of two of them, twice as many as entries or more. Entries lie `stride` bytes apart.
  WorkQueue(WorkQueueState& state, std::span<Word> tickets, std::byte* entries, std::size_t stride) noexcept
      : state_(&state), tickets_(tickets), entries_(entries), stride_(stride) {}

  static std::size_t tickets_for(std::size_t entries) noexcept { return std::bit_ceil(2 * entries + 2); }

  /// Before an entry is used for the first time.
  void make(std::size_t entry) noexcept {
    ::new (static_cast<void*>(entries_ + entry * stride_)) WorkEntry;
    retire(entry);
  }

  WorkEntry& operator[](std::size_t entry) const noexcept {
    return *reinterpret_cast<WorkEntry*>(entries_ + entry * stride_);
  }
  /// What follows the entry, for small encoded items.
  std::span<std::byte> inline_item(std::size_t entry) const noexcept {
    return {entries_ + entry * stride_ + sizeof(WorkEntry), stride_ - sizeof(WorkEntry)};
  }

  // The parent's side --------------------------------------------------------------------------------

  void offer(std::size_t entry) noexcept {
    const std::uint64_t ticket = state_->tail.load(std::memory_order_relaxed);
    // There is room once taken tickets are behind the head, and whoever took them may be dead.
    while (ticket - state_->head.load(std::memory_order_acquire) >= tickets_.size()) pass_taken_ticket();
    place(ticket).store(static_cast<std::uint32_t>(entry), std::memory_order_relaxed);
    (*this)[entry].state.store(ticket << owner_bits, std::memory_order_release);
    // seq_cst, as in sleep(): either a worker sees the ticket, or we see that it sleeps.
    state_->tail.store(ticket + 1, std::memory_order_seq_cst);
    call_if_needed();
  }

  /// The entry is nobody's, until it is offered again.
  void retire(std::size_t entry) noexcept { (*this)[entry].state.store(retired, std::memory_order_release); }

  /// Who took the entry, if anybody did.
  std::optional<std::size_t> owner(std::size_t entry) const noexcept {
    const std::uint64_t number = (*this)[entry].state.load(std::memory_order_acquire) & most_owners_mask;
    if (number == 0) return std::nullopt;
    return static_cast<std::size_t>(number - 1);
  }

  /// A worker died that waited: perhaps as the one that was called, perhaps as one of the watchers.
  void forget_waiter(bool watched) noexcept {
    if (watched) state_->watchers.fetch_sub(1, std::memory_order_seq_cst);
    state_->called.store(0, std::memory_order_seq_cst);
    call_if_needed();
  }

  void set_few_workers(bool few) noexcept { state_->few_workers.store(few ? 1 : 0, std::memory_order_relaxed); }

  /// Whether workers that find nothing should wait.
  void set_more_to_come(bool more) noexcept {
    state_->more_to_come.store(more ? 1 : 0, std::memory_order_seq_cst);
    if (!more) call(INT_MAX);
  }

  /// Wakes workers that wait for something to do.
  void call(int most) noexcept {
    state_->news.fetch_add(1, std::memory_order_seq_cst);
    wake(state_->news, most);
  }

  // Anybody's ----------------------------------------------------------------------------------------

  /// Entries that wait; a hint.
  std::size_t waiting() const noexcept {
    const std::uint64_t head = state_->head.load(std::memory_order_acquire);
    const std::uint64_t tail = state_->tail.load(std::memory_order_acquire);
    return head < tail ? static_cast<std::size_t>(tail - head) : 0;
  }

  /// More entries wait than are looked out for.
  bool unwatched() const noexcept {
    return static_cast<std::int64_t>(waiting()) > state_->watchers.load(std::memory_order_seq_cst);
  }

  /// Wakes a worker if there are such entries. One at a time: who comes calls the next.
  void call_if_needed() noexcept {
    if (unwatched() && state_->sleepers.load(std::memory_order_seq_cst) > 0 &&
        state_->called.exchange(1, std::memory_order_seq_cst) == 0) {
      call(1);
    }
  }

  /// The first entry that waits is `owner`'s now. Nothing if none waits.
  std::optional<std::size_t> take(std::size_t owner) noexcept {
    while (true) {
      const std::uint64_t ticket = state_->head.load(std::memory_order_acquire);
      if (ticket >= state_->tail.load(std::memory_order_acquire)) return std::nullopt;
      const std::size_t entry = place(ticket).load(std::memory_order_relaxed);
      // If others were quicker, this is not the ticket's entry any more, or not its state.
      std::uint64_t waits = ticket << owner_bits;
      const bool mine = (*this)[entry].state.compare_exchange_strong(waits, waits | (owner + 1));
      advance(ticket);
      if (mine) return entry;
    }
  }

  // The worker's side --------------------------------------------------------------------------------

  /// Entries wait that nobody looks out for, and there could be more workers.
  bool needs_workers() const noexcept {
    return state_->few_workers.load(std::memory_order_relaxed) != 0 && unwatched();
  }

  bool more_to_come() const noexcept { return state_->more_to_come.load(std::memory_order_relaxed) != 0; }

  /// A worker looks out for entries, up to `most` of them at a time. False if there are enough.
  bool begin_watching(int most) noexcept {
    if (state_->watchers.load(std::memory_order_relaxed) >= most) return false;
    state_->watchers.fetch_add(1, std::memory_order_seq_cst);
    return true;
  }
  void end_watching() noexcept { state_->watchers.fetch_sub(1, std::memory_order_seq_cst); }

  /// Sleeps until there may be something to do.
  void sleep() noexcept {
    const std::uint32_t seen = state_->news.load(std::memory_order_seq_cst);
    // Also here, because the one that was called may have left already: whoever is called from now on,
    // by a caller that knows of us, may be us.
    state_->called.store(0, std::memory_order_seq_cst);
    state_->sleepers.fetch_add(1, std::memory_order_seq_cst);
    if (state_->tail.load(std::memory_order_seq_cst) == state_->head.load(std::memory_order_seq_cst) &&
        state_->more_to_come.load(std::memory_order_seq_cst) != 0) {
      wait_while(state_->news, seen);
    }
    state_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
    state_->called.store(0, std::memory_order_seq_cst);
  }

 private:
  static constexpr int owner_bits = 16;
  static constexpr std::uint64_t retired = ~std::uint64_t{0};  // no worker has that number
  static constexpr std::uint64_t most_owners_mask = (1U << owner_bits) - 1;

  Word& place(std::uint64_t ticket) const noexcept { return tickets_[ticket & (tickets_.size() - 1)]; }

  void advance(std::uint64_t ticket) noexcept { state_->head.compare_exchange_strong(ticket, ticket + 1); }

  void pass_taken_ticket() noexcept {
    const std::uint64_t ticket = state_->head.load(std::memory_order_acquire);
    const std::size_t entry = place(ticket).load(std::memory_order_relaxed);
    if ((*this)[entry].state.load(std::memory_order_acquire) != ticket << owner_bits) advance(ticket);
  }

  WorkQueueState* state_ = nullptr;
  std::span<Word> tickets_;
  std::byte* entries_ = nullptr;
  std::size_t stride_ = 0;
};

}  // namespace pyarallel::detail

// Bytes from one process to another, in order, through shared memory of a fixed size. One writes, one
// reads; neither can leave it in a state that the other stumbles over, wherever it is killed: what is
// not published does not exist.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "pyarallel/detail/process/futex.hpp"

namespace pyarallel::detail {

/// Lies in shared memory; all zero: empty.
struct ByteRingState {
  alignas(64) std::atomic<std::uint64_t> written{0};  // bytes ever
  alignas(64) std::atomic<std::uint64_t> read{0};
  alignas(64) Word writer_waits{0};  // for room
  Word reader_waits{0};              // for bytes
};

class ByteRing {
 public:
  ByteRing() = default;
  /// The size of `memory` is a power of two.
  ByteRing(ByteRingState& state, std::span<std::byte> memory) noexcept : state_(&state), memory_(memory) {}

  std::size_t capacity() const noexcept { return memory_.size(); }

  /// Empty again, for another writer and reader, while there is neither.
  void reset() noexcept {
    state_->written.store(0, std::memory_order_relaxed);
    state_->read.store(0, std::memory_order_relaxed);
    state_->writer_waits.store(0, std::memory_order_relaxed);
    state_->reader_waits.store(0, std::memory_order_relaxed);
    position_ = 0;
  }

  // The writer's side --------------------------------------------------------------------------------

  std::size_t room() const noexcept {
    return capacity() - static_cast<std::size_t>(position_ - state_->read.load(std::memory_order_acquire));
  }

  /// Copies bytes behind the others; the reader sees them after publish(). There must be room.
  void put(std::span<const std::byte> bytes) noexcept {
    if (bytes.empty()) return;
    const std::size_t start = offset(position_);
    const std::size_t until_end = std::min(bytes.size(), capacity() - start);
    std::memcpy(memory_.data() + start, bytes.data(), until_end);
    if (until_end < bytes.size()) std::memcpy(memory_.data(), bytes.data() + until_end, bytes.size() - until_end);
    position_ += bytes.size();
  }

  void publish() noexcept {
    // seq_cst, as in wait_for_bytes(): either the reader sees the bytes, or we see that it waits.
    state_->written.store(position_, std::memory_order_seq_cst);
    wake_if_waiting(state_->reader_waits);
  }

  /// Sleeps until there is room for `size` bytes. `before_sleep` makes sure that the reader will come.
  template <class BeforeSleep>
  void wait_for_room(std::size_t size, BeforeSleep&& before_sleep) noexcept {
    while (room() < size) {
      state_->writer_waits.store(1, std::memory_order_seq_cst);
      if (capacity() - static_cast<std::size_t>(position_ - state_->read.load(std::memory_order_seq_cst)) >= size) {
        return;
      }
      before_sleep();
      wait_while(state_->writer_waits, 1);
    }
  }

  // The reader's side --------------------------------------------------------------------------------

  std::size_t size() const noexcept {
    return static_cast<std::size_t>(state_->written.load(std::memory_order_acquire) - position_);
  }

  /// The first bytes, as many as lie in one piece.
  std::span<const std::byte> front() const noexcept {
    const std::size_t start = offset(position_);
    return memory_.subspan(start, std::min(size(), capacity() - start));
  }

  /// Copies the first bytes. So many must be there.
  void get(std::span<std::byte> bytes) noexcept {
    const std::size_t start = offset(position_);
    const std::size_t until_end = std::min(bytes.size(), capacity() - start);
    std::memcpy(bytes.data(), memory_.data() + start, until_end);
    if (until_end < bytes.size()) std::memcpy(bytes.data() + until_end, memory_.data(), bytes.size() - until_end);
    position_ += bytes.size();
  }
  void skip(std::size_t size) noexcept { position_ += size; }

  /// Gives the room of what was read back to the writer.
  void release() noexcept {
    state_->read.store(position_, std::memory_order_seq_cst);
    wake_if_waiting(state_->writer_waits);
  }

  /// Sleeps until there are bytes. `before_sleep` makes sure that the writer will come.
  template <class BeforeSleep>
  void wait_for_bytes(BeforeSleep&& before_sleep) noexcept {
    while (size() == 0) {
      state_->reader_waits.store(1, std::memory_order_seq_cst);
      if (state_->written.load(std::memory_order_seq_cst) != position_) return;
      before_sleep();
      wait_while(state_->reader_waits, 1);
    }
  }

 private:
  static void wake_if_waiting(Word& waits) noexcept {
    if (waits.load(std::memory_order_seq_cst) == 0) return;
    waits.store(0, std::memory_order_relaxed);
    wake(waits);
  }

  std::size_t offset(std::uint64_t position) const noexcept {
    return static_cast<std::size_t>(position) & (capacity() - 1);
  }

  ByteRingState* state_ = nullptr;
  std::span<std::byte> memory_;
  std::uint64_t position_ = 0;  // of this side: what it wrote or read so far, published or not
};

}  // namespace pyarallel::detail

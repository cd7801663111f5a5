// Takes whole frames out of a worker's outbox.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/process/byte_ring.hpp"
#include "pyarallel/detail/process/shared_run.hpp"

namespace pyarallel::detail {

class FrameReader {
 public:
  struct Frame {
    FrameHead head;
    std::span<const std::byte> bytes;  // valid until the next call
  };

  FrameReader() = default;
  explicit FrameReader(ByteRing ring) noexcept : ring_(ring) {}

  /// The next frame, if all of it is there.
  std::optional<Frame> next() {
    finish();
    if (!head_) {
      if (ring_.size() < sizeof(FrameHead)) return std::nullopt;
      FrameHead head;
      ring_.get(std::as_writable_bytes(std::span{&head, 1}));
      head_ = head;
      collected_.clear();
    }
    const std::size_t length = head_->length;
    const std::size_t padded = length + (8 - length % 8) % 8;
    if (collected_.empty() && ring_.front().size() >= length && ring_.size() >= padded) {
      unread_ = padded;  // decoded where it is
      return Frame{*std::exchange(head_, std::nullopt), ring_.front().first(length)};
    }
    // It wraps round, or it is on its way in parts.
    while (collected_.size() < padded && ring_.size() > 0) {
      const auto part = ring_.front().first(std::min(ring_.front().size(), padded - collected_.size()));
      collected_.insert(collected_.end(), part.begin(), part.end());
      ring_.skip(part.size());
      ring_.release();
    }
    if (collected_.size() < padded) return std::nullopt;
    return Frame{*std::exchange(head_, std::nullopt), std::span<const std::byte>{collected_}.first(length)};
  }

  /// There may be a frame, or a part of one.
  bool any() const noexcept { return ring_.size() > unread_; }

  /// What was read is not needed any more.
  void finish() noexcept {
    if (unread_ > 0) ring_.skip(std::exchange(unread_, 0));
    // Not after every small frame: telling the writer costs more than reading it.
    if (++unreleased_ < 32 && ring_.size() > 0 && ring_.size() < ring_.capacity() / 4) return;
    unreleased_ = 0;
    ring_.release();
  }

  /// Forgets everything, after the writer died.
  void reset() noexcept {
    head_.reset();
    unread_ = 0;
    collected_ = {};
    ring_.reset();
  }

 private:
  ByteRing ring_;
  std::optional<FrameHead> head_;  // of a frame that is not complete yet
  Bytes collected_;
  std::size_t unread_ = 0;
  int unreleased_ = 0;
};

}  // namespace pyarallel::detail

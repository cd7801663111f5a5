// What goes between rank 0 and the others: a stream of frames each way, cut into messages anywhere.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>

#include "pyarallel/codec.hpp"

namespace pyarallel::detail {

enum class RemoteFrame : std::uint32_t {
  // To a rank:
  begin,      // a run, encoded
  items,      // `count` from `index` on
  give_back,  // up to `count` items that have not begun
  stop,       // `number`: whether what runs may be killed
  end,        // of the run: no more items
  quit,
  // From a rank:
  values,   // of `count` items from `index` on; `number`: nanoseconds, of a single one
  failure,  // of the item `index`: its exception; `attempt`: 1 if it may be retried, else 0
  not_run,
  interrupted,
  gave_back,    // all that it can
  pace,         // `number`: picoseconds that an item takes a worker, as last seen
  call_failed,  // an exception that must end the run
  ended,        // nothing of the run is running any more
};

struct RemoteHead {
  RemoteFrame kind = RemoteFrame::items;
  std::uint32_t place = 0;
  std::uint32_t attempt = 1;
  std::uint32_t count = 1;
  std::uint64_t index = 0;
  std::uint64_t number = 0;
  std::uint64_t length = 0;  // of what follows
};

inline void append_head(Bytes& out, const RemoteHead& head) { append(out, &head, sizeof head); }

inline void append_frame(Bytes& out, RemoteHead head, std::span<const std::byte> bytes = {}) {
  head.length = bytes.size();
  append_head(out, head);
  append(out, bytes.data(), bytes.size());
}

/// A frame whose bytes are appended by `write(out)`.
template <class Write>
void append_frame_of(Bytes& out, const RemoteHead& head, Write write) {
  const std::size_t at = out.size();
  append_head(out, head);
  try {
    write(out);
  } catch (...) {
    out.resize(at);
    throw;
  }
  const std::uint64_t length = out.size() - at - sizeof head;
  std::memcpy(out.data() + at + offsetof(RemoteHead, length), &length, sizeof length);
}

/// Finds the frames in a stream that comes in pieces.
class FrameSplitter {
 public:
  /// Calls use(head, bytes) for each frame that is whole now. The bytes are those of the piece, or, if this returns
  /// true, some of them are this object's: valid until the next call.
  template <class Use>
  bool feed(std::span<const std::byte> piece, Use&& use) {
    bool pieced_together = false;
    while (!kept_.empty() && !piece.empty()) {
      const std::size_t wanted = missing();
      const std::size_t part = std::min(wanted, piece.size());
      append(kept_, piece.data(), part);
      piece = piece.subspan(part);
      if (part == wanted && missing() == 0) {
        whole_ = std::exchange(kept_, {});
        pieced_together = true;
        use(head_of(whole_), std::span{std::as_const(whole_)}.subspan(sizeof(RemoteHead)));
      }
    }
    while (piece.size() >= sizeof(RemoteHead)) {
      const RemoteHead head = head_of(piece);
      if (piece.size() - sizeof head < head.length) break;
      const std::size_t length = static_cast<std::size_t>(head.length);
      use(head, piece.subspan(sizeof head, length));
      piece = piece.subspan(sizeof head + length);
    }
    if (piece.empty()) return pieced_together;
    kept_.assign(piece.begin(), piece.end());
    if (kept_.size() >= sizeof(RemoteHead)) kept_.reserve(kept_.size() + missing());
    return pieced_together;
  }

 private:
  static RemoteHead head_of(std::span<const std::byte> bytes) noexcept {
    RemoteHead head;
    std::memcpy(&head, bytes.data(), sizeof head);
    return head;
  }

  /// Bytes until the frame, or first its head, is whole.
  std::size_t missing() const noexcept {
    if (kept_.size() < sizeof(RemoteHead)) return sizeof(RemoteHead) - kept_.size();
    return sizeof(RemoteHead) + static_cast<std::size_t>(head_of(kept_).length) - kept_.size();
  }

  Bytes kept_;   // the beginning of a frame
  Bytes whole_;  // the last frame that came in pieces
};

}  // namespace pyarallel::detail

// A way to send pieces of a byte stream to others, each in order, and to receive theirs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <span>
#include <thread>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"

namespace pyarallel::detail {

class Link {
 public:
  virtual ~Link() = default;
  /// Sends all of `bytes`, and empties it; never waits for the receiver.
  virtual void send(std::size_t peer, Bytes& bytes) = 0;
  /// A piece that has come, valid until the next call; empty: there is none now. Goes on with sending, too.
  virtual std::span<const std::byte> receive(std::size_t& peer) = 0;
  /// Something is not sent yet: receive() must be called.
  virtual bool sending() const = 0;
};

/// Waits for something that can only be looked at: hot at first, because an answer often comes within microseconds,
/// then sleeping, longer and longer, so that waiting costs no CPU.
class PollPause {
 public:
  using clock = std::chrono::steady_clock;

  /// There was something.
  void reset() noexcept { idle_since_ = clock::time_point::max(); }

  /// Some of the time until `due` passes.
  void pass(TimePoint due) {
    const Duration length = next();
    const auto left = due == TimePoint::max() ? Duration::max() : due - clock::now();
    // Close to the moment it does not sleep, for a sleeper wakes up late.
    if (length == Duration::zero() || left < std::chrono::microseconds{150}) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::min(length, left - std::chrono::microseconds{100}));
    }
  }

  /// How long it would sleep now.
  Duration next() noexcept {
    const auto now = clock::now();
    if (idle_since_ == clock::time_point::max()) idle_since_ = now;
    const auto idle = now - idle_since_;
    if (idle < hot) return Duration::zero();
    return std::min<Duration>(longest, (idle - hot) / 4 + std::chrono::microseconds{50});
  }

 private:
  static constexpr std::chrono::microseconds hot{200};
  static constexpr std::chrono::milliseconds longest{1};

  clock::time_point idle_since_ = clock::time_point::max();
};

}  // namespace pyarallel::detail

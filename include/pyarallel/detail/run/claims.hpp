// How workers share out the indices of a random-access input among themselves, without the driver.
//
// A claim is one atomic add on a shared counter. That costs 35 ns when two cores contend for it, so a
// claim takes many small items at once, sized by the pace that the worker saw so far: about 50 us of
// work, starting with a single item. Towards the end claims shrink, down to one item, so that nobody
// waits long for the last one. A worker whose items turn out slower than expected gives the rest of
// its claim back.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <limits>
#include <mutex>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/run.hpp"

namespace pyarallel::detail {

class Claims {
 public:
  Claims(std::size_t size, std::size_t workers) noexcept : size_(size), workers_(workers) {}

  /// Up to `most` items, in order; empty when none are left. With `guided`, fewer towards the end.
  Range take(std::size_t most, bool guided) {
    if (given_back_.load(std::memory_order_acquire) > 0) {
      const Range range = take_given_back(most);
      if (!range.empty()) return range;
    }
    const std::size_t next = next_.load(std::memory_order_relaxed);
    if (next >= size_) return {};
    if (guided) most = std::min(most, std::max<std::size_t>(1, (size_ - next) / (2 * workers_)));
    // Never wraps round: a worker stops adding as soon as it sees the end, and claims are bounded.
    const std::size_t first = next_.fetch_add(most, std::memory_order_relaxed);
    if (first >= size_) return {};
    return {first, std::min(first + most, size_)};
  }

  void give_back(Range range) {
    if (range.empty()) return;
    const std::lock_guard lock{mutex_};
    ranges_.push_back(range);
    given_back_.fetch_add(1, std::memory_order_release);
  }

  /// All that nobody claimed, for the time after the last worker left.
  std::vector<Range> rest() {
    const std::lock_guard lock{mutex_};
    std::vector<Range> unclaimed = ranges_;
    const std::size_t next = next_.load(std::memory_order_relaxed);
    if (next < size_) unclaimed.push_back({next, size_});
    return unclaimed;
  }

  bool any_left() const noexcept {
    return given_back_.load(std::memory_order_relaxed) > 0 || next_.load(std::memory_order_relaxed) < size_;
  }

 private:
  Range take_given_back(std::size_t most) {
    const std::lock_guard lock{mutex_};
    if (ranges_.empty()) return {};
    Range& last = ranges_.back();
    const Range range{last.first, last.first + std::min(most, last.size())};
    last.first = range.last;
    if (last.empty()) {
      ranges_.pop_back();
      given_back_.fetch_sub(1, std::memory_order_relaxed);
    }
    return range;
  }

  const std::size_t size_;
  const std::size_t workers_;
  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::atomic<std::size_t> given_back_{0};
  std::mutex mutex_;
  std::vector<Range> ranges_;
};

/// One worker's choice of how many items to claim at once, and how often to look at the clock.
class Pace {
 public:
  /// `fixed`: what Batch::chunk says; 0 to choose.
  explicit Pace(std::size_t fixed, std::size_t most) noexcept : fixed_(fixed), most_(std::max<std::size_t>(most, 1)) {}

  bool chosen() const noexcept { return fixed_ == 0; }
  std::size_t chunk() const noexcept { return std::min(most_, chosen() ? chunk_ : fixed_); }

  /// Starts a claim.
  void begin() noexcept {
    mark_ = std::chrono::steady_clock::now();
    begun_ = mark_;
    block_ = 1;
  }

  /// How many items to run before the next look at the clock: 1, 2, 4, ... so that a claim whose items
  /// are slow from the start is noticed at its first, up to about 4 us of work.
  std::size_t block() const noexcept { return block_; }

  /// After `items` more: false if the claim takes much longer than it should, so that the rest should
  /// be given back.
  bool keep_going(std::size_t items) noexcept {
    const auto now = std::chrono::steady_clock::now();
    per_item_ = std::chrono::duration<double, std::nano>(now - mark_).count() / static_cast<double>(items);
    mark_ = now;
    block_ = std::max<std::size_t>(1, std::min(block_ * 4, items_in(4'000)));
    return now - begun_ < std::chrono::microseconds{100};
  }

  /// Ends a claim: sets the size of the next.
  void end() noexcept { chunk_ = std::max<std::size_t>(1, std::min(chunk_ * 8, items_in(50'000))); }

 private:
  std::size_t items_in(double nanoseconds) const noexcept {
    constexpr double many = 1e9;
    return static_cast<std::size_t>(std::min(many, nanoseconds / std::max(per_item_, 1e-3)));
  }

  std::size_t fixed_;
  std::size_t most_;
  std::size_t chunk_ = 1;
  std::size_t block_ = 1;
  double per_item_ = 0;
  std::chrono::steady_clock::time_point begun_;
  std::chrono::steady_clock::time_point mark_;
};

}  // namespace pyarallel::detail

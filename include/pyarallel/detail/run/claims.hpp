// How workers share out the indices of a random-access input among themselves, without the driver.
//
// A claim is one atomic add on a shared counter. That costs 35 ns when two cores contend for it, so a
// claim takes many small items at once, sized by the pace that the worker saw so far: about 50 us of
// work, starting with a single item. Towards the end claims shrink, down to one item or 2 us of work,
// so that nobody waits long for the last one. A worker looks at the clock every 4 us of work at the
// pace seen; when its items turn out slower than expected, it gives the rest of its claim back.
//
// Where a slow item must not hold back the next (clause W1), items are taken one by one. If several workers took
// neighbours, though, they would fight for the counter and for the cache lines that the results are written to: 150
// ns an item. So a worker has a tray of items that it claimed, while they are quick, and everybody may take items
// from it: when there are no others, and when the worker turns out to be stuck.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/range.hpp"

namespace pyarallel::detail {

/// Claims up to `most` items of those that nobody has, in order; empty when there are none. Towards the end
/// of the input fewer, but not fewer than `least`.
inline Range claim_next(std::atomic<std::size_t>& next_item, std::size_t size, std::size_t workers, std::size_t most,
                        std::size_t least) noexcept {
  const std::size_t next = next_item.load(std::memory_order_relaxed);
  if (next >= size) return {};
  most = std::min(most, std::max(least, (size - next) / (2 * workers)));
  // Never wraps round: a worker stops adding as soon as it sees the end, and claims are bounded.
  const std::size_t first = next_item.fetch_add(most, std::memory_order_relaxed);
  if (first >= size) return {};
  return {first, std::min(first + most, size)};
}

/// Items in order, of which anybody may take the first.
class Tray {
 public:
  /// What is on it, and how much.
  using Content = std::uint64_t;

  Content content() const noexcept { return content_.load(std::memory_order_relaxed); }
  static bool holds_any(Content content) noexcept { return count(content) > 0; }

  /// By its owner, when it is empty. At most 65535 of them, and none beyond 2^48.
  void put(Range items) noexcept { content_.store(items.first << 16 | items.size(), std::memory_order_relaxed); }

  /// One item, if there are any.
  Range take() noexcept {
    Content now = content();
    while (holds_any(now)) {
      if (const Range item = take(now); !item.empty()) return item;
    }
    return {};
  }

  /// One item, if this is what is on it; else `expected` becomes what is.
  Range take(Content& expected) noexcept {
    const Content less = expected + (Content{1} << 16) - 1;
    // No content ever comes again, for items go up: so who sees the same content takes from the same one.
    if (!content_.compare_exchange_weak(expected, less, std::memory_order_relaxed)) return {};
    return {expected >> 16, (expected >> 16) + 1};
  }

  Range rest() const noexcept {
    const Content now = content();
    return {now >> 16, (now >> 16) + count(now)};
  }

 private:
  static std::size_t count(Content content) noexcept { return content & 0xffff; }

  alignas(64) std::atomic<Content> content_{0};
};

class Claims {
 public:
  /// `one_by_one`: workers take_one(), else they take().
  Claims(std::size_t size, std::size_t workers, bool one_by_one)
      : size_(size), workers_(workers), trays_(one_by_one ? std::make_unique<Tray[]>(workers) : nullptr) {}

  bool one_by_one() const noexcept { return static_cast<bool>(trays_); }

  /// What was given back first; else as claim_next().
  Range take(std::size_t most, std::size_t least) {
    if (given_back_.load(std::memory_order_acquire) > 0) {
      const Range range = take_given_back(most);
      if (!range.empty()) return range;
    }
    return claim_next(next_, size_, workers_, most, least);
  }

  /// One worker's way of taking items one by one.
  class Taker {
   public:
    /// `most`: items on its tray.
    Taker(Claims& claims, std::size_t worker, std::size_t most) noexcept
        : claims_(claims), worker_(worker), most_(std::clamp<std::size_t>(most, 1, 64)), other_(worker) {}

    /// Empty when there are none.
    Range take_one() {
      if (const Range item = claims_.trays_[worker_].take(); !item.empty()) return item;
      size_tray();
      if (const Range item = take_from_one_who_is_stuck(); !item.empty()) return item;
      const Range claim = claim_next(claims_.next_, claims_.size_, claims_.workers_, tray_, 1);
      if (claim.empty()) return take_from_anybody();
      if (claim.size() > 1) {
        claims_.trays_[worker_].put({claim.first + 1, claim.last});
        late_ = claims_.next_.load(std::memory_order_relaxed) >= claims_.size_;
        filled_ = std::chrono::steady_clock::now();  // to make the claim was no work
      }
      return {claim.first, claim.first + 1};
    }

    /// Others may have found nothing, and left, before the last items came on this worker's tray.
    bool others_may_have_left() noexcept { return std::exchange(late_, false); }

   private:
    void size_tray() noexcept {
      const auto now = std::chrono::steady_clock::now();
      const bool quick = filled_ != Time{} && now - filled_ < std::chrono::microseconds{20};
      tray_ = quick ? std::min(4 * tray_, most_) : 1;
      filled_ = now;
    }

    // Whose tray is as it was when this worker filled its own the last time: its items should not wait for that one.
    // Each worker watches one of the others at a time.
    Range take_from_one_who_is_stuck() noexcept {
      Range item;
      if (other_ != worker_ && Tray::holds_any(seen_)) item = claims_.trays_[other_].take(seen_);
      if (item.empty() && ++other_ == claims_.workers_) other_ = 0;
      seen_ = claims_.trays_[other_].content();
      return item;
    }

    Range take_from_anybody() noexcept {
      for (std::size_t i = 1; i < claims_.workers_; ++i) {
        if (const Range item = claims_.trays_[(worker_ + i) % claims_.workers_].take(); !item.empty()) return item;
      }
      return {};
    }

    using Time = std::chrono::steady_clock::time_point;

    Claims& claims_;
    const std::size_t worker_;
    const std::size_t most_;
    std::size_t tray_ = 1;
    Time filled_;
    bool late_ = false;
    std::size_t other_;  // the worker that this one watches
    Tray::Content seen_ = 0;
  };

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
    for (std::size_t worker = 0; trays_ && worker < workers_; ++worker) {
      if (const Range range = trays_[worker].rest(); !range.empty()) unclaimed.push_back(range);
    }
    const std::size_t next = next_.load(std::memory_order_relaxed);
    if (next < size_) unclaimed.push_back({next, size_});
    return unclaimed;
  }

  bool any_left() const noexcept {
    if (given_back_.load(std::memory_order_relaxed) > 0 || next_.load(std::memory_order_relaxed) < size_) return true;
    for (std::size_t worker = 0; trays_ && worker < workers_; ++worker) {
      if (Tray::holds_any(trays_[worker].content())) return true;
    }
    return false;
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
  const std::unique_ptr<Tray[]> trays_;  // of the workers
  alignas(64) std::atomic<std::size_t> next_{0};
  alignas(64) std::atomic<std::size_t> given_back_{0};
  std::mutex mutex_;
  std::vector<Range> ranges_;
};

/// One worker's choice of how many items to claim at once, and how often to look at the clock.
class Pace {
 public:
  /// `fixed`: as many at once; 0 to choose. Never more than `most`. `block`: nanoseconds of work between
  /// looks at the clock.
  Pace(std::size_t fixed, std::size_t most, double block = 4'000) noexcept
      : most_(std::max<std::size_t>(most, 1)), fixed_(std::min(fixed, most_)), block_time_(block) {}

  bool chosen() const noexcept { return fixed_ == 0; }
  /// Items for the next claim: at most so many, and so many even at the end of the input.
  std::size_t most() const noexcept { return chosen() ? std::min(chunk_, most_) : fixed_; }
  std::size_t least() const noexcept { return chosen() ? std::min(items_in(2'000), most()) : fixed_; }

  /// Starts a claim.
  void begin() noexcept {
    if (!chosen()) return;
    // To make a claim takes time too, where many workers do: it should not look like work. With claims as small as
    // those of a small call that does not matter, but a look at the clock would.
    const bool large = static_cast<double>(chunk_) * per_item_ > 10'000;
    if (mark_ == Time{} || large) mark_ = std::chrono::steady_clock::now();
    begun_ = mark_;
  }

  /// How many items of the claim to run before the next look at the clock.
  std::size_t block() const noexcept { return chosen() ? items_in(block_time_) : fixed_; }

  /// After a block of `items`: false if the claim takes much longer than it should, so that the rest
  /// of it should be given back.
  bool keep_going(std::size_t items) noexcept {
    return !chosen() || keep_going(items, std::chrono::steady_clock::now());
  }
  bool keep_going(std::size_t items, std::chrono::steady_clock::time_point now) noexcept {
    per_item_ = std::chrono::duration<double, std::nano>(now - mark_).count() / static_cast<double>(items);
    mark_ = now;
    return now - begun_ < std::chrono::microseconds{100};
  }

  /// Ends a claim: sets the size of the next.
  void end() noexcept { chunk_ = std::min(chunk_ * 16, items_in(50'000)); }

  /// Time went by without items.
  void rest() noexcept { mark_ = Time{}; }

 private:
  using Time = std::chrono::steady_clock::time_point;

  // At the pace seen, at least one; one while there is none.
  std::size_t items_in(double nanoseconds) const noexcept {
    constexpr double many = 1e6;
    if (per_item_ == 0) return 1;
    return static_cast<std::size_t>(std::clamp(nanoseconds / per_item_, 1.0, many));
  }

  std::size_t most_;
  std::size_t fixed_;
  double block_time_;
  std::size_t chunk_ = 1;
  double per_item_ = 0;
  Time begun_;
  Time mark_;
};

}  // namespace pyarallel::detail

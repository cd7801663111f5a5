// The arithmetic of a rate limit: which moment is the next caller's. Time is a parameter.
//
// GCRA, the generic cell rate algorithm (ITU-T I.371): a token is a stretch of time. `tail` is where
// the next reservation starts; a reservation of length `cost` that starts at s falls due at
// s + cost - burst_time, which is in the past while the bucket holds enough. Reservations are taken
// ahead of their time, so that every waiter sleeps until its own moment, and a waiter that is woken
// late does not delay those behind it.
//
// A waiter that gives up hands its reservation back: at the tail by moving the tail, elsewhere as a
// hole that the next caller fills. Everything is lock-free, and plain atomics of fixed size: what
// changes lies in memory that processes share, and any of them may be killed between any two lines.
// That costs the place that it held and the holes that it had in its hands, and nobody waits for it.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <new>
#include <optional>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"

namespace pyarallel::detail {

struct Reservation {
  TimePoint start;
  Duration cost;
  TimePoint due;  // nothing may start before
};

/// What changes in a bucket. All zero bytes are a fresh one, because shared memory begins so, and of the
/// processes that open a named one none can be relied on to write a beginning.
struct BucketState {
  /// Nanoseconds of the steady clock, counted from its furthest past, so that no time is 0.
  using Ticks = std::uint64_t;
  using Atomic = std::atomic<Ticks>;
  static constexpr Ticks unused = 0;
  static constexpr Ticks in_transit = 1;
  static constexpr Ticks first_time = 2;

  /// A place in the future that was reserved and handed back. Any value of `start` below first_time is
  /// a state, not a time. One that a killed process left in transit stays so, and is one hole less.
  struct Hole {
    Atomic start{unused};
    Atomic cost{0};
  };

  alignas(64) Atomic tail{unused};
  Atomic paused_until{unused};
  // There are no holes while these two are equal. No count of the holes: it would go wrong for good where
  // a process is killed between the hole and the count.
  Atomic holes_left{0};     // how many were ever left, counted after each
  Atomic holes_cleared{0};  // what holes_left was before a look that found none
  alignas(64) std::array<Hole, 246> holes;
};

// The same in every program that shares it, whoever compiled it.
static_assert(BucketState::Atomic::is_always_lock_free && sizeof(BucketState::Atomic) == 8);
static_assert(std::is_standard_layout_v<BucketState> && std::is_trivially_destructible_v<BucketState>);
static_assert(sizeof(BucketState) == 64 + 246 * 16 + 32 && offsetof(BucketState, holes) == 64);

/// A process's handle of a bucket: its constants, and where its state is.
class Bucket {
 public:
  /// A fresh one, shared with the processes that are forked from now on. `per_token`: nanoseconds;
  /// `burst`: tokens at once. std::system_error if there is no memory to be had.
  Bucket(double per_token, int burst)
      : one_token_(scaled(per_token, 1)),
        burst_time_(scaled(static_cast<double>(one_token_.count()), burst)),
        memory_(sizeof(BucketState)),
        state_(*::new(memory_.data()) BucketState) {}
  /// That of `state`, which lies in `memory`.
  Bucket(double per_token, int burst, SharedMemory memory, BucketState& state) noexcept
      : one_token_(scaled(per_token, 1)),
        burst_time_(scaled(static_cast<double>(one_token_.count()), burst)),
        memory_(std::move(memory)),
        state_(state) {}
  Bucket(const Bucket&) = delete;
  Bucket& operator=(const Bucket&) = delete;

  /// The first moment for `tokens` from `now` on, unless it lies after `latest`.
  std::optional<Reservation> reserve(TimePoint now, double tokens, TimePoint latest) noexcept {
    const Duration cost = cost_of(tokens);
    if (any_holes()) {
      if (auto hole = fill_hole(now, cost, latest)) return hole;
    }
    Ticks tail = state_.tail.load(std::memory_order_relaxed);
    while (true) {
      const Reservation next = next_at(tail, now, cost);
      if (next.due > latest) return std::nullopt;
      if (!state_.tail.compare_exchange_weak(tail, ticks(add_saturating(next.start, cost)), std::memory_order_seq_cst,
                                             std::memory_order_relaxed)) {
        continue;
      }
      // A pause that came in between holds this reservation too. The order of tail and
      // paused_until is the same for all (seq_cst): either we see the pause, or it came after us.
      if (!overtaken(next)) return next;
      tail = state_.tail.load(std::memory_order_relaxed);
    }
  }

  /// True if a pause began since the reservation was made and holds it: reserve again. Its old place
  /// lies before the end of the pause, or counts on tokens that the pause took away.
  bool overtaken(const Reservation& reservation) const noexcept {
    const Ticks paused_until = state_.paused_until.load(std::memory_order_seq_cst);
    return paused_until != unused &&
           (reservation.due < time(paused_until) || reservation.start < first_start_after(paused_until));
  }

  /// An abandoned reservation consumes nothing.
  void give_back(TimePoint now, const Reservation& reservation) noexcept {
    if (!retreat_tail(reservation.start, reservation.cost)) leave_hole(now, reservation);
    // Holes that now end at the tail are part of the free future again.
    for (bool again = any_holes(); again;) {
      again = false;
      for (Hole& hole : state_.holes) {
        // Only those are taken in hand: what a process has in its hands is lost if it is killed.
        const Ticks start = hole.start.load(std::memory_order_acquire);
        const Duration cost = length(hole.cost.load(std::memory_order_relaxed));
        if (start < first_time || ticks(time(start) + cost) != state_.tail.load(std::memory_order_relaxed)) continue;
        const auto taken = take(hole);
        if (!taken) continue;
        if (retreat_tail(taken->start, taken->cost)) {
          again = true;
        } else {
          leave_hole(now, *taken);
        }
      }
    }
  }

  /// Nothing falls due before `until`; the furthest call wins. At `until` one token is there.
  void pause(TimePoint until) noexcept {
    Ticks current = state_.paused_until.load(std::memory_order_relaxed);
    while (current < ticks(until) &&
           !state_.paused_until.compare_exchange_weak(current, ticks(until), std::memory_order_seq_cst)) {
    }
  }

  /// When the next reservation of `tokens` would fall due; takes nothing.
  TimePoint next_due(TimePoint now, double tokens) const noexcept {
    const Duration cost = cost_of(tokens);
    TimePoint due = next_at(state_.tail.load(std::memory_order_relaxed), now, cost).due;
    if (any_holes()) {
      for (const Hole& hole : state_.holes) {
        if (const auto place = place_in(hole, now, cost)) due = std::min(due, place->due);
      }
    }
    return due;
  }

 private:
  using Ticks = BucketState::Ticks;
  using Hole = BucketState::Hole;
  static constexpr Ticks unused = BucketState::unused;
  static constexpr Ticks in_transit = BucketState::in_transit;
  static constexpr Ticks first_time = BucketState::first_time;

  static constexpr double furthest = 1e17;  // three years in nanoseconds: rates slower than that are all "never"

  // Time 0 of the clock is in the middle of the ticks.
  static constexpr Ticks middle = Ticks{1} << 63U;
  static Ticks ticks(TimePoint t) noexcept { return static_cast<Ticks>(t.time_since_epoch().count()) + middle; }
  static TimePoint time(Ticks t) noexcept { return TimePoint{Duration{static_cast<Duration::rep>(t - middle)}}; }
  static Ticks length_of(Duration d) noexcept { return static_cast<Ticks>(d.count()); }
  static Duration length(Ticks d) noexcept { return Duration{static_cast<Duration::rep>(d)}; }
  static Duration scaled(double length, double by) noexcept {
    return Duration{static_cast<Duration::rep>(std::ceil(std::min(length * by, furthest)))};
  }

  // A token is a whole number of nanoseconds, rounded up, and everything is counted in tokens: so the
  // limit is never exceeded, not by a nanosecond in a million, and it is reached within 2 % up to 20
  // million tokens a second.
  Duration cost_of(double tokens) const noexcept {
    return tokens == 1 ? one_token_ : scaled(static_cast<double>(one_token_.count()), tokens);
  }

  // Where one token is there at the end of a pause, and not more.
  TimePoint first_start_after(Ticks paused_until) const noexcept {
    return add_saturating(time(paused_until), burst_time_ - one_token_);
  }

  Reservation reservation_at(TimePoint start, Duration cost) const noexcept {
    return {start, cost, add_saturating(start, cost) - burst_time_};
  }

  Reservation next_at(Ticks tail, TimePoint now, Duration cost) const noexcept {
    TimePoint start = std::max(time(tail), now);
    const Ticks paused_until = state_.paused_until.load(std::memory_order_seq_cst);
    if (paused_until != unused) start = std::max(start, first_start_after(paused_until));
    Reservation next = reservation_at(start, cost);
    next.due = std::max({next.due, now, time(paused_until)});
    return next;
  }

  bool usable(const Reservation& reservation, TimePoint now) const noexcept {
    return reservation.due >= now && !overtaken(reservation);
  }

  bool retreat_tail(TimePoint start, Duration cost) noexcept {
    Ticks end = ticks(add_saturating(start, cost));
    return state_.tail.compare_exchange_strong(end, ticks(start), std::memory_order_seq_cst);
  }

  std::optional<Reservation> take(Hole& hole) noexcept {
    Ticks start = hole.start.load(std::memory_order_relaxed);
    if (start < first_time || !hole.start.compare_exchange_strong(start, in_transit, std::memory_order_acquire)) {
      return std::nullopt;
    }
    const Reservation content = reservation_at(time(start), length(hole.cost.load(std::memory_order_relaxed)));
    hole.start.store(unused, std::memory_order_release);
    return content;
  }

  // Or there are none but nobody has looked yet; a hint, and never wrong for long.
  bool any_holes() const noexcept {
    return state_.holes_left.load(std::memory_order_relaxed) != state_.holes_cleared.load(std::memory_order_relaxed);
  }

  // With all holes in use the place is lost: some throughput, never a grant too many.
  void leave_hole(TimePoint now, Reservation reservation) noexcept {
    if (reservation.cost <= Duration::zero() || !usable(reservation, now)) return;
    // Neighbours become one, so that a crowd that gives up together leaves few. One pass may miss one:
    // then there are two for a while.
    for (Hole& hole : state_.holes) {
      if (!any_holes()) break;
      const Ticks start = hole.start.load(std::memory_order_acquire);
      if (start < first_time) continue;
      const TimePoint end = time(start) + length(hole.cost.load(std::memory_order_relaxed));
      if (end != reservation.start && reservation.start + reservation.cost != time(start)) continue;
      const auto neighbour = take(hole);
      if (!neighbour) continue;
      if (neighbour->start + neighbour->cost == reservation.start) {
        reservation = reservation_at(neighbour->start, neighbour->cost + reservation.cost);
      } else if (reservation.start + reservation.cost == neighbour->start) {
        reservation = reservation_at(reservation.start, reservation.cost + neighbour->cost);
      } else {
        put(*neighbour);  // it changed in between
      }
    }
    put(reservation);
  }

  void put(const Reservation& reservation) noexcept {
    for (Hole& hole : state_.holes) {
      Ticks expected = unused;
      if (!hole.start.compare_exchange_strong(expected, in_transit, std::memory_order_acquire)) continue;
      hole.cost.store(length_of(reservation.cost), std::memory_order_relaxed);
      hole.start.store(ticks(reservation.start), std::memory_order_release);
      // After the hole: whoever looks for holes has seen all that were counted when it began.
      state_.holes_left.fetch_add(1, std::memory_order_release);
      return;
    }
  }

  // A place of `cost` in the free stretch [start, start + length), not in the past.
  std::optional<Reservation> place_within(TimePoint start, Duration length, TimePoint now,
                                          Duration cost) const noexcept {
    const TimePoint end = start + length;
    TimePoint first = std::max(start, add_saturating(now, burst_time_ - cost));
    const Ticks paused_until = state_.paused_until.load(std::memory_order_seq_cst);
    if (paused_until != unused) {
      first =
          std::max({first, first_start_after(paused_until), add_saturating(time(paused_until), burst_time_ - cost)});
    }
    if (first > end || end - first < cost) return std::nullopt;
    return reservation_at(first, cost);
  }

  std::optional<Reservation> place_in(const Hole& hole, TimePoint now, Duration cost) const noexcept {
    const Ticks start = hole.start.load(std::memory_order_acquire);
    if (start < first_time) return std::nullopt;
    return place_within(time(start), length(hole.cost.load(std::memory_order_relaxed)), now, cost);
  }

  // The earliest place in a hole; the parts of the hole before and behind it stay free.
  std::optional<Reservation> fill_hole(TimePoint now, Duration cost, TimePoint latest) noexcept {
    while (Hole* hole = earliest_hole(now, cost)) {
      const auto content = take(*hole);
      if (!content) continue;  // somebody was quicker
      const auto place = place_within(content->start, content->cost, now, cost);
      if (!place || place->due > latest) {
        leave_hole(now, *content);
        return std::nullopt;
      }
      leave_hole(now, reservation_at(content->start, place->start - content->start));
      const TimePoint behind = place->start + cost;
      leave_hole(now, reservation_at(behind, content->start + content->cost - behind));
      return place;
    }
    return std::nullopt;
  }

  // Forgets holes whose time has passed on the way.
  Hole* earliest_hole(TimePoint now, Duration cost) noexcept {
    const Ticks left = state_.holes_left.load(std::memory_order_acquire);
    bool none = true;
    Hole* earliest = nullptr;
    TimePoint earliest_due = TimePoint::max();
    for (Hole& hole : state_.holes) {
      if (const auto place = place_in(hole, now, cost)) {
        none = false;
        if (place->due < earliest_due) {
          earliest = &hole;
          earliest_due = place->due;
        }
      } else if (const Ticks start = hole.start.load(std::memory_order_acquire); start >= first_time) {
        const Reservation content = reservation_at(time(start), length(hole.cost.load(std::memory_order_relaxed)));
        if (usable(content, now)) {
          none = false;
        } else {
          take(hole);
        }
      }
    }
    if (none) state_.holes_cleared.store(left, std::memory_order_relaxed);
    return earliest;
  }

  const Duration one_token_;
  const Duration burst_time_;
  const SharedMemory memory_;
  BucketState& state_;
};

}  // namespace pyarallel::detail

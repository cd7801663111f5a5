// How fast: a rate, and the budget that many calls can share.
#pragma once

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <stop_token>
#include <type_traits>
#include <utility>
#include <variant>

#include "pyarallel/detail/bucket.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/require.hpp"

namespace pyarallel {

class Limiter;

/// `count` operations per `per`; up to `burst` at once, then evenly paced. std::invalid_argument
/// (where it is first used) unless count is finite and > 0, per > 0 and burst >= 1.
struct RateLimit {
  double count;
  Duration per = std::chrono::seconds{1};
  int burst = 1;

  double per_second() const { return count / std::chrono::duration<double>(per).count(); }
};

namespace detail {

inline void check(const RateLimit& rate) {
  require(std::isfinite(rate.count) && rate.count > 0, "RateLimit: count must be positive and finite, got ",
          rate.count);
  require(rate.per > Duration::zero(), "RateLimit: per must be positive, got ", rate.per);
  require(rate.burst >= 1, "RateLimit: burst must be >= 1, got ", rate.burst);
}

enum class Grant { granted, too_late, stopped };

/// One token for an attempt of a run: as Limiter::try_acquire_for, and says why not.
Grant acquire(const Limiter& limiter, TimePoint latest, const std::stop_token& stop);

}  // namespace detail

/// The shareable runtime of a RateLimit: copies share one budget, across threads and calls.
/// Every member may be called from several threads at once. Tokens are consumed at the grant, never
/// by an abandoned wait; nobody takes a lock, and every waiter sleeps until its own moment.
/// Members that take `tokens` throw std::invalid_argument unless 0 < tokens <= burst. A token lasts a
/// whole number of nanoseconds: count bandwidth in KiB rather than bytes.
class Limiter {
 public:
  /// std::invalid_argument for a bad rate.
  explicit(false) Limiter(RateLimit rate)
      : rate_(checked(rate)),
        bucket_(std::make_shared<detail::Bucket>(static_cast<double>(rate.per.count()) / rate.count, rate.burst)) {}

  /// Blocks until granted.
  void acquire(double tokens = 1) { acquire(detail::clock().now(), detail::TimePoint::max(), {}, tokens); }

  /// Takes or leaves; never blocks.
  bool try_acquire(double tokens = 1) {
    check_tokens(tokens);
    const auto now = detail::clock().now();
    return bucket_->reserve(now, tokens, now).has_value();
  }

  /// Waits for the grant. False at once when it cannot come within the budget; consumes nothing then.
  bool try_acquire_for(Duration budget, double tokens = 1) { return try_acquire_for(budget, {}, tokens); }
  /// Also false, consuming nothing, when the token is stopped first.
  bool try_acquire_for(Duration budget, std::stop_token stop, double tokens = 1) {
    const auto now = detail::clock().now();
    const auto latest = detail::add_saturating(now, std::max(budget, Duration::zero()));
    return acquire(now, latest, stop, tokens) == detail::Grant::granted;
  }

  /// Server-mandated hold: nothing is granted before now + d, waiters included; the furthest
  /// deadline wins; the bucket is left with one token at the deadline, so that traffic resumes paced,
  /// never as a burst. Zero or less does nothing.
  void pause(Duration d) {
    if (d > Duration::zero()) bucket_->pause(detail::add_saturating(detail::clock().now(), d));
  }

  /// What a new caller would wait; takes nothing.
  Duration wait_time(double tokens = 1) const {
    check_tokens(tokens);
    const auto now = detail::clock().now();
    return bucket_->next_due(now, tokens) - now;
  }

 private:
  friend detail::Grant detail::acquire(const Limiter&, detail::TimePoint, const std::stop_token&);

  detail::Grant acquire(detail::TimePoint now, detail::TimePoint latest, const std::stop_token& stop,
                        double tokens) const {
    check_tokens(tokens);
    if (stop.stop_requested()) return detail::Grant::stopped;
    while (true) {
      const auto reserved = bucket_->reserve(now, tokens, latest);
      if (!reserved) return detail::Grant::too_late;
      if (reserved->due <= now) return detail::Grant::granted;
      const bool slept = detail::clock().sleep_until(reserved->due, stop);
      now = detail::clock().now();
      if (!slept) {
        bucket_->give_back(now, *reserved);
        return detail::Grant::stopped;
      }
      if (!bucket_->overtaken(*reserved)) return detail::Grant::granted;
    }
  }

  static const RateLimit& checked(const RateLimit& rate) {
    detail::check(rate);
    return rate;
  }

  void check_tokens(double tokens) const {
    detail::require(std::isfinite(tokens) && tokens > 0, "Limiter: tokens must be positive and finite, got ", tokens);
    if (tokens > rate_.burst) {
      throw std::invalid_argument(fmt::format("Limiter: tokens must be <= burst ({}), got {}", rate_.burst, tokens));
    }
  }

  RateLimit rate_;
  std::shared_ptr<detail::Bucket> bucket_;
};

inline detail::Grant detail::acquire(const Limiter& limiter, TimePoint latest, const std::stop_token& stop) {
  return limiter.acquire(clock().now(), latest, stop, 1);
}

/// What `.rate_limit =` takes: a number (operations per second), a RateLimit (a private budget for
/// each call) or a Limiter (a shared budget).
class RateLimitArg {
 public:
  template <class N>
    requires std::is_arithmetic_v<N>
  explicit(false) RateLimitArg(N per_second) : limit_(RateLimit{static_cast<double>(per_second)}) {}
  explicit(false) RateLimitArg(RateLimit rate) : limit_(rate) {}
  explicit(false) RateLimitArg(Limiter shared) : limit_(std::move(shared)) {}

  /// The budget of one call: the shared one, or a fresh one. std::invalid_argument for a bad rate.
  Limiter limiter() const {
    if (const auto* rate = std::get_if<RateLimit>(&limit_)) return Limiter{*rate};
    return std::get<Limiter>(limit_);
  }

 private:
  std::variant<RateLimit, Limiter> limit_;
};

}  // namespace pyarallel

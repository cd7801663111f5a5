// How fast: a rate, and the budget that many calls can share.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <variant>

#include "pyarallel/detail/bucket.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/message.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"
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

inline double nanoseconds_per_token(const RateLimit& rate) {
  return static_cast<double>(rate.per.count()) / rate.count;
}

inline void check(const RateLimit& rate) {
  require(std::isfinite(rate.count) && rate.count > 0, "RateLimit: count must be positive and finite, got ",
          rate.count);
  require(rate.per > Duration::zero(), "RateLimit: per must be positive, got ", rate.per);
  require(rate.burst >= 1, "RateLimit: burst must be >= 1, got ", rate.burst);
}

/// "RateLimit(10 per 1s, burst 5)"
inline std::string text_of(const RateLimit& rate) {
  return message({"RateLimit(", rate.count, " per ", text_of(rate.per), ", burst ", rate.burst, ")"});
}

inline std::shared_ptr<Bucket> bucket_of(const RateLimit& rate) {
  check(rate);
  return std::make_shared<Bucket>(nanoseconds_per_token(rate), rate.burst);
}

/// The bucket that all processes of this user have under this name: see Limiter::named.
std::shared_ptr<Bucket> named_bucket(std::string_view name, const RateLimit& rate);
bool remove_named_bucket(std::string_view name);

enum class Grant { granted, too_late, stopped };

/// One token for an attempt of a run: as Limiter::try_acquire_for, and says why not.
Grant acquire(const Limiter& limiter, TimePoint latest, const std::stop_token& stop);

/// The bucket behind a Limiter, for who cannot wait inside acquire().
Bucket& bucket_behind(const Limiter& limiter) noexcept;

}  // namespace detail

/// The shareable runtime of a RateLimit: copies share one budget, across threads, calls and forked
/// workers, pauses included. Budgets with a name are shared by all processes of a user.
/// Every member may be called from several threads and processes at once. Tokens are consumed at the
/// grant, never by an abandoned wait; nobody takes a lock, and every waiter sleeps until its own moment.
/// A process that is killed while it waits loses the token that it waited for, and disturbs nobody.
/// Members that take `tokens` throw std::invalid_argument unless 0 < tokens <= burst. A token lasts a
/// whole number of nanoseconds: count bandwidth in KiB rather than bytes.
class Limiter {
 public:
  /// A budget for this process and those that it forks from now on. std::invalid_argument for a bad
  /// rate, std::system_error if there is no memory to share.
  explicit(false) Limiter(RateLimit rate) : Limiter(rate, detail::bucket_of(rate)) {}

  /// One budget for every process of this user on this machine that names it: the first one makes it, later
  /// ones find it as the others left it. It lies in POSIX shared memory that only this user may open, and
  /// stays there until remove(name) or the machine's restart.
  /// std::invalid_argument for a bad rate, for a name that is not 1 to 200 letters, digits, '.', '_' or '-',
  /// and if the name is in use with another rate. std::system_error where the system refuses,
  /// std::runtime_error where something else goes by that name.
  static Limiter named(std::string_view name, RateLimit rate) { return {rate, detail::named_bucket(name, rate)}; }

  /// Forgets the name; false if there was none. Those who hold the budget keep it among them, and the
  /// next who names it gets a fresh one.
  static bool remove(std::string_view name) { return detail::remove_named_bucket(name); }

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
  friend detail::Bucket& detail::bucket_behind(const Limiter&) noexcept;

  Limiter(const RateLimit& rate, std::shared_ptr<detail::Bucket> bucket) : rate_(rate), bucket_(std::move(bucket)) {}

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

  void check_tokens(double tokens) const {
    detail::require(std::isfinite(tokens) && tokens > 0, "Limiter: tokens must be positive and finite, got ", tokens);
    if (tokens > rate_.burst) {
      throw std::invalid_argument(
          detail::message({"Limiter: tokens must be <= burst (", rate_.burst, "), got ", tokens}));
    }
  }

  RateLimit rate_;
  std::shared_ptr<detail::Bucket> bucket_;
};

inline detail::Grant detail::acquire(const Limiter& limiter, TimePoint latest, const std::stop_token& stop) {
  return limiter.acquire(clock().now(), latest, stop, 1);
}

inline detail::Bucket& detail::bucket_behind(const Limiter& limiter) noexcept { return *limiter.bucket_; }

namespace detail {

/// A named budget in memory. A fresh one is zeroed, and there is no lock: each word is written once, by
/// whoever comes first, in this order. What a killed process left undone the next one does.
///
/// Its times are those of the steady clock, which all processes of a machine share, and /dev/shm does not
/// outlive a restart, which begins them anew. Only time namespaces that are set to other times and share one
/// /dev/shm would disagree: they need names of their own. A budget that seems booked out far into the future
/// is taken as it is, because pauses and crowds may be of any length: nothing tells a wrong time from them.
struct NamedBudget {
  using Word = std::atomic<std::uint64_t>;

  alignas(64) Word layout{0};
  std::array<Word, 3> rate{};
  BucketState state;

  /// Of this struct, the number at the end counting its versions.
  static constexpr std::uint64_t this_layout = 0x7079'6172'6c6c'0001U;

  /// None of them is 0.
  static std::array<std::uint64_t, 3> words(const RateLimit& rate) noexcept {
    return {std::bit_cast<std::uint64_t>(rate.count), static_cast<std::uint64_t>(rate.per.count()),
            static_cast<std::uint64_t>(rate.burst)};
  }

  RateLimit stored_rate() const noexcept {
    return {std::bit_cast<double>(rate[0].load()), Duration{static_cast<Duration::rep>(rate[1].load())},
            static_cast<int>(rate[2].load())};
  }

  /// True if the word is this value now.
  static bool agree(Word& word, std::uint64_t value) noexcept {
    std::uint64_t found = 0;
    return word.compare_exchange_strong(found, value) || found == value;
  }
  bool agree(const RateLimit& wanted) noexcept {
    const auto values = words(wanted);
    return std::equal(rate.begin(), rate.end(), values.begin(),
                      [](Word& word, auto value) { return agree(word, value); });
  }
};
static_assert(std::is_standard_layout_v<NamedBudget> && sizeof(NamedBudget) == 4096);

/// "/pyarallel.USER.NAME"
inline std::string shared_name(std::string_view name) {
  const auto allowed = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' ||
           c == '-';
  };
  if (name.empty() || name.size() > 200 || !std::all_of(name.begin(), name.end(), allowed)) {
    throw std::invalid_argument(
        message({"Limiter: name must be 1 to 200 letters, digits, '.', '_' or '-', got \"", name, "\""}));
  }
#if PYARALLEL_HAS_NAMED_MEMORY
  return message({"/pyarallel.", ::geteuid(), ".", name});
#else
  throw std::system_error(std::make_error_code(std::errc::function_not_supported),
                          "Limiter: this system has no shared memory with names");
#endif
}

inline std::shared_ptr<Bucket> named_bucket(std::string_view name, const RateLimit& rate) {
  check(rate);
  const std::string path = shared_name(name);
#if PYARALLEL_HAS_NAMED_MEMORY
  SharedMemory memory = SharedMemory::named(path, sizeof(NamedBudget));
  // Not constructed: it may be in use already, and zeros are a fresh one.
  auto& budget = *std::launder(reinterpret_cast<NamedBudget*>(memory.data()));
  if (!NamedBudget::agree(budget.layout, NamedBudget::this_layout)) {
    throw std::runtime_error(
        message({"Limiter: \"", name, "\" is not a budget of this version of the library (shared memory \"", path,
                 "\"): Limiter::remove(\"", name, "\") forgets it"}));
  }
  if (!budget.agree(rate)) {
    const RateLimit stored = budget.stored_rate();
    const bool complete = stored.burst != 0;  // the last word; if not: somebody is about to, or was killed before
    throw std::invalid_argument(
        message({"Limiter: \"", name, "\" exists with ", complete ? text_of(stored) : "another rate", ", got ",
                 text_of(rate), ": Limiter::remove(\"", name, "\") forgets it"}));
  }
  return std::make_shared<Bucket>(nanoseconds_per_token(rate), rate.burst, std::move(memory), budget.state);
#else
  return nullptr;
#endif
}

inline bool remove_named_bucket([[maybe_unused]] std::string_view name) {
  const std::string path = shared_name(name);
#if PYARALLEL_HAS_NAMED_MEMORY
  return SharedMemory::remove(path);
#else
  return false;
#endif
}

}  // namespace detail

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

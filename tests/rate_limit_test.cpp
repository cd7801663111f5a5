// Rate limits: the bucket's arithmetic under exact time, waits that are given up, pauses, and runs that share a budget.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <random>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/fake_clock.hpp"
#include "support/meanwhile.hpp"
#include "support/text.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::Limiter;
using pyarallel::MapOptions;
using pyarallel::parallel_map;
using pyarallel::RateLimit;
using pyarallel::RateLimitArg;
using pyarallel::Retry;
using pyarallel::RunStatus;
using pyarallel::detail::Bucket;
using pyarallel::detail::Reservation;
using pyarallel::detail::TimePoint;
using support::ClockOverride;
using support::dawdle;
using support::FakeClock;
using support::Meanwhile;
using support::wait_until;
using support::Watchdog;

namespace {

constexpr auto whenever = TimePoint::max();
constexpr auto infinity = std::numeric_limits<double>::infinity();
constexpr auto not_a_number = std::numeric_limits<double>::quiet_NaN();

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// When each of `count` acquisitions was granted. For a clock in automatic mode.
std::vector<Duration> grants(FakeClock& clock, Limiter& limiter, int count, double tokens = 1) {
  std::vector<Duration> times;
  for (int i = 0; i < count; ++i) {
    limiter.acquire(tokens);
    times.push_back(clock.elapsed());
  }
  return times;
}

using Times = std::vector<Duration>;

/// What the std::invalid_argument says that code() throws; empty if it throws none.
template <class Code>
std::string complaint(Code code) {
  try {
    code();
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return {};
}

using support::says;

struct Granted {
  TimePoint due;
  double tokens;
};

/// The most tokens, in units of `per_token` nanoseconds, that any window held beyond its share
/// `length / per_token`: at most the burst, if the limit was kept (clause L1).
double worst_window(std::vector<Granted> granted, double per_token) {
  std::ranges::sort(granted, {}, &Granted::due);
  double worst = 0;
  double ending_here = 0;  // the worst of the windows that end with this grant
  std::optional<TimePoint> previous;
  for (const Granted& grant : granted) {
    if (previous) ending_here -= static_cast<double>((grant.due - *previous).count()) / per_token;
    ending_here = std::max(ending_here, 0.0) + grant.tokens;
    worst = std::max(worst, ending_here);
    previous = grant.due;
  }
  return worst;
}

/// Threads that wait for a token each, under a manual clock.
class Waiters {
 public:
  Waiters(FakeClock& clock, Limiter limiter) : clock_(clock), limiter_(std::move(limiter)) {}

  /// Returns when they all sleep. One after the other, so that their places are in this order.
  void start(std::size_t count) {
    const std::size_t asleep_before = clock_.sleepers();
    for (std::size_t i = 0; i < count; ++i) {
      threads_.emplace_back([this] {
        const bool granted = limiter_.try_acquire_for(Duration::max(), stop_.get_token());
        const std::lock_guard lock{mutex_};
        (granted ? granted_ : refused_).push_back(clock_.elapsed());
      });
      clock_.wait_for_sleepers(asleep_before + i + 1);
    }
  }

  void stop() {
    stop_.request_stop();
    wait_until([this] { return answered() == threads_.size(); });
  }

  /// Moves the time from sleeper to sleeper, until nobody sleeps any more. Returns when each was granted.
  Times run_out() {
    do {
      // An awake thread either sleeps again or gets its answer, and only this thread wakes sleepers.
      wait_until([this] { return answered() + clock_.sleepers() == threads_.size(); });
    } while (clock_.advance_to_next_sleeper());
    const std::lock_guard lock{mutex_};
    return granted_;
  }

  std::size_t answered() {
    const std::lock_guard lock{mutex_};
    return granted_.size() + refused_.size();
  }

  Times granted() {
    const std::lock_guard lock{mutex_};
    return granted_;
  }

 private:
  FakeClock& clock_;
  Limiter limiter_;
  std::stop_source stop_;
  std::mutex mutex_;
  Times granted_;
  Times refused_;
  std::vector<std::jthread> threads_;
};

}  // namespace

// Pacing ---------------------------------------------------------------------------------------------

TEST_CASE("L1 a burst at once and then evenly paced") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{4, 1s, 3}};
  CHECK(grants(clock, limiter, 7) == Times{0s, 0s, 0s, 250ms, 500ms, 750ms, 1s});
}

TEST_CASE("L1 without a burst all are evenly paced") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{.count = 10}};
  CHECK(grants(clock, limiter, 4) == Times{0s, 100ms, 200ms, 300ms});
}

TEST_CASE("L1 a long idle bucket holds no more than its burst") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 3}};
  clock.advance(1h);
  CHECK(grants(clock, limiter, 5) == Times{1h, 1h, 1h, 1h + 1s, 1h + 2s});
  clock.advance(1h);
  CHECK(grants(clock, limiter, 4) == Times{2h + 2s, 2h + 2s, 2h + 2s, 2h + 3s});
}

TEST_CASE("L1 tokens come back one by one") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{4, 1s, 3}};
  grants(clock, limiter, 3);
  clock.advance(600ms);  // 2.4 tokens
  CHECK(grants(clock, limiter, 4) == Times{600ms, 600ms, 750ms, 1s});
}

TEST_CASE("L1 weights take their share") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 5}};
  CHECK(grants(clock, limiter, 2, 3) == Times{0s, 1s});
  CHECK(grants(clock, limiter, 1, 5) == Times{6s});
  CHECK(grants(clock, limiter, 3, 0.5) == Times{6500ms, 7s, 7500ms});
  CHECK(grants(clock, limiter, 1, 1) == Times{8500ms});
  CHECK(grants(clock, limiter, 1, 0.25) == Times{8750ms});
}

TEST_CASE("L1 rates need not be whole") {
  FakeClock clock;
  const ClockOverride use{clock};
  SECTION("half an operation per second") {
    Limiter limiter{RateLimit{0.5}};
    CHECK(grants(clock, limiter, 3) == Times{0s, 2s, 4s});
  }
  SECTION("two and a half per minute") {
    Limiter limiter{RateLimit{2.5, 1min}};
    CHECK(grants(clock, limiter, 3) == Times{0s, 24s, 48s});
  }
  SECTION("three per second is rounded in favour of the limit and only just") {
    Limiter limiter{RateLimit{3}};
    const auto times = grants(clock, limiter, 301);
    CHECK(times.back() >= 100s);
    CHECK(times.back() < 100s + 1us);
  }
}

TEST_CASE("L1 weights keep to the burst where a token is no whole number of nanoseconds") {
  FakeClock clock;
  const ClockOverride use{clock};
  for (const double rate : {3e8, 7e8, 2e9, 1e12}) {
    Limiter limiter{RateLimit{rate, 1s, 100}};
    CHECK(limiter.try_acquire(100));
    CHECK_FALSE(limiter.try_acquire(1));
    CHECK_FALSE(limiter.try_acquire(100));
  }
}

TEST_CASE("L1 no window holds more than burst plus its share for any schedule of callers") {
  std::mt19937_64 random{20240229};
  const auto below = [&](int limit) { return static_cast<int>(random() % static_cast<std::uint64_t>(limit)); };
  struct Wait {
    Reservation place;
    double tokens;
  };
  struct Pause {
    TimePoint begin;
    TimePoint end;
  };
  constexpr double per_token = 1000;
  for (int schedule = 0; schedule < 120; ++schedule) {
    const int burst = 1 + below(schedule % 2 == 0 ? 1 : 6);
    const bool weighted = schedule % 3 != 0;
    const bool paused = schedule % 5 >= 3;
    Bucket bucket{per_token, burst};
    TimePoint now{1h};
    std::vector<Wait> waits;
    std::vector<Granted> granted;
    std::vector<Pause> pauses;
    int mistakes = 0;
    const auto enter = [&](double tokens, TimePoint latest) {
      const auto place = bucket.reserve(now, tokens, latest);
      if (!place) return;
      mistakes += place->due < now || place->due > latest;
      waits.push_back({*place, tokens});
    };
    for (int step = 0; step < 500; ++step) {
      const int dice = below(100);
      if (dice < 45) {
        const double tokens = weighted ? (1 + below(4 * burst)) / 4.0 : 1;
        enter(tokens, below(2) == 0 ? whenever : now + Duration{below(5000)});
      } else if (dice < 65 && !waits.empty()) {
        const auto one = waits.begin() + below(static_cast<int>(waits.size()));
        bucket.give_back(now, one->place);
        waits.erase(one);
      } else if (dice < 67 && paused) {
        pauses.push_back({now, now + Duration{below(8000)}});
        bucket.pause(pauses.back().end);
      } else {
        now += Duration{below(dice == 99 ? 100'000 : 2500)};
      }
      for (std::size_t i = 0; i < waits.size();) {
        if (waits[i].place.due > now) {
          ++i;
          continue;
        }
        const Wait due = waits[i];
        waits.erase(waits.begin() + static_cast<std::ptrdiff_t>(i));
        if (bucket.overtaken(due.place)) {
          enter(due.tokens, whenever);
        } else {
          granted.push_back({due.place.due, due.tokens});
        }
      }
    }
    CAPTURE(schedule, burst, weighted, paused, granted.size());
    CHECK(mistakes == 0);
    CHECK(granted.size() > 20);
    CHECK(worst_window(granted, per_token) <= burst + 1e-9);
    for (const Pause& pause : pauses) {
      std::vector<Granted> after;
      int held = 0;
      for (const Granted& grant : granted) {
        held += grant.due > pause.begin && grant.due < pause.end;
        if (grant.due > pause.begin) after.push_back(grant);
      }
      CHECK(held == 0);
      // Paced from one token on: as a full bucket of one would grant at most.
      std::ranges::sort(after, {}, &Granted::due);
      double sum = 0;
      double most = 0;
      for (const Granted& grant : after) {
        sum += grant.tokens;
        most = std::max(most, sum - static_cast<double>((grant.due - pause.end).count()) / per_token);
      }
      CHECK(most <= 1 + 1e-9);
    }
  }
}

TEST_CASE("L1 no window holds more than burst plus its share with callers from many threads") {
  constexpr double per_token = 1000;
  constexpr int burst = 3;
  Bucket bucket{per_token, burst};
  std::atomic<std::int64_t> time{1'000'000};
  std::mutex mutex;
  std::vector<Granted> granted;
  {
    std::vector<std::jthread> threads;
    for (unsigned seed = 1; seed <= 4; ++seed) {
      threads.emplace_back([&, seed] {
        std::mt19937 random{seed};
        std::vector<Granted> mine;
        std::vector<Reservation> abandoned;
        for (int i = 0; i < 3000; ++i) {
          const TimePoint now{Duration{time.fetch_add(static_cast<int>(random() % 700))}};
          const auto place = bucket.reserve(now, 1, now + 40us);
          if (place && place->due > now && random() % 2 == 0) {
            abandoned.push_back(*place);
          } else if (place) {
            mine.push_back({place->due, 1});
          }
          if (random() % 4 != 0) continue;
          for (const Reservation& one : abandoned) bucket.give_back(now, one);
          abandoned.clear();
        }
        const std::lock_guard lock{mutex};
        granted.insert(granted.end(), mine.begin(), mine.end());
      });
    }
  }
  CHECK(granted.size() > 1000);
  CHECK(worst_window(granted, per_token) <= burst + 1e-9);
}

TEST_CASE("L1 threads on the real clock get what there is and no more") {
  Limiter limiter{RateLimit{1, 24h, 100}};
  std::atomic<int> granted{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, mine = limiter]() mutable {
        for (int i = 0; i < 100; ++i) granted += mine.try_acquire() ? 1 : 0;
      });
    }
  }
  CHECK(granted == 100);
}

TEST_CASE("L1 nothing starts before its grant is due on the real clock") {
  Limiter limiter{RateLimit{2000}};
  const auto begin = std::chrono::steady_clock::now();
  std::mutex mutex;
  std::vector<std::chrono::steady_clock::time_point> starts;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int i = 0; i < 15; ++i) {
          limiter.acquire();
          const auto start = std::chrono::steady_clock::now();
          const std::lock_guard lock{mutex};
          starts.push_back(start);
        }
      });
    }
  }
  std::ranges::sort(starts);
  int too_early = 0;
  for (std::size_t i = 0; i < starts.size(); ++i) too_early += starts[i] < begin + i * 500us;
  CHECK(starts.size() == 60);
  CHECK(too_early == 0);
}

TEST_CASE("L1 copies share one budget") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 2}};
  Limiter copy = limiter;
  CHECK(limiter.try_acquire());
  CHECK(copy.try_acquire());
  CHECK_FALSE(limiter.try_acquire());
  Limiter other{RateLimit{1, 1s, 2}};
  CHECK(other.try_acquire());
  other = copy;
  CHECK_FALSE(other.try_acquire());
}

TEST_CASE("L2 work between the grants does not slow the pace") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{4}};
  Times times;
  for (int i = 0; i < 5; ++i) {
    limiter.acquire();
    times.push_back(clock.elapsed());
    clock.advance(150ms);
  }
  CHECK(times == Times{0s, 250ms, 500ms, 750ms, 1s});
}

TEST_CASE("L2 a waiter that is woken late does not delay those behind it") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  Waiters waiters{clock, limiter};
  waiters.start(3);
  clock.advance(10s);  // all of them are late
  CHECK(waiters.run_out() == Times{10s, 10s, 10s});
  CHECK(limiter.wait_time() == 0s);
}

TEST_CASE("L2 a fast limit is served on the real clock") {
  Limiter limiter{RateLimit{5000}};
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < 101; ++i) limiter.acquire();
  const auto took = std::chrono::steady_clock::now() - begin;
  CHECK(took >= 20ms);
  CHECK(took < 20s);  // the benchmark measures it; here only that it is no order of magnitude off
}

TEST_CASE("L7 everybody sleeps once and until their own moment") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  Waiters waiters{clock, limiter};
  waiters.start(3);
  CHECK(clock.sleeps() == Times{1s, 2s, 3s});
  clock.advance(1s);
  wait_until([&] { return waiters.answered() == 1; });
  CHECK(clock.sleepers() == 2);
  CHECK(waiters.run_out() == Times{1s, 2s, 3s});
  CHECK(clock.sleeps().size() == 3);
}

// Giving up ------------------------------------------------------------------------------------------

TEST_CASE("L4 a wait beyond its budget returns at once and consumes nothing") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 2}};
  grants(clock, limiter, 2);
  for (int i = 0; i < 100; ++i) {
    CHECK_FALSE(limiter.try_acquire());
    CHECK_FALSE(limiter.try_acquire_for(999ms));
    CHECK_FALSE(limiter.try_acquire_for(1999ms, 2));
    CHECK_FALSE(limiter.try_acquire_for(0s));
    CHECK_FALSE(limiter.try_acquire_for(-1s));
  }
  CHECK(clock.sleeps().empty());
  CHECK(limiter.wait_time() == 1s);
  CHECK(limiter.wait_time(2) == 2s);
}

TEST_CASE("L4 a grant exactly at the end of the budget is in time") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  CHECK(limiter.try_acquire_for(1s));
  CHECK(clock.elapsed() == 1s);
  CHECK(limiter.try_acquire_for(Duration::max()));
  CHECK(clock.elapsed() == 2s);
}

TEST_CASE("L4 no budget takes what is there") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 3}};
  CHECK(limiter.try_acquire_for(0s));
  CHECK(limiter.try_acquire_for(-1h));
  CHECK(limiter.try_acquire_for(Duration::min()));
  CHECK_FALSE(limiter.try_acquire_for(0s));
}

TEST_CASE("L4 wait_time is what a new caller waits and takes nothing") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 2}};
  CHECK(limiter.wait_time() == 0s);
  CHECK(limiter.wait_time(2) == 0s);
  limiter.acquire(2);
  for (int i = 0; i < 10; ++i) {
    const auto wait = limiter.wait_time(1.5);
    CHECK(limiter.wait_time(1.5) == wait);
    const auto before = clock.elapsed();
    limiter.acquire(1.5);
    CHECK(clock.elapsed() - before == wait);
    clock.advance(700ms);
  }
}

TEST_CASE("L4 a stopped token is refused also where a grant is there") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  std::stop_source stop;
  stop.request_stop();
  CHECK_FALSE(limiter.try_acquire_for(1h, stop.get_token()));
  CHECK(limiter.try_acquire());
}

TEST_CASE("L4 an abandoned wait consumes nothing") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  SECTION("a single one") {
    Waiters waiters{clock, limiter};
    waiters.start(1);
    CHECK(limiter.wait_time() == 2s);
    waiters.stop();
    CHECK(waiters.granted().empty());
    CHECK(limiter.wait_time() == 1s);
  }
  SECTION("the last in the queue") {
    Waiters stay{clock, limiter};
    Waiters leave{clock, limiter};
    stay.start(2);
    leave.start(1);
    CHECK(limiter.wait_time() == 4s);
    leave.stop();
    CHECK(limiter.wait_time() == 3s);
    CHECK(stay.run_out() == Times{1s, 2s});
  }
  SECTION("one in the middle whose place the next caller gets") {
    Waiters stay{clock, limiter};
    Waiters leave{clock, limiter};
    stay.start(1);
    leave.start(1);
    stay.start(1);
    CHECK(limiter.wait_time() == 4s);
    leave.stop();
    CHECK(limiter.wait_time() == 2s);
    CHECK_FALSE(limiter.try_acquire_for(1999ms));
    stay.start(1);
    CHECK(limiter.wait_time() == 4s);
    CHECK(clock.sleeps() == Times{1s, 2s, 3s, 2s});
    CHECK(stay.run_out() == Times{1s, 2s, 3s});
  }
  SECTION("all of them at the same time") {
    for (int round = 0; round < 20; ++round) {
      Waiters waiters{clock, limiter};
      waiters.start(6);
      CHECK(limiter.wait_time() == 7s);
      waiters.stop();
      CHECK(waiters.granted().empty());
      CHECK(limiter.wait_time() == 1s);
    }
  }
}

TEST_CASE("L4 places given back in any order are all there again") {
  const TimePoint now{1h};
  std::vector<std::size_t> order{0, 1, 2, 3, 4};
  do {
    Bucket bucket{1e9, 1};
    REQUIRE(bucket.reserve(now, 1, whenever)->due == now);
    std::vector<Reservation> places;
    for (int i = 0; i < 5; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
    for (const std::size_t i : order) bucket.give_back(now, places[i]);
    Times dues;
    for (int i = 0; i < 6; ++i) dues.push_back(bucket.reserve(now, 1, whenever)->due - now);
    CHECK(dues == Times{1s, 2s, 3s, 4s, 5s, 6s});
  } while (std::ranges::next_permutation(order).found);
}

TEST_CASE("L4 a new caller gets the earliest of the places given back") {
  const TimePoint now{1h};
  std::vector<std::size_t> order{0, 2, 4, 6};  // no neighbours, so that they stay apart
  do {
    Bucket bucket{1e9, 1};
    REQUIRE(bucket.reserve(now, 1, whenever)->due == now);
    std::vector<Reservation> places;
    for (int i = 0; i < 8; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
    for (const std::size_t i : order) bucket.give_back(now, places[i]);
    Times dues;
    for (int i = 0; i < 6; ++i) {
      const TimePoint promised = bucket.next_due(now, 1);
      const TimePoint due = bucket.reserve(now, 1, whenever)->due;
      CHECK(due == promised);
      dues.push_back(due - now);
    }
    CHECK(dues == Times{1s, 3s, 5s, 7s, 9s, 10s});
  } while (std::ranges::next_permutation(order).found);
}

TEST_CASE("L4 of the places given back those still ahead can be used") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 1};
  std::vector<Granted> granted{{bucket.reserve(now, 1, whenever)->due, 1}};
  std::vector<Reservation> places;
  for (int i = 0; i < 4; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
  for (const int i : {0, 1, 2}) bucket.give_back(now, places[static_cast<std::size_t>(i)]);
  granted.push_back({places[3].due, 1});
  const TimePoint later = now + 1500ms;  // the first of them has passed
  const TimePoint promised = bucket.next_due(later, 1);
  CHECK(promised >= later);
  CHECK(promised <= now + 2s);
  granted.push_back({bucket.reserve(later, 1, whenever)->due, 1});
  CHECK(granted.back().due == promised);
  granted.push_back({bucket.reserve(later, 1, whenever)->due, 1});
  CHECK(granted.back().due <= now + 3s);
  for (int i = 0; i < 3; ++i) granted.push_back({bucket.reserve(later, 1, whenever)->due, 1});
  CHECK(worst_window(granted, 1e9) <= 1);
}

TEST_CASE("L4 a place given back too late to be used is forgotten") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 1};
  bucket.reserve(now, 1, whenever);
  const Reservation first = *bucket.reserve(now, 1, whenever);
  const Reservation second = *bucket.reserve(now, 1, whenever);
  REQUIRE(second.due == now + 2s);
  SECTION("given back in time and not used") {
    bucket.give_back(now + 500ms, first);
    CHECK(bucket.next_due(now + 1s, 1) == now + 1s);
    CHECK(bucket.next_due(now + 1500ms, 1) == now + 3s);
    CHECK(bucket.reserve(now + 1500ms, 1, whenever)->due == now + 3s);
  }
  SECTION("given back too late") {
    bucket.give_back(now + 1500ms, first);
    CHECK(bucket.reserve(now + 1500ms, 1, whenever)->due == now + 3s);
  }
  // It leaves no trace once the queue has run out.
  CHECK(bucket.reserve(now + 1h, 1, whenever)->due == now + 1h);
  CHECK(bucket.reserve(now + 1h, 1, whenever)->due == now + 1h + 1s);
}

TEST_CASE("L4 a place is given on only where it is in time") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 1};
  bucket.reserve(now, 1, whenever);
  bucket.reserve(now, 1, whenever);
  const Reservation second = *bucket.reserve(now, 1, whenever);
  bucket.reserve(now, 1, whenever);
  bucket.give_back(now, second);
  CHECK_FALSE(bucket.reserve(now, 1, now + 1999ms));
  CHECK(bucket.reserve(now, 1, now + 2s)->due == now + 2s);
  CHECK_FALSE(bucket.reserve(now, 1, now + 3999ms));
}

TEST_CASE("L4 a heavy place given back serves lighter callers") {
  const TimePoint now{1h};
  Bucket bucket{1e9, 4};
  bucket.reserve(now, 4, whenever);
  const Reservation heavy = *bucket.reserve(now, 3, whenever);
  REQUIRE(heavy.due == now + 3s);
  REQUIRE(bucket.reserve(now, 1, whenever)->due == now + 4s);
  bucket.give_back(now, heavy);
  CHECK(bucket.reserve(now, 4, whenever)->due == now + 8s);  // too heavy for it
  CHECK(bucket.reserve(now, 2, whenever)->due == now + 2s);
  CHECK(bucket.reserve(now, 0.5, whenever)->due == now + 2500ms);
  CHECK(bucket.reserve(now, 0.5, whenever)->due == now + 3s);
  CHECK(bucket.reserve(now, 1, whenever)->due == now + 9s);
}

TEST_CASE("L4 many places given back never make a grant too many") {
  const TimePoint now{1h};
  for (const std::size_t count : {20U, 33U, 100U, 500U}) {
    Bucket bucket{1e9, 1};
    std::vector<Granted> granted{{bucket.reserve(now, 1, whenever)->due, 1}};
    std::vector<Reservation> places;
    for (std::size_t i = 0; i < count; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
    granted.push_back({bucket.reserve(now, 1, whenever)->due, 1});
    for (const Reservation& place : places) bucket.give_back(now, place);
    for (std::size_t i = 0; i < 2 * count; ++i) granted.push_back({bucket.reserve(now, 1, whenever)->due, 1});
    CHECK(worst_window(granted, 1e9) <= 1);
  }
}

TEST_CASE("L4 a crowd that gives up consumes nothing") {
  const TimePoint now{1h};
  std::vector<Reservation> places;
  Bucket bucket{1e9, 1};
  bucket.reserve(now, 1, whenever);
  for (int i = 0; i < 200; ++i) places.push_back(*bucket.reserve(now, 1, whenever));
  SECTION("the first one first") {}
  SECTION("the last one first") { std::ranges::reverse(places); }
  SECTION("in no order") {
    std::mt19937 random{7};
    std::ranges::shuffle(places, random);
  }
  for (const Reservation& place : places) bucket.give_back(now, place);
  std::vector<TimePoint> dues;
  for (int i = 0; i < 200; ++i) dues.push_back(bucket.reserve(now, 1, whenever)->due);
  std::ranges::sort(dues);
  CHECK(dues.front() == now + 1s);
  CHECK(dues.back() == now + 200s);
}

TEST_CASE("L6 a stop cuts through a wait on the real clock") {
  const Watchdog watchdog;
  Limiter limiter{RateLimit{1, 24h}};
  limiter.acquire();
  std::stop_source stop;
  std::atomic<bool> waiting{false};
  std::atomic<bool> granted{true};
  Meanwhile waiter{[&] {
    waiting = true;
    granted = limiter.try_acquire_for(Duration::max(), stop.get_token());
  }};
  wait_until([&] { return waiting.load(); });
  dawdle();
  stop.request_stop();
  waiter.join();
  CHECK_FALSE(granted);
  CHECK(limiter.wait_time() <= 24h);
}

// Pauses ---------------------------------------------------------------------------------------------

TEST_CASE("L5 a pause holds a new caller") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.pause(10s);
  CHECK(limiter.wait_time() == 10s);
  CHECK_FALSE(limiter.try_acquire());
  CHECK_FALSE(limiter.try_acquire_for(9999ms));
  CHECK(limiter.try_acquire_for(10s));
  CHECK(clock.elapsed() == 10s);
}

TEST_CASE("L5 the furthest pause wins") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.pause(2s);
  limiter.pause(10s);
  limiter.pause(5s);
  CHECK(limiter.wait_time() == 10s);
  clock.advance(6s);
  limiter.pause(3s);
  CHECK(limiter.wait_time() == 4s);
  limiter.pause(5s);
  CHECK(limiter.wait_time() == 5s);
}

TEST_CASE("L5 a pause of zero or less does nothing") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 3}};
  limiter.pause(0s);
  limiter.pause(-1h);
  limiter.pause(Duration::min());
  CHECK(grants(clock, limiter, 4) == Times{0s, 0s, 0s, 1s});
}

TEST_CASE("L5 after a pause traffic resumes paced from one token") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 5}};
  limiter.pause(10s);
  SECTION("one by one") { CHECK(grants(clock, limiter, 4) == Times{10s, 11s, 12s, 13s}); }
  SECTION("from somebody who comes later") {
    clock.advance(12500ms);
    CHECK(grants(clock, limiter, 5) == Times{12500ms, 12500ms, 12500ms, 13s, 14s});
  }
  SECTION("a full burst comes only with time") {
    clock.advance(1h);
    CHECK(grants(clock, limiter, 6) == Times{1h, 1h, 1h, 1h, 1h, 1h + 1s});
  }
  SECTION("more than one token takes longer") {
    CHECK(limiter.wait_time(3) == 12s);
    CHECK(grants(clock, limiter, 2, 3) == Times{12s, 15s});
  }
}

TEST_CASE("L5 a pause holds the fraction of a token too") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  limiter.pause(10s);
  CHECK(limiter.wait_time(0.5) == 10s);
  CHECK_FALSE(limiter.try_acquire_for(9999ms, 0.001));
  CHECK(grants(clock, limiter, 3, 0.5) == Times{10s, 10s, 10500ms});
}

TEST_CASE("L5 a pause leaves the queue behind it in place") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 5}};
  grants(clock, limiter, 5);
  limiter.pause(300ms);  // shorter than what the next has to wait anyway
  CHECK(grants(clock, limiter, 2) == Times{1s, 2s});
}

TEST_CASE("L5 a pause holds those who wait already") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  limiter.acquire();
  Waiters waiters{clock, limiter};
  waiters.start(3);
  SECTION("all of them") {
    limiter.pause(10s);
    CHECK(waiters.run_out() == Times{10s, 11s, 12s});
  }
  SECTION("again when it is prolonged") {
    limiter.pause(10s);
    clock.advance(5s);
    wait_until([&] { return clock.sleepers() == 3; });
    limiter.pause(15s);
    CHECK(waiters.run_out() == Times{20s, 21s, 22s});
  }
  SECTION("those whose place lies behind its end keep it") {
    limiter.pause(1500ms);
    const Times times = waiters.run_out();
    CHECK(times == Times{2s, 3s, 4s});
  }
  SECTION("on any copy") {
    Limiter copy{limiter};
    copy.pause(10s);
    CHECK(waiters.run_out() == Times{10s, 11s, 12s});
  }
}

TEST_CASE("L5 a pause for ever holds until a stop") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  for (const int burst : {1, 3}) {
    Limiter limiter{RateLimit{1, 1s, burst}};
    limiter.pause(Duration::max());
    CHECK(limiter.wait_time() > 24h * 365 * 100);
    CHECK_FALSE(limiter.try_acquire());
    CHECK_FALSE(limiter.try_acquire_for(24h * 365));
    Waiters waiters{clock, limiter};
    waiters.start(2);
    clock.advance(24h * 365);
    CHECK(waiters.answered() == 0);
    waiters.stop();
    CHECK(waiters.granted().empty());
  }
}

// Values ---------------------------------------------------------------------------------------------

TEST_CASE("L5 tokens must be positive and finite and fit the burst") {
  Limiter limiter{RateLimit{1, 1s, 2}};
  for (const double tokens : {0.0, -1.0, not_a_number, infinity, -infinity, 2.5, 1e300}) {
    CAPTURE(tokens);
    CHECK_THROWS_AS(limiter.acquire(tokens), std::invalid_argument);
    CHECK_THROWS_AS(limiter.try_acquire(tokens), std::invalid_argument);
    CHECK_THROWS_AS(limiter.try_acquire_for(0s, tokens), std::invalid_argument);
    CHECK_THROWS_AS(limiter.try_acquire_for(0s, std::stop_token{}, tokens), std::invalid_argument);
    CHECK_THROWS_AS(limiter.wait_time(tokens), std::invalid_argument);
  }
  CHECK(complaint([&] { limiter.acquire(0); }) == "Limiter: tokens must be positive and finite, got 0");
  CHECK(complaint([&] { limiter.acquire(-0.5); }) == "Limiter: tokens must be positive and finite, got -0.5");
  CHECK(complaint([&] { limiter.acquire(not_a_number); }) == "Limiter: tokens must be positive and finite, got nan");
  CHECK(complaint([&] { limiter.acquire(2.5); }) == "Limiter: tokens must be <= burst (2), got 2.5");
  CHECK(limiter.try_acquire(2));  // nothing was taken
}

TEST_CASE("C6 a bad rate throws where it is first used and says what is wrong") {
  struct Bad {
    RateLimit rate;
    std::string field;
    std::string value;
  };
  const std::vector<Bad> all{
      {RateLimit{0}, "count", "got 0"},
      {RateLimit{-1}, "count", "got -1"},
      {RateLimit{not_a_number}, "count", "got nan"},
      {RateLimit{infinity}, "count", "got inf"},
      {RateLimit{1, 0s}, "per", "got 0s"},
      {RateLimit{1, -1ms}, "per", "got -1ms"},
      {RateLimit{1, 1s, 0}, "burst", "got 0"},
      {RateLimit{1, 1s, -7}, "burst", "got -7"},
  };
  for (const Bad& bad : all) {
    const auto text = complaint([&] { Limiter{bad.rate}; });
    CAPTURE(text, bad.field);
    CHECK(says(text, "RateLimit: " + bad.field));
    CHECK(says(text, bad.value));
    const RateLimitArg arg{bad.rate};  // not used yet
    int calls = 0;
    const auto run = [&] {
      parallel_map([&](int) { ++calls; }, std::vector{1}, {.executor = Executor::sequential, .rate_limit = arg});
    };
    CHECK(complaint(run) == text);
    CHECK(calls == 0);
  }
}

TEST_CASE("L1 extreme rates do not overflow") {
  FakeClock clock;
  const ClockOverride use{clock};
  constexpr auto years = 24h * 365;
  SECTION("practically never") {
    for (const RateLimit rate : {RateLimit{1e-300}, RateLimit{std::numeric_limits<double>::denorm_min()},
                                 RateLimit{1, Duration::max()}, RateLimit{1e-300, Duration::max(), 1}}) {
      Limiter limiter{rate};
      CHECK(limiter.try_acquire());
      CHECK_FALSE(limiter.try_acquire());
      CHECK_FALSE(limiter.try_acquire_for(years));
      CHECK(limiter.wait_time() > years);
      CHECK(limiter.wait_time(1e-9) > 0s);
    }
  }
  SECTION("a burst and then never") {
    constexpr int most = std::numeric_limits<int>::max();
    for (const RateLimit rate : {RateLimit{1e-300, 1s, most}, RateLimit{1, Duration::max(), most}}) {
      Limiter limiter{rate};
      CHECK(limiter.try_acquire());
      CHECK(limiter.wait_time(most) > 0s);
    }
  }
  SECTION("the largest burst") {
    constexpr int most = std::numeric_limits<int>::max();
    Limiter limiter{RateLimit{1, 1s, most}};
    for (int i = 0; i < 1000; ++i) limiter.acquire();
    CHECK(clock.elapsed() == 0s);
    Limiter whole{RateLimit{1, 1s, most}};
    CHECK(whole.try_acquire(most));
    CHECK_FALSE(whole.try_acquire());
    limiter.pause(1s);
    CHECK(limiter.wait_time() == 1s);
  }
  SECTION("practically always") {
    for (const double rate : {1e9, 1e18, 1e300, std::numeric_limits<double>::max()}) {
      Limiter limiter{RateLimit{rate}};
      const auto before = clock.elapsed();
      for (int i = 0; i < 1001; ++i) limiter.acquire();
      CHECK(clock.elapsed() - before == 1us);  // a nanosecond each, the shortest there is
    }
  }
  SECTION("until the end of time") {
    Limiter limiter{RateLimit{1e-300}};
    for (int i = 0; i < 200; ++i) limiter.acquire();
    CHECK(limiter.wait_time() >= 0s);
    limiter.pause(1h);
    CHECK(limiter.wait_time() >= 0s);
  }
  SECTION("the smallest weights") {
    for (const double tokens : {1e-300, std::numeric_limits<double>::denorm_min()}) {
      Limiter limiter{RateLimit{1e300}};
      CHECK(limiter.try_acquire(tokens));
      CHECK(limiter.wait_time(tokens) <= 1ns);
    }
  }
}

TEST_CASE("L1 a rate per second is what it says") {
  CHECK(RateLimit{5}.per_second() == 5);
  CHECK(RateLimit{30, 1min}.per_second() == 0.5);
  CHECK(RateLimit{1, 1ms}.per_second() == 1000);
  const RateLimit defaults{7};
  CHECK(defaults.per == 1s);
  CHECK(defaults.burst == 1);
}

// In a run -------------------------------------------------------------------------------------------

namespace {

/// When each of `count` items ran, sequentially, under the clock in use.
Times run_times(FakeClock& clock, int count, const RateLimitArg& limit) {
  Times times;
  const auto begin = clock.elapsed();
  parallel_map([&](int) { times.push_back(clock.elapsed() - begin); }, numbers(count),
               {.executor = Executor::sequential, .rate_limit = limit});
  return times;
}

}  // namespace

TEST_CASE("L3 a number means operations per second") {
  FakeClock clock;
  const ClockOverride use{clock};
  CHECK(run_times(clock, 3, 4) == Times{0s, 250ms, 500ms});
  CHECK(run_times(clock, 3, 0.5) == Times{0s, 2s, 4s});
  CHECK(run_times(clock, 3, 0.5F) == Times{0s, 2s, 4s});
  CHECK(run_times(clock, 3, 10U) == Times{0s, 100ms, 200ms});
  CHECK(run_times(clock, 3, 1000LL) == Times{0s, 1ms, 2ms});
}

TEST_CASE("L3 a rate is a budget of each call and a limiter is shared") {
  FakeClock clock;
  const ClockOverride use{clock};
  const RateLimitArg own = RateLimit{1, 1s, 2};
  CHECK(run_times(clock, 4, own) == Times{0s, 0s, 1s, 2s});
  CHECK(run_times(clock, 4, own) == Times{0s, 0s, 1s, 2s});
  Limiter limiter{RateLimit{1, 1s, 2}};
  CHECK(run_times(clock, 4, limiter) == Times{0s, 0s, 1s, 2s});
  CHECK(run_times(clock, 2, limiter) == Times{1s, 2s});
  CHECK(limiter.wait_time() == 1s);
}

TEST_CASE("L3 shared options share what they hold") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto spent = [&](const pyarallel::Options& options) {
    const auto begin = clock.elapsed();
    CHECK(parallel_map([](int n) { return n; }, numbers(3), options).ok());
    return clock.elapsed() - begin;
  };
  const pyarallel::Options own{.executor = Executor::sequential, .rate_limit = 1};
  CHECK(spent(own) == 2s);
  CHECK(spent(own) == 2s);
  const pyarallel::Options shared{.executor = Executor::sequential, .rate_limit = Limiter{RateLimit{1}}};
  CHECK(spent(shared) == 2s);
  CHECK(spent(shared) == 3s);
}

TEST_CASE("L3 every attempt draws a token") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto run = [&](MapOptions<int, int> options) {
    std::atomic<int> calls{0};
    std::atomic<int> failures{2};
    options.rate_limit = 1;
    options.retry = Retry{.attempts = 3, .backoff = 0s};
    const auto begin = clock.elapsed();
    const auto result = parallel_map(
        [&](int n) {
          ++calls;
          if (n == 1 && failures-- > 0) throw std::runtime_error("not yet");
          return n;
        },
        numbers(5), options);
    CHECK(result.ok());
    CHECK(calls == 7);
    return clock.elapsed() - begin;
  };
  CHECK(run({.executor = Executor::sequential}) == 6s);
  CHECK(run({.workers = 3}) == 6s);
}

TEST_CASE("L3 a backoff and the wait for a token overlap") {
  FakeClock clock;
  const ClockOverride use{clock};
  Times times;
  const auto result = parallel_map(
      [&](int) {
        times.push_back(clock.elapsed());
        if (times.size() < 4) throw std::runtime_error("not yet");
      },
      std::vector{0},
      {.executor = Executor::sequential,
       .rate_limit = 0.5,
       .retry = Retry{.attempts = 4, .backoff = 1s, .jitter = false}});
  CHECK(result.ok());
  CHECK(times == Times{0s, 2s, 4s, 8s});  // backoffs of 1 s, 2 s, 4 s against a token every 2 s
}

TEST_CASE("L4 a run whose next token lies beyond its timeout ends at once") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  const auto result = parallel_map([](int n) { return n; }, numbers(10),
                                   {.executor = Executor::sequential, .rate_limit = limiter, .timeout = 2500ms});
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(clock.elapsed() == 2s);
  CHECK(result.successes().size() == 3);
  CHECK(result.failures().size() == 7);
  CHECK(result.failures().front().error.is<pyarallel::TimeoutError>());
  CHECK(limiter.wait_time() == 1s);  // what it did not wait for, it did not take
}

TEST_CASE("L4 a token that comes exactly at the deadline is of no use") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result = parallel_map([](int n) { return n; }, numbers(3),
                                   {.executor = Executor::sequential, .rate_limit = 1, .timeout = 1s});
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(result.successes().size() == 1);
}

TEST_CASE("L4 workers whose tokens come in time get them before a run times out") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1}};
  Meanwhile later{[&] {
    clock.wait_for_sleepers(2);
    dawdle();  // the other two learn that there is nothing for them
    clock.advance(2s);
  }};
  const auto result =
      parallel_map([](int n) { return n; }, numbers(10), {.workers = 4, .rate_limit = limiter, .timeout = 2500ms});
  later.join();
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(result.successes().size() == 3);  // at 0 s, 1 s and 2 s, as with one worker
  CHECK(limiter.wait_time() == 1s);
}

TEST_CASE("L4 a retry whose token lies beyond the timeout leaves the last real error") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result = parallel_map(
      [](int n) -> int { throw std::runtime_error("item " + std::to_string(n)); }, numbers(3),
      {.executor = Executor::sequential, .rate_limit = 1, .retry = Retry{.backoff = 0s}, .timeout = 1500ms});
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(clock.elapsed() == 1s);
  const auto items = result.item_results();
  CHECK(items[0].attempts == 2);
  CHECK(items[0].error().what() == "item 0");
  CHECK(items[1].attempts == 0);
  CHECK(items[1].error().is<pyarallel::TimeoutError>());
}

TEST_CASE("L5 a pause holds the workers of a run") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 3}};
  limiter.pause(1min);
  CHECK(run_times(clock, 3, limiter) == Times{1min, 1min + 1s, 1min + 2s});
}

TEST_CASE("L6 a stop cuts through the waits of all workers") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1h}};
  std::stop_source stop;
  Meanwhile later{[&] {
    clock.wait_for_sleepers(4);
    stop.request_stop();
  }};
  const auto result = parallel_map([](int n) { return n; }, numbers(10),
                                   {.workers = 4, .rate_limit = limiter, .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::cancelled);
  CHECK(result.successes().size() == 1);
  CHECK(clock.elapsed() == 0s);
  CHECK(limiter.wait_time() == 1h);  // four abandoned waits consumed nothing
}

TEST_CASE("L6 an abort cuts through the waits of all workers") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  const auto result = parallel_map(
      [&](int) {
        clock.wait_for_sleepers(3);
        throw std::runtime_error("enough");
      },
      numbers(10), {.workers = 4, .rate_limit = RateLimit{1, 1h}, .max_errors = 1});
  CHECK(result.status() == RunStatus::aborted);
  CHECK(result.failures().size() == 10);
  CHECK(clock.elapsed() == 0s);
}

TEST_CASE("L6 a pause beyond the deadline does not hold a run back") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1h}};
  Meanwhile later{[&] {
    clock.wait_for_sleepers(1);  // until 1 h
    limiter.pause(5h);
    clock.advance(1h);
  }};
  const auto result =
      parallel_map([](int n) { return n; }, numbers(3), {.workers = 1, .rate_limit = limiter, .timeout = 90min});
  later.join();
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(result.successes().size() == 1);
  CHECK(clock.elapsed() == 1h);
}

TEST_CASE("L6 a timeout ends a run that reports while its workers wait") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::atomic<std::size_t> reported = 0;
  Meanwhile later{[&] {
    wait_until([&] { return reported == 1; });
    clock.wait_for_sleepers(2);  // until 1 h and 2 h
    clock.wait_for_waiters(1);   // the calling thread keeps the time
    clock.advance(3h);           // the sleepers are late, past the deadline
  }};
  const auto result = parallel_map([](int n) { return n; }, numbers(9),
                                   {.workers = 2,
                                    .rate_limit = RateLimit{1, 1h},
                                    .timeout = 150min,
                                    .on_progress = [&](std::size_t done, std::size_t) { reported = done; }});
  later.join();
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(result.successes().size() == 1);
  CHECK(reported == 1);
}

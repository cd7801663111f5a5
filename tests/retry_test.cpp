// Retries: who is asked, how long is waited, what ends the wait, and what is reported in the end.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
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
using pyarallel::Error;
using pyarallel::Executor;
using pyarallel::ItemResult;
using pyarallel::Limiter;
using pyarallel::parallel_map;
using pyarallel::RateLimit;
using pyarallel::Retry;
using pyarallel::retry_on;
using pyarallel::RunStatus;
using pyarallel::Task;
using pyarallel::TaskTimeout;
using support::ClockOverride;
using support::dawdle;
using support::FakeClock;
using support::Gate;
using support::Meanwhile;
using support::wait_until;
using support::Watchdog;

namespace {

using Times = std::vector<Duration>;

struct Down : std::runtime_error {
  explicit Down(const std::string& text = "down") : runtime_error(text) {}
};
struct WorseDown : Down {
  using Down::Down;
};
struct Elsewhere : std::logic_error {
  using logic_error::logic_error;
};

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// What becomes of one item whose function is fn(attempt).
template <class F>
ItemResult<int> one_item(F fn, const Retry& retry) {
  const auto attempt = [&fn](int, const Task& task) -> int {
    fn(task.attempt);
    return task.attempt;
  };
  return parallel_map(attempt, std::vector{0}, {.executor = Executor::sequential, .retry = retry}).item_results().at(0);
}

template <class E>
ItemResult<int> one_item_that_throws(const E& exception, const Retry& retry) {
  return one_item([&](int) { throw exception; }, retry);
}

/// The waits between the attempts of an item that always fails.
Times delays(const Retry& retry) {
  FakeClock clock;
  const ClockOverride use{clock};
  one_item_that_throws(Down{}, retry);
  return clock.sleeps();
}

/// The error and those nested in it, outermost first.
std::vector<Error> chain(const Error& error) {
  std::vector<Error> all;
  for (std::exception_ptr next = error.ptr(); next != nullptr;) {
    all.emplace_back(next);
    try {
      std::rethrow_exception(std::exchange(next, nullptr));
    } catch (const std::nested_exception& nested) {
      next = nested.nested_ptr();
    } catch (...) {
    }
  }
  return all;
}

template <class E>
bool finds(const Error& error, const std::string& text) {
  return std::ranges::any_of(chain(error), [&](const Error& e) { return e.is<E>() && e.what() == text; });
}

using support::says;

}  // namespace

// Who is retried -------------------------------------------------------------------------------------

TEST_CASE("T1 only the failing item is retried up to its attempts") {
  std::map<int, int> calls;
  const auto result = parallel_map(
      [&](int n) {
        ++calls[n];
        if (n == 1 || (n == 3 && calls[n] < 3)) throw Down("call " + std::to_string(calls[n]));
        return n;
      },
      numbers(5), {.executor = Executor::sequential, .retry = Retry{.attempts = 4, .backoff = 0s}});
  CHECK(calls == std::map<int, int>{{0, 1}, {1, 4}, {2, 1}, {3, 3}, {4, 1}});
  CHECK(result.complete());
  REQUIRE(result.failures().size() == 1);
  CHECK(result.failures()[0].index == 1);
  CHECK(result.failures()[0].error.what() == "call 4");  // the last one
  std::vector<int> attempts;
  for (const auto& item : result.item_results()) attempts.push_back(item.attempts);
  CHECK(attempts == std::vector{1, 4, 1, 3, 1});
  CHECK(result.at(3) == 3);
}

TEST_CASE("T1 attempts are the first one and the retries") {
  for (const int attempts : {1, 2, 7}) {
    int calls = 0;
    const auto item = one_item(
        [&](int attempt) {
          CHECK(attempt == ++calls);
          throw Down{};
        },
        Retry{.attempts = attempts, .backoff = 0s});
    CHECK(calls == attempts);
    CHECK(item.attempts == attempts);
  }
}

TEST_CASE("T1 without a retry there is one attempt") {
  int calls = 0;
  const auto result = parallel_map(
      [&](int) -> int {
        ++calls;
        throw Down{};
      },
      numbers(3), {.executor = Executor::sequential});
  CHECK(calls == 3);
  CHECK(result.failures().size() == 3);
}

TEST_CASE("T1 a retry happens in place before the next item") {
  std::vector<int> order;
  parallel_map(
      [&](int n) {
        order.push_back(n);
        if (n == 1 && order.size() < 4) throw Down{};
      },
      numbers(3), {.executor = Executor::sequential, .retry = Retry{.backoff = 0s}});
  CHECK(order == std::vector{0, 1, 1, 1, 2});
}

TEST_CASE("T1 all attempts see the same item on the same worker") {
  const Watchdog watchdog;
  const auto check = [](auto&& items) {
    std::mutex mutex;
    std::map<std::size_t, std::set<const int*>> places;
    std::map<std::size_t, std::set<std::size_t>> workers;
    std::map<std::size_t, std::vector<int>> attempts;
    const auto result = parallel_map(
        [&](const int& item, const Task& task) {
          {
            const std::lock_guard lock{mutex};
            places[task.index].insert(&item);
            workers[task.index].insert(task.worker);
            attempts[task.index].push_back(task.attempt);
          }
          if (task.attempt < 3) throw Down{};
          return item;
        },
        items, {.workers = 3, .retry = Retry{.backoff = 1us}});
    CHECK(result.ok());
    CHECK(result.size() == 20);
    for (std::size_t i = 0; i < result.size(); ++i) {
      CHECK(places[i].size() == 1);
      CHECK(workers[i].size() == 1);
      CHECK(attempts[i] == std::vector{1, 2, 3});
    }
  };
  check(numbers(20));
  check(std::views::iota(0, 20));
  std::istringstream text{"0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19"};
  check(std::ranges::istream_view<int>(text));
}

TEST_CASE("T1 an item in its backoff does not hold back the others") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::atomic<int> others{0};
  Meanwhile later{[&] {
    clock.wait_for_sleepers(1);
    wait_until([&] { return others == 49; });
    clock.advance(1h);
  }};
  const auto result = parallel_map(
      [&](int n, const Task& task) {
        if (n == 0 && task.attempt == 1) throw Down{};
        if (n != 0) ++others;
        return n;
      },
      numbers(50), {.workers = 2, .retry = Retry{.backoff = 1h, .max_delay = 1h, .jitter = false}});
  later.join();
  CHECK(result.ok());
  CHECK(clock.sleeps() == Times{1h});
}

TEST_CASE("T1 any exception is retried also one that is no std exception") {
  CHECK(one_item_that_throws(42, Retry{.backoff = 0s}).attempts == 3);
  CHECK(one_item_that_throws(std::string{"text"}, Retry{.backoff = 0s}).attempts == 3);
}

TEST_CASE("T1 threads and sequential give the same receipts") {
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  const auto receipts = [](const pyarallel::Options& options) {
    std::vector<std::string> all;
    const auto result = parallel_map(
        [](int n, const Task& task) {
          if (n % 7 == 3) throw Elsewhere("not retried");
          if (task.attempt <= n % 5) throw Down(std::to_string(n) + "/" + std::to_string(task.attempt));
          return n;
        },
        numbers(60), options);
    for (const auto& item : result.item_results()) {
      all.push_back(std::to_string(item.index) + ": " + std::to_string(item.attempts) + " " +
                    (item.ok() ? std::to_string(item.value()) : item.error().what()));
    }
    return all;
  };
  const Retry retry{.attempts = 3, .backoff = 1s, .on = retry_on<Down>};
  const auto expected = receipts({.executor = Executor::sequential, .retry = retry});
  CHECK(expected.size() == 60);
  CHECK(expected[2] == "2: 3 2");
  CHECK(expected[3] == "3: 1 not retried");
  CHECK(expected[4] == "4: 3 4/3");
  CHECK(receipts({.workers = 1, .retry = retry}) == expected);
  CHECK(receipts({.workers = 4, .retry = retry}) == expected);
}

TEST_CASE("R8 the duration of an item is from its first start to its outcome") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1min}};
  limiter.acquire();  // the first token is a minute away, which is not the item's time
  const auto result = parallel_map(
      [&](int, const Task& task) {
        clock.advance(100ms);
        if (task.attempt < 3) throw Down{};
      },
      std::vector{0},
      {.executor = Executor::sequential,
       .rate_limit = limiter,
       .retry = Retry{.backoff = 80s, .max_delay = 1h, .jitter = false}});
  // At 60 s, 140.1 s, 300.2 s: the backoffs of 80 s and 160 s outlast the wait for the next token.
  CHECK(result.item_results()[0].duration == 240300ms);
  const auto failed = parallel_map(
      [&](int) {
        clock.advance(1s);
        throw Down{};
      },
      std::vector{0},
      {.executor = Executor::sequential, .retry = Retry{.attempts = 2, .backoff = 5s, .jitter = false}});
  CHECK(failed.item_results()[0].duration == 7s);
}

// Who is asked ---------------------------------------------------------------------------------------

TEST_CASE("T2 the filter retries its types and those derived from them") {
  const auto attempts = [](const auto& exception, const pyarallel::ErrorFilter& on) {
    return one_item_that_throws(exception, Retry{.attempts = 2, .backoff = 0s, .on = on}).attempts;
  };
  CHECK(attempts(Down{}, retry_on<Down>) == 2);
  CHECK(attempts(WorseDown{}, retry_on<Down>) == 2);
  CHECK(attempts(Down{}, retry_on<WorseDown>) == 1);
  CHECK(attempts(Elsewhere{"x"}, retry_on<Down>) == 1);
  CHECK(attempts(Elsewhere{"x"}, retry_on<Down, Elsewhere>) == 2);
  CHECK(attempts(Down{}, retry_on<std::exception>) == 2);
  CHECK(attempts(42, retry_on<std::exception>) == 1);
  CHECK(attempts(42, retry_on<int>) == 2);
  CHECK(attempts(42L, retry_on<int>) == 1);
  CHECK(attempts(Down{}, retry_on<>) == 1);
  CHECK(attempts(Down{}, {}) == 2);
  CHECK(attempts(std::system_error{std::make_error_code(std::errc::timed_out)}, retry_on<std::system_error>) == 2);
}

TEST_CASE("T2 on and retry_if must both agree and only then wait_from is asked") {
  FakeClock clock;
  const ClockOverride use{clock};
  std::string asked;
  bool yes = true;
  const Retry retry{.attempts = 3,
                    .on = retry_on<Down>,
                    .retry_if =
                        [&](const Error&) {
                          asked += "if ";
                          return yes;
                        },
                    .wait_from =
                        [&](const Error&) {
                          asked += "wait ";
                          return std::optional<Duration>{1s};
                        }};
  SECTION("both agree: also on the last attempt") {
    CHECK(one_item_that_throws(Down{}, retry).attempts == 3);
    CHECK(asked == "if wait if wait if wait ");
  }
  SECTION("the filter refuses") {
    CHECK(one_item_that_throws(Elsewhere{"x"}, retry).attempts == 1);
    CHECK(asked.empty());
  }
  SECTION("retry_if refuses") {
    yes = false;
    CHECK(one_item_that_throws(Down{}, retry).attempts == 1);
    CHECK(asked == "if ");
  }
  SECTION("an item that succeeds") {
    CHECK(one_item([](int) {}, retry).ok());
    CHECK(asked.empty());
  }
  SECTION("an item that succeeds in the end") {
    const auto item = one_item(
        [](int attempt) {
          if (attempt == 1) throw Down{};
        },
        retry);
    CHECK(item.ok());
    CHECK(item.attempts == 2);
    CHECK(asked == "if wait ");
  }
}

TEST_CASE("T2 a predicate sees each error once and the one of its attempt") {
  std::vector<std::string> seen;
  one_item([](int attempt) { throw Down("attempt " + std::to_string(attempt)); },
           Retry{.backoff = 0s, .retry_if = [&](const Down& e) {
                   seen.emplace_back(e.what());
                   return true;
                 }});
  CHECK(seen == std::vector<std::string>{"attempt 1", "attempt 2", "attempt 3"});
}

namespace {

bool never(const Down&) { return false; }
bool never_noexcept(const Down&) noexcept { return false; }

struct Never {
  bool operator()(const Down&) const { return false; }
};
struct NeverAndNotConst {
  int calls = 0;
  bool operator()(Down) noexcept { return ++calls < 0; }
};

/// Attempts, of at most two, for a Down, a WorseDown and another exception.
std::vector<int> attempts_with(const Retry& retry) {
  return {one_item_that_throws(Down{}, retry).attempts, one_item_that_throws(WorseDown{}, retry).attempts,
          one_item_that_throws(Elsewhere{"x"}, retry).attempts};
}

std::vector<int> attempts_if(const pyarallel::ErrorFunction<bool>& retry_if) {
  return attempts_with(Retry{.attempts = 2, .backoff = 0s, .retry_if = retry_if});
}

}  // namespace

TEST_CASE("T2 a predicate is called for the type of its parameter and is otherwise true") {
  const std::vector<int> not_down{1, 1, 2};
  CHECK(attempts_if([](const Down&) { return false; }) == not_down);
  CHECK(attempts_if([](Down) { return false; }) == not_down);
  CHECK(attempts_if([](const Down) { return false; }) == not_down);
  CHECK(attempts_if([](const Down&) noexcept { return false; }) == not_down);
  CHECK(attempts_if([calls = 0](const Down&) mutable { return ++calls < 0; }) == not_down);
  CHECK(attempts_if([calls = 0](const Down&) mutable noexcept { return ++calls < 0; }) == not_down);
  CHECK(attempts_if(never) == not_down);
  CHECK(attempts_if(&never) == not_down);
  CHECK(attempts_if(never_noexcept) == not_down);
  CHECK(attempts_if(std::function<bool(const Down&)>{never}) == not_down);
  CHECK(attempts_if(Never{}) == not_down);
  CHECK(attempts_if(NeverAndNotConst{}) == not_down);
  CHECK(attempts_if([](const WorseDown&) { return false; }) == std::vector{2, 1, 2});
  CHECK(attempts_if([](const Elsewhere&) { return false; }) == std::vector{2, 2, 1});
  CHECK(attempts_if([](const std::exception&) { return false; }) == std::vector{1, 1, 1});
  CHECK(attempts_if([](const Error&) { return false; }) == std::vector{1, 1, 1});
  CHECK(attempts_if([](Error) { return false; }) == std::vector{1, 1, 1});
  CHECK(attempts_if([](const auto& e) { return e.template is<WorseDown>(); }) == std::vector{1, 2, 1});
  CHECK(attempts_if([](auto e) { return !e.template is<WorseDown>(); }) == std::vector{2, 1, 2});
  CHECK(attempts_if({}) == std::vector{2, 2, 2});
}

TEST_CASE("T2 a predicate may be over a type that is no exception class") {
  const Retry retry{.attempts = 5, .backoff = 0s, .retry_if = [](int code) { return code != 42; }};
  CHECK(one_item_that_throws(42, retry).attempts == 1);
  CHECK(one_item_that_throws(43, retry).attempts == 5);
  CHECK(one_item_that_throws(Down{}, retry).attempts == 5);
}

TEST_CASE("T2 a wait may be any duration or none") {
  const auto first_delay = [](pyarallel::ErrorFunction<std::optional<Duration>> wait_from) {
    return delays({.attempts = 2, .backoff = 3s, .jitter = false, .wait_from = std::move(wait_from)});
  };
  CHECK(first_delay([](const Down&) { return 7s; }) == Times{7s});
  CHECK(first_delay([](const Down&) { return std::optional{7ms}; }) == Times{7ms});
  CHECK(first_delay([](const Down&) { return std::optional<Duration>{}; }) == Times{3s});
  CHECK(first_delay([](const Down&) { return std::nullopt; }) == Times{3s});
  CHECK(first_delay([](const Elsewhere&) { return 7s; }) == Times{3s});
  CHECK(first_delay([](const auto&) { return 7s; }) == Times{7s});
  CHECK(first_delay({}) == Times{3s});
}

TEST_CASE("T2 an empty function says so") {
  CHECK_FALSE(pyarallel::ErrorFunction<bool>{});
  CHECK(pyarallel::ErrorFunction<bool>{[](const Down&) { return true; }});
}

namespace {

struct OutOfPatience : std::runtime_error {
  using runtime_error::runtime_error;
};

Retry with_predicate(int which, std::function<void()> raise) {
  Retry retry{.attempts = 5, .backoff = 0s};
  if (which == 0) {
    retry.retry_if = [raise = std::move(raise)](const Error&) {
      raise();
      return true;
    };
  } else {
    retry.wait_from = [raise = std::move(raise)](const Error&) {
      raise();
      return std::optional<Duration>{};
    };
  }
  return retry;
}

}  // namespace

TEST_CASE("T2 a predicate that throws ends the item and both errors are found") {
  for (const int which : {0, 1}) {  // retry_if, wait_from
    const auto outcome = [&](auto exception) {
      int asked = 0;
      const auto item = one_item_that_throws(Down{"the original"}, with_predicate(which, [&] {
                                               ++asked;
                                               throw exception;
                                             }));
      CHECK(item.attempts == 1);
      CHECK(asked == 1);
      REQUIRE_FALSE(item.ok());
      CHECK(finds<Down>(item.error(), "the original"));
      return item.error();
    };
    CHECK(finds<std::runtime_error>(outcome(std::runtime_error{"asked too much"}), "asked too much"));
    CHECK(finds<std::out_of_range>(outcome(std::out_of_range{"asked too far"}), "asked too far"));
    CHECK(finds<std::bad_alloc>(outcome(std::bad_alloc{}), std::bad_alloc{}.what()));
    const std::system_error broken{std::make_error_code(std::errc::broken_pipe), "asked nobody"};
    const auto system = chain(outcome(broken));
    CHECK(std::ranges::any_of(system, [&](const Error& e) {
      const auto* found = e.get_if<std::system_error>();
      return found != nullptr && found->code() == std::errc::broken_pipe && found->what() == std::string(broken.what());
    }));
    // Of other types at least the name and the text.
    const auto custom = outcome(OutOfPatience{"asked too often"});
    CHECK(says(chain(custom)[0].what(), "asked too often"));
    CHECK((custom.is<OutOfPatience>() || says(chain(custom)[0].what(), "OutOfPatience")));
    const auto number = outcome(42);
    CHECK((number.is<int>() || says(chain(number)[0].what(), "int")));
  }
}

TEST_CASE("T2 a predicate that throws after some retries leaves the error of that attempt") {
  int asked = 0;
  const auto item =
      one_item([](int attempt) { throw Down("attempt " + std::to_string(attempt)); }, with_predicate(0, [&] {
                 if (++asked == 3) throw std::logic_error("no more");
               }));
  CHECK(item.attempts == 3);
  CHECK(finds<std::logic_error>(item.error(), "no more"));
  CHECK(finds<Down>(item.error(), "attempt 3"));
}

TEST_CASE("T2 a predicate that throws for an exception that is no class") {
  const auto item = one_item_that_throws(7, with_predicate(0, [] { throw std::runtime_error("no"); }));
  const auto all = chain(item.error());
  CHECK(std::ranges::any_of(all, [](const Error& e) { return e.is<int>(); }));
  CHECK(finds<std::runtime_error>(item.error(), "no"));
}

// How long is waited ---------------------------------------------------------------------------------

TEST_CASE("T3 delays double up to the longest") {
  CHECK(delays({.attempts = 6, .backoff = 1s, .max_delay = 10s, .jitter = false}) == Times{1s, 2s, 4s, 8s, 10s});
  CHECK(delays({.attempts = 4, .backoff = 3s, .max_delay = 12s, .jitter = false}) == Times{3s, 6s, 12s});
  CHECK(delays({.attempts = 5, .backoff = 3s, .max_delay = 11999999999ns, .jitter = false}) ==
        Times{3s, 6s, 11999999999ns, 11999999999ns});
  CHECK(delays({.attempts = 3, .backoff = 5s, .max_delay = 2s, .jitter = false}) == Times{2s, 2s});
  CHECK(delays({.attempts = 1, .jitter = false}).empty());
  CHECK(delays({.attempts = 3, .backoff = 1ns, .jitter = false}) == Times{1ns, 2ns});
}

TEST_CASE("T3 the defaults are three attempts a second and a minute with jitter") {
  const Retry retry;
  CHECK(retry.attempts == 3);
  CHECK(retry.backoff == 1s);
  CHECK(retry.max_delay == 1min);
  CHECK(retry.jitter);
  CHECK(retry.max_server_wait == Duration{10min});
  CHECK(delays(retry) == Times{1s, 2s});  // the fake clock draws a half, which is a factor of one
}

TEST_CASE("T3 jitter is a factor from a half to one and a half") {
  FakeClock clock;
  const ClockOverride use{clock};
  clock.script_random({0.0, 0.5, 0.25, 0.75, 1.0 - 0x1.0p-53});
  one_item_that_throws(Down{}, Retry{.attempts = 6, .backoff = 1s, .max_delay = 4s});
  const Times sleeps = clock.sleeps();
  REQUIRE(sleeps.size() == 5);
  CHECK(Times(sleeps.begin(), sleeps.end() - 1) == Times{500ms, 2s, 3s, 5s});  // 4 s x 1.25: jitter comes last
  CHECK(sleeps[4] >= 5999999999ns);
  CHECK(sleeps[4] <= 6s);
  CHECK(clock.random_draws() == 5);
}

TEST_CASE("T3 without jitter nothing is drawn") {
  FakeClock clock;
  const ClockOverride use{clock};
  one_item_that_throws(Down{}, Retry{.jitter = false});
  one_item_that_throws(Down{}, Retry{.wait_from = [](const Down&) { return 1s; }});
  CHECK(clock.random_draws() == 0);
}

TEST_CASE("T3 the jitter of the real clock stays within its bounds") {
  auto& clock = pyarallel::detail::clock();
  double sum = 0;
  double least = 1;
  double most = 0;
  for (int i = 0; i < 10000; ++i) {
    const double number = clock.random();
    sum += number;
    least = std::min(least, number);
    most = std::max(most, number);
  }
  CHECK(least >= 0);
  CHECK(least < 0.01);
  CHECK(most < 1);
  CHECK(most > 0.99);
  CHECK(sum > 4500);
  CHECK(sum < 5500);
}

TEST_CASE("T3 delays do not overflow") {
  const auto times = delays({.attempts = 100, .backoff = 1s, .max_delay = Duration::max(), .jitter = false});
  REQUIRE(times.size() == 99);
  CHECK(times[0] == 1s);
  CHECK(times[10] == 1024s);
  CHECK(times[32] == 4294967296s);
  CHECK(std::ranges::all_of(times, [](Duration d) { return d >= Duration::zero(); }));
  using pyarallel::detail::backoff_delay;
  const Retry longest{.backoff = Duration::max(), .max_delay = Duration::max()};
  Retry doubling{.backoff = 1s, .max_delay = Duration::max(), .jitter = false};
  CHECK(backoff_delay(doubling, 34, 0) == 8589934592s);
  CHECK(backoff_delay(doubling, 35, 0) == Duration::max());
  CHECK(backoff_delay(doubling, 100, 0) == Duration::max());
  CHECK(backoff_delay(doubling, std::numeric_limits<int>::max(), 0) == Duration::max());
  doubling.jitter = true;
  CHECK(backoff_delay(doubling, 100, 0.999) == Duration::max());
  CHECK(backoff_delay(doubling, 100, 0) > 4000000000s);
  CHECK(backoff_delay(longest, 1, 0.999) == Duration::max());
  CHECK(backoff_delay(longest, 99, 0.5) == Duration::max());
  CHECK(delays({.attempts = 5, .backoff = Duration::max(), .max_delay = Duration::max()}).size() == 4);
}

TEST_CASE("T3 no backoff means no wait") {
  CHECK(delays({.attempts = 4, .backoff = 0s}) == Times{0s, 0s, 0s});
  CHECK(delays({.attempts = 3, .backoff = 1s, .max_delay = 0s}) == Times{0s, 0s});
  // However many attempts: doubling nothing takes no time either.
  CHECK(pyarallel::detail::backoff_delay({.backoff = 0s}, std::numeric_limits<int>::max(), 0.5) == 0s);
}

TEST_CASE("T3 a wait of the server is taken as it is up to its own longest") {
  const auto waits = [](Duration wait, std::optional<Duration> longest) {
    return delays({.attempts = 3,
                   .backoff = 1s,
                   .max_delay = 2s,
                   .wait_from = [wait](const Down&) { return wait; },
                   .max_server_wait = longest});
  };
  CHECK(waits(30s, 600s) == Times{30s, 30s});  // not bound by max_delay
  CHECK(waits(1h, 600s) == Times{600s, 600s});
  CHECK(waits(1h, 0s) == Times{0s, 0s});
  CHECK(waits(1h, std::nullopt) == Times{1h, 1h});
  CHECK(waits(0s, 600s) == Times{0s, 0s});
  CHECK(waits(-5s, 600s) == Times{0s, 0s});
  CHECK(waits(Duration::min(), std::nullopt) == Times{0s, 0s});
  CHECK(waits(Duration::max(), 600s) == Times{600s, 600s});
}

TEST_CASE("T3 a wait of the server is not jittered") {
  FakeClock clock;
  const ClockOverride use{clock};
  clock.script_random({0.0, 0.0, 0.0});
  one_item_that_throws(Down{}, Retry{.wait_from = [](const Down&) { return 10s; }});
  CHECK(clock.sleeps() == Times{10s, 10s});
}

TEST_CASE("T3 a wait of the server replaces one backoff and no other") {
  FakeClock clock;
  const ClockOverride use{clock};
  one_item([](int attempt) { throw Down(attempt == 2 ? "busy" : "down"); },
           Retry{.attempts = 5, .jitter = false, .wait_from = [](const Down& e) {
                   return e.what() == std::string{"busy"} ? std::optional<Duration>{10s} : std::nullopt;
                 }});
  CHECK(clock.sleeps() == Times{1s, 10s, 4s, 8s});
}

TEST_CASE("T3 a wait of the server pauses the limiter of the run") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{1, 1s, 3}};
  const auto fail_once_with = [&](Retry retry) {
    retry.attempts = 1;
    const auto result =
        parallel_map([](int) -> int { throw Down{}; }, std::vector{0},
                     {.executor = Executor::sequential, .rate_limit = limiter, .retry = std::move(retry)});
    CHECK(result.item_results()[0].attempts == 1);
    return limiter.wait_time();
  };
  SECTION("also on the last attempt and without a sleep") {
    CHECK(fail_once_with({.wait_from = [](const Down&) { return 30s; }}) == 30s);
    CHECK(clock.sleeps().empty());
  }
  SECTION("clamped") {
    CHECK(fail_once_with({.wait_from = [](const Down&) { return 1h; }, .max_server_wait = 20s}) == 20s);
  }
  SECTION("for as long as it says") {
    CHECK(fail_once_with({.wait_from = [](const Down&) { return 24h; }, .max_server_wait = std::nullopt}) == 24h);
  }
  SECTION("not for less than nothing") {
    CHECK(fail_once_with({.wait_from = [](const Down&) { return -1h; }}) == 0s);
    CHECK(limiter.try_acquire(2));  // a pause would have left one token
  }
  SECTION("not where the server said nothing") {
    CHECK(fail_once_with({.wait_from = [](const Down&) { return std::nullopt; }}) == 0s);
  }
  SECTION("not where the error is not retried") {
    CHECK(fail_once_with({.on = retry_on<Elsewhere>, .wait_from = [](const Down&) { return 30s; }}) == 0s);
  }
}

TEST_CASE("T3 the other items of a run are held by the wait of one") {
  FakeClock clock;
  const ClockOverride use{clock};
  Times times;
  parallel_map(
      [&](int n, const Task& task) {
        times.push_back(clock.elapsed());
        if (n == 1 && task.attempt < 3) throw Down{};
      },
      numbers(4),
      {.executor = Executor::sequential, .rate_limit = 10, .retry = Retry{.attempts = 2, .wait_from = [](const Down&) {
                                                                            return 30s;
                                                                          }}});
  // Item 1 fails at 0.1 s and 30.1 s for good; the others wait for the second pause too.
  CHECK(times == Times{0s, 100ms, 30100ms, 60100ms, 60200ms});
}

TEST_CASE("T3 without a limiter the wait of the server is the item's own") {
  FakeClock clock;
  const ClockOverride use{clock};
  Times times;
  parallel_map(
      [&](int n) {
        times.push_back(clock.elapsed());
        if (n == 0) throw Down{};
      },
      numbers(2),
      {.executor = Executor::sequential, .retry = Retry{.attempts = 2, .wait_from = [](const Down&) { return 30s; }}});
  CHECK(times == Times{0s, 30s, 30s});
}

TEST_CASE("T3 a wait of the server for ever ends with the stop of the run") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  Meanwhile later{[&] {
    clock.wait_for_sleepers(2);  // one in its backoff, one for its token
    clock.advance(2h);
    clock.wait_for_sleepers(2);  // held by the pause
    stop.request_stop();
  }};
  const auto result = parallel_map(
      [](int) -> int { throw Down{}; }, numbers(4),
      {.workers = 2,
       .rate_limit = RateLimit{1, 1h},
       .retry = Retry{.wait_from = [](const Down&) { return Duration::max(); }, .max_server_wait = std::nullopt},
       .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::cancelled);
  CHECK(std::ranges::count_if(result.failures(),
                              [](const auto& failure) { return failure.error.template is<Down>(); }) == 1);
}

// What ends a wait -----------------------------------------------------------------------------------

TEST_CASE("T4 a stop ends the backoff and the last real error stays") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  Meanwhile later{[&] {
    clock.wait_for_sleepers(2);
    clock.advance(1h);
    clock.wait_for_sleepers(2);
    stop.request_stop();
  }};
  const auto result = parallel_map(
      [](int, const Task& task) -> int { throw Down(std::to_string(task.attempt)); }, numbers(5),
      {.workers = 2, .retry = Retry{.backoff = 1h, .max_delay = 24h, .jitter = false}, .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::cancelled);
  const auto items = result.item_results();
  for (const std::size_t i : {0U, 1U}) {
    CHECK(items[i].attempts == 2);
    CHECK(items[i].error().is<Down>());
    CHECK(items[i].error().what() == "2");
  }
  for (const std::size_t i : {2U, 3U, 4U}) {
    CHECK(items[i].attempts == 0);
    CHECK(items[i].error().is<pyarallel::Cancelled>());
  }
  CHECK(clock.elapsed() == 1h);
}

TEST_CASE("T4 a stop during the attempt leaves no backoff to wait for") {
  FakeClock clock;
  const ClockOverride use{clock};
  std::stop_source stop;
  const auto result = parallel_map(
      [&](int) -> int {
        stop.request_stop();
        throw Down{};
      },
      numbers(2), {.executor = Executor::sequential, .retry = Retry{.backoff = 1h}, .stop = stop.get_token()});
  CHECK(result.status() == RunStatus::cancelled);
  CHECK(clock.elapsed() == 0s);
  const auto items = result.item_results();
  CHECK(items[0].attempts == 1);
  CHECK(items[0].error().is<Down>());
  CHECK(items[1].error().is<pyarallel::Cancelled>());
}

TEST_CASE("T4 a stop in the last backoff of all leaves the run completed") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  Meanwhile later{[&] {
    clock.wait_for_sleepers(1);
    stop.request_stop();
  }};
  const auto result = parallel_map([](int) -> int { throw Down{}; }, numbers(1),
                                   {.workers = 2, .retry = Retry{.backoff = 1h}, .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::completed);  // no item is left unrun (clause R5)
  CHECK(result.failures()[0].error.is<Down>());
}

TEST_CASE("T4 an abort ends the backoff and the last real error stays") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  const auto result = parallel_map(
      [&](int n) -> int {
        if (n == 0) throw Down{"in its backoff"};
        clock.wait_for_sleepers(1);
        throw Elsewhere{"for good"};
      },
      numbers(10), {.workers = 2, .retry = Retry{.backoff = 1h, .on = retry_on<Down>}, .max_errors = 1});
  CHECK(result.status() == RunStatus::aborted);
  CHECK(clock.elapsed() == 0s);
  const auto items = result.item_results();
  CHECK(items[0].attempts == 1);
  CHECK(items[0].error().what() == "in its backoff");
  CHECK(items[1].error().what() == "for good");
  CHECK(items[2].error().is<pyarallel::Aborted>());
}

TEST_CASE("T4 a timeout ends the backoff and the last real error stays") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result =
      parallel_map([](int, const Task& task) -> int { throw Down(std::to_string(task.attempt)); }, numbers(3),
                   {.executor = Executor::sequential,
                    .retry = Retry{.backoff = 4min, .max_delay = 1h, .jitter = false},
                    .timeout = 10min});
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(clock.elapsed() == 10min);
  const auto items = result.item_results();
  CHECK(items[0].attempts == 2);
  CHECK(items[0].error().is<Down>());
  CHECK(items[0].error().what() == "2");
  CHECK(items[0].duration == 10min);
  CHECK(items[1].error().is<pyarallel::TimeoutError>());
  CHECK(items[1].attempts == 0);
}

TEST_CASE("T4 a timeout ends the backoffs of all workers") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Meanwhile later{[&] {
    clock.wait_for_sleepers(3);
    clock.wait_for_waiters(1);  // the calling thread keeps the time
    clock.advance(10min);
  }};
  std::size_t reported = 0;
  const auto result = parallel_map([](int) -> int { throw Down{}; }, numbers(9),
                                   {.workers = 3,
                                    .retry = Retry{.backoff = 1h, .max_delay = 1h},
                                    .timeout = 10min,
                                    .on_progress = [&](std::size_t done, std::size_t) { reported = done; }});
  later.join();
  CHECK(result.status() == RunStatus::timed_out);
  CHECK(reported == 3);
  int attempts = 0;
  for (const auto& item : result.item_results()) attempts += item.attempts;
  CHECK(attempts == 3);
}

TEST_CASE("T4 a stop during the wait for the token of a retry leaves the last real error") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  Limiter limiter{RateLimit{1, 1h}};
  Meanwhile later{[&] {
    clock.wait_for_sleepers(2);
    stop.request_stop();
  }};
  const auto result =
      parallel_map([](int) -> int { throw Down{}; }, numbers(4),
                   {.workers = 2, .rate_limit = limiter, .retry = Retry{.backoff = 0s}, .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::cancelled);
  int real = 0;
  for (const auto& item : result.item_results()) {
    real += item.error().is<Down>();
    CHECK(item.attempts == (item.error().is<Down>() ? 1 : 0));
  }
  CHECK(real == 1);
  CHECK(limiter.wait_time() == 1h);
}

TEST_CASE("T4 a stop ends a backoff on the real clock") {
  const Watchdog watchdog;
  std::stop_source stop;
  Gate failed;
  Meanwhile later{[&] {
    failed.wait();
    dawdle();
    stop.request_stop();
  }};
  const auto result = parallel_map(
      [&](int) -> int {
        failed.open();
        throw Down{};
      },
      numbers(3), {.workers = 2, .retry = Retry{.backoff = 24h, .max_delay = 24h}, .stop = stop.get_token()});
  later.join();
  CHECK(result.status() == RunStatus::cancelled);
  CHECK(result.failures().size() == 3);
}

// Late attempts --------------------------------------------------------------------------------------

TEST_CASE("E4 a late success is a TaskTimeout and can be retried") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto slow_at_first = [&](int, const Task& task) {
    clock.advance(task.attempt < 3 ? 2s : 500ms);
    return std::string{"attempt "} + std::to_string(task.attempt);
  };
  const auto run = [&](std::optional<Retry> retry) {
    return parallel_map(slow_at_first, std::vector{0},
                        {.executor = Executor::sequential, .retry = std::move(retry), .task_timeout = 1s})
        .item_results()
        .at(0);
  };
  const auto once = run({});
  REQUIRE_FALSE(once.ok());
  CHECK(once.error().is<TaskTimeout>());
  CHECK(once.attempts == 1);

  const auto retried = run(Retry{.backoff = 0s, .on = retry_on<TaskTimeout>});
  CHECK(retried.ok());
  CHECK(retried.value() == "attempt 3");
  CHECK(retried.attempts == 3);

  const auto twice = run(Retry{.attempts = 2, .backoff = 0s});
  CHECK(twice.error().is<TaskTimeout>());
  CHECK(twice.attempts == 2);

  CHECK(run(Retry{.backoff = 0s, .on = retry_on<Down>}).attempts == 1);
}

TEST_CASE("E4 a late failure is a TaskTimeout too") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result = parallel_map(
      [&](int, const Task&) -> int {
        clock.advance(2s);
        throw Down{};
      },
      std::vector{0}, {.executor = Executor::sequential, .task_timeout = 1s});
  CHECK(result.failures()[0].error.is<TaskTimeout>());
}

TEST_CASE("E4 a late attempt on a thread is asked to stop and then retried") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Gate begun;
  Gate first_item_ended;
  Meanwhile later{[&] {
    begun.wait();
    first_item_ended.wait();
    clock.wait_for_waiters(1);  // the calling thread keeps the time
    clock.advance(1001ms);
  }};
  const auto result = parallel_map(
      [&](int n, const Task& task) {
        if (n == 2) first_item_ended.open();  // whoever had that one has gone on
        if (n == 1 && task.attempt == 1) {
          begun.open();
          wait_until([&] { return task.stop.stop_requested(); });
        }
        return task.attempt;
      },
      numbers(4), {.workers = 2, .retry = Retry{.backoff = 0s, .on = retry_on<TaskTimeout>}, .task_timeout = 1s});
  later.join();
  REQUIRE(result.ok());
  CHECK(result[0] == 1);
  CHECK(result[1] == 2);
}

TEST_CASE("C6 bad retry values throw before anything runs") {
  int calls = 0;
  const auto complaint = [&](const Retry& retry) -> std::string {
    try {
      parallel_map([&](int) { ++calls; }, numbers(2), {.executor = Executor::sequential, .retry = retry});
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return {};
  };
  CHECK(complaint({.attempts = 0}) == "Retry: attempts must be >= 1, got 0");
  CHECK(complaint({.attempts = -3}) == "Retry: attempts must be >= 1, got -3");
  CHECK(says(complaint({.backoff = -1ms}), "Retry: backoff"));
  CHECK(says(complaint({.max_delay = -1s}), "Retry: max_delay"));
  CHECK(says(complaint({.max_server_wait = -1s}), "Retry: max_server_wait"));
  CHECK(calls == 0);
}

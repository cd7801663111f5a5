// Runs that end before their input does: max_errors, timeout, stop, and attempts that take too long.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <numeric>
#include <pyarallel.hpp>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Aborted;
using pyarallel::Batch;
using pyarallel::Cancelled;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::Failure;
using pyarallel::ItemKey;
using pyarallel::MapResult;
using pyarallel::parallel_map;
using pyarallel::RateLimit;
using pyarallel::Retry;
using pyarallel::retry_on;
using pyarallel::RunStatus;
using pyarallel::Task;
using pyarallel::TaskTimeout;
using pyarallel::TimeoutError;
using support::ClockOverride;
using support::Counted;
using support::Counts;
using support::FakeClock;
using support::Gate;
using support::SinglePass;
using support::wait_until;
using support::Watchdog;
using IntOptions = pyarallel::MapOptions<int, int>;

namespace {

constexpr auto itself = [](int number) { return number; };

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

struct Broken : std::runtime_error {
  Broken() : runtime_error("broken") {}
};

/// How many items failed with an E.
template <class E, class R>
std::size_t count_failed(const MapResult<R>& result) {
  return static_cast<std::size_t>(
      std::ranges::count_if(result.failures(), [](const Failure& failure) { return failure.error.is<E>(); }));
}

/// Every item is in the result: those with a value, failed ones, and for the rest a placeholder E
/// without an attempt.
template <class E, class R>
void check_placeholders(const MapResult<R>& result, std::size_t size, std::size_t unrun) {
  CHECK(result.size() == size);
  CHECK(count_failed<E>(result) == unrun);
  std::size_t without_attempt = 0;
  bool all_empty = true;
  for (const auto& item : result.item_results()) {
    if (item.attempts > 0) continue;
    ++without_attempt;
    all_empty = all_empty && !item.ok() && item.error().template is<E>() && item.duration == Duration::zero();
  }
  CHECK(all_empty);
  CHECK(without_attempt == unrun);
  CHECK_THROWS_AS(result.values(), E);
  CHECK_FALSE(result.ok());
}

void wait_for_stop(const Task& task) {
  wait_until([&] { return task.stop.stop_requested(); });
}

/// In the calling thread in two ways, on threads in two ways.
std::vector<IntOptions> ways_to_run() {
  return {IntOptions{.executor = Executor::sequential}, IntOptions{.workers = 1}, IntOptions{.workers = 3},
          IntOptions{.workers = 3, .on_progress = [](auto...) {}}};
}

bool is_inline(const IntOptions& options) {
  return options.workers == 1U || options.executor.get() == Executor::sequential;
}

}  // namespace

// max_errors ------------------------------------------------------------------------------------------------

TEST_CASE("E1 nothing is admitted after the last failure that max_errors allows") {
  for (const auto& way : {IntOptions{.executor = Executor::sequential}, IntOptions{.workers = 1}}) {
    for (const int max_errors : {1, 3}) {
      CAPTURE(max_errors);
      auto options = way;
      options.max_errors = static_cast<std::size_t>(max_errors);
      int calls = 0;
      const auto fn = [&](int item) {
        ++calls;
        return item % 2 == 1 ? throw Broken() : item;
      };
      const auto result = parallel_map(fn, numbers(20), options);
      const int expected = 2 * max_errors;
      CHECK(calls == expected);
      CHECK(result.status() == RunStatus::aborted);
      CHECK(count_failed<Broken>(result) == static_cast<std::size_t>(max_errors));
      check_placeholders<Aborted>(result, 20, static_cast<std::size_t>(20 - expected));

      calls = 0;
      SinglePass source{20, itself};
      const auto pulled = parallel_map(fn, source, options);
      CHECK(calls == expected);
      CHECK(source.reads == expected);
      CHECK(pulled.aborted());
      CHECK(pulled.size() == static_cast<std::size_t>(expected));
    }
  }
}

TEST_CASE("E1 at most n - 1 plus a window of items fail for real") {
  const Watchdog watchdog;
  constexpr std::size_t workers = 3;
  for (const std::size_t max_errors : {1U, 2U, 10U}) {
    for (const std::size_t window : {0U, 1U, 2U, 20U}) {
      for (const std::size_t chunk : {0U, 1U, 100U}) {
        CAPTURE(max_errors, window, chunk);
        const std::size_t most = max_errors - 1 + (window > 0 ? window : 2 * workers);
        const IntOptions options{
            .workers = workers, .batch = Batch{.size = window, .chunk = chunk}, .max_errors = max_errors};
        std::atomic<std::size_t> calls{0};
        const auto fn = [&](int) -> int {
          ++calls;
          throw Broken();
        };
        const auto check = [&](const MapResult<int>& result) {
          CHECK(result.aborted());
          CHECK(count_failed<Broken>(result) == calls);
          CHECK(calls >= max_errors);
          CHECK(calls <= most);
          check_placeholders<Aborted>(result, result.size(), result.size() - calls);
          calls = 0;
        };
        const auto indexed = parallel_map(fn, numbers(1000), options);
        CHECK(indexed.size() == 1000);
        check(indexed);
        auto reported = options;
        reported.on_progress = [](auto...) {};
        check(parallel_map(fn, numbers(1000), reported));
        SinglePass source{1000, itself};
        check(parallel_map(fn, source, options));
        CHECK(source.reads <= static_cast<int>(most));
      }
    }
  }
}

TEST_CASE("E1 failures are counted after retries") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.retry = Retry{.attempts = 2, .backoff = 0s};
    options.max_errors = 1;
    const auto healed = parallel_map(
        [](int item, const Task& task) { return task.attempt == 1 ? throw Broken() : item; }, numbers(20), options);
    CHECK(healed.ok());

    std::atomic<int> attempts{0};
    const auto broken = parallel_map(
        [&](int item) {
          if (item != 0) return item;
          ++attempts;
          throw Broken();
        },
        numbers(20), options);
    CHECK(broken.aborted());
    CHECK(attempts == 2);
    CHECK(count_failed<Broken>(broken) == 1);
  }
}

TEST_CASE("E1 fewer failures than max_errors leave the run completed") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.max_errors = 4;
    const auto result = parallel_map([](int item) { return item < 3 ? throw Broken() : item; }, numbers(50), options);
    CHECK(result.status() == RunStatus::completed);
    CHECK(result.failures().size() == 3);
    CHECK_THROWS_AS(result.values(), pyarallel::ExceptionGroup);
  }
}

TEST_CASE("R5 the last failure that max_errors allows aborts the run also on the last item") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.max_errors = 2;
    std::atomic<int> others{0};
    const auto fn = [&](int item) {
      if (item == 2 && !is_inline(options)) wait_until([&] { return others == 2; });
      ++others;
      return item > 0 ? throw Broken() : item;
    };
    for (const bool pulled : {false, true}) {
      others = 0;
      const auto result =
          pulled ? parallel_map(fn, std::list<int>{0, 1, 2}, options) : parallel_map(fn, numbers(3), options);
      CHECK(result.aborted());
      CHECK(result.at(0) == 0);
      CHECK(count_failed<Broken>(result) == 2);
      CHECK_THROWS_AS(result.values(), Aborted);
      CHECK_THROWS_AS(result.throw_on_failure(), pyarallel::ExceptionGroup);
    }
  }
}

TEST_CASE("E1 running items are asked to stop and awaited and keep their outcome") {
  const Watchdog watchdog;
  for (const auto task_timeout : {std::optional<Duration>{}, std::optional<Duration>{1h}}) {
    std::atomic<int> running{0};
    const auto fn = [&](int item, const Task& task) {
      if (item == 2) {
        wait_until([&] { return running == 2; });
        throw Broken();
      }
      ++running;
      wait_for_stop(task);
      return item == 0 ? 7 : throw std::out_of_range("my own");
    };
    const auto result = parallel_map(fn, numbers(10), {.workers = 3, .task_timeout = task_timeout, .max_errors = 1});
    CHECK(result.aborted());
    CHECK(result.at(0) == 7);
    CHECK_THROWS_AS(result.at(1), std::out_of_range);
    CHECK_THROWS_AS(result.at(2), Broken);
    check_placeholders<Aborted>(result, 10, 7);
  }
}

// timeout -----------------------------------------------------------------------------------------------------

TEST_CASE("E2 a timeout of zero runs nothing") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.timeout = 0s;
    std::atomic<int> calls{0};
    options.item_key = [&](const int&) {
      ++calls;
      return ItemKey{};
    };
    options.on_result = [&](const auto&) { ++calls; };
    options.on_progress = [&](auto...) { ++calls; };
    options.worker_init = [&] { ++calls; };
    const auto fn = [&](int item) {
      ++calls;
      return item;
    };
    for (const bool keyed : {true, false}) {
      if (!keyed) options.item_key = nullptr;
      const auto indexed = parallel_map(fn, numbers(20), options);
      CHECK(indexed.status() == RunStatus::timed_out);
      check_placeholders<TimeoutError>(indexed, 20, 20);
      CHECK(count_failed<TaskTimeout>(indexed) == 0);
      check_placeholders<TimeoutError>(parallel_map(fn, std::list<int>{1, 2, 3}, options), 3, 3);
      SinglePass source{20, itself};
      const auto pulled = parallel_map(fn, source, options);
      CHECK(pulled.timed_out());
      CHECK(pulled.size() == 0);
      CHECK(source.reads == 0);
    }
    CHECK(calls == 0);
  }
}

TEST_CASE("E2 a timeout asks running items to stop and awaits them and keeps their outcome") {
  const Watchdog watchdog;
  std::atomic<int> running{0};
  const auto fn = [&](int item, const Task& task) {
    ++running;
    wait_for_stop(task);
    return item == 0 ? 7 : throw std::out_of_range("my own");
  };
  for (auto options : {IntOptions{.workers = 2}, IntOptions{.workers = 2, .task_timeout = 5h},
                       IntOptions{.workers = 2, .on_progress = [](auto...) {}}}) {
    options.timeout = 2h;
    for (const bool pulled : {false, true}) {
      running = 0;
      FakeClock clock{FakeClock::Mode::manual};
      const ClockOverride use{clock};
      const std::jthread other{[&] {
        wait_until([&] { return running == 2; });
        clock.advance(2h);
      }};
      const auto result =
          pulled ? parallel_map(fn, std::list<int>{0, 1, 2, 3}, options) : parallel_map(fn, numbers(4), options);
      CHECK(result.timed_out());
      CHECK(running == 2);
      CHECK(result.at(0) == 7);
      CHECK_THROWS_AS(result.at(1), std::out_of_range);
      check_placeholders<TimeoutError>(result, 4, 2);
    }
  }
}

TEST_CASE("E2 no item starts after the deadline") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.timeout = 1h;
    const bool alone = is_inline(options);
    for (int input = 0; input < 3; ++input) {
      CAPTURE(alone, input);
      FakeClock clock{FakeClock::Mode::manual};
      const ClockOverride use{clock};
      std::atomic<bool> late{false};
      std::atomic<int> started_late{0};
      std::atomic<int> started{0};
      const auto fn = [&](int item) {
        ++started;
        if (late) ++started_late;
        if (item == 10) {
          clock.advance(1h);
          late = true;
        }
        return item;
      };
      SinglePass source{1000, itself};
      const auto result = input == 0   ? parallel_map(fn, numbers(1000), options)
                          : input == 1 ? parallel_map(fn, std::views::iota(0), options)
                                       : parallel_map(fn, source, options);
      CHECK(result.timed_out());
      CHECK(result.at(10) == 10);
      // The other two workers may have looked at the clock just before.
      CHECK(started_late <= (alone ? 0 : 2));
      if (alone) CHECK(started == 11);
    }
  }
}

TEST_CASE("E2 nothing is read after a deadline that passes in a callback") {
  const Watchdog watchdog;
  for (const auto& way : ways_to_run()) {
    FakeClock clock{FakeClock::Mode::manual};
    const ClockOverride use{clock};
    auto options = way;
    options.timeout = 1h;
    options.batch = Batch{.size = 5};
    SinglePass source{1000, itself};
    std::size_t reported = 0;
    int read_before = 0;
    options.on_result = [&](const auto&) {
      if (++reported != 20) return;
      clock.advance(1h);
      read_before = source.reads;
    };
    const auto result = parallel_map(itself, source, options);
    CHECK(result.timed_out());
    CHECK(read_before >= 20);
    CHECK(source.reads == read_before);
    CHECK(reported == result.successes().size());
  }
}

TEST_CASE("E2 nothing is read after a deadline that passes while a slow source is read") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::atomic<int> running{0};
  SinglePass source{1000, itself};
  source.on_read = [&](int number) {
    if (number != 10) return;
    wait_until([&] { return running == 2; });
    clock.advance(1h);
  };
  const auto fn = [&](int item, const Task& task) {
    ++running;
    wait_for_stop(task);
    return item;
  };
  const auto result = parallel_map(fn, source, {.workers = 2, .batch = Batch{.size = 100, .chunk = 1}, .timeout = 1h});
  CHECK(result.timed_out());
  CHECK(source.reads == 11);
  check_placeholders<TimeoutError>(result, 11, 9);
}

TEST_CASE("E2 a timeout as long as it gets never comes") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    for (const Duration forever : {Duration::max(), Duration{std::chrono::years{250}}}) {
      options.timeout = forever;
      options.task_timeout = forever;
      const auto fn = [](int item, const Task& task) { return task.stop.stop_requested() ? -1 : item; };
      CHECK(parallel_map(fn, numbers(100), options).ok());
      SinglePass source{100, itself};
      CHECK(parallel_map(fn, source, options).ok());
      auto all = options;
      all.rate_limit = RateLimit{.count = 1e6, .burst = 100};
      all.retry = Retry{.attempts = 2, .backoff = 0s};
      const auto healed = parallel_map(
          [](int item, const Task& task) { return task.attempt == 1 && item == 5 ? throw Broken() : item; },
          numbers(20), all);
      CHECK(healed.ok());
    }
  }
}

TEST_CASE("E2 a timeout ends the wait of all workers for the rate limit") {
  const Watchdog watchdog;
  std::atomic<int> calls{0};
  const auto fn = [&](int item) {
    ++calls;
    return item;
  };
  // The second token comes after the deadline: nobody waits for it.
  const IntOptions options{.workers = 3, .rate_limit = RateLimit{.count = 1, .per = 10h}, .timeout = 1h};
  const auto result = parallel_map(fn, numbers(20), options);
  CHECK(result.timed_out());
  CHECK(calls <= 1);  // none if the one with the token had not begun when another saw that there is no use waiting
  check_placeholders<TimeoutError>(result, 20, static_cast<std::size_t>(20 - calls));
}

TEST_CASE("E2 a timeout ends the backoff of all workers and their real errors stay") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  const std::jthread other{[&] {
    clock.wait_for_sleepers(3);
    clock.advance(1h);
  }};
  const IntOptions options{
      .workers = 3, .retry = Retry{.backoff = 10h, .max_delay = 10h, .jitter = false}, .timeout = 1h};
  const auto result = parallel_map([](int) -> int { throw Broken(); }, numbers(20), options);
  CHECK(result.timed_out());
  CHECK(count_failed<Broken>(result) == 3);
  check_placeholders<TimeoutError>(result, 20, 17);
  CHECK(result.item_results()[0].attempts == 1);
  CHECK(result.item_results()[0].duration == 1h);
}

// stop --------------------------------------------------------------------------------------------------------

TEST_CASE("E3 a token that is stopped already runs nothing") {
  const Watchdog watchdog;
  std::stop_source stop;
  stop.request_stop();
  for (auto options : ways_to_run()) {
    options.stop = stop.get_token();
    std::atomic<int> calls{0};
    options.on_result = [&](const auto&) { ++calls; };
    options.worker_init = [&] { ++calls; };
    const auto fn = [&](int item) {
      ++calls;
      return item;
    };
    const auto indexed = parallel_map(fn, numbers(20), options);
    CHECK(indexed.status() == RunStatus::cancelled);
    check_placeholders<Cancelled>(indexed, 20, 20);
    SinglePass source{20, itself};
    const auto pulled = parallel_map(fn, source, options);
    CHECK(pulled.cancelled());
    CHECK(pulled.size() == 0);
    CHECK(source.reads == 0);
    options.item_key = [&](const int&) {
      ++calls;
      return ItemKey{};
    };
    check_placeholders<Cancelled>(parallel_map(fn, numbers(20), options), 20, 20);
    CHECK(calls == 0);
  }
}

TEST_CASE("E3 stop may be requested from the function") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    std::stop_source stop;
    options.stop = stop.get_token();
    std::atomic<bool> stopped{false};
    std::atomic<int> started{0};
    std::atomic<int> started_late{0};
    const auto result = parallel_map(
        [&](int item) {
          ++started;
          if (stopped) ++started_late;
          if (item == 5) {
            stop.request_stop();
            stopped = true;
          }
          return item;
        },
        numbers(1000), options);
    CHECK(result.cancelled());
    CHECK(result.at(5) == 5);
    CHECK(started_late <= (is_inline(options) ? 0 : 2));
    CHECK(result.successes().size() == static_cast<std::size_t>(started));
    check_placeholders<Cancelled>(result, 1000, static_cast<std::size_t>(1000 - started));
  }
}

TEST_CASE("E3 stop may be requested from any callback") {
  const Watchdog watchdog;
  enum { on_result, on_progress, item_key };
  for (const auto callback : {on_result, on_progress, item_key}) {
    for (auto options : ways_to_run()) {
      for (const bool pulled : {false, true}) {
        CAPTURE(static_cast<int>(callback), is_inline(options), pulled);
        std::stop_source stop;
        options.stop = stop.get_token();
        options.batch = Batch{.size = 4};
        int calls = 0;
        const auto request = [&] {
          if (++calls == 5) stop.request_stop();
        };
        options.on_result = nullptr;
        options.on_progress = nullptr;
        options.item_key = nullptr;
        if (callback == on_result) options.on_result = [&](const auto&) { request(); };
        if (callback == on_progress) options.on_progress = [&](auto...) { request(); };
        if (callback == item_key) {
          options.item_key = [&](const int& item) {
            request();
            return ItemKey{std::int64_t{item}};
          };
        }
        SinglePass source{1000, itself};
        std::atomic<int> started{0};
        const auto fn = [&](int item) {
          ++started;
          if (item >= 500) wait_until([&] { return stop.stop_requested(); });  // callbacks may lag behind
          return item;
        };
        const auto result = pulled ? parallel_map(fn, source, options) : parallel_map(fn, numbers(1000), options);
        CHECK(result.cancelled());
        CHECK(result.successes().size() == static_cast<std::size_t>(started));
        CHECK(calls >= 5);
        if (callback == item_key) CHECK(calls == 5);  // nothing is admitted after it
        if (pulled) CHECK(source.reads <= 5 + 4);
        if (pulled || callback == item_key || is_inline(options)) CHECK(started <= 5 + 4);
        check_placeholders<Cancelled>(result, result.size(), result.size() - static_cast<std::size_t>(started));
      }
    }
  }
}

TEST_CASE("E3 stop may be requested from another thread and running items are awaited") {
  const Watchdog watchdog;
  for (const auto task_timeout : {std::optional<Duration>{}, std::optional<Duration>{1h}}) {
    for (auto options : ways_to_run()) {
      std::stop_source stop;
      options.stop = stop.get_token();
      options.task_timeout = task_timeout;
      const int workers = is_inline(options) ? 1 : 3;
      std::atomic<int> running{0};
      const std::jthread other{[&] {
        wait_until([&] { return running == workers; });
        stop.request_stop();
      }};
      const auto result = parallel_map(
          [&](int item, const Task& task) {
            ++running;
            wait_for_stop(task);
            return item == 0 ? 7 : throw std::out_of_range("my own");
          },
          numbers(20), options);
      CHECK(result.cancelled());
      CHECK(running == workers);
      CHECK(result.at(0) == 7);
      CHECK(count_failed<std::out_of_range>(result) == static_cast<std::size_t>(workers - 1));
      check_placeholders<Cancelled>(result, 20, static_cast<std::size_t>(20 - workers));
    }
  }
}

TEST_CASE("E3 a stop ends the waits of all workers") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  const std::jthread other{[&] {
    clock.wait_for_sleepers(3);
    stop.request_stop();
  }};
  SECTION("for the rate limit") {
    std::atomic<int> calls{0};
    const auto result = parallel_map(
        [&](int item) {
          ++calls;
          return item;
        },
        numbers(20),
        {.workers = 3, .rate_limit = RateLimit{.count = 1, .per = 1h}, .timeout = 100h, .stop = stop.get_token()});
    CHECK(result.cancelled());
    CHECK(calls == 1);
    check_placeholders<Cancelled>(result, 20, 19);
  }
  SECTION("for the next attempt") {
    const auto result = parallel_map([](int) -> int { throw Broken(); }, numbers(20),
                                     {.workers = 3, .retry = Retry{.backoff = 1h}, .stop = stop.get_token()});
    CHECK(result.cancelled());
    CHECK(count_failed<Broken>(result) == 3);
    check_placeholders<Cancelled>(result, 20, 17);
  }
  CHECK(clock.elapsed() == 0s);
}

TEST_CASE("E3 the end of a run lets go of its stop token") {
  std::stop_source stop;
  const auto result = parallel_map(itself, numbers(20), {.workers = 2, .stop = stop.get_token()});
  CHECK(stop.request_stop());  // nobody listens any more
  CHECK(result.ok());
}

TEST_CASE("E3 one token stops calls within calls") {
  const Watchdog watchdog;
  std::stop_source stop;
  const IntOptions options{.workers = 2, .stop = stop.get_token()};
  const auto result = parallel_map(
      [&](int) {
        const auto inner = parallel_map(
            [&](int item) {
              if (item == 3) stop.request_stop();
              if (item > 3) wait_until([&] { return stop.stop_requested(); });
              return item;
            },
            numbers(100), options);
        // Its last item may have come before the news of the stop, which then changes nothing (clause R5).
        return inner.cancelled() || inner.ok() ? 1 : 0;
      },
      numbers(100), options);
  CHECK(result.cancelled());
  CHECK(result.successes().size() >= 1);
  for (const auto& [index, value] : result.successes()) CHECK(value == 1);
}

// The first reason wins ---------------------------------------------------------------------------------------

TEST_CASE("R5 a stop or a timeout that leaves no item unrun changes nothing") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  constexpr int count = 20;
  for (const auto& way : ways_to_run()) {
    for (const bool stops : {true, false}) {
      for (int where = 0; where < 3; ++where) {
        for (const bool pulled : {false, true}) {
          CAPTURE(is_inline(way), stops, where, pulled);
          auto options = way;
          std::stop_source stop;
          if (stops) options.stop = stop.get_token();
          if (!stops) options.timeout = 1h;
          const auto end_the_run = [&] {
            if (stops) stop.request_stop();
            if (!stops) clock.advance(2h);
          };
          std::atomic<int> ended{0};
          options.on_progress = nullptr;
          std::size_t reported = 0;
          if (where == 1) {
            options.on_result = [&](const auto&) {
              if (++reported == count) end_the_run();
            };
          }
          if (where == 2) {
            options.on_progress = [&](std::size_t done, std::size_t total) {
              if (done == total) end_the_run();
            };
          }
          const auto fn = [&](int item) {
            if (where == 0 && item == count - 1) {
              wait_until([&] { return ended == count - 1; });
              end_the_run();
            }
            ++ended;
            return item;
          };
          const auto items = numbers(count);
          const auto result = pulled ? parallel_map(fn, std::list<int>(items.begin(), items.end()), options)
                                     : parallel_map(fn, items, options);
          CHECK(result.ok());
          CHECK(result.status() == RunStatus::completed);
        }
      }
    }
  }
}

TEST_CASE("R5 the first reason to stop wins") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  Gate first_running;
  // The last words of item 0, after it was asked to stop, give other reasons to stop.
  std::function<void()> last_words;
  std::function<void()> first_reason;
  const auto fn = [&](int item, const Task& task) {
    if (item == 0) {
      first_running.open();
      wait_for_stop(task);
      last_words();
    } else if (item == 1) {
      first_running.wait();
      first_reason();
      wait_for_stop(task);
    }
    return item;
  };
  IntOptions options{.workers = 2, .timeout = 1h, .max_errors = 1, .stop = stop.get_token()};
  const auto cancel = [&] { stop.request_stop(); };
  const auto time_out = [&] { clock.advance(1h); };
  const auto abort = [] { throw Broken(); };

  SECTION("stop before timeout") {
    first_reason = cancel;
    last_words = time_out;
    CHECK(parallel_map(fn, numbers(100), options).cancelled());
  }
  SECTION("stop before max_errors") {
    first_reason = cancel;
    last_words = abort;
    const auto result = parallel_map(fn, numbers(100), options);
    CHECK(result.cancelled());
    CHECK(count_failed<Broken>(result) == 1);
    check_placeholders<Cancelled>(result, 100, 98);
  }
  SECTION("timeout before stop") {
    first_reason = time_out;
    last_words = cancel;
    CHECK(parallel_map(fn, numbers(100), options).timed_out());
  }
  SECTION("timeout before max_errors") {
    first_reason = time_out;
    last_words = abort;
    CHECK(parallel_map(fn, numbers(100), options).timed_out());
  }
  SECTION("max_errors before stop") {
    first_reason = abort;
    last_words = cancel;
    CHECK(parallel_map(fn, numbers(100), options).aborted());
  }
  SECTION("max_errors before timeout") {
    first_reason = abort;
    last_words = time_out;
    CHECK(parallel_map(fn, numbers(100), options).aborted());
  }
}

TEST_CASE("R5 a failure that aborts on the last item counts although it also requested a stop") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    std::stop_source stop;
    options.stop = stop.get_token();
    options.max_errors = 1;
    std::atomic<int> ended{0};
    const auto result = parallel_map(
        [&](int item) {
          if (item < 9) {
            ++ended;
            return item;
          }
          wait_until([&] { return ended == 9; });
          stop.request_stop();
          throw Broken();
        },
        numbers(10), options);
    CHECK(result.aborted());
    CHECK(count_failed<Broken>(result) == 1);
    CHECK(result.successes().size() == 9);
  }
}

// task_timeout ------------------------------------------------------------------------------------------------

TEST_CASE("E4 an attempt that takes too long is asked to stop and nobody else is") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  Gate both_running;
  Gate half_an_hour_later;
  Gate second_running;
  Gate slow_one_ended;
  std::atomic<bool> slow_one_running{false};
  std::atomic<bool> other_was_asked{false};
  const auto fn = [&](int item, const Task& task) {
    if (item == 0) {
      slow_one_running = true;
      wait_for_stop(task);
      slow_one_ended.open();
    } else if (item == 1) {
      wait_until([&] { return slow_one_running.load(); });
      both_running.open();
      half_an_hour_later.wait();
    } else if (item == 2) {
      second_running.open();
      slow_one_ended.wait();
      other_was_asked = task.stop.stop_requested();
    }
    return item;
  };
  const std::jthread other{[&] {
    both_running.wait();
    clock.advance(30min);
    half_an_hour_later.open();
    second_running.wait();
    clock.advance(31min);
  }};
  const IntOptions options{.workers = 2, .task_timeout = 1h};
  std::size_t size = 10;
  SECTION("indexed") {}
  SECTION("one that may be the last") { size = 3; }
  const auto result = parallel_map(fn, numbers(static_cast<int>(size)), options);
  CHECK_FALSE(other_was_asked);
  CHECK(result.complete());
  CHECK(result.failures().size() == 1);
  CHECK_THROWS_AS(result.at(0), TaskTimeout);
  CHECK_THROWS_AS(result.at(0), TimeoutError);
  CHECK(result.successes().size() == size - 1);
}

TEST_CASE("E4 late is late whatever the attempt gives") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  for (auto options : ways_to_run()) {
    options.task_timeout = 1h;
    const auto run_one = [&](Duration takes, bool fails) {
      return parallel_map(
          [&](int item, const Task&) {
            clock.advance(takes);
            return fails ? throw Broken() : item;
          },
          std::vector<int>{7}, options);
    };
    CHECK(run_one(30min, false).at(0) == 7);
    CHECK(run_one(1h, false).at(0) == 7);  // not longer
    CHECK_THROWS_AS(run_one(1h, true).at(0), Broken);
    CHECK_THROWS_AS(run_one(1h + 1ns, false).at(0), TaskTimeout);
    CHECK_THROWS_AS(run_one(1h + 1ns, true).at(0), TaskTimeout);
    const auto late = run_one(5h, false);
    CHECK(late.complete());
    CHECK(late.item_results()[0].attempts == 1);
    CHECK(late.item_results()[0].duration == 5h);
  }
}

TEST_CASE("E4 a value that comes too late is destroyed once") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  for (const std::size_t workers : {1U, 2U}) {
    Counts counts;
    {
      const auto result = parallel_map(
          [&](int item, const Task& task) {
            if (task.attempt == 1) clock.advance(2h);
            return Counted{counts, item};
          },
          std::vector<int>{7},
          {.workers = workers,
           .retry = Retry{.attempts = 2, .backoff = 0s, .on = retry_on<TaskTimeout>},
           .task_timeout = 1h});
      CHECK(result.ok());
      CHECK(result.at(0).value == 7);
      CHECK(counts.alive() == 1);
    }
    CHECK(counts.alive() == 0);
  }
}

TEST_CASE("E4 a task timeout is retried with a fresh token") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::atomic<int> attempts{0};
  Gate running;
  std::atomic<bool> second_was_asked{false};
  const auto fn = [&](int item, const Task& task) {
    ++attempts;
    if (task.attempt == 1) {
      running.open();
      wait_for_stop(task);
    } else {
      second_was_asked = task.stop.stop_requested();
    }
    return item;
  };
  const std::jthread other{[&] {
    running.wait();
    clock.advance(2h);
  }};
  IntOptions options{.workers = 2, .task_timeout = 1h};
  SECTION("where it is asked for") {
    options.retry = Retry{.backoff = 0s, .on = retry_on<TaskTimeout>};
    const auto result = parallel_map(fn, std::vector<int>{7}, options);
    CHECK(result.at(0) == 7);
    CHECK(result.item_results()[0].attempts == 2);
    CHECK_FALSE(second_was_asked);
  }
  SECTION("not where other errors are") {
    options.retry = Retry{.backoff = 0s, .on = retry_on<Broken>};
    const auto result = parallel_map(fn, std::vector<int>{7}, options);
    CHECK_THROWS_AS(result.at(0), TaskTimeout);
    CHECK(attempts == 1);
  }
}

TEST_CASE("E4 only attempts count not what they wait for") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result =
      parallel_map([](int item, const Task& task) { return task.attempt < 3 ? throw Broken() : item; }, numbers(5),
                   {.workers = 1,
                    .rate_limit = RateLimit{.count = 1, .per = 10h},
                    .retry = Retry{.attempts = 3, .backoff = 20h, .max_delay = 40h},
                    .task_timeout = 1h});
  CHECK(result.ok());
  CHECK(clock.elapsed() > 5 * 40h);
}

TEST_CASE("E4 in the calling thread attempts are judged when they have ended") {
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  bool asked = false;
  const auto result = parallel_map(
      [&](int item, const Task& task) {
        if (item == 1) clock.advance(2h);
        if (task.stop.stop_requested()) asked = true;
        return item;
      },
      numbers(3), {.executor = Executor::sequential, .task_timeout = 1h});
  CHECK_FALSE(asked);
  CHECK(result.complete());
  CHECK(result.failures().size() == 1);
  CHECK_THROWS_AS(result.at(1), TaskTimeout);

  const auto without_task = parallel_map(
      [&](int item) {
        clock.advance(2h);
        return item;
      },
      numbers(1), {.executor = Executor::sequential, .task_timeout = 1h});
  CHECK_THROWS_AS(without_task.at(0), TaskTimeout);
}

TEST_CASE("E4 a task timeout counts for max_errors") {
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  const auto result = parallel_map(
      [&](int item, const Task&) {
        clock.advance(2h);
        return item;
      },
      numbers(10), {.workers = 1, .task_timeout = 1h, .max_errors = 2});
  CHECK(result.aborted());
  CHECK(count_failed<TaskTimeout>(result) == 2);
  check_placeholders<Aborted>(result, 10, 8);
}

TEST_CASE("E4 a task timeout of zero ends") {
  const Watchdog watchdog;
  const auto result = parallel_map(
      [](int item, const Task& task) {
        wait_for_stop(task);
        return item;
      },
      numbers(20), {.workers = 3, .task_timeout = 0s});
  CHECK(result.complete());
  CHECK(count_failed<TaskTimeout>(result) == 20);
}

TEST_CASE("E4 what the user hangs on task stop is called for every reason to stop") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  std::stop_source stop;
  std::atomic<int> called{0};
  std::atomic<int> running{0};
  const auto fn = [&](int item, const Task& task) {
    std::atomic<bool> asked{false};
    const std::stop_callback on_stop{task.stop, [&] {
                                       ++called;
                                       asked = true;
                                     }};
    if (item == 2) {
      wait_until([&] { return running == 2; });
      throw Broken();
    }
    ++running;
    wait_until([&] { return asked.load(); });
    return item;
  };
  IntOptions options{.workers = 2};
  const auto when_both_run = [&](auto action) {
    return std::jthread{[&, action] {
      wait_until([&] { return running == 2; });
      action();
    }};
  };
  SECTION("task_timeout") {
    options.task_timeout = 1h;
    const auto other = when_both_run([&] { clock.advance(2h); });
    CHECK(count_failed<TaskTimeout>(parallel_map(fn, numbers(2), options)) == 2);
  }
  SECTION("timeout") {
    options.timeout = 1h;
    const auto other = when_both_run([&] { clock.advance(1h); });
    CHECK(parallel_map(fn, numbers(2), options).ok());
  }
  SECTION("stop") {
    options.stop = stop.get_token();
    const auto other = when_both_run([&] { stop.request_stop(); });
    CHECK(parallel_map(fn, numbers(2), options).ok());
  }
  SECTION("max_errors") {
    options.workers = 3;
    options.max_errors = 1;
    CHECK(parallel_map(fn, numbers(3), options).aborted());
  }
  CHECK(called == 2);
}

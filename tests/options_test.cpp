// Options said once and reused, and executors chosen at run time.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Batch;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::Options;
using pyarallel::parallel_map;
using pyarallel::parallel_starmap;
using pyarallel::RateLimit;
using pyarallel::Retry;
using pyarallel::runtime;
using pyarallel::Task;
using pyarallel::TaskTimeout;
using support::ClockOverride;
using support::Crowd;
using support::dawdle;
using support::FakeClock;
using support::SinglePass;
using support::Watchdog;
using IntOptions = pyarallel::MapOptions<int, int>;

namespace {

constexpr auto itself = [](int number) { return number; };
constexpr auto broken = [](int) -> int { throw std::runtime_error("broken"); };

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

bool runs_here(const Options& shared, const IntOptions& overrides = {}) {
  const auto here = std::this_thread::get_id();
  std::atomic<bool> elsewhere{false};
  const auto fn = [&](int item) {
    if (std::this_thread::get_id() != here) elsewhere = true;
    return item;
  };
  CHECK(parallel_map(fn, std::vector<int>{1, 2, 3}, shared, overrides).ok());
  SinglePass source{3, itself};  // with threads, items of such an input never run here
  CHECK(parallel_map(fn, source, shared, overrides).ok());
  return !elsewhere;
}

}  // namespace

TEST_CASE("Options may be empty and are not changed by a call") {
  const Options shared;
  CHECK(parallel_map(itself, numbers(3), shared).ok());
  CHECK(parallel_map(itself, numbers(3), shared, {.workers = 2}).ok());
  CHECK(parallel_map(itself, numbers(3), Options{.workers = 2}).ok());
  CHECK_FALSE(shared.workers.has_value());
}

TEST_CASE("Options workers are inherited and overridden") {
  const Watchdog watchdog;
  const auto most = [](const Options& shared, const IntOptions& overrides) {
    Crowd crowd;
    const auto fn = [&](int item) {
      crowd.enter();
      dawdle();
      crowd.leave();
      return item;
    };
    CHECK(parallel_map(fn, numbers(30), shared, overrides).ok());
    return crowd.most();
  };
  CHECK(most({.workers = 1}, {}) == 1);
  CHECK(most({.workers = 2}, {}) <= 2);
  CHECK(most({.workers = 8}, {.workers = 1}) == 1);
  CHECK(runs_here({.workers = 1}));
  CHECK_FALSE(runs_here({.workers = 1}, {.workers = 2}));
}

TEST_CASE("Options executor is inherited and overridden") {
  const Watchdog watchdog;
  CHECK(runs_here({.executor = Executor::sequential}));
  CHECK_FALSE(runs_here({.workers = 2, .executor = Executor::sequential}, {.executor = Executor::thread}));
  CHECK(runs_here({.workers = 2, .executor = Executor::thread}, {.executor = Executor::sequential}));
  CHECK(runs_here({.workers = 2}, {.executor = runtime(Executor::sequential)}));
  CHECK_FALSE(runs_here({.workers = 2}));
}

TEST_CASE("Options rate_limit is inherited and overridden") {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto time_of = [&](const Options& shared, const IntOptions& overrides) {
    const auto before = clock.elapsed();
    CHECK(parallel_map(itself, numbers(5), shared, overrides).ok());
    return clock.elapsed() - before;
  };
  const RateLimit hourly{.count = 1, .per = 1h};
  CHECK(time_of({.workers = 1, .rate_limit = hourly}, {}) == 4h);
  CHECK(time_of({.workers = 1, .rate_limit = hourly}, {.rate_limit = RateLimit{.count = 1, .per = 2h}}) == 8h);
  CHECK(time_of({.workers = 1}, {}) == 0h);
  CHECK(time_of({.workers = 1, .rate_limit = 0.5}, {}) == 8s);
  const pyarallel::Limiter limiter{hourly};
  const Options shared{.workers = 1, .rate_limit = limiter};
  CHECK(time_of(shared, {}) == 4h);
  CHECK(time_of(shared, {}) == 5h);  // one budget for both calls
}

TEST_CASE("Options retry is inherited and overridden") {
  const auto attempts_with = [](const Options& shared, const IntOptions& overrides) {
    return parallel_map(broken, numbers(1), shared, overrides).item_results()[0].attempts;
  };
  const Options shared{.workers = 1, .retry = Retry{.attempts = 4, .backoff = 0s}};
  CHECK(attempts_with(shared, {}) == 4);
  CHECK(attempts_with(shared, {.retry = Retry{.attempts = 2, .backoff = 0s}}) == 2);
  CHECK(attempts_with({.workers = 1}, {}) == 1);
}

TEST_CASE("Options batch is inherited and overridden") {
  const Watchdog watchdog;
  const auto window_of = [](const Options& shared, const IntOptions& overrides) {
    std::atomic<int> ended{0};
    int most = 0;
    SinglePass source{100, itself};
    source.on_read = [&](int number) { most = std::max(most, number + 1 - ended); };
    const auto fn = [&](int item) {
      dawdle();
      ++ended;
      return item;
    };
    CHECK(parallel_map(fn, source, shared, overrides).ok());
    return most;
  };
  CHECK(window_of({.workers = 2, .batch = Batch{.size = 2}}, {}) <= 2);
  CHECK(window_of({.workers = 2, .batch = Batch{.size = 50}}, {.batch = Batch{.size = 2}}) <= 2);
}

TEST_CASE("Options timeout is inherited and overridden") {
  const Options shared{.workers = 1, .timeout = 0s};
  CHECK(parallel_map(itself, numbers(3), shared).timed_out());
  CHECK(parallel_map(itself, numbers(3), shared, {.timeout = 1h}).ok());
  CHECK(parallel_map(itself, numbers(3), Options{.workers = 1, .timeout = 1h}, {.timeout = 0s}).timed_out());
}

TEST_CASE("Options task_timeout is inherited and overridden") {
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  const auto fn = [&](int item, const Task&) {
    clock.advance(2h);
    return item;
  };
  const Options shared{.workers = 1, .task_timeout = 1h};
  CHECK_THROWS_AS(parallel_map(fn, numbers(1), shared).at(0), TaskTimeout);
  CHECK(parallel_map(fn, numbers(1), shared, {.task_timeout = 3h}).ok());
  CHECK_THROWS_AS(parallel_map(itself, numbers(1), shared), std::invalid_argument);  // it takes no Task
}

TEST_CASE("Options max_errors is inherited and overridden") {
  const Options shared{.workers = 1, .max_errors = 2};
  const auto failed = [](const auto& result) {
    CHECK(result.aborted());
    try {
      result.throw_on_failure();
    } catch (const pyarallel::ExceptionGroup& group) {
      return group.failures().size();
    }
    return std::size_t{0};
  };
  CHECK(failed(parallel_map(broken, numbers(10), shared)) == 2);
  CHECK(failed(parallel_map(broken, numbers(10), shared, {.max_errors = 5})) == 5);
  CHECK(parallel_map(broken, numbers(10), Options{.workers = 1}).complete());
}

TEST_CASE("Options stop is inherited and overridden") {
  std::stop_source stopped;
  stopped.request_stop();
  const std::stop_source other;
  const Options shared{.workers = 1, .stop = stopped.get_token()};
  CHECK(parallel_map(itself, numbers(3), shared).cancelled());
  CHECK(parallel_map(itself, numbers(3), shared, {.stop = other.get_token()}).ok());
}

TEST_CASE("Options on_progress is inherited and overridden") {
  int shared_calls = 0;
  int override_calls = 0;
  const Options shared{.workers = 1, .on_progress = [&](auto...) { ++shared_calls; }};
  CHECK(parallel_map(itself, numbers(3), shared).ok());
  CHECK(shared_calls == 3);
  CHECK(parallel_map(itself, numbers(3), shared, {.on_progress = [&](auto...) { ++override_calls; }}).ok());
  CHECK(shared_calls == 3);
  CHECK(override_calls == 3);
}

TEST_CASE("Options worker_init is inherited and overridden") {
  int shared_calls = 0;
  int override_calls = 0;
  const Options shared{.workers = 1, .worker_init = [&] { ++shared_calls; }};
  CHECK(parallel_map(itself, numbers(3), shared).ok());
  CHECK(shared_calls == 1);
  CHECK(parallel_map(itself, numbers(3), shared, {.worker_init = [&] { ++override_calls; }}).ok());
  CHECK(shared_calls == 1);
  CHECK(override_calls == 1);
}

TEST_CASE("Options for processes only are inherited and overridden") {
  // With threads, that they are there shows in being refused; sequential runs ignore them.
  const Options tasks{.max_tasks_per_worker = 5};
  const Options memory{.worker_memory_limit = 1U << 30};
  for (const Options& shared : {tasks, memory}) {
    CHECK_THROWS_AS(parallel_map(itself, numbers(3), shared), std::invalid_argument);
    CHECK(parallel_map(itself, numbers(3), shared, {.executor = Executor::sequential}).ok());
  }
  const IntOptions wrong{.executor = Executor::sequential, .max_tasks_per_worker = 0};
  CHECK_THROWS_AS(parallel_map(itself, numbers(3), tasks, wrong), std::invalid_argument);
}

TEST_CASE("Options that are bad throw where they are used") {
  CHECK_THROWS_AS(parallel_map(itself, numbers(3), Options{.workers = 0}), std::invalid_argument);
  CHECK(parallel_map(itself, numbers(3), Options{.workers = 0}, {.workers = 1}).ok());
  CHECK_THROWS_AS(parallel_map(itself, numbers(3), Options{.timeout = -1s}), std::invalid_argument);
  CHECK_THROWS_AS(parallel_map(itself, numbers(3), Options{.workers = 1}, {.max_errors = 0}), std::invalid_argument);
}

TEST_CASE("Options serve inputs and functions of any type") {
  const Watchdog watchdog;
  Options shared{.workers = 2, .retry = Retry{.attempts = 2, .backoff = 0s}};
  CHECK(parallel_map(itself, numbers(3), shared).ok());
  const std::vector<std::string> words{"a", "bc"};
  const auto sizes = parallel_map(&std::string::size, words, shared,
                                  {.item_key = [](const std::string& word) { return pyarallel::ItemKey{word}; }});
  CHECK(sizes[1] == 2);
  CHECK(sizes.item_results()[1].key == pyarallel::ItemKey{"bc"});
  parallel_map([](int) {}, numbers(3), shared).values();
  const Options& constant = shared;
  CHECK(parallel_map(itself, numbers(3), constant).ok());
}

TEST_CASE("C10 an executor chosen at run time may be sequential") {
  const auto here = std::this_thread::get_id();
  std::vector<int> order;
  const auto fn = [&](int item) {
    CHECK(std::this_thread::get_id() == here);
    order.push_back(item);
    return item;
  };
  CHECK(parallel_map(fn, numbers(10), {.workers = 4, .executor = runtime(Executor::sequential)}).ok());
  CHECK(order == numbers(10));
  CHECK(parallel_starmap([](int a, int b) { return a + b; }, std::vector<std::pair<int, int>>{{1, 2}},
                         {.executor = runtime(Executor::sequential)})[0] == 3);
  CHECK(parallel_map(itself, numbers(10), {.workers = 2, .executor = runtime(Executor::thread)}).ok());
}

TEST_CASE("C10 an executor chosen at run time may be processes") {
  const auto worker = [](int) { return getpid(); };
  const pyarallel::MapOptions<int, pid_t> options{.workers = 2, .executor = runtime(Executor::process)};
  const auto in_workers = [&](const auto& result) { return std::ranges::count(result.values(), getpid()) == 0; };
  CHECK(in_workers(parallel_map(worker, numbers(10), options)));
  CHECK(in_workers(parallel_map(worker, numbers(10), Options{.workers = 2, .executor = Executor::process})));
  CHECK_FALSE(in_workers(parallel_map(worker, numbers(10), Options{.executor = Executor::process},
                                      pyarallel::MapOptions<int, pid_t>{.executor = Executor::thread})));
}

// Ending early on forked workers: as on threads, and what must end is killed.
#include "support/processes.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

// E: ending early ------------------------------------------------------------------------------------

TEST_CASE("E1 with processes nothing is admitted after the last failure that max_errors allows") {
  const Test test;
  for_each_kind_of_input(1000, [](const auto& items) {
    for (const bool by_crash : {false, true}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) -> int {
        ++(*calls)[item];
        if (by_crash) crash();
        throw Boom(std::to_string(item));
      };
      const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .max_errors = 3});
      CHECK(result.aborted());
      CHECK_FALSE(result.ok());
      CHECK(result.size() <= 1000);
      CHECK_THROWS_AS(result.values(), Aborted);
      int real = 0;
      for (const auto& [index, error] : result.failures()) {
        if (error.template is<Aborted>()) {
          CHECK((*calls)[index] == 0);
        } else {
          ++real;
          CHECK((*calls)[index] == 1);
          CHECK((by_crash ? error.template is<WorkerCrashed>() : error.what() == std::to_string(index)));
        }
      }
      CHECK(real >= 3);
      CHECK(real <= 3 - 1 + 2 * 2);
      CHECK(calls->total() == real);
      CHECK(result.failures().size() == result.size());
    }
  });
}

TEST_CASE("E1 with processes running items are asked to stop and keep their outcome") {
  const Test test;
  for_each_kind_of_input(50, [](const auto& items) {
    for (const bool by_crash : {false, true}) {
      const Shared<std::atomic<int>> running;
      const auto fn = [&](int item, const Task& task) {
        if (item == 2) {
          wait_until([&] { return *running == 2; });
          if (by_crash) crash();
          throw Boom("the first failure");
        }
        ++*running;
        wait_for_stop(task);
        if (item == 1) throw std::out_of_range("its own");
        return item + 100;
      };
      const auto result = parallel_map(
          fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.chunk = 1}, .max_errors = 1});
      CHECK(result.aborted());
      CHECK(result.at(0) == 100);
      CHECK(error_of(result, 1).template is<std::out_of_range>());
      CHECK(error_of(result, 2).template is<Aborted>() == false);
      for (std::size_t index = 3; index < result.size(); ++index) CHECK(error_of(result, index).template is<Aborted>());
    }
  });
}

TEST_CASE("E1 with processes failures are counted after retries") {
  const Test test;
  const auto fn = [](int item, const Task& task) { return task.attempt == 2 ? item : throw Boom("once"); };
  const auto result = parallel_map(
      fn, numbers(20),
      {.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 2, .backoff = 0s}, .max_errors = 1});
  CHECK(result.ok());
  const auto some = parallel_map([](int item) { return item % 5 == 0 ? throw Boom("fifth") : item; }, numbers(20),
                                 {.workers = 2, .executor = Executor::process, .max_errors = 5});
  CHECK(some.complete());
  CHECK(some.failures().size() == 4);
}

namespace {

/// The first `quick` items have values, the next ones were killed, one for each worker, and the rest never ran.
template <class Truncation, class R>
void check_cut(const MapResult<R>& result, std::size_t quick, std::size_t killed) {
  REQUIRE(result.size() >= quick + killed);
  const auto items = result.item_results();
  std::size_t interrupted = 0;
  for (const auto& item : items) {
    if (item.index < quick) {
      CHECK(item.ok());
      CHECK(item.attempts == 1);
      continue;
    }
    REQUIRE_FALSE(item.ok());
    CHECK(item.error().template is<Truncation>());
    CHECK_FALSE(item.error().template is<TaskTimeout>());
    CHECK(item.attempts <= 1);
    CHECK((item.duration > Duration::zero()) == (item.attempts == 1));
    if (item.attempts == 1) ++interrupted;
  }
  CHECK(interrupted == killed);
  CHECK_THROWS_AS(result.values(), Truncation);
}

}  // namespace

TEST_CASE("E2 a timeout kills items that never look and what has finished keeps its value") {
  const Test test;
  for_each_kind_of_input(200, [](const auto& items) {
    const auto check = [&](MapOptions<int, std::string> options, bool one_by_one) {
      options.timeout = 400ms;
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item >= 100) hang();
        return std::to_string(item);
      };
      const auto begin = SteadyClock::now();
      const auto result = parallel_map(fn, items, options);
      const auto took = SteadyClock::now() - begin;
      CHECK(took >= 400ms);
      CHECK(took < 5s);
      CHECK(result.timed_out());
      // A worker that takes several items at once may have begun behind the first that hangs.
      if (one_by_one) check_cut<TimeoutError>(result, 100, *options.workers);
      for (std::size_t item = 0; item < 100; ++item) CHECK(result.at(item) == std::to_string(item));
      int ran = 0;
      for (const auto& item : result.item_results()) ran += item.attempts;
      CHECK(ran == calls->total());
    };
    check({.workers = 1, .executor = Executor::process}, true);
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 200, .chunk = 1}}, true);
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}}, true);
    check({.workers = 2, .executor = Executor::process}, true);
  });
}

TEST_CASE("E2 with processes values that are made in place survive a timeout") {
  const Test test;
  const auto fn = [](int item) {
    if (item == 5000) hang();
    return item * 3L;
  };
  const auto result =
      parallel_map(fn, numbers(10'000), {.workers = 1, .executor = Executor::process, .timeout = 400ms});
  check_cut<TimeoutError>(result, 5000, 1);
  CHECK(result.at(4999) == 4999 * 3L);
  CHECK(error_of(result, 5000).what() != error_of(result, 5001).what());  // it was killed, the other never ran
}

TEST_CASE("E2 with processes a timeout of zero runs nothing") {
  const Test test;
  for (const bool keyed : {false, true}) {
    const Shared<std::atomic<int>> calls;
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .timeout = 0s};
    options.on_result = [&](const auto&) { ++*calls; };
    options.on_progress = [&](auto...) { ++*calls; };
    options.worker_init = [&] { ++*calls; };
    if (keyed) {
      options.item_key = [&](int) {
        ++*calls;
        return ItemKey{};
      };
    }
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    const auto check = [](const auto& result, std::size_t size) {
      CHECK(result.timed_out());
      CHECK(result.size() == size);
      CHECK(result.failures().size() == size);
      for (const auto& item : result.item_results()) {
        CHECK(item.attempts == 0);
        CHECK(item.duration == Duration::zero());
        CHECK(item.error().template is<TimeoutError>());
      }
    };
    check(parallel_map(fn, numbers(20), options), 20);
    check(parallel_map(fn, std::list<int>{1, 2, 3}, options), 3);
    SinglePass source{20, itself};
    check(parallel_map(fn, source, options), 0);
    CHECK(source.reads == 0);
    CHECK(*calls == 0);
  }
}

TEST_CASE("E2 E3 a timeout or a stop also kills what an aborted run waits for") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    for (const bool by_timeout : {false, true}) {
      const Shared<Gate> hangs;
      std::stop_source stop;
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .max_errors = 1};
      options.batch = Batch{.chunk = 1};
      if (by_timeout) {
        options.timeout = 300ms;
      } else {
        options.stop = stop.get_token();
        options.on_result = [&](const auto&) { stop.request_stop(); };
      }
      const auto fn = [&](int item) -> int {
        if (item == 0) {
          hangs->wait();
          throw Boom("the only one");
        }
        hangs->open();
        hang();
      };
      const auto result = parallel_map(fn, items, options);
      CHECK(result.aborted());  // the first reason stands (R5)
      REQUIRE(result.size() >= 2);
      CHECK(error_of(result, 0).what() == "the only one");
      CHECK(error_of(result, 1).template is<Aborted>());
      CHECK(attempts_of(result)[1] == 1);
    }
  });
}

TEST_CASE("E3 with processes a token that is stopped already runs nothing") {
  const Test test;
  std::stop_source stop;
  stop.request_stop();
  const Shared<std::atomic<int>> calls;
  const auto fn = [&](int item) {
    ++*calls;
    return item;
  };
  const MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
  for (const auto& result : {parallel_map(fn, numbers(5), options), parallel_map(fn, std::list<int>(5), options)}) {
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(result.failures().size() == 5);
    CHECK(attempts_of(result) == Ints(5, 0));
    CHECK_THROWS_AS(result.values(), Cancelled);
  }
  SinglePass source{5, itself};
  CHECK(parallel_map(fn, source, options).size() == 0);
  CHECK(source.reads == 0);
  CHECK(*calls == 0);
}

TEST_CASE("E3 a stop from another thread kills items that never look") {
  if (!may_fork_while_threads_run) return;
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    for (const bool policy : {false, true}) {
      const Shared<std::atomic<int>> hanging;
      std::stop_source stop;
      Meanwhile stopper{[&] {
        wait_until([&] { return *hanging == 2; });
        stop.request_stop();
      }};
      const auto fn = [&](int item) {
        if (item >= 6) {
          ++*hanging;
          hang();
        }
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
      if (policy) options.retry = Retry{};
      const auto result = parallel_map(fn, items, options);
      stopper.join();
      CHECK(result.status() == RunStatus::cancelled);
      check_cut<Cancelled>(result, 6, 2);
    }
  });
}

TEST_CASE("E3 a stop from a callback kills items that never look") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<Gate> hangs;
    std::stop_source stop;
    const auto fn = [&](int item) {
      if (item == 0) hangs->wait();
      if (item == 0) return 0;
      hangs->open();
      hang();
    };
    const auto result = parallel_map(
        fn, items,
        {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto& item) {
           if (item.index == 0) stop.request_stop();
         }});
    CHECK(result.status() == RunStatus::cancelled);
    REQUIRE(result.size() >= 2);
    CHECK(result.at(0) == 0);
    CHECK(attempts_of(result)[1] == 1);
    CHECK(error_of(result, 1).template is<Cancelled>());
  });
}

TEST_CASE("E3 with processes stop may be requested from the function") {
  const Test test;
  for_each_kind_of_input(1000, [](const auto& items) {
    for (const bool policy : {false, true}) {
      std::stop_source stop;
      const auto fn = [&](int item) {
        if (item == 5) stop.request_stop();
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .stop = stop.get_token()};
      options.batch = Batch{.chunk = 1};
      if (policy) options.retry = Retry{};
      const auto result = parallel_map(fn, items, options);
      CHECK(result.status() == RunStatus::cancelled);
      CHECK(result.ok_values().size() < 1000);
      for (const auto& item : result.item_results()) {
        if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
        if (!item.ok()) CHECK(item.error().template is<Cancelled>());
      }
    }
  });
}

TEST_CASE("E4 with processes an attempt that takes too long is killed and nobody else is harmed") {
  const Test test;
  for_each_kind_of_input(30, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item) {  // takes no Task
      ++(*calls)[item];
      if (item % 10 == 4) hang();
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .task_timeout = 100ms});
    CHECK(result.complete());
    CHECK(calls->first(30) == Ints(30, 1));
    CHECK(result.failures().size() == 3);
    for (const auto& item : result.item_results()) {
      CHECK(item.attempts == 1);
      if (item.index % 10 != 4) {
        CHECK(item.value() == static_cast<int>(item.index));
      } else {
        CHECK(item.error().template is<TaskTimeout>());
        CHECK(item.duration >= 100ms);
        CHECK(item.duration < 10s);
      }
    }
  });
}

TEST_CASE("E4 with processes late is late and a value that comes late is not heard") {
  const Test test;
  for_each_kind_of_input(100, [](const auto& items) {
    constexpr auto limit = 2ms;
    const auto fn = [&](int item) {
      const auto end = SteadyClock::now() + limit - 50us + item * 1us;
      while (SteadyClock::now() < end) {
      }
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .task_timeout = limit});
    CHECK(result.complete());
    REQUIRE(result.size() == 100);
    for (const auto& item : result.item_results()) {
      CHECK(item.attempts == 1);
      CHECK(item.ok() == (item.duration <= limit));
      if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
      if (!item.ok()) CHECK(item.error().template is<TaskTimeout>());
    }
    for (std::size_t late = 50; late < 100; ++late) CHECK(failed(result, late));
  });
}

TEST_CASE("E4 with processes a task timeout counts for max_errors") {
  const Test test;
  const auto fn = [](int) -> int { hang(); };
  const auto result = parallel_map(
      fn, numbers(100), {.workers = 2, .executor = Executor::process, .task_timeout = 50ms, .max_errors = 2});
  CHECK(result.aborted());
  CHECK(error_of(result, 0).is<TaskTimeout>());
  CHECK(error_of(result, 99).is<Aborted>());
}

// Retry, rate limit and window on forked workers: as on threads, and what only processes have.
#include "support/processes.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

// T: retry -------------------------------------------------------------------------------------------

TEST_CASE("T1 with processes only the failing item is retried up to its attempts") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      const int call = ++(*calls)[item];
      if (call != task.attempt) throw std::logic_error("attempt " + std::to_string(task.attempt));
      if (item % 10 == 3 && call < 3) throw std::out_of_range("too early");
      if (item % 10 == 7) throw std::out_of_range(std::to_string(item) + " at attempt " + std::to_string(call));
      return item * 2;
    };
    const auto result = parallel_map(
        fn, items, {.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 4, .backoff = 0s}});
    CHECK(result.complete());
    const Ints attempts = attempts_of(result);
    for (int item = 0; item < 40; ++item) {
      const auto index = static_cast<std::size_t>(item);
      CHECK(attempts[index] == (item % 10 == 3 ? 3 : item % 10 == 7 ? 4 : 1));
      CHECK((*calls)[item] == attempts[index]);
      if (item % 10 == 7) {
        CHECK(error_of(result, index).template is<std::out_of_range>());
        CHECK(error_of(result, index).what() == std::to_string(item) + " at attempt 4");
      } else {
        CHECK(result.at(index) == item * 2);
      }
    }
    CHECK(result.failures().size() == 4);
  });
}

TEST_CASE("T1 with processes a retry happens in place before the next item") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    struct Call {
      int item;
      int attempt;
      pid_t process;
      bool operator==(const Call&) const = default;
    };
    const Shared<Log<Call>> calls;
    const auto fn = [&](int item, const Task& task) {
      calls->add({item, task.attempt, getpid()});
      if (item % 2 == 1) throw Boom("again");
      return item;
    };
    const Retry retry{.attempts = 3, .backoff = 1ms};
    CHECK_FALSE(parallel_map(fn, items, {.workers = 1, .executor = Executor::process, .retry = retry}).ok());
    const auto all = calls->all();
    REQUIRE(all.size() == 8);
    const pid_t worker = all[0].process;
    CHECK(worker != test_process);
    CHECK(all == std::vector<Call>{{0, 1, worker},
                                   {1, 1, worker},
                                   {1, 2, worker},
                                   {1, 3, worker},
                                   {2, 1, worker},
                                   {3, 1, worker},
                                   {3, 2, worker},
                                   {3, 3, worker}});
  });
}

TEST_CASE("T1 with processes an item in its backoff does not hold back the others") {
  const Test test;
  for_each_kind_of_input(10, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    // Item 0 fails until all others are done.
    const auto fn = [&](int item) {
      if (item == 0 && *done < 9) throw Boom("not yet");
      if (item > 0) ++*done;
      return item;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 100'000, .backoff = 100us, .max_delay = 1ms},
                                      .batch = Batch{.size = 10}});
    CHECK(result.ok());
  });
}

TEST_CASE("T2 with processes predicates see what they captured and the exception itself") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    struct Asked {
      std::atomic<int> retry_if{0};
      std::atomic<int> wait_from{0};
    };
    const Shared<Asked> asked;
    const std::string again = "try again";
    const auto owned = std::make_unique<int>(4);
    Retry retry{.attempts = 3, .backoff = 1h};
    retry.on = retry_on<std::system_error, Boom>;
    retry.retry_if = [&asked, again](const Boom& error) {
      ++asked->retry_if;
      return error.what() == again;
    };
    retry.wait_from = [&asked, &owned](const Error& error) {
      ++asked->wait_from;
      return error.is<std::system_error>() || *owned != 4 ? std::optional<Duration>{} : Duration{1};
    };
    const auto fn = [&](int item) -> int {
      if (item == 1) throw std::runtime_error(again);  // of no type in `on`
      if (item == 2) throw Boom("leave it");           // retry_if says no
      if (item == 3) throw Boom(again);                // three attempts
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    CHECK(attempts_of(result) == Ints{1, 1, 1, 3, 1, 1});
    CHECK(result.failures().size() == 3);
    CHECK(asked->retry_if == 4);
    CHECK(asked->wait_from == 3);
  });
}

namespace {

/// The error and those nested in it.
std::vector<Error> chain_of(const Error& error) {
  std::vector<Error> all{error};
  try {
    error.rethrow();
  } catch (const std::exception& e) {
    try {
      std::rethrow_if_nested(e);
    } catch (...) {
      for (const Error& inner : chain_of(Error{std::current_exception()})) all.push_back(inner);
    }
  } catch (...) {
  }
  return all;
}

}  // namespace

TEST_CASE("T2 with processes a predicate that throws ends the item and both errors are found") {
  const Test test;
  for (const bool in_wait_from : {false, true}) {
    for (const bool by_crash : {false, true}) {
      const Shared<Tally> calls;
      Retry retry{.attempts = 5, .backoff = 0s};
      if (in_wait_from) {
        retry.wait_from = [](const Error&) -> std::optional<Duration> { throw std::domain_error("asked too much"); };
      } else {
        retry.retry_if = [](const Error&) -> bool { throw std::domain_error("asked too much"); };
      }
      const auto fn = [&](int item) {
        ++(*calls)[item];
        if (item == 1 && by_crash) crash();
        if (item == 1) throw std::out_of_range("the original");
        return item;
      };
      const auto result = parallel_map(fn, numbers(4), {.workers = 2, .executor = Executor::process, .retry = retry});
      CHECK(calls->first(4) == Ints{1, 1, 1, 1});
      CHECK(result.failures().size() == 1);
      CHECK(attempts_of(result) == Ints{1, 1, 1, 1});
      const auto errors = chain_of(error_of(result, 1));
      CHECK(std::ranges::any_of(errors, [](const Error& e) { return says(e.what(), "asked too much"); }));
      CHECK(std::ranges::any_of(errors, [](const Error& e) { return e.is<std::domain_error>(); }));
      CHECK(std::ranges::any_of(errors, [&](const Error& e) {
        return by_crash ? e.is<WorkerCrashed>() : e.is<std::out_of_range>() && says(e.what(), "the original");
      }));
    }
  }
}

TEST_CASE("T5 the wait that a server asks of one worker holds the others") {
  const Test test;
  constexpr auto wait = 400ms;
  for (const int attempts : {1, 2}) {  // also after the last attempt
    const Shared<std::atomic<SteadyClock::rep>> asked_at;
    const Shared<Log<std::pair<int, SteadyClock::rep>>> starts;
    const Shared<Gate> one_runs;
    Limiter limiter{RateLimit{1e6, 1s, 100}};
    Retry retry{.attempts = attempts};
    retry.wait_from = [&](const Boom&) {
      *asked_at = SteadyClock::now().time_since_epoch().count();
      return std::optional<Duration>{wait};
    };
    const auto fn = [&](int item, const Task& task) {
      starts->add({item, SteadyClock::now().time_since_epoch().count()});
      if (item == 0 && task.attempt == 1) {
        one_runs->wait();
        throw Boom("wait");
      }
      if (item == 1) {
        one_runs->open();
        // Until the pause is there (or so late that it is over).
        wait_until([&] {
          const SteadyClock::time_point asked{SteadyClock::duration{*asked_at}};
          return *asked_at != 0 && (limiter.wait_time() > 1ms || SteadyClock::now() > asked + wait);
        });
      }
      return item;
    };
    const auto result = parallel_map(
        fn, numbers(20), {.workers = 2, .executor = Executor::process, .rate_limit = limiter, .retry = retry});
    CHECK(result.failures().size() == (attempts == 1 ? 1 : 0));
    REQUIRE(*asked_at != 0);
    const SteadyClock::rep due = *asked_at + SteadyClock::duration{wait}.count();
    int held = 0;
    for (const auto& [item, start] : starts->all()) {
      if (start < *asked_at) continue;
      ++held;
      CHECK(start >= due);
    }
    CHECK(held == (attempts == 1 ? 18 : 19));
  }
}

TEST_CASE("T5 a crash is retried and attempts are counted across it") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      ++(*calls)[item];
      if ((item == 0 || item == 13) && task.attempt < 3) crash();
      if (item == 7) crash();
      return item * 10 + task.attempt;
    };
    const Retry retry{.attempts = 4, .backoff = 1ms, .on = retry_on<WorkerCrashed>};
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    const Ints attempts = attempts_of(result);
    for (int item = 0; item < 20; ++item) {
      const int expected = item == 0 || item == 13 ? 3 : item == 7 ? 4 : 1;
      CHECK(attempts[static_cast<std::size_t>(item)] == expected);
      CHECK((*calls)[item] == expected);
      if (item != 7) CHECK(result.at(static_cast<std::size_t>(item)) == item * 10 + expected);
    }
    REQUIRE(result.failures().size() == 1);
    const auto* crashed = error_of(result, 7).template get_if<WorkerCrashed>();
    REQUIRE(crashed != nullptr);
    CHECK(crashed->signal() == SIGKILL);
  });
}

TEST_CASE("T5 a task timeout is retried and so is every mix of failures") {
  const Test test;
  for_each_kind_of_input(8, [](const auto& items) {
    const Shared<Tally> calls;
    const auto fn = [&](int item, const Task& task) {
      ++(*calls)[item];
      if (item == 2 && task.attempt == 1) hang();
      if (item == 5) {
        if (task.attempt == 1) throw Boom("first");
        if (task.attempt == 2) hang();
        if (task.attempt == 3) crash();
        if (task.attempt == 4) throw 42;
      }
      return item * 10 + task.attempt;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 5, .backoff = 0s},
                                      .task_timeout = 200ms});
    REQUIRE(result.ok());
    CHECK(list_of(result) == Ints{1, 11, 22, 31, 41, 55, 61, 71});
    CHECK(attempts_of(result) == Ints{1, 1, 2, 1, 1, 5, 1, 1});
    CHECK(calls->first(8) == Ints{1, 1, 2, 1, 1, 5, 1, 1});
  });
}

TEST_CASE("T5 the filter tells crashes and task timeouts from other failures") {
  const Test test;
  const auto fn = [](int item, const Task&) -> int {
    if (item == 0) throw Boom("thrown");
    if (item == 1) crash();
    if (item == 2) hang();
    return item;
  };
  const auto attempts = [&](ErrorFilter on) {
    const Retry retry{.attempts = 2, .backoff = 0s, .on = std::move(on)};
    return attempts_of(parallel_map(
        fn, numbers(4), {.workers = 2, .executor = Executor::process, .retry = retry, .task_timeout = 100ms}));
  };
  CHECK(attempts(retry_on<WorkerCrashed>) == Ints{1, 2, 1, 1});
  CHECK(attempts(retry_on<TaskTimeout>) == Ints{1, 1, 2, 1});
  CHECK(attempts(retry_on<WorkerCrashed, Boom>) == Ints{2, 2, 1, 1});  // it is asked where the Boom is still one
  CHECK(attempts({}) == Ints{2, 2, 2, 1});
}

TEST_CASE("T5 retry_if with captures is asked about crashes and task timeouts") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    int asked = 0;  // whoever asks about a crash, it is not the worker that crashed
    const int wanted = items.size() == 4 ? SIGUSR1 : 0;
    Retry retry{.attempts = 3, .backoff = 0s};
    retry.retry_if = [&asked, wanted](const WorkerCrashed& error) {
      ++asked;
      return error.signal() == wanted;
    };
    const auto fn = [](int item) {
      if (item == 1) raise(SIGUSR1);
      if (item == 2) raise(SIGUSR2);
      return item;
    };
    const auto result = parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .retry = retry});
    CHECK(attempts_of(result) == Ints{1, 3, 1, 1});
    CHECK(asked == 4);
    CHECK(result.failures().size() == 2);
  });
}

TEST_CASE("T4 with processes a stop ends the backoff at once and the last real error stays") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    for_each_kind_of_input(3, [&](const auto& items) {
      const Shared<Gate> failed_once;
      std::stop_source stop;
      Retry retry{.attempts = 5, .backoff = 1h};
      retry.retry_if = [&](const Error&) {
        failed_once->open();
        return true;
      };
      const auto fn = [&](int item) {
        if (item == 0 && by_crash) crash();
        if (item == 0) throw std::out_of_range("the real one");
        if (item == 1) failed_once->wait();
        return item;
      };
      const auto result = parallel_map(fn, items,
                                       {.workers = 2,
                                        .executor = Executor::process,
                                        .retry = retry,
                                        .stop = stop.get_token(),
                                        .on_result = [&](const auto& item) {
                                          if (item.index == 1) stop.request_stop();
                                        }});
      CHECK(attempts_of(result)[0] == 1);
      CHECK(result.at(1) == 1);
      if (by_crash) {
        CHECK(error_of(result, 0).template is<WorkerCrashed>());
      } else {
        CHECK(error_of(result, 0).template is<std::out_of_range>());
        CHECK(error_of(result, 0).what() == "the real one");
      }
    });
  }
}

TEST_CASE("T4 with processes a timeout ends the backoffs of all workers and their real errors stay") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    const auto fn = [&](int item) -> int {
      if (by_crash) crash();
      throw std::out_of_range("item " + std::to_string(item));
    };
    const auto result = parallel_map(
        fn, numbers(4),
        {.workers = 4, .executor = Executor::process, .retry = Retry{.attempts = 2, .backoff = 1h}, .timeout = 500ms});
    CHECK(result.complete());  // there is no item that never ran (R5)
    CHECK_FALSE(result.ok());
    CHECK(attempts_of(result) == Ints{1, 1, 1, 1});
    REQUIRE(result.failures().size() == 4);
    for (const auto& [index, error] : result.failures()) {
      CHECK((by_crash ? error.is<WorkerCrashed>() : error.what() == "item " + std::to_string(index)));
    }
  }
}

TEST_CASE("T4 with processes an abort ends the backoff and the last real error stays") {
  const Test test;
  for (const bool by_crash : {false, true}) {
    const Shared<Gate> failed_once;
    Retry retry{.attempts = 2, .backoff = 1h};
    retry.retry_if = [&](const Error& error) {
      if (error.is<std::logic_error>()) return false;
      failed_once->open();
      return true;
    };
    const auto fn = [&](int item) {
      if (item == 0 && by_crash) crash();
      if (item == 0) throw Boom("the real one");
      failed_once->wait();
      if (item == 1) throw std::logic_error("the last that max_errors allows");
      return item;
    };
    const auto result =
        parallel_map(fn, numbers(2), {.workers = 2, .executor = Executor::process, .retry = retry, .max_errors = 1});
    CHECK(result.aborted());
    CHECK(attempts_of(result) == Ints{1, 1});
    CHECK(error_of(result, 1).is<std::logic_error>());
    CHECK((by_crash ? error_of(result, 0).is<WorkerCrashed>() : error_of(result, 0).what() == "the real one"));
  }
}

// L: rate limit --------------------------------------------------------------------------------------

TEST_CASE("L1 L3 workers and the parent draw from one budget and every attempt draws") {
  const Test test;
  constexpr double rate = 200;
  constexpr int burst = 5;
  constexpr int items = 30;
  const Shared<Log<SteadyClock::rep>> grants;
  const Shared<Tally> calls;
  const auto granted = [&] { grants->add(SteadyClock::now().time_since_epoch().count()); };
  Limiter limiter{RateLimit{rate, 1s, burst}};
  const auto fn = [&](int item, const Task& task) {
    granted();
    ++(*calls)[item];
    if (item % 3 == 0 && task.attempt == 1) throw Boom("once more");
    if (item % 10 == 5 && task.attempt == 1) crash();
    return item;
  };
  const auto begin = SteadyClock::now().time_since_epoch().count();
  const auto result = parallel_map(fn, numbers(items),
                                   {.workers = 3,
                                    .executor = Executor::process,
                                    .rate_limit = limiter,
                                    .retry = Retry{.attempts = 2, .backoff = 0s},
                                    .on_progress = [&](auto...) {
                                      limiter.acquire();
                                      granted();
                                    }});
  CHECK(result.ok());
  auto all = grants->all();
  std::ranges::sort(all);
  CHECK(calls->total() == items + 10 + 2);  // of those that crash one also throws: 15
  CHECK(static_cast<int>(all.size()) == calls->total() + items);
  int above = 0;
  for (std::size_t count = 1; count <= all.size(); ++count) {
    const std::chrono::duration<double> since = SteadyClock::duration{all[count - 1] - begin};
    if (static_cast<double>(count) > burst + rate * since.count() + 1e-6) ++above;
  }
  CHECK(above == 0);
}

TEST_CASE("L4 with processes a run whose next token lies beyond its timeout ends at once") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Limiter limiter{RateLimit{1, 2h, 2}};
    const auto begin = SteadyClock::now();
    const auto result = parallel_map(
        itself, items, {.workers = 2, .executor = Executor::process, .rate_limit = limiter, .timeout = 1h});
    CHECK(SteadyClock::now() - begin < 10s);
    CHECK(result.timed_out());
    REQUIRE(result.size() >= 2);
    CHECK(result.ok_values().size() == 2);
    for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
    for (const auto& [index, error] : result.failures()) CHECK(error.template is<TimeoutError>());
    CHECK(limiter.wait_time() <= 2h);  // the abandoned waits took nothing
    CHECK(limiter.wait_time() > 119min);
  });
}

TEST_CASE("L4 with processes a stop ends the waits for tokens and they take nothing") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Limiter limiter{RateLimit{1, 2h}};
    std::stop_source stop;
    const auto result = parallel_map(itself, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .rate_limit = limiter,
                                      .stop = stop.get_token(),
                                      .on_result = [&](const auto&) { stop.request_stop(); }});
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(result.ok_values().size() == 1);
    for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
    CHECK(limiter.wait_time() <= 2h);
    CHECK(limiter.wait_time() > 119min);
  });
}

TEST_CASE("L4 with processes a timeout cuts the stream of tokens and what ran keeps its value") {
  const Test test;
  for_each_kind_of_input(100, [](const auto& items) {
    const auto begin = SteadyClock::now();
    const auto result = parallel_map(
        itself, items, {.workers = 2, .executor = Executor::process, .rate_limit = RateLimit{20}, .timeout = 300ms});
    const std::chrono::duration<double> took = SteadyClock::now() - begin;
    CHECK(result.timed_out());
    CHECK(result.ok_values().size() >= 1);
    CHECK(static_cast<double>(result.ok_values().size()) <= 1 + 20 * took.count());
    for (const auto& item : result.item_results()) {
      CHECK(item.ok() == (item.attempts == 1));
      if (item.ok()) CHECK(item.value() == static_cast<int>(item.index));
    }
  });
}

// W: window ------------------------------------------------------------------------------------------

TEST_CASE("W1 with processes at most batch size items are admitted and unresolved and no fewer can be") {
  const Test test;
  struct Counts {
    std::atomic<int> read{0};
    std::atomic<int> ended{0};  // by fn: a little before it is resolved
  };
  for (const std::size_t size : {0U, 5U, 1U}) {  // 0: twice as many as workers
    const int window = size == 0 ? 4 : static_cast<int>(size);
    const Shared<Counts> counts;
    int most = 0;
    SinglePass source{60, itself};
    source.on_read = [&](int) {
      ++counts->read;
      most = std::max(most, counts->read - counts->ended);
    };
    const auto fn = [&](int item) {
      wait_until([&] { return counts->read >= std::min(60, item / window * window + window); });
      ++counts->ended;
      return item;
    };
    const auto result = parallel_map(
        fn, source, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = size, .chunk = 1}});
    CHECK(list_of(result) == numbers(60));
    CHECK(most <= window);
    CHECK(source.mistakes == 0);
    CHECK(source.reads == 60);
  }
}

TEST_CASE("W1 with processes admitted and unresolved items are counted until they are reported") {
  const Test test;
  int reported = 0;
  int most = 0;
  SinglePass source{200, itself};
  source.on_read = [&](int item) { most = std::max(most, item + 1 - reported); };
  const auto result = parallel_map(
      itself, source,
      {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 7}, .on_result = [&](const auto&) {
         ++reported;
       }});
  CHECK(result.ok());
  CHECK(reported == 200);
  CHECK(most <= 7);
}

TEST_CASE("W1 with processes a slow item holds back none behind it within the window") {
  const Test test;
  for_each_kind_of_input(12, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    const auto fn = [&](int item) {
      if (item == 3) wait_until([&] { return *done == 11; });
      if (item != 3) ++*done;
      return item;
    };
    const auto check = [&](const MapOptions<int, int>& options) {
      *done = 0;
      CHECK(list_of(parallel_map(fn, items, options)) == numbers(12));
    };
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9, .chunk = 1}});
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}, .batch = Batch{.size = 9}});
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9}, .task_timeout = 1h});
    check({.workers = 2, .executor = Executor::process, .batch = Batch{.size = 9}, .on_progress = [](auto...) {}});
    // A policy asks for single items, whatever the chunk.
    check({.workers = 2, .executor = Executor::process, .retry = Retry{}, .batch = Batch{.size = 9, .chunk = 4}});
  });
}

TEST_CASE("W1 with processes at most batch size items of an inherited input run at once") {
  const Test test;
  const Shared<Crowd> crowd;
  const auto fn = [&](int item) {
    crowd->enter();
    dawdle();
    crowd->leave();
    return item;
  };
  CHECK(parallel_map(fn, numbers(20), {.workers = 4, .executor = Executor::process, .batch = Batch{.size = 2}}).ok());
  CHECK(crowd->most() <= 2);
}

TEST_CASE("W1 with processes every item runs once whatever the chunk") {
  const Test test;
  for_each_kind_of_input(500, [](const auto& items) {
    for (const std::size_t chunk : {0U, 1U, 3U, 8U, 100U, 10'000U}) {
      const Shared<Tally> calls;
      const auto fn = [&](int item) {
        ++(*calls)[item];
        return item;
      };
      const auto result = parallel_map(
          fn, items, {.workers = 3, .executor = Executor::process, .batch = Batch{.size = 64, .chunk = chunk}});
      CHECK(list_of(result) == numbers(500));
      CHECK(calls->first(500) == Ints(500, 1));
    }
  });
}

TEST_CASE("W2 with processes what a source throws leaves the call") {
  const Test test;
  struct SourceError {  // of the driver: it crosses no boundary, and needs no Codec
    int* at;
  };
  int at = 0;
  struct Counts {
    std::atomic<int> running{0};
    std::atomic<int> ended{0};
  };
  const Shared<Counts> counts;
  const auto fn = [&](int item, const Task& task) {
    if (item < 2) {
      ++counts->running;
      wait_for_stop(task);
      ++counts->ended;
    }
    return item;
  };
  for (const bool policy : {false, true}) {
    counts->running = counts->ended = 0;
    SinglePass source{100, itself};
    source.on_read = [&](int item) {
      if (item != 3) return;
      wait_until([&] { return counts->running == 2; });
      throw SourceError{&at};
    };
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1}};
    if (policy) options.retry = Retry{};
    try {
      parallel_map(fn, source, options);
      FAIL("nothing was thrown");
    } catch (const SourceError& e) {
      CHECK(e.at == &at);
    }
    CHECK(waitpid(-1, nullptr, WNOHANG) == -1);
    CHECK(counts->ended == 2);
    CHECK(source.reads == 3);
  }
}

TEST_CASE("W2 with processes what a view throws in a worker leaves the call") {
  const Test test;
  const auto view = std::views::iota(0, 100) | std::views::transform([](int i) {
                      if (i == 40) throw std::out_of_range("item 40 cannot be made");
                      return i;
                    });
  const auto message = [&](const MapOptions<int, int>& options) -> std::string {
    try {
      parallel_map(itself, view, options);
    } catch (const std::out_of_range& e) {
      return e.what();
    }
    return "nothing";
  };
  const std::string expected = "item 40 cannot be made";
  CHECK(message({.workers = 2, .executor = Executor::process}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1}}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .retry = Retry{}}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .timeout = 1h}) == expected);
  CHECK(message({.workers = 2, .executor = Executor::process, .item_key = [](int i) { return ItemKey{i}; }}) ==
        expected);
}

TEST_CASE("W3 with processes an endless source ends with max_errors or a timeout or a stop") {
  const Test test;
  const auto endless = std::views::iota(0);
  const auto fn = [](int item) { return item % 2 == 0 ? item : throw Boom("odd"); };
  const auto aborted = parallel_map(fn, endless, {.workers = 2, .executor = Executor::process, .max_errors = 5});
  CHECK(aborted.aborted());
  CHECK(aborted.size() >= 10);
  CHECK(aborted.size() <= 30);

  const auto timed_out = parallel_map(itself, endless, {.workers = 2, .executor = Executor::process, .timeout = 50ms});
  CHECK(timed_out.timed_out());

  std::stop_source stop;
  const auto cancelled = parallel_map(itself, endless,
                                      {.workers = 2,
                                       .executor = Executor::process,
                                       .stop = stop.get_token(),
                                       .on_progress = [&](std::size_t done, std::size_t) {
                                         if (done == 20) stop.request_stop();
                                       }});
  CHECK(cancelled.status() == RunStatus::cancelled);
  CHECK(cancelled.size() >= 20);
}

// Runs on other machines, without MPI: rate limit, retry, window, the ends of runs, callbacks, checkpoints and streams.
#include <pyarallel/checkpoint.hpp>

#include "support/folder.hpp"
#include "support/local_ranks.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

void reset(Tally& tally) {
  for (std::size_t item = 0; item < Tally::most; ++item) tally[item] = 0;
}

/// More than any test draws, and never more of them.
Limiter large_budget() { return Limiter{RateLimit{1, 1h, 1000}}; }

/// How many tokens of it were drawn.
int drawn_from(Limiter& limiter) {
  int left = 0;
  while (limiter.try_acquire()) ++left;
  return 1000 - left;
}

template <class R>
std::vector<ItemResult<R>> rest_of(ResultStream<R>& stream) {
  std::vector<ItemResult<R>> items;
  for (auto& item : stream) items.push_back(std::move(item));
  return items;
}

template <class R>
Ints indices_of(const std::vector<ItemResult<R>>& items) {
  Ints all;
  for (const auto& item : items) all.push_back(static_cast<int>(item.index));
  return all;
}

Ints sorted(Ints all) {
  std::ranges::sort(all);
  return all;
}

SteadyClock::rep ticks() { return SteadyClock::now().time_since_epoch().count(); }

}  // namespace

// T: retry -------------------------------------------------------------------------------------------

TEST_CASE("T1 R8 over ranks only the failing item is retried up to its attempts and they are exact") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task& task) {
    const int call = ++(*calls)[item];
    if (call != task.attempt) throw std::logic_error("attempt " + std::to_string(task.attempt));
    if (item % 10 == 3 && call < 3) throw std::out_of_range("too early");
    if (item % 10 == 7) throw std::out_of_range(std::to_string(item) + " at attempt " + std::to_string(call));
    return item * 2;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(40, [&](auto& items) {
      reset(*calls);
      const auto result = parallel_map(fn, items, {.executor = cluster, .retry = Retry{.attempts = 4, .backoff = 0s}});
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
      for (const auto& item : result.item_results()) CHECK(item.duration > Duration::zero());
    });
  });
}

TEST_CASE("T1 over ranks an item in its backoff does not hold back the others") {
  const Shared<std::atomic<int>> done;
  // Item 0 fails until all others are done.
  Function fn = [&](int item, const Task&) {
    if (item == 0 && *done < 9) throw std::runtime_error("not yet");
    if (item > 0) ++*done;
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(10, [&](auto& items) {
      *done = 0;
      const Retry retry{.attempts = 100'000, .backoff = 100us, .max_delay = 1ms};
      CHECK(parallel_map(fn, items, {.executor = cluster, .retry = retry, .batch = Batch{.size = 10}}).ok());
    });
  });
}

TEST_CASE("T2 retries over ranks are decided by predicates here with what they captured") {
  register_exception<Boom>();
  Function fn = [&](int item, const Task&) -> int {
    if (item == 1) throw std::runtime_error("try again");  // of no type in `on`
    if (item == 2) throw Boom("leave it");                 // retry_if says no
    if (item == 3) throw Boom("try again");                // three attempts
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    int asked = 0;
    int waits = 0;
    const std::string again = "try again";
    Retry retry{.attempts = 3, .backoff = 1h};
    retry.on = retry_on<std::system_error, Boom>;
    retry.retry_if = [&](const Boom& error) {
      ++asked;
      return !in_worker() && error.what() == again;
    };
    retry.wait_from = [&](const Error& error) {
      ++waits;
      return error.is<std::system_error>() ? std::optional<Duration>{} : Duration{1};
    };
    const auto result = parallel_map(fn, numbers(6), {.executor = cluster, .retry = retry});
    CHECK(attempts_of(result) == Ints{1, 1, 1, 3, 1, 1});
    CHECK(result.failures().size() == 3);
    CHECK(error_of(result, 3).is<Boom>());
    CHECK(asked == 4);
    CHECK(waits == 3);
  });
}

TEST_CASE("T2 over ranks retry_on sees the types that were thrown also where they do not survive the way") {
  struct Unknown : std::runtime_error {
    using runtime_error::runtime_error;
  };
  struct Derived : Unknown {
    using Unknown::Unknown;
  };
  Function fn = [](int item, const Task&) -> int {
    if (item == 1) throw Derived("try again");
    if (item == 2) throw std::runtime_error("leave it");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto result = parallel_map(
        fn, numbers(4), {.executor = cluster, .retry = Retry{.attempts = 3, .backoff = 0s, .on = retry_on<Unknown>}});
    CHECK(attempts_of(result) == Ints{1, 3, 1, 1});
    CHECK(error_of(result, 1).is<RemoteError>());
    CHECK(error_of(result, 2).is<std::runtime_error>());
  });
}

TEST_CASE("T2 over ranks a predicate that throws ends the item without another attempt") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task&) {
    ++(*calls)[item];
    if (item == 1) throw std::out_of_range("the original");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    reset(*calls);
    Retry retry{.attempts = 5, .backoff = 0s};
    retry.retry_if = [](const Error&) -> bool { throw std::domain_error("asked too much"); };
    const auto result = parallel_map(fn, numbers(4), {.executor = cluster, .retry = retry});
    CHECK(calls->first(4) == Ints{1, 1, 1, 1});
    CHECK(attempts_of(result) == Ints{1, 1, 1, 1});
    REQUIRE(result.failures().size() == 1);
    std::string texts;
    try {
      error_of(result, 1).rethrow();
    } catch (const std::exception& outer) {
      texts = outer.what();
      try {
        std::rethrow_if_nested(outer);
      } catch (const std::exception& inner) {
        texts = texts + ", " + inner.what();
      }
    }
    CHECK(says(texts, "asked too much"));
    CHECK(says(texts, "the original"));
  });
}

TEST_CASE("T3 R8 over ranks the delays are as said and are a part of the duration") {
  const Shared<Log<SteadyClock::rep>> starts;
  Function fn = [&](int item, const Task& task) {
    if (item == 2) starts->add(ticks());
    if (item == 2 && task.attempt < 4) throw std::runtime_error("again");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const std::size_t before = starts->all().size();
    const Retry retry{.attempts = 4, .backoff = 10ms, .max_delay = 15ms, .jitter = false};
    const auto result = parallel_map(fn, numbers(4), {.executor = cluster, .retry = retry});
    REQUIRE(result.ok());
    const auto all = starts->all();
    REQUIRE(all.size() == before + 4);
    CHECK(SteadyClock::duration{all[before + 1] - all[before]} >= 10ms);
    CHECK(SteadyClock::duration{all[before + 2] - all[before + 1]} >= 15ms);
    CHECK(SteadyClock::duration{all[before + 3] - all[before + 2]} >= 15ms);
    const auto items = result.item_results();
    CHECK(items[2].attempts == 4);
    CHECK(items[2].duration >= 40ms);
  });
}

TEST_CASE("T3 L5 the wait that a server asks of one rank holds them all also after the last attempt") {
  constexpr auto wait = 200ms;
  const Shared<Log<std::pair<int, SteadyClock::rep>>> starts;
  const Shared<std::atomic<bool>> asked;
  Function fn = [&](int item, const Task& task) {
    starts->add({item, ticks()});
    if (item == 3 && task.attempt == 1) throw HttpError(429, "1h");
    if (item >= 10) wait_until([&] { return asked->load(); });
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    for (const int attempts : {1, 2}) {
      const std::size_t before = starts->all().size();
      *asked = false;
      SteadyClock::rep asked_at = 0;
      Retry retry{.attempts = attempts, .backoff = 0s, .max_server_wait = wait};
      retry.wait_from = [&](const HttpError&) {
        if (asked_at == 0) asked_at = ticks();
        *asked = true;
        return std::optional<Duration>{1h};
      };
      const Limiter limiter{RateLimit{1e6, 1s, 1}};
      // One by one, so that item 3 begins before those that wait for it.
      const Batch batch{.size = 4, .chunk = 1};
      const auto result = parallel_map(
          fn, numbers(40), {.workers = 2, .executor = cluster, .rate_limit = limiter, .retry = retry, .batch = batch});
      CHECK(result.failures().size() == (attempts == 1 ? 1 : 0));
      REQUIRE(asked_at != 0);
      // What was on its way already comes through; there is no more of it than the window.
      int between = 0;
      int after = 0;
      const auto all = starts->all();
      for (std::size_t i = before; i < all.size(); ++i) {
        if (all[i].second < asked_at) continue;
        ++(all[i].second < asked_at + SteadyClock::duration{wait}.count() ? between : after);
      }
      CHECK(between <= 3);
      CHECK(after >= 40 - 10 - 4);
    }
  });
}

TEST_CASE("T4 over ranks a stop ends the backoff at once and the last real error stays") {
  Function fn = [&](int item, const Task&) -> int {
    if (item == 0) throw std::out_of_range("the real one");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(3, [&](auto& items) {
      std::stop_source stop;
      Retry retry{.attempts = 5, .backoff = 1h};
      bool failed = false;
      std::size_t done = 0;
      const auto maybe_stop = [&] {
        if (failed && done == 2) stop.request_stop();
      };
      retry.retry_if = [&](const Error&) {
        failed = true;
        maybe_stop();
        return true;
      };
      const auto result = parallel_map(fn, items,
                                       {.executor = cluster,
                                        .retry = retry,
                                        .stop = stop.get_token(),
                                        .on_progress = [&](std::size_t now, std::size_t) {
                                          done = now;
                                          maybe_stop();
                                        }});
      CHECK(attempts_of(result) == Ints{1, 1, 1});
      CHECK(error_of(result, 0).what() == "the real one");
      CHECK(result.at(1) == 1);
      CHECK(result.at(2) == 2);
    });
  });
}

TEST_CASE("T4 over ranks a timeout ends all backoffs and the real errors stay") {
  Function fn = [&](int item, const Task&) -> int { throw std::out_of_range("item " + std::to_string(item)); };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto result = parallel_map(fn, numbers(2),
                                     {.executor = cluster,
                                      .retry = Retry{.attempts = 2, .backoff = 1h},
                                      .batch = Batch{.size = 2},
                                      .timeout = 200ms});
    CHECK(result.complete());  // there is no item that never ran (R5)
    CHECK(attempts_of(result) == Ints{1, 1});
    REQUIRE(result.failures().size() == 2);
    for (const auto& [index, error] : result.failures()) CHECK(error.what() == "item " + std::to_string(index));
  });
}

TEST_CASE("T4 over ranks an abort ends the backoff and the last real error stays") {
  Function fn = [&](int item, const Task&) -> int {
    if (item == 0) throw std::out_of_range("the real one");
    throw std::logic_error("the last that max_errors allows");
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    Retry retry{.attempts = 2, .backoff = 1h};
    retry.retry_if = [&](const Error& error) { return error.is<std::out_of_range>(); };
    const auto result =
        parallel_map(fn, numbers(2), {.workers = 1, .executor = cluster, .retry = retry, .max_errors = 1});
    CHECK(result.aborted());
    CHECK(attempts_of(result) == Ints{1, 1});
    CHECK(error_of(result, 0).what() == "the real one");
    CHECK(error_of(result, 1).is<std::logic_error>());
  });
}

TEST_CASE("T5 over ranks with processes crashes and task timeouts are retried and attempts are counted across them") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task& task) {
    ++(*calls)[item];
    if (item == 2 && task.attempt == 1) hang();
    if (item == 4) crash();
    if (item == 5) {
      if (task.attempt == 1) throw std::out_of_range("first");
      if (task.attempt == 2) hang();
      if (task.attempt == 3) crash();
      if (task.attempt == 4) throw 42;
    }
    return item * 10 + task.attempt;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    if (!cluster.shape().has_processes()) return;
    reset(*calls);
    const auto result = parallel_map(
        fn, numbers(8), {.executor = cluster, .retry = Retry{.attempts = 5, .backoff = 0s}, .task_timeout = 300ms});
    CHECK(attempts_of(result) == Ints{1, 1, 2, 1, 5, 5, 1, 1});
    CHECK(calls->first(8) == Ints{1, 1, 2, 1, 5, 5, 1, 1});
    REQUIRE(result.failures().size() == 1);
    CHECK(error_of(result, 4).is<WorkerCrashed>());
    CHECK(result.at(2) == 22);
    CHECK(result.at(5) == 55);
  });
}

// L: rate limit --------------------------------------------------------------------------------------

TEST_CASE("L1 L3 ranks and other users of a budget keep to it together and every attempt draws") {
  constexpr double rate = 400;
  constexpr int burst = 5;
  const Shared<Log<SteadyClock::rep>> grants;
  Function fn = [&](int item, const Task& task) {
    grants->add(ticks());
    if (item % 3 == 0 && task.attempt == 1) throw std::runtime_error("once more");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const std::size_t before = grants->all().size();
    Limiter limiter{RateLimit{rate, 1s, burst}};
    const auto begin = ticks();
    int own = 0;
    const auto result = parallel_map(fn, numbers(30),
                                     {.executor = cluster,
                                      .rate_limit = limiter,
                                      .retry = Retry{.attempts = 2, .backoff = 0s},
                                      .on_progress = [&](std::size_t done, std::size_t) {
                                        if (done % 2 == 0) return;
                                        limiter.acquire();
                                        grants->add(ticks());
                                        ++own;
                                      }});
    CHECK(result.ok());
    auto all = grants->all();
    all.erase(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(before));
    std::ranges::sort(all);
    CHECK(static_cast<int>(all.size()) == 30 + 10 + own);
    int above = 0;
    for (std::size_t count = 1; count <= all.size(); ++count) {
      const std::chrono::duration<double> since = SteadyClock::duration{all[count - 1] - begin};
      if (static_cast<double>(count) > burst + rate * since.count() + 1e-6) ++above;
    }
    CHECK(above == 0);
    // L2: it does not take much longer either. (The bound is for a machine that is very busy.)
    CHECK(SteadyClock::duration{all.back() - begin} < 20s);
  });
}

TEST_CASE("L3 L4 over ranks exactly one token is drawn for each attempt and none is lost") {
  Function fn = [](int item, const Task& task) {
    if (task.attempt <= item % 4) throw std::runtime_error("again");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(40, [&](auto& items) {
      Limiter limiter = large_budget();
      const auto result = parallel_map(
          fn, items, {.executor = cluster, .rate_limit = limiter, .retry = Retry{.attempts = 3, .backoff = 0s}});
      CHECK(result.failures().size() == 10);
      CHECK(drawn_from(limiter) == 10 * (1 + 2 + 3 + 3));
    });
  });
}

TEST_CASE("L4 over ranks a run that was stopped or aborted drew no token that nobody used") {
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) {
    ++*calls;
    if (item == 20) throw std::runtime_error("it fails");
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    *calls = 0;
    Limiter limiter = large_budget();
    const auto result = parallel_map(fn, numbers(500), {.executor = cluster, .rate_limit = limiter, .max_errors = 1});
    CHECK(result.aborted());
    // What was handed out, and came back without having begun, is no more than what ranks have in advance.
    const int drawn = drawn_from(limiter);
    CHECK(drawn >= *calls);
    CHECK(drawn <= *calls + 2 * static_cast<int>(cluster.shape().slots()));
  });
}

TEST_CASE("L4 over ranks a run whose next token lies beyond its timeout ends at once") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(6, [&](auto& items) {
      const Limiter limiter{RateLimit{1, 2h, 2}};
      const auto result = parallel_map(fn, items, {.executor = cluster, .rate_limit = limiter, .timeout = 1h});
      CHECK(result.timed_out());
      REQUIRE(result.size() >= 2);
      CHECK(result.ok_values() == Ints{0, 1});
      for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
      for (const auto& [index, error] : result.failures()) CHECK(error.template is<TimeoutError>());
      CHECK(limiter.wait_time() <= 2h);  // the abandoned waits took nothing
      CHECK(limiter.wait_time() > 119min);
    });
  });
}

TEST_CASE("L4 L6 over ranks a stop and a timeout end the waits for tokens and they take nothing") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(6, [&](auto& items) {
      const Limiter limiter{RateLimit{1, 2h}};
      std::stop_source stop;
      const auto result = parallel_map(
          fn, items,
          {.executor = cluster, .rate_limit = limiter, .stop = stop.get_token(), .on_result = [&](const auto&) {
             stop.request_stop();
           }});
      CHECK(result.status() == RunStatus::cancelled);
      CHECK(result.ok_values() == Ints{0});
      for (const auto& item : result.item_results()) CHECK(item.attempts == (item.ok() ? 1 : 0));
      CHECK(limiter.wait_time() <= 2h);
      CHECK(limiter.wait_time() > 119min);
    });
  });
}

TEST_CASE("L6 a stop from another thread ends the waits of a run over ranks for tokens") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    std::stop_source stop;
    Gate one_ran;
    Meanwhile other{[&] {
      one_ran.wait();
      stop.request_stop();
    }};
    const auto result = parallel_map(
        fn, numbers(6),
        {.executor = cluster, .rate_limit = RateLimit{1, 2h}, .stop = stop.get_token(), .on_result = [&](const auto&) {
           one_ran.open();
         }});
    other.join();
    CHECK(result.status() == RunStatus::cancelled);
    CHECK(result.ok_values() == Ints{0});
  });
}

// W: window ------------------------------------------------------------------------------------------

TEST_CASE("W1 over ranks never more than batch size items are admitted and unresolved") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const int by_default = 2 * static_cast<int>(cluster.shape().slots());
    for (const auto& [batch, window] : {std::pair{Batch{}, by_default},
                                        {Batch{.size = 7}, 7},
                                        {Batch{.size = 1}, 1},
                                        {Batch{.size = 5, .chunk = 1}, 5},
                                        {Batch{.size = 50, .chunk = 8}, 50}}) {
      int reported = 0;
      int most = 0;
      SinglePass source{200, itself};
      source.on_read = [&](int item) { most = std::max(most, item + 1 - reported); };
      const auto result = parallel_map(
          fn, source, {.executor = cluster, .batch = batch, .on_result = [&](const auto&) { ++reported; }});
      CHECK(list_of(result) == numbers(200));
      CHECK(reported == 200);
      CHECK(most <= window);
      CHECK(source.mistakes == 0);
      CHECK(source.reads == 200);
    }
  });
}

TEST_CASE("W1 over ranks a slow item holds back none") {
  const Shared<std::atomic<int>> done;
  Function fn = [&](int item, const Task&) {
    if (item == 30) wait_until([&] { return *done == 99; });
    if (item != 30) ++*done;
    return item;
  };
  const auto check_all = [&](LocalRanks& cluster) {
    const auto check = [&](const MapOptions<int, int>& options) {
      from_every_source(100, [&](auto& items) {
        *done = 0;
        CHECK(list_of(parallel_map(fn, items, options)) == numbers(100));
      });
    };
    check({.executor = cluster, .batch = Batch{.chunk = 1}});
    check({.executor = cluster, .batch = Batch{.size = 9, .chunk = 1}});
    check({.executor = cluster, .retry = Retry{}});
    check({.executor = cluster, .retry = Retry{}, .batch = Batch{.size = 9, .chunk = 4}});
    check({.executor = cluster, .on_progress = [](auto...) {}});
  };
  on_ranks(fn, check_all, 2);
}

TEST_CASE("W1 over ranks items may wait for each other with a chunk of one") {
  const Shared<Tally> here;
  Function fn = [&](int item, const Task&) {
    ++(*here)[item];
    wait_until([&] { return (*here)[item ^ 1] > 0; });
    return item;
  };
  const auto check_all = [&](LocalRanks& cluster) {
    from_every_source(200, [&](auto& items) {
      reset(*here);
      const auto result = parallel_map(fn, items, {.executor = cluster, .batch = Batch{.chunk = 1}});
      CHECK(list_of(result) == numbers(200));
    });
  };
  on_ranks(fn, check_all, 2);
}

TEST_CASE("W1 a rank that has nothing to do gets what waits behind the slow item of another") {
  struct State {
    std::atomic<int> done{0};
    std::atomic<pid_t> slow{0};
    std::atomic<int> beside{0};  // items that ran in the slow process when it had begun to be slow
  };
  const Shared<State> state;
  const auto fn = [&](int item) {
    if (item == 1000) {
      state->slow = getpid();
      wait_until([&] { return state->done == 1999; });
    } else {
      if (state->slow == getpid()) ++state->beside;
      ++state->done;
    }
    return item;
  };
  for (const Shape& shape : {Shape{2, thread, 1}, Shape{3, thread, 1}, Shape{2, process, 1}, Shape{3, process, 1}}) {
    INFO(shape.name());
    const Test test;
    state->done = state->slow = state->beside = 0;
    LocalRanks cluster{shape, fn};
    // The ranks are quick, so that they have many items in advance when one of them becomes slow.
    CHECK(list_of(parallel_map(fn, numbers(2000), {.executor = cluster, .batch = Batch{.chunk = 1}})) == numbers(2000));
    CHECK(state->beside == 0);
  }
}

TEST_CASE("W2 over ranks running items end and then what the source threw leaves the call") {
  struct SourceError {  // it crosses no boundary, and needs no Codec
    int* at;
  };
  const Shared<std::atomic<int>> inside;
  Function fn = [&](int item, const Task& task) {
    if (item >= 1) return item;
    ++*inside;
    wait_for_stop(task);
    --*inside;
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    int at = 0;
    for (const bool policy : {false, true}) {
      *inside = 0;
      SinglePass source{100, itself};
      source.on_read = [&](int item) {
        if (item != 1) return;
        wait_until([&] { return *inside == 1; });
        throw SourceError{&at};
      };
      MapOptions<int, int> options{.executor = cluster, .batch = Batch{.size = 4, .chunk = 1}};
      if (policy) options.retry = Retry{};
      try {
        parallel_map(fn, source, options);
        FAIL("nothing was thrown");
      } catch (const SourceError& e) {
        CHECK(e.at == &at);
      }
      CHECK(*inside == 0);
      CHECK(source.reads == 1);
    }
    CHECK(parallel_map(fn, Ints{1, 2}, {.executor = cluster}).ok());
  });
}

TEST_CASE("W3 over ranks an endless source ends with max_errors or a timeout or a stop") {
  Function fn = [](int item, const Task&) { return item % 2 == 0 ? item : throw std::runtime_error("odd"); };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto endless = std::views::iota(0);
    const int window = 2 * static_cast<int>(cluster.shape().slots());
    const auto aborted = parallel_map(fn, endless, {.executor = cluster, .max_errors = 5});
    CHECK(aborted.aborted());
    CHECK(aborted.size() >= 9);
    CHECK(static_cast<int>(aborted.size()) <= 10 + 2 * window);

    CHECK(parallel_map(fn, endless, {.executor = cluster, .timeout = 30ms}).timed_out());

    std::stop_source stop;
    const auto cancelled = parallel_map(
        fn, endless, {.executor = cluster, .stop = stop.get_token(), .on_progress = [&](std::size_t done, std::size_t) {
                        if (done == 20) stop.request_stop();
                      }});
    CHECK(cancelled.status() == RunStatus::cancelled);
    CHECK(cancelled.size() >= 20);
  });
}

// E, R: ending early ---------------------------------------------------------------------------------

TEST_CASE("E1 R1 R3 over ranks nothing is admitted after the last failure that max_errors allows") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task&) -> int {
    ++(*calls)[item];
    throw std::out_of_range(std::to_string(item));
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(1000, [&](auto& items) {
      reset(*calls);
      const auto result = parallel_map(fn, items, {.executor = cluster, .max_errors = 3});
      CHECK(result.aborted());
      CHECK_FALSE(result.ok());
      CHECK_THROWS_AS(result.values(), Aborted);
      if constexpr (std::ranges::sized_range<decltype(items)>) {
        CHECK(result.size() == 1000);
      } else {
        CHECK(result.size() < 1000);
      }
      int real = 0;
      for (const auto& [index, error] : result.failures()) {
        const bool ran = !error.template is<Aborted>();
        CHECK((*calls)[index] == (ran ? 1 : 0));
        if (!ran) continue;
        ++real;
        CHECK(error.what() == std::to_string(index));
      }
      CHECK(real >= 3);
      CHECK(real <= 3 - 1 + 2 * static_cast<int>(cluster.shape().slots()));
      CHECK(calls->total() == real);
      CHECK(result.failures().size() == result.size());
    });
  });
}

TEST_CASE("E1 R4 over ranks running items are asked to stop and keep their outcome") {
  const Shared<std::atomic<int>> running;
  Function fn = [&](int item, const Task& task) -> int {
    if (item == 2) {
      wait_until([&] { return *running == 2; });
      throw std::domain_error("the first failure");
    }
    ++*running;
    wait_for_stop(task);
    if (item == 1) throw std::out_of_range("its own");
    return item + 100;
  };
  const auto check = [&](LocalRanks& cluster) {
    from_every_source(50, [&](auto& items) {
      *running = 0;
      const auto result =
          parallel_map(fn, items, {.workers = 3, .executor = cluster, .batch = Batch{.chunk = 1}, .max_errors = 1});
      CHECK(result.aborted());
      CHECK(result.at(0) == 100);
      CHECK(error_of(result, 1).template is<std::out_of_range>());
      CHECK(error_of(result, 2).template is<std::domain_error>());
      // What the ranks had in advance may have begun before they heard of it.
      for (const auto& item : result.item_results()) {
        if (item.index < 3) continue;
        if (item.attempts == 1) {
          CHECK(item.value() == static_cast<int>(item.index) + 100);
        } else {
          CHECK(item.error().template is<Aborted>());
        }
      }
    });
  };
  on_ranks(fn, check, 3);
}

TEST_CASE("E1 R2 R6 over ranks fewer failures than max_errors are an ExceptionGroup and retried ones are none") {
  Function fn = [](int item, const Task& task) -> int {
    if (item % 5 == 0) throw std::runtime_error("fifth " + std::to_string(item));
    return task.attempt == 2 ? item : throw std::runtime_error("once");
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto result = parallel_map(
        fn, numbers(20), {.executor = cluster, .retry = Retry{.attempts = 2, .backoff = 0s}, .max_errors = 5});
    CHECK(result.complete());
    CHECK_FALSE(result.ok());
    try {
      result.values();
      FAIL("nothing was thrown");
    } catch (const ExceptionGroup& group) {
      Ints failed;
      for (const Failure& failure : group.failures()) failed.push_back(static_cast<int>(failure.index));
      CHECK(failed == Ints{0, 5, 10, 15});
      CHECK(says(group.what(), "4 of 20"));
      CHECK(says(group.what(), "fifth 0"));
    }
  });
}

TEST_CASE("R5 E1 over ranks the n-th failure aborts also on the last item and a late stop changes nothing") {
  const Shared<std::atomic<int>> done;
  Function fn = [&](int item, const Task&) -> int {
    if (item < 9) return ++*done, item;
    wait_until([&] { return *done == 9; });  // else it may fail before they begin
    throw std::runtime_error("the last");
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    *done = 0;
    const auto result = parallel_map(fn, numbers(10), {.executor = cluster, .max_errors = 1});
    CHECK(result.aborted());
    CHECK(result.ok_values() == numbers(9));
    std::stop_source stop;
    const auto complete = parallel_map(
        fn, numbers(9),
        {.executor = cluster, .stop = stop.get_token(), .on_progress = [&](std::size_t so_far, std::size_t) {
           if (so_far == 9) stop.request_stop();
         }});
    CHECK(complete.ok());
    CHECK(list_of(complete) == numbers(9));
  });
}

TEST_CASE("E2 R1 R3 R4 a timeout over ranks asks threads to stop and awaits them and kills processes") {
  const Shared<std::atomic<int>> inside;
  const Shared<Tally> calls;
  bool processes = false;
  int quick = 0;
  Function fn = [&](int item, const Task& task) {
    ++(*calls)[item];
    if (item < quick) return item;
    ++*inside;
    if (processes) hang();
    wait_for_stop(task);
    --*inside;
    return item;
  };
  for (const Shape& shape : all_shapes) {
    for (const int quick_ones : {3, 60}) {
      INFO(shape.name() << ", the first " << quick_ones << " items are quick");
      processes = shape.has_processes();
      quick = quick_ones;
      const Test test;
      LocalRanks cluster{shape, fn};
      from_every_source(quick + 30, [&](auto& items) {
        reset(*calls);
        *inside = 0;
        const auto begin = SteadyClock::now();
        const auto result =
            parallel_map(fn, items, {.executor = cluster, .batch = Batch{.chunk = 1}, .timeout = 100ms});
        CHECK(SteadyClock::now() - begin >= 100ms);
        CHECK(result.timed_out());
        CHECK_THROWS_AS(result.values(), TimeoutError);
        if constexpr (std::ranges::sized_range<decltype(items)>) CHECK(static_cast<int>(result.size()) == quick + 30);
        int ran = 0;
        for (const auto& item : result.item_results()) {
          CHECK(item.attempts == (*calls)[item.index]);
          ran += item.attempts;
          // (On a very busy machine not even all of the quick ones have their turn.)
          if (item.attempts == 1 && (static_cast<int>(item.index) < quick || !processes)) {
            CHECK(item.ok());
          } else {
            CHECK(item.error().template is<TimeoutError>());
          }
        }
        CHECK(ran >= 1);
        CHECK(ran <= quick + static_cast<int>(shape.slots()));
        CHECK(*inside == (processes ? std::max(0, ran - quick) : 0));
      });
    }
  }
}

TEST_CASE("E2 E3 over ranks a timeout of zero and a token that is stopped already run nothing") {
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) { return item + ++*calls; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    std::stop_source stop;
    stop.request_stop();
    const auto late = parallel_map(fn, numbers(5), {.executor = cluster, .timeout = 0s});
    CHECK(late.timed_out());
    CHECK(late.size() == 5);
    CHECK(error_of(late, 4).is<TimeoutError>());
    const auto stopped = parallel_map(fn, numbers(5), {.executor = cluster, .stop = stop.get_token()});
    CHECK(stopped.cancelled());
    CHECK(stopped.size() == 5);
    CHECK(error_of(stopped, 4).is<Cancelled>());
    const auto pulled = parallel_map(fn, std::views::iota(0), {.executor = cluster, .stop = stop.get_token()});
    CHECK(pulled.cancelled());
    CHECK(pulled.empty());
  });
  CHECK(*calls == 0);
}

TEST_CASE("E3 a stop from another thread or a callback ends a run over ranks whose items wait or hang") {
  const Shared<std::atomic<int>> inside;
  bool processes = false;
  Function fn = [&](int item, const Task& task) {
    if (item == 0) return 0;
    ++*inside;
    if (processes) hang();
    wait_for_stop(task);
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    processes = shape.has_processes();
    const Test test;
    LocalRanks cluster{shape, fn};
    for (const bool callback : {false, true}) {
      *inside = 0;
      std::stop_source stop;
      Meanwhile other{[&] {
        if (callback) return;
        wait_until([&] { return *inside == static_cast<int>(shape.slots()); });
        stop.request_stop();
      }};
      const auto result = parallel_map(fn, numbers(30),
                                       {.executor = cluster,
                                        .batch = Batch{.chunk = 1},
                                        .stop = stop.get_token(),
                                        .on_result = [&](const ItemResult<int>& item) {
                                          if (callback && item.index == 0) stop.request_stop();
                                        }});
      other.join();
      CHECK(result.cancelled());
      CHECK_THROWS_AS(result.values(), Cancelled);
      CHECK(result.size() == 30);
      CHECK(result.at(0) == 0);
      for (const auto& item : result.item_results()) {
        CHECK(item.ok() == (item.index == 0 || (!processes && item.attempts == 1)));
        if (!item.ok()) CHECK(item.error().is<Cancelled>());
      }
    }
  }
}

TEST_CASE("E2 E3 over ranks a stop also kills what an aborted run waits for") {
  const Shared<std::atomic<int>> inside;
  Function fn = [&](int item, const Task&) -> int {
    if (item == 1) {
      wait_until([&] { return *inside == 1; });
      throw std::runtime_error("the first failure");
    }
    ++*inside;
    hang();
  };
  const auto check = [&](LocalRanks& cluster) {
    if (!cluster.shape().has_processes()) return;
    *inside = 0;
    std::stop_source stop;
    const auto result = parallel_map(fn, numbers(2),
                                     {.executor = cluster,
                                      .batch = Batch{.chunk = 1},
                                      .max_errors = 1,
                                      .stop = stop.get_token(),
                                      .on_result = [&](const ItemResult<int>& item) {
                                        if (item.index == 1) stop.request_stop();
                                      }});
    CHECK(result.aborted());
    CHECK(result.item_results()[0].attempts == 1);
    CHECK_FALSE(result.item_results()[0].ok());
  };
  on_ranks(fn, check, 2);
}

TEST_CASE("E4 over ranks an attempt that takes too long is killed or asked to stop and nobody else is harmed") {
  const Shared<Tally> calls;
  bool processes = false;
  Function fn = [&](int item, const Task& task) {
    ++(*calls)[item];
    if (item % 10 == 4) {
      if (processes) hang();
      wait_for_stop(task);
    }
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    processes = shape.has_processes();
    const Test test;
    LocalRanks cluster{shape, fn};
    reset(*calls);
    const auto result = parallel_map(fn, numbers(20), {.executor = cluster, .task_timeout = 300ms});
    CHECK(result.complete());
    CHECK(calls->first(20) == Ints(20, 1));
    REQUIRE(result.failures().size() == 2);
    for (const std::size_t item : {4U, 14U}) {
      CHECK(error_of(result, item).is<TaskTimeout>());
      CHECK(result.item_results()[item].duration >= 300ms);
    }
    CHECK(result.ok_values().size() == 18);
  }
}

TEST_CASE("E4 C6 a task timeout needs a function that takes a task where ranks use threads") {
  const auto fn = [](int item) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto call = [&] { return parallel_map(fn, numbers(3), {.executor = cluster, .task_timeout = 1h}); };
    if (cluster.shape().has_processes()) {
      CHECK(call().ok());
    } else {
      CHECK_THROWS_AS(call(), std::invalid_argument);
    }
  });
}

// B: callbacks ---------------------------------------------------------------------------------------

TEST_CASE("B1 B3 over ranks callbacks and keys are called here and once for each item") {
  Function fn = [](int item, const Task&) { return item % 7 == 3 ? throw std::runtime_error("third") : item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(60, [&](auto& items) {
      const auto thread_here = std::this_thread::get_id();
      bool elsewhere = false;
      const auto look = [&] { elsewhere = elsewhere || in_worker() || std::this_thread::get_id() != thread_here; };
      Ints keyed;
      Ints resolved;
      std::vector<std::size_t> done;
      std::size_t most_total = 0;
      const auto result = parallel_map(fn, items,
                                       {.executor = cluster,
                                        .item_key =
                                            [&](int item) {
                                              look();
                                              keyed.push_back(item);
                                              return ItemKey{"key " + std::to_string(item)};
                                            },
                                        .on_result =
                                            [&](const ItemResult<int>& item) {
                                              look();
                                              resolved.push_back(static_cast<int>(item.index));
                                              CHECK(item.key == ItemKey{"key " + std::to_string(item.index)});
                                              CHECK(item.ok() == (item.index % 7 != 3));
                                              CHECK(item.attempts == 1);
                                            },
                                        .on_progress =
                                            [&](std::size_t so_far, std::size_t total) {
                                              look();
                                              done.push_back(so_far);
                                              most_total = std::max(most_total, total);
                                              if constexpr (std::ranges::sized_range<decltype(items)>)
                                                CHECK(total == 60);
                                            }});
      CHECK(result.complete());
      CHECK_FALSE(elsewhere);
      CHECK(keyed == numbers(60));
      CHECK(sorted(resolved) == numbers(60));
      std::vector<std::size_t> counted(60);
      std::iota(counted.begin(), counted.end(), 1U);
      CHECK(done == counted);
      CHECK(most_total == 60);
    });
  });
}

TEST_CASE("B2 over ranks what a callback or a key function throws leaves the call after running items have ended") {
  const Shared<std::atomic<int>> inside;
  Function fn = [&](int item, const Task& task) {
    if (item == 0) return item;
    ++*inside;
    wait_for_stop(task);
    --*inside;
    return item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    int callbacks = 0;
    const auto by_callback = [&] {
      parallel_map(fn, numbers(30), {.executor = cluster, .on_result = [&](const auto&) {
                                       ++callbacks;
                                       throw Boom("a callback");
                                     }});
    };
    CHECK_THROWS_AS(by_callback(), Boom);
    CHECK(callbacks == 1);
    CHECK(*inside == 0);
    const auto by_key = [&] {
      parallel_map(fn, numbers(30), {.executor = cluster, .item_key = [&](int item) {
                                       return item < 1 ? ItemKey{item} : throw Boom("a key function");
                                     }});
    };
    CHECK_THROWS_AS(by_key(), Boom);
    CHECK(parallel_map(fn, Ints{0, 0}, {.executor = cluster}).ok());
  });
}

TEST_CASE("B4 the worker_init of ranks runs once in each worker before its first item") {
  struct State {
    std::atomic<int> inits{0};
    std::atomic<int> mistakes{0};
  };
  const Shared<State> state;
  static thread_local int inits_here = 0;
  Function fn = [&](int item, const Task&) {
    if (inits_here != 1) ++state->mistakes;
    return item;
  };
  for (Shape shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    state->inits = 0;
    shape.worker_init = [&] {
      ++inits_here;
      ++state->inits;
    };
    LocalRanks cluster{shape, fn};
    CHECK(list_of(parallel_map(fn, numbers(60), {.executor = cluster})) == numbers(60));
    CHECK(state->inits >= 1);
    CHECK(state->inits <= static_cast<int>(shape.slots()));
    CHECK(state->mistakes == 0);
    CHECK(inits_here == 0);
  }
}

TEST_CASE("B4 what the worker_init of a rank throws leaves the call and the next call is as new") {
  const Shared<std::atomic<bool>> bad;
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) {
    ++*calls;
    return item;
  };
  for (Shape shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    shape.worker_init = [&] {
      if (*bad) throw std::out_of_range("no database");
    };
    *calls = 0;
    LocalRanks cluster{shape, fn};
    for (const auto& policy : {std::optional<Retry>{}, std::optional{Retry{}}}) {
      *bad = true;
      try {
        parallel_map(fn, numbers(50), {.executor = cluster, .retry = policy});
        FAIL("nothing was thrown");
      } catch (const std::out_of_range& error) {
        CHECK(std::string(error.what()) == "no database");
      }
      CHECK(*calls == 0);
      *bad = false;
      CHECK(list_of(parallel_map(fn, numbers(50), {.executor = cluster, .retry = policy})) == numbers(50));
      *calls = 0;
    }
  }
}

// K: checkpoints -------------------------------------------------------------------------------------

TEST_CASE("K1 K5 over ranks a second run with a checkpoint calls nothing and draws no token") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task&) {
    ++(*calls)[item];
    return item * 3;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const Folder folder;
    const auto store = [&] { return sqlite_checkpoint(folder / "run.ckpt"); };
    from_every_source(40, [&](auto& items) {
      reset(*calls);
      Limiter limiter = large_budget();
      const bool first = !std::filesystem::exists(folder / "run.ckpt");
      const auto result = parallel_map(fn, items, {.executor = cluster, .rate_limit = limiter, .checkpoint = store()});
      REQUIRE(result.ok());
      for (int item = 0; item < 40; ++item) CHECK(result[static_cast<std::size_t>(item)] == item * 3);
      CHECK(attempts_of(result) == Ints(40, first ? 1 : 0));
      CHECK(calls->total() == (first ? 40 : 0));
      CHECK(drawn_from(limiter) == (first ? 40 : 0));
    });
  });
}

TEST_CASE("K1 over ranks a run goes on where another ended") {
  const Shared<Tally> calls;
  const Shared<std::atomic<bool>> fails;
  Function fn = [&](int item, const Task&) {
    ++(*calls)[item];
    if (*fails && item % 8 == 5) throw std::runtime_error("not today");
    return item + 1;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const Folder folder;
    const auto run = [&] {
      reset(*calls);
      return parallel_map(fn, numbers(60),
                          {.executor = cluster,
                           .max_errors = *fails ? std::optional<std::size_t>{3} : std::nullopt,
                           .checkpoint = sqlite_checkpoint(folder / "run.ckpt"),
                           .item_key = [](int item) { return ItemKey{item}; }});
    };
    *fails = true;
    const auto first = run();
    CHECK(first.aborted());
    *fails = false;
    const auto second = run();
    REQUIRE(second.ok());
    for (const auto& item : first.item_results()) CHECK((*calls)[item.index] == (item.ok() ? 0 : 1));
    CHECK(calls->total() + static_cast<int>(first.ok_values().size()) == 60);
  });
}

// S: streams -----------------------------------------------------------------------------------------

TEST_CASE("S1 a stream over ranks yields each result once and in order if asked") {
  Function fn = [](int item, const Task&) {
    if (item % 9 == 4) dawdle();
    return item % 7 == 3 ? throw std::out_of_range("third") : item * 2;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    for (const bool ordered : {false, true}) {
      from_every_source(60, [&](auto& items) {
        auto stream = parallel_iter(fn, items, {.executor = cluster, .ordered = ordered});
        const auto all = rest_of(stream);
        CHECK(stream.status() == RunStatus::completed);
        const Ints indices = indices_of(all);
        CHECK(sorted(indices) == numbers(60));
        if (ordered) CHECK(indices == numbers(60));
        for (const auto& item : all) {
          CHECK(item.ok() == (item.index % 7 != 3));
          if (item.ok()) CHECK(item.value() == static_cast<int>(item.index) * 2);
          if (!item.ok()) CHECK(item.error().template is<std::out_of_range>());
        }
      });
    }
  });
}

TEST_CASE("S1 a stream over ranks yields in the order of completion and does not wait for a slow item") {
  const Shared<std::atomic<bool>> others_are_there;
  Function fn = [&](int item, const Task&) {
    if (item == 0) wait_until([&] { return others_are_there->load(); });
    return item;
  };
  const auto check = [&](LocalRanks& cluster) {
    from_every_source(20, [&](auto& items) {
      *others_are_there = false;
      auto stream = parallel_iter(fn, items, {.executor = cluster});
      Ints all;
      for (auto& item : stream) {
        all.push_back(item.value());
        if (all.size() == 19) *others_are_there = true;
      }
      REQUIRE(all.size() == 20);
      CHECK(all.back() == 0);
      CHECK(sorted(all) == numbers(20));
    });
  };
  on_ranks(fn, check, 2);
}

TEST_CASE("S2 a stream over ranks holds at most a window of items and results whatever its consumer does") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    for (const bool ordered : {false, true}) {
      for (const std::size_t size : {0U, 1U, 5U}) {
        const int window = size == 0 ? 2 * static_cast<int>(cluster.shape().slots()) : static_cast<int>(size);
        int yielded = 0;
        int most = 0;
        SinglePass source{60, itself};
        source.on_read = [&](int item) { most = std::max(most, item + 1 - yielded); };
        auto stream =
            parallel_iter(fn, source, {.executor = cluster, .batch = Batch{.size = size}, .ordered = ordered});
        for (auto item = stream.begin(); item != stream.end();) {
          if (item->index % 50 == 20) dawdle();
          ++yielded;  // it is given back by ++
          ++item;
        }
        CHECK(yielded == 60);
        CHECK(most <= window);
        CHECK(source.mistakes == 0);
      }
    }
  });
}

TEST_CASE("S3 C7 leaving a stream over ranks early ends what runs and the ranks go on") {
  const Shared<std::atomic<int>> inside;
  bool processes = false;
  Function fn = [&](int item, const Task& task) {
    if (item < 5) return item;
    ++*inside;
    if (processes) hang();
    wait_for_stop(task);
    --*inside;
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    processes = shape.has_processes();
    const Test test;
    LocalRanks cluster{shape, fn};
    from_every_source(40, [&](auto& items) {
      *inside = 0;
      {
        auto stream = parallel_iter(fn, items, {.executor = cluster, .batch = Batch{.chunk = 1}});
        auto item = stream.begin();
        CHECK(item->value() < 5);
        for (int i = 1; i < 5; ++i) ++item;
      }
      if (!processes) CHECK(*inside == 0);
    });
    CHECK(list_of(parallel_map(fn, numbers(5), {.executor = cluster})) == numbers(5));
  }
}

TEST_CASE("S4 a stream over ranks ends with max_errors or a timeout or a stop and says why") {
  Function fn = [](int item, const Task&) { return item % 2 == 0 ? item : throw std::runtime_error("odd"); };
  on_ranks(fn, [&](LocalRanks& cluster) {
    for (const bool ordered : {false, true}) {
      auto aborted = parallel_iter(fn, std::views::iota(0), {.executor = cluster, .ordered = ordered, .max_errors = 3});
      const auto all = rest_of(aborted);
      CHECK(aborted.status() == RunStatus::aborted);
      CHECK(std::ranges::count_if(all, [](const auto& item) { return !item.ok(); }) == 3);
      CHECK_FALSE(all.back().ok());

      auto late = parallel_iter(fn, std::views::iota(0), {.executor = cluster, .ordered = ordered, .timeout = 20ms});
      rest_of(late);
      CHECK(late.status() == RunStatus::timed_out);

      std::stop_source stop;
      auto stopped =
          parallel_iter(fn, std::views::iota(0), {.executor = cluster, .ordered = ordered, .stop = stop.get_token()});
      int count = 0;
      for ([[maybe_unused]] auto& item : stopped) {
        if (++count == 20) stop.request_stop();
      }
      CHECK(stopped.status() == RunStatus::cancelled);
      CHECK(count >= 20);
    }
  });
}

TEST_CASE("S5 what the source of a stream over ranks throws leaves it after what was resolved") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    SinglePass source{100, itself};
    source.on_read = [](int item) {
      if (item == 20) throw Boom("the source");
    };
    auto stream = parallel_iter(fn, source, {.executor = cluster, .ordered = true});
    Ints all;
    const auto consume = [&] {
      for (auto& item : stream) all.push_back(item.value());
    };
    CHECK_THROWS_AS(consume(), Boom);
    // Without those that had not begun.
    CHECK(std::ranges::adjacent_find(all, std::ranges::greater_equal{}) == all.end());
    CHECK((all.empty() || all.back() < 20));
    CHECK(list_of(parallel_map(fn, numbers(3), {.executor = cluster})) == numbers(3));
  });
}

// D: the decorator -----------------------------------------------------------------------------------

TEST_CASE("D1 a parallel function that was served runs over ranks and keeps its defaults") {
  const Shared<Tally> calls;
  const auto twice = parallel(
      [&](int item) {
        if (++(*calls)[item] == 1) throw std::runtime_error("once");
        return item * 2;
      },
      {.retry = Retry{.attempts = 2, .backoff = 0s}});
  const auto add = parallel([](int left, int right) { return left + right; });
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, twice, add};
    const auto copy = twice;
    reset(*calls);
    CHECK(list_of(copy.map(numbers(5), {.executor = cluster})) == Ints{0, 2, 4, 6, 8});
    CHECK(calls->first(5) == Ints(5, 2));
    reset(*calls);
    auto stream = twice.stream(numbers(5), {.executor = cluster, .ordered = true});
    Ints all;
    for (auto& item : stream) {
      CHECK(item.attempts == 2);
      all.push_back(item.value());
    }
    CHECK(all == Ints{0, 2, 4, 6, 8});
    const std::vector<std::pair<int, int>> pairs{{1, 2}, {3, 4}};
    CHECK(list_of(add.starmap(pairs, {.executor = cluster})) == Ints{3, 7});
    CHECK(list_of(parallel_map(twice.target(), numbers(2), {.executor = cluster})) == Ints{0, 2});
  }
}

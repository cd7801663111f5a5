// Results, callbacks and inputs on forked workers: as on threads.
#include <pyarallel/summary.hpp>

#include "support/processes.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

// R: results -----------------------------------------------------------------------------------------

TEST_CASE("R1 R3 R4 with processes a truncated run has an entry for every item and is never ok") {
  const Test test;
  const Shared<Gate> hangs;
  std::stop_source stop;
  const auto fn = [&](int item) -> int {
    if (item == 0) throw std::out_of_range("zero");
    if (item == 1) return 11;
    if (item == 2) {
      hangs->wait();
      return 22;
    }
    hangs->open();
    hang();
  };
  const auto result = parallel_map(
      fn, numbers(8),
      {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto& item) {
         if (item.index == 2) stop.request_stop();
       }});
  CHECK(result.status() == RunStatus::cancelled);
  CHECK_FALSE(result.ok());
  CHECK(result.size() == 8);
  CHECK(result.item_results().size() == 8);
  CHECK_THROWS_AS(result.at(0), std::out_of_range);
  CHECK(result.at(1) == 11);
  CHECK(result.at(2) == 22);
  for (std::size_t index = 3; index < 8; ++index) CHECK_THROWS_AS(result.at(index), Cancelled);
  CHECK_THROWS_AS(result.at(8), std::out_of_range);
  CHECK_THROWS_AS(result.values(), Cancelled);
  CHECK_THROWS_AS(result[1], Cancelled);
  CHECK_THROWS_AS(result.begin(), Cancelled);
  CHECK_THROWS_AS(result.throw_on_failure(), ExceptionGroup);
  CHECK(result.ok_values() == Ints{11, 22});
  REQUIRE(result.successes().size() == 2);
  CHECK((*std::ranges::next(result.successes().begin())).index == 2);
}

TEST_CASE("R2 R6 with processes failures are listed in input order whatever their completion order") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const Shared<Gate> five_failed;
    const auto fn = [&](int item) {
      if (item == 1) {
        five_failed->wait();
        throw std::out_of_range("one");
      }
      if (item == 3) crash();
      if (item == 5) {
        five_failed->open();
        throw std::runtime_error("five");
      }
      return item;
    };
    const auto result =
        parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 6, .chunk = 1}});
    CHECK(result.complete());
    CHECK_FALSE(result.ok());
    try {
      result.values();
      FAIL("nothing was thrown");
    } catch (const ExceptionGroup& group) {
      REQUIRE(group.failures().size() == 3);
      CHECK(group.failures()[0].index == 1);
      CHECK(group.failures()[1].index == 3);
      CHECK(group.failures()[2].index == 5);
      const std::string text = group.what();
      CHECK(says(text, "3 of 6"));
      CHECK(says(text, "[1] std::out_of_range: one"));
      CHECK(says(text, "[3] pyarallel::WorkerCrashed"));
      CHECK(says(text, "[5] std::runtime_error: five"));
    }
  });
}

TEST_CASE("R5 with processes a stop or a timeout that leaves no item unrun changes nothing") {
  const Test test;
  for_each_kind_of_input(5, [](const auto& items) {
    std::stop_source stop;
    std::size_t reported = 0;
    const auto stopped = parallel_map(
        itself, items,
        {.workers = 2, .executor = Executor::process, .stop = stop.get_token(), .on_result = [&](const auto&) {
           if (++reported == 5) stop.request_stop();
         }});
    CHECK(stopped.ok());
    CHECK(list_of(stopped) == numbers(5));
  });
}

TEST_CASE("R5 with processes the first reason to stop wins and the n-th failure aborts also on the last item") {
  const Test test;
  for_each_kind_of_input(5, [](const auto& items) {
    const Shared<std::atomic<int>> begun;  // what never began when the run is aborted would not run
    const auto fail_last = [&](int item) {
      if (item == 4) {
        wait_until([&] { return *begun == 4; });
        throw Boom("last");
      }
      ++*begun;
      return item;
    };
    const auto last = parallel_map(fail_last, items, {.workers = 2, .executor = Executor::process, .max_errors = 1});
    CHECK(last.aborted());
    CHECK(last.ok_values().size() == 4);

    std::stop_source stop;
    const auto fail_first = [](int item, const Task& task) {
      if (item == 0) throw Boom("first");
      wait_for_stop(task);
      return item;
    };
    const auto first = parallel_map(fail_first, items,
                                    {.workers = 2,
                                     .executor = Executor::process,
                                     .max_errors = 1,
                                     .stop = stop.get_token(),
                                     .on_progress = [&](auto...) { stop.request_stop(); }});
    CHECK(first.aborted());
    CHECK(error_of(first, 4).template is<Aborted>());
  });
}

TEST_CASE("R7 with processes results may be bool or move-only or over-aligned or without a default") {
  const Test test;
  struct alignas(64) Aligned {
    int number;
  };
  struct NoDefault {
    explicit NoDefault(int value) : number(value) {}
    int number;
  };
  for_each_kind_of_input(70, [](const auto& items) {
    constexpr std::size_t last = 69;
    const auto odd =
        parallel_map([](int i) { return i % 2 == 1; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(odd[last] == true);
    auto pointers = parallel_map([](int i) { return std::make_unique<int>(i); }, items,
                                 {.workers = 2, .executor = Executor::process});
    REQUIRE(pointers.ok());
    CHECK(*pointers[last] == 69);
    const std::vector<std::unique_ptr<int>> values = std::move(pointers).values();
    CHECK(*values[1] == 1);
    const auto aligned =
        parallel_map([](int i) { return Aligned{i}; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(aligned[last].number == 69);
    CHECK(reinterpret_cast<std::uintptr_t>(&aligned[1]) % 64 == 0);
    const auto no_default =
        parallel_map([](int i) { return NoDefault{i}; }, items, {.workers = 2, .executor = Executor::process});
    CHECK(no_default[last].number == 69);
    const auto nothing = parallel_map([](int) {}, items, {.workers = 2, .executor = Executor::process});
    CHECK(nothing.values().size() == 70);
  });
}

TEST_CASE("R8 with processes every item that ran has one attempt and a duration also in chunks") {
  const Test test;
  const auto check = [](const auto& result, std::size_t size) {
    REQUIRE(result.ok());
    REQUIRE(result.size() == size);
    std::size_t wrong = 0;
    for (const auto& item : result.item_results()) {
      if (item.attempts != 1 || item.duration <= Duration::zero() || item.duration > 30s) ++wrong;
    }
    CHECK(wrong == 0);
  };
  const Ints many = numbers(300'000);
  check(parallel_map(itself, many, {.workers = 2, .executor = Executor::process}), many.size());
  check(parallel_map(itself, many, {.workers = 2, .executor = Executor::process, .batch = Batch{.chunk = 1000}}),
        many.size());
  check(parallel_map(itself, many, {.workers = 1, .executor = Executor::process, .timeout = 1h}), many.size());
  check(parallel_map(itself, std::list<int>(2000), {.workers = 2, .executor = Executor::process}), 2000);
  check(parallel_map(itself, many | std::views::take(2000),
                     {.workers = 2, .executor = Executor::process, .retry = Retry{}}),
        2000);
}

TEST_CASE("R8 with processes attempts of what was killed are counted too") {
  const Test test;
  for_each_kind_of_input(4, [](const auto& items) {
    const auto fn = [](int item, const Task& task) {
      if (item == 1 && task.attempt == 1) throw Boom("once");
      if (item == 2 && task.attempt < 3) crash();
      if (item == 1 || item == 2) hang();
      return item;
    };
    const auto result = parallel_map(
        fn, items,
        {.workers = 3, .executor = Executor::process, .retry = Retry{.attempts = 5, .backoff = 0s}, .timeout = 500ms});
    CHECK(result.timed_out());
    CHECK(attempts_of(result) == Ints{1, 2, 3, 1});
    CHECK(error_of(result, 1).template is<TimeoutError>());
    CHECK(error_of(result, 2).template is<TimeoutError>());
  });
}

TEST_CASE("R8 with processes the summary tells what crashed and what was killed at the end") {
  const Test test;
  for_each_kind_of_input(5, [](const auto& items) {
    const auto fn = [](int item, const Task& task) {
      if (item == 0 && task.attempt == 1) crash();
      if (item == 2) crash();
      if (item > 2) hang();
      return item;
    };
    const std::string text = summary(parallel_map(
        fn, items,
        {.workers = 5, .executor = Executor::process, .retry = Retry{.attempts = 2, .backoff = 0s}, .timeout = 500ms}));
    const std::string expected =
        "5 items: timed out\n"
        "  2 succeeded\n"
        "  1 failed\n"
        "  2 interrupted: the run's timeout of 500ms was reached first\n"
        "failures:\n"
        "  1 pyarallel::WorkerCrashed: " +
        std::string(WorkerCrashed(SIGKILL, -1).what()) +
        "\n"
        "    at 2\n"
        "attempts: 1: 3, 2: 2\n"
        "durations: p50 ";
    CHECK(text.substr(0, expected.size()) == expected);
  });
}

TEST_CASE("R8 with processes the duration is from the first start to the outcome") {
  const Test test;
  for_each_kind_of_input(3, [](const auto& items) {
    const auto fn = [](int item, const Task& task) {
      if (item == 1 && task.attempt == 1) throw Boom("once");
      if (item == 2 && task.attempt == 1) crash();
      return item;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 3,
                                      .executor = Executor::process,
                                      .retry = Retry{.attempts = 2, .backoff = 100ms, .jitter = false}});
    REQUIRE(result.ok());
    const auto all = result.item_results();
    CHECK(all[0].duration < 100ms);
    CHECK(all[1].duration >= 100ms);
    CHECK(all[2].duration >= 100ms);
    CHECK(all[2].duration < 10s);
  });
}

// B: callbacks ---------------------------------------------------------------------------------------

TEST_CASE("B1 with processes callbacks run on the calling thread once for each item in completion order") {
  const Test test;
  for_each_kind_of_input(30, [](const auto& items) {
    const auto driver = std::this_thread::get_id();
    const Shared<Gate> one_reported;
    int elsewhere = 0;
    Ints reported;
    std::vector<std::size_t> done;
    std::set<std::size_t> totals;
    const auto fn = [&](int item) {
      if (item == 0) one_reported->wait();
      if (item == 7) throw Boom("seven");
      if (item == 8) crash();
      return item * 2;
    };
    const auto result = parallel_map(fn, items,
                                     {.workers = 2,
                                      .executor = Executor::process,
                                      .on_result =
                                          [&](const ItemResult<int>& item) {
                                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                                            if (item.attempts != 1 || item.duration <= 0s) ++elsewhere;
                                            if (item.ok() != (item.index != 7 && item.index != 8)) ++elsewhere;
                                            if (item.ok() && item.value() != static_cast<int>(item.index) * 2)
                                              ++elsewhere;
                                            if (item.index == 7 && !item.error().template is<std::runtime_error>())
                                              ++elsewhere;
                                            if (item.index == 8 && !item.error().template is<WorkerCrashed>())
                                              ++elsewhere;
                                            reported.push_back(static_cast<int>(item.index));
                                            if (item.index == 1) one_reported->open();
                                          },
                                      .on_progress =
                                          [&](std::size_t now, std::size_t total) {
                                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                                            done.push_back(now);
                                            totals.insert(total);
                                          }});
    CHECK(result.complete());
    CHECK(elsewhere == 0);
    const auto at = [&](int item) { return std::ranges::find(reported, item); };
    CHECK(at(1) < at(0));
    std::ranges::sort(reported);
    CHECK(reported == numbers(30));
    REQUIRE(done.size() == 30);
    for (std::size_t i = 0; i < 30; ++i) CHECK(done[i] == i + 1);
    CHECK(totals == std::set<std::size_t>{30});
  });
}

TEST_CASE("B1 with processes the total of an unsized input is what was pulled so far") {
  const Test test;
  SinglePass source{50, itself};
  std::size_t calls = 0;
  std::size_t wrong = 0;
  const auto result = parallel_map(
      itself, source,
      {.workers = 2, .executor = Executor::process, .on_progress = [&](std::size_t done, std::size_t total) {
         ++calls;
         if (done != calls || total != static_cast<std::size_t>(source.reads)) ++wrong;
       }});
  CHECK(result.ok());
  CHECK(calls == 50);
  CHECK(wrong == 0);
}

TEST_CASE("B1 with processes placeholders of a truncated run are not reported") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    std::set<std::size_t> reported;
    const auto record = [&](const auto& item) { reported.insert(item.index); };
    const auto check = [&](const auto& result, std::size_t killed) {
      std::set<std::size_t> ran;
      for (const auto& item : result.item_results()) {
        if (item.attempts > 0) ran.insert(item.index);
      }
      CHECK(ran.size() == reported.size() + killed);
      CHECK(std::ranges::includes(ran, reported));
      CHECK(ran.size() < 40);
      reported.clear();
    };
    const auto fn = [](int item) { return item < 10 ? item : throw Boom("fails"); };
    check(parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .max_errors = 2, .on_result = record}),
          0);
    const auto hangs = [](int item) {
      if (item >= 10) hang();
      return item;
    };
    check(parallel_map(hangs, items,
                       {.workers = 2, .executor = Executor::process, .timeout = 300ms, .on_result = record}),
          2);
  });
}

TEST_CASE("B2 with processes what a callback throws leaves the call and no later callback runs") {
  const Test test;
  struct CallbackError {  // crosses no boundary
    int* at;
  };
  int at = 0;
  for_each_kind_of_input(100, [&](const auto& items) {
    for (const bool in_progress : {false, true}) {
      const Shared<Crowd> inside;
      int calls = 0;
      const auto callback = [&] {
        if (++calls == 3) throw CallbackError{&at};
      };
      const auto fn = [&](int item) {
        inside->enter();
        inside->leave();
        return item;
      };
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      if (in_progress) options.on_progress = [&](auto...) { callback(); };
      if (!in_progress) options.on_result = [&](const auto&) { callback(); };
      try {
        parallel_map(fn, items, options);
        FAIL("nothing was thrown");
      } catch (const CallbackError& e) {
        CHECK(e.at == &at);
      }
      CHECK(calls == 3);
      CHECK(waitpid(-1, nullptr, WNOHANG) == -1);
    }
  });
}

TEST_CASE("B3 with processes item_key is called once on the driver before the item starts") {
  const Test test;
  for_each_kind_of_input(40, [](const auto& items) {
    const Shared<Tally> keyed;
    const Shared<std::atomic<int>> too_early;
    const auto driver = std::this_thread::get_id();
    int elsewhere = 0;
    const auto fn = [&](int item) {
      if ((*keyed)[item] != 1) ++*too_early;
      return item;
    };
    const auto result =
        parallel_map(fn, items,
                     {.workers = 2,
                      .executor = Executor::process,
                      .item_key =
                          [&](const int& item) {
                            if (std::this_thread::get_id() != driver || in_worker()) ++elsewhere;
                            ++(*keyed)[item];
                            return item % 2 == 0 ? ItemKey{std::int64_t{item / 4}} : ItemKey{std::to_string(item)};
                          },
                      .on_result =
                          [&](const auto& item) {
                            if (item.index == 3 && item.key != ItemKey{std::string("3")}) ++elsewhere;
                          }});
    CHECK(list_of(result) == numbers(40));
    CHECK(elsewhere == 0);
    CHECK(*too_early == 0);
    CHECK(keyed->first(40) == Ints(40, 1));
    const auto all = result.item_results();
    CHECK(all[6].key == ItemKey{std::int64_t{1}});
    CHECK(all[39].key == ItemKey{std::string("39")});
  });
}

TEST_CASE("B3 C3 random-access input is inherited whatever its items are") {
  const Test test;
  std::deque<NonMovable> items;
  for (int i = 0; i < 50; ++i) items.emplace_back(i);
  const NonMovable* const first = &items[0];
  const auto fn = [&](const NonMovable& item) { return item.value * 2 + (&item == first ? 1000 : 0); };
  const auto check = [](const MapResult<int>& result) {
    REQUIRE(result.ok());
    CHECK(result[0] == 1000);
    CHECK(result[49] == 98);
  };
  using Options = MapOptions<NonMovable, int>;
  check(parallel_map(fn, items, Options{.workers = 2, .executor = Executor::process}));
  check(parallel_map(fn, items, Options{.workers = 2, .executor = Executor::process, .retry = Retry{}}));
  const auto keyed =
      parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .item_key = [](const NonMovable& item) {
                                 return ItemKey{item.value};
                               }});
  check(keyed);
  CHECK(keyed.item_results()[7].key == ItemKey{7});

  const std::string text = "words that are views of something that the workers inherited";
  std::vector<std::string_view> words;
  for (std::size_t at = 0; at + 5 < text.size(); at += 5) words.push_back(std::string_view{text}.substr(at, 5));
  const auto copies = parallel_map([](std::string_view word) { return std::string{word}; }, words,
                                   {.workers = 2, .executor = Executor::process});
  CHECK(copies[1] == words[1]);
}

namespace {

pid_t initialized_process = 0;  // of this process

}  // namespace

TEST_CASE("B4 with processes worker_init runs once in each worker before its first item") {
  const Test test;
  for_each_kind_of_input(60, [](const auto& items) {
    for (const int way : {0, 1, 2}) {
      const Shared<Log<pid_t>> initialized;
      const Shared<std::array<std::atomic<pid_t>, 60>> ran_in;
      const Shared<std::atomic<int>> unready;
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      options.worker_init = [&] {
        initialized->add(getpid());
        initialized_process = getpid();
      };
      if (way == 1) options.max_tasks_per_worker = 10;
      if (way == 2) options.retry = Retry{.attempts = 2, .backoff = 0s};
      const auto fn = [&](int item, const Task& task) {
        if (initialized_process != getpid()) ++*unready;
        (*ran_in)[static_cast<std::size_t>(item)] = getpid();
        if (item % 20 == 3 && task.attempt == 1) crash();
        return item;
      };
      const auto result = parallel_map(fn, items, options);
      CHECK(result.complete());
      CHECK(result.failures().size() == (way == 2 ? 0 : 3));
      CHECK(*unready == 0);
      CHECK(initialized_process == 0);
      const auto all = initialized->all();
      const std::set<pid_t> processes(all.begin(), all.end());
      CHECK(processes.size() == all.size());
      CHECK_FALSE(processes.contains(test_process));
      for (const auto& process : *ran_in) CHECK(processes.contains(process));
      CHECK(all.size() >= (way == 1 ? 6 : 3));
    }
  });
}

TEST_CASE("B4 with processes what worker_init throws leaves the call") {
  const Test test;
  for_each_kind_of_input(20, [](const auto& items) {
    const Shared<std::atomic<int>> calls;
    const auto fn = [&](int item) {
      ++*calls;
      return item;
    };
    for (const bool policy : {false, true}) {
      MapOptions<int, int> options{.workers = 2, .executor = Executor::process};
      options.worker_init = [] { throw std::out_of_range("no licence"); };
      if (policy) options.retry = Retry{};
      try {
        parallel_map(fn, items, options);
        FAIL("nothing was thrown");
      } catch (const std::out_of_range& e) {
        CHECK(e.what() == std::string("no licence"));
      }
      CHECK(*calls == 0);
    }
  });
}

// C: calling -----------------------------------------------------------------------------------------

TEST_CASE("C2 C3 with processes ranges of every kind are inputs") {
  const Test test;
  namespace views = std::views;
  const auto twice = [](int item) { return 2 * item; };
  const auto mapped = [&](auto&& items) {
    return list_of(parallel_map(twice, items, {.workers = 2, .executor = Executor::process}));
  };
  const Ints doubled{2, 4, 6, 8, 10};
  Ints vector{1, 2, 3, 4, 5};
  const Ints constant = vector;
  CHECK(mapped(vector) == doubled);
  CHECK(mapped(constant) == doubled);
  CHECK(mapped(Ints(vector)) == doubled);
  CHECK(mapped(std::array{1, 2, 3, 4, 5}) == doubled);
  int c_array[]{1, 2, 3, 4, 5};
  CHECK(mapped(c_array) == doubled);
  CHECK(mapped(std::deque<int>{1, 2, 3, 4, 5}) == doubled);
  std::list<int> list{1, 2, 3, 4, 5};
  CHECK(mapped(list) == doubled);
  CHECK(mapped(std::as_const(list)) == doubled);
  CHECK(mapped(std::forward_list<int>{1, 2, 3, 4, 5}) == doubled);
  CHECK(mapped(std::set<int>{5, 3, 1, 2, 4}) == doubled);
  CHECK(mapped(views::iota(1, 6)) == doubled);
  CHECK(mapped(views::iota(1) | views::take(5)) == doubled);
  CHECK(mapped(views::iota(1) | views::take_while([](int i) { return i < 6; })) == doubled);
  CHECK(mapped(constant | views::transform(itself)) == doubled);
  CHECK(mapped(list | views::transform(itself)) == doubled);
  CHECK(mapped(vector | views::reverse) == Ints{10, 8, 6, 4, 2});
  CHECK(mapped(vector | views::filter([](int i) { return i % 2 == 1; })) == Ints{2, 6, 10});
  std::istringstream in{"1 2 3 4 5"};
  CHECK(mapped(std::ranges::istream_view<int>(in)) == doubled);
  SinglePass generator{5, [](int i) { return i + 1; }};
  CHECK(mapped(generator) == doubled);
  CHECK(generator.mistakes == 0);
  SinglePass lvalues{5, [&](int i) -> int& { return vector[static_cast<std::size_t>(i)]; }};
  CHECK(mapped(lvalues) == doubled);

  const auto name = [](const auto& entry) { return entry.first + std::to_string(entry.second); };
  const std::map<std::string, int> map{{"a", 1}, {"b", 2}};
  CHECK(list_of(parallel_map(name, map, {.workers = 2, .executor = Executor::process})) ==
        std::vector<std::string>{"a1", "b2"});
  CHECK(mapped(map | views::values) == Ints{2, 4});
  CHECK(list_of(parallel_map([](bool b) { return !b; }, std::vector<bool>{true, false, true},
                             {.workers = 2, .executor = Executor::process})) == std::vector<bool>{false, true, false});
}

TEST_CASE("C3 with processes a function may change its items and only the worker sees that") {
  const Test test;
  const auto change = [](int& item) { return ++item; };
  Ints vector{1, 2, 3};
  CHECK(list_of(parallel_map(change, vector, {.workers = 2, .executor = Executor::process})) == Ints{2, 3, 4});
  CHECK(vector == Ints{1, 2, 3});
  std::list<int> list{1, 2, 3};
  CHECK(list_of(parallel_map(change, list, {.workers = 2, .executor = Executor::process})) == Ints{2, 3, 4});
  CHECK(list == std::list<int>{1, 2, 3});
}

TEST_CASE("C3 with processes items of any size are sent") {
  const Test test;
  SinglePass source{40, [](int i) {
                      return std::vector<int>(static_cast<std::size_t>(i) * 20'000, i);  // up to 3 MiB
                    }};
  const auto sum = [](const Ints& item) { return std::accumulate(item.begin(), item.end(), 0L); };
  const auto result = parallel_map(sum, source, {.workers = 2, .executor = Executor::process});
  REQUIRE(result.ok());
  for (int i = 0; i < 40; ++i) CHECK(result[static_cast<std::size_t>(i)] == 20'000L * i * i);
}

TEST_CASE("C2 with processes an empty input is complete and starts no worker") {
  const Test test;
  std::stop_source stop;
  stop.request_stop();
  const Forks forks;
  const Shared<std::atomic<int>> calls;
  const auto fn = [&](int item) {
    ++*calls;
    return item;
  };
  for (const bool truncated : {false, true}) {
    MapOptions<int, int> options{.workers = 2, .executor = Executor::process, .worker_init = [&] { ++*calls; }};
    if (truncated) options.timeout = 0s;
    if (truncated) options.stop = stop.get_token();
    SinglePass source{0, itself};
    for (const auto& result : {parallel_map(fn, Ints{}, options), parallel_map(fn, std::list<int>{}, options),
                               parallel_map(fn, source, options)}) {
      CHECK(result.ok());
      CHECK(result.empty());
    }
  }
  CHECK(forks.count() == 0);
  CHECK(*calls == 0);
}

TEST_CASE("C4 with processes results are in input order whatever the completion order") {
  const Test test;
  for_each_kind_of_input(10, [](const auto& items) {
    const Shared<std::atomic<int>> done;
    // The later ones first, as far as two workers and a window of ten can.
    const auto fn = [&](int item) {
      if (item == 0) wait_until([&] { return *done == 9; });
      ++*done;
      return std::to_string(item);
    };
    const auto result =
        parallel_map(fn, items, {.workers = 2, .executor = Executor::process, .batch = Batch{.size = 10, .chunk = 1}});
    for (std::size_t i = 0; i < 10; ++i) CHECK(result.at(i) == std::to_string(i));
  });
}

namespace {

struct Custom : std::exception {
  const char* what() const noexcept override { return "custom text"; }
};

}  // namespace

TEST_CASE("C5 with processes whatever is thrown becomes the error of its item") {
  const Test test;
  for_each_kind_of_input(6, [](const auto& items) {
    const auto fn = [](int item) -> int {
      if (item == 0) throw 42;
      if (item == 1) throw Custom{};
      if (item == 2) throw std::out_of_range("range");
      if (item == 3) throw std::string("text");
      if (item == 4) throw HttpError(503, "7", "busy");
      return item;
    };
    const auto check = [&](const MapOptions<int, int>& options) {
      const auto result = parallel_map(fn, items, options);
      CHECK(result.complete());
      CHECK(result.failures().size() == 5);
      const auto remote = [&](std::size_t index) {
        const auto* error = error_of(result, index).template get_if<RemoteError>();
        return error != nullptr ? error->type_name() + ": " + error->what() : "no RemoteError";
      };
      CHECK(says(remote(0), "int: "));
      CHECK(says(remote(1), "Custom: custom text"));
      CHECK(error_of(result, 2).template is<std::out_of_range>());
      CHECK(error_of(result, 2).what() == "range");
      CHECK(says(remote(3), "string"));
      const auto* http = error_of(result, 4).template get_if<HttpError>();
      REQUIRE(http != nullptr);
      CHECK(http->status() == 503);
      CHECK(http->retry_after() == "7");
      CHECK(result.at(5) == 5);
    };
    check({.workers = 2, .executor = Executor::process});
    check({.workers = 2, .executor = Executor::process, .retry = Retry{.attempts = 1}});
  });
}

TEST_CASE("C6 with processes bad options are refused before anything runs") {
  const Test test;
  const Forks forks;
  const auto complaint = [](MapOptions<int, int> options) -> std::string {
    options.executor = Executor::process;
    std::string text = "none";
    try {
      parallel_map(itself, numbers(3), options);
    } catch (const std::invalid_argument& e) {
      text = e.what();
    }
    CHECK_THROWS_AS(parallel_map(itself, std::list<int>{}, options), std::invalid_argument);  // nor anything to run
    return text;
  };
  CHECK(complaint({.workers = 0}) == "workers must be >= 1, got 0");
  CHECK(complaint({.max_errors = 0}) == "max_errors must be >= 1, got 0");
  CHECK(complaint({.max_tasks_per_worker = 0}) == "max_tasks_per_worker must be >= 1, got 0");
  CHECK(complaint({.retry = Retry{.attempts = 0}}) == "Retry: attempts must be >= 1, got 0");
  CHECK(says(complaint({.timeout = -1s}), "timeout must be >= 0"));
  CHECK(says(complaint({.task_timeout = -1s}), "task_timeout must be >= 0"));
  CHECK(says(complaint({.rate_limit = RateLimit{std::numeric_limits<double>::quiet_NaN()}}), "RateLimit: count"));
  CHECK(says(complaint({.rate_limit = RateLimit{1, 1s, 0}}), "RateLimit: burst must be >= 1, got 0"));
  CHECK(forks.count() == 0);
}

TEST_CASE("C6 processes need a Codec for results and for items that are sent") {
  const Test test;
  const Forks forks;
  const auto complaint = [](const auto& fn, const auto& items, const auto&... options) -> std::string {
    try {
      parallel_map(fn, items, options...);
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "none";
  };
  const Ints items{1, 2, 3};
  const auto pointer_to = [](const int& item) { return &item; };
  using ToPointer = MapOptions<int, const int*>;
  for (const std::string& text : {complaint(pointer_to, items, ToPointer{.executor = runtime(Executor::process)}),
                                  complaint(pointer_to, items, Options{.executor = Executor::process}),
                                  complaint(pointer_to, Ints{}, Options{.executor = Executor::process})}) {
    CHECK(text.starts_with("executor: Executor::process needs a Codec for the type that the function returns"));
  }
  CHECK(complaint(pointer_to, items, Options{.executor = Executor::process}, ToPointer{.executor = Executor::thread}) ==
        "none");

  const std::list<const int*> pointers{&items[0], &items[1]};
  const auto pointee = [](const int* item) { return *item; };
  CHECK(complaint(pointee, pointers, Options{.executor = Executor::process})
            .starts_with("executor: Executor::process sends the items of an input that is not random access"));
  CHECK(forks.count() == 0);
  const std::vector<const int*> inherited(pointers.begin(), pointers.end());
  CHECK(list_of(parallel_map(pointee, inherited, {.workers = 2, .executor = Executor::process})) == Ints{1, 2});
}

TEST_CASE("C9 with processes starmap calls with the elements of each tuple and every option works") {
  const Test test;
  const std::vector<std::pair<std::string, int>> pairs{{"a", 1}, {"b", 2}, {"c", 3}};
  const auto check = [](const auto& items) {
    const Shared<std::atomic<int>> inits;
    std::vector<std::size_t> progress;
    const auto fn = [](const std::string& name, int number, const Task& task) {
      if (task.attempt == 1 && number == 1) throw std::runtime_error(name);
      if (task.attempt == 1 && number == 2) crash();
      if (task.attempt == 1 && number == 3) hang();
      return name + std::to_string(number);
    };
    const auto result =
        parallel_starmap(fn, items,
                         {.workers = 2,
                          .executor = Executor::process,
                          .rate_limit = 1e6,
                          .retry = Retry{.attempts = 2, .backoff = 0s},
                          .timeout = 1h,
                          .task_timeout = 200ms,
                          .item_key = [](const auto& pair) { return ItemKey{pair.first}; },
                          .on_progress = [&](std::size_t done, std::size_t) { progress.push_back(done); },
                          .worker_init = [&] { ++*inits; }});
    CHECK(list_of(result) == std::vector<std::string>{"a1", "b2", "c3"});
    CHECK(attempts_of(result) == Ints{2, 2, 2});
    CHECK(progress == std::vector<std::size_t>{1, 2, 3});
    CHECK(*inits >= 2);
    CHECK(result.item_results()[1].key == ItemKey{std::string("b")});
  };
  check(pairs);
  check(std::map<std::string, int>(pairs.begin(), pairs.end()));
  const std::vector<std::tuple<int, int, int>> triples{{1, 2, 3}, {4, 5, 6}};
  CHECK(list_of(parallel_starmap([](int a, int b, int c) { return a + b * c; }, triples,
                                 Options{.workers = 2, .executor = Executor::process})) == Ints{7, 34});
}

TEST_CASE("C10 one worker process is another process and a sequential run is none") {
  const Test test;
  const auto where = [](int) { return getpid(); };
  for_each_kind_of_input(10, [&](const auto& items) {
    for (const bool policy : {false, true}) {
      MapOptions<int, pid_t> options{.workers = 1, .executor = Executor::process};
      if (policy) options.retry = Retry{};
      const Forks forks;
      const auto processes = list_of(parallel_map(where, items, options));
      CHECK(std::ranges::count(processes, test_process) == 0);
      CHECK(std::set<pid_t>(processes.begin(), processes.end()).size() == 1);
      CHECK(forks.count() == 1);
      options.executor = Executor::sequential;
      options.max_tasks_per_worker = 1;
      options.worker_memory_limit = 1;
      CHECK(list_of(parallel_map(where, items, options)) == std::vector<pid_t>(10, test_process));
      CHECK(forks.count() == 1);
    }
  });
}

TEST_CASE("C11 with processes there are never more workers than items") {
  const Test test;
  for_each_kind_of_input(3, [](const auto& items) {
    for (const bool policy : {false, true}) {
      MapOptions<int, std::size_t> options{.workers = 50, .executor = Executor::process, .batch = Batch{.chunk = 1}};
      if (policy) options.retry = Retry{};
      const Forks forks;
      const Shared<std::atomic<int>> arrived;
      const auto fn = [&](int, const Task& task) {
        ++*arrived;
        wait_until([&] { return *arrived == 3; });
        return task.worker;
      };
      const auto result = parallel_map(fn, items, options);
      auto workers = list_of(result);
      std::ranges::sort(workers);
      CHECK(workers == std::vector<std::size_t>{0, 1, 2});
      CHECK(forks.count() == 3);
    }
  });
}

TEST_CASE("C11 the default for processes is the number of CPUs") {
  const Test test;
  const auto count = static_cast<int>(available_parallelism());
  CHECK(default_workers(Executor::process) == available_parallelism());
  const Shared<Crowd> crowd;
  const Shared<std::atomic<int>> arrived;
  const auto fn = [&](int item) {
    crowd->enter();
    ++*arrived;
    wait_until([&] { return *arrived >= std::min(8 * count, item / count * count + count); });
    crowd->leave();
    return item;
  };
  const Forks forks;
  const auto result = parallel_map(fn, numbers(8 * count), {.executor = Executor::process, .batch = Batch{.chunk = 1}});
  CHECK(result.ok());
  CHECK(crowd->most() == count);
  CHECK(forks.count() == count);
}

TEST_CASE("Options that ask for processes are inherited and overridden") {
  const Test test;
  const auto where = [](int) { return getpid(); };
  const auto in_processes = [&](const auto&... options) {
    const auto processes = list_of(parallel_map(where, numbers(8), options...));
    return std::ranges::count(processes, test_process) == 0;
  };
  const Options shared{.workers = 2, .executor = Executor::process, .max_tasks_per_worker = 2};
  CHECK(in_processes(shared));
  {
    const Forks forks;
    CHECK(in_processes(shared));
    CHECK(forks.count() >= 4);
  }
  CHECK(in_processes(shared, MapOptions<int, pid_t>{.retry = Retry{}}));
  CHECK_FALSE(in_processes(shared, MapOptions<int, pid_t>{.executor = Executor::sequential}));
  CHECK_THROWS_AS(in_processes(shared, MapOptions<int, pid_t>{.executor = Executor::thread}), std::invalid_argument);
  CHECK(in_processes(Options{.workers = 2}, MapOptions<int, pid_t>{.executor = Executor::process}));
  CHECK(in_processes(MapOptions<int, pid_t>{.executor = runtime(Executor::process)}));
}

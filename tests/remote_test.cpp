// Runs on other machines, without MPI: what is called, where and with what, what comes back, and what is left.
// (remote_policies_test.cpp has what decides when an item runs, and how a run ends.)
#include <dirent.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>

#include "support/local_ranks.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

int triple(int number) { return number * 3 + 1; }
int negative(int number) { return -number; }

Ints each(int (*fn)(int), int count) {
  Ints all = numbers(count);
  for (int& number : all) number = fn(number);
  return all;
}

/// Holds nothing.
struct Doubles {
  int operator()(int number) const { return number * 2; }
};

struct Pair {
  int left = 0;
  int right = 0;
  int sum() const { return left + right; }
};

/// What the code throws as E; empty if it throws none.
template <class E, class Code>
std::string thrown(Code code) {
  try {
    code();
  } catch (const E& error) {
    return error.what();
  }
  return {};
}

/// The descriptors that this process has, and whether it has children.
std::string leavings() {
  siginfo_t info{};
  const bool children = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 || errno != ECHILD;
  std::string text = children ? "children; " : "";
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) throw std::runtime_error("/proc/self/fd");
  while (const dirent* entry = readdir(folder)) {
    if (std::atoi(entry->d_name) != dirfd(folder)) text.append(entry->d_name).append(" ");
  }
  closedir(folder);
  return text;
}

/// Bytes that say which they are, all along.
std::vector<char> large(std::size_t size, int number) {
  std::vector<char> bytes(size);
  unsigned state = 12345U + static_cast<unsigned>(number);
  for (std::size_t at = 0; at < size; at += 997) {
    state = state * 1664525U + 1013904223U;
    bytes[at] = static_cast<char>(state >> 24U);
  }
  return bytes;
}

constexpr std::size_t MiB = std::size_t{1} << 20;

}  // namespace

// C: calling -----------------------------------------------------------------------------------------

TEST_CASE("C2 C4 ranks take items from every source and results are in input order") {
  Function fn = [](int item, const Task& task) {
    if (task.index != static_cast<std::size_t>(item) || task.attempt != 1) throw std::logic_error("another item");
    return in_worker() ? triple(item) : -1;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    for (const int count : {1, 2, 7, 60}) {
      from_every_source(count, [&](auto& items) {
        const auto result = parallel_map(fn, items, {.executor = cluster});
        CHECK(result.ok());
        CHECK(list_of(result) == each(triple, count));
      });
    }
  });
}

TEST_CASE("C2 ranks are asked for nothing by an empty input") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(0, [&](auto& items) {
      std::stop_source stop;
      stop.request_stop();
      for (const auto& result :
           {parallel_map(fn, items, {.executor = cluster}),
            parallel_map(fn, items, {.executor = cluster, .timeout = 0s, .stop = stop.get_token()})}) {
        CHECK(result.ok());
        CHECK(result.empty());
        CHECK(result.status() == RunStatus::completed);
      }
    });
  });
}

TEST_CASE("C2 up to a hundred thousand tiny items over ranks are complete and right") {
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) {
    ++*calls;
    return triple(item);
  };
  for (const Shape& shape : {Shape{1, thread, 1}, Shape{2, thread, 3}, Shape{1, process, 2}, Shape{3, process, 1}}) {
    INFO(shape.name());
    const Test test;
    *calls = 0;
    LocalRanks cluster{shape, fn};
    const int count = shape.has_processes() ? 10'000 : 100'000;  // each costs more there
    const Ints items = numbers(count);
    const auto result = parallel_map(fn, items, {.executor = cluster});
    CHECK(result.ok());
    CHECK(std::ranges::equal(result, each(triple, count)));
    CHECK(*calls == count);
  }
}

TEST_CASE("C2 a long input that is pulled for ranks is complete and right with a window that is large or small") {
  Function fn = [](int item, const Task&) { return triple(item); };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto check = [&](int count, Batch batch) {
      from_every_source(count, [&](auto& items) {
        const auto result = parallel_map(fn, items, {.executor = cluster, .batch = batch});
        CHECK(result.ok());
        CHECK(std::ranges::equal(result, each(triple, count)));
      });
    };
    check(2000, {.size = 1500});
    check(500, {.size = 100, .chunk = 7});
    check(40, {.size = 1});
    check(40, {.chunk = 1});
    check(40, {.size = 5, .chunk = 100});
  });
}

TEST_CASE("C1 ranks know functions by their address and those that hold nothing by their type") {
  const Ints items = numbers(10);
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    int one = 1;
    const auto adds = [&one](int item) { return item + one; };
    const auto copy = adds;
    const auto with_task = [](int item, const Task& task) { return item + static_cast<int>(task.index); };
    int (*pointer)(int) = negative;
    auto bound = std::bind_front(std::plus<int>{}, 7);
    LocalRanks cluster{shape, triple, pointer, adds, with_task, bound};
    one = 100;  // too late: the ranks have their own

    CHECK(list_of(parallel_map(triple, items, {.executor = cluster})) == each(triple, 10));
    CHECK(list_of(parallel_map(&triple, items, {.executor = cluster})) == each(triple, 10));
    CHECK(list_of(parallel_map(pointer, items, {.executor = cluster})) == each(negative, 10));
    CHECK(list_of(parallel_map(negative, items, {.executor = cluster})) == each(negative, 10));
    CHECK(list_of(parallel_map(adds, items, {.executor = cluster})) == Ints{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
    CHECK_THROWS_AS(parallel_map(copy, items, {.executor = cluster}), std::invalid_argument);
    const auto same_type = with_task;
    CHECK(list_of(parallel_map(same_type, items, {.executor = cluster})) == Ints{0, 2, 4, 6, 8, 10, 12, 14, 16, 18});
    CHECK(list_of(parallel_map(bound, items, {.executor = cluster})) == Ints{7, 8, 9, 10, 11, 12, 13, 14, 15, 16});
    CHECK_THROWS_AS(parallel_map(Doubles{}, items, {.executor = cluster}), std::invalid_argument);
  }
}

TEST_CASE("C1 a function that holds nothing runs on ranks whichever object is called") {
  const Doubles served;
  on_ranks(served, [&](LocalRanks& cluster) {
    CHECK(list_of(parallel_map(Doubles{}, numbers(5), {.executor = cluster})) == Ints{0, 2, 4, 6, 8});
    CHECK(list_of(parallel_map(served, numbers(5), {.executor = cluster})) == Ints{0, 2, 4, 6, 8});
  });
}

TEST_CASE("C1 ranks call member functions and functions that can only be moved") {
  const auto sum = &Pair::sum;
  const auto owner = [number = std::make_unique<int>(5)](int item) { return item + *number; };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, sum, owner};
    const std::vector<Pair> pairs{{1, 2}, {3, 4}, {5, 6}};
    CHECK(list_of(parallel_map(sum, pairs, {.executor = cluster})) == Ints{3, 7, 11});
    CHECK(list_of(parallel_map(owner, numbers(3), {.executor = cluster})) == Ints{5, 6, 7});
  }
}

TEST_CASE("C1 each rank has captures of its own and keeps them from one map to the next") {
  struct Counter {
    int count = 0;
    int operator()(int item) { return item == 0 ? ++count : count; }
  };
  const Test test;
  Counter counter;
  LocalRanks cluster{{.ranks = 1, .executor = Executor::thread, .workers = 1}, counter};
  counter.count = 1000;
  for (const int expected : {1, 2, 3}) {
    CHECK(list_of(parallel_map(counter, Ints{0}, {.executor = cluster})) == Ints{expected});
  }
  CHECK(counter.count == 1000);
}

TEST_CASE("C1 functions that return nothing and items that are changed run on ranks") {
  const Shared<std::atomic<int>> sum;
  const auto add = [&](int item) { *sum += item; };
  const auto change = [](std::string& item) {
    item += "!";
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, add, change};
    *sum = 0;
    CHECK(parallel_map(add, numbers(10), {.executor = cluster}).values().size() == 10);
    CHECK(*sum == 45);
    std::vector<std::string> texts{"a", "", "ccc"};
    const auto result = parallel_map(change, texts, {.executor = cluster});
    CHECK(list_of(result) == std::vector<std::string>{"a!", "!", "ccc!"});
    CHECK(texts == std::vector<std::string>{"a", "", "ccc"});  // those there were changed
  }
}

TEST_CASE("C6 a function that was not served is refused at once and nothing runs") {
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) { return item + ++*calls; };
  Function other = fn;
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(3, [&](auto& items) {
      const auto text = [](auto call) { return thrown<std::invalid_argument>(call); };
      CHECK(says(text([&] { parallel_map(other, items, {.executor = cluster}); }), "was not served"));
      CHECK(says(text([&] { parallel_iter(other, items, {.executor = cluster}); }), "was not served"));
    });
    CHECK_THROWS_AS(parallel_map(other, Ints{}, {.executor = cluster}), std::invalid_argument);
    CHECK_THROWS_AS(parallel(other).map(numbers(3), {.executor = cluster}), std::invalid_argument);
  });
  CHECK(*calls == 0);
}

TEST_CASE("C6 bad options are refused before anything runs on ranks") {
  const Shared<std::atomic<int>> calls;
  Function fn = [&](int item, const Task&) { return item + ++*calls; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const auto refusal = [&](MapOptions<int, int> options) {
      options.executor = cluster;
      const auto text = thrown<std::invalid_argument>([&] { parallel_map(fn, numbers(5), options); });
      CHECK(text == thrown<std::invalid_argument>([&] { parallel_map(fn, Ints{}, options); }));
      return text;
    };
    CHECK(says(refusal({.worker_init = [] {}}), "worker_init"));
    CHECK(says(refusal({.workers = 0}), "workers must be >= 1, got 0"));
    CHECK(says(refusal({.max_errors = 0}), "max_errors must be >= 1, got 0"));
    CHECK(says(refusal({.max_tasks_per_worker = 0}), "max_tasks_per_worker must be >= 1, got 0"));
    if (cluster.shape().has_processes()) return;
    CHECK(says(refusal({.max_tasks_per_worker = 3}), "max_tasks_per_worker is for Executor::process only"));
    CHECK(says(refusal({.worker_memory_limit = MiB}), "worker_memory_limit is for Executor::process only"));
  });
  CHECK(*calls == 0);
}

TEST_CASE("C6 a stream over ranks refuses bad options when it is made") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    const Ints items = numbers(5);
    CHECK_THROWS_AS(parallel_iter(fn, items, {.executor = cluster, .worker_init = [] {}}), std::invalid_argument);
    CHECK_THROWS_AS(parallel_iter(fn, items, {.workers = 0, .executor = cluster}), std::invalid_argument);
  });
}

TEST_CASE("C9 starmap over ranks calls with the elements of each tuple") {
  const auto fn = [](int left, const std::string& right, const Task& task) {
    return right + std::to_string(left) + "/" + std::to_string(task.index);
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    using Item = std::tuple<int, std::string>;
    const std::vector<Item> items{{1, "a"}, {2, "b"}, {3, "c"}};
    const std::vector<std::string> expected{"a1/0", "b2/1", "c3/2"};
    CHECK(list_of(parallel_starmap(fn, items, {.executor = cluster})) == expected);
    const std::list<Item> pulled(items.begin(), items.end());
    int keys = 0;
    const auto result =
        parallel_starmap(fn, pulled, {.executor = cluster, .retry = Retry{}, .item_key = [&](const Item& item) {
                                        ++keys;
                                        return ItemKey{std::get<0>(item)};
                                      }});
    CHECK(list_of(result) == expected);
    CHECK(keys == 3);
    CHECK(result.item_results()[1].key == ItemKey{2});
  });
}

TEST_CASE("C10 one worker on ranks is on another machine and at most so many items run at once") {
  const Shared<Crowd> crowd;
  Function fn = [&](int item, const Task& task) {
    crowd->enter();
    dawdle();
    crowd->leave();
    return in_worker() && task.worker == 0 ? item : -1;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    CHECK(list_of(parallel_map(fn, numbers(6), {.workers = 1, .executor = cluster})) == numbers(6));
  });
  CHECK(crowd->most() == 1);
}

TEST_CASE("C11 all slots of all ranks run items at the same time, and each has its number") {
  const Shared<std::atomic<int>> inside;
  std::size_t slots = 0;
  Function fn = [&](int, const Task& task) {
    ++*inside;
    wait_until([&] { return *inside == static_cast<int>(slots); });
    return static_cast<int>(task.worker);
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    *inside = 0;
    slots = shape.slots();
    LocalRanks cluster{shape, fn};
    const int count = static_cast<int>(slots);
    const auto result = parallel_map(fn, numbers(count), {.executor = cluster, .batch = Batch{.chunk = 1}});
    REQUIRE(result.ok());
    Ints workers = list_of(result);
    std::ranges::sort(workers);
    CHECK(workers == numbers(count));
  }
}

TEST_CASE("C11 all slots of all ranks run slow items at the same time also after many quick ones") {
  const Shared<std::atomic<int>> inside;
  int slots = 0;
  Function fn = [&](int item, const Task&) {
    if (item < 300) return item;
    ++*inside;
    wait_until([&] { return *inside >= slots; });
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    *inside = 0;
    slots = static_cast<int>(shape.slots());
    LocalRanks cluster{shape, fn};
    for (const Batch batch : {Batch{.chunk = 1}, Batch{.size = 50, .chunk = 1}}) {
      *inside = 0;
      const int count = 300 + slots;
      CHECK(list_of(parallel_map(fn, numbers(count), {.executor = cluster, .batch = batch})) == numbers(count));
    }
  }
}

TEST_CASE("C7 ranks leave no child process and no descriptor and nothing of them runs after a call") {
  const Shared<std::atomic<int>> inside;
  Function fn = [&](int item, const Task&) {
    ++*inside;
    if (item == 30) dawdle();
    --*inside;
    if (item == 20) throw std::runtime_error("it fails");
    return item;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const std::string before = leavings();
    {
      const Watchdog watchdog;
      LocalRanks cluster{shape, fn};
      const std::string with_ranks = leavings();
      from_every_source(60, [&](auto& items) {
        CHECK(parallel_map(fn, items, {.executor = cluster}).failures().size() == 1);
        CHECK(*inside == 0);
        CHECK(leavings() == with_ranks);
      });
      const auto throws = [&] {
        parallel_map(fn, numbers(60), {.executor = cluster, .on_progress = [](std::size_t done, std::size_t) {
                                         if (done == 3) throw Boom("a callback");
                                       }});
      };
      CHECK_THROWS_AS(throws(), Boom);
      CHECK(leavings() == with_ranks);
      for (auto& item : parallel_iter(fn, numbers(60), {.executor = cluster})) {
        if (item.index > 3) break;
      }
      CHECK(leavings() == with_ranks);
    }
    CHECK(leavings() == before);
  }
}

TEST_CASE("C7 ranks that are never asked for anything end") {
  const Function fn = [](int item, const Task&) { return item; };
  const std::string before = leavings();
  on_ranks(fn, [](LocalRanks&) {});
  CHECK(leavings() == before);
}

// C8: calls in calls ---------------------------------------------------------------------------------

TEST_CASE("C8 maps inside of functions on ranks run where they are") {
  RemoteExecutor* executor = nullptr;
  const auto inner = [](int item) { return std::pair{item * 2, static_cast<int>(getpid())}; };
  const auto fn = [&](int item) {
    const auto result = parallel_map(inner, numbers(item), {.executor = *executor});
    int sum = 0;
    for (const auto& [value, process] : result) {
      const bool here = process == getpid();
      if (here != (executor->kind() == Executor::thread)) throw std::logic_error("it ran elsewhere");
      sum += value;
    }
    return sum;
  };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    // The ranks are made in the constructor, and must know the object they are a part of.
    alignas(LocalRanks) static std::array<std::byte, sizeof(LocalRanks)> place;
    executor = reinterpret_cast<LocalRanks*>(place.data());
    auto* const cluster = ::new (place.data()) LocalRanks{shape, fn, inner};
    CHECK(list_of(parallel_map(fn, Ints{0, 1, 2, 3, 4, 5}, {.executor = *cluster})) == Ints{0, 0, 2, 6, 12, 20});
    std::destroy_at(cluster);
  }
}

TEST_CASE("C8 maps on threads and processes run inside of functions on ranks") {
  const auto fn = [](int item) {
    const auto inner = [](int number) {
      return parallel_map(triple, numbers(number), {.workers = 2, .executor = Executor::thread}).values().size();
    };
    std::size_t sum = 0;
    for (const std::size_t size : parallel_map(inner, numbers(item), {.workers = 2, .executor = Executor::process}))
      sum += size;
    return static_cast<int>(sum);
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    CHECK(list_of(parallel_map(fn, Ints{0, 1, 2, 3, 4}, {.executor = cluster})) == Ints{0, 0, 1, 3, 6});
  });
}

TEST_CASE("C8 maps over ranks from several threads take turns") {
  Function fn = [](int item, const Task&) { return triple(item); };
  Function negate = [](int item, const Task&) { return -item; };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, fn, negate};
    const auto run = [&](Function& function, int (*same)(int)) {
      for (int i = 0; i < 5; ++i) {
        if (list_of(parallel_map(function, numbers(50), {.executor = cluster})) != each(same, 50)) {
          throw std::logic_error("a wrong result");
        }
      }
    };
    Meanwhile first{[&] { run(fn, triple); }};
    Meanwhile second{[&] { run(negate, negative); }};
    run(fn, triple);
    CHECK_NOTHROW(first.join());
    CHECK_NOTHROW(second.join());
  }
}

TEST_CASE("C8 a run over ranks waits until a stream in another thread has ended") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    std::atomic<bool> ended{false};
    Gate open;
    Meanwhile other{[&] {
      {
        auto stream = parallel_iter(fn, numbers(20), {.executor = cluster});
        auto item = stream.begin();
        open.open();
        dawdle();
        while (item != stream.end()) ++item;
        ended = true;
      }
    }};
    open.wait();
    CHECK(list_of(parallel_map(fn, numbers(20), {.executor = cluster})) == numbers(20));
    CHECK(ended);
    other.join();
  });
}

TEST_CASE("C8 a second run while a stream over the ranks is open in the same thread is a logic error") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    {
      auto stream = parallel_iter(fn, numbers(40), {.executor = cluster, .ordered = true});
      auto item = stream.begin();
      CHECK(says(thrown<std::logic_error>([&] { parallel_map(fn, numbers(3), {.executor = cluster}); }), "stream"));
      auto second = parallel_iter(fn, numbers(3), {.executor = cluster});
      CHECK_THROWS_AS(second.begin(), std::logic_error);
      int next = 0;
      for (; item != stream.end(); ++item) CHECK(item->value() == next++);  // unharmed
      CHECK(next == 40);
    }
    CHECK(list_of(parallel_map(fn, numbers(3), {.executor = cluster})) == numbers(3));
  });
}

TEST_CASE("C8 callbacks and sources of a run over ranks may call on threads and processes") {
  Function fn = [](int item, const Task&) { return item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    int sum = 0;
    SinglePass source{5, itself};
    source.on_read = [&](int item) {
      for (const int value : parallel_map(triple, numbers(item), {.workers = 2})) sum += value;
    };
    const auto result = parallel_map(
        fn, source,
        {.executor = cluster, .on_result = [&](const auto&) {
           parallel_map(triple, numbers(3), {.workers = 2, .executor = Executor::process}).throw_on_failure();
         }});
    CHECK(list_of(result) == numbers(5));
    CHECK(sum == 40);
  });
}

TEST_CASE("C8 many maps of every length run over the same ranks in a row") {
  Function fn = [](int item, const Task&) { return triple(item); };
  Function fails = [](int item, const Task&) -> int { throw std::out_of_range(std::to_string(item)); };
  for (const Shape& shape : all_shapes) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, fn, fails};
    for (int count = 0; count < 25; ++count) {
      CHECK(list_of(parallel_map(fn, numbers(count), {.executor = cluster})) == each(triple, count));
      const auto result = parallel_map(fails, numbers(count), {.executor = cluster});
      CHECK(result.failures().size() == static_cast<std::size_t>(count));
    }
  }
}

// C5, P: failures ------------------------------------------------------------------------------------

namespace {

struct Registered : std::runtime_error {
  using runtime_error::runtime_error;
};

}  // namespace

TEST_CASE("C5 P3 what a function throws on a rank is its item's error with its type where that is known") {
  register_exception<Registered>();
  Function fn = [](int item, const Task&) -> int {
    switch (item) {
      case 0:
        throw std::out_of_range("zero");
      case 1:
        throw Registered("one");
      case 2:
        throw Boom("two");
      case 3:
        throw 42;
      case 4:
        throw std::system_error(std::make_error_code(std::errc::timed_out), "four");
      case 5:
        throw HttpError(429, "7");
      default:
        return item;
    }
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    from_every_source(8, [&](auto& items) {
      const auto result = parallel_map(fn, items, {.executor = cluster});
      CHECK(result.complete());
      CHECK_FALSE(result.ok());
      REQUIRE(result.failures().size() == 6);
      CHECK(error_of(result, 0).template is<std::out_of_range>());
      CHECK(error_of(result, 0).what() == "zero");
      CHECK(error_of(result, 1).template is<Registered>());
      CHECK(error_of(result, 1).what() == "one");
      const auto* boom = error_of(result, 2).template get_if<RemoteError>();
      REQUIRE(boom != nullptr);
      CHECK(says(boom->type_name(), "Boom"));
      CHECK(says(boom->what(), "two"));
      const auto* number = error_of(result, 3).template get_if<RemoteError>();
      REQUIRE(number != nullptr);
      CHECK(number->type_name() == "int");
      const auto* code = error_of(result, 4).template get_if<std::system_error>();
      REQUIRE(code != nullptr);
      CHECK(code->code() == std::errc::timed_out);
      const auto* http = error_of(result, 5).template get_if<HttpError>();
      REQUIRE(http != nullptr);
      CHECK(http->status() == 429);
      CHECK(http->retry_after() == "7");
      CHECK(result.at(6) == 6);
      CHECK(result.at(7) == 7);
    });
  });
}

TEST_CASE("P2 a crash on a rank with processes costs its item only") {
  const Shared<Tally> calls;
  Function fn = [&](int item, const Task&) {
    ++(*calls)[item];
    if (item % 20 == 3) crash();
    if (item == 50) _exit(7);
    return triple(item);
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    if (!cluster.shape().has_processes()) return;
    from_every_source(100, [&](auto& items) {
      for (std::size_t item = 0; item < 100; ++item) (*calls)[item] = 0;
      const auto result = parallel_map(fn, items, {.executor = cluster});
      CHECK(result.complete());
      CHECK(result.failures().size() == 6);
      CHECK(calls->first(100) == Ints(100, 1));
      for (std::size_t item = 0; item < 100; ++item) {
        if (item % 20 == 3) {
          const auto* crashed = error_of(result, item).template get_if<WorkerCrashed>();
          REQUIRE(crashed != nullptr);
          CHECK(crashed->signal() == SIGKILL);
        } else if (item == 50) {
          const auto* exited = error_of(result, item).template get_if<WorkerCrashed>();
          REQUIRE(exited != nullptr);
          CHECK(exited->exit_code() == 7);
        } else {
          CHECK(result.at(item) == triple(static_cast<int>(item)));
        }
      }
    });
  });
}

TEST_CASE("P2 the workers of ranks are replaced after max_tasks_per_worker items") {
  const auto fn = [](int) { return static_cast<int>(getpid()); };
  on_ranks(fn, [&](LocalRanks& cluster) {
    if (!cluster.shape().has_processes()) return;
    const auto result = parallel_map(fn, numbers(20), {.executor = cluster, .max_tasks_per_worker = 3});
    REQUIRE(result.ok());
    std::map<int, int> items;
    for (const int process : result) ++items[process];
    for (const auto& [process, count] : items) CHECK(count <= 3);
  });
}

TEST_CASE("P2 worker_memory_limit fails the hungry item of a rank only") {
  const auto fn = [](int item) {
    std::vector<char> bytes(item == 3 ? 512 * MiB : 16);
    bytes.back() = 1;
    return static_cast<int>(bytes.size() % 1000) + item;
  };
  on_ranks(fn, [&](LocalRanks& cluster) {
    if (!cluster.shape().has_processes()) return;
    const auto result = parallel_map(fn, numbers(6), {.executor = cluster, .worker_memory_limit = 128 * MiB});
    CHECK(result.failures().size() == 1);
    const Error error = error_of(result, 3);
    CHECK((error.is<std::bad_alloc>() || error.is<WorkerCrashed>()));  // AddressSanitizer crashes instead
    CHECK(result.at(5) == 21);
  });
}

// Large items and results ----------------------------------------------------------------------------

TEST_CASE("P5 ranks that take and give several MiB at once do not block each other") {
  const auto fn = [](const std::vector<char>& item) {
    std::vector<char> result = item;
    result.push_back(item.back());
    return result;
  };
  for (const Shape& shape :
       {Shape{1, thread, 1}, Shape{3, thread, 1}, Shape{2, thread, 3}, Shape{3, process, 1}, Shape{2, process, 2}}) {
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, fn};
    std::vector<std::vector<char>> items;
    for (int i = 0; i < 12; ++i) items.push_back(large(3 * MiB + static_cast<std::size_t>(i), i));
    const auto check = [&](const auto& input) {
      const auto result = parallel_map(fn, input, {.executor = cluster});
      REQUIRE(result.ok());
      for (std::size_t i = 0; i < items.size(); ++i) {
        REQUIRE(result[i].size() == items[i].size() + 1);
        CHECK(std::memcmp(result[i].data(), items[i].data(), items[i].size()) == 0);
      }
    };
    check(items);
    check(std::list<std::vector<char>>(items.begin(), items.end()));
  }
}

TEST_CASE("P5 all ranks may return 8 MiB at once") {
  const Shared<std::atomic<int>> ready;
  int slots = 0;
  const auto fn = [&](int item) {
    auto bytes = large(8 * MiB, item);
    ++*ready;
    wait_until([&] { return *ready >= slots; });
    return bytes;
  };
  for (const Shape& shape : {Shape{3, thread, 1}, Shape{1, thread, 3}, Shape{3, process, 1}, Shape{2, process, 2}}) {
    INFO(shape.name());
    const Test test;
    slots = static_cast<int>(shape.slots());
    *ready = 0;
    LocalRanks cluster{shape, fn};
    const auto result = parallel_map(fn, numbers(2 * slots), {.executor = cluster, .batch = Batch{.chunk = 1}});
    REQUIRE(result.ok());
    for (int i = 0; i < 2 * slots; ++i) CHECK((result[static_cast<std::size_t>(i)] == large(8 * MiB, i)));
  }
}

TEST_CASE("P5 items and results of all sizes go to ranks and back") {
  const auto fn = [](const std::string& item) { return item + item; };
  on_ranks(fn, [&](LocalRanks& cluster) {
    std::vector<std::string> items;
    for (std::size_t size = 0; size < 300'000; size = size * 3 / 2 + 1)
      items.emplace_back(size, static_cast<char>('a' + size % 26));
    const auto result = parallel_map(fn, items, {.executor = cluster});
    REQUIRE(result.ok());
    for (std::size_t i = 0; i < items.size(); ++i) CHECK((result[i] == items[i] + items[i]));
  });
}

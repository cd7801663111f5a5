// Clauses D: the decorator.
#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <pyarallel.hpp>
#include <ranges>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "support/catch.hpp"

namespace {

using namespace pyarallel;
using namespace std::chrono_literals;

int twice(int x) { return 2 * x; }
int sum(int a, int b) { return a + b; }

struct Client {
  int base = 100;
  int fetch(int id) const { return base + id; }
};

struct MoveOnly {
  std::unique_ptr<int> base = std::make_unique<int>(7);
  int operator()(int x) const { return *base + x; }
};

template <class Stream>
std::vector<int> values_of(Stream&& stream) {
  std::vector<int> all;
  for (auto& item : stream) all.push_back(item.value());
  return all;
}

const auto static_function = parallel(twice, {.workers = 2});

}  // namespace

TEST_CASE("D1 a parallel function called plainly is the function") {
  const auto fn = parallel(twice, {.workers = 3});
  CHECK(fn(4) == 8);
  CHECK(parallel(sum)(3, 4) == 7);

  int calls = 0;
  const auto counting = parallel([&calls](std::string text) -> std::string&& {
    static std::string kept;
    ++calls;
    kept = std::move(text);
    return std::move(kept);
  });
  static_assert(std::is_same_v<decltype(counting("a")), std::string&&>);
  CHECK(counting("abc") == "abc");
  CHECK(calls == 1);

  const auto nothing = parallel([] {});
  static_assert(std::is_void_v<decltype(nothing())>);
  nothing();
  CHECK_THROWS_AS(parallel([](int) -> int { throw std::out_of_range("x"); })(1), std::out_of_range);
}

TEST_CASE("D1 map, starmap and stream of a parallel function are those of the library") {
  const std::vector<int> items{1, 2, 3};
  const auto fn = parallel(twice);
  const auto mapped = fn.map(items);
  CHECK(std::vector<int>(mapped.begin(), mapped.end()) == std::vector<int>{2, 4, 6});
  CHECK(values_of(fn.stream(items, {.ordered = true})) == std::vector<int>{2, 4, 6});
  CHECK(values_of(fn.stream(std::list<int>{4, 5}, {.ordered = true})) == std::vector<int>{8, 10});

  const std::vector<std::pair<int, int>> pairs{{1, 2}, {3, 4}};
  const auto sums = parallel(sum).starmap(pairs);
  CHECK(std::vector<int>(sums.begin(), sums.end()) == std::vector<int>{3, 7});
}

TEST_CASE("D1 a parallel function is made of any callable") {
  const std::vector<int> items{1, 2};
  const auto result_of = [&](const auto& fn) {
    const auto result = fn.map(items);
    return std::vector<int>(result.begin(), result.end());
  };
  const Client client;
  CHECK(result_of(parallel(std::bind_front(&Client::fetch, &client))) == std::vector<int>{101, 102});
  CHECK(result_of(parallel(MoveOnly{})) == std::vector<int>{8, 9});
  CHECK(result_of(parallel([](auto x) { return x + 1; })) == std::vector<int>{2, 3});
  CHECK(result_of(parallel([](int x, const Task& task) { return x + 10 * static_cast<int>(task.index); })) ==
        std::vector<int>{1, 12});
  const std::function<int(int)> stored = twice;
  CHECK(result_of(parallel(stored)) == std::vector<int>{2, 4});

  const std::vector<Client> clients{{.base = 1}, {.base = 2}};
  const auto bases = parallel(&Client::base).map(clients);
  CHECK(std::vector<int>(bases.begin(), bases.end()) == std::vector<int>{1, 2});
  CHECK(parallel(&Client::base)(clients[1]) == 2);

  // One template, items of two types.
  const auto any = parallel([](const auto& x) { return x + x; });
  CHECK(any.map(items)[1] == 4);
  CHECK(any.map(std::vector<std::string>{"ab"})[0] == "abab");
}

TEST_CASE("D1 the defaults of a parallel function hold where a call says nothing") {
  std::atomic<int> initialized{0};
  std::size_t progress = 0;
  std::stop_source stop;
  const Options defaults{.workers = 2,
                         .retry = Retry{.attempts = 2, .backoff = 0s},
                         .max_errors = 3,
                         .stop = stop.get_token(),
                         .on_progress = [&](std::size_t done, std::size_t) { progress = done; },
                         .worker_init = [&] { ++initialized; }};
  const auto fn = parallel(
      [](int x) -> int {
        if (x < 0) throw std::runtime_error("negative");
        return x;
      },
      defaults);

  const auto result = fn.map(std::vector<int>{1, -1, 2});
  CHECK(result.failures().size() == 1);
  CHECK(result.item_results()[1].attempts == 2);
  CHECK(progress == 3);
  CHECK(initialized > 0);
  CHECK(initialized <= 2);

  CHECK(fn.map(std::vector<int>{-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1}).aborted());
  int failures = 0;
  for (auto& item : fn.stream(std::vector<int>(20, -1))) {
    CHECK(item.attempts == 2);
    ++failures;
  }
  CHECK(failures == 3);

  stop.request_stop();
  CHECK(fn.map(std::vector<int>{1}).cancelled());
  CHECK(fn.starmap(std::vector<std::tuple<int>>{{1}}).cancelled());
}

TEST_CASE("D1 a field that is set in the call wins over the default of a parallel function, and only that") {
  std::size_t default_progress = 0;
  std::size_t own_progress = 0;
  std::stop_source stopped;
  stopped.request_stop();
  std::stop_source open;
  const auto fn = parallel(
      [](int x, const Task& task) -> int {
        if (x < 0 && task.attempt < 4) throw std::runtime_error("negative");
        return static_cast<int>(task.worker);
      },
      {.workers = 4,
       .executor = Executor::thread,
       .retry = Retry{.attempts = 2, .backoff = 0s},
       .timeout = 0s,
       .max_errors = 1,
       .stop = stopped.get_token(),
       .on_progress = [&](std::size_t done, std::size_t) { default_progress = done; }});

  const std::vector<int> items{1, -1, 1};
  CHECK(fn.map(items, {.timeout = 1h}).cancelled());
  CHECK(fn.map(items, {.stop = open.get_token()}).timed_out());
  CHECK(fn.map(items, {.timeout = 1h, .stop = open.get_token()}).aborted());
  CHECK(default_progress > 0);
  default_progress = 0;

  const auto result = fn.map(items, {.workers = 1,
                                     .retry = Retry{.attempts = 5, .backoff = 0s},
                                     .timeout = 1h,
                                     .stop = open.get_token(),
                                     .on_progress = [&](std::size_t done, std::size_t) { own_progress = done; }});
  REQUIRE(result.ok());
  CHECK(result.item_results()[1].attempts == 4);
  CHECK(own_progress == 3);
  CHECK(default_progress == 0);

  const auto thread = std::this_thread::get_id();
  const auto where = parallel([](int) { return std::this_thread::get_id(); }, {.workers = 4});
  const auto inline_result = where.map(std::vector<int>{1, 2}, {.executor = Executor::sequential});
  CHECK(inline_result[0] == thread);
  CHECK(inline_result[1] == thread);
}

TEST_CASE("D1 bad defaults of a parallel function are refused by the calls that use them") {
  const auto fn = parallel(twice, {.workers = 0});
  CHECK(fn(1) == 2);
  CHECK_THROWS_AS(fn.map(std::vector<int>{1}), std::invalid_argument);
  CHECK_THROWS_AS(fn.stream(std::vector<int>{1}), std::invalid_argument);
  CHECK(fn.map(std::vector<int>{1}, {.workers = 1}).ok());
}

TEST_CASE("D2 a parallel function can be copied, stored and static, and copies share the function") {
  CHECK(static_function.map(std::vector<int>{5})[0] == 10);

  const auto calls = std::make_shared<std::atomic<int>>(0);
  const auto count = parallel([calls](int) { return ++*calls; }, {.workers = 2});
  auto copy = count;
  std::vector<decltype(copy)> stored{count, copy};
  copy = stored.front();
  for (const auto& fn : stored) CHECK(fn.map(std::vector<int>{1, 2}).ok());
  CHECK(*calls == 4);

  const auto move_only = parallel(MoveOnly{});
  const auto copy_of_move_only = move_only;
  CHECK(copy_of_move_only(1) == 8);
}

TEST_CASE("D2 a parallel function can be used from several threads at once") {
  const auto fn = parallel(twice, {.workers = 2});
  std::vector<int> items(200);
  for (int i = 0; i < 200; ++i) items[static_cast<std::size_t>(i)] = i;
  std::atomic<int> right{0};
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        for (int round = 0; round < 20; ++round) {
          if (fn.map(items)[199] == 398) ++right;
          int last = 0;
          for (auto& item : fn.stream(items, {.ordered = true})) last = item.value();
          if (last == 398) ++right;
        }
      });
    }
  }
  CHECK(right == 160);
}

TEST_CASE("D2 a stream keeps a parallel function alive that is gone") {
  auto stream = [] {
    return parallel([kept = std::make_shared<int>(3)](int x) { return *kept * x; }, {.workers = 2})
        .stream(std::vector<int>{1, 2, 3}, {.ordered = true});
  }();
  CHECK(values_of(stream) == std::vector<int>{3, 6, 9});
}

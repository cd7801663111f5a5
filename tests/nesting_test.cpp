// C7 and C8: calls in calls in calls, calls side by side, and what they leave behind.
#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstddef>
#include <ctime>
#include <functional>
#include <latch>
#include <list>
#include <memory>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/single_pass.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

/// Counts who is inside; is also inside its owner's frame, which must outlive everybody.
struct Inside {
  std::atomic<int> now{0};
  std::atomic<int> entered{0};

  struct Visit {
    explicit Visit(Inside& in) : inside(in) {
      ++inside.now;
      ++inside.entered;
    }
    ~Visit() { --inside.now; }
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;
    Inside& inside;
  };
};

/// Sum of 0 .. fanout^depth - 1, by maps in maps. `kind` chooses the way of each level.
long nested_sum(int depth, int fanout, std::size_t workers, unsigned kind, long first = 0) {
  if (depth == 0) return first;
  long below = 1;
  for (int i = 1; i < depth; ++i) below *= fanout;
  const auto sum_of = [=](int i) { return nested_sum(depth - 1, fanout, workers, kind / 3, first + i * below); };
  const auto add = [](const MapResult<long>& result) { return std::accumulate(result.begin(), result.end(), 0L); };
  const auto items = std::views::iota(0, fanout);
  switch (kind % 3) {
    case 0:
      return add(parallel_map(sum_of, items, {.workers = workers}));
    case 1:
      return add(parallel_map(sum_of, std::list<int>(items.begin(), items.end()), {.workers = workers}));
    default:
      return add(parallel_map(sum_of, items, {.workers = workers, .on_result = [](const ItemResult<long>&) {}}));
  }
}

long sum_below(long n) { return n * (n - 1) / 2; }

}  // namespace

// C7: nothing is left behind -------------------------------------------------------------------------

TEST_CASE("C7 no item runs after the call returned") {
  for (int round = 0; round < 50; ++round) {
    Inside inside;
    const auto visit = [&](int) {
      const Inside::Visit here{inside};
      std::this_thread::yield();
    };
    const auto check = [&] {
      CHECK(inside.now == 0);
      const int entered = inside.entered;
      std::this_thread::yield();
      CHECK(inside.entered == entered);
    };
    CHECK(parallel_map(visit, std::views::iota(0, 100), {.workers = 8}).ok());
    check();
    CHECK(parallel_map(visit, std::list<int>(100), {.workers = 8}).ok());
    check();
    CHECK(parallel_map(visit, std::views::iota(0, 100), {.workers = 8, .timeout = 1h}).ok());
    check();
  }
}

TEST_CASE("C7 no item runs after the call threw") {
  const Watchdog watchdog;
  for (int round = 0; round < 20; ++round) {
    Inside inside;
    std::atomic<bool> go{false};
    const auto visit = [&](int i) {
      const Inside::Visit here{inside};
      while (i > 0 && !go) std::this_thread::yield();  // so that items are running when the call fails
    };
    const auto fail = [&] {
      while (inside.now < 2) std::this_thread::yield();
      go = true;
      throw std::logic_error("fail");
    };
    const auto failing_callback = [&](std::size_t, std::size_t) { fail(); };
    CHECK_THROWS_AS(parallel_map(visit, std::views::iota(0, 50), {.workers = 4, .on_progress = failing_callback}),
                    std::logic_error);
    CHECK(inside.now == 0);
    go = false;
    CHECK_THROWS_AS(
        parallel_map(visit, std::list<int>{0, 1, 1, 1, 1, 1}, {.workers = 4, .on_progress = failing_callback}),
        std::logic_error);
    CHECK(inside.now == 0);
    go = false;
    SinglePass source{100, [](int i) { return i + 1; }};
    source.on_read = [&](int i) {
      if (i == 5) fail();
    };
    CHECK_THROWS_AS(parallel_map(visit, source, {.workers = 4}), std::logic_error);
    CHECK(inside.now == 0);
    go = false;
    const auto failing_key = [&](const int& i) -> ItemKey {
      if (i == 5) fail();
      return i;
    };
    CHECK_THROWS_AS(parallel_map(visit, std::views::iota(1, 100), {.workers = 4, .item_key = failing_key}),
                    std::logic_error);
    CHECK(inside.now == 0);
  }
}

TEST_CASE("C7 no item runs after a call was stopped") {
  const Watchdog watchdog;
  for (int round = 0; round < 20; ++round) {
    for (const bool pulled : {false, true}) {
      Inside inside;
      std::stop_source stop;
      const auto visit = [&](int) {
        const Inside::Visit here{inside};
        if (inside.entered == 3) stop.request_stop();
        while (!stop.stop_requested()) std::this_thread::yield();
        std::this_thread::yield();
      };
      const MapOptions<int, std::monostate> options{.workers = 3, .batch = Batch{.chunk = 1}, .stop = stop.get_token()};
      const auto result = pulled ? parallel_map(visit, std::list<int>(20), options)
                                 : parallel_map(visit, std::vector<int>(20), options);
      CHECK(result.cancelled());
      CHECK(inside.now == 0);
      CHECK(result.successes().size() == static_cast<std::size_t>(inside.entered));
    }
  }
}

TEST_CASE("C7 nothing of the caller is touched after the call") {
  // Under a sanitizer this fails if a thread is late: all that the call was given is gone at once.
  for (int round = 0; round < 300; ++round) {
    auto items = std::make_unique<std::vector<int>>(16, round);
    auto fn =
        std::make_unique<std::function<int(int&)>>([values = std::vector<int>(4, 1)](int& i) { return i + values[3]; });
    auto options = std::make_unique<MapOptions<int, int>>();
    options->workers = 6;
    if (round % 2 == 1) options->on_progress = [text = std::string(100, 'x')](std::size_t, std::size_t) {};
    const auto result = parallel_map(*fn, *items, *options);
    options.reset();
    fn.reset();
    items.reset();
    CHECK(result[15] == round + 1);
  }
}

TEST_CASE("C7 a hundred workers are a hundred items at the same time") {
  const Watchdog watchdog;
  static constexpr int workers = 100;
  const auto check = [](auto&& items, MapOptions<int, int> options) {
    std::barrier all_here{workers};
    options.workers = workers;
    const auto result = parallel_map(
        [&](int i) {
          all_here.arrive_and_wait();
          return i;
        },
        items, options);
    CHECK(result.ok());
  };
  const auto two_rounds = std::views::iota(0, 2 * workers);
  for (int round = 0; round < 3; ++round) {
    check(two_rounds, {.batch = Batch{.chunk = 1}});
    check(std::list<int>(two_rounds.begin(), two_rounds.end()), {.batch = Batch{.chunk = 1}});
    check(two_rounds, {.on_progress = [](std::size_t, std::size_t) {}});
    check(two_rounds, {.retry = Retry{}});
    SinglePass source{2 * workers, [](int i) { return i; }};
    check(source, {.batch = Batch{.chunk = 1}});
  }
}

TEST_CASE("C7 items may wait for the items behind them") {
  const Watchdog watchdog;
  static constexpr int workers = 16;
  const auto check = [](auto&& items) {
    std::vector<std::unique_ptr<std::latch>> done;
    for (int i = 0; i <= workers; ++i) done.push_back(std::make_unique<std::latch>(1));
    done[workers]->count_down();
    const auto wait_for_next = [&](int i) {
      done[static_cast<std::size_t>(i) + 1]->wait();
      done[static_cast<std::size_t>(i)]->count_down();
    };
    CHECK(parallel_map(wait_for_next, items, {.workers = workers, .batch = Batch{.chunk = 1}}).ok());
  };
  for (int round = 0; round < 20; ++round) {
    check(std::views::iota(0, workers));
    SinglePass source{workers, [](int i) { return i; }};
    check(source);
  }
}

// C8: calls in calls ---------------------------------------------------------------------------------

TEST_CASE("C8 maps nest several levels deep with any worker counts") {
  const Watchdog watchdog;
  for (const std::size_t workers : {1U, 2U, 3U, 8U, 50U}) {
    for (unsigned kind = 0; kind < 27; ++kind) CHECK(nested_sum(3, 4, workers, kind) == sum_below(64));
  }
  CHECK(nested_sum(7, 2, 4, 0) == sum_below(128));
  CHECK(nested_sum(6, 2, 3, 1 + 3 * 2 + 9 * 0 + 27 * 1) == sum_below(64));
}

TEST_CASE("C8 inner calls that all need their workers at once get them") {
  const Watchdog watchdog;
  static constexpr int outer = 6;
  static constexpr int inner = 5;
  std::barrier everybody{outer * inner};
  const auto options = MapOptions<int, std::monostate>{.workers = inner, .batch = Batch{.chunk = 1}};
  const auto inner_map = [&](int kind) {
    const auto meet = [&](int) { everybody.arrive_and_wait(); };
    if (kind % 2 == 0) {
      parallel_map(meet, std::vector<int>(inner), options).throw_on_failure();
    } else {
      parallel_map(meet, std::list<int>(inner), options).throw_on_failure();
    }
  };
  for (int round = 0; round < 5; ++round) {
    CHECK(parallel_map(inner_map, std::views::iota(0, outer), {.workers = outer, .batch = Batch{.chunk = 1}}).ok());
  }
}

TEST_CASE("C8 calls run at the same time from many threads") {
  const Watchdog watchdog;
  static constexpr int callers = 12;
  std::atomic<int> wrong{0};
  std::latch start{callers};
  {
    std::vector<std::jthread> threads;
    for (int caller = 0; caller < callers; ++caller) {
      threads.emplace_back([&, caller] {
        start.arrive_and_wait();
        for (unsigned round = 0; round < 10; ++round) {
          const auto kind = static_cast<unsigned>(caller) + round;
          wrong += nested_sum(2, 8, 1 + kind % 7, kind % 9) != sum_below(64);
        }
      });
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("C8 callbacks and keys and worker_init and sources may call too") {
  const Watchdog watchdog;
  const auto inner = [](unsigned kind) {
    if (nested_sum(2, 4, 3, kind) != sum_below(16)) throw std::runtime_error("wrong sum");
  };
  for (const std::size_t workers : {1U, 4U}) {
    int reports = 0;
    SinglePass source{12, [](int i) { return i; }};
    source.on_read = [&](int i) { inner(static_cast<unsigned>(i)); };
    const auto result = parallel_map([](int i) { return i; }, source,
                                     {.workers = workers,
                                      .item_key =
                                          [&](int i) {
                                            inner(static_cast<unsigned>(i) % 9);
                                            return ItemKey{i};
                                          },
                                      .on_result = [&](const ItemResult<int>&) { inner(1); },
                                      .on_progress =
                                          [&](std::size_t, std::size_t) {
                                            inner(2);
                                            ++reports;
                                          },
                                      .worker_init = [&] { inner(4); }});
    CHECK(result.ok());
    CHECK(reports == 12);
  }
}

TEST_CASE("C8 a pulled call inside an indexed one inside a callback") {
  const Watchdog watchdog;
  std::vector<long> sums;
  const auto pulled = [](int i) {
    SinglePass source{50, [i](int j) { return i * j; }};
    const auto result = parallel_map([](int x) { return x; }, source, {.workers = 5});
    return std::accumulate(result.begin(), result.end(), 0L);
  };
  const auto indexed = [&](std::size_t, std::size_t) {
    const auto result = parallel_map(pulled, std::views::iota(0, 6), {.workers = 3});
    sums.push_back(std::accumulate(result.begin(), result.end(), 0L));
  };
  CHECK(parallel_map([](int) {}, std::views::iota(0, 5), {.workers = 2, .on_progress = indexed}).ok());
  CHECK(sums == std::vector<long>(5, 15L * 1225));
}

TEST_CASE("C8 errors and stops of an inner call stay inside it") {
  const Watchdog watchdog;
  const auto outer = [](int i) {
    const auto fail = [](int j) -> int { throw std::runtime_error(std::to_string(j)); };
    const auto inner = parallel_map(fail, std::views::iota(0, 20), {.workers = 3, .max_errors = 2});
    if (!inner.aborted()) throw std::logic_error("not aborted");
    const auto whole = parallel_map([](int j) { return j; }, std::list<int>(20, i), {.workers = 3, .timeout = 1h});
    return whole[19];
  };
  const auto result = parallel_map(outer, std::views::iota(0, 10), {.workers = 4});
  for (std::size_t i = 0; i < 10; ++i) CHECK(result[i] == static_cast<int>(i));
}

TEST_CASE("C7 workers come for items that wait for each other, also right after calls too small to share") {
  const Watchdog watchdog;
  constexpr int callers = 3;
  constexpr std::ptrdiff_t workers = 4;
  std::atomic<int> wrong{0};
  const auto call = [&](int caller) {
    for (int round = 0; round < 300; ++round) {
      // Workers that look out, that just begin to or cease to, or that sleep.
      const auto small = std::views::iota(0, (round * 7 + caller) % 50 + 1);
      for (int i = 0; i < round % 4; ++i) {
        const auto result = parallel_map(std::negate<>{}, small, {.workers = workers});
        if (std::accumulate(result.begin(), result.end(), 0) != -std::accumulate(small.begin(), small.end(), 0))
          ++wrong;
      }
      if (round % 50 == 0) std::this_thread::sleep_for(200us);
      std::latch all{workers};
      const auto met = parallel_map([&](int) { all.arrive_and_wait(); }, std::views::iota(0, static_cast<int>(workers)),
                                    {.workers = workers});
      if (!met.ok()) ++wrong;
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int caller = 1; caller < callers; ++caller) threads.emplace_back(call, caller);
    call(0);
  }
  CHECK(wrong == 0);
}

TEST_CASE("C7 threads without a call use no CPU") {
  const auto cpu_time = [] { return std::clock(); };
  for (int i = 0; i < 100; ++i) parallel_map(std::negate<>{}, std::views::iota(0, 1000), {.workers = 4});
  std::this_thread::sleep_for(20ms);  // they may look out for a moment
  const auto before = cpu_time();
  std::this_thread::sleep_for(400ms);
  CHECK(cpu_time() - before < CLOCKS_PER_SEC / 10);
}

// What the calling thread hears of a run: on_result, on_progress, item_key; and worker_init, in the workers.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <forward_list>
#include <list>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <set>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Batch;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::ItemKey;
using pyarallel::ItemResult;
using pyarallel::MapOptions;
using pyarallel::parallel_map;
using pyarallel::Retry;
using pyarallel::Task;
using support::Counted;
using support::Counts;
using support::dawdle;
using support::Gate;
using support::SinglePass;
using support::wait_until;
using support::Watchdog;
using IntOptions = MapOptions<int, int>;

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

struct CallbackFailed : std::runtime_error {
  using runtime_error::runtime_error;
};

ItemKey key_of(int item) { return ItemKey{"item " + std::to_string(item)}; }

std::vector<IntOptions> ways_to_run() {
  return {IntOptions{.executor = Executor::sequential}, IntOptions{.workers = 1}, IntOptions{.workers = 2},
          IntOptions{.workers = 5}};
}

bool is_inline(const IntOptions& options) {
  return options.workers == 1U || options.executor.get() == Executor::sequential;
}

/// Maps the numbers below `count` as input of every kind; `check` gets each result and whether the size was known.
template <class Fn, class Check>
void map_all_kinds(int count, Fn fn, const IntOptions& options, Check check) {
  const auto items = numbers(count);
  {
    INFO("indexed");
    check(parallel_map(fn, items, options), true);
  }
  {
    INFO("indexed prvalues");
    check(parallel_map(fn, std::views::iota(0, count), options), true);
  }
  {
    INFO("list");
    check(parallel_map(fn, std::list<int>(items.begin(), items.end()), options), true);
  }
  {
    INFO("list without size");
    check(parallel_map(fn, std::forward_list<int>(items.begin(), items.end()), options), false);
  }
  {
    INFO("single pass");
    SinglePass source{count, itself};
    check(parallel_map(fn, source, options), false);
  }
}

/// The message of the exception E that leaves the call.
template <class E, class Call>
std::string thrown_by(Call&& call) {
  try {
    call();
  } catch (const E& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace

// on_progress and on_result ----------------------------------------------------------------------------------

TEST_CASE("B1 callbacks run on the calling thread one at a time and once for each item") {
  const Watchdog watchdog;
  constexpr int count = 100;
  const auto fn = [](int item) { return item % 3 == 0 ? throw Broken() : 2 * item; };
  for (auto options : ways_to_run()) {
    const auto driver = std::this_thread::get_id();
    std::set<std::size_t> reported;
    std::size_t last_done = 0;
    std::vector<std::size_t> totals;
    bool inside = false;
    bool wrong_thread = false;
    bool concurrent = false;
    bool out_of_step = false;
    const auto enter = [&] {
      wrong_thread = wrong_thread || std::this_thread::get_id() != driver;
      concurrent = concurrent || std::exchange(inside, true);
    };
    options.on_result = [&](const ItemResult<int>& item) {
      enter();
      reported.insert(item.index);
      inside = false;
    };
    options.on_progress = [&](std::size_t done, std::size_t total) {
      enter();
      out_of_step = out_of_step || done != last_done + 1 || reported.size() != done;  // after on_result
      last_done = done;
      totals.push_back(total);
      inside = false;
    };
    map_all_kinds(count, fn, options, [&](const auto& result, bool sized) {
      CHECK(result.size() == count);
      CHECK(reported.size() == count);
      CHECK(last_done == count);
      CHECK(totals.size() == count);
      CHECK_FALSE(wrong_thread);
      CHECK_FALSE(concurrent);
      CHECK_FALSE(out_of_step);
      CHECK(totals.back() == count);
      if (sized) CHECK(std::ranges::count(totals, std::size_t{count}) == count);
      CHECK(std::ranges::is_sorted(totals));
      for (std::size_t i = 0; i < totals.size(); ++i) CHECK(totals[i] > i);
      reported.clear();
      totals.clear();
      last_done = 0;
    });
  }
}

TEST_CASE("B1 the total of an unsized input is the number of items pulled so far") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    SinglePass source{50, itself};
    bool right = true;
    std::size_t calls = 0;
    options.on_progress = [&](std::size_t, std::size_t total) {
      ++calls;
      right = right && total == static_cast<std::size_t>(source.reads);
    };
    CHECK(parallel_map(itself, source, options).ok());
    CHECK(calls == 50);
    CHECK(right);
  }
}

TEST_CASE("B1 callbacks come in the order of completion") {
  const Watchdog watchdog;
  std::vector<std::size_t> order;
  std::array<Gate, 4> gates;
  const IntOptions options{.workers = 4, .on_result = [&](const ItemResult<int>& item) {
                             order.push_back(item.index);
                             if (item.index > 0) gates[item.index - 1].open();  // only then may the one before it end
                           }};
  gates[3].open();
  const auto fn = [&](int item) {
    gates[static_cast<std::size_t>(item)].wait();
    return item;
  };
  SECTION("indexed") { CHECK(parallel_map(fn, numbers(4), options).ok()); }
  SECTION("pulled") { CHECK(parallel_map(fn, std::list<int>{0, 1, 2, 3}, options).ok()); }
  CHECK(order == std::vector<std::size_t>{3, 2, 1, 0});
}

TEST_CASE("B1 a result is reported while other items still run") {
  const Watchdog watchdog;
  Gate reported;
  const auto fn = [&](int item) {
    if (item == 0) reported.wait();
    return item;
  };
  for (const std::size_t window : {2U, 1000U}) {
    const IntOptions options{.workers = 2, .batch = Batch{.size = window}, .on_progress = [&](std::size_t done, auto) {
                               if (done == 99) reported.open();
                             }};
    map_all_kinds(100, fn, options, [](const auto& result, bool) { CHECK(result.ok()); });
  }
}

TEST_CASE("B1 in the calling thread a result is reported before the next item starts") {
  for (auto options : ways_to_run()) {
    if (!is_inline(options)) continue;
    std::size_t reported = 0;
    bool in_step = true;
    options.on_result = [&](const auto& item) { in_step = in_step && item.index == reported++; };
    const auto fn = [&](int item) {
      in_step = in_step && reported == static_cast<std::size_t>(item);
      return item;
    };
    map_all_kinds(20, fn, options, [&](const auto& result, bool) {
      CHECK(result.ok());
      CHECK(std::exchange(reported, 0) == 20);
    });
    CHECK(in_step);
  }
}

TEST_CASE("B1 placeholders of a truncated run are not reported") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    std::set<std::size_t> reported;
    std::size_t done = 0;
    bool any_unrun = false;
    options.max_errors = 3;
    options.on_result = [&](const ItemResult<int>& item) {
      any_unrun = any_unrun || item.attempts == 0;
      reported.insert(item.index);
    };
    options.on_progress = [&](std::size_t now, std::size_t) { done = now; };
    const auto fn = [](int item) { return item >= 10 ? throw Broken() : item; };
    map_all_kinds(100, fn, options, [&](const auto& result, bool) {
      CHECK(result.aborted());
      CHECK_FALSE(any_unrun);
      CHECK(done == reported.size());
      std::size_t ran = 0;
      for (const auto& item : result.item_results()) {
        if (item.attempts == 0) continue;
        ++ran;
        CHECK(reported.contains(item.index));
      }
      CHECK(ran == reported.size());
      CHECK(ran >= 3);
      reported.clear();
    });
  }
}

TEST_CASE("B1 an empty input is not reported") {
  int calls = 0;
  for (auto options : ways_to_run()) {
    options.item_key = [&](const int&) {
      ++calls;
      return ItemKey{};
    };
    options.on_result = [&](const auto&) { ++calls; };
    options.on_progress = [&](auto...) { ++calls; };
    options.worker_init = [&] { ++calls; };
    map_all_kinds(0, itself, options, [](const auto& result, bool) { CHECK(result.ok()); });
  }
  CHECK(calls == 0);
}

TEST_CASE("B1 on_result shows the value or the error and how it came about") {
  const Watchdog watchdog;
  support::FakeClock clock{support::FakeClock::Mode::manual};
  const support::ClockOverride use{clock};
  for (auto options : ways_to_run()) {
    std::vector<std::optional<ItemResult<int>>> seen(20);
    options.retry = Retry{.attempts = 2, .backoff = 0s};
    options.item_key = key_of;
    options.on_result = [&](const ItemResult<int>& item) { seen.at(item.index) = item; };
    const auto fn = [&](int item, const Task& task) {
      if (is_inline(options)) clock.advance(1h);
      if (item % 3 == 1 && task.attempt == 1) throw std::runtime_error("healed");
      if (item % 3 == 2) throw std::runtime_error("attempt " + std::to_string(task.attempt));
      return 10 * item;
    };
    map_all_kinds(20, fn, options, [&](const auto& result, bool) {
      const auto receipts = result.item_results();
      for (std::size_t i = 0; i < 20; ++i) {
        CAPTURE(i);
        REQUIRE(seen[i].has_value());
        const ItemResult<int>& item = *seen[i];
        CHECK(item.index == i);
        CHECK(item.key == key_of(static_cast<int>(i)));
        CHECK(item.attempts == (i % 3 == 0 ? 1 : 2));
        CHECK(item.attempts == receipts[i].attempts);
        CHECK(item.duration == receipts[i].duration);
        if (is_inline(options)) CHECK(item.duration == item.attempts * Duration{1h});
        CHECK(item.ok() == (i % 3 != 2));
        if (item.ok()) {
          CHECK(item.value() == static_cast<int>(10 * i));
          CHECK_THROWS_AS(item.error(), std::logic_error);
        } else {
          CHECK(item.error().what() == "attempt 2");
          CHECK_THROWS_AS(item.value(), std::runtime_error);
        }
      }
      std::ranges::fill(seen, std::nullopt);
    });
  }
}

TEST_CASE("B1 on_result looks at the value in the result and copies own theirs") {
  const Watchdog watchdog;
  Counts counts;
  std::optional<ItemResult<Counted>> kept;
  {
    for (const std::size_t workers : {1U, 3U}) {
      std::vector<const Counted*> addresses(20);
      MapOptions<int, Counted> options{.workers = workers};
      options.on_result = [&](const ItemResult<Counted>& item) {
        addresses.at(item.index) = &item.value();
        if (item.index == 7) {
          kept.reset();
          kept.emplace(item);
        }
      };
      const int copies_before = counts.copied;
      const auto result = parallel_map([&](int item) { return Counted{counts, item}; }, numbers(20), options);
      CHECK(counts.copied == copies_before + 1);
      for (std::size_t i = 0; i < 20; ++i) CHECK(addresses[i] == &result[i]);
      CHECK(&kept->value() != &result[7]);
    }
  }
  REQUIRE(kept.has_value());
  CHECK(kept->value().value == 7);  // the results are gone
  CHECK(counts.alive() == 1);
  const ItemResult<Counted> second = *kept;
  kept.reset();
  CHECK(second.value().value == 7);
  CHECK(counts.alive() == 1);
}

TEST_CASE("B1 results that cannot be copied are reported") {
  std::vector<int> seen(10);
  for (const std::size_t workers : {1U, 3U}) {
    const auto result = parallel_map(
        [](int item) { return std::make_unique<int>(item); }, numbers(10),
        {.workers = workers, .on_result = [&](const auto& item) { seen.at(item.index) += *item.value(); }});
    CHECK(result.ok());
  }
  for (std::size_t i = 0; i < 10; ++i) CHECK(seen[i] == static_cast<int>(2 * i));
}

// Callbacks that throw -----------------------------------------------------------------------------------------

TEST_CASE("B2 what a callback throws leaves the call after running items have ended") {
  const Watchdog watchdog;
  enum { on_result, on_progress, item_key };
  for (const auto callback : {on_result, on_progress, item_key}) {
    for (const auto& way : ways_to_run()) {
      for (const bool pulled : {false, true}) {
        CAPTURE(static_cast<int>(callback), is_inline(way), pulled);
        Counts values;
        MapOptions<int, Counted> options{.workers = way.workers,
                                         .executor = pyarallel::runtime(way.executor.get().value_or(Executor::thread))};
        Gate failed;
        std::atomic<bool> running{false};
        std::atomic<int> started{0};
        std::atomic<int> ended{0};
        int calls = 0;
        int calls_after = 0;
        const auto maybe_throw = [&] {
          if (failed.is_open()) ++calls_after;
          if (++calls != 5) return;
          // With threads, an item is running by now.
          if (!is_inline(way)) wait_until([&] { return running.load(); });
          failed.open();
          throw CallbackFailed("on the fifth call");
        };
        options.on_result = [&](const auto&) {
          if (failed.is_open()) ++calls_after;
          if (callback == on_result) maybe_throw();
        };
        options.on_progress = [&](auto...) {
          if (failed.is_open()) ++calls_after;
          if (callback == on_progress) maybe_throw();
        };
        if (callback == item_key) {
          options.item_key = [&](const int& item) {
            maybe_throw();
            return key_of(item);
          };
        }
        const auto fn = [&](int item, const Task& task) {
          ++started;
          if (item == 0 && !is_inline(way)) {
            running = true;
            failed.wait();
            dawdle();
          }
          if (item >= 500) wait_until([&] { return task.stop.stop_requested(); });  // callbacks may lag behind
          ++ended;
          return Counted{values, item};
        };
        const auto items = numbers(1000);
        const auto message = thrown_by<CallbackFailed>([&] {
          if (pulled) parallel_map(fn, std::list<int>(items.begin(), items.end()), options);
          if (!pulled) parallel_map(fn, items, options);
        });
        const int ended_by_then = ended;
        CHECK(message == "on the fifth call");
        CHECK(started == ended_by_then);
        CHECK(started <= 500 + 5);
        CHECK(calls == 5);
        CHECK(calls_after == 0);
        CHECK(values.alive() == 0);
        dawdle();
        CHECK(started == ended_by_then);
      }
    }
  }
}

TEST_CASE("B2 a callback may throw on the first and on the last item") {
  const Watchdog watchdog;
  for (const auto& way : ways_to_run()) {
    for (const std::size_t when : {std::size_t{1}, std::size_t{20}}) {
      auto options = way;
      options.on_progress = [&](std::size_t done, std::size_t) {
        if (done == when) throw CallbackFailed("now");
      };
      CHECK_THROWS_AS(parallel_map(itself, numbers(20), options), CallbackFailed);
      SinglePass source{20, itself};
      CHECK_THROWS_AS(parallel_map(itself, source, options), CallbackFailed);
    }
  }
}

TEST_CASE("B2 running items are asked to stop when a callback throws") {
  const Watchdog watchdog;
  Gate running;
  std::atomic<bool> asked{false};
  const auto fn = [&](int item, const Task& task) {
    if (item == 0) {
      running.open();
      wait_until([&] { return task.stop.stop_requested(); });
      asked = true;
    }
    return item;
  };
  const auto on_progress = [&](auto...) {
    running.wait();
    throw 42;
  };
  CHECK_THROWS_AS(parallel_map(fn, numbers(10), {.workers = 2, .on_progress = on_progress}), int);
  CHECK(asked);
}

TEST_CASE("B2 what a callback throws wins over how the run ended") {
  const Watchdog watchdog;
  for (const auto& way : ways_to_run()) {
    std::stop_source stop;
    auto options = way;
    options.stop = stop.get_token();
    options.max_errors = 1;
    options.on_result = [&](const auto&) {
      stop.request_stop();
      throw CallbackFailed("all the same");
    };
    CHECK_THROWS_AS(parallel_map([](int) -> int { throw Broken(); }, numbers(20), options), CallbackFailed);
  }
}

TEST_CASE("C8 callbacks may map") {
  const Watchdog watchdog;
  for (const auto& way : ways_to_run()) {
    auto options = way;
    std::size_t inner_items = 0;
    const auto map_inside = [&] {
      auto inner = way;
      inner.on_progress = [&](auto...) { ++inner_items; };
      CHECK(parallel_map(itself, numbers(10), inner).ok());
    };
    options.on_result = [&](const auto&) { map_inside(); };
    options.on_progress = [&](auto...) { map_inside(); };
    options.item_key = [&](const int& item) {
      map_inside();
      return key_of(item);
    };
    CHECK(parallel_map(itself, numbers(10), options).ok());
    SinglePass source{10, itself};
    CHECK(parallel_map(itself, source, options).ok());
    CHECK(inner_items == 2 * 10 * 3 * 10);
  }
}

// item_key -----------------------------------------------------------------------------------------------------

TEST_CASE("B3 item_key is called once for each item on the calling thread before it starts") {
  const Watchdog watchdog;
  constexpr int count = 50;
  for (auto options : ways_to_run()) {
    const auto driver = std::this_thread::get_id();
    std::array<std::atomic<int>, count> calls{};
    std::vector<int> order;
    bool wrong_thread = false;
    std::atomic<bool> started_without{false};
    options.item_key = [&](const int& item) {
      wrong_thread = wrong_thread || std::this_thread::get_id() != driver;
      order.push_back(item);
      ++calls.at(static_cast<std::size_t>(item));
      return key_of(item);
    };
    const auto fn = [&](int item) {
      if (calls.at(static_cast<std::size_t>(item)) == 0) started_without = true;
      return item;
    };
    map_all_kinds(count, fn, options, [&](const auto& result, bool) {
      CHECK(result.ok());
      CHECK_FALSE(wrong_thread);
      CHECK_FALSE(started_without);
      CHECK(order == numbers(count));
      const auto items = result.item_results();
      REQUIRE(items.size() == count);
      for (const auto& item : items) CHECK(item.key == key_of(static_cast<int>(item.index)));
      order.clear();
      for (auto& times : calls) times = 0;
    });
  }
}

TEST_CASE("B3 item_key sees at most a window of items more than were resolved") {
  const Watchdog watchdog;
  for (const std::size_t window : {1U, 2U, 6U}) {
    std::atomic<int> ended{0};
    int keys = 0;
    int most = 0;
    const auto result = parallel_map(
        [&](int item) {
          if (item % 10 == 0) dawdle();
          ++ended;
          return item;
        },
        numbers(100), {.workers = 3, .batch = Batch{.size = window}, .item_key = [&](const int& item) {
                         most = std::max(most, ++keys - ended);
                         return key_of(item);
                       }});
    CHECK(result.ok());
    CHECK(keys == 100);
    CHECK(most <= static_cast<int>(window));
  }
}

TEST_CASE("B3 keys may repeat and may be missing and of both types and change no order") {
  const Watchdog watchdog;
  const auto key = [](const int& item) {
    if (item % 3 == 0) return ItemKey{};
    return item % 3 == 1 ? ItemKey{std::int64_t{-1}} : ItemKey{"same"};
  };
  for (auto options : ways_to_run()) {
    options.item_key = key;
    map_all_kinds(30, itself, options, [&](const auto& result, bool) {
      CHECK(std::ranges::equal(result.values(), numbers(30)));
      for (const auto& item : result.item_results()) CHECK(item.key == key(static_cast<int>(item.index)));
    });
  }
}

TEST_CASE("B3 items that never ran in a truncated run have no key unless they were admitted") {
  const Watchdog watchdog;
  for (auto options : ways_to_run()) {
    options.max_errors = 1;
    std::size_t admitted = 0;
    options.item_key = [&](const int& item) {
      ++admitted;
      return key_of(item);
    };
    const auto result = parallel_map([](int) -> int { throw Broken(); }, numbers(100), options);
    CHECK(result.aborted());
    const auto items = result.item_results();
    REQUIRE(items.size() == 100);
    for (const auto& item : items) {
      CHECK(item.key == (item.index < admitted ? key_of(static_cast<int>(item.index)) : ItemKey{}));
      if (item.attempts > 0) CHECK(item.index < admitted);
    }
    CHECK(admitted < 100);
  }
}

TEST_CASE("B3 item_key sees the item itself") {
  const std::vector<int> items{1, 2, 3};
  std::set<const int*> seen;
  for (const std::size_t workers : {1U, 3U}) {
    const auto result = parallel_map(itself, items, {.workers = workers, .item_key = [&](const int& item) {
                                                       seen.insert(&item);
                                                       return ItemKey{};
                                                     }});
    CHECK(result.ok());
    CHECK(seen == std::set<const int*>{&items[0], &items[1], &items[2]});
    seen.clear();
  }
}

// worker_init --------------------------------------------------------------------------------------------------

TEST_CASE("B4 worker_init runs once in each worker before its first item") {
  const Watchdog watchdog;
  constexpr int count = 40;
  for (const bool meet : {false, true}) {
    for (const bool keyed : {false, true}) {
      std::mutex mutex;
      std::multiset<std::thread::id> initialized;
      std::atomic<bool> unready{false};
      std::atomic<int> arrived{0};
      const auto driver = std::this_thread::get_id();
      IntOptions options{.workers = 4, .batch = Batch{.chunk = 1}};
      if (keyed) options.item_key = key_of;
      options.worker_init = [&] {
        const std::lock_guard lock{mutex};
        initialized.insert(std::this_thread::get_id());
      };
      const auto fn = [&](int item) {
        {
          const std::lock_guard lock{mutex};
          if (!initialized.contains(std::this_thread::get_id())) unready = true;
        }
        if (meet) {
          const int group = arrived++ / 4;
          wait_until([&] { return arrived >= 4 * (group + 1); });
        }
        return item;
      };
      map_all_kinds(count, fn, options, [&](const auto& result, bool) {
        CHECK(result.ok());
        CHECK_FALSE(unready);
        CHECK(initialized.size() <= 4);
        CHECK(initialized.size() >= 1);
        if (meet) CHECK(initialized.size() == 4);
        CHECK(std::set<std::thread::id>(initialized.begin(), initialized.end()).size() == initialized.size());
        CHECK_FALSE(initialized.contains(driver));
        initialized.clear();
        arrived = 0;
      });
    }
  }
}

TEST_CASE("B4 worker_init runs once on the driver where items run there") {
  for (auto options : ways_to_run()) {
    if (!is_inline(options)) continue;
    const auto driver = std::this_thread::get_id();
    int calls = 0;
    options.worker_init = [&] { calls += std::this_thread::get_id() == driver ? 1 : 100; };
    const auto fn = [&](int item) {
      CHECK(calls == 1);
      return item;
    };
    map_all_kinds(10, fn, options, [&](const auto& result, bool) {
      CHECK(result.ok());
      CHECK(std::exchange(calls, 0) == 1);
    });
  }
}

TEST_CASE("B4 no more workers are initialized than there are") {
  const Watchdog watchdog;
  // One worker holds a long chunk whose first item takes until the others have left; when it gives the
  // rest back they may come again, but not as new ones.
  constexpr int count = 200'000;
  for (int round = 0; round < 5; ++round) {
    std::atomic<int> initialized{0};
    std::mutex mutex;
    std::set<std::size_t> workers;
    const auto result = parallel_map(
        [&](int item, const Task& task) {
          if (item == count / 2) std::this_thread::sleep_for(50ms);
          if (item % 1000 == 0) {
            const std::lock_guard lock{mutex};
            workers.insert(task.worker);
          }
          return item;
        },
        numbers(count), {.workers = 2, .worker_init = [&] { ++initialized; }});
    CHECK(result.ok());
    CHECK(initialized <= 2);
    CHECK(*workers.rbegin() < 2);
  }
}

TEST_CASE("B4 what worker_init throws leaves the call") {
  const Watchdog watchdog;
  for (const auto& way : ways_to_run()) {
    for (const bool keyed : {false, true}) {
      auto options = way;
      if (keyed) options.item_key = key_of;
      options.worker_init = [] { throw CallbackFailed("no licence"); };
      std::atomic<int> started{0};
      const auto fn = [&](int item) {
        ++started;
        return item;
      };
      const auto items = numbers(50);
      const auto message_of = [&](auto&& input) {
        return thrown_by<CallbackFailed>([&] { parallel_map(fn, input, options); });
      };
      SinglePass source{50, itself};
      CHECK(message_of(items) == "no licence");
      CHECK(message_of(std::views::iota(0, 50)) == "no licence");
      CHECK(message_of(source) == "no licence");
      CHECK(started == 0);
    }
  }
}

TEST_CASE("B4 a worker that cannot be initialized ends the run of the others") {
  const Watchdog watchdog;
  Counts values;
  for (const bool pulled : {false, true}) {
    std::atomic<int> calls{0};
    std::atomic<int> started{0};
    std::atomic<int> ended{0};
    const auto init = [&] {
      if (++calls == 1) return;
      wait_until([&] { return started == 1; });
      throw CallbackFailed("the second one");
    };
    const auto fn = [&](int item, const Task& task) {
      ++started;
      wait_until([&] { return task.stop.stop_requested(); });
      ++ended;
      return Counted{values, item};
    };
    const MapOptions<int, Counted> options{.workers = 2, .worker_init = init};
    const auto message = thrown_by<CallbackFailed>([&] {
      if (pulled) parallel_map(fn, std::list<int>(10, 7), options);
      if (!pulled) parallel_map(fn, numbers(10), options);
    });
    CHECK(message == "the second one");
    CHECK(started == 1);
    CHECK(ended == 1);
    CHECK(values.alive() == 0);
  }
}

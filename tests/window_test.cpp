// The window: how far the input is read ahead, who waits for whom, and sources that throw or never end.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/throwing_source.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Batch;
using pyarallel::Executor;
using pyarallel::ItemKey;
using pyarallel::MapOptions;
using pyarallel::parallel_map;
using pyarallel::RunStatus;
using pyarallel::Task;
using support::Counted;
using support::Counts;
using support::Crowd;
using support::dawdle;
using support::Gate;
using support::SinglePass;
using support::SourceFailed;
using support::ThrowingSource;
using support::wait_until;
using support::Watchdog;
using support::Where;

namespace {

constexpr auto itself = [](int number) { return number; };

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

std::list<int> list_of(int count) {
  const auto all = numbers(count);
  return {all.begin(), all.end()};
}

template <class R>
bool are_numbers(const pyarallel::MapResult<R>& result, int count) {
  return result.ok() && std::ranges::equal(result.values(), std::views::iota(0, count));
}

using IntOptions = MapOptions<int, int>;

/// What may stand between an item and its function, none of which may let it wait for another item.
struct Variant {
  std::string name;
  IntOptions options;
};

std::vector<Variant> variants() {
  return {
      {"chunk", IntOptions{.batch = Batch{.chunk = 1}}},
      {"rate_limit", IntOptions{.rate_limit = pyarallel::RateLimit{.count = 1e6, .burst = 1000}}},
      {"retry", IntOptions{.retry = pyarallel::Retry{.attempts = 2}}},
      {"task_timeout", IntOptions{.task_timeout = 1h}},
      {"item_key", IntOptions{.item_key = [](const int& item) { return ItemKey{std::int64_t{item}}; }}},
      {"on_result", IntOptions{.on_result = [](const pyarallel::ItemResult<int>&) {}}},
      {"on_progress", IntOptions{.on_progress = [](std::size_t, std::size_t) {}}},
  };
}

// How many are admitted ---------------------------------------------------------------------------------

/// Maps a single-pass source, and counts how many of its items were read and not yet through with fn.
int most_admitted(int count, IntOptions options) {
  std::atomic<int> ended{0};
  int most = 0;
  SinglePass source{count, itself};
  const auto look = [&](int number) { most = std::max(most, number + 1 - ended); };
  source.on_read = look;
  source.on_increment = [&](int number) { look(number + 1); };  // it is on its way to the next one
  const auto result = parallel_map(
      [&](int item) {
        if (item % 10 == 0) dawdle();
        ++ended;
        return item;
      },
      source, options);
  CHECK(are_numbers(result, count));
  CHECK(source.mistakes == 0);
  CHECK(source.reads == count);
  return most;
}

}  // namespace

TEST_CASE("W1 at most batch size items of a pulled input are admitted and unresolved") {
  const Watchdog watchdog;
  constexpr int count = 120;
  for (const std::size_t size : {1U, 2U, 7U, 100U, 1000U}) {
    CAPTURE(size);
    const int window = static_cast<int>(size);
    CHECK(most_admitted(count, {.workers = 3, .batch = Batch{.size = size}}) <= window);
    CHECK(most_admitted(count, {.workers = 3, .batch = Batch{.size = size, .chunk = 1}}) <= window);
    CHECK(most_admitted(count, {.workers = 3, .batch = Batch{.size = size, .chunk = 1000}}) <= window);
    CHECK(most_admitted(count, {.workers = 3, .batch = Batch{.size = size}, .on_progress = [](auto...) {}}) <= window);
    CHECK(most_admitted(count, {.workers = 1, .batch = Batch{.size = size}}) <= 1);
  }
}

TEST_CASE("W1 by default twice as many items as workers of a pulled input are admitted") {
  const Watchdog watchdog;
  for (const std::size_t workers : {2U, 3U, 8U}) {
    CAPTURE(workers);
    const int window = 2 * static_cast<int>(workers);
    CHECK(most_admitted(120, {.workers = workers}) <= window);
    CHECK(most_admitted(120, {.workers = workers, .batch = Batch{.chunk = 1000}}) <= window);
    CHECK(most_admitted(120, {.workers = workers, .retry = pyarallel::Retry{}}) <= window);
  }
}

TEST_CASE("W1 a pulled input is read one window ahead while its first items still run") {
  const Watchdog watchdog;
  std::atomic<int> read{0};
  SinglePass source{100, itself};
  source.on_read = [&](int) { ++read; };
  const auto result = parallel_map(
      [&](int item) {
        wait_until([&] { return read >= 6; });
        return item;
      },
      source, {.workers = 2, .batch = Batch{.size = 6, .chunk = 1}});
  CHECK(are_numbers(result, 100));
}

TEST_CASE("W1 at most batch size items of an indexed input run at once") {
  const Watchdog watchdog;
  const auto items = numbers(50);
  for (const std::size_t size : {1U, 2U, 3U, 1000U}) {
    const auto most = [&](IntOptions options) {
      options.workers = 4;
      options.batch = Batch{.size = size, .chunk = options.batch.value_or(Batch{}).chunk};
      Crowd crowd;
      const auto result = parallel_map(
          [&](int item) {
            crowd.enter();
            dawdle();
            crowd.leave();
            return item;
          },
          items, options);
      CHECK(are_numbers(result, 50));
      return crowd.most();
    };
    CAPTURE(size);
    const int allowed = static_cast<int>(std::min<std::size_t>(size, 4));
    CHECK(most({}) <= allowed);
    CHECK(most({.batch = Batch{.chunk = 1}}) <= allowed);
    CHECK(most({.batch = Batch{.chunk = 1000}}) <= allowed);
    CHECK(most({.item_key = [](const int& item) { return ItemKey{std::int64_t{item}}; }}) <= allowed);
    CHECK(most({.on_progress = [](auto...) {}}) <= allowed);
  }
}

TEST_CASE("W1 all workers work at the same time") {
  const Watchdog watchdog;
  const auto items = numbers(8);
  std::atomic<int> begun{0};
  const auto meet = [&](int item) {
    ++begun;
    wait_until([&] { return begun == 8; });
    return item;
  };
  SECTION("indexed") { CHECK(are_numbers(parallel_map(meet, items, {.workers = 8, .batch = Batch{.chunk = 1}}), 8)); }
  SECTION("pulled") {
    SinglePass source{8, itself};
    CHECK(are_numbers(parallel_map(meet, source, {.workers = 8, .batch = Batch{.chunk = 1}}), 8));
  }
}

TEST_CASE("W1 input that is pulled is never materialised") {
  const Watchdog watchdog;
  Counts counts;
  const auto alive_at_most = [&](std::size_t workers, std::size_t window, std::size_t chunk) {
    int most = 0;
    SinglePass source{200, [&](int number) { return Counted{counts, number}; }};
    source.on_read = [&](int) { most = std::max(most, counts.alive() + 1); };
    const auto result = parallel_map([](const Counted& item) { return item.value; }, source,
                                     {.workers = workers, .batch = Batch{.size = window, .chunk = chunk}});
    CHECK(are_numbers(result, 200));
    CHECK(counts.alive() == 0);
    return most;
  };
  CHECK(alive_at_most(3, 0, 0) <= 6);
  CHECK(alive_at_most(3, 0, 1) <= 6);
  CHECK(alive_at_most(3, 10, 3) <= 10);
  CHECK(alive_at_most(3, 1, 0) <= 1);
  CHECK(alive_at_most(1, 0, 0) <= 1);
}

// Who waits for whom ------------------------------------------------------------------------------------

TEST_CASE("W1 a slow item holds back none behind it") {
  const Watchdog watchdog;
  constexpr int count = 60;
  for (const Variant& variant : variants()) {
    for (const int slow : {0, 1, 30}) {
      CAPTURE(variant.name, slow);
      std::atomic<int> others{0};
      const auto fn = [&](int item, const Task&) {
        if (item == slow) {
          wait_until([&] { return others == count - 1; });
        } else {
          ++others;
        }
        return item;
      };
      auto options = variant.options;
      options.workers = 2;
      CHECK(are_numbers(parallel_map(fn, numbers(count), options), count));

      others = 0;
      SinglePass source{count, itself};
      CHECK(are_numbers(parallel_map(fn, source, options), count));

      others = 0;
      options.batch = Batch{.size = 2, .chunk = 1};
      CHECK(are_numbers(parallel_map(fn, list_of(count), options), count));
    }
  }
}

TEST_CASE("W1 a slow item holds back none behind it, also where items were quick before") {
  const Watchdog watchdog;
  constexpr int count = 5000;
  constexpr int slow = 3000;
  for (const Variant& variant : variants()) {
    for (const std::size_t workers : {2U, 5U}) {
      CAPTURE(variant.name, workers);
      std::atomic<int> later{0};
      const auto fn = [&](int item, const Task&) {
        if (item == slow) wait_until([&] { return later == count - slow - 1; });
        if (item > slow) ++later;
        return item;
      };
      auto options = variant.options;
      options.workers = workers;
      CHECK(are_numbers(parallel_map(fn, numbers(count), options), count));
    }
  }
}

TEST_CASE("W1 the next item is not left behind while others run those after it") {
  const Watchdog watchdog;
  constexpr int count = 2'000'000;
  constexpr int slow = 1'000;
  std::atomic<bool> next_ran{false};
  std::atomic<int> overtaken{0};
  const auto fn = [&](int item) {
    if (item == slow) wait_until([&] { return next_ran.load(); });
    if (item == slow + 1) next_ran = true;
    if (item > slow + 1 && !next_ran) ++overtaken;
    return item;
  };
  const auto items = numbers(count);
  CHECK(parallel_map(fn, items, {.workers = 2, .retry = pyarallel::Retry{}}).ok());
  CHECK(overtaken < count / 4);
}

TEST_CASE("W1 quick items that are taken one by one run once each, or never where the run stops") {
  const Watchdog watchdog;
  constexpr int count = 100'000;
  const auto items = numbers(count);
  for (const int workers : {2, 3, 7}) {
    for (const int stop_at : {0, 50'000, count}) {
      CAPTURE(workers, stop_at);
      std::vector<std::atomic<int>> runs(count);
      std::stop_source stop;
      const auto fn = [&](int item) {
        ++runs[static_cast<std::size_t>(item)];
        if (item == stop_at) stop.request_stop();
        if (item % 5000 == 0) dawdle();  // others take what is left behind
        return item;
      };
      const auto result = parallel_map(fn, items,
                                       {.workers = static_cast<std::size_t>(workers),
                                        .rate_limit = pyarallel::RateLimit{.count = 1e9, .burst = 1'000'000},
                                        .stop = stop.get_token()});
      std::size_t ran = 0;
      bool once = true;
      for (const auto& [index, value] : result.successes()) {
        once = once && runs[index] == 1;
        ++ran;
      }
      CHECK(once);
      CHECK(ran + result.failures().size() == count);
      const auto& failures = result.failures();
      CHECK(
          std::all_of(failures.begin(), failures.end(), [&](const auto& failure) { return runs[failure.index] == 0; }));
      CHECK(result.ok() == (stop_at == count));
    }
  }
}

TEST_CASE("W1 a pulled item that waits for those before it gets them, on whichever thread it runs") {
  const Watchdog watchdog;
  constexpr int count = 20;
  const auto items = list_of(count);
  for (const std::size_t workers : {2U, 3U, 5U}) {
    for (int round = 0; round < 300; ++round) {
      CAPTURE(workers, round);
      std::atomic<int> ended{0};
      const auto fn = [&](int item) {
        if (item == count - 1) wait_until([&] { return ended == count - 1; });
        ++ended;
        return item;
      };
      REQUIRE(are_numbers(parallel_map(fn, items, {.workers = workers}), count));
    }
  }
}

TEST_CASE("C1 no two items run at once as the same worker, whatever the input") {
  const Watchdog watchdog;
  constexpr int count = 20'000;
  for (const std::size_t workers : {2U, 3U}) {
    CAPTURE(workers);
    std::vector<std::atomic<bool>> busy(workers);
    std::atomic<int> wrong{0};
    const auto fn = [&](int item, const Task& task) {
      if (task.worker >= workers || busy[task.worker].exchange(true)) ++wrong;
      if (item % 997 == 0) dawdle();
      if (task.index != static_cast<std::size_t>(item)) ++wrong;
      busy[task.worker] = false;
      return item;
    };
    IntOptions options{.workers = workers};
    CHECK(are_numbers(parallel_map(fn, numbers(count), options), count));
    CHECK(are_numbers(parallel_map(fn, list_of(count), options), count));
    options.batch = Batch{.size = 100};
    CHECK(are_numbers(parallel_map(fn, list_of(count), options), count));
    for (const bool ordered : {false, true}) {
      int seen = 0;
      const auto items = list_of(count);
      for (auto& item : pyarallel::parallel_iter(fn, items, {.workers = workers, .ordered = ordered})) {
        seen += item.ok() && static_cast<std::size_t>(item.value()) == item.index ? 1 : 0;
      }
      CHECK(seen == count);
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("C4 the values of a long pulled input are in their places") {
  const Watchdog watchdog;
  for (const int count : {63, 64, 65, 20'000, 300'000}) {
    CAPTURE(count);
    SinglePass source{count, itself};
    const auto result = parallel_map([](int item) { return std::int64_t{item} * 3; }, source,
                                     {.workers = 2, .batch = Batch{.size = 100}});
    std::int64_t wrong = 0;
    for (std::size_t i = 0; i < result.size(); ++i) wrong += result[i] == static_cast<std::int64_t>(i) * 3 ? 0 : 1;
    CHECK(wrong == 0);
    CHECK(result.size() == static_cast<std::size_t>(count));
  }
}

TEST_CASE("W1 an explicit chunk holds nothing back where a policy asks for single items") {
  const Watchdog watchdog;
  std::atomic<int> others{0};
  const auto result = parallel_map(
      [&](int item) {
        if (item == 0) {
          wait_until([&] { return others == 99; });
        } else {
          ++others;
        }
        return item;
      },
      numbers(100), {.workers = 2, .retry = pyarallel::Retry{}, .batch = Batch{.chunk = 50}});
  CHECK(are_numbers(result, 100));
}

TEST_CASE("W1 an item that waits to be tried again holds back none behind it") {
  const Watchdog watchdog;
  std::stop_source stop;
  std::atomic<int> others{0};
  const auto items = numbers(100);
  const auto result = parallel_map(
      [&](int item) {
        if (item == 0) throw std::runtime_error("again, in an hour");
        if (++others == 99) stop.request_stop();
        return item;
      },
      items, {.workers = 2, .retry = pyarallel::Retry{.backoff = 1h, .max_delay = 1h}, .stop = stop.get_token()});
  CHECK(others == 99);
  CHECK(result.successes().size() == 99);
}

TEST_CASE("W1 items that wait for each other end with chunk 1") {
  const Watchdog watchdog;
  constexpr int workers = 4;
  constexpr int count = 40 * workers;
  std::atomic<int> arrived{0};
  // Each group of four leaves when it is complete.
  const auto meet = [&](int item) {
    const int group = arrived++ / workers;
    wait_until([&] { return arrived >= (group + 1) * workers; });
    return item;
  };
  const IntOptions options{.workers = workers, .batch = Batch{.chunk = 1}};
  SECTION("indexed") { CHECK(are_numbers(parallel_map(meet, numbers(count), options), count)); }
  SECTION("pulled") {
    SinglePass source{count, itself};
    CHECK(are_numbers(parallel_map(meet, source, options), count));
  }
  SECTION("with a callback") {
    auto reported = options;
    reported.on_progress = [](auto...) {};
    CHECK(are_numbers(parallel_map(meet, numbers(count), reported), count));
  }
}

TEST_CASE("W1 the first chunk of a worker is one item") {
  const Watchdog watchdog;
  constexpr int count = 10000;
  std::atomic<int> begun{0};
  const auto fn = [&](int item) {
    if (item < 4) {
      ++begun;
      wait_until([&] { return begun == 4; });  // one worker that had two of these would wait for itself
    }
    return item;
  };
  SECTION("indexed") { CHECK(are_numbers(parallel_map(fn, numbers(count), {.workers = 4}), count)); }
  SECTION("pulled") {
    SinglePass source{count, itself};
    CHECK(are_numbers(parallel_map(fn, source, {.workers = 4, .batch = Batch{.size = 1000}}), count));
  }
}

TEST_CASE("W1 every item runs once whatever the chunk") {
  const Watchdog watchdog;
  constexpr int count = 200;
  for (const std::size_t chunk : {std::size_t{0}, std::size_t{1}, std::size_t{3}, std::size_t{999}, std::size_t{5000},
                                  std::numeric_limits<std::size_t>::max()}) {
    for (const std::size_t window : {std::size_t{0}, std::size_t{1}, std::size_t{10}, std::size_t{100000},
                                     std::numeric_limits<std::size_t>::max()}) {
      CAPTURE(chunk, window);
      std::vector<std::atomic<int>> runs(count);
      const auto fn = [&](int item) {
        ++runs[static_cast<std::size_t>(item)];
        return item;
      };
      const IntOptions options{.workers = 3, .batch = Batch{.size = window, .chunk = chunk}};
      CHECK(are_numbers(parallel_map(fn, numbers(count), options), count));
      SinglePass source{count, itself};
      CHECK(are_numbers(parallel_map(fn, source, options), count));
      auto sequential = options;
      sequential.executor = Executor::sequential;
      CHECK(are_numbers(parallel_map(fn, numbers(count), sequential), count));
      CHECK(std::ranges::all_of(runs, [](const auto& times) { return times == 3; }));
    }
  }
}

TEST_CASE("W1 a chunk that turns slow loses no item and runs none twice") {
  const Watchdog watchdog;
  constexpr int count = 30000;
  // The pace of the first thousands makes the chunks long; then they are slow, and are given back.
  const auto is_slow = [](int item) { return item % 10000 > 9000 && item % 100 == 0; };
  std::vector<std::atomic<int>> runs(count);
  const auto fn = [&](int item) {
    ++runs[static_cast<std::size_t>(item)];
    if (is_slow(item)) dawdle();
    return item;
  };
  SECTION("indexed") { CHECK(are_numbers(parallel_map(fn, numbers(count), {.workers = 4}), count)); }
  SECTION("indexed with worker_init") {
    const auto result = parallel_map(fn, numbers(count), {.workers = 4, .worker_init = [] {}});
    CHECK(are_numbers(result, count));
  }
  SECTION("pulled") {
    SinglePass source{count, itself};
    CHECK(are_numbers(parallel_map(fn, source, {.workers = 4, .batch = Batch{.size = 4000}}), count));
  }
  CHECK(std::ranges::all_of(runs, [](const auto& times) { return times == 1; }));
}

// Sources that throw ------------------------------------------------------------------------------------

namespace {

/// The message of the exception E that leaves the call; "nothing" if none does.
template <class E, class Call>
std::string thrown_by(Call&& call) {
  try {
    call();
  } catch (const E& e) {
    return typeid(e) == typeid(E) ? e.what() : "derived";
  }
  return "nothing";
}

}  // namespace

TEST_CASE("W2 what a source throws leaves the call after running items have ended") {
  const Watchdog watchdog;
  struct Place {
    Where where;
    int at;
  };
  for (const auto& [where, at] :
       {Place{Where::begin, 0}, Place{Where::compare, 0}, Place{Where::dereference, 0}, Place{Where::increment, 1},
        Place{Where::increment, 20}, Place{Where::dereference, 20}, Place{Where::compare, 20}}) {
    for (int variant = 0; variant < 5; ++variant) {
      CAPTURE(static_cast<int>(where), at, variant);
      Counts items;
      Counts values;
      MapOptions<Counted, Counted> options{.workers = 3};
      if (variant == 1) options.batch = Batch{.size = 100};
      if (variant == 2) options.on_progress = [](auto...) {};
      if (variant == 3) options.workers = 1;
      if (variant == 4) options.executor = Executor::sequential;
      const bool inline_run = variant >= 3;

      ThrowingSource source{where, at, items};
      Gate threw;
      source.before_throw = [&] { threw.open(); };
      std::atomic<int> begun{0};
      std::atomic<int> ended{0};
      const auto fn = [&](const Counted& item) {
        ++begun;
        if (item.value == 0 && !inline_run) threw.wait();  // still running when the source throws
        if (item.value == 0) dawdle();
        ++ended;
        return Counted{values, item.value};
      };
      const auto message = thrown_by<SourceFailed>([&] { parallel_map(fn, source, options); });
      const int ended_by_then = ended;
      CHECK(message == "item " + std::to_string(at));
      CHECK(begun == ended_by_then);
      if (inline_run) CHECK(begun == at);
      if (!inline_run) CHECK(begun <= at);
      CHECK(items.alive() == 0);
      CHECK(values.alive() == 0);
      dawdle();
      CHECK(begun == ended_by_then);
    }
  }
}

TEST_CASE("W2 what a view over indexed items throws leaves the call after running items have ended") {
  const Watchdog watchdog;
  for (const int bad : {0, 1, 50, 99}) {
    for (int variant = 0; variant < 6; ++variant) {
      CAPTURE(bad, variant);
      MapOptions<Counted, Counted> options{.workers = 3};
      if (variant == 1) options.batch = Batch{.chunk = 10};
      if (variant == 2) options.on_progress = [](auto...) {};
      if (variant == 3) options.item_key = [](const Counted& item) { return ItemKey{std::int64_t{item.value}}; };
      if (variant == 4) options.workers = 1;
      if (variant == 5) options.executor = Executor::sequential;

      Counts items;
      Counts values;
      std::atomic<int> begun{0};
      std::atomic<int> ended{0};
      const auto view = std::views::iota(0, 100) | std::views::transform([&](int number) {
                          if (number == bad) throw SourceFailed("item " + std::to_string(number));
                          return Counted{items, number};
                        });
      static_assert(std::ranges::random_access_range<decltype(view)>);
      const auto fn = [&](const Counted& item) {
        ++begun;
        if (item.value % 7 == 0) dawdle();
        ++ended;
        return Counted{values, item.value};
      };
      CHECK(thrown_by<SourceFailed>([&] { parallel_map(fn, view, options); }) == "item " + std::to_string(bad));
      const int ended_by_then = ended;
      CHECK(begun == ended_by_then);
      CHECK(begun < 100);
      CHECK(items.alive() == 0);
      CHECK(values.alive() == 0);
      dawdle();
      CHECK(begun == ended_by_then);
    }
  }
}

TEST_CASE("W2 a running item is asked to stop when the source throws") {
  const Watchdog watchdog;
  Counts counts;
  ThrowingSource source{Where::increment, 1, counts};
  Gate running;
  source.before_throw = [&] { running.wait(); };
  std::atomic<bool> asked{false};
  const auto fn = [&](const Counted&, const Task& task) {
    running.open();
    wait_until([&] { return task.stop.stop_requested(); });
    asked = true;
  };
  CHECK_THROWS_AS(parallel_map(fn, source, {.workers = 2}), SourceFailed);
  CHECK(asked);
}

TEST_CASE("W2 views that throw in begin and streams that throw while they are read") {
  const Watchdog watchdog;
  for (const std::size_t workers : {1U, 3U}) {
    CAPTURE(workers);
    auto filtered = std::views::iota(0, 100) | std::views::filter([](int number) -> bool {
                      throw SourceFailed("filter " + std::to_string(number));
                    });
    CHECK(thrown_by<SourceFailed>([&] { parallel_map(itself, filtered, {.workers = workers}); }) == "filter 0");

    std::istringstream text{"1 2 3 four"};
    text.exceptions(std::ios::failbit | std::ios::badbit);
    auto read = std::ranges::istream_view<int>(text);
    CHECK_THROWS_AS(parallel_map(itself, read, {.workers = workers}), std::ios_base::failure);
  }
}

TEST_CASE("W2 a source may throw anything") {
  for (const std::size_t workers : {1U, 3U}) {
    CAPTURE(workers);
    SinglePass source{10, [](int number) { return number < 5 ? number : throw 42; }};
    CHECK_THROWS_AS(parallel_map(itself, source, {.workers = workers}), int);
  }
}

// Sources that never end --------------------------------------------------------------------------------

namespace {

/// Maps endless sources of several kinds.
template <class Fn, class Check>
void map_endless(Fn fn, const IntOptions& options, Check check) {
  check(parallel_map(fn, std::views::iota(0), options));  // random access, but without a size
  check(
      parallel_map(fn, std::views::iota(0) | std::views::filter([](int number) { return number % 2 == 0; }), options));
  SinglePass source{std::numeric_limits<int>::max(), itself};
  check(parallel_map(fn, source, options));
}

std::vector<IntOptions> ways_to_map() {
  return {IntOptions{.workers = 3}, IntOptions{.workers = 1}, IntOptions{.executor = Executor::sequential},
          IntOptions{.workers = 3, .batch = Batch{.size = 1000}},
          IntOptions{.workers = 3, .on_progress = [](auto...) {}}};
}

}  // namespace

TEST_CASE("W3 an endless source ends with max_errors") {
  const Watchdog watchdog;
  for (auto options : ways_to_map()) {
    options.max_errors = 5;
    map_endless([](int item) { return item >= 100 ? throw std::runtime_error("too far") : item; }, options,
                [](const auto& result) {
                  CHECK(result.aborted());
                  CHECK(result.failures().size() >= 5);
                });
  }
}

TEST_CASE("W3 an endless source ends with a timeout") {
  const Watchdog watchdog;
  for (auto options : ways_to_map()) {
    options.timeout = 20ms;
    map_endless(itself, options, [](const auto& result) { CHECK(result.timed_out()); });
  }
}

TEST_CASE("W3 an endless source ends with a stop") {
  const Watchdog watchdog;
  for (auto options : ways_to_map()) {
    const auto fn = [](std::stop_source& stop, int item) {
      if (item == 1000) stop.request_stop();
      return item;
    };
    for (int round = 0; round < 3; ++round) {
      std::stop_source stop;
      options.stop = stop.get_token();
      const auto counting = std::bind_front(fn, std::ref(stop));
      if (round == 0) CHECK(parallel_map(counting, std::views::iota(0), options).cancelled());
      SinglePass source{std::numeric_limits<int>::max(), itself};
      if (round == 1) CHECK(parallel_map(counting, source, options).cancelled());
      auto even = std::views::iota(0) | std::views::filter([](int number) { return number % 2 == 0; });
      if (round == 2) CHECK(parallel_map(counting, even, options).cancelled());
    }
  }
}

TEST_CASE("W3 a window without bounds does not keep the driver from looking at the time") {
  const Watchdog watchdog;
  support::FakeClock clock{support::FakeClock::Mode::manual};
  const support::ClockOverride use{clock};
  constexpr int enough = 100'000;
  std::atomic<int> begun{0};
  SinglePass source{enough, itself};
  source.on_read = [&](int number) {
    if (number == 1000) {
      wait_until([&] { return begun == 2; });
      clock.advance(2h);
    }
    if (number == enough - 1) throw SourceFailed("nobody looked at the time");
  };
  // Every worker has an item that ends only when it is asked to.
  const auto fn = [&](int item, const Task& task) {
    ++begun;
    wait_until([&] { return task.stop.stop_requested(); });
    return item;
  };
  IntOptions options{.workers = 2, .batch = Batch{.size = std::numeric_limits<std::size_t>::max()}};
  SECTION("timeout") {
    options.timeout = 1h;
    CHECK(parallel_map(fn, source, options).timed_out());
  }
  SECTION("task_timeout") {
    options.task_timeout = 1h;
    options.max_errors = 1;
    CHECK(parallel_map(fn, source, options).aborted());
  }
  CHECK(source.reads < enough);
}

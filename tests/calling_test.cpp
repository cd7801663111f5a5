// C1 to C7 and C9 to C11: what can be called, over which items, and what is refused.
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <deque>
#include <forward_list>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

template <class R>
std::vector<R> list_of(const MapResult<R>& result) {
  const auto values = result.values();
  return {values.begin(), values.end()};
}

const std::vector<int> one_to_five{1, 2, 3, 4, 5};
const std::vector<int> doubled{2, 4, 6, 8, 10};

int twice(int x) { return 2 * x; }
int twice_noexcept(const int& x) noexcept { return 2 * x; }
int index_of_task(int, const Task& task) { return static_cast<int>(task.index); }
const auto same = [](const auto& x) { return x; };

struct Person {
  std::string name;
  int age = 0;
  std::string greeting() const { return "I am " + name; }
  std::size_t position(const Task& task) const { return task.index; }
};

}  // namespace

// C1: callables --------------------------------------------------------------------------------------

TEST_CASE("C1 functions and pointers to them are called") {
  CHECK(list_of(parallel_map(twice, one_to_five)) == doubled);
  CHECK(list_of(parallel_map(&twice, one_to_five)) == doubled);
  CHECK(list_of(parallel_map(twice_noexcept, one_to_five)) == doubled);
  CHECK(list_of(parallel_map(index_of_task, one_to_five)) == std::vector<int>{0, 1, 2, 3, 4});
  const std::function<int(int)> erased = twice;
  CHECK(list_of(parallel_map(erased, one_to_five)) == doubled);
}

TEST_CASE("C1 lambdas with captures are called in place and never copied or moved") {
  Counts counts;
  const Counted factor{counts, 2};
  auto scale = [factor](int x) { return factor.value * x; };
  const int copies = counts.copied;
  const int moves = counts.moved;
  CHECK(list_of(parallel_map(scale, one_to_five)) == doubled);
  CHECK(list_of(parallel_map(std::as_const(scale), one_to_five)) == doubled);
  CHECK(list_of(parallel_map(std::move(scale), one_to_five)) == doubled);
  CHECK(counts.copied == copies);
  CHECK(counts.moved == moves);
}

TEST_CASE("C1 a move-only lambda is called as lvalue and as rvalue") {
  auto scale = [factor = std::make_unique<int>(2)](int x) { return *factor * x; };
  CHECK(list_of(parallel_map(scale, one_to_five)) == doubled);
  CHECK(list_of(parallel_map(std::move(scale), one_to_five)) == doubled);
}

TEST_CASE("C1 all workers share the one function object even if its call operator is not const") {
  struct Counting {
    std::atomic<int> calls{0};
    int operator()(int x) {
      ++calls;
      return 2 * x;
    }
  };
  Counting counting;
  CHECK(list_of(parallel_map(counting, one_to_five)) == doubled);
  CHECK(counting.calls == 5);
  auto mutating = [calls = std::make_unique<std::atomic<int>>(0)](int) mutable { return ++*calls; };
  const auto result = parallel_map(mutating, one_to_five, {.workers = 3});
  CHECK(std::accumulate(result.begin(), result.end(), 0) == 1 + 2 + 3 + 4 + 5);
}

TEST_CASE("C1 std bind_front and reference wrappers are called") {
  CHECK(list_of(parallel_map(std::bind_front(std::multiplies<int>{}, 2), one_to_five)) == doubled);
  const auto scale = [](int factor, int x, const Task& task) { return factor * x + 0 * static_cast<int>(task.index); };
  CHECK(list_of(parallel_map(std::bind_front(scale, 2), one_to_five)) == doubled);
  CHECK(list_of(parallel_map(std::ref(twice), one_to_five)) == doubled);
}

TEST_CASE("C1 member pointers are called") {
  const std::vector<Person> people{{"Ada", 36}, {"Alan", 41}};
  CHECK(list_of(parallel_map(&Person::age, people)) == std::vector<int>{36, 41});
  CHECK(list_of(parallel_map(&Person::greeting, people)) == std::vector<std::string>{"I am Ada", "I am Alan"});
  CHECK(list_of(parallel_map(&Person::position, people)) == std::vector<std::size_t>{0, 1});
  const std::vector<const Person*> pointers{&people[1], &people[0]};
  CHECK(list_of(parallel_map(&Person::age, pointers)) == std::vector<int>{41, 36});
}

TEST_CASE("C1 a function takes the Task by reference or by value or not at all") {
  const std::vector<std::size_t> positions{0, 1, 2, 3, 4};
  CHECK(list_of(parallel_map([](int, const Task& task) { return task.index; }, one_to_five)) == positions);
  CHECK(list_of(parallel_map([](int, Task task) { return task.index; }, one_to_five)) == positions);
  CHECK(list_of(parallel_map([](auto&&, auto&& task) { return task.index; }, one_to_five)) == positions);
  CHECK(list_of(parallel_map([](const auto& x) { return 2 * x; }, one_to_five)) == doubled);
  SECTION("where it can be called both ways it is given the Task") {
    struct Both {
      std::string operator()(int) const { return "item"; }
      std::string operator()(int, const Task&) const { return "item and task"; }
    };
    CHECK(parallel_map(Both{}, one_to_five)[0] == "item and task");
    const auto any = [](const auto&... arguments) { return sizeof...(arguments); };
    CHECK(parallel_map(any, one_to_five)[0] == 2);
  }
  SECTION("a second parameter of another type is none for the Task") {
    const auto scaled = [](int x, int factor = 2) { return factor * x; };
    CHECK(list_of(parallel_map(scaled, one_to_five)) == doubled);
  }
}

TEST_CASE("C1 the Task says which item and attempt it is") {
  const auto describe = [](int item, const Task& task) {
    return std::tuple{item, task.index, task.attempt, task.worker < 3, task.stop.stop_requested()};
  };
  for (const std::size_t workers : {1U, 3U}) {
    const auto result = parallel_map(describe, one_to_five, {.workers = workers});
    for (std::size_t i = 0; i < 5; ++i) CHECK(result[i] == std::tuple{one_to_five[i], i, 1, true, false});
  }
}

TEST_CASE("C1 a function that returns void gives monostates") {
  std::atomic<int> sum{0};
  const auto result = parallel_map([&](int x) { sum += x; }, one_to_five);
  static_assert(std::is_same_v<decltype(result), const MapResult<std::monostate>>);
  CHECK(result.ok());
  CHECK(result.size() == 5);
  CHECK(sum == 15);
}

TEST_CASE("C1 results are decayed to values") {
  std::vector<std::string> words{"a", "b"};
  const auto by_reference = [](std::string& word) -> std::string& { return word; };
  const auto constant = [](const std::string& word) -> const std::string { return word + "!"; };
  const auto references = parallel_map(by_reference, words);
  static_assert(std::is_same_v<decltype(references), const MapResult<std::string>>);
  words[0] = "changed";
  CHECK(list_of(references) == std::vector<std::string>{"a", "b"});
  const auto constants = parallel_map(constant, words);
  static_assert(std::is_same_v<decltype(constants), const MapResult<std::string>>);
  CHECK(constants[1] == "b!");
}

// C2: inputs -----------------------------------------------------------------------------------------

TEST_CASE("C2 containers of every kind are inputs") {
  std::vector<int> vector = one_to_five;
  CHECK(list_of(parallel_map(twice, vector)) == doubled);
  CHECK(list_of(parallel_map(twice, std::vector<int>(vector))) == doubled);
  CHECK(list_of(parallel_map(twice, std::array{1, 2, 3, 4, 5})) == doubled);
  int c_array[]{1, 2, 3, 4, 5};
  CHECK(list_of(parallel_map(twice, c_array)) == doubled);
  CHECK(list_of(parallel_map(twice, std::span(c_array))) == doubled);
  CHECK(list_of(parallel_map(twice, std::deque<int>{1, 2, 3, 4, 5})) == doubled);
  CHECK(list_of(parallel_map(twice, std::list<int>{1, 2, 3, 4, 5})) == doubled);
  const std::forward_list<int> forward_list{1, 2, 3, 4, 5};
  CHECK(list_of(parallel_map(twice, forward_list)) == doubled);
  CHECK(list_of(parallel_map(twice, std::set<int>{5, 3, 1, 2, 4})) == doubled);
  const std::map<std::string, int> map{{"a", 1}, {"b", 2}};
  CHECK(list_of(parallel_map([](const auto& entry) { return entry.first + "!"; }, map)) ==
        std::vector<std::string>{"a!", "b!"});
  CHECK(list_of(parallel_map(same, std::vector<bool>{true, false, true})) == std::vector<bool>{true, false, true});
}

TEST_CASE("C2 views of every kind are inputs") {
  namespace views = std::views;
  CHECK(list_of(parallel_map(twice, views::iota(1, 6))) == doubled);
  CHECK(list_of(parallel_map(twice, views::iota(1) | views::take(5))) == doubled);
  CHECK(list_of(parallel_map(same, one_to_five | views::transform(twice))) == doubled);
  CHECK(list_of(parallel_map(twice, one_to_five | views::reverse)) == std::vector<int>{10, 8, 6, 4, 2});
  const auto odd = [](int x) { return x % 2 == 1; };
  CHECK(list_of(parallel_map(twice, views::iota(1, 6) | views::filter(odd))) == std::vector<int>{2, 6, 10});
  CHECK(list_of(parallel_map(twice, views::iota(1) | views::take_while([](int x) { return x < 6; }))) == doubled);
  const std::map<std::string, int> map{{"a", 1}, {"b", 2}};
  CHECK(list_of(parallel_map(twice, map | views::values)) == std::vector<int>{2, 4});
  std::istringstream in{"1 2 3 4 5"};
  CHECK(list_of(parallel_map(twice, std::ranges::istream_view<int>(in))) == doubled);
  SinglePass generator{5, [](int i) { return i + 1; }};
  CHECK(list_of(parallel_map(twice, generator)) == doubled);
}

TEST_CASE("C2 move-only items are used where they are or moved out of single-pass ranges") {
  std::vector<std::unique_ptr<int>> pointers;
  for (const int x : one_to_five) pointers.push_back(std::make_unique<int>(x));
  const auto twice_of = [](const std::unique_ptr<int>& pointer) { return 2 * *pointer; };
  CHECK(list_of(parallel_map(twice_of, pointers)) == doubled);
  CHECK(list_of(parallel_map(twice_of, std::move(pointers))) == doubled);
  SinglePass prvalues{5, [](int i) { return std::make_unique<int>(i + 1); }};
  CHECK(list_of(parallel_map(twice_of, prvalues)) == doubled);
  std::unique_ptr<int> current;
  SinglePass lvalues{5, [&current](int i) -> std::unique_ptr<int>& {
                       current = std::make_unique<int>(i + 1);
                       return current;
                     }};
  CHECK(list_of(parallel_map([](std::unique_ptr<int>& pointer) { return 2 * *pointer; }, lvalues)) == doubled);
  auto made_by_index = std::views::iota(1, 6) | std::views::transform([](int i) { return std::make_unique<int>(i); });
  CHECK(list_of(parallel_map(twice_of, made_by_index)) == doubled);
}

TEST_CASE("C2 items that cannot be moved are used where they are or made in place") {
  const auto twice_of = [](const NonMovable& item) { return 2 * item.value; };
  std::list<NonMovable> list;
  for (const int x : one_to_five) list.emplace_back(x);
  CHECK(list_of(parallel_map(twice_of, list)) == doubled);
  CHECK(list_of(parallel_map([](NonMovable& item) { return item.value *= 2; }, list)) == doubled);
  const std::array<NonMovable, 2> array{NonMovable{1}, NonMovable{2}};
  CHECK(list_of(parallel_map(twice_of, array)) == std::vector<int>{2, 4});
  SinglePass generator{5, [](int i) { return NonMovable{i + 1}; }};
  CHECK(list_of(parallel_map(twice_of, generator)) == doubled);
  auto made_by_index = std::views::iota(1, 6) | std::views::transform([](int i) { return NonMovable{i}; });
  CHECK(list_of(parallel_map(twice_of, made_by_index, {.workers = 2})) == doubled);
}

TEST_CASE("C2 an empty input gives an empty completed result and starts no worker") {
  int initialized = 0;
  std::stop_source stopped;
  stopped.request_stop();
  const auto check = [&](auto&& items, std::optional<Duration> timeout, std::stop_token stop,
                         std::optional<std::size_t> workers) {
    const auto result = parallel_map(twice, items,
                                     {.workers = workers,
                                      .timeout = timeout,
                                      .stop = stop,
                                      .on_progress = [&](std::size_t, std::size_t) { ++initialized; },
                                      .worker_init = [&] { ++initialized; }});
    CHECK(result.ok());
    CHECK(result.status() == RunStatus::completed);
    CHECK(result.empty());
    CHECK(result.values().empty());
    CHECK(result.failures().empty());
    CHECK(result.begin() == result.end());
  };
  for (const std::optional<std::size_t> workers : {std::optional<std::size_t>{}, std::optional<std::size_t>{1}}) {
    for (const std::optional<Duration> timeout : {std::optional<Duration>{}, std::optional<Duration>{0s}}) {
      for (const std::stop_token& stop : {std::stop_token{}, stopped.get_token()}) {
        check(std::vector<int>{}, timeout, stop, workers);
        check(std::list<int>{}, timeout, stop, workers);
        check(std::forward_list<int>{}, timeout, stop, workers);
        SinglePass nothing{0, [](int i) { return i; }};
        check(nothing, timeout, stop, workers);
      }
    }
  }
  CHECK(initialized == 0);
}

TEST_CASE("C2 bad options throw also where the input is empty") {
  CHECK_THROWS_AS(parallel_map(twice, std::vector<int>{}, {.workers = 0}), std::invalid_argument);
  CHECK_THROWS_AS(parallel_map(twice, std::forward_list<int>{}, {.max_errors = 0}), std::invalid_argument);
}

// C3: items stay where they are, or are read once and late -------------------------------------------

namespace {

/// The addresses that fn sees, in input order.
template <class Items>
std::vector<const Counted*> addresses_seen(Items&& items, MapOptions<Counted, const Counted*> options = {}) {
  const auto result = parallel_map([](const Counted& item) { return &item; }, items, options);
  return list_of(result);
}

template <class Items>
std::vector<const Counted*> addresses_of(const Items& items) {
  std::vector<const Counted*> addresses;
  for (const Counted& item : items) addresses.push_back(&item);
  return addresses;
}

template <class Container>
Container five_counted(Counts& counts) {
  Container items;
  for (const int x : one_to_five) items.emplace_back(counts, x);
  return items;
}

}  // namespace

TEST_CASE("C3 lvalues of forward ranges are used where they are") {
  Counts counts;
  auto list = five_counted<std::list<Counted>>(counts);
  auto deque = five_counted<std::deque<Counted>>(counts);
  std::vector<Counted> vector;
  vector.reserve(5);
  for (const int x : one_to_five) vector.emplace_back(counts, x);
  REQUIRE(counts.made == 15);
  const std::function<ItemKey(const Counted&)> key = [](const Counted& item) { return ItemKey{item.value}; };
  for (const std::size_t workers : {1U, 4U}) {
    CHECK(addresses_seen(vector, {.workers = workers}) == addresses_of(vector));
    CHECK(addresses_seen(vector, {.workers = workers, .retry = Retry{}}) == addresses_of(vector));
    CHECK(addresses_seen(vector, {.workers = workers, .item_key = key}) == addresses_of(vector));
    CHECK(addresses_seen(deque, {.workers = workers}) == addresses_of(deque));
    CHECK(addresses_seen(list, {.workers = workers}) == addresses_of(list));
    CHECK(addresses_seen(list, {.workers = workers, .item_key = key}) == addresses_of(list));
    const auto odd = [](const Counted& item) { return item.value % 2 == 1; };
    CHECK(addresses_seen(list | std::views::filter(odd), {.workers = workers}).back() == &list.back());
  }
  CHECK(addresses_seen(std::move(vector)) == addresses_of(vector));
  CHECK(counts.made == 15);
}

TEST_CASE("C3 items may be changed where the range is mutable") {
  std::vector<int> vector = one_to_five;
  parallel_map([](int& x) { x *= 2; }, vector).throw_on_failure();
  CHECK(vector == doubled);
  std::list<int> list{1, 2, 3, 4, 5};
  parallel_map([](int& x) { x *= 2; }, list).throw_on_failure();
  CHECK(list == std::list<int>{2, 4, 6, 8, 10});
  std::map<int, std::string> map{{1, "a"}, {2, "b"}};
  parallel_map([](auto& entry) { entry.second += "!"; }, map).throw_on_failure();
  CHECK(map == std::map<int, std::string>{{1, "a!"}, {2, "b!"}});
  static_assert(std::is_same_v<item_arg_t<const std::vector<int>&>, const int&>);
  static_assert(std::is_same_v<item_arg_t<std::set<int>&>, const int&>);
}

TEST_CASE("C3 prvalues are kept as they come and destroyed when done") {
  Counts counts;
  for (const std::size_t workers : {1U, 4U}) {
    const auto read = [](const Counted& item) { return item.value; };
    SinglePass generator{100, [&](int i) { return Counted{counts, i}; }};
    CHECK(parallel_map(read, generator, {.workers = workers}).ok());
    auto by_index = std::views::iota(0, 100) | std::views::transform([&](int i) { return Counted{counts, i}; });
    CHECK(parallel_map(read, by_index, {.workers = workers}).ok());
    CHECK(counts.alive() == 0);
  }
  CHECK(counts.made == 400);
  CHECK(counts.copied == 0);
  CHECK(counts.moved == 0);
}

TEST_CASE("C3 a prvalue is kept until its last attempt ended") {
  Counts counts;
  const auto third_time = [](const Counted& item, const Task& task) {
    if (task.attempt < 3) throw std::runtime_error("again");
    return item.value;
  };
  for (const std::size_t workers : {1U, 4U}) {
    SinglePass generator{5, [&](int i) { return Counted{counts, i + 1}; }};
    const auto result = parallel_map(third_time, generator, {.workers = workers, .retry = Retry{.backoff = 0s}});
    CHECK(list_of(result) == one_to_five);
    CHECK(generator.reads == 5);
    auto by_index = std::views::iota(1, 6) | std::views::transform([&](int i) { return Counted{counts, i}; });
    CHECK(list_of(parallel_map(third_time, by_index, {.workers = workers, .retry = Retry{.backoff = 0s}})) ==
          one_to_five);
  }
  CHECK(counts.made == 20);
  CHECK(counts.alive() == 0);
}

TEST_CASE("C3 single-pass lvalues are copied once each") {
  Counts counts;
  std::optional<Counted> current;
  const auto make = [&](int i) -> Counted& { return current.emplace(counts, i + 1); };
  const auto read = [](Counted& item) { return item.value; };
  for (const std::size_t workers : {1U, 4U}) {
    SinglePass source{5, make};
    CHECK(list_of(parallel_map(read, source, {.workers = workers})) == one_to_five);
  }
  CHECK(counts.copied == 10);
  CHECK(counts.moved == 0);
  CHECK(counts.alive() == 1);
}

TEST_CASE("C3 each element of a pulled range is read once by the driver") {
  for (const std::size_t workers : {1U, 4U}) {
    SinglePass source{200, [](int i) { return i; }};
    const auto result = parallel_map(same, source, {.workers = workers});
    REQUIRE(result.ok());
    CHECK(result.size() == 200);
    for (std::size_t i = 0; i < 200; ++i) REQUIRE(result[i] == static_cast<int>(i));
    CHECK(source.begun == 1);
    CHECK(source.reads == 200);
    CHECK(source.increments == 200);
    CHECK(source.mistakes == 0);
  }
}

TEST_CASE("C3 a pulled range is read at most one window ahead of completion") {
  const auto check = [](std::size_t workers, Batch batch, int window) {
    std::atomic<int> done{0};
    SinglePass source{200, [](int i) { return i; }};
    int too_early = 0;
    source.on_read = [&](int i) { too_early += i + 1 - done > window; };
    source.on_increment = [&](int i) { too_early += i + 2 - done > window; };  // on its way to the one behind i
    const auto result = parallel_map([&](int) { ++done; }, source, {.workers = workers, .batch = batch});
    CHECK(result.ok());
    CHECK(source.reads == 200);
    CHECK(too_early == 0);
  };
  check(1, {}, 1);
  check(2, {}, 4);
  check(3, {.size = 5}, 5);
  check(3, {.size = 1}, 1);
  check(2, {.size = 16, .chunk = 4}, 16);
}

TEST_CASE("C3 a pulled range is not touched again after the run was stopped") {
  SECTION("before it began") {
    std::stop_source stopped;
    stopped.request_stop();
    for (const std::size_t workers : {1U, 4U}) {
      SinglePass source{200, [](int i) { return i; }};
      CHECK(parallel_map(same, source, {.workers = workers, .stop = stopped.get_token()}).cancelled());
      CHECK(parallel_map(same, source, {.workers = workers, .timeout = 0s}).timed_out());
      CHECK(source.reads == 0);
      CHECK(source.increments == 0);
    }
  }
  SECTION("by a callback") {
    for (const std::size_t workers : {1U, 4U}) {
      SinglePass source{200, [](int i) { return i; }};
      std::stop_source stop;
      std::pair<int, int> before;
      const auto result = parallel_map(
          same, source,
          {.workers = workers, .stop = stop.get_token(), .on_progress = [&](std::size_t done, std::size_t) {
             if (done == 10) {
               stop.request_stop();
               before = {source.reads, source.increments};
             }
           }});
      CHECK(result.cancelled());
      CHECK(std::pair{source.reads, source.increments} == before);
      CHECK(result.size() == static_cast<std::size_t>(source.reads));
    }
  }
  SECTION("by the callback that throws") {
    for (const std::size_t workers : {1U, 4U}) {
      SinglePass source{200, [](int i) { return i; }};
      std::pair<int, int> before;
      const auto throwing = [&](std::size_t, std::size_t) {
        before = {source.reads, source.increments};
        throw std::runtime_error("enough");
      };
      CHECK_THROWS_AS(parallel_map(same, source, {.workers = workers, .on_progress = throwing}), std::runtime_error);
      CHECK(std::pair{source.reads, source.increments} == before);
    }
  }
  SECTION("by the source itself") {
    for (const std::size_t workers : {1U, 4U}) {
      SinglePass reading{200, [](int i) { return i; }};
      reading.on_read = [](int i) {
        if (i == 7) throw std::out_of_range("no seventh");
      };
      CHECK_THROWS_AS(parallel_map(same, reading, {.workers = workers}), std::out_of_range);
      CHECK(reading.increments == 7);
      SinglePass advancing{200, [](int i) { return i; }};
      advancing.on_increment = [](int i) {
        if (i == 7) throw std::out_of_range("nothing after the seventh");
      };
      CHECK_THROWS_AS(parallel_map(same, advancing, {.workers = workers}), std::out_of_range);
      CHECK(advancing.reads == 8);
      CHECK(advancing.increments == 7);
    }
  }
  SECTION("by the item that fails in the calling thread") {
    SinglePass source{200, [](int i) { return i; }};
    const auto fail = [](int i) {
      if (i == 3) throw std::runtime_error("three");
    };
    CHECK(parallel_map(fail, source, {.workers = 1, .max_errors = 1}).aborted());
    CHECK(source.reads == 4);
    CHECK(source.increments == 3);
  }
}

TEST_CASE("C3 input that ends is not asked again") {
  for (const std::size_t workers : {1U, 4U}) {
    std::istringstream in{"1 2 x 3"};
    CHECK(list_of(parallel_map(twice, std::ranges::istream_view<int>(in), {.workers = workers})) ==
          std::vector<int>{2, 4});
    SinglePass source{3, [](int i) { return i; }};
    CHECK(parallel_map(same, source, {.workers = workers}).size() == 3);
    CHECK(source.mistakes == 0);
  }
}

// C4 and C5: results and errors ----------------------------------------------------------------------

TEST_CASE("C4 results are in input order whatever the completion order") {
  const Watchdog watchdog;
  // Each item waits until the one behind it was reported.
  const int count = 8;
  std::atomic<int> next{count - 1};
  const auto last_first = [&](int i) {
    while (next != i) std::this_thread::yield();
    return i;
  };
  std::vector<std::size_t> order;
  const MapOptions<int, int> options{.workers = count, .on_result = [&](const ItemResult<int>& item) {
                                       order.push_back(item.index);
                                       --next;
                                     }};
  std::vector<int> items(count);
  std::iota(items.begin(), items.end(), 0);
  const std::vector<std::size_t> backwards{7, 6, 5, 4, 3, 2, 1, 0};
  CHECK(list_of(parallel_map(last_first, items, options)) == items);
  CHECK(std::exchange(order, {}) == backwards);
  next = count - 1;
  CHECK(list_of(parallel_map(last_first, std::list<int>(items.begin(), items.end()), options)) == items);
  CHECK(order == backwards);
}

TEST_CASE("C4 a result needs to be movable and nothing else") {
  struct OnlyMovable {
    explicit OnlyMovable(int number) : value(number) {}
    OnlyMovable(OnlyMovable&&) = default;
    int value;
  };
  const auto wrap = [](int x) { return OnlyMovable{x}; };
  auto result = parallel_map(wrap, one_to_five);
  CHECK(result[4].value == 5);
  CHECK(std::move(result).values()[0].value == 1);
  SinglePass source{500, [](int i) { return i; }};
  const auto many = parallel_map(wrap, source);
  for (std::size_t i = 0; i < 500; ++i) REQUIRE(many[i].value == static_cast<int>(i));
}

TEST_CASE("C4 results of sized inputs are made in place") {
  Counts counts;
  const auto wrap = [&](int x) { return Counted{counts, x}; };
  for (const std::size_t workers : {1U, 4U}) {
    CHECK(parallel_map(wrap, one_to_five, {.workers = workers})[4].value == 5);
    CHECK(parallel_map(wrap, std::list<int>{1, 2}, {.workers = workers})[1].value == 2);
  }
  CHECK(counts.copied + counts.moved == 0);
  CHECK(counts.alive() == 0);
}

TEST_CASE("C5 whatever is thrown becomes the error of its item") {
  struct Strange {
    int code;
  };
  const auto fail = [](int i) -> int {
    switch (i) {
      case 1:
        throw std::out_of_range("far out");
      case 2:
        throw 42;
      case 3:
        throw Strange{7};
      case 4:
        throw "a literal";
      default:
        return i;
    }
  };
  for (const std::size_t workers : {1U, 4U}) {
    const auto result = parallel_map(fail, std::views::iota(0, 6), {.workers = workers});
    CHECK(result.complete());
    REQUIRE(result.failures().size() == 4);
    CHECK(result.failures()[0].error.is<std::logic_error>());
    CHECK(*result.failures()[1].error.get_if<int>() == 42);
    CHECK(result.failures()[2].error.get_if<Strange>()->code == 7);
    CHECK(result.failures()[3].error.is<const char*>());
    CHECK_THROWS_AS(result.at(1), std::out_of_range);
    CHECK_THROWS_AS(result.at(2), int);
    CHECK(result.at(5) == 5);
  }
}

TEST_CASE("C5 what item construction throws belongs to the source and not to the item") {
  auto items = std::views::iota(0, 6) | std::views::transform([](int i) {
                 if (i == 4) throw std::domain_error("item four cannot be made");
                 return i;
               });
  for (const std::size_t workers : {1U, 4U}) {
    CHECK_THROWS_AS(parallel_map(same, items, {.workers = workers}), std::domain_error);
  }
}

// C6: bad options ------------------------------------------------------------------------------------

namespace {

/// What a map with these options complains about; then it has touched neither items nor fn.
template <class F>
std::string complaint_of(F fn, const MapOptions<int, int>& options) {
  SinglePass items{3, [](int i) { return i; }};
  std::atomic<int> calls{0};
  const auto counting = [&]<class... Args>(Args && ... args)
    requires std::invocable<F&, Args...>
  {
    ++calls;
    return fn(args...);
  };
  try {
    parallel_map(counting, items, options);
  } catch (const std::invalid_argument& e) {
    CHECK(items.begun == 0);
    CHECK(calls == 0);
    return e.what();
  }
  return "none";
}

std::string complaint(const MapOptions<int, int>& options) { return complaint_of(twice, options); }
std::string complaint_with_task(const MapOptions<int, int>& options) { return complaint_of(index_of_task, options); }

}  // namespace

TEST_CASE("C6 bad counts are refused") {
  CHECK(complaint({.workers = 0}) == "workers must be >= 1, got 0");
  CHECK(complaint({.max_errors = 0}) == "max_errors must be >= 1, got 0");
  CHECK(complaint({.executor = Executor::sequential, .max_tasks_per_worker = 0}) ==
        "max_tasks_per_worker must be >= 1, got 0");
  CHECK(complaint({.max_tasks_per_worker = 0}) == "max_tasks_per_worker must be >= 1, got 0");
}

TEST_CASE("C6 negative durations are refused") {
  CHECK(complaint({.timeout = -1s}) == "timeout must be >= 0, got -1s");
  CHECK(complaint({.timeout = -1ns}) == "timeout must be >= 0, got -1ns");
  CHECK(complaint_with_task({.task_timeout = -1500ms}) == "task_timeout must be >= 0, got -1500ms");
  CHECK(complaint({.executor = Executor::sequential, .task_timeout = -1us}) == "task_timeout must be >= 0, got -1us");
  CHECK(complaint({.retry = Retry{.backoff = -1s}}) == "Retry: backoff must be >= 0, got -1s");
  CHECK(complaint({.retry = Retry{.max_delay = -1ms}}) == "Retry: max_delay must be >= 0, got -1ms");
  CHECK(complaint({.retry = Retry{.max_server_wait = -1h}}) == "Retry: max_server_wait must be >= 0, got -3600s");
}

TEST_CASE("C6 bad attempts are refused") {
  CHECK(complaint({.retry = Retry{.attempts = 0}}) == "Retry: attempts must be >= 1, got 0");
  CHECK(complaint({.retry = Retry{.attempts = -3}}) == "Retry: attempts must be >= 1, got -3");
  CHECK(complaint({.retry = Retry::for_http({.attempts = 0})}) == "Retry: attempts must be >= 1, got 0");
}

TEST_CASE("C6 bad rates are refused") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double infinity = std::numeric_limits<double>::infinity();
  const std::string count_rule = "RateLimit: count must be positive and finite, got ";
  CHECK(complaint({.rate_limit = 0}) == count_rule + "0");
  CHECK(complaint({.rate_limit = -2.5}) == count_rule + "-2.5");
  CHECK(complaint({.rate_limit = nan}) == count_rule + "nan");
  CHECK(complaint({.rate_limit = std::numeric_limits<float>::quiet_NaN()}) == count_rule + "nan");
  CHECK(complaint({.rate_limit = infinity}) == count_rule + "inf");
  CHECK(complaint({.rate_limit = RateLimit{nan}}) == count_rule + "nan");
  CHECK(complaint({.rate_limit = RateLimit{-infinity}}) == count_rule + "-inf");
  CHECK(complaint({.rate_limit = RateLimit{5, 0s}}) == "RateLimit: per must be positive, got 0s");
  CHECK(complaint({.rate_limit = RateLimit{5, -1min}}) == "RateLimit: per must be positive, got -60s");
  CHECK(complaint({.rate_limit = RateLimit{5, 1s, 0}}) == "RateLimit: burst must be >= 1, got 0");
  CHECK(complaint({.rate_limit = RateLimit{5, 1s, -1}}) == "RateLimit: burst must be >= 1, got -1");
  CHECK_THROWS_AS(Limiter(RateLimit{nan}), std::invalid_argument);
  CHECK_THROWS_AS(Limiter(RateLimit{5, 0s}), std::invalid_argument);
  CHECK_THROWS_AS(Limiter(RateLimit{5, 1s, 0}), std::invalid_argument);
}

TEST_CASE("C6 what only processes can do is refused with threads") {
  const auto starts_with = [](const std::string& text, const std::string& start) { return text.starts_with(start); };
  for (const std::size_t workers : {1U, 4U}) {
    CHECK(starts_with(complaint({.workers = workers, .max_tasks_per_worker = 3}), "max_tasks_per_worker "));
    CHECK(starts_with(complaint({.workers = workers, .worker_memory_limit = 1000}), "worker_memory_limit "));
    CHECK(starts_with(complaint({.workers = workers, .task_timeout = 1s}), "task_timeout "));
    CHECK(complaint({.workers = workers, .executor = Executor::thread, .max_tasks_per_worker = 3}).find("got 3") !=
          std::string::npos);
    CHECK(complaint_with_task({.workers = workers, .task_timeout = 1h}) == "none");
  }
}

TEST_CASE("C6 sequential runs ignore what is for processes") {
  const auto result = parallel_map(
      twice, one_to_five,
      {.executor = Executor::sequential, .task_timeout = 1h, .max_tasks_per_worker = 1, .worker_memory_limit = 1});
  CHECK(list_of(result) == doubled);
}

TEST_CASE("C6 values at the edge of the rules are accepted") {
  CHECK(complaint({.workers = 1, .max_errors = 1}) == "none");
  CHECK(complaint({.retry = Retry{.attempts = 1, .backoff = 0s, .max_delay = 0s, .max_server_wait = 0s}}) == "none");
  CHECK(complaint({.rate_limit = RateLimit{1e9, 1ns, 1}}) == "none");
  CHECK(complaint({.timeout = 0s}) == "none");
  CHECK(complaint({.timeout = Duration::max()}) == "none");
  CHECK(complaint_with_task({.timeout = Duration::max(), .task_timeout = Duration::max()}) == "none");
  CHECK(complaint({.batch = Batch{.size = 0, .chunk = 0}}) == "none");
  CHECK(complaint({.batch = Batch{.size = std::numeric_limits<std::size_t>::max()}}) == "none");
  CHECK(complaint({.batch = Batch{.chunk = std::numeric_limits<std::size_t>::max()}}) == "none");
}

TEST_CASE("C6 options said once for many calls are checked too") {
  const Options shared{.workers = 0};
  CHECK_THROWS_AS(parallel_map(twice, one_to_five, shared), std::invalid_argument);
  CHECK(list_of(parallel_map(twice, one_to_five, shared, {.workers = 2})) == doubled);
  const Options bad_executor{.executor = Executor::thread, .worker_memory_limit = 1};
  CHECK_THROWS_AS(parallel_map(twice, one_to_five, bad_executor), std::invalid_argument);
  CHECK(list_of(parallel_map(twice, one_to_five, bad_executor, {.executor = Executor::sequential})) == doubled);
}

// C9: parallel_starmap -------------------------------------------------------------------------------

TEST_CASE("C9 starmap calls the function with the elements of each tuple") {
  const std::vector<std::tuple<int, int, int>> triples{{1, 2, 3}, {4, 5, 6}};
  CHECK(list_of(parallel_starmap([](int a, int b, int c) { return a + b + c; }, triples)) == std::vector<int>{6, 15});
  const std::map<std::string, int> map{{"a", 1}, {"b", 2}};
  const auto join = [](const std::string& name, int number) { return name + std::to_string(number); };
  CHECK(list_of(parallel_starmap(join, map)) == std::vector<std::string>{"a1", "b2"});
  const std::list<std::pair<int, int>> pairs{{1, 2}, {3, 4}};
  CHECK(list_of(parallel_starmap(std::plus<int>{}, pairs)) == std::vector<int>{3, 7});
  CHECK(list_of(parallel_starmap(std::plus<int>{}, std::vector<std::array<int, 2>>{{1, 2}})) == std::vector<int>{3});
  SinglePass generator{2, [](int i) { return std::pair{i, std::make_unique<int>(i)}; }};
  const auto add = [](int a, const std::unique_ptr<int>& b) { return a + *b; };
  CHECK(list_of(parallel_starmap(add, generator)) == std::vector<int>{0, 2});
}

TEST_CASE("C9 starmap gives the Task to functions that take it") {
  const std::vector<std::pair<int, int>> pairs{{1, 2}, {3, 4}};
  const auto with_task = [](int a, int b, const Task& task) { return a * b + static_cast<int>(task.index); };
  CHECK(list_of(parallel_starmap(with_task, pairs)) == std::vector<int>{2, 13});
}

TEST_CASE("C9 starmap lets the function change the elements") {
  std::vector<std::pair<int, int>> pairs{{1, 2}, {3, 4}};
  parallel_starmap([](int& a, int& b) { std::swap(a, b); }, pairs).throw_on_failure();
  CHECK(pairs == std::vector<std::pair<int, int>>{{2, 1}, {4, 3}});
  int x = 1;
  int y = 2;
  const std::vector<std::tuple<int&, int&>> references{{x, y}};
  parallel_starmap([](int& a, int& b) { std::swap(a, b); }, references).throw_on_failure();
  CHECK(std::pair{x, y} == std::pair{2, 1});
}

TEST_CASE("C9 every option works with starmap and keys see the tuple") {
  const std::vector<std::pair<std::string, int>> pairs{{"a", 1}, {"b", 2}, {"c", 3}};
  const auto fail_first = [](const std::string& name, int number, const Task& task) {
    if (task.attempt == 1) throw std::runtime_error(name);
    return number;
  };
  std::vector<std::size_t> progress;
  auto result =
      parallel_starmap(fail_first, pairs,
                       {.workers = 2,
                        .rate_limit = 1e6,
                        .retry = Retry{.attempts = 2, .backoff = 0s},
                        .timeout = 1h,
                        .task_timeout = 1h,
                        .item_key = [](const std::pair<std::string, int>& pair) { return ItemKey{pair.first}; },
                        .on_progress = [&](std::size_t done, std::size_t) { progress.push_back(done); }});
  CHECK(list_of(result) == std::vector<int>{1, 2, 3});
  CHECK(progress == std::vector<std::size_t>{1, 2, 3});
  const auto items = std::move(result).item_results();
  CHECK(items[1].key == ItemKey{std::string("b")});
  CHECK(items[1].attempts == 2);
  CHECK_THROWS_AS(parallel_starmap(std::plus<int>{}, std::vector<std::pair<int, int>>{}, {.workers = 0}),
                  std::invalid_argument);
}

// C10: sequential runs -------------------------------------------------------------------------------

namespace {

/// The two ways to run in the calling thread.
const std::vector<MapOptions<int, int>> sequential_ways() {
  MapOptions<int, int> one_worker;
  one_worker.workers = 1;
  MapOptions<int, int> sequential;
  sequential.executor = Executor::sequential;
  sequential.workers = 8;
  return {one_worker, sequential};
}

}  // namespace

TEST_CASE("C10 sequential runs go through the items in order in the calling thread") {
  for (const auto& options : sequential_ways()) {
    std::vector<int> seen;
    const auto caller = std::this_thread::get_id();
    const auto note = [&](int x, const Task& task) {
      seen.push_back(x);
      return std::this_thread::get_id() == caller && task.worker == 0 ? 1 : 0;
    };
    CHECK(list_of(parallel_map(note, one_to_five, options)) == std::vector<int>(5, 1));
    CHECK(list_of(parallel_map(note, std::list<int>{6, 7}, options)) == std::vector<int>(2, 1));
    SinglePass source{3, [](int i) { return i + 8; }};
    CHECK(list_of(parallel_map(note, source, options)) == std::vector<int>(3, 1));
    CHECK(seen == std::vector<int>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10});
  }
}

TEST_CASE("C10 sequential runs have callbacks between their items") {
  for (auto options : sequential_ways()) {
    std::vector<std::string> events;
    options.worker_init = [&] { events.push_back("init"); };
    options.item_key = [&](int x) {
      events.push_back("key " + std::to_string(x));
      return ItemKey{x};
    };
    options.on_result = [&](const ItemResult<int>& item) { events.push_back("got " + std::to_string(item.value())); };
    options.on_progress = [&](std::size_t done, std::size_t total) {
      events.push_back(std::to_string(done) + "/" + std::to_string(total));
    };
    const auto note = [&](int x) {
      events.push_back("run " + std::to_string(x));
      return -x;
    };
    const std::vector<std::string> expected{"run 1", "got -1", "1/2", "run 2", "got -2", "2/2"};
    const auto without_init_and_keys = [&] {
      std::erase_if(events, [](const std::string& event) { return event == "init" || event.starts_with("key"); });
      return std::exchange(events, {});
    };
    const auto position_of = [&](const std::string& event) {
      return std::ranges::find(events, event) - events.begin();
    };
    CHECK(parallel_map(note, std::vector{1, 2}, options).ok());
    CHECK(std::ranges::count(events, "init") == 1);
    CHECK(position_of("init") < position_of("run 1"));
    CHECK(position_of("key 1") < position_of("run 1"));
    CHECK(position_of("key 2") < position_of("run 2"));
    CHECK(without_init_and_keys() == expected);
    CHECK(parallel_map(note, std::list{1, 2}, options).ok());
    CHECK(std::ranges::count(events, "init") == 1);
    CHECK(without_init_and_keys() == expected);
  }
}

TEST_CASE("C10 sequential runs retry and abort and stop") {
  for (auto options : sequential_ways()) {
    std::vector<int> seen;
    std::stop_source stop;
    const auto fail = [&](int x) -> int {
      seen.push_back(x);
      if (x == 4) stop.request_stop();
      if (x % 2 == 0) throw std::runtime_error(std::to_string(x));
      return x;
    };
    options.retry = Retry{.attempts = 2, .backoff = 0s};
    CHECK(parallel_map(fail, one_to_five, options).failures().size() == 2);
    CHECK(std::exchange(seen, {}) == std::vector<int>{1, 2, 2, 3, 4, 4, 5});
    options.max_errors = 1;
    CHECK(parallel_map(fail, one_to_five, options).aborted());
    CHECK(std::exchange(seen, {}) == std::vector<int>{1, 2, 2});
    options.max_errors = {};
    stop = {};
    options.stop = stop.get_token();
    CHECK(parallel_map(fail, one_to_five, options).cancelled());
    CHECK(std::exchange(seen, {}) == std::vector<int>{1, 2, 2, 3, 4});
  }
}

TEST_CASE("C10 sequential runs draw from the rate limit") {
  for (auto options : sequential_ways()) {
    Limiter limiter{RateLimit{1, 1h, 8}};
    options.rate_limit = limiter;
    CHECK(parallel_map(twice, one_to_five, options).ok());
    CHECK(limiter.try_acquire(3));
    CHECK_FALSE(limiter.try_acquire(0.5));
  }
}

TEST_CASE("C10 sequential runs look at the timeout between items") {
  for (auto options : sequential_ways()) {
    FakeClock clock;
    const ClockOverride use{clock};
    options.timeout = 10s;
    std::vector<int> seen;
    const auto take_four_seconds = [&](int x, const Task& task) {
      seen.push_back(x);
      clock.advance(4s);
      return task.stop.stop_requested() ? -1 : x;
    };
    const auto result = parallel_map(take_four_seconds, one_to_five, options);
    CHECK(result.timed_out());
    CHECK(seen == std::vector<int>{1, 2, 3});
    CHECK(result.at(2) == 3);
    CHECK_THROWS_AS(result.at(3), TimeoutError);
  }
}

// C11: how many workers ------------------------------------------------------------------------------

TEST_CASE("C11 the default for threads is n plus 4 up to 32") {
  const std::size_t n = available_parallelism();
  REQUIRE(n >= 1);
  CHECK(default_workers(Executor::thread) == std::min<std::size_t>(32, n + 4));
  CHECK(default_workers(Executor::process) == n);
  CHECK(default_workers(Executor::sequential) == 1);
}

TEST_CASE("C11 a run uses no more workers than it may and no more than it has items") {
  const auto check = [](auto&& items, std::size_t workers, std::size_t most) {
    std::mutex mutex;
    std::set<std::size_t> ids;
    std::set<std::thread::id> threads;
    const auto note = [&](int, const Task& task) {
      const std::lock_guard lock{mutex};
      ids.insert(task.worker);
      threads.insert(std::this_thread::get_id());
    };
    const auto result = parallel_map(note, items, {.workers = workers, .batch = Batch{.chunk = 1}});
    CHECK(result.ok());
    CHECK(*ids.rbegin() < most);
    CHECK(threads.size() <= most);
  };
  for (int round = 0; round < 20; ++round) {
    check(std::vector<int>(3), 100, 3);
    check(std::list<int>(3), 100, 3);
    check(std::vector<int>(100), 4, 4);
    SinglePass source{100, [](int i) { return i; }};
    check(source, 4, 4);
  }
}

TEST_CASE("C11 a worker number belongs to one thread at a time") {
  const std::size_t workers = 4;
  std::array<std::atomic<bool>, workers> busy{};
  std::atomic<int> clashes{0};
  const auto occupy = [&](int, const Task& task) {
    clashes += busy.at(task.worker).exchange(true);
    std::this_thread::yield();
    busy.at(task.worker) = false;
  };
  CHECK(parallel_map(occupy, std::views::iota(0, 2000), {.workers = workers}).ok());
  CHECK(parallel_map(occupy, std::views::iota(0, 2000), {.workers = workers, .batch = Batch{.chunk = 1}}).ok());
  CHECK(parallel_map(occupy, std::views::iota(0, 2000), {.workers = workers, .timeout = 1h}).ok());
  SinglePass source{2000, [](int i) { return i; }};
  CHECK(parallel_map(occupy, source, {.workers = workers}).ok());
  CHECK(clashes == 0);
}

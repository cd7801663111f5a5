// parallel_iter on threads, and in the calling thread.
#include <array>
#include <atomic>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <random>
#include <ranges>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/fake_clock.hpp"
#include "support/meanwhile.hpp"
#include "support/single_pass.hpp"
#include "support/throwing_source.hpp"
#include "support/wait.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Batch;
using pyarallel::Executor;
using pyarallel::ItemKey;
using pyarallel::ItemResult;
using pyarallel::parallel_iter;
using pyarallel::parallel_map;
using pyarallel::RateLimit;
using pyarallel::ResultStream;
using pyarallel::Retry;
using pyarallel::RunStatus;
using pyarallel::runtime;
using pyarallel::StreamOptions;
using pyarallel::Task;
using support::ClockOverride;
using support::Counted;
using support::Counts;
using support::Crowd;
using support::dawdle;
using support::FakeClock;
using support::Gate;
using support::Meanwhile;
using support::NonMovable;
using support::SinglePass;
using support::SourceFailed;
using support::ThrowingSource;
using support::wait_until;
using support::Watchdog;
using support::Where;

static_assert(std::ranges::input_range<ResultStream<int>> && std::ranges::view<ResultStream<int>>);
static_assert(!std::ranges::forward_range<ResultStream<int>> && !std::copyable<ResultStream<int>>);
static_assert(std::movable<ResultStream<int>> && std::movable<ResultStream<std::unique_ptr<int>>>);
static_assert(std::ranges::input_range<ResultStream<std::unique_ptr<int>>>);
static_assert(std::ranges::viewable_range<ResultStream<std::unique_ptr<int>>>);
static_assert(std::input_iterator<ResultStream<int>::iterator>);
static_assert(std::same_as<std::ranges::range_reference_t<ResultStream<int>>, ItemResult<int>&>);

namespace {

constexpr auto itself = [](int number) { return number; };

using IntOptions = StreamOptions<int, int>;
using IntStream = ResultStream<int>;

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

struct Failed : std::runtime_error {
  Failed() : runtime_error("failed") {}
};

/// Everything that options can put between an item and its function.
template <class T, class R>
struct Way {
  std::string name;
  StreamOptions<T, R> options;
  std::size_t window = 6;
};

/// On three workers, with a window of 6 unless `name` says otherwise.
template <class T, class R>
std::vector<Way<T, R>> ways_on_threads() {
  using Typed = StreamOptions<T, R>;
  std::vector<Way<T, R>> all{
      {"plain", Typed{}},
      {"chunk 1", Typed{.batch = Batch{.chunk = 1}}},
      {"chunk 3", Typed{.batch = Batch{.chunk = 3}}},
      {"window 1", Typed{.batch = Batch{.size = 1}}, 1},
      {"window 2", Typed{.batch = Batch{.size = 2}}, 2},
      {"large window", Typed{.batch = Batch{.size = 1000}}, 1000},
      {"endless window", Typed{.batch = Batch{.size = std::numeric_limits<std::size_t>::max()}},
       std::numeric_limits<std::size_t>::max()},
      {"retry", Typed{.retry = Retry{.attempts = 2, .backoff = 0s}}},
      {"rate_limit", Typed{.rate_limit = RateLimit{.count = 1e6, .burst = 1000}}},
      {"timeout", Typed{.timeout = 1h}},
      {"item_key", Typed{.item_key = [](const T&) { return ItemKey{std::string{"label"}}; }}},
      {"on_progress", Typed{.on_progress = [](std::size_t, std::size_t) {}}},
      {"worker_init", Typed{.worker_init = [] {}}},
      {"max_errors", Typed{.max_errors = 1'000'000}},
      {"all",
       Typed{.rate_limit = RateLimit{.count = 1e6, .burst = 1000},
             .retry = Retry{.attempts = 2, .backoff = 0s},
             .batch = Batch{.size = 5},
             .timeout = 1h,
             .max_errors = 1'000'000,
             .item_key = [](const T&) { return ItemKey{std::string{"label"}}; },
             .on_progress = [](std::size_t, std::size_t) {},
             .worker_init = [] {}},
       5},
  };
  for (auto& way : all) way.options.workers = 3;
  return all;
}

/// And inline; each in completion order and in input order.
template <class T, class R>
std::vector<Way<T, R>> ways() {
  auto all = ways_on_threads<T, R>();
  const std::size_t on_threads = all.size();
  for (std::size_t i = 0; i < on_threads; ++i) {
    Way<T, R> way = all[i];
    if (i % 2 == 0) way.options.workers = 1;
    if (i % 2 == 1) way.options.executor = runtime(Executor::sequential);
    way.name += i % 2 == 0 ? ", 1 worker" : ", sequential";
    all.push_back(way);
  }
  const std::size_t in_completion_order = all.size();
  for (std::size_t i = 0; i < in_completion_order; ++i) {
    Way<T, R> way = all[i];
    way.options.ordered = true;
    way.name += ", ordered";
    all.push_back(way);
  }
  return all;
}

template <class Typed>
bool is_inline(const Typed& options) {
  return options.workers == 1U || options.executor.get() == Executor::sequential;
}

/// What must hold of every result of a stream, whatever happens; and what was seen.
class Seen {
 public:
  explicit Seen(bool ordered) : ordered_(ordered) {}

  template <class R>
  void see(const ItemResult<R>& item) {
    if (!indices_.insert(item.index).second) ++mistakes_;
    if (ordered_ && last_ && item.index <= *last_) ++mistakes_;
    last_ = item.index;
    if (!item.ok()) ++failures_;
  }

  bool good() const { return mistakes_ == 0; }
  std::size_t count() const { return indices_.size(); }
  std::size_t failures() const { return failures_; }
  bool has(std::size_t index) const { return indices_.contains(index); }
  /// The items 0 to count - 1, and no others.
  bool all(std::size_t count) const {
    return good() && indices_.size() == count && (count == 0 || *indices_.rbegin() == count - 1);
  }

 private:
  bool ordered_;
  std::set<std::size_t> indices_;
  std::optional<std::size_t> last_;
  std::size_t failures_ = 0;
  int mistakes_ = 0;
};

/// Reads it to its end: how many results, each with its index for its value.
template <class R, class ValueOf>
bool are_all(ResultStream<R> stream, std::size_t count, bool ordered, ValueOf value_of) {
  Seen seen{ordered};
  bool right = true;
  for (auto& item : stream) {
    seen.see(item);
    right = right && item.ok() && value_of(item.value()) == static_cast<int>(item.index) && item.attempts == 1;
  }
  return right && seen.all(count) && stream.status() == RunStatus::completed;
}

bool are_all(IntStream stream, std::size_t count, bool ordered = false) {
  return are_all(std::move(stream), count, ordered, itself);
}

/// Yields like SinglePass, but can be moved into a stream, and does not mind from where it is read.
class Generator {
 public:
  explicit Generator(int count) : count_(count) {}
  Generator(Generator&&) = default;
  Generator& operator=(Generator&&) = default;

  class iterator {
   public:
    using value_type = int;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    explicit iterator(Generator& source) : source_(&source) {}
    iterator(iterator&&) = default;
    iterator& operator=(iterator&&) = default;

    int operator*() const { return source_->position_; }
    iterator& operator++() {
      ++source_->position_;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return source_->position_ == source_->count_; }

   private:
    Generator* source_;
  };

  iterator begin() { return iterator{*this}; }
  std::default_sentinel_t end() const { return {}; }

 private:
  friend class iterator;

  int count_;
  int position_ = 0;
};

constexpr int endless = std::numeric_limits<int>::max();

}  // namespace

// What is yielded ---------------------------------------------------------------------------------------

TEST_CASE("S1 a stream yields each item of any range once, whatever the options") {
  const Watchdog watchdog;
  constexpr int count = 40;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const bool ordered = options.ordered || is_inline(options);
    const auto items = numbers(count);
    CHECK(are_all(parallel_iter(itself, items, options), count, ordered));
    CHECK(are_all(parallel_iter(itself, numbers(count), options), count, ordered));
    CHECK(are_all(parallel_iter(itself, std::list<int>(items.begin(), items.end()), options), count, ordered));
    CHECK(are_all(parallel_iter(itself, std::set<int>(items.begin(), items.end()), options), count, ordered));
    CHECK(are_all(parallel_iter(itself, std::views::iota(0, count), options), count, ordered));
    CHECK(are_all(parallel_iter(itself, Generator{count}, options), count, ordered));
    CHECK(are_all(parallel_iter(itself, items | std::views::transform(itself), options), count, ordered));
    std::array<int, 3> few{0, 1, 2};
    CHECK(are_all(parallel_iter(itself, few, options), 3, ordered));
    SinglePass source{count, itself};
    CHECK(are_all(parallel_iter(itself, source, options), count, ordered));
    CHECK((source.mistakes == 0 && source.reads == count && source.begun == 1));
    std::istringstream text{"0 1 2 3 4 5 6 7 8 9"};
    CHECK(are_all(parallel_iter(itself, std::ranges::istream_view<int>(text), options), 10, ordered));
  }
}

TEST_CASE("S1 a stream gives each result the key, attempts and duration of its item") {
  const Watchdog watchdog;
  constexpr int count = 30;
  for (auto [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    options.item_key = [](const int& item) { return ItemKey{std::int64_t{item} * 10}; };
    options.retry = Retry{.attempts = 3, .backoff = 0s};
    const auto fn = [](int item, const Task& task) {
      if (item % 3 == 2) std::this_thread::sleep_for(1ms);
      return task.attempt <= item % 3 ? throw Failed() : item;
    };
    auto stream = parallel_iter(fn, std::views::iota(0, count), options);
    Seen seen{options.ordered};
    for (auto& item : stream) {
      seen.see(item);
      const int index = static_cast<int>(item.index);
      CHECK(item.key == ItemKey{std::int64_t{index} * 10});
      CHECK(item.attempts == index % 3 + 1);
      CHECK(item.ok());
      if (index % 3 == 2) CHECK(item.duration >= 3ms);
    }
    CHECK(seen.all(count));
  }
}

TEST_CASE("S1 a stream in completion order yields what is there while a slow item runs") {
  const Watchdog watchdog;
  for (auto [name, options, window] : ways_on_threads<int, int>()) {
    // Where the library chooses the chunk, slow items may hold others back.
    if (window < 3 || name == "chunk 3") continue;
    if (!options.retry && !options.item_key && !options.on_progress) {
      options.batch = Batch{.size = options.batch.value_or(Batch{}).size, .chunk = 1};
    }
    CAPTURE(name);
    Gate others_seen;
    const auto fn = [&](int item) {
      if (item == 0) others_seen.wait();
      return item;
    };
    constexpr std::size_t count = 60;
    auto stream = parallel_iter(fn, std::views::iota(0, static_cast<int>(count)), options);
    std::vector<std::size_t> order;
    for (auto& item : stream) {
      order.push_back(item.index);
      if (order.size() == count - 1) others_seen.open();
    }
    REQUIRE(order.size() == count);
    CHECK(order.back() == 0);
  }
}

TEST_CASE("S1 an ordered stream waits for the next in line, and then yields the others") {
  const Watchdog watchdog;
  for (auto [name, options, window] : ways_on_threads<int, int>()) {
    if (window < 3) continue;
    options.ordered = true;
    options.batch = Batch{.size = options.batch.value_or(Batch{}).size, .chunk = 1};
    CAPTURE(name);
    std::atomic<int> ended{0};
    const auto fn = [&](int item) {
      if (item % 20 == 0) wait_until([&] { return ended >= item + 2; });  // later items come first
      ++ended;
      return item;
    };
    CHECK(are_all(parallel_iter(fn, std::views::iota(0, 100), options), 100, true));
  }
}

TEST_CASE("S1 a stream is single-pass, and begin() again is where it was") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    auto stream = parallel_iter(itself, std::views::iota(0, 10), options);
    Seen seen{options.ordered};
    auto first = stream.begin();
    CHECK(&*first == &*stream.begin());
    seen.see(*first);
    first++;
    for (auto& item : stream) {  // goes on
      seen.see(item);
      if (seen.count() == 5) break;
    }
    auto again = stream.begin();
    CHECK(seen.has(again->index));  // where the loop was left
    for (++again; again != stream.end(); ++again) seen.see(*again);
    CHECK(seen.all(10));
    CHECK(stream.begin() == stream.end());
    CHECK(first == stream.end());
    CHECK(stream.status() == RunStatus::completed);
  }
}

TEST_CASE("S1 the results of a stream can be moved out, whatever their type") {
  const Watchdog watchdog;
  struct NoDefault {
    explicit NoDefault(int number) : value(number) {}
    int value;
  };
  const auto keep_all = []<class R>(std::type_identity<R>, auto fn, auto value_of) {
    for (const auto& [name, options, window] : ways<int, R>()) {
      CAPTURE(name);
      std::map<int, R> kept;
      auto stream = parallel_iter(fn, std::views::iota(0, 50), options);
      for (auto& item : stream) kept.emplace(static_cast<int>(item.index), std::move(item).value());
      CHECK(kept.size() == 50);
      for (const auto& [index, value] : kept) CHECK(value_of(value) == index);
    }
  };
  keep_all(
      std::type_identity<std::unique_ptr<int>>{}, [](int item) { return std::make_unique<int>(item); },
      [](const auto& value) { return *value; });
  keep_all(
      std::type_identity<NoDefault>{}, [](int item) { return NoDefault{item}; },
      [](const auto& value) { return value.value; });
  keep_all(
      std::type_identity<std::string>{}, [](int item) { return std::string(100, 'x') + std::to_string(item); },
      [](const auto& value) { return std::stoi(value.substr(100)); });
  keep_all(
      std::type_identity<std::vector<int>>{},
      [](int item) { return std::vector<int>(static_cast<std::size_t>(item) + 1, item); },
      [](const auto& value) { return value.back(); });
}

TEST_CASE("C1 a stream calls any callable") {
  const Watchdog watchdog;
  struct Named {
    int number;
    int get() const { return number; }
  };
  struct Counting {
    std::atomic<int> calls{0};
    int operator()(int item) {
      ++calls;
      return item;
    }
  };
  for (const std::size_t workers : {1U, 3U}) {
    CAPTURE(workers);
    std::vector<Named> named;
    for (int i = 0; i < 20; ++i) named.push_back({i});
    CHECK(are_all(parallel_iter(&Named::get, named, {.workers = workers}), 20));
    CHECK(are_all(parallel_iter(&Named::number, named, {.workers = workers}), 20));
    CHECK(are_all(parallel_iter(std::bind_front(std::plus<>{}, 0), numbers(20), {.workers = workers}), 20));
    int (*const pointer)(int) = [](int item) { return item; };
    CHECK(are_all(parallel_iter(pointer, numbers(20), {.workers = workers}), 20));

    Counting lvalue;  // neither copied nor moved
    CHECK(are_all(parallel_iter(lvalue, numbers(20), {.workers = workers}), 20));
    CHECK(lvalue.calls == 20);

    auto alive = std::make_shared<int>(0);
    {
      auto stream =
          parallel_iter([kept = std::make_unique<std::shared_ptr<int>>(alive)](int item) { return item + **kept; },
                        numbers(20), {.workers = workers});
      CHECK(alive.use_count() == 2);
      CHECK(are_all(std::move(stream), 20));
    }
    CHECK(alive.use_count() == 1);

    std::atomic<int> sum{0};
    auto nothing = parallel_iter([&](int item) { sum += item; }, numbers(20), {.workers = workers});
    static_assert(std::same_as<decltype(nothing), ResultStream<std::monostate>>);
    CHECK(std::ranges::distance(nothing.begin(), nothing.end()) == 20);
    CHECK(sum == 190);

    const auto truth = [](int item) { return item % 2 == 0; };
    std::size_t even = 0;
    for (auto& item : parallel_iter(truth, numbers(20), {.workers = workers})) even += item.value() ? 1U : 0U;
    CHECK(even == 10);
  }
}

TEST_CASE("C1 a stream tells the function of its task") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    std::atomic<int> wrong{0};
    const auto fn = [&](int item, const Task& task) {
      if (task.index != static_cast<std::size_t>(item) || task.attempt != 1 || task.worker >= 3) ++wrong;
      if (task.stop.stop_requested()) ++wrong;
      return item;
    };
    CHECK(are_all(parallel_iter(fn, std::views::iota(0, 100), options), 100, options.ordered));
    CHECK(wrong == 0);
  }
}

TEST_CASE("C2 an empty input is a completed stream whatever the options, and starts nobody") {
  const Watchdog watchdog;
  std::stop_source stopped;
  stopped.request_stop();
  for (auto [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    options.timeout = 0s;
    options.stop = stopped.get_token();
    options.max_errors = 1;
    int started = 0;
    options.worker_init = [&] { ++started; };
    const auto check = [&](IntStream stream) {
      CHECK(stream.begin() == stream.end());
      CHECK(stream.begin() == stream.end());
      CHECK(stream.status() == RunStatus::completed);
    };
    check(parallel_iter(itself, std::vector<int>{}, options));
    check(parallel_iter(itself, std::views::empty<int>, options));
    check(parallel_iter(itself, Generator{0}, options));
    std::istringstream text;
    check(parallel_iter(itself, std::ranges::istream_view<int>(text), options));
    CHECK(started == 0);
  }
}

TEST_CASE("C3 a stream uses lvalues where they are, and keeps everything else") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<NonMovable, int>()) {
    CAPTURE(name);
    std::list<NonMovable> items;
    for (int i = 0; i < 20; ++i) items.emplace_back(i);
    const auto fn = [](NonMovable& item) { return std::exchange(item.value, item.value + 100); };
    CHECK(are_all(parallel_iter(fn, items, options), 20, options.ordered));
    int next = 100;
    for (const NonMovable& item : items) CHECK(item.value == next++);
    // Prvalues that nobody can move are made where they are kept.
    SinglePass source{20, [](int number) { return NonMovable{number}; }};
    CHECK(are_all(parallel_iter([](const NonMovable& item) { return item.value; }, source, options), 20,
                  options.ordered));
  }
  for (const auto& [name, options, window] : ways<Counted, int>()) {
    CAPTURE(name);
    Counts counts;
    {
      std::vector<Counted> items;
      items.reserve(20);
      for (int i = 0; i < 20; ++i) items.emplace_back(counts, i);
      const auto fn = [](const Counted& item) { return item.value; };
      CHECK(are_all(parallel_iter(fn, items, options), 20, options.ordered));
      CHECK(counts.made == 20);
      CHECK(are_all(parallel_iter(fn, std::move(items), options), 20, options.ordered));
      CHECK(counts.made == 20);  // the vector was moved
      SinglePass source{20, [&](int number) { return Counted{counts, number}; }};
      CHECK(are_all(parallel_iter(fn, source, options), 20, options.ordered));
      CHECK(counts.copied + counts.moved == 0);
    }
    CHECK(counts.alive() == 0);
  }
  for (const auto& [name, options, window] : ways<std::unique_ptr<int>, int>()) {
    CAPTURE(name);
    const auto fn = [](const std::unique_ptr<int>& item) { return *item; };
    SinglePass source{20, [](int number) { return std::make_unique<int>(number); }};
    CHECK(are_all(parallel_iter(fn, source, options), 20, options.ordered));
    std::vector<std::unique_ptr<int>> items;
    for (int i = 0; i < 20; ++i) items.push_back(std::make_unique<int>(i));
    CHECK(are_all(parallel_iter(fn, std::move(items), options), 20, options.ordered));
  }
}

TEST_CASE("C5 a stream yields exceptions of any type in their items' places") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto fn = [](int item) {
      if (item % 4 == 1) throw Failed();
      if (item % 4 == 2) throw 42;
      return item;
    };
    auto stream = parallel_iter(fn, std::views::iota(0, 80), options);
    Seen seen{options.ordered};
    for (auto& item : stream) {
      seen.see(item);
      switch (item.index % 4) {
        case 1:
          CHECK_THROWS_AS(item.value(), Failed);
          break;
        case 2:
          CHECK_THROWS_AS(item.value(), int);
          break;
        default:
          CHECK(item.value() == static_cast<int>(item.index));
      }
      CHECK(item.attempts == (item.ok() || !options.retry ? 1 : 2));
    }
    CHECK(seen.all(80));
    CHECK(seen.failures() == 40);
    CHECK(stream.status() == RunStatus::completed);
  }
}

TEST_CASE("C6 a stream with bad options throws at the call, and pulls nothing") {
  SinglePass source{10, itself};
  const auto bad = [&](const IntOptions& options) {
    CHECK_THROWS_AS(parallel_iter(itself, source, options), std::invalid_argument);
  };
  bad({.workers = 0});
  bad({.rate_limit = RateLimit{.count = 0}});
  bad({.retry = Retry{.attempts = 0}});
  bad({.timeout = -1s});
  bad({.task_timeout = -1s});
  bad({.task_timeout = 1s});  // the function takes no task
  bad({.max_errors = 0});
  bad({.max_tasks_per_worker = 1});
  bad({.worker_memory_limit = 1'000'000});
  CHECK_THROWS_AS(parallel_iter(itself, std::vector<int>{}, IntOptions{.workers = 0}), std::invalid_argument);
  CHECK(source.begun + source.reads == 0);
  CHECK(are_all(parallel_iter(itself, source, {.executor = Executor::sequential, .max_tasks_per_worker = 1}), 10));
}

TEST_CASE("S1 a stream takes options said once, and those of the call win") {
  const Watchdog watchdog;
  const pyarallel::Options shared{.workers = 1, .retry = Retry{.attempts = 4, .backoff = 0s}, .max_errors = 2};
  const auto fn = [](int item) { return item % 2 == 0 ? throw Failed() : item; };
  auto stream = parallel_iter(fn, std::views::iota(0), shared, {.max_errors = 3});
  Seen seen{true};
  for (auto& item : stream) {
    seen.see(item);
    CHECK(item.attempts == (item.ok() ? 1 : 4));
  }
  CHECK(seen.all(5));
  CHECK(stream.status() == RunStatus::aborted);
}

TEST_CASE("S1 a stream is a view") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto ok = [](const ItemResult<int>& item) { return item.ok(); };
    const auto value = [](const ItemResult<int>& item) { return item.value(); };
    const auto fn = [](int item) { return item % 2 == 0 ? throw Failed() : item; };
    int sum = 0;
    for (const int number :
         parallel_iter(fn, std::views::iota(0, 20), options) | std::views::filter(ok) | std::views::transform(value)) {
      sum += number;
    }
    CHECK(sum == 100);
    int taken = 0;
    for (auto& item : parallel_iter(itself, std::views::iota(0), options) | std::views::take(7)) {
      CHECK(item.ok());
      ++taken;
    }
    CHECK(taken == 7);
  }
}

// How much is alive -------------------------------------------------------------------------------------

TEST_CASE("S2 a stream that is never iterated does nothing at all") {
  const Watchdog watchdog;
  for (auto [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    int called = 0;
    options.worker_init = [&] { ++called; };
    options.on_progress = [&](auto...) { ++called; };
    options.item_key = [&](const int&) {
      ++called;
      return ItemKey{};
    };
    SinglePass source{10, itself};
    {
      auto stream = parallel_iter(itself, source, options);
      auto moved = std::move(stream);
      dawdle();
      CHECK(moved.status() == RunStatus::completed);
    }
    CHECK(source.begun + source.reads + called == 0);
  }
}

TEST_CASE("S2 a stream whose consumer stands still admits no more than its window") {
  const Watchdog watchdog;
  constexpr int count = 60;
  for (const auto& [name, options, window] : ways<Counted, Counted>()) {
    CAPTURE(name);
    Counts items;
    Counts values;
    std::size_t left_behind = 0;
    std::size_t most = 0;
    SinglePass source{count, [&](int number) { return Counted{items, number}; }};
    source.on_read = [&](int number) { most = std::max(most, static_cast<std::size_t>(number) + 1 - left_behind); };
    {
      const auto fn = [&](const Counted& item) { return Counted{values, item.value}; };
      auto stream = parallel_iter(fn, source, options);
      int step = 0;
      for (auto it = stream.begin(); it != stream.end(); ++it) {
        const int reads = source.reads;
        if (++step % 10 == 1) dawdle();
        CHECK(source.reads == reads);  // only while it is asked
        CHECK(static_cast<std::size_t>(items.alive()) <= window);
        CHECK(static_cast<std::size_t>(values.alive()) <= window);
        CHECK(static_cast<std::size_t>(source.reads) - left_behind <= window);
        if (is_inline(options)) CHECK(source.reads == step);
        ++left_behind;
      }
      CHECK(step == count);
    }
    CHECK(most <= window);
    CHECK(items.alive() == 0);
    CHECK(values.alive() == 0);
    CHECK(values.copied == 0);
    CHECK(source.mistakes == 0);
  }
}

TEST_CASE("S2 by default the window of a stream is twice its workers") {
  const Watchdog watchdog;
  for (const std::size_t workers : {2U, 3U, 8U}) {
    CAPTURE(workers);
    for (const bool ordered : {false, true}) {
      // The window fills up while nothing is resolved.
      std::atomic<std::size_t> read{0};
      SinglePass source{100, itself};
      source.on_read = [&](int) { ++read; };
      std::atomic<int> begun{0};
      const auto fn = [&](int item) {
        ++begun;
        wait_until([&] { return read >= 2 * workers; });
        return item;
      };
      auto stream = parallel_iter(fn, source, {.workers = workers, .batch = Batch{.chunk = 1}, .ordered = ordered});
      auto it = stream.begin();
      CHECK(read == 2 * workers);
      dawdle();
      CHECK(read == 2 * workers);
      ++it;
      CHECK(read <= 2 * workers + 1);
    }
  }
}

TEST_CASE("S2 early results of an ordered stream wait inside its window") {
  const Watchdog watchdog;
  for (auto [name, options, window] : ways_on_threads<int, int>()) {
    if (window < 3 || window > 6) continue;
    CAPTURE(name);
    options.ordered = true;
    options.batch = Batch{.size = window, .chunk = 1};
    std::atomic<std::size_t> others{0};
    SinglePass source{50, itself};
    const auto fn = [&, full = window](int item) {
      if (item == 0) wait_until([&] { return others == full - 1; });
      if (item == 0) dawdle();
      if (item != 0) ++others;
      return item;
    };
    auto stream = parallel_iter(fn, source, options);
    auto it = stream.begin();
    CHECK(it->index == 0);
    CHECK(static_cast<std::size_t>(source.reads) == window);
    Seen seen{true};
    for (; it != stream.end(); ++it) seen.see(*it);
    CHECK(seen.all(50));
  }
}

TEST_CASE("S2 no more than a window of a stream's results is alive while the consumer waits for the next") {
  const Watchdog watchdog;
  constexpr std::size_t window = 4;
  for (const bool ordered : {false, true}) {
    for (const std::size_t chunk : {0U, 1U}) {
      CAPTURE(ordered, chunk);
      Counts values;
      std::atomic<int> most{0};
      std::atomic<int> made{0};
      const auto fn = [&](int item) {
        Counted value{values, item};
        const int alive = values.alive();
        int before = most;
        while (before < alive && !most.compare_exchange_weak(before, alive)) continue;
        ++made;
        // The second windowful is made at once, while the consumer waits with the last of the first.
        if (chunk == 1 && item >= 4 && item < 8) wait_until([&] { return made >= 8; });
        return value;
      };
      auto stream = parallel_iter(fn, std::views::iota(0, 12),
                                  {.workers = 4, .batch = Batch{.size = window, .chunk = chunk}, .ordered = ordered});
      for (auto& item : stream) CHECK(item.ok());
      CHECK(static_cast<std::size_t>(most) <= window);
    }
  }
}

TEST_CASE("C10 an inline stream pulls and runs an item only when it is asked for") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    if (!is_inline(options)) continue;
    CAPTURE(name);
    int ran = 0;
    const auto here = std::this_thread::get_id();
    SinglePass source{20, itself};
    const auto fn = [&](int item) {
      CHECK(std::this_thread::get_id() == here);
      ++ran;
      return item;
    };
    auto stream = parallel_iter(fn, source, options);
    CHECK(source.begun == 0);
    int step = 0;
    for (auto& item : stream) {
      CHECK(item.index == static_cast<std::size_t>(step++));
      CHECK((ran == step && source.reads == step && source.increments == step - 1));
    }
    CHECK(step == 20);
  }
}

// Leaving early -----------------------------------------------------------------------------------------

TEST_CASE("S3 a stream left at any point leaves nothing behind") {
  const Watchdog watchdog;
  constexpr int count = 40;
  for (auto [name, options, window] : ways<Counted, Counted>()) {
    CAPTURE(name);
    for (const int leave_at : {1, 2, 3, 5, 8, 20, 39, 40}) {
      Counts items;
      Counts values;
      std::atomic<int> running{0};
      std::atomic<int> begun{0};
      std::atomic<int> callbacks{0};
      auto counted = options;
      if (counted.on_progress) counted.on_progress = [&](auto...) { ++callbacks; };
      SinglePass source{count, [&](int number) { return Counted{items, number}; }};
      int callbacks_then = 0;
      int reads_then = 0;
      {
        const auto fn = [&](const Counted& item) {
          ++begun;
          ++running;
          if (item.value % 7 == 0) std::this_thread::yield();
          --running;
          return item.value % 5 == 4 ? throw Failed() : Counted{values, item.value};
        };
        auto stream = parallel_iter(fn, source, counted);
        auto it = stream.begin();
        for (int i = 1; i < leave_at; ++i) ++it;
        CHECK(it != stream.end());
        callbacks_then = callbacks;
        reads_then = source.reads;
      }
      CHECK(running == 0);
      CHECK(items.alive() == 0);
      CHECK(values.alive() == 0);
      CHECK(callbacks == callbacks_then);
      CHECK(source.reads == reads_then);
      CHECK(source.mistakes == 0);
      const int begun_then = begun;
      if (leave_at == 8) dawdle();
      CHECK(begun == begun_then);
    }
  }
}

TEST_CASE("S3 destroying a stream asks its running items to stop and waits for them") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways_on_threads<int, int>()) {
    if (window == 1) continue;
    for (const bool ordered : {false, true}) {
      CAPTURE(name, ordered);
      auto changed = options;
      changed.ordered = ordered;
      changed.batch = Batch{.size = window, .chunk = 1};
      std::atomic<int> asked{0};
      std::atomic<int> begun{0};
      Gate go;
      {
        const auto fn = [&](int item, const Task& task) {
          if (item == 0) {
            go.wait();
            return item;
          }
          ++begun;
          go.open();
          wait_until([&] { return task.stop.stop_requested(); });
          dawdle();
          ++asked;
          return item;
        };
        auto stream = parallel_iter(fn, std::views::iota(0), changed);
        CHECK(stream.begin()->index == 0);
        CHECK(asked == 0);
      }
      CHECK(asked == begun);
      CHECK(asked >= 1);
    }
  }
}

TEST_CASE("S3 destroying a stream cuts through waits for tokens and retries") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    const auto begun = std::chrono::steady_clock::now();
    if (!ordered) {  // the first in order may be the one that waits
      auto stream =
          parallel_iter(itself, std::views::iota(0), {.workers = 2, .rate_limit = RateLimit{.count = 1, .per = 1h}});
      CHECK(stream.begin()->value() < 4);
    }
    {
      Gate failed;
      const auto fn = [&](int item) {
        if (item == 0) {
          failed.wait();
          return item;
        }
        failed.open();
        throw Failed();
      };
      auto stream = parallel_iter(fn, std::views::iota(0),
                                  {.workers = 2, .retry = Retry{.backoff = 1h, .max_delay = 1h}, .ordered = ordered});
      CHECK(stream.begin()->index == 0);
    }
    CHECK(std::chrono::steady_clock::now() - begun < 10s);
  }
}

TEST_CASE("S3 a stream can be moved while it runs, and its iterators stay valid") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    Seen seen{options.ordered};
    auto first = parallel_iter(itself, numbers(60), options);
    auto it = first.begin();
    for (int i = 0; i < 5; ++i, ++it) seen.see(*it);
    auto second = std::move(first);
    CHECK(first.begin() == first.end());
    CHECK(first.status() == RunStatus::completed);
    for (int i = 0; i < 5; ++i, ++it) seen.see(*it);

    // Assigned to one that runs.
    std::atomic<int> running{0};
    Counts values;
    const auto fn = [&](int item) {
      ++running;
      Counted value{values, item};
      --running;
      return value.value;
    };
    auto third = parallel_iter(fn, std::views::iota(0), options);
    CHECK(third.begin() != third.end());
    third = std::move(second);
    CHECK(running == 0);
    CHECK(values.alive() == 0);
    CHECK(second.begin() == second.end());
    CHECK(&*third.begin() == &*it);
    for (; it != third.end(); ++it) seen.see(*it);
    CHECK(seen.all(60));
    CHECK(third.status() == RunStatus::completed);
  }
}

TEST_CASE("S3 a loop over a stream may be left by an exception") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    std::atomic<int> running{0};
    const auto fn = [&](int item) {
      ++running;
      dawdle();
      --running;
      return item;
    };
    const auto loop = [&] {
      for (auto& item : parallel_iter(fn, std::views::iota(0), options)) {
        if (item.index == 3) throw Failed();
      }
    };
    CHECK_THROWS_AS(loop(), Failed);
    CHECK(running == 0);
  }
}

TEST_CASE("S3 a stream may be begun, read and destroyed on different threads") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, std::string>()) {
    CAPTURE(name);
    const auto fn = [](int item) { return std::to_string(item); };
    std::optional<ResultStream<std::string>> stream{parallel_iter(fn, Generator{100}, options)};
    Seen seen{options.ordered};
    std::size_t wrong = 0;
    const auto read = [&](std::size_t most) {
      auto it = stream->begin();
      for (std::size_t i = 0; i < most && it != stream->end(); ++i, ++it) {
        seen.see(*it);
        if (it->value() != std::to_string(it->index)) ++wrong;
      }
    };
    Meanwhile{[&] { read(1); }}.join();
    read(20);
    Meanwhile{[&] { read(20); }}.join();
    if (name.size() % 2 == 0) {
      read(1000);
      CHECK(seen.all(100));
      CHECK(stream->status() == RunStatus::completed);
    }
    Meanwhile{[&] { stream.reset(); }}.join();
    CHECK(seen.good());
    CHECK(wrong == 0);
  }
}

// How it ends -------------------------------------------------------------------------------------------

TEST_CASE("S4 the n-th failure is the last item of a stream with max_errors") {
  const Watchdog watchdog;
  constexpr int count = 200;
  for (auto [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    for (const std::size_t most : {1U, 2U, 5U, 50U}) {
      CAPTURE(most);
      options.max_errors = most;
      std::atomic<std::size_t> failed{0};
      const auto fn = [&](int item) {
        if (item % 3 != 1) return item;
        ++failed;
        throw Failed();
      };
      auto stream = parallel_iter(fn, std::views::iota(0, count), options);
      Seen seen{options.ordered};
      bool last_failed = false;
      for (auto& item : stream) {
        seen.see(item);
        last_failed = !item.ok();
      }
      CHECK(last_failed);
      CHECK(seen.good());
      CHECK(seen.failures() == most);
      CHECK(stream.status() == RunStatus::aborted);
      const std::size_t attempts = options.retry ? 2 : 1;
      if (window < 1000) CHECK(failed <= attempts * (most - 1 + window));
      if (options.ordered || is_inline(options)) CHECK(seen.all(3 * (most - 1) + 2));
      if (is_inline(options)) CHECK(failed == attempts * most);
      CHECK(stream.begin() == stream.end());
    }
  }
}

TEST_CASE("S4 a stream whose last item is the n-th failure is aborted, one with fewer completed") {
  const Watchdog watchdog;
  for (auto [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto fn = [](int item) { return item == 9 ? throw Failed() : item; };
    for (const std::size_t most : {1U, 2U}) {
      options.max_errors = most;
      auto sized = parallel_iter(fn, std::views::iota(0, 10), options);
      CHECK(std::ranges::distance(sized.begin(), sized.end()) <= 10);
      CHECK(sized.status() == (most == 1 ? RunStatus::aborted : RunStatus::completed));
      auto unsized = parallel_iter(fn, Generator{10}, options);
      CHECK(std::ranges::distance(unsized.begin(), unsized.end()) <= 10);
      CHECK(unsized.status() == (most == 1 ? RunStatus::aborted : RunStatus::completed));
    }
  }
}

TEST_CASE("W3 an endless stream ends with max_errors, at its deadline, and on stop") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const bool ordered = options.ordered || is_inline(options);
    const auto status_of = [&](auto fn, const IntOptions& changed) {
      auto stream = parallel_iter(fn, Generator{endless}, changed);
      std::optional<std::size_t> last;
      for (auto& item : stream) {
        if (ordered && last && item.index <= *last) FAIL("out of order");
        last = item.index;
        if (window > 1000 && item.index > 1'000'000) break;  // it may read very far ahead
      }
      return stream.status();
    };
    auto changed = options;
    changed.max_errors = 3;
    if (window <= 1000) {
      CHECK(status_of([](int item) { return item >= 500 ? throw Failed() : item; }, changed) == RunStatus::aborted);
    }
    changed = options;
    changed.timeout = 10ms;
    CHECK(status_of(itself, changed) == RunStatus::timed_out);
    changed = options;
    std::stop_source stop;
    changed.stop = stop.get_token();
    const auto stopping = [&](int item) {
      if (item == 500) stop.request_stop();
      return item;
    };
    CHECK(status_of(stopping, changed) == RunStatus::cancelled);
  }
}

TEST_CASE("E2 a stream with timeout 0 and a stopped one run nothing") {
  const Watchdog watchdog;
  std::stop_source stopped;
  stopped.request_stop();
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto check = [&](IntOptions changed, RunStatus status) {
      std::atomic<int> ran{0};
      const auto fn = [&](int item) {
        ++ran;
        return item;
      };
      SinglePass source{10, itself};
      auto stream = parallel_iter(fn, source, changed);
      CHECK(stream.begin() == stream.end());
      CHECK(stream.status() == status);
      CHECK(source.reads == 0);
      auto sized = parallel_iter(fn, numbers(10), changed);
      CHECK(sized.begin() == sized.end());
      CHECK(sized.status() == status);
      CHECK(ran == 0);
    };
    auto changed = options;
    changed.timeout = 0s;
    check(changed, RunStatus::timed_out);
    changed = options;
    changed.stop = stopped.get_token();
    check(changed, RunStatus::cancelled);
  }
}

TEST_CASE("E2 the time of a stream begins when it is begun") {
  const Watchdog watchdog;
  FakeClock clock{FakeClock::Mode::manual};
  const ClockOverride use{clock};
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    auto changed = options;
    changed.timeout = 1h;
    auto stream = parallel_iter(itself, std::views::iota(0, 20), changed);
    clock.advance(5h);
    CHECK(are_all(std::move(stream), 20, options.ordered));

    auto late = parallel_iter(itself, std::views::iota(0), changed);
    auto it = late.begin();
    ++it;
    CHECK(it != late.end());
    clock.advance(1h);
    std::size_t rest = 0;
    for (; it != late.end(); ++it) ++rest;
    CHECK(rest <= std::max<std::size_t>(window, 1));
    CHECK(late.status() == RunStatus::timed_out);
  }
}

TEST_CASE("E2 what finishes after the deadline or the stop of a stream is still yielded") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    for (const bool by_time : {false, true}) {
      CAPTURE(ordered, by_time);
      std::stop_source stop;
      std::atomic<int> begun{0};
      IntOptions options{.workers = 3, .batch = Batch{.size = 10, .chunk = 1}, .ordered = ordered};
      if (by_time) options.timeout = 20ms;
      if (!by_time) options.stop = stop.get_token();
      const auto fn = [&](int item, const Task& task) {
        if (++begun == 3 && !by_time) stop.request_stop();
        wait_until([&] { return task.stop.stop_requested(); });
        return item;
      };
      auto stream = parallel_iter(fn, std::views::iota(0), options);
      Seen seen{ordered};
      for (auto& item : stream) {
        seen.see(item);
        CHECK(item.ok());
      }
      CHECK(seen.good());
      CHECK(seen.count() == static_cast<std::size_t>(begun));
      CHECK(stream.status() == (by_time ? RunStatus::timed_out : RunStatus::cancelled));
    }
  }
}

TEST_CASE("E3 a stream may be stopped from anywhere") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    for (int place = 0; place < 4; ++place) {
      CAPTURE(place);
      std::stop_source stop;
      auto changed = options;
      changed.stop = stop.get_token();
      if (place == 0) {
        changed.on_progress = [&](std::size_t done, std::size_t) {
          if (done == 10) stop.request_stop();
        };
      }
      if (place == 1) {
        changed.item_key = [&](const int& item) {
          if (item == 10) stop.request_stop();
          return ItemKey{};
        };
      }
      const auto fn = [&](int item) {
        if (place == 2 && item == 10) stop.request_stop();
        return item;
      };
      auto stream = parallel_iter(fn, std::views::iota(0), changed);
      Seen seen{changed.ordered};
      for (auto& item : stream) {
        seen.see(item);
        if (place == 3 && seen.count() == 10) stop.request_stop();
      }
      CHECK(seen.good());
      if (window <= 10) CHECK(seen.count() <= 11 + 2 * window);
      CHECK(stream.status() == RunStatus::cancelled);
    }
  }
}

TEST_CASE("E3 a stop wakes a consumer that waits") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    std::stop_source stop;
    Gate running;
    const auto fn = [&](int item, const Task& task) {
      running.open();
      wait_until([&] { return task.stop.stop_requested(); });
      return item == 0 ? throw Failed() : item;
    };
    auto stream = parallel_iter(fn, std::views::iota(0), {.workers = 2, .ordered = ordered, .stop = stop.get_token()});
    Meanwhile other{[&] {
      running.wait();
      stop.request_stop();
    }};
    Seen seen{ordered};
    for (auto& item : stream) seen.see(item);
    other.join();
    CHECK(seen.good());
    CHECK(seen.has(0));
    CHECK(stream.status() == RunStatus::cancelled);
  }
}

TEST_CASE("R5 a stop that leaves nothing of a stream unrun changes nothing") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    std::stop_source stop;
    auto changed = options;
    changed.stop = stop.get_token();
    auto stream = parallel_iter(itself, std::views::iota(0, 5), changed);
    Seen seen{options.ordered};
    for (auto& item : stream) {
      seen.see(item);
      if (seen.count() == 5) stop.request_stop();
    }
    CHECK(seen.all(5));
    CHECK(stream.status() == RunStatus::completed);
  }
}

TEST_CASE("E4 an attempt of a stream that takes longer than task_timeout is asked to stop") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    const auto fn = [](int item, const Task& task) {
      if (item == 2 && task.attempt == 1) wait_until([&] { return task.stop.stop_requested(); });
      return item;
    };
    IntOptions options{.workers = 3, .ordered = ordered, .task_timeout = 5ms};
    auto stream = parallel_iter(fn, std::views::iota(0, 10), options);
    Seen seen{ordered};
    for (auto& item : stream) {
      seen.see(item);
      // Others may be late too, on a machine that is busy.
      if (!item.ok()) CHECK_THROWS_AS(item.value(), pyarallel::TaskTimeout);
      if (item.index == 2) CHECK_FALSE(item.ok());
    }
    CHECK(seen.all(10));
    options.retry = Retry{.attempts = 100, .backoff = 0s, .on = pyarallel::retry_on<pyarallel::TaskTimeout>};
    auto again = parallel_iter(fn, std::views::iota(0, 10), options);
    for (auto& item : again) CHECK(item.ok());
  }
}

// Exceptions of the caller's code -----------------------------------------------------------------------

namespace {

/// Reads on until the stream throws, and after that. How often it threw E.
template <class E, class R, class See>
int count_throws(ResultStream<R>& stream, See see) {
  int thrown = 0;
  for (bool first = true; true; first = false) {
    try {
      auto it = stream.begin();
      if (!first && it != stream.end()) ++it;
      if (it == stream.end()) return thrown;
      see(*it);
    } catch (const E&) {
      if (++thrown > 3) return thrown;
    }
  }
}

}  // namespace

TEST_CASE("S5 what a source throws leaves the stream after what ran was yielded, and ends it") {
  const Watchdog watchdog;
  struct Place {
    Where where;
    int at;
  };
  for (const auto& [where, at] :
       {Place{Where::begin, 0}, Place{Where::compare, 0}, Place{Where::dereference, 0}, Place{Where::increment, 1},
        Place{Where::increment, 20}, Place{Where::dereference, 20}, Place{Where::compare, 20},
        Place{Where::dereference, 1000}}) {
    for (const auto& [name, options, window] : ways<Counted, Counted>()) {
      if (at == 1000 && options.rate_limit) continue;
      CAPTURE(static_cast<int>(where), at, name);
      Counts items;
      Counts values;
      std::atomic<int> running{0};
      ThrowingSource source{where, at, items};
      {
        const auto fn = [&](const Counted& item) {
          ++running;
          if (item.value % 7 == 0 && at < 100) std::this_thread::yield();
          Counted value{values, item.value};
          --running;
          return value;
        };
        auto stream = parallel_iter(fn, source, options);
        Seen seen{options.ordered};
        CHECK(count_throws<SourceFailed>(stream, [&](auto& item) { seen.see(item); }) == 1);
        CHECK(running == 0);
        CHECK(seen.good());
        CHECK(seen.count() <= static_cast<std::size_t>(at));
        if (is_inline(options)) CHECK(seen.all(static_cast<std::size_t>(at)));
        CHECK(stream.begin() == stream.end());
        CHECK(source.thrown == 1);
      }
      CHECK(items.alive() == 0);
      CHECK(values.alive() == 0);
    }
  }
}

TEST_CASE("S5 running items of a stream are asked to stop when its source throws") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    Gate running;
    auto source = std::views::iota(0) | std::views::transform([&](int number) {
                    if (number == 1) running.wait();
                    return number == 1 ? throw Failed() : number;
                  });
    std::atomic<bool> asked{false};
    const auto fn = [&](const int& item, const Task& task) {
      running.open();
      wait_until([&] { return task.stop.stop_requested(); });
      asked = true;
      return item;
    };
    auto stream = parallel_iter(fn, source, {.workers = 2, .ordered = ordered});
    Seen seen{ordered};
    CHECK(count_throws<Failed>(stream, [&](auto& item) { seen.see(item); }) == 1);
    CHECK(asked);
    CHECK(seen.all(1));
  }
}

TEST_CASE("B2 what a callback or a key function of a stream throws leaves it, and no callback follows") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    for (const bool by_key : {false, true}) {
      for (const int at : {0, 1, 15}) {
        CAPTURE(name, by_key, at);
        int calls = 0;
        bool thrown = false;
        int calls_after = 0;
        const auto call = [&] {
          if (thrown) ++calls_after;
          if (calls++ < at) return;
          thrown = true;
          throw Failed();
        };
        auto changed = options;
        changed.on_progress = [&](auto...) {
          if (!by_key) call();
          if (by_key && thrown) ++calls_after;
        };
        changed.item_key = [&](const int&) {
          if (by_key) call();
          if (!by_key && thrown) ++calls_after;
          return ItemKey{};
        };
        std::atomic<int> running{0};
        const auto fn = [&](int item) {
          ++running;
          if (item % 7 == 0) std::this_thread::yield();
          --running;
          return item;
        };
        auto stream = parallel_iter(fn, std::views::iota(0), changed);
        Seen seen{options.ordered};
        CHECK(count_throws<Failed>(stream, [&](auto& item) { seen.see(item); }) == 1);
        CHECK(running == 0);
        CHECK(thrown);
        CHECK(calls_after == 0);
        CHECK(seen.good());
        if (by_key) CHECK(seen.count() <= static_cast<std::size_t>(at));
        // What was reported, or was about to be, is there.
        if (!by_key) CHECK(seen.count() >= static_cast<std::size_t>(at) + 1);
      }
    }
  }
}

TEST_CASE("B4 worker_init runs once in each worker of a stream before its first item") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    auto changed = options;
    std::mutex mutex;
    std::map<std::thread::id, int> initialized;
    std::atomic<int> wrong{0};
    changed.worker_init = [&] {
      const std::lock_guard lock{mutex};
      ++initialized[std::this_thread::get_id()];
    };
    const auto fn = [&](int item) {
      const std::lock_guard lock{mutex};
      if (initialized[std::this_thread::get_id()] != 1) ++wrong;
      return item;
    };
    CHECK(are_all(parallel_iter(fn, std::views::iota(0, 200), changed), 200, options.ordered));
    CHECK(wrong == 0);
    CHECK(initialized.size() <= 3);
    if (is_inline(options)) CHECK(initialized.size() == 1);

    changed.worker_init = [] { throw Failed(); };
    std::atomic<int> ran{0};
    const auto counting = [&](int item) {
      ++ran;
      return item;
    };
    auto stream = parallel_iter(counting, std::views::iota(0), changed);
    CHECK(count_throws<Failed>(stream, [](auto&) {}) == 1);
    CHECK(ran == 0);
    CHECK(stream.begin() == stream.end());
  }
}

TEST_CASE("B1 on_progress of a stream is called once for each item, before it is left") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto here = std::this_thread::get_id();
    const auto fn = [](int item) { return item % 4 == 0 ? throw Failed() : item; };
    const auto check = [&](auto items, bool sized) {
      std::size_t calls = 0;
      std::size_t wrong = 0;
      auto changed = options;
      changed.on_progress = [&](std::size_t done, std::size_t total) {
        if (done != ++calls || std::this_thread::get_id() != here) ++wrong;
        if (sized ? total != 100 : total < done || total > 100) ++wrong;
      };
      auto stream = parallel_iter(fn, std::move(items), changed);
      std::size_t yielded = 0;
      for (auto& item : stream) {
        if (calls < ++yielded || item.index >= 100) ++wrong;
      }
      CHECK(calls == 100);
      CHECK(wrong == 0);
    };
    check(std::views::iota(0, 100), true);
    check(Generator{100}, false);
  }
}

TEST_CASE("B3 item_key of a stream is called once for each item, before it starts") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    const auto here = std::this_thread::get_id();
    std::vector<std::atomic<int>> keyed(100);
    std::atomic<int> wrong{0};
    auto changed = options;
    changed.item_key = [&](const int& item) {
      if (++keyed[static_cast<std::size_t>(item)] != 1 || std::this_thread::get_id() != here) ++wrong;
      return ItemKey{std::to_string(item % 10)};
    };
    const auto fn = [&](int item) {
      if (keyed[static_cast<std::size_t>(item)] != 1) ++wrong;
      return item;
    };
    auto stream = parallel_iter(fn, std::views::iota(0, 100), changed);
    Seen seen{options.ordered};
    for (auto& item : stream) {
      seen.see(item);
      if (item.key != ItemKey{std::to_string(item.index % 10)}) ++wrong;
    }
    CHECK(seen.all(100));
    CHECK(wrong == 0);
  }
}

// Policies ----------------------------------------------------------------------------------------------

TEST_CASE("T1 a stream retries the failing item only, and yields the last error") {
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  for (const auto& [name, options, window] : ways<int, int>()) {
    if (options.timeout || options.rate_limit) continue;
    CAPTURE(name);
    auto changed = options;
    changed.retry = Retry{.attempts = 3, .backoff = 1h, .max_delay = 10h, .jitter = false};
    std::vector<std::atomic<int>> calls(50);
    const auto fn = [&](int item) {
      const int call = ++calls[static_cast<std::size_t>(item)];
      return item % 5 == 3 ? throw std::runtime_error(std::to_string(call)) : item;
    };
    auto stream = parallel_iter(fn, std::views::iota(0, 50), changed);
    Seen seen{options.ordered};
    for (auto& item : stream) {
      seen.see(item);
      const bool fails = item.index % 5 == 3;
      CHECK(item.ok() != fails);
      CHECK(item.attempts == (fails ? 3 : 1));
      CHECK(calls[item.index] == item.attempts);
      if (fails) CHECK(item.error().what() == "3");
      if (fails) CHECK(item.duration >= 3h);
    }
    CHECK(seen.all(50));
  }
}

TEST_CASE("L3 every attempt of a stream draws a token, and a consumer that stands still draws no more") {
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  for (const std::size_t workers : {1U, 3U}) {
    for (const bool ordered : {false, true}) {
      CAPTURE(workers, ordered);
      const auto before = clock.elapsed();
      const auto fn = [](int item, const Task& task) { return task.attempt == 1 ? throw Failed() : item; };
      IntOptions options{.workers = workers,
                         .rate_limit = RateLimit{.count = 1, .per = 1s},
                         .retry = Retry{.attempts = 2, .backoff = 0s},
                         .ordered = ordered};
      auto stream = parallel_iter(fn, std::views::iota(0, 100), options);
      auto it = stream.begin();
      // 2 attempts each, for a window at the most; one token is there at once.
      CHECK(clock.elapsed() - before <= std::chrono::seconds{2 * 2 * static_cast<int>(workers)});
      Seen seen{ordered};
      for (; it != stream.end(); ++it) seen.see(*it);
      CHECK(seen.all(100));
      CHECK(clock.elapsed() - before >= 199s);
      CHECK(clock.elapsed() - before <= 200s);
    }
  }
}

TEST_CASE("L4 a stream whose next token lies beyond its timeout ends at once") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    auto changed = options;
    changed.rate_limit = RateLimit{.count = 1, .per = 24h, .burst = 3};
    changed.timeout = 1h;
    auto stream = parallel_iter(itself, std::views::iota(0), changed);
    Seen seen{options.ordered};
    for (auto& item : stream) seen.see(item);
    CHECK(seen.good());
    CHECK(seen.count() == 3);
    CHECK(stream.status() == RunStatus::timed_out);
  }
}

TEST_CASE("T4 a stop ends the waits of a stream's retries, and the items' last errors are yielded") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    std::stop_source stop;
    std::atomic<int> begun{0};
    const auto fn = [&](int) -> int {
      if (++begun == 2) stop.request_stop();
      throw Failed();
    };
    auto stream = parallel_iter(
        fn, std::views::iota(0),
        {.workers = 2, .retry = Retry{.backoff = 1h, .max_delay = 1h}, .ordered = ordered, .stop = stop.get_token()});
    Seen seen{ordered};
    for (auto& item : stream) {
      seen.see(item);
      CHECK(item.attempts == 1);
      CHECK_THROWS_AS(item.value(), Failed);
    }
    CHECK(seen.all(2));
    CHECK(stream.status() == RunStatus::cancelled);
  }
}

TEST_CASE("W1 items of a stream that wait for each other end with chunk 1") {
  const Watchdog watchdog;
  constexpr int workers = 4;
  constexpr int count = 40 * workers;
  for (const bool ordered : {false, true}) {
    for (const bool reported : {false, true}) {
      std::atomic<int> arrived{0};
      const auto meet = [&](int item) {
        const int group = arrived++ / workers;
        wait_until([&] { return arrived >= (group + 1) * workers; });
        return item;
      };
      IntOptions options{.workers = workers, .batch = Batch{.chunk = 1}, .ordered = ordered};
      if (reported) options.on_progress = [](auto...) {};
      CHECK(are_all(parallel_iter(meet, numbers(count), options), count, ordered));
    }
  }
}

TEST_CASE("W1 quick items of a stream before items that wait for each other do not keep workers away from these") {
  const Watchdog watchdog;
  for (int round = 0; round < 40; ++round) {
    for (const bool ordered : {false, true}) {
      CAPTURE(round, ordered);
      std::atomic<int> begun{0};
      std::atomic<bool> alone{false};
      const auto fn = [&](int item) {
        ++begun;
        // From item 40 on, four at a time.
        const auto give_up = std::chrono::steady_clock::now() + 5s;
        while (item >= 40 && !alone && begun < 44 + (item - 40) / 4 * 4) {
          if (std::chrono::steady_clock::now() > give_up) alone = true;
          std::this_thread::sleep_for(20us);
        }
        return item;
      };
      IntOptions options{.workers = 4, .batch = Batch{.size = 4, .chunk = 1}, .ordered = ordered};
      CHECK(are_all(parallel_iter(fn, std::views::iota(0, 48), options), 48, ordered));
      REQUIRE_FALSE(alone);
    }
  }
}

TEST_CASE("E2 running items of a stream are asked to stop in time while the consumer is busy") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    for (int reason = 0; reason < 3; ++reason) {
      CAPTURE(ordered, reason);
      std::stop_source stop;
      IntOptions options{.workers = 3, .batch = Batch{.chunk = 1}, .ordered = ordered};
      if (reason == 0) options.timeout = 50ms;
      if (reason == 1) options.task_timeout = 50ms;
      if (reason == 2) options.stop = stop.get_token();
      std::atomic<int> asked{0};
      Gate others;
      const auto fn = [&](int item, const Task& task) {
        if (item == 0) {
          others.wait();
          return item;
        }
        others.open();
        if (item > 2) return item;
        wait_until([&] { return task.stop.stop_requested(); });
        ++asked;
        return item;
      };
      auto stream = parallel_iter(fn, std::views::iota(0, 10), options);
      auto it = stream.begin();
      if (reason == 2) stop.request_stop();
      if (it != stream.end() && it->index == 0) wait_until([&] { return asked >= 1; });
      Seen seen{ordered};
      for (; it != stream.end(); ++it) seen.see(*it);
      CHECK(seen.good());
      if (reason == 1) CHECK(stream.status() == RunStatus::completed);
      if (reason == 0) CHECK(stream.status() == RunStatus::timed_out);
      if (reason == 2) CHECK(stream.status() == RunStatus::cancelled);
    }
  }
}

// Tiny items, which the consumer's thread may run itself ------------------------------------------------

TEST_CASE("S1 a stream yields very many tiny items, whatever the options") {
  const Watchdog watchdog;
  constexpr int count = 20'000;
  for (const bool ordered : {false, true}) {
    for (const std::size_t window : {0U, 1U, 50U, 1000U, 1'000'000U}) {
      for (const std::size_t workers : {2U, 3U}) {
        CAPTURE(ordered, window, workers);
        std::stop_source stop;
        auto stream = parallel_iter(
            itself, Generator{count},
            {.workers = workers, .batch = Batch{.size = window}, .ordered = ordered, .stop = stop.get_token()});
        std::vector<bool> seen(count);
        std::size_t next = 0;
        std::size_t wrong = 0;
        for (auto& item : stream) {
          if (!item.ok() || item.value() != static_cast<int>(item.index) || seen[item.index] || item.attempts != 1 ||
              item.key != ItemKey{}) {
            ++wrong;
          }
          seen[item.index] = true;
          if (ordered && item.index != next) ++wrong;
          ++next;
        }
        CHECK(wrong == 0);
        CHECK(next == count);
        CHECK(stream.status() == RunStatus::completed);
      }
    }
  }
}

TEST_CASE("S1 what workers have resolved is not kept back by the tiny items of a stream") {
  const Watchdog watchdog;
  constexpr std::size_t many = 200'000;
  constexpr std::size_t first = 50;
  for (int round = 0; round < 20; ++round) {
    for (const std::size_t window : {0U, 100U}) {
      auto stream = parallel_iter(itself, std::views::iota(0), {.workers = 4, .batch = Batch{.size = window}});
      std::size_t left = first;
      std::size_t yielded = 0;
      for (auto& item : stream) {
        if (item.index < first) --left;
        if (left == 0 || ++yielded == many) break;
      }
      CAPTURE(round, window, yielded);
      REQUIRE(left == 0);
    }
  }
}

TEST_CASE("S4 an early failure ends an endless stream of tiny items") {
  const Watchdog watchdog;
  constexpr std::size_t many = 200'000;
  for (int round = 0; round < 100; ++round) {
    for (const bool ordered : {false, true}) {
      const auto fn = [&](int item) { return item == round % 10 ? throw Failed() : item; };
      auto stream = parallel_iter(fn, std::views::iota(0), {.workers = 4, .ordered = ordered, .max_errors = 1});
      std::size_t yielded = 0;
      for (auto& item : stream) {
        if (item.index > 0 && ++yielded == many) break;
      }
      CAPTURE(round, ordered);
      REQUIRE(yielded < many);
    }
  }
}

TEST_CASE("S4 max_errors, exceptions, stop and the source's own end work among tiny items of a stream") {
  const Watchdog watchdog;
  for (int round = 0; round < 30; ++round) {
    for (const bool ordered : {false, true}) {
      CAPTURE(round, ordered);
      const int at = 3000 + 7 * round;
      {
        const auto fn = [&](int item) { return item >= at && item % 10 == 0 ? throw Failed() : item; };
        auto stream = parallel_iter(fn, Generator{endless}, {.workers = 3, .ordered = ordered, .max_errors = 5});
        Seen seen{ordered};
        bool last_failed = false;
        for (auto& item : stream) {
          seen.see(item);
          last_failed = !item.ok();
        }
        CHECK(seen.good());
        CHECK(last_failed);
        CHECK(seen.failures() == 5);
        CHECK(stream.status() == RunStatus::aborted);
        if (ordered) CHECK(seen.all(static_cast<std::size_t>((at + 9) / 10 * 10 + 41)));
      }
      {
        std::stop_source stop;
        auto stream =
            parallel_iter(itself, Generator{endless}, {.workers = 3, .ordered = ordered, .stop = stop.get_token()});
        Seen seen{ordered};
        for (auto& item : stream) {
          seen.see(item);
          if (seen.count() == static_cast<std::size_t>(at)) stop.request_stop();
        }
        CHECK(seen.good());
        CHECK(seen.count() <= static_cast<std::size_t>(at) + 6);
        CHECK(stream.status() == RunStatus::cancelled);
      }
      {
        std::stop_source stop;
        Meanwhile other{[&] {
          dawdle();
          stop.request_stop();
        }};
        auto stream =
            parallel_iter(itself, Generator{endless}, {.workers = 3, .ordered = ordered, .stop = stop.get_token()});
        std::size_t yielded = 0;
        for (auto& item : stream) yielded = item.index;
        other.join();
        CHECK(stream.status() == RunStatus::cancelled);
        CHECK(yielded < static_cast<std::size_t>(endless));
      }
    }
  }
}

TEST_CASE("S1 a stream whose tiny items turn slow goes on with its workers") {
  const Watchdog watchdog;
  for (const bool ordered : {false, true}) {
    for (const std::size_t window : {0U, 100U}) {
      CAPTURE(ordered, window);
      // From item `slow` on, two run at the same time sooner or later.
      constexpr int slow = 5000;
      std::atomic<bool> together{false};
      Crowd crowd;
      const auto fn = [&](int item) {
        crowd.enter();
        if (item >= slow) std::this_thread::sleep_for(200us);
        if (crowd.inside() > 1 && item >= slow) together = true;
        crowd.leave();
        return item;
      };
      auto stream =
          parallel_iter(fn, Generator{endless}, {.workers = 3, .batch = Batch{.size = window}, .ordered = ordered});
      Seen seen{ordered};
      for (auto& item : stream) {
        seen.see(item);
        if (together || item.index > slow + 3000) break;
      }
      CHECK(together);
      CHECK(seen.good());
      CHECK(crowd.most() <= 3);
    }
  }
}

TEST_CASE("S2 never more than `workers` calls of a stream's function at once, tiny items or not") {
  const Watchdog watchdog;
  for (int round = 0; round < 60; ++round) {
    for (const int workers : {2, 3}) {
      Crowd crowd;
      Counts items;
      Counts values;
      const int kind = round % 4;
      std::size_t window = 0;
      if (round % 3 == 1) window = 40;
      if (round % 3 == 2) window = 400;
      const std::size_t most = window == 0 ? 2 * static_cast<std::size_t>(workers) : window;
      const auto fn = [&](const Counted& item) {
        crowd.enter();
        if (kind == 1 && item.value % 500 == 499) dawdle();
        if (kind == 2 && item.value % 97 == 0) std::this_thread::yield();
        if (kind == 3 && item.value / 1000 % 2 == 1 && item.value % 20 == 0) std::this_thread::sleep_for(30us);
        crowd.leave();
        return Counted{values, item.value};
      };
      const bool ordered = round % 2 == 0;
      SinglePass source{4000, [&](int number) { return Counted{items, number}; }};
      {
        auto stream = parallel_iter(
            fn, source,
            {.workers = static_cast<std::size_t>(workers), .batch = Batch{.size = window}, .ordered = ordered});
        Seen seen{ordered};
        std::size_t too_many = 0;
        for (auto& item : stream) {
          seen.see(item);
          if (static_cast<std::size_t>(items.alive()) > most || static_cast<std::size_t>(values.alive()) > most) {
            ++too_many;
          }
        }
        CAPTURE(round, workers, crowd.most());
        CHECK(seen.all(4000));
        CHECK(crowd.most() <= workers);
        CHECK(too_many == 0);
      }
      CHECK(items.alive() == 0);
      CHECK(values.alive() == 0);
    }
  }
}

// Several streams ---------------------------------------------------------------------------------------

TEST_CASE("C8 streams can be read side by side") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, int>()) {
    CAPTURE(name);
    auto ordered = options;
    ordered.ordered = true;
    auto left = parallel_iter(itself, std::views::iota(0), ordered);
    auto right = parallel_iter([](int item) { return 2 * item; }, std::views::iota(0), ordered);
    auto a = left.begin();
    auto b = right.begin();
    for (int i = 0; i < 500; ++i, ++a, ++b) {
      REQUIRE(a->value() == i);
      REQUIRE(b->value() == 2 * i);
    }
  }
}

TEST_CASE("C8 many streams may be open at once, one feeding the other too") {
  const Watchdog watchdog;
  std::vector<IntStream> streams;
  for (int i = 0; i < 30; ++i) {
    streams.push_back(parallel_iter([i](int item) { return item + i; }, std::views::iota(0, 100), {.workers = 3}));
    CHECK(streams.back().begin() != streams.back().end());
  }
  std::vector<int> counts(streams.size(), 1);
  for (int step = 0; step < 100; ++step) {
    for (std::size_t i = 0; i < streams.size(); ++i) {
      auto it = streams[i].begin();
      if (it == streams[i].end()) continue;
      CHECK(it->value() == static_cast<int>(it->index + i));
      if (++it != streams[i].end()) ++counts[i];
    }
  }
  CHECK(counts == std::vector<int>(streams.size(), 100));

  const auto value = [](const ItemResult<int>& item) { return item.value(); };
  for (const bool ordered : {false, true}) {
    auto first = parallel_iter(itself, std::views::iota(0, 2000), {.workers = 3, .ordered = ordered});
    auto second = parallel_iter([](int item) { return item + 1; }, std::move(first) | std::views::transform(value),
                                {.workers = 2, .ordered = ordered});
    long sum = 0;
    for (auto& item : second) sum += item.value();
    CHECK(sum == 2000L * 2001 / 2);
  }
}

TEST_CASE("C8 streams nest in maps and in streams") {
  const Watchdog watchdog;
  const auto inner = [](int count) {
    int sum = 0;
    for (auto& item : parallel_iter(itself, Generator{count}, {.workers = 3})) sum += item.value();
    return sum;
  };
  const auto leaving = [](int count) {
    int seen = 0;
    for (auto& item : parallel_iter(itself, std::views::iota(0), {.workers = 3})) {
      if (item.ok() && ++seen == count) break;
    }
    return seen;
  };
  const auto mapped = parallel_map(inner, numbers(60), {.workers = 4});
  for (int i = 0; i < 60; ++i) CHECK(mapped.values()[static_cast<std::size_t>(i)] == i * (i - 1) / 2);
  for (auto& item : parallel_iter(inner, numbers(60), {.workers = 4})) {
    const int count = static_cast<int>(item.index);
    CHECK(item.value() == count * (count - 1) / 2);
  }
  for (auto& item : parallel_iter(leaving, std::views::iota(1, 60), {.workers = 4})) {
    CHECK(item.value() == static_cast<int>(item.index) + 1);
  }
  for (auto& item :
       parallel_iter([](int count) { return static_cast<int>(parallel_map(itself, numbers(count)).values().size()); },
                     numbers(60), {.workers = 4})) {
    CHECK(item.value() == static_cast<int>(item.index));
  }
}

TEST_CASE("C8 streams run at the same time from several threads") {
  const Watchdog watchdog;
  std::atomic<int> good{0};
  {
    std::list<Meanwhile> readers;
    for (int reader = 0; reader < 6; ++reader) {
      readers.emplace_back([&good, reader] {
        for (int round = 0; round < 10; ++round) {
          if (are_all(parallel_iter(itself, numbers(500), {.workers = 3, .ordered = reader % 2 == 0}), 500)) ++good;
        }
      });
    }
    for (auto& reader : readers) reader.join();
  }
  CHECK(good == 60);
}

// Anything at once --------------------------------------------------------------------------------------

TEST_CASE("S3 any stream, left at any point, keeps its promises") {
  const Watchdog watchdog;
  std::mt19937 random{std::random_device{}()};
  const auto any = [&](int most) { return std::uniform_int_distribution<int>{0, most}(random); };
  const auto chance = [&](int in) { return any(in - 1) == 0; };
  const auto until = std::chrono::steady_clock::now() + 2s;
  while (std::chrono::steady_clock::now() < until) {
    const auto seed = std::random_device{}();
    random.seed(seed);
    CAPTURE(seed);
    StreamOptions<Counted, Counted> options;
    const int workers = 1 + any(4);
    options.workers = static_cast<std::size_t>(workers);
    if (chance(8)) options.executor = runtime(Executor::sequential);
    if (chance(2)) options.batch = Batch{.size = static_cast<std::size_t>(any(20))};
    if (chance(5)) options.batch = Batch{.size = static_cast<std::size_t>(chance(2) ? 300 : 0), .chunk = 1};
    if (chance(8)) options.batch = Batch{.size = static_cast<std::size_t>(any(20)), .chunk = 3};
    options.ordered = chance(2);
    const int attempts = chance(3) ? 3 : 1;
    if (attempts > 1) options.retry = Retry{.attempts = attempts, .backoff = 10us};
    if (chance(6)) options.rate_limit = RateLimit{.count = 100'000, .burst = 10};
    if (chance(4)) options.item_key = [](const Counted& item) { return ItemKey{std::int64_t{item.value}}; };
    std::size_t done = 0;
    std::set<std::string> wrong;
    bool source_threw = false;
    std::size_t most_window = 2 * (is_inline(options) ? 1 : options.workers.value());
    if (options.batch && options.batch->size > 0) most_window = options.batch->size;
    if (chance(4)) {
      options.on_progress = [&](std::size_t now, std::size_t) {
        if (now != ++done) wrong.insert("progress");
      };
    }
    if (chance(4)) options.max_errors = static_cast<std::size_t>(1 + any(10));
    if (chance(6)) options.timeout = std::chrono::microseconds{any(3000)};
    std::stop_source stop;
    if (chance(3)) options.stop = stop.get_token();
    const int stop_at = chance(2) ? any(500) : -1;
    const int count = chance(4) ? 5000 : any(300);
    const int leave_at = chance(2) ? any(count) : -1;
    const int fail_every = chance(2) ? 1 + any(30) : 0;
    const int slow_every = chance(2) ? 1 + any(100) : 0;
    const int source_throws = chance(8) ? any(count) : -1;

    Counts items;
    Counts values;
    Crowd crowd;
    std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count) + 1);
    Seen seen{options.ordered};
    std::size_t left_behind = 0;
    SinglePass source{count, [&](int number) {
                        source_threw = number == source_throws;
                        return source_threw ? throw Failed() : Counted{items, number};
                      }};
    source.on_read = [&](int number) {
      if (static_cast<std::size_t>(number) + 1 - left_behind > most_window) wrong.insert("window");
    };
    const auto fails = [&](int item) { return fail_every > 0 && (item * 7 + 3) % fail_every == 0; };
    bool threw = false;
    bool ended = false;
    RunStatus status = RunStatus::completed;
    {
      const auto fn = [&](const Counted& item) {
        crowd.enter();
        struct Leave {
          Crowd& inside;
          ~Leave() { inside.leave(); }
        } leave{crowd};
        const int run = ++runs[static_cast<std::size_t>(item.value)];
        if (item.value == stop_at) stop.request_stop();
        if (slow_every > 0 && item.value % slow_every == 0) std::this_thread::sleep_for(20us);
        if (fails(item.value) && (run < attempts || item.value % 2 == 0)) throw Failed();
        return Counted{values, item.value};
      };
      auto stream = parallel_iter(fn, source, options);
      try {
        int step = 0;
        for (auto it = stream.begin(); it != stream.end(); ++left_behind, ++it) {
          const auto& item = *it;
          seen.see(item);
          const int index = static_cast<int>(item.index);
          if (item.ok() && item.value().value != index) wrong.insert("value");
          if (!item.ok() && !fails(index)) wrong.insert("error");
          if (item.attempts != runs[item.index]) wrong.insert("attempts");
          if (options.item_key && item.key != ItemKey{std::int64_t{index}}) wrong.insert("key");
          // After the source threw, no code of the user's is called any more.
          if (options.on_progress && !source_threw && done < seen.count()) wrong.insert("progress too late");
          if (static_cast<std::size_t>(values.alive()) > most_window) wrong.insert("values alive");
          if (options.max_errors && seen.failures() > *options.max_errors) wrong.insert("max_errors");
          if (++step == leave_at) break;
        }
        ended = stream.begin() == stream.end();
        if (ended) status = stream.status();
      } catch (const Failed&) {
        threw = true;
        if (stream.begin() != stream.end()) wrong.insert("not over");
      }
    }
    CHECK(seen.good());
    CHECK(wrong == std::set<std::string>{});
    CHECK(crowd.inside() == 0);
    CHECK(crowd.most() <= workers);
    CHECK(items.alive() == 0);
    CHECK(values.alive() == 0);
    CHECK(source.mistakes == 0);
    if (threw) CHECK(source_throws >= 0);
    if (ended && status == RunStatus::completed) CHECK(seen.all(static_cast<std::size_t>(count)));
    if (ended && status == RunStatus::aborted) CHECK((options.max_errors && seen.failures() == *options.max_errors));
    if (ended && status == RunStatus::timed_out) CHECK(options.timeout);
    if (ended && status == RunStatus::cancelled) CHECK((options.stop.stop_requested() && stop_at >= 0));
    // Nothing that ran to its end is lost where the stream was read to its own. (The failure that ends a stream may
    // come after a stop, whose status stands.)
    const bool ended_by_failure = options.max_errors && seen.failures() == *options.max_errors;
    if (ended && !threw && !ended_by_failure) {
      for (std::size_t i = 0; i < runs.size(); ++i) {
        if (runs[i] > 0 && !seen.has(i)) FAIL("item " << i << " ran and was not yielded");
      }
    }
  }
}

// Results that throw when they are moved ----------------------------------------------------------------

namespace {

/// Its move may throw, once.
struct ThrowsWhenMoved {
  ThrowsWhenMoved(int number, std::atomic<int>& alive) : value(number), alive_(&alive) { ++*alive_; }
  ThrowsWhenMoved(ThrowsWhenMoved&& other) : value(other.value), alive_(other.alive_) {
    if (value == 5) throw Failed();
    ++*alive_;
  }
  ThrowsWhenMoved& operator=(ThrowsWhenMoved&&) = delete;
  ~ThrowsWhenMoved() { --*alive_; }

  int value;

 private:
  std::atomic<int>* alive_;
};

}  // namespace

TEST_CASE("C4 a stream yields results where they are and what moving them throws is for who moves them") {
  const Watchdog watchdog;
  for (const auto& [name, options, window] : ways<int, ThrowsWhenMoved>()) {
    CAPTURE(name);
    std::atomic<int> alive{0};
    {
      const auto fn = [&](int item) { return ThrowsWhenMoved{item, alive}; };
      auto stream = parallel_iter(fn, std::views::iota(0, 50), options);
      Seen seen{options.ordered};
      for (auto& item : stream) {
        seen.see(item);
        CHECK(item.value().value == static_cast<int>(item.index));
        if (item.index == 5) {
          CHECK_THROWS_AS(ThrowsWhenMoved(std::move(item).value()), Failed);
        } else {
          const ItemResult<ThrowsWhenMoved> kept = std::move(item);
          CHECK(kept.value().value == static_cast<int>(kept.index));
        }
      }
      CHECK(seen.all(50));
      CHECK(stream.status() == RunStatus::completed);
    }
    CHECK(alive == 0);
  }
}

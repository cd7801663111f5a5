// R1 to R8: what a run gives back, whole or in part, and what becomes of every value.
#include <algorithm>
#include <any>
#include <array>
#include <atomic>
#include <cstdint>
#include <forward_list>
#include <list>
#include <memory>
#include <new>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/counted.hpp"
#include "support/single_pass.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

/// Fails for 2, 5, 8, ...
std::string text_or_failure(int i) {
  if (i % 3 == 2) throw std::runtime_error("item " + std::to_string(i));
  return "value " + std::to_string(i);
}

std::string text(int i) { return "value " + std::to_string(i); }

MapResult<std::string> six_with_two_failures(std::optional<std::size_t> workers = {}) {
  return parallel_map(text_or_failure, std::views::iota(0, 6), {.workers = workers});
}

/// Items 0 to 2 ran, 3 to 5 did not; 2 failed.
MapResult<std::string> cancelled_after_three() {
  std::stop_source stop;
  const auto fn = [&](int i) {
    if (i == 2) stop.request_stop();
    return text_or_failure(i);
  };
  return parallel_map(fn, std::views::iota(0, 6), {.workers = 1, .stop = stop.get_token()});
}

template <class Exception, class Code>
std::string message_of(Code&& code) {
  try {
    code();
  } catch (const Exception& e) {
    return e.what();
  }
  return "nothing was thrown";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

// Whole results --------------------------------------------------------------------------------------

TEST_CASE("R2 a whole result is ok and gives its values in every way") {
  auto result = parallel_map(text, std::views::iota(0, 4));
  CHECK(result.ok());
  CHECK(result.complete());
  CHECK(result.status() == RunStatus::completed);
  CHECK_FALSE((result.timed_out() || result.aborted() || result.cancelled()));
  CHECK(result.size() == 4);
  CHECK_FALSE(result.empty());
  const std::vector<std::string> expected{"value 0", "value 1", "value 2", "value 3"};
  CHECK(std::ranges::equal(result.values(), expected));
  CHECK(std::equal(result.begin(), result.end(), expected.begin(), expected.end()));
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(result[i] == expected[i]);
    CHECK(result.at(i) == expected[i]);
  }
  std::vector<std::string> in_loop;
  for (const std::string& value : result) in_loop.push_back(value);
  CHECK(in_loop == expected);
  CHECK(result.ok_values() == expected);
  CHECK(result.failures().empty());
  CHECK_NOTHROW(result.throw_on_failure());
  CHECK(std::move(result).values() == expected);
}

TEST_CASE("R2 a run can be complete and not ok") {
  const auto result = six_with_two_failures();
  CHECK(result.complete());
  CHECK_FALSE(result.ok());
  CHECK(result.status() == RunStatus::completed);
  CHECK(result.size() == 6);
}

// Failures -------------------------------------------------------------------------------------------

TEST_CASE("R6 all whole-result accessors throw the ExceptionGroup of a run with failures") {
  for (const std::size_t workers : {1U, 3U}) {
    auto result = six_with_two_failures(workers);
    const auto& constant = result;
    CHECK_THROWS_AS(constant.values(), ExceptionGroup);
    CHECK_THROWS_AS(constant[0], ExceptionGroup);
    CHECK_THROWS_AS(constant.begin(), ExceptionGroup);
    CHECK_THROWS_AS(constant.end(), ExceptionGroup);
    CHECK_THROWS_AS(constant.throw_on_failure(), ExceptionGroup);
    CHECK_THROWS_AS(std::move(result).values(), ExceptionGroup);
    CHECK(result.successes().size() == 4);  // the refusal has moved nothing out
    CHECK(result.at(0) == "value 0");
  }
}

TEST_CASE("R6 the ExceptionGroup lists every failure in input order and shows the first few") {
  const auto group_of = [](int count) {
    const auto result = parallel_map(text_or_failure, std::views::iota(0, count), {.workers = 3});
    try {
      result.throw_on_failure();
    } catch (const ExceptionGroup& group) {
      return std::pair{std::string(group.what()), group.failures()};
    }
    return std::pair{std::string("nothing was thrown"), std::vector<Failure>{}};
  };
  CHECK(group_of(3).first == "1 of 3 tasks failed: [2] std::runtime_error: item 2");
  CHECK(group_of(6).first == "2 of 6 tasks failed: [2] std::runtime_error: item 2; [5] std::runtime_error: item 5");
  const auto [what, failures] = group_of(300);
  REQUIRE(failures.size() == 100);
  for (std::size_t i = 0; i < 100; ++i) {
    CHECK(failures[i].index == 3 * i + 2);
    CHECK(failures[i].error.what() == "item " + std::to_string(3 * i + 2));
  }
  CHECK(contains(what, "100 of 300 tasks failed: [2] std::runtime_error: item 2; [5] "));
  CHECK(what.size() < 300);
}

TEST_CASE("R6 failures are in input order whatever their completion order") {
  const Watchdog watchdog;
  std::atomic<int> next{7};
  const auto last_first = [&](int i) {
    while (next != i) std::this_thread::yield();
    next = i - 1;
    throw std::runtime_error(std::to_string(i));
  };
  const auto result = parallel_map(last_first, std::views::iota(0, 8), {.workers = 8, .batch = Batch{.chunk = 1}});
  REQUIRE(result.failures().size() == 8);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK(result.failures()[i].index == i);
    CHECK(result.failures()[i].error.what() == std::to_string(i));
  }
}

TEST_CASE("R1 at gives the value or the very exception of one item") {
  std::exception_ptr thrown;
  const auto fn = [&](int i) {
    try {
      return text_or_failure(i);
    } catch (...) {
      thrown = std::current_exception();
      throw;
    }
  };
  const auto result = parallel_map(fn, std::views::iota(0, 3), {.workers = 1});
  CHECK(result.at(0) == "value 0");
  CHECK(message_of<std::runtime_error>([&] { result.at(2); }) == "item 2");
  CHECK(result.failures()[0].error.ptr() == thrown);
}

TEST_CASE("R1 at refuses an index that is out of range whatever became of the run") {
  const auto refuses = [](const auto& result, std::size_t index) {
    const std::string what = message_of<std::out_of_range>([&] { result.at(index); });
    return contains(what, std::to_string(index)) && contains(what, std::to_string(result.size()));
  };
  CHECK(refuses(six_with_two_failures(), 6));
  CHECK(refuses(cancelled_after_three(), 77));
  CHECK(refuses(parallel_map(text, std::vector<int>{}), 0));
  CHECK(refuses(MapResult<int>{}, 0));
}

TEST_CASE("R1 successes are a forward range of index and value") {
  const auto result = six_with_two_failures();
  const auto successes = result.successes();
  static_assert(std::ranges::forward_range<decltype(successes)>);
  static_assert(std::ranges::common_range<decltype(successes)>);
  std::string all;
  for (const auto& [index, value] : result.successes()) all += std::to_string(index) + "=" + value + " ";
  CHECK(all == "0=value 0 1=value 1 3=value 3 4=value 4 ");
  for (const auto [index, value] : successes) CHECK(&value == &result.at(index));
  auto indices = successes | std::views::transform([](const auto& success) { return success.index; }) |
                 std::views::filter([](std::size_t index) { return index > 0; });
  CHECK(std::ranges::equal(indices, std::vector<std::size_t>{1, 3, 4}));
  CHECK(std::ranges::distance(successes) == 4);
  const auto first = successes.begin();
  auto second = first;
  CHECK((*second++).index == 0);
  CHECK((*second).index == 1);
  CHECK((*first).index == 0);
  CHECK(second != first);
  CHECK(++decltype(second)(first) == second);
}

TEST_CASE("R1 successes and failures of a temporary own what they refer to") {
  std::string all;
  for (const auto& [index, value] : six_with_two_failures().successes()) all += std::to_string(index) + value;
  CHECK(all == "0value 01value 13value 34value 4");
  for (const Failure& failure : six_with_two_failures().failures()) all = failure.error.what();
  CHECK(all == "item 5");
  const auto successes = six_with_two_failures().successes();
  CHECK(successes.size() == 4);
  CHECK_FALSE(successes.empty());
  static_assert(std::ranges::forward_range<decltype(successes)>);
}

TEST_CASE("R1 successes and ok_values skip failures wherever they are") {
  for (unsigned failing = 0; failing < 32; ++failing) {
    const auto fails = [&](int i) { return (failing >> static_cast<unsigned>(i) & 1U) != 0; };
    const auto fn = [&](int i) {
      if (fails(i)) throw i;
      return i;
    };
    auto result = parallel_map(fn, std::views::iota(0, 5), {.workers = 2});
    std::vector<int> expected;
    for (int i = 0; i < 5; ++i) {
      if (!fails(i)) expected.push_back(i);
    }
    std::vector<int> seen;
    for (const auto& [index, value] : result.successes()) seen.push_back(value);
    CHECK(seen == expected);
    CHECK(result.successes().size() == expected.size());
    CHECK(result.successes().empty() == expected.empty());
    CHECK(result.ok_values() == expected);
    CHECK(std::move(result).ok_values() == expected);
  }
}

// Truncated runs -------------------------------------------------------------------------------------

namespace {

/// Everything that clauses R1 to R3 say of a run that ended early, after `ran` of `size` items.
template <class Truncation, class R>
void check_truncated(MapResult<R> result, RunStatus status, std::size_t ran, std::size_t size) {
  CHECK(result.status() == status);
  CHECK(result.timed_out() == (status == RunStatus::timed_out));
  CHECK(result.aborted() == (status == RunStatus::aborted));
  CHECK(result.cancelled() == (status == RunStatus::cancelled));
  CHECK_FALSE(result.complete());
  CHECK_FALSE(result.ok());
  CHECK(result.size() == size);

  const auto& constant = result;
  CHECK_THROWS_AS(constant.values(), Truncation);
  CHECK_THROWS_AS(constant[0], Truncation);
  CHECK_THROWS_AS(constant.begin(), Truncation);
  CHECK_THROWS_AS(constant.end(), Truncation);
  CHECK_THROWS_AS(std::move(result).values(), Truncation);

  std::size_t unrun = 0;
  for (const Failure& failure : result.failures()) {
    if (failure.index < ran) {
      CHECK_FALSE(failure.error.template is<Truncation>());
      continue;
    }
    CHECK(failure.error.template is<Truncation>());
    CHECK_THROWS_AS(result.at(failure.index), Truncation);
    ++unrun;
  }
  CHECK(unrun == size - ran);
  CHECK(result.successes().size() + result.failures().size() == size);
  const auto items = std::move(result).item_results();
  for (const auto& item : items) {
    CHECK(item.attempts == (item.index < ran ? 1 : 0));
    if (item.index >= ran) CHECK(item.duration == 0s);
  }
}

}  // namespace

TEST_CASE("R3 a truncated run is never ok") {
  std::stop_source stopped;
  stopped.request_stop();
  const std::vector<int> sized{0, 1, 2, 3, 4, 5};
  const std::list<int> list(sized.begin(), sized.end());
  const std::forward_list<int> unsized(sized.begin(), sized.end());
  const auto fail = [](int) -> int { throw std::runtime_error("boom"); };

  for (const std::size_t workers : {1U, 3U}) {
    const auto timeout = [&](auto&& items) { return parallel_map(text, items, {.workers = workers, .timeout = 0s}); };
    const auto stop = [&](auto&& items) {
      return parallel_map(text, items, {.workers = workers, .stop = stopped.get_token()});
    };
    SECTION("by a timeout of zero, " + std::to_string(workers) + " workers") {
      check_truncated<TimeoutError>(timeout(sized), RunStatus::timed_out, 0, 6);
      check_truncated<TimeoutError>(timeout(list), RunStatus::timed_out, 0, 6);
      check_truncated<TimeoutError>(timeout(unsized), RunStatus::timed_out, 0, 0);
    }
    SECTION("by a stopped token, " + std::to_string(workers) + " workers") {
      check_truncated<Cancelled>(stop(sized), RunStatus::cancelled, 0, 6);
      check_truncated<Cancelled>(stop(list), RunStatus::cancelled, 0, 6);
      check_truncated<Cancelled>(stop(unsized), RunStatus::cancelled, 0, 0);
    }
  }
  SECTION("by max_errors") {
    const MapOptions<int, int> options{.workers = 1, .max_errors = 2};
    check_truncated<Aborted>(parallel_map(fail, sized, options), RunStatus::aborted, 2, 6);
    check_truncated<Aborted>(parallel_map(fail, list, options), RunStatus::aborted, 2, 6);
    check_truncated<Aborted>(parallel_map(fail, unsized, options), RunStatus::aborted, 2, 2);
  }
}

TEST_CASE("R3 truncation is checked before failures") {
  auto result = cancelled_after_three();
  CHECK_THROWS_AS(result.values(), Cancelled);
  CHECK_THROWS_AS(result.throw_on_failure(), ExceptionGroup);  // which never speaks of truncation
  CHECK(message_of<ExceptionGroup>([&] { result.throw_on_failure(); }) ==
        "1 of 6 tasks failed: [2] std::runtime_error: item 2");
  check_truncated<Cancelled>(std::move(result), RunStatus::cancelled, 3, 6);
  std::stop_source stopped;
  stopped.request_stop();
  CHECK_NOTHROW(parallel_map(text, std::vector{1, 2}, {.stop = stopped.get_token()}).throw_on_failure());
}

TEST_CASE("R3 a truncation says what happened and where the partial results are") {
  const std::string what = message_of<Cancelled>([] { cancelled_after_three().values(); });
  CHECK(contains(what, "cancelled"));
  CHECK(contains(what, "3 never ran"));
  CHECK(contains(what, "successes()"));
}

TEST_CASE("R4 items that finished keep their outcome in a truncated run") {
  const auto result = cancelled_after_three();
  CHECK(result.at(0) == "value 0");
  CHECK(result.at(1) == "value 1");
  CHECK(message_of<std::runtime_error>([&] { result.at(2); }) == "item 2");
  CHECK_THROWS_AS(result.at(3), Cancelled);
}

TEST_CASE("R4 items that finish after the stop while being awaited keep their outcome") {
  const Watchdog watchdog;
  for (const bool pulled : {false, true}) {
    std::stop_source stop;
    std::atomic<int> running{0};
    const auto outlive_the_stop = [&](int i) {
      ++running;
      if (i == 0) {
        while (running < 3) std::this_thread::yield();
        stop.request_stop();
      }
      while (!stop.stop_requested()) std::this_thread::yield();
      return text_or_failure(i);
    };
    const MapOptions<int, std::string> options{.workers = 3, .batch = Batch{.chunk = 1}, .stop = stop.get_token()};
    const auto result = pulled ? parallel_map(outlive_the_stop, std::list<int>{0, 1, 2, 3, 4, 5, 6, 7}, options)
                               : parallel_map(outlive_the_stop, std::views::iota(0, 8), options);
    CHECK(result.cancelled());
    CHECK(result.size() == 8);
    CHECK(result.at(0) == "value 0");
    CHECK(result.at(1) == "value 1");
    CHECK(message_of<std::runtime_error>([&] { result.at(2); }) == "item 2");
    for (std::size_t i = 3; i < 8; ++i) CHECK_THROWS_AS(result.at(i), Cancelled);
  }
}

TEST_CASE("R5 a later reason never changes the status") {
  std::stop_source stop;
  const auto fail_and_stop = [&](int) -> int {
    stop.request_stop();
    throw std::runtime_error("boom");
  };
  const auto stop_first =
      parallel_map(fail_and_stop, std::views::iota(0, 9), {.workers = 1, .max_errors = 1, .stop = stop.get_token()});
  CHECK(stop_first.cancelled());
  stop = {};
  const auto failing = [](int) -> int { throw std::runtime_error("boom"); };
  const auto abort_first =
      parallel_map(failing, std::views::iota(0, 9),
                   {.workers = 1, .max_errors = 1, .stop = stop.get_token(), .on_result = [&](const ItemResult<int>&) {
                      stop.request_stop();
                    }});
  CHECK(abort_first.aborted());
  stop.request_stop();
  const auto both = parallel_map(failing, std::views::iota(0, 9), {.timeout = 0s, .stop = stop.get_token()});
  CHECK((both.timed_out() || both.cancelled()));
}

TEST_CASE("R5 a stop that leaves no item unrun changes nothing") {
  const std::vector<int> sized{0, 1, 2};
  const std::list<int> list(sized.begin(), sized.end());
  for (const std::size_t workers : {1U, 3U}) {
    std::stop_source stop;
    const auto stop_at_the_end = [&](std::size_t done, std::size_t) {
      if (done == 3) stop.request_stop();
    };
    const MapOptions<int, std::string> options{
        .workers = workers, .stop = stop.get_token(), .on_progress = stop_at_the_end};
    CHECK(parallel_map(text, sized, options).ok());
    stop = {};
    auto again = options;
    again.stop = stop.get_token();
    CHECK(parallel_map(text, list, again).ok());
  }
}

TEST_CASE("R5 the n-th failure aborts the run also where it was the last item") {
  for (const std::size_t workers : {1U, 3U}) {
    const MapOptions<int, std::string> options{.workers = workers, .max_errors = 1};
    const auto result = parallel_map(text_or_failure, std::views::iota(2, 3), options);
    CHECK(result.aborted());
    CHECK_THROWS_AS(result.values(), Aborted);
    CHECK(parallel_map(text_or_failure, std::list<int>{2}, options).aborted());
    CHECK(parallel_map(text_or_failure, std::forward_list<int>{2}, options).aborted());
    CHECK(parallel_map(text_or_failure, std::views::iota(0, 2), options).ok());
  }
}

// Result types ---------------------------------------------------------------------------------------

TEST_CASE("R7 values are a span over contiguous memory also where the input had no size") {
  SinglePass source{1000, [](int i) { return i; }};
  const auto result = parallel_map(text, source, {.workers = 3});
  const std::span<const std::string> values = result.values();
  REQUIRE(values.size() == 1000);
  for (std::size_t i = 0; i < 1000; ++i) REQUIRE(&values[i] == &result.at(i));
  for (std::size_t i = 0; i < 1000; ++i) REQUIRE(values[i] == text(static_cast<int>(i)));
}

TEST_CASE("R7 moving the values out never copies them") {
  Counts counts;
  const auto make = [&](int i) { return Counted{counts, i}; };
  auto result = parallel_map(make, std::views::iota(0, 50));
  const std::vector<Counted> values = std::move(result).values();
  CHECK(values.size() == 50);
  CHECK(values[49].value == 49);
  auto more = parallel_map(make, std::views::iota(0, 50));
  CHECK(std::move(more).ok_values()[7].value == 7);
  auto items = parallel_map(make, std::views::iota(0, 50)).item_results();
  CHECK(std::move(items[7]).value().value == 7);
  CHECK(counts.copied == 0);
}

TEST_CASE("R7 copies are made by what copies and nothing else") {
  Counts counts;
  const auto make = [&](int i) {
    if (i == 3) throw std::runtime_error("three");
    return Counted{counts, i};
  };
  const auto result = parallel_map(make, std::views::iota(0, 5));
  CHECK(counts.copied == 0);
  CHECK(result.ok_values().size() == 4);
  CHECK(counts.copied == 4);
  CHECK(result.item_results().size() == 5);
  CHECK(counts.copied == 8);
  const MapResult<Counted> copy = result;
  CHECK(counts.copied == 12);
  CHECK(result.successes().size() == 4);
  CHECK(&result.at(4) != &copy.at(4));
  CHECK(counts.copied == 12);
}

TEST_CASE("R7 results may be bool") {
  const auto odd = [](int i) { return i % 2 == 1; };
  auto result = parallel_map(odd, std::views::iota(0, 200), {.workers = 4});
  static_assert(std::is_same_v<decltype(result.values()), std::span<const bool>>);
  for (std::size_t i = 0; i < 200; ++i) REQUIRE(result[i] == (i % 2 == 1));
  CHECK(result.item_results()[3].value());
  CHECK(result.ok_values() == std::move(result).values());
  SinglePass source{200, [](int i) { return i; }};
  CHECK(parallel_map(odd, source).values()[199]);
}

TEST_CASE("R7 results may be move-only") {
  const auto make = [](int i) { return std::make_unique<int>(i); };
  auto result = parallel_map(make, std::views::iota(0, 3));
  static_assert(!std::is_copy_constructible_v<MapResult<std::unique_ptr<int>>>);
  static_assert(!std::is_copy_assignable_v<MapResult<std::unique_ptr<int>>>);
  static_assert(std::is_copy_constructible_v<MapResult<std::string>>);
  CHECK(*result.values()[2] == 2);
  for (const auto& [index, value] : result.successes()) CHECK(*value == static_cast<int>(index));
  auto moved = std::move(result).values();
  CHECK(*moved[1] == 1);
  CHECK(*std::move(parallel_map(make, std::views::iota(0, 3)).ok_values()[2]) == 2);
  auto items = parallel_map(make, std::views::iota(0, 3)).item_results();
  const std::unique_ptr<int> taken = std::move(items[1]).value();
  CHECK(*taken == 1);
}

TEST_CASE("R7 results may be monostate") {
  auto result = parallel_map([](int) {}, std::views::iota(0, 3));
  CHECK(result.values().size() == 3);
  CHECK(result[2] == std::monostate{});
  CHECK(result.item_results()[2].value() == std::monostate{});
  CHECK(std::move(result).values() == std::vector<std::monostate>(3));
}

TEST_CASE("R7 results may be of a type that anything converts to") {
  const auto make = [](int i) { return std::any(i); };
  auto result = parallel_map(make, std::views::iota(0, 5));
  CHECK(std::any_cast<int>(result[4]) == 4);
  CHECK(result.ok_values().size() == 5);
  CHECK(std::any_cast<int>(result.item_results()[4].value()) == 4);
  const MapResult<std::any> copy = result;
  CHECK(std::any_cast<int>(copy[4]) == 4);
  const std::vector<std::any> values = std::move(result).values();
  REQUIRE(values.size() == 5);
  REQUIRE(values[4].type() == typeid(int));
  CHECK(std::any_cast<int>(values[4]) == 4);
}

TEST_CASE("R7 results may be optionals and errors and pointers and vectors") {
  const auto maybe = [](int i) { return i % 2 == 0 ? std::optional<int>(i) : std::nullopt; };
  const auto optionals = parallel_map(maybe, std::views::iota(0, 4));
  CHECK(std::move(parallel_map(maybe, std::views::iota(0, 4))).values()[2] == 2);
  CHECK_FALSE(optionals[1].has_value());
  CHECK_FALSE(optionals.item_results()[1].value().has_value());
  const auto error = [](int i) { return Error{std::make_exception_ptr(i)}; };
  const auto errors = parallel_map(error, std::views::iota(0, 4));
  CHECK(errors.ok());
  CHECK(*errors.item_results()[3].value().get_if<int>() == 3);
  static const int numbers[]{0, 1, 2, 3};
  const auto pointer = [](int i) { return &numbers[i]; };
  CHECK(*parallel_map(pointer, std::views::iota(0, 4)).item_results()[3].value() == 3);
  const auto repeat = [](int i) { return std::vector<int>(static_cast<std::size_t>(i), i); };
  CHECK(parallel_map(repeat, std::views::iota(0, 4)).values()[3] == std::vector{3, 3, 3});
}

TEST_CASE("R7 results may be over-aligned") {
  struct alignas(64) Aligned {
    int value;
  };
  const auto make = [](int i) { return Aligned{i}; };
  const auto aligned = [](const Aligned& value) { return reinterpret_cast<std::uintptr_t>(&value) % 64 == 0; };
  auto result = parallel_map(make, std::views::iota(0, 10), {.workers = 3});
  SinglePass source{300, [](int i) { return i; }};
  const auto pulled = parallel_map(make, source, {.workers = 3});
  const auto copy = pulled;
  for (const auto* each : {&std::as_const(result), &pulled, &copy}) {
    for (const auto& [index, value] : each->successes()) {
      REQUIRE(aligned(value));
      REQUIRE(value.value == static_cast<int>(index));
    }
  }
  CHECK(std::ranges::all_of(result.ok_values(), aligned));
  SinglePass aligned_items{300, make};
  CHECK(std::ranges::all_of(parallel_map(aligned, aligned_items, {.workers = 3}).values(), std::identity{}));
}

// Receipts -------------------------------------------------------------------------------------------

TEST_CASE("R8 attempts and durations are exact where they are measured") {
  const auto third_time = [](int i, const Task& task) {
    if (task.attempt < 3 && i == 1) throw std::runtime_error("again");
    if (i == 2) throw std::runtime_error("never");
    return i;
  };
  for (const std::size_t workers : {1U, 3U}) {
    const auto result = parallel_map(third_time, std::views::iota(0, 3),
                                     {.workers = workers, .retry = Retry{.attempts = 4, .backoff = 1ns}});
    const auto items = result.item_results();
    REQUIRE(items.size() == 3);
    CHECK(items[0].attempts == 1);
    CHECK(items[1].attempts == 3);
    CHECK(items[2].attempts == 4);
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(items[i].index == i);
      CHECK(items[i].duration > 0s);
      CHECK(items[i].ok() == (i < 2));
      CHECK(items[i].key == ItemKey{});
    }
    CHECK(items[1].value() == 1);
    CHECK(items[2].error().what() == "never");
    CHECK_THROWS_AS(items[2].value(), std::runtime_error);
    CHECK(message_of<std::logic_error>([&] { items[1].error(); }) != "nothing was thrown");
  }
}

TEST_CASE("R8 a plain map counts one attempt for what ran and none for what did not") {
  const auto items = cancelled_after_three().item_results();
  REQUIRE(items.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) CHECK(items[i].attempts == (i < 3 ? 1 : 0));
  CHECK(items[4].error().is<Cancelled>());
  CHECK_FALSE(items[4].ok());
}

TEST_CASE("R8 item results are read in all value categories") {
  auto items = six_with_two_failures().item_results();
  const auto& constant = items[0];
  static_assert(std::is_same_v<decltype(constant.value()), const std::string&>);
  static_assert(std::is_same_v<decltype(std::move(items[0]).value()), std::string&&>);
  CHECK(constant.value() == "value 0");
  const std::string taken = std::move(items[1]).value();
  CHECK(taken == "value 1");
  CHECK_THROWS_AS(std::move(items[2]).value(), std::runtime_error);
  ItemResult<std::string> copy = items[0];
  CHECK(&copy.value() != &items[0].value());
  CHECK(copy.value() == "value 0");
  copy = items[2];
  CHECK(copy.error().ptr() == items[2].error().ptr());
  copy = std::move(items[3]);
  CHECK(copy.value() == "value 3");
  const ItemResult<std::string> empty;
  CHECK_FALSE(empty.ok());
  CHECK_THROWS_AS(empty.value(), std::logic_error);
  CHECK_THROWS_AS(empty.error(), std::logic_error);
}

TEST_CASE("R8 copies of what on_result sees outlive the run") {
  std::vector<ItemResult<std::string>> kept;
  {
    const auto result =
        parallel_map(text_or_failure, std::views::iota(0, 6),
                     {.workers = 3, .on_result = [&](const ItemResult<std::string>& item) { kept.push_back(item); }});
  }
  std::ranges::sort(kept, {}, &ItemResult<std::string>::index);
  REQUIRE(kept.size() == 6);
  CHECK(kept[4].value() == "value 4");
  CHECK(kept[5].error().what() == "item 5");
}

// Copies, moves, lifetimes ---------------------------------------------------------------------------

TEST_CASE("R1 a result can be moved and copied whatever it holds") {
  const auto same_as_fresh = [](const MapResult<std::string>& result) {
    return result.size() == 6 && result.failures().size() == 2 && result.at(4) == "value 4" &&
           result.failures()[1].index == 5 && result.complete() && result.item_results()[1].attempts == 1;
  };
  auto first = six_with_two_failures();
  const MapResult<std::string> copy = first;
  CHECK(same_as_fresh(copy));
  CHECK(same_as_fresh(first));
  auto second = std::move(first);
  CHECK(same_as_fresh(second));
  CHECK(first.size() == 0);
  CHECK(first.failures().empty());
  CHECK(first.successes().empty());
  first = copy;
  CHECK(same_as_fresh(first));
  first = std::move(second);
  CHECK(same_as_fresh(first));
  auto& alias = first;
  first = alias;
  CHECK(same_as_fresh(first));
  first = std::move(alias);
  CHECK(same_as_fresh(first));
  first = cancelled_after_three();
  CHECK(first.cancelled());
  MapResult<std::string> from_truncated = first;
  CHECK(from_truncated.cancelled());
  CHECK_THROWS_AS(from_truncated.at(5), Cancelled);
  from_truncated = {};
  CHECK(from_truncated.ok());
  CHECK(from_truncated.empty());
}

TEST_CASE("R1 a measured result keeps its receipts and keys when it is copied and moved") {
  const auto make = [] {
    return parallel_map(text_or_failure, std::views::iota(0, 3),
                        {.workers = 2, .item_key = [](int i) { return ItemKey{"key " + std::to_string(i)}; }});
  };
  const auto result = make();
  const auto copy = result;
  auto moved = make();
  moved = copy;
  for (const auto* each : {&result, &copy, &std::as_const(moved)}) {
    const auto items = each->item_results();
    CHECK(items[2].key == ItemKey{std::string("key 2")});
    CHECK(items[2].attempts == 1);
    CHECK(items[2].duration == result.item_results()[2].duration);
  }
}

TEST_CASE("R1 a copy whose element throws leaves nothing behind") {
  Counts counts;
  struct ThrowsOnCopy {
    Counted counted;
    explicit ThrowsOnCopy(Counts& of, int i) : counted(of, i) {}
    ThrowsOnCopy(ThrowsOnCopy&&) = default;
    ThrowsOnCopy(const ThrowsOnCopy& other) : counted(other.counted) {
      if (counted.value == 7) throw std::runtime_error("no copies of 7");
    }
  };
  const auto make = [&](int i) {
    if (i == 3) throw std::runtime_error("three");
    return ThrowsOnCopy{counts, i};
  };
  {
    const auto result = parallel_map(make, std::views::iota(0, 10));
    CHECK(counts.alive() == 9);
    CHECK_THROWS_AS(MapResult<ThrowsOnCopy>(result), std::runtime_error);
    CHECK_THROWS_AS(result.ok_values(), std::runtime_error);
    CHECK_THROWS_AS(result.item_results(), std::runtime_error);
    CHECK(counts.alive() == 9);
    MapResult<ThrowsOnCopy> other;
    CHECK_THROWS_AS(other = result, std::runtime_error);
    CHECK(other.empty());
  }
  CHECK(counts.alive() == 0);
}

TEST_CASE("R1 every result is destroyed exactly once on every path") {
  const auto fail_thirds = [](Counts& counts) {
    return [&counts](int i) {
      if (i % 3 == 2) throw std::runtime_error("third");
      return Counted{counts, i};
    };
  };
  for (const std::size_t workers : {1U, 4U}) {
    for (const int size : {0, 1, 63, 64, 65, 200}) {
      Counts counts;
      const auto fn = fail_thirds(counts);
      const auto kept = static_cast<int>(size - size / 3);
      const auto run = [&](MapOptions<int, Counted> options, bool throws) {
        options.workers = workers;
        const auto each = [&](auto&& items) {
          try {
            auto result = parallel_map(fn, items, options);
            CHECK_FALSE(throws);
            if (result.complete()) CHECK(counts.alive() == kept);
            const auto items_of_it = std::move(result).item_results();
          } catch (const std::logic_error&) {
            CHECK(throws);
          }
          CHECK(counts.alive() == 0);
        };
        SinglePass source{size, [](int i) { return i; }};
        each(std::views::iota(0, size));
        each(std::list<int>(std::views::iota(0, size).begin(), std::views::iota(0, size).end()));
        each(source);
        CHECK(source.mistakes == 0);
      };
      std::stop_source stop;
      run({}, false);
      run({.retry = Retry{.attempts = 2, .backoff = 0s}}, false);
      run({.max_errors = 3}, false);
      run({.timeout = 0s}, false);
      run({.stop = stop.get_token(), .on_progress = [&](std::size_t, std::size_t) { stop.request_stop(); }}, false);
      run({.item_key = [](int i) { return ItemKey{i}; }}, false);
      run({.on_result = [](const ItemResult<Counted>&) {}}, false);
      if (size == 0) continue;
      run({.on_result = [](const ItemResult<Counted>&) { throw std::logic_error("callback"); }}, true);
      run({.on_progress =
               [&](std::size_t done, std::size_t) {
                 if (static_cast<int>(done) == size) throw std::logic_error("last callback");
               }},
          true);
      run({.item_key = [](int i) { return i == 0 ? throw std::logic_error("key") : ItemKey{i}; }}, true);
      run({.worker_init = [] { throw std::logic_error("worker_init"); }}, true);
    }
  }
}

TEST_CASE("R1 every result is destroyed exactly once where the source throws") {
  Counts counts;
  const auto make = [&](int i) { return Counted{counts, i}; };
  for (const std::size_t workers : {1U, 4U}) {
    for (const int at : {0, 1, 64, 150}) {
      SinglePass source{200, [](int i) { return i; }};
      source.on_read = [at](int i) {
        if (i == at) throw std::out_of_range("source");
      };
      CHECK_THROWS_AS(parallel_map(make, source, {.workers = workers}), std::out_of_range);
      CHECK(counts.alive() == 0);
      auto by_index = std::views::iota(0, 200) | std::views::transform([at](int i) {
                        if (i == at) throw std::out_of_range("source");
                        return i;
                      });
      CHECK_THROWS_AS(parallel_map(make, by_index, {.workers = workers}), std::out_of_range);
      CHECK_THROWS_AS(parallel_map(make, by_index, {.workers = workers, .retry = Retry{}}), std::out_of_range);
      CHECK(counts.alive() == 0);
    }
  }
}

TEST_CASE("R1 every result is destroyed exactly once where moving one throws") {
  // Only an input without a size makes the library move results.
  struct ThrowsOnMove {
    Counted counted;
    explicit ThrowsOnMove(Counts& counts, int i) : counted(counts, i) {}
    ThrowsOnMove(ThrowsOnMove&& other) : counted(std::move(other.counted)) {
      if (counted.value == 100) throw std::runtime_error("no moves of 100");
    }
  };
  Counts counts;
  const auto make = [&](int i) {
    if (i == 30) throw std::runtime_error("thirty");
    return ThrowsOnMove{counts, i};
  };
  for (const std::size_t workers : {1U, 4U}) {
    SinglePass source{150, [](int i) { return i; }};
    CHECK_THROWS_AS(parallel_map(make, source, {.workers = workers}), std::runtime_error);
    CHECK(counts.alive() == 0);
  }
}

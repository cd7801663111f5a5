// R6 and R8 in words: the summary of a run, to the letter.
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <pyarallel.hpp>
#include <pyarallel/summary.hpp>
#include <ranges>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/fake_clock.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace std::chrono_literals;
using support::ClockOverride;
using support::FakeClock;
using support::Watchdog;

namespace {

/// fn(0) ... fn(count - 1), where nothing is measured.
template <class F>
auto plain_map(F fn, int count) {
  return parallel_map(fn, std::views::iota(0, count), {.workers = 1});
}

/// The summary of a run in which item i took so long as take(i) says.
template <class Take>
std::string summary_of_times(int count, Take take) {
  FakeClock clock;
  const ClockOverride use{clock};
  return summary(parallel_map([&](int i) { clock.advance(take(i)); }, std::views::iota(0, count),
                              {.executor = Executor::sequential, .retry = Retry{.attempts = 1}}));
}

/// The summary of a run in which each item failed with one of these texts.
std::string summary_of_texts(const std::vector<std::string>& texts) {
  return summary(plain_map([&](int i) { throw std::runtime_error(texts.at(static_cast<std::size_t>(i))); },
                           static_cast<int>(texts.size())));
}

struct Down : std::exception {
  const char* what() const noexcept override { return "down"; }
};

}  // namespace

// Outcomes -------------------------------------------------------------------------------------------

TEST_CASE("R6 the summary of a plain run that succeeded is its size and status") {
  const Watchdog watchdog;
  CHECK(summary(plain_map([](int i) { return i; }, 1000)) == "1000 items: completed\n  1000 succeeded");
  CHECK(summary(plain_map([](int i) { return i; }, 1)) == "1 item: completed\n  1 succeeded");
}

TEST_CASE("R6 the summary of an empty run is one line") {
  const Watchdog watchdog;
  CHECK(summary(MapResult<int>{}) == "0 items: completed");
  CHECK(summary(parallel_map([](int i) { return i; }, std::vector<int>{})) == "0 items: completed");
  auto left = plain_map([](int i) { return std::to_string(i); }, 3);
  const auto taken = std::move(left);
  CHECK(summary(left) == "0 items: completed");
  CHECK(summary(taken) == "3 items: completed\n  3 succeeded");
}

TEST_CASE("R6 the summary works for results of every type") {
  const Watchdog watchdog;
  const auto odd = [](int i) {
    if (i == 1) throw Down();
  };
  const std::string expected =
      "3 items: completed\n"
      "  2 succeeded\n"
      "  1 failed\n"
      "failures:\n"
      "  1 (anonymous namespace)::Down: down\n"
      "    at 1";
  CHECK(summary(plain_map(odd, 3)) == expected);
  CHECK(summary(plain_map([&](int i) { return odd(i), i == 0; }, 3)) == expected);
  CHECK(summary(plain_map([&](int i) { return odd(i), std::make_unique<int>(i); }, 3)) == expected);
  const auto copied = plain_map([&](int i) { return odd(i), std::to_string(i); }, 3);
  CHECK(summary(MapResult(copied)) == expected);
}

// Failures -------------------------------------------------------------------------------------------

TEST_CASE("R6 the summary groups failures by type and text with the most frequent first") {
  const Watchdog watchdog;
  const auto fn = [](int i) {
    if (i % 10 == 3) throw std::runtime_error("connection reset");
    if (i % 10 == 4) throw std::out_of_range("connection reset");
    if (i == 50) throw std::runtime_error("rare");
    if (i == 15) throw std::runtime_error("as rare");
    return i;
  };
  CHECK(summary(plain_map(fn, 100)) ==
        "100 items: completed\n"
        "  78 succeeded\n"
        "  22 failed\n"
        "failures:\n"
        "  10 std::runtime_error: connection reset\n"
        "     at 3, 13, 23, 33, 43, ... 5 more\n"
        "  10 std::out_of_range: connection reset\n"
        "     at 4, 14, 24, 34, 44, ... 5 more\n"
        "   1 std::runtime_error: as rare\n"
        "     at 15\n"
        "   1 std::runtime_error: rare\n"
        "     at 50");
}

TEST_CASE("R6 the summary shows five indexes and counts the rest") {
  const Watchdog watchdog;
  CHECK(summary_of_texts(std::vector<std::string>(5, "no")) ==
        "5 items: completed\n"
        "  5 failed\n"
        "failures:\n"
        "  5 std::runtime_error: no\n"
        "    at 0, 1, 2, 3, 4");
  CHECK(summary_of_texts(std::vector<std::string>(6, "no")) ==
        "6 items: completed\n"
        "  6 failed\n"
        "failures:\n"
        "  6 std::runtime_error: no\n"
        "    at 0, 1, 2, 3, 4, ... 1 more");
}

TEST_CASE("R6 the summary shows ten kinds of failure and counts the rest") {
  const Watchdog watchdog;
  std::vector<std::string> texts;
  for (int i = 0; i < 10; ++i) texts.push_back("kind " + std::to_string(i));
  const auto first_kinds = [&](std::size_t count) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += fmt::format("\n  1 std::runtime_error: {}\n    at {}", texts[i], i);
    return text;
  };
  CHECK(summary_of_texts(texts) == "10 items: completed\n  10 failed\nfailures:" + first_kinds(10));
  texts.push_back("kind 10");
  CHECK(summary_of_texts(texts) ==
        "11 items: completed\n  11 failed\nfailures:" + first_kinds(10) + "\n  and 1 more kind, of 1 failure");
  texts.insert(texts.end(), {"kind 10", "kind 10", "kind 11", "kind 11"});
  CHECK(summary_of_texts(texts) ==
        "15 items: completed\n  15 failed\nfailures:\n"
        "  3 std::runtime_error: kind 10\n    at 10, 11, 12\n"
        "  2 std::runtime_error: kind 11\n    at 13, 14" +
            first_kinds(8) + "\n  and 2 more kinds, of 2 failures");
}

TEST_CASE("R6 the summary names the type of what is no std::exception") {
  const Watchdog watchdog;
  const auto fn = [](int i) {
    if (i < 3) throw i;
    throw "text";
  };
  CHECK(summary(plain_map(fn, 4)) ==
        "4 items: completed\n"
        "  4 failed\n"
        "failures:\n"
        "  3 int: unknown exception\n"
        "    at 0, 1, 2\n"
        "  1 char const*: unknown exception\n"
        "    at 3");
}

TEST_CASE("R6 the summary tells the types that errors had in their workers") {
  const Watchdog watchdog;
  const auto fn = [](int i) { throw RemoteError(i == 1 ? "shop::SoldOut" : "shop::Closed", "try later"); };
  CHECK(summary(plain_map(fn, 3)) ==
        "3 items: completed\n"
        "  3 failed\n"
        "failures:\n"
        "  2 shop::Closed (pyarallel::RemoteError): try later\n"
        "    at 0, 2\n"
        "  1 shop::SoldOut (pyarallel::RemoteError): try later\n"
        "    at 1");
}

TEST_CASE("R6 the summary shows control characters in texts as escapes") {
  const Watchdog watchdog;
  CHECK(summary_of_texts({"line 1\nline 2\r\n\tred: \x1b[31m, \x7f, \xc3\xbc"}) ==
        "1 item: completed\n"
        "  1 failed\n"
        "failures:\n"
        "  1 std::runtime_error: line 1\\nline 2\\r\\n\\tred: \\x1b[31m, \\x7f, \xc3\xbc\n"
        "    at 0");
}

TEST_CASE("R6 the summary cuts very long texts between two characters") {
  const Watchdog watchdog;
  const auto shown = [](const std::string& text) {
    const std::string all = summary_of_texts({text});
    const std::string before = "runtime_error: ";
    const auto first = all.find(before) + before.size();
    return all.substr(first, all.find('\n', first) - first);
  };
  const auto times = [](std::size_t count, const std::string& part) {
    std::string text;
    for (std::size_t i = 0; i < count; ++i) text += part;
    return text;
  };
  CHECK(shown(times(200, "x")) == times(200, "x"));
  CHECK(shown(times(201, "x")) == times(200, "x") + "...");
  CHECK(shown(times(1'000'000, "x")) == times(200, "x") + "...");
  CHECK(shown("x" + times(100, "\xc3\xbc")) == "x" + times(100, "\xc3\xbc"));
  CHECK(shown("x" + times(101, "\xc3\xbc")) == "x" + times(100, "\xc3\xbc") + "...");
  CHECK(shown(times(1000, "\xbc")).size() == 206);  // which is not UTF-8
  CHECK(shown(times(1000, "\n")) == times(100, "\\n") + "...");
  CHECK(shown("").empty());
  // What is cut still tells one kind from another.
  CHECK(summary_of_texts({times(300, "x") + "1", times(300, "x") + "2"}) ==
        "2 items: completed\n  2 failed\nfailures:\n  1 std::runtime_error: " + times(200, "x") +
            "...\n    at 0\n  1 std::runtime_error: " + times(200, "x") + "...\n    at 1");
}

// Truncated runs -------------------------------------------------------------------------------------

TEST_CASE("R6 the summary of an aborted run counts what never ran") {
  const Watchdog watchdog;
  const auto fn = [](int i) {
    if (i % 2 == 1) throw std::runtime_error("odd");
    return i;
  };
  CHECK(summary(parallel_map(fn, std::views::iota(0, 200), {.workers = 1, .max_errors = 3})) ==
        "200 items: aborted\n"
        "    3 succeeded\n"
        "    3 failed\n"
        "  194 never ran: the run was aborted after max_errors = 3\n"
        "failures:\n"
        "  3 std::runtime_error: odd\n"
        "    at 1, 3, 5");
  CHECK(summary(parallel_map(fn, std::views::iota(0, 2), {.workers = 1, .max_errors = 1})) ==
        "2 items: aborted\n"
        "  1 succeeded\n"
        "  1 failed\n"
        "failures:\n"
        "  1 std::runtime_error: odd\n"
        "    at 1");
}

TEST_CASE("R6 the summary of a cancelled run says that it was stopped") {
  const Watchdog watchdog;
  std::stop_source stop;
  const auto fn = [&](int i) {
    if (i == 2) stop.request_stop();
    return i;
  };
  CHECK(summary(parallel_map(fn, std::views::iota(0, 10), {.workers = 1, .stop = stop.get_token()})) ==
        "10 items: cancelled\n"
        "  3 succeeded\n"
        "  7 never ran: the run was stopped first");
}

TEST_CASE("R6 the summary of a run that timed out names the timeout") {
  const Watchdog watchdog;
  CHECK(summary(parallel_map([](int i) { return i; }, std::views::iota(0, 10), {.timeout = 0s})) ==
        "10 items: timed out\n"
        "  10 never ran: the run's timeout of 0s was reached first");
  FakeClock clock;
  const ClockOverride use{clock};
  const auto fn = [&](int) { clock.advance(2s); };
  CHECK(summary(parallel_map(fn, std::views::iota(0, 10), {.workers = 1, .timeout = 5s})) ==
        "10 items: timed out\n"
        "  3 succeeded\n"
        "  7 never ran: the run's timeout of 5s was reached first\n"
        "durations: p50 2s, p90 2s, p99 2s, max 2s (nearest rank)");
}

TEST_CASE("R6 the summary counts what was killed while it ran apart from what failed") {
  detail::Summary run;
  run.size = 4;
  run.status = RunStatus::cancelled;
  run.never_ran = std::make_exception_ptr(Cancelled("never ran: the run was stopped first"));
  run.interrupted = std::make_exception_ptr(Cancelled("was killed while it ran: the run was stopped first"));
  run.failures = {{1, Error{run.interrupted}},
                  {2, Error{std::make_exception_ptr(Cancelled("never ran: the run was stopped first"))}},
                  {3, Error{run.never_ran}}};
  CHECK(detail::text_of(detail::figures_of(run)) ==
        "4 items: cancelled\n"
        "  1 succeeded\n"
        "  1 failed\n"
        "  1 never ran: the run was stopped first\n"
        "  1 interrupted: the run was stopped first\n"
        "failures:\n"
        "  1 pyarallel::Cancelled: never ran: the run was stopped first\n"
        "    at 2");
}

// Receipts -------------------------------------------------------------------------------------------

TEST_CASE("R8 the summary counts attempts where there was more than one") {
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  const Retry retry{.attempts = 3, .backoff = 1s, .jitter = false};
  const auto fn = [](int i, const Task& task) {
    if (i % 10 == 9) throw std::runtime_error("never");
    if (i % 5 == 3 && task.attempt == 1) throw std::runtime_error("once");
    return i;
  };
  CHECK(summary(parallel_map(fn, std::views::iota(0, 20), {.workers = 1, .retry = retry})) ==
        "20 items: completed\n"
        "  18 succeeded\n"
        "   2 failed\n"
        "failures:\n"
        "  2 std::runtime_error: never\n"
        "    at 9, 19\n"
        "attempts: 1: 14, 2: 4, 3: 2\n"
        "durations: p50 0ns, p90 1s, p99 3s, max 3s (nearest rank)");
  // Where all took as many, and where some never ran.
  const auto fails = [](int) { throw std::runtime_error("never"); };
  CHECK(summary(parallel_map(fails, std::views::iota(0, 20), {.workers = 1, .retry = retry, .max_errors = 2})) ==
        "20 items: aborted\n"
        "   2 failed\n"
        "  18 never ran: the run was aborted after max_errors = 2\n"
        "failures:\n"
        "  2 std::runtime_error: never\n"
        "    at 0, 1\n"
        "attempts: 3: 2\n"
        "durations: p50 3s, p90 3s, p99 3s, max 3s (nearest rank)");
}

TEST_CASE("R8 the summary shows ten numbers of attempts and counts the rest") {
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  const auto attempts = [](int count) {
    const auto fn = [](int i, const Task& task) {
      if (task.attempt <= i) throw std::runtime_error("not yet");
    };
    const std::string text = summary(
        parallel_map(fn, std::views::iota(0, count), {.workers = 1, .retry = Retry{.attempts = 100, .backoff = 0s}}));
    return text.substr(text.find("attempts"));
  };
  CHECK(attempts(10) == "attempts: 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1");
  CHECK(attempts(12) == "attempts: 1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10 or more: 3");
}

TEST_CASE("R8 the summary gives durations by nearest rank") {
  const Watchdog watchdog;
  const auto of = [](int count) {
    // In an order that is not theirs: 7 and the counts have no common factor.
    const std::string text = summary_of_times(count, [&](int i) { return 1ms * (i * 7 % count + 1); });
    const std::string before =
        fmt::format("{} item{}: completed\n  {} succeeded\n", count, count == 1 ? "" : "s", count);
    CHECK(text.substr(0, before.size()) == before);
    return text.substr(before.size());
  };
  CHECK(of(1) == "durations: p50 1ms, p90 1ms, p99 1ms, max 1ms (nearest rank)");
  CHECK(of(2) == "durations: p50 1ms, p90 2ms, p99 2ms, max 2ms (nearest rank)");
  CHECK(of(10) == "durations: p50 5ms, p90 9ms, p99 10ms, max 10ms (nearest rank)");
  CHECK(of(100) == "durations: p50 50ms, p90 90ms, p99 99ms, max 100ms (nearest rank)");
  CHECK(of(101) == "durations: p50 51ms, p90 91ms, p99 100ms, max 101ms (nearest rank)");
  CHECK(of(600) == "durations: p50 300ms, p90 540ms, p99 594ms, max 600ms (nearest rank)");
}

TEST_CASE("R8 the summary gives no durations where none were measured") {
  const Watchdog watchdog;
  CHECK(summary_of_times(3, [](int) { return 0ns; }) == "3 items: completed\n  3 succeeded");
  CHECK(summary_of_times(3, [](int i) { return i * 1ns; }) ==
        "3 items: completed\n  3 succeeded\ndurations: p50 1ns, p90 2ns, p99 2ns, max 2ns (nearest rank)");
}

TEST_CASE("R8 the summary takes the durations of items that were measured together") {
  detail::Summary run;
  run.size = 10;
  run.status = RunStatus::aborted;
  run.blocks = {{.first = 0, .count = 6, .duration = 3ms}, {.first = 6, .count = 2, .duration = 1ms}};
  run.never_ran = std::make_exception_ptr(Aborted("never ran: enough"));
  run.failures = {{5, Error{std::make_exception_ptr(Down())}}, {8, Error{run.never_ran}}, {9, Error{run.never_ran}}};
  CHECK(detail::text_of(detail::figures_of(run)) ==
        "10 items: aborted\n"
        "  7 succeeded\n"
        "  1 failed\n"
        "  2 never ran: enough\n"
        "failures:\n"
        "  1 (anonymous namespace)::Down: down\n"
        "    at 5\n"
        "durations: p50 3ms, p90 3ms, p99 3ms, max 3ms (nearest rank)");
}

TEST_CASE("R8 the summary gives durations in the unit that suits them") {
  using detail::short_text_of;
  CHECK(short_text_of(0ns) == "0ns");
  CHECK(short_text_of(999ns) == "999ns");
  CHECK(short_text_of(1us) == "1us");
  CHECK(short_text_of(1234ns) == "1.23us");
  CHECK(short_text_of(12'340ns) == "12.3us");
  CHECK(short_text_of(123'400ns) == "123us");
  CHECK(short_text_of(999'499ns) == "999us");
  CHECK(short_text_of(999'500ns) == "1ms");
  CHECK(short_text_of(1500us) == "1.5ms");
  CHECK(short_text_of(999'499us) == "999ms");
  CHECK(short_text_of(999'500us) == "1s");
  CHECK(short_text_of(59'949ms) == "59.9s");
  CHECK(short_text_of(59'990ms) == "60s");
  CHECK(short_text_of(60s) == "1min");
  CHECK(short_text_of(90s) == "1.5min");
  CHECK(short_text_of(100h) == "6000min");
  CHECK(short_text_of(1000min) == "1000min");
  CHECK(short_text_of(999min + 29s) == "999min");
  CHECK(short_text_of(Duration::max()) == "153722867min");
}

// HTTP: what a Retry-After header says, and which errors the prewired retry understands.
#include <chrono>
#include <cstddef>
#include <limits>
#include <map>
#include <optional>
#include <pyarallel.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "support/fake_clock.hpp"

using namespace std::chrono_literals;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::HttpError;
using pyarallel::HttpRetry;
using pyarallel::Limiter;
using pyarallel::parallel_map;
using pyarallel::parse_retry_after;
using pyarallel::RateLimit;
using pyarallel::Retry;
using std::chrono::sys_days;
using std::chrono::system_clock;
using support::ClockOverride;
using support::FakeClock;

namespace {

using Times = std::vector<Duration>;

// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
constexpr sys_days november_6 = sys_days{1994y / 11 / 6};
constexpr system_clock::time_point example = november_6 + 8h + 49min + 37s;

constexpr std::nullopt_t malformed = std::nullopt;

}  // namespace

TEST_CASE("T3 Retry-After in seconds") {
  CHECK(parse_retry_after("0") == 0s);
  CHECK(parse_retry_after("1") == 1s);
  CHECK(parse_retry_after("120") == 120s);
  CHECK(parse_retry_after("007") == 7s);
  CHECK(parse_retry_after("000000000000000000000000000000000005") == 5s);
  CHECK(parse_retry_after("31536000") == 24h * 365);
}

TEST_CASE("T3 Retry-After may have blanks around it") {
  CHECK(parse_retry_after(" 120") == 120s);
  CHECK(parse_retry_after("120 ") == 120s);
  CHECK(parse_retry_after(" \t 120\t \t") == 120s);
  CHECK(parse_retry_after("\tSun, 06 Nov 1994 08:49:37 GMT ", example - 5s) == 5s);
  CHECK(parse_retry_after("120\r\n") == malformed);
  CHECK(parse_retry_after("1 20") == malformed);
}

TEST_CASE("T3 Retry-After beyond what a Duration holds is the longest") {
  CHECK(parse_retry_after("9223372036") == 9223372036s);
  CHECK(parse_retry_after("9223372037") == Duration::max());
  CHECK(parse_retry_after("9223372036854775807") == Duration::max());
  CHECK(parse_retry_after("9223372036854775808") == Duration::max());
  CHECK(parse_retry_after("18446744073709551617") == Duration::max());
  CHECK(parse_retry_after(std::string(1000, '9')) == Duration::max());
  CHECK(parse_retry_after("Fri, 31 Dec 9999 23:59:59 GMT", example) == Duration::max());
}

TEST_CASE("T3 Retry-After as a date in all three forms") {
  for (const std::string_view text :
       {"Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"}) {
    CAPTURE(std::string(text));
    CHECK(parse_retry_after(text, example - 90s) == 90s);
    CHECK(parse_retry_after(text, example - 1ms) == 1ms);
    CHECK(parse_retry_after(text, example - 1500ms) == 1500ms);
    CHECK(parse_retry_after(text, example - 24h * 365) == 24h * 365);
    CHECK(parse_retry_after(text, example) == 0s);
    CHECK(parse_retry_after(text, example + 1ns * 1'000'000) == 0s);
    CHECK(parse_retry_after(text, example + 24h) == 0s);
  }
  CHECK(parse_retry_after("Wed Nov 16 08:49:37 1994", example) == 24h * 10);
  CHECK(parse_retry_after("Wednesday, 16-Nov-94 08:49:37 GMT", example) == 24h * 10);
}

TEST_CASE("T3 Retry-After knows every month") {
  const std::map<std::string, unsigned> months{{"Jan", 1}, {"Feb", 2},  {"Mar", 3},  {"Apr", 4},
                                               {"May", 5}, {"Jun", 6},  {"Jul", 7},  {"Aug", 8},
                                               {"Sep", 9}, {"Oct", 10}, {"Nov", 11}, {"Dec", 12}};
  for (const auto& [name, number] : months) {
    const sys_days day{2026y / std::chrono::month{number} / 17};
    const std::string weekday = std::vector<std::string>{
        "Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}[std::chrono::weekday{day}.c_encoding()];
    CAPTURE(name);
    CHECK(parse_retry_after(weekday + ", 17 " + name + " 2026 00:00:00 GMT", day - 1h) == 1h);
    CHECK(parse_retry_after(weekday + " " + name + " 17 00:00:00 2026", day - 1h) == 1h);
  }
}

TEST_CASE("T3 Retry-After has leap days and leap seconds") {
  const sys_days february_28{2024y / 2 / 28};
  CHECK(parse_retry_after("Thu, 29 Feb 2024 00:00:00 GMT", february_28) == 24h);
  CHECK(parse_retry_after("Wed, 29 Feb 2023 00:00:00 GMT", february_28) == malformed);
  CHECK(parse_retry_after("Thu, 29 Feb 1900 00:00:00 GMT", february_28) == malformed);
  CHECK(parse_retry_after("Tue, 29 Feb 2000 00:00:00 GMT", february_28) == 0s);
  CHECK(parse_retry_after("Sat, 31 Dec 2016 23:59:60 GMT", sys_days{2016y / 12 / 31} + 23h) == 1h);
  CHECK(parse_retry_after("Sat, 31 Dec 2016 23:59:61 GMT", sys_days{2016y / 12 / 31} + 23h) == malformed);
}

TEST_CASE("T3 Retry-After with a year of two digits is within fifty years") {
  const sys_days now{2026y / 6 / 1};
  CHECK(parse_retry_after("Tuesday, 01-Jun-27 00:00:00 GMT", now) == 24h * 365);
  CHECK(parse_retry_after("Monday, 01-Jun-26 00:00:05 GMT", now) == 5s);
  CHECK(*parse_retry_after("Wednesday, 01-Jan-75 00:00:00 GMT", now) > 24h * 365 * 48);
  CHECK(parse_retry_after("Saturday, 01-Jan-77 00:00:00 GMT", now) == 0s);  // 1977
  CHECK(parse_retry_after("Sunday, 06-Nov-94 08:49:37 GMT", now) == 0s);
  CHECK(parse_retry_after("Friday, 31-Dec-99 23:59:59 GMT", now) == 0s);
}

TEST_CASE("T3 Retry-After in the past is zero") {
  CHECK(parse_retry_after("Thu, 01 Jan 1970 00:00:00 GMT") == 0s);
  CHECK(parse_retry_after("Sat, 01 Jan 0000 00:00:00 GMT") == 0s);
  CHECK(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT") == 0s);
}

TEST_CASE("T3 Retry-After far from now does not overflow") {
  const sys_days now{2026y / 1 / 1};
  CHECK(parse_retry_after("Mon, 01 Jan 2300 00:00:00 GMT", now) == sys_days{2300y / 1 / 1} - now);
  CHECK(parse_retry_after("Mon, 01 Jan 2300 00:00:00 GMT", now + 1ms) == sys_days{2300y / 1 / 1} - now - 1ms);
  CHECK(parse_retry_after("Thu, 01 Jan 2400 00:00:00 GMT", now) == Duration::max());
  CHECK(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", system_clock::time_point::max()) == 0s);
  const auto long_ago = system_clock::time_point::min() + 48h;  // floor to days reaches no further back
  CHECK(parse_retry_after("Fri, 31 Dec 9999 23:59:59 GMT", long_ago) == Duration::max());
  CHECK(parse_retry_after("Sunday, 06-Nov-94 08:49:37 GMT", long_ago).has_value());
  CHECK(parse_retry_after("Sunday, 06-Nov-94 08:49:37 GMT", system_clock::time_point::max()).has_value());
}

TEST_CASE("T3 Retry-After that is malformed is nothing") {
  for (const std::string_view text : {
           "",
           " ",
           " \t ",
           "nan",
           "NaN",
           "inf",
           "Infinity",
           "-1",
           "-0",
           "+5",
           "1.5",
           "1,5",
           "1e3",
           "0x10",
           "ff",
           "12s",
           "12 seconds",
           "s",
           "5;",
           "\"5\"",
           "1 2",
           "soon",
           "Sun",
           "Sun,",
           ",",
           "Sun, ",
           "Sunday,",
           "Sun, 06 Nov 1994 08:49:37",
           "Sun, 06 Nov 1994 08:49:37 ",
           "Sun, 06 Nov 1994 08:49:37 UTC",
           "Sun, 06 Nov 1994 08:49:37 GMT+1",
           "Sun, 06 Nov 1994 08:49:37 GMT x",
           "Sun, 06 Nov 1994 08:49:37 GMTGMT",
           "Sun, 06 Nov 1994 08:49:37GMT",
           "Sun,06 Nov 1994 08:49:37 GMT",
           "Sun,  06 Nov 1994 08:49:37 GMT",
           "Sun, 6 Nov 1994 08:49:37 GMT",
           "Sun, 06 Nov 94 08:49:37 GMT",
           "Sun, 06-Nov-94 08:49:37 GMT",
           "Sun, 06 Nov 1994 8:49:37 GMT",
           "Sun, 06 Nov 1994 08:49 GMT",
           "Sun, 06 Nov 1994 08.49.37 GMT",
           "Sun, 06 Nov 1994 24:00:00 GMT",
           "Sun, 06 Nov 1994 08:60:00 GMT",
           "Sun, 06 Nov 1994 -8:49:37 GMT",
           "Sun, 00 Nov 1994 08:49:37 GMT",
           "Sun, 31 Nov 1994 08:49:37 GMT",
           "Sun, 30 Feb 1994 08:49:37 GMT",
           "Sun, 99 Nov 1994 08:49:37 GMT",
           "Sun, +6 Nov 1994 08:49:37 GMT",
           "Sun, 06 Now 1994 08:49:37 GMT",
           "Sun, 06 November 1994 08:49:37 GMT",
           "Son, 06 Nov 1994 08:49:37 GMT",
           "sun, 06 nov 1994 08:49:37 gmt",
           "SUN, 06 NOV 1994 08:49:37 GMT",
           "Sun, 06 Nov -994 08:49:37 GMT",
           "Sun, 06 Nov 19944 08:49:37 GMT",
           "Sunday, 06-Nov-1994 08:49:37 GMT",
           "Sunday, 06 Nov 94 08:49:37 GMT",
           "Sunday, 06-Nov-94 08:49:37",
           "Sunday, 31-Feb-94 08:49:37 GMT",
           "sunday, 06-nov-94 08:49:37 gmt",
           "Sun Nov 6 08:49:37 1994",
           "Sun Nov  6 08:49:37 94",
           "Sun Nov  6 08:49:37 1994 GMT",
           "Sun Nov  6 08:49:37",
           "Sun Nov 31 08:49:37 1994",
           "Sun Nov  0 08:49:37 1994",
           "Sun Nov   6 08:49:37 1994",
           "1994-11-06T08:49:37Z",
           "Mon, 06 Nov 1994 08:49:3",
       }) {
    CAPTURE(std::string(text));
    CHECK(parse_retry_after(text, example) == malformed);
  }
  CHECK(parse_retry_after(std::string_view{"5\0", 2}) == malformed);
  CHECK(parse_retry_after(std::string_view{"\0", 1}) == malformed);
  CHECK(parse_retry_after(std::string_view{}) == malformed);
  CHECK(parse_retry_after("\xEF\xBC\x95") == malformed);  // a full-width five
}

TEST_CASE("T3 Retry-After cut off anywhere is malformed or a number and never throws") {
  STATIC_REQUIRE(noexcept(parse_retry_after(std::string_view{})));
  for (const std::string whole :
       {"Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"}) {
    for (std::size_t length = 0; length < whole.size(); ++length) {
      CAPTURE(whole, length);
      CHECK(parse_retry_after(std::string(whole, 0, length), example) == malformed);
      std::string changed = whole;
      for (const char other : {'\0', ' ', 'x', '\xff', ','}) {
        changed[length] = other;
        if (changed != whole) CHECK(parse_retry_after(changed, example) == malformed);
      }
    }
  }
}

TEST_CASE("T2 HttpError has a status a header and a message") {
  const HttpError bare{429};
  CHECK(bare.status() == 429);
  CHECK(bare.retry_after().empty());
  CHECK(std::string{bare.what()} == "HTTP 429");
  const HttpError full{503, "120", "the service rests"};
  CHECK(full.status() == 503);
  CHECK(full.retry_after() == "120");
  CHECK(std::string{full.what()} == "the service rests");
  const HttpError copy = full;
  CHECK(copy.retry_after() == "120");
  STATIC_REQUIRE(std::is_nothrow_copy_constructible_v<HttpError>);
  STATIC_REQUIRE(std::is_base_of_v<std::runtime_error, HttpError>);
  STATIC_REQUIRE_FALSE(std::is_convertible_v<int, HttpError>);
}

// The prewired retry ---------------------------------------------------------------------------------

namespace {

struct ApiError : std::runtime_error {
  explicit ApiError(int code) : runtime_error("api"), code_(code) {}
  int status() const { return code_; }

 private:
  int code_;
};

struct PoliteError : std::runtime_error {
  PoliteError(int code, std::string wait) : runtime_error("polite"), code_(code), wait_(std::move(wait)) {}
  long status() const { return code_; }
  std::string_view retry_after() const { return wait_; }

 private:
  int code_;
  std::string wait_;
};
struct VeryPoliteError : PoliteError {
  using PoliteError::PoliteError;
};

struct Dropped : std::runtime_error {
  Dropped() : runtime_error("dropped") {}
};

struct Outcome {
  int attempts;
  Times sleeps;
};

template <class E>
Outcome outcome(const E& exception, const Retry& retry) {
  FakeClock clock;
  const ClockOverride use{clock};
  const auto result = parallel_map([&](int) -> int { throw exception; }, std::vector{0},
                                   {.executor = Executor::sequential, .retry = retry});
  return {result.item_results().at(0).attempts, clock.sleeps()};
}

template <class E>
int attempts(const E& exception, const Retry& retry) {
  return outcome(exception, retry).attempts;
}

}  // namespace

TEST_CASE("T2 for_http retries 429 and 503 and nothing else") {
  const Retry retry = Retry::for_http();
  CHECK(attempts(HttpError{429}, retry) == 3);
  CHECK(attempts(HttpError{503}, retry) == 3);
  for (const int status : {0, 200, 400, 401, 404, 408, 500, 502, 504}) CHECK(attempts(HttpError{status}, retry) == 1);
  CHECK(attempts(std::runtime_error{"429"}, retry) == 1);
  CHECK(attempts(429, retry) == 1);
  CHECK(attempts(ApiError{429}, retry) == 1);  // not among its types
}

TEST_CASE("T3 for_http waits as the server says else as any retry") {
  CHECK(outcome(HttpError{429, "7"}, Retry::for_http()).sleeps == Times{7s, 7s});
  CHECK(outcome(HttpError{503, "0"}, Retry::for_http()).sleeps == Times{0s, 0s});
  CHECK(outcome(HttpError{429, "soon"}, Retry::for_http()).sleeps == Times{1s, 2s});
  CHECK(outcome(HttpError{429}, Retry::for_http()).sleeps == Times{1s, 2s});
  CHECK(outcome(HttpError{429, "3600"}, Retry::for_http()).sleeps == Times{600s, 600s});
  CHECK(outcome(HttpError{429, "Sun, 06 Nov 1994 08:49:37 GMT"}, Retry::for_http()).sleeps == Times{0s, 0s});
  CHECK(outcome(HttpError{404, "7"}, Retry::for_http()).sleeps.empty());
}

TEST_CASE("T3 for_http has the defaults of a retry") {
  const Retry retry = Retry::for_http();
  const Retry plain;
  CHECK(retry.attempts == plain.attempts);
  CHECK(retry.backoff == plain.backoff);
  CHECK(retry.max_delay == plain.max_delay);
  CHECK(retry.jitter == plain.jitter);
  CHECK(retry.max_server_wait == plain.max_server_wait);
}

TEST_CASE("T3 for_http takes the numbers of an HttpRetry") {
  const HttpRetry numbers{
      .attempts = 4, .backoff = 10s, .max_delay = 15s, .jitter = false, .statuses = {418, 500}, .max_server_wait = 5s};
  const Retry retry = Retry::for_http(numbers);
  CHECK(outcome(HttpError{418}, retry).sleeps == Times{10s, 15s, 15s});
  CHECK(outcome(HttpError{500, "60"}, retry).sleeps == Times{5s, 5s, 5s});
  CHECK(attempts(HttpError{429}, retry) == 1);
  const Retry patient = Retry::for_http({.attempts = 2, .max_server_wait = std::nullopt});
  CHECK(outcome(HttpError{429, "86400"}, patient).sleeps == Times{24h});
  const Retry none = Retry::for_http({.statuses = {}});
  CHECK(attempts(HttpError{429}, none) == 1);
  const Retry typed = Retry::for_http<ApiError>(numbers);
  CHECK(attempts(ApiError{418}, typed) == 4);
  CHECK(attempts(ApiError{429}, typed) == 1);
  CHECK(attempts(HttpError{418}, typed) == 1);
}

TEST_CASE("T2 for_http understands other exception types") {
  SECTION("with a status only") {
    const Retry retry = Retry::for_http<ApiError>();
    CHECK(outcome(ApiError{429}, retry).sleeps == Times{1s, 2s});
    CHECK(attempts(ApiError{500}, retry) == 1);
    CHECK(attempts(HttpError{429}, retry) == 1);
  }
  SECTION("with a status and a header") {
    const Retry retry = Retry::for_http<PoliteError>();
    CHECK(outcome(PoliteError{429, "9"}, retry).sleeps == Times{9s, 9s});
    CHECK(outcome(PoliteError{429, ""}, retry).sleeps == Times{1s, 2s});
    CHECK(attempts(PoliteError{500, "9"}, retry) == 1);
  }
  SECTION("without a status") {
    const Retry retry = Retry::for_http<Dropped>();
    CHECK(outcome(Dropped{}, retry).sleeps == Times{1s, 2s});
    CHECK(attempts(std::runtime_error{"other"}, retry) == 1);
  }
  SECTION("derived ones") {
    const Retry retry = Retry::for_http<PoliteError>();
    CHECK(outcome(VeryPoliteError{429, "9"}, retry).sleeps == Times{9s, 9s});
    CHECK(attempts(VeryPoliteError{404, "9"}, retry) == 1);
  }
  SECTION("several at once") {
    const Retry retry = Retry::for_http<HttpError, ApiError, PoliteError, Dropped>();
    CHECK(outcome(HttpError{503, "3"}, retry).sleeps == Times{3s, 3s});
    CHECK(outcome(PoliteError{503, "4"}, retry).sleeps == Times{4s, 4s});
    CHECK(outcome(ApiError{503}, retry).sleeps == Times{1s, 2s});
    CHECK(attempts(Dropped{}, retry) == 3);
    CHECK(attempts(HttpError{404}, retry) == 1);
    CHECK(attempts(ApiError{404}, retry) == 1);
    CHECK(attempts(PoliteError{404, "4"}, retry) == 1);
    CHECK(attempts(std::logic_error{"other"}, retry) == 1);
  }
}

TEST_CASE("T3 429 then success waits as told and holds the run") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{10}};
  std::vector<std::pair<int, Duration>> calls;
  const auto result = parallel_map(
      [&](int n, const pyarallel::Task& task) {
        calls.emplace_back(n, clock.elapsed());
        if (n == 1 && task.attempt == 1) throw HttpError{429, "30"};
        return n * n;
      },
      std::vector{0, 1, 2}, {.executor = Executor::sequential, .rate_limit = limiter, .retry = Retry::for_http()});
  REQUIRE(result.ok());
  CHECK(std::vector<int>(result.begin(), result.end()) == std::vector{0, 1, 4});
  CHECK(calls == std::vector<std::pair<int, Duration>>{{0, 0s}, {1, 100ms}, {1, 30100ms}, {2, 30200ms}});
  CHECK(result.item_results()[1].attempts == 2);
}

TEST_CASE("T3 429 to the end is reported and the limiter stays paused") {
  FakeClock clock;
  const ClockOverride use{clock};
  Limiter limiter{RateLimit{10}};
  const auto result = parallel_map(
      [](int) -> int {
        throw HttpError{429, "30"};
      },
      std::vector{0},
      {.executor = Executor::sequential, .rate_limit = limiter, .retry = Retry::for_http({.attempts = 2})});
  REQUIRE(result.failures().size() == 1);
  const auto* error = result.failures()[0].error.get_if<HttpError>();
  REQUIRE(error != nullptr);
  CHECK(error->status() == 429);
  CHECK(clock.elapsed() == 30s);
  CHECK(limiter.wait_time() == 30s);
}

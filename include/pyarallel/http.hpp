// For code that calls HTTP APIs: an error with a status, Retry-After, and the retry policy for both.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pyarallel/retry.hpp"

namespace pyarallel {

/// Throw it for a response that is an error; Retry::for_http() understands it.
class HttpError : public std::runtime_error {
 public:
  /// `retry_after` is the raw header, or empty. Without a message, what() is "HTTP 429".
  explicit HttpError(int status, std::string retry_after = {}, std::string message = {})
      : runtime_error(message.empty() ? "HTTP " + std::to_string(status) : message),
        status_(status),
        retry_after_(std::make_shared<const std::string>(std::move(retry_after))) {}

  int status() const noexcept { return status_; }
  const std::string& retry_after() const noexcept { return *retry_after_; }

 private:
  int status_;
  // Shared, because copying an exception must not throw.
  std::shared_ptr<const std::string> retry_after_;
};

namespace detail {

/// Reads a date piece by piece; `ok` stays false after the first piece that does not fit.
struct DateReader {
  std::string_view rest;
  bool ok = true;

  void literal(std::string_view text) {
    ok = ok && rest.starts_with(text);
    if (ok) rest.remove_prefix(text.size());
  }
  int digits(std::size_t count) {
    int value = 0;
    ok = ok && rest.size() >= count;
    for (std::size_t i = 0; ok && i < count; ++i) {
      ok = rest[i] >= '0' && rest[i] <= '9';
      value = value * 10 + (rest[i] - '0');
    }
    if (ok) rest.remove_prefix(count);
    return value;
  }
  template <std::size_t N>
  unsigned one_of(const std::array<std::string_view, N>& names) {
    for (unsigned i = 0; ok && i < N; ++i) {
      if (rest.starts_with(names[i])) {
        rest.remove_prefix(names[i].size());
        return i;
      }
    }
    ok = false;
    return 0;
  }
};

/// The three forms of RFC 9110, section 5.6.7: "Sun, 06 Nov 1994 08:49:37 GMT",
/// "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994".
inline std::optional<std::chrono::sys_seconds> parse_http_date(std::string_view text,
                                                               std::chrono::system_clock::time_point now) noexcept {
  using namespace std::chrono;
  static constexpr std::array<std::string_view, 7> long_days{"Monday", "Tuesday",  "Wednesday", "Thursday",
                                                             "Friday", "Saturday", "Sunday"};
  static constexpr std::array<std::string_view, 7> days{"Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"};
  static constexpr std::array<std::string_view, 12> months{"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                           "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  DateReader reader{text};
  int year_number = 0, day_number = 0, hour = 0, minute = 0, second = 0;
  unsigned month_index = 0;
  const auto read_time = [&] {
    hour = reader.digits(2);
    reader.literal(":");
    minute = reader.digits(2);
    reader.literal(":");
    second = reader.digits(2);
  };

  const auto comma = text.find(',');
  if (comma == 3) {
    reader.one_of(days);
    reader.literal(", ");
    day_number = reader.digits(2);
    reader.literal(" ");
    month_index = reader.one_of(months);
    reader.literal(" ");
    year_number = reader.digits(4);
    reader.literal(" ");
    read_time();
    reader.literal(" GMT");
  } else if (comma != std::string_view::npos) {
    reader.one_of(long_days);
    reader.literal(", ");
    day_number = reader.digits(2);
    reader.literal("-");
    month_index = reader.one_of(months);
    reader.literal("-");
    year_number = reader.digits(2);
    reader.literal(" ");
    read_time();
    reader.literal(" GMT");
    // A year that appears to be more than 50 years in the future is the most recent past one.
    const int this_year = static_cast<int>(year_month_day{floor<std::chrono::days>(now)}.year());
    year_number += this_year - this_year % 100;
    if (year_number > this_year + 50) year_number -= 100;
  } else {
    reader.one_of(days);
    reader.literal(" ");
    month_index = reader.one_of(months);
    reader.literal(" ");
    if (reader.ok && reader.rest.starts_with(" ")) {
      reader.literal(" ");
      day_number = reader.digits(1);
    } else {
      day_number = reader.digits(2);
    }
    reader.literal(" ");
    read_time();
    reader.literal(" ");
    year_number = reader.digits(4);
  }

  const year_month_day date{year{year_number}, month{month_index + 1}, day{static_cast<unsigned>(day_number)}};
  if (!reader.ok || !reader.rest.empty() || !date.ok() || hour > 23 || minute > 59 || second > 60) return {};
  return sys_days{date} + hours{hour} + minutes{minute} + seconds{second};
}

}  // namespace detail

/// A Retry-After header (RFC 9110, section 10.2.3): delay-seconds, or any of the three HTTP-date
/// forms. nullopt when malformed; a date in the past gives zero; a number too large to represent
/// gives Duration::max(). Never throws.
inline std::optional<Duration> parse_retry_after(
    std::string_view text, std::chrono::system_clock::time_point now = std::chrono::system_clock::now()) noexcept {
  constexpr std::string_view blank = " \t";
  const auto first = text.find_first_not_of(blank);
  if (first == std::string_view::npos) return {};
  text = text.substr(first, text.find_last_not_of(blank) - first + 1);

  if (std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    constexpr auto most = std::chrono::floor<std::chrono::seconds>(Duration::max()).count();
    std::chrono::seconds::rep seconds = 0;
    const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), seconds);
    if (problem != std::errc{} || seconds > most) return Duration::max();
    return std::chrono::seconds{seconds};
  }
  const auto date = detail::parse_http_date(text, now);
  if (!date) return {};
  // In seconds first: a four-digit year can lie beyond what nanoseconds reach.
  const auto this_second = std::chrono::floor<std::chrono::seconds>(now);
  const auto wait = *date - this_second;
  if (wait <= std::chrono::seconds{0}) return Duration::zero();
  if (wait > std::chrono::floor<std::chrono::seconds>(Duration::max())) return Duration::max();
  return Duration{wait} - std::chrono::duration_cast<Duration>(now - this_second);
}

/// The numbers of Retry::for_http, with its defaults; see Retry.
struct HttpRetry {
  int attempts = 3;
  Duration backoff = std::chrono::seconds{1};
  Duration max_delay = std::chrono::seconds{60};
  bool jitter = true;
  std::vector<int> statuses = {429, 503};
  std::optional<Duration> max_server_wait = std::chrono::seconds{600};
};

namespace detail {

template <class E>
concept HasStatus = requires(const E& e) {
  { e.status() } -> std::convertible_to<int>;
};
template <class E>
concept HasRetryAfter = requires(const E& e) {
  { e.retry_after() } -> std::convertible_to<std::string_view>;
};

template <HasStatus E>
std::optional<bool> has_listed_status(const Error& error, const std::vector<int>& statuses) {
  const E* exception = error.get_if<E>();
  if (exception == nullptr) return {};
  return std::find(statuses.begin(), statuses.end(), static_cast<int>(exception->status())) != statuses.end();
}
template <class E>
std::optional<bool> has_listed_status(const Error&, const std::vector<int>&) {
  return {};
}

template <HasRetryAfter E>
std::optional<Duration> retry_after_of(const Error& error) {
  const E* exception = error.get_if<E>();
  if (exception == nullptr) return {};
  const auto& header = exception->retry_after();
  return parse_retry_after(std::string_view{header});
}
template <class E>
std::optional<Duration> retry_after_of(const Error&) {
  return {};
}

}  // namespace detail

template <class... E>
Retry Retry::for_http(const HttpRetry& http) {
  if constexpr (sizeof...(E) == 0) {
    return for_http<HttpError>(http);
  } else {
    return Retry{
        .attempts = http.attempts,
        .backoff = http.backoff,
        .max_delay = http.max_delay,
        .jitter = http.jitter,
        .on = retry_on<E...>,
        .retry_if =
            [statuses = http.statuses](const Error& error) {
              std::optional<bool> answer;
              ((answer = detail::has_listed_status<E>(error, statuses), answer.has_value()) || ...);
              return answer.value_or(true);
            },
        .wait_from =
            [](const Error& error) {
              std::optional<Duration> wait;
              ((wait = detail::retry_after_of<E>(error), wait.has_value()) || ...);
              return wait;
            },
        .max_server_wait = http.max_server_wait,
    };
  }
}

template <class... E>
Retry Retry::for_http() {
  return for_http<E...>(HttpRetry{});
}

}  // namespace pyarallel

// How fmt prints the types of this library.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include "pyarallel/detail/message.hpp"
#include "pyarallel/detail/require.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/rate_limit.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/retry.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel::detail {

inline std::string text_of(const Retry& retry) {
  return message({"Retry(", retry.attempts, " attempts, backoff ", text_of(retry.backoff), " to ",
                  text_of(retry.max_delay), retry.jitter ? ", jitter" : "", ")"});
}

inline std::string text_of(const Error& error) { return message({error.type_name(), ": ", error.what()}); }

inline std::string text_of(const Failure& failure) {
  return message({"[", failure.index, "] ", text_of(failure.error)});
}

inline std::string text_of_result(std::size_t size, std::size_t failed, RunStatus status) {
  std::string text = message({"MapResult(", size - failed, " ok, ", failed, " failed"});
  if (status != RunStatus::completed) text.append(", ").append(name_of(status));
  return text + ")";
}

/// A formatter that takes no format specification.
struct PlainFormatter {
  template <class Context>
  constexpr auto parse(Context& context) {
    return context.begin();
  }

 protected:
  template <class Context>
  static auto write(std::string_view text, Context& context) {
    return std::copy(text.begin(), text.end(), context.out());
  }
};

}  // namespace pyarallel::detail

/// "timed_out"
template <>
struct fmt::formatter<pyarallel::RunStatus> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(pyarallel::RunStatus status, Context& context) const {
    return write(pyarallel::detail::name_of(status), context);
  }
};

/// "RateLimit(90 per 60s, burst 1)"
template <>
struct fmt::formatter<pyarallel::RateLimit> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::RateLimit& rate, Context& context) const {
    return write(pyarallel::detail::text_of(rate), context);
  }
};

/// "Retry(3 attempts, backoff 1s to 60s, jitter)"
template <>
struct fmt::formatter<pyarallel::Retry> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Retry& retry, Context& context) const {
    return write(pyarallel::detail::text_of(retry), context);
  }
};

/// "std::out_of_range: vector::at"
template <>
struct fmt::formatter<pyarallel::Error> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Error& error, Context& context) const {
    return write(pyarallel::detail::text_of(error), context);
  }
};

/// "[3] std::out_of_range: vector::at"
template <>
struct fmt::formatter<pyarallel::Failure> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Failure& failure, Context& context) const {
    return write(pyarallel::detail::text_of(failure), context);
  }
};

/// "MapResult(98 ok, 2 failed, timed_out)"; the status only if it is not completed.
template <class R>
struct fmt::formatter<pyarallel::MapResult<R>> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::MapResult<R>& result, Context& context) const {
    return write(pyarallel::detail::text_of_result(result.size(), result.failures().size(), result.status()), context);
  }
};

// How fmt prints the types of this library.
#pragma once

#if __has_include(<fmt/base.h>)
#include <fmt/base.h>
#else
#include <fmt/core.h>
#endif

#include <cstddef>
#include <string>

#include "pyarallel/detail/require.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/rate_limit.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/retry.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel::detail {

/// A formatter that takes no format specification.
struct PlainFormatter {
  template <class Context>
  constexpr auto parse(Context& context) {
    return context.begin();
  }
};

}  // namespace pyarallel::detail

/// "timed_out"
template <>
struct fmt::formatter<pyarallel::RunStatus> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(pyarallel::RunStatus status, Context& context) const {
    return fmt::format_to(context.out(), "{}", pyarallel::detail::name_of(status));
  }
};

/// "RateLimit(90 per 60s, burst 1)"
template <>
struct fmt::formatter<pyarallel::RateLimit> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::RateLimit& rate, Context& context) const {
    return fmt::format_to(context.out(), "RateLimit({} per {}, burst {})", rate.count,
                          pyarallel::detail::text_of(rate.per), rate.burst);
  }
};

/// "Retry(3 attempts, backoff 1s to 60s, jitter)"
template <>
struct fmt::formatter<pyarallel::Retry> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Retry& retry, Context& context) const {
    return fmt::format_to(context.out(), "Retry({} attempts, backoff {} to {}{})", retry.attempts,
                          pyarallel::detail::text_of(retry.backoff), pyarallel::detail::text_of(retry.max_delay),
                          retry.jitter ? ", jitter" : "");
  }
};

/// "std::out_of_range: vector::at"
template <>
struct fmt::formatter<pyarallel::Error> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Error& error, Context& context) const {
    return fmt::format_to(context.out(), "{}: {}", error.type_name(), error.what());
  }
};

/// "[3] std::out_of_range: vector::at"
template <>
struct fmt::formatter<pyarallel::Failure> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::Failure& failure, Context& context) const {
    return fmt::format_to(context.out(), "[{}] {}: {}", failure.index, failure.error.type_name(), failure.error.what());
  }
};

/// "MapResult(98 ok, 2 failed, timed_out)"; the status only if it is not completed.
template <class R>
struct fmt::formatter<pyarallel::MapResult<R>> : pyarallel::detail::PlainFormatter {
  template <class Context>
  auto format(const pyarallel::MapResult<R>& result, Context& context) const {
    const std::size_t failed = result.failures().size();
    auto out = fmt::format_to(context.out(), "MapResult({} ok, {} failed", result.size() - failed, failed);
    if (!result.complete()) out = fmt::format_to(out, ", {}", pyarallel::detail::name_of(result.status()));
    return fmt::format_to(out, ")");
  }
};

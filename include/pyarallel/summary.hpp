// What became of a run, for people to read.
#pragma once

#include <string>

#include "pyarallel/detail/summary_text.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel {

/// Several lines for a log or a terminal, without a newline at the end:
///
///     1000 items: timed out
///       620 succeeded
///        25 failed
///       355 never ran: the run's timeout of 5s was reached first
///     failures:
///       20 std::runtime_error: connection reset
///          at 3, 17, 21, 40, 55, ... 15 more
///        5 std::out_of_range: vector::at
///          at 4, 8, 9, 10, 11
///     attempts: 1: 600, 2: 30, 3: 15
///     durations: p50 1.2ms, p90 3.41ms, p99 8ms, max 12ms (nearest rank)
///
/// With a checkpoint the line of successes tells how many came from there. Lines that would say nothing are left out:
/// outcomes that no item had, attempts if there was one for each item that ran, durations if they were not measured.
/// The most frequent ten kinds of failure are shown, where a kind is a type and a text. Control characters are shown as
/// escapes, and long names and texts are cut. The layout may change: do not parse it. Looks at every item, which takes
/// nanoseconds, or a microsecond or two if it failed.
template <class R>
std::string summary(const MapResult<R>& result) {
  return detail::text_of(detail::figures_of(detail::MapResultAccess<R>::summary(result)));
}

}  // namespace pyarallel

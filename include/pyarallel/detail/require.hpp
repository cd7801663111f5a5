// Checks of options: what was wrong, the rule, and the value.
#pragma once

#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/message.hpp"

namespace pyarallel::detail {

/// In the largest unit that shows it exactly: "5s", "1500ms", "-1ns".
inline std::string text_of(Duration duration) {
  const auto count = duration.count();
  if (count % 1'000'000'000 == 0) return message({count / 1'000'000'000, "s"});
  if (count % 1'000'000 == 0) return message({count / 1'000'000, "ms"});
  if (count % 1'000 == 0) return message({count / 1'000, "us"});
  return message({count, "ns"});
}

template <class Number>
  requires std::is_arithmetic_v<Number>
std::string text_of(Number number) {
  return message({number});
}

/// std::invalid_argument with `rule` and the value, unless `holds`.
template <class Value>
void require(bool holds, std::string_view rule, const Value& value) {
  if (!holds) throw std::invalid_argument(std::string(rule) + text_of(value));
}

}  // namespace pyarallel::detail

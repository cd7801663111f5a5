// A stretch of the input.
#pragma once

#include <cstddef>

namespace pyarallel::detail {

/// A half-open range of item indices.
struct Range {
  std::size_t first = 0;
  std::size_t last = 0;
  bool empty() const noexcept { return first >= last; }
  std::size_t size() const noexcept { return last - first; }
};

}  // namespace pyarallel::detail

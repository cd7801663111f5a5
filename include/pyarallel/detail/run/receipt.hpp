// What is known of an item's running, apart from its value or error.
#pragma once

#include <cstddef>

#include "pyarallel/detail/clock.hpp"

namespace pyarallel::detail {

struct Receipt {
  Duration duration = {};
  int attempts = 0;
};

/// Items from `first` on that ran one after the other, and took so long each.
struct Block {
  std::size_t first = 0;
  std::size_t count = 0;
  Duration duration = {};
};

}  // namespace pyarallel::detail

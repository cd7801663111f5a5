// What is known of an item's running, apart from its value or error.
#pragma once

#include "pyarallel/detail/clock.hpp"

namespace pyarallel::detail {

struct Receipt {
  Duration duration = {};
  int attempts = 0;
};

}  // namespace pyarallel::detail

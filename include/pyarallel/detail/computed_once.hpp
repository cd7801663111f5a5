// Numbers that stay what they were when somebody first asked.
#pragma once

#include <atomic>
#include <cstddef>

namespace pyarallel::detail {

/// What compute() says, which is not 0; threads that come at the same time may all compute it. Not a static variable,
/// for it has a lock while it is initialised: a child that is forked meanwhile would wait for it for ever.
template <std::size_t (*compute)()>
std::size_t computed_once() {
  static constinit std::atomic<std::size_t> number{0};
  std::size_t known = number.load(std::memory_order_relaxed);
  if (known == 0) {
    const std::size_t mine = compute();
    if (number.compare_exchange_strong(known, mine, std::memory_order_relaxed)) known = mine;
  }
  return known;
}

}  // namespace pyarallel::detail

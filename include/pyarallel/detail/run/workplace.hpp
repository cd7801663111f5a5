// Where items run, as the driver sees it: pooled threads (handover.hpp), or forked workers.
#pragma once

#include <cstddef>
#include <exception>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/receipt.hpp"

namespace pyarallel::detail {

/// An item whose outcome is final.
struct Resolved {
  std::size_t index = 0;
  std::size_t slot = 0;           // of a pulled item
  std::exception_ptr error = {};  // null: it has a value
  bool ran = true;                // false: the run stopped before its first attempt
  Receipt receipt = {};
  bool interrupted = false;  // true: it was running when the run ended, and was killed

  bool has_outcome() const noexcept { return ran && !interrupted; }
};

class Workplace {
 public:
  /// Waits until there are outcomes, somebody called wake(), all who came have left (where that is
  /// waited for), or it is `due`. The outcomes replace the contents of `outcomes`.
  virtual void collect(std::vector<Resolved>& outcomes, bool until_left, TimePoint due) = 0;
  /// Sends the workers away. Returns the slots of items that none of them took.
  virtual std::vector<std::size_t> close() = 0;
  virtual bool nobody_inside() = 0;
  /// The driver should look at the state of the run (any thread, any process).
  virtual void wake() noexcept = 0;

 protected:
  ~Workplace() = default;
};

}  // namespace pyarallel::detail

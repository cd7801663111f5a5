// The part of a run on forked workers that knows the types of items and results, as those see it who do not.
#pragma once

#include <cstddef>
#include <exception>
#include <span>

#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/receipt.hpp"

namespace pyarallel::detail {

class Worker;

/// What a run asks of its workers; the same for all of them.
struct ForkedJob {
  std::size_t size = 0;      // of the input, where it is known
  bool claims = false;       // workers find the items by index, and share them out among themselves
  bool sends_items = false;  // the driver reads the items, and sends them encoded
  bool one_by_one = false;   // each item goes through the attempt loop, and its outcome is told at once
  int watchers = 0;          // how many workers may look out for work before they sleep
};

class ForkedWork {
 public:
  // In a worker --------------------------------------------------------------------------------------

  /// Before the first item. What worker_init threw, if it did.
  virtual std::exception_ptr initialize() = 0;
  virtual Task new_task(std::size_t worker) = 0;
  /// Runs items one after the other: sets worker.current_item() before each, and sends failures, and values
  /// that are not in shared memory. Returns the first that did not run because the run ended, or block.last.
  virtual std::size_t run_block(Range block, Task& task, Worker& worker) = 0;
  /// Runs an item to its final outcome, and sends that. `bytes`: the item, where items are sent.
  virtual void run_one(std::size_t index, std::span<const std::byte> bytes, Outcome so_far, Task& task,
                       Worker& worker) = 0;

  // In the parent ------------------------------------------------------------------------------------

  /// Puts an encoded value in its place. Throws what decoding throws.
  virtual void keep_value(std::size_t index, std::span<const std::byte> bytes) = 0;
  /// All these items ran.
  virtual void keep_block(const Block& block) = 0;

 protected:
  ~ForkedWork() = default;
};

}  // namespace pyarallel::detail

// Outcomes on their way to the consumer of a stream, in the order in which it will see them.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "pyarallel/detail/run/workplace.hpp"

namespace pyarallel::detail {

/// A queue in which outcomes have numbered positions, that may be filled in any order. Positions in use lie
/// close together (within the window), so a ring is enough; it grows to the largest distance seen.
class YieldQueue {
 public:
  /// Outcomes that did not run, or were interrupted, only mark their position: nobody will see them.
  void put(std::size_t position, Resolved&& item) {
    while (position - next_ >= ring_.size()) grow();
    Entry& entry = at(position);
    entry.item = std::move(item);
    entry.there = true;
    drop_unseen();
  }

  /// The next outcome is there.
  bool ready() const noexcept { return !ring_.empty() && ring_[next_ & (ring_.size() - 1)].there; }

  Resolved pop() {
    Entry& entry = at(next_++);
    entry.there = false;
    Resolved item = std::move(entry.item);
    drop_unseen();
    return item;
  }

  /// The next outcome takes another way.
  void skip() noexcept { ++next_; }

  /// All that are there.
  template <class Use>
  void for_each(Use use) const {
    for (const Entry& entry : ring_) {
      if (entry.there) use(entry.item);
    }
  }

 private:
  struct Entry {
    Resolved item;
    bool there = false;
  };

  Entry& at(std::size_t position) noexcept { return ring_[position & (ring_.size() - 1)]; }

  void drop_unseen() {
    while (ready() && !at(next_).item.has_outcome()) at(next_++).there = false;
  }

  void grow() {
    std::vector<Entry> larger(ring_.empty() ? 8 : 2 * ring_.size());
    for (std::size_t i = 0; i < ring_.size(); ++i) {
      larger[(next_ + i) & (larger.size() - 1)] = std::move(at(next_ + i));
    }
    ring_.swap(larger);
  }

  std::vector<Entry> ring_;  // its size is a power of two
  std::size_t next_ = 0;
};

}  // namespace pyarallel::detail

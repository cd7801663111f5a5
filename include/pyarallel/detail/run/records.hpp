// What is written down of the items of a run besides their outcomes: how often they were tried, and how long
// they took. Either a receipt for each item, or one for each block of items that were measured together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/receipt.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

class Records {
 public:
  /// `single`: a receipt for each item; there are `known_size` of them, and more with grow_to().
  Records(bool single, std::size_t known_size) : single_(single), receipts_(single ? known_size : 0) {}

  void grow_to(std::size_t size) {
    if (single_) receipts_.grow_to(size);
  }

  /// An item's own; only where there is one for each.
  Receipt& operator[](std::size_t index) const noexcept { return *receipts_.at(index); }

  /// All these items ran.
  void add(const Block& block) {
    if (single_) {
      std::fill_n(receipts_.at(block.first), block.count, Receipt{.duration = block.duration, .attempts = 1});
    } else {
      blocks_.push_back(block);
    }
  }

  /// The stretches of the first `size` items of which nothing was written down.
  std::vector<Range> gaps(std::size_t size) {
    std::vector<Range> all;
    std::size_t next = 0;
    const auto ran = [&](std::size_t first, std::size_t last) {
      if (next < first) all.push_back({next, first});
      next = last;
    };
    if (single_) {
      for (std::size_t index = 0; index < size; ++index) {
        if (receipts_.at(index)->attempts > 0) ran(index, index + 1);
      }
    } else {
      std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) { return a.first < b.first; });
      for (const Block& block : blocks_) ran(block.first, block.first + block.count);
    }
    ran(size, size);
    return all;
  }

  /// Everything, of a run with `size` items.
  void move_to(Summary& summary, std::size_t size) {
    if (single_) summary.receipts = receipts_.release_contiguous(size, [](std::size_t) { return true; });
    std::sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) { return a.first < b.first; });
    summary.blocks = std::move(blocks_);
  }

 private:
  const bool single_;
  GrowingArray<Receipt, Fill::zero> receipts_;
  std::vector<Block> blocks_;
};

}  // namespace pyarallel::detail

// What the items of the workloads do: the same numbers for every peer, in every language.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <numeric>
#include <thread>
#include <vector>

namespace bench {

inline std::int64_t trivial(std::int64_t item) { return item * 3 + 1; }

/// So many of work()'s steps take a microsecond. "100 ns" are 88 steps, and really take 62: neighbours overlap.
inline constexpr std::int64_t steps_per_microsecond = 884;

/// Dependent multiply-adds: the same work on any clock.
inline std::int64_t work(std::int64_t item, std::int64_t steps) {
  auto value = static_cast<std::uint64_t>(item);
  for (std::int64_t i = 0; i < steps; ++i) value = value * 6364136223846793005U + 1442695040888963407U;
  return static_cast<std::int64_t>(value);
}

/// 10,000 items that take 10 us on average, but not each.
inline constexpr std::int64_t shape_items = 10'000;

/// From nearly nothing up to 20 us.
inline std::int64_t linear_steps(std::int64_t item) { return 17'680 * item / shape_items; }

/// One in a hundred, at places without order, takes 50 times as long as the others.
inline std::int64_t scattered_steps(std::int64_t item) {
  const std::uint64_t random = static_cast<std::uint64_t>(item) * 6364136223846793005U + 1442695040888963407U;
  return (random >> 33) % 100 == 7 ? 296'500 : 5'930;
}

/// The last hundredth takes half of the time.
inline std::int64_t tail_steps(std::int64_t item) { return item < shape_items * 99 / 100 ? 4'464 : 442'000; }

inline std::int64_t sleeping(std::int64_t item, std::chrono::milliseconds time) {
  std::this_thread::sleep_for(time);
  return trivial(item);
}

/// 0 to count - 1.
inline std::vector<std::int64_t> numbers(std::size_t count) {
  std::vector<std::int64_t> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// The same numbers, made one by one while they are read, and once only.
class Generator {
 public:
  explicit Generator(std::int64_t count) : count_(count) {}

  class iterator {
   public:
    using value_type = std::int64_t;
    using difference_type = std::ptrdiff_t;
    using pointer = const std::int64_t*;
    using reference = std::int64_t;
    using iterator_category = std::input_iterator_tag;

    iterator() = default;
    explicit iterator(Generator* source) : source_(source) {}
    std::int64_t operator*() const { return source_->next_; }
    iterator& operator++() {
      ++source_->next_;
      return *this;
    }
    iterator operator++(int) {
      iterator old = *this;
      ++*this;
      return old;
    }
    /// Equal are two that are both at the end, or both not.
    friend bool operator==(const iterator& a, const iterator& b) { return a.at_end() == b.at_end(); }

   private:
    bool at_end() const { return source_ == nullptr || source_->next_ == source_->count_; }

    Generator* source_ = nullptr;
  };

  iterator begin() { return iterator{this}; }
  iterator end() { return {}; }

 private:
  std::int64_t next_ = 0;
  std::int64_t count_;
};

/// Sums in 64 bits, where overflow is no error.
inline void add_to(std::int64_t& sum, std::int64_t value) {
  sum = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) + static_cast<std::uint64_t>(value));
}

/// One thread's part of a sum.
struct alignas(64) Sum {
  std::int64_t value = 0;
};

template <class Sums>
std::int64_t total(const Sums& sums) {
  std::int64_t all = 0;
  for (const Sum& sum : sums) add_to(all, sum.value);
  return all;
}

/// What all of trivial(0) to trivial(count - 1) add up to.
inline std::int64_t sum_of_trivial(std::int64_t count) { return 3 * (count * (count - 1) / 2) + count; }

/// A result of 1 MiB.
inline constexpr std::size_t large = std::size_t{1} << 20;
inline std::vector<char> make_large(std::int64_t item) { return std::vector<char>(large, static_cast<char>(item)); }

}  // namespace bench

// Objects that count how often they are made, copied, moved and destroyed.
#pragma once

#include <atomic>
#include <utility>

namespace support {

/// Counts of one family of objects: each test has its own, so that tests cannot disturb each other.
struct Counts {
  std::atomic<int> made{0};  // in any way
  std::atomic<int> copied{0};
  std::atomic<int> moved{0};
  std::atomic<int> destroyed{0};

  int alive() const { return made - destroyed; }
};

class Counted {
 public:
  Counted(Counts& counts, int number) : value(number), counts_(&counts) { ++counts_->made; }
  Counted(const Counted& other) : value(other.value), counts_(other.counts_) {
    ++counts_->made;
    ++counts_->copied;
  }
  Counted(Counted&& other) noexcept : value(std::exchange(other.value, -1)), counts_(other.counts_) {
    ++counts_->made;
    ++counts_->moved;
  }
  Counted& operator=(const Counted&) = delete;
  Counted& operator=(Counted&&) = delete;
  ~Counted() { ++counts_->destroyed; }

  int value;

 private:
  Counts* counts_;
};

/// May be made and destroyed, nothing else.
struct NonMovable {
  explicit NonMovable(int number) : value(number) {}
  NonMovable(const NonMovable&) = delete;
  NonMovable& operator=(const NonMovable&) = delete;

  int value;
};

}  // namespace support

// Waiting for what other threads do: tests put events in order with these, never with the time they take.
#pragma once

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

namespace support {

/// Returns when condition() holds. Throws when it does not for very long, so that a test that would
/// hang fails.
template <class Condition>
void wait_until(Condition condition) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds{20};
  while (!condition()) {
    if (std::chrono::steady_clock::now() > give_up) throw std::runtime_error("what the test waits for never came");
    std::this_thread::sleep_for(std::chrono::microseconds{20});
  }
}

/// Holds back whoever comes until it is opened.
class Gate {
 public:
  void open() { open_ = true; }
  bool is_open() const { return open_; }
  void wait() const {
    wait_until([this] { return is_open(); });
  }

 private:
  std::atomic<bool> open_{false};
};

/// Remembers the most that were inside at once.
class Crowd {
 public:
  void enter() {
    const int now = ++inside_;
    int before = most_;
    while (before < now && !most_.compare_exchange_weak(before, now)) {
    }
  }
  void leave() { --inside_; }
  int inside() const { return inside_; }
  int most() const { return most_; }

 private:
  std::atomic<int> inside_{0};
  std::atomic<int> most_{0};
};

/// Time in which a bug may show itself. Nothing is proved by it: a test passes without it too.
inline void dawdle() { std::this_thread::sleep_for(std::chrono::milliseconds{1}); }

}  // namespace support

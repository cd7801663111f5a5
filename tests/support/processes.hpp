// What the tests of Executor::process share. Workers share memory with the test where the test asks them
// something, and never use Catch2's macros.
#pragma once

#include <pthread.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <forward_list>
#include <iterator>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "catch.hpp"
#include "child.hpp"
#include "counted.hpp"
#include "meanwhile.hpp"
#include "shared.hpp"
#include "single_pass.hpp"
#include "text.hpp"
#include "wait.hpp"
#include "watchdog.hpp"

namespace support {

using namespace pyarallel;
using namespace std::chrono_literals;

using SteadyClock = std::chrono::steady_clock;
using Ints = std::vector<int>;

/// One number for each of a few items.
class Tally {
 public:
  static constexpr std::size_t most = 2000;
  std::atomic<int>& operator[](std::size_t item) { return numbers_.at(item); }
  std::atomic<int>& operator[](int item) { return numbers_.at(static_cast<std::size_t>(item)); }
  int total() const { return std::accumulate(numbers_.begin(), numbers_.end(), 0); }
  inline Ints first(std::size_t count) const {
    return {numbers_.begin(), numbers_.begin() + static_cast<std::ptrdiff_t>(count)};
  }

 private:
  std::array<std::atomic<int>, most> numbers_{};
};

/// What happened, in its order.
template <class T>
class Log {
 public:
  void add(T entry) { entries_.at(static_cast<std::size_t>(size_++)) = entry; }
  std::vector<T> all() const { return {entries_.begin(), entries_.begin() + size_.load()}; }

 private:
  std::array<T, 2000> entries_{};
  std::atomic<int> size_{0};
};

/// Around each test: it ends, and no child process is left when it does.
class Test {
 public:
  Test() = default;
  Test(const Test&) = delete;
  Test& operator=(const Test&) = delete;
  ~Test() {
    const pid_t child = waitpid(-1, nullptr, WNOHANG);
    CHECK((child == -1 && errno == ECHILD));
  }

 private:
  Watchdog watchdog_;
};

/// Counts the forks of this program.
class Forks {
 public:
  Forks() {
    static const bool counts = pthread_atfork([] { ++so_far_; }, nullptr, nullptr) == 0;
    if (!counts) throw std::runtime_error("pthread_atfork");
    before_ = so_far_;
  }
  int count() const { return so_far_ - before_; }

 private:
  static inline std::atomic<int> so_far_{0};
  int before_;
};

inline const pid_t test_process = getpid();
inline bool in_worker() { return getpid() != test_process; }

inline constexpr auto itself = [](int number) { return number; };

inline Ints numbers(int count) {
  Ints all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// The same for input that workers inherit and for input that is pulled and sent.
template <class Code>
void for_each_kind_of_input(int count, Code code) {
  SECTION("inherited") {
    const Ints items = numbers(count);
    code(items);
  }
  SECTION("sent") {
    const Ints all = numbers(count);
    const std::list<int> items(all.begin(), all.end());
    code(items);
  }
}

template <class R>
const Error& error_of(const MapResult<R>& result, std::size_t index) {
  const auto failures = result.failures();
  const auto found = std::ranges::find(failures, index, &Failure::index);
  if (found == failures.end()) throw std::logic_error("item " + std::to_string(index) + " did not fail");
  return found->error;
}

template <class R>
bool failed(const MapResult<R>& result, std::size_t index) {
  return std::ranges::find(result.failures(), index, &Failure::index) != result.failures().end();
}

template <class R>
Ints attempts_of(const MapResult<R>& result) {
  Ints all;
  for (const auto& item : result.item_results()) all.push_back(item.attempts);
  return all;
}

template <class R>
std::vector<R> list_of(const MapResult<R>& result) {
  return std::vector<R>(result.begin(), result.end());
}

struct Boom : std::runtime_error {
  using runtime_error::runtime_error;
};

[[noreturn]] inline void hang() {
  while (true) pause();
}

[[noreturn]] inline void crash() {
  raise(SIGKILL);
  hang();
}

/// As a task does that is asked to stop. Throws when nobody ever asks.
inline void wait_for_stop(const Task& task) {
  wait_until([&] { return task.stop.stop_requested(); });
}

}  // namespace support

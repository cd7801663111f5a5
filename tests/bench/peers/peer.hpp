// What all peers have in common. Each peer is a program of its own, so that no one's threads disturb another's:
//
//     PROGRAM --list              a line for each thing that it can measure: VARIANT<tab>WORKLOAD
//     PROGRAM VARIANT WORKLOAD    measures it once, and prints the number
//
// From the environment: WORKERS (2). Every result is checked; a wrong one ends the program with an error.
#pragma once

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "workloads.hpp"

namespace bench {

inline std::size_t workers() {
  const char* const text = std::getenv("WORKERS");
  return text != nullptr ? std::strtoul(text, nullptr, 10) : 2;
}

inline void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

/// The compiler must take it that somebody reads what the pointer points to.
inline void somebody_reads(const void* memory) { asm volatile("" : : "g"(memory) : "memory"); }

/// The program: what it can measure, and its main().
class Program {
 public:
  /// What has printed its answer gives no number.
  using Measure = std::function<std::optional<double>()>;

  void add(std::string variant, std::string workload, Measure measure) {
    entries_.push_back({std::move(variant), std::move(workload), std::move(measure)});
  }

  int main(int argc, char** argv) const {
    if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
      for (const Entry& entry : entries_) std::printf("%s\t%s\n", entry.variant.c_str(), entry.workload.c_str());
      return 0;
    }
    if (argc != 3) {
      std::fprintf(stderr, "usage: %s --list | %s VARIANT WORKLOAD\n", argv[0], argv[0]);
      return 2;
    }
    for (const Entry& entry : entries_) {
      if (entry.variant == argv[1] && entry.workload == argv[2]) return measure(entry);
    }
    std::fprintf(stderr, "%s does not know '%s' '%s'\n", argv[0], argv[1], argv[2]);
    return 2;
  }

 private:
  struct Entry {
    std::string variant;
    std::string workload;
    Measure measure;
  };

  static int measure(const Entry& entry) {
    try {
      if (const auto number = entry.measure()) std::printf("%.6g\n", *number);
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s %s: %s\n", entry.variant.c_str(), entry.workload.c_str(), error.what());
      return 1;
    }
  }

  std::vector<Entry> entries_;
};

// How long something takes, in nanoseconds -----------------------------------------------------------------

using Clock = std::chrono::steady_clock;

inline double nanoseconds(Clock::duration time) { return std::chrono::duration<double, std::nano>(time).count(); }

inline constexpr std::chrono::milliseconds long_enough{100};

/// Of call(), called again and again; the looks at the clock are few.
template <class Call>
double back_to_back(Call call) {
  std::size_t batch = 1;
  for (const auto warm = Clock::now() + std::chrono::milliseconds{30}; Clock::now() < warm;) {
    const auto begin = Clock::now();
    for (std::size_t i = 0; i < batch; ++i) call();
    if (Clock::now() - begin < std::chrono::milliseconds{1}) batch *= 2;
  }
  std::size_t calls = 0;
  const auto begin = Clock::now();
  auto end = begin;
  for (; end - begin < long_enough; end = Clock::now(), calls += batch) {
    for (std::size_t i = 0; i < batch; ++i) call();
  }
  return nanoseconds(end - begin) / static_cast<double>(calls);
}

/// Of call() alone, which gives what is then looked at by `check_result`, and destroyed: neither counts. All of the
/// first result is looked at and a sample of the others, so that the calls follow each other soon.
template <class Call, class Check>
double each_call(Call call, Check check_result) {
  const auto look = [&](const auto& result) {
    if constexpr (requires { check_result.sample(result); }) {
      check_result.sample(result);
    } else {
      check_result(result);
    }
  };
  check_result(call());
  Clock::duration sum{};
  int calls = 0;
  for (; sum < long_enough || calls < 3; ++calls) {
    const auto begin = Clock::now();
    auto result = call();
    sum += Clock::now() - begin;
    look(result);
  }
  return nanoseconds(sum) / calls;
}

/// Of bucket.try_acquire(), as each of so many threads sees it. There must always be a token.
template <class Bucket>
double try_acquire(Bucket& bucket, std::size_t threads) {
  constexpr std::size_t calls = 3'000'000;
  std::barrier line{static_cast<std::ptrdiff_t>(threads) + 1};
  std::vector<std::jthread> running;
  for (std::size_t i = 0; i < threads; ++i) {
    running.emplace_back([&] {
      line.arrive_and_wait();
      std::size_t granted = 0;
      for (std::size_t call = 0; call < calls; ++call) granted += bucket.try_acquire() ? 1 : 0;
      line.arrive_and_wait();
      check(granted == calls, "the number of grants");
    });
  }
  line.arrive_and_wait();
  const auto begin = Clock::now();
  line.arrive_and_wait();
  return nanoseconds(Clock::now() - begin) / calls;
}

/// Of each trivial item that a generator gives. add_up(count) gives what the results add up to.
template <class AddUp>
double pulled_and_discarded(AddUp add_up) {
  constexpr std::int64_t count = 10'000'000;
  return each_call([&] { return add_up(count); },
                   [](std::int64_t sum) { check(sum == sum_of_trivial(count), "the sum"); }) /
         count;
}

/// Of a call after 3 ms without any: a median.
template <class Call>
double after_idleness(Call call) {
  for (int i = 0; i < 50; ++i) call();
  std::vector<double> times(61);
  for (double& time : times) {
    std::this_thread::sleep_for(std::chrono::milliseconds{3});
    const auto begin = Clock::now();
    call();
    time = nanoseconds(Clock::now() - begin);
  }
  std::ranges::nth_element(times, times.begin() + std::ssize(times) / 2);
  return times[times.size() / 2];
}

// What a map is measured by --------------------------------------------------------------------------------

using Input = std::span<const std::int64_t>;
using Output = std::span<std::int64_t>;

/// A peer that can only loop, `each(count, body)` with body(index), fills a vector made for the call.
template <class Loop>
class LoopPeer {
 public:
  explicit LoopPeer(std::size_t workers) : loop_(workers) {}

  template <class F>
  std::vector<std::int64_t> map(F fn, Input input) {
    std::vector<std::int64_t> results(input.size());
    map_into(fn, input, results);
    return results;
  }

  template <class F>
  void map_into(F fn, Input input, Output results) {
    loop_.each(input.size(), [fn, in = input.data(), out = results.data()](std::size_t i) { out[i] = fn(in[i]); });
  }

 private:
  Loop loop_;
};

/// Checks what map(fn, input) gave. The expected values are worked out once.
template <class F>
class Expected {
 public:
  Expected(F fn, Input input) {
    values_.reserve(input.size());
    for (const std::int64_t item : input) values_.push_back(fn(item));
  }

  template <class Results>
  void operator()(const Results& results) const {
    check(std::ranges::equal(std::span(std::to_address(results.begin()), results.size()), values_), "the results");
  }

  /// The last one, and about a hundred others.
  template <class Results>
  void sample(const Results& results) const {
    check(results.size() == values_.size(), "the number of results");
    const auto* const found = std::to_address(results.begin());
    for (std::size_t i = 0; i < values_.size(); i += values_.size() / 100 + 1) {
      check(found[i] == values_[i], "the results");
    }
    check(found[values_.size() - 1] == values_.back(), "the last result");
  }

 private:
  std::vector<std::int64_t> values_;
};

/// ns per call of map(fn, 0 to count - 1), timed by `time`, which is given the call. All results are checked
/// before, and one of each call while it is timed.
template <class Peer, class F, class Time>
double small_calls(std::size_t count, F fn, Time time) {
  const auto input = numbers(count);
  const Expected expected{fn, input};
  Peer peer{workers()};
  expected(peer.map(fn, input));
  std::size_t turn = 0;
  const std::int64_t last = fn(input[count - 1]);
  const double result = time([&] {
    const auto results = peer.map(fn, input);
    somebody_reads(std::to_address(results.begin()));
    check(std::to_address(results.begin())[count - 1] == last, "the last result");
    ++turn;
  });
  check(turn > 0, "nothing was called");
  expected(peer.map(fn, input));
  return result;
}

/// ns per call of map(fn, 0 to count - 1), which takes at least milliseconds.
template <class Peer, class F>
double large_calls(std::size_t count, F fn, std::size_t worker_count = workers()) {
  const auto input = numbers(count);
  const Expected expected{fn, input};
  Peer peer{worker_count};
  return each_call([&] { return peer.map(fn, input); }, expected);
}

/// The same, into memory that is there already.
template <class Peer, class F>
double reused_calls(std::size_t count, F fn) {
  const auto input = numbers(count);
  const Expected expected{fn, input};
  Peer peer{workers()};
  std::vector<std::int64_t> results(count);
  const auto call = [&] {
    peer.map_into(fn, input, results);
    return std::span<const std::int64_t>(results);
  };
  const double time = each_call(call, expected);
  std::ranges::fill(results, -1);
  expected(call());  // they were written again
  return time;
}

/// ms of the first call of the process: until all workers sleep in their items, they have to be there.
template <class Peer, class F>
double first_call(std::size_t count, F fn, std::size_t worker_count) {
  const auto input = numbers(count);
  const auto begin = Clock::now();
  Peer peer{worker_count};
  const auto results = peer.map(fn, input);
  const double time = nanoseconds(Clock::now() - begin);
  Expected{trivial, input}(results);
  return time / 1e6;
}

/// The same, but of later calls.
template <class Peer, class F>
double blocked_calls(std::size_t count, F fn, std::size_t worker_count) {
  const auto input = numbers(count);
  const Expected expected{trivial, input};
  Peer peer{worker_count};
  return each_call([&] { return peer.map(fn, input); }, expected) / 1e6;
}

/// All that can be measured of something with map(fn, input) and map_into(fn, input, results), which is made
/// from the number of workers.
template <class Peer>
void add_maps(Program& program, const std::string& variant) {
  const auto add = [&](const char* workload, Program::Measure measure) {
    program.add(variant, workload, std::move(measure));
  };
  const auto working = [](std::int64_t steps) { return [steps](std::int64_t item) { return work(item, steps); }; };
  constexpr auto one = [](std::int64_t item) { return trivial(item); };
  constexpr auto micro = [](std::int64_t item) { return work(item, steps_per_microsecond); };
  const auto timed_back_to_back = [](auto call) { return back_to_back(call); };
  const auto timed_after_idleness = [](auto call) { return after_idleness(call); };

  for (const std::size_t count : {100U, 1'000U, 10'000U}) {
    add(("call_" + std::to_string(count)).c_str(), [=] { return small_calls<Peer>(count, one, timed_back_to_back); });
  }
  add("idle_100", [=] { return small_calls<Peer>(100, one, timed_after_idleness); });
  add("idle_200us", [=] { return small_calls<Peer>(200, micro, timed_after_idleness); });

  constexpr std::size_t many = 10'000'000;
  add("fresh_10M", [=] { return large_calls<Peer>(many, one) / many; });
  add("reused_10M", [=] { return reused_calls<Peer>(many, one) / many; });

  const auto add_grain = [&](const char* workload, std::size_t count, std::int64_t steps) {
    add(workload, [=] { return large_calls<Peer>(count, working(steps)) / static_cast<double>(count); });
  };
  add_grain("grain_62ns", 1'000'000, 88);
  add_grain("grain_1us", 100'000, 884);
  add_grain("grain_10us", 10'000, 8'840);
  add_grain("grain_100us", 1'000, 88'400);

  const auto add_shape = [&](const char* workload, std::int64_t (*steps)(std::int64_t)) {
    add(workload, [=] {
      return large_calls<Peer>(shape_items, [steps](std::int64_t item) { return work(item, steps(item)); }) / 1e6;
    });
  };
  add_shape("shape_linear", linear_steps);
  add_shape("shape_scattered", scattered_steps);
  add_shape("shape_tail", tail_steps);

  add("cold_start", [=] {
    const auto input = numbers(200);
    Peer peer{workers()};
    Expected{micro, input}(peer.map(micro, input));
    return 0;
  });
}

/// More workers than CPUs, all of them asleep in their items. Not for those that run items one after another.
template <class Peer>
void add_blocked(Program& program, const std::string& variant) {
  const auto sleep_1ms = [](std::int64_t item) { return sleeping(item, std::chrono::milliseconds{1}); };
  const auto sleep_10ms = [](std::int64_t item) { return sleeping(item, std::chrono::milliseconds{10}); };
  program.add(variant, "blocked_100_cold", [=] { return first_call<Peer>(1'000, sleep_1ms, 100); });
  program.add(variant, "blocked_100_warm", [=] { return blocked_calls<Peer>(1'000, sleep_1ms, 100); });
  program.add(variant, "blocked_1000_cold", [=] { return first_call<Peer>(10'000, sleep_10ms, 1'000); });
  program.add(variant, "blocked_1000_warm", [=] { return blocked_calls<Peer>(10'000, sleep_10ms, 1'000); });
}

}  // namespace bench

// The pool of threads at the edges of a process's life: exit, static destructors, fork. (C7, C8)
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <latch>
#include <list>
#include <numeric>
#include <pyarallel.hpp>
#include <ranges>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using namespace support;
using namespace std::chrono_literals;

namespace {

/// Maps in every way that needs other parts of the library; true if all went well.
bool maps_work() {
  const auto items = std::views::iota(0, 60);
  const auto inner = [](int i) {
    const auto result = parallel_map([](int j) { return j; }, std::views::iota(0, 10), {.workers = 3});
    return i + std::accumulate(result.begin(), result.end(), 0);
  };
  const auto right = [](const MapResult<int>& result) {
    return std::accumulate(result.begin(), result.end(), 0) == 60 * 59 / 2 + 60 * 45;
  };
  const auto fail = [](int i) -> int { throw i; };
  return right(parallel_map(inner, items, {.workers = 4})) &&
         right(parallel_map(inner, std::list<int>(items.begin(), items.end()), {.workers = 4})) &&
         right(parallel_map(inner, items,
                            {.workers = 4,
                             .rate_limit = 1e7,
                             .retry = Retry{},
                             .timeout = 1h,
                             .on_progress = [](std::size_t, std::size_t) {}})) &&
         parallel_map(fail, items, {.workers = 4, .retry = Retry{.attempts = 2, .backoff = 1us}}).failures().size() ==
             60;
}

/// All workers meet, so that this many threads exist.
void warm_up(int workers) {
  std::latch all{workers};
  parallel_map([&](int) { all.arrive_and_wait(); }, std::views::iota(0, workers),
               {.workers = static_cast<std::size_t>(workers), .batch = Batch{.chunk = 1}})
      .throw_on_failure();
}

/// Runs what a child armed it with when static objects are destroyed.
struct AtDestruction {
  std::function<void()> run = [] {};
  AtDestruction() = default;
  AtDestruction(const AtDestruction&) = delete;
  AtDestruction& operator=(const AtDestruction&) = delete;
  ~AtDestruction() { run(); }
};
AtDestruction constructed_before_any_call;
std::function<void()> in_atexit_handler;

bool skipped(bool possible = children_may_start_threads) {
  if (!possible) WARN("skipped: this sanitizer cannot follow the child");
  return !possible;
}

void say(const Parent& parent, const std::string& who) { parent.tell(who + (maps_work() ? " worked " : " failed ")); }

}  // namespace

TEST_CASE("C7 a process exits while the pool has idle threads") {
  if (skipped()) return;
  const auto child = in_child([](Parent) {
    warm_up(20);
    std::exit(7);
  });
  CHECK(child.end() == "exited with 7");
}

TEST_CASE("C7 a process exits where there never was a call or only one") {
  if (skipped()) return;
  CHECK(in_child([](Parent) { std::exit(7); }).end() == "exited with 7");
  const auto one_call = in_child([](Parent) {
    parallel_map([](int) {}, std::views::iota(0, 3)).throw_on_failure();
    std::exit(7);
  });
  CHECK(one_call.end() == "exited with 7");
}

TEST_CASE("C7 an item may exit the process") {
  if (skipped()) return;
  const auto exit_in = [](int item, int items, std::size_t workers, bool pulled, bool policy) {
    return in_child([=](Parent) {
      const auto fn = [item](int i) {
        if (i == item) std::exit(7);
        std::this_thread::yield();
      };
      MapOptions<int, std::monostate> options{.workers = workers};
      if (policy) options.on_progress = [](std::size_t, std::size_t) {};
      if (pulled) {
        const auto range = std::views::iota(0, items);
        parallel_map(fn, std::list<int>(range.begin(), range.end()), options);
      } else {
        parallel_map(fn, std::views::iota(0, items), options);
      }
    });
  };
  for (const bool pulled : {false, true}) {
    for (const bool policy : {false, true}) {
      CHECK(exit_in(0, 1, 1, pulled, policy).end() == "exited with 7");
      CHECK(exit_in(0, 50, 4, pulled, policy).end() == "exited with 7");
      CHECK(exit_in(49, 50, 4, pulled, policy).end() == "exited with 7");
    }
  }
}

TEST_CASE("C7 an item may exit the process while others are blocked for ever") {
  if (skipped()) return;
  for (int round = 0; round < 5; ++round) {
    for (const bool pulled : {false, true}) {
      const auto child = in_child([=](Parent) {
        std::latch never{1};
        const auto fn = [&](int i) {
          if (i == 3) std::exit(7);
          never.wait();
        };
        const MapOptions<int, std::monostate> options{.workers = 8, .batch = Batch{.chunk = 1}};
        if (pulled) {
          parallel_map(fn, std::list<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, options);
        } else {
          parallel_map(fn, std::views::iota(0, 10), options);
        }
      });
      CHECK(child.end() == "exited with 7");
      if (child.hung) return;
    }
  }
}

TEST_CASE("C8 static destructors and atexit handlers may call") {
  if (skipped()) return;
  const auto run = [](bool call_before) {
    return in_child([=](Parent parent) {
      constructed_before_any_call.run = [=] { say(parent, "static-before"); };
      if (call_before) {
        if (!maps_work()) _exit(1);
        warm_up(10);
      }
      static AtDestruction constructed_after_a_call;
      constructed_after_a_call.run = [=] { say(parent, "static-after"); };
      in_atexit_handler = [=] { say(parent, "atexit"); };
      std::atexit([] { in_atexit_handler(); });
      std::exit(7);
    });
  };
  for (const bool call_before : {true, false}) {
    const auto child = run(call_before);
    CHECK(child.told == "atexit worked static-after worked static-before worked ");
    CHECK(child.end() == "exited with 7");
  }
}

TEST_CASE("C8 a thread that the program leaves behind may call while the process exits") {
  if (skipped()) return;
  for (int round = 0; round < 5; ++round) {
    const auto child = in_child([](Parent) {
      auto* started = new std::latch{1};
      std::thread([started] {
        for (int i = 0;; ++i) {
          parallel_map([](int) {}, std::views::iota(0, 40), {.workers = 4}).throw_on_failure();
          if (i == 3) started->count_down();
        }
      }).detach();
      started->wait();
      std::exit(7);
    });
    CHECK(child.end() == "exited with 7");
    if (child.hung) return;
  }
}

TEST_CASE("C8 a child that the program forks starts over") {
  if (skipped(may_fork_while_threads_run)) return;
  warm_up(20);
  for (const bool by_exit : {true, false}) {
    const auto child = in_child([=](Parent parent) {
      say(parent, "child");
      const auto grandchild = in_child([](Parent) { _exit(maps_work() ? 5 : 6); });
      parent.tell(grandchild.end() == "exited with 5" ? "grandchild worked" : "grandchild failed");
      by_exit ? std::exit(7) : _exit(7);
    });
    CHECK(child.told == "child worked grandchild worked");
    CHECK(child.end() == "exited with 7");
  }
  CHECK(maps_work());
}

TEST_CASE("C8 a child forked while calls are running starts over") {
  if (skipped(may_fork_while_threads_run)) return;
  const Watchdog watchdog;
  std::atomic<bool> stop{false};
  std::atomic<bool> wrong{false};
  std::vector<std::jthread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      while (!stop) {
        if (!maps_work()) wrong = true;
      }
    });
  }
  for (int round = 0; round < 10; ++round) {
    const auto child = in_child([](Parent) { _exit(maps_work() ? 7 : 8); });
    CHECK(child.end() == "exited with 7");
    if (child.hung) break;
  }
  stop = true;
  callers.clear();
  CHECK_FALSE(wrong);
}

TEST_CASE("C8 a child forked by an item starts over") {
  if (skipped(may_fork_while_threads_run)) return;
  const auto fork_one = [](int) { return in_child([](Parent) { _exit(maps_work() ? 7 : 8); }).end(); };
  const auto result = parallel_map(fork_one, std::views::iota(0, 4), {.workers = 2, .batch = Batch{.chunk = 1}});
  for (const std::string& end : result) CHECK(end == "exited with 7");
}

TEST_CASE("C11 a run starts no more threads than it has items") {
  if (skipped()) return;
  // In a child, where only this run starts threads, besides the calling one.
  const auto threads_after = [](auto run) {
    const auto child = in_child([&](Parent parent) {
      run();
      const auto tasks = detail::read_file("/proc/self/status").value_or("Threads:\t0");
      parent.tell(tasks.substr(tasks.find("Threads:") + 8));
    });
    return std::stoi(child.told);
  };
  const auto nothing = [](int) {};
  const auto wide = MapOptions<int, std::monostate>{.workers = 50};
  const auto unsized = std::views::iota(0) | std::views::take_while([](int i) { return i < 3; });
  CHECK(threads_after([&] { parallel_map(nothing, std::vector<int>{}, wide); }) == 1);
  CHECK(threads_after([&] { parallel_map(nothing, std::vector<int>(1), wide); }) <= 1 + 1);
  CHECK(threads_after([&] { parallel_map(nothing, std::vector<int>(3), wide); }) <= 1 + 3);
  CHECK(threads_after([&] { parallel_map(nothing, std::list<int>(3), wide); }) <= 1 + 3);
  CHECK(threads_after([&] { parallel_map(nothing, unsized, wide); }) <= 1 + 3);
}

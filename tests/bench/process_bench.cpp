// Forked workers beside what one would write by hand for each workload alone: fork, shared memory, pipes.
// Repetitions of all peers are interleaved; medians are printed.
#if !PYARALLEL_HAS_BENCHMARK
#include <cstdio>
int main() { std::puts("skipped: Google Benchmark is missing"); }
#else
#include <benchmark/benchmark.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <list>
#include <new>
#include <numeric>
#include <pyarallel.hpp>
#include <vector>

#include "interleaved.hpp"

namespace {

using namespace pyarallel;

constexpr int workers = 2;

template <class Map>
void measure(benchmark::State& state, std::size_t items, Map map) {
  for (auto _ : state) map();
  state.SetItemsProcessed(state.iterations() * static_cast<std::int64_t>(items));
}

template <class T>
T* share(std::size_t count) {
  return static_cast<T*>(::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

template <class Work>
pid_t fork_worker(Work work) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  work();
  ::_exit(0);
}

void reap(std::initializer_list<pid_t> pids) {
  for (const pid_t pid : pids) ::waitpid(pid, nullptr, 0);
}

// Trivial items ------------------------------------------------------------------------------------------

std::int64_t trivial(int item) { return std::int64_t{item} * 3 + 1; }

std::vector<int> numbers(std::size_t count) {
  std::vector<int> all(count);
  std::iota(all.begin(), all.end(), 0);
  return all;
}

void map_trivial(benchmark::State& state, std::size_t count, Batch batch) {
  const auto input = numbers(count);
  measure(state, count, [&] {
    const auto result = parallel_map([](int item) { return trivial(item); }, input,
                                     {.workers = workers, .executor = Executor::process, .batch = batch});
    if (result[count - 1] != trivial(input.back())) std::abort();
  });
}

// Workers share out the items by guided chunks, and write into a shared array.
void fork_guided(benchmark::State& state, std::size_t count) {
  const auto input = numbers(count);
  measure(state, count, [&] {
    auto* const results = share<std::int64_t>(count);
    auto* const next = new (share<std::atomic<std::size_t>>(1)) std::atomic<std::size_t>{0};
    const auto work = [&] {
      for (std::size_t first = next->load(); first < count;) {
        const std::size_t last = first + std::max<std::size_t>((count - first) / (2 * workers), 256);
        if (!next->compare_exchange_weak(first, last)) continue;
        for (std::size_t i = first; i < std::min(last, count); ++i) results[i] = trivial(input[i]);
        first = next->load();
      }
    };
    reap({fork_worker(work), fork_worker(work)});
    if (results[count - 1] != trivial(input.back())) std::abort();
    ::munmap(results, count * sizeof(std::int64_t));
    ::munmap(next, sizeof *next);
  });
}

void fork_and_reap(benchmark::State& state) {
  measure(state, 1, [] { reap({fork_worker([] {}), fork_worker([] {})}); });
}

// Large results ------------------------------------------------------------------------------------------

constexpr std::size_t large = std::size_t{1} << 20;
constexpr std::size_t large_count = 200;

std::vector<char> make_large(int item) { return std::vector<char>(large, static_cast<char>(item)); }

void map_large(benchmark::State& state) {
  const auto input = numbers(large_count);
  measure(state, large_count, [&] {
    const auto result = parallel_map(make_large, input, {.workers = workers, .executor = Executor::process});
    if (result[large_count - 1].size() != large) std::abort();
  });
}

// Each worker has four slots, which it uses again and again; the parent copies out.
void fork_slots(benchmark::State& state) {
  constexpr std::size_t slots = 4;
  struct Lane {
    sem_t free;
    sem_t filled;
  };
  measure(state, large_count, [&] {
    auto* const lanes = share<Lane>(workers);
    auto* const memory = share<char>(workers * slots * large);
    std::array<pid_t, workers> pids{};
    for (std::size_t worker = 0; worker < workers; ++worker) {
      ::sem_init(&lanes[worker].free, 1, slots);
      ::sem_init(&lanes[worker].filled, 1, 0);
      pids[worker] = fork_worker([&] {
        for (std::size_t i = worker, turn = 0; i < large_count; i += workers, ++turn) {
          const auto value = make_large(static_cast<int>(i));
          while (::sem_wait(&lanes[worker].free) != 0) {
          }
          std::memcpy(memory + (worker * slots + turn % slots) * large, value.data(), large);
          ::sem_post(&lanes[worker].filled);
        }
      });
    }
    std::vector<std::vector<char>> results(large_count);
    for (std::size_t i = 0; i < large_count; ++i) {
      const std::size_t worker = i % workers;
      while (::sem_wait(&lanes[worker].filled) != 0) {
      }
      const char* const slot = memory + (worker * slots + i / workers % slots) * large;
      results[i].assign(slot, slot + large);
      ::sem_post(&lanes[worker].free);
    }
    for (const pid_t pid : pids) reap({pid});
    if (results[large_count - 1].size() != large) std::abort();
    ::munmap(lanes, workers * sizeof(Lane));
    ::munmap(memory, workers * slots * large);
  });
}

// One item at a time -------------------------------------------------------------------------------------

constexpr std::size_t single_count = 100'000;

void map_pulled(benchmark::State& state, Batch batch) {
  const auto numbered = numbers(single_count);
  const std::list<int> input(numbered.begin(), numbered.end());
  measure(state, single_count, [&] {
    const auto result = parallel_map([](int item) { return trivial(item); }, input,
                                     {.workers = workers, .executor = Executor::process, .batch = batch});
    if (result[single_count - 1] != trivial(input.back())) std::abort();
  });
}

// An item down a pipe to a worker, its result up another, and then the next.
void fork_pipes(benchmark::State& state) {
  constexpr std::size_t count = single_count / 10;
  measure(state, count, [&] {
    struct Lane {
      int down[2];
      int up[2];
      pid_t pid;
    };
    std::array<Lane, workers> lanes{};
    for (Lane& lane : lanes) {
      if (::pipe(lane.down) != 0 || ::pipe(lane.up) != 0) std::abort();
      lane.pid = fork_worker([&] {
        int item = 0;
        while (::read(lane.down[0], &item, sizeof item) == sizeof item && item >= 0) {
          const std::int64_t result = trivial(item);
          if (::write(lane.up[1], &result, sizeof result) != sizeof result) break;
        }
      });
    }
    const auto send = [](const Lane& lane, int item) {
      if (::write(lane.down[1], &item, sizeof item) != sizeof item) std::abort();
    };
    std::size_t sent = 0;
    for (const Lane& lane : lanes) send(lane, static_cast<int>(sent++));
    for (std::size_t heard = 0; heard < count;) {
      std::array<pollfd, workers> polled{};
      for (std::size_t i = 0; i < workers; ++i) polled[i] = {lanes[i].up[0], POLLIN, 0};
      ::poll(polled.data(), workers, -1);
      for (std::size_t i = 0; i < workers; ++i) {
        if ((polled[i].revents & POLLIN) == 0) continue;
        std::int64_t result = 0;
        if (::read(lanes[i].up[0], &result, sizeof result) != sizeof result) std::abort();
        ++heard;
        if (sent < count) send(lanes[i], static_cast<int>(sent++));
      }
    }
    for (const Lane& lane : lanes) {
      send(lane, -1);
      reap({lane.pid});
      for (const int end : {lane.down[0], lane.down[1], lane.up[0], lane.up[1]}) ::close(end);
    }
  });
}

// Beginnings and ends ------------------------------------------------------------------------------------

void first_result(benchmark::State& state) {
  const auto input = numbers(2);
  for (auto _ : state) {
    const auto begin = std::chrono::steady_clock::now();
    auto first = begin;
    const auto result =
        parallel_map(trivial, input, {.workers = workers, .executor = Executor::process, .on_result = [&](const auto&) {
                                        if (first == begin) first = std::chrono::steady_clock::now();
                                      }});
    state.SetIterationTime(std::chrono::duration<double>(first - begin).count());
  }
}

// Twenty items that crash, on one worker: the time for each is a crash, a fork, and what lies between.
void crashes(benchmark::State& state) {
  constexpr std::size_t count = 20;
  const auto input = numbers(count);
  measure(state, count, [&] {
    const auto result = parallel_map(
        [](int) {
          ::raise(SIGKILL);
          return 0;
        },
        input, {.workers = std::size_t{1}, .executor = Executor::process});
    if (result.failures().size() != count) std::abort();
  });
}

void fork_kill_and_reap(benchmark::State& state) {
  measure(state, 1, [] { reap({fork_worker([] { ::raise(SIGKILL); })}); });
}

}  // namespace

int main(int argc, char** argv) {
  const auto add = [](const char* name, auto function) {
    return benchmark::RegisterBenchmark(name, function)->UseRealTime()->Unit(benchmark::kMillisecond);
  };
  add("trivial_10M/pyarallel", [](auto& state) { map_trivial(state, 10'000'000, {}); });
  add("trivial_10M/fork_guided", [](auto& state) { fork_guided(state, 10'000'000); });
  add("trivial_100k/pyarallel", [](auto& state) { map_trivial(state, 100'000, {}); });
  add("trivial_100k/fork_guided", [](auto& state) { fork_guided(state, 100'000); });
  add("trivial_100k/fork_and_reap_two", fork_and_reap);
  add("results_of_1MiB/pyarallel", map_large);
  add("results_of_1MiB/fork_slots", fork_slots);
  add("single_items/pyarallel_inherited", [](auto& state) { map_trivial(state, single_count, {.chunk = 1}); });
  add("single_items/pyarallel_pulled", [](auto& state) { map_pulled(state, {.chunk = 1}); });
  add("single_items/pyarallel_pulled_window_of_100", [](auto& state) { map_pulled(state, {.size = 100, .chunk = 1}); });
  add("single_items/fork_pipes", fork_pipes);
  benchmark::RegisterBenchmark("first_result/pyarallel", first_result)->UseManualTime()->Unit(benchmark::kMillisecond);
  add("first_result/fork_and_reap_two", fork_and_reap);
  add("crash_and_replacement/pyarallel", crashes);
  add("crash_and_replacement/fork_kill_and_reap", fork_kill_and_reap);

  run_interleaved(argc, argv);
}
#endif

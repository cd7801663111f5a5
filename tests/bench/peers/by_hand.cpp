// What one would write by hand for a single workload, with nothing else in it: forked workers that share memory or
// pipes, rate limits, loops that catch exceptions, a lock round a generator.
#include <poll.h>
#include <semaphore.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <exception>
#include <initializer_list>
#include <mutex>
#include <new>
#include <stdexcept>

#include "peer.hpp"

namespace {

// Processes ------------------------------------------------------------------------------------------------

/// Memory that the processes forked later have too.
template <class T>
class Shared {
 public:
  explicit Shared(std::size_t count)
      : count_(count),
        memory_(static_cast<T*>(
            ::mmap(nullptr, count * sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0))) {
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
  }
  Shared(Shared&& other) noexcept : count_(other.count_), memory_(std::exchange(other.memory_, nullptr)) {}
  Shared& operator=(Shared&&) = delete;
  ~Shared() {
    if (memory_ != nullptr) ::munmap(memory_, count_ * sizeof(T));
  }

  T* begin() const { return memory_; }
  std::size_t size() const { return count_; }
  T& operator[](std::size_t index) const { return memory_[index]; }

 private:
  std::size_t count_;
  T* memory_;
};

template <class Work>
pid_t fork_worker(Work work) {
  const pid_t pid = ::fork();
  if (pid < 0) throw std::runtime_error("fork");
  if (pid != 0) return pid;
  work();
  ::_exit(0);
}

void reap(const auto& pids) {
  for (const pid_t pid : pids) ::waitpid(pid, nullptr, 0);
}

/// Workers share out the items by chunks that shrink, and write into a shared array. ns per call.
double fork_guided(std::size_t count) {
  const auto input = bench::numbers(count);
  return bench::each_call(
      [&] {
        Shared<std::int64_t> results{count};
        const Shared<std::atomic<std::size_t>> counter{1};
        auto& next = *new (&counter[0]) std::atomic<std::size_t>{0};
        const std::size_t workers = bench::workers();
        const auto work = [&] {
          for (std::size_t first = next.load(); first < count;) {
            const std::size_t last = first + std::max<std::size_t>((count - first) / (2 * workers), 256);
            if (!next.compare_exchange_weak(first, last)) continue;
            for (std::size_t i = first; i < std::min(last, count); ++i) results[i] = bench::trivial(input[i]);
            first = next.load();
          }
        };
        std::vector<pid_t> pids;
        while (pids.size() < workers) pids.push_back(fork_worker(work));
        reap(pids);
        return results;
      },
      bench::Expected{bench::trivial, input});
}

/// Each worker has four slots, which it uses again and again; the parent copies out. ns per call.
double fork_slots() {
  constexpr std::size_t count = 200;
  constexpr std::size_t slots = 4;
  struct Lane {
    sem_t free;
    sem_t filled;
  };
  const auto wait = [](sem_t& semaphore) {
    while (::sem_wait(&semaphore) != 0) {
    }
  };
  return bench::each_call(
      [&] {
        const std::size_t workers = bench::workers();
        const Shared<Lane> lanes{workers};
        const Shared<char> memory{workers * slots * bench::large};
        std::vector<pid_t> pids;
        for (std::size_t worker = 0; worker < workers; ++worker) {
          ::sem_init(&lanes[worker].free, 1, slots);
          ::sem_init(&lanes[worker].filled, 1, 0);
          pids.push_back(fork_worker([&] {
            for (std::size_t i = worker, turn = 0; i < count; i += workers, ++turn) {
              const auto value = bench::make_large(static_cast<std::int64_t>(i));
              wait(lanes[worker].free);
              std::memcpy(&memory[(worker * slots + turn % slots) * bench::large], value.data(), bench::large);
              ::sem_post(&lanes[worker].filled);
            }
          }));
        }
        std::vector<std::vector<char>> results(count);
        for (std::size_t i = 0; i < count; ++i) {
          const std::size_t worker = i % workers;
          wait(lanes[worker].filled);
          const char* const slot = &memory[(worker * slots + i / workers % slots) * bench::large];
          results[i].assign(slot, slot + bench::large);
          ::sem_post(&lanes[worker].free);
        }
        reap(pids);
        return results;
      },
      [](const auto& results) {
        for (std::size_t i = 0; i < count; ++i) {
          bench::check(results[i] == bench::make_large(static_cast<std::int64_t>(i)), "the results");
        }
      });
}

/// An item down a pipe to a worker, its result up another, and then the next. ns per item.
double fork_pipes() {
  constexpr std::size_t count = 10'000;
  struct Lane {
    int down[2];
    int up[2];
    pid_t pid;
  };
  const auto send = [](const Lane& lane, std::int64_t item) {
    bench::check(::write(lane.down[1], &item, sizeof item) == sizeof item, "a pipe");
  };
  return bench::each_call(
             [&] {
               std::vector<Lane> lanes(bench::workers());
               for (Lane& lane : lanes) {
                 bench::check(::pipe(lane.down) == 0 && ::pipe(lane.up) == 0, "a pipe");
                 lane.pid = fork_worker([&] {
                   std::int64_t item = 0;
                   while (::read(lane.down[0], &item, sizeof item) == sizeof item && item >= 0) {
                     const std::int64_t result = bench::trivial(item);
                     if (::write(lane.up[1], &result, sizeof result) != sizeof result) break;
                   }
                 });
               }
               std::int64_t sum = 0;
               std::size_t sent = 0;
               for (const Lane& lane : lanes) send(lane, static_cast<std::int64_t>(sent++));
               std::vector<pollfd> polled(lanes.size());
               for (std::size_t heard = 0; heard < count;) {
                 for (std::size_t i = 0; i < lanes.size(); ++i) polled[i] = {lanes[i].up[0], POLLIN, 0};
                 ::poll(polled.data(), polled.size(), -1);
                 for (std::size_t i = 0; i < lanes.size(); ++i) {
                   if ((polled[i].revents & POLLIN) == 0) continue;
                   std::int64_t result = 0;
                   bench::check(::read(lanes[i].up[0], &result, sizeof result) == sizeof result, "a pipe");
                   bench::add_to(sum, result);
                   ++heard;
                   if (sent < count) send(lanes[i], static_cast<std::int64_t>(sent++));
                 }
               }
               for (const Lane& lane : lanes) {
                 send(lane, -1);
                 reap(std::array{lane.pid});
                 for (const int end : {lane.down[0], lane.down[1], lane.up[0], lane.up[1]}) ::close(end);
               }
               return sum;
             },
             [](std::int64_t sum) { bench::check(sum == bench::sum_of_trivial(count), "the sum"); }) /
         count;
}

/// ms: the least that forked workers cost.
double fork_and_reap() {
  return bench::back_to_back([] {
           std::vector<pid_t> pids;
           while (pids.size() < bench::workers()) pids.push_back(fork_worker([] {}));
           reap(pids);
         }) /
         1e6;
}

/// ms: a crash, and the next worker.
double fork_kill_and_reap() {
  return bench::back_to_back([] { reap(std::array{fork_worker([] { ::raise(SIGKILL); })}); }) / 1e6;
}

// Rate limits: one token a nanosecond, at most as many at once as a second brings ------------------------------

constexpr std::int64_t burst = 1'000'000'000;

std::int64_t now() { return bench::Clock::now().time_since_epoch().count(); }

/// GCRA: the next token's time is all there is.
class AtomicBucket {
 public:
  bool try_acquire() {
    const std::int64_t time = now();
    std::int64_t tail = tail_.load(std::memory_order_relaxed);
    while (true) {
      const std::int64_t next = std::max(tail, time - burst) + 1;
      if (next > time) return false;
      if (tail_.compare_exchange_weak(tail, next)) return true;
    }
  }

 private:
  std::atomic<std::int64_t> tail_{now() - burst};
};

class LockedBucket {
 public:
  bool try_acquire() {
    const std::lock_guard lock{mutex_};
    const std::int64_t time = now();
    tokens_ = std::min(tokens_ + static_cast<double>(time - last_), static_cast<double>(burst));
    last_ = time;
    if (tokens_ < 1) return false;
    tokens_ -= 1;
    return true;
  }

 private:
  std::mutex mutex_;
  std::int64_t last_ = now();
  double tokens_ = burst;
};

class ClockAlone {
 public:
  bool try_acquire() { return now() > 0; }
};

template <class Bucket>
double try_acquire(std::size_t threads) {
  Bucket bucket;
  return bench::try_acquire(bucket, threads);
}

template <class Bucket>
void add_limiter(bench::Program& program, const char* variant) {
  program.add(variant, "limiter_1", [] { return try_acquire<Bucket>(1); });
  program.add(variant, "limiter_2", [] { return try_acquire<Bucket>(2); });
}

// Items that throw -------------------------------------------------------------------------------------------

/// A part of the items for each thread. ns per item.
double failing() {
  constexpr std::size_t count = 1'000'000;
  const auto input = bench::numbers(count);
  const auto fn = [](std::int64_t item) -> std::int64_t {
    if (item >= 0) throw std::runtime_error("no such thing");
    return item;
  };
  return bench::each_call(
             [&] {
               std::vector<std::int64_t> results(count);
               std::vector<std::exception_ptr> errors(count);
               std::vector<std::jthread> threads;
               const std::size_t workers = bench::workers();
               for (std::size_t worker = 0; worker < workers; ++worker) {
                 threads.emplace_back([&, worker] {
                   for (std::size_t i = count * worker / workers; i < count * (worker + 1) / workers; ++i) {
                     try {
                       results[i] = fn(input[i]);
                     } catch (...) {
                       errors[i] = std::current_exception();
                     }
                   }
                 });
               }
               threads.clear();
               return errors;
             },
             [](const auto& errors) {
               bench::check(std::ranges::count(errors, nullptr) == 0, "the number of errors");
             }) /
         count;
}

// A lock round a generator -----------------------------------------------------------------------------------

constexpr std::int64_t many = 10'000'000;

/// Calls take(worker, number of the grab, items) for 256 items at once.
template <class Take>
void grab(std::int64_t count, Take take) {
  constexpr std::size_t at_once = 256;
  bench::Generator source{count};
  auto it = source.begin();
  std::size_t grabs = 0;
  std::mutex mutex;
  const auto run = [&](std::size_t worker) {
    std::array<std::int64_t, at_once> items{};
    while (true) {
      std::size_t number = 0;
      std::size_t size = 0;
      {
        const std::lock_guard lock{mutex};
        number = grabs++;
        for (; size < at_once && it != source.end(); ++it) items[size++] = *it;
      }
      if (size == 0) return;
      take(worker, number, std::span(items.data(), size));
    }
  };
  std::vector<std::jthread> threads;
  for (std::size_t worker = 1; worker < bench::workers(); ++worker) threads.emplace_back(run, worker);
  run(0);
}

double discard() {
  return bench::pulled_and_discarded([](std::int64_t count) {
    std::vector<bench::Sum> sums(bench::workers());
    grab(count, [&](std::size_t worker, std::size_t, auto items) {
      for (const std::int64_t item : items) bench::add_to(sums[worker].value, bench::trivial(item));
    });
    return bench::total(sums);
  });
}

/// Each worker keeps the results of its grabs, which are put in order at the end.
double collect() {
  using Part = std::pair<std::size_t, std::vector<std::int64_t>>;
  const auto input = bench::numbers(many);
  return bench::each_call(
             [] {
               std::vector<std::vector<Part>> parts(bench::workers());
               grab(many, [&](std::size_t worker, std::size_t number, auto items) {
                 auto& values = parts[worker].emplace_back(number, items.size()).second;
                 std::ranges::transform(items, values.begin(), bench::trivial);
               });
               std::vector<const std::vector<std::int64_t>*> in_order;
               for (const auto& of_worker : parts) {
                 for (const auto& [number, values] : of_worker) {
                   in_order.resize(std::max(in_order.size(), number + 1));
                   in_order[number] = &values;
                 }
               }
               std::vector<std::int64_t> results;
               results.reserve(many);
               for (const auto* values : in_order) results.insert(results.end(), values->begin(), values->end());
               return results;
             },
             bench::Expected{bench::trivial, input}) /
         many;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  program.add("fork, guided chunks", "process_10M", [] { return fork_guided(10'000'000) / 1e6; });
  program.add("fork, guided chunks", "process_100k", [] { return fork_guided(100'000) / 1e6; });
  program.add("fork and reap two", "process_100k", fork_and_reap);
  program.add("fork, reused slots", "process_1MiB", [] { return fork_slots() / 1e6; });
  program.add("fork, pipes", "process_single_pulled", fork_pipes);
  program.add("fork and reap two", "process_first_result", fork_and_reap);
  program.add("fork, kill and reap", "process_crash", fork_kill_and_reap);

  add_limiter<AtomicBucket>(program, "CAS + clock");
  add_limiter<LockedBucket>(program, "mutex bucket");
  add_limiter<ClockAlone>(program, "clock alone");
  program.add("clock alone", "progress", [] { return try_acquire<ClockAlone>(1); });

  program.add("try/catch by hand", "failing_1M", failing);
  program.add("mutex, 256 items a grab", "pulled_discard_10M", discard);
  program.add("mutex, 256 items a grab", "pulled_collect_10M", collect);
  return program.main(argc, argv);
}

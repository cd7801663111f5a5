// Several machines: pyarallel beside a manager/worker program written by hand for the same work over the same MPI.
//
//     mpirun -n 3 cluster_bench    # or more ranks, over several hosts; see run
//
// Rank 0 hands out, the others work. Each measurement is made with both in turn, several times; medians are printed.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <pyarallel.hpp>
#include <pyarallel/mpi.hpp>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using pyarallel::Batch;
using pyarallel::MapOptions;
using pyarallel::parallel_map;
using pyarallel::Retry;

// The work -----------------------------------------------------------------------------------------------

std::int64_t tiny(std::int32_t item) { return std::int64_t{item} * 3; }

constexpr std::size_t mebibyte = std::size_t{1} << 20;
std::vector<std::uint8_t> large(std::int32_t item) {
  return std::vector<std::uint8_t>(mebibyte, static_cast<std::uint8_t>(item));
}

std::int32_t slow(std::int32_t item) {
  std::this_thread::sleep_for(2s);
  return item;
}

// By hand ------------------------------------------------------------------------------------------------

// A message to a worker: some items; none: it is over. Back: their results, in order.
constexpr int to_tiny = 1;
constexpr int to_large = 2;
constexpr int answer = 3;

void work_by_hand(int tag) {
  std::vector<std::int32_t> items;
  std::vector<std::int64_t> results;
  while (true) {
    MPI_Status status;
    MPI_Probe(0, tag, MPI_COMM_WORLD, &status);
    int count = 0;
    MPI_Get_count(&status, MPI_INT32_T, &count);
    items.resize(static_cast<std::size_t>(count));
    MPI_Recv(items.data(), count, MPI_INT32_T, 0, tag, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (count == 0) return;
    if (tag == to_tiny) {
      results.clear();
      for (const std::int32_t item : items) results.push_back(tiny(item));
      MPI_Send(results.data(), count, MPI_INT64_T, 0, answer, MPI_COMM_WORLD);
    } else {
      const auto result = large(items[0]);
      MPI_Send(result.data(), static_cast<int>(result.size()), MPI_BYTE, 0, answer, MPI_COMM_WORLD);
    }
  }
}

// Each worker has up to `ahead` messages of `chunk` items at a time.
std::vector<std::int64_t> tiny_by_hand(const std::vector<std::int32_t>& items, std::size_t chunk, std::size_t ahead,
                                       int size) {
  std::vector<std::int64_t> results(items.size());
  std::size_t next = 0;
  std::size_t out = 0;
  std::vector<std::vector<std::size_t>> sent(static_cast<std::size_t>(size));  // what each worker has, in order
  std::vector<std::size_t> heard(static_cast<std::size_t>(size));
  const auto send = [&](int worker) {
    if (next == items.size()) return;
    const std::size_t count = std::min(chunk, items.size() - next);
    MPI_Send(items.data() + next, static_cast<int>(count), MPI_INT32_T, worker, to_tiny, MPI_COMM_WORLD);
    sent[static_cast<std::size_t>(worker)].push_back(next);
    next += count;
    ++out;
  };
  for (std::size_t i = 0; i < ahead; ++i) {
    for (int worker = 1; worker < size; ++worker) send(worker);
  }
  while (out > 0) {
    MPI_Status status;
    MPI_Probe(MPI_ANY_SOURCE, answer, MPI_COMM_WORLD, &status);
    const auto worker = static_cast<std::size_t>(status.MPI_SOURCE);
    int count = 0;
    MPI_Get_count(&status, MPI_INT64_T, &count);
    MPI_Recv(results.data() + sent[worker][heard[worker]++], count, MPI_INT64_T, status.MPI_SOURCE, answer,
             MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    --out;
    send(status.MPI_SOURCE);
  }
  for (int worker = 1; worker < size; ++worker) MPI_Send(nullptr, 0, MPI_INT32_T, worker, to_tiny, MPI_COMM_WORLD);
  return results;
}

void large_by_hand(std::size_t items, int size, std::vector<std::vector<std::uint8_t>>& results) {
  std::size_t next = 0;
  std::vector<std::vector<std::size_t>> sent(static_cast<std::size_t>(size));
  std::vector<std::size_t> heard(static_cast<std::size_t>(size));
  std::size_t out = 0;
  const auto send = [&](int worker) {
    if (next == items) return;
    const auto item = static_cast<std::int32_t>(next);
    MPI_Send(&item, 1, MPI_INT32_T, worker, to_large, MPI_COMM_WORLD);
    sent[static_cast<std::size_t>(worker)].push_back(next++);
    ++out;
  };
  for (int i = 0; i < 2; ++i) {
    for (int worker = 1; worker < size; ++worker) send(worker);
  }
  while (out > 0) {
    MPI_Status status;
    MPI_Probe(MPI_ANY_SOURCE, answer, MPI_COMM_WORLD, &status);
    const auto worker = static_cast<std::size_t>(status.MPI_SOURCE);
    int count = 0;
    MPI_Get_count(&status, MPI_BYTE, &count);
    auto& result = results[sent[worker][heard[worker]++]];
    result.resize(static_cast<std::size_t>(count));
    MPI_Recv(result.data(), count, MPI_BYTE, status.MPI_SOURCE, answer, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    --out;
    send(status.MPI_SOURCE);
  }
  for (int worker = 1; worker < size; ++worker) MPI_Send(nullptr, 0, MPI_INT32_T, worker, to_large, MPI_COMM_WORLD);
}

// Measuring ----------------------------------------------------------------------------------------------

template <class Run>
double seconds_of(Run&& run) {
  const auto start = Clock::now();
  run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Workers alternate between the two, told which by a number.
enum class Turn : int { by_hand_tiny, by_hand_large, pyarallel, end };
void announce(Turn turn) {
  int number = static_cast<int>(turn);
  MPI_Bcast(&number, 1, MPI_INT, 0, MPI_COMM_WORLD);
}

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong results: %s\n", what);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

void print(const char* what, double amount, const char* unit, const std::vector<double>& by_hand,
           const std::vector<double>& ours) {
  const double a = amount / median(by_hand);
  const double b = amount / median(ours);
  std::printf("| %s | %.3g %s | %.3g %s | %.2f |\n", what, a, unit, b, unit, b / a);
  std::fflush(stdout);
}

template <class Run>
void on_cluster(Run run) {
  announce(Turn::pyarallel);
  pyarallel::mpi::Cluster cluster{MPI_COMM_WORLD, {.threads_per_rank = 1}};
  cluster.serve(tiny, large, slow);
  run(cluster);
}

// Nothing but to begin, meet, and end.
int start_by_hand(int& argc, char**& argv) {
  MPI_Init(&argc, &argv);
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  return 0;
}
int start_cluster(int& argc, char**& argv, pyarallel::mpi::ClusterOptions options) {
  pyarallel::mpi::Cluster cluster{argc, argv, std::move(options)};
  cluster.serve(tiny);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  if (first == "start_by_hand") return start_by_hand(argc, argv);
  if (first == "start_threads") return start_cluster(argc, argv, {.threads_per_rank = 2});
  if (first == "start_processes") return start_cluster(argc, argv, {.processes_per_rank = 2});
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size < 2) {
    std::fprintf(stderr, "start it with mpirun -n 3\n");
    return 1;
  }
  if (rank != 0) {
    while (true) {
      int number = 0;
      MPI_Bcast(&number, 1, MPI_INT, 0, MPI_COMM_WORLD);
      const auto turn = static_cast<Turn>(number);
      if (turn == Turn::end) break;
      if (turn == Turn::by_hand_tiny) work_by_hand(to_tiny);
      if (turn == Turn::by_hand_large) work_by_hand(to_large);
      if (turn == Turn::pyarallel) {
        pyarallel::mpi::Cluster cluster{MPI_COMM_WORLD, {.threads_per_rank = 1}};
        cluster.serve(tiny, large, slow);
      }
    }
    MPI_Finalize();
    return 0;
  }

  const int rounds = argc > 1 ? std::atoi(argv[1]) : 5;
  const std::string chosen = argc > 2 ? argv[2] : "many one large wait rate";
  const auto measures = [&](const char* what) { return chosen.find(what) != std::string::npos; };
  std::printf("| %d workers | by hand | pyarallel | ratio |\n|---|---|---|---|\n", size - 1);

  std::vector<std::int32_t> items(5'000'000);
  std::iota(items.begin(), items.end(), 0);
  std::vector<std::int64_t> results;
  const auto sum = [](const auto& values) { return std::accumulate(values.begin(), values.end(), std::int64_t{0}); };
  const auto expected = [&](std::size_t count) {
    return 3 * static_cast<std::int64_t>(count) * static_cast<std::int64_t>(count - 1) / 2;
  };
  if (measures("many")) {
    std::vector<double> by_hand;
    std::vector<double> ours;
    for (int round = 0; round < rounds; ++round) {
      announce(Turn::by_hand_tiny);
      by_hand.push_back(seconds_of([&] { results = tiny_by_hand(items, 1000, 4, size); }));
      require(sum(results) == expected(items.size()), "tiny items by hand");
      on_cluster([&](auto& cluster) {
        ours.push_back(seconds_of([&] {
          const auto result = parallel_map(tiny, items, {.executor = cluster});
          require(sum(result.values()) == expected(items.size()), "tiny items");
        }));
      });
    }
    print("5,000,000 tiny items, many in a message", static_cast<double>(items.size()) / 1e6, "M/s", by_hand, ours);
  }
  if (measures("one")) {
    items.resize(500'000);
    std::vector<double> by_hand;
    std::vector<double> windowed;
    std::vector<double> retried;
    for (int round = 0; round < rounds; ++round) {
      announce(Turn::by_hand_tiny);
      by_hand.push_back(seconds_of([&] { results = tiny_by_hand(items, 1, 64, size); }));
      require(sum(results) == expected(items.size()), "single items by hand");
      const auto measure = [&](std::vector<double>& times, const MapOptions<std::int32_t, std::int64_t>& options) {
        on_cluster([&](auto& cluster) {
          auto on_it = options;
          on_it.executor = cluster;
          times.push_back(seconds_of([&] {
            const auto result = parallel_map(tiny, items, on_it);
            require(sum(result.values()) == expected(items.size()), "single items");
          }));
        });
      };
      measure(windowed, {.batch = Batch{.size = 4096}});
      measure(retried, {.retry = Retry{}});
    }
    const double millions = static_cast<double>(items.size()) / 1e6;
    print("500,000 tiny items, one by one (a window of 4,096)", millions, "M/s", by_hand, windowed);
    print("500,000 tiny items, one by one (retries)", millions, "M/s", by_hand, retried);
  }
  if (measures("large")) {
    const std::size_t count = 500;
    items.resize(count);
    std::vector<double> by_hand;
    std::vector<double> ours;
    for (int round = 0; round < rounds; ++round) {
      {
        std::vector<std::vector<std::uint8_t>> blocks(count);
        announce(Turn::by_hand_large);
        by_hand.push_back(seconds_of([&] { large_by_hand(count, size, blocks); }));
        require(blocks[7][mebibyte - 1] == 7, "large results by hand");
      }
      on_cluster([&](auto& cluster) {
        ours.push_back(seconds_of([&] {
          const auto result = parallel_map(large, items, {.executor = cluster});
          require(result.values()[7][mebibyte - 1] == 7 && result.values()[7].size() == mebibyte, "large results");
        }));
      });
    }
    print("500 results of 1 MiB", static_cast<double>(count), "MiB/s", by_hand, ours);
  }
  if (measures("wait"))
    on_cluster([&](auto& cluster) {
      const double before = cpu_seconds();
      const double seconds =
          seconds_of([&] { parallel_map(slow, std::vector<std::int32_t>{1}, {.executor = cluster}); });
      std::printf("\nrank 0 waiting for %.2f s: %.3f s of CPU\n", seconds, cpu_seconds() - before);
    });
  for (const double rate : {200.0, 2'000.0, 20'000.0}) {
    if (!measures("rate")) break;
    items.resize(static_cast<std::size_t>(rate));
    on_cluster([&](auto& cluster) {
      const double seconds = seconds_of([&] { parallel_map(tiny, items, {.executor = cluster, .rate_limit = rate}); });
      std::printf("rate limit of %.0f/s: %.1f %%\n", rate,
                  100 * (static_cast<double>(items.size()) - 1) / seconds / rate);
    });
  }
  announce(Turn::end);
  MPI_Finalize();
  return 0;
}

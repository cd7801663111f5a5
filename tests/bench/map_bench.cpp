// The plain map beside what people use today: OpenMP and oneTBB, on the same items and two workers.
//
// Every peer writes its results into memory that is fresh in each call, as a caller does who wants the
// results of this call. Repetitions of all peers are interleaved; medians are printed.
#if !PYARALLEL_HAS_BENCHMARK
#include <cstdio>
int main() { std::puts("skipped: Google Benchmark is missing"); }
#else
#include <benchmark/benchmark.h>

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <pyarallel.hpp>
#include <string>
#include <vector>

#include "interleaved.hpp"

#if PYARALLEL_HAS_OPENMP
#include <omp.h>
#endif
#if PYARALLEL_HAS_TBB
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/partitioner.h>
#endif

namespace {

constexpr int workers = 2;

std::int64_t trivial(std::int64_t item) { return item * 3 + 1; }

// A fixed number of dependent multiply-adds: about a microsecond, and the same work on any clock.
std::int64_t microsecond(std::int64_t item) {
  auto value = static_cast<std::uint64_t>(item);
  for (int i = 0; i < 884; ++i) value = value * 6364136223846793005U + 1442695040888963407U;
  return static_cast<std::int64_t>(value);
}

// The last hundredth of the items takes half of the time: static splits lose half on this.
std::int64_t heavy_tail(std::int64_t item) {
  if (item < 9'900) return microsecond(item);
  std::int64_t sum = 0;
  for (int i = 0; i < 100; ++i) sum += microsecond(item + i);
  return sum;
}

std::vector<std::int64_t> items(benchmark::State& state) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(state.range(0)));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

template <class Map>
void run(benchmark::State& state, Map map) {
  const auto input = items(state);
  for (auto _ : state) {
    auto output = map(input);
    benchmark::DoNotOptimize(output);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}

template <auto fn>
void pyarallel_map(benchmark::State& state) {
  run(state, [](const auto& input) {
    return pyarallel::parallel_map([](std::int64_t item) { return fn(item); }, input, {.workers = workers});
  });
}

template <auto fn>
void sequential_loop(benchmark::State& state) {
  run(state, [](const auto& input) {
    std::vector<std::int64_t> output(input.size());
    for (std::size_t i = 0; i < input.size(); ++i) output[i] = fn(input[i]);
    return output;
  });
}

#if PYARALLEL_HAS_OPENMP
template <auto fn>
void openmp_static(benchmark::State& state) {
  run(state, [](const auto& input) {
    std::vector<std::int64_t> output(input.size());
#pragma omp parallel for schedule(static) num_threads(workers)
    for (std::size_t i = 0; i < input.size(); ++i) output[i] = fn(input[i]);
    return output;
  });
}

template <auto fn>
void openmp_dynamic(benchmark::State& state) {
  run(state, [](const auto& input) {
    std::vector<std::int64_t> output(input.size());
#pragma omp parallel for schedule(dynamic) num_threads(workers)
    for (std::size_t i = 0; i < input.size(); ++i) output[i] = fn(input[i]);
    return output;
  });
}
#endif

#if PYARALLEL_HAS_TBB
template <auto fn, class Partitioner>
void tbb_for(benchmark::State& state) {
  const oneapi::tbb::global_control limit{oneapi::tbb::global_control::max_allowed_parallelism, workers};
  run(state, [](const auto& input) {
    std::vector<std::int64_t> output(input.size());
    oneapi::tbb::parallel_for(
        oneapi::tbb::blocked_range<std::size_t>(0, input.size()),
        [&](const auto& range) {
          for (std::size_t i = range.begin(); i < range.end(); ++i) output[i] = fn(input[i]);
        },
        Partitioner{});
    return output;
  });
}
#endif

template <auto fn>
void register_all(const std::string& workload, std::int64_t count) {
  const auto add = [&](const std::string& peer, void (*function)(benchmark::State&)) {
    benchmark::RegisterBenchmark((workload + "/" + peer).c_str(), function)
        ->Arg(count)
        ->UseRealTime()
        ->Unit(count > 1'000 ? benchmark::kMillisecond : benchmark::kMicrosecond);
  };
  add("pyarallel", pyarallel_map<fn>);
  add("loop", sequential_loop<fn>);
#if PYARALLEL_HAS_OPENMP
  add("openmp_static", openmp_static<fn>);
  add("openmp_dynamic", openmp_dynamic<fn>);
#endif
#if PYARALLEL_HAS_TBB
  add("tbb_auto", tbb_for<fn, oneapi::tbb::auto_partitioner>);
  add("tbb_static", tbb_for<fn, oneapi::tbb::static_partitioner>);
#endif
}

}  // namespace

int main(int argc, char** argv) {
  register_all<trivial>("trivial_10M", 10'000'000);
  register_all<microsecond>("1us_10k", 10'000);
  register_all<heavy_tail>("heavy_tail_10k", 10'000);
  register_all<trivial>("trivial_100", 100);

  run_interleaved(argc, argv);
}
#endif

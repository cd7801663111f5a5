// Streams beside oneTBB's pipeline, which is what people use for that. Repetitions of all peers are interleaved;
// medians are printed. The last lines tell how much memory a stream of 10 million items took.
#if !PYARALLEL_HAS_BENCHMARK
#include <cstdio>
int main() { std::puts("skipped: Google Benchmark is missing"); }
#else
#include <benchmark/benchmark.h>
#include <sys/resource.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <pyarallel.hpp>
#include <ranges>
#include <string>
#include <vector>

#include "interleaved.hpp"

#if PYARALLEL_HAS_TBB
#include <oneapi/tbb/global_control.h>
#include <oneapi/tbb/parallel_pipeline.h>
#endif

namespace {

using namespace pyarallel;

constexpr int workers = 2;

std::int64_t trivial(std::int64_t item) { return item * 3 + 1; }

// About a microsecond of arithmetic that the compiler cannot shorten.
std::int64_t microsecond(std::int64_t item) {
  auto value = static_cast<std::uint64_t>(item);
  for (int i = 0; i < 800; ++i) value = value * 6364136223846793005U + 1442695040888963407U;
  return static_cast<std::int64_t>(value);
}

template <auto fn>
std::int64_t expected_sum(std::int64_t count) {
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < count; ++i)
    sum = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) + static_cast<std::uint64_t>(fn(i)));
  return sum;
}

template <class Sum>
void measure(benchmark::State& state, std::int64_t expected, Sum sum) {
  const std::int64_t count = state.range(0);
  for (auto _ : state) {
    if (sum(count) != expected) std::abort();
  }
  state.SetItemsProcessed(state.iterations() * count);
}

template <class Options>
std::int64_t sum_of_stream(auto fn, std::int64_t count, const Options& options) {
  std::int64_t sum = 0;
  for (auto& item : parallel_iter(fn, std::views::iota(std::int64_t{0}, count), options)) {
    sum = static_cast<std::int64_t>(static_cast<std::uint64_t>(sum) + static_cast<std::uint64_t>(item.value()));
  }
  return sum;
}

template <auto fn>
void add(const std::string& name, std::int64_t count, Batch batch, bool ordered) {
  const std::int64_t expected = expected_sum<fn>(count);
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 measure(state, expected, [&](std::int64_t size) {
                                   return sum_of_stream([](std::int64_t item) { return fn(item); }, size,
                                                        StreamOptions<std::int64_t, std::int64_t>{
                                                            .workers = workers, .batch = batch, .ordered = ordered});
                                 });
                               })
      ->Arg(count)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

#if PYARALLEL_HAS_TBB
template <auto fn>
std::int64_t sum_of_pipeline(std::int64_t count, std::size_t tokens, bool ordered) {
  namespace tbb = oneapi::tbb;
  std::int64_t next = 0;
  std::uint64_t sum = 0;
  tbb::parallel_pipeline(tokens,
                         tbb::make_filter<void, std::int64_t>(tbb::filter_mode::serial_in_order,
                                                              [&](tbb::flow_control& control) -> std::int64_t {
                                                                if (next == count) {
                                                                  control.stop();
                                                                  return 0;
                                                                }
                                                                return next++;
                                                              }) &
                             tbb::make_filter<std::int64_t, std::int64_t>(tbb::filter_mode::parallel,
                                                                          [](std::int64_t item) { return fn(item); }) &
                             tbb::make_filter<std::int64_t, void>(
                                 ordered ? tbb::filter_mode::serial_in_order : tbb::filter_mode::serial_out_of_order,
                                 [&](std::int64_t value) { sum += static_cast<std::uint64_t>(value); }));
  return static_cast<std::int64_t>(sum);
}

template <auto fn>
void add_pipeline(const std::string& name, std::int64_t count, std::size_t tokens, bool ordered) {
  const std::int64_t expected = expected_sum<fn>(count);
  benchmark::RegisterBenchmark(name.c_str(),
                               [=](benchmark::State& state) {
                                 measure(state, expected,
                                         [&](std::int64_t size) { return sum_of_pipeline<fn>(size, tokens, ordered); });
                               })
      ->Arg(count)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}
#endif

template <auto fn>
void add_peers(const std::string& workload, std::int64_t count) {
  add<fn>(workload + "/pyarallel", count, {}, false);
  add<fn>(workload + "/pyarallel_ordered", count, {}, true);
  add<fn>(workload + "/pyarallel_window_1000", count, {.size = 1000}, false);
  add<fn>(workload + "/pyarallel_window_1000_ordered", count, {.size = 1000}, true);
#if PYARALLEL_HAS_TBB
  add_pipeline<fn>(workload + "/tbb_pipeline_4_tokens", count, 4, false);
  add_pipeline<fn>(workload + "/tbb_pipeline_16_tokens", count, 16, false);
  add_pipeline<fn>(workload + "/tbb_pipeline_16_tokens_ordered", count, 16, true);
#endif
}

long peak_kilobytes() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

}  // namespace

int main(int argc, char** argv) {
  // First, for a peak never falls.
  const long before = peak_kilobytes();
  for (const bool ordered : {false, true}) {
    sum_of_stream([](std::int64_t item) { return trivial(item); }, 10'000'000,
                  StreamOptions<std::int64_t, std::int64_t>{.workers = workers, .ordered = ordered});
  }
  const long grown = peak_kilobytes() - before;

  add_peers<trivial>("trivial_1M", 1'000'000);
  add<trivial>("trivial_1M_one_by_one/pyarallel", 1'000'000, {.size = 0, .chunk = 1}, false);
  add<trivial>("trivial_1M_one_by_one/pyarallel_ordered", 1'000'000, {.size = 0, .chunk = 1}, true);
  add_peers<microsecond>("1us_100k", 100'000);

#if PYARALLEL_HAS_TBB
  const oneapi::tbb::global_control two_threads{oneapi::tbb::global_control::max_allowed_parallelism, workers};
#endif
  run_interleaved(argc, argv);
  std::printf("two streams of 10 million items took %ld KiB at most\n", grown);
}
#endif

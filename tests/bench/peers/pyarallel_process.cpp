// The library's map on forked workers.
#include <csignal>
#include <list>
#include <pyarallel/map.hpp>

#include "peer.hpp"

namespace {

using pyarallel::Batch;
using pyarallel::Executor;

/// ns per call.
double trivial_items(std::size_t count, Batch batch) {
  const auto input = bench::numbers(count);
  return bench::each_call(
      [&] {
        return pyarallel::parallel_map(bench::trivial, input,
                                       {.workers = bench::workers(), .executor = Executor::process, .batch = batch});
      },
      bench::Expected{bench::trivial, input});
}

double large_results() {
  const auto input = bench::numbers(200);
  return bench::each_call(
      [&] {
        return pyarallel::parallel_map(bench::make_large, input,
                                       {.workers = bench::workers(), .executor = Executor::process});
      },
      [&](const auto& results) {
        for (std::size_t i = 0; i < input.size(); ++i) {
          bench::check(results[i] == bench::make_large(input[i]), "the results");
        }
      });
}

constexpr std::size_t singles = 100'000;

/// ns per call.
double pulled_items(Batch batch) {
  const auto numbered = bench::numbers(singles);
  const std::list<std::int64_t> input(numbered.begin(), numbered.end());
  return bench::each_call(
      [&] {
        return pyarallel::parallel_map(bench::trivial, input,
                                       {.workers = bench::workers(), .executor = Executor::process, .batch = batch});
      },
      bench::Expected{bench::trivial, numbered});
}

/// ns from the call to the first on_result.
double first_result() {
  const auto input = bench::numbers(2);
  bench::Clock::duration sum{};
  int calls = 0;
  for (; sum < bench::long_enough; ++calls) {
    const auto begin = bench::Clock::now();
    auto first = begin;
    const auto result = pyarallel::parallel_map(
        bench::trivial, input,
        {.workers = bench::workers(), .executor = Executor::process, .on_result = [&](const auto&) {
           if (first == begin) first = bench::Clock::now();
         }});
    bench::check(result[1] == bench::trivial(1), "the results");
    sum += first - begin;
  }
  return bench::nanoseconds(sum) / calls;
}

/// Twenty items that crash, on one worker: ns for each, which is a crash, a fork, and what lies between.
double crashes() {
  const auto input = bench::numbers(20);
  return bench::each_call(
             [&] {
               return pyarallel::parallel_map(
                   [](std::int64_t item) {
                     ::raise(SIGKILL);
                     return item;
                   },
                   input, {.workers = std::size_t{1}, .executor = Executor::process});
             },
             [](const auto& result) { bench::check(result.failures().size() == 20, "the crashes"); }) /
         20;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  program.add("pyarallel", "process_10M", [] { return trivial_items(10'000'000, {}) / 1e6; });
  program.add("pyarallel", "process_100k", [] { return trivial_items(100'000, {}) / 1e6; });
  program.add("pyarallel", "process_1MiB", [] { return large_results() / 1e6; });
  program.add("pyarallel", "process_single_inherited", [] { return trivial_items(singles, {.chunk = 1}) / singles; });
  program.add("pyarallel", "process_single_pulled", [] { return pulled_items({.chunk = 1}) / singles; });
  program.add("pyarallel, window 100", "process_single_pulled",
              [] { return pulled_items({.size = 100, .chunk = 1}) / singles; });
  program.add("pyarallel", "process_first_result", [] { return first_result() / 1e6; });
  program.add("pyarallel", "process_crash", [] { return crashes() / 1e6; });
  return program.main(argc, argv);
}

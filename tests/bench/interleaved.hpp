// How benchmarks of peers run: their repetitions are interleaved, and what is printed are medians and the like.
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

/// Runs what is registered, for the main() that got these arguments.
inline void run_interleaved(int argc, char** argv) {
  // What is given on the command line comes later, and wins.
  std::vector<std::string> words{argv[0], "--benchmark_enable_random_interleaving=true", "--benchmark_repetitions=7",
                                 "--benchmark_min_time=0.2", "--benchmark_report_aggregates_only=true"};
  words.insert(words.end(), argv + 1, argv + argc);
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  int count = static_cast<int>(pointers.size());
  benchmark::Initialize(&count, pointers.data());
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}

// How much the program grows at most, in KiB, beyond what the results themselves take.
#include <fstream>
#include <pyarallel/map.hpp>
#include <pyarallel/stream.hpp>
#include <string>

#include "peer.hpp"

namespace {

constexpr std::int64_t many = 10'000'000;
constexpr double results_take = many * 8 / 1024.0;

/// Of now, not of what ran before: getrusage() begins with the peak of the parent.
double peak() {
  std::ifstream status{"/proc/self/status"};
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stod(line.substr(6));
  }
  throw std::runtime_error("/proc/self/status has no VmHWM");
}

template <class Run>
double growth(Run run) {
  run(std::int64_t{1'000});  // the threads are there
  const double before = peak();
  run(many);
  return peak() - before;
}

void check_results(const pyarallel::MapResult<std::int64_t>& result, std::int64_t count) {
  std::int64_t sum = 0;
  for (const std::int64_t value : result) bench::add_to(sum, value);
  bench::check(sum == bench::sum_of_trivial(count), "the sum");
}

double map() {
  return growth([](std::int64_t count) {
           const auto input = std::views::iota(std::int64_t{0}, count);
           check_results(pyarallel::parallel_map(bench::trivial, input, {.workers = bench::workers()}), count);
         }) -
         results_take;
}

double pulled() {
  return growth([](std::int64_t count) {
           bench::Generator source{count};
           check_results(pyarallel::parallel_map(bench::trivial, source, {.workers = bench::workers()}), count);
         }) -
         results_take;
}

/// One of them ordered, one not.
double streams() {
  return growth([](std::int64_t count) {
    for (const bool ordered : {false, true}) {
      std::int64_t sum = 0;
      bench::Generator source{count};
      for (auto& item :
           pyarallel::parallel_iter(bench::trivial, source, {.workers = bench::workers(), .ordered = ordered})) {
        bench::add_to(sum, item.value());
      }
      bench::check(sum == bench::sum_of_trivial(count), "the sum");
    }
  });
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  program.add("pyarallel", "memory_map", map);
  program.add("pyarallel", "memory_pulled", pulled);
  program.add("pyarallel", "memory_streams", streams);
  return program.main(argc, argv);
}

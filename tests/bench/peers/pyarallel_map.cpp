// The plain map of the library, and the time line of one.
#include <pyarallel/map.hpp>

#include "peer.hpp"

namespace {

class Map {
 public:
  explicit Map(std::size_t workers) : workers_(workers) {}

  template <class F>
  pyarallel::MapResult<std::int64_t> map(F fn, bench::Input input) {
    return pyarallel::parallel_map(fn, input, {.workers = workers_});
  }

  /// parallel_map gives fresh results only: here the function writes through the index of its item.
  template <class F>
  void map_into(F fn, bench::Input input, bench::Output results) {
    pyarallel::parallel_map(
        [fn, in = input.data(), out = results.data()](const std::int64_t& item) { out[&item - in] = fn(item); }, input,
        {.workers = workers_});
  }

 private:
  std::size_t workers_;
};

struct Stretch {
  double begin;
  double end;
};

/// shape_tail once more: which worker was busy from when to when, in us since the call.
std::optional<double> trace() {
  const std::size_t workers = bench::workers();
  const auto input = bench::numbers(bench::shape_items);
  pyarallel::parallel_map(bench::trivial, input, {.workers = workers});  // the threads are there
  std::vector<std::vector<Stretch>> stretches(workers);
  for (auto& of_worker : stretches) of_worker.reserve(input.size());
  const auto begin = bench::Clock::now();
  const auto now = [&] { return bench::nanoseconds(bench::Clock::now() - begin) / 1e3; };
  const auto result = pyarallel::parallel_map(
      [&](std::int64_t item, const pyarallel::Task& task) {
        auto& mine = stretches[task.worker];
        const double start = now();
        const std::int64_t value = bench::work(item, bench::tail_steps(item));
        const double end = now();
        // The next item of a claim begins at once.
        if (!mine.empty() && start - mine.back().end < 1) {
          mine.back().end = end;
        } else {
          mine.push_back({start, end});
        }
        return value;
      },
      input, {.workers = workers});
  bench::Expected{[](std::int64_t item) { return bench::work(item, bench::tail_steps(item)); }, input}(result);
  for (std::size_t worker = 0; worker < workers; ++worker) {
    for (const Stretch& stretch : stretches[worker]) {
      std::printf("%zu\t%.1f\t%.1f\n", worker, stretch.begin, stretch.end);
    }
  }
  return std::nullopt;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<Map>(program, "pyarallel");
  bench::add_blocked<Map>(program, "pyarallel");
  program.add("pyarallel", "trace", trace);
  return program.main(argc, argv);
}

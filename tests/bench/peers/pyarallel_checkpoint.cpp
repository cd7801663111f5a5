// What it costs to store each result, and to find all of them.
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "checkpoint_file.hpp"
#include "peer.hpp"

namespace {

constexpr std::size_t count = 100'000;

using Kilobyte = std::array<std::int64_t, 128>;

Kilobyte kilobyte(std::int64_t item) {
  Kilobyte result{};
  result.front() = bench::trivial(item);
  return result;
}

struct How {
  std::optional<pyarallel::Batch> batch = {};
  bool keyed = false;
};

template <class F, class R = std::invoke_result_t<F, std::int64_t>>
pyarallel::MapResult<R> run(F fn, const std::vector<std::int64_t>& input, const bench::CheckpointFile& file, How how) {
  pyarallel::MapOptions<std::int64_t, R> options{
      .workers = bench::workers(), .batch = how.batch, .checkpoint = pyarallel::sqlite_checkpoint(file.path())};
  if (how.keyed) options.item_key = [](const std::int64_t& item) { return pyarallel::ItemKey{item}; };
  return pyarallel::parallel_map(fn, input, options);
}

template <class F, class Results>
void check_results(F fn, const std::vector<std::int64_t>& input, const Results& results) {
  bench::check(std::ranges::equal(results.values(), input, {}, {}, fn), "the results");
}

/// ms of a run that makes the file.
template <class F>
double store(F fn, How how) {
  const bench::CheckpointFile file;
  const auto input = bench::numbers(count);
  const auto begin = bench::Clock::now();
  const auto results = run(fn, input, file, how);
  const double time = bench::nanoseconds(bench::Clock::now() - begin) / 1e6;
  check_results(fn, input, results);
  bench::check(pyarallel::checkpoint_info(file.path()).completed == count, "the number of rows");
  return time;
}

/// ms of a run that finds all results in the file.
double resume(How how) {
  const bench::CheckpointFile file;
  const auto input = bench::numbers(count);
  run(bench::trivial, input, file, how);
  const auto fail = [](std::int64_t) -> std::int64_t { throw std::logic_error("was called again"); };
  const auto begin = bench::Clock::now();
  const auto results = run(fail, input, file, how);
  const double time = bench::nanoseconds(bench::Clock::now() - begin) / 1e6;
  check_results(bench::trivial, input, results);
  return time;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  const How batch{.batch = pyarallel::Batch{1000}};
  const How keyed{.batch = pyarallel::Batch{1000}, .keyed = true};
  program.add("pyarallel", "checkpoint_100k", [=] { return store(bench::trivial, {}); });
  program.add("pyarallel", "checkpoint_100k_batch", [=] { return store(bench::trivial, batch); });
  program.add("pyarallel", "checkpoint_100k_keyed", [=] { return store(bench::trivial, keyed); });
  program.add("pyarallel", "checkpoint_1KiB", [=] { return store(kilobyte, batch); });
  program.add("pyarallel", "checkpoint_resumed", [=] { return resume(batch); });
  program.add("pyarallel", "checkpoint_resumed_keyed", [=] { return resume(keyed); });
  return program.main(argc, argv);
}

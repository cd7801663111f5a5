// What the library does with items that come one by one: maps over a generator, and streams.
#include <array>
#include <atomic>
#include <pyarallel/map.hpp>
#include <pyarallel/stream.hpp>

#include "peer.hpp"

namespace {

constexpr std::int64_t many = 10'000'000;

/// The results are thrown away but for what they add up to, by thread.
double discard() {
  return bench::pulled_and_discarded([](std::int64_t count) {
    bench::Generator source{count};
    std::array<bench::Sum, 64> sums{};
    pyarallel::parallel_map(
        [&](std::int64_t item) {
          static std::atomic<std::size_t> threads{0};
          thread_local const std::size_t mine = threads++;
          bench::add_to(sums.at(mine).value, bench::trivial(item));
        },
        source, {.workers = bench::workers()});
    return bench::total(sums);
  });
}

double collect() {
  const auto input = bench::numbers(many);
  return bench::each_call(
             [] {
               bench::Generator source{many};
               return pyarallel::parallel_map(bench::trivial, source, {.workers = bench::workers()});
             },
             bench::Expected{bench::trivial, input}) /
         many;
}

template <class F>
double stream(std::int64_t count, F fn, pyarallel::Batch batch, bool ordered) {
  std::int64_t expected = 0;
  for (std::int64_t i = 0; i < count; ++i) bench::add_to(expected, fn(i));
  return bench::each_call(
             [&] {
               std::int64_t sum = 0;
               bench::Generator source{count};
               for (auto& item : pyarallel::parallel_iter(
                        fn, source, {.workers = bench::workers(), .batch = batch, .ordered = ordered})) {
                 bench::add_to(sum, item.value());
               }
               return sum;
             },
             [&](std::int64_t sum) { bench::check(sum == expected, "the sum"); }) /
         static_cast<double>(count);
}

void add_streams(bench::Program& program, const std::string& variant, std::size_t window) {
  constexpr std::int64_t million = 1'000'000;
  constexpr auto one = [](std::int64_t item) { return bench::trivial(item); };
  constexpr auto micro = [](std::int64_t item) { return bench::work(item, bench::steps_per_microsecond); };
  program.add(variant, "stream_1M", [=] { return stream(million, one, {.size = window}, false); });
  program.add(variant, "stream_ordered_1M", [=] { return stream(million, one, {.size = window}, true); });
  program.add(variant, "stream_1us_100k", [=] { return stream(million / 10, micro, {.size = window}, false); });
  program.add(variant, "stream_one_by_one_1M",
              [=] { return stream(million, one, {.size = window, .chunk = 1}, false); });
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  program.add("pyarallel", "pulled_discard_10M", discard);
  program.add("pyarallel", "pulled_collect_10M", collect);
  add_streams(program, "pyarallel", 0);
  add_streams(program, "pyarallel, window 1000", 1000);
  return program.main(argc, argv);
}

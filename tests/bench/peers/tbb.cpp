// oneTBB: parallel_for with two partitioners, and for input that is pulled parallel_for_each and
// parallel_pipeline.
#include <oneapi/tbb/blocked_range.h>
#include <oneapi/tbb/enumerable_thread_specific.h>
#include <oneapi/tbb/parallel_for.h>
#include <oneapi/tbb/parallel_for_each.h>
#include <oneapi/tbb/parallel_pipeline.h>
#include <oneapi/tbb/partitioner.h>

#include "peer.hpp"
#include "tbb_threads.hpp"

namespace {

namespace tbb = oneapi::tbb;

template <class Partitioner>
class Loop {
 public:
  explicit Loop(std::size_t workers) : threads_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    threads_.run([&] {
      tbb::parallel_for(
          tbb::blocked_range<std::size_t>(0, count),
          [&body](const auto& range) {
            for (std::size_t i = range.begin(); i < range.end(); ++i) body(i);
          },
          Partitioner{});
    });
  }

 private:
  bench::TbbThreads threads_;
};

constexpr std::int64_t many = 10'000'000;

/// Sums by thread, for the results are thrown away.
double discard_for_each() {
  bench::TbbThreads threads{bench::workers()};
  return bench::pulled_and_discarded([&](std::int64_t count) {
    bench::Generator source{count};
    tbb::enumerable_thread_specific<bench::Sum> sums;
    threads.run([&] {
      tbb::parallel_for_each(source.begin(), source.end(),
                             [&](std::int64_t item) { bench::add_to(sums.local().value, bench::trivial(item)); });
    });
    return bench::total(sums);
  });
}

/// In any order: nothing tells a body which item it has.
double collect_for_each() {
  bench::TbbThreads threads{bench::workers()};
  return bench::each_call(
             [&] {
               bench::Generator source{many};
               tbb::enumerable_thread_specific<std::vector<std::int64_t>> parts;
               threads.run([&] {
                 tbb::parallel_for_each(source.begin(), source.end(),
                                        [&](std::int64_t item) { parts.local().push_back(bench::trivial(item)); });
               });
               std::vector<std::int64_t> results;
               results.reserve(many);
               for (const auto& part : parts) results.insert(results.end(), part.begin(), part.end());
               return results;
             },
             [](const auto& results) {
               std::int64_t sum = 0;
               for (const std::int64_t value : results) bench::add_to(sum, value);
               bench::check(results.size() == many && sum == bench::sum_of_trivial(many), "the results");
             }) /
         many;
}

/// A serial filter that counts, a parallel one with fn, and a serial one that calls take(value).
template <class F, class Take>
void pipeline(std::int64_t count, std::size_t tokens, tbb::filter_mode last, F fn, Take take) {
  std::int64_t next = 0;
  const auto source = [&](tbb::flow_control& control) -> std::int64_t {
    if (next == count) {
      control.stop();
      return 0;
    }
    return next++;
  };
  tbb::parallel_pipeline(tokens, tbb::make_filter<void, std::int64_t>(tbb::filter_mode::serial_in_order, source) &
                                     tbb::make_filter<std::int64_t, std::int64_t>(tbb::filter_mode::parallel, fn) &
                                     tbb::make_filter<std::int64_t, void>(last, take));
}

template <class F>
double sum_of_pipeline(std::int64_t count, std::size_t tokens, tbb::filter_mode last, F fn) {
  std::int64_t expected = 0;
  for (std::int64_t i = 0; i < count; ++i) bench::add_to(expected, fn(i));
  bench::TbbThreads threads{bench::workers()};
  return bench::each_call(
             [&] {
               std::int64_t sum = 0;
               threads.run(
                   [&] { pipeline(count, tokens, last, fn, [&](std::int64_t value) { bench::add_to(sum, value); }); });
               return sum;
             },
             [&](std::int64_t sum) { bench::check(sum == expected, "the sum"); }) /
         static_cast<double>(count);
}

double collect_pipeline(std::size_t tokens) {
  bench::TbbThreads threads{bench::workers()};
  const auto input = bench::numbers(many);
  return bench::each_call(
             [&] {
               std::vector<std::int64_t> results;
               threads.run([&] {
                 pipeline(many, tokens, tbb::filter_mode::serial_in_order, bench::trivial,
                          [&](std::int64_t value) { results.push_back(value); });
               });
               return results;
             },
             bench::Expected{bench::trivial, input}) /
         many;
}

void add_pipeline(bench::Program& program, const std::string& variant, std::size_t tokens) {
  constexpr auto any_order = tbb::filter_mode::serial_out_of_order;
  constexpr auto in_order = tbb::filter_mode::serial_in_order;
  constexpr auto micro = [](std::int64_t item) { return bench::work(item, bench::steps_per_microsecond); };
  program.add(variant, "stream_1M", [=] { return sum_of_pipeline(1'000'000, tokens, any_order, bench::trivial); });
  program.add(variant, "stream_ordered_1M",
              [=] { return sum_of_pipeline(1'000'000, tokens, in_order, bench::trivial); });
  program.add(variant, "stream_1us_100k", [=] { return sum_of_pipeline(100'000, tokens, any_order, micro); });
  program.add(variant, "pulled_discard_10M", [=] { return sum_of_pipeline(many, tokens, any_order, bench::trivial); });
  program.add(variant, "pulled_collect_10M", [=] { return collect_pipeline(tokens); });
}

template <class Partitioner>
void add_loop(bench::Program& program, const char* variant) {
  bench::add_maps<bench::LoopPeer<Loop<Partitioner>>>(program, variant);
  bench::add_blocked<bench::LoopPeer<Loop<Partitioner>>>(program, variant);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  add_loop<tbb::auto_partitioner>(program, "TBB auto");
  add_loop<tbb::static_partitioner>(program, "TBB static");
  program.add("TBB for_each", "pulled_discard_10M", discard_for_each);
  program.add("TBB for_each", "pulled_collect_10M", collect_for_each);
  add_pipeline(program, "TBB pipeline, 4 tokens", 4);
  add_pipeline(program, "TBB pipeline, 16 tokens", 16);
  return program.main(argc, argv);
}

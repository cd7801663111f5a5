// What the policies of the library cost, its limiter, and its progress bar.
#include <pyarallel/map.hpp>
#include <pyarallel/progress.hpp>
#include <pyarallel/rate_limit.hpp>
#include <stdexcept>
#include <stop_token>

#include "peer.hpp"

namespace {

using Options = pyarallel::MapOptions<std::int64_t, std::int64_t>;

constexpr std::size_t million = 1'000'000;

/// ns per item.
double map_with(Options options) {
  options.workers = bench::workers();
  const auto input = bench::numbers(million);
  return bench::each_call([&] { return pyarallel::parallel_map(bench::trivial, input, options); },
                          bench::Expected{bench::trivial, input}) /
         million;
}

double with_callbacks() {
  std::size_t results = 0;
  std::size_t progress = 0;
  const double time = map_with({.on_result = [&](const auto& item) { results += item.ok() ? 1 : 0; },
                                .on_progress = [&](std::size_t, std::size_t) { ++progress; }});
  bench::check(results > 0 && results % million == 0 && progress == results, "the number of callbacks");
  return time;
}

double with_timeout_and_stop() {
  std::stop_source source;
  return map_with({.timeout = std::chrono::hours{1}, .stop = source.get_token()});
}

double failing() {
  const auto input = bench::numbers(million);
  return bench::each_call(
             [&] {
               // Not shared with by_hand.cpp: a function that is not this program's own is not inlined, which makes
               // one frame more to unwind.
               return pyarallel::parallel_map(
                   [](std::int64_t item) -> std::int64_t {
                     if (item >= 0) throw std::runtime_error("no such thing");
                     return item;
                   },
                   input, {.workers = bench::workers()});
             },
             [](const auto& result) {
               const auto failures = result.failures();
               bench::check(failures.size() == million && failures.back().index == million - 1, "the failures");
             }) /
         million;
}

double try_acquire(std::size_t threads) {
  // One a nanosecond: there is always a token, which makes it the dearest path.
  pyarallel::Limiter limiter{{.count = 1e9, .burst = 1'000'000'000}};
  return bench::try_acquire(limiter, threads);
}

/// Percent of the rate that acquire() reaches on one thread, in 2 s or three tokens.
double rate_reached(double rate) {
  pyarallel::Limiter limiter{{.count = rate}};
  const auto tokens = static_cast<std::size_t>(std::max(3.0, 2 * rate));
  limiter.acquire();  // is there at once
  const auto begin = bench::Clock::now();
  for (std::size_t i = 0; i < tokens; ++i) limiter.acquire();
  const double seconds = bench::nanoseconds(bench::Clock::now() - begin) / 1e9;
  return 100 * static_cast<double>(tokens) / seconds / rate;
}

/// ns per call; what it draws goes to /dev/null, for how long a terminal takes is the terminal's business.
double progress(bool sized) {
  std::FILE* const null = std::fopen("/dev/null", "w");
  bench::check(null != nullptr, "/dev/null");
  double time = 0;
  {
    const pyarallel::OnProgress bar = pyarallel::ProgressBar{"items", null};
    constexpr std::size_t calls = 5'000'000;
    const auto begin = bench::Clock::now();
    for (std::size_t i = 1; i <= calls; ++i) bar(i, sized ? calls : i);
    time = bench::nanoseconds(bench::Clock::now() - begin) / calls;
  }
  std::fclose(null);
  return time;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  program.add("pyarallel", "policy_none", [] { return map_with({}); });
  program.add("pyarallel", "policy_retry", [] { return map_with({.retry = pyarallel::Retry{}}); });
  program.add("pyarallel", "policy_rate_limit", [] { return map_with({.rate_limit = 1e9}); });
  program.add("pyarallel", "policy_callbacks", with_callbacks);
  program.add("pyarallel", "policy_timeout_stop", with_timeout_and_stop);
  program.add("pyarallel", "failing_1M", failing);
  program.add("pyarallel", "limiter_1", [] { return try_acquire(1); });
  program.add("pyarallel", "limiter_2", [] { return try_acquire(2); });
  for (const int rate : {1, 100, 10'000, 1'000'000}) {
    program.add("pyarallel", "limiter_rate_" + std::to_string(rate), [=] { return rate_reached(rate); });
  }
  program.add("pyarallel", "progress", [] { return progress(true); });
  program.add("pyarallel, size unknown", "progress", [] { return progress(false); });
  return program.main(argc, argv);
}

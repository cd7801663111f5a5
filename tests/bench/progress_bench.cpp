// What a progress bar costs: nanoseconds for each call, beside a callback that does nothing. What it draws goes to
// /dev/null: how long a terminal takes, at most ten times in a second, is the terminal's business.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <functional>
#include <pyarallel/options.hpp>
#include <pyarallel/progress.hpp>

namespace {

constexpr std::size_t calls = 10'000'000;

double nanoseconds_per_call(const pyarallel::OnProgress& on_progress, bool sized) {
  const auto begin = std::chrono::steady_clock::now();
  for (std::size_t i = 1; i <= calls; ++i) on_progress(i, sized ? calls : i);
  const std::chrono::duration<double, std::nano> time = std::chrono::steady_clock::now() - begin;
  return time.count() / static_cast<double>(calls);
}

/// Of seven runs, after one that is not counted.
double median(const pyarallel::OnProgress& on_progress, bool sized) {
  nanoseconds_per_call(on_progress, sized);
  std::array<double, 7> times{};
  for (double& time : times) time = nanoseconds_per_call(on_progress, sized);
  std::ranges::sort(times);
  return times[times.size() / 2];
}

}  // namespace

int main() {
  std::FILE* const null = std::fopen("/dev/null", "w");
  if (null == nullptr) return 1;
  {
    const pyarallel::OnProgress nothing = [](std::size_t, std::size_t) {};
    const pyarallel::OnProgress bar = pyarallel::ProgressBar{"items", null};
    std::printf("nothing                     %6.1f ns\n", median(nothing, true));
    std::printf("ProgressBar, size known     %6.1f ns\n", median(bar, true));
    std::printf("ProgressBar, size unknown   %6.1f ns\n", median(bar, false));
  }
  std::fclose(null);
}

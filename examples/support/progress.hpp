// Live progress: one line that is redrawn on a terminal, a line per quarter of the work elsewhere
// (a log file or a pipe keeps every line, so there should be few).
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

namespace demo {

// Hand it over as `.on_progress = std::ref(progress)`. pyarallel calls it on the calling thread
// only, so it needs no lock.
class Progress {
 public:
  explicit Progress(std::string unit) : unit_(std::move(unit)) {}
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress() { finish(); }

  void operator()(std::size_t done, std::size_t total) {
    done_ = done;
    total_ = total;
    if (terminal_) {
      redraw_at_times();
    } else {
      print_at_quarters();
    }
  }

  // Leaves the last state on the screen, and returns the seconds since the start. Call it as soon as
  // the work is done, before anything else is printed.
  double finish() {
    const double took = seconds();
    if (std::exchange(finished_, true) || total_ == 0) return took;
    if (terminal_) {
      draw();
      fmt::print("\n\n");
    } else {
      if (printed_ != done_) print();
      fmt::print("\n");
    }
    std::fflush(stdout);
    return took;
  }

 private:
  using Clock = std::chrono::steady_clock;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  // More often than this is more than an eye can follow, and terminals are slow.
  static constexpr auto redraw_interval = std::chrono::milliseconds(40);
  static constexpr std::size_t bar_width = 40;

  void redraw_at_times() {
    const auto now = Clock::now();
    if (now - drawn_at_ < redraw_interval) return;
    drawn_at_ = now;
    draw();
  }

  void draw() const {
    const std::size_t filled = bar_width * done_ / total_;
    fmt::print("\r   [{}{}]  {} of {} {}, {:.1f} s ", std::string(filled, '#'), std::string(bar_width - filled, '.'),
               done_, total_, unit_, seconds());
    std::fflush(stdout);
  }

  void print_at_quarters() {
    const std::size_t quarter = 4 * done_ / total_;
    if (quarter == quarter_) return;
    quarter_ = quarter;
    print();
  }

  void print() {
    printed_ = done_;
    fmt::print("   {:>6} of {} {} after {:.2f} s\n", done_, total_, unit_, seconds());
    std::fflush(stdout);
  }

  std::string unit_;
  bool terminal_ = isatty(STDOUT_FILENO) != 0;
  bool finished_ = false;
  std::size_t done_ = 0;
  std::size_t total_ = 0;
  std::size_t quarter_ = 0;
  std::size_t printed_ = 0;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_at_ = {};
};

}  // namespace demo

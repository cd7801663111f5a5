// A line that shows how far a run is, for `.on_progress =`. Not part of pyarallel.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/progress/line.hpp"
#include "pyarallel/detail/progress/screen.hpp"

namespace pyarallel {
namespace detail {

/// Items per second, over about the last ten seconds, or the last twenty looks where they are further apart:
/// sums of items and of seconds, of which the older ones fade. Until there are as many, that is the plain mean.
/// It begins with the end of the first item, because until then workers start and nothing can end: counted, that
/// would look like a slow rate. In the first second there is no rate, for it would jump.
class SmoothRate {
 public:
  void begin(TimePoint now, std::size_t done) { *this = SmoothRate{now, done}; }

  void look(TimePoint now, std::size_t done) {
    const double seconds = std::chrono::duration<double>(now - looked_at_).count();
    if (seconds <= 0) return;
    const double keep = std::max(std::exp(-seconds / 10), 0.95);
    seconds_ = keep * seconds_ + seconds;
    items_ = keep * items_ + static_cast<double>(done - std::min(seen_, done));
    looked_at_ = now;
    seen_ = done;
  }

  std::optional<double> per_second() const {
    if (looked_at_ - begun_at_ < std::chrono::seconds{1}) return {};
    return items_ / seconds_;
  }

  SmoothRate() = default;

 private:
  SmoothRate(TimePoint now, std::size_t done) : begun_at_(now), looked_at_(now), seen_(done) {}

  TimePoint begun_at_{};
  TimePoint looked_at_{};
  std::size_t seen_ = 0;
  double items_ = 0;
  double seconds_ = 0;
};

/// What all copies of a ProgressBar share.
///
/// A call costs one look at the clock. The numbers are atomic only so that two runs with the same bar at the same
/// time, which make no sensible line, are no undefined behaviour either; for everything else there is a lock, which
/// a call takes at most ten times in a second. Nobody waits for it in a call: whoever finds it taken, draws nothing.
class ProgressState {
 public:
  ProgressState(std::string label, std::FILE* out)
      : label_(std::move(label)), screen_(out), started_at_(clock().now()), counted_from_(started_at_) {
    due_ = started_at_ + redraw_interval;
    line_due_ = started_at_ + line_interval;
  }
  ProgressState(const ProgressState&) = delete;
  ProgressState& operator=(const ProgressState&) = delete;
  ~ProgressState() {
    // A child process that was forked during the run has a copy of all this, but it is not its run.
    if (process_ == this_process()) end();
  }

  void update(std::size_t done, std::size_t total) noexcept {
    const TimePoint now = clock().now();
    const std::size_t before = done_.load(std::memory_order_relaxed);
    if (done < before || (done == 1 && before == 1)) {
      begin(now, done);
    } else if (total != total_.load(std::memory_order_relaxed)) {
      varied_.store(true, std::memory_order_relaxed);
    }
    done_.store(done, std::memory_order_relaxed);
    total_.store(total, std::memory_order_relaxed);
    called_at_.store(now, std::memory_order_relaxed);
    if (now >= due_.load(std::memory_order_relaxed) || (done == total && !varied_.load(std::memory_order_relaxed))) {
      look(now);
    }
  }

  /// Shows the last state and ends the line, if that is still to be done.
  void end() noexcept {
    const std::lock_guard lock{mutex_};
    show_end();
  }

 private:
  static constexpr Duration redraw_interval = std::chrono::milliseconds{100};
  static constexpr Duration line_interval = std::chrono::seconds{5};

  static long this_process() noexcept {
#if __has_include(<unistd.h>)
    return static_cast<long>(::getpid());
#else
    return 1;
#endif
  }

  /// The first item of a run.
  void begin(TimePoint now, std::size_t done) noexcept {
    const std::unique_lock lock{mutex_, std::try_to_lock};
    if (!lock) return;
    if (std::exchange(process_, this_process()) != 0) {
      // Two runs at the same time look like many short ones: of those nothing is shown that is not complete.
      const bool complete = total_known(true) && done_.load() == total_.load();
      if (drawn_ || complete || now >= due_.load()) show_end();
      started_at_ = counted_from_ = now;  // of its beginning there was no word
      counted_ = done;
      due_ = now + redraw_interval;
      line_due_ = now + line_interval;
    }
    first_call_at_ = now;
    first_done_ = done;
    rate_.begin(now, done);
    varied_ = false;
    drawn_ = ended_ = false;
    screen_.look();
  }

  /// As often as a redraw may be due, and when all is done.
  void look(TimePoint now) noexcept {
    const std::unique_lock lock{mutex_, std::try_to_lock};
    if (!lock) return;
    if (total_known(false) && done_.load() == total_.load()) return show_end();
    if (now < due_.load()) return;
    due_ = now + redraw_interval;
    rate_.look(now, done_.load());
    if (screen_.in_place()) {
      show(false);
    } else if (now >= line_due_) {
      line_due_ = now + line_interval;
      show(false);
    }
  }

  void show_end() noexcept {
    if (process_ == 0 || (ended_ && ended_done_ == done_.load())) return;
    show(true);
  }

  void show(bool end) noexcept {
    try {
      const Progress progress{.label = label_,
                              .done = done_.load(),
                              .total = total_known(end) ? std::optional{total_.load()} : std::nullopt,
                              .elapsed = called_at_.load() - started_at_,
                              .rate = end ? mean_rate() : rate_.per_second(),
                              .ended = end};
      if (screen_.in_place()) {
        screen_.draw(progress);
      } else {
        screen_.print(progress);
      }
    } catch (...) {
      // No memory for a line is no reason to end a run.
    }
    drawn_ = true;
    ended_ = end;
    ended_done_ = done_.load();
  }

  /// Where the input's size is unknown, the total is what was read so far. It grows, but not between items that were
  /// resolved at the same time. So a total is believed once it has stayed for a while; and, at the end, if all
  /// is done.
  bool total_known(bool at_end) const noexcept {
    const std::size_t done = done_.load();
    const std::size_t total = total_.load();
    if (varied_.load() || total == 0 || done > total) return false;
    return called_at_.load() - first_call_at_ >= redraw_interval || (at_end && done == total && done > first_done_);
  }

  std::optional<double> mean_rate() const noexcept {
    const Duration time = called_at_.load() - counted_from_;
    if (time < std::chrono::milliseconds{10}) return {};
    return static_cast<double>(done_.load() - std::min(counted_, done_.load())) /
           std::chrono::duration<double>(time).count();
  }

  const std::string label_;

  // Of the last call. At first as if a run were over: what comes then is a new one.
  std::atomic<std::size_t> done_{std::numeric_limits<std::size_t>::max()};
  std::atomic<std::size_t> total_{0};
  std::atomic<TimePoint> called_at_{TimePoint{}};
  std::atomic<bool> varied_{false};  // the total, in this run
  std::atomic<TimePoint> due_{TimePoint{}};

  std::mutex mutex_;  // for all below
  Screen screen_;
  long process_ = 0;  // of this run; 0: there was none
  TimePoint started_at_;
  TimePoint counted_from_;   // for the mean rate: since then ...
  std::size_t counted_ = 0;  // ... beyond these
  TimePoint first_call_at_{};
  std::size_t first_done_ = 0;
  SmoothRate rate_;
  TimePoint line_due_{};
  bool drawn_ = false;  // anything of this run
  bool ended_ = false;  // the line, showing this many:
  std::size_t ended_done_ = 0;
};

}  // namespace detail

/// Shows a run's progress, on standard error or another file:
///
///   parallel_map(fetch, urls, {.on_progress = ProgressBar{"fetching"}});
///
///   fetching:  30% |███████████▍                          |  300/1000, 56/s, 0:05, ETA 0:12
///
/// On a terminal that is one line, drawn again at most ten times in a second, and never longer than the terminal is
/// wide. Elsewhere (and where TERM is "dumb") it is a plain line every five seconds. Both end with a line that shows
/// the last state, also when the call throws. Nothing is drawn while no item is resolved. A total that grows, because
/// the size of the input is not known, is not shown: "1234 done, 56/s, 0:22". The variables NO_COLOR and COLUMNS and
/// those of the locale are respected. No state of the terminal is changed, so that Ctrl-C leaves none behind.
///
/// Copies show the same line. It is ended when all is done, by end(), or when the last copy goes. One bar may serve
/// several runs, one after another: each has its line. The clock of the first starts when the bar is made, that of
/// a later one with the end of its first item.
///
/// Each character of the label is taken to be one column wide: with wide or combining ones the line may be
/// longer or shorter than it should be. What other code writes to the same terminal meanwhile goes into the line.
class ProgressBar {
 public:
  /// Nothing is shown if `out` is null. It must stay open until the last copy is gone.
  explicit ProgressBar(std::string label = {}, std::FILE* out = stderr)
      : state_(std::make_shared<detail::ProgressState>(std::move(label), out)) {}

  /// Fits OnProgress: `done` of `total` items are resolved.
  void operator()(std::size_t done, std::size_t total) const noexcept {
    if (state_) state_->update(done, total);
  }

  /// Shows the last state and ends the line, if that has not been done: for a bar that lives on after a run that
  /// was cut short, or whose size was unknown.
  void end() const noexcept {
    if (state_) state_->end();
  }

 private:
  std::shared_ptr<detail::ProgressState> state_;  // null if moved from
};

}  // namespace pyarallel

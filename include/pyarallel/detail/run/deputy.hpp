// A driver that runs items itself, because handing them to another thread would take longer than they do, although it
// has other things to do: when one of them turns out to take its time, another thread drives meanwhile.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <system_error>

#include "pyarallel/detail/executor/thread_pool.hpp"
#include "pyarallel/detail/function_ref.hpp"

namespace pyarallel::detail {

/// At each moment one thread drives, and may touch what is the driver's: the driver, or its deputy while the driver is
/// out. Used for one run after the other.
class Deputy {
 public:
  /// Drives until enough().
  using StandIn = FunctionRef<void(FunctionRef<bool()> enough)>;

  Deputy() = default;
  Deputy(const Deputy&) = delete;
  Deputy& operator=(const Deputy&) = delete;
  ~Deputy() {
    if (!job_) return;
    {
      const std::lock_guard lock{mutex_};
      dismissed_ = true;
    }
    changed_.notify_one();
    ThreadPool::instance().close(*job_);
  }

  /// A run begins. `come_back()`: drive() should see soon that it is enough (any thread). Both must live as long as the
  /// run. std::system_error if there is no thread for it.
  void begin(const StandIn& drive, const FunctionRef<void()>& come_back) {
    drive_ = &drive;
    come_back_ = &come_back;
    if (job_) return;
    job_.emplace(0, 1, 1, body_, has_work_);
    if (ThreadPool::instance().open(*job_)) return;
    job_.reset();
    throw std::system_error(std::make_error_code(std::errc::resource_unavailable_try_again),
                            "pyarallel: no thread can be started");
  }

  /// The driver is in an item, and the deputy asks.
  bool stands_in() const noexcept { return stands_in_; }

  /// The driver runs what may take its time, and must not throw.
  template <class Code>
  void while_out(const Code& code) {
    times_out_ += 4;
    const std::uint64_t out = times_out_ | driver_is_out;
    // Sequentially consistent, as in look_out(): either the deputy sees this before it sleeps, or we see that it does.
    state_.store(out, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) wake();
    code();
    std::uint64_t seen = out;
    if (state_.compare_exchange_strong(seen, times_out_ | driver_drives, std::memory_order_acquire)) return;
    wanted_.store(true, std::memory_order_relaxed);
    (*come_back_)();
    while ((seen = state_.load(std::memory_order_acquire)) == (times_out_ | deputy_drives)) {
      state_.wait(seen, std::memory_order_acquire);
    }
    wanted_.store(false, std::memory_order_relaxed);
  }

 private:
  // In the lower bits of the state; the others count how often the driver was out.
  static constexpr std::uint64_t driver_drives = 0;
  static constexpr std::uint64_t driver_is_out = 1;
  static constexpr std::uint64_t deputy_drives = 2;

  static constexpr std::chrono::milliseconds patience{1};
  static constexpr int most_looks = 50;  // at a driver that is not out any more

  struct Body {
    Deputy* deputy;
    void operator()(std::size_t) const { deputy->look_out(); }
  };
  struct HasWork {
    bool operator()() const { return true; }
  };

  void wake() {
    {
      const std::lock_guard lock{mutex_};
      asleep_.store(false, std::memory_order_relaxed);
    }
    changed_.notify_one();
  }

  /// The deputy's thread. Looking now and then is cheaper than being told.
  void look_out() noexcept {
    std::uint64_t seen_before = driver_drives;
    int looks = 0;
    while (true) {
      std::uint64_t seen = state_.load(std::memory_order_relaxed);
      const bool same = seen == seen_before;
      seen_before = seen;
      if (!same) looks = 0;
      if (same && (seen & 3U) == driver_is_out) {
        // Acquire: all that the driver did before. Release: all that is done here, for the driver.
        const std::uint64_t mine = seen - driver_is_out + deputy_drives;
        if (state_.compare_exchange_strong(seen, mine, std::memory_order_acquire)) {
          stands_in_ = true;
          (*drive_)([this] { return wanted_.load(std::memory_order_relaxed); });
          stands_in_ = false;
          state_.store(mine - deputy_drives + driver_drives, std::memory_order_release);
          state_.notify_one();
        }
        continue;
      }
      std::unique_lock lock{mutex_};
      if (++looks < most_looks) {
        changed_.wait_for(lock, patience, [this] { return dismissed_; });
      } else {
        asleep_.store(true, std::memory_order_seq_cst);
        if (state_.load(std::memory_order_seq_cst) == seen_before) {
          changed_.wait(lock, [this] { return dismissed_ || !asleep_.load(std::memory_order_relaxed); });
        }
        asleep_.store(false, std::memory_order_relaxed);
        looks = 0;
      }
      if (dismissed_) return;
    }
  }

  const StandIn* drive_ = nullptr;
  const FunctionRef<void()>* come_back_ = nullptr;
  std::uint64_t times_out_ = 0;
  bool stands_in_ = false;  // the driver's, as these are
  alignas(64) std::atomic<std::uint64_t> state_{driver_drives};
  std::atomic<bool> asleep_{false};
  std::atomic<bool> wanted_{false};  // the driver
  std::mutex mutex_;
  std::condition_variable changed_;
  bool dismissed_ = false;
  Body body_{this};
  HasWork has_work_;
  std::optional<ThreadPool::Job> job_;
};

}  // namespace pyarallel::detail

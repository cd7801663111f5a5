// Where the driver and the workers meet: admitted items wait here for a worker, outcomes for the driver.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <iterator>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/parallelism.hpp"
#include "pyarallel/detail/run/workplace.hpp"
#include "pyarallel/detail/spin.hpp"

namespace pyarallel::detail {

/// First in, first out. (A std::deque allocates before it holds anything.)
class SlotQueue {
 public:
  std::size_t size() const noexcept { return slots_.size() - first_; }
  bool empty() const noexcept { return size() == 0; }

  void push_back(std::size_t slot) {
    if (first_ > 64 && first_ > slots_.size() / 2) {
      slots_.erase(slots_.begin(), begin());
      first_ = 0;
    }
    slots_.push_back(slot);
  }

  void push_front(const std::vector<std::size_t>& slots) { slots_.insert(begin(), slots.begin(), slots.end()); }

  /// Up to `most`, in order.
  void take(std::size_t most, std::vector<std::size_t>& taken) {
    const auto end = begin() + static_cast<std::ptrdiff_t>(std::min(most, size()));
    taken.assign(begin(), end);
    first_ += taken.size();
    if (empty()) {
      slots_.clear();
      first_ = 0;
    }
  }

 private:
  std::vector<std::size_t>::iterator begin() { return slots_.begin() + static_cast<std::ptrdiff_t>(first_); }

  std::vector<std::size_t> slots_;
  std::size_t first_ = 0;
};

/// A mutex guards everything; what it guards takes well under a microsecond, so whoever finds it locked looks again
/// for a moment before it sleeps.
///
/// Waking a sleeper costs 5 us, and it arrives 50 us later. So a worker without items, and a driver without
/// outcomes, look out for a while before they sleep, where that takes a CPU from nobody. And while items are quick,
/// no second worker is woken for them: the one that is awake takes them sooner. Should it turn out to be busy for
/// longer (or even wait for the item that nobody takes), one of the others sleeps with one eye open: the sentry.
class Handover final : public Workplace {
 public:
  // The worker's side ------------------------------------------------------------------------------

  void enter() {
    const auto lock = lock_soon(mutex_);
    ++inside_;
    entered_ = true;
  }

  void leave() {
    const auto lock = lock_soon(mutex_);
    --inside_;
    tell_driver();
  }

  /// Hands over one outcome (input that workers find by index).
  void resolve(Resolved item) {
    const auto lock = lock_soon(mutex_);
    resolved_.push_back(std::move(item));
    tell_driver();
  }

  /// Hands over outcomes, hands back what was not begun, and takes up to `most` of the items that
  /// wait, or waits for some. False, with nothing taken, when there will be no more.
  bool exchange(std::vector<Resolved>& outcomes, std::vector<std::size_t>& slots, std::size_t most) {
    auto lock = lock_soon(mutex_);
    if (!outcomes.empty()) {
      resolved_.insert(resolved_.end(), std::make_move_iterator(outcomes.begin()),
                       std::make_move_iterator(outcomes.end()));
      outcomes.clear();
      tell_driver();
    }
    if (closed_) {
      for (const std::size_t slot : slots) resolved_.push_back({.slot = slot, .ran = false});
      slots.clear();
      return false;
    }
    if (!slots.empty()) {
      waiting_.push_front(slots);
      slots.clear();
      items_waiting_.store(true, std::memory_order_relaxed);
      workers_.notify_all();
    }
    wait_for_items(lock);
    if (closed_) return false;
    waiting_.take(most, slots);
    items_waiting_.store(!waiting_.empty(), std::memory_order_relaxed);
    // Perhaps nobody was told of those that are left, because there was a sentry then.
    if (!waiting_.empty() && sleeping_ > 0 && sentry_ + looking_out_ == 0) workers_.notify_one();
    return true;
  }

  // The driver's side ------------------------------------------------------------------------------

  /// An item for the workers, which will probably take no more than a few microseconds if it is `quick`. False if
  /// those who are here may not be enough.
  bool offer(std::size_t slot, bool quick) {
    const auto lock = lock_soon(mutex_);
    waiting_.push_back(slot);
    items_waiting_.store(true, std::memory_order_relaxed);
    quick_ = quick;
    const bool seen_soon = quick && sentry_ > 0 && waiting_.size() < most_unseen;
    // Whoever looks out sees it, or looks again under the mutex before it sleeps.
    if (!seen_soon && sleeping_ + sentry_ > 0 && waiting_.size() > looking_out_) workers_.notify_one();
    return waiting_.size() <= sleeping_ + sentry_ + looking_out_;
  }

  /// A hint: a worker that comes now would find something.
  bool items_waiting() const noexcept { return items_waiting_.load(std::memory_order_relaxed); }

  /// A hint: collect() would find something.
  bool outcomes_waiting() const noexcept { return outcomes_waiting_.load(std::memory_order_relaxed); }

  void collect(std::vector<Resolved>& outcomes, bool until_left, TimePoint due) override {
    outcomes.clear();
    auto lock = lock_soon(mutex_);
    const auto nothing_new = [&] { return resolved_.empty() && !woken_ && !(until_left && entered_ && inside_ == 0); };
    const std::size_t busy = inside_ - looking_out_ - sleeping_ - sentry_;
    if (nothing_new() && busy < cpus_ && cpus_ > 1 && clock().now() < due) {
      news_.store(false, std::memory_order_relaxed);
      lock.unlock();
      spin_until([this] { return news_.load(std::memory_order_relaxed); });
      lock = lock_soon(mutex_);
    }
    while (nothing_new()) {
      if (due == TimePoint::max()) {
        driver_.wait(lock);
      } else if (clock().now() < due) {
        clock().wait_until(driver_, lock, due);
      } else {
        break;
      }
    }
    woken_ = false;
    outcomes.swap(resolved_);
    outcomes_waiting_.store(false, std::memory_order_relaxed);
  }

  bool nobody_inside() override {
    const auto lock = lock_soon(mutex_);
    return inside_ == 0 && resolved_.empty();
  }

  std::vector<std::size_t> close() override {
    const auto lock = lock_soon(mutex_);
    closed_ = true;
    items_waiting_.store(true, std::memory_order_relaxed);  // for those who look out
    workers_.notify_all();
    std::vector<std::size_t> left;
    waiting_.take(waiting_.size(), left);
    return left;
  }

  // Anybody's --------------------------------------------------------------------------------------

  void wake() noexcept override {
    const auto lock = lock_soon(mutex_);
    woken_ = true;
    tell_driver();
  }

 private:
  void tell_driver() {
    if (!resolved_.empty()) outcomes_waiting_.store(true, std::memory_order_relaxed);
    news_.store(true, std::memory_order_relaxed);
    driver_.notify_one();
  }

  void wait_for_items(std::unique_lock<std::mutex>& lock) {
    int looks = 0;
    while (waiting_.empty() && !closed_) {
      if (looking_out_ + 1 < cpus_) {
        ++looking_out_;
        lock.unlock();
        const bool seen = spin_until([this] { return items_waiting_.load(std::memory_order_relaxed); });
        lock = lock_soon(mutex_);
        --looking_out_;
        if (seen || !waiting_.empty() || closed_) continue;
      }
      if (quick_ && sentry_ == 0 && ++looks < most_looks) {
        sentry_ = 1;
        workers_.wait_for(lock, std::chrono::milliseconds{1});
        sentry_ = 0;
      } else {
        ++sleeping_;
        workers_.wait(lock);
        --sleeping_;
      }
    }
  }

  static constexpr std::size_t most_unseen = 64;  // quick items that wait before a second worker is woken
  static constexpr int most_looks = 50;           // of a sentry, without any items

  std::mutex mutex_;
  std::condition_variable driver_;
  std::condition_variable workers_;
  SlotQueue waiting_;
  std::vector<Resolved> resolved_;
  const std::size_t cpus_ = cpus_at_start();
  std::size_t inside_ = 0;       // workers
  std::size_t looking_out_ = 0;  // of those, the ones that look at items_waiting_
  std::size_t sleeping_ = 0;     // the ones that wait until they are woken
  std::size_t sentry_ = 0;       // and the one that looks now and then, if there is one
  bool quick_ = false;           // items, as last seen
  bool entered_ = false;         // anybody, ever
  bool woken_ = false;
  bool closed_ = false;
  alignas(64) std::atomic<bool> items_waiting_{false};
  alignas(64) std::atomic<bool> news_{false};  // for the driver
  std::atomic<bool> outcomes_waiting_{false};
};

}  // namespace pyarallel::detail

// Where the driver and the workers meet: admitted items wait here for a worker, outcomes for the driver.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <iterator>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/workplace.hpp"

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

class Handover final : public Workplace {
 public:
  // The worker's side ------------------------------------------------------------------------------

  void enter() {
    const std::lock_guard lock{mutex_};
    ++inside_;
    entered_ = true;
  }

  void leave() {
    const std::lock_guard lock{mutex_};
    --inside_;
    driver_.notify_one();
  }

  /// Hands over one outcome (input that workers find by index).
  void resolve(Resolved item) {
    const std::lock_guard lock{mutex_};
    resolved_.push_back(std::move(item));
    if (resolved_.size() == 1) driver_.notify_one();
  }

  /// Hands over outcomes, hands back what was not begun, and takes up to `most` of the items that
  /// wait, or waits for some. False, with nothing taken, when there will be no more.
  bool exchange(std::vector<Resolved>& outcomes, std::vector<std::size_t>& slots, std::size_t most) {
    std::unique_lock lock{mutex_};
    if (!outcomes.empty()) {
      const bool first = resolved_.empty();
      resolved_.insert(resolved_.end(), std::make_move_iterator(outcomes.begin()),
                       std::make_move_iterator(outcomes.end()));
      outcomes.clear();
      if (first) driver_.notify_one();
    }
    if (closed_) {
      for (const std::size_t slot : slots)
        resolved_.push_back(
            {.index = 0, .slot = slot, .error = nullptr, .ran = false, .receipt = {}, .interrupted = false});
      slots.clear();
      return false;
    }
    if (!slots.empty()) {
      waiting_.push_front(slots);
      slots.clear();
      items_waiting_.store(true, std::memory_order_relaxed);
      workers_.notify_all();
    }
    ++idle_workers_;
    while (waiting_.empty() && !closed_) workers_.wait(lock);
    --idle_workers_;
    if (closed_) return false;
    waiting_.take(most, slots);
    items_waiting_.store(!waiting_.empty(), std::memory_order_relaxed);
    return true;
  }

  // The driver's side ------------------------------------------------------------------------------

  /// An item for the workers. False if those who are here may not be enough.
  bool offer(std::size_t slot) {
    const std::lock_guard lock{mutex_};
    waiting_.push_back(slot);
    items_waiting_.store(true, std::memory_order_relaxed);
    if (idle_workers_ > 0) workers_.notify_one();
    return waiting_.size() <= idle_workers_;
  }

  /// A hint: a worker that comes now would find something.
  bool items_waiting() const noexcept { return items_waiting_.load(std::memory_order_relaxed); }

  void collect(std::vector<Resolved>& outcomes, bool until_left, TimePoint due) override {
    outcomes.clear();
    std::unique_lock lock{mutex_};
    while (resolved_.empty() && !woken_ && !(until_left && entered_ && inside_ == 0)) {
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
  }

  bool nobody_inside() override {
    const std::lock_guard lock{mutex_};
    return inside_ == 0 && resolved_.empty();
  }

  std::vector<std::size_t> close() override {
    const std::lock_guard lock{mutex_};
    closed_ = true;
    items_waiting_.store(false, std::memory_order_relaxed);
    workers_.notify_all();
    std::vector<std::size_t> left;
    waiting_.take(waiting_.size(), left);
    return left;
  }

  // Anybody's --------------------------------------------------------------------------------------

  void wake() noexcept override {
    const std::lock_guard lock{mutex_};
    woken_ = true;
    driver_.notify_one();
  }

 private:
  std::mutex mutex_;
  std::condition_variable driver_;
  std::condition_variable workers_;
  SlotQueue waiting_;
  std::vector<Resolved> resolved_;
  std::size_t inside_ = 0;        // workers
  std::size_t idle_workers_ = 0;  // of those, the ones that wait for items
  bool entered_ = false;          // anybody, ever
  std::atomic<bool> items_waiting_{false};
  bool woken_ = false;
  bool closed_ = false;
};

}  // namespace pyarallel::detail

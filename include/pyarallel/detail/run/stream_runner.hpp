// A run whose outcomes are yielded one by one: values live in the slots of the window until the consumer takes
// them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/map_runner.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/records.hpp"
#include "pyarallel/detail/run/yield_queue.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

template <class R, class Items, class Invoke>
class StreamRunner : public ItemRunner<R, Items, Invoke> {
  using Base = ItemRunner<R, Items, Invoke>;

 public:
  using Result = R;
  using Options = StreamOptions<item_t<Items>, R>;

  static constexpr bool keeps_values_by_index = false;

  StreamRunner(Items& items, Invoke& invoke, const Options& options, const Plan& plan, const Placement& placement)
      : Base(items, invoke, plan, placement.state, placement.workplace), options_(options) {}
  StreamRunner(const StreamRunner&) = delete;
  StreamRunner& operator=(const StreamRunner&) = delete;
  ~StreamRunner() {
    let_go();
    queue_.for_each([this](const Resolved& item) {
      if (item.has_outcome() && !item.error) std::destroy_at(values_.at(item.slot));
    });
  }

  Records& records() noexcept { return records_; }

  // One item (any worker) ---------------------------------------------------------------------------

  /// Where its value is made.
  R* place([[maybe_unused]] std::size_t index, std::size_t slot) const noexcept { return values_.at(slot); }

  template <Through what>
  void record([[maybe_unused]] const Resolved& item) const noexcept {}

  // The driver's side ---------------------------------------------------------------------------------

  /// Admits an item: its key, and a place for its value. Pull::none if that threw.
  Pull admit([[maybe_unused]] std::size_t index, std::size_t slot, const Kept<Items>& item) {
    if (values_.has(slot) && !this->plan().keyed) return Pull::placed;
    const bool admitted = this->driver().guarded([&] {
      values_.grow_to(slot + 1);
      if (!this->plan().keyed) return;
      if (keys_.size() <= slot) keys_.resize(slot + 1);
      keys_[slot] = options_.item_key(std::as_const(item).get());
    });
    return admitted ? Pull::placed : Pull::none;
  }

  /// A stream keeps nothing for later runs.
  void store([[maybe_unused]] std::span<const Resolved> items) const noexcept {}

  /// Queues an outcome. True if there is none, so that the slot is free again.
  bool settle(Resolved& item) {
    const bool seen = item.has_outcome();
    if (!item.ran) this->run().add_unrun({item.index, item.index + 1});
    if (item.interrupted) this->run().add_interrupted(item.index);
    // In completion order this is the moment; in input order, when the failure's turn comes (see take()).
    if (seen && item.error && !options_.ordered) count_failure();
    if (seen || options_.ordered) queue_.put(options_.ordered ? item.index : settled_++, std::move(item));
    if (seen) report();
    return !seen;
  }

  /// No callback is called any more.
  void abandon() noexcept { abandoned_ = true; }

  // The consumer's side -------------------------------------------------------------------------------

  /// There is an outcome to take.
  bool ready() const noexcept { return queue_.ready(); }

  /// Shows the next outcome in `result`, until let_go(). Returns its slot, which is the consumer's as long.
  std::size_t take(ItemResult<R>& result) {
    Resolved item = queue_.pop();
    result.index = item.index;
    result.attempts = std::max(item.receipt.attempts, 1);  // where nothing was written down, it was one
    result.duration = item.receipt.duration;
    if (this->plan().keyed) result.key = std::move(keys_[item.slot]);
    if (item.error && options_.ordered) count_failure();
    show(std::move(item.error), values_.at(item.slot), result);
    return item.slot;
  }

  /// Runs an item on the consumer's thread, and shows its outcome; there is nothing that concerns it but fn.
  template <class Arg>
  void run_directly(std::size_t index, Arg& item, ItemResult<R>& result) {
    result.index = index;
    result.attempts = 1;
    result.duration = {};
    Task task;
    std::exception_ptr error = this->call_once(task, index, item, direct_value_.get());
    if (error) count_failure();
    show(std::move(error), direct_value_.get(), result);
    if (options_.ordered) queue_.skip();
  }

  /// The value that is shown dies.
  void let_go() noexcept {
    if (R* const value = std::exchange(shown_, nullptr)) std::destroy_at(value);
  }

  /// Nothing more is to be taken.
  bool had_enough_failures() const noexcept { return options_.max_errors && failures_taken_ >= *options_.max_errors; }

  /// How the run ended, after all workers have left.
  RunStatus end(bool known_end) {
    RunStatus status = this->run().end(known_end);
    if (status == RunStatus::completed && had_enough_failures()) status = RunStatus::aborted;
    return status;
  }

 private:
  void show(std::exception_ptr error, R* value, ItemResult<R>& result) {
    using Access = ItemResultAccess<R>;
    if (error) {
      Access::set_error(result, Error{std::move(error)});
      ++failures_taken_;
    } else {
      Access::look_at(result, value);
      shown_ = value;
    }
  }

  void count_failure() {
    if (options_.max_errors && ++failures_ >= *options_.max_errors) this->run().stop(StopReason::aborted);
  }

  void report() {
    ++reported_;
    if (!options_.on_progress || abandoned_ || this->driver().call_failed()) return;
    this->driver().guarded([&] { options_.on_progress(reported_, Base::sized ? this->size() : this->admitted()); });
  }

  const Options& options_;
  GrowingArray<R> values_;     // by slot
  std::vector<ItemKey> keys_;  // by slot
  Records records_{false, 0};  // nothing: what is known of an item comes with its outcome
  YieldQueue queue_;           // by index if `ordered`, else in the order of completion
  std::size_t settled_ = 0;
  std::size_t failures_ = 0;
  std::size_t failures_taken_ = 0;
  std::size_t reported_ = 0;
  bool abandoned_ = false;
  R* shown_ = nullptr;        // the value that the consumer sees
  RawPlace<R> direct_value_;  // of run_directly()
};

}  // namespace pyarallel::detail

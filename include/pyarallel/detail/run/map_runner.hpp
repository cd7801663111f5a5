// A run whose outcomes are kept, for a MapResult: every value in its place, and what is written down of each item.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/records.hpp"
#include "pyarallel/detail/run/run_checkpoint.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

/// What is different when workers are elsewhere.
struct Placement {
  Memory memory = Memory::own;     // for values
  bool receipts = true;            // one for each item; else blocks
  RunState* state = nullptr;       // as in Run
  Workplace* workplace = nullptr;  // as in Run
};

template <class R, class Items, class Invoke>
class MapRunner : public ItemRunner<R, Items, Invoke> {
  using Base = ItemRunner<R, Items, Invoke>;

 public:
  using Result = R;
  using Options = MapOptions<item_t<Items>, R>;

  /// Workers that find items by index may make values where the result will have them.
  static constexpr bool keeps_values_by_index = true;

  MapRunner(Items& items, Invoke& invoke, const Options& options, const Plan& plan, const Placement& placement)
      : Base(items, invoke, plan, placement.state, placement.workplace),
        options_(options),
        values_(this->size(), placement.memory),
        records_(placement.receipts, this->size()) {
    if (!plan.stored) return;
    const auto give_up = [this] { return this->run().closed() || this->run().stop_if_due(clock().now()); };
    checkpoint_.emplace(*options.checkpoint.store(), *options.checkpoint.types(), plan.keyed, keys_, this->size(),
                        give_up);
  }

  Records& records() noexcept { return records_; }

  // One item (any worker) ---------------------------------------------------------------------------

  /// Where its value is made. `slot`: of a pulled item.
  R* place(std::size_t index, [[maybe_unused]] std::size_t slot = 0) const noexcept { return values_.at(index); }

  /// Writes down what became of an item. False if it never ran.
  template <Through what>
  bool record(const Resolved& item) {
    if constexpr (what != Through::nothing) {
      if (!item.ran) return false;
    }
    if constexpr (what == Through::attempts) records_[item.index] = item.receipt;
    if (item.error) this->run().add_failure(item.index, item.error);
    if (item.interrupted) this->run().add_interrupted(item.index);
    return true;
  }

  // The driver's side ---------------------------------------------------------------------------------

  /// Admits a pulled item: its key, whatever grows with the input, and its value if a checkpoint has it. Pull::none if
  /// that threw.
  Pull admit(std::size_t index, std::size_t slot, const Kept<Items>& item) {
    bool found = false;
    const bool admitted = this->driver().guarded([&] {
      if (!Base::sized) {
        values_.grow_to(index + 1);
        records_.grow_to(index + 1);
      }
      if (this->plan().keyed) keys_.push_back(options_.item_key(std::as_const(item).get()));
      if (!checkpoint_) return;
      const item_t<Items>& looked_up = std::as_const(item).get();
      found = checkpoint_->find(index, slot, std::addressof(looked_up), values_.at(index));
    });
    if (!admitted) return Pull::none;
    if (!found) return Pull::placed;
    settle({.index = index});
    return Pull::resolved;
  }

  /// Keeps the values among these outcomes in the checkpoint, if there is one: before any of them is reported, and
  /// also when the call is going to fail, for they were made.
  void store(std::span<const Resolved> items) {
    if (!checkpoint_) return;
    for (const Resolved& item : items) {
      if (!item.has_outcome() || item.error) continue;
      this->driver().guarded([&] { checkpoint_->add(item.index, item.slot, values_.at(item.index)); });
    }
    this->driver().guarded([&] { checkpoint_->commit(); });
  }

  /// In a forked worker: see CheckpointSession.
  void leave_checkpoint_to_parent() noexcept {
    if (checkpoint_) checkpoint_->leave_to_parent();
  }

  /// Runs an item on the driver's thread; there is nothing that concerns it but fn.
  template <class Arg>
  void run_directly(std::size_t index, Arg& item) {
    if (!Base::sized && !values_.has(index)) values_.grow_to(index + 1);
    Task task;
    if (const std::exception_ptr error = this->call_once(task, index, item, place(index))) {
      this->run().add_failure(index, error);
    }
  }

  /// Shows an outcome to the callbacks, or writes down that there is none. True: a pulled item's slot is free again.
  bool settle(const Resolved& item) {
    if (!item.ran) {
      this->run().add_unrun({item.index, item.index + 1});
    } else if (this->plan().reported && !item.interrupted && !this->driver().call_failed()) {
      this->driver().guarded([&] { report(item); });
    }
    return true;
  }

  /// Everything, after all workers have left. `known_end`: the input has no more items. Throws what
  /// code of the user threw.
  MapResult<R> finish(bool known_end) {
    const std::size_t entries = Base::sized ? this->size() : this->admitted();
    this->run().add_unrun({this->admitted(), entries});
    Summary summary = this->run().finish(entries, known_end);
    summary.keys = std::move(keys_);
    const auto has_value = [&](std::size_t index) { return summary.failure_at(index) == nullptr; };
    RawArray<R> values;
    try {
      records_.move_to(summary, entries);
      values = values_.release_contiguous(entries, has_value);
    } catch (...) {
      values_.destroy(entries, has_value);
      throw;
    }
    auto result = MapResultAccess<R>::make(std::move(values), std::move(summary));
    // Here the result owns the values, and destroys them.
    if (this->run().call_failure()) std::rethrow_exception(this->run().call_failure());
    return result;
  }

 private:
  void report(const Resolved& item) {
    if (options_.on_result) {
      using Access = ItemResultAccess<R>;
      auto result =
          Access::make(item.index, records_[item.index], item.index < keys_.size() ? keys_[item.index] : ItemKey{});
      if (item.error) {
        Access::set_error(result, Error{item.error});
      } else {
        Access::look_at(result, values_.at(item.index));
      }
      options_.on_result(result);
    }
    ++reported_;
    if (options_.on_progress) options_.on_progress(reported_, Base::sized ? this->size() : this->admitted());
  }

  const Options& options_;
  GrowingArray<R> values_;
  Records records_;
  std::vector<ItemKey> keys_;
  std::size_t reported_ = 0;
  std::optional<RunCheckpoint> checkpoint_;
};

}  // namespace pyarallel::detail

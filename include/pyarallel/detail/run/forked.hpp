// A map on forked workers: the typed half. (process/crew.hpp is the parent's other half, process/worker.hpp
// the worker's.) Input that can be found by index is inherited; other input is read by the driver, and sent.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/parallelism.hpp"
#include "pyarallel/detail/process/forked_work.hpp"
#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/source.hpp"

namespace pyarallel::detail {

template <class R, class Items, class Invoke>
class ForkedRun final : private ForkedWork {
 public:
  using Runner = ItemRunner<R, Items, Invoke>;
  using Options = typename Runner::Options;

  ForkedRun(Items& items, Invoke& invoke, const Options& options, const Plan& plan)
      : job_(job_for(items, plan)),
        crew_(plan.make_crew(plan, job_)),
        runner_(items, invoke, options, plan,
                {.memory = in_place ? Memory::shared : Memory::own,
                 .receipts = job_.one_by_one || (plan.chunk > 0 && plan.chunk <= few),
                 .state = &crew_->run_state(),
                 .workplace = crew_.get()}) {
    if constexpr (by_index) first_.emplace(std::ranges::begin(items));
  }

  MapResult<R> run() {
    bool known_end = true;
    if (job_.claims) {
      runner_.all_admitted();
      crew_->run(runner_.run(), runner_.driver(), *this);
    } else {
      admission_.emplace(runner_, job_.entries);
      if (admission_->begin()) crew_->run(runner_.run(), runner_.driver(), *this);
      known_end = admission_->exhausted();
    }
    return runner_.finish(known_end);
  }

 private:
  using Item = item_t<Items>;
  static constexpr bool by_index = IndexedInput<Items>;
  // Workers make such values where the result will have them.
  static constexpr bool in_place = by_index && std::is_trivially_copyable_v<R> && !has_codec_of_its_own<R>();
  // Chunks so small that one receipt for each of their items takes less than one for each of them.
  static constexpr std::size_t few = 8;

  // Where the items are, if they can be found by index.
  using First = std::conditional_t<by_index, std::optional<std::ranges::iterator_t<Items>>, std::monostate>;

  // One value on its way from fn to the parent.
  class Value {
   public:
    Value() = default;
    Value(const Value&) = delete;
    Value& operator=(const Value&) = delete;
    R* place() noexcept { return reinterpret_cast<R*>(storage_); }

   private:
    alignas(R) std::byte storage_[sizeof(R)];
  };

  static ForkedJob job_for(Items& items, const Plan& plan) {
    if (!by_index && !Serializable<Item>) {
      throw std::invalid_argument(
          "executor: Executor::process sends the items of an input that is not random access to its workers, and "
          "there is no Codec for their type; specialise pyarallel::Codec for it, or put the items into a std::vector");
    }
    const std::size_t size = known_size(items);
    return make_forked_job(plan, by_index, Runner::sized, size, Runner::worker_count(plan, size));
  }

  // The driver -----------------------------------------------------------------------------------------

  std::optional<AdmittedItem> admit() override {
    const auto place = admission_->pull();
    if (!place) return std::nullopt;
    auto& slot = admission_->window()[*place];
    const bool encoded = runner_.driver().guarded([&] {
      bytes_.clear();
      if constexpr (!by_index && Serializable<Item>) Codec<Item>::encode(slot.item.get(), bytes_);
    });
    if (encoded) return AdmittedItem{*place, slot.index, bytes_};
    admission_->reject(*place);
    return std::nullopt;
  }

  bool all_admitted() override { return admission_->ended(); }
  bool all_settled() override { return admission_->finished(); }

  void settle(Resolved& item) override {
    if (job_.one_by_one) {
      runner_.template record<Through::attempts>(item);
    } else {
      runner_.template record<Through::nothing>(item);
    }
    if (job_.claims) {
      runner_.settle(item);
    } else {
      admission_->settle(std::move(item));
    }
  }

  Records& records() override { return runner_.records(); }

  void keep_value(std::size_t index, std::span<const std::byte> bytes) override {
    ::new (static_cast<void*>(runner_.place(index))) R(Codec<R>::decode(bytes));
  }

  // A worker -------------------------------------------------------------------------------------------

  std::exception_ptr initialize() override { return runner_.initialize_worker(); }

  Task new_task(std::size_t worker) override { return runner_.new_task(worker); }

  std::size_t run_block(Range block, const Task& given_task, WorkerLink& worker) override {
    const bool may_be_closed = runner_.plan().may_stop_early();
    // Copies: the compiler keeps them in registers, or drops what fn does not look at.
    Task task = given_task;
    std::atomic<std::uint64_t>& current = worker.current_item();
    const First first = first_;
    R* const values = in_place ? runner_.place(0) : value_.place();
    for (std::size_t index = block.first; index < block.last; ++index) {
      current.store(index, std::memory_order_release);  // it begins, and those before it are done
      if (may_be_closed && runner_.run().closed()) return index;
      const bool read = with_item(first, index, {}, worker, [&](auto& item) {
        R* const place = in_place ? values + index : values;
        std::exception_ptr error = runner_.call_once(task, index, item, place);
        if (!in_place || error) send(outcome(index, std::move(error)), place, worker);
      });
      if (!read) return index;
    }
    return block.last;
  }

  void run_one(std::size_t index, std::span<const std::byte> bytes, Outcome so_far, Task& task,
               WorkerLink& worker) override {
    with_item(first_, index, bytes, worker, [&](auto& item) {
      R* const place = in_place ? runner_.place(index) : value_.place();
      send(runner_.template run_through<Through::attempts>(task, index, item, place, std::move(so_far)), place, worker);
    });
  }

  /// `use` of the item, wherever it is; it does not throw. False if the item could not be read.
  template <class Use>
  bool with_item([[maybe_unused]] const First& first, std::size_t index,
                 [[maybe_unused]] std::span<const std::byte> bytes, WorkerLink& worker, Use use) {
    try {
      if constexpr (by_index) {
        const auto offset = static_cast<std::iter_difference_t<std::ranges::iterator_t<Items>>>(index);
        if constexpr (stays_put<Items>) {
          use((*first)[offset]);
        } else {
          const Item item((*first)[offset]);
          use(item);
        }
      } else if constexpr (Serializable<Item>) {
        Item item = Codec<Item>::decode(bytes);
        use(static_cast<item_arg_t<Items>>(item));
      }
      return true;
    } catch (...) {
      if (by_index) {
        worker.fail_call(std::current_exception());  // the source threw
      } else {
        worker.send(outcome(index, std::current_exception()), {}, {});
      }
      return false;
    }
  }

  static Resolved outcome(std::size_t index, std::exception_ptr error) {
    return {.index = index,
            .slot = 0,
            .error = std::move(error),
            .ran = true,
            .receipt = {.duration = {}, .attempts = 1},
            .interrupted = false};
  }

  /// Sends an outcome, and ends the life of the value here.
  void send(Resolved resolved, R* value, WorkerLink& worker) {
    if (in_place || !resolved.ran || resolved.error) {
      worker.send(resolved, {}, {});
      return;
    }
    std::span<const std::byte> more;  // what is sent from where it is, for copying it once more costs as much
    bytes_.clear();
    try {
      if constexpr (ImageSequence<R> && !UserCodec<R>) {
        more = encode_count_of(*value, bytes_);
      } else {
        Codec<R>::encode(*value, bytes_);
      }
    } catch (...) {
      resolved.error = std::current_exception();
    }
    if (resolved.error) {
      worker.send(resolved, {}, {});
    } else {
      worker.send(resolved, bytes_, more);
    }
    std::destroy_at(value);
  }

  const ForkedJob job_;
  const std::unique_ptr<Crew> crew_;
  Runner runner_;
  First first_;
  std::optional<Admission<Runner, Items>> admission_;  // where the driver admits items
  Value value_;                                        // in a worker
  Bytes bytes_;
};

}  // namespace pyarallel::detail

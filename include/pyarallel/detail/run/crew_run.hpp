// A map on a crew, which is forked workers or other machines: the typed half. (process/crew.hpp and remote/crew.hpp are
// the other half here, process/worker.hpp and remote/rank.hpp the one there.) Forked workers inherit input that can be
// found by index; other input is read by the driver, and sent.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
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
#include "pyarallel/detail/remote/remote_call.hpp"
#include "pyarallel/detail/run/admission.hpp"
#include "pyarallel/detail/run/crew.hpp"
#include "pyarallel/detail/run/map_runner.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/source.hpp"

namespace pyarallel::detail {

/// std::invalid_argument if items must be sent to workers, and cannot be.
template <class Items>
void require_codec_for_sent_items() {
  if (!IndexedInput<Items> && !Serializable<item_t<Items>>) {
    throw std::invalid_argument(
        "executor: Executor::process sends the items of an input that is not random access to its workers, and "
        "there is no Codec for their type; specialise pyarallel::Codec for it, or put the items into a std::vector");
  }
}

template <class Runner, class Items>
class CrewRun final : private CrewWork {
 public:
  static constexpr bool runs_in_this_process = false;

  template <class Invoke>
  CrewRun(Items& items, Invoke& invoke, const typename Runner::Options& options, const Plan& plan)
      : job_(job_for(items, invoke, plan)),
        crew_(plan.make_crew(plan, job_)),
        runner_(items, invoke, options, plan,
                {.memory = in_place && plan.remote == nullptr ? Memory::shared : Memory::own,
                 .receipts = job_.one_by_one || (job_.claims && plan.chunk > 0 && plan.chunk <= few),
                 .state = &crew_->run_state(),
                 .workplace = crew_.get()}) {
    if constexpr (by_index) first_.emplace(std::ranges::begin(items));
    if (job_.claims) {
      runner_.all_admitted();
    } else {
      admission_.emplace(runner_, job_.entries, !by_index || plan.driver_looks());
    }
  }
  CrewRun(const CrewRun&) = delete;
  CrewRun& operator=(const CrewRun&) = delete;

  Runner& runner() noexcept { return runner_; }
  /// Where the driver admits items.
  Admission<Runner, Items>& admission() noexcept { return *admission_; }
  /// The input is known to have no more items.
  bool exhausted() const noexcept { return !admission_ || admission_->exhausted(); }

  /// False if there is nothing to do.
  bool begin() {
    if (admission_ && !admission_->begin()) return false;
    crew_->begin(runner_.run(), runner_.driver(), *this);
    return true;
  }

  /// As in PulledRun.
  bool workers_matter() const noexcept { return true; }

  /// Goes on until enough() or, sooner or later, nothing is left to do.
  void advance(FunctionRef<bool()> enough) { crew_->advance(enough); }

  /// What still runs is wanted no more, and is killed as soon as the run has stopped.
  void abandon() noexcept { crew_->abandon(); }

  /// When this returns, no worker is left.
  void end() { crew_->end(); }

 private:
  using R = typename Runner::Result;
  using Item = item_t<Items>;
  static constexpr bool by_index = IndexedInput<Items>;
  // Workers make such values where the result will have them.
  static constexpr bool in_place =
      Runner::keeps_values_by_index && by_index && std::is_trivially_copyable_v<R> && !has_codec_of_its_own<R>();
  // Chunks so small that one receipt for each of their items takes less than one for each of them.
  static constexpr std::size_t few = 8;

  // Where the items are, if they can be found by index.
  using First = std::conditional_t<by_index, std::optional<std::ranges::iterator_t<Items>>, std::monostate>;

  // The driver -----------------------------------------------------------------------------------------

  Pull admit(AdmittedItem& item) override {
    const Pull pull = admission_->pull(item.place);
    if (pull != Pull::placed) return pull;
    auto& slot = admission_->window()[item.place];
    item.index = slot.index;
    item.bytes = {};
    if (!job_.sends_items || runner_.driver().guarded([&] { item.bytes = encode(item.place); })) return pull;
    admission_->reject(item.place);
    return Pull::none;
  }

  std::span<const std::byte> encode(std::size_t place) override {
    bytes_.clear();
    auto& slot = admission_->window()[place];
    if constexpr (Serializable<Item>) {
      if constexpr (by_index) {
        const auto offset = static_cast<std::iter_difference_t<std::ranges::iterator_t<Items>>>(slot.index);
        Codec<Item>::encode((*first_)[offset], bytes_);
      } else {
        Codec<Item>::encode(slot.item.get(), bytes_);
      }
    }
    return bytes_;
  }

  std::span<const std::byte> encode(Range items) override {
    bytes_.clear();
    if constexpr (by_index && std::contiguous_iterator<std::ranges::iterator_t<Items>> && is_memory_image<Item>()) {
      return std::as_bytes(std::span{std::to_address(*first_) + items.first, items.size()});
    } else if constexpr (by_index && Serializable<Item>) {
      const auto first = static_cast<std::iter_difference_t<std::ranges::iterator_t<Items>>>(items.first);
      const auto last = static_cast<std::iter_difference_t<std::ranges::iterator_t<Items>>>(items.last);
      for (auto i = first; i != last; ++i) Codec<Item>::encode((*first_)[i], bytes_);
    }
    return bytes_;
  }

  std::size_t keep_values(Range items, std::span<const std::byte> bytes, std::exception_ptr& error) override {
    std::size_t index = items.first;
    if constexpr (Runner::keeps_values_by_index) {
      try {
        if constexpr (is_memory_image<R>()) {
          const auto values = take(bytes, items.size() * sizeof(R));
          for (const std::byte* value = values.data(); index < items.last; ++index, value += sizeof(R)) {
            std::memcpy(static_cast<void*>(runner_.place(index)), value, sizeof(R));
          }
        }
        for (; index < items.last; ++index) {
          ::new (static_cast<void*>(runner_.place(index))) R(Codec<R>::decode(bytes));
        }
      } catch (...) {
        error = std::current_exception();
      }
    }
    return index;
  }

  bool all_admitted() override { return admission_->ended(); }
  bool all_settled() override { return admission_->finished(); }

  void settle(std::span<Resolved> items) override {
    for (Resolved& item : items) {
      if (job_.one_by_one) {
        runner_.template record<Through::attempts>(item);
      } else {
        runner_.template record<Through::nothing>(item);
      }
      if (job_.claims) runner_.settle(item);
    }
    if (!job_.claims) admission_->settle(items);
  }

  Records& records() override { return runner_.records(); }

  void keep_value(const Resolved& item, std::span<const std::byte> bytes) override {
    ::new (static_cast<void*>(runner_.place(item.index, item.slot))) R(Codec<R>::decode(bytes));
  }

  // A worker -------------------------------------------------------------------------------------------

  void enter_worker() noexcept override {
    if constexpr (Runner::keeps_values_by_index) runner_.leave_checkpoint_to_parent();
  }

  std::exception_ptr initialize() override { return runner_.try_worker_init(); }

  Task new_task(std::size_t worker) override { return runner_.new_task(worker); }

  std::size_t run_block(Range block, const Task& given_task, WorkerLink& worker) override {
    const bool may_be_closed = runner_.plan().may_stop_early();
    // Copies: the compiler keeps them in registers, or drops what fn does not look at.
    Task task = given_task;
    std::atomic<std::uint64_t>& current = worker.current_item();
    const First first = first_;
    R* const values = place_of(0);
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
      R* const place = place_of(index);
      LastLook last;
      send(runner_.template run_through<Through::attempts>(task, index, item, place, last, std::move(so_far)), place,
           worker);
    });
  }

  /// Where the item's value is made.
  R* place_of([[maybe_unused]] std::size_t index) noexcept {
    if constexpr (in_place) {
      return runner_.place(index);
    } else {
      return value_.get();
    }
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
    return {.index = index, .error = std::move(error), .receipt = {.duration = {}, .attempts = 1}};
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

  template <class Invoke>
  static CrewJob job_for(Items& items, Invoke& invoke, const Plan& plan) {
    require_codec_for_sent_items<Items>();
    const std::size_t size = known_size(items);
    const std::size_t workers = Runner::worker_count(plan, size);
    const bool only_values = by_index && Runner::keeps_values_by_index && !plan.driver_looks();
    // To other machines go blocks of items, too, but only where each item's outcome, or the moment when the last one
    // may begin (clause E1), is nobody's concern, and none of them can take the others with it.
    const bool blocks = plan.executor == Executor::thread && !plan.measured() && plan.chunk != 1 && plan.window == 0 &&
                        !plan.has_max_errors();
    const bool claims = only_values && (plan.remote == nullptr || blocks);
    CrewJob job = make_crew_job(plan, by_index, claims, Runner::sized, size, workers);
    if (plan.remote == nullptr) return job;
    job.together = only_values && !plan.reported;
    if (only_values && plan.window == 0 && !plan.has_max_errors()) {
      // More than there are workers, for many are on their way. (Input that is pulled has the window of clause W1.)
      constexpr std::size_t many = 4096;
      job.entries = std::clamp(size, job.entries, std::max(job.entries, many));
    }
    if constexpr (Serializable<Item> && requires { invoke.fn; }) {
      job.function = remote_function(invoke.fn);
      job.call = RemoteCall<R, Items, Invoke>::code.name();
    }
    return job;
  }

  const CrewJob job_;
  const std::unique_ptr<Crew> crew_;
  Runner runner_;
  First first_;
  std::optional<Admission<Runner, Items>> admission_;  // where the driver admits items
  RawPlace<R> value_;                                  // in a worker, on its way from fn to the parent
  Bytes bytes_;
};

}  // namespace pyarallel::detail

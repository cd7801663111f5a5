// A rank's life: it runs what rank 0 sends, on the executors of this machine, until rank 0 is done.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <exception>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/process/crew.hpp"
#include "pyarallel/detail/remote/dispatch.hpp"
#include "pyarallel/detail/remote/frames.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/detail/remote/remote_call.hpp"
#include "pyarallel/detail/run/forked.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/map_runner.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/pulled.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/records.hpp"

namespace pyarallel::detail {

/// An item as it came: `bytes` is the attempt's number, and the encoded item.
struct RankItem {
  std::uint32_t place = 0;
  std::uint64_t index = 0;
  Bytes bytes;
};

/// A value as it goes.
struct RankValue {
  Bytes bytes;
};

}  // namespace pyarallel::detail

// Between a rank and its forked workers.
template <>
struct pyarallel::Codec<pyarallel::detail::RankItem> {
  static void encode(const detail::RankItem& item, Bytes& out) {
    detail::append(out, &item.index, sizeof item.index);
    detail::append(out, item.bytes.data(), item.bytes.size());
  }
  static detail::RankItem decode(std::span<const std::byte>& in) {
    detail::RankItem item;
    std::memcpy(&item.index, in.data(), sizeof item.index);
    item.bytes.assign(in.begin() + sizeof item.index, in.end());
    in = {};
    return item;
  }
};
template <>
struct pyarallel::Codec<pyarallel::detail::RankValue> {
  static void encode(const detail::RankValue& value, Bytes& out) {
    detail::append(out, value.bytes.data(), value.bytes.size());
  }
  static detail::RankValue decode(std::span<const std::byte>& in) {
    const detail::RankValue value{{in.begin(), in.end()}};
    in = {};
    return value;
  }
};

namespace pyarallel::detail {

/// The items of a run that have come and have not begun: an input of which nobody knows whether there will be more.
class RankItems {
 public:
  struct iterator {
    using value_type = RankItem;
    using difference_type = std::ptrdiff_t;
    RankItems* items = nullptr;
    /// Takes it out.
    RankItem operator*() const { return items->take(); }
    iterator& operator++() { return *this; }
    void operator++(int) {}
    friend bool operator==(const iterator& it, std::default_sentinel_t) { return it.items->empty(); }
  };

  iterator begin() { return {this}; }
  std::default_sentinel_t end() const { return {}; }

  /// There is an item, or there will be none any more: who asks for the next need not wait.
  bool ready() const noexcept { return !waiting_.empty() || ended_; }
  bool empty() const noexcept { return waiting_.empty(); }
  bool ended() const noexcept { return ended_; }

  void add(RankItem item) { waiting_.push_back(std::move(item)); }
  RankItem take() {
    RankItem item = std::move(waiting_.front());
    waiting_.pop_front();
    return item;
  }
  std::uint32_t take_back() {
    const std::uint32_t place = waiting_.back().place;
    waiting_.pop_back();
    return place;
  }
  void set_ended() noexcept { ended_ = true; }

 private:
  std::deque<RankItem> waiting_;
  bool ended_ = false;
};

template <>
inline constexpr bool items_arrive<RankItems> = true;

/// fn as a rank calls it.
struct RankFunction {
  RunEncoded* run;
  RemoteFunction function;
  std::size_t first_worker;
  bool with_task;

  template <class Item>
  static constexpr bool takes_task = true;

  RankValue operator()(const RankItem& item, const Task& task) const {
    std::uint32_t attempt = 0;
    std::memcpy(&attempt, item.bytes.data(), sizeof attempt);
    const Task told{.index = static_cast<std::size_t>(item.index),
                    .attempt = static_cast<int>(attempt),
                    .worker = first_worker + task.worker,
                    .stop = task.stop};
    RankValue value;
    run(function, std::span{item.bytes}.subspan(sizeof attempt), told, value.bytes);
    return value;
  }
};

/// A run whose outcomes are sent as they come.
class RankRunner : public ItemRunner<RankValue, RankItems, const RankFunction> {
  using Base = ItemRunner<RankValue, RankItems, const RankFunction>;

 public:
  using Result = RankValue;
  struct Options {
    Bytes& out;  // frames for rank 0
  };
  static constexpr bool keeps_values_by_index = false;

  RankRunner(RankItems& items, const RankFunction& invoke, const Options& options, const Plan& plan,
             const Placement& placement)
      : Base(items, invoke, plan, placement.state, placement.workplace), out_(options.out) {}

  Records& records() noexcept { return records_; }
  std::size_t settled() const noexcept { return settled_; }

  RankValue* place([[maybe_unused]] std::size_t index, std::size_t slot) const noexcept { return values_.at(slot); }

  template <Through what>
  void record([[maybe_unused]] const Resolved& item) const noexcept {}

  Pull admit([[maybe_unused]] std::size_t index, std::size_t slot, const Kept<RankItems>& item) {
    const bool admitted = driver().guarded([&] {
      values_.grow_to(slot + 1);
      if (places_.size() <= slot) places_.resize(slot + 1);
      places_[slot] = item.get().place;
    });
    return admitted ? Pull::placed : Pull::none;
  }

  void store([[maybe_unused]] std::span<const Resolved> items) const noexcept {}

  bool settle(const Resolved& item) {
    ++settled_;
    const RemoteHead head{.place = places_[item.slot],
                          .number = static_cast<std::uint64_t>(item.receipt.duration.count())};
    if (!item.ran) {
      tell(RemoteFrame::not_run, head, {});
    } else if (item.interrupted) {
      tell(RemoteFrame::interrupted, head, {});
    } else if (item.error) {
      tell_failure(head, item.error);
    } else {
      RankValue* const value = values_.at(item.slot);
      tell(RemoteFrame::value, head, value->bytes);
      std::destroy_at(value);
    }
    return true;
  }

  template <class Arg>
  void run_directly([[maybe_unused]] std::size_t index, Arg& item) {
    ++settled_;
    Task task;
    const RemoteHead head{.place = item.place};
    if (const std::exception_ptr error = call_once(task, index, item, direct_value_.get())) {
      tell_failure(head, error);
    } else {
      tell(RemoteFrame::value, head, direct_value_.get()->bytes);
      std::destroy_at(direct_value_.get());
    }
  }

 private:
  void tell(RemoteFrame kind, RemoteHead head, std::span<const std::byte> bytes) {
    head.kind = kind;
    append_frame(out_, head, bytes);
  }

  void tell_failure(RemoteHead head, const std::exception_ptr& error) {
    head.kind = RemoteFrame::failure;
    append_frame_of(out_, head, [&](Bytes& out) { encode_exception(error, out); });
  }

  Bytes& out_;
  GrowingArray<RankValue> values_;     // by slot
  std::vector<std::uint32_t> places_;  // at rank 0, by slot
  Records records_{false, 0};
  RawPlace<RankValue> direct_value_;
  std::size_t settled_ = 0;
};

/// How a rank runs items.
struct RankOptions {
  Executor executor = Executor::thread;
  std::size_t workers = 1;
  std::function<void()> worker_init;
};

class Rank {
 public:
  /// `functions`: those that were served, in their order.
  Rank(Link& link, std::size_t rank_0, std::span<const RemoteFunction> functions, const RankOptions& options)
      : link_(link), rank_0_(rank_0), functions_(functions), options_(options) {}

  /// Returns when rank 0 is done.
  void serve() {
    while (!quit_) {
      if (!look()) pause_.pass(TimePoint::max());
      if (job_) run();
    }
    while (link_.sending()) look();
  }

 private:
  // What comes ----------------------------------------------------------------------------------------

  /// False if nothing has come.
  bool look() {
    std::size_t peer = 0;
    const auto piece = link_.receive(peer);
    if (piece.empty()) return false;
    pause_.reset();
    in_.feed(piece, [this](const RemoteHead& head, std::span<const std::byte> bytes) { hear(head, bytes); });
    return true;
  }

  void hear(const RemoteHead& head, std::span<const std::byte> bytes) {
    switch (head.kind) {
      case RemoteFrame::begin:
        job_ = Codec<RankJob>::decode(bytes);
        items_.emplace();
        stops_ = 0;
        return;
      case RemoteFrame::item:
        if (stops_ > 0 || failed_) {
          append_frame(out_, {.kind = RemoteFrame::not_run, .place = head.place});
        } else {
          items_->add({head.place, head.number, {bytes.begin(), bytes.end()}});
        }
        return;
      case RemoteFrame::give_back:
        for (std::uint64_t left = head.number; left > 0 && !items_->empty(); --left) give_back();
        append_frame(out_, {.kind = RemoteFrame::gave_back});
        flush();
        return;
      case RemoteFrame::stop:
        while (!items_->empty()) give_back();
        stops_ = head.number != 0 ? 2 : std::max(stops_, 1);
        return;
      case RemoteFrame::end:
        items_->set_ended();
        return;
      case RemoteFrame::quit:
        quit_ = true;
        return;
      default:
        return;
    }
  }

  void give_back() { append_frame(out_, {.kind = RemoteFrame::not_run, .place = items_->take_back()}); }

  // A run ---------------------------------------------------------------------------------------------

  void run() {
    const RankJob job = *std::exchange(job_, std::nullopt);
    failed_ = false;
    try {
      RunEncoded* const code = RemoteCallEntry::find(job.call);
      if (code == nullptr || job.function >= functions_.size()) {
        throw std::runtime_error("pyarallel: this rank does not know the call " + job.call +
                                 ": is it from a library that is not loaded here?");
      }
      const RankFunction function{code, functions_[job.function], job.first_worker, job.takes_task};
      const Plan plan = plan_for(job);
      if (plan.has_crew()) {
        run_on<ForkedRun<RankRunner, RankItems>>(function, plan);
      } else {
        run_on<PulledRun<RankRunner, RankItems>>(function, plan);
      }
    } catch (...) {
      fail(std::current_exception());
    }
    while (!items_->ended()) {
      while (!items_->empty()) give_back();
      flush();
      if (!look()) pause_.pass(TimePoint::max());
    }
    append_frame(out_, {.kind = RemoteFrame::ended});
    flush();
  }

  Plan plan_for(const RankJob& job) const {
    Plan plan;
    plan.executor = options_.executor;
    plan.make_crew = &make_forked_crew;
    plan.workers = std::min(job.workers, options_.workers);
    plan.task_timeout = job.task_timeout;
    plan.takes_task = job.takes_task;
    plan.max_tasks_per_worker = job.max_tasks_per_worker;
    plan.worker_memory_limit = job.worker_memory_limit;
    plan.worker_init = options_.worker_init;
    plan.reported = job.one_by_one;
    plan.never_inline = true;
    return plan;
  }

  template <class Run>
  void run_on(const RankFunction& function, const Plan& plan) {
    while (!items_->ready() && stops_ == 0) {
      if (!look()) pause_.pass(TimePoint::max());
    }
    if (items_->empty()) return;
    const RankRunner::Options options{out_};
    Run run{*items_, function, options, plan};
    RankRunner& runner = run.runner();
    TimePoint look_again = TimePoint::min();
    runner.driver().look_again_at(look_again);
    Pace pace{*this, runner};
    int stops = 0;
    const auto listen = [&] {
      while (look()) {
      }
      if (stops_ > stops) {
        stops = stops_;
        if (stops_ > 1) run.abandon();
        runner.run().stop(stops_ > 1 ? StopReason::cancelled : StopReason::aborted);
      }
      pace.look(run.admission().window().empty());
      flush();
      look_again = clock().now() + std::max<Duration>(pause_.next(), std::chrono::microseconds{20});
    };
    if (run.begin()) {
      while (!run.admission().finished() && !runner.run().closed()) {
        if constexpr (Run::runs_in_this_process) {
          const auto run_item = [&](std::size_t index, const RankItem& item) { runner.run_directly(index, item); };
          for (std::size_t i = 0; i < most_unheard && !items_->empty(); ++i) {
            if (!run.run_directly(run_item, false)) break;
          }
        }
        const auto enough = [&] {
          listen();
          return !items_->empty() && !run.workers_matter();
        };
        run.advance(enough);
      }
    }
    run.end();
    if (runner.run().call_failure()) std::rethrow_exception(runner.run().call_failure());
  }

  /// Measures how long an item takes a worker, and tells rank 0 when that changes.
  class Pace {
   public:
    Pace(Rank& rank, const RankRunner& runner) : rank_(rank), runner_(runner), busy_since_(clock().now()) {}

    /// `idle`: no item is being run.
    void look(bool idle) {
      const TimePoint now = clock().now();
      const std::size_t items = runner_.settled() - settled_;
      if (items > 0 && was_busy_) {
        pace_ = (now - busy_since_) * static_cast<Duration::rep>(runner_.workers()) / static_cast<Duration::rep>(items);
        pace_ = std::max(pace_, Duration{1});
        if (pace_ > told_ + told_ / 4 || pace_ < told_ - told_ / 4) {
          append_frame(rank_.out_, {.kind = RemoteFrame::pace, .number = static_cast<std::uint64_t>(pace_.count())});
          told_ = pace_;
        }
      }
      const bool busy = !idle || !rank_.items_->empty();
      if (items > 0 || busy != was_busy_) {
        settled_ += items;
        busy_since_ = now;
      }
      was_busy_ = busy;
    }

   private:
    Rank& rank_;
    const RankRunner& runner_;
    std::size_t settled_ = 0;
    bool was_busy_ = true;
    TimePoint busy_since_;
    Duration pace_{};
    Duration told_{};
  };

  void fail(const std::exception_ptr& exception) {
    failed_ = true;
    append_frame_of(out_, {.kind = RemoteFrame::call_failed}, [&](Bytes& out) { encode_exception(exception, out); });
  }

  // What goes -----------------------------------------------------------------------------------------

  void flush() {
    if (!out_.empty()) link_.send(rank_0_, out_);
  }

  static constexpr std::size_t most_unheard = 64;  // items that run between two looks at what has come

  Link& link_;
  const std::size_t rank_0_;
  const std::span<const RemoteFunction> functions_;
  const RankOptions options_;
  FrameSplitter in_;
  Bytes out_;
  PollPause pause_;
  std::optional<RankJob> job_;      // that is to begin
  std::optional<RankItems> items_;  // of the run
  int stops_ = 0;                   // 1: what has begun may end; 2: it is killed
  bool failed_ = false;
  bool quit_ = false;
};

}  // namespace pyarallel::detail

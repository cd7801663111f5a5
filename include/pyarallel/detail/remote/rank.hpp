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
#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/process/crew.hpp"
#include "pyarallel/detail/remote/dispatch.hpp"
#include "pyarallel/detail/remote/frames.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/detail/remote/remote_call.hpp"
#include "pyarallel/detail/run/crew_run.hpp"
#include "pyarallel/detail/run/deputy.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/map_runner.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/pulled.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/records.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/retry.hpp"

namespace pyarallel::detail {

/// An item, or several that follow each other, as they came.
struct RankItem {
  RemoteHead head;
  Bytes bytes;
};

/// What became of them.
struct RankValue {
  std::uint32_t ran = 0;
  Bytes frames;  // for rank 0
};

}  // namespace pyarallel::detail

// Between a rank and its forked workers.
template <>
struct pyarallel::Codec<pyarallel::detail::RankItem> {
  static void encode(const detail::RankItem& item, Bytes& out) { detail::append_frame(out, item.head, item.bytes); }
  static detail::RankItem decode(std::span<const std::byte>& in) {
    detail::RankItem item;
    std::memcpy(&item.head, in.data(), sizeof item.head);
    item.bytes.assign(in.begin() + sizeof item.head, in.end());
    in = {};
    return item;
  }
};
template <>
struct pyarallel::Codec<pyarallel::detail::RankValue> {
  static void encode(const detail::RankValue& value, Bytes& out) {
    detail::append(out, &value.ran, sizeof value.ran);
    detail::append(out, value.frames.data(), value.frames.size());
  }
  static detail::RankValue decode(std::span<const std::byte>& in) {
    detail::RankValue value;
    std::memcpy(&value.ran, in.data(), sizeof value.ran);
    value.frames.assign(in.begin() + sizeof value.ran, in.end());
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
  };
  // It is asked instead of the iterator, of which g++ 12 thinks that it may be uninitialised in a std::optional.
  struct sentinel {
    const RankItems* items = nullptr;
    friend bool operator==(const iterator&, const sentinel& end) { return end.items->empty(); }
  };

  iterator begin() { return {this}; }
  sentinel end() const { return {this}; }

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
  RemoteHead take_back() {
    const RemoteHead head = waiting_.back().head;
    waiting_.pop_back();
    return head;
  }
  void set_ended() noexcept { ended_ = true; }

 private:
  std::deque<RankItem> waiting_;
  bool ended_ = false;
};

template <>
inline constexpr bool items_arrive<RankItems> = true;

/// Appends that an item failed. `filter`: null: it may be retried.
inline void append_failure(Bytes& out, RemoteHead head, const std::exception_ptr& error, ErrorFilterCode* filter) {
  head.kind = RemoteFrame::failure;
  head.attempt = filter == nullptr || filter(Error{error}) ? 1 : 0;
  append_frame_of(out, head, [&](Bytes& bytes) { encode_exception(error, bytes); });
}

/// Writes down what becomes of items that run one behind the other.
class RankSink final : public RemoteSink {
 public:
  RankSink(const RemoteHead& head, const Run& run, ErrorFilterCode* filter, Bytes& frames)
      : head_(head), run_(run), filter_(filter), frames_(frames) {
    first_ = static_cast<std::size_t>(head.index);
    last_ = first_ + head.count;
    if (head.count > 1) begun_ = std::chrono::steady_clock::now();
    begin_values();
  }
  RankSink(const RankSink&) = delete;
  RankSink& operator=(const RankSink&) = delete;

  std::size_t go_on(std::size_t index) override {
    if (head_.count == 1) return 1;
    const std::size_t done = index - static_cast<std::size_t>(head_.index);
    // A block that turns out to be slow goes back (clause W1), and so does what has no time any more.
    if (done > 0 && (run_.closed() || std::chrono::steady_clock::now() - begun_ > longest)) return 0;
    return std::max<std::size_t>(1, done / 2);
  }

  void fail(std::size_t index, const std::exception_ptr& error) override {
    end_values(index);
    append_failure(frames_, {.place = head_.place, .index = index}, error, filter_);
    first_ = index + 1;
    begin_values();
  }

  /// `next`: the first that did not run.
  void end(std::size_t next) {
    end_values(next);
    if (next == last_) return;
    append_frame(frames_, {.kind = RemoteFrame::not_run,
                           .place = head_.place,
                           .count = static_cast<std::uint32_t>(last_ - next),
                           .index = next});
  }

 private:
  static constexpr std::chrono::microseconds longest{300};

  void begin_values() {
    values_at_ = frames_.size();
    append_head(frames_, {.kind = RemoteFrame::values, .place = head_.place, .index = first_});
  }
  void end_values(std::size_t next) {
    if (next == first_) {
      frames_.resize(values_at_);
      return;
    }
    RemoteHead head{.kind = RemoteFrame::values, .place = head_.place, .index = first_};
    head.count = static_cast<std::uint32_t>(next - first_);
    head.length = frames_.size() - values_at_ - sizeof head;
    std::memcpy(frames_.data() + values_at_, &head, sizeof head);
  }

  const RemoteHead& head_;
  const Run& run_;
  ErrorFilterCode* filter_;
  Bytes& frames_;
  std::size_t first_;  // whose value is in the frame that is being written
  std::size_t last_;
  std::size_t values_at_ = 0;
  std::chrono::steady_clock::time_point begun_;
};

/// fn as a rank calls it.
struct RankFunction {
  RunEncoded* run;
  ErrorFilterCode* filter;
  RemoteFunction function;
  std::size_t first_worker;
  const Run* const* run_state;  // null until the run begins

  template <class Item>
  static constexpr bool takes_task = true;

  RankValue operator()(const RankItem& item, const Task& task) const {
    RankValue value;
    RankSink sink{item.head, **run_state, filter, value.frames};
    Task told{.index = static_cast<std::size_t>(item.head.index),
              .attempt = static_cast<int>(item.head.attempt),
              .worker = first_worker + task.worker,
              .stop = task.stop};
    run(function, item.head.count, item.bytes, told, value.frames, sink);
    sink.end(told.index);
    value.ran = static_cast<std::uint32_t>(told.index - static_cast<std::size_t>(item.head.index));
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
    ErrorFilterCode* filter;
    FunctionRef<void()> listen;  // now and then
  };
  static constexpr bool keeps_values_by_index = false;

  RankRunner(RankItems& items, const RankFunction& invoke, const Options& options, const Plan& plan,
             const Placement& placement)
      : Base(items, invoke, plan, placement.state, placement.workplace), options_(options) {}

  Records& records() noexcept { return records_; }
  /// What ran so far, and how long that took the workers.
  struct Ran {
    std::size_t items = 0;
    Duration spent = {};
  };
  const Ran& ran() const noexcept { return ran_; }

  RankValue* place([[maybe_unused]] std::size_t index, std::size_t slot) const noexcept { return values_.at(slot); }

  template <Through what>
  void record([[maybe_unused]] const Resolved& item) const noexcept {}

  Pull admit([[maybe_unused]] std::size_t index, std::size_t slot, const Kept<RankItems>& item) {
    const bool admitted = driver().guarded([&] {
      values_.grow_to(slot + 1);
      if (heads_.size() <= slot) heads_.resize(slot + 1);
      heads_[slot] = item.get().head;
    });
    return admitted ? Pull::placed : Pull::none;
  }

  void store([[maybe_unused]] std::span<const Resolved> items) const noexcept {}

  bool settle(const Resolved& item) {
    RemoteHead& head = heads_[item.slot];
    head.number = static_cast<std::uint64_t>(item.receipt.duration.count());
    if (!item.ran) {
      tell(RemoteFrame::not_run, head);
    } else if (item.interrupted) {
      tell(RemoteFrame::interrupted, head);
    } else if (item.error) {
      tell_failure(head, item.error);
    } else {
      RankValue* const value = values_.at(item.slot);
      ran_.items += value->ran;
      ran_.spent += item.receipt.duration;
      send(head, value->frames);
      std::destroy_at(value);
    }
    // While the driver runs items itself, nobody else does.
    constexpr std::chrono::microseconds long_enough{50};
    if (ran_.spent - listened_ > long_enough) {
      listened_ = ran_.spent;
      options_.listen();
    }
    return true;
  }

 private:
  void tell(RemoteFrame kind, RemoteHead head) {
    head.kind = kind;
    append_frame(options_.out, head);
  }

  /// An exception that is not one of fn's: nothing is known of any of the items.
  void tell_failure(RemoteHead head, const std::exception_ptr& error) {
    for (std::size_t left = std::exchange(head.count, 1); left > 0; --left, ++head.index) {
      append_failure(options_.out, head, error, options_.filter);
    }
  }

  void send(const RemoteHead& head, Bytes& frames) {
    Bytes& out = options_.out;
    const std::size_t at = out.size();
    if (out.empty()) {
      out.swap(frames);
    } else {
      append(out, frames.data(), frames.size());
    }
    // How long a single item took is known only now.
    if (head.count == 1) {
      std::memcpy(out.data() + at + offsetof(RemoteHead, number), &head.number, sizeof head.number);
    }
  }

  const Options& options_;
  GrowingArray<RankValue> values_;  // by slot
  std::vector<RemoteHead> heads_;   // by slot
  Records records_{false, 0};
  Ran ran_;
  Duration listened_ = {};  // of ran_.spent
};

/// How a rank runs items.
struct RankOptions {
  Executor executor = Executor::thread;
  std::size_t workers = 1;
  std::function<void()> worker_init;
  bool link_may_change_threads = true;  // one may use it after the other
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
        failed_ = false;
        return;
      case RemoteFrame::items:
        items_->add({head, {bytes.begin(), bytes.end()}});
        if (stops_ > 0 || failed_) give_back();
        return;
      case RemoteFrame::give_back:
        for (std::size_t given = 0; given < head.count && !items_->empty();) given += give_back();
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

  /// The last that came, of those that have not begun. Returns how many items that are.
  std::size_t give_back() {
    RemoteHead head = items_->take_back();
    head.kind = RemoteFrame::not_run;
    append_frame(out_, head);
    return head.count;
  }

  // A run ---------------------------------------------------------------------------------------------

  void run() {
    const RankJob job = *std::exchange(job_, std::nullopt);
    try {
      RunEncoded* const code = NamedCode<RunEncoded>::find(job.call);
      if (code == nullptr || job.function >= functions_.size()) {
        throw std::runtime_error("pyarallel: this rank does not know the call " + job.call +
                                 ": is it from a library that is not loaded here?");
      }
      ErrorFilterCode* const filter = NamedCode<ErrorFilterCode>::find(job.filter);
      const Run* run_state = nullptr;
      const RankFunction function{code, filter, functions_[job.function], job.first_worker, &run_state};
      const Plan plan = plan_for(job);
      if (plan.has_crew()) {
        run_on<CrewRun<RankRunner, RankItems>>(function, plan, run_state);
      } else {
        run_on<PulledRun<RankRunner, RankItems>>(function, plan, run_state);
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

  Plan plan_for(const RankJob& job) {
    Plan plan;
    plan.executor = options_.executor;
    plan.make_crew = &make_forked_crew;
    plan.workers = std::min(job.workers, options_.workers);
    plan.task_timeout = job.task_timeout;
    plan.takes_task = job.takes_task;
    plan.max_tasks_per_worker = job.max_tasks_per_worker;
    plan.worker_memory_limit = job.worker_memory_limit;
    plan.worker_init = options_.worker_init;
    plan.reported = true;        // each item's duration is told, and none waits for the one before
    plan.window = plan.workers;  // what has not begun can be given back
    plan.never_inline = true;
    if (!plan.has_crew() && options_.link_may_change_threads) plan.deputy = &deputy_;
    return plan;
  }

  template <class WhereItRuns>
  void run_on(const RankFunction& function, const Plan& plan, const Run*& run_state) {
    while (!items_->ready() && stops_ == 0) {
      flush();
      if (!look()) pause_.pass(TimePoint::max());
    }
    if (items_->empty()) return;
    WhereItRuns* the_run = nullptr;  // which needs listen() to be made
    TimePoint look_again = TimePoint::min();
    Pace pace{*this};
    int stops = 0;
    const auto listen = [&] {
      WhereItRuns& run = *the_run;
      RankRunner& runner = run.runner();
      bool heard = false;
      while (look()) heard = true;
      if (stops_ > stops) {
        stops = stops_;
        if (stops_ > 1) run.abandon();
        runner.run().stop(stops_ > 1 ? StopReason::cancelled : StopReason::aborted);
      }
      pace.look(runner.ran());
      flush();
      if (!run.admission().window().empty()) {
        look_again = clock().now() + std::max<Duration>(pause_.next(), std::chrono::microseconds{20});
      } else {
        // Nobody is there who could say something.
        look_again = TimePoint::min();
        if (!heard && items_->empty() && !items_->ended() && stops_ == stops) pause_.pass(TimePoint::max());
      }
    };
    const RankRunner::Options options{out_, function.filter, listen};
    WhereItRuns run{*items_, function, options, plan};
    the_run = &run;
    RankRunner& runner = run.runner();
    runner.driver().look_again_at(look_again);
    run_state = &runner.run();
    const auto drive_until = [&](FunctionRef<bool()> enough) {
      const auto listened_enough = [&] {
        listen();
        return enough();
      };
      run.advance(listened_enough);
    };
    const auto stand_in = [&](FunctionRef<bool()> enough) {
      while (!enough()) {
        drive_until(enough);
        if (enough() || !runner.run().closed()) continue;
        // There is nothing to drive any more, but somebody may say that the driver should be quick.
        listen();
        pause_.pass(TimePoint::max());
      }
    };
    const auto come_back = [&] { runner.run().workplace().wake(); };
    const Deputy::StandIn deputy_drives{stand_in};
    const FunctionRef<void()> call_back{come_back};
    if (run.begin()) {
      if (plan.deputy != nullptr) plan.deputy->begin(deputy_drives, call_back);
      while (!run.admission().finished() && !runner.run().closed()) drive_until([] { return false; });
    }
    run.end();
    if (runner.run().call_failure()) std::rethrow_exception(runner.run().call_failure());
  }

  /// How long an item takes a worker, of which rank 0 is told when it changes.
  class Pace {
   public:
    explicit Pace(Rank& rank) : rank_(rank) {}

    void look(const RankRunner::Ran& ran) {
      const Duration spent = ran.spent - seen_.spent;
      if (ran.items == seen_.items || (told_ > 0 && spent < std::chrono::microseconds{20})) return;
      const auto pace = static_cast<double>(spent.count()) * 1e3 / static_cast<double>(ran.items - seen_.items);
      seen_ = ran;
      if (pace <= told_ * 1.25 && pace >= told_ * 0.75) return;
      told_ = std::max(pace, 1.0);
      append_frame(rank_.out_, {.kind = RemoteFrame::pace, .number = static_cast<std::uint64_t>(told_)});
    }

   private:
    Rank& rank_;
    RankRunner::Ran seen_;
    double told_ = 0;  // picoseconds
  };

  void fail(const std::exception_ptr& exception) {
    failed_ = true;
    append_frame_of(out_, {.kind = RemoteFrame::call_failed}, [&](Bytes& out) { encode_exception(exception, out); });
  }

  // What goes -----------------------------------------------------------------------------------------

  void flush() {
    if (!out_.empty()) link_.send(rank_0_, out_);
  }

  Link& link_;
  const std::size_t rank_0_;
  const std::span<const RemoteFunction> functions_;
  const RankOptions options_;
  Deputy deputy_;
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

// A run on other machines, as its driver sees it. Everything that concerns an item but fn itself happens here, on the
// calling thread: its tokens, its attempts, what is to be done about a failed one, and when it goes out again.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/crew.hpp"
#include "pyarallel/detail/run/driver.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/range.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/workplace.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/rate_limit.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::detail {

class RemoteCrew final : public Crew {
 public:
  RemoteCrew(const Plan& plan, const CrewJob& job) : plan_(plan), job_(job) {}

  RemoteCrew(const RemoteCrew&) = delete;
  RemoteCrew& operator=(const RemoteCrew&) = delete;

  [[gnu::cold]] RunState& run_state() const noexcept override { return state_; }

  [[gnu::cold]] void begin(Run& run, Driver& driver, CrewWork& work) override {
    run_ = &run;
    driver_ = &driver;
    work_ = &work;
    const auto* const filter = plan_.retry != nullptr ? plan_.retry->on.code() : nullptr;
    driver.guarded([&] {
      const std::string filter_name = filter != nullptr ? filter->name() : "";
      remote_ = plan_.remote->begin({.function = job_.function,
                                     .call = job_.call,
                                     .workers = job_.workers,
                                     .chunk = plan_.chunk,
                                     .together = job_.together,
                                     .blocks = job_.claims,
                                     .filter = filter_name,
                                     .takes_task = plan_.takes_task,
                                     .task_timeout = plan_.task_timeout,
                                     .max_tasks_per_worker = plan_.max_tasks_per_worker,
                                     .worker_memory_limit = plan_.worker_memory_limit});
      to_wake_.store(remote_.get(), std::memory_order_release);
    });
  }

  [[gnu::cold]] void advance(FunctionRef<bool()> enough) override {
    if (!remote_) return;
    const auto admit = [&] { return admit_one(); };
    const auto settle = [&](std::span<Resolved> items) { work_->settle(items); };
    const auto finished = [&] {
      return enough() || (job_.claims ? all_taken() && nobody_inside() : work_->all_settled());
    };
    driver_->guarded([&] { driver_->drive(admit, settle, finished, false); });
  }

  [[gnu::cold]] void abandon() noexcept override { abandoned_ = true; }

  [[gnu::cold]] void end() override {
    if (remote_) remote_->end();
    if (!job_.claims) return;
    for (const Range& range : work_->records().gaps(job_.size)) run_->add_unrun(range);
  }

  // Workplace ----------------------------------------------------------------------------------------

  void collect(std::vector<Resolved>& outcomes, bool until_left, TimePoint due) override {
    static_cast<void>(until_left);  // nobody comes or leaves
    outcomes.clear();
    outcomes.swap(resolved_);
    while (true) {
      stop_if_stopped();
      const TimePoint now = clock().now();
      const TimePoint next = std::min(send_due(now), deadline_of_wait());
      send_ready();
      close_if_too_late();
      if (!outcomes.empty() || !resolved_.empty() || (out_ == 0 && waiting_.empty())) due = TimePoint::min();
      const auto heard = listen(std::min(due, next));
      for (const RemoteOutcome& outcome : heard) hear(outcome, outcomes);
      std::ranges::move(resolved_, std::back_inserter(outcomes));
      resolved_.clear();
      // There may be room for more.
      if (!heard.empty() || !outcomes.empty()) break;
      if (woken_.exchange(false) || run_->closed() != seen_closed_ || clock().now() >= due) break;
    }
    seen_closed_ = run_->closed();
  }

  std::vector<std::size_t> close() override {
    const TimePoint now = clock().now();
    for (const auto& [due, waiting] : std::exchange(waiting_, {})) {
      if (waiting.token) bucket_behind(*plan_.limiter).give_back(now, *waiting.token);
      give_up(waiting.place, now, resolved_);
    }
    reserved_ = 0;
    for (const std::size_t place : std::exchange(without_token_, {})) give_up(place, now, resolved_);
    for (const std::size_t place : std::exchange(too_late_, {})) give_up(place, now, resolved_);
    for (const std::size_t place : std::exchange(ready_, {})) give_up(place, now, resolved_);
    return {};
  }

  bool nobody_inside() override {
    return out_ == 0 && waiting_.empty() && without_token_.empty() && ready_.empty() && too_late_.empty() &&
           resolved_.empty();
  }

  void wake() noexcept override {
    woken_.store(true, std::memory_order_release);
    if (RemoteRun* const remote = to_wake_.load(std::memory_order_acquire)) remote->wake();
  }

 private:
  /// An item that was admitted.
  struct Item {
    std::size_t index = 0;
    int attempts = 0;               // those that have begun, or may have
    TimePoint first_start = {};     // of its first attempt, once that has ended
    std::exception_ptr error = {};  // of the last attempt
    bool out = false;               // on another machine
  };

  /// An item that goes out at a moment in time: for its token, or for its next attempt.
  struct Waiting {
    std::size_t place = 0;
    std::optional<Reservation> token;
  };

  bool admit_one() {
    if (run_->closed() || !too_late_.empty()) return false;
    if (job_.claims) return send_block(remote_->wants_items());
    AdmittedItem admitted;
    const Pull pull = work_->admit(admitted);
    if (pull != Pull::placed) return pull == Pull::resolved;
    if (items_.size() <= admitted.place) items_.resize(admitted.place + 1);
    items_[admitted.place] = {.index = admitted.index};
    if (plan_.limiter) {
      without_token_.push_back(admitted.place);
    } else if (!ready_.empty() || remote_->wants_items() == 0) {
      ready_.push_back(admitted.place);
    } else if (!driver_->guarded([&] { send(admitted.place, admitted.bytes); })) {
      resolved_.push_back({.index = admitted.index, .slot = admitted.place, .ran = false});
    }
    return true;
  }

  // Items that are found by index ----------------------------------------------------------------------

  bool all_taken() const noexcept { return run_->closed() || (next_ == job_.size && came_back_.empty()); }

  /// Sends up to so many items, those that came back first.
  bool send_block(std::size_t most) {
    if (most == 0) return false;
    Range block;
    if (!came_back_.empty()) {
      Range& first = came_back_.back();
      block = {first.first, first.first + std::min(most, first.size())};
      first.first = block.last;
      if (first.empty()) came_back_.pop_back();
    } else {
      block = {next_, std::min(job_.size, next_ + most)};
      next_ = block.last;
    }
    if (block.empty()) return false;
    return driver_->guarded([&] {
      remote_->hand_over({.index = block.first, .count = block.size(), .bytes = work_->encode(block)});
      out_ += block.size();
    });
  }

  void hear_block(const RemoteOutcome& outcome, std::vector<Resolved>& outcomes) {
    const Range items{outcome.index, outcome.index + outcome.count};
    out_ -= std::min(out_, items.size());
    if (outcome.kind == RemoteOutcome::Kind::not_run) {
      came_back_.push_back(items);
      return;
    }
    work_->records().add({items.first, items.size(), outcome.duration});
    const auto fail = [&](std::size_t index, const std::exception_ptr& error, bool interrupted) {
      outcomes.push_back({.index = index,
                          .error = error,
                          .receipt = {.duration = outcome.duration, .attempts = 1},
                          .interrupted = interrupted});
    };
    switch (outcome.kind) {
      case RemoteOutcome::Kind::value: {
        std::exception_ptr error;
        for (std::size_t bad = work_->keep_values(items, outcome.bytes, error); bad < items.last; ++bad) {
          fail(bad, error, false);
        }
        return;
      }
      case RemoteOutcome::Kind::failure:
        return fail(items.first, decoded(outcome.bytes), false);
      case RemoteOutcome::Kind::interrupted:
        return fail(items.first, nullptr, true);
      case RemoteOutcome::Kind::not_run:
        return;
    }
  }

  // Single items ---------------------------------------------------------------------------------------

  /// Tokens are reserved ahead of their time, so that a late look at the clock costs none; but no more of them than
  /// there would be callers waiting elsewhere, for others may share the budget.
  void reserve_tokens(TimePoint now) {
    constexpr std::size_t ahead = 16;
    while (!without_token_.empty() && reserved_ < std::max(ahead, job_.workers) && too_late_.empty()) {
      const std::size_t place = without_token_.front();
      const auto token = bucket_behind(*plan_.limiter).reserve(now, 1, run_->deadline());
      if (token) {
        waiting_.emplace(token->due, Waiting{place, token});
        ++reserved_;
      } else {
        too_late_.push_back(place);  // it would come only after the deadline (clause L4)
      }
      without_token_.pop_front();
    }
  }

  /// Nothing is under way any more that has its token, nor waits for one that comes in time. (Items that were sent may
  /// not have begun there, and the end of the run would keep them from it.)
  void close_if_too_late() {
    if (!too_late_.empty() && waiting_.empty() && ready_.empty() && out_ == 0) run_->close(StopReason::timed_out);
  }

  /// There will be no further attempt, or none at all.
  void give_up(std::size_t place, TimePoint now, std::vector<Resolved>& outcomes) {
    const Item& item = items_[place];
    if (item.attempts > 0) {
      outcomes.push_back(last_error_of(place, now));  // clause T4
    } else {
      outcomes.push_back({.index = item.index, .slot = place, .ran = false});
    }
  }

  /// Sends what waits and is due. Returns when the next is.
  TimePoint send_due(TimePoint now) {
    if (run_->closed()) return TimePoint::max();
    reserve_tokens(now);
    while (!waiting_.empty()) {
      const auto first = waiting_.begin();
      if (first->first > now) return first->first;
      const Waiting waiting = first->second;
      waiting_.erase(first);
      if (waiting.token) --reserved_;
      if (plan_.limiter && (!waiting.token || bucket_behind(*plan_.limiter).overtaken(*waiting.token))) {
        without_token_.push_front(waiting.place);
      } else {
        ready_.push_back(waiting.place);
      }
      reserve_tokens(now);
    }
    return TimePoint::max();
  }

  /// Sends what may go, while somebody wants it.
  void send_ready() {
    while (!ready_.empty() && !run_->closed() && remote_->wants_items() > 0) {
      const std::size_t place = ready_.front();
      ready_.pop_front();
      if (driver_->guarded([&] { send(place, work_->encode(place)); })) continue;
      give_up(place, clock().now(), resolved_);
    }
  }

  void send(std::size_t place, std::span<const std::byte> bytes) {
    Item& item = items_[place];
    remote_->hand_over({.place = place, .index = item.index, .attempt = item.attempts + 1, .bytes = bytes});
    ++item.attempts;
    item.out = true;
    ++out_;
  }

  std::span<const RemoteOutcome> listen(TimePoint due) {
    std::span<const RemoteOutcome> outcomes;
    if (lost_) return outcomes;
    try {
      outcomes = remote_->wait(due);
    } catch (...) {
      run_->fail_call(std::current_exception());
      if (std::exchange(failed_, true)) lose_all();
    }
    return outcomes;
  }

  /// There is nobody any more who could say what became of the items.
  void lose_all() {
    lost_ = true;
    out_ = 0;
    for (std::size_t place = 0; place < items_.size(); ++place) {
      if (std::exchange(items_[place].out, false)) {
        resolved_.push_back({.index = items_[place].index, .slot = place, .ran = false});
      }
    }
  }

  void hear(const RemoteOutcome& outcome, std::vector<Resolved>& outcomes) {
    if (job_.claims) return hear_block(outcome, outcomes);
    const std::size_t place = outcome.place;
    Item& item = items_[place];
    --out_;
    item.out = false;
    Resolved resolved{.index = item.index, .slot = place};
    switch (outcome.kind) {
      case RemoteOutcome::Kind::value:
        resolved.receipt = receipt_of(item, outcome.duration);
        try {
          work_->keep_value(resolved, outcome.bytes);
        } catch (...) {
          resolved.error = std::current_exception();
        }
        break;
      case RemoteOutcome::Kind::failure: {
        if (item.attempts == 1) item.first_start = clock().now() - outcome.duration;
        Verdict verdict = judge(plan_, decoded(outcome.bytes), item.attempts, outcome.may_be_retried);
        if (verdict.again && !run_->stopped()) {
          item.error = std::move(verdict.error);
          waiting_.emplace(add_saturating(clock().now(), verdict.delay), Waiting{place, std::nullopt});
          return;
        }
        resolved.receipt = receipt_of(item, outcome.duration);
        resolved.error = std::move(verdict.error);
        break;
      }
      case RemoteOutcome::Kind::interrupted:
        resolved.receipt = receipt_of(item, outcome.duration);
        resolved.interrupted = true;
        break;
      case RemoteOutcome::Kind::not_run:
        --item.attempts;
        if (!run_->closed()) {
          ready_.push_front(place);
          return;
        }
        if (item.attempts > 0) {
          resolved = last_error_of(place, clock().now());
        } else {
          resolved.ran = false;
        }
        break;
    }
    item.error = nullptr;
    outcomes.push_back(std::move(resolved));
  }

  static Receipt receipt_of(const Item& item, Duration last) {
    return {.duration = item.attempts == 1 ? last : clock().now() - item.first_start, .attempts = item.attempts};
  }

  /// It was tried, and there will be no further attempt.
  Resolved last_error_of(std::size_t place, TimePoint now) {
    Item& item = items_[place];
    return {.index = item.index,
            .slot = place,
            .error = std::exchange(item.error, nullptr),
            .receipt = {.duration = now - item.first_start, .attempts = item.attempts}};
  }

  static std::exception_ptr decoded(std::span<const std::byte> bytes) noexcept {
    try {
      return decode_exception(bytes);
    } catch (...) {
      return std::current_exception();
    }
  }

  /// Tells the other machines, once that it is over, and once that what runs may be killed.
  void stop_if_stopped() {
    if (!run_->stopped() || lost_) return;
    const StopReason reason = run_->stop_reason();
    const bool kill = abandoned_ || reason == StopReason::timed_out || reason == StopReason::cancelled ||
                      plan_.stop.stop_requested() || clock().now() >= run_->deadline();
    if ((stopped_ && !kill) || killed_) return;
    stopped_ = true;
    killed_ = kill;
    driver_->guarded([&] { remote_->stop(kill); });
  }

  /// After a stop that lets what runs come to its end, the deadline may still come.
  TimePoint deadline_of_wait() const { return run_->stopped() && !killed_ ? run_->deadline() : TimePoint::max(); }

  const Plan& plan_;
  const CrewJob job_;
  mutable RunState state_;
  std::unique_ptr<RemoteRun> remote_;
  Run* run_ = nullptr;
  Driver* driver_ = nullptr;
  CrewWork* work_ = nullptr;
  std::vector<Item> items_;                // by place
  std::size_t out_ = 0;                    // items, on other machines
  std::deque<std::size_t> without_token_;  // places of items that want one
  std::multimap<TimePoint, Waiting> waiting_;
  std::size_t reserved_ = 0;           // tokens of those that wait
  std::deque<std::size_t> ready_;      // places of items that go out as soon as somebody wants them
  std::vector<std::size_t> too_late_;  // places of items whose token comes after the deadline
  std::vector<Resolved> resolved_;     // here, and not told of yet
  std::size_t next_ = 0;               // of input that is found by index
  std::vector<Range> came_back_;
  bool stopped_ = false;
  bool killed_ = false;
  bool abandoned_ = false;
  bool failed_ = false;
  bool lost_ = false;
  bool seen_closed_ = false;
  std::atomic<bool> woken_{false};
  std::atomic<RemoteRun*> to_wake_{nullptr};
};

[[gnu::cold]] inline std::unique_ptr<Crew> make_remote_crew(const Plan& plan, const CrewJob& job) {
  return std::make_unique<RemoteCrew>(plan, job);
}

}  // namespace pyarallel::detail

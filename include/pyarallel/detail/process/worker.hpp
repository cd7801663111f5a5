// A forked worker's life: it takes items, runs them, and sends what became of them, until there is nothing
// left to take. It only ever talks to the parent through SharedRun.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <system_error>
#include <thread>
#include <utility>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/process/bell.hpp"
#include "pyarallel/detail/process/child.hpp"
#include "pyarallel/detail/process/shared_run.hpp"
#include "pyarallel/detail/run/claims.hpp"
#include "pyarallel/detail/run/crew.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/spin.hpp"

namespace pyarallel::detail {

/// The clock in a worker: what sleeps for the run is woken when the run stops, in whichever process.
class WorkerClock final : public Clock {
 public:
  WorkerClock(Word& phase, std::stop_token run_token, Clock& clock) noexcept
      : phase_(phase), run_token_(std::move(run_token)), clock_(clock) {}

  TimePoint now() noexcept override { return clock_.now(); }
  bool sleep_until(TimePoint due, const std::stop_token& stop) override {
    // Of calls inside fn, which stop for reasons of their own.
    if (!(stop == run_token_)) return clock_.sleep_until(due, stop);
    const auto stopped = [&](std::uint32_t phase) { return phase == static_cast<std::uint32_t>(Phase::stopped); };
    for (TimePoint time = now(); time < due; time = now()) {
      const std::uint32_t phase = phase_.load(std::memory_order_seq_cst);
      if (stopped(phase)) return false;
      // Waking up takes longer than that.
      if (due - time < std::chrono::microseconds{100}) {
        std::this_thread::yield();
      } else {
        wait_while(phase_, phase, due);
      }
    }
    return !stopped(phase_.load(std::memory_order_relaxed));
  }
  void wait_until(std::condition_variable& condition, std::unique_lock<std::mutex>& lock, TimePoint due) override {
    clock_.wait_until(condition, lock, due);
  }
  double random() noexcept override {
    // All workers inherited the same state.
    constexpr double golden = 0.6180339887498949;
    const double turned = clock_.random() + golden * static_cast<double>(::getpid());
    return turned - std::floor(turned);
  }

 private:
  Word& phase_;
  std::stop_token run_token_;
  Clock& clock_;
};

class Worker final : public WorkerLink, private AttemptWatch {
 public:
  Worker(SharedRun& shared, std::size_t number, const CrewJob& job, Run& run, CrewWork& work, const Bell& bell)
      : shared_(shared),
        queue_(shared.queue()),
        status_(shared.status(number)),
        outbox_(shared.outbox(number)),
        inbox_(shared.inbox(number)),
        number_(number),
        job_(job),
        run_(run),
        work_(work),
        bell_(bell),
        task_(work.new_task(number)),
        pace_(job.one_by_one ? 1 : run.plan().items_at_once(),
              run.plan().window > 0 ? run.plan().window / shared.workers() : most_in_a_range, 16'000) {}

  [[noreturn]] void live() noexcept {
    const Plan& plan = run_.plan();
    status_.stage.store(Stage::ready, std::memory_order_release);
    Stage last = Stage::leaving;
    try {
      run_.become_worker(*this);
      encode_exception(std::make_exception_ptr(std::bad_alloc()), out_of_memory_);
      WorkerClock worker_clock{shared_.run_state().phase, run_.stop_token(), clock()};
      if (plan.needs_stop_token()) current_clock().store(&worker_clock, std::memory_order_release);
      if (plan.takes_task) tell_tasks_to_stop();
      if (plan.worker_memory_limit) limit_memory(*plan.worker_memory_limit);
      last = work();
    } catch (...) {
      fail_call(std::current_exception());
    }
    status_.stage.store(last, std::memory_order_release);
    Child::leave(0);
  }

  // WorkerLink ---------------------------------------------------------------------------------------

  std::atomic<std::uint64_t>& current_item() noexcept override { return status_.current; }

  void send(const Resolved& item, std::span<const std::byte> value, std::span<const std::byte> more) override {
    FrameHead head{.length = value.size() + more.size(),
                   .kind = FrameKind::value,
                   .attempts = item.receipt.attempts,
                   .index = item.index,
                   .count = 1,
                   .entry = entry_,
                   .nanoseconds = item.receipt.duration.count()};
    if (!item.ran) {
      head.kind = FrameKind::unrun;
      send_frame(head, {}, {}, true);
    } else if (!item.error) {
      send_frame(head, value, more, job_.one_by_one);
    } else if (item.error == still_failed_) {
      head.kind = FrameKind::still_failed;
      send_frame(head, {}, {}, true);
    } else {
      head.kind = FrameKind::failure;
      const auto exception = encoded(item.error);
      head.length = exception.size();
      send_frame(head, exception, {}, true);
      run_.count_failure();
    }
  }

  void fail_call(const std::exception_ptr& exception) override {
    const auto bytes = encoded(exception);
    send_frame({.length = bytes.size(), .kind = FrameKind::call_failed}, bytes, {}, true);
    run_.stop(StopReason::failed);
  }

 private:
  Stage work() {
    bool initialized = false;
    while (!run_.closed()) {
      leave_if_orphaned();
      if (items_left() == 0) return Stage::recycled;
      if (!initialized && something_to_do()) {
        if (const auto exception = work_.initialize()) {
          fail_call(exception);
          break;
        }
        initialized = true;
      }
      if (initialized) {
        if (const auto entry = queue_.take(number_)) {
          queue_.call_if_needed();
          if (queue_.needs_workers()) tell_parent();
          run_entry(*entry);
          continue;
        }
        if (const Range claim = claim_items(); !claim.empty()) {
          run_claim(claim);
          continue;
        }
      }
      if (!queue_.more_to_come()) break;
      wait_for_work();
    }
    return Stage::leaving;
  }

  std::size_t items_left() const noexcept {
    const auto& most = run_.plan().max_tasks_per_worker;
    return most ? *most - std::min<std::size_t>(*most, items_) : most_in_a_range;
  }

  bool something_to_do() const noexcept {
    if (queue_.waiting() > 0) return true;
    if (!job_.claims) return false;
    if (shared_.next_item().load(std::memory_order_relaxed) < job_.size) return true;
    for (std::size_t other = 0; other < shared_.workers(); ++other) {
      if (shared_.status(other).rest.load(std::memory_order_relaxed) != 0) return true;
    }
    return false;
  }

  void wait_for_work() noexcept {
    // Being woken takes 50 us, and the next item is often there before. But not more look out than CPUs
    // have nothing else to do.
    status_.waits.store(Waits::watching, std::memory_order_seq_cst);
    if (queue_.begin_watching(job_.watchers)) {
      const bool found = spin_until([this] { return queue_.waiting() > 0 || !queue_.more_to_come(); });
      queue_.end_watching();
      status_.waits.store(Waits::no, std::memory_order_seq_cst);
      if (found) return;
    }
    status_.waits.store(Waits::sleeping, std::memory_order_seq_cst);
    queue_.sleep();
    status_.waits.store(Waits::no, std::memory_order_seq_cst);
  }

  // Items that are found by index ----------------------------------------------------------------------

  Range claim_items() noexcept {
    if (!job_.claims) return {};
    const std::size_t most = std::min({pace_.most(), items_left(), most_in_a_range});
    const Range claim =
        claim_next(shared_.next_item(), job_.size, shared_.workers(), most, std::min(pace_.least(), most));
    return claim.empty() ? steal(most) : claim;
  }

  /// The second half of what another worker claimed and did not come to yet: its items are slow.
  Range steal(std::size_t most) noexcept {
    for (std::size_t step = 1; step < shared_.workers(); ++step) {
      std::atomic<std::uint64_t>& rest = shared_.status((number_ + step) % shared_.workers()).rest;
      std::uint64_t word = rest.load(std::memory_order_acquire);
      while (word != 0) {
        const Range theirs = unpack(word);
        const Range mine{std::max(theirs.first + theirs.size() / 2, theirs.last - std::min(most, theirs.size())),
                         theirs.last};
        if (rest.compare_exchange_weak(word, pack({theirs.first, mine.first}), std::memory_order_acq_rel)) return mine;
      }
    }
    return {};
  }

  void run_claim(Range claim) {
    pace_.begin();
    if (job_.one_by_one) {
      for (std::size_t index = claim.first; index < claim.last; ++index) run_one(index, {});
      return;
    }
    mark_ = std::chrono::steady_clock::now();
    status_.rest.store(pack(claim), std::memory_order_release);
    while (!run_.closed()) {
      const Range block = take_block(std::min(pace_.block(), items_left()));
      if (block.empty() || !run_block(block)) break;
      pace_.keep_going(block.size(), mark_);
    }
    pace_.end();
  }

  /// The first items of what is left of the claim.
  Range take_block(std::size_t most) noexcept {
    std::uint64_t word = status_.rest.load(std::memory_order_relaxed);
    while (word != 0) {
      const Range rest = unpack(word);
      const Range block{rest.first, rest.first + std::min(most, rest.size())};
      if (status_.rest.compare_exchange_weak(word, pack({block.last, rest.last}), std::memory_order_acq_rel)) {
        return block;
      }
    }
    return {};
  }

  /// False if the run ended on the way.
  bool run_block(Range block) {
    items_ += block.size();
    status_.current.store(block.first, std::memory_order_relaxed);
    status_.items.fetch_add(1, std::memory_order_relaxed);
    status_.attempt_start.store(mark_.time_since_epoch().count(), std::memory_order_relaxed);
    status_.block.store(pack(block), std::memory_order_release);
    set_attempt(AttemptState::running);

    const std::size_t next = work_.run_block(block, task_, *this);
    status_.current.store(next, std::memory_order_release);
    const auto now = std::chrono::steady_clock::now();
    const std::size_t count = next - block.first;
    // Rounded up: what ran took some time.
    const auto items = static_cast<std::int64_t>(std::max<std::size_t>(count, 1));
    if (count > 0 || entry_ != no_entry) {
      send_frame({.kind = FrameKind::block,
                  .index = block.first,
                  .count = count,
                  .entry = entry_,
                  .nanoseconds = ((now - mark_).count() + items - 1) / items},
                 {}, {}, false);
    }
    mark_ = now;
    set_attempt(AttemptState::none);
    status_.block.store(0, std::memory_order_release);
    return next == block.last;
  }

  // Items from the parent ------------------------------------------------------------------------------

  void run_entry(std::size_t number) {
    const WorkEntry& entry = queue_[number];
    entry_ = number;
    status_.entry.store(entry_, std::memory_order_release);
    if (!job_.one_by_one) {
      mark_ = std::chrono::steady_clock::now();
      run_block(entry.range);
    } else {
      Outcome so_far;
      so_far.receipt = {.duration = Duration{entry.elapsed}, .attempts = entry.attempts};
      if (entry.attempts > 0) so_far.error = still_failed_;
      run_one(entry.range.first, std::move(so_far));
    }
    entry_ = no_entry;
    status_.entry.store(no_entry, std::memory_order_release);
  }

  void run_one(std::size_t index, Outcome so_far) {
    ++items_;
    elapsed_before_ = so_far.receipt.duration;
    first_start_.reset();
    status_.attempts.store(so_far.receipt.attempts, std::memory_order_relaxed);
    status_.current.store(index, std::memory_order_relaxed);
    status_.items.fetch_add(1, std::memory_order_relaxed);
    status_.block.store(pack({index, index + 1}), std::memory_order_release);
    std::exception_ptr unreadable;
    std::span<const std::byte> bytes;
    try {
      if (job_.sends_items) bytes = receive(entry_);
    } catch (...) {
      unreadable = std::current_exception();
    }
    if (unreadable) {
      send(Resolved{.index = index, .error = unreadable, .receipt = {.attempts = 1}}, {}, {});
    } else {
      work_.run_one(index, bytes, std::move(so_far), task_, *this);
    }
    set_attempt(AttemptState::none);
    status_.block.store(0, std::memory_order_release);
  }

  /// An encoded item. Throws std::bad_alloc if it does not fit into memory.
  std::span<const std::byte> receive(std::size_t number) {
    const WorkEntry& entry = queue_[number];
    if (!entry.follows) return queue_.inline_item(number).first(entry.item_size);
    const auto size = static_cast<std::size_t>(entry.item_size);
    std::exception_ptr too_large;
    try {
      item_.clear();
      item_.reserve(size);
    } catch (...) {
      too_large = std::current_exception();  // but it comes, and must be taken out of the inbox
    }
    for (std::size_t received = 0; received < size;) {
      status_.wants_bytes.store(1, std::memory_order_seq_cst);
      tell_parent();
      inbox_.wait_for_bytes([this] { tell_parent(); });
      const auto bytes = inbox_.front();
      if (!too_large) item_.insert(item_.end(), bytes.begin(), bytes.end());
      received += bytes.size();
      inbox_.skip(bytes.size());
      inbox_.release();
    }
    status_.wants_bytes.store(0, std::memory_order_seq_cst);
    if (too_large) std::rethrow_exception(too_large);
    return item_;
  }

  // Attempts -------------------------------------------------------------------------------------------

  void begin_attempt(const Task& task, TimePoint start) noexcept override {
    if (!first_start_) {
      first_start_ = start - elapsed_before_;
      status_.first_start.store(first_start_->time_since_epoch().count(), std::memory_order_relaxed);
    }
    status_.attempts.store(task.attempt, std::memory_order_relaxed);
    status_.attempt_start.store(start.time_since_epoch().count(), std::memory_order_relaxed);
    set_attempt(AttemptState::running);
  }

  void end_attempt() noexcept override {
    std::uint64_t attempt = with_state(status_.attempt.load(std::memory_order_relaxed), AttemptState::running);
    if (status_.attempt.compare_exchange_strong(attempt, with_state(attempt, AttemptState::ended),
                                                std::memory_order_acq_rel)) {
      return;
    }
    // Condemned: the parent has decided, and the kill is on its way.
    while (true) ::pause();
  }

  // Release, so that the parent sees what was written about the attempt before.
  void set_attempt(AttemptState state) noexcept {
    const std::uint64_t attempt = status_.attempt.load(std::memory_order_relaxed);
    const std::uint64_t number = state == AttemptState::running ? attempt + 4 : attempt;
    status_.attempt.store(with_state(number, state), std::memory_order_release);
  }

  /// A thread that waits for the end of the run, for tasks that look at their stop token.
  void tell_tasks_to_stop() {
    try {
      // Never joined, and never destroyed: the process ends by _exit().
      new std::jthread([this] {
        Word& phase = shared_.run_state().phase;
        for (std::uint32_t seen = phase.load(); seen != static_cast<std::uint32_t>(Phase::stopped);
             seen = phase.load()) {
          wait_while(phase, seen);
        }
        run_.request_stop();
      });
    } catch (const std::system_error&) {
      // No thread to be had: tasks end when they end.
    }
  }

  // To the parent --------------------------------------------------------------------------------------

  std::span<const std::byte> encoded(const std::exception_ptr& exception) noexcept {
    try {
      exception_.clear();
      encode_exception(exception, exception_);
      return exception_;
    } catch (...) {
      return out_of_memory_;
    }
  }

  void send_frame(const FrameHead& head, std::span<const std::byte> bytes, std::span<const std::byte> more,
                  bool at_once) {
    constexpr std::array<std::byte, 8> zeros{};
    const auto padding = std::span{zeros}.first((8 - head.length % 8) % 8);
    const std::array parts{std::as_bytes(std::span{&head, 1}), bytes, more, std::span<const std::byte>{padding}};
    const std::size_t size = sizeof head + head.length + padding.size();
    const auto tell = [this] { tell_parent(); };
    if (size <= outbox_.capacity() / 2) {
      // In one piece, so that the parent can decode it where it is.
      outbox_.wait_for_room(size, tell);
      for (const auto part : parts) outbox_.put(part);
    } else {
      for (auto part : parts) {
        while (!part.empty()) {
          outbox_.wait_for_room(std::min(part.size(), outbox_.capacity() / 4), tell);
          const auto now = part.first(std::min(part.size(), outbox_.room()));
          outbox_.put(now);
          outbox_.publish();
          tell_parent();
          part = part.subspan(now.size());
        }
      }
    }
    outbox_.publish();
    // A large value takes the parent longer to copy than to wake up.
    constexpr std::size_t large = std::size_t{1} << 15;
    if (at_once || size >= large || outbox_.room() < outbox_.capacity() / 2) tell_parent();
  }

  void tell_parent() noexcept {
    leave_if_orphaned();
    Word& sleeps = shared_.parent_sleeps();
    if (sleeps.load(std::memory_order_seq_cst) == 0) return;
    sleeps.store(0, std::memory_order_seq_cst);
    bell_.ring();
  }

  /// Where the kernel does not kill workers with their parent, they look for themselves.
  void leave_if_orphaned() const noexcept {
#if !defined(__linux__)
    if (::getppid() != parent_) ::_exit(EXIT_FAILURE);
#endif
  }

  SharedRun& shared_;
  WorkQueue& queue_;
  WorkerStatus& status_;
  ByteRing outbox_;
  ByteRing inbox_;
  const std::size_t number_;
  const CrewJob& job_;
  Run& run_;
  CrewWork& work_;
  const Bell& bell_;
  Task task_;
  Pace pace_;
  std::size_t items_ = 0;                       // run so far
  std::size_t entry_ = no_entry;                // of the work queue, in hand
  std::chrono::steady_clock::time_point mark_;  // when the last block ended
  Duration elapsed_before_{};                   // of the item in hand, elsewhere
  std::optional<TimePoint> first_start_;
  const std::exception_ptr still_failed_ = std::make_exception_ptr(0);
#if !defined(__linux__)
  const pid_t parent_ = ::getppid();
#endif
  Bytes item_;
  Bytes exception_;
  Bytes out_of_memory_;
};

}  // namespace pyarallel::detail

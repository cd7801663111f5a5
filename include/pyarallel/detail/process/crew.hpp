// The forked workers of one run, as the parent sees them: it forks them, hears what became of the items,
// replaces those that die, and kills those that must end. Runs on the calling thread only, except wake().
#pragma once

#include <poll.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/executor/thread_pool.hpp"
#include "pyarallel/detail/process/bell.hpp"
#include "pyarallel/detail/process/child.hpp"
#include "pyarallel/detail/process/frame_reader.hpp"
#include "pyarallel/detail/process/shared_run.hpp"
#include "pyarallel/detail/process/worker.hpp"
#include "pyarallel/detail/run/attempt.hpp"
#include "pyarallel/detail/run/crew.hpp"
#include "pyarallel/detail/run/driver.hpp"
#include "pyarallel/detail/run/run.hpp"
#include "pyarallel/detail/run/workplace.hpp"
#include "pyarallel/detail/spin.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

class ForkedCrew final : public Crew {
 public:
  /// std::system_error if there is no memory or no descriptor for it.
  ForkedCrew(const Plan& plan, const CrewJob& job)
      : plan_(plan), job_(job), shared_(job), queue_(shared_.queue()), peers_(job.workers) {
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      peers_[worker].frames = FrameReader{shared_.outbox(worker)};
      peers_[worker].inbox = shared_.inbox(worker);
    }
    if (job_.claims) {
      for (std::size_t entry = 0; entry < job_.entries; ++entry) {
        queue_.make(entry);
        free_entries_.push_back(entry);
      }
      entries_ = job_.entries;
    }
    // Not to be made for the first time while a fork copies it half made.
    ThreadPool::instance();
    default_workers(Executor::thread);
  }

  ForkedCrew(const ForkedCrew&) = delete;
  ForkedCrew& operator=(const ForkedCrew&) = delete;

  [[gnu::cold]] RunState& run_state() const noexcept override { return shared_.run_state(); }

  // Cold, so that g++ does not guess that this is what a Crew will be, and compiles it where nobody forks.
  [[gnu::cold]] void begin(Run& run, Driver& driver, CrewWork& work) override {
    run_ = &run;
    driver_ = &driver;
    work_ = &work;
    queue_.set_more_to_come(!job_.claims);
    driver.guarded([&] { replace(); });
  }

  [[gnu::cold]] void advance(FunctionRef<bool()> enough) override {
    const auto admit = [&] { return admit_one(); };
    const auto settle = [&](std::span<Resolved> items) { work_->settle(items); };
    const auto finished = [&] {
      return enough() || (job_.claims ? nobody_inside() && !has_work() : work_->all_settled());
    };
    driver_->guarded([&] {
      do {
        driver_->drive(admit, settle, finished, job_.claims);
      } while (find_lost());
    });
  }

  [[gnu::cold]] void abandon() noexcept override { abandoned_ = true; }

  [[gnu::cold]] void end() override {
    if (run_ == nullptr) return;  // it never began
    end_workers(driver_->call_failed());
    if (!job_.claims) return;
    for (const Range& range : work_->records().gaps(job_.size)) run_->add_unrun(range);
  }

  // Workplace ----------------------------------------------------------------------------------------

  void collect(std::vector<Resolved>& outcomes, bool until_left, TimePoint due) override {
    static_cast<void>(until_left);  // that is noticed anyway
    outcomes.clear();
    outcomes.swap(resolved_);
    while (true) {
      for (std::size_t worker = 0; worker < peers_.size(); ++worker) hear(worker, outcomes);
      const TimePoint now = clock().now();
      if (now >= next_look_) bury_dead(outcomes);
      TimePoint next = due;
      next = std::min(next, hand_out_delayed(now));
      if (!run_->closed()) replace();
      next = std::min(next, end_running(now));
      next = std::min(next, kill_late(now));  // those forked just now included
      if (!outcomes.empty() || woken_.exchange(false) || run_->closed() != seen_closed_) break;
      if (live_ == 0 && (run_->closed() || !has_work())) break;
      if (clock().now() >= due) break;
      sleep_until(next);
    }
    seen_closed_ = run_->closed();
  }

  std::vector<std::size_t> close() override {
    queue_.set_more_to_come(false);
    detail::wake(shared_.run_state().phase);
    // What was tried already keeps its last error (clause T4); the rest never ran.
    std::vector<std::size_t> unrun;
    while (const auto entry = queue_.take(parent_)) {
      const WorkEntry& work = queue_[*entry];
      if (work.attempts > 0) {
        give_up(work.range.first, *entry);
      } else if (!job_.claims) {
        unrun.push_back(*entry);
      }
    }
    for (const Delayed& item : std::exchange(delayed_, {})) give_up(item.index, item.entry);
    for (const ReturnedWork& work : std::exchange(backlog_, {})) {
      if (work.attempts > 0) give_up(work.range.first, no_entry);
    }
    return unrun;
  }

  bool nobody_inside() override { return live_ == 0 && resolved_.empty(); }

  void wake() noexcept override {
    woken_.store(true, std::memory_order_release);
    detail::wake(shared_.run_state().phase);
    bell_.ring();
  }

 private:
  static constexpr std::size_t parent_ = WorkQueue::most_owners;  // as an owner of entries
  static constexpr std::size_t no_item = ~std::size_t{0};
  static constexpr int most_early_deaths = 10;
  static constexpr std::chrono::milliseconds looks_every{10};  // at a process that has no descriptor
  static constexpr std::chrono::seconds ready_within{5};       // a forked worker
  static constexpr std::chrono::milliseconds grace{20};        // to report what is waiting for its next attempt

  struct Peer {
    Child child;
    FrameReader frames;
    ByteRing inbox;
    std::size_t entry_fed = no_entry;  // whose bytes go into the inbox
    std::size_t fed = 0;
    TimePoint forked_at;
    std::size_t last_block = no_item;     // the first item of the last block that it reported
    std::size_t last_resolved = no_item;  // the last item of which it sent an outcome
    bool killed_at_end = false;
  };

  struct ReturnedWork {
    Range range;
    int attempts = 0;
    Duration elapsed{};
  };

  struct Delayed {
    TimePoint due;
    std::size_t index = 0;
    std::size_t entry = no_entry;  // that it has in the queue
  };

  /// An item that failed with its worker, and is tried again.
  struct Retried {
    std::exception_ptr error;
    int attempts = 0;
    TimePoint first_start;
  };

  // The run --------------------------------------------------------------------------------------------

  bool has_work() const noexcept {
    return !backlog_.empty() || !delayed_.empty() || queue_.waiting() > 0 || any_unclaimed();
  }

  bool admit_one() {
    if (job_.claims || !queue_.more_to_come()) return false;
    AdmittedItem item;
    const Pull pull = work_->admit(item);
    if (pull == Pull::placed && !driver_->guarded([&] { offer(item); })) {
      resolved_.push_back({.index = item.index, .slot = item.place, .ran = false});
    }
    if (work_->all_admitted()) queue_.set_more_to_come(false);
    return pull != Pull::none;
  }

  /// Hands an admitted item to the workers.
  void offer(const AdmittedItem& item) {
    // A window may be much larger than what is ever used of it.
    while (item.place >= entries_) queue_.make(entries_++);
    WorkEntry& work = queue_[item.place];
    work.range = {item.index, item.index + 1};
    work.attempts = 0;
    work.elapsed = 0;
    work.item_size = item.bytes.size();
    const auto place = queue_.inline_item(item.place);
    work.follows = item.bytes.size() > place.size();
    if (work.follows) {
      large_items_[item.place] = {item.bytes.begin(), item.bytes.end()};
    } else {
      std::copy(item.bytes.begin(), item.bytes.end(), place.begin());
    }
    queue_.offer(item.place);
    replace();
  }

  /// Items that were lost with a worker between two steps of its (see shared_run.hpp) are handed out again.
  /// False if there are none.
  bool find_lost() {
    if (!job_.claims || !anybody_died_ || run_->closed()) return false;
    const std::vector<Range> lost = work_->records().gaps(job_.size);
    for (const Range& range : lost) put_back(range);
    return !lost.empty();
  }

  /// Waits until all workers are gone, or kills them.
  void end_workers(bool kill) {
    queue_.set_more_to_come(false);
    std::vector<Resolved> outcomes;
    while (live_ > 0) {
      if (kill || run_->closed()) {
        for (Peer& peer : peers_) {
          if (peer.child.exists()) peer.child.kill(SIGKILL);
        }
      }
      for (std::size_t worker = 0; worker < peers_.size(); ++worker) hear(worker, outcomes);
      bury_dead(outcomes);
      if (live_ > 0) sleep_until(TimePoint::max());
    }
  }

  bool any_unclaimed() const noexcept {
    return job_.claims && !run_->closed() && shared_.next_item().load(std::memory_order_relaxed) < job_.size;
  }

  // Forking ------------------------------------------------------------------------------------------

  /// Forks workers, if there is work for more than there are.
  void replace() {
    flush_backlog();
    if (live_ == peers_.size()) return;
    std::size_t idle = 0;
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      if (!peers_[worker].child.exists()) continue;
      const WorkerStatus& status = shared_.status(worker);
      if (status.stage.load(std::memory_order_acquire) == Stage::starting ||
          status.waits.load(std::memory_order_seq_cst) != Waits::no) {
        ++idle;
      }
    }
    while (live_ < peers_.size() && !run_->closed()) {
      queue_.set_few_workers(true);
      if ((!any_unclaimed() && queue_.waiting() <= idle) || !fork_one()) return;
      ++idle;
    }
    queue_.set_few_workers(live_ < peers_.size());
  }

  bool fork_one() {
    const auto free = std::find_if(peers_.begin(), peers_.end(), [](const Peer& peer) { return !peer.child.exists(); });
    const auto number = static_cast<std::size_t>(free - peers_.begin());
    Peer& peer = *free;
    const TimePoint now = clock().now();
    if (live_ > 0 && now < next_fork_) return false;
    try {
      const auto live = [&] {
        for (Peer& sibling : peers_) sibling.child.close_descriptor();
        work_->enter_worker();
        Worker worker{shared_, number, job_, *run_, *work_, bell_};
        worker.live();
      };
      peer.child = Child::fork(live, plan_.may_change_threads ? DiesWith::process : DiesWith::thread);
    } catch (const std::system_error&) {
      // Those that are there go on (clause P7).
      next_fork_ = now + std::chrono::milliseconds{100};
      if (live_ == 0) run_->fail_call(std::current_exception());
      return false;
    }
    peer.forked_at = now;
    ++live_;
    return true;
  }

  // Hearing ------------------------------------------------------------------------------------------

  void hear(std::size_t worker, std::vector<Resolved>& outcomes) {
    Peer& peer = peers_[worker];
    if (!peer.child.exists() && !peer.frames.any()) return;
    feed(worker);
    while (const auto frame = peer.frames.next()) {
      early_deaths_ = 0;
      hear(peer, *frame, outcomes);
    }
    peer.frames.finish();
  }

  void hear(Peer& peer, const FrameReader::Frame& frame, std::vector<Resolved>& outcomes) {
    const FrameHead& head = frame.head;
    const std::size_t index = head.index;
    Resolved item{.index = index,
                  .slot = head.entry,
                  .receipt = {.duration = Duration{head.nanoseconds}, .attempts = head.attempts}};
    switch (head.kind) {
      case FrameKind::value:
        if (head.length > 0) {
          try {
            work_->keep_value(item, frame.bytes);
          } catch (...) {
            item.error = std::current_exception();
          }
        }
        break;
      case FrameKind::failure:
        item.error = decoded(frame.bytes);
        break;
      case FrameKind::still_failed:
        item.error = retried_[index].error;
        break;
      case FrameKind::unrun:
        item.ran = false;
        break;
      case FrameKind::block:
        if (head.count > 0) {
          work_->records().add({index, head.count, Duration{head.nanoseconds}});
        }
        peer.last_block = head.index;
        if (head.entry != no_entry) free(head.entry);
        return;
      case FrameKind::call_failed:
        run_->fail_call(decoded(frame.bytes));
        return;
    }
    peer.last_resolved = head.index;
    if (item.slot == peer.entry_fed) peer.entry_fed = no_entry;
    resolve(std::move(item), outcomes);
  }

  /// The item's slot is its entry in the queue, if it has one.
  void resolve(Resolved item, std::vector<Resolved>& outcomes) {
    if (!retried_.empty()) retried_.erase(item.index);
    if (job_.one_by_one && item.slot != no_entry) free(item.slot);
    // Where blocks are told of, the values in them are no news; nor is what never ran of an input that is
    // shared out: whatever has no outcome in the end never ran.
    if (job_.claims && (!item.ran || (!job_.one_by_one && !item.error && !item.interrupted))) return;
    outcomes.push_back(std::move(item));
  }

  /// The entry's work is done.
  void free(std::size_t entry) {
    queue_.retire(entry);
    if (!large_items_.empty()) large_items_.erase(entry);
    if (job_.claims) free_entries_.push_back(entry);
  }

  static std::exception_ptr decoded(std::span<const std::byte> bytes) noexcept {
    try {
      return decode_exception(bytes);
    } catch (...) {
      return std::current_exception();
    }
  }

  bool wants_bytes(std::size_t worker) const noexcept {
    return job_.sends_items && shared_.status(worker).wants_bytes.load(std::memory_order_seq_cst) != 0;
  }

  /// Puts more of a large item into the inbox of a worker that waits for it.
  void feed(std::size_t worker) {
    Peer& peer = peers_[worker];
    WorkerStatus& status = shared_.status(worker);
    if (!wants_bytes(worker)) return;
    const auto entry = status.entry.load(std::memory_order_acquire);
    const auto item = large_items_.find(entry);
    if (item == large_items_.end()) return;
    if (peer.entry_fed != entry) {
      peer.entry_fed = entry;
      peer.fed = 0;
    }
    const auto bytes = std::span<const std::byte>{item->second}.subspan(peer.fed);
    const auto part = bytes.first(std::min(bytes.size(), peer.inbox.room()));
    if (part.empty()) return;
    peer.fed += part.size();
    // Before it can read them, for then it may want those of the next item at once.
    if (part.size() == bytes.size()) status.wants_bytes.store(0, std::memory_order_seq_cst);
    peer.inbox.put(part);
    peer.inbox.publish();
  }

  // Deaths -------------------------------------------------------------------------------------------

  void bury_dead(std::vector<Resolved>& outcomes) {
    // A system call for each worker: not each time there is something to hear, while the parent never sleeps.
    next_look_ = clock().now() + std::chrono::milliseconds{1};
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      Peer& peer = peers_[worker];
      if (!peer.child.exists()) continue;
      if (peer.child.descriptor() >= 0) {
        pollfd ended{peer.child.descriptor(), POLLIN, 0};
        if (::poll(&ended, 1, 0) <= 0) continue;
      }
      const auto ending = peer.child.ended();
      if (!ending) continue;
      --live_;
      bury(worker, *ending, outcomes);
    }
  }

  void bury(std::size_t worker, const Ending& ending, std::vector<Resolved>& outcomes) {
    Peer& peer = peers_[worker];
    WorkerStatus& status = shared_.status(worker);
    hear(worker, outcomes);  // what it still said
    const Stage stage = status.stage.load(std::memory_order_acquire);
    const bool left = (stage == Stage::leaving || stage == Stage::recycled) && ending.signal == 0;
    if (!left) {
      anybody_died_ = true;
      account_for(worker, ending, outcomes);
      if (status.items.load(std::memory_order_relaxed) == 0 && !peer.killed_at_end) died_early(ending);
    }
    put_back(unpack(status.rest.exchange(0, std::memory_order_acq_rel)));
    const Waits waits = status.waits.load(std::memory_order_relaxed);
    if (waits != Waits::no) queue_.forget_waiter(waits == Waits::watching);
    reset(worker);
  }

  /// Which items did a dead worker have, and what becomes of them?
  void account_for(std::size_t worker, const Ending& ending, std::vector<Resolved>& outcomes) {
    Peer& peer = peers_[worker];
    WorkerStatus& status = shared_.status(worker);
    const std::size_t entry = entry_of(worker);
    const Range block = unpack(status.block.load(std::memory_order_acquire));
    const auto current = static_cast<std::size_t>(status.current.load(std::memory_order_acquire));
    const AttemptState state = state_of(status.attempt.load(std::memory_order_acquire));

    if (block.empty()) {
      // It took the entry, and that was all; or it was done with it.
      if (entry == no_entry) return;
      const WorkEntry& work = queue_[entry];
      const bool done = job_.one_by_one ? peer.last_resolved == work.range.first : peer.last_block == work.range.first;
      if (!done) queue_.offer(entry);
      return;
    }
    if (job_.one_by_one) {
      if (peer.last_resolved == current) return;
      if (state == AttemptState::none) {
        put_back_tried(current, entry);
      } else {
        charge(worker, current, entry, status.attempts.load(std::memory_order_relaxed), time_of(status.first_start),
               ending, outcomes);
      }
      return;
    }

    if (peer.last_block == block.first) return;
    const TimePoint started = time_of(status.attempt_start);
    const bool resolved = peer.last_resolved == current;  // it failed, and its outcome is known
    const std::size_t done = current + (resolved && current < block.last ? 1 : 0);
    if (done > block.first) {
      const std::size_t count = done - block.first;
      work_->records().add({block.first, count, (clock().now() - started) / static_cast<Duration::rep>(count)});
    }
    if (entry != no_entry) free(entry);
    if (done >= block.last) return;
    if (resolved || state == AttemptState::none) {
      put_back(Range{done, block.last});
      return;
    }
    charge(worker, current, no_entry, 1, started, ending, outcomes);
    put_back(Range{current + 1, block.last});
  }

  /// The entry of the queue that a worker has.
  std::size_t entry_of(std::size_t worker) const {
    // Not what it noted: it may have died before it could, or have sent the outcome since, and then the
    // entry may be another item's.
    for (std::size_t entry = 0; entry < entries_; ++entry) {
      if (queue_.owner(entry) == worker) return entry;
    }
    return no_entry;
  }

  /// The item was running in this worker when it died.
  void charge(std::size_t worker, std::size_t index, std::size_t entry, int attempts, TimePoint first_start,
              const Ending& ending, std::vector<Resolved>& outcomes) {
    const TimePoint now = clock().now();
    Resolved item{.index = index, .slot = entry, .receipt = {.duration = now - first_start, .attempts = attempts}};
    WorkerStatus& status = shared_.status(worker);
    const bool condemned = state_of(status.attempt.load(std::memory_order_acquire)) == AttemptState::condemned;
    if (peers_[worker].killed_at_end && !condemned) {
      item.interrupted = true;
    } else {
      const auto took = now - time_of(status.attempt_start);
      const auto error =
          condemned ? std::make_exception_ptr(TaskTimeout("task_timeout of " + text_of(*plan_.task_timeout) +
                                                          " exceeded: its worker was killed after " +
                                                          text_of(std::chrono::round<std::chrono::milliseconds>(took))))
                    : std::make_exception_ptr(WorkerCrashed(ending.signal, ending.exit_code));
      Verdict verdict = judge(plan_, error, attempts);
      item.error = std::move(verdict.error);
      if (verdict.again && !run_->closed()) {
        retried_[index] = {item.error, attempts, first_start};
        if (entry != no_entry) queue_.retire(entry);  // nobody's until then
        delayed_.push_back({add_saturating(now, verdict.delay), index, entry});
        return;
      }
    }
    if (item.error) run_->count_failure();  // at once, before another worker takes the next item
    if (!job_.one_by_one) work_->records().add({index, 1, item.receipt.duration});
    resolve(std::move(item), outcomes);
  }

  void died_early(const Ending& ending) {
    if (++early_deaths_ < most_early_deaths || run_->closed()) return;
    run_->fail_call(std::make_exception_ptr(
        WorkerCrashed(ending.signal, ending.exit_code,
                      std::to_string(early_deaths_) +
                          " worker processes in a row died before their first item; the last of them: ")));
  }

  void reset(std::size_t worker) {
    Peer& peer = peers_[worker];
    peer.frames.reset();
    peer.inbox.reset();
    peer.entry_fed = no_entry;
    peer.last_block = no_item;
    peer.last_resolved = no_item;
    peer.killed_at_end = false;
    shared_.status(worker).reset();
  }

  static TimePoint time_of(const std::atomic<std::int64_t>& since_epoch) noexcept {
    return TimePoint{Duration{since_epoch.load(std::memory_order_relaxed)}};
  }

  // Work that comes back -----------------------------------------------------------------------------

  void put_back(Range range) {
    if (range.empty() || run_->closed()) return;
    if (job_.one_by_one || plan_.max_tasks_per_worker) {
      for (std::size_t index = range.first; index < range.last; ++index) queue_up({.range = {index, index + 1}});
    } else {
      queue_up({.range = range});
    }
  }

  /// An item that was in hand, but not in an attempt.
  void put_back_tried(std::size_t index, std::size_t entry) {
    if (entry != no_entry) {
      queue_.offer(entry);
    } else {
      put_back(Range{index, index + 1});
    }
  }

  void queue_up(ReturnedWork work) { backlog_.push_back(work); }

  /// Items that came back go into the queue when there is an entry for them.
  void flush_backlog() {
    std::size_t done = 0;
    for (; done < backlog_.size() && !free_entries_.empty(); ++done) {
      const ReturnedWork& work = backlog_[done];
      const std::size_t number = free_entries_.back();
      free_entries_.pop_back();
      WorkEntry& entry = queue_[number];
      entry.range = work.range;
      entry.attempts = work.attempts;
      entry.elapsed = work.elapsed.count();
      queue_.offer(number);
    }
    backlog_.erase(backlog_.begin(), backlog_.begin() + static_cast<std::ptrdiff_t>(done));
  }

  /// Items whose wait for the next attempt is over. Returns when the next is.
  TimePoint hand_out_delayed(TimePoint now) {
    TimePoint next = TimePoint::max();
    std::erase_if(delayed_, [&](const Delayed& item) {
      if (item.due > now) {
        next = std::min(next, item.due);
        return false;
      }
      const Retried& tried = retried_[item.index];
      if (item.entry != no_entry) {
        WorkEntry& entry = queue_[item.entry];
        entry.attempts = tried.attempts;
        entry.elapsed = (now - tried.first_start).count();
        queue_.offer(item.entry);
      } else {
        queue_up({{item.index, item.index + 1}, tried.attempts, now - tried.first_start});
      }
      return true;
    });
    return next;
  }

  /// It was tried, and there will be no further attempt.
  void give_up(std::size_t index, std::size_t entry) {
    const auto found = retried_.find(index);
    if (found == retried_.end()) return;
    const Retried tried = found->second;
    resolve({.index = index,
             .slot = entry,
             .error = tried.error,
             .receipt = {.duration = clock().now() - tried.first_start, .attempts = tried.attempts}},
            resolved_);
  }

  // Ending what runs ---------------------------------------------------------------------------------

  /// After a timeout or a stop: kills what runs. Returns when to look again.
  TimePoint end_running(TimePoint now) {
    if (!run_->stopped()) return TimePoint::max();
    // Also where the run had ended before, and what runs was waited for.
    const StopReason reason = run_->stop_reason();
    if (!abandoned_ && reason != StopReason::timed_out && reason != StopReason::cancelled &&
        !plan_.stop.stop_requested() && now < run_->deadline()) {
      return run_->deadline();
    }
    if (!killing_since_) {
      killing_since_ = now;
      detail::wake(shared_.run_state().phase);
    }
    const TimePoint last = *killing_since_ + grace;
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      Peer& peer = peers_[worker];
      if (!peer.child.exists() || peer.killed_at_end) continue;
      const bool runs =
          state_of(shared_.status(worker).attempt.load(std::memory_order_acquire)) == AttemptState::running;
      // What waits for its next attempt, or sends its outcome, has a moment to say so.
      if (!runs && now < last) continue;
      peer.killed_at_end = true;
      peer.child.kill(SIGKILL);
    }
    return now < last ? std::min(last, now + std::chrono::milliseconds{2}) : TimePoint::max();
  }

  /// Kills what takes longer than it may. Returns when to look again.
  TimePoint kill_late(TimePoint now) {
    TimePoint next = TimePoint::max();
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      Peer& peer = peers_[worker];
      if (!peer.child.exists()) continue;
      WorkerStatus& status = shared_.status(worker);
      if (status.stage.load(std::memory_order_acquire) == Stage::starting) {
        // Stuck, perhaps on a lock that some thread held at the fork.
        const TimePoint due = peer.forked_at + ready_within;
        if (due <= now) peer.child.kill(SIGKILL);
        next = std::min(next, std::max(due, now + looks_every));
      }
      if (!plan_.task_timeout) continue;
      // An attempt that begins later than now is due later than this.
      TimePoint due = add_saturating(now, *plan_.task_timeout);
      std::uint64_t attempt = status.attempt.load(std::memory_order_acquire);
      if (state_of(attempt) == AttemptState::running) {
        due = add_saturating(time_of(status.attempt_start), *plan_.task_timeout);
        // Fails if that attempt has ended: then the outcome is on its way, and the worker is spared.
        if (due <= now && status.attempt.compare_exchange_strong(attempt, with_state(attempt, AttemptState::condemned),
                                                                 std::memory_order_acq_rel)) {
          peer.child.kill(SIGKILL);
          continue;
        }
      }
      next = std::min(next, std::max(due, now + std::chrono::microseconds{100}));
    }
    return next;
  }

  // Waiting ------------------------------------------------------------------------------------------

  /// Until there is something to hear, somebody died, or it is `due`.
  void sleep_until(TimePoint due) {
    // The next outcome is often there before the kernel would be.
    if (job_.watchers > 0 && spin_until([this] { return something_to_hear(); })) return;
    shared_.parent_sleeps().store(1, std::memory_order_seq_cst);
    if (!something_to_hear()) {
      polled_.clear();
      polled_.push_back({bell_.descriptor(), POLLIN, 0});
      for (const Peer& peer : peers_) {
        if (!peer.child.exists()) continue;
        if (peer.child.descriptor() >= 0) {
          polled_.push_back({peer.child.descriptor(), POLLIN, 0});
        } else {
          due = std::min(due, clock().now() + looks_every);
        }
      }
      ::poll(polled_.data(), static_cast<nfds_t>(polled_.size()), milliseconds_until(due));
      next_look_ = TimePoint::min();  // perhaps somebody died
    }
    shared_.parent_sleeps().store(0, std::memory_order_seq_cst);
    bell_.clear();
  }

  bool something_to_hear() const noexcept {
    if (woken_.load(std::memory_order_relaxed)) return true;
    for (std::size_t worker = 0; worker < peers_.size(); ++worker) {
      if (peers_[worker].frames.any() || wants_bytes(worker)) return true;
    }
    return false;
  }

  static int milliseconds_until(TimePoint due) noexcept {
    if (due == TimePoint::max()) return -1;
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(due - clock().now());
    return static_cast<int>(std::clamp<std::chrono::milliseconds::rep>(wait.count(), 0, 3'600'000));
  }

  const Plan& plan_;
  const CrewJob job_;
  SharedRun shared_;
  WorkQueue& queue_;
  std::size_t entries_ = 0;  // of the queue that were ever used
  Bell bell_;
  std::vector<Peer> peers_;
  std::size_t live_ = 0;
  Run* run_ = nullptr;
  Driver* driver_ = nullptr;
  CrewWork* work_ = nullptr;
  std::vector<std::size_t> free_entries_;  // of input that workers share out
  std::vector<ReturnedWork> backlog_;      // came back, and waits for an entry
  std::vector<Delayed> delayed_;           // waits for its next attempt
  std::unordered_map<std::size_t, Retried> retried_;
  std::unordered_map<std::size_t, Bytes> large_items_;  // by entry
  std::vector<Resolved> resolved_;                      // by close()
  std::vector<pollfd> polled_;
  std::optional<TimePoint> killing_since_;
  TimePoint next_fork_ = TimePoint::min();
  TimePoint next_look_ = TimePoint::min();  // at who died
  int early_deaths_ = 0;
  bool anybody_died_ = false;
  bool abandoned_ = false;
  bool seen_closed_ = false;
  std::atomic<bool> woken_{false};
};

inline std::unique_ptr<Crew> make_forked_crew(const Plan& plan, const CrewJob& job) {
  return std::make_unique<ForkedCrew>(plan, job);
}

}  // namespace pyarallel::detail

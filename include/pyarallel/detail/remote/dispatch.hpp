// Rank 0's half of a run on ranks: which rank gets the next item, how many it has in advance, and what it tells.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/remote/frames.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/detail/run/run_state.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::detail {

/// A RemoteJob as a rank is told of it.
struct RankJob {
  std::string call;
  std::string filter;
  std::size_t function = 0;  // its number among those served
  std::size_t workers = 1;   // on this rank
  std::size_t first_worker = 0;
  bool takes_task = false;
  std::optional<Duration> task_timeout;
  std::optional<std::size_t> max_tasks_per_worker;
  std::optional<std::size_t> worker_memory_limit;
};

/// A rank that runs items.
struct RankPeer {
  std::size_t number = 0;   // on the link
  std::size_t workers = 1;  // that it has
};

class RankRun final : public RemoteRun {
 public:
  /// `function`: the number of job.function among those served.
  RankRun(Link& link, std::span<const RankPeer> peers, const RemoteJob& job, std::size_t function)
      : link_(link),
        chunk_(job.chunk),
        together_(job.together),
        in_advance_(std::max(picoseconds_in_advance, picoseconds_for_each_worker * job.workers)),
        numbers_(highest(peers) + 1, nobody) {
    std::size_t left = job.workers;
    std::size_t first_worker = 0;
    for (std::size_t i = 0; i < peers.size() && left > 0; ++i) {
      // As even as can be over the ranks, for each may have memory, or a network, of its own.
      const std::size_t fair = (left + (peers.size() - i) - 1) / (peers.size() - i);
      Peer peer{.number = peers[i].number, .workers = std::min(peers[i].workers, fair)};
      left -= peer.workers;
      numbers_[peer.number] = peers_.size();
      const RankJob told{.call = std::string(job.call),
                         .filter = std::string(job.filter),
                         .function = function,
                         .workers = peer.workers,
                         .first_worker = first_worker,
                         .takes_task = job.takes_task,
                         .task_timeout = job.task_timeout,
                         .max_tasks_per_worker = job.max_tasks_per_worker,
                         .worker_memory_limit = job.worker_memory_limit};
      first_worker += peer.workers;
      append_frame_of(peer.out, {.kind = RemoteFrame::begin}, [&](Bytes& out) { Codec<RankJob>::encode(told, out); });
      peers_.push_back(std::move(peer));
    }
    running_ = peers_.size();
    kept_.reserve(std::size_t{1} << 16);
    for (std::size_t peer = 0; peer < peers_.size(); ++peer) idle_.push_back(peer);
    for (std::size_t peer = 0; peer < peers_.size(); ++peer) flush(peers_[peer]);
  }

  ~RankRun() override { end(); }

  std::size_t wants_items() override {
    const std::size_t next = next_peer();
    if (next == nobody) return 0;
    const Peer& peer = peers_[next];
    if (chunk_ > 0) return chunk_;
    // None holds more than about 50 us of work (clause W1); and smaller messages stay in the caches.
    const std::size_t some = peer.picoseconds > 0 ? picoseconds_together / peer.picoseconds : 1;
    const std::size_t most = wanted(peer) - std::min(wanted(peer), peer.out_items);
    return std::min(most, std::clamp<std::size_t>(some, 1, most_items_together));
  }

  void hand_over(const RemoteItems& items) override {
    std::size_t chosen = next_peer();
    if (chosen == nobody) chosen = least_busy();
    Peer& peer = peers_[chosen];
    append_frame(peer.out,
                 {.kind = RemoteFrame::items,
                  .place = static_cast<std::uint32_t>(items.place),
                  .attempt = static_cast<std::uint32_t>(items.attempt),
                  .count = static_cast<std::uint32_t>(items.count),
                  .index = items.index},
                 items.bytes);
    peer.out_items += items.count;
    peer.unsent += items.count;
    if (!together_ || items.count > 64 || peer.out.size() >= large_message) flush(peer);
  }

  std::span<const RemoteOutcome> wait(TimePoint due) override {
    outcomes_.clear();
    kept_.clear();
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    for (bool all_sent = false;;) {
      const bool heard = listen();
      const Time now = Time::clock::now();
      look_after_stuck_peers(now);
      if (heard) {
        pause_.reset();
        quiet_since_ = Time::max();
        break;
      }
      if (quiet_since_ == Time::max()) quiet_since_ = now;
      if (now - quiet_since_ > std::chrono::microseconds{200}) even_out();
      if (clock().now() >= due) break;
      if (!std::exchange(all_sent, true)) {
        for (Peer& peer : peers_) flush(peer);
        continue;
      }
      if (woken_.exchange(false, std::memory_order_acquire)) break;
      pause_.pass(due);
    }
    // What a rank needs at once is not kept until there is more of it.
    for (Peer& peer : peers_) {
      if (peer.unsent > 0 && peer.out_items - peer.unsent <= peer.workers) flush(peer);
    }
    // What came with it is told first.
    if (failure_ && outcomes_.empty()) std::rethrow_exception(std::exchange(failure_, nullptr));
    return outcomes_;
  }

  void stop(bool kill) override {
    for (Peer& peer : peers_) {
      append_frame(peer.out, {.kind = RemoteFrame::stop, .number = kill});
      flush(peer);
    }
  }

  void wake() noexcept override { woken_.store(true, std::memory_order_release); }

  void end() noexcept override {
    if (std::exchange(ended_, true)) return;
    std::size_t out = 0;
    for (const Peer& peer : peers_) out += peer.out_items;
    if (out > 0) stop(true);
    for (Peer& peer : peers_) {
      append_frame(peer.out, {.kind = RemoteFrame::end});
      flush(peer);
    }
    pause_.reset();
    while (running_ > 0 || link_.sending()) {
      outcomes_.clear();
      kept_.clear();
      if (!listen()) pause_.pass(TimePoint::max());
    }
  }

 private:
  static constexpr std::size_t nobody = ~std::size_t{0};
  static constexpr std::size_t large_message = std::size_t{1} << 16;
  static constexpr std::size_t small_message = std::size_t{1} << 12;
  static constexpr std::size_t most_items_in_advance = std::size_t{1} << 15;
  static constexpr std::size_t most_items_together = std::size_t{1} << 11;
  static constexpr std::size_t picoseconds_together = 50'000'000;
  /// Work that a worker should have in advance, for as long as it takes until the next arrives; and where there are
  /// many workers, so much that this side is not asked for more than it can hand out: a message costs it 1 or 2 us.
  static constexpr std::size_t picoseconds_in_advance = 500'000'000;
  static constexpr std::size_t picoseconds_for_each_worker = 10'000'000;

  static constexpr std::size_t picoseconds_of_slow_items = 5'000'000'000;
  static constexpr std::chrono::milliseconds patience{5};

  using Time = std::chrono::steady_clock::time_point;

  struct Peer {
    std::size_t number = 0;
    std::size_t workers = 1;
    std::size_t out_items = 0;    // that it has, or that are on their way to it
    std::size_t unsent = 0;       // of those, in `out`
    std::size_t picoseconds = 0;  // that an item takes one of its workers; 0: not known
    bool asked_to_give_back = false;
    bool silent = false;     // nothing has come from it since the last look
    bool stuck = false;      // nor before that
    bool in_idle = true;     // in `idle_`
    bool in_hungry = false;  // in `hungry_`
    Bytes out = {};
    FrameSplitter in = {};
  };

  static std::size_t highest(std::span<const RankPeer> peers) {
    std::size_t highest = 0;
    for (const RankPeer& peer : peers) highest = std::max(highest, peer.number);
    return highest;
  }

  /// How many items a rank should have.
  std::size_t wanted(const Peer& peer) const noexcept {
    // Items that may wait for each other must not wait behind each other; nor behind one that is slow (clause W1).
    if (chunk_ == 1 || peer.stuck || peer.picoseconds > picoseconds_of_slow_items) return peer.workers;
    std::size_t each = 2;  // one to run, and one to go on with
    if (peer.picoseconds > 0) each = std::max(each, in_advance_ / peer.picoseconds);
    return std::min(each * peer.workers, most_items_in_advance);
  }

  /// The rank for the next item: first those with workers that have none, then those that have few in advance.
  std::size_t next_peer() {
    while (!idle_.empty()) {
      Peer& peer = peers_[idle_.front()];
      if (peer.out_items < peer.workers) return idle_.front();
      peer.in_idle = false;
      if (!std::exchange(peer.in_hungry, true)) hungry_.push_back(idle_.front());
      idle_.pop_front();
    }
    while (!hungry_.empty()) {
      Peer& peer = peers_[hungry_.front()];
      if (peer.out_items < wanted(peer)) return hungry_.front();
      peer.in_hungry = false;
      hungry_.pop_front();
    }
    return nobody;
  }

  std::size_t least_busy() const {
    const auto load = [](const Peer& peer) {
      return static_cast<double>(peer.out_items) / static_cast<double>(peer.workers);
    };
    return static_cast<std::size_t>(std::ranges::min_element(peers_, {}, load) - peers_.begin());
  }

  void flush(Peer& peer) {
    if (peer.out.empty()) return;
    link_.send(peer.number, peer.out);
    peer.unsent = 0;
  }

  /// Takes what has come. False if that was nothing.
  bool listen() {
    bool any = false;
    for (bool more = true; more;) {
      std::size_t number = 0;
      auto piece = link_.receive(number);
      if (piece.empty()) break;
      any = true;
      // Small messages are kept while more of them are looked at; a large one is looked at where it is.
      more = piece.size() <= small_message && kept_.size() + piece.size() <= kept_.capacity();
      if (more) {
        append(kept_, piece.data(), piece.size());
        piece = std::span{std::as_const(kept_)}.last(piece.size());
      }
      const std::size_t who = number < numbers_.size() ? numbers_[number] : nobody;
      if (who == nobody) continue;
      const auto use = [&](const RemoteHead& head, std::span<const std::byte> bytes) { hear(who, head, bytes); };
      if (peers_[who].in.feed(piece, use)) more = false;
    }
    return any;
  }

  void hear(std::size_t who, const RemoteHead& head, std::span<const std::byte> bytes) {
    Peer& peer = peers_[who];
    const auto outcome = [&](RemoteOutcome::Kind kind) {
      if (kind != RemoteOutcome::Kind::not_run) {
        peer.stuck = false;
        peer.silent = false;
      }
      peer.out_items -= std::min<std::size_t>(peer.out_items, head.count);
      if (!std::exchange(peer.in_idle, true)) idle_.push_back(who);
      outcomes_.push_back({.kind = kind,
                           .place = head.place,
                           .index = static_cast<std::size_t>(head.index),
                           .count = head.count,
                           .duration = Duration{static_cast<Duration::rep>(head.number)},
                           .may_be_retried = head.attempt != 0,
                           .bytes = bytes});
    };
    switch (head.kind) {
      case RemoteFrame::values:
        return outcome(RemoteOutcome::Kind::value);
      case RemoteFrame::failure:
        return outcome(RemoteOutcome::Kind::failure);
      case RemoteFrame::not_run:
        return outcome(RemoteOutcome::Kind::not_run);
      case RemoteFrame::interrupted:
        return outcome(RemoteOutcome::Kind::interrupted);
      case RemoteFrame::gave_back:
        peer.asked_to_give_back = false;
        return;
      case RemoteFrame::pace:
        peer.picoseconds = static_cast<std::size_t>(head.number);
        return;
      case RemoteFrame::call_failed:
        failure_ = decode(bytes);
        return;
      case RemoteFrame::ended:
        --running_;
        return;
      default:
        return;
    }
  }

  static std::exception_ptr decode(std::span<const std::byte> bytes) noexcept {
    try {
      return decode_exception(bytes);
    } catch (...) {
      return std::current_exception();
    }
  }

  /// What waits behind slow items comes back, so that it goes to others.
  void look_after_stuck_peers(Time now) {
    if (now < next_look_) return;
    next_look_ = now + patience;
    for (Peer& peer : peers_) {
      if (peer.out_items > peer.workers && std::exchange(peer.silent, true)) {
        peer.stuck = true;
        ask_to_give_back(peer, peer.out_items - peer.workers);
      }
    }
  }

  void ask_to_give_back(Peer& peer, std::size_t items) {
    if (std::exchange(peer.asked_to_give_back, true)) return;
    append_frame(peer.out, {.kind = RemoteFrame::give_back, .count = static_cast<std::uint32_t>(items)});
    flush(peer);
  }

  /// While workers of one rank have had nothing to do for a while, others give back what they have in advance.
  void even_out() {
    std::size_t idle_workers = 0;
    for (const Peer& peer : peers_) idle_workers += peer.workers - std::min(peer.workers, peer.out_items);
    for (Peer& peer : peers_) {
      if (idle_workers == 0) return;
      if (peer.asked_to_give_back || peer.out_items <= peer.workers) continue;
      const std::size_t some = std::min(idle_workers, peer.out_items - peer.workers);
      idle_workers -= some;
      ask_to_give_back(peer, some);
    }
  }

  Link& link_;
  const std::size_t chunk_;
  const bool together_;
  const std::size_t in_advance_;      // picoseconds
  std::vector<std::size_t> numbers_;  // of a peer, by its number on the link
  std::vector<Peer> peers_;
  std::size_t running_ = 0;
  std::deque<std::size_t> idle_;    // peers, some of whose workers may have nothing to do
  std::deque<std::size_t> hungry_;  // peers that may have too little in advance
  std::vector<RemoteOutcome> outcomes_;
  Bytes kept_;
  std::exception_ptr failure_;
  PollPause pause_;
  Time quiet_since_ = Time::max();  // nothing has come since
  Time next_look_ = Time::clock::now();
  std::atomic<bool> woken_{false};
  bool ended_ = false;
};

}  // namespace pyarallel::detail

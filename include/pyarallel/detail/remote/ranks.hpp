// An executor whose workers are the other ranks, whatever links them.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/exception_codec.hpp"
#include "pyarallel/detail/remote/crew.hpp"
#include "pyarallel/detail/remote/dispatch.hpp"
#include "pyarallel/detail/remote/frames.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/executor.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::detail {

/// The functions that were served, and the runs of rank 0: one at a time.
class Ranks {
 public:
  void serve(std::vector<RemoteFunction> functions) { functions_ = std::move(functions); }
  std::span<const RemoteFunction> functions() const noexcept { return functions_; }

  /// The number of a function; std::invalid_argument if it was not served.
  std::size_t number_of(const RemoteFunction& function) const {
    const auto found = std::ranges::find(functions_, function);
    if (found != functions_.end()) return static_cast<std::size_t>(found - functions_.begin());
    throw std::invalid_argument(
        "executor: the function (" + type_name_of(function.type) +
        ") was not served, so the other machines do not know it: pass the same object to serve(), and only then to the "
        "call");
  }

  /// Waits for its turn. std::logic_error if this thread has a run already.
  std::unique_ptr<RemoteRun> begin(Link& link, std::span<const RankPeer> peers, const RemoteJob& job) {
    const std::size_t number = number_of(job.function);
    take_turn();
    try {
      return std::make_unique<Turn>(*this, link, peers, job, number);
    } catch (...) {
      end_turn();
      throw;
    }
  }

 private:
  /// A run, which gives up its turn when it ends.
  class Turn final : public RemoteRun {
   public:
    Turn(Ranks& ranks, Link& link, std::span<const RankPeer> peers, const RemoteJob& job, std::size_t number)
        : ranks_(ranks), run_(link, peers, job, number) {}
    ~Turn() override { end(); }
    std::size_t wants_items() override { return run_.wants_items(); }
    void hand_over(const RemoteItems& items) override { run_.hand_over(items); }
    std::span<const RemoteOutcome> wait(TimePoint due) override { return run_.wait(due); }
    void stop(bool kill) override { run_.stop(kill); }
    void wake() noexcept override { run_.wake(); }
    void end() noexcept override {
      if (std::exchange(ended_, true)) return;
      run_.end();
      ranks_.end_turn();
    }

   private:
    Ranks& ranks_;
    RankRun run_;
    bool ended_ = false;
  };

  void take_turn() {
    std::unique_lock lock{mutex_};
    if (taken_ && taken_by_ == std::this_thread::get_id()) {
      throw std::logic_error(
          "executor: this thread has a run on these machines already, a stream perhaps that is still open, and there "
          "can be one at a time");
    }
    condition_.wait(lock, [this] { return !taken_; });
    taken_ = true;
    taken_by_ = std::this_thread::get_id();
  }

  void end_turn() noexcept {
    {
      const std::lock_guard lock{mutex_};
      taken_ = false;
    }
    condition_.notify_one();
  }

  std::vector<RemoteFunction> functions_;
  std::mutex mutex_;
  std::condition_variable condition_;
  bool taken_ = false;
  std::thread::id taken_by_;
};

}  // namespace pyarallel::detail

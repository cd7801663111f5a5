// Ranks that are child processes of the test, linked by sockets: everything of a run on several machines but MPI.
#pragma once

#include <unistd.h>

#include <array>
#include <cstddef>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "processes.hpp"
#include "pyarallel/detail/process/child.hpp"
#include "pyarallel/detail/remote/rank.hpp"
#include "pyarallel/detail/remote/ranks.hpp"
#include "pyarallel/detail/remote/remote_call.hpp"
#include "pyarallel/detail/remote/socket_link.hpp"
#include "pyarallel/parallel_function.hpp"
#include "pyarallel/remote_executor.hpp"

namespace support {

/// How many ranks, and how each of them runs items.
struct Shape {
  std::size_t ranks = 1;
  Executor executor = Executor::thread;
  std::size_t workers = 1;  // of each rank
  std::function<void()> worker_init = {};

  bool has_processes() const { return executor == Executor::process; }
  std::size_t slots() const { return ranks * workers; }
  std::string name() const {
    return std::to_string(ranks) + " x " + std::to_string(workers) + (has_processes() ? " processes" : " threads");
  }
};

class LocalRanks final : public RemoteExecutor {
 public:
  /// Each rank has the functions as they are now.
  template <class... F>
  explicit LocalRanks(const Shape& shape, F&... functions) : shape_(shape) {
    ranks_.serve({function(functions)...});
    std::vector<detail::Descriptor> ours;
    for (std::size_t number = 0; number < shape.ranks; ++number) {
      auto [here, there] = detail::SocketLink::pair();
      const auto live = [&, &mine = here, &its = there] {
        ours.clear();
        mine.reset();
        std::vector<detail::Descriptor> sockets;
        sockets.push_back(std::move(its));
        detail::SocketLink link{std::move(sockets)};
        detail::Rank{link, 0, ranks_.functions(), {shape.executor, shape.workers, shape.worker_init}}.serve();
        detail::Child::leave(0);
      };
      children_.push_back(detail::Child::fork(live, detail::DiesWith::process));
      ours.push_back(std::move(here));
      peers_.push_back({.number = number, .workers = shape.workers});
    }
    link_ = std::make_unique<detail::SocketLink>(std::move(ours));
  }
  LocalRanks(const LocalRanks&) = delete;
  LocalRanks& operator=(const LocalRanks&) = delete;

  /// Each rank comes to its end in peace.
  ~LocalRanks() override {
    for (const auto& peer : peers_) {
      Bytes quit;
      detail::append_frame(quit, {.kind = detail::RemoteFrame::quit});
      link_->send(peer.number, quit);
    }
    for (auto& child : children_) {
      const detail::Ending ending = child.wait();
      CHECK((ending.signal == 0 && ending.exit_code == 0));
    }
  }

  const Shape& shape() const { return shape_; }

  std::size_t slots() const override { return is_local() ? shape_.workers : shape_.slots(); }
  Executor kind() const override { return shape_.executor; }
  /// In a rank and in its workers, which have this object too.
  bool is_local() const override { return getpid() != rank_0_; }
  void check(const RemoteFunction& function) const override {
    if (!is_local()) ranks_.number_of(function);
  }
  std::unique_ptr<RemoteRun> begin(const RemoteJob& job) override { return ranks_.begin(*link_, peers_, job); }

 private:
  template <class F>
  static RemoteFunction function(F& function) {
    return detail::remote_function(function);
  }
  template <class F>
  static RemoteFunction function(const ParallelFunction<F>& function) {
    return detail::remote_function(function.target());
  }

  const pid_t rank_0_ = getpid();
  const Shape shape_;
  detail::Ranks ranks_;
  std::vector<detail::RankPeer> peers_;
  std::vector<detail::Child> children_;
  std::unique_ptr<detail::SocketLink> link_;
};

/// What most tests call: always of the same type, so that the test program is not larger with each of them.
using Function = std::function<int(int, const Task&)>;

using enum Executor;
inline const std::vector<Shape> all_shapes{{1, thread, 1},  {2, thread, 1},  {3, thread, 1},  {1, thread, 3},
                                           {2, thread, 3},  {3, thread, 3},  {1, process, 1}, {2, process, 1},
                                           {3, process, 1}, {1, process, 2}, {2, process, 2}, {3, process, 2}};

/// A test on ranks of every shape. They have the function as it is now.
template <class F, class Code>
void on_ranks(F& function, Code code, std::size_t least_slots = 1) {
  for (const Shape& shape : all_shapes) {
    if (shape.slots() < least_slots) continue;
    INFO(shape.name());
    const Test test;
    LocalRanks cluster{shape, function};
    code(cluster);
  }
}

/// The same for the numbers 0 ... count - 1 as every kind of input.
template <class Code>
void from_every_source(int count, Code code) {
  {
    INFO("a vector");
    const Ints items = numbers(count);
    code(items);
  }
  {
    INFO("a list");
    const Ints all = numbers(count);
    const std::list<int> items(all.begin(), all.end());
    code(items);
  }
  {
    INFO("a generator");
    SinglePass items{count, itself};
    code(items);
    CHECK(items.mistakes == 0);
  }
}

}  // namespace support

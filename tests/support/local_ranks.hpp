// Ranks that are child processes of the test, linked by sockets: everything of a run on several machines but MPI.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "pyarallel/detail/process/child.hpp"
#include "pyarallel/detail/remote/rank.hpp"
#include "pyarallel/detail/remote/ranks.hpp"
#include "pyarallel/detail/remote/socket_link.hpp"

class LocalRanks final : public pyarallel::RemoteExecutor {
 public:
  /// Each of `ranks` has the functions as they are now.
  template <class... F>
  LocalRanks(std::size_t ranks, const pyarallel::detail::RankOptions& options, F&... functions) : options_(options) {
    using namespace pyarallel::detail;
    ranks_.serve({remote_function(functions)...});
    std::vector<Descriptor> ours;
    for (std::size_t number = 0; number < ranks; ++number) {
      auto [here, there] = SocketLink::pair();
      const auto live = [&, &end = there] {
        ours.clear();
        here.reset();
        std::vector<Descriptor> sockets;
        sockets.push_back(std::move(end));
        SocketLink link{std::move(sockets)};
        Rank{link, 0, ranks_.functions(), options_}.serve();
        Child::leave(0);
      };
      children_.push_back(Child::fork(live, DiesWith::process));
      ours.push_back(std::move(here));
      peers_.push_back({.number = number, .workers = options.workers});
    }
    link_ = std::make_unique<SocketLink>(std::move(ours));
  }

  ~LocalRanks() override {
    for (const auto& peer : peers_) {
      pyarallel::Bytes quit;
      pyarallel::detail::append_frame(quit, {.kind = pyarallel::detail::RemoteFrame::quit});
      link_->send(peer.number, quit);
    }
    for (auto& child : children_) child.wait();
  }

  std::size_t slots() const override { return peers_.size() * options_.workers; }
  pyarallel::Executor kind() const override { return options_.executor; }
  bool is_local() const override { return false; }
  void check(const pyarallel::RemoteFunction& function) const override { ranks_.number_of(function); }
  std::unique_ptr<pyarallel::RemoteRun> begin(const pyarallel::RemoteJob& job) override {
    return ranks_.begin(*link_, peers_, job);
  }

 private:
  pyarallel::detail::RankOptions options_;
  pyarallel::detail::Ranks ranks_;
  std::vector<pyarallel::detail::RankPeer> peers_;
  std::vector<pyarallel::detail::Child> children_;
  std::unique_ptr<pyarallel::detail::SocketLink> link_;
};

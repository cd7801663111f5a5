// A process beside a rank that runs its items in forked workers. It is forked before MPI is initialised, because
// forking a process that uses MPI is a hazard; the rank itself only passes on what it and rank 0 tell each other.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/process/child.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/remote/link.hpp"
#include "pyarallel/detail/remote/rank.hpp"
#include "pyarallel/detail/remote/socket_link.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/remote_executor.hpp"

namespace pyarallel::detail {

class RankHelper {
 public:
  /// Forks it. std::system_error if it cannot be.
  RankHelper(std::span<const RemoteFunction> functions, const RankOptions& options) {
    auto [here, there] = SocketLink::pair();
    const auto live = [&, &ours = here, &its = there] {
      ours.reset();
      std::vector<Descriptor> sockets;
      sockets.push_back(std::move(its));
      SocketLink link{std::move(sockets)};
      Rank{link, 0, functions, options}.serve();
      Child::leave(EXIT_SUCCESS);
    };
    child_ = Child::fork(live, DiesWith::process);
    std::vector<Descriptor> sockets;
    sockets.push_back(std::move(here));
    socket_ = std::make_unique<SocketLink>(std::move(sockets));
  }

  /// Passes on what comes from either side, until the helper has ended. WorkerCrashed if it should not have.
  void relay(Link& link, std::size_t rank_0) {
    PollPause pause;
    while (true) {
      std::size_t peer = 0;
      bool any = false;
      if (const auto piece = link.receive(peer); !piece.empty()) {
        bytes_.assign(piece.begin(), piece.end());
        socket_->send(0, bytes_);
        any = true;
      }
      if (const auto piece = socket_->receive(peer); !piece.empty()) {
        bytes_.assign(piece.begin(), piece.end());
        link.send(rank_0, bytes_);
        any = true;
      }
      if (any) {
        pause.reset();
      } else if (socket_->closed()) {
        break;
      } else {
        pause.pass(TimePoint::max());
      }
    }
    const Ending ending = child_.wait();
    if (ending.signal != 0 || ending.exit_code != EXIT_SUCCESS) {
      throw WorkerCrashed(ending.signal, ending.exit_code, "the process that starts this rank's workers: ");
    }
    while (link.sending()) {
      std::size_t peer = 0;
      link.receive(peer);
    }
  }

 private:
  Child child_;
  std::unique_ptr<SocketLink> socket_;
  Bytes bytes_;
};

}  // namespace pyarallel::detail

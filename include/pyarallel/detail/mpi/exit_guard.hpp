// A rank that leaves by std::exit() while others count on it.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

#include "pyarallel/detail/mpi/mpi_api.hpp"

namespace pyarallel::detail {

/// While it exists, std::exit() of this process ends the whole job, with a message. Without it the others may wait for
/// ever, or the launcher may take the job for a successful one.
class ExitGuard {
 public:
  ExitGuard(MPI_Comm communicator, int rank) noexcept : communicator_(communicator), rank_(rank) {
    std::atexit(&end_job);
    current().store(this, std::memory_order_release);
  }
  ExitGuard(const ExitGuard&) = delete;
  ExitGuard& operator=(const ExitGuard&) = delete;
  ~ExitGuard() { current().store(nullptr, std::memory_order_release); }

 private:
  static std::atomic<const ExitGuard*>& current() noexcept {
    static constinit std::atomic<const ExitGuard*> guard{nullptr};
    return guard;
  }

  static void end_job() {
    const ExitGuard* const guard = current().load(std::memory_order_acquire);
    if (guard == nullptr || getpid() != guard->pid_) return;  // forked workers may exit as they like
    std::fprintf(stderr, "pyarallel: rank %d has called exit() while it runs items: the job is aborted\n",
                 guard->rank_);
    MPI_Abort(guard->communicator_, EXIT_FAILURE);
  }

  const MPI_Comm communicator_;
  const int rank_;
  const pid_t pid_ = getpid();
};

}  // namespace pyarallel::detail

// Wakes the parent, which may be asleep in poll(): from any worker, and from any thread of its own.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>

#if defined(__linux__)
#include <sys/eventfd.h>
#endif

#include "pyarallel/detail/process/descriptor.hpp"

namespace pyarallel::detail {

class Bell {
 public:
  /// std::system_error if there are no descriptors left.
  Bell() {
#if defined(__linux__)
    hear_ = Descriptor{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    if (!hear_)
      throw std::system_error(errno, std::generic_category(), "pyarallel: no descriptor for worker processes");
#else
    int ends[2];
    if (::pipe(ends) != 0) {
      throw std::system_error(errno, std::generic_category(), "pyarallel: no descriptor for worker processes");
    }
    hear_ = Descriptor{ends[0]};
    ring_ = Descriptor{ends[1]};
    for (const int end : ends) {
      ::fcntl(end, F_SETFD, FD_CLOEXEC);
      ::fcntl(end, F_SETFL, O_NONBLOCK);
    }
#endif
  }

  void ring() const noexcept {
    const std::uint64_t one = 1;
    // It may be full of unheard rings; then one more makes no difference.
    while (::write(ring_ ? ring_.get() : hear_.get(), &one, sizeof one) < 0 && errno == EINTR) {
    }
  }

  /// Silent again.
  void clear() const noexcept {
    std::uint64_t rings = 0;
    while (::read(hear_.get(), &rings, sizeof rings) > 0 || errno == EINTR) {
      if (!ring_) break;  // an eventfd is empty after one read
    }
  }

  /// Readable after ring().
  int descriptor() const noexcept { return hear_.get(); }

 private:
  Descriptor hear_;
  Descriptor ring_;  // of a pipe
};

}  // namespace pyarallel::detail

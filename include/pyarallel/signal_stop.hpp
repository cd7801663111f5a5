// Ctrl-C and friends as a stop token.
#pragma once

#include "pyarallel/detail/process/shared_memory.hpp"

#if PYARALLEL_HAS_FORK

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/signal_handler.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel {

/// While it lives, signals request a stop, for example {SIGINT, SIGTERM}:
///
///     SignalStop signals{SIGINT, SIGTERM};
///     auto result = parallel_map(fetch, urls, {.stop = signals.token()});
///
/// The first arrival of each signal requests the stop. The next arrival of the same signal has the effect that it
/// had before, so a second Ctrl-C usually ends the program. Destruction restores what was there before, unless
/// somebody has changed it since. Of several objects for the same signal the newest is asked first, then the one
/// made before it; they may be destroyed in any order.
///
/// Callbacks of the token run in a thread of this object, never in a signal handler, and must not destroy the object.
/// In a child that the program forks, signals have the effect that they had before, and stop nothing; forked workers
/// (`Executor::process`) ignore them, for their parent decides.
class SignalStop {
 public:
  /// std::invalid_argument if there are no signals, or one that cannot be caught. std::system_error if there are no
  /// descriptors or threads left.
  explicit SignalStop(std::initializer_list<int> signals) {
    require_catchable(signals);
    open_pipe();
    listeners_.reserve(signals.size());
    {
      const detail::SignalsBlocked blocked;
      thread_ = std::make_unique<std::thread>([this] { serve(); });
    }
    try {
      for (const int signal : signals) {
        const auto is_it = [&](const Listener& other) { return other.signal == signal; };
        if (std::any_of(listeners_.begin(), listeners_.end(), is_it)) continue;
        listeners_.push_back({signal, detail::CaughtSignal::of(signal).add(signal, inbox_)});
      }
    } catch (...) {
      end();
      throw;
    }
  }
  SignalStop(const SignalStop&) = delete;
  SignalStop& operator=(const SignalStop&) = delete;
  ~SignalStop() { end(); }

  std::stop_token token() const { return source_.get_token(); }
  /// The first one that came, 0 if none.
  int signal() const noexcept { return inbox_.first.load(); }

 private:
  struct Listener {
    int signal;
    detail::SignalListener* listener;
  };

  static void require_catchable(std::initializer_list<int> signals) {
    if (signals.size() == 0) throw std::invalid_argument("SignalStop: there must be at least one signal");
    for (const int signal : signals) {
      struct sigaction action {};
      if (signal < 1 || signal >= NSIG || ::sigaction(signal, nullptr, &action) != 0) {
        throw std::invalid_argument("SignalStop: " + std::to_string(signal) + " is not a signal");
      }
      if (signal == SIGKILL || signal == SIGSTOP) {
        throw std::invalid_argument("SignalStop: " + detail::signal_text(signal) + " cannot be caught");
      }
    }
  }

  void open_pipe() {
    int ends[2];
#if defined(__linux__)
    const bool opened = ::pipe2(ends, O_CLOEXEC) == 0;
#else
    const bool opened = ::pipe(ends) == 0;
#endif
    if (!opened) throw std::system_error(errno, std::generic_category(), "SignalStop: no descriptors for a pipe");
    read_end_ = detail::Descriptor{ends[0]};
    write_end_ = detail::Descriptor{ends[1]};
    for (const int descriptor : ends) ::fcntl(descriptor, F_SETFD, FD_CLOEXEC);
    ::fcntl(write_end_.get(), F_SETFL, O_NONBLOCK);
    inbox_.pipe = write_end_.get();
  }

  // In the thread.
  void serve() {
    while (true) {
      char word = 0;
      const auto length = ::read(read_end_.get(), &word, sizeof word);
      if (length < 0 && errno == EINTR) continue;
      if (length != 1 || word == end_word) return;
      source_.request_stop();
    }
  }

  void end() noexcept {
    for (const auto& [signal, listener] : listeners_) detail::CaughtSignal::of(signal).remove(signal, listener);
    if (::getpid() != process_) {
      // In a forked child there is no such thread: it can neither be joined nor detached.
      static_cast<void>(thread_.release());
      return;
    }
    // Not the end of the file, which would not come while a forked child has the pipe, too.
    while (::write(write_end_.get(), &end_word, sizeof end_word) < 0 && errno == EINTR) {
    }
    thread_->join();
  }

  static constexpr char end_word = 'e';

  const pid_t process_ = ::getpid();
  std::stop_source source_;
  detail::Descriptor read_end_;
  detail::Descriptor write_end_;
  detail::SignalInbox inbox_;
  std::vector<Listener> listeners_;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace pyarallel

#endif

// One forked process: how it is made, so that it neither disturbs nor outlives its parent, and how it ends.
#pragma once

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <system_error>
#include <utility>

#if defined(__linux__)
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif
#if defined(__GLIBC__)
#include <stdio_ext.h>
#endif

#include "pyarallel/detail/function_ref.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/signal_handler.hpp"

namespace pyarallel::detail {

/// How a process ended.
struct Ending {
  int signal = 0;      // 0: it exited
  int exit_code = -1;  // -1: a signal, or nobody knows, because the program ignores SIGCHLD or reaps all children
};

/// Writes what the standard streams hold, so that a fork does not double it. What another thread is
/// busy with is left alone: its lock may be held for ever, as by a read from a terminal.
inline void flush_standard_streams() {
  const auto flush = [](std::FILE* file, auto&... streams) {
    if (::ftrylockfile(file) != 0) return;
    (streams.rdbuf()->pubsync(), ...);  // not flush(), which flushes a tied stream first
    std::fflush(file);
    ::funlockfile(file);
  };
  flush(stdout, std::cout);
  flush(stderr, std::cerr, std::clog);
}

/// What a child must not outlive: the thread that forked it, if that stays until the child is gone, or any thread
/// of its process.
enum class DiesWith { thread, process };

class Child {
 public:
  Child() = default;
  Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, 0)), pidfd_(std::move(other.pidfd_)) {}
  Child& operator=(Child&& other) noexcept {
    std::swap(pid_, other.pid_);
    pidfd_ = std::move(other.pidfd_);
    return *this;
  }
  /// Kills it if it is still there.
  ~Child() {
    if (pid_ <= 0) return;
    kill(SIGKILL);
    wait();
  }

  /// Forks; `body` runs in the child, and ends it by leave(). std::system_error if there can be no more.
  static Child fork(FunctionRef<void()> body, DiesWith with) {
    flush_standard_streams();
    const pid_t parent = ::getpid();
    // Until the child has handlers of its own, no signal may run one of the parent's in it.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    const pid_t pid = ::fork();
    const int error = errno;
    if (pid == 0) {
      become_child(parent, with);
      // Whatever happens, never into the caller's frames.
      try {
        body();
      } catch (...) {
      }
      ::_exit(EXIT_FAILURE);
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (pid < 0) throw std::system_error(error, std::generic_category(), "pyarallel: no worker process can be forked");
    Child child;
    child.pid_ = pid;
#if defined(SYS_pidfd_open)
    // Without one (an old kernel, no descriptors left) the process is asked about every now and then.
    child.pidfd_ = Descriptor{static_cast<int>(::syscall(SYS_pidfd_open, pid, 0))};
#endif
    return child;
  }

  bool exists() const noexcept { return pid_ > 0; }
  /// Readable when the process has ended; -1 if there is no such descriptor.
  int descriptor() const noexcept { return pidfd_.get(); }
  void close_descriptor() noexcept { pidfd_.reset(); }

  void kill(int signal) const noexcept {
#if defined(SYS_pidfd_send_signal)
    // The pid may be another process's by now, if the program reaps children that are not its own.
    if (pidfd_) {
      ::syscall(SYS_pidfd_send_signal, pidfd_.get(), signal, nullptr, 0);
      return;
    }
#endif
    ::kill(pid_, signal);
  }

  /// How it ended, if it has. Then it is gone.
  std::optional<Ending> ended() noexcept { return reap(WNOHANG); }
  /// Waits until it has ended.
  Ending wait() noexcept { return reap(0).value_or(Ending{}); }

  /// Ends the child: prints what it wrote, and nothing else of an exit().
  [[noreturn]] static void leave(int code) noexcept {
    flush_standard_streams();
    ::_exit(code);
  }

 private:
  std::optional<Ending> reap(int options) noexcept {
    int status = 0;
    pid_t reaped = 0;
    do {
      reaped = ::waitpid(pid_, &status, options);
    } while (reaped < 0 && errno == EINTR);
    if (reaped == 0) return std::nullopt;
    pid_ = 0;
    pidfd_.reset();
    Ending ending;
    if (reaped < 0) return ending;  // ECHILD: somebody else reaped it
    if (WIFSIGNALED(status)) ending.signal = WTERMSIG(status);
    if (WIFEXITED(status)) ending.exit_code = WEXITSTATUS(status);
    return ending;
  }

  static void become_child(pid_t parent, DiesWith with) noexcept {
#if defined(__linux__)
    // The kernel sends this signal when the thread that forked ends, and again with each thread of the parent that
    // inherits this child after it.
    ::prctl(PR_SET_PDEATHSIG, with == DiesWith::thread ? SIGKILL : thread_ended);
#endif
    for (int signal = 1; signal < NSIG; ++signal) {
      struct sigaction action {};
      if (::sigaction(signal, nullptr, &action) != 0) continue;
      if ((action.sa_flags & SA_SIGINFO) == 0 && (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN)) {
        continue;
      }
      // What would stop the parent may be sent to all of them, as a Ctrl-C is.
      const bool stops_parent = CaughtSignal::is_ours(action);
      action = {};
      action.sa_handler = stops_parent ? SIG_IGN : SIG_DFL;
      ::sigaction(signal, &action, nullptr);
    }
#if defined(__linux__)
    if (with == DiesWith::process) {
      parent_of_this_process() = parent;
      struct sigaction look {};
      look.sa_handler = [](int) {
        if (::getppid() != parent_of_this_process()) ::_exit(EXIT_FAILURE);
      };
      look.sa_flags = SA_RESTART;
      ::sigaction(thread_ended, &look, nullptr);
    }
#endif
    // The parent may have died before any of this took effect.
    if (::getppid() != parent) ::_exit(EXIT_FAILURE);
    // A terminal sends Ctrl-C to all of them, and the parent decides what it means.
    struct sigaction ignore {};
    ignore.sa_handler = SIG_IGN;
    ::sigaction(SIGINT, &ignore, nullptr);
    sigset_t none;
    sigemptyset(&none);
    ::pthread_sigmask(SIG_SETMASK, &none, nullptr);
    // exit() in a worker must not run what the parent registered for its own exit. What was registered
    // last runs first, and ends the process.
#if defined(__GLIBC__)
    __fpurge(stdout);  // what another thread wrote between the flush and the fork is the parent's to print
    ::on_exit([](int code, void*) { leave(code); }, nullptr);
#else
    std::atexit([] { leave(EXIT_FAILURE); });  // with which code is not to be had here
#endif
  }

#if defined(__linux__)
  static constexpr int thread_ended = SIGPWR;  // of all signals the one that least means something else

  static std::atomic<pid_t>& parent_of_this_process() noexcept {
    static std::atomic<pid_t> parent{0};
    return parent;
  }
#endif

  pid_t pid_ = 0;  // 0: none
  Descriptor pidfd_;
};

/// Limits the memory of this process to what it has and `bytes` more.
inline void limit_memory(std::size_t bytes) noexcept {
#if defined(__linux__)
  // Read without stdio, whose locks somebody may hold.
  const Descriptor file{::open("/proc/self/statm", O_RDONLY | O_CLOEXEC)};
  char text[64] = {};
  if (!file || ::read(file.get(), text, sizeof(text) - 1) <= 0) return;
  const rlim_t now = static_cast<rlim_t>(std::strtoull(text, nullptr, 10)) * static_cast<rlim_t>(::getpagesize());
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0) return;
  const rlim_t wanted = now + bytes < now ? RLIM_INFINITY : now + static_cast<rlim_t>(bytes);
  limit.rlim_cur = std::min(limit.rlim_max, wanted);
  ::setrlimit(RLIMIT_AS, &limit);
#else
  static_cast<void>(bytes);
#endif
}

}  // namespace pyarallel::detail

// Runs code in a child process, for what a test program cannot do to itself.
#pragma once

#include <poll.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <system_error>

namespace support {

#if defined(__SANITIZE_THREAD__)
#define PYARALLEL_TEST_THREAD_SANITIZER 1
#elif defined(__SANITIZE_ADDRESS__)
#define PYARALLEL_TEST_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PYARALLEL_TEST_THREAD_SANITIZER 1
#elif __has_feature(address_sanitizer)
#define PYARALLEL_TEST_ADDRESS_SANITIZER 1
#endif
#endif

// ThreadSanitizer cannot follow a process that starts threads after a fork of several threads.
#if defined(PYARALLEL_TEST_THREAD_SANITIZER)
inline constexpr bool children_may_start_threads = false;
#else
inline constexpr bool children_may_start_threads = true;
#endif

// AddressSanitizer (up to LLVM 16) forks with its allocator's locks as they are: if another thread holds
// one at that moment, the child hangs.
#if defined(PYARALLEL_TEST_THREAD_SANITIZER) || defined(PYARALLEL_TEST_ADDRESS_SANITIZER)
inline constexpr bool may_fork_while_threads_run = false;
#else
inline constexpr bool may_fork_while_threads_run = true;
#endif

/// The child's side of in_child(): what it says reaches the parent at once.
class Parent {
 public:
  explicit Parent(int pipe) : pipe_(pipe) {}
  void tell(std::string_view text) const {
    if (write(pipe_, text.data(), text.size()) < 0) _exit(99);
  }

 private:
  int pipe_;
};

/// What became of a child.
struct Child {
  int exit_code = -1;  // -1: ended by a signal
  int signal = 0;
  bool hung = false;  // and was killed
  std::string told;

  /// "exited with 7", "killed by signal 6", "hung"
  std::string end() const {
    if (hung) return "hung";
    return signal != 0 ? "killed by signal " + std::to_string(signal) : "exited with " + std::to_string(exit_code);
  }
};

/// Forks and runs code(parent) in the child, then _exit(0). Waits for the child, at most half a minute.
template <class Code>
Child in_child(Code&& code) {
  std::array<int, 2> ends{};
  if (pipe(ends.data()) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
  std::cout.flush();
  std::fflush(nullptr);
  const pid_t pid = fork();
  if (pid < 0) throw std::system_error(errno, std::generic_category(), "fork");
  if (pid == 0) {
    close(ends[0]);
    try {
      code(Parent{ends[1]});
    } catch (...) {
      _exit(98);
    }
    _exit(0);
  }
  close(ends[1]);
  Child child;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds{30};
  while (true) {  // until every copy of the child's end is closed: the child and all its children are gone
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(give_up - std::chrono::steady_clock::now());
    pollfd waiting{.fd = ends[0], .events = POLLIN, .revents = 0};
    if (left.count() <= 0 || poll(&waiting, 1, static_cast<int>(left.count())) == 0) {
      child.hung = true;
      kill(pid, SIGKILL);
      break;
    }
    std::array<char, 256> text{};
    const ssize_t length = read(ends[0], text.data(), text.size());
    if (length == 0) break;
    if (length > 0) child.told.append(text.data(), static_cast<std::size_t>(length));
  }
  close(ends[0]);
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (WIFEXITED(status)) child.exit_code = WEXITSTATUS(status);
  if (WIFSIGNALED(status)) child.signal = WTERMSIG(status);
  return child;
}

}  // namespace support

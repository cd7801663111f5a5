// A forked child that is always ended and reaped, and a pipe to talk to it.
#pragma once

#include <signal.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <type_traits>
#include <utility>

namespace demo {

class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int number) : number_(number) {}
  FileDescriptor(FileDescriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }
  ~FileDescriptor() { close(); }

  int number() const { return number_; }
  void close() {
    if (number_ >= 0) ::close(std::exchange(number_, -1));
  }

 private:
  int number_ = -1;
};

struct Pipe {
  FileDescriptor read_end;
  FileDescriptor write_end;

  Pipe() {
    int ends[2];
    if (::pipe(ends) != 0) throw std::system_error(errno, std::generic_category(), "pipe");
    read_end = FileDescriptor(ends[0]);
    write_end = FileDescriptor(ends[1]);
  }

  // A small value, in one piece. False if nobody can receive it any more (and SIGPIPE is ignored).
  template <class T>
  bool send(const T& value) const {
    static_assert(std::is_trivially_copyable_v<T> && sizeof value <= 512);  // what POSIX never splits
    ssize_t count;
    do {
      count = ::write(write_end.number(), &value, sizeof value);
    } while (count < 0 && errno == EINTR);
    return count == sizeof value;
  }

  // Waits for a value. False if none can come any more: nobody has the other end.
  template <class T>
  bool receive(T& value) const {
    static_assert(std::is_trivially_copyable_v<T> && sizeof value <= 512);
    ssize_t count;
    do {
      count = ::read(read_end.number(), &value, sizeof value);
    } while (count < 0 && errno == EINTR);
    return count == sizeof value;
  }
};

class ChildProcess {
 public:
  // Runs `body` in a child. Call it while the program has no threads but idle ones of pyarallel: a
  // forked child has only the thread that forked, and any lock another one held stays locked in it
  // for ever.
  template <class Body>
  explicit ChildProcess(Body body) : id_(::fork()) {
    if (id_ < 0) throw std::system_error(errno, std::generic_category(), "fork");
    if (id_ == 0) run_and_exit(body);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  ~ChildProcess() { kill(); }

  pid_t id() const { return id_; }

  // SIGKILL, which no process can catch. True if that is how it ended, false if it had ended before.
  bool kill() {
    if (!reaped_) {
      ::kill(id_, SIGKILL);
      while (::waitpid(id_, &status_, 0) < 0 && errno == EINTR) {
      }
      reaped_ = true;
    }
    return WIFSIGNALED(status_) && WTERMSIG(status_) == SIGKILL;
  }

 private:
  // _exit, not exit: what the parent registered to run at its end is not the child's to run.
  template <class Body>
  [[noreturn]] static void run_and_exit(Body& body) noexcept {
    try {
      body();
    } catch (...) {
      ::_exit(1);
    }
    ::_exit(0);
  }

  pid_t id_;
  int status_ = 0;
  bool reaped_ = false;
};

}  // namespace demo

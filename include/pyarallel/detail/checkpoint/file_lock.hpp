// One run at a time on one file, among all processes of this machine.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <filesystem>
#include <string>
#include <thread>

#include "pyarallel/detail/checkpoint/errors.hpp"
#include "pyarallel/detail/fmt.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

/// A lock on `<path>-lock`, a file that exists while it is held, and holds the number of the process. (A file of its
/// own: closing any descriptor of the database would drop the locks that SQLite has on it.)
///
/// flock() belongs to the open file: so it excludes other threads of this process too, and is gone with the process
/// and all the children that it forked meanwhile. Our own workers let go of it when they begin.
class FileLock {
 public:
  /// CheckpointError if somebody else has it, or if it cannot be made.
  explicit FileLock(const std::filesystem::path& path) : path_(path.string() + "-lock") {
    const auto start = std::chrono::steady_clock::now();
    while (!try_lock(path)) {
      const pid_t holder = read_holder();
      const auto waited = std::chrono::steady_clock::now() - start;
      // Children of a process that was killed may need a moment more to die.
      const bool orphaned = holder > 0 && ::kill(holder, 0) != 0 && errno == ESRCH;
      if (!orphaned || waited > std::chrono::seconds{2}) {
        throw checkpoint_error(path, "another run is using it{}; give each run a file of its own, or wait",
                               holder > 0 ? fmt::format(" (process {})", holder) : "");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds{1});
    }
    const std::string holder = fmt::format("{}\n", ::getpid());
    // For people, and for the error above: nothing depends on it.
    static_cast<void>(::ftruncate(file_.get(), 0) == 0 && ::pwrite(file_.get(), holder.data(), holder.size(), 0) >= 0);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  ~FileLock() {
    if (!file_) return;
    // Before it is unlocked: whoever locks it then sees that it is no longer the one.
    ::unlink(path_.c_str());
    ::flock(file_.get(), LOCK_UN);  // children may have copies
  }

  /// In a forked child: the parent has it.
  void leave_to_parent() noexcept { file_.reset(); }

 private:
  /// False if somebody else has it.
  bool try_lock(const std::filesystem::path& path) {
    while (true) {
      file_ = Descriptor{::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600)};
      if (!file_) throw cannot_lock(path, errno);
      struct stat opened {};
      if (::fstat(file_.get(), &opened) != 0) throw cannot_lock(path, errno);
      if (!S_ISREG(opened.st_mode)) throw checkpoint_error(path, "its lock {} is no regular file; remove it", path_);
      int locked = 0;
      do {
        locked = ::flock(file_.get(), LOCK_EX | LOCK_NB);
      } while (locked != 0 && errno == EINTR);
      if (locked != 0 && errno != EWOULDBLOCK) throw cannot_lock(path, errno);
      if (locked != 0) return false;
      // Whoever had it before may have removed it since it was opened here.
      struct stat named {};
      if (::lstat(path_.c_str(), &named) == 0 && named.st_ino == opened.st_ino && named.st_dev == opened.st_dev) {
        return true;
      }
    }
  }

  CheckpointError cannot_lock(const std::filesystem::path& path, int error) const {
    return checkpoint_error(path, "its lock {} cannot be had: {}", path_, text_of_errno(error));
  }

  pid_t read_holder() const noexcept {
    std::array<char, 32> text{};
    const ssize_t length = ::pread(file_.get(), text.data(), text.size(), 0);
    pid_t holder = 0;
    if (length > 0) std::from_chars(text.data(), text.data() + length, holder);
    return holder;
  }

  const std::string path_;
  Descriptor file_;
};

}  // namespace pyarallel::detail

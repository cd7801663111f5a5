// Memory that a process shares with the workers it forks, or with every process that knows its name.
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#define PYARALLEL_HAS_FORK 1
#else
#define PYARALLEL_HAS_FORK 0
#endif

// Without posix_fallocate a full disk would be a SIGBUS at the first access.
#if PYARALLEL_HAS_FORK && defined(_POSIX_SHARED_MEMORY_OBJECTS) && defined(_POSIX_ADVISORY_INFO)
#if _POSIX_SHARED_MEMORY_OBJECTS > 0 && _POSIX_ADVISORY_INFO > 0
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#define PYARALLEL_HAS_NAMED_MEMORY 1
#endif
#endif
#ifndef PYARALLEL_HAS_NAMED_MEMORY
#define PYARALLEL_HAS_NAMED_MEMORY 0
#endif

#include "pyarallel/detail/message.hpp"
#if PYARALLEL_HAS_NAMED_MEMORY
#include "pyarallel/detail/process/descriptor.hpp"
#endif

namespace pyarallel::detail {

#if PYARALLEL_HAS_FORK

/// A mapping without a name, zeroed, that forked processes share. Pages cost memory once they are touched.
class SharedMemory {
 public:
  SharedMemory() = default;
  /// std::system_error if there is no such memory to be had.
  explicit SharedMemory(std::size_t size) : size_(size) {
    void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      throw std::system_error(errno, std::generic_category(), "pyarallel: memory shared with worker processes");
    }
    data_ = static_cast<std::byte*>(memory);
  }
  SharedMemory(SharedMemory&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  SharedMemory& operator=(SharedMemory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~SharedMemory() {
    if (data_ != nullptr) ::munmap(data_, size_);
  }

  /// Its owner unmaps it from now on.
  std::byte* release() noexcept { return std::exchange(data_, nullptr); }

#if PYARALLEL_HAS_NAMED_MEMORY
  /// The memory that all processes of this user see under `name` ("/..."), made and zeroed if there is
  /// none; `size` is at most 4096. It stays until remove(). std::system_error if there is no such memory to
  /// be had, std::runtime_error if something else is there; that is left as it is.
  ///
  /// Several processes may be here at once, and each may be killed between any two lines: there is no
  /// lock, and whatever one leaves unfinished the next one completes.
  static SharedMemory named(const std::string& name, std::size_t size) {
    const Descriptor file{retried([&] { return ::shm_open(name.c_str(), O_RDWR | O_CREAT, S_IRUSR | S_IWUSR); })};
    if (!file) throw failed("cannot open", name, errno);  // it is closed on exec: POSIX says so
    const struct stat about = about_file(file.get(), name);
    if (!S_ISREG(about.st_mode)) throw refused(name, "is not a regular file");
    if (about.st_uid != ::geteuid()) throw refused(name, message({"belongs to the user ", about.st_uid}));
    if ((about.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
      throw refused(name, message({"is open to other users (mode ", octal(about.st_mode & 07777U), ")"}));
    }
    if (about.st_size > static_cast<off_t>(size)) throw refused(name, message({"has ", about.st_size, " bytes"}));
    if (about.st_size < static_cast<off_t>(size)) {
      // Whoever made it was killed before it had its size, or is about to give it its size. Not so if it
      // has content and is still too short after that was read.
      if (!blank(file.get(), name) && about_file(file.get(), name).st_size < static_cast<off_t>(size)) {
        throw refused(name, message({"has ", about.st_size, " bytes"}));
      }
      grow(file.get(), name, size);
    }
    SharedMemory memory;
    void* const mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    if (mapped == MAP_FAILED) throw failed("cannot map", name, errno);
    memory.data_ = static_cast<std::byte*>(mapped);
    memory.size_ = size;
    return memory;
  }

  /// False if there was none. Whoever has it mapped keeps it.
  static bool remove(const std::string& name) {
    if (::shm_unlink(name.c_str()) == 0) return true;
    if (errno == ENOENT) return false;
    throw failed("cannot remove", name, errno);
  }
#endif

  std::byte* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }

 private:
#if PYARALLEL_HAS_NAMED_MEMORY
  /// "0644"
  static std::string octal(unsigned mode) {
    std::string digits;
    for (unsigned shift = 12; shift > 0; shift -= 3) digits += static_cast<char>('0' + ((mode >> (shift - 3)) & 7U));
    return digits;
  }
  static std::system_error failed(const char* doing, const std::string& name, int error) {
    return {error, std::generic_category(), message({"pyarallel: ", doing, " the shared memory \"", name, "\""})};
  }
  static std::runtime_error refused(const std::string& name, const std::string& why) {
    return std::runtime_error(
        message({"pyarallel: the shared memory \"", name, "\" ", why, ": remove it or take another name"}));
  }

  template <class Call>
  static std::invoke_result_t<Call&> retried(Call call) {
    auto result = call();
    while (result < 0 && errno == EINTR) result = call();
    return result;
  }

  static struct stat about_file(int file, const std::string& name) {
    struct stat about {};
    if (::fstat(file, &about) != 0) throw failed("cannot look at", name, errno);
    return about;
  }

  static bool blank(int file, const std::string& name) {
    std::array<std::byte, 4096> start{};
    const auto length = retried([&] { return ::pread(file, start.data(), start.size(), 0); });
    if (length < 0) throw failed("cannot read", name, errno);
    return std::all_of(start.begin(), start.end(), [](std::byte b) { return b == std::byte{0}; });
  }

  // Several at once do no harm: what is there keeps its content.
  static void grow(int file, const std::string& name, std::size_t size) {
    rlimit limit{};  // beyond it there is not only an error but also a signal, SIGXFSZ, that ends the program
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < size) throw failed("cannot size", name, EFBIG);
    int error = EINTR;
    while (error == EINTR) error = ::posix_fallocate(file, 0, static_cast<off_t>(size));
    if (error != 0) throw failed("cannot size", name, error);
  }
#endif

  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

#else

/// Without processes there is nobody to share with: plain memory, zeroed.
class SharedMemory {
 public:
  SharedMemory() = default;
  explicit SharedMemory(std::size_t size)
      : data_(static_cast<std::byte*>(::operator new(size, alignment))), size_(size) {
    std::fill_n(data_.get(), size, std::byte{0});
  }

  std::byte* data() const noexcept { return data_.get(); }
  std::size_t size() const noexcept { return size_; }

 private:
  static constexpr std::align_val_t alignment{64};
  struct Delete {
    void operator()(std::byte* data) const noexcept { ::operator delete(data, alignment); }
  };

  std::unique_ptr<std::byte, Delete> data_;
  std::size_t size_ = 0;
};

#endif

}  // namespace pyarallel::detail

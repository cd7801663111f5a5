// Memory for results: raw, because R need not be default-constructible, and because touching fresh
// memory twice (once to zero it) costs more than many a function.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/process/shared_memory.hpp"

namespace pyarallel::detail {

enum class Fill { none, zero };

/// own: of this process. shared: with the workers that it forks later, zeroed.
enum class Memory { own, shared };

struct FreeMemory {
  std::size_t mapped = 0;  // bytes; 0: it came from malloc

  void operator()(void* memory) const noexcept {
#if PYARALLEL_HAS_FORK
    if (mapped > 0) {
      ::munmap(memory, mapped);
      return;
    }
#endif
    std::free(memory);
  }
};

/// Room for one object, which it does not own.
template <class T>
class RawPlace {
 public:
  RawPlace() = default;
  RawPlace(const RawPlace&) = delete;
  RawPlace& operator=(const RawPlace&) = delete;
  T* get() noexcept { return reinterpret_cast<T*>(storage_); }

 private:
  alignas(T) std::byte storage_[sizeof(T)];
};

/// Owns memory for objects, not the objects.
template <class T>
using RawArray = std::unique_ptr<T, FreeMemory>;

/// std::bad_array_new_length or std::bad_alloc. Zeroed memory of some size comes untouched from the kernel.
template <class T>
RawArray<T> allocate_raw(std::size_t count, Fill fill) {
  if (count > std::numeric_limits<std::size_t>::max() / 2 / sizeof(T)) throw std::bad_array_new_length();
  if (count == 0) return nullptr;
  void* memory = nullptr;
  if constexpr (alignof(T) > alignof(std::max_align_t)) {
    memory = std::aligned_alloc(alignof(T), count * sizeof(T));
  } else {
    memory = fill == Fill::zero ? std::calloc(count, sizeof(T)) : std::malloc(count * sizeof(T));
  }
  if (memory == nullptr) throw std::bad_alloc();
  return RawArray<T>{static_cast<T*>(memory)};
}

/// The same, shared with the workers that are forked later. std::system_error if there is no such memory.
template <class T>
RawArray<T> allocate_shared([[maybe_unused]] std::size_t count) {
#if PYARALLEL_HAS_FORK
  if (count > std::numeric_limits<std::size_t>::max() / 2 / sizeof(T)) throw std::bad_array_new_length();
  SharedMemory memory{count * sizeof(T)};
  const std::size_t size = memory.size();
  return RawArray<T>{reinterpret_cast<T*>(memory.release()), FreeMemory{size}};
#else
  throw std::bad_alloc();
#endif
}

/// Copies the bytes, and gives the memory that they came from back as it goes, where it can: so that there are never
/// two copies of much. What is left of it is fit to be freed, and nothing else.
inline void move_bytes(std::byte* to, std::byte* from, std::size_t size) noexcept {
#if PYARALLEL_HAS_FORK
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t step = 16 * page;
  const std::size_t before_first_page = (page - reinterpret_cast<std::uintptr_t>(from) % page) % page;
  for (std::size_t part = before_first_page; size > step; part = step) {
    std::memcpy(to, from, part);
    if (part == step) ::madvise(from, step, MADV_DONTNEED);
    to += part;
    from += part;
    size -= part;
  }
#endif
  std::memcpy(to, from, size);
}

/// Raw places 0, 1, 2, ... whose addresses never change while it grows. One thread grows it; others
/// may use the places that they were told of since.
template <class T, Fill fill = Fill::none>
class GrowingArray {
 public:
  /// With the size known there is one block, and nothing ever moves.
  explicit GrowingArray(std::size_t known_size = 0, Memory memory = Memory::own)
      : first_size_(std::max<std::size_t>(known_size, 64)) {
    if (known_size > 0) {
      first_ = memory == Memory::shared ? allocate_shared<T>(known_size) : allocate_raw<T>(known_size, fill);
      capacity_ = known_size;
    }
  }

  bool has(std::size_t index) const noexcept { return index < capacity_; }

  void grow_to(std::size_t size) {
    while (capacity_ < size) grow();
  }

  T* at(std::size_t index) const noexcept {
    if (index < first_size_) return first_.get() + index;
    // Further block k holds [first * 2^k, first * 2^(k+1)).
    const auto block = static_cast<std::size_t>(std::bit_width(index / first_size_)) - 1;
    return (*further_)[block].get() + (index - (first_size_ << block));
  }

  /// The places 0 to size-1 in one piece. `alive(i)` says which hold an object: those are moved if
  /// they have to. If a move throws, all objects are as they were (some moved from).
  template <class Alive>
  RawArray<T> release_contiguous(std::size_t size, Alive&& alive) {
    if (!further_) return std::move(first_);
    RawArray<T> whole = allocate_raw<T>(size, fill);
    if constexpr (std::is_trivially_copyable_v<T>) {
      for (std::size_t done = 0, block = first_size_; done < size; done += block) {
        if (done > 0) block = done;
        move_bytes(reinterpret_cast<std::byte*>(whole.get() + done), reinterpret_cast<std::byte*>(at(done)),
                   std::min(block, size - done) * sizeof(T));
      }
    } else {
      std::size_t done = 0;
      try {
        for (; done < size; ++done) {
          if (alive(done)) std::construct_at(whole.get() + done, std::move(*at(done)));
        }
      } catch (...) {
        while (done-- > 0) {
          if (alive(done)) std::destroy_at(whole.get() + done);
        }
        throw;
      }
      destroy(size, alive);
    }
    first_.reset();
    further_.reset();
    capacity_ = 0;
    return whole;
  }

  /// Destroys the objects in the places 0 to size-1.
  template <class Alive>
  void destroy(std::size_t size, Alive&& alive) noexcept {
    if constexpr (!std::is_trivially_destructible_v<T>) {
      for (std::size_t i = 0; i < size; ++i) {
        if (alive(i)) std::destroy_at(at(i));
      }
    }
  }

 private:
  using Blocks = std::array<RawArray<T>, 64>;

  void grow() {
    if (capacity_ == 0) {
      first_ = allocate_raw<T>(first_size_, fill);
      capacity_ = first_size_;
      return;
    }
    if (!further_) further_ = std::make_unique<Blocks>();
    // As large as all before it.
    (*further_)[static_cast<std::size_t>(std::bit_width(capacity_ / first_size_)) - 1] =
        allocate_raw<T>(capacity_, fill);
    capacity_ *= 2;
  }

  std::size_t first_size_;
  std::size_t capacity_ = 0;
  RawArray<T> first_;
  std::unique_ptr<Blocks> further_;  // of fixed size, for others read it while it fills
};

}  // namespace pyarallel::detail

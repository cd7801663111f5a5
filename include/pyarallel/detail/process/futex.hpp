// Sleeping until another process changes a word of shared memory.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <thread>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#endif

namespace pyarallel::detail {

using Word = std::atomic<std::uint32_t>;
static_assert(Word::is_always_lock_free && sizeof(Word) == 4);

/// Sleeps while `word` is `value`, until it is `due`, or somebody calls wake(word). May return early.
inline void wait_while(Word& word, std::uint32_t value, TimePoint due = TimePoint::max()) noexcept {
#if defined(__linux__)
  timespec time{};
  const timespec* until = nullptr;
  if (due != TimePoint::max()) {
    const auto since_boot = std::max(due.time_since_epoch(), Duration::zero());
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(since_boot);
    time.tv_sec = static_cast<time_t>(seconds.count());
    time.tv_nsec = static_cast<long>((since_boot - seconds).count());
    until = &time;
  }
  // BITSET, for its time is a moment and not a length; not PRIVATE, for others share the word.
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT_BITSET, value, until, nullptr,
            FUTEX_BITSET_MATCH_ANY);
#else
  // No such call: look again every now and then.
  const auto slice = std::chrono::steady_clock::now() + std::chrono::milliseconds{1};
  if (word.load() == value) std::this_thread::sleep_until(std::min<TimePoint>(slice, due));
#endif
}

/// Wakes up to `most` of those that wait on `word`.
inline void wake(Word& word, int most = INT_MAX) noexcept {
#if defined(__linux__)
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE, most, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
  static_cast<void>(most);
#endif
}

}  // namespace pyarallel::detail

// Looking out for something that is likely to happen sooner than a sleeping thread would wake up.
#pragma once

#include <chrono>
#include <mutex>

namespace pyarallel::detail {

inline void pause_cpu() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#endif
}

/// Looks at `happened()` for at most 50 us: what it said last.
template <class Happened>
bool spin_until(Happened&& happened) {
  using clock = std::chrono::steady_clock;
  for (const auto until = clock::now() + std::chrono::microseconds{50}; clock::now() < until;) {
    for (int i = 0; i < 16; ++i) {
      if (happened()) return true;
      pause_cpu();
    }
  }
  return happened();
}

/// A mutex that is never locked for long: sleeping for it would take longer than it stays locked.
inline std::unique_lock<std::mutex> lock_soon(std::mutex& mutex) {
  std::unique_lock lock{mutex, std::try_to_lock};
  for (int i = 0; i < 64 && !lock.owns_lock(); ++i) {
    pause_cpu();
    lock.try_lock();
  }
  if (!lock.owns_lock()) lock.lock();
  return lock;
}

}  // namespace pyarallel::detail

// How far a run has come. Workers in other processes read it, so it may lie in memory shared with them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace pyarallel::detail {

/// `failed`: an exception of the source, a key function, a callback or worker_init leaves the call.
enum class StopReason : std::uint32_t { none, timed_out, aborted, cancelled, failed };

/// open: items are admitted. closed: those admitted go on. stopped: they should come to an end.
enum class Phase : std::uint32_t { open, closed, stopped };

struct RunState {
  std::atomic<std::uint32_t> phase{0};  // a Phase; a plain word, because workers sleep on it
  std::atomic<StopReason> reason{StopReason::none};
  std::atomic<std::size_t> failures{0};  // for workers that must not go on after max_errors
};

}  // namespace pyarallel::detail

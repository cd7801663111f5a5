// The words in which runs and items are spoken of.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stop_token>
#include <string>
#include <string_view>
#include <variant>

namespace pyarallel {

/// How a run ended. `completed`: the source was exhausted and every item resolved (items may have
/// failed). The other three are truncations.
enum class RunStatus { completed, timed_out, aborted, cancelled };

/// An item's application identity (never its position). monostate: none given.
using ItemKey = std::variant<std::monostate, std::int64_t, std::string>;

/// What a running item may ask about itself: `fn` is called as fn(item) or fn(item, task).
struct Task {
  std::size_t index = 0;      ///< Position in the input.
  int attempt = 1;            ///< 1-based.
  std::size_t worker = 0;     ///< 0 <= worker < workers.
  std::stop_token stop = {};  ///< Requested on timeout, task_timeout, stop, abort.
};

namespace detail {

constexpr std::string_view name_of(RunStatus status) noexcept {
  switch (status) {
    case RunStatus::completed:
      return "completed";
    case RunStatus::timed_out:
      return "timed_out";
    case RunStatus::aborted:
      return "aborted";
    case RunStatus::cancelled:
      return "cancelled";
  }
  return "unknown";
}

}  // namespace detail
}  // namespace pyarallel

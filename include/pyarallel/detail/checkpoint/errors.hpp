// What can be wrong with a checkpoint file, as text that says which file, and what to do.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "pyarallel/detail/fmt.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

/// "checkpoint run.ckpt: what is wrong"
template <class... Args>
CheckpointError checkpoint_error(const std::filesystem::path& path, fmt::format_string<Args...> what, Args&&... args) {
  return CheckpointError("checkpoint " + path.string() + ": " + fmt::format(what, std::forward<Args>(args)...));
}

inline CheckpointError no_checkpoint(const std::filesystem::path& path) {
  return checkpoint_error(
      path, "this is no checkpoint, but perhaps another application's file; it is left as it is, use another name");
}

inline CheckpointError damaged(const std::filesystem::path& path, std::string_view how) {
  return checkpoint_error(path, "it is damaged ({}); restore it from a copy, or delete it to compute everything again",
                          how);
}

inline CheckpointError damaged_row(const std::filesystem::path& path, std::int64_t id) {
  return damaged(path, fmt::format("row {} is not as it was written", id));
}

/// "No such file or directory"
inline std::string text_of_errno(int error) { return std::generic_category().message(error); }

}  // namespace pyarallel::detail

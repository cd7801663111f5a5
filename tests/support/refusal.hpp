// What a checkpoint is refused with.
#pragma once

#include <string>

#include "pyarallel/error.hpp"

namespace support {

/// What the code throws as CheckpointError; empty if it throws none.
template <class Code>
std::string refusal(Code code) {
  try {
    code();
  } catch (const pyarallel::CheckpointError& error) {
    return error.what();
  }
  return {};
}

}  // namespace support

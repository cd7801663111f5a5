// Where the programs that measure checkpoints put their file.
#pragma once

#include <cstdint>
#include <filesystem>

#include "../../support/folder.hpp"

namespace bench {

/// The name of a file that does not exist, in a folder of its own; it goes with its folder in the end. On the disk of
/// $TMPDIR, or of /tmp.
class CheckpointFile {
 public:
  std::filesystem::path path() const { return folder_ / "run.ckpt"; }
  std::uintmax_t size() const { return std::filesystem::file_size(path()); }

 private:
  support::Folder folder_;
};

}  // namespace bench

// Where the programs that measure checkpoints put their file.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <string>

#include "peer.hpp"

namespace bench {

/// The name of a file that does not exist, in a folder of its own; it goes with its folder in the end. On the disk of
/// $TMPDIR, or of /tmp.
class CheckpointFile {
 public:
  CheckpointFile() {
    std::string name = (std::filesystem::temp_directory_path() / "pyarallel_bench-XXXXXX").string();
    check(::mkdtemp(name.data()) != nullptr, "no temporary folder can be made");
    folder_ = name;
  }
  CheckpointFile(const CheckpointFile&) = delete;
  CheckpointFile& operator=(const CheckpointFile&) = delete;
  ~CheckpointFile() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }

  std::filesystem::path path() const { return folder_ / "run.ckpt"; }
  std::uintmax_t size() const { return std::filesystem::file_size(path()); }

 private:
  std::filesystem::path folder_;
};

}  // namespace bench

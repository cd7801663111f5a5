// The digest of a file, the files below a directory, and how to print their names.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "sha256.hpp"

namespace demo {

namespace fs = std::filesystem;

struct FileDigest {
  Sha256::Digest digest;
  std::uintmax_t size;
};

// The function that is mapped. It throws for a file that cannot be read; the others do not notice.
inline FileDigest digest_file(const fs::path& path) {
  const auto fail = [] { throw std::system_error(errno, std::generic_category(), "cannot read"); };
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"), close);
  if (!file) fail();

  Sha256 sha;
  std::uintmax_t size = 0;
  std::vector<std::uint8_t> buffer(64 * 1024);
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), file.get())) {
    sha.add(std::span(buffer).first(count));
    size += count;
  }
  if (std::ferror(file.get()) != 0) fail();
  return {.digest = sha.finish(), .size = size};
}

// Regular files, sorted, and whatever cannot be looked at: a broken link or a closed directory is
// in the list too, so that it fails by name in the map. Links to directories are not followed.
inline std::vector<fs::path> files_below(const fs::path& top) {
  std::vector<fs::path> files;
  std::vector<fs::path> directories = {top};
  while (!directories.empty()) {
    const fs::path directory = std::move(directories.back());
    directories.pop_back();
    std::error_code error;
    fs::directory_iterator entry(directory, error);
    for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
      std::error_code unknown;
      const bool link = entry->is_symlink(unknown);
      const fs::file_type type = entry->status(unknown).type();
      if (type == fs::file_type::directory) {
        if (!link) directories.push_back(entry->path());
      } else if (type == fs::file_type::regular || type == fs::file_type::not_found || unknown) {
        files.push_back(entry->path());
      }
    }
    if (error) files.push_back(directory);
  }
  std::ranges::sort(files);
  return files;
}

// File names may hold anything but '/' and 0; a terminal should see none of its control characters.
inline std::string printable(const fs::path& path) {
  std::string text = path.string();
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; }, '?');
  return text;
}

inline fs::path compiler_headers() {
  for (const char* directory : {"/usr/include/c++", "/usr/include"}) {
    if (fs::is_directory(directory)) return directory;
  }
  throw std::runtime_error("this machine has no /usr/include: give a directory as the argument");
}

}  // namespace demo

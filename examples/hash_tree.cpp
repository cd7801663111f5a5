// hash_tree [DIRECTORY]: the SHA-256 of every file below a directory, on all CPUs.
//
// Real files, real failures: a file that cannot be read costs that file only, and is listed with
// its error. The same work is done in threads and sequentially; both must give the same digest, or
// the exit status is not 0.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <memory>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "support/sha256.hpp"

namespace fs = std::filesystem;

namespace {

struct FileDigest {
  demo::Sha256::Digest digest;
  std::uintmax_t size;
};

// The function that is mapped. It throws for a file that cannot be read; the others do not notice.
FileDigest digest_file(const fs::path& path) {
  const auto fail = [] { throw std::system_error(errno, std::generic_category(), "cannot read"); };
  const auto close = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close)> file(std::fopen(path.c_str(), "rb"), close);
  if (!file) fail();

  demo::Sha256 sha;
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
std::vector<fs::path> files_below(const fs::path& top) {
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

using Result = pyarallel::MapResult<FileDigest>;

// One digest for the whole tree: over each file's name, and its digest or the fact that it has none.
std::string combined_digest(const std::vector<fs::path>& files, const fs::path& top, const Result& result) {
  std::vector<std::string> contents(files.size(), "unreadable");
  for (const auto& [index, file] : result.successes()) contents[index] = demo::hexadecimal(file.digest);

  demo::Sha256 sha;
  for (std::size_t i = 0; i < files.size(); ++i) {
    sha.add(fmt::format("{}  {}\n", contents[i], files[i].lexically_relative(top).string()));
  }
  return demo::hexadecimal(sha.finish());
}

std::uintmax_t total_bytes(const Result& result) {
  std::uintmax_t bytes = 0;
  for (const auto& success : result.successes()) bytes += success.value.size;
  return bytes;
}

// File names may hold anything but '/' and 0; a terminal should see none of its control characters.
std::string printable(const fs::path& path) {
  std::string text = path.string();
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < 32 || c == 127; }, '?');
  return text;
}

void print_failures(const std::vector<fs::path>& files, const fs::path& top, const Result& result) {
  constexpr std::size_t most = 20;
  const auto failures = result.failures();
  for (const auto& failure : failures.first(std::min(most, failures.size()))) {
    const fs::path name = files[failure.index].lexically_relative(top);
    fmt::print("   {}\n      {}: {}\n", printable(name), failure.error.type_name(), failure.error.what());
  }
  if (failures.size() > most) fmt::print("   and {} more\n", failures.size() - most);
}

struct Timing {
  std::string digest;
  double seconds;
};

// Runs `map` and takes its time; the best of three, because other programs use this machine too.
template <class Map>
Timing best_of_three(const std::vector<fs::path>& files, const fs::path& top, Map map) {
  Timing best = {.digest = {}, .seconds = 0};
  for (int round = 0; round < 3; ++round) {
    const auto start = std::chrono::steady_clock::now();
    const Result result = map();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (round == 0 || seconds < best.seconds) best.seconds = seconds;
    best.digest = combined_digest(files, top, result);
  }
  return best;
}

void print_timing(std::string_view name, const Timing& timing, std::size_t files, std::uintmax_t bytes) {
  fmt::print("   {:<12}{:>10.3f}{:>12.0f}{:>10.1f}   {}\n", name, timing.seconds,
             static_cast<double>(files) / timing.seconds, static_cast<double>(bytes) / 1e6 / timing.seconds,
             timing.digest.substr(0, 16));
}

int hash_tree(const fs::path& top) {
  const std::vector<fs::path> files = files_below(top);
  if (files.empty()) throw std::runtime_error("there is no file below " + printable(top));
  fmt::print("{}: {} files\n\n", printable(top), files.size());

  const Result result = pyarallel::parallel_map(digest_file, files, {.on_progress = pyarallel::ProgressBar{"files"}});

  const std::uintmax_t bytes = total_bytes(result);
  fmt::print("   {} files hashed, {} bytes; {} failed\n", result.successes().size(), bytes, result.failures().size());
  print_failures(files, top, result);

  // The run above has brought the files into memory, so these two differ in nothing but the CPUs.
  const Timing sequential = best_of_three(files, top, [&] {
    return pyarallel::parallel_map(digest_file, files, {.executor = pyarallel::Executor::sequential});
  });
  const Timing threads = best_of_three(files, top, [&] { return pyarallel::parallel_map(digest_file, files); });

  const std::size_t readable = result.successes().size();
  fmt::print("\n   {:<12}{:>10}{:>12}{:>10}   {}\n", "", "seconds", "files/s", "MB/s", "digest");
  print_timing("sequential", sequential, readable, bytes);
  print_timing("threads", threads, readable, bytes);
  fmt::print("   {:.1f} times as fast, on {} CPUs\n\n", sequential.seconds / threads.seconds,
             pyarallel::available_parallelism());

  const bool same = sequential.digest == threads.digest && threads.digest == combined_digest(files, top, result);
  fmt::print("   {:<6}  threads and sequential give the same digest\n", same ? "ok" : "FAILED");
  return same ? 0 : 1;
}

// Wrong digests would agree with each other: hold the function against the standard's own example.
void check_sha256() {
  constexpr std::string_view expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
  if (demo::hexadecimal(demo::Sha256().add("abc").finish()) != expected) {
    throw std::logic_error("SHA-256 is wrong in this build: its digest of \"abc\" is not the standard's");
  }
}

fs::path compiler_headers() {
  for (const char* directory : {"/usr/include/c++", "/usr/include"}) {
    if (fs::is_directory(directory)) return directory;
  }
  throw std::runtime_error("this machine has no /usr/include: give a directory as the argument");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    check_sha256();
    const fs::path top = argc > 1 ? fs::path(argv[1]) : compiler_headers();
    if (!fs::is_directory(top)) throw std::runtime_error(printable(top) + " is not a directory");
    return hash_tree(top);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "hash_tree: {}\nusage: hash_tree [DIRECTORY]\n", error.what());
    return 2;
  }
}

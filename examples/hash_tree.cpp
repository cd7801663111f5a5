// hash_tree [DIRECTORY]: the SHA-256 of every file below a directory, on all CPUs.
//
// Real files, real failures: a file that cannot be read costs that file only, and is listed with
// its error. The same work is done in threads and sequentially; both must give the same digest, or
// the exit status is not 0.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/files.hpp"
#include "support/sha256.hpp"

namespace fs = std::filesystem;

namespace {

using Result = pyarallel::MapResult<demo::FileDigest>;

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

void print_failures(const std::vector<fs::path>& files, const fs::path& top, const Result& result) {
  constexpr std::size_t most = 20;
  const auto failures = result.failures();
  for (const auto& failure : failures.first(std::min(most, failures.size()))) {
    const fs::path name = files[failure.index].lexically_relative(top);
    fmt::print("   {}\n      {}: {}\n", demo::printable(name), failure.error.type_name(), failure.error.what());
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
  const std::vector<fs::path> files = demo::files_below(top);
  if (files.empty()) throw std::runtime_error("there is no file below " + demo::printable(top));
  fmt::print("{}: {} files\n\n", demo::printable(top), files.size());

  const Result result =
      pyarallel::parallel_map(demo::digest_file, files, {.on_progress = pyarallel::ProgressBar{"files"}});

  const std::uintmax_t bytes = total_bytes(result);
  fmt::print("   {} files hashed, {} bytes; {} failed\n", result.successes().size(), bytes, result.failures().size());
  print_failures(files, top, result);

  // The run above has brought the files into memory, so these two differ in nothing but the CPUs.
  const Timing sequential = best_of_three(files, top, [&] {
    return pyarallel::parallel_map(demo::digest_file, files, {.executor = pyarallel::Executor::sequential});
  });
  const Timing threads = best_of_three(files, top, [&] { return pyarallel::parallel_map(demo::digest_file, files); });

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

}  // namespace

int main(int argc, char** argv) {
  try {
    check_sha256();
    const fs::path top = argc > 1 ? fs::path(argv[1]) : demo::compiler_headers();
    if (!fs::is_directory(top)) throw std::runtime_error(demo::printable(top) + " is not a directory");
    return hash_tree(top);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "hash_tree: {}\nusage: hash_tree [DIRECTORY]\n", error.what());
    return 2;
  }
}

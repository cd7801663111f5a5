// cluster_hash [DIRECTORY]: the SHA-256 of every file below a directory, on all machines of an MPI job.
//
//     mpirun -n 3 --host one:1,two:1,three:1 cluster_hash /usr/include    # rank 0 hands out, the others work
//     cluster_hash /usr/include                                          # one machine, no MPI
//
// Every machine needs the files under the same path. One item more than there are files kills the process that works on
// it, as a file would that crashes its parser: that costs this item, and nothing else.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <pyarallel.hpp>
#include <pyarallel/mpi.hpp>
#include <pyarallel/progress.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/files.hpp"
#include "support/sha256.hpp"

namespace fs = std::filesystem;

namespace {

// What comes back for each file, and from where: std::string and std::array have a Codec, and so has this.
struct HashedFile {
  demo::Sha256::Digest digest;
  std::uintmax_t size;
  std::string host;
  int rank;
  int process;
};

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "?";
}

constexpr const char* crashes = "(a file that crashes its parser)";

void print_shares(const pyarallel::MapResult<HashedFile>& result, double seconds) {
  struct Share {
    std::size_t files = 0;
    std::uintmax_t bytes = 0;
    std::map<int, std::size_t> processes;
  };
  std::map<std::pair<std::string, int>, Share> shares;
  for (const auto& [index, file] : result.successes()) {
    Share& share = shares[{file.host, file.rank}];
    ++share.files;
    share.bytes += file.size;
    ++share.processes[file.process];
  }
  fmt::print("\n   {:<20}{:>6}{:>12}{:>10}{:>12}{:>10}\n", "host", "rank", "processes", "files", "files/s", "MB/s");
  for (const auto& [where, share] : shares) {
    fmt::print("   {:<20}{:>6}{:>12}{:>10}{:>12.0f}{:>10.1f}\n", where.first, where.second, share.processes.size(),
               share.files, static_cast<double>(share.files) / seconds,
               static_cast<double>(share.bytes) / 1e6 / seconds);
  }
}

bool claim(bool holds, const std::string& what) {
  fmt::print("   {:<6}  {}\n", holds ? "ok" : "FAILED", what);
  return holds;
}

int cluster_hash(pyarallel::mpi::Cluster& cluster, const fs::path& top) {
  const std::string host = host_name();
  const auto hash = [&](const std::string& path) {
    if (path == crashes) std::raise(SIGSEGV);
    const demo::FileDigest file = demo::digest_file(path);
    return HashedFile{file.digest, file.size, host, cluster.rank(), static_cast<int>(getpid())};
  };
  if (cluster.serve(hash)) return 0;  // the other ranks work in here

  std::vector<std::string> paths;
  for (const fs::path& path : demo::files_below(top)) paths.push_back(path.string());
  const std::size_t bad = paths.size() / 2;
  paths.insert(paths.begin() + static_cast<std::ptrdiff_t>(bad), crashes);
  fmt::print("{}: {} files, {} ranks, {} worker processes\n\n", demo::printable(top), paths.size() - 1, cluster.size(),
             cluster.slots());

  const auto start = std::chrono::steady_clock::now();
  const auto result =
      pyarallel::parallel_map(hash, paths, {.executor = cluster, .on_progress = pyarallel::ProgressBar{"files"}});
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  print_shares(result, seconds);
  fmt::print("\n");

  bool all = claim(result.complete(), "every item has an outcome");
  std::size_t wrong = 0;
  for (const auto& [index, file] : result.successes()) {
    wrong += file.digest == demo::digest_file(paths[index]).digest ? 0 : 1;
  }
  all = claim(wrong == 0, "the digests are those that this machine computes") && all;
  bool crashed = false;
  for (const auto& [index, error] : result.failures()) {
    if (index == bad) crashed = error.is<pyarallel::WorkerCrashed>();
    if (index == bad) fmt::print("           {}: {}\n", paths[index], error.what());
  }
  all = claim(crashed, "the process that crashed cost its item, and nothing else") && all;
  return all ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    pyarallel::mpi::Cluster cluster{argc, argv, {.processes_per_rank = 2}};
    const fs::path top = argc > 1 ? fs::path(argv[1]) : demo::compiler_headers();
    if (!fs::is_directory(top)) throw std::runtime_error(demo::printable(top) + " is not a directory");
    return cluster_hash(cluster, top);
  } catch (const std::exception& error) {
    std::fflush(stdout);
    fmt::print(stderr, "cluster_hash: {}\nusage: cluster_hash [DIRECTORY]\n", error.what());
    return 2;
  }
}

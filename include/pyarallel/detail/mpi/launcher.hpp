// What the program that started this one says of the job, before MPI is initialised.
#pragma once

#include <cstdlib>
#include <optional>
#include <string>

namespace pyarallel::detail {

struct Launch {
  bool launched = false;  // by a launcher of MPI programs: MPI_Init would find others, or at least that launcher
  std::optional<int> rank;
  std::optional<int> size;

  /// There is nobody else.
  bool alone() const noexcept { return !launched || size == 1; }
};

inline std::optional<int> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr || *text == '\0') return std::nullopt;
  char* end = nullptr;
  const long number = std::strtol(text, &end, 10);
  if (*end != '\0' || number < 0 || number > 1'000'000'000) return std::nullopt;
  return static_cast<int>(number);
}

/// Open MPI, MPICH and its kin (hydra, Slurm's pmi2), and PMIx (Slurm, newer Open MPI and MPICH).
inline Launch launch_of_this_process() {
  Launch launch;
  for (const char* const name : {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}) {
    if (!launch.rank) launch.rank = number_in_environment(name);
  }
  for (const char* const name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}) {
    if (!launch.size) launch.size = number_in_environment(name);
  }
  launch.launched = launch.rank || launch.size;
  return launch;
}

}  // namespace pyarallel::detail

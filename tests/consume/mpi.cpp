// A call on the ranks of an MPI job, if this is one.
#include <cstddef>
#include <pyarallel.hpp>
#include <pyarallel/mpi.hpp>
#include <vector>

int main(int argc, char** argv) {
  pyarallel::mpi::Cluster cluster{argc, argv, {.threads_per_rank = 2}};
  const auto square = [](int n) { return n * n; };
  if (cluster.serve(square)) return 0;
  const std::vector<int> numbers{1, 2, 3};
  const auto result = pyarallel::parallel_map(square, numbers, {.executor = cluster});
  return result.values()[2] == 9 &&
                 cluster.slots() == 2 * static_cast<std::size_t>(cluster.size() - (cluster.size() > 1))
             ? 0
             : 1;
}

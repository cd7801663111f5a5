// The algorithms of the standard library, which g++ runs on oneTBB.
#include <algorithm>
#include <execution>

#include "peer.hpp"
#include "tbb_threads.hpp"

namespace {

class Transform {
 public:
  explicit Transform(std::size_t workers) : threads_(workers) {}

  template <class F>
  std::vector<std::int64_t> map(F fn, bench::Input input) {
    std::vector<std::int64_t> results(input.size());
    map_into(fn, input, results);
    return results;
  }

  template <class F>
  void map_into(F fn, bench::Input input, bench::Output results) {
    threads_.run([&] { std::transform(std::execution::par, input.begin(), input.end(), results.begin(), fn); });
  }

 private:
  bench::TbbThreads threads_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<Transform>(program, "std::execution::par");
  bench::add_blocked<Transform>(program, "std::execution::par");
  return program.main(argc, argv);
}

// fork_union: an even split, or one by one. Its threads spin between calls, and never sleep.
// PYARALLEL_FORK_UNION: the folder that has fork_union.hpp.
#define FU_ENABLE_NUMA 0  // else it needs libnuma
#include <fork_union.hpp>

#include "peer.hpp"

namespace {

template <bool dynamic>
class Loop {
 public:
  explicit Loop(std::size_t workers) { bench::check(pool_.try_spawn(workers), "the pool"); }

  template <class Body>
  void each(std::size_t count, Body body) {
    const auto run = [&body](std::size_t i) noexcept { body(i); };
    if constexpr (dynamic) {
      pool_.for_n_dynamic(count, run);
    } else {
      pool_.for_n(count, run);
    }
  }

 private:
  ashvardanian::fork_union::basic_pool_t pool_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Loop<false>>>(program, "fork_union static");
  bench::add_maps<bench::LoopPeer<Loop<true>>>(program, "fork_union dynamic");
  bench::add_blocked<bench::LoopPeer<Loop<true>>>(program, "fork_union dynamic");
  return program.main(argc, argv);
}

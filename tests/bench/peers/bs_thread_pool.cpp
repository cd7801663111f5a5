// BS::thread_pool: a loop in as many blocks as there are workers, as it chooses itself, or in eight for each.
// PYARALLEL_BS_THREAD_POOL: the folder that has BS_thread_pool.hpp.
#include <BS_thread_pool.hpp>

#include "peer.hpp"

namespace {

template <std::size_t blocks_of_each>
class Loop {
 public:
  explicit Loop(std::size_t workers) : workers_(workers), pool_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    const auto run = [&body](std::size_t i) { body(i); };
    pool_.submit_loop(std::size_t{0}, count, run, blocks_of_each * workers_).wait();
  }

 private:
  std::size_t workers_;
  BS::thread_pool<> pool_;
};

template <std::size_t blocks_of_each>
void add(bench::Program& program, const char* variant) {
  bench::add_maps<bench::LoopPeer<Loop<blocks_of_each>>>(program, variant);
  bench::add_blocked<bench::LoopPeer<Loop<blocks_of_each>>>(program, variant);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  add<1>(program, "BS::thread_pool");
  add<8>(program, "BS::thread_pool, 8 blocks each");
  return program.main(argc, argv);
}

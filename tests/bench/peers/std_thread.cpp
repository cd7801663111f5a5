// Threads started in each call, each with its part of the items; the calling thread has one too.
#include <thread>

#include "peer.hpp"

namespace {

class Threads {
 public:
  explicit Threads(std::size_t workers) : workers_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    const auto run_part = [&](std::size_t worker) {
      const std::size_t last = count * (worker + 1) / workers_;
      for (std::size_t i = count * worker / workers_; i < last; ++i) body(i);
    };
    std::vector<std::thread> threads;
    for (std::size_t worker = 1; worker < workers_; ++worker) threads.emplace_back(run_part, worker);
    run_part(0);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  std::size_t workers_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Threads>>(program, "std::thread");
  bench::add_blocked<bench::LoopPeer<Threads>>(program, "std::thread");
  return program.main(argc, argv);
}

// Taskflow: for_each_index, with the partitioner that it takes by default. PYARALLEL_TASKFLOW: the folder that has
// taskflow/taskflow.hpp.
#include <taskflow/algorithm/for_each.hpp>
#include <taskflow/taskflow.hpp>

#include "peer.hpp"

namespace {

class Loop {
 public:
  explicit Loop(std::size_t workers) : executor_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    tf::Taskflow flow;
    flow.for_each_index(std::size_t{0}, count, std::size_t{1}, [&body](std::size_t i) { body(i); });
    executor_.run(flow).wait();
  }

 private:
  tf::Executor executor_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Loop>>(program, "Taskflow");
  bench::add_blocked<bench::LoopPeer<Loop>>(program, "Taskflow");
  return program.main(argc, argv);
}

// OpenMP, with each of its schedules. Its threads spin between calls, as they do unless they are told not to.
#include <omp.h>

#include "peer.hpp"

namespace {

enum class Schedule { even, dynamic, guided };

template <Schedule schedule>
class Loop {
 public:
  explicit Loop(std::size_t workers) : workers_(static_cast<int>(workers)) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    if constexpr (schedule == Schedule::even) {
#pragma omp parallel for schedule(static) num_threads(workers_)
      for (std::size_t i = 0; i < count; ++i) body(i);
    } else if constexpr (schedule == Schedule::dynamic) {
#pragma omp parallel for schedule(dynamic) num_threads(workers_)
      for (std::size_t i = 0; i < count; ++i) body(i);
    } else {
#pragma omp parallel for schedule(guided) num_threads(workers_)
      for (std::size_t i = 0; i < count; ++i) body(i);
    }
  }

 private:
  int workers_;
};

template <Schedule schedule>
void add(bench::Program& program, const char* variant) {
  bench::add_maps<bench::LoopPeer<Loop<schedule>>>(program, variant);
  bench::add_blocked<bench::LoopPeer<Loop<schedule>>>(program, variant);
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  add<Schedule::even>(program, "OpenMP static");
  add<Schedule::dynamic>(program, "OpenMP dynamic");
  add<Schedule::guided>(program, "OpenMP guided");
  return program.main(argc, argv);
}

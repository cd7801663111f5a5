// libfork: for_each, halved down to pieces of which every worker could have 64. PYARALLEL_LIBFORK: the folder that
// has libfork.hpp.
#include <libfork.hpp>
#include <ranges>

#include "peer.hpp"

namespace {

class Loop {
 public:
  explicit Loop(std::size_t workers) : workers_(workers), pool_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    const auto indices = std::views::iota(std::size_t{0}, count);
    const auto piece = static_cast<std::ptrdiff_t>(std::max<std::size_t>(count / (64 * workers_), 1));
    lf::sync_wait(pool_, lf::for_each, indices.begin(), indices.end(), piece, [&body](std::size_t i) { body(i); });
  }

 private:
  std::size_t workers_;
  lf::lazy_pool pool_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Loop>>(program, "libfork");
  bench::add_blocked<bench::LoopPeer<Loop>>(program, "libfork");
  return program.main(argc, argv);
}

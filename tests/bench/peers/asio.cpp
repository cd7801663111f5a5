// Boost.Asio's thread pool: it takes functions, so the items are cut into blocks here, eight for each worker.
#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <latch>

#include "peer.hpp"

namespace {

class Blocks {
 public:
  explicit Blocks(std::size_t workers) : workers_(workers), pool_(workers) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    const std::size_t blocks = std::min(8 * workers_, count);
    std::latch done{static_cast<std::ptrdiff_t>(blocks)};
    for (std::size_t block = 0; block < blocks; ++block) {
      boost::asio::post(pool_, [&, block] {
        for (std::size_t i = count * block / blocks; i < count * (block + 1) / blocks; ++i) body(i);
        done.count_down();
      });
    }
    done.wait();
  }

 private:
  std::size_t workers_;
  boost::asio::thread_pool pool_;
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Blocks>>(program, "Boost.Asio");
  bench::add_blocked<bench::LoopPeer<Blocks>>(program, "Boost.Asio");
  return program.main(argc, argv);
}

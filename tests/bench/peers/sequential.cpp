// One thread, one loop: what efficiency is measured against.
#include "peer.hpp"

namespace {

class Loop {
 public:
  explicit Loop(std::size_t) {}

  template <class Body>
  void each(std::size_t count, Body body) {
    for (std::size_t i = 0; i < count; ++i) body(i);
  }
};

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  bench::add_maps<bench::LoopPeer<Loop>>(program, "sequential loop");

  constexpr std::int64_t count = 10'000'000;
  program.add("sequential loop", "pulled_discard_10M", [] {
    return bench::pulled_and_discarded([](std::int64_t items) {
      bench::Generator source{items};
      std::int64_t sum = 0;
      for (const std::int64_t item : source) {
        bench::add_to(sum, bench::trivial(item));
        bench::somebody_reads(&sum);  // else the compiler knows the answer
      }
      return sum;
    });
  });
  program.add("sequential loop", "pulled_collect_10M", [] {
    const auto input = bench::numbers(count);
    return bench::each_call(
               [] {
                 bench::Generator source{count};
                 std::vector<std::int64_t> results;
                 for (const std::int64_t item : source) results.push_back(bench::trivial(item));
                 return results;
               },
               bench::Expected{bench::trivial, input}) /
           count;
  });
  return program.main(argc, argv);
}

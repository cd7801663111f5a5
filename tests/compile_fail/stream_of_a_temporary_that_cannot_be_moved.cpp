// expect: a stream keeps a range that is a temporary, so it must be movable
#include <array>
#include <mutex>
#include <pyarallel.hpp>

struct Numbers {
  std::mutex mutex;
  std::array<int, 2> numbers{1, 2};
  auto begin() const { return numbers.begin(); }
  auto end() const { return numbers.end(); }
};

int main() {
  auto stream = pyarallel::parallel_iter([](int x) { return x; }, Numbers{});
}

// expect: what the function returns must be movable; return a std::unique_ptr to it instead
#include <mutex>
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int) { return std::mutex{}; }, items);
}

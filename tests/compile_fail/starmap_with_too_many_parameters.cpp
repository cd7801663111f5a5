// expect: the function must be callable as .* \(parallel_starmap: with the elements of its tuples\)
#include <pyarallel.hpp>
#include <utility>
#include <vector>

int main() {
  const std::vector<std::pair<int, int>> items{{1, 2}};
  pyarallel::parallel_starmap([](int a, int b, int c) { return a + b + c; }, items);
}

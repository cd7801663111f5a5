// expect: the function must be callable as .* \(parallel_starmap: with the elements of its tuples\)
#include <pyarallel.hpp>
#include <tuple>
#include <vector>

int main() {
  const std::vector<std::tuple<int, int, int>> items{{1, 2, 3}};
  pyarallel::parallel_starmap([](int a, int b) { return a + b; }, items);
}

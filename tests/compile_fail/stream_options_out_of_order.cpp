// expect: (designator order|does not match declaration order|reorder)
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  auto stream = pyarallel::parallel_iter([](int x) { return x; }, items, {.ordered = true, .workers = 2});
}

// expect: designator order for field .* does not match|designators to be specified in declaration order
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int number) { return number; }, items, {.max_errors = 1, .workers = 2});
}

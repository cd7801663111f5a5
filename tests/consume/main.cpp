// A program that uses the library as a stranger would, in two translation units: what is not inline in a
// header would be defined twice.
#include <cstddef>
#include <pyarallel.hpp>
#include <vector>

std::vector<int> squares(const std::vector<int>& items);

int main() {
  const std::vector<int> items{1, 2, 3};
  const auto results = pyarallel::parallel_map([](int item) { return item * item; }, items);
  return results[2] == 9 && squares(items)[1] == 4 ? 0 : 1;
}

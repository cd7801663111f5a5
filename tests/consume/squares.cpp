#include <pyarallel.hpp>
#include <vector>

std::vector<int> squares(const std::vector<int>& items) {
  const auto results = pyarallel::parallel_map([](int item) { return item * item; }, items);
  return {results.begin(), results.end()};
}

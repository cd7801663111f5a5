// expect: on_result is called with a const ItemResult<R>&
#include <pyarallel.hpp>
#include <string>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int number) { return number; }, items,
                          {.on_result = [](const pyarallel::ItemResult<std::string>&) {}});
}

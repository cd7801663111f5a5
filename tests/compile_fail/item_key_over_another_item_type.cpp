// expect: item_key is called with a const T& and gives an ItemKey
#include <cstdint>
#include <pyarallel.hpp>
#include <string>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int number) { return number; }, items,
                          {.item_key = [](const std::string& item) { return pyarallel::ItemKey{item}; }});
}

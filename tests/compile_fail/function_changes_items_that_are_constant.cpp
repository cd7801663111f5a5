// expect: the function must be callable as fn\(item, task\) or fn\(item\)
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int& number) { number *= 2; }, items);
}

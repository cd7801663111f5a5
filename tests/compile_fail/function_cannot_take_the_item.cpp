// expect: the function must be callable as fn\(item, task\) or fn\(item\)
#include <pyarallel.hpp>
#include <string>
#include <vector>

int main() {
  const std::vector<std::string> items{"a", "b"};
  pyarallel::parallel_map([](int number) { return number; }, items);
}

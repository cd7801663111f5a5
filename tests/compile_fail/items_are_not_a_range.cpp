// expect: no matching function for call to .parallel_map
#include <pyarallel.hpp>

int main() {
  pyarallel::parallel_map([](int number) { return number; }, 100);
}

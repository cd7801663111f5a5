// expect: parallel_starmap takes a range of tuples or pairs
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_starmap([](int a) { return a; }, items);
}

// expect: pyarallel: items are sent to other machines, and there is no Codec for their type
#include <cstddef>
#include <pyarallel.hpp>
#include <vector>

std::size_t count(const std::vector<const int*>& items, pyarallel::RemoteExecutor& cluster) {
  return pyarallel::parallel_map([](const int* n) { return *n; }, items, {.executor = cluster}).size();
}

int main() {}

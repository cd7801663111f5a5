// A call that takes up where the last one ended.
#include <cstdio>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <vector>

int main() {
  const char* const file = "consumer.ckpt";
  std::remove(file);
  const std::vector<int> numbers{1, 2, 3};
  int attempts = 0;
  for (int round = 0; round < 2; ++round) {
    const auto result = pyarallel::parallel_map([](int n) { return n * n; }, numbers,
                                                {.checkpoint = pyarallel::sqlite_checkpoint(file)});
    if (!result.ok()) return 1;
    for (const auto& item : result.item_results()) attempts += item.attempts;
  }
  std::remove(file);
  return attempts == 3 ? 0 : 1;
}

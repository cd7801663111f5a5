// expect: use of deleted function .*CheckpointArg<T, R>|no matching function for call to 'parallel_map'
#include <memory>
#include <pyarallel.hpp>
#include <string>
#include <string_view>
#include <vector>

int main() {
  const std::vector<std::string> items{"a", "b"};
  const std::shared_ptr<pyarallel::CheckpointStore> store;
  pyarallel::parallel_map([](const std::string& item) { return std::string_view{item}; }, items, {.checkpoint = store});
}

// expect: ExecutorArg<int>::ExecutorArg. is not a constant expr|executor_process_is_not_in_this_version_of_pyarallel
#include <pyarallel.hpp>
#include <vector>

int main() {
  const std::vector<int> items{1, 2};
  pyarallel::parallel_map([](int number) { return number; }, items, {.executor = pyarallel::Executor::process});
}

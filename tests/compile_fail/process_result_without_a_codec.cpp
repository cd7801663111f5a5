// expect: ExecutorArg<.*>::ExecutorArg. is not a constant expr|needs_a_Codec_for_the_type_that_the_function_returns
#include <pyarallel.hpp>
#include <string>
#include <string_view>
#include <vector>

int main() {
  const std::vector<std::string> items{"a", "b"};
  pyarallel::parallel_map([](const std::string& item) { return std::string_view{item}; }, items,
                          {.executor = pyarallel::Executor::process});
}

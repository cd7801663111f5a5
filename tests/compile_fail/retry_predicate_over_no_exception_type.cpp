// expect: retry_if and wait_from take a callable over one exception type by const reference
#include <pyarallel.hpp>
#include <stdexcept>

int main() {
  const pyarallel::Retry retry{.retry_if = [](std::runtime_error& e) { return e.what()[0] == 'x'; }};
}

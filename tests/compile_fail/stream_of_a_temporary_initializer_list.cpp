// expect: the elements of a temporary std::initializer_list are gone before the stream reads them
#include <initializer_list>
#include <pyarallel.hpp>

int main() {
  auto stream = pyarallel::parallel_iter([](int x) { return x; }, std::initializer_list<int>{1, 2, 3});
}

// A program that does nothing: the yardstick of cold_start. It uses the C++ library as the others do.
#include <cstdio>
#include <cstring>
#include <string>

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--list") == 0) std::puts("empty main\tcold_start");
  if (argc == 3) std::puts(std::to_string(0).c_str());
  return 0;
}

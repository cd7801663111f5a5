// What two source files of one test program know of each other: each calls things of the same names, but its own.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "local_ranks.hpp"

namespace support {

/// A function of another file, to be served.
struct Served {
  RemoteFunction function;
};

struct NamesOfAFile {
  std::array<Served, 4> functions;
  /// What its functions say, on these ranks.
  std::vector<std::string> (*call_all)(LocalRanks& cluster);
};

NamesOfAFile names_here();
NamesOfAFile names_elsewhere();

}  // namespace support

namespace pyarallel::detail {

template <>
inline RemoteFunction remote_function<support::Served>(support::Served& served) noexcept {
  return served.function;
}

}  // namespace pyarallel::detail

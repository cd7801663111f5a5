// Codec over bytes that nobody encoded: either it throws std::runtime_error, or it gives a value that is encoded as the
// bytes were. The first byte of an input chooses the type. `run` says how much memory and time there is.
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <pyarallel/codec.hpp>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "../support/encoded.hpp"
#include "../support/folder.hpp"
#include "input.hpp"

using namespace pyarallel;
using support::encoded;

namespace {

enum class Colour : std::uint8_t { red, green, blue };

struct Empty {
  bool operator==(const Empty&) const = default;
};

/// In memory as it is encoded.
struct Point {
  std::int32_t x;
  std::int32_t y;
};

/// Not so: there is a gap in it.
struct Measured {
  char unit;
  double value;
};

struct Page {
  std::string title;
  std::vector<double> numbers;
  std::optional<std::string> note;
  bool read;
  std::variant<std::monostate, std::int64_t, std::string, std::vector<Point>> key;
  std::vector<Measured> measured;
};

struct Arrays {
  char name[8];
  std::int16_t grid[2][3];
  bool flags[3];
  std::array<std::string, 2> texts;
};

struct Chain {
  std::int32_t value;
  std::unique_ptr<Chain> next;
};

struct Tree {
  std::string name;
  std::vector<Tree> children;
};

/// Copied as bytes.
class Money {
 public:
  Money() = default;
  explicit Money(std::int64_t cents) : cents_(cents) {}
  std::int64_t cents() const { return cents_; }

 private:
  std::int64_t cents_ = 0;
};

enum class Order {
  as_read,  // a value is encoded as it was read
  sorted,   // keys are put in order, and double ones left out
  any,      // equal values may be encoded differently
};

template <class T>
T decoded_whole(const Bytes& bytes) {
  std::span<const std::byte> rest{bytes};
  T value = Codec<T>::decode(rest);
  fuzz::expect(rest.empty(), "a value takes less bytes than its encoding has");
  return value;
}

template <class T, Order order = Order::as_read>
void decode(std::span<const std::byte> bytes) {
  std::span<const std::byte> rest = bytes;
  std::optional<T> value;
  try {
    value.emplace(Codec<T>::decode(rest));
  } catch (const std::runtime_error&) {
    return;
  }
  fuzz::expect(rest.size() < bytes.size() && rest.data() == bytes.last(rest.size()).data(),
               "what is left is not the end of the bytes");
  const Bytes once = encoded(*value);
  const T again = decoded_whole<T>(once);
  if constexpr (order == Order::any) {
    fuzz::expect(again == *value, "a value is not the one that was encoded");
  } else {
    fuzz::expect(encoded(again) == once, "a value is encoded differently the second time");
  }
  if constexpr (order == Order::as_read) {
    fuzz::expect(std::ranges::equal(once, bytes.first(bytes.size() - rest.size())),
                 "a value is encoded differently than it was read");
  }
}

constexpr std::array decoders{
    &decode<Page>,
    &decode<Arrays>,
    &decode<Chain>,
    &decode<Tree>,
    &decode<std::vector<std::vector<std::vector<char>>>>,
    &decode<std::vector<bool>>,
    &decode<std::vector<Empty>>,
    &decode<std::vector<Money>>,
    &decode<std::list<std::unique_ptr<std::string>>>,
    &decode<std::deque<std::optional<std::array<std::int64_t, 8>>>>,
    &decode<std::vector<std::filesystem::path>>,
    &decode<std::u32string>,
    &decode<std::variant<std::monostate, bool, Colour, std::string, Tree>>,
    &decode<std::tuple<std::pair<float, std::chrono::nanoseconds>, std::array<Empty, 0>, std::tuple<>, Colour>>,
    &decode<std::vector<std::chrono::system_clock::time_point>>,
    &decode<std::map<std::string, std::vector<std::uint16_t>>, Order::sorted>,
    &decode<std::multimap<std::int32_t, std::string>, Order::sorted>,
    &decode<std::set<std::string>, Order::sorted>,
    &decode<std::unordered_map<std::string, Empty>, Order::any>,
    &decode<std::unordered_map<std::int64_t, std::vector<std::string>>, Order::any>,
};

template <class T>
void add_seed(const std::filesystem::path& folder, std::size_t decoder, const T& value) {
  std::string seed{static_cast<char>(decoder)};
  seed += fuzz::text_of(encoded(value));
  support::write_file(folder / ("codec-" + std::to_string(decoder)), seed);
}

void write_seeds(const std::filesystem::path& folder) {
  const std::vector<Measured> measured{{'m', 1.5}, {'s', 0.25}};
  add_seed(folder, 0, Page{"a title", {1, 2.5}, "a note", true, std::vector<Point>{{1, 2}, {3, 4}}, measured});
  add_seed(folder, 1, Arrays{{'n', 'a', 'm', 'e'}, {{1, 2, 3}, {4, 5, 6}}, {true, false, true}, {"one", "two"}});
  Chain chain{0, nullptr};
  for (std::int32_t i = 1; i < 4; ++i) chain = {i, std::make_unique<Chain>(std::move(chain))};
  add_seed(folder, 2, chain);
  const Tree tree{"root", {{"left", {}}, {"right", {{"leaf", {}}}}}};
  add_seed(folder, 3, tree);
  add_seed(folder, 4, std::vector<std::vector<std::vector<char>>>{{{'a', 'b'}, {}}, {{'c'}}});
  add_seed(folder, 5, std::vector<bool>{true, false, true, true});
  add_seed(folder, 10, std::vector<std::filesystem::path>{"/tmp/file", "folder"});
  add_seed(folder, 12, std::variant<std::monostate, bool, Colour, std::string, Tree>{tree});
  add_seed(folder, 15, std::map<std::string, std::vector<std::uint16_t>>{{"one", {1, 2}}, {"two", {}}});
  add_seed(folder, 19, std::unordered_map<std::int64_t, std::vector<std::string>>{{1, {"one"}}, {2, {}}});
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (const auto folder = fuzz::seeds_folder(*argc, *argv); !folder.empty()) {
    write_seeds(folder);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input input{{reinterpret_cast<const char*>(data), size}};
  const std::size_t decoder = input.below(decoders.size());
  // A copy that ends where the bytes end, so that a look beyond them is seen.
  const std::string_view rest = input.rest();
  const std::vector<char> bytes{rest.begin(), rest.end()};
  decoders[decoder](std::as_bytes(std::span{bytes}));
  return 0;
}

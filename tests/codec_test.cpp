// What crosses a process boundary: every type comes back as it went, and bytes that are no value are refused.
#include <chrono>
#include <complex>
#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <pyarallel/codec.hpp>
#include <random>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "support/catch.hpp"
#include "support/encoded.hpp"

using pyarallel::Bytes;
using pyarallel::Codec;
using pyarallel::Serializable;
using support::encoded;

namespace {

template <class T>
T decoded(const Bytes& bytes) {
  std::span<const std::byte> rest{bytes};
  T value = Codec<T>::decode(rest);
  CHECK(rest.empty());
  return value;
}

/// Bytes from numbers, for encodings written out.
template <class... Number>
Bytes bytes(Number... numbers) {
  return {static_cast<std::byte>(numbers)...};
}

template <class T>
bool refused(Bytes input) {
  std::span<const std::byte> rest{input};
  try {
    static_cast<void>(Codec<T>::decode(rest));
    return false;
  } catch (const std::runtime_error&) {
    return true;
  }
}

/// It comes back, whatever follows it; and each of its prefixes is refused.
template <class T>
void check_round_trip(const T& value) {
  Bytes input = encoded(value);
  REQUIRE_FALSE(input.empty());
  CHECK(decoded<T>(input) == value);
  for (std::size_t size = 0; size < input.size(); ++size) {
    CHECK(refused<T>(Bytes(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(size))));
  }
  input.push_back(std::byte{42});
  std::span<const std::byte> rest{input};
  CHECK(Codec<T>::decode(rest) == value);
  CHECK(rest.size() == 1);
}

enum class Colour : std::uint8_t { red = 1, green = 200 };
enum class Truth : bool { no, yes };

struct Point {
  int x;
  int y;
  bool operator==(const Point&) const = default;
};
struct Padded {
  char tag;
  double value;
  bool operator==(const Padded&) const = default;
};
struct Flagged {
  bool flag;
  char letter;
  bool operator==(const Flagged&) const = default;
};
struct Record {
  std::string name;
  std::vector<Point> points;
  std::optional<double> weight;
  std::map<std::string, std::vector<int>> index;
  bool operator==(const Record&) const = default;
};
struct Nothing {
  bool operator==(const Nothing&) const = default;
};
struct WithArrays {
  char name[8];
  int matrix[2][3];
  std::string text;
  bool operator==(const WithArrays&) const = default;
};
class NoDefault {
 public:
  explicit NoDefault(int value) : value_(value) {}
  bool operator==(const NoDefault&) const = default;

 private:
  int value_;
};
struct HoldsNoDefault {
  NoDefault first;
  std::string second;
  bool operator==(const HoldsNoDefault&) const = default;
};
struct Tree {
  int value = 0;
  std::vector<Tree> children = {};
  std::unique_ptr<Tree> sibling = {};
};
// clang-format off
struct Fields32 {
  int a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, a20, a21, a22, a23, a24, a25,
      a26, a27, a28, a29, a30, a31; std::string a32;
  bool operator==(const Fields32&) const = default;
};
struct Fields33 {
  int a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, a20, a21, a22, a23, a24, a25,
      a26, a27, a28, a29, a30, a31, a32; std::string a33;
};
// clang-format on

struct HoldsPointer {
  int* pointer;
};
struct HoldsReference {
  int& reference;
};
struct HoldsView {
  int number;
  std::string_view text;
};
struct Base {
  int x;
};
struct Derived : Base {
  int y;
};
union Either {
  int number;
  float fraction;
};

/// A type with a Codec of its own.
class Money {
 public:
  explicit Money(long cents) : cents_(cents) {}
  long cents() const { return cents_; }
  bool operator==(const Money& other) const { return cents_ == other.cents_; }
  virtual ~Money() = default;

 private:
  long cents_;
};

}  // namespace

template <>
struct pyarallel::Codec<Money> {
  static void encode(const Money& value, Bytes& out) { Codec<long>::encode(value.cents(), out); }
  static Money decode(std::span<const std::byte>& in) { return Money{Codec<long>::decode(in)}; }
};

static_assert(Serializable<Record> && Serializable<Tree> && Serializable<WithArrays> && Serializable<Fields32>);
static_assert(Serializable<Money> && Serializable<std::vector<Money>> && Serializable<std::optional<Money>>);
static_assert(!Serializable<int*> && !Serializable<int&> && !Serializable<const char*> &&
              !Serializable<std::nullptr_t>);
static_assert(!Serializable<std::string_view> && !Serializable<std::span<int>> && !Serializable<int Point::*>);
static_assert(!Serializable<std::initializer_list<int>> && !Serializable<std::reference_wrapper<int>>);
static_assert(!Serializable<HoldsPointer> && !Serializable<HoldsReference> && !Serializable<HoldsView>);
static_assert(!Serializable<std::tuple<int&, int&>> && !Serializable<std::pair<const int, int&>> &&
              Serializable<std::pair<const int, int>>);
static_assert(!Serializable<std::vector<std::string_view>> && !Serializable<std::pair<int, const char*>>);
static_assert(!Serializable<std::variant<int, HoldsPointer>> && !Serializable<std::map<int, int*>>);
static_assert(!Serializable<Derived> && !Serializable<Either> && !Serializable<Fields33>);
static_assert(!Serializable<std::unique_ptr<int[]>> && !Serializable<std::shared_ptr<int>>);
static_assert(!Serializable<std::function<void()>>);

TEST_CASE("Codec gives back numbers and enums") {
  check_round_trip<std::int8_t>(-128);
  check_round_trip<std::uint16_t>(65535);
  check_round_trip(std::numeric_limits<int>::min());
  check_round_trip(std::numeric_limits<std::uint64_t>::max());
  check_round_trip(true);
  check_round_trip('x');
  check_round_trip(u8'x');
  check_round_trip(-0.5F);
  check_round_trip(std::numeric_limits<double>::infinity());
  check_round_trip(1.25L);
  check_round_trip(Colour::green);
  check_round_trip(Truth::yes);
  check_round_trip(std::byte{7});
}

TEST_CASE("Codec gives back strings and containers") {
  check_round_trip(std::string{});
  check_round_trip(std::string("a\0b", 3));
  check_round_trip(std::wstring(L"wide"));
  check_round_trip(std::vector<int>{});
  check_round_trip(std::vector<int>{1, -2, 3});
  check_round_trip(std::vector<bool>{true, false, true});
  check_round_trip(std::vector<std::string>{"a", "", "ccc"});
  check_round_trip(std::vector<Point>{{1, 2}, {3, 4}});
  check_round_trip(std::vector<Flagged>{{true, 'a'}});
  check_round_trip(std::vector<NoDefault>{NoDefault{1}, NoDefault{2}});
  check_round_trip(std::vector<Nothing>(3));
  check_round_trip(std::deque<std::string>{"a", "b"});
  check_round_trip(std::list<int>{1, 2});
  check_round_trip(std::array<int, 3>{1, 2, 3});
  check_round_trip(std::array<std::string, 2>{"a", "b"});
  check_round_trip(std::array<int, 0>{});
  check_round_trip(std::set<int>{3, 1, 2});
  check_round_trip(std::multiset<int>{1, 1});
  check_round_trip(std::unordered_set<std::string>{"a", "b"});
  check_round_trip(std::map<std::string, int>{{"a", 1}, {"b", 2}});
  check_round_trip(std::multimap<int, int>{{1, 1}, {1, 2}});
  check_round_trip(std::unordered_map<int, std::string>{{1, "a"}});
}

TEST_CASE("Codec gives back sums and products") {
  check_round_trip(std::optional<int>{});
  check_round_trip(std::optional<std::string>{"x"});
  check_round_trip(std::optional<std::optional<int>>{std::optional<int>{}});
  check_round_trip(std::variant<int, std::string, std::monostate>{"text"});
  check_round_trip(std::variant<int, int>{std::in_place_index<1>, 5});
  check_round_trip(std::pair<int, std::string>{1, "a"});
  check_round_trip(std::tuple<int, bool, std::string>{1, true, "a"});
  check_round_trip(std::tuple<>{});
  check_round_trip(std::monostate{});
  CHECK(decoded<std::unique_ptr<int>>(encoded(std::unique_ptr<int>{})) == nullptr);
  CHECK(*decoded<std::unique_ptr<std::string>>(encoded(std::make_unique<std::string>("x"))) == "x");
}

TEST_CASE("Codec gives back times and paths") {
  using namespace std::chrono;
  check_round_trip(nanoseconds{-5});
  check_round_trip(duration<double, std::ratio<60>>{1.5});
  check_round_trip(time_point_cast<milliseconds>(system_clock::now()));
  check_round_trip(year{2026} / 11 / 23);
  check_round_trip(std::filesystem::path("/a/b c"));
}

TEST_CASE("Codec gives back aggregates and trivially copyable classes") {
  check_round_trip(Point{1, -2});
  check_round_trip(Padded{'a', 0.5});
  check_round_trip(Flagged{true, 'x'});
  check_round_trip(Nothing{});
  check_round_trip(WithArrays{"name", {{1, 2, 3}, {4, 5, 6}}, "text"});
  check_round_trip(NoDefault{3});
  check_round_trip(HoldsNoDefault{NoDefault{3}, "x"});
  check_round_trip(std::complex<double>{1, 2});
  check_round_trip(Record{"r", {{1, 2}}, 0.5, {{"k", {1, 2}}}});
  Fields32 fields{};
  fields.a1 = 1;
  fields.a31 = 31;
  fields.a32 = "last";
  check_round_trip(fields);
  check_round_trip(Money{250});
  check_round_trip(std::vector<Money>{Money{1}, Money{2}});
}

TEST_CASE("Codec gives back recursive types") {
  Tree root{1};
  root.children.push_back(Tree{2});
  root.children.push_back(Tree{3, {}, std::make_unique<Tree>(Tree{4})});
  const Tree copy = decoded<Tree>(encoded(root));
  REQUIRE(copy.children.size() == 2);
  CHECK(copy.children[0].value == 2);
  CHECK(copy.children[1].sibling->value == 4);
}

TEST_CASE("Codec writes the documented format") {
  CHECK(encoded<std::uint32_t>(0x01020304) == bytes(4, 3, 2, 1));
  CHECK(encoded(true) == bytes(1));
  CHECK(encoded(std::string("ab")) == bytes(2, 0, 0, 0, 0, 0, 0, 0, 'a', 'b'));
  CHECK(encoded(std::vector<std::uint16_t>{1, 2}) == bytes(2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0));
  CHECK(encoded(std::optional<std::uint8_t>{7}) == bytes(1, 7));
  CHECK(encoded(std::variant<std::uint8_t, bool>{true}) == bytes(1, 0, 0, 0, 1));
  CHECK(encoded(std::monostate{}) == bytes(0));
  CHECK(encoded(Nothing{}) == bytes(0));
  CHECK(encoded(std::map<std::uint8_t, std::uint8_t>{{1, 2}}) == bytes(1, 0, 0, 0, 0, 0, 0, 0, 1, 2));
  CHECK(encoded(Flagged{true, 'a'}) == bytes(1, 'a'));
  // With padding or without, in memory or field by field: the same bytes.
  CHECK(encoded(Padded{'a', 0}) == bytes('a', 0, 0, 0, 0, 0, 0, 0, 0));
  CHECK(encoded(Point{1, 2}) == bytes(1, 0, 0, 0, 2, 0, 0, 0));
  CHECK(encoded(std::vector<Point>{{1, 2}}) == bytes(1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0));
}

TEST_CASE("Codec refuses bytes that are no value") {
  CHECK(refused<bool>(bytes(2)));
  CHECK(refused<Truth>(bytes(2)));
  CHECK(refused<Flagged>(bytes(2, 'a')));
  CHECK(refused<std::optional<int>>(bytes(3, 0, 0, 0, 0)));
  CHECK(refused<std::vector<bool>>(bytes(1, 0, 0, 0, 0, 0, 0, 0, 9)));
  CHECK(refused<std::monostate>(bytes(1)));
  CHECK(refused<Nothing>(bytes(1)));
  CHECK(refused<std::variant<int, bool>>(bytes(2, 0, 0, 0, 1, 1, 1, 1)));
}

TEST_CASE("Codec allocates no more than the bytes justify") {
  const auto huge = encoded(std::numeric_limits<std::uint64_t>::max());
  const auto large = encoded(std::uint64_t{1} << 40);
  for (const Bytes& count : {huge, large}) {
    CHECK(refused<std::string>(count));
    CHECK(refused<std::vector<std::uint64_t>>(count));
    CHECK(refused<std::vector<std::string>>(count));
    CHECK(refused<std::vector<Nothing>>(count));
    CHECK(refused<std::vector<std::monostate>>(count));
    CHECK(refused<std::map<int, int>>(count));
    CHECK(refused<std::vector<bool>>(count));
  }
}

TEST_CASE("Codec refuses values that are nested deeper than 1000") {
  std::unique_ptr<Tree> chain;
  for (int i = 0; i < 400; ++i) chain = std::make_unique<Tree>(Tree{i, {}, std::move(chain)});
  CHECK(decoded<std::unique_ptr<Tree>>(encoded(chain))->value == 399);
  for (int i = 0; i < 200; ++i) chain = std::make_unique<Tree>(Tree{i, {}, std::move(chain)});
  Bytes out;
  CHECK_THROWS_AS(Codec<std::unique_ptr<Tree>>::encode(chain, out), std::runtime_error);

  Bytes hostile;  // a chain without end: present, value 0, no children, sibling present, ...
  for (int i = 0; i < 100'000; ++i) {
    hostile.push_back(std::byte{1});
    hostile.insert(hostile.end(), sizeof(int) + 8, std::byte{0});
  }
  CHECK(refused<std::unique_ptr<Tree>>(hostile));
  // And the next value is not the worse for it.
  CHECK(decoded<Tree>(encoded(Tree{5})).value == 5);
}

TEST_CASE("Codec survives arbitrary bytes") {
  struct Anything {
    Record record;
    std::variant<std::string, std::vector<bool>, WithArrays> choice;
    std::optional<Tree> tree;
    std::unordered_map<std::string, std::set<int>> sets;
  };
  const Bytes seed =
      encoded(Anything{Record{"name", {{1, 2}}, 1.0, {{"k", {1}}}}, std::vector<bool>{true}, Tree{1}, {{"a", {1, 2}}}});
  std::mt19937 random{1};
  for (int round = 0; round < 20'000; ++round) {
    Bytes input = seed;
    for (int changes = 0; changes < 3; ++changes) {
      input[random() % input.size()] = static_cast<std::byte>(random() % 4 == 0 ? random() : random() % 3);
    }
    input.resize(random() % 8 == 0 ? random() % input.size() : input.size());
    std::span<const std::byte> rest{input};
    try {
      static_cast<void>(Codec<Anything>::decode(rest));
    } catch (const std::runtime_error&) {
    }
  }
  SUCCEED("nothing was read out of bounds, as the sanitizers see");
}

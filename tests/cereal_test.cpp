#include "support/catch.hpp"

#if __has_include(<cereal/cereal.hpp>)

#include <cereal/types/map.hpp>
#include <cereal/types/memory.hpp>
#include <cereal/types/string.hpp>
#include <cereal/types/vector.hpp>
#include <cmath>
#include <cstddef>
#include <exception>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pyarallel/cereal.hpp"
#include "pyarallel/codec.hpp"
#include "pyarallel/register_exception.hpp"

namespace {

class Measurement {
 public:
  Measurement() = default;
  Measurement(std::string name, std::vector<double> values) : name_(std::move(name)), values_(std::move(values)) {}

  template <class Archive>
  void serialize(Archive& archive) {
    archive(name_, values_, by_name_);
  }
  bool operator==(const Measurement&) const = default;

 private:
  std::string name_;
  std::vector<double> values_;
  std::map<std::string, int> by_name_{{"one", 1}};
};

class Temperature {
 public:
  Temperature() = default;
  explicit Temperature(double kelvin) : kelvin_(std::make_unique<double>(kelvin)) {}

  template <class Archive>
  void save(Archive& archive) const {
    archive(*kelvin_ - 273.15);
  }
  template <class Archive>
  void load(Archive& archive) {
    double celsius = 0;
    archive(celsius);
    kelvin_ = std::make_unique<double>(celsius + 273.15);
  }
  double kelvin() const { return *kelvin_; }

 private:
  std::unique_ptr<double> kelvin_;
};

class SensorError : public std::runtime_error {
 public:
  SensorError() : runtime_error("sensor") {}
  explicit SensorError(int number) : runtime_error("sensor"), number_(number) {}

  template <class Archive>
  void serialize(Archive& archive) {
    archive(number_);
  }
  int number() const { return number_; }

 private:
  int number_ = 0;
};

}  // namespace

template <>
struct pyarallel::Codec<Measurement> : pyarallel::cereal_codec<Measurement> {};
template <>
struct pyarallel::Codec<Temperature> : pyarallel::cereal_codec<Temperature> {};
template <>
struct pyarallel::Codec<SensorError> : pyarallel::cereal_codec<SensorError> {};

namespace {

using pyarallel::Bytes;
using pyarallel::Codec;

static_assert(pyarallel::Serializable<Measurement>);
static_assert(pyarallel::Serializable<std::vector<Temperature>>);

const Measurement measurement{"depth", {1.5, -2, 1e300}};

Bytes bytes_of(const Measurement& value) {
  Bytes bytes;
  Codec<Measurement>::encode(value, bytes);
  return bytes;
}

}  // namespace

TEST_CASE("P3 a type with cereal's functions has a Codec") {
  const Bytes bytes = bytes_of(measurement);
  std::span<const std::byte> in{bytes};
  CHECK(Codec<Measurement>::decode(in) == measurement);
  CHECK(in.empty());
}

TEST_CASE("P3 values of cereal's take their own bytes and leave what follows") {
  Bytes bytes;
  const std::vector<Temperature> all = [] {
    std::vector<Temperature> temperatures;
    for (const int kelvin : {0, 273, 300}) temperatures.emplace_back(kelvin);
    return temperatures;
  }();
  Codec<std::vector<Temperature>>::encode(all, bytes);
  bytes.push_back(std::byte{9});
  std::span<const std::byte> in{bytes};
  const auto back = Codec<std::vector<Temperature>>::decode(in);
  REQUIRE(back.size() == 3);
  CHECK(std::abs(back[2].kelvin() - 300) < 1e-9);
  CHECK(in.size() == 1);
}

TEST_CASE("P3 bytes for cereal that end too early are refused wherever they end") {
  const Bytes whole = bytes_of(measurement);
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    std::span<const std::byte> in{cut};
    CHECK_THROWS_AS(Codec<Measurement>::decode(in), std::runtime_error);
  }
}

TEST_CASE("P3 content for cereal that is cut or too long is refused though its length says otherwise") {
  const Bytes whole = bytes_of(measurement);
  const auto with_content = [&](std::size_t size) {
    Bytes content(whole.begin() + 8, whole.end());
    content.resize(size);
    Bytes bytes;
    Codec<Bytes>::encode(content, bytes);
    return bytes;
  };
  const std::size_t right = whole.size() - 8;
  for (std::size_t size = 0; size < right; ++size) {
    const Bytes bytes = with_content(size);
    std::span<const std::byte> in{bytes};
    CHECK_THROWS_AS(Codec<Measurement>::decode(in), std::runtime_error);
  }
  const Bytes longer = with_content(right + 1);
  std::span<const std::byte> in{longer};
  CHECK_THROWS_AS(Codec<Measurement>::decode(in), std::runtime_error);
}

TEST_CASE("P3 a size that no container can have is refused by way of cereal too") {
  Bytes bytes = bytes_of(measurement);
  // The count of the bytes, cereal's mark of the byte order, and the size of the name.
  for (std::size_t i = 9; i < 17; ++i) bytes[i] = std::byte{0xff};
  std::span<const std::byte> in{bytes};
  CHECK_THROWS_AS(Codec<Measurement>::decode(in), std::runtime_error);
}

TEST_CASE("P3 an exception with cereal's functions can be registered") {
  pyarallel::register_exception<SensorError>();
  Bytes bytes;
  pyarallel::detail::encode_exception(std::make_exception_ptr(SensorError(7)), bytes);
  std::span<const std::byte> in{bytes};
  const pyarallel::Error back{pyarallel::detail::decode_exception(in)};
  REQUIRE(back.is<SensorError>());
  CHECK(back.get_if<SensorError>()->number() == 7);
}

#endif

// Codecs for types that cereal can serialise. Needs cereal (https://uscilab.github.io/cereal); include
// this header beside pyarallel.hpp, which does not.
#pragma once

#include <cereal/archives/portable_binary.hpp>
#include <concepts>
#include <cstddef>
#include <istream>
#include <ostream>
#include <span>
#include <stdexcept>
#include <streambuf>
#include <string>

#include "pyarallel/codec.hpp"

namespace pyarallel {

namespace detail {

/// Writes to the end of a vector.
class BytesWriter final : public std::streambuf {
 public:
  explicit BytesWriter(Bytes& out) : out_(out) {}

 protected:
  std::streamsize xsputn(const char* data, std::streamsize size) override {
    append(out_, data, static_cast<std::size_t>(size));
    return size;
  }
  int_type overflow(int_type character) override {
    if (!traits_type::eq_int_type(character, traits_type::eof())) out_.push_back(static_cast<std::byte>(character));
    return traits_type::not_eof(character);
  }

 private:
  Bytes& out_;
};

/// Reads bytes where they lie.
class BytesReader final : public std::streambuf {
 public:
  explicit BytesReader(std::span<const std::byte> bytes) {
    // A stream buffer has no pointers to const; nothing is put back, so nothing is written.
    auto* data = const_cast<char*>(reinterpret_cast<const char*>(bytes.data()));
    setg(data, data, data + bytes.size());
  }

  bool at_end() const { return gptr() == egptr(); }
};

}  // namespace detail

/// The Codec of a type that has cereal's functions (serialize, or save and load) and a default constructor:
///
///     #include <pyarallel/cereal.hpp>
///     template <> struct pyarallel::Codec<Mine> : pyarallel::cereal_codec<Mine> {};
///
/// and, as always with cereal, its headers for the members (<cereal/types/string.hpp>, ...). The bytes are
/// those of its portable binary archive. Untrusted ones are as safe as cereal makes them: it reads within
/// the bytes, but believes the size of a container before it has seen the elements.
template <class T>
struct cereal_codec {
  static void encode(const T& value, Bytes& out) {
    Bytes content;
    {
      detail::BytesWriter writer{content};
      std::ostream stream{&writer};
      cereal::PortableBinaryOutputArchive archive{stream};
      archive(value);
    }
    detail::encode(content, out);
  }

  static T decode(std::span<const std::byte>& in) {
    static_assert(std::default_initializable<T>,
                  "pyarallel: cereal_codec<T> needs a T with a default constructor; write encode() and decode() of "
                  "Codec<T> instead");
    detail::BytesReader reader{detail::take(in, detail::decode_count(in))};
    std::istream stream{&reader};
    T value{};
    try {
      cereal::PortableBinaryInputArchive archive{stream};
      archive(value);
    } catch (const cereal::Exception& e) {
      throw std::runtime_error(std::string("Codec: cereal: ") + e.what());
    } catch (const std::length_error& e) {  // a size that no container can have
      throw std::runtime_error(std::string("Codec: cereal: ") + e.what());
    }
    if (!reader.at_end()) throw std::runtime_error("Codec: cereal left bytes of the value unread");
    return value;
  }
};

}  // namespace pyarallel

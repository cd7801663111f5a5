// Binary encoding of values that cross a process boundary or rest in a file.
//
// Format, version 1. Every value takes at least one byte. Numbers are little-endian.
//   arithmetic types, enums    their bytes; bool: 0 or 1
//   string, vector, set, map   count (8 bytes), then the elements; of a map, key before value
//   array, pair, tuple         the elements; one byte 0 if there are none
//   optional, unique_ptr       bool, then the value if true
//   variant                    index (4 bytes), then the value
//   monostate                  one byte 0
//   chrono types               the count of ticks
//   filesystem::path           as the string of its native form
//   aggregates                 the fields in order; one byte 0 if there are none
//   other trivially copyable classes   their bytes
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/detail/fields.hpp"
#include "pyarallel/detail/message.hpp"

namespace pyarallel {

using Bytes = std::vector<std::byte>;

/// The version of the format above; a file or a peer with another one must not be decoded.
inline constexpr int codec_version = 1;

/// How a T becomes bytes and back. Specialise it for types that have no built-in encoding:
///
///     template <> struct pyarallel::Codec<Money> {
///       static void encode(const Money& value, Bytes& out) { Codec<long>::encode(value.cents(), out); }
///       static Money decode(std::span<const std::byte>& in) { return Money{Codec<long>::decode(in)}; }
///     };
///
/// encode() appends to `out`. decode() takes its bytes from the front of `in`, and throws
/// std::runtime_error if they are no T: it never reads beyond `in`, never allocates more than the
/// bytes justify, and never recurses deeper than 1000.
template <class T>
struct Codec;

namespace detail {

template <class T, template <class...> class Template>
inline constexpr bool is_specialization = false;
template <template <class...> class Template, class... Args>
inline constexpr bool is_specialization<Template<Args...>, Template> = true;

template <class T>
inline constexpr bool is_std_array = false;
template <class T, std::size_t size>
inline constexpr bool is_std_array<std::array<T, size>> = true;

template <class T>
inline constexpr bool is_duration = false;
template <class Rep, class Period>
inline constexpr bool is_duration<std::chrono::duration<Rep, Period>> = true;

template <class T>
inline constexpr bool is_time_point = false;
template <class Clock, class Length>
inline constexpr bool is_time_point<std::chrono::time_point<Clock, Length>> = true;

// Types whose headers are dear to include are known by their shape.
template <class T>
concept PathLike = requires(const T& path) {
  typename T::string_type;
  path.lexically_normal();
  { path.native() } -> std::convertible_to<const typename T::string_type&>;
};
template <class T>
concept SetOrMap = std::ranges::range<T> && requires(T& container, typename T::value_type value) {
  typename T::key_type;
  container.insert(std::move(value));
  container.clear();
};
template <class T>
concept Map = SetOrMap<T> && requires { typename T::mapped_type; };
template <class T>
concept Sequence = is_specialization<T, std::vector> || is_specialization<T, std::basic_string> ||
                   (std::ranges::range<T> && requires(T& container, typename T::value_type value) {
                     container.push_back(std::move(value));
                     container.pop_front();
                   });  // deque, list

// A view or another handle would dangle on the other side.
template <class T>
concept Borrowing = std::is_pointer_v<T> || std::is_member_pointer_v<T> || std::is_null_pointer_v<T> ||
                    std::is_reference_v<T> || std::ranges::borrowed_range<T> || std::ranges::view<T> ||
                    is_specialization<T, std::reference_wrapper> || is_specialization<T, std::initializer_list>;

template <class T>
concept UserCodec =
    !requires { typename Codec<T>::built_in; } && requires(const T& value, Bytes& out, std::span<const std::byte>& in) {
      Codec<T>::encode(value, out);
      { Codec<T>::decode(in) } -> std::same_as<T>;
    };

template <class T>
inline constexpr bool is_plain_aggregate = field_count<T>() <= max_fields;

/// A user's Codec has to do with it, or with a part of it.
template <class T>
consteval bool has_codec_of_its_own();
template <class Tuple>
inline constexpr bool any_codec_of_its_own = false;
template <template <class...> class Tuple, class... Parts>
inline constexpr bool any_codec_of_its_own<Tuple<Parts...>> =
    (has_codec_of_its_own<std::remove_cvref_t<Parts>>() || ...);

// Of types that can be copied as bytes: no containers, nor anything recursive.
template <class T>
consteval bool has_codec_of_its_own() {
  if constexpr (std::is_array_v<T>) {
    return has_codec_of_its_own<std::remove_all_extents_t<T>>();
  } else if constexpr (UserCodec<T>) {
    return true;
  } else if constexpr (is_std_array<T>) {
    return has_codec_of_its_own<typename T::value_type>();
  } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple> ||
                       is_specialization<T, std::variant> || is_specialization<T, std::optional>) {
    return any_codec_of_its_own<T>;
  } else if constexpr (std::is_aggregate_v<T> && is_plain_aggregate<T>) {
    return any_codec_of_its_own<fields_t<T>>;
  } else {
    return false;
  }
}

template <class T>
concept PlainBytes = std::is_class_v<T> && std::is_trivially_copyable_v<T> && std::is_copy_constructible_v<T> &&
                     !std::is_aggregate_v<T> && !std::is_empty_v<T> && !Borrowing<T>;

/// Has an encoding, parts included. `Above`: the types that it is a part of, which a recursive type meets again.
template <class T, class... Above>
consteval bool is_serializable();

template <class Tuple, class... Above>
inline constexpr bool all_serializable = false;
template <template <class...> class Tuple, class... Parts, class... Above>
inline constexpr bool all_serializable<Tuple<Parts...>, Above...> =
    (is_serializable<std::remove_cvref_t<Parts>, Above...>() && ...);

// As the elements of a zipped range are: it would refer to nothing on the other side.
template <class Tuple>
inline constexpr bool any_reference = false;
template <template <class...> class Tuple, class... Parts>
inline constexpr bool any_reference<Tuple<Parts...>> = (std::is_reference_v<Parts> || ...);

template <class T, class... Above>
consteval bool is_serializable() {
  if constexpr ((std::same_as<T, Above> || ...)) {
    return true;
  } else if constexpr (std::is_const_v<T> || std::is_volatile_v<T>) {
    return false;
  } else if constexpr (std::is_array_v<T>) {
    return std::is_bounded_array_v<T> && is_serializable<std::remove_extent_t<T>, T, Above...>();
  } else if constexpr (UserCodec<T>) {
    return true;
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::same_as<T, std::monostate> || PathLike<T>) {
    return true;
  } else if constexpr (Borrowing<T>) {
    return false;
  } else if constexpr (is_duration<T>) {
    return std::is_arithmetic_v<typename T::rep>;
  } else if constexpr (is_time_point<T>) {
    return std::is_arithmetic_v<typename T::rep>;
  } else if constexpr (is_std_array<T>) {
    return is_serializable<typename T::value_type, T, Above...>();
  } else if constexpr (Map<T>) {
    return is_serializable<typename T::key_type, T, Above...>() &&
           is_serializable<typename T::mapped_type, T, Above...>();
  } else if constexpr (Sequence<T> || SetOrMap<T> || is_specialization<T, std::optional>) {
    return is_serializable<typename T::value_type, T, Above...>();
  } else if constexpr (is_specialization<T, std::unique_ptr>) {
    return std::same_as<typename T::deleter_type, std::default_delete<typename T::element_type>> &&
           is_serializable<typename T::element_type, T, Above...>();
  } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple> ||
                       is_specialization<T, std::variant>) {
    return !any_reference<T> && all_serializable<T, T, Above...>;
  } else if constexpr (PlainBytes<T>) {
    return true;
  } else if constexpr (is_plain_aggregate<T>) {
    return all_serializable<fields_t<T>, T, Above...>;
  } else {
    return false;
  }
}

}  // namespace detail

/// T has an encoding: a built-in one, or a Codec of its own. Built in: arithmetic types and enums,
/// std::string, vector, deque, list, array, optional, variant, pair, tuple, (unordered_) (multi)map and
/// set, unique_ptr, chrono types, filesystem::path, monostate, aggregates of up to 32 fields of these
/// without base classes, and other trivially copyable classes as bytes. Not: pointers, references, string_view, span
/// and other views, initializer_list, nor aggregates that hold one.
template <class T>
concept Serializable = detail::is_serializable<T>();

namespace detail {

/// Counts how deep values are nested, on the way in and out.
class NestingGuard {
 public:
  NestingGuard() {
    constexpr int deepest = 1000;
    if (depth() >= deepest) throw std::runtime_error("Codec: values are nested deeper than 1000");
    ++depth();
  }
  NestingGuard(const NestingGuard&) = delete;
  NestingGuard& operator=(const NestingGuard&) = delete;
  ~NestingGuard() { --depth(); }

 private:
  static int& depth() noexcept {
    static thread_local int depth = 0;
    return depth;
  }
};

inline void append(Bytes& out, const void* data, std::size_t size) {
  const auto* bytes = static_cast<const std::byte*>(data);
  out.insert(out.end(), bytes, bytes + size);
}

/// The first `size` bytes, taken from `in`.
inline std::span<const std::byte> take(std::span<const std::byte>& in, std::size_t size) {
  if (size > in.size()) throw std::runtime_error(message({"Codec: ", size, " bytes expected, ", in.size(), " left"}));
  const auto taken = in.first(size);
  in = in.subspan(size);
  return taken;
}

template <class T>
T copy_from(std::span<const std::byte> bytes) {
  std::array<std::byte, sizeof(T)> storage;
  std::memcpy(storage.data(), bytes.data(), sizeof(T));
  return std::bit_cast<T>(storage);
}

/// The encoding of an object and of an array of them is what lies in memory.
template <class T>
consteval bool is_memory_image();

template <class Tuple>
inline constexpr bool all_memory_images = false;
template <class... Parts>
inline constexpr bool all_memory_images<std::tuple<Parts...>> = (is_memory_image<std::remove_cvref_t<Parts>>() && ...);
template <class Tuple>
inline constexpr std::size_t total_size = 0;
template <class... Parts>
inline constexpr std::size_t total_size<std::tuple<Parts...>> = (sizeof(std::remove_reference_t<Parts>) + ... + 0);

template <class T>
consteval bool is_memory_image() {
  if constexpr (std::is_array_v<T>) {
    return is_memory_image<std::remove_all_extents_t<T>>();
  } else if constexpr (UserCodec<T> || std::endian::native != std::endian::little || !std::is_trivially_copyable_v<T> ||
                       std::is_empty_v<T>) {
    return false;
  } else if constexpr (std::is_enum_v<T>) {
    return !std::same_as<std::underlying_type_t<T>, bool>;
  } else if constexpr (std::is_arithmetic_v<T>) {
    return !std::same_as<T, bool>;
  } else if constexpr (is_std_array<T>) {
    if constexpr (std::tuple_size_v<T> == 0)
      return false;
    else
      return is_memory_image<typename T::value_type>();
  } else if constexpr (is_duration<T> || is_time_point<T>) {
    return true;
  } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple> ||
                       is_specialization<T, std::optional> || is_specialization<T, std::variant>) {
    return false;
  } else if constexpr (PlainBytes<T>) {
    return true;
  } else if constexpr (is_plain_aggregate<T>) {
    // Without padding between the fields.
    return all_memory_images<fields_t<T>> && total_size<fields_t<T>> == sizeof(T);
  } else {
    return false;
  }
}

template <class T>
void encode(const T& value, Bytes& out) {
  Codec<T>::encode(value, out);
}

template <class T>
T decode(std::span<const std::byte>& in) {
  return Codec<T>::decode(in);
}

template <class T>
void encode_number(T value, Bytes& out) {
  std::array<std::byte, sizeof(T)> bytes;
  std::memcpy(bytes.data(), &value, sizeof(T));
  if constexpr (std::endian::native == std::endian::big) std::ranges::reverse(bytes);
  append(out, bytes.data(), bytes.size());
}

template <class T>
T decode_number(std::span<const std::byte>& in) {
  std::array<std::byte, sizeof(T)> bytes;
  std::memcpy(bytes.data(), take(in, sizeof(T)).data(), sizeof(T));
  if constexpr (std::endian::native == std::endian::big) std::ranges::reverse(bytes);
  return std::bit_cast<T>(bytes);
}

inline bool decode_bool(std::span<const std::byte>& in) {
  const auto value = std::to_integer<unsigned>(take(in, 1).front());
  if (value > 1) throw std::runtime_error(message({"Codec: a bool must be 0 or 1, got ", value}));
  return value == 1;
}

/// What stands for a value without content.
inline void encode_nothing(Bytes& out) { out.push_back(std::byte{0}); }
inline void decode_nothing(std::span<const std::byte>& in) {
  if (take(in, 1).front() != std::byte{0}) throw std::runtime_error("Codec: a value without content must be 0");
}

/// The count of a container whose elements take `smallest` bytes or more each.
inline std::size_t decode_count(std::span<const std::byte>& in, std::size_t smallest = 1) {
  const auto count = decode_number<std::uint64_t>(in);
  if (count > in.size() / smallest) {
    throw std::runtime_error(message({"Codec: ", count, " elements announced, only ", in.size(), " bytes left"}));
  }
  return static_cast<std::size_t>(count);
}

/// Its elements lie in memory as they are encoded, one behind the other.
template <class T>
concept ImageSequence =
    Sequence<T> && std::ranges::contiguous_range<const T> && is_memory_image<typename T::value_type>();

/// Encodes how many elements there are. Returns what must follow.
template <ImageSequence T>
std::span<const std::byte> encode_count_of(const T& values, Bytes& out) {
  encode_number(static_cast<std::uint64_t>(std::ranges::size(values)), out);
  return std::as_bytes(std::span{std::ranges::data(values), std::ranges::size(values)});
}

template <class T>
void encode_sequence(const T& values, Bytes& out) {
  using Element = typename T::value_type;
  if constexpr (ImageSequence<T>) {
    const auto elements = encode_count_of(values, out);
    if (!elements.empty()) append(out, elements.data(), elements.size());
  } else {
    encode_number(static_cast<std::uint64_t>(std::ranges::size(values)), out);
    for (const auto& value : values) encode<Element>(value, out);
  }
}

template <class T>
T decode_sequence(std::span<const std::byte>& in) {
  using Element = typename T::value_type;
  T values;
  if constexpr (std::ranges::contiguous_range<T> && is_memory_image<Element>() &&
                std::is_default_constructible_v<Element>) {
    const std::size_t count = decode_count(in, sizeof(Element));
    const auto bytes = take(in, count * sizeof(Element));
    if constexpr (std::same_as<Element, char> || std::same_as<Element, unsigned char> ||
                  std::same_as<Element, std::byte>) {
      // These may be looked at as each other, so nothing has to be made first.
      const auto* const first = reinterpret_cast<const Element*>(bytes.data());
      values.assign(first, first + count);
      return values;
    }
    values.resize(count);
    if (count > 0) std::memcpy(static_cast<void*>(std::ranges::data(values)), bytes.data(), bytes.size());
  } else {
    const std::size_t count = decode_count(in);
    if constexpr (requires { values.reserve(count); }) values.reserve(std::min(count, in.size() / sizeof(Element) + 1));
    for (std::size_t i = 0; i < count; ++i) values.push_back(decode<Element>(in));
  }
  return values;
}

template <class T>
T decode_container(std::span<const std::byte>& in) {
  T values;
  const std::size_t count = decode_count(in);
  for (std::size_t i = 0; i < count; ++i) {
    if constexpr (Map<T>) {
      auto key = decode<typename T::key_type>(in);
      auto mapped = decode<typename T::mapped_type>(in);
      values.emplace(std::move(key), std::move(mapped));
    } else {
      values.insert(decode<typename T::key_type>(in));
    }
  }
  return values;
}

template <class T, std::size_t... I>
T decode_variant(std::span<const std::byte>& in, std::index_sequence<I...>) {
  const auto index = decode_number<std::uint32_t>(in);
  std::optional<T> value;
  static_cast<void>(
      ((index == I ? (value.emplace(std::in_place_index<I>, decode<std::variant_alternative_t<I, T>>(in)), true)
                   : false) ||
       ...));
  if (!value) {
    throw std::runtime_error(message({"Codec: a variant of ", sizeof...(I), " has no alternative ", index}));
  }
  return std::move(*value);
}

// Into an object that exists: C arrays cannot be returned.
template <class T>
void decode_into(T& value, std::span<const std::byte>& in) {
  if constexpr (std::is_array_v<T>) {
    for (auto& element : value) decode_into(element, in);
  } else {
    value = decode<T>(in);
  }
}

template <class T>
void encode_part(const T& value, Bytes& out) {
  if constexpr (std::is_array_v<T>) {
    for (const auto& element : value) encode_part(element, out);
  } else {
    encode<T>(value, out);
  }
}

template <class Tuple>
inline constexpr bool holds_array = false;
template <class... Parts>
inline constexpr bool holds_array<std::tuple<Parts...>> = (std::is_array_v<std::remove_reference_t<Parts>> || ...);

template <class T, std::size_t... I>
T decode_parts(std::span<const std::byte>& in, std::index_sequence<I...>) {
  // Braces, which evaluate from left to right.
  return T{decode<std::remove_cvref_t<std::tuple_element_t<I, T>>>(in)...};
}

template <class T, class... Fields>
T decode_fields(std::span<const std::byte>& in, std::type_identity<std::tuple<Fields...>>) {
  if constexpr ((std::is_array_v<std::remove_reference_t<Fields>> || ...)) {
    T value{};
    std::apply([&](auto&... fields) { (decode_into(fields, in), ...); }, fields_of(value));
    return value;
  } else {
    return T{decode<std::remove_cvref_t<Fields>>(in)...};
  }
}

}  // namespace detail

template <class T>
struct Codec {
  using built_in = void;

  static void encode(const T& value, Bytes& out)
    requires Serializable<T>
  {
    using namespace detail;
    if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      encode_number(value, out);
    } else if constexpr (std::same_as<T, std::monostate>) {
      encode_nothing(out);
    } else if constexpr (PathLike<T>) {
      encode_sequence(value.native(), out);
    } else if constexpr (is_duration<T>) {
      encode_number(value.count(), out);
    } else if constexpr (is_time_point<T>) {
      encode_number(value.time_since_epoch().count(), out);
    } else {
      const NestingGuard guard;
      if constexpr (is_memory_image<T>()) {
        append(out, std::addressof(value), sizeof(T));
      } else if constexpr (is_std_array<T>) {
        if (value.empty()) encode_nothing(out);
        for (const auto& element : value) detail::encode<typename T::value_type>(element, out);
      } else if constexpr (Map<T>) {
        encode_number(static_cast<std::uint64_t>(value.size()), out);
        for (const auto& [key, mapped] : value) {
          detail::encode<typename T::key_type>(key, out);
          detail::encode<typename T::mapped_type>(mapped, out);
        }
      } else if constexpr (Sequence<T> || SetOrMap<T>) {
        encode_sequence(value, out);
      } else if constexpr (is_specialization<T, std::optional> || is_specialization<T, std::unique_ptr>) {
        encode_number(static_cast<bool>(value), out);
        if (value) detail::encode(*value, out);
      } else if constexpr (is_specialization<T, std::variant>) {
        if (value.valueless_by_exception()) throw std::runtime_error("Codec: a variant without a value");
        encode_number(static_cast<std::uint32_t>(value.index()), out);
        std::visit([&](const auto& held) { detail::encode(held, out); }, value);
      } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple>) {
        if constexpr (std::tuple_size_v<T> == 0) encode_nothing(out);
        std::apply([&](const auto&... parts) { (detail::encode(parts, out), ...); }, value);
      } else {
        if constexpr (std::tuple_size_v<fields_t<T>> == 0) encode_nothing(out);
        std::apply([&](const auto&... fields) { (encode_part(fields, out), ...); }, fields_of(value));
      }
    }
  }

  static T decode(std::span<const std::byte>& in)
    requires Serializable<T>
  {
    using namespace detail;
    if constexpr (std::same_as<T, bool>) {
      return decode_bool(in);
    } else if constexpr (std::is_enum_v<T>) {
      if constexpr (std::same_as<std::underlying_type_t<T>, bool>) return static_cast<T>(decode_bool(in));
      return decode_number<T>(in);
    } else if constexpr (std::is_arithmetic_v<T>) {
      return decode_number<T>(in);
    } else if constexpr (std::same_as<T, std::monostate>) {
      decode_nothing(in);
      return {};
    } else if constexpr (PathLike<T>) {
      return T(decode_sequence<typename T::string_type>(in));
    } else if constexpr (is_duration<T>) {
      return T{decode_number<typename T::rep>(in)};
    } else if constexpr (is_time_point<T>) {
      return T{typename T::duration{decode_number<typename T::rep>(in)}};
    } else {
      const NestingGuard guard;
      if constexpr (is_memory_image<T>()) {
        return copy_from<T>(take(in, sizeof(T)));
      } else if constexpr (is_std_array<T>) {
        if constexpr (std::tuple_size_v<T> == 0) decode_nothing(in);
        return decode_parts<T>(in, std::make_index_sequence<std::tuple_size_v<T>>{});
      } else if constexpr (Sequence<T>) {
        return decode_sequence<T>(in);
      } else if constexpr (SetOrMap<T>) {
        return decode_container<T>(in);
      } else if constexpr (is_specialization<T, std::optional>) {
        return decode_bool(in) ? T{detail::decode<typename T::value_type>(in)} : T{};
      } else if constexpr (is_specialization<T, std::unique_ptr>) {
        if (!decode_bool(in)) return nullptr;
        return std::make_unique<typename T::element_type>(detail::decode<typename T::element_type>(in));
      } else if constexpr (is_specialization<T, std::variant>) {
        return decode_variant<T>(in, std::make_index_sequence<std::variant_size_v<T>>{});
      } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple>) {
        if constexpr (std::tuple_size_v<T> == 0) decode_nothing(in);
        return decode_parts<T>(in, std::make_index_sequence<std::tuple_size_v<T>>{});
      } else {
        if constexpr (std::tuple_size_v<fields_t<T>> == 0) decode_nothing(in);
        return decode_fields<T>(in, std::type_identity<fields_t<T>>{});
      }
    }
  }
};

}  // namespace pyarallel

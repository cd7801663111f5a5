// What a type looks like to Codec, as text: two types with the same text have the same encoding, as far as that
// depends on their declarations.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <variant>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/message.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

/// A name as people write it: without the namespaces in which standard libraries version their types.
inline std::string plain_name(std::string name) {
  for (const std::string_view inner : {"__cxx11::", "__1::"}) {
    for (auto at = name.find(inner); at != std::string::npos; at = name.find(inner, at)) name.erase(at, inner.size());
  }
  return name;
}

/// `Above`: the types that it is a part of, which a recursive type meets again.
template <class T, class... Above>
std::string type_text();

template <class Tuple, class... Above>
inline constexpr bool parts_text = false;
template <template <class...> class Tuple, class... Parts, class... Above>
inline constexpr auto parts_text<Tuple<Parts...>, Above...> = [] {
  std::string text;
  ((text += (text.empty() ? "" : ", ") + type_text<std::remove_cvref_t<Parts>, Above...>()), ...);
  return text;
};

template <class T, class... Above>
std::string type_text() {
  const std::string name = plain_name(type_name_of(&typeid(T)));
  const std::string stem = name.substr(0, name.find('<'));
  if constexpr ((std::same_as<T, Above> || ...)) {
    return name;
  } else if constexpr (std::is_array_v<T>) {
    return type_text<std::remove_extent_t<T>, T, Above...>() + "[" + std::to_string(std::extent_v<T>) + "]";
  } else if constexpr (UserCodec<T>) {
    return name;
  } else if constexpr (std::same_as<T, std::string>) {
    return "std::string";
  } else if constexpr (std::is_enum_v<T>) {
    return name + ": " + type_text<std::underlying_type_t<T>>();
  } else if constexpr (std::is_arithmetic_v<T> || std::same_as<T, std::monostate> || PathLike<T> || is_duration<T> ||
                       is_time_point<T>) {
    return name;
  } else if constexpr (is_std_array<T>) {
    return message({"std::array<", type_text<typename T::value_type, T, Above...>(), ", ", std::tuple_size_v<T>, ">"});
  } else if constexpr (Map<T>) {
    return stem + "<" + type_text<typename T::key_type, T, Above...>() + ", " +
           type_text<typename T::mapped_type, T, Above...>() + ">";
  } else if constexpr (Sequence<T> || SetOrMap<T> || is_specialization<T, std::optional>) {
    return stem + "<" + type_text<typename T::value_type, T, Above...>() + ">";
  } else if constexpr (is_specialization<T, std::unique_ptr>) {
    return stem + "<" + type_text<typename T::element_type, T, Above...>() + ">";
  } else if constexpr (is_specialization<T, std::pair> || is_specialization<T, std::tuple> ||
                       is_specialization<T, std::variant>) {
    return stem + "<" + parts_text<T, T, Above...>() + ">";
  } else if constexpr (PlainBytes<T>) {
    return message({name, " of ", sizeof(T), " bytes"});
  } else {
    return name + "{" + parts_text<fields_t<T>, T, Above...>() + "}";
  }
}

}  // namespace pyarallel::detail

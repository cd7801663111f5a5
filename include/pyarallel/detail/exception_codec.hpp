// Exceptions as bytes, so that they cross a process boundary.
//
// The bytes of one exception, in the encoding of codec.hpp:
//   flags       1 byte: 1 = an exception is nested in it, 2 = its type can be rebuilt
//   if flag 1   the bytes of the nested exception
//   type name   string, as a person writes it
//   what()      string
//   if flag 2   type_info::name() (string), which of the types of that name (4 bytes), and what the type
//               holds beyond what() (count, bytes)
//
// Types are told apart by their dynamic type and nothing else: to rebuild a derived class as its base
// would be a lie that `catch` believes. Where the reader does not know the type, name and text are there.
//
// Encoding runs in a forked child of a parent with other threads: it takes no lock (the list of
// registered types is read without one), because another thread may have held it at the fork.
#pragma once

#include <any>
#include <array>
#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <ios>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/message.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/http.hpp"

namespace pyarallel::detail {

/// How deep exceptions are nested in each other, and groups within groups. What lies deeper is cut.
inline constexpr int deepest_exception = 64;

inline void encode_exception(const std::exception_ptr& exception, Bytes& out, int depth);
inline std::exception_ptr decode_exception(std::span<const std::byte>& in, int depth);

/// What an exception of type E holds beyond what(). This one: nothing. encode() is false if this very
/// exception cannot be rebuilt.
template <class E>
struct ExceptionBody {
  static bool encode(const E&, Bytes&, int) { return true; }
  static E decode(const std::string& what, std::span<const std::byte>&, int) {
    if constexpr (std::is_constructible_v<E, const std::string&>) {
      return E(what);
    } else {
      static_cast<void>(what);  // always the same
      return E();
    }
  }
};

/// The categories that every program has; others are objects of which the reader cannot know the place.
inline std::array<const std::error_category*, 4> error_categories() {
  return {&std::generic_category(), &std::system_category(), &std::iostream_category(), &std::future_category()};
}

inline bool encode_error_code(const std::error_code& code, Bytes& out) {
  std::uint8_t index = 0;
  for (const auto* category : error_categories()) {
    if (code.category() == *category) {
      encode_number(index, out);
      encode_number(static_cast<std::int32_t>(code.value()), out);
      return true;
    }
    ++index;
  }
  return false;
}

inline std::error_code decode_error_code(std::span<const std::byte>& in) {
  const auto categories = error_categories();
  const auto index = decode_number<std::uint8_t>(in);
  if (index >= categories.size()) throw std::runtime_error(message({"Codec: no error category has number ", index}));
  return {decode_number<std::int32_t>(in), *categories[index]};
}

/// Also for filesystem_error and ios_base::failure.
template <class E>
  requires std::derived_from<E, std::system_error>
struct ExceptionBody<E> {
  static constexpr bool is_filesystem_error = std::same_as<E, std::filesystem::filesystem_error>;

  static bool encode(const E& exception, Bytes& out, int) {
    // The constructors append ": " and the code's message to the text that they are given. Not the virtual
    // what(): filesystem_error's has the paths in it.
    std::string text = exception.std::runtime_error::what();
    const std::string message = exception.code().message();
    std::optional<std::string> given;
    if (text != message) {
      if (text.ends_with(": " + message)) {
        text.resize(text.size() - message.size() - 2);
      } else if (exception.code()) {
        return false;
      }  // else libc++, which leaves the message of "no error" out
      given = std::move(text);
    }
    detail::encode(given, out);
    if constexpr (is_filesystem_error) {
      detail::encode(exception.path1(), out);
      detail::encode(exception.path2(), out);
    }
    return encode_error_code(exception.code(), out);
  }

  static E decode(const std::string& what, std::span<const std::byte>& in, int) {
    const auto given = detail::decode<std::optional<std::string>>(in);
    if constexpr (is_filesystem_error) {
      const auto path1 = detail::decode<std::filesystem::path>(in);
      const auto path2 = detail::decode<std::filesystem::path>(in);
      const auto code = decode_error_code(in);
      // An empty path that was given shows as [] in the text.
      const auto text = given.value_or("");
      if (path1.empty() && path2.empty() && E(text, code).what() == what) return E(text, code);
      if (path2.empty() && E(text, path1, code).what() == what) return E(text, path1, code);
      return E(text, path1, path2, code);
    } else if constexpr (std::same_as<E, std::system_error>) {
      const auto code = decode_error_code(in);
      return given ? E(code, *given) : E(code);
    } else {
      return E(given.value_or(""), decode_error_code(in));
    }
  }
};
template <>
struct ExceptionBody<std::future_error> {
  static bool encode(const std::future_error& exception, Bytes& out, int) {
    encode_number(static_cast<std::int32_t>(exception.code().value()), out);
    return exception.code().category() == std::future_category();
  }
  static std::future_error decode(const std::string&, std::span<const std::byte>& in, int) {
    return std::future_error(static_cast<std::future_errc>(decode_number<std::int32_t>(in)));
  }
};

template <>
struct ExceptionBody<std::bad_variant_access> {
  static bool encode(const std::bad_variant_access&, Bytes&, int) { return true; }
  static std::bad_variant_access decode(const std::string& what, std::span<const std::byte>&, int) {
    // libstdc++ has several texts, and no way to name one but to earn it. This is what std::get throws.
    try {
      static_cast<void>(std::get<1>(std::variant<int, char>(0)));
    } catch (const std::bad_variant_access& exception) {
      if (exception.what() == what) return exception;
    }
    return {};
  }
};

template <>
struct ExceptionBody<HttpError> {
  static bool encode(const HttpError& exception, Bytes& out, int) {
    encode_number(static_cast<std::int32_t>(exception.status()), out);
    detail::encode(exception.retry_after(), out);
    return true;
  }
  static HttpError decode(const std::string& what, std::span<const std::byte>& in, int) {
    const auto status = decode_number<std::int32_t>(in);
    return HttpError(status, detail::decode<std::string>(in), what);
  }
};

template <>
struct ExceptionBody<WorkerCrashed> {
  static bool encode(const WorkerCrashed& exception, Bytes& out, int) {
    encode_number(static_cast<std::int32_t>(exception.signal()), out);
    encode_number(static_cast<std::int32_t>(exception.exit_code()), out);
    return true;
  }
  static WorkerCrashed decode(const std::string&, std::span<const std::byte>& in, int) {
    const auto signal = decode_number<std::int32_t>(in);
    return WorkerCrashed(signal, decode_number<std::int32_t>(in));
  }
};

template <>
struct ExceptionBody<RemoteError> {
  static bool encode(const RemoteError& exception, Bytes& out, int) {
    detail::encode(exception.type_name(), out);
    return true;
  }
  static RemoteError decode(const std::string& what, std::span<const std::byte>& in, int) {
    return RemoteError(detail::decode<std::string>(in), what);
  }
};

template <>
struct ExceptionBody<ExceptionGroup> {
  static bool encode(const ExceptionGroup& exception, Bytes& out, int depth) {
    const auto& failures = exception.failures();
    const std::size_t count = depth < deepest_exception ? failures.size() : 0;
    encode_number(static_cast<std::uint64_t>(count), out);
    for (std::size_t i = 0; i < count; ++i) {
      encode_number(static_cast<std::uint64_t>(failures[i].index), out);
      encode_exception(failures[i].error.ptr(), out, depth + 1);
    }
    return true;
  }
  static ExceptionGroup decode(const std::string& what, std::span<const std::byte>& in, int depth) {
    std::vector<Failure> failures;
    const std::size_t count = decode_count(in);
    for (std::size_t i = 0; i < count; ++i) {
      const auto index = static_cast<std::size_t>(decode_number<std::uint64_t>(in));
      failures.push_back(Failure{index, Error(decode_exception(in, depth + 1))});
    }
    return ExceptionGroup(what, std::move(failures));
  }
};

/// E(text) means the text. What is made from any pointer means something else: a bool, as a rule.
template <class E>
concept MadeOfText = std::derived_from<E, std::exception> &&
                     (std::is_constructible_v<E, const std::string&> ||
                      (std::is_constructible_v<E, const char*> && !std::is_constructible_v<E, const void*>));

/// For types that a program registers.
template <class E>
struct RegisteredBody {
  static bool encode(const E& exception, Bytes& out, int) {
    if constexpr (UserCodec<E> || !MadeOfText<E>) detail::encode<E>(exception, out);
    return true;
  }
  static E decode(const std::string& what, std::span<const std::byte>& in, int) {
    if constexpr (UserCodec<E> || !MadeOfText<E>) {
      static_cast<void>(what);
      return detail::decode<E>(in);
    } else if constexpr (std::is_constructible_v<E, const std::string&>) {
      return E(what);
    } else {
      return E(what.c_str());
    }
  }
};

/// What std::throw_with_nested throws is of a class of its own, derived from E, of which only the standard
/// library knows the name. nullptr: none, or not known here.
template <class E>
constexpr const std::type_info* nesting_type() {
  if constexpr (std::is_class_v<E> && !std::is_final_v<E> && !std::derived_from<E, std::nested_exception>) {
#if defined(_LIBCPP_VERSION)
    return &typeid(std::__nested<E>);
#elif defined(__GLIBCXX__)
    return &typeid(std::_Nested_exception<E>);
#endif
  }
  return nullptr;
}

template <class E>
bool is_exactly(const std::type_info& dynamic) {
  return dynamic == typeid(E) || (nesting_type<E>() != nullptr && dynamic == *nesting_type<E>());
}

/// The E in the name of that class; other names as they are.
inline std::string without_nesting(std::string name) {
  for (const std::string_view wrapper : {"std::_Nested_exception<", "std::__nested<"}) {
    if (name.starts_with(wrapper) && name.ends_with('>')) {
      name = name.substr(wrapper.size(), name.size() - wrapper.size() - 1);
      if (name.ends_with(' ')) name.pop_back();  // "A<B<C> >"
    }
  }
  return name;
}

/// A type of exception that can be rebuilt.
struct ExceptionType {
  const std::type_info* type;
  const std::type_info* nesting;  // see nesting_type()
  /// Appends what `exception`, of this type or of the nesting one, holds beyond what(). False if it cannot be rebuilt.
  bool (*encode)(const std::exception_ptr& exception, Bytes& out, int depth);
  /// Around `nested`, unless that is null. nullptr if the program's own code for the type fails.
  std::exception_ptr (*decode)(const std::string& what, std::span<const std::byte> body,
                               const std::exception_ptr& nested, int depth);

  bool is_type_of(const std::type_info& dynamic) const {
    return dynamic == *type || (nesting != nullptr && dynamic == *nesting);
  }
};

template <class E, class Body>
bool encode_exception_as(const std::exception_ptr& exception, Bytes& out, int depth) {
  try {
    std::rethrow_exception(exception);
  } catch (const E& e) {
    return Body::encode(e, out, depth);
  }
}

inline void check_all_read(std::span<const std::byte> body) {
  if (!body.empty()) throw std::runtime_error(message({"Codec: an exception leaves ", body.size(), " bytes"}));
}

template <class E, class Body>
std::exception_ptr decode_exception_as(const std::string& what, std::span<const std::byte> body,
                                       const std::exception_ptr& nested, int depth) {
  bool made = false;
  const auto make = [&]() -> E {
    E exception = Body::decode(what, body, depth);
    check_all_read(body);
    made = true;
    return exception;
  };
  try {
    if (!nested) throw make();
    try {
      std::rethrow_exception(nested);
    } catch (...) {
      // Made in here: an E that is a nested_exception itself takes the one being handled.
      std::throw_with_nested(make());
    }
  } catch (...) {
    const std::type_info* type = current_exception_type();
    // Another type although it was made: to copy it threw.
    if (made && (type == nullptr || is_exactly<E>(*type))) return std::current_exception();
    if constexpr (std::same_as<Body, RegisteredBody<E>>) return nullptr;
    throw;
  }
}

template <class E, class Body = ExceptionBody<E>>
inline constexpr ExceptionType exception_type{&typeid(E), nesting_type<E>(), &encode_exception_as<E, Body>,
                                              &decode_exception_as<E, Body>};

template <class... E>
inline constexpr std::array<const ExceptionType*, sizeof...(E)> exception_types{&exception_type<E>...};

inline constexpr auto& built_in_exceptions = exception_types<
    // the standard library's
    std::runtime_error, std::range_error, std::overflow_error, std::underflow_error, std::logic_error,
    std::invalid_argument, std::domain_error, std::length_error, std::out_of_range, std::system_error,
    std::filesystem::filesystem_error, std::ios_base::failure, std::future_error, std::bad_alloc,
    std::bad_array_new_length, std::bad_cast, std::bad_any_cast, std::bad_typeid, std::bad_function_call,
    std::bad_weak_ptr, std::bad_optional_access, std::bad_variant_access, std::bad_exception, std::exception,
    // ours
    HttpError, TimeoutError, TaskTimeout, Aborted, Cancelled, CheckpointError, WorkerCrashed, RemoteError,
    ExceptionGroup>;

/// One type that the program registered. Never removed, never changed.
struct RegisteredException {
  ExceptionType type;
  std::uint32_t number;  // of the registered types of that name: two files may each have one in an unnamed namespace
  const RegisteredException* next;
};
inline constinit std::atomic<const RegisteredException*> registered_exceptions{nullptr};

inline void add_registered_exception(const ExceptionType& type) {
  auto added = std::make_unique<RegisteredException>(RegisteredException{type, 0, nullptr});
  added->next = registered_exceptions.load(std::memory_order_acquire);
  do {
    added->number = 0;
    for (const auto* other = added->next; other != nullptr; other = other->next) {
      if (*other->type.type == *type.type) return;
      if (std::strcmp(other->type.type->name(), type.type->name()) == 0) ++added->number;
    }
    // Release: who finds it in the list finds it written. Acquire: for the walk over what others put before it.
  } while (!registered_exceptions.compare_exchange_weak(added->next, added.get(), std::memory_order_acq_rel,
                                                        std::memory_order_acquire));
  static_cast<void>(added.release());
}

/// A type, and which one of that name.
struct KnownException {
  const ExceptionType* type = nullptr;
  std::uint32_t number = 0;
};

inline KnownException known_exception(const std::type_info& dynamic) {
  for (const auto* type : built_in_exceptions) {
    if (type->is_type_of(dynamic)) return {type, 0};
  }
  for (const auto* entry = registered_exceptions.load(std::memory_order_acquire); entry != nullptr;
       entry = entry->next) {
    if (entry->type.is_type_of(dynamic)) return {&entry->type, entry->number};
  }
  // libstdc++'s streams throw a hidden class, which stands for the failures of both of its ABIs.
  if (std::strcmp(dynamic.name(), "St13__ios_failure") == 0) return {&exception_type<std::ios_base::failure>, 0};
  return {};
}

inline const ExceptionType* known_exception(const std::string& name, std::uint32_t number) {
  for (const auto* type : built_in_exceptions) {
    if (type->type->name() == name) return type;
  }
  for (const auto* entry = registered_exceptions.load(std::memory_order_acquire); entry != nullptr;
       entry = entry->next) {
    if (entry->number == number && entry->type.type->name() == name) return &entry->type;
  }
  return nullptr;
}

/// What can be said about any exception.
struct ExceptionPortrait {
  const std::type_info* type = nullptr;
  std::string what = "unknown exception";
  std::exception_ptr nested = nullptr;
};

inline ExceptionPortrait portrait_of(const std::exception_ptr& exception) {
  ExceptionPortrait portrait;
  const auto set_what = [&](const char* text) {
    if (text != nullptr) portrait.what = text;
  };
  if (!exception) return portrait;
  try {
    std::rethrow_exception(exception);
  } catch (const std::exception& e) {
    portrait.type = current_exception_type();
    set_what(e.what());
    if (const auto* nesting = dynamic_cast<const std::nested_exception*>(&e)) portrait.nested = nesting->nested_ptr();
  } catch (const std::nested_exception& e) {
    portrait.type = current_exception_type();
    portrait.nested = e.nested_ptr();
  } catch (const std::string& text) {
    portrait.type = current_exception_type();
    portrait.what = text;
  } catch (const char* text) {
    portrait.type = current_exception_type();
    set_what(text);
  } catch (...) {
    portrait.type = current_exception_type();
  }
  return portrait;
}

inline constexpr std::uint8_t exception_is_nesting = 1;
inline constexpr std::uint8_t exception_can_be_rebuilt = 2;

inline void encode_exception(const std::exception_ptr& exception, Bytes& out, int depth) {
  const ExceptionPortrait portrait = portrait_of(exception);
  const bool nesting = portrait.nested && depth < deepest_exception;
  const KnownException known = portrait.type != nullptr ? known_exception(*portrait.type) : KnownException{};
  Bytes body;
  bool can_be_rebuilt = false;
  if (known.type != nullptr) {
    try {
      can_be_rebuilt = known.type->encode(exception, body, depth);
    } catch (...) {
      // A codec of the program's own that fails: name and text are better than the codec's error.
    }
  }
  encode_number(
      static_cast<std::uint8_t>((nesting ? exception_is_nesting : 0) | (can_be_rebuilt ? exception_can_be_rebuilt : 0)),
      out);
  if (nesting) encode_exception(portrait.nested, out, depth + 1);
  detail::encode(without_nesting(type_name_of(portrait.type)), out);
  detail::encode(portrait.what, out);
  if (can_be_rebuilt) {
    detail::encode(std::string(known.type->type->name()), out);
    encode_number(known.number, out);
    detail::encode(body, out);
  }
}

inline std::exception_ptr decode_exception(std::span<const std::byte>& in, int depth) {
  if (depth > deepest_exception) {
    throw std::runtime_error(message({"Codec: exceptions are nested deeper than ", deepest_exception}));
  }
  const auto flags = decode_number<std::uint8_t>(in);
  if (flags > (exception_is_nesting | exception_can_be_rebuilt)) {
    throw std::runtime_error(message({"Codec: an exception has no flags ", flags}));
  }
  const auto nested = (flags & exception_is_nesting) != 0 ? decode_exception(in, depth + 1) : nullptr;
  auto type_name = decode<std::string>(in);
  const auto what = decode<std::string>(in);
  if ((flags & exception_can_be_rebuilt) != 0) {
    const auto name = decode<std::string>(in);
    const auto number = decode_number<std::uint32_t>(in);
    const auto body = take(in, decode_count(in));
    if (const auto* type = known_exception(name, number)) {
      if (auto rebuilt = type->decode(what, body, nested, depth)) return rebuilt;
    }
  }
  Bytes body;
  detail::encode(type_name, body);
  return exception_type<RemoteError>.decode(what, body, nested, depth);
}

/// Appends the bytes. Only memory that runs out makes it throw; then `out` is as before. Null: a
/// RemoteError that says that nothing is known.
inline void encode_exception(const std::exception_ptr& exception, Bytes& out) {
  const std::size_t before = out.size();
  try {
    encode_exception(exception, out, 0);
  } catch (...) {
    out.resize(before);
    throw;
  }
}

/// Takes its bytes from the front of `in`. Never null. std::runtime_error if they are no exception.
inline std::exception_ptr decode_exception(std::span<const std::byte>& in) { return decode_exception(in, 0); }

}  // namespace pyarallel::detail

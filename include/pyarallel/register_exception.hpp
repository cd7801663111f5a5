// Exception types of a program that shall survive a process boundary.
#pragma once

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/exception_codec.hpp"

namespace pyarallel {

/// From now on an E that a worker process throws reaches the caller as an E (also one inside
/// std::throw_with_nested), not as a RemoteError:
///
///     struct QuotaExceeded : std::runtime_error {
///       using runtime_error::runtime_error;
///     };
///     pyarallel::register_exception<QuotaExceeded>();
///
/// E crosses by its Codec, or without one as its what(), from which E(text) makes a new one: give it a
/// Codec if it holds more than that, or if its constructor changes the text. Classes derived from E are
/// types of their own.
///
/// Register before the call whose workers throw E: they inherit what is registered then. Again is fine,
/// as is any thread, and any time before main(). Exceptions of pyarallel and of the standard library need
/// it not, but for those of <regex>, <format> and <chrono>.
template <class E>
void register_exception() {
  static_assert(std::is_object_v<E> && !std::is_const_v<E> && !std::is_volatile_v<E>,
                "pyarallel: register_exception<E>() takes the type as it is thrown, without const or reference");
  static_assert(
      Serializable<E> || detail::MadeOfText<E>,
      "pyarallel: register_exception<E>() needs a specialisation of pyarallel::Codec<E>, or an E that derives "
      "from std::exception and can be made from a std::string or const char*");
  detail::add_registered_exception(detail::exception_type<E, detail::RegisteredBody<E>>);
}

}  // namespace pyarallel

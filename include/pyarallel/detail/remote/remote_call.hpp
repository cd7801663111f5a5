// How a call is known on other machines: which function, and which code decodes its items, calls it, and encodes its
// values. The same program runs there, so that code is there too, under the same name.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/invoke.hpp"
#include "pyarallel/remote_executor.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel::detail {

/// `F`: a function, a pointer to one, or a function object.
template <class F>
RemoteFunction remote_function(F& fn) noexcept {
  using Plain = std::remove_cv_t<F>;
  if constexpr (std::is_function_v<Plain>) {
    return {.type = &typeid(Plain), .code = reinterpret_cast<void (*)()>(&fn)};
  } else if constexpr (std::is_pointer_v<Plain> && std::is_function_v<std::remove_pointer_t<Plain>>) {
    return {.type = &typeid(std::remove_pointer_t<Plain>), .code = reinterpret_cast<void (*)()>(fn)};
  } else {
    return {.type = &typeid(Plain), .object = std::addressof(fn), .holds_nothing = std::is_empty_v<Plain>};
  }
}

/// Runs an encoded item, and appends the encoded value. Throws what fn throws, and what decoding and encoding throw.
using RunEncoded = void(const RemoteFunction& function, std::span<const std::byte> item, const Task& task,
                        Bytes& value);

/// An entry in the list of all calls of this program that may run on other machines. Made before main(), and with a
/// plugin that is loaded.
class RemoteCallEntry {
 public:
  RemoteCallEntry(const char* name, RunEncoded* run) noexcept : name_(name), run_(run) {
    next_ = first().load(std::memory_order_relaxed);
    while (!first().compare_exchange_weak(next_, this, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }
  RemoteCallEntry(const RemoteCallEntry&) = delete;
  RemoteCallEntry& operator=(const RemoteCallEntry&) = delete;

  std::string_view name() const noexcept { return name_; }

  /// Null: there is no such call. O(calls in the program).
  static RunEncoded* find(std::string_view name) noexcept {
    for (const RemoteCallEntry* entry = first().load(std::memory_order_acquire); entry != nullptr;
         entry = entry->next_) {
      if (entry->name_ == name) return entry->run_;
    }
    return nullptr;
  }

 private:
  static std::atomic<const RemoteCallEntry*>& first() noexcept {
    static constinit std::atomic<const RemoteCallEntry*> entry{nullptr};
    return entry;
  }

  const char* name_;
  RunEncoded* run_;
  const RemoteCallEntry* next_ = nullptr;
};

/// `Invoke`: as ItemFunction.
template <class R, class Items, class Invoke>
struct RemoteCall {
  static void run(const RemoteFunction& function, std::span<const std::byte> bytes, const Task& task, Bytes& value) {
    using Reference = decltype(Invoke::fn);
    using F = std::remove_reference_t<Reference>;
    auto item = Codec<item_t<Items>>::decode(bytes);
    const auto call = [&](F& fn) {
      Invoke invoke{fn};
      auto& arg = static_cast<std::remove_reference_t<item_arg_t<Items>>&>(item);
      if constexpr (std::is_void_v<decltype(invoke(arg, task))>) {
        invoke(arg, task);
        Codec<R>::encode(R{}, value);
      } else {
        Codec<R>::encode(R(invoke(arg, task)), value);
      }
    };
    if constexpr (std::is_function_v<F>) {
      call(*reinterpret_cast<F*>(function.code));
    } else if constexpr (std::is_pointer_v<std::remove_cv_t<F>>) {
      F pointer = reinterpret_cast<std::remove_cv_t<F>>(function.code);
      call(pointer);
    } else {
      call(*static_cast<F*>(const_cast<void*>(function.object)));
    }
  }

  // The name tells calls apart: it has the types of the function, the items and the result.
  inline static const RemoteCallEntry entry{typeid(RemoteCall).name(), &run};
};

}  // namespace pyarallel::detail

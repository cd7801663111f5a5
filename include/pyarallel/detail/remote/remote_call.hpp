// How a call is known on other machines: which function, and which code decodes its items, calls it, and encodes its
// values. The same program runs there, so that code is there too, under the same name.
#pragma once

#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/invoke.hpp"
#include "pyarallel/detail/remote/named_code.hpp"
#include "pyarallel/remote_executor.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel {

template <class F>
class ParallelFunction;

namespace detail {

/// One for each type, also where two files of a program have types of the same name that are their own.
template <class F>
inline constexpr char remote_tag = 0;

/// `F`: a function, a pointer to one, or a function object.
template <class F>
RemoteFunction remote_function(F& fn) noexcept {
  using Plain = std::remove_cv_t<F>;
  if constexpr (std::is_function_v<Plain>) {
    return {.type = &typeid(Plain), .code = reinterpret_cast<void (*)()>(&fn)};
  } else if constexpr (std::is_pointer_v<Plain> && std::is_function_v<std::remove_pointer_t<Plain>>) {
    return {.type = &typeid(std::remove_pointer_t<Plain>), .code = reinterpret_cast<void (*)()>(fn)};
  } else {
    return {.type = &typeid(Plain),
            .object = std::addressof(fn),
            .tag = std::is_empty_v<Plain> ? &remote_tag<Plain> : nullptr};
  }
}

/// What a ParallelFunction's copies share is the function.
template <class F>
RemoteFunction remote_function(const ParallelFunction<F>& fn) noexcept {
  return remote_function(fn.target());
}
template <class F>
RemoteFunction remote_function(ParallelFunction<F>& fn) noexcept {
  return remote_function(fn.target());
}

/// `Invoke`, but it refers to the function; and to the one behind it, where that is a ParallelFunction.
template <class Invoke>
struct RemoteInvoke;
template <template <class> class Invoke, class F>
struct RemoteInvoke<Invoke<F>> {
  using type = Invoke<std::remove_reference_t<F>&>;
};
template <template <class> class Invoke, class F>
  requires requires { typename F::pyarallel_target; }
struct RemoteInvoke<Invoke<F>> {
  using type = Invoke<typename F::pyarallel_target&>;
};

/// What the code of a call says about items that it runs one behind the other.
class RemoteSink {
 public:
  /// Before the item `index`: how many to run before it is asked again; 0: the rest should not run.
  virtual std::size_t go_on(std::size_t index) = 0;
  /// The item has no value, and nothing of it is in `values`.
  virtual void fail(std::size_t index, const std::exception_ptr& error) = 0;

 protected:
  ~RemoteSink() = default;
};

/// Runs encoded items, `task.index` being the first one's, and appends their encoded values. Throws nothing but what
/// the sink throws.
using RunEncoded = void(const RemoteFunction& function, std::size_t count, std::span<const std::byte> items, Task& task,
                        Bytes& values, RemoteSink& sink);

/// Appends encoded values, small ones many at a time.
template <class R>
class ValueBuffer {
 public:
  explicit ValueBuffer(Bytes& values) : values_(values) {}

  /// Throws what encoding throws; then nothing of it is there.
  void add(const R& value) {
    if constexpr (together > 1) {
      std::memcpy(bytes_.data() + used_, &value, sizeof value);
      used_ += sizeof value;
      if (used_ == bytes_.size()) flush();
    } else {
      const std::size_t before = values_.size();
      try {
        Codec<R>::encode(value, values_);
      } catch (...) {
        values_.resize(before);
        throw;
      }
    }
  }

  void flush() {
    append(values_, bytes_.data(), used_);
    used_ = 0;
  }

 private:
  static constexpr std::size_t together = is_memory_image<R>() ? 512 / sizeof(R) : 0;

  Bytes& values_;
  std::array<std::byte, together * sizeof(R)> bytes_;
  std::size_t used_ = 0;
};

/// `Invoke`: as ItemFunction.
template <class R, class Items, class Invoke>
struct RemoteCall {
  static void run(const RemoteFunction& function, std::size_t count, std::span<const std::byte> items, Task& task,
                  Bytes& values, RemoteSink& sink) {
    using F = std::remove_reference_t<decltype(RemoteInvoke<Invoke>::type::fn)>;
    if constexpr (std::is_function_v<F>) {
      run_on(*reinterpret_cast<F*>(function.code), count, items, task, values, sink);
    } else if constexpr (std::is_pointer_v<std::remove_cv_t<F>>) {
      F pointer = reinterpret_cast<std::remove_cv_t<F>>(function.code);
      run_on(pointer, count, items, task, values, sink);
    } else {
      run_on(*static_cast<F*>(const_cast<void*>(function.object)), count, items, task, values, sink);
    }
  }

  template <class F>
  static void run_on(F& fn, std::size_t count, std::span<const std::byte> items, Task& task, Bytes& values,
                     RemoteSink& sink) {
    typename RemoteInvoke<Invoke>::type invoke{fn};
    ValueBuffer<R> buffer{values};
    std::size_t ask = task.index;
    for (const std::size_t last = task.index + count; task.index < last; ++task.index) {
      if (task.index == ask) {
        const std::size_t more = sink.go_on(task.index);
        if (more == 0) break;
        ask += more;
      }
      bool decoded = false;
      try {
        auto item = Codec<item_t<Items>>::decode(items);
        decoded = true;
        auto& arg = static_cast<std::remove_reference_t<item_arg_t<Items>>&>(item);
        if constexpr (std::is_void_v<decltype(invoke(arg, std::as_const(task)))>) {
          invoke(arg, std::as_const(task));
          buffer.add(R{});
        } else {
          buffer.add(R(invoke(arg, std::as_const(task))));
        }
      } catch (...) {
        buffer.flush();
        sink.fail(task.index, std::current_exception());
        if (decoded) continue;
        // Nobody knows where the next one begins.
        while (++task.index < last) sink.fail(task.index, std::current_exception());
        break;
      }
    }
    buffer.flush();
  }

  // The name has the types of the function, the items and the result.
  inline static const NamedCode<RunEncoded> code{typeid(RemoteCall).name(), &run};
};

}  // namespace detail
}  // namespace pyarallel

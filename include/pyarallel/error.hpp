// What items and runs fail with: a caught exception as data, and the exceptions of this library.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#if __has_include(<cxxabi.h>)
#include <cxxabi.h>

#include <cstdlib>
#endif

namespace pyarallel {

namespace detail {

/// Demangled name of the exception being handled. Call it inside a catch block.
inline std::string current_exception_type_name() {
#if __has_include(<cxxabi.h>)
  const std::type_info* type = abi::__cxa_current_exception_type();
  if (type == nullptr) return "unknown type";  // a foreign exception, not thrown by C++
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name{abi::__cxa_demangle(type->name(), nullptr, nullptr, &status),
                                                         &std::free};
  return status == 0 ? name.get() : type->name();
#else
  try {
    throw;
  } catch (const std::exception& e) {
    return typeid(e).name();
  } catch (...) {
    return "unknown type";
  }
#endif
}

}  // namespace detail

/// A caught exception as data: the std::exception_ptr, and what a person wants to read of it.
/// Copies share the exception. Safe to read from several threads at once. Each question below
/// rethrows and catches inside, which costs about a microsecond.
class Error {
 public:
  /// std::invalid_argument if the pointer is null.
  explicit Error(std::exception_ptr exception) : exception_(std::move(exception)) {
    if (!exception_) throw std::invalid_argument("Error: the exception_ptr must not be null");
  }

  /// `e.what()`, or "unknown exception" if it is not a std::exception.
  std::string what() const {
    const auto* exception = get_if<std::exception>();
    return exception != nullptr ? exception->what() : "unknown exception";
  }

  /// Demangled dynamic type, such as "std::out_of_range"; "int" for `throw 42`.
  std::string type_name() const {
    try {
      std::rethrow_exception(exception_);
    } catch (...) {
      return detail::current_exception_type_name();
    }
  }

  /// True if the dynamic type is E or derived from it.
  template <class E>
  bool is() const {
    try {
      std::rethrow_exception(exception_);
    } catch (const E&) {
      return true;
    } catch (...) {
      return false;
    }
  }

  /// The exception if it is an E or derived from it, else nullptr. Valid as long as this Error or a copy.
  template <class E>
  const E* get_if() const {
    static_assert(!std::is_pointer_v<E> && !std::is_member_pointer_v<E>,
                  "pyarallel: a thrown pointer has no address to give; ask is<E>(), or rethrow() and catch it");
    try {
      std::rethrow_exception(exception_);
    } catch (const E& e) {
      return std::addressof(e);
    } catch (...) {
      return nullptr;
    }
  }

  const std::exception_ptr& ptr() const { return exception_; }

  [[noreturn]] void rethrow() const { std::rethrow_exception(exception_); }

 private:
  std::exception_ptr exception_;
};

/// One failed item: its position in the input, and why.
struct Failure {
  std::size_t index;
  Error error;
};

/// The run's `timeout` was reached.
struct TimeoutError : std::runtime_error {
  using runtime_error::runtime_error;
};
/// One attempt took longer than `task_timeout`.
struct TaskTimeout : TimeoutError {
  using TimeoutError::TimeoutError;
};
/// `max_errors` was reached.
struct Aborted : std::runtime_error {
  using runtime_error::runtime_error;
};
/// `stop` was requested.
struct Cancelled : std::runtime_error {
  using runtime_error::runtime_error;
};

/// All failures of a run, thrown by the accessors that promise whole results.
class ExceptionGroup : public std::runtime_error {
 public:
  ExceptionGroup(std::string what, std::vector<Failure> failures)
      : runtime_error(what), failures_(std::make_shared<const std::vector<Failure>>(std::move(failures))) {}

  /// In input order.
  const std::vector<Failure>& failures() const noexcept { return *failures_; }

 private:
  // Shared, because copying an exception must not throw.
  std::shared_ptr<const std::vector<Failure>> failures_;
};

}  // namespace pyarallel

// What items and runs fail with: a caught exception as data, and the exceptions of this library.
#pragma once

#include <cstddef>
#include <cstring>
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

/// Dynamic type of the exception being handled, nullptr if it cannot be told. Call it inside a catch block.
inline const std::type_info* current_exception_type() {
#if __has_include(<cxxabi.h>)
  return abi::__cxa_current_exception_type();  // nullptr: a foreign exception, not thrown by C++
#else
  try {
    throw;
  } catch (const std::exception& e) {
    return &typeid(e);
  } catch (...) {
    return nullptr;
  }
#endif
}

/// The name that a person would write, "unknown type" for nullptr.
inline std::string type_name_of(const std::type_info* type) {
  if (type == nullptr) return "unknown type";
#if __has_include(<cxxabi.h>)
  int status = 0;
  const std::unique_ptr<char, decltype(&std::free)> name{abi::__cxa_demangle(type->name(), nullptr, nullptr, &status),
                                                         &std::free};
  if (status == 0) return name.get();
#endif
  return type->name();
}

/// Demangled name of the exception being handled. Call it inside a catch block.
inline std::string current_exception_type_name() { return type_name_of(current_exception_type()); }

/// "signal 11 (Segmentation fault)"
inline std::string signal_text(int signal) {
  const char* description = nullptr;
  // Not strsignal(): it translates, which takes locks, and its buffer may be shared by all threads.
#if defined(__GLIBC__) && defined(_GNU_SOURCE)
#if __GLIBC_PREREQ(2, 32)
  description = ::sigdescr_np(signal);
#endif
#endif
  std::string text = "signal " + std::to_string(signal);
  if (description != nullptr) text.append(" (").append(description).append(")");
  return text;
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

/// A checkpoint file that cannot be used, or not for this run.
struct CheckpointError : std::runtime_error {
  using runtime_error::runtime_error;
};

/// A forked worker died while it ran this item.
class WorkerCrashed : public std::runtime_error {
 public:
  /// `signal`: 0 if it exited. `exit_code`: -1 if a signal ended it. 0 and -1: nobody knows.
  WorkerCrashed(int signal, int exit_code) : WorkerCrashed(signal, exit_code, {}) {}
  /// The same, with something to say before it.
  WorkerCrashed(int signal, int exit_code, const std::string& context)
      : runtime_error(context + text_of(signal, exit_code)), signal_(signal), exit_code_(exit_code) {}

  /// 0 if it exited.
  int signal() const noexcept { return signal_; }
  /// -1 if a signal ended it.
  int exit_code() const noexcept { return exit_code_; }

 private:
  static std::string text_of(int signal, int exit_code) {
    if (signal != 0) return "the worker process was killed by " + detail::signal_text(signal);
    if (exit_code != -1) return "the worker process exited with code " + std::to_string(exit_code);
    return "the worker process died; how is unknown, because something else in this program reaps or ignores its "
           "children";
  }

  int signal_;
  int exit_code_;
};

/// An exception of a type that could not be rebuilt on this side of a process boundary. what() is the
/// original text. To get the type itself, see register_exception().
class RemoteError : public std::runtime_error {
 public:
  RemoteError(std::string type_name, std::string what)
      : runtime_error(what), type_name_(std::make_shared<const std::string>(std::move(type_name))) {}

  /// Demangled type of the original; "int" for `throw 42`.
  const std::string& type_name() const noexcept { return *type_name_; }

 private:
  // Shared, because copying an exception must not throw.
  std::shared_ptr<const std::string> type_name_;
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

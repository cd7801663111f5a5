// When and how an item that failed is tried again.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/remote/named_code.hpp"
#include "pyarallel/detail/require.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel {

template <class... E>
struct retry_on_t {};

/// Retry filter: `.on = retry_on<std::system_error, HttpError>` retries errors of these types (or
/// derived from them) only.
template <class... E>
inline constexpr retry_on_t<E...> retry_on{};

namespace detail {

/// Other machines ask it too, for they have the exception as it was thrown.
using ErrorFilterCode = bool(const Error&);

template <class... E>
struct ErrorFilterOn {
  static bool matches([[maybe_unused]] const Error& error) { return (error.is<E>() || ...); }
  inline static const NamedCode<ErrorFilterCode> code{typeid(ErrorFilterOn).name(), &matches};
};

}  // namespace detail

/// Which error types are retried. Default: any.
class ErrorFilter {
 public:
  ErrorFilter() = default;

  template <class... E>
  explicit(false) ErrorFilter(retry_on_t<E...>)
      : matches_(&detail::ErrorFilterOn<E...>::matches), code_(&detail::ErrorFilterOn<E...>::code) {}

  bool matches(const Error& error) const { return matches_ == nullptr || matches_(error); }
  /// Null: all match.
  const detail::NamedCode<detail::ErrorFilterCode>* code() const noexcept { return code_; }

 private:
  detail::ErrorFilterCode* matches_ = nullptr;
  const detail::NamedCode<detail::ErrorFilterCode>* code_ = nullptr;
};

namespace detail {

// The one parameter of a callable, where it can be deduced: function pointers and objects whose
// operator() is neither a template nor overloaded.
template <class Signature>
struct only_parameter {};
template <class Answer, class Parameter>
struct only_parameter<Answer (*)(Parameter)> : std::type_identity<Parameter> {};
template <class Answer, class Parameter>
struct only_parameter<Answer (*)(Parameter) noexcept> : std::type_identity<Parameter> {};
template <class Object, class Answer, class Parameter>
struct only_parameter<Answer (Object::*)(Parameter)> : std::type_identity<Parameter> {};
template <class Object, class Answer, class Parameter>
struct only_parameter<Answer (Object::*)(Parameter) const> : std::type_identity<Parameter> {};
template <class Object, class Answer, class Parameter>
struct only_parameter<Answer (Object::*)(Parameter) noexcept> : std::type_identity<Parameter> {};
template <class Object, class Answer, class Parameter>
struct only_parameter<Answer (Object::*)(Parameter) const noexcept> : std::type_identity<Parameter> {};

template <class F>
auto deduced_error_type() {
  if constexpr (requires { typename only_parameter<F>::type; }) {
    return std::type_identity<std::remove_cvref_t<typename only_parameter<F>::type>>{};
  } else if constexpr (requires { typename only_parameter<decltype(&F::operator())>::type; }) {
    return std::type_identity<std::remove_cvref_t<typename only_parameter<decltype(&F::operator())>::type>>{};
  } else {
    return std::type_identity<Error>{};  // a generic lambda sees the Error itself
  }
}

}  // namespace detail

/// Holds a callable over one exception type, deduced from its parameter, or over Error:
/// `[](const HttpError& e) { return e.status() == 429; }`. It is called only for errors of that
/// type, concurrently from all workers; for other errors `otherwise` is the answer.
template <class Answer>
class ErrorFunction {
 public:
  ErrorFunction() = default;

  template <class F>
    requires(!std::same_as<std::remove_cvref_t<F>, ErrorFunction>)
  explicit(false) ErrorFunction(F f) {
    using E = typename decltype(detail::deduced_error_type<F>())::type;
    static_assert(std::is_invocable_r_v<Answer, F&, const E&>,
                  "pyarallel: retry_if and wait_from take a callable over one exception type by const reference, "
                  "such as [](const HttpError& e) { ... }");
    ask_ = [f = std::move(f)](const Error& error, Answer otherwise) mutable -> Answer {
      if constexpr (std::same_as<E, Error>) {
        return f(error);
      } else {
        const E* exception = error.get_if<E>();
        return exception != nullptr ? Answer(f(*exception)) : otherwise;
      }
    };
  }

  explicit operator bool() const { return static_cast<bool>(ask_); }

  Answer operator()(const Error& error, Answer otherwise) const { return ask_ ? ask_(error, otherwise) : otherwise; }

 private:
  std::function<Answer(const Error&, Answer)> ask_;
};

struct HttpRetry;

/// Per-item retry: exponential backoff, jitter, and waits that the server mandates.
///
/// The delay before attempt n+1 is min(backoff * 2^(n-1), max_delay), times a random factor in
/// [0.5, 1.5) with jitter. A server's wait (`wait_from`) replaces it, clamped to max_server_wait,
/// un-jittered, and also pauses the run's Limiter, even after the last attempt. Every retry draws a
/// fresh token of the rate limit. Bad values throw std::invalid_argument when a run uses them.
struct Retry {
  int attempts = 3;  ///< In all, the first one included; >= 1.
  Duration backoff = std::chrono::seconds{1};
  Duration max_delay = std::chrono::seconds{60};
  bool jitter = true;
  ErrorFilter on = {};
  ErrorFunction<bool> retry_if = {};                                    ///< And-ed with `on`; true for other types.
  ErrorFunction<std::optional<Duration>> wait_from = {};                ///< nullopt for other types.
  std::optional<Duration> max_server_wait = std::chrono::seconds{600};  ///< nullopt: trust the server.

  /// 429/503 and Retry-After, prewired (<pyarallel/http.hpp>), for exception types E (default
  /// HttpError) that have status() and optionally retry_after(). Errors in E without a status are
  /// retried by type alone.
  template <class... E>
  static Retry for_http();
  template <class... E>
  static Retry for_http(const HttpRetry& http);
};

namespace detail {

inline void check(const Retry& retry) {
  require(retry.attempts >= 1, "Retry: attempts must be >= 1, got ", retry.attempts);
  require(retry.backoff >= Duration::zero(), "Retry: backoff must be >= 0, got ", retry.backoff);
  require(retry.max_delay >= Duration::zero(), "Retry: max_delay must be >= 0, got ", retry.max_delay);
  if (retry.max_server_wait) {
    require(*retry.max_server_wait >= Duration::zero(), "Retry: max_server_wait must be >= 0, got ",
            *retry.max_server_wait);
  }
}

/// The delay after the failed attempt `attempt` (1-based); `random` in [0, 1) is used with jitter.
inline Duration backoff_delay(const Retry& retry, int attempt, double random) noexcept {
  Duration delay = std::min(retry.backoff, retry.max_delay);
  for (int doubled = 1; doubled < attempt && delay > Duration::zero() && delay < retry.max_delay; ++doubled) {
    delay = delay > retry.max_delay / 2 ? retry.max_delay : delay * 2;
  }
  if (!retry.jitter) return delay;
  const double jittered = static_cast<double>(delay.count()) * (0.5 + random);
  return jittered < static_cast<double>(Duration::max().count()) ? Duration{static_cast<Duration::rep>(jittered)}
                                                                 : Duration::max();
}

}  // namespace detail
}  // namespace pyarallel

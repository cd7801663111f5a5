// C5 and R6: Error, ExceptionGroup, and how fmt prints them and the other types.
#include <fmt/format.h>

#include <exception>
#include <ios>
#include <memory>
#include <new>
#include <pyarallel.hpp>
#include <ranges>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace pyarallel;
using namespace std::chrono_literals;

namespace shop {
struct OutOfStock : std::runtime_error {
  explicit OutOfStock(int article_number) : runtime_error("out of stock"), article(article_number) {}
  int article;
};
struct NotAnException {
  int code;
};
}  // namespace shop

namespace {

template <class E>
Error error_of(E exception) {
  return Error{std::make_exception_ptr(std::move(exception))};
}

}  // namespace

// Error ----------------------------------------------------------------------------------------------

TEST_CASE("C5 an Error tells text and type of what was thrown") {
  const Error error = error_of(std::out_of_range("vector::at"));
  CHECK(error.what() == "vector::at");
  CHECK(error.type_name() == "std::out_of_range");
  CHECK(error_of(shop::OutOfStock{7}).type_name() == "shop::OutOfStock");
  CHECK(error_of(shop::OutOfStock{7}).what() == "out of stock");
  CHECK(error_of(std::bad_alloc{}).type_name() == "std::bad_alloc");
  CHECK(error_of(Cancelled{"stop"}).type_name() == "pyarallel::Cancelled");
}

TEST_CASE("C5 an Error tells the dynamic type and not the one it was caught by") {
  try {
    try {
      throw shop::OutOfStock{7};
    } catch (const std::exception&) {
      throw;
    }
  } catch (...) {
    const Error error{std::current_exception()};
    CHECK(error.type_name() == "shop::OutOfStock");
    CHECK(error.get_if<shop::OutOfStock>()->article == 7);
  }
}

TEST_CASE("C5 an Error holds what is no std exception") {
  const Error number = error_of(42);
  CHECK(number.type_name() == "int");
  CHECK(number.what() == "unknown exception");
  CHECK(number.is<int>());
  CHECK(*number.get_if<int>() == 42);
  CHECK_FALSE(number.is<long>());
  CHECK_FALSE(number.is<std::exception>());

  const Error literal = error_of(static_cast<const char*>("a literal"));
  CHECK(literal.type_name() == "char const*");
  CHECK(literal.is<const char*>());
  try {
    literal.rethrow();
  } catch (const char* text) {
    CHECK(std::string(text) == "a literal");
  }

  const Error text = error_of(std::string("a string"));
  CHECK(text.get_if<std::string>()->size() == 8);
  CHECK(text.what() == "unknown exception");

  CHECK(error_of(shop::NotAnException{3}).get_if<shop::NotAnException>()->code == 3);
  CHECK(error_of(shop::NotAnException{3}).type_name() == "shop::NotAnException");
}

TEST_CASE("C5 an Error knows the base classes of what was thrown") {
  const Error error = error_of(std::out_of_range("far"));
  CHECK(error.is<std::out_of_range>());
  CHECK(error.is<std::logic_error>());
  CHECK(error.is<std::exception>());
  CHECK_FALSE(error.is<std::runtime_error>());
  CHECK_FALSE(error.is<std::length_error>());
  CHECK(error.get_if<std::runtime_error>() == nullptr);
  CHECK(std::string(error.get_if<std::logic_error>()->what()) == "far");
  CHECK(error_of(TaskTimeout{"late"}).is<TimeoutError>());
  CHECK_FALSE(error_of(TimeoutError{"late"}).is<TaskTimeout>());
}

TEST_CASE("C5 get_if gives the exception itself for as long as any copy lives") {
  const auto make = [] { return error_of(shop::OutOfStock{9}); };
  Error first = make();
  const auto* found = first.get_if<shop::OutOfStock>();
  const Error copy = first;
  CHECK(copy.get_if<shop::OutOfStock>() == found);
  CHECK(copy.ptr() == first.ptr());
  first = error_of(1);
  CHECK(found->article == 9);
}

TEST_CASE("C5 rethrow throws the same exception again and again") {
  const Error error = error_of(shop::OutOfStock{5});
  for (int round = 0; round < 2; ++round) {
    try {
      error.rethrow();
    } catch (const shop::OutOfStock& e) {
      CHECK(e.article == 5);
      CHECK(&e == error.get_if<shop::OutOfStock>());
    }
  }
  CHECK_THROWS_AS(error_of(42).rethrow(), int);
}

TEST_CASE("C5 an Error is never empty") {
  CHECK_THROWS_AS(Error{std::exception_ptr{}}, std::invalid_argument);
  CHECK_THROWS_AS(Error{std::current_exception()}, std::invalid_argument);  // none is being handled
}

TEST_CASE("C5 an Error keeps nested exceptions") {
  const auto fail = [](int) -> int {
    try {
      throw shop::OutOfStock{3};
    } catch (...) {
      std::throw_with_nested(std::runtime_error("the order failed"));
    }
  };
  const auto result = parallel_map(fail, std::vector{1}, {.workers = 2});
  const Error& error = result.failures()[0].error;
  CHECK(error.what() == "the order failed");
  CHECK(error.is<std::runtime_error>());
  const auto* nested = error.get_if<std::nested_exception>();
  REQUIRE(nested != nullptr);
  CHECK(Error{nested->nested_ptr()}.get_if<shop::OutOfStock>()->article == 3);
}

TEST_CASE("C5 an Error is read from several threads at once") {
  const Error error = error_of(std::out_of_range("far"));
  std::vector<std::string> seen(8);
  {
    std::vector<std::jthread> threads;
    for (auto& text : seen) {
      threads.emplace_back([&] {
        for (int i = 0; i < 100; ++i) text = error.type_name() + error.what();
      });
    }
  }
  for (const auto& text : seen) CHECK(text == "std::out_of_rangefar");
}

// Exceptions of the library --------------------------------------------------------------------------

TEST_CASE("R6 an ExceptionGroup is a runtime_error that shares its failures with its copies") {
  const ExceptionGroup group{"2 of 3 tasks failed", {{0, error_of(1)}, {2, error_of(shop::OutOfStock{4})}}};
  const ExceptionGroup copy = group;
  CHECK(std::string(copy.what()) == "2 of 3 tasks failed");
  REQUIRE(copy.failures().size() == 2);
  CHECK(copy.failures()[1].index == 2);
  CHECK(copy.failures()[1].error.get_if<shop::OutOfStock>()->article == 4);
  CHECK(&copy.failures() == &group.failures());
  static_assert(std::is_nothrow_copy_constructible_v<ExceptionGroup>);
  static_assert(std::is_base_of_v<std::runtime_error, ExceptionGroup>);
}

TEST_CASE("R6 the message of an ExceptionGroup copes with every kind of failure") {
  const auto fail = [](int i) -> int {
    switch (i) {
      case 0:
        throw 42;
      case 1:
        throw shop::NotAnException{1};
      default:
        throw std::system_error(std::make_error_code(std::errc::timed_out), "connect");
    }
  };
  const auto result = parallel_map(fail, std::views::iota(0, 5), {.workers = 2});
  try {
    result.throw_on_failure();
    FAIL("nothing was thrown");
  } catch (const ExceptionGroup& group) {
    const std::string timeout = std::system_error(std::make_error_code(std::errc::timed_out), "connect").what();
    CHECK(group.what() ==
          "5 of 5 tasks failed: [0] int: unknown exception; [1] shop::NotAnException: unknown exception"
          "; [2] std::system_error: " +
              timeout + "; ... 2 more");
  }
}

TEST_CASE("R6 the exceptions of the library form the hierarchy that the interface shows") {
  static_assert(std::is_base_of_v<std::runtime_error, TimeoutError>);
  static_assert(std::is_base_of_v<TimeoutError, TaskTimeout>);
  static_assert(std::is_base_of_v<std::runtime_error, Aborted>);
  static_assert(std::is_base_of_v<std::runtime_error, Cancelled>);
  static_assert(!std::is_base_of_v<TimeoutError, Cancelled>);
  static_assert(!std::is_base_of_v<TimeoutError, Aborted>);
  static_assert(std::is_base_of_v<std::runtime_error, HttpError>);
  CHECK(std::string(Aborted{"too many"}.what()) == "too many");
}

// fmt ------------------------------------------------------------------------------------------------

TEST_CASE("R6 fmt prints errors and failures") {
  const Error error = error_of(std::out_of_range("vector::at"));
  CHECK(fmt::format("{}", error) == "std::out_of_range: vector::at");
  CHECK(fmt::format("{}", Failure{3, error}) == "[3] std::out_of_range: vector::at");
  CHECK(fmt::format("{}", error_of(42)) == "int: unknown exception");
  CHECK(fmt::format("{}", error_of(std::runtime_error("{} braces"))) == "std::runtime_error: {} braces");
}

TEST_CASE("R2 fmt prints the status of a run") {
  CHECK(fmt::format("{}", RunStatus::completed) == "completed");
  CHECK(fmt::format("{}", RunStatus::timed_out) == "timed_out");
  CHECK(fmt::format("{}", RunStatus::aborted) == "aborted");
  CHECK(fmt::format("{}", RunStatus::cancelled) == "cancelled");
}

TEST_CASE("R2 fmt prints a summary of a result") {
  const auto fail_odd = [](int i) {
    if (i % 2 == 1) throw std::runtime_error("odd");
    return std::make_unique<int>(i);
  };
  CHECK(fmt::format("{}", parallel_map(fail_odd, std::vector{2, 4})) == "MapResult(2 ok, 0 failed)");
  CHECK(fmt::format("{}", parallel_map(fail_odd, std::vector{2, 3, 4})) == "MapResult(2 ok, 1 failed)");
  CHECK(fmt::format("{}", parallel_map(fail_odd, std::vector<int>{})) == "MapResult(0 ok, 0 failed)");
  CHECK(fmt::format("{}", parallel_map([](int) {}, std::vector{1})) == "MapResult(1 ok, 0 failed)");
  CHECK(fmt::format("{}", parallel_map(fail_odd, std::vector{2, 3, 4, 5}, {.workers = 1, .max_errors = 1})) ==
        "MapResult(1 ok, 3 failed, aborted)");
  CHECK(fmt::format("{}", parallel_map(fail_odd, std::vector{2, 3}, {.timeout = 0s})) ==
        "MapResult(0 ok, 2 failed, timed_out)");
}

TEST_CASE("R2 fmt prints rate limits and retries") {
  CHECK(fmt::format("{}", RateLimit{90, 1min}) == "RateLimit(90 per 60s, burst 1)");
  CHECK(fmt::format("{}", RateLimit{2.5, 1s, 5}) == "RateLimit(2.5 per 1s, burst 5)");
  CHECK(fmt::format("{}", RateLimit{1, 1500us}) == "RateLimit(1 per 1500us, burst 1)");
  CHECK(fmt::format("{}", Retry{}) == "Retry(3 attempts, backoff 1s to 60s, jitter)");
  CHECK(fmt::format("{}", Retry{.attempts = 5, .backoff = 250ms, .max_delay = 7ns, .jitter = false}) ==
        "Retry(5 attempts, backoff 250ms to 7ns)");
}

TEST_CASE("R2 fmt aligns nothing and refuses a format specification") {
  CHECK_THROWS_AS(fmt::format(fmt::runtime("{:>20}"), RunStatus::completed), fmt::format_error);
}

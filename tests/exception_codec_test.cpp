#include "pyarallel/detail/exception_codec.hpp"

#include <unistd.h>

#include <any>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <functional>
#include <future>
#include <latch>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel.hpp"
#include "pyarallel/register_exception.hpp"
#include "support/catch.hpp"
#include "support/child.hpp"

namespace {

using pyarallel::Bytes;
using pyarallel::Error;
using pyarallel::RemoteError;
using pyarallel::detail::decode_exception;
using pyarallel::detail::encode_exception;

Bytes bytes_of(const std::exception_ptr& exception) {
  Bytes bytes;
  encode_exception(exception, bytes);
  return bytes;
}

Error there_and_back(const std::exception_ptr& exception) {
  const Bytes bytes = bytes_of(exception);
  std::span<const std::byte> in{bytes};
  Error back{decode_exception(in)};
  CHECK(in.empty());
  return back;
}

template <class Code>
std::exception_ptr thrown_by(Code code) {
  try {
    code();
  } catch (...) {
    return std::current_exception();
  }
  throw std::logic_error("the test's code was meant to throw");
}

/// What comes back is thrown as exactly an E and has the text.
template <class E>
void comes_back(const std::exception_ptr& exception) {
  const Error before{exception};
  const Error back = there_and_back(exception);
  INFO(before.type_name() << ": " << before.what());
  CHECK(back.what() == before.what());
  try {
    back.rethrow();
  } catch (const E& e) {
    CHECK(typeid(e) == typeid(E));
  } catch (...) {
    FAIL("came back as " << back.type_name());
  }
}
template <class E>
void comes_back(const E& exception) {
  comes_back<E>(std::make_exception_ptr(exception));
}

void comes_back_as_remote_error(const std::exception_ptr& exception, const std::string& type_name,
                                const std::string& what) {
  const Error back = there_and_back(exception);
  const auto* remote = back.get_if<RemoteError>();
  REQUIRE(remote != nullptr);
  CHECK(typeid(*remote) == typeid(RemoteError));
  CHECK(remote->type_name() == type_name);
  CHECK(back.what() == what);
}

/// The exception and those nested in it, from the outside in, as "type: text".
std::vector<std::string> chain_of(const std::exception_ptr& exception) {
  std::vector<std::string> chain;
  auto next = exception;
  while (next) {
    const Error error{next};
    chain.push_back(pyarallel::detail::without_nesting(error.type_name()) + ": " + error.what());
    const auto* nesting = error.get_if<std::nested_exception>();
    next = nesting != nullptr ? nesting->nested_ptr() : nullptr;
  }
  return chain;
}

/// throw_with_nested(outer) while `inner` is handled.
template <class E>
std::exception_ptr around(const std::exception_ptr& inner, E outer) {
  return thrown_by([&] {
    try {
      std::rethrow_exception(inner);
    } catch (...) {
      std::throw_with_nested(std::move(outer));
    }
  });
}

// Types of a program's own. Those whose name says so are registered.

struct Unknown : std::runtime_error {
  using runtime_error::runtime_error;
};
struct UnknownNesting final : std::runtime_error, std::nested_exception {
  using runtime_error::runtime_error;
};
struct NoText : std::exception {
  const char* what() const noexcept override { return nullptr; }
};
struct CannotBeCopied : std::runtime_error {
  using runtime_error::runtime_error;
  CannotBeCopied(const CannotBeCopied& other) : runtime_error(other) { throw std::logic_error("a copy"); }
};
template <class T>
struct UnknownOf : std::runtime_error {
  using runtime_error::runtime_error;
};
struct Left : std::exception {};
struct Right : std::exception {};
struct TwiceAnException : Left, Right {};
struct HiddenBase : private std::runtime_error {
  using runtime_error::runtime_error;
};
struct NotAnException {
  int value;
};

struct RegisteredText : std::runtime_error {
  using runtime_error::runtime_error;
};
struct DerivedFromRegistered : RegisteredText {
  using RegisteredText::RegisteredText;
};
struct RegisteredLiteral : std::exception {
  explicit RegisteredLiteral(const char* text) : text_(std::make_shared<const std::string>(text)) {}
  const char* what() const noexcept override { return text_->c_str(); }

 private:
  std::shared_ptr<const std::string> text_;
};
struct RegisteredFinal final : std::runtime_error {
  using runtime_error::runtime_error;
};
struct RegisteredNesting : std::runtime_error, std::nested_exception {
  using runtime_error::runtime_error;
};
struct RegisteredAggregate {
  int code;
  std::string text;
};
class RegisteredCode : public std::exception {
 public:
  RegisteredCode(int code, std::string reason) : code_(code), reason_(std::move(reason)) {
    text_ = reason_ + ", code " + std::to_string(code_);
  }
  const char* what() const noexcept override { return text_.c_str(); }
  int code() const { return code_; }
  const std::string& reason() const { return reason_; }

 private:
  int code_;
  std::string reason_;
  std::string text_;
};
struct RegisteredBadCodec : std::runtime_error {
  using runtime_error::runtime_error;
};
struct RegisteredBadDecode : std::runtime_error {
  using runtime_error::runtime_error;
};
struct RegisteredPicky : std::runtime_error {
  explicit RegisteredPicky(const std::string& text) : runtime_error(text + "!") {
    if (text.ends_with("!")) throw std::invalid_argument("no ! please");
  }
};
struct RegisteredTwice : std::runtime_error {
  using runtime_error::runtime_error;
};
struct RegisteredEarly : std::runtime_error {
  using runtime_error::runtime_error;
};

struct Early {
  Early() { pyarallel::register_exception<RegisteredEarly>(); }
};
const Early before_main;

std::size_t registered_count() {
  std::size_t count = 0;
  for (const auto* entry = pyarallel::detail::registered_exceptions.load(); entry != nullptr; entry = entry->next) {
    ++count;
  }
  return count;
}

class Category final : public std::error_category {
 public:
  const char* name() const noexcept override { return "generic"; }  // it lies
  std::string message(int value) const override { return "mishap " + std::to_string(value); }
};

/// One exception of every shape that has its own bytes.
std::vector<std::exception_ptr> samples() {
  using namespace pyarallel;
  const auto inner = std::make_exception_ptr(std::out_of_range("inner"));
  std::vector<Failure> failures{{3, Error(inner)}, {5, Error(std::make_exception_ptr(HttpError(429, "7", "slow")))}};
  return {inner,
          std::make_exception_ptr(42),
          std::make_exception_ptr(Unknown("mine")),
          std::make_exception_ptr(std::bad_alloc()),
          std::make_exception_ptr(std::system_error(EACCES, std::generic_category(), "open")),
          std::make_exception_ptr(std::filesystem::filesystem_error(
              "rename", "a", "b", std::make_error_code(std::errc::no_such_file_or_directory))),
          std::make_exception_ptr(std::future_error(std::future_errc::no_state)),
          std::make_exception_ptr(WorkerCrashed(SIGSEGV, -1)),
          std::make_exception_ptr(RemoteError("Theirs", "text")),
          around(inner, std::runtime_error("outer")),
          std::make_exception_ptr(ExceptionGroup("2 of 7 tasks failed", std::move(failures)))};
}

}  // namespace

template <>
struct pyarallel::Codec<RegisteredCode> {
  static void encode(const RegisteredCode& value, Bytes& out) {
    Codec<int>::encode(value.code(), out);
    Codec<std::string>::encode(value.reason(), out);
  }
  static RegisteredCode decode(std::span<const std::byte>& in) {
    const int code = Codec<int>::decode(in);
    return {code, Codec<std::string>::decode(in)};
  }
};
template <>
struct pyarallel::Codec<RegisteredBadCodec> {
  static void encode(const RegisteredBadCodec&, Bytes& out) {
    out.resize(out.size() + 5);
    throw 5;
  }
  static RegisteredBadCodec decode(std::span<const std::byte>&) { return RegisteredBadCodec("never"); }
};
template <>
struct pyarallel::Codec<RegisteredBadDecode> {
  static void encode(const RegisteredBadDecode&, Bytes& out) { out.resize(out.size() + 5); }
  static RegisteredBadDecode decode(std::span<const std::byte>&) { return RegisteredBadDecode("leaves bytes"); }
};

TEST_CASE("P3 the exceptions of stdexcept cross as their own types") {
  comes_back(std::runtime_error("a"));
  comes_back(std::range_error("b"));
  comes_back(std::overflow_error("c"));
  comes_back(std::underflow_error("d"));
  comes_back(std::logic_error("e"));
  comes_back(std::invalid_argument("f"));
  comes_back(std::domain_error("g"));
  comes_back(std::length_error("h"));
  comes_back(std::out_of_range(""));
  comes_back(std::runtime_error(std::string(100'000, 'x')));
  comes_back<std::out_of_range>(thrown_by([] { static_cast<void>(std::vector<int>{}.at(1)); }));
}

TEST_CASE("P3 the exceptions of the language and of the library's small classes cross as their own types") {
  comes_back(std::exception());
  comes_back(std::bad_exception());
  comes_back(std::bad_alloc());
  comes_back(std::bad_array_new_length());
  comes_back(std::bad_cast());
  comes_back(std::bad_typeid());
  comes_back(std::bad_function_call());
  comes_back(std::bad_weak_ptr());
  comes_back(std::bad_optional_access());
  comes_back(std::bad_any_cast());
  comes_back(std::bad_variant_access());
  comes_back<std::bad_function_call>(thrown_by([] { std::function<void()>{}(); }));
  comes_back<std::bad_weak_ptr>(thrown_by([] { std::shared_ptr<int>{std::weak_ptr<int>{}}; }));
  comes_back<std::bad_optional_access>(thrown_by([] { static_cast<void>(std::optional<int>{}.value()); }));
  comes_back<std::bad_any_cast>(thrown_by([] { static_cast<void>(std::any_cast<int>(std::any{'a'})); }));
  comes_back<std::bad_variant_access>(
      thrown_by([] { static_cast<void>(std::get<int>(std::variant<int, char>{'a'})); }));
}

TEST_CASE("P3 a system_error keeps its code and its text is not doubled") {
  const auto check = [](const std::system_error& error) {
    comes_back(error);
    const Error back = there_and_back(std::make_exception_ptr(error));
    REQUIRE(back.is<std::system_error>());
    CHECK(back.get_if<std::system_error>()->code() == error.code());
  };
  check({EACCES, std::generic_category(), "open"});
  check({EACCES, std::system_category(), "open: it said: no"});
  check({EACCES, std::generic_category(), ""});
  check({EACCES, std::generic_category()});
  check({std::make_error_code(std::io_errc::stream), "stream"});
  check({std::make_error_code(std::future_errc::no_state)});
  check({0, std::generic_category(), "no error"});
  check({-77, std::system_category(), "below zero"});
}

TEST_CASE("P3 a system_error of a category that only the program knows is a RemoteError with the whole text") {
  static const Category category;
  const auto exception = std::make_exception_ptr(std::system_error(7, category, "here"));
  comes_back_as_remote_error(exception, Error(exception).type_name(), "here: mishap 7");
}

TEST_CASE("P3 a filesystem_error keeps its paths and its code") {
  using std::filesystem::filesystem_error;
  const auto code = std::make_error_code(std::errc::no_such_file_or_directory);
  const auto check = [](const filesystem_error& error) {
    comes_back(error);
    const Error back = there_and_back(std::make_exception_ptr(error));
    REQUIRE(back.is<filesystem_error>());
    CHECK(back.get_if<filesystem_error>()->path1() == error.path1());
    CHECK(back.get_if<filesystem_error>()->path2() == error.path2());
    CHECK(back.get_if<filesystem_error>()->code() == error.code());
  };
  check({"plain", code});
  check({"one", "a/b", code});
  check({"two", "a/b", "c d", code});
  check({"first empty", "", "c", code});
  check({"second empty", "a", "", code});
  check({"empty", "", code});
  check({"both empty", "", "", code});
  comes_back<filesystem_error>(thrown_by([] { static_cast<void>(std::filesystem::file_size("/no/such/file")); }));
}

TEST_CASE("P3 the failure of a stream is an ios_base failure, also the one that the library throws") {
  comes_back(std::ios_base::failure("mine"));
  comes_back(std::ios_base::failure("mine", std::make_error_code(std::errc::io_error)));
  comes_back(std::ios_base::failure(""));
  const auto thrown = thrown_by([] {
    std::istringstream stream{"x"};
    stream.exceptions(std::ios::failbit);
    int value = 0;
    stream >> value;
  });
  comes_back<std::ios_base::failure>(thrown);
}

TEST_CASE("P3 a future_error keeps its code") {
  const std::future_error error{std::future_errc::broken_promise};
  comes_back(error);
  CHECK(there_and_back(std::make_exception_ptr(error)).get_if<std::future_error>()->code() == error.code());
}

TEST_CASE("P3 the exceptions of this library cross as their own types, with all they hold") {
  using namespace pyarallel;
  comes_back(TimeoutError("a"));
  comes_back(TaskTimeout("b"));
  comes_back(Aborted("c"));
  comes_back(Cancelled("d"));
  comes_back(CheckpointError("e"));

  comes_back(WorkerCrashed(SIGSEGV, -1));
  comes_back(WorkerCrashed(0, 3));
  comes_back(WorkerCrashed(0, -1));
  const Error crashed = there_and_back(std::make_exception_ptr(WorkerCrashed(0, 3)));
  CHECK(crashed.get_if<WorkerCrashed>()->signal() == 0);
  CHECK(crashed.get_if<WorkerCrashed>()->exit_code() == 3);

  comes_back(RemoteError("Theirs", "text"));
  CHECK(there_and_back(std::make_exception_ptr(RemoteError("Theirs", "text"))).get_if<RemoteError>()->type_name() ==
        "Theirs");

  comes_back(HttpError(503));
  comes_back(HttpError(429, "120", "slow down"));
  const Error http = there_and_back(std::make_exception_ptr(HttpError(429, "120", "slow down")));
  CHECK(http.get_if<HttpError>()->status() == 429);
  CHECK(http.get_if<HttpError>()->retry_after() == "120");
}

TEST_CASE("P3 a group crosses with each of its failures, groups in groups too") {
  using namespace pyarallel;
  std::vector<Failure> deeper;
  deeper.push_back({9, Error(std::make_exception_ptr(std::bad_alloc()))});
  std::vector<Failure> failures;
  failures.push_back({1, Error(std::make_exception_ptr(std::out_of_range("far")))});
  failures.push_back({4, Error(std::make_exception_ptr(42))});
  failures.push_back({6, Error(std::make_exception_ptr(ExceptionGroup("inner", std::move(deeper))))});
  const ExceptionGroup group{"outer", std::move(failures)};
  comes_back(group);

  const Error back = there_and_back(std::make_exception_ptr(group));
  const auto& all = back.get_if<ExceptionGroup>()->failures();
  REQUIRE(all.size() == 3);
  CHECK(all[0].index == 1);
  CHECK(all[0].error.is<std::out_of_range>());
  CHECK(all[1].index == 4);
  CHECK(all[1].error.get_if<RemoteError>()->type_name() == "int");
  CHECK(all[2].index == 6);
  const auto* inner = all[2].error.get_if<ExceptionGroup>();
  REQUIRE(inner != nullptr);
  CHECK(inner->failures().at(0).index == 9);
  CHECK(inner->failures().at(0).error.is<std::bad_alloc>());

  comes_back(ExceptionGroup("empty", {}));
}

TEST_CASE("P3 other exceptions become RemoteError with type name and text") {
  comes_back_as_remote_error(std::make_exception_ptr(42), "int", "unknown exception");
  comes_back_as_remote_error(std::make_exception_ptr(Unknown("mine")), "(anonymous namespace)::Unknown", "mine");
  comes_back_as_remote_error(std::make_exception_ptr(NoText()), "(anonymous namespace)::NoText", "unknown exception");
  comes_back_as_remote_error(thrown_by([] { throw CannotBeCopied("whole"); }), "(anonymous namespace)::CannotBeCopied",
                             "whole");
  comes_back_as_remote_error(std::make_exception_ptr(TwiceAnException()), "(anonymous namespace)::TwiceAnException",
                             "unknown exception");
  comes_back_as_remote_error(std::make_exception_ptr(HiddenBase("hidden")), "(anonymous namespace)::HiddenBase",
                             "unknown exception");
  comes_back_as_remote_error(std::make_exception_ptr(NotAnException{1}), "(anonymous namespace)::NotAnException",
                             "unknown exception");
}

TEST_CASE("P3 a thrown text is the text of the RemoteError") {
  comes_back_as_remote_error(thrown_by([] { throw "literal"; }), "char const*", "literal");
  comes_back_as_remote_error(thrown_by([] { throw static_cast<const char*>(nullptr); }), "char const*",
                             "unknown exception");
  const Error back = there_and_back(std::make_exception_ptr(std::string("a string")));
  CHECK(back.what() == "a string");
  CHECK(back.get_if<RemoteError>()->type_name() == Error(std::make_exception_ptr(std::string())).type_name());
}

TEST_CASE("P3 a class derived from a known one is not taken for it") {
  pyarallel::register_exception<RegisteredText>();
  comes_back_as_remote_error(std::make_exception_ptr(DerivedFromRegistered("d")),
                             "(anonymous namespace)::DerivedFromRegistered", "d");
  struct Derived : std::out_of_range {
    using out_of_range::out_of_range;
  };
  CHECK_FALSE(there_and_back(std::make_exception_ptr(Derived("d"))).is<std::out_of_range>());
}

TEST_CASE("P3 a registered type crosses by its text") {
  pyarallel::register_exception<RegisteredText>();
  pyarallel::register_exception<RegisteredLiteral>();
  pyarallel::register_exception<RegisteredFinal>();
  comes_back(RegisteredText("a"));
  comes_back(RegisteredLiteral("b"));
  comes_back(RegisteredFinal("c"));
  comes_back(RegisteredEarly("registered before main"));
}

TEST_CASE("P3 a registered type crosses by its Codec") {
  pyarallel::register_exception<RegisteredCode>();
  comes_back(RegisteredCode(7, "quota"));
  const Error back = there_and_back(std::make_exception_ptr(RegisteredCode(7, "quota")));
  CHECK(back.get_if<RegisteredCode>()->code() == 7);
  CHECK(back.get_if<RegisteredCode>()->reason() == "quota");

  pyarallel::register_exception<RegisteredAggregate>();
  const Error plain = there_and_back(std::make_exception_ptr(RegisteredAggregate{3, "three"}));
  REQUIRE(plain.is<RegisteredAggregate>());
  CHECK(plain.get_if<RegisteredAggregate>()->text == "three");
}

TEST_CASE("P3 a registered type whose own code fails becomes a RemoteError with its text") {
  pyarallel::register_exception<RegisteredBadCodec>();
  pyarallel::register_exception<RegisteredBadDecode>();
  pyarallel::register_exception<RegisteredPicky>();
  comes_back_as_remote_error(std::make_exception_ptr(RegisteredBadCodec("e")),
                             "(anonymous namespace)::RegisteredBadCodec", "e");
  comes_back_as_remote_error(std::make_exception_ptr(RegisteredBadDecode("d")),
                             "(anonymous namespace)::RegisteredBadDecode", "d");
  comes_back_as_remote_error(std::make_exception_ptr(RegisteredPicky("p")), "(anonymous namespace)::RegisteredPicky",
                             "p!");
}

TEST_CASE("P3 a type is registered once, however often and from however many threads") {
  pyarallel::register_exception<RegisteredText>();
  const std::size_t before = registered_count();
  constexpr int threads = 4;
  std::latch start{threads};
  {
    std::vector<std::jthread> all;
    for (int i = 0; i < threads; ++i) {
      all.emplace_back([&] {
        start.arrive_and_wait();
        for (int round = 0; round < 100; ++round) pyarallel::register_exception<RegisteredTwice>();
        static_cast<void>(bytes_of(std::make_exception_ptr(RegisteredTwice("t"))));
      });
    }
  }
  CHECK(registered_count() == before + 1);
  comes_back(RegisteredTwice("t"));
}

TEST_CASE("P3 a registered type is found by its name and its number among those of that name") {
  pyarallel::register_exception<RegisteredText>();
  const std::string name = typeid(RegisteredText).name();
  CHECK(pyarallel::detail::known_exception(name, 0) != nullptr);
  CHECK(pyarallel::detail::known_exception(name, 1) == nullptr);
}

TEST_CASE("P3 nested exceptions are nested on the other side") {
  pyarallel::register_exception<RegisteredText>();
  const auto innermost = std::make_exception_ptr(std::system_error(EIO, std::generic_category(), "read"));
  const auto middle = around(innermost, RegisteredText("config"));
  const auto outer = around(middle, std::invalid_argument("start"));
  const Error back = there_and_back(outer);

  CHECK(back.is<std::invalid_argument>());
  CHECK(back.what() == "start");
  CHECK(chain_of(back.ptr()) == chain_of(outer));
  CHECK(back.type_name() == Error(outer).type_name());
  try {
    try {
      try {
        back.rethrow();
      } catch (const std::invalid_argument& e) {
        std::rethrow_if_nested(e);
        FAIL("nothing nested in the outer one");
      }
    } catch (const RegisteredText& e) {
      CHECK(e.what() == std::string("config"));
      std::rethrow_if_nested(e);
      FAIL("nothing nested in the middle one");
    }
  } catch (const std::system_error& e) {
    CHECK(typeid(e) == typeid(std::system_error));
    CHECK(e.code() == std::make_error_code(std::errc::io_error));
  }
}

TEST_CASE("P3 an unknown type in a nest is named without the library's wrapper, and the nest is kept") {
  const auto inner = std::make_exception_ptr(std::bad_alloc());
  const auto middle = around(inner, UnknownOf<std::vector<int>>("unknown"));
  const auto outer = around(middle, std::runtime_error("outer"));
  const auto chain = chain_of(there_and_back(outer).ptr());
  REQUIRE(chain.size() == 3);
  CHECK(chain[0] == "std::runtime_error: outer");
  CHECK(chain[1] == "pyarallel::RemoteError: unknown");
  CHECK(chain[2] == "std::bad_alloc: std::bad_alloc");

  const Error back = there_and_back(around(inner, UnknownOf<std::vector<int>>("unknown")));
  CHECK(back.get_if<RemoteError>()->type_name() ==
        Error(std::make_exception_ptr(UnknownOf<std::vector<int>>("unknown"))).type_name());
  CHECK(there_and_back(around(inner, NotAnException{1})).get_if<RemoteError>()->type_name() ==
        "(anonymous namespace)::NotAnException");
}

TEST_CASE("P3 a class that is a nested_exception itself keeps what is nested in it") {
  const auto inner = std::make_exception_ptr(std::out_of_range("inner"));
  pyarallel::register_exception<RegisteredNesting>();
  const auto make = [&](const auto& type) {
    return thrown_by([&] {
      try {
        std::rethrow_exception(inner);
      } catch (...) {
        throw std::remove_cvref_t<decltype(type)>("of its own");
      }
    });
  };
  const auto of_unknown = chain_of(there_and_back(make(UnknownNesting(""))).ptr());
  REQUIRE(of_unknown.size() == 2);
  CHECK(of_unknown[0] == "pyarallel::RemoteError: of its own");
  CHECK(of_unknown[1] == "std::out_of_range: inner");
  const auto of_registered = chain_of(there_and_back(make(RegisteredNesting(""))).ptr());
  REQUIRE(of_registered.size() == 2);
  CHECK(of_registered[0] == "(anonymous namespace)::RegisteredNesting: of its own");
  CHECK(of_registered[1] == "std::out_of_range: inner");
}

TEST_CASE("P3 throw_with_nested while nothing is handled is an exception like any other") {
  const auto alone = thrown_by([] { std::throw_with_nested(std::out_of_range("alone")); });
  comes_back<std::out_of_range>(alone);
}

TEST_CASE("P3 what is nested deeper than 64 is cut, in groups too") {
  auto nested = std::make_exception_ptr(std::runtime_error("0"));
  for (int i = 1; i < 200; ++i) nested = around(nested, std::runtime_error(std::to_string(i)));
  const auto chain = chain_of(there_and_back(nested).ptr());
  CHECK(chain.size() == 65);
  CHECK(chain.front() == "std::runtime_error: 199");
  CHECK(chain.back() == "std::runtime_error: 135");

  auto group = std::make_exception_ptr(std::runtime_error("0"));
  for (int i = 1; i < 200; ++i) {
    std::vector<pyarallel::Failure> failures{{0, Error(group)}};
    group = std::make_exception_ptr(pyarallel::ExceptionGroup(std::to_string(i), std::move(failures)));
  }
  Error back = there_and_back(group);
  int levels = 0;
  while (const auto* inside = back.get_if<pyarallel::ExceptionGroup>()) {
    ++levels;
    if (inside->failures().empty()) break;
    back = Error(inside->failures().front().error);
  }
  CHECK(levels == 65);
  CHECK(back.what() == "135");
}

TEST_CASE("P3 bytes that nest exceptions without end are refused") {
  const Bytes endless(1'000'000, std::byte{1});
  std::span<const std::byte> in{endless};
  CHECK_THROWS_AS(decode_exception(in), std::runtime_error);
}

TEST_CASE("P3 no exception at all is a RemoteError") {
  comes_back_as_remote_error(nullptr, "unknown type", "unknown exception");
}

TEST_CASE("P3 an exception takes its own bytes and leaves what follows") {
  Bytes bytes{std::byte{7}};
  encode_exception(std::make_exception_ptr(std::out_of_range("first")), bytes);
  encode_exception(std::make_exception_ptr(42), bytes);
  bytes.push_back(std::byte{9});
  std::span<const std::byte> in{bytes};
  in = in.subspan(1);
  CHECK(Error(decode_exception(in)).is<std::out_of_range>());
  CHECK(Error(decode_exception(in)).is<RemoteError>());
  REQUIRE(in.size() == 1);
  CHECK(in.front() == std::byte{9});
}

TEST_CASE("P3 bytes that end too early are refused wherever they end") {
  for (const auto& sample : samples()) {
    const Bytes whole = bytes_of(sample);
    INFO(Error(sample).type_name());
    for (std::size_t size = 0; size < whole.size(); ++size) {
      // A copy of exactly that size, so that a sanitizer sees a read beyond it.
      const Bytes cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
      std::span<const std::byte> in{cut};
      CHECK_THROWS_AS(decode_exception(in), std::runtime_error);
    }
  }
}

TEST_CASE("P3 bytes with any one of them changed give some exception or are refused") {
  for (const auto& sample : samples()) {
    const Bytes whole = bytes_of(sample);
    for (std::size_t i = 0; i < whole.size(); ++i) {
      for (const unsigned change : {1U, 2U, 0x80U, 0xffU}) {
        Bytes changed = whole;
        changed[i] ^= static_cast<std::byte>(change);
        std::span<const std::byte> in{changed};
        try {
          if (decode_exception(in) == nullptr) FAIL("null");
        } catch (const std::runtime_error&) {
        }
      }
    }
  }
}

TEST_CASE("P3 a type that only the other side knows is a RemoteError with its name and text") {
  // As if a worker had registered it: the bytes name a type that nobody here has.
  pyarallel::register_exception<RegisteredFinal>();
  Bytes bytes = bytes_of(std::make_exception_ptr(RegisteredFinal("text")));
  const std::string name = typeid(RegisteredFinal).name();
  const auto* text = reinterpret_cast<const char*>(bytes.data());
  const auto at = std::string_view(text, bytes.size()).rfind(name);
  REQUIRE(at != std::string_view::npos);
  bytes[at] ^= std::byte{1};
  std::span<const std::byte> in{bytes};
  const Error back{decode_exception(in)};
  REQUIRE(back.is<RemoteError>());
  CHECK(back.get_if<RemoteError>()->type_name() == "(anonymous namespace)::RegisteredFinal");
  CHECK(back.what() == "text");
}

TEST_CASE("P3 an exception of a forked child is rebuilt in its parent") {
  pyarallel::register_exception<RegisteredCode>();
  const auto child = support::in_child([](const support::Parent& parent) {
    Bytes bytes;
    try {
      try {
        throw RegisteredCode(7, "quota");
      } catch (...) {
        std::throw_with_nested(std::system_error(EIO, std::generic_category(), "upload"));
      }
    } catch (...) {
      encode_exception(std::current_exception(), bytes);
    }
    parent.tell({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  });
  REQUIRE(child.end() == "exited with 0");
  std::span<const std::byte> in{reinterpret_cast<const std::byte*>(child.told.data()), child.told.size()};
  const Error back{decode_exception(in)};
  CHECK(in.empty());
  REQUIRE(back.is<std::system_error>());
  CHECK(back.get_if<std::system_error>()->code() == std::make_error_code(std::errc::io_error));
  try {
    std::rethrow_if_nested(*back.get_if<std::system_error>());
    FAIL("nothing nested");
  } catch (const RegisteredCode& e) {
    CHECK(e.code() == 7);
    CHECK(e.reason() == "quota");
  }
}

TEST_CASE("P3 a child forked while other threads register can encode") {
  if (!support::may_fork_while_threads_run) return;
  std::atomic<bool> done{false};
  std::latch running{1};
  const std::jthread registrar([&] {
    running.count_down();
    while (!done) {
      pyarallel::register_exception<RegisteredTwice>();
      pyarallel::register_exception<RegisteredText>();
    }
  });
  running.wait();
  for (int i = 0; i < 20; ++i) {
    const auto child = support::in_child([](const support::Parent& parent) {
      const Bytes bytes = bytes_of(std::make_exception_ptr(Unknown("from the child")));
      parent.tell({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
    });
    if (child.end() != "exited with 0") FAIL(child.end());
    std::span<const std::byte> in{reinterpret_cast<const std::byte*>(child.told.data()), child.told.size()};
    CHECK(Error(decode_exception(in)).what() == "from the child");
  }
  done = true;
}

TEST_CASE("P3 WorkerCrashed says how the worker ended") {
  using pyarallel::WorkerCrashed;
  const std::string killed = WorkerCrashed(SIGSEGV, -1).what();
  CHECK(killed.starts_with("the worker process was killed by signal 11"));
#ifdef __GLIBC__
  CHECK(killed == "the worker process was killed by signal 11 (Segmentation fault)");
#endif
  CHECK(WorkerCrashed(12345, -1).what() == std::string("the worker process was killed by signal 12345"));
  CHECK(WorkerCrashed(0, 3).what() == std::string("the worker process exited with code 3"));
  CHECK(WorkerCrashed(0, -1).what() == std::string("the worker process died; how is unknown, because something else in "
                                                   "this program reaps or ignores its children"));
  CHECK(WorkerCrashed(SIGSEGV, -1).signal() == SIGSEGV);
  CHECK(WorkerCrashed(SIGSEGV, -1).exit_code() == -1);
}

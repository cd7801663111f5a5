// Messages from pieces. fmt::format checks and stores its arguments at compile time for each call and each set of
// types, 10 to 30 ms each; these are ordinary functions, so that an include of this library stays cheap.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "pyarallel/detail/fmt.hpp"

namespace pyarallel::detail {

/// The shortest text that reads back as the same number: "0.5", "nan".
inline std::string text_of_number(double number) { return fmt::format("{}", number); }
/// To so many digits, without zeros at the end.
inline std::string text_of_number(double number, int digits) { return fmt::format("{:.{}g}", number, digits); }

/// A piece of a message: text that outlives it, or a number.
class Piece {
 public:
  explicit(false) Piece(std::string_view text) : text_(text) {}
  explicit(false) Piece(const std::string& text) : text_(text) {}
  explicit(false) Piece(const char* text) : text_(text) {}
  explicit(false) Piece(int number) : kind_(Kind::integer), integer_(number) {}
  explicit(false) Piece(long number) : kind_(Kind::integer), integer_(number) {}
  explicit(false) Piece(long long number) : kind_(Kind::integer), integer_(number) {}
  explicit(false) Piece(unsigned number) : kind_(Kind::natural), natural_(number) {}
  explicit(false) Piece(unsigned long number) : kind_(Kind::natural), natural_(number) {}
  explicit(false) Piece(unsigned long long number) : kind_(Kind::natural), natural_(number) {}
  explicit(false) Piece(double number) : kind_(Kind::real), real_(number) {}
  Piece(bool) = delete;

  void append_to(std::string& message) const {
    switch (kind_) {
      case Kind::text:
        message += text_;
        break;
      case Kind::integer:
        message += std::to_string(integer_);
        break;
      case Kind::natural:
        message += std::to_string(natural_);
        break;
      case Kind::real:
        message += text_of_number(real_);
        break;
    }
  }

 private:
  enum class Kind : unsigned char { text, integer, natural, real };
  Kind kind_ = Kind::text;
  std::string_view text_;
  union {
    long long integer_ = 0;
    unsigned long long natural_;
    double real_;
  };
};

/// message({"items ", 3, " and ", 5})
inline std::string message(std::initializer_list<Piece> pieces) {
  std::string text;
  for (const Piece& piece : pieces) piece.append_to(text);
  return text;
}

}  // namespace pyarallel::detail

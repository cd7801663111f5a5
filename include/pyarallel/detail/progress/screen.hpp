// Where a progress line goes: whether that is a terminal, and what the terminal can do.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#if __has_include(<sys/ioctl.h>)
#include <sys/ioctl.h>
#include <unistd.h>
#endif

#include "pyarallel/detail/progress/line.hpp"

namespace pyarallel::detail {

/// Empty if it is not set.
inline std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view{} : std::string_view{value};
}

/// By the variables that setlocale() looks at, in its order: a program need not have called it.
inline bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    std::string locale{environment(name)};
    if (locale.empty()) continue;
    std::ranges::transform(locale, locale.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    return locale.find("utf-8") != std::string::npos || locale.find("utf8") != std::string::npos;
  }
  return false;
}

class Screen {
 public:
  explicit Screen(std::FILE* file) : file_(file) {}

  /// Looks at the file and the environment again: both may change between two runs.
  void look() {
    const bool terminal = is_terminal();
    in_place_ = terminal && environment("TERM") != "dumb";
    // Who reads a file later is not known. UTF-8 is the best guess.
    utf8_ = !terminal || locale_is_utf8();
    colour_ = in_place_ && environment("NO_COLOR").empty();  // https://no-color.org
    columns_ = 80;
    const std::string_view columns = environment("COLUMNS");
    std::size_t number = 0;
    const auto [end, error] = std::from_chars(columns.data(), columns.data() + columns.size(), number);
    if (error == std::errc{} && end == columns.data() + columns.size() && number > 0) columns_ = number;
  }

  /// Whether a line can be drawn over the one before it.
  bool in_place() const { return in_place_; }

  void draw(const Progress& progress) const {
    // One column stays free: where the last one is written to, some terminals go to the next line.
    std::string text{"\r"};
    text += terminal_line(progress, {.columns = columns() - 1, .utf8 = utf8_, .colour = colour_});
    text += progress.ended ? "\x1b[K\n" : "\x1b[K";
    write(text);
  }
  void print(const Progress& progress) const { write(plain_line(progress, utf8_) + "\n"); }

 private:
  bool is_terminal() const {
#ifdef TIOCGWINSZ
    return file_ != nullptr && ::isatty(::fileno(file_)) != 0;
#else
    return false;
#endif
  }

  /// The terminal's width, which may have changed since the line before.
  std::size_t columns() const {
#ifdef TIOCGWINSZ
    winsize size{};
    if (::ioctl(::fileno(file_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
#endif
    return columns_;
  }

  /// All at once, so that what other threads and processes write comes before it or after it. If it cannot be
  /// written, it is not: no run ends for that.
  void write(const std::string& text) const {
    if (file_ == nullptr) return;
    std::fwrite(text.data(), 1, text.size(), file_);
    std::fflush(file_);
  }

  std::FILE* file_;
  bool in_place_ = false;
  bool utf8_ = false;
  bool colour_ = false;
  std::size_t columns_ = 80;  // where the terminal does not tell
};

}  // namespace pyarallel::detail

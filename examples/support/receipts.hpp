// Prints what a demo claims beside what was measured, and remembers whether every claim held.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string_view>

namespace demo {

class Receipts {
 public:
  void act(std::string_view headline, std::string_view story) {
    ++acts_;
    fmt::print("\n{}. {}\n   {}\n\n", acts_, headline, story);
    std::fflush(stdout);
  }

  void claim(bool holds, std::string_view text, std::string_view measured) {
    ++claims_;
    if (!holds) ++failed_;
    fmt::print("   {:<6}  {:<58}  {}\n", holds ? "ok" : "FAILED", text, measured);
    std::fflush(stdout);
  }

  // What the library said, word for word.
  void quote(std::string_view text) { fmt::print("           \"{}\"\n", text); }

  // Prints the verdict; returns what main should return.
  int verdict(double seconds) const {
    if (failed_ == 0) {
      fmt::print("\nAll {} claims hold, after {:.1f} s.\n", claims_, seconds);
      return 0;
    }
    fmt::print("\n{} of {} claims FAILED, after {:.1f} s. If this machine is busy, try again once it is idle.\n",
               failed_, claims_, seconds);
    return 1;
  }

 private:
  int acts_ = 0;
  int claims_ = 0;
  int failed_ = 0;
};

}  // namespace demo

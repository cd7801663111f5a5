// What the fuzz targets have in common: how they take the fuzzer's bytes apart, and how they fail.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string_view>

namespace fuzz {

/// Ends the program, so that the fuzzer keeps the input.
inline void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

/// Gives the bytes from the front; when there are no more, zeros and empty strings.
class Input {
 public:
  explicit Input(std::string_view bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }

  std::uint8_t byte() { return static_cast<std::uint8_t>(number(1)); }
  std::uint16_t two_bytes() { return static_cast<std::uint16_t>(number(2)); }
  std::int64_t eight_bytes() { return static_cast<std::int64_t>(number(8)); }
  bool flag() { return byte() % 2 == 1; }

  /// Less than `end`, which is less than 64 Ki; or 0.
  std::size_t below(std::size_t end) { return end == 0 ? 0 : (end <= 256 ? byte() : two_bytes()) % end; }

  std::string_view take(std::size_t size) {
    const std::string_view taken = rest_.substr(0, size);
    rest_.remove_prefix(taken.size());
    return taken;
  }
  /// As long as the first byte says.
  std::string_view text() { return take(byte()); }
  std::string_view rest() { return take(rest_.size()); }

 private:
  std::uint64_t number(std::size_t size) {
    std::uint64_t value = 0;
    for (const char byte : take(size)) value = value << 8 | static_cast<std::uint8_t>(byte);
    return value;
  }

  std::string_view rest_;
};

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

inline std::string_view text_of(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The folder of `--seeds=FOLDER`, which asks a target to write inputs to begin with and to end. (libFuzzer leaves
/// what begins with two dashes to the target.)
inline std::string_view seeds_folder(int argc, char** argv) {
  constexpr std::string_view option = "--seeds=";
  for (const char* const argument : std::span(argv, static_cast<std::size_t>(argc))) {
    if (std::string_view{argument}.starts_with(option)) return std::string_view{argument}.substr(option.size());
  }
  return {};
}

}  // namespace fuzz

// SipHash-2-4 with 128 bits: a fast keyed hash of bytes (Aumasson and Bernstein, "SipHash: a fast short-input PRF",
// 2012, and its reference implementation, which has the longer output).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace pyarallel::detail {

class SipHash128 {
 public:
  using Digest = std::array<std::byte, 16>;

  SipHash128(std::uint64_t key0, std::uint64_t key1) noexcept
      : v0_(key0 ^ 0x736f6d6570736575),
        v1_(key1 ^ 0x646f72616e646f6d ^ 0xee),
        v2_(key0 ^ 0x6c7967656e657261),
        v3_(key1 ^ 0x7465646279746573) {}

  void update(std::span<const std::byte> bytes) noexcept {
    length_ += bytes.size();
    while (!bytes.empty()) {
      if (in_tail_ == 0 && bytes.size() >= tail_.size()) {
        compress(word_at(bytes.data()));
        bytes = bytes.subspan(tail_.size());
        continue;
      }
      const std::size_t taken = std::min(bytes.size(), tail_.size() - in_tail_);
      std::memcpy(tail_.data() + in_tail_, bytes.data(), taken);
      bytes = bytes.subspan(taken);
      in_tail_ += taken;
      if (in_tail_ == tail_.size()) {
        compress(word_at(tail_.data()));
        in_tail_ = 0;
      }
    }
  }

  /// Of all bytes so far; once.
  Digest finish() noexcept {
    std::fill(tail_.begin() + static_cast<std::ptrdiff_t>(in_tail_), tail_.end(), std::byte{0});
    tail_.back() = static_cast<std::byte>(length_);
    compress(word_at(tail_.data()));
    Digest digest;
    v2_ ^= 0xee;
    put_word(digest.data());
    v1_ ^= 0xdd;
    put_word(digest.data() + 8);
    return digest;
  }

 private:
  static std::uint64_t little_endian(std::uint64_t word) noexcept {
    if constexpr (std::endian::native == std::endian::little) return word;
    std::uint64_t turned = 0;
    for (int byte = 0; byte < 8; ++byte) turned |= (word >> (8 * byte) & 0xff) << (56 - 8 * byte);
    return turned;
  }
  static std::uint64_t word_at(const std::byte* bytes) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes, sizeof word);
    return little_endian(word);
  }

  void compress(std::uint64_t word) noexcept {
    v3_ ^= word;
    mix(2);
    v0_ ^= word;
  }
  void put_word(std::byte* place) noexcept {
    mix(4);
    const std::uint64_t word = little_endian(v0_ ^ v1_ ^ v2_ ^ v3_);
    std::memcpy(place, &word, sizeof word);
  }
  void mix(int rounds) noexcept {
    for (int round = 0; round < rounds; ++round) {
      v0_ += v1_;
      v1_ = std::rotl(v1_, 13) ^ v0_;
      v0_ = std::rotl(v0_, 32);
      v2_ += v3_;
      v3_ = std::rotl(v3_, 16) ^ v2_;
      v0_ += v3_;
      v3_ = std::rotl(v3_, 21) ^ v0_;
      v2_ += v1_;
      v1_ = std::rotl(v1_, 17) ^ v2_;
      v2_ = std::rotl(v2_, 32);
    }
  }

  std::uint64_t v0_;
  std::uint64_t v1_;
  std::uint64_t v2_;
  std::uint64_t v3_;
  std::uint64_t length_ = 0;
  std::array<std::byte, 8> tail_{};  // what does not fill a word yet
  std::size_t in_tail_ = 0;
};

}  // namespace pyarallel::detail

// Which program this is, so that ranks notice that they are not the same one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#if __has_include(<link.h>)
#include <link.h>
#define PYARALLEL_HAS_PROGRAM_HEADERS 1
#else
#define PYARALLEL_HAS_PROGRAM_HEADERS 0
#endif

namespace pyarallel::detail {

/// A digest of this program's code and of the sizes of its data, the same wherever it is loaded. 0 where the system
/// does not tell. O(size of the code): about a millisecond for each MiB.
inline std::uint64_t build_digest() {
#if PYARALLEL_HAS_PROGRAM_HEADERS
  std::uint64_t digest = 0xcbf29ce484222325U;  // FNV-1a, eight bytes at a time: nobody tries to deceive it
  const auto add = [](dl_phdr_info* info, std::size_t, void* out) {
    auto& hash = *static_cast<std::uint64_t*>(out);
    for (std::size_t i = 0; i < info->dlpi_phnum; ++i) {
      const auto& segment = info->dlpi_phdr[i];
      hash = (hash ^ segment.p_filesz) * 0x100000001b3U;
      // Not data: some of it was changed when the program was loaded, and sanitizers guard some of the rest.
      if (segment.p_type != PT_LOAD || (segment.p_flags & PF_X) == 0 || (segment.p_flags & PF_R) == 0) continue;
      const auto* const at = reinterpret_cast<const std::byte*>(info->dlpi_addr + segment.p_vaddr);
      const std::span bytes{at, static_cast<std::size_t>(segment.p_filesz)};
      for (std::size_t offset = 0; offset + 8 <= bytes.size(); offset += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, bytes.data() + offset, sizeof word);
        hash = (hash ^ word) * 0x100000001b3U;
        hash ^= hash >> 32U;
      }
    }
    return 1;  // the first one is the program
  };
  ::dl_iterate_phdr(add, &digest);
  return digest;
#else
  return 0;
#endif
}

}  // namespace pyarallel::detail

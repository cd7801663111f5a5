// What Linux tells of a process, and how a test ends one.
#pragma once

#include <signal.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstddef>
#include <fstream>
#include <string>

namespace support {

/// Letter of the state of a process: 'S' sleeps, 'R' runs, 'Z' is dead. '?' if there is none.
inline char state_of_process(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  const auto name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? '?' : text[name_end + 2];
}

inline bool is_gone(pid_t pid) {
  const char state = state_of_process(pid);
  return state == '?' || state == 'Z' || state == 'X';
}

/// Bytes of memory that this process has.
inline std::size_t resident_memory() {
  std::ifstream file("/proc/self/statm");
  std::size_t size = 0;
  std::size_t resident = 0;
  file >> size >> resident;
  return resident * static_cast<std::size_t>(getpagesize());
}

/// Crashes are planned: they should not leave core files.
inline void no_core_file() {
  const rlimit none{0, 0};
  setrlimit(RLIMIT_CORE, &none);
}

inline void die_by(int signal) {
  no_core_file();
  raise(signal);
}

}  // namespace support

// Ends the test program where a bug would let it hang.
#pragma once

#include <unistd.h>

namespace support {

/// While it lives, the program has a minute (several times what the slowest test takes under a
/// sanitizer). After that SIGALRM ends it.
class Watchdog {
 public:
  Watchdog() { alarm(60); }
  ~Watchdog() { alarm(0); }
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
};

}  // namespace support

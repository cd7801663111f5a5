// What belongs to the test program as a whole.

// Catch2 3 brings main() in a library; with 2 one file defines it.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
// Tests crash forked workers on purpose. Catch2's signal handlers, inherited by the worker, would
// report that as a failure of the test.
#define CATCH_CONFIG_NO_POSIX_SIGNALS
#endif
#include "catch.hpp"

// The sanitizers ask here for their defaults. They would turn a worker's fatal signal into an exit
// code, and ThreadSanitizer would end a forked worker at its first thread.
extern "C" const char* __asan_default_options() {
  return "handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:handle_abort=0";
}
extern "C" const char* __tsan_default_options() {
  return "handle_segv=0:handle_sigbus=0:handle_sigill=0:handle_sigfpe=0:handle_abort=0:die_after_fork=0";
}

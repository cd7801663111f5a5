// Catch2, whichever major version is there: 3 has many headers, 2 has one.
#pragma once

// clang 22 warns of __COUNTER__ where Catch2's macros are used.
#ifdef __clang__
#if __has_warning("-Wc2y-extensions")
#pragma clang diagnostic ignored "-Wc2y-extensions"
#endif
#endif

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

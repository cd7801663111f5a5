// fmt::format, as cheaply to include as the version of fmt allows.
#pragma once

#if __has_include(<fmt/core.h>)
#include <fmt/core.h>
#else
#include <fmt/format.h>
#endif

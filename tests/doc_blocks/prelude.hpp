// What the blocks in README.md and docs/ may use without saying so. `fetch`, `save`, `log` and the like stand for
// the reader's own code.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <optional>
#include <pyarallel.hpp>
#include <ranges>
#include <set>
#include <source_location>
#include <span>
#include <sstream>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

using namespace pyarallel;
using namespace std::chrono_literals;

/// Ends the program, naming page and line, if what a page claims does not hold.
inline void check(bool holds, std::source_location where = std::source_location::current()) {
  if (holds) return;
  std::fprintf(stderr, "%s:%u: check failed\n", where.file_name(), static_cast<unsigned>(where.line()));
  std::exit(1);
}

struct ConnectionError : std::runtime_error {
  using runtime_error::runtime_error;
};

struct Page {
  std::string url;
  std::string text;
};

/// A page after a millisecond. A url with "missing" in it is answered 404, one with "flaky" in it breaks the first
/// connection.
inline Page fetch(const std::string& url) {
  static std::mutex mutex;
  static std::set<std::string> seen;
  std::this_thread::sleep_for(1ms);
  if (url.find("missing") != std::string::npos) throw HttpError(404);
  if (url.find("flaky") != std::string::npos) {
    const std::lock_guard lock{mutex};
    if (seen.insert(url).second) throw ConnectionError("connection reset: " + url);
  }
  return {url, "text of " + url};
}

inline const std::vector<std::string> urls = [] {
  std::vector<std::string> all;
  for (int id = 0; id < 10; ++id) all.push_back(fmt::format("https://example.org/users/{}", id));
  return all;
}();

inline void save(const Page&) {}

template <class... Args>
void log(fmt::format_string<Args...> text, Args&&... args) {
  fmt::print(stderr, "{}\n", fmt::format(text, std::forward<Args>(args)...));
}

// What a metered API does to its callers, and what it writes down about them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace demo {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

struct Quota {
  double calls_per_second;
  double burst;
  std::chrono::seconds retry_after;
};

// A token bucket with a penalty: whoever draws on an empty bucket is refused, and so is every call
// after that one until `retry_after` has passed. Many real APIs are as strict.
class QuotaGate {
 public:
  explicit QuotaGate(Quota quota) : quota_(quota), tokens_(quota.burst) {}

  // Nothing: the call may pass. Otherwise the value of the Retry-After header.
  std::optional<std::chrono::seconds> refuse(Clock::time_point now) {
    if (now < penalty_ends_) return std::chrono::ceil<std::chrono::seconds>(penalty_ends_ - now);
    tokens_ = std::min(quota_.burst, tokens_ + quota_.calls_per_second * Seconds(now - refilled_).count());
    refilled_ = now;
    if (tokens_ >= 1) {
      tokens_ -= 1;
      return std::nullopt;
    }
    penalty_ends_ = now + quota_.retry_after;
    return quota_.retry_after;
  }

 private:
  Quota quota_;
  double tokens_;
  Clock::time_point refilled_ = Clock::now();
  Clock::time_point penalty_ends_ = {};
};

// The server's own record of an act: the evidence that does not come from the library.
struct Ledger {
  std::size_t requests = 0;
  std::size_t refused = 0;
  std::size_t most_at_once = 0;
  double seconds_first_to_last = 0;          // between arrivals
  double longest_silence_after_refusal = 0;  // in seconds, from the first 429 on
  std::map<std::string, std::size_t> calls;  // how often each path was asked for

  // Requests for what had been asked for before.
  std::size_t repeated() const { return requests - calls.size(); }
  std::size_t calls_of(const std::string& path) const {
    const auto found = calls.find(path);
    return found != calls.end() ? found->second : 0;
  }
  // Requests a second, between the first and the last arrival: n requests span n - 1 intervals.
  double throughput() const { return requests > 1 ? static_cast<double>(requests - 1) / seconds_first_to_last : 0; }

  std::string to_text() const {
    std::ostringstream text;
    text << requests << ' ' << refused << ' ' << most_at_once << ' ' << seconds_first_to_last << ' '
         << longest_silence_after_refusal;
    for (const auto& [path, count] : calls) text << '\n' << path << ' ' << count;
    return text.str();
  }

  static Ledger from_text(const std::string& text) {
    Ledger ledger;
    std::istringstream words(text);
    words >> ledger.requests >> ledger.refused >> ledger.most_at_once >> ledger.seconds_first_to_last >>
        ledger.longest_silence_after_refusal;
    if (!words) throw std::runtime_error("the fake API sent a ledger that makes no sense: " + text);
    std::string path;
    for (std::size_t count; words >> path >> count;) ledger.calls[path] = count;
    return ledger;
  }
};

// Keeps the ledger. Not thread-safe: the server calls it under its lock.
class LedgerKeeper {
 public:
  void arrived(const std::string& path, Clock::time_point now) {
    ++ledger_.calls[path];
    if (ledger_.requests++ == 0) first_ = now;
    if (ledger_.refused > 0) {
      const double silence = Seconds(now - last_).count();
      ledger_.longest_silence_after_refusal = std::max(ledger_.longest_silence_after_refusal, silence);
    }
    last_ = now;
    ledger_.seconds_first_to_last = Seconds(last_ - first_).count();
    ledger_.most_at_once = std::max(ledger_.most_at_once, ++at_once_);
  }
  void refused() { ++ledger_.refused; }
  void answered() { --at_once_; }

  const Ledger& ledger() const { return ledger_; }

 private:
  Ledger ledger_;
  std::size_t at_once_ = 0;
  Clock::time_point first_ = {};
  Clock::time_point last_ = {};
};

}  // namespace demo

// The text of summary(). Nothing here depends on the type of the results.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <exception>
#include <functional>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <typeinfo>
#include <unordered_map>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/message.hpp"
#include "pyarallel/detail/run/receipt.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel::detail {

/// What tells one kind of failure from another.
struct FailureKind {
  const std::type_info* type = nullptr;  // nullptr: it cannot be told
  std::string original;                  // of a RemoteError: the type that it had in the worker
  std::string text;

  // Not with the questions that Error answers, each of which throws: there may be millions of failures.
  explicit FailureKind(const Error& error) {
    try {
      error.rethrow();
    } catch (const RemoteError& e) {
      type = current_exception_type();
      original = e.type_name();
      text = e.what();
    } catch (const std::exception& e) {
      type = current_exception_type();
      text = e.what();
    } catch (...) {
      type = current_exception_type();
      text = "unknown exception";
    }
  }

  std::string type_name() const {
    return original.empty() ? type_name_of(type) : original + " (" + type_name_of(type) + ")";
  }

  friend bool operator==(const FailureKind& a, const FailureKind& b) {
    const bool same_type = a.type == nullptr || b.type == nullptr ? a.type == b.type : *a.type == *b.type;
    return same_type && a.original == b.original && a.text == b.text;
  }

  struct Hash {
    std::size_t operator()(const FailureKind& kind) const {
      const std::hash<std::string> hash;
      return (kind.type != nullptr ? kind.type->hash_code() : 0) + 31 * hash(kind.original) + 1021 * hash(kind.text);
    }
  };
};

/// The failures of one kind.
struct FailureGroup {
  std::size_t count = 0;
  std::array<std::size_t, 5> first = {};  // the indexes of the first of them

  void add(std::size_t index) {
    if (count < first.size()) first[count] = index;
    ++count;
  }
};

/// What the summary of a run is made of.
struct SummaryFigures {
  std::size_t size = 0;
  RunStatus status = RunStatus::completed;
  std::size_t failed = 0;  // and these have an outcome of their own
  std::size_t stored = 0;  // succeeded in an earlier run
  std::size_t never_ran = 0;
  std::size_t interrupted = 0;
  std::string why_never_ran;
  std::string why_interrupted;
  std::vector<std::pair<FailureKind, FailureGroup>> kinds;  // the most frequent ones first
  std::size_t more_kinds = 0;                               // that are not among them
  std::size_t more_failures = 0;                            // of those kinds
  std::map<int, std::size_t> attempts;  // so many items took so many; without the items that never ran
  std::vector<Duration> durations;      // of the items that ran, in any order; empty: they were not measured
};

/// The text of an error of the run's own, without what it says of the item.
inline std::string reason_in(const std::exception_ptr& error) {
  const std::string text = Error{error}.what();
  const auto colon = text.find(": ");
  return colon == std::string::npos ? text : text.substr(colon + 2);
}

inline void count_failures(const Summary& summary, SummaryFigures& figures) {
  constexpr std::size_t shown = 10;
  std::unordered_map<FailureKind, FailureGroup, FailureKind::Hash> kinds;
  for (const Failure& failure : summary.failures) {
    if (summary.is_unrun(failure)) {
      ++figures.never_ran;
    } else if (summary.is_truncated(failure)) {
      ++figures.interrupted;
    } else {
      ++figures.failed;
      kinds[FailureKind(failure.error)].add(failure.index);
    }
  }
  if (figures.never_ran > 0) figures.why_never_ran = reason_in(summary.never_ran);
  if (figures.interrupted > 0) figures.why_interrupted = reason_in(summary.interrupted);

  using Entry = std::pair<const FailureKind, FailureGroup>;
  std::vector<const Entry*> order;
  order.reserve(kinds.size());
  for (const Entry& entry : kinds) order.push_back(&entry);
  const auto last = order.begin() + static_cast<std::ptrdiff_t>(std::min(shown, order.size()));
  std::partial_sort(order.begin(), last, order.end(), [](const Entry* a, const Entry* b) {
    return a->second.count != b->second.count ? a->second.count > b->second.count
                                              : a->second.first[0] < b->second.first[0];
  });
  figures.more_failures = figures.failed;
  for (auto entry = order.begin(); entry != last; ++entry) {
    figures.kinds.emplace_back(**entry);
    figures.more_failures -= (*entry)->second.count;
  }
  figures.more_kinds = order.size() - figures.kinds.size();
}

inline void count_receipts(const Summary& summary, SummaryFigures& figures) {
  const bool may_be_measured = summary.receipts || !summary.blocks.empty();
  if (may_be_measured) figures.durations.reserve(summary.size);
  bool measured = false;
  auto failure = summary.failures.begin();
  for (std::size_t index = 0; index < summary.size; ++index) {
    const Failure* failed = failure != summary.failures.end() && failure->index == index ? &*failure++ : nullptr;
    const Receipt receipt = summary.receipt_at(index, failed);
    if (receipt.attempts == 0) {
      if (failed == nullptr) ++figures.stored;
      continue;
    }
    ++figures.attempts[receipt.attempts];
    if (!may_be_measured) continue;
    figures.durations.push_back(receipt.duration);
    measured = measured || receipt.duration != Duration::zero();
  }
  if (!measured) figures.durations.clear();
}

inline SummaryFigures figures_of(const Summary& summary) {
  SummaryFigures figures;
  figures.size = summary.size;
  figures.status = summary.status;
  count_failures(summary, figures);
  count_receipts(summary, figures);
  return figures;
}

/// In one line of so many bytes at most, or a few more, whatever it holds.
inline std::string on_one_line(std::string_view text, std::size_t most) {
  std::string line;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // Not between the bytes of one character of UTF-8, if it is UTF-8.
    const bool between = (byte & 0xC0U) == 0x80U && line.size() < most + 3;
    if (line.size() >= most && !between) return line + "...";
    if (byte == '\n') {
      line += "\\n";
    } else if (byte == '\r') {
      line += "\\r";
    } else if (byte == '\t') {
      line += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      constexpr std::string_view digits = "0123456789abcdef";
      line.append("\\x").append(1, digits[byte / 16U]).append(1, digits[byte % 16U]);
    } else {
      line += text[i];
    }
  }
  return line;
}

/// To three digits, in the unit that suits it: "17ns", "1.25ms", "3.5min".
inline std::string short_text_of(Duration duration) {
  const auto count = duration.count();
  if (count < 1000) return message({count, "ns"});
  const auto ns = static_cast<double>(count);
  // Less than what would be rounded to a thousand, which takes four digits.
  if (ns < 999.5e3) return text_of_number(ns / 1e3, 3) + "us";
  if (ns < 999.5e6) return text_of_number(ns / 1e6, 3) + "ms";
  if (ns < 60e9) return text_of_number(ns / 1e9, 3) + "s";
  if (ns < 999.5 * 60e9) return text_of_number(ns / 60e9, 3) + "min";
  return message({std::llrint(ns / 60e9), "min"});
}

/// With blanks before it, `width` characters at least.
inline std::string aligned(std::size_t number, std::size_t width) {
  std::string digits = std::to_string(number);
  if (digits.size() < width) digits.insert(0, width - digits.size(), ' ');
  return digits;
}

inline std::string text_of_kinds(const SummaryFigures& figures) {
  constexpr std::size_t most_of_a_type = 100;
  constexpr std::size_t most_of_a_text = 200;
  const auto width = std::to_string(figures.kinds.front().second.count).size();
  std::string text = "\nfailures:";
  for (const auto& [kind, group] : figures.kinds) {
    text += message({"\n  ", aligned(group.count, width), " ", on_one_line(kind.type_name(), most_of_a_type), ": ",
                     on_one_line(kind.text, most_of_a_text), "\n  ", std::string(width, ' '), " at "});
    const std::size_t shown = std::min(group.count, group.first.size());
    for (std::size_t i = 0; i < shown; ++i) text += message({i == 0 ? "" : ", ", group.first[i]});
    if (group.count > shown) text += message({", ... ", group.count - shown, " more"});
  }
  if (figures.more_kinds > 0) {
    text += message({"\n  and ", figures.more_kinds, " more kind", figures.more_kinds == 1 ? "" : "s", ", of ",
                     figures.more_failures, " failure", figures.more_failures == 1 ? "" : "s"});
  }
  return text;
}

inline std::string text_of_attempts(const std::map<int, std::size_t>& attempts) {
  constexpr std::size_t most = 10;
  std::string text = "\nattempts:";
  std::size_t shown = 0;
  for (auto entry = attempts.begin(); entry != attempts.end(); ++entry) {
    const auto& [number, items] = *entry;
    text += message({shown == 0 ? " " : ", ", number});
    if (++shown == most && std::next(entry) != attempts.end()) {
      std::size_t rest = 0;
      for (; entry != attempts.end(); ++entry) rest += entry->second;
      return text + message({" or more: ", rest});
    }
    text += message({": ", items});
  }
  return text;
}

inline std::string text_of_durations(std::vector<Duration>& durations) {
  // The nearest rank: the least duration that so many percent of all do not exceed.
  const auto percentile = [&](std::size_t percent) {
    const auto rank = (durations.size() * percent + 99) / 100;
    const auto place = durations.begin() + static_cast<std::ptrdiff_t>(rank - 1);
    std::nth_element(durations.begin(), place, durations.end());
    return short_text_of(*place);
  };
  std::string text = "\ndurations:";
  for (const std::size_t percent : std::array<std::size_t, 3>{50, 90, 99})
    text += message({" p", percent, " ", percentile(percent), ","});
  return text +
         message({" max ", short_text_of(*std::max_element(durations.begin(), durations.end())), " (nearest rank)"});
}

inline std::string text_of(SummaryFigures figures) {
  std::string status{name_of(figures.status)};
  std::replace(status.begin(), status.end(), '_', ' ');
  std::string text = message({figures.size, " item", figures.size == 1 ? "" : "s", ": ", status});

  const std::size_t succeeded = figures.size - figures.failed - figures.never_ran - figures.interrupted;
  const auto width =
      std::to_string(std::max({succeeded, figures.failed, figures.never_ran, figures.interrupted})).size();
  const auto add_outcome = [&](std::size_t count, std::string_view outcome, const std::string& why) {
    if (count == 0) return;
    text += message({"\n  ", aligned(count, width), " ", outcome, why.empty() ? "" : ": ", why});
  };
  add_outcome(succeeded, "succeeded", figures.stored > 0 ? message({figures.stored, " from the checkpoint"}) : "");
  add_outcome(figures.failed, "failed", "");
  add_outcome(figures.never_ran, "never ran", figures.why_never_ran);
  add_outcome(figures.interrupted, "interrupted", figures.why_interrupted);

  if (!figures.kinds.empty()) text += text_of_kinds(figures);
  if (!figures.attempts.empty() && figures.attempts.rbegin()->first > 1) text += text_of_attempts(figures.attempts);
  if (!figures.durations.empty()) text += text_of_durations(figures.durations);
  return text;
}

}  // namespace pyarallel::detail

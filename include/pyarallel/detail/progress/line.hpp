// The text of a progress line: what it says and how it is fitted into a terminal's width. No input, no output.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/fmt.hpp"

namespace pyarallel::detail {

// Characters -----------------------------------------------------------------------------------------------

/// The bytes of the character that the text begins with. 0 if that is not UTF-8.
inline std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const auto follows = [&](std::size_t i) { return byte(i) >= 0x80 && byte(i) <= 0xBF; };
  const auto first = byte(0);
  if (first < 0x80) return text.empty() ? 0 : 1;
  if (first >= 0xC2 && first <= 0xDF) return follows(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const bool overlong = first == 0xE0 && byte(1) < 0xA0;
    const bool surrogate = first == 0xED && byte(1) > 0x9F;
    return follows(1) && follows(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const bool overlong = first == 0xF0 && byte(1) < 0x90;
    const bool beyond = first == 0xF4 && byte(1) > 0x8F;
    return follows(1) && follows(2) && follows(3) && !overlong && !beyond ? 4 : 0;
  }
  return 0;
}

/// The text without what would move the cursor or drive the terminal: a space for each control character, '?'
/// for each byte that is not UTF-8. Without `utf8` the same for each character that is not ASCII.
inline std::string printable(std::string_view text, bool utf8) {
  std::string result;
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const std::string_view character = text.substr(0, std::max<std::size_t>(length, 1));
    const auto first = static_cast<unsigned char>(character.front());
    const bool c1_control = length == 2 && first == 0xC2 && static_cast<unsigned char>(character[1]) < 0xA0;
    if (c1_control || first < 0x20 || first == 0x7F) {
      result += ' ';
    } else if (length == 0 || (length > 1 && !utf8)) {
      result += '?';
    } else {
      result += character;
    }
    text.remove_prefix(character.size());
  }
  return result;
}

/// How many characters. (Each is taken to be one column wide.)
inline std::size_t columns_of(std::string_view utf8_text) {
  return static_cast<std::size_t>(
      std::ranges::count_if(utf8_text, [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

/// As much of the text as fits.
inline std::string shortened(std::string_view printable_text, std::size_t columns, bool utf8) {
  if (columns_of(printable_text) <= columns) return std::string{printable_text};
  const std::string_view ellipsis = utf8 ? "…" : "...";
  if (columns <= columns_of(ellipsis)) return {};
  std::size_t end = 0;
  for (std::size_t left = columns - columns_of(ellipsis); left > 0; --left) {
    end += utf8_length(printable_text.substr(end));
  }
  return std::string{printable_text.substr(0, end)}.append(ellipsis);
}

// Numbers --------------------------------------------------------------------------------------------------

/// "0:07", "12:34", "3:02:01", "2d 04:05"
inline std::string text_of_time(std::chrono::seconds time) {
  const auto seconds = std::max<std::int64_t>(time.count(), 0);
  const auto minutes = seconds / 60;
  const auto hours = minutes / 60;
  if (hours >= 24) return fmt::format("{}d {:02}:{:02}", hours / 24, hours % 24, minutes % 60);
  if (hours > 0) return fmt::format("{}:{:02}:{:02}", hours, minutes % 60, seconds % 60);
  return fmt::format("{}:{:02}", minutes, seconds % 60);
}

/// "56/s", "1.5k/s", "12/min". Empty for next to nothing.
inline std::string text_of_rate(double per_second) {
  if (!std::isfinite(per_second) || per_second <= 0) return {};
  struct Unit {
    double size;
    std::string_view name;
  };
  static constexpr std::array<Unit, 6> units{
      {{1e9, "G/s"}, {1e6, "M/s"}, {1e3, "k/s"}, {1, "/s"}, {1.0 / 60, "/min"}, {1.0 / 3600, "/h"}}};
  auto unit = std::ranges::find_if(units, [&](const Unit& u) { return per_second >= u.size; });
  if (unit == units.end()) --unit;
  const double number = per_second / unit->size;
  if (number < 0.05) return {};
  if (number >= 1e6) return fmt::format("{:.0e}{}", number, unit->name);
  return number < 9.95 ? fmt::format("{:.1f}{}", number, unit->name) : fmt::format("{:.0f}{}", number, unit->name);
}

/// Never 100 before all is done.
inline int percentage(std::size_t done, std::size_t total) {
  if (done >= total) return 100;
  return std::min(99, static_cast<int>(100 * (static_cast<double>(done) / static_cast<double>(total))));
}

// The line -------------------------------------------------------------------------------------------------

/// What there is to say about a run.
struct Progress {
  std::string label = {};
  std::size_t done = 0;
  std::optional<std::size_t> total = {};  // if it is known: at least `done`, and not 0
  Duration elapsed{};
  std::optional<double> rate = {};  // per second
  bool ended = false;

  bool complete() const { return total && done == *total; }

  /// Nothing beyond a thousand days: a rate so low tells nothing.
  std::optional<std::chrono::seconds> time_left() const {
    if (!total || complete() || ended || !rate || *rate <= 0) return {};
    const double seconds = std::ceil(static_cast<double>(*total - done) / *rate);
    if (!(seconds < 1000.0 * 24 * 60 * 60)) return {};
    return std::chrono::seconds{static_cast<std::int64_t>(seconds)};
  }
};

/// "fetching: 300 of 1000 (30%), 56/s, 0:05, ETA 0:12", as a log has it.
inline std::string plain_line(const Progress& progress, bool utf8) {
  constexpr std::size_t longest_label = 200;
  std::string line = shortened(printable(progress.label, utf8), longest_label, utf8);
  if (!line.empty()) line += ": ";
  if (progress.total) {
    line += fmt::format("{} of {} ({}%)", progress.done, *progress.total, percentage(progress.done, *progress.total));
  } else {
    line += fmt::format("{} done", progress.done);
  }
  const std::string rate = text_of_rate(progress.rate.value_or(0));
  if (!rate.empty()) line.append(", ").append(rate);
  line.append(", ").append(text_of_time(std::chrono::duration_cast<std::chrono::seconds>(progress.elapsed)));
  if (const auto left = progress.time_left()) line.append(", ETA ").append(text_of_time(*left));
  return line;
}

/// `cells` wide between its ends, full only when all is done.
inline std::string text_of_bar(std::size_t done, std::size_t total, std::size_t cells, bool utf8) {
  constexpr std::array<std::string_view, 8> eighths{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const std::size_t steps = utf8 ? 8 : 1;  // in a cell
  const double part = static_cast<double>(done) / static_cast<double>(total);
  std::size_t filled = cells * steps;
  if (done < total) filled = std::min(filled - 1, static_cast<std::size_t>(part * static_cast<double>(filled)));

  std::string text = utf8 ? "|" : "[";
  for (std::size_t i = 0; i < filled / steps; ++i) text += utf8 ? "█" : "#";
  std::size_t empty = cells - filled / steps;
  if (filled % steps > 0) {
    text += eighths[filled % steps];
    --empty;
  }
  return text.append(empty, utf8 ? ' ' : '.').append(utf8 ? "|" : "]");
}

struct LineStyle {
  std::size_t columns = 79;  // to be used at most
  bool utf8 = false;
  bool colour = false;
};

/// "fetching:  30% |███▌        |  300/1000, 56/s, 0:05, ETA 0:12". What does not fit is left out, the least
/// important first.
inline std::string terminal_line(const Progress& progress, const LineStyle& style) {
  enum Part : std::size_t { label, percent, graph, count, rate, elapsed, left, parts };
  constexpr std::array<std::string_view, parts> before_the_next{": ", " ", " ", ", ", ", ", ", ", ""};
  constexpr std::array<Part, 6> by_importance{count, percent, left, label, elapsed, rate};
  constexpr std::size_t smallest_bar = 8;
  constexpr std::size_t largest_bar = 40;

  std::array<std::string, parts> all;
  all[label] = shortened(printable(progress.label, style.utf8), style.columns / 2, style.utf8);
  all[rate] = text_of_rate(progress.rate.value_or(0));
  all[elapsed] = text_of_time(std::chrono::duration_cast<std::chrono::seconds>(progress.elapsed));
  if (const auto time = progress.time_left()) all[left] = "ETA " + text_of_time(*time);
  if (progress.total) {
    const std::string total = fmt::format("{}", *progress.total);
    all[percent] = fmt::format("{:>3}%", percentage(progress.done, *progress.total));
    all[count] = fmt::format("{:>{}}/{}", progress.done, total.size(), total);
  } else {
    all[count] = fmt::format("{} done", progress.done);
  }

  std::array<std::string, parts> shown;
  const auto joined = [&] {
    std::string line;
    std::string_view separator;
    for (std::size_t part = 0; part < parts; ++part) {
      if (shown[part].empty()) continue;
      line.append(separator).append(shown[part]);
      separator = before_the_next[part];
    }
    return line;
  };
  for (const Part part : by_importance) {
    shown[part] = all[part];
    if (columns_of(joined()) > style.columns) shown[part].clear();
  }
  if (progress.total) {
    shown[graph] = "||";
    const std::size_t used = columns_of(joined());
    const std::size_t room = style.columns - std::min(used, style.columns);
    shown[graph].clear();
    if (room >= smallest_bar) {
      shown[graph] = text_of_bar(progress.done, *progress.total, std::min(room, largest_bar), style.utf8);
      if (style.colour && progress.complete()) shown[graph] = "\x1b[32m" + shown[graph] + "\x1b[0m";
    }
  }
  return joined();
}

}  // namespace pyarallel::detail

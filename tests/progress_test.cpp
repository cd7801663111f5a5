// ProgressBar: what its lines say, how they fit, when they are drawn, and that they are ended.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <forward_list>
#include <functional>
#include <limits>
#include <list>
#include <memory>
#include <numeric>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/child.hpp"
#include "support/fake_clock.hpp"
#include "support/single_pass.hpp"
#include "support/watchdog.hpp"

using namespace std::chrono_literals;
using pyarallel::Duration;
using pyarallel::Executor;
using pyarallel::OnProgress;
using pyarallel::Options;
using pyarallel::parallel_map;
using pyarallel::ProgressBar;
using pyarallel::detail::LineStyle;
using pyarallel::detail::Progress;
using support::ClockOverride;
using support::FakeClock;
using support::SinglePass;
using support::Watchdog;

namespace {

constexpr std::size_t huge = std::numeric_limits<std::size_t>::max();
constexpr auto itself = [](int number) { return number; };

std::vector<int> numbers(int count) {
  std::vector<int> all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

/// A variable of the environment, until the end of the scope. Not set if there is no value.
class Variable {
 public:
  Variable(const char* name, std::optional<std::string> value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  ~Variable() { set(before_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  void set(const std::optional<std::string>& value) const {
    if (value) {
      setenv(name_, value->c_str(), 1);
    } else {
      unsetenv(name_);
    }
  }

  const char* name_;
  std::optional<std::string> before_;
};

/// What all tests here see, whoever runs them.
struct UsualEnvironment {
  Variable locale{"LC_ALL", "C.UTF-8"};
  Variable terminal{"TERM", "xterm"};
  Variable colour{"NO_COLOR", std::nullopt};
  Variable columns{"COLUMNS", std::nullopt};
};

/// And time that only the test moves.
struct UsualWorld {
  const UsualEnvironment environment = {};
  FakeClock clock;
  const ClockOverride use{clock};
};

/// A file that is no terminal.
class Log {
 public:
  Log() : file_(std::tmpfile()) {
    if (file_ == nullptr) throw std::system_error(errno, std::generic_category(), "tmpfile");
  }
  ~Log() { std::fclose(file_); }
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  operator std::FILE*() const { return file_; }

  std::string text() const {
    std::string all;
    char buffer[4096];
    for (off_t at = 0;;) {
      const ssize_t length = pread(fileno(file_), buffer, sizeof buffer, at);
      if (length <= 0) return all;
      all.append(buffer, static_cast<std::size_t>(length));
      at += length;
    }
  }

 private:
  std::FILE* file_;
};

/// A terminal, seen from the side of the screen.
class Terminal {
 public:
  explicit Terminal(unsigned short columns) : screen_(posix_openpt(O_RDWR | O_NOCTTY)) {
    if (screen_ < 0 || grantpt(screen_) != 0 || unlockpt(screen_) != 0) fail();
    const int program = open(ptsname(screen_), O_RDWR | O_NOCTTY);
    termios settings{};
    if (program < 0 || tcgetattr(program, &settings) != 0) fail();
    cfmakeraw(&settings);  // what is written arrives as it was
    if (tcsetattr(program, TCSANOW, &settings) != 0) fail();
    file_ = fdopen(program, "w");
    if (file_ == nullptr) fail();
    resize(columns);
  }
  ~Terminal() {
    std::fclose(file_);
    close(screen_);
  }
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  operator std::FILE*() const { return file_; }

  void resize(unsigned short columns) const {
    winsize size{};
    size.ws_col = columns;
    if (ioctl(fileno(file_), TIOCSWINSZ, &size) != 0) fail();
  }

  /// What was written since the last look.
  std::string read_all() const {
    constexpr char mark = '\1';  // comes last, so that nothing before it is missed
    if (write(fileno(file_), &mark, 1) != 1) fail();
    std::string all;
    while (!all.ends_with(mark)) {
      char buffer[4096];
      const ssize_t length = read(screen_, buffer, sizeof buffer);
      if (length <= 0) fail();
      all.append(buffer, static_cast<std::size_t>(length));
    }
    all.pop_back();
    return all;
  }

 private:
  [[noreturn]] static void fail() { throw std::system_error(errno, std::generic_category(), "pseudo-terminal"); }

  int screen_;
  std::FILE* file_ = nullptr;
};

std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> parts;
  while (!text.empty()) {
    const auto end = text.find(separator);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + separator.size());
  }
  return parts;
}

std::size_t count(std::string_view text, char wanted) {
  return static_cast<std::size_t>(std::ranges::count(text, wanted));
}

/// The texts that were drawn, one over the other or below. Anything else than text, redraws and line ends is a failure.
std::vector<std::string> drawings(std::string_view output) {
  std::vector<std::string> all;
  if (output.empty()) return all;
  REQUIRE(output.front() == '\r');
  for (std::string text : split(output.substr(1), "\r")) {
    const auto erase = text.find("\x1b[K");
    REQUIRE(erase != std::string::npos);
    const std::string after = text.substr(erase + 3);
    REQUIRE((after.empty() || after == "\n"));
    all.push_back(text.substr(0, erase) + after);
  }
  return all;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = pyarallel::detail::utf8_length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string without_colours(std::string text) {
  for (const std::string_view code : {"\x1b[32m", "\x1b[0m"}) {
    for (auto at = text.find(code); at != std::string::npos; at = text.find(code)) text.erase(at, code.size());
  }
  return text;
}

Progress some_way() {
  return {.label = "fetching", .done = 300, .total = 1000, .elapsed = 5s, .rate = 56.4, .ended = false};
}

std::string line_of(const Progress& progress, std::size_t columns, bool utf8 = false) {
  return terminal_line(progress, LineStyle{.columns = columns, .utf8 = utf8});
}

struct Broken : std::runtime_error {
  Broken() : runtime_error("broken") {}
};

}  // namespace

// The text -----------------------------------------------------------------------------------------------------

TEST_CASE("B1 a progress line is never longer than allowed and always valid UTF-8") {
  const std::vector<std::string> labels{"",         "fetching",           "größe",          std::string(300, 'x'),
                                        "\xff\xfe", "two\nlines\x1b[31m", "日本語のラベル", "cut\xe2\x82"};
  const std::vector<std::pair<std::size_t, std::optional<std::size_t>>> counts{
      {0, 1},       {1, 1},    {300, 1000}, {999'999, 1'000'000}, {huge - 1, huge}, {7, 8},
      {huge, huge}, {0, huge}, {0, {}},     {1234, {}},           {huge, {}},
  };  // eleven, so that each comes with every time, both ways of drawing, and many widths
  const std::vector<std::pair<Duration, std::optional<double>>> times{
      {0s, {}}, {5s, 56.4}, {100h, 1e300}, {Duration::max(), 1e-300}, {7s, 0.001}};
  std::size_t longest = 0;
  std::size_t turn = 0;
  for (const auto& label : labels) {
    for (std::size_t columns = 0; columns <= 200; ++columns) {
      for (const bool utf8 : {false, true}) {
        const auto& [done, total] = counts[turn % counts.size()];
        const auto& [elapsed, rate] = times[turn % times.size()];
        const Progress progress{.label = label, .done = done, .total = total, .elapsed = elapsed, .rate = rate};
        const std::string line =
            terminal_line(progress, LineStyle{.columns = columns, .utf8 = utf8, .colour = turn % 3 == 0});
        ++turn;
        const std::string text = without_colours(line);
        const std::size_t length = pyarallel::detail::columns_of(text);
        longest = std::max(longest, length);
        if (length > columns || !is_utf8(text) || (!utf8 && length != text.size()) ||
            std::ranges::any_of(text, [](char c) { return static_cast<unsigned char>(c) < ' '; })) {
          CAPTURE(label, columns, utf8, line);
          FAIL();
        }
      }
    }
  }
  CHECK(longest > 150);
}

TEST_CASE("B1 what does not fit into a progress line is left out and the least important first") {
  const Progress progress = some_way();
  CHECK(line_of(progress, 79) == "fetching:  30% [#########.....................]  300/1000, 56/s, 0:05, ETA 0:13");
  CHECK(line_of(progress, 60) == "fetching:  30% [###........]  300/1000, 56/s, 0:05, ETA 0:13");
  CHECK(line_of(progress, 57) == "fetching:  30% [##......]  300/1000, 56/s, 0:05, ETA 0:13");
  CHECK(line_of(progress, 55) == "fetching:  30%  300/1000, 56/s, 0:05, ETA 0:13");
  CHECK(line_of(progress, 40) == "fetching:  30%  300/1000, 0:05, ETA 0:13");
  CHECK(line_of(progress, 34) == "fetching:  30%  300/1000, ETA 0:13");
  CHECK(line_of(progress, 30) == " 30%  300/1000, 0:05, ETA 0:13");
  CHECK(line_of(progress, 15) == " 30%  300/1000");
  CHECK(line_of(progress, 9) == " 300/1000");
  CHECK(line_of(progress, 8) == " 30%");
  CHECK(line_of(progress, 3).empty());
  CHECK(line_of(progress, 0).empty());
  CHECK(line_of(progress, 200) ==
        "fetching:  30% [############............................]  300/1000, 56/s, 0:05, ETA 0:13");
}

TEST_CASE("B1 a progress line without a total says only what is known") {
  Progress progress = some_way();
  progress.total.reset();
  CHECK(line_of(progress, 79) == "fetching: 300 done, 56/s, 0:05");
  CHECK(plain_line(progress, false) == "fetching: 300 done, 56/s, 0:05");
  progress.rate.reset();
  progress.label.clear();
  CHECK(line_of(progress, 79) == "300 done, 0:05");
  CHECK(plain_line(progress, false) == "300 done, 0:05");
}

TEST_CASE("B1 a plain progress line says the same in words") {
  Progress progress = some_way();
  CHECK(plain_line(progress, true) == "fetching: 300 of 1000 (30%), 56/s, 0:05, ETA 0:13");
  progress.rate.reset();
  CHECK(plain_line(progress, true) == "fetching: 300 of 1000 (30%), 0:05");
  progress.ended = true;
  progress.rate = 56;
  CHECK(plain_line(progress, true) == "fetching: 300 of 1000 (30%), 56/s, 0:05");
  progress.done = 1000;
  CHECK(plain_line(progress, true) == "fetching: 1000 of 1000 (100%), 56/s, 0:05");
  progress.label = std::string(1000, 'x');
  CHECK(plain_line(progress, true).size() < 300);
}

TEST_CASE("B1 a progress bar grows in eighths of a character and is full only at the end") {
  using pyarallel::detail::text_of_bar;
  CHECK(text_of_bar(0, 100, 4, true) == "|    |");
  CHECK(text_of_bar(1, 32, 4, true) == "|▏   |");
  CHECK(text_of_bar(12, 32, 4, true) == "|█▌  |");
  CHECK(text_of_bar(31, 32, 4, true) == "|███▉|");
  CHECK(text_of_bar(32, 32, 4, true) == "|████|");
  CHECK(text_of_bar(huge - 1, huge, 4, true) == "|███▉|");
  CHECK(text_of_bar(huge, huge, 4, true) == "|████|");
  CHECK(text_of_bar(0, 100, 4, false) == "[....]");
  CHECK(text_of_bar(50, 100, 4, false) == "[##..]");
  CHECK(text_of_bar(99, 100, 4, false) == "[###.]");
  CHECK(text_of_bar(100, 100, 4, false) == "[####]");
}

TEST_CASE("B1 a percentage is 100 only when all is done") {
  using pyarallel::detail::percentage;
  CHECK(percentage(0, 3) == 0);
  CHECK(percentage(1, 3) == 33);
  CHECK(percentage(2, 3) == 66);
  CHECK(percentage(3, 3) == 100);
  CHECK(percentage(9999, 10'000) == 99);
  CHECK(percentage(huge - 1, huge) == 99);
  CHECK(percentage(huge, huge) == 100);
}

TEST_CASE("B1 times of a progress line") {
  using pyarallel::detail::text_of_time;
  CHECK(text_of_time(0s) == "0:00");
  CHECK(text_of_time(7s) == "0:07");
  CHECK(text_of_time(12min + 34s) == "12:34");
  CHECK(text_of_time(59min + 59s) == "59:59");
  CHECK(text_of_time(3h + 2min + 1s) == "3:02:01");
  CHECK(text_of_time(24h) == "1d 00:00");
  CHECK(text_of_time(52h + 5min) == "2d 04:05");
  CHECK(text_of_time(-5s) == "0:00");
  CHECK_FALSE(text_of_time(std::chrono::seconds::max()).empty());
}

TEST_CASE("B1 rates of a progress line") {
  using pyarallel::detail::text_of_rate;
  CHECK(text_of_rate(56.4) == "56/s");
  CHECK(text_of_rate(1) == "1.0/s");
  CHECK(text_of_rate(9.96) == "10/s");
  CHECK(text_of_rate(1540) == "1.5k/s");
  CHECK(text_of_rate(25'000'000) == "25M/s");
  CHECK(text_of_rate(3e9) == "3.0G/s");
  CHECK(text_of_rate(0.2) == "12/min");
  CHECK(text_of_rate(0.001) == "3.6/h");
  CHECK(text_of_rate(1e300).size() < 10);
  for (const double none : {0.0, -1.0, 1e-300, std::numeric_limits<double>::infinity(), std::nan("")}) {
    CHECK(text_of_rate(none).empty());
  }
}

TEST_CASE("B1 the time left is what the rate says and nothing when that is absurd") {
  Progress progress{.done = 50, .total = 100, .rate = 10.0};
  CHECK(progress.time_left() == 5s);
  progress.rate = 9.9;
  CHECK(progress.time_left() == 6s);  // never 0 while there is something left
  for (const double rate : {0.0, -1.0, 1e-300, 1e-7, std::nan("")}) {
    progress.rate = rate;
    CHECK_FALSE(progress.time_left());
  }
  progress = {.done = 0, .total = huge, .rate = 1.0};
  CHECK_FALSE(progress.time_left());
}

TEST_CASE("B1 a label cannot drive the terminal") {
  using pyarallel::detail::printable;
  CHECK(printable("two\nlines\r\t\x1b[2J\x7f", true) == "two lines   [2J ");
  CHECK(printable("\xc2\x9b"
                  "31m",
                  true) == " 31m");  // CSI in one character
  CHECK(printable("größe", true) == "größe");
  CHECK(printable("größe", false) == "gr??e");
  CHECK(printable("\xff\xe2\x82", true) == "???");
  CHECK(printable("\xc0\xaf\xed\xa0\x80\xf5\x80\x80\x80", true) == "?????????");
  CHECK(printable("😀€", true) == "😀€");
  using pyarallel::detail::shortened;
  CHECK(shortened("größe", 5, true) == "größe");
  CHECK(shortened("größe", 4, true) == "grö…");
  CHECK(shortened("fetching", 6, false) == "fet...");
  CHECK(shortened("fetching", 3, false).empty());
}

// Known and unknown totals -------------------------------------------------------------------------------------

TEST_CASE_METHOD(UsualWorld, "B1 a short run prints one progress line when all is done") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    for (std::size_t i = 1; i <= 10; ++i) {
      clock.advance(5ms);
      bar(i, 10);
    }
  }
  CHECK(log.text() == "fetching: 10 of 10 (100%), 200/s, 0:00\n");
}

TEST_CASE_METHOD(UsualWorld, "B1 the last of a known number of items ends the progress line at once") {
  const Log log;
  const ProgressBar bar{"fetching", log};
  for (std::size_t i = 1; i <= 10; ++i) {
    clock.advance(50ms);
    bar(i, 10);
    if (i < 10) CHECK(log.text().empty());
  }
  const std::string line = "fetching: 10 of 10 (100%), 20/s, 0:00\n";
  CHECK(log.text() == line);
  bar(10, 10);
  bar.end();
  clock.advance(1h);
  bar(10, 10);
  CHECK(log.text() == line);
}

TEST_CASE("B1 progress without a call prints nothing") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    bar.end();
  }
  CHECK(log.text().empty());
}

TEST_CASE_METHOD(UsualWorld, "B1 plain progress lines come every five seconds at most") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    for (std::size_t i = 1; i <= 1000; ++i) {
      clock.advance(17ms);
      bar(i, 1000);
    }
  }
  CHECK(split(log.text(), "\n") == std::vector<std::string>{
                                       "fetching: 300 of 1000 (30%), 59/s, 0:05, ETA 0:12",
                                       "fetching: 600 of 1000 (60%), 59/s, 0:10, ETA 0:07",
                                       "fetching: 900 of 1000 (90%), 59/s, 0:15, ETA 0:02",
                                       "fetching: 1000 of 1000 (100%), 59/s, 0:17",
                                   });
}

TEST_CASE_METHOD(UsualWorld, "B1 a total that grows is not shown") {
  const Log log;
  std::function<std::size_t(std::size_t)> total;
  SECTION("one by one") {
    total = [](std::size_t done) { return done; };
  }
  SECTION("a window ahead") {
    total = [](std::size_t done) { return std::min<std::size_t>(done + 8, 1000); };
  }
  SECTION("a window ahead that is filled again when all of it is done") {
    total = [](std::size_t done) { return (done + 7) / 8 * 8; };
  }
  {
    const ProgressBar bar{"fetching", log};
    for (std::size_t i = 1; i <= 1000; ++i) {
      if (i % 8 == 1) clock.advance(136ms);  // as eight workers would
      bar(i, total(i));
    }
  }
  CHECK(split(log.text(), "\n") == std::vector<std::string>{
                                       "fetching: 289 done, 59/s, 0:05",
                                       "fetching: 585 done, 59/s, 0:10",
                                       "fetching: 881 done, 59/s, 0:15",
                                       "fetching: 1000 done, 59/s, 0:17",
                                   });
}

TEST_CASE_METHOD(UsualWorld, "B1 a total of the first items that end together is not believed yet") {
  const Terminal terminal{80};
  const ProgressBar bar{"", terminal};
  clock.advance(2s);
  for (const std::size_t done : {1U, 2U, 3U, 4U}) bar(done, 4);
  CHECK(drawings(terminal.read_all()) == std::vector<std::string>{"1 done, 0:02"});
  clock.advance(2s);
  for (const std::size_t done : {5U, 6U, 7U, 8U}) bar(done, 8);
  CHECK(drawings(terminal.read_all()) == std::vector<std::string>{"5 done, 2.0/s, 0:04"});
  bar.end();
  CHECK(drawings(terminal.read_all()) == std::vector<std::string>{"8 done, 2.0/s, 0:04\n"});
}

TEST_CASE_METHOD(UsualWorld, "B1 progress goes on below when a total was believed too early") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    for (std::size_t i = 1; i <= 8; ++i) {
      clock.advance(1s);
      bar(i, i <= 2 ? 2 : 8);
    }
  }
  CHECK(split(log.text(), "\n") == std::vector<std::string>{
                                       "fetching: 2 of 2 (100%), 1.0/s, 0:02",
                                       "fetching: 5 done, 1.0/s, 0:05",
                                       "fetching: 8 done, 1.0/s, 0:08",
                                   });
}

TEST_CASE_METHOD(UsualWorld, "B1 progress beyond the total and totals of nothing are taken as unknown") {
  const Log log;
  {
    const ProgressBar bar{"over", log};
    for (const std::size_t done : {1U, 2U, 3U, 4U}) {
      clock.advance(1s);
      bar(done, 3);
    }
  }
  CHECK(log.text() == "over: 3 of 3 (100%), 1.0/s, 0:03\nover: 4 done, 1.0/s, 0:04\n");
  const Log empty;
  {
    const ProgressBar bar{"none", empty};
    bar(0, 0);
    clock.advance(6s);
    bar(0, 0);
    bar(1, 0);
  }
  CHECK(empty.text() == "none: 0 done, 0:06\nnone: 1 done, 10/min, 0:06\n");
  const Log large;
  {
    const ProgressBar bar{"large", large};
    bar(1, huge);
    clock.advance(6s);
    bar(huge - 1, huge);
    bar(huge, huge);
  }
  CHECK(split(large.text(), "\n").size() == 2);
  CHECK(large.text().find("18446744073709551614 of 18446744073709551615 (99%)") != std::string::npos);
}

// Rate and time left -------------------------------------------------------------------------------------------

TEST_CASE_METHOD(UsualWorld, "B1 the progress of a run has no rate in its first second") {
  const Terminal terminal{80};
  const ProgressBar bar{"", terminal};
  clock.advance(10s);  // the first item takes long
  for (std::size_t i = 1; i <= 20; ++i) {
    bar(i, 100);
    const std::string output = terminal.read_all();
    CHECK((output.find("/s") != std::string::npos) == (i > 10));
    CHECK((output.find("ETA") != std::string::npos) == (i > 10));
    if (i > 10) CHECK(output.find("10/s") != std::string::npos);  // the wait for the first item is not counted
    clock.advance(100ms);
  }
}

TEST_CASE("B1 the rate of a progress line follows a change slowly and the time left does not jump") {
  pyarallel::detail::SmoothRate rate;
  pyarallel::detail::TimePoint now{1h};
  std::size_t done = 0;
  rate.begin(now, done);
  const auto run = [&](Duration time, std::size_t items) {
    now += time;
    done += items;
    rate.look(now, done);
  };
  CHECK_FALSE(rate.per_second());
  for (int i = 0; i < 100; ++i) run(100ms, 10);
  CHECK(*rate.per_second() == Approx(100));
  double before = 100;
  for (int i = 0; i < 600; ++i) {
    run(100ms, 1);
    CHECK(*rate.per_second() < before);
    CHECK(*rate.per_second() > 0.98 * before);
    before = *rate.per_second();
  }
  CHECK(before < 11);  // a minute later

  // One item a minute, with one hiccup.
  rate.begin(now, done);
  for (int i = 0; i < 100; ++i) run(1min, 1);
  CHECK(*rate.per_second() == Approx(1.0 / 60));
  run(10min, 1);
  CHECK(*rate.per_second() > 0.6 / 60);
  CHECK(*rate.per_second() < 1.0 / 60);

  run(0s, 5);  // at the same moment: counted with the next
  run(1min, 1);
  CHECK(std::isfinite(*rate.per_second()));
  run(-1s, 1);
  CHECK(std::isfinite(*rate.per_second()));
}

// On a terminal ------------------------------------------------------------------------------------------------

TEST_CASE_METHOD(UsualWorld, "B1 progress is redrawn in place at most ten times in a second") {
  const Terminal terminal{80};
  {
    const ProgressBar bar{"fetching", terminal};
    std::size_t done = 0;
    for (int second = 0; second < 5; ++second) {
      for (int i = 0; i < 1000; ++i) {
        clock.advance(1ms);
        bar(++done, 10'000);
      }
      const auto drawn = drawings(terminal.read_all());
      CHECK(drawn.size() <= 10);
      CHECK(drawn.size() >= 9);
      for (const auto& text : drawn) CHECK(count(text, '\n') == 0);
    }
  }
  const auto end = drawings(terminal.read_all());
  REQUIRE(end.size() == 1);
  CHECK(end[0].starts_with("fetching:  50% |███"));
  CHECK(end[0].ends_with("|  5000/10000, 1.0k/s, 0:05\n"));
}

TEST_CASE_METHOD(UsualWorld, "B1 nothing is drawn in the first tenth of a second") {
  const Terminal terminal{80};
  const ProgressBar bar{"fetching", terminal};
  for (std::size_t i = 1; i <= 99; ++i) {
    clock.advance(1ms);
    bar(i, 1000);
  }
  CHECK(terminal.read_all().empty());
  clock.advance(1ms);
  bar(100, 1000);
  CHECK(drawings(terminal.read_all()).size() == 1);
}

TEST_CASE_METHOD(UsualWorld, "B1 progress fits a terminal that changes its width") {
  const Terminal terminal{200};
  const ProgressBar bar{"fetching", terminal};
  bar(1, 1000);
  std::size_t done = 1;
  for (unsigned short columns = 200; columns > 0; --columns) {
    terminal.resize(columns);
    clock.advance(100ms);
    bar(++done, 1000);
    const auto drawn = drawings(terminal.read_all());
    REQUIRE(drawn.size() == 1);
    CHECK(pyarallel::detail::columns_of(drawn[0]) < columns);
    if (columns > 20) CHECK_FALSE(drawn[0].empty());
  }
}

TEST_CASE_METHOD(UsualWorld, "B1 where the terminal does not tell its width progress asks COLUMNS") {
  const auto width_with = [&](std::optional<std::string> value) {
    const Variable columns{"COLUMNS", std::move(value)};
    const Terminal terminal{0};
    const ProgressBar bar{std::string(200, 'x'), terminal};
    bar(1, 1000);
    clock.advance(1s);
    bar(2, 1000);
    return pyarallel::detail::columns_of(drawings(terminal.read_all()).at(0));
  };
  CHECK(width_with("40") > 30);
  CHECK(width_with("40") < 40);
  for (const char* other : {"", "0", "-5", "many", "50x", "99999999999999999999999"}) {
    CHECK(width_with(other) == width_with(std::nullopt));
  }
  CHECK(width_with(std::nullopt) == 79);
}

TEST_CASE_METHOD(UsualWorld, "B1 complete progress is green unless NO_COLOR is set") {
  const auto output_with = [&](std::optional<std::string> value) {
    const Variable no_color{"NO_COLOR", std::move(value)};
    const Terminal terminal{80};
    const ProgressBar bar{"fetching", terminal};
    bar(1, 3);
    clock.advance(1s);
    bar(2, 3);
    CHECK(terminal.read_all().find("\x1b[32m") == std::string::npos);
    clock.advance(1s);
    bar(3, 3);
    return terminal.read_all();
  };
  const std::string coloured = output_with(std::nullopt);
  CHECK(coloured.find("\x1b[32m|") != std::string::npos);
  CHECK(coloured.find("|\x1b[0m 3/3") != std::string::npos);
  CHECK(output_with("") == coloured);
  CHECK(output_with("1") == without_colours(coloured));
}

TEST_CASE("B1 a dumb terminal gets plain progress lines") {
  const UsualEnvironment environment;
  const Variable dumb{"TERM", "dumb"};
  FakeClock clock;
  const ClockOverride use{clock};
  const Terminal terminal{80};
  const ProgressBar bar{"fetching", terminal};
  for (std::size_t i = 1; i <= 10; ++i) {
    clock.advance(1s);
    bar(i, 10);
  }
  CHECK(terminal.read_all() ==
        "fetching: 5 of 10 (50%), 1.0/s, 0:05, ETA 0:05\n"
        "fetching: 10 of 10 (100%), 1.0/s, 0:10\n");
}

TEST_CASE_METHOD(UsualWorld, "B1 progress is drawn in ASCII unless the locale is UTF-8") {
  const auto is_ascii_with = [&](const char* all, const char* ctype, const char* lang) {
    const Variable lc_all{"LC_ALL", all};
    const Variable lc_ctype{"LC_CTYPE", ctype};
    const Variable language{"LANG", lang};
    const Terminal terminal{80};
    const ProgressBar bar{"größe", terminal};
    bar(1, 3);
    clock.advance(1s);
    bar(2, 3);
    const std::string output = terminal.read_all();
    const bool ascii = std::ranges::none_of(output, [](char c) { return static_cast<unsigned char>(c) > 0x7F; });
    CHECK(output.find(ascii ? "gr??e:  66% [####" : "größe:  66% |█████") != std::string::npos);
    return ascii;
  };
  CHECK(is_ascii_with("", "", ""));
  CHECK(is_ascii_with("C", "", ""));
  CHECK(is_ascii_with("C", "de_DE.UTF-8", "de_DE.UTF-8"));
  CHECK(is_ascii_with("", "C", "de_DE.UTF-8"));
  CHECK_FALSE(is_ascii_with("C.UTF-8", "C", "C"));
  CHECK_FALSE(is_ascii_with("", "de_DE.utf8", "C"));
  CHECK_FALSE(is_ascii_with("", "", "de_DE.UTF-8"));
}

// Its end ------------------------------------------------------------------------------------------------------

TEST_CASE_METHOD(UsualWorld, "B1 an exception that leaves the call ends the progress line") {
  const Terminal terminal{80};
  const auto fails_in_the_end = [&](int item) {
    clock.advance(1s);
    return item;
  };
  const auto throwing = [&](const auto& item) {
    if (item.index == 4) throw Broken();
  };
  CHECK_THROWS_AS(parallel_map(fails_in_the_end, numbers(10),
                               {.workers = 1, .on_result = throwing, .on_progress = ProgressBar{"fetching", terminal}}),
                  Broken);
  const auto drawn = drawings(terminal.read_all());
  REQUIRE(drawn.size() == 5);
  CHECK(drawn[3].starts_with("fetching:  40% |"));
  CHECK(drawn[4].ends_with("|  4/10, 1.0/s, 0:04\n"));
}

TEST_CASE_METHOD(UsualWorld, "B1 progress that Ctrl-C interrupts leaves nothing in the terminal but its text") {
  const Terminal terminal{80};
  const ProgressBar bar{"fetching", terminal};
  const auto child = support::in_child([&](const support::Parent&) {
    std::signal(SIGINT, SIG_DFL);
    for (std::size_t i = 1; i <= 10; ++i) {
      bar(i, 20);
      clock.advance(1s);
    }
    std::raise(SIGINT);
  });
  CHECK(child.end() == "killed by signal " + std::to_string(SIGINT));
  const auto drawn = drawings(terminal.read_all());  // nothing but text, carriage returns and erasures
  REQUIRE(drawn.size() == 9);
  CHECK(drawn.back().starts_with("fetching:  50% |"));
  CHECK(count(drawn.back(), '\n') == 0);
}

TEST_CASE_METHOD(UsualWorld, "B1 progress of several runs with one bar is a line for each") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    const auto run = [&](std::size_t items, std::size_t total) {
      for (std::size_t i = 1; i <= items; ++i) {
        clock.advance(1s);
        bar(i, total == 0 ? i : total);
      }
    };
    run(3, 3);
    run(2, 0);
    run(3, 4);
    run(1, 1);
    run(1, 1);
    clock.advance(1h);
  }
  CHECK(split(log.text(), "\n") == std::vector<std::string>{
                                       "fetching: 3 of 3 (100%), 1.0/s, 0:03",
                                       "fetching: 2 done, 1.0/s, 0:01",
                                       "fetching: 3 of 4 (75%), 1.0/s, 0:02",
                                       "fetching: 1 done, 0:00",
                                       "fetching: 1 done, 0:00",
                                   });
}

TEST_CASE_METHOD(UsualWorld, "B1 a bar that is ended by hand goes on when the run does") {
  const Log log;
  {
    const ProgressBar bar{"fetching", log};
    for (std::size_t i = 1; i <= 4; ++i) {
      clock.advance(1s);
      bar(i, 10);
      if (i == 2) bar.end();
      if (i == 2) bar.end();
    }
  }
  CHECK(log.text() ==
        "fetching: 2 of 10 (20%), 1.0/s, 0:02\n"
        "fetching: 4 of 10 (40%), 1.0/s, 0:04\n");
}

TEST_CASE_METHOD(UsualWorld, "B1 copies of a progress bar show one line that ends with the last of them") {
  const Log log;
  {
    std::optional<ProgressBar> bar{std::in_place, "fetching", log};
    OnProgress copy = *bar;
    OnProgress another = copy;
    const OnProgress reference = std::ref(*bar);
    for (std::size_t i = 1; i <= 3; ++i) {
      clock.advance(1s);
      (i == 1 ? copy : i == 2 ? another : reference)(i, 10);
    }
    bar.reset();
    another = nullptr;
    CHECK(log.text().empty());
    clock.advance(1s);
    copy(4, 10);
    const OnProgress moved = std::move(copy);
    CHECK(log.text().empty());
  }
  CHECK(log.text() == "fetching: 4 of 10 (40%), 1.0/s, 0:04\n");

  ProgressBar from{"", log};
  const ProgressBar to = std::move(from);
  from(1, 2);  // NOLINT: moved from, it does nothing
  from.end();
  CHECK(split(log.text(), "\n").size() == 1);
}

TEST_CASE("B1 a child process that was forked during a run does not end its progress line") {
  const UsualEnvironment environment;
  const Log log;
  {
    std::optional<ProgressBar> bar{std::in_place, "fetching", log};
    (*bar)(1, 10);
    const auto child = support::in_child([&](const support::Parent&) { bar.reset(); });
    CHECK(child.end() == "exited with 0");
    CHECK(log.text().empty());
  }
  CHECK(count(log.text(), '\n') == 1);
}

TEST_CASE("B1 progress that cannot be written disturbs nothing") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  std::FILE* out = nullptr;
  SECTION("no file") {}
  SECTION("a full disk") { out = std::fopen("/dev/full", "w"); }
  SECTION("a file for reading") { out = std::fopen("/dev/null", "r"); }
  SECTION("a descriptor that was closed") {
    out = std::fopen("/dev/null", "w");
    REQUIRE(out != nullptr);
    // Another number may be taken by another thread; this one is far away.
    const int far = fcntl(fileno(out), F_DUPFD_CLOEXEC, 900);
    REQUIRE(far >= 0);
    std::fclose(out);
    out = fdopen(far, "w");
    close(far);
  }
  SECTION("a terminal that was hung up") {
    auto terminal = std::make_unique<Terminal>(static_cast<unsigned short>(80));
    const int copy = dup(fileno(*terminal));
    out = fdopen(copy, "w");
    terminal.reset();
  }
  FakeClock clock;
  const ClockOverride use{clock};
  const auto slow = [&](int item) {
    clock.advance(2s);
    return item;
  };
  const ProgressBar bar{"fetching", out};
  CHECK(parallel_map(slow, numbers(10), {.workers = 1, .on_progress = bar}).ok());
  CHECK(parallel_map(slow, std::list<int>{1, 2, 3}, {.workers = 1, .on_progress = bar}).ok());
  bar.end();
  if (out != nullptr) std::fclose(out);
}

// In a run -----------------------------------------------------------------------------------------------------

TEST_CASE("B1 a progress bar in runs of every kind") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  for (const std::size_t workers : {1U, 2U, 5U}) {
    const auto last_line = [&](auto&& items, auto fn) {
      const Log log;
      static_cast<void>(parallel_map(fn, items, {.workers = workers, .on_progress = ProgressBar{"items", log}}));
      CHECK(count(log.text(), '\n') == 1);
      return log.text();
    };
    CHECK(last_line(numbers(1000), itself) == "items: 1000 of 1000 (100%), 0:00\n");
    CHECK(last_line(std::list<int>(1000), itself) == "items: 1000 of 1000 (100%), 0:00\n");
    CHECK(last_line(std::forward_list<int>(1000), itself) == "items: 1000 done, 0:00\n");
    SinglePass source{1000, itself};
    CHECK(last_line(source, itself) == "items: 1000 done, 0:00\n");
    CHECK(last_line(numbers(50), [](int item) { return item % 2 == 0 ? throw Broken() : item; }) ==
          "items: 50 of 50 (100%), 0:00\n");
    CHECK(last_line(numbers(1), itself) == "items: 1 done, 0:00\n");
    const Log log;
    CHECK(parallel_map(itself, numbers(0), {.workers = workers, .on_progress = ProgressBar{"items", log}}).ok());
    CHECK(log.text().empty());
  }
}

TEST_CASE("B1 a progress bar on a terminal in a run of threads that is stopped") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  const Terminal terminal{60};
  std::stop_source stop;
  const ProgressBar bar{"working", terminal};
  const auto progress = [&, begun = std::chrono::steady_clock::now()](std::size_t done, std::size_t total) {
    bar(done, total);
    if (std::chrono::steady_clock::now() - begun > 350ms) stop.request_stop();
  };
  const auto slow = [](int item) {
    std::this_thread::sleep_for(1ms);
    return item;
  };
  const auto result =
      parallel_map(slow, numbers(20'000), {.workers = 3, .stop = stop.get_token(), .on_progress = progress});
  CHECK(result.cancelled());
  bar.end();
  const auto drawn = drawings(terminal.read_all());
  REQUIRE(drawn.size() >= 2);
  CHECK(drawn.size() <= 1000);
  for (const auto& text : drawn) CHECK(pyarallel::detail::columns_of(text) <= 60);
  CHECK(drawn.back().starts_with("working: "));
  CHECK(drawn.back().ends_with("\n"));
}

TEST_CASE("B1 options with a progress bar serve several runs") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  FakeClock clock;
  const ClockOverride use{clock};
  const Log log;
  {
    const Options options{.workers = 2, .on_progress = ProgressBar{"items", log}};
    CHECK(parallel_map(itself, numbers(100), options).ok());
    CHECK(parallel_map(itself, numbers(200), options).ok());
    CHECK(parallel_map(itself, numbers(300), options, {.workers = 1}).ok());
  }
  CHECK(log.text() ==
        "items: 100 of 100 (100%), 0:00\n"
        "items: 200 of 200 (100%), 0:00\n"
        "items: 300 of 300 (100%), 0:00\n");
}

TEST_CASE("B1 one progress bar in two runs at the same time is no sensible line but no harm") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  const Log log;
  {
    const ProgressBar bar{"both", log};
    const auto count_up = [&] {
      for (std::size_t i = 1; i <= 100'000; ++i) bar(i, 100'000);
    };
    std::jthread other{count_up};
    count_up();
  }
  CHECK(count(log.text(), '\n') < 1000);
}

TEST_CASE("B1 a progress bar in forked workers belongs to the calling process") {
  const UsualEnvironment environment;
  const Watchdog watchdog;
  const Log log;
  const auto fn = [bar = ProgressBar{"inside", log}](int item) { return item; };
  const auto result = parallel_map(
      fn, numbers(100), {.workers = 2, .executor = Executor::process, .on_progress = ProgressBar{"items", log}});
  CHECK(result.ok());
  CHECK(log.text().starts_with("items: 100 of 100 (100%)"));
  CHECK(count(log.text(), '\n') == 1);
}

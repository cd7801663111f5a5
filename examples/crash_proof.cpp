// crash_proof [DIRECTORY]: a parser that no file can bring down, on every file below a directory.
//
// The parser is as fragile as they come. It runs in worker processes, so a file that crashes it costs its own result
// and nothing else: all others come through, and each bad one is listed with its cause. Without an argument the program
// makes a directory of good files and of one for each fault. The exit status is 0 only if all fared as they should.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <new>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/receipts.hpp"
#include "support/stopwatch.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace std::chrono_literals;

namespace {

using Numbers = std::vector<long>;
constexpr std::size_t good_samples = 200;

// Finds the numbers in a text like "1, 2 (3 4) # a comment". "5*7" is five sevens.
struct FragileParser {
  std::string_view text;
  std::size_t at = 0;

  Numbers list(Numbers* outer) {
    Numbers numbers;
    while (at < text.size()) {
      const char c = text[at];
      if (c >= '0' && c <= '9') {
        const long first = number();
        const bool repeats = at < text.size() && text[at] == '*';
        const long value = repeats ? (++at, number()) : first;
        for (long n = repeats ? first : 1; n > 0; --n) numbers.push_back(value);  // as many as the file says
      } else if (c == '#') {
        at = text.find('\n', at) + 1;  // if there is none: npos + 1, and so from the beginning, for ever
      } else if (++at; c == '(') {
        list(&numbers);  // takes some stack each time
      } else if (c == ')') {
        Numbers* volatile above = outer;  // null, if there was no '('
        above->insert(above->end(), numbers.begin(), numbers.end());
        return {};
      } else if (c == '\0') {
        std::exit(3);  // "not a text file", said the old command line tool
      }
    }
    return numbers;
  }

  long number() {
    long value = 0;
    const auto [end, error] = std::from_chars(text.data() + at, text.data() + text.size(), value);
    if (error != std::errc()) throw std::out_of_range(fmt::format("no number that fits into a long at byte {}", at));
    at = static_cast<std::size_t>(end - text.data());
    return value;
  }
};

Numbers parse_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be read");
  const std::string text(std::istreambuf_iterator<char>(file), {});
  return FragileParser{text}.list(nullptr);
}

std::vector<fs::path> files_below(const fs::path& top) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(top, fs::directory_options::skip_permission_denied)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  return files;
}

// With what the name of a sample begins that should fail like this.
std::string_view cause_of(const pyarallel::Error& error, const fs::path& file) {
  if (error.is<pyarallel::TaskTimeout>()) return "hang";
  // Some sanitizers end a process that is out of memory.
  if (error.is<std::bad_alloc>() || file.filename() == "memory") return "memory";
  return error.is<pyarallel::WorkerCrashed>() ? "crash" : "throw";
}

int parse_all(const fs::path& top, bool are_samples) {
  const std::vector<fs::path> files = files_below(top);
  const demo::Stopwatch stopwatch;
  const auto result = pyarallel::parallel_map(
      parse_file, files,
      {.executor = pyarallel::Executor::process,
       .retry = pyarallel::Retry{.attempts = 2, .on = pyarallel::retry_on<pyarallel::WorkerCrashed>},
       .task_timeout = 5s,
       .on_progress = pyarallel::ProgressBar{"files"},
       .worker_memory_limit = std::size_t{256} << 20});
  const double seconds = stopwatch.seconds();

  demo::Receipts receipts;
  for (const auto& [index, error] : result.failures()) {
    const std::string name = files[index].lexically_relative(top).string();
    receipts.claim(!are_samples || name.starts_with(cause_of(error, files[index])), name, fmt::format("{}", error));
  }
  std::size_t right = 0;
  for (const auto& [index, numbers] : result.successes()) right += numbers == parse_file(files[index]) ? 1 : 0;
  receipts.claim(right == (are_samples ? good_samples : files.size() - result.failures().size()),
                 "all others come through", fmt::format("{} of {} files", right, files.size()));
  return receipts.verdict(seconds);
}

int parse_samples() {
  const demo::TemporaryFolder top;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::ofstream(top.path().string() + name) << text;
  };
  for (std::size_t n = 0; n < good_samples; ++n) write(fmt::format("/good {}", n), fmt::format("{} (1 3*5) # ok\n", n));
  write("/crash: null pointer", "1) 2");
  write("/crash: stack overflow", std::string(10'000'000, '('));
  write("/crash: exit(3)", std::string(1, '\0'));
  write("/hang", "# without an end of line");
  write("/memory", "999999999999*1");
  write("/throw", "99999999999999999999");
  return parse_all(top.path(), true);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return argc > 1 ? parse_all(argv[1], false) : parse_samples();
  } catch (const std::exception& error) {
    fmt::print(stderr, "crash_proof: {}\nusage: crash_proof [DIRECTORY]\n", error.what());
    return 2;
  }
}

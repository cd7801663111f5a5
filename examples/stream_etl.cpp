// stream_etl [ROWS]: extract, transform, load, in constant memory.
//
// A large CSV of sensor readings, with some broken rows in it, is made up as it is read; each row is parsed and
// converted on all CPUs; what comes out is written to a file in the order of the input, and the broken rows to
// another one. Nothing is ever held but a window of rows: the peak of memory is printed, and if it grew by more than
// 16 MiB, the exit status is not 0.
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <ranges>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace fs = std::filesystem;
using namespace pyarallel;

namespace {

// Extract ------------------------------------------------------------------------------------------------

constexpr std::size_t broken_every = 50'000;

// "2024-03-01T00:00:07,sensor-7,20.35,1013.2". Every so often a sensor sends rubbish.
std::string csv_row(std::size_t row) {
  const std::size_t second = row % 86'400;
  const auto kelvin_tenths = static_cast<double>(2900 + row % 97) / 10;
  const std::string temperature = row % broken_every == 17 ? "n/a" : fmt::format("{:.2f}", kelvin_tenths - 273.15);
  return fmt::format("2024-03-01T{:02}:{:02}:{:02},sensor-{},{},{:.1f}", second / 3600, second / 60 % 60, second % 60,
                     row % 100, temperature, 950 + static_cast<double>(row % 1000) / 10);
}

// Transform ----------------------------------------------------------------------------------------------

double number_in(std::string_view field, const char* name) {
  const std::string text(field);
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0') throw std::invalid_argument(fmt::format("{} is no number: \"{}\"", name, text));
  return number;
}

// The row with two columns more: the temperature in Fahrenheit, and the density of the air.
std::string transformed(const std::string& row) {
  std::array<std::string_view, 4> fields;
  std::size_t count = 0;
  for (std::size_t begin = 0; begin <= row.size(); ++count) {
    const std::size_t end = std::min(row.find(',', begin), row.size());
    if (count < fields.size()) fields[count] = std::string_view(row).substr(begin, end - begin);
    begin = end + 1;
  }
  if (count != fields.size()) throw std::invalid_argument(fmt::format("a row has 4 fields, this one {}", count));
  const double celsius = number_in(fields[2], "temperature");
  const double hectopascal = number_in(fields[3], "pressure");
  constexpr double gas_constant_of_dry_air = 287.05;
  return fmt::format("{},{:.2f},{:.4f}", row, celsius * 9 / 5 + 32,
                     hectopascal * 100 / (gas_constant_of_dry_air * (celsius + 273.15)));
}

// Load ---------------------------------------------------------------------------------------------------

class OutputFile {
 public:
  explicit OutputFile(fs::path path) : path_(std::move(path)), file_(std::fopen(path_.c_str(), "wb")) {
    if (!file_) throw std::system_error(errno, std::generic_category(), path_.string());
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    file_.reset();
    std::error_code ignored;
    fs::remove(path_, ignored);
  }

  void write_line(std::string_view line) {
    if (std::fwrite(line.data(), 1, line.size(), file_.get()) != line.size() || std::fputc('\n', file_.get()) == EOF) {
      throw std::system_error(errno, std::generic_category(), path_.string());
    }
    bytes_ += line.size() + 1;
    ++lines_;
  }

  std::size_t lines() const { return lines_; }
  std::size_t bytes() const { return bytes_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  fs::path path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::size_t lines_ = 0;
  std::size_t bytes_ = 0;
};

std::size_t peak_of_memory() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::size_t>(usage.ru_maxrss) * 1024;
}

bool run(std::size_t row_count) {
  const fs::path folder = fs::temp_directory_path();
  OutputFile loaded{folder / fmt::format("stream_etl-{}.csv", ::getpid())};
  OutputFile rejected{folder / fmt::format("stream_etl-{}.rejected", ::getpid())};
  const std::size_t memory_before = peak_of_memory();

  const auto rows = std::views::iota(std::size_t{0}, row_count) | std::views::transform(csv_row);
  auto stream = parallel_iter(transformed, rows,
                              {.workers = available_parallelism(), .batch = Batch{.size = 2000}, .ordered = true});
  ProgressBar progress{"rows"};
  for (auto& row : stream) {
    if (row.ok()) {
      loaded.write_line(row.value());
    } else {
      rejected.write_line(fmt::format("row {}: {}", row.index, row.error().what()));
    }
    progress(row.index + 1, row_count);
  }

  const std::size_t grown = peak_of_memory() - memory_before;
  const std::size_t expected_rejects = (row_count + broken_every - 18) / broken_every;
  constexpr double mebi = 1024 * 1024;
  fmt::print("{} rows loaded ({:.1f} MiB), {} rejected; memory grew by {:.1f} MiB\n", loaded.lines(),
             static_cast<double>(loaded.bytes()) / mebi, rejected.lines(), static_cast<double>(grown) / mebi);
  return loaded.lines() + rejected.lines() == row_count && rejected.lines() == expected_rejects &&
         grown <= std::size_t{16} << 20;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const std::size_t rows = argc > 1 ? std::stoul(argv[1]) : 1'000'000;
    return run(rows) ? EXIT_SUCCESS : EXIT_FAILURE;
  } catch (const std::exception& e) {
    fmt::print(stderr, "stream_etl: {}\n", e.what());
    return EXIT_FAILURE;
  }
}

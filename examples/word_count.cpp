// word_count [DIRECTORY]: the most frequent words of all files below a directory.
//
// Files are counted on all CPUs, and each count is added to the whole as soon as it is there. Ctrl-C lands the plane:
// files that are being counted are finished, the partial result is shown and says that it is one, and the exit status
// is 130. A second Ctrl-C ends the program at once.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <map>
#include <pyarallel.hpp>
#include <pyarallel/progress.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace fs = std::filesystem;
using namespace pyarallel;

namespace {

using Counts = std::map<std::string, std::size_t, std::less<>>;

// The function as anybody would write it for one file.
Counts count_words(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::system_error(errno, std::generic_category(), "cannot read");
  Counts counts;
  std::string word;
  const auto end_word = [&] {
    if (word.size() > 3) ++counts[word];
    word.clear();
  };
  for (char c = 0; file.get(c);) {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else {
      end_word();
    }
  }
  end_word();
  return counts;
}

std::vector<fs::path> files_below(const fs::path& directory) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) files.push_back(entry.path());
  }
  return files;
}

void print_top(const Counts& counts, std::size_t most) {
  std::vector<std::pair<std::string, std::size_t>> words(counts.begin(), counts.end());
  most = std::min(most, words.size());
  std::ranges::partial_sort(words, words.begin() + static_cast<std::ptrdiff_t>(most), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  for (std::size_t i = 0; i < most; ++i) fmt::print("{:8}  {}\n", words[i].second, words[i].first);
}

int run(const fs::path& directory) {
  const std::vector<fs::path> files = files_below(directory);
  const SignalStop signals{SIGINT, SIGTERM};

  // Said once; the function is still a function: counts.map(paths), counts(path).
  const auto counts_of = parallel(
      count_words,
      {.workers = available_parallelism(), .stop = signals.token(), .on_progress = ProgressBar{"counting files"}});

  Counts counts;
  std::size_t counted = 0;
  auto stream = counts_of.stream(files);
  for (auto& file : stream) {
    if (!file.ok()) {
      fmt::print(stderr, "{}: {}\n", files[file.index].string(), file.error().what());
      continue;
    }
    ++counted;
    for (const auto& [word, count] : file.value()) counts[word] += count;
  }

  print_top(counts, 10);
  if (stream.status() == RunStatus::cancelled) {
    fmt::print("interrupted: this is the result of {} of {} files\n", counted, files.size());
    return 128 + signals.signal();
  }
  fmt::print("{} different words in {} files\n", counts.size(), counted);
  return EXIT_SUCCESS;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc > 1 ? argv[1] : ".");
  } catch (const std::exception& e) {
    fmt::print(stderr, "word_count: {}\n", e.what());
    return EXIT_FAILURE;
  }
}

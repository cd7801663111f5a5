// Checkpoint files that nobody wrote, or that somebody changed: whatever is in one, and in the log beside it, a run
// throws CheckpointError and leaves the file as it was, or gives the right results.
//
// What can be said of results: a file can have a row that is as it must be, checksum and all, with any result in it.
// But what was computed is not taken from the file, and the next run finds it.
//
// The first byte of an input says how the others are used: see Kind. SQLite itself comes as it is installed, so its
// own code is neither checked nor does its coverage guide the fuzzer.
#include <sqlite3.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "../support/folder.hpp"
#include "input.hpp"

using namespace pyarallel;
using pyarallel::detail::CheckpointRow;
using pyarallel::detail::checksum_of;

namespace {

/// The bits of the first byte.
struct Kind {
  bool raw;            ///< The bytes are the file, else a list of rows and edits for a good one.
  bool keyed;          ///< The run has item_key.
  bool log;            ///< Raw: they are the log beside a good file. Else: the log's checksums are made right.
  std::size_t sample;  ///< The good file.
};

Kind kind_of(std::uint8_t byte) {
  return {.raw = (byte & 1) != 0, .keyed = (byte & 2) != 0, .log = (byte & 4) != 0, .sample = byte >> 3U & 3U};
}

std::uint8_t byte_of(const Kind& kind) {
  return static_cast<std::uint8_t>((kind.raw ? 1U : 0U) | (kind.keyed ? 2U : 0U) | (kind.log ? 4U : 0U) |
                                   kind.sample << 3U);
}

// The runs -------------------------------------------------------------------------------------------

struct Page {
  std::string title;
  std::vector<std::int32_t> numbers;
  std::optional<std::string> note;
  bool operator==(const Page&) const = default;
};

constexpr std::size_t item_count = 4;

Page compute(std::int64_t item) {
  return {.title = "page " + std::to_string(item), .numbers = {1, static_cast<std::int32_t>(item)}, .note = {}};
}

/// Numbers and texts in turn.
ItemKey key_of(std::int64_t item) { return item % 2 == 0 ? ItemKey{item} : ItemKey{"key " + std::to_string(item)}; }

std::vector<std::int64_t> items(std::size_t count) {
  std::vector<std::int64_t> all(count);
  for (std::size_t i = 0; i < count; ++i) all[i] = static_cast<std::int64_t>(i);
  return all;
}

/// What lies on the disk; nothing: there is no such file.
struct Files {
  std::string main;
  std::string log;
  std::string journal;
  bool operator==(const Files&) const = default;
};

class Folder : public support::Folder {
 public:
  std::filesystem::path file() const { return *this / "run.ckpt"; }

  void put(const Files& files) const {
    clear();
    support::write_file(file(), files.main);
    if (!files.log.empty()) support::write_file(beside("-wal"), files.log);
    if (!files.journal.empty()) support::write_file(beside("-journal"), files.journal);
  }

  Files get() const {
    return {support::content_of(file()), support::content_of(beside("-wal")), support::content_of(beside("-journal"))};
  }

  void clear() const {
    for (const char* const suffix : {"", "-wal", "-shm", "-journal", "-lock", "-new"}) ::unlink(beside(suffix).c_str());
  }

  std::string beside(const char* suffix) const { return file().string() + suffix; }
};

const Folder& folder() {
  static const Folder one;
  return one;
}

struct Outcome {
  std::vector<Page> pages;
  std::vector<bool> called;
  bool operator==(const Outcome&) const = default;
};

/// Nothing after a CheckpointError; any other exception is a mistake, and ends the program.
std::optional<Outcome> run(bool keyed, std::size_t count = item_count,
                           std::optional<std::string> long_note = std::nullopt, Files* files_at_the_end = nullptr) {
  Outcome outcome{.pages = {}, .called = std::vector<bool>(count)};
  MapOptions<std::int64_t, Page> options{.executor = Executor::sequential,
                                         .checkpoint = sqlite_checkpoint(folder().file(), {.version = "1"})};
  if (keyed) options.item_key = [](const std::int64_t& item) { return key_of(item); };
  std::size_t resolved = 0;
  options.on_result = [&](const ItemResult<Page>& result) {
    fuzz::expect(result.ok() && result.attempts == (outcome.called[result.index] ? 1 : 0), "the number of attempts");
    if (++resolved == count && files_at_the_end != nullptr) *files_at_the_end = folder().get();
  };
  const auto fn = [&](std::int64_t item) {
    fuzz::expect(!outcome.called[static_cast<std::size_t>(item)], "an item ran twice");
    outcome.called[static_cast<std::size_t>(item)] = true;
    Page page = compute(item);
    page.note = long_note;
    return page;
  };
  try {
    const auto result = parallel_map(fn, items(count), options);
    fuzz::expect(result.ok() && result.size() == count, "a run is not complete");
    outcome.pages.assign(result.begin(), result.end());
  } catch (const CheckpointError&) {
    return std::nullopt;
  }
  for (std::size_t i = 0; i < count && !long_note; ++i) {
    fuzz::expect(!outcome.called[i] || outcome.pages[i] == compute(static_cast<std::int64_t>(i)),
                 "what was computed is not the result");
  }
  fuzz::expect(!std::filesystem::exists(folder().beside("-lock")), "the lock is still there after a run");
  return outcome;
}

/// As a run does in the beginning.
bool can_be_opened(bool keyed) {
  const auto store = sqlite_checkpoint(folder().file(), {.version = "1"});
  try {
    detail::open_checkpoint(*store, detail::checkpoint_types<std::int64_t, Page>, keyed, [] { return false; });
    return true;
  } catch (const CheckpointError&) {
    return false;
  }
}

/// SQLite removes a log that has nothing whole in it when nobody uses it any more, and one of an empty file, for which
/// it takes one of a single byte too.
bool untouched(const Files& files, bool log_is_good) {
  Files now = folder().get();
  if (now.log.empty() && (!log_is_good || files.main.size() <= 1)) now.log = files.log;
  return now == files;
}

/// `tree_is_whole`: SQLite wrote the file, so that what it wrote can be found again.
void check(const Files& files, bool keyed, bool log_is_good, bool tree_is_whole) {
  folder().put(files);
  try {
    static_cast<void>(checkpoint_info(folder().file()));
  } catch (const CheckpointError&) {
  }
  fuzz::expect(untouched(files, log_is_good), "checkpoint_info() changed a file");

  const bool opened = can_be_opened(keyed);
  fuzz::expect(opened || untouched(files, log_is_good), "a file that was refused was changed");
  const auto first = run(keyed);
  fuzz::expect(opened || (!first && untouched(files, log_is_good)),
               "a file was refused once, and used or changed then");
  if (!opened) return;
  const auto second = run(keyed);
  if (!tree_is_whole || !first) return;
  fuzz::expect(
      second && second->pages == first->pages && std::ranges::find(second->called, true) == second->called.end(),
      "a second run has other results, or had to compute them");
}

// Good files -----------------------------------------------------------------------------------------

struct Samples {
  std::vector<Files> files;
  std::vector<CheckpointRow> rows;  ///< Of the four items; they point into:
  std::vector<std::string> row_results;
};

CheckpointRow copied(const CheckpointRow& row, std::vector<std::string>& results) {
  CheckpointRow copy = row;
  copy.result = fuzz::bytes_of(results.emplace_back(fuzz::text_of(row.result)));
  return copy;
}

Samples make_samples(bool keyed) {
  Samples samples;
  const auto run_again = [&](auto... how) { fuzz::expect(run(keyed, how...).has_value(), "a good run has no result"); };
  folder().clear();
  run_again(std::size_t{0});
  samples.files.push_back(folder().get());  // without rows

  run_again();
  samples.row_results.reserve(item_count);
  {
    detail::Database database{folder().file(), detail::Database::Access::read};
    detail::Statement select = database.prepare(detail::select_row);
    while (select.step()) samples.rows.push_back(copied(detail::read_row(select).value(), samples.row_results));
  }
  fuzz::expect(samples.rows.size() == item_count, "a row is missing");

  folder().clear();
  run_again(item_count - 1);
  Files with_log;
  run_again(item_count, std::nullopt, &with_log);
  fuzz::expect(!with_log.log.empty(), "there is no log");
  samples.files.push_back(std::move(with_log));

  folder().clear();
  run_again(std::size_t{120}, std::string(100, '-'));  // several leaves
  samples.files.push_back(folder().get());

  folder().clear();
  run_again(item_count - 1, std::string(10'000, '-'));  // longer than a page
  samples.files.push_back(folder().get());
  return samples;
}

const Samples& samples(bool keyed) {
  static const std::array<Samples, 2> both{make_samples(false), make_samples(true)};
  return both[keyed ? 1 : 0];
}

// Rows with right checksums --------------------------------------------------------------------------

/// As an INSERT takes it.
struct Value {
  std::variant<std::monostate, std::int64_t, double, std::string> value;
  bool is_text = false;
};

void bind(sqlite3_stmt* statement, int parameter, const Value& value) {
  if (const auto* number = std::get_if<std::int64_t>(&value.value)) {
    sqlite3_bind_int64(statement, parameter, *number);
  } else if (const auto* real = std::get_if<double>(&value.value)) {
    sqlite3_bind_double(statement, parameter, *real);
  } else if (const auto* bytes = std::get_if<std::string>(&value.value)) {
    (value.is_text
         ? sqlite3_bind_text64(statement, parameter, bytes->data(), bytes->size(), SQLITE_TRANSIENT, SQLITE_UTF8)
         : sqlite3_bind_blob64(statement, parameter, bytes->data(), bytes->size(), SQLITE_TRANSIENT));
  } else {
    sqlite3_bind_null(statement, parameter);
  }
}

/// Mostly a little different from the row that a run would write.
std::array<Value, 5> make_row(fuzz::Input& input, const Samples& good) {
  const CheckpointRow& known = good.rows[input.below(good.rows.size())];
  CheckpointRow row = known;
  std::string result{fuzz::text_of(known.result)};
  Value key;
  Value item;
  bool right_checksum = true;

  constexpr auto highest = std::numeric_limits<std::int64_t>::max();
  switch (input.below(6)) {
    case 0:
      row.id = input.byte() % 8;
      break;
    case 1:
      row.id = -1 - input.byte();
      break;
    case 2:
      row.id = highest - input.byte() % 4;
      break;
    case 3:
      row.id = input.eight_bytes();
      break;
    default:
      break;
  }
  switch (input.below(8)) {
    case 0:
      row.key = std::monostate{};
      break;
    case 1:
      row.key = input.eight_bytes();
      break;
    case 2:
      row.key = std::string(input.text());
      break;
    case 3:
      row.key = key_of(input.byte() % 8);
      break;
    default:
      break;
  }
  std::visit([&](const auto& part) { key.value = part; }, row.key);
  switch (input.below(12)) {  // what no run writes: to whoever reads it, it is no key
    case 0:
      key = {std::string(input.text()), true};
      break;
    case 1:
      key = {1.5};
      break;
    default:
      break;
  }
  if (key.is_text || std::holds_alternative<double>(key.value)) row.key = std::monostate{};
  switch (input.below(6)) {
    case 0:
      row.item[input.below(row.item.size())] ^= std::byte{1};
      break;
    case 1:
      row.item = good.rows[input.below(good.rows.size())].item;
      break;
    default:
      break;
  }
  item.value = std::string(fuzz::text_of(row.item));
  switch (input.below(12)) {
    case 0:
      item = {std::string(input.text())};
      break;
    case 1:
      item = {std::string(input.text()), true};
      break;
    default:
      break;
  }
  switch (input.below(4)) {
    case 0:
      result = input.text();
      break;
    case 1:
      result.resize(input.below(result.size() + 8));
      break;
    case 2:
      for (std::uint8_t edits = input.byte() % 8; edits > 0; --edits) {
        const std::size_t at = input.below(result.size());
        result[at] = static_cast<char>(input.byte());
      }
      break;
    default:
      break;
  }
  right_checksum = input.byte() != 1;
  row.result = fuzz::bytes_of(result);
  const std::string checksum{right_checksum ? std::string(fuzz::text_of(checksum_of(row))) : input.text()};
  return {Value{row.id}, key, item, Value{result, input.byte() == 1}, Value{checksum, input.byte() == 1}};
}

/// With no part of the library, whose own statements might keep rows out.
void insert_rows(fuzz::Input& input, std::size_t count, const Samples& good) {
  sqlite3* database = nullptr;
  fuzz::expect(sqlite3_open(folder().file().c_str(), &database) == SQLITE_OK, "the fuzzer cannot open its file");
  sqlite3_stmt* insert = nullptr;
  fuzz::expect(sqlite3_prepare_v2(database, "INSERT OR REPLACE INTO results VALUES(?, ?, ?, ?, ?)", -1, &insert,
                                  nullptr) == SQLITE_OK,
               "the fuzzer cannot write rows");
  sqlite3_exec(database, "BEGIN", nullptr, nullptr, nullptr);
  for (; count > 0; --count) {
    const auto row = make_row(input, good);
    for (std::size_t column = 0; column < row.size(); ++column) {
      bind(insert, static_cast<int>(column) + 1, row[column]);
    }
    fuzz::expect(sqlite3_step(insert) == SQLITE_DONE, "the fuzzer cannot write a row");
    sqlite3_reset(insert);
  }
  sqlite3_exec(database, "COMMIT", nullptr, nullptr, nullptr);
  sqlite3_finalize(insert);
  sqlite3_close(database);
}

// Edits ----------------------------------------------------------------------------------------------

void edit(fuzz::Input& input, std::string& file) {
  const std::size_t at = input.below(std::min<std::size_t>(file.size(), 65'535));
  switch (input.below(6)) {
    case 0:
      file.insert(at, input.text());
      break;
    case 1:
      file.resize(at);
      break;
    case 2:
      file.append(std::size_t{16} * input.byte(), '\0');
      break;
    case 3: {
      const std::string part = file.substr(input.below(std::min<std::size_t>(file.size(), 65'535)), input.two_bytes());
      file.replace(at, part.size(), part);
      break;
    }
    default: {
      const std::string_view bytes = input.take(input.byte() % 9U);
      file.replace(at, bytes.size(), bytes);
    }
  }
}

/// Puts right salts and checksums into a log, without which SQLite takes it to end before the first wrong one. See
/// "The Write-Ahead Log" in https://www.sqlite.org/fileformat2.html.
void mend(std::string& log) {
  constexpr std::size_t header_size = 32;
  constexpr std::size_t frame_header_size = 24;
  if (log.size() < header_size) return;
  const auto big_endian = [&](std::size_t at) {
    std::uint32_t number = 0;
    for (std::size_t i = 0; i < 4; ++i) number = number << 8U | static_cast<std::uint8_t>(log[at + i]);
    return number;
  };
  const bool swapped = big_endian(0) % 2 == 0;  // its checksums are of numbers in little-endian order
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  const auto add = [&](std::size_t begin, std::size_t size) {
    for (std::size_t at = begin; at < begin + size; at += 8) {
      const std::uint32_t one = big_endian(at);
      const std::uint32_t two = big_endian(at + 4);
      low += (swapped ? __builtin_bswap32(one) : one) + high;
      high += (swapped ? __builtin_bswap32(two) : two) + low;
    }
  };
  const auto put = [&](std::size_t at) {
    for (const std::uint32_t sum : {low, high}) {
      for (const unsigned shift : {24U, 16U, 8U, 0U}) log[at++] = static_cast<char>(sum >> shift & 0xffU);
    }
  };
  const std::size_t page_size = big_endian(8);
  if (page_size < 512 || page_size > 65'536 || page_size % 8 != 0) return;
  add(0, 24);
  put(24);
  for (std::size_t at = header_size; at + frame_header_size + page_size <= log.size();
       at += frame_header_size + page_size) {
    log.replace(at + 8, 8, log.substr(16, 8));
    add(at, 8);
    add(at + frame_header_size, page_size);
    put(at + 16);
  }
}

// The target -----------------------------------------------------------------------------------------

void try_input(fuzz::Input input) {
  const Kind kind = kind_of(input.byte());
  const Samples& good = samples(kind.keyed);
  Files files = good.files[kind.sample];
  if (kind.raw) {
    if (kind.log) {
      files.log = input.rest();
    } else {
      files = {.main = std::string(input.rest()), .log = {}, .journal = {}};
    }
    check(files, kind.keyed, !kind.log, false);
    return;
  }
  if (const std::size_t rows = input.byte() % 8U; rows > 0) {
    folder().put(files);
    insert_rows(input, rows, good);
    files = folder().get();
  }
  const bool edited = !input.empty();
  bool log_is_good = true;
  for (int edits = 0; edits < 32 && !input.empty(); ++edits) {
    const std::uint8_t which = input.byte() % 8;
    const bool in_log = which > 0 && which < 4 && !files.log.empty();
    log_is_good = log_is_good && !in_log;
    edit(input, which == 0 ? files.journal : in_log ? files.log : files.main);
  }
  if (kind.log) mend(files.log);
  check(files, kind.keyed, log_is_good, !edited);
}

void write_seeds(const std::filesystem::path& seeds) {
  int number = 0;
  const auto add = [&](const Kind& kind, std::string_view rest) {
    support::write_file(seeds / ("checkpoint-" + std::to_string(number++)),
                        std::string{static_cast<char>(byte_of(kind))} + std::string(rest));
  };
  for (const bool keyed : {false, true}) {
    const auto& files = samples(keyed).files;
    add({.raw = true, .keyed = keyed, .log = false, .sample = 0}, files[0].main);
    add({.raw = true, .keyed = keyed, .log = false, .sample = 0}, files[1].main);
    add({.raw = true, .keyed = keyed, .log = true, .sample = 1}, files[1].log);
    for (std::size_t sample = 0; sample < files.size(); ++sample) {
      add({.raw = false, .keyed = keyed, .log = true, .sample = sample}, "");
    }
    // A row, and an edit of some bytes.
    add({.raw = false, .keyed = keyed, .log = true, .sample = 0}, std::string("\1\0\5\7\11\5\11\3\2\0\0", 11));
    add({.raw = false, .keyed = keyed, .log = true, .sample = 1}, std::string("\0\1\20\3\5\4abcd", 10));
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  static_cast<void>(samples(false));
  if (const auto seeds = fuzz::seeds_folder(*argc, *argv); !seeds.empty()) {
    write_seeds(seeds);
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try_input(fuzz::Input{{reinterpret_cast<const char*>(data), size}});
  return 0;
}

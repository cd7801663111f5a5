// The file of a SQLite checkpoint: who may use it, what is refused, and that what is refused stays as it is.
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <numeric>
#include <pyarallel.hpp>
#include <pyarallel/checkpoint.hpp>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/folder.hpp"
#include "support/refusal.hpp"
#include "support/text.hpp"
#include "support/watchdog.hpp"

using namespace pyarallel;
using support::content_of;
using support::Folder;
using support::Watchdog;
using support::write_file;
using Ints = std::vector<int>;
namespace fs = std::filesystem;

namespace {

constexpr auto tenfold = [](int item) { return std::to_string(item * 10); };

Ints numbers(int count) {
  Ints all(static_cast<std::size_t>(count));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

MapOptions<int, std::string> options_for(const fs::path& path) {
  return {.executor = Executor::sequential, .checkpoint = sqlite_checkpoint(path, {.version = "one"})};
}

MapResult<std::string> run(const fs::path& path, int items = 10) {
  return parallel_map(tenfold, numbers(items), options_for(path));
}

bool is_right(const MapResult<std::string>& result) {
  int item = 0;
  return result.ok() && std::ranges::all_of(result, [&](const std::string& text) { return text == tenfold(item++); });
}

using support::refusal;
using support::says;

/// Changes a file as another program would.
void execute_sql(const fs::path& path, const std::string& sql) {
  sqlite3* database = nullptr;
  const int opened = sqlite3_open(path.c_str(), &database);
  const std::unique_ptr<sqlite3, decltype(&sqlite3_close)> close{database, &sqlite3_close};
  if (opened != SQLITE_OK || sqlite3_exec(database, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
    throw std::runtime_error(sql + ": " + sqlite3_errmsg(database));
  }
}

/// A run over the file, and a look into it, are refused with such a text, and change nothing.
void check_refused(const fs::path& path, const std::string& part, bool look_too = true) {
  const std::string content = content_of(path);
  int calls = 0;
  const auto fn = [&](int item) {
    ++calls;
    return tenfold(item);
  };
  const std::string text = refusal([&] { parallel_map(fn, numbers(20), options_for(path)); });
  CAPTURE(text, part);
  CHECK(says(text, part));
  CHECK(says(text, path.string()));
  CHECK(calls == 0);
  if (look_too) CHECK(says(refusal([&] { checkpoint_info(path); }), part));
  CHECK(content_of(path) == content);
  CHECK_FALSE(fs::exists(path.string() + "-lock"));
}

}  // namespace

// K2: what is no checkpoint, or not a whole one ------------------------------------------------------------

TEST_CASE("K2 a file that is no database is refused and left alone") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "notes.txt";
  write_file(path, std::string(5000, 'x'));
  check_refused(path, "this is no checkpoint");
  write_file(path, "x");
  write_file(path.string() + "-wal", "precious");
  check_refused(path, "this is no checkpoint");
  CHECK(content_of(path.string() + "-wal") == "precious");
}

TEST_CASE("K2 another application's database is refused and left alone") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "browser.db";
  SECTION("with a rollback journal") { execute_sql(path, "CREATE TABLE results(key, value)"); }
  SECTION("with a log") { execute_sql(path, "PRAGMA journal_mode = WAL; CREATE TABLE results(key, value)"); }
  SECTION("empty, but a database") { execute_sql(path, "PRAGMA user_version = 1"); }
  check_refused(path, "this is no checkpoint");
  CHECK(folder.names() == std::set<std::string>{"browser.db"});
}

TEST_CASE("K2 another application's database that is in use is left alone, its log included") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "browser.db";
  execute_sql(path, "PRAGMA journal_mode = WAL; CREATE TABLE t(x)");
  sqlite3* database = nullptr;
  REQUIRE(sqlite3_open(path.c_str(), &database) == SQLITE_OK);
  const std::unique_ptr<sqlite3, decltype(&sqlite3_close)> close{database, &sqlite3_close};
  REQUIRE(sqlite3_exec(database, "INSERT INTO t VALUES(1)", nullptr, nullptr, nullptr) == SQLITE_OK);
  const std::string log = content_of(path.string() + "-wal");
  CHECK_FALSE(log.empty());
  check_refused(path, "this is no checkpoint");
  CHECK(content_of(path.string() + "-wal") == log);
  CHECK(sqlite3_exec(database, "INSERT INTO t VALUES(2)", nullptr, nullptr, nullptr) == SQLITE_OK);
}

TEST_CASE("K2 a format from the future is refused, naming both versions") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  execute_sql(path, "PRAGMA user_version = 2");
  check_refused(path, "version 2, and this pyarallel reads 1");
  execute_sql(path, "PRAGMA user_version = 0");
  check_refused(path, "version 0, and this pyarallel reads 1");
}

TEST_CASE("K2 a schema that is not the one we make is refused") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  const auto change =
      GENERATE(as<std::string>{}, "CREATE TABLE more(x)",
               "CREATE TRIGGER t AFTER INSERT ON results BEGIN DELETE FROM results; END",
               "CREATE INDEX i ON results(key)", "CREATE VIEW v AS SELECT 1", "ALTER TABLE results ADD COLUMN more",
               "DROP TABLE results", "DROP TABLE meta; CREATE VIEW meta AS SELECT 'version' AS name, 'one' AS value");
  execute_sql(path, change);
  check_refused(path, "its schema is another one");
}

TEST_CASE("K2 a description that is not whole is refused") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  const auto change =
      GENERATE(as<std::string>{}, "DELETE FROM meta WHERE name = 'version'", "DELETE FROM meta",
               "UPDATE meta SET value = 'other' WHERE name = 'keys'", "UPDATE meta SET value = '' WHERE name = 'codec'",
               "UPDATE meta SET value = 'one' WHERE name = 'codec'", "INSERT INTO meta VALUES('more', '1')",
               "UPDATE meta SET value = '99999999999999999999' WHERE name = 'codec'");
  execute_sql(path, change);
  check_refused(path, "its description is incomplete");
}

TEST_CASE("K2 another version of the encoding is refused") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  execute_sql(path, "UPDATE meta SET value = '7' WHERE name = 'codec'");
  check_refused(path, "codec version): the file has '7'", false);
}

TEST_CASE("K2 a row that is not as it was written is refused before anything runs") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  const auto change =
      GENERATE(as<std::string>{}, "UPDATE results SET result = x'00' WHERE id = 7",
               "UPDATE results SET result = '' WHERE id = 7", "UPDATE results SET result = 5 WHERE id = 7",
               "UPDATE results SET item = x'' WHERE id = 7", "UPDATE results SET item = zeroblob(17) WHERE id = 7",
               "UPDATE results SET checksum = x'' WHERE id = 7",
               "UPDATE results SET checksum = zeroblob(16) WHERE id = 7", "UPDATE results SET key = 5 WHERE id = 7",
               "UPDATE results SET key = x'00' WHERE id = 7", "UPDATE results SET id = 100 WHERE id = 7",
               "UPDATE results SET id = -1 WHERE id = 7", "UPDATE results SET id = 9223372036854775807 WHERE id = 7",
               "UPDATE results SET result = zeroblob(1000000) WHERE id = 7");
  execute_sql(path, change);
  check_refused(path, "is not as it was written", false);
}

TEST_CASE("K2 two rows of one key are refused") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  auto options = options_for(path);
  options.item_key = [](const int& item) -> ItemKey { return item; };
  CHECK(parallel_map(tenfold, numbers(3), options).ok());
  // With a checksum that fits, as no accident has it.
  const std::int64_t number = 1;
  const std::string result = "x";
  const detail::CheckpointRow row{.id = 9, .key = number, .item = {}, .result = detail::bytes_of(result)};
  std::string checksum;
  for (const std::byte byte : detail::checksum_of(row)) checksum += fmt::format("{:02x}", static_cast<unsigned>(byte));
  execute_sql(path, "INSERT INTO results VALUES(9, 1, zeroblob(16), x'78', x'" + checksum + "')");
  const std::string text = refusal([&] { parallel_map(tenfold, numbers(3), options); });
  CHECK(says(text, "row 9 is not as it was written"));
}

TEST_CASE("K2 a journal that lies beside a good file destroys nothing") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  // Somebody works on a copy in SQLite's other mode, and dies: his journal holds the pages of the copy.
  const fs::path other = folder / "other.db";
  execute_sql(other, "PRAGMA journal_mode = DELETE; CREATE TABLE t(x)");
  sqlite3* database = nullptr;
  REQUIRE(sqlite3_open(other.c_str(), &database) == SQLITE_OK);
  const std::unique_ptr<sqlite3, decltype(&sqlite3_close)> close{database, &sqlite3_close};
  REQUIRE(sqlite3_exec(database,
                       "PRAGMA cache_size = 1; PRAGMA cache_spill = 1; BEGIN; INSERT INTO t WITH RECURSIVE "
                       "n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999) SELECT i FROM n",
                       nullptr, nullptr, nullptr) == SQLITE_OK);
  CHECK(run(path).ok());
  fs::copy_file(other.string() + "-journal", path.string() + "-journal");
  REQUIRE(fs::file_size(path.string() + "-journal") > 512);
  check_refused(path, "run.ckpt-journal");
  fs::remove(path.string() + "-journal");
  CHECK(is_right(run(path)));
}

TEST_CASE("K2 a file that somebody put into another journal mode goes on in ours") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path).ok());
  execute_sql(path, "PRAGMA journal_mode = DELETE");
  auto options = options_for(path);
  bool has_log = false;
  options.on_result = [&](const auto&) { has_log = fs::exists(path.string() + "-wal"); };
  CHECK(is_right(parallel_map(tenfold, numbers(11), options)));
  CHECK(has_log);
}

TEST_CASE("K2 a truncated file is refused and left alone, wherever it ends") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path, 2000).ok());
  const std::string whole = content_of(path);
  REQUIRE(whole.size() > 100'000);
  for (std::size_t size = 1; size < whole.size(); size += 1 + size / 8) {
    write_file(path, whole.substr(0, size));
    const std::string text = refusal([&] { run(path, 2000); });
    CAPTURE(size, text);
    CHECK_FALSE(text.empty());
    CHECK(content_of(path).size() == size);
  }
  write_file(path, whole);
  CHECK(is_right(run(path, 2000)));
}

TEST_CASE("K3 a file with any damage gives right results, or a CheckpointError and stays as it is") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path, 60).ok());
  const std::string whole = content_of(path);
  std::mt19937_64 random{20240607};
  int refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::string damaged = whole;
    const std::size_t edits = 1 + random() % 4;
    for (std::size_t edit = 0; edit < edits; ++edit) {
      // As often in the first page, which says what everything else is.
      const std::size_t at = random() % (round % 2 == 0 ? 1000 : damaged.size());
      damaged[at] = static_cast<char>(random());
    }
    write_file(path, damaged);
    try {
      static_cast<void>(checkpoint_info(path));
    } catch (const CheckpointError&) {
    }
    CHECK(content_of(path) == damaged);
    try {
      const auto result = run(path, 60);
      if (!is_right(result)) FAIL("round " << round << ": wrong results");
    } catch (const CheckpointError&) {
      ++refused;
      if (content_of(path) != damaged) FAIL("round " << round << ": the file was changed");
    }
    for (const char* const beside : {"-wal", "-shm", "-journal"}) fs::remove(path.string() + beside);
  }
  CHECK(refused > 100);
}

// K3: what the file is on the disk ---------------------------------------------------------------------------

TEST_CASE("K3 new files are for their owner only, and the mode of others is left alone") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const auto mode_of = [](const fs::path& file) { return fs::status(file).permissions(); };
  constexpr auto owner_only = fs::perms::owner_read | fs::perms::owner_write;
  const mode_t umask_before = umask(0);
  auto options = options_for(path);
  bool private_while_it_runs = true;
  options.on_result = [&](const auto&) {
    for (const std::string& name : folder.names()) {
      private_while_it_runs = private_while_it_runs && mode_of(folder / name) == owner_only;
    }
  };
  CHECK(parallel_map(tenfold, numbers(3), options).ok());
  umask(umask_before);
  CHECK(private_while_it_runs);
  CHECK(mode_of(path) == owner_only);

  constexpr auto shared = owner_only | fs::perms::group_read;
  fs::permissions(path, shared);
  CHECK(run(path).ok());
  CHECK(mode_of(path) == shared);
}

TEST_CASE("K3 links and special files are refused") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const auto check = [&](const std::string& part) {
    CHECK(says(refusal([&] { run(path); }), part));
    CHECK(says(refusal([&] { checkpoint_info(path); }), part));
  };
  SECTION("a link to a checkpoint") {
    CHECK(run(folder / "real.ckpt").ok());
    const std::string content = content_of(folder / "real.ckpt");
    fs::create_symlink(folder / "real.ckpt", path);
    check("symbolic link");
    CHECK(content_of(folder / "real.ckpt") == content);
  }
  SECTION("a link to nothing") {
    fs::create_symlink(folder / "nothing", path);
    check("symbolic link");
    CHECK_FALSE(fs::exists(folder / "nothing"));
  }
  SECTION("a folder") {
    fs::create_directory(path);
    check("directory");
  }
  SECTION("a pipe") {
    REQUIRE(mkfifo(path.c_str(), 0600) == 0);
    check("special file");
  }
  SECTION("a lock that is a link") {
    fs::create_symlink(folder / "target", path.string() + "-lock");
    CHECK(says(refusal([&] { run(path); }), "-lock"));
    CHECK_FALSE(fs::exists(folder / "target"));
  }
  SECTION("what is in the way of a new file is removed, not followed") {
    write_file(folder / "target", "precious");
    fs::create_symlink(folder / "target", path.string() + "-new");
    CHECK(run(path).ok());
    CHECK(content_of(folder / "target") == "precious");
  }
}

TEST_CASE("K3 names with anything in them name just that file") {
  const Watchdog watchdog;
  const Folder folder;
  for (const std::string name : {"a b", "q?mode=memory", "50%41", "#1", ":memory:", "'\"", "ünï"}) {
    CHECK(run(folder / name).ok());
    CHECK(checkpoint_info(folder / name).completed == 10);
    CHECK(folder.names() == std::set<std::string>{name});
    fs::remove(folder / name);
  }
  const fs::path before = fs::current_path();
  fs::current_path(folder / "");
  for (const std::string name : {"run.ckpt", "file:x"}) {
    CHECK(run(name).ok());
    CHECK(is_right(run(name)));
    CHECK(folder.names() == std::set<std::string>{name});
    fs::remove(folder / name);
  }
  fs::current_path(before);
}

TEST_CASE("K3 a place where no file can be made is named") {
  const Watchdog watchdog;
  const Folder folder;
  const std::string text = refusal([&] { run(folder / "no/such/folder/run.ckpt"); });
  CHECK(says(text, "no/such/folder/run.ckpt"));
  CHECK(says(text, "No such file or directory"));
}

// K1: new files ------------------------------------------------------------------------------------------------

TEST_CASE("K1 an empty file is as good as none") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  write_file(path, "");
  CHECK_FALSE(refusal([&] { checkpoint_info(path); }).empty());
  CHECK(is_right(run(path)));
  CHECK(checkpoint_info(path).completed == 10);
}

TEST_CASE("K1 what a process left that died while it made the file is cleared away") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  write_file(path.string() + "-new", "half a databa");
  write_file(path.string() + "-new-wal", "half a log");
  CHECK(is_right(run(path)));
  CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
}

TEST_CASE("K1 the log of a file that was deleted is not taken for the new one's") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const fs::path copy = folder / "killed.ckpt";
  auto options = options_for(path);
  options.on_result = [&](const ItemResult<std::string>& item) {
    if (item.index != 9) return;
    // As a kill at this moment leaves them.
    fs::copy_file(path, copy);
    fs::copy_file(path.string() + "-wal", copy.string() + "-wal");
  };
  CHECK(parallel_map(tenfold, numbers(10), options).ok());
  CHECK(checkpoint_info(copy).completed == 10);
  fs::remove(copy);
  const auto other = [](int item) { return "other " + std::to_string(item); };
  const auto result = parallel_map(other, numbers(10), options_for(copy));
  CHECK(result.ok());
  CHECK(result[3] == "other 3");
  CHECK(checkpoint_info(copy).completed == 10);
}

// K4: one run at a time ----------------------------------------------------------------------------------------

TEST_CASE("K4 a second run on the same file is refused at once, and the first goes on") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  fs::create_directory_symlink(folder / "", folder / "other_name");
  auto options = options_for(path);
  std::set<std::string> texts;
  options.on_result = [&](const auto&) {
    texts.insert(refusal([&] { run(path); }));
    texts.insert(refusal([&] { run(folder / "other_name/run.ckpt"); }));
    CHECK(checkpoint_info(path).completed > 0);
  };
  CHECK(is_right(parallel_map(tenfold, numbers(10), options)));
  CHECK(texts.size() == 2);
  for (const std::string& text : texts) {
    CHECK(says(text, "another run is using it (process " + std::to_string(getpid()) + ")"));
  }
  CHECK(is_right(run(path)));
}

TEST_CASE("K4 the lock is taken when the run begins, and given up when it ends, however it ends") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  const auto store = sqlite_checkpoint(path);
  CHECK(folder.names().empty());
  const auto again = sqlite_checkpoint(path);
  CHECK_THROWS_AS(parallel_map([](int item) { return item; }, numbers(3),
                               {.checkpoint = store, .on_progress = [](auto, auto) { throw std::logic_error("x"); }}),
                  std::logic_error);
  CHECK(parallel_map([](int item) { return item; }, numbers(3), {.checkpoint = again}).ok());
  CHECK(parallel_map([](int item) { return item; }, numbers(3), {.checkpoint = store}).ok());
  CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
}

TEST_CASE("K4 a lock whose process is gone does not hold") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  write_file(path.string() + "-lock", "1\n");  // left by a process that was killed
  CHECK(is_right(run(path)));
  // Held by somebody who does not say who.
  write_file(path.string() + "-lock", "");
  const detail::Descriptor held{open((path.string() + "-lock").c_str(), O_RDWR | O_CLOEXEC)};
  REQUIRE(flock(held.get(), LOCK_EX | LOCK_NB) == 0);
  CHECK(says(refusal([&] { run(path); }), "another run is using it;"));
}

// checkpoint_info ----------------------------------------------------------------------------------------------

TEST_CASE("K2 checkpoint_info says what is in a file, and changes nothing") {
  const Watchdog watchdog;
  const Folder folder;
  const fs::path path = folder / "run.ckpt";
  CHECK(run(path, 1234).ok());
  const std::string content = content_of(path);
  fs::permissions(path, fs::perms::owner_read);
  const CheckpointInfo info = checkpoint_info(path);
  CHECK(info.path == path);
  CHECK(info.schema_version == 1);
  CHECK(info.version == "one");
  CHECK(info.result_type == "std::string");
  CHECK(info.completed == 1234);
  CHECK(info.size_bytes == content.size());
  CHECK(content_of(path) == content);
  CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
  CHECK(says(refusal([&] { checkpoint_info(folder / "none"); }), "no such file"));
  CHECK(folder.names() == std::set<std::string>{"run.ckpt"});
}

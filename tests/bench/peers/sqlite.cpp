// What a checkpoint stores, by SQLite alone: the same rows, in one transaction, by one statement. No key is hashed, no
// result encoded, nothing is checked, and nobody may hear of a result before the last one is stored.
#include <sqlite3.h>

#include <array>
#include <stdexcept>

#include "checkpoint_file.hpp"
#include "peer.hpp"

namespace {

void must(sqlite3* database, int code) {
  if (code != SQLITE_OK && code != SQLITE_DONE) throw std::runtime_error(sqlite3_errmsg(database));
}

/// ms to make a file with so many rows, whose results have so many bytes; `keyed`: with a key each.
double store(std::int64_t count, std::size_t result_size, bool keyed) {
  const bench::CheckpointFile file;
  std::vector<char> result(result_size);
  std::array<std::int64_t, 2> fingerprint{};
  std::array<std::int64_t, 2> checksum{};
  constexpr int hash_size = sizeof fingerprint;

  const auto begin = bench::Clock::now();
  sqlite3* database = nullptr;
  must(database, sqlite3_open(file.path().c_str(), &database));
  const auto execute = [&](const char* sql) { must(database, sqlite3_exec(database, sql, nullptr, nullptr, nullptr)); };
  execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL");
  execute(
      "CREATE TABLE results(id INTEGER PRIMARY KEY, key, item BLOB NOT NULL, result BLOB NOT NULL, checksum BLOB NOT "
      "NULL)");
  execute("BEGIN");
  sqlite3_stmt* insert = nullptr;
  must(database, sqlite3_prepare_v2(database, "INSERT INTO results VALUES(?, ?, ?, ?, ?)", -1, &insert, nullptr));
  for (std::int64_t i = 0; i < count; ++i) {
    fingerprint.front() = i;
    checksum.back() = i;
    const std::int64_t value = bench::trivial(i);
    std::memcpy(result.data(), &value, sizeof value);
    sqlite3_bind_int64(insert, 1, i);
    if (keyed) sqlite3_bind_int64(insert, 2, i);
    sqlite3_bind_blob(insert, 3, fingerprint.data(), hash_size, SQLITE_STATIC);
    sqlite3_bind_blob(insert, 4, result.data(), static_cast<int>(result.size()), SQLITE_STATIC);
    sqlite3_bind_blob(insert, 5, checksum.data(), hash_size, SQLITE_STATIC);
    must(database, sqlite3_step(insert));
    sqlite3_reset(insert);
  }
  execute("COMMIT");
  sqlite3_finalize(insert);
  sqlite3_close(database);
  const double time = bench::nanoseconds(bench::Clock::now() - begin) / 1e6;
  bench::check(file.size() > static_cast<std::size_t>(count) * (result_size + 2 * hash_size), "the size of the file");
  return time;
}

}  // namespace

int main(int argc, char** argv) {
  bench::Program program;
  const std::string variant = "SQLite, one transaction";
  program.add(variant, "checkpoint_100k", [] { return store(100'000, 8, false); });
  program.add(variant, "checkpoint_100k_batch", [] { return store(100'000, 8, false); });
  program.add(variant, "checkpoint_100k_keyed", [] { return store(100'000, 8, true); });
  program.add(variant, "checkpoint_1KiB", [] { return store(100'000, 1024, false); });
  return program.main(argc, argv);
}

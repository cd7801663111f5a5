// SQLite, as far as it is needed: connections and statements that end by themselves, and errors that are thrown.
#pragma once

#include <sqlite3.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>

#include "pyarallel/detail/checkpoint/errors.hpp"
#include "pyarallel/detail/fmt.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

/// The last error of a connection, or the lack of memory for one.
inline CheckpointError sqlite_error(const std::filesystem::path& path, sqlite3* database) {
  if (database == nullptr) return checkpoint_error(path, "SQLite: there is no memory");
  const int code = sqlite3_errcode(database);
  if (code == SQLITE_NOTADB) return no_checkpoint(path);
  if (code == SQLITE_CORRUPT) return damaged(path, sqlite3_errmsg(database));
  return checkpoint_error(path, "SQLite: {}", sqlite3_errmsg(database));
}

class Statement {
 public:
  Statement(sqlite3* database, const std::filesystem::path& path, std::string_view sql) : path_(path) {
    sqlite3_stmt* statement = nullptr;
    const int code = sqlite3_prepare_v3(database, sql.data(), static_cast<int>(sql.size()), SQLITE_PREPARE_PERSISTENT,
                                        &statement, nullptr);
    statement_.reset(statement);
    if (code != SQLITE_OK) fail(database);
  }

  void bind(int parameter, std::int64_t number) { check(sqlite3_bind_int64(get(), parameter, number)); }
  /// The bytes must stay where they are until the next reset().
  void bind(int parameter, std::span<const std::byte> bytes) {
    // A null pointer would be NULL.
    const void* const data = bytes.empty() ? static_cast<const void*>("") : bytes.data();
    check(sqlite3_bind_blob64(get(), parameter, data, bytes.size(), SQLITE_STATIC));
  }
  void bind(int parameter, std::string_view text) {
    check(sqlite3_bind_text(get(), parameter, text.data(), static_cast<int>(text.size()), SQLITE_STATIC));
  }

  /// Goes to the next row. False if there is none.
  bool step() {
    const int code = sqlite3_step(get());
    if (code == SQLITE_ROW) return true;
    if (code != SQLITE_DONE) fail(sqlite3_db_handle(get()));
    return false;
  }
  /// From the beginning, with the same parameters.
  void reset() noexcept { sqlite3_reset(get()); }
  /// The whole of it, where no rows are wanted.
  void execute() {
    step();
    reset();
  }

  std::int64_t number(int column) const { return sqlite3_column_int64(get(), column); }
  /// Nothing if it is something else.
  std::optional<std::int64_t> maybe_number(int column) const {
    if (sqlite3_column_type(get(), column) != SQLITE_INTEGER) return std::nullopt;
    return number(column);
  }
  std::optional<std::string> maybe_text(int column) const {
    if (sqlite3_column_type(get(), column) != SQLITE_TEXT) return std::nullopt;
    const auto* const text = reinterpret_cast<const char*>(sqlite3_column_text(get(), column));
    return std::string(text, static_cast<std::size_t>(sqlite3_column_bytes(get(), column)));
  }
  /// Valid until the next step() or reset().
  std::optional<std::span<const std::byte>> maybe_bytes(int column) const {
    if (sqlite3_column_type(get(), column) != SQLITE_BLOB) return std::nullopt;
    const auto* const data = static_cast<const std::byte*>(sqlite3_column_blob(get(), column));
    return std::span{data, static_cast<std::size_t>(sqlite3_column_bytes(get(), column))};
  }

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
  };

  sqlite3_stmt* get() const noexcept { return statement_.get(); }
  void check(int code) {
    if (code != SQLITE_OK) fail(sqlite3_db_handle(get()));
  }
  [[noreturn]] void fail(sqlite3* database) {
    const CheckpointError error = sqlite_error(path_, database);
    sqlite3_reset(get());
    throw error;
  }

  const std::filesystem::path& path_;
  std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

/// A connection, for one thread at a time. All errors are CheckpointErrors.
class Database {
 public:
  enum class Access { read, write };

  /// Opens a file that exists. With Access::read it is not changed, and nothing is made beside it.
  Database(const std::filesystem::path& path, Access access) : path_(path) {
    sqlite3* database = nullptr;
    const int flags = (access == Access::read ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE) | SQLITE_OPEN_URI |
                      SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_PRIVATECACHE;
    std::string name = uri_of(path);
    // To read a database in WAL mode SQLite makes a log where there is none, and leaves it there. But without a log
    // nobody is writing.
    if (access == Access::read && size_of_log(path) == 0) name += "?immutable=1";
    const int code = sqlite3_open_v2(name.c_str(), &database, flags, nullptr);
    database_.reset(database);
    if (code != SQLITE_OK) throw sqlite_error(path, database);
    // The file may come from anywhere: nothing that is written in it may do more than to hold data.
    sqlite3_db_config(database, SQLITE_DBCONFIG_DEFENSIVE, 1, nullptr);
    sqlite3_db_config(database, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, nullptr);
    sqlite3_db_config(database, SQLITE_DBCONFIG_ENABLE_TRIGGER, 0, nullptr);
    sqlite3_db_config(database, SQLITE_DBCONFIG_ENABLE_VIEW, 0, nullptr);
    // Others may read it meanwhile, or look into it with SQLite's own shell.
    sqlite3_busy_timeout(database, 5'000);
    execute("PRAGMA cell_size_check = ON");
  }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }

  /// Bytes of what was written beside a database, and did not come into it yet.
  static std::uintmax_t size_of_log(const std::filesystem::path& path) {
    std::error_code none;
    const std::uintmax_t size = std::filesystem::file_size(path.string() + "-wal", none);
    return none ? 0 : size;
  }

  void execute(const std::string& sql) {
    if (sqlite3_exec(database_.get(), sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK) return;
    throw sqlite_error(path_, database_.get());
  }
  Statement prepare(std::string_view sql) { return {database_.get(), path_, sql}; }
  /// Of a pragma, a count or the like.
  std::int64_t number(std::string_view sql) {
    Statement statement = prepare(sql);
    return statement.step() ? statement.number(0) : 0;
  }

  bool in_transaction() const noexcept { return sqlite3_get_autocommit(database_.get()) == 0; }

 private:
  static std::string uri_of(const std::filesystem::path& path) {
    std::string uri = "file://";
    for (const char character : std::filesystem::absolute(path).string()) {
      const bool special = character == '%' || character == '?' || character == '#';
      uri += special ? fmt::format("%{:02x}", static_cast<unsigned>(character)) : std::string(1, character);
    }
    return uri;
  }

  struct Close {
    void operator()(sqlite3* database) const noexcept { sqlite3_close_v2(database); }
  };

  const std::filesystem::path path_;
  std::unique_ptr<sqlite3, Close> database_;
};

}  // namespace pyarallel::detail

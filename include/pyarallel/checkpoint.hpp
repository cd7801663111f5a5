// Checkpoints in SQLite: a job that dies at item 40,000 goes on at 40,001. Needs SQLite (CMake target
// pyarallel::checkpoint); include this header beside pyarallel.hpp, which does not.
#pragma once

#if !__has_include(<unistd.h>)
#error "pyarallel/checkpoint.hpp needs a POSIX system"
#endif

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>

#include "pyarallel/checkpoint_store.hpp"
#include "pyarallel/detail/checkpoint/checkpoint_file.hpp"
#include "pyarallel/detail/checkpoint/file_lock.hpp"
#include "pyarallel/detail/checkpoint/sqlite.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel {

struct CheckpointOptions {
  /// What the results mean: the model, the prompt, the schema. A run with another one does not use the file, but
  /// throws. Empty: you promise that the function means the same as when the file was made.
  std::string version = {};
};

namespace detail {

class SqliteSession final : public CheckpointSession {
 public:
  SqliteSession(const std::filesystem::path& path, const CheckpointHeader& wanted, const std::function<bool()>& give_up)
      : keyed_(wanted.identity.keyed), lock_(path), database_(open(path, wanted, give_up)) {
    database_.execute("PRAGMA journal_mode = WAL");  // somebody may have changed it
  }

  std::optional<std::span<const std::byte>> find(const ItemKey& key, const ItemFingerprint& item) override {
    const auto id = index_.find(key);
    if (!id) return std::nullopt;
    // One transaction for many, because to begin one takes longer than to look.
    if (!database_.in_transaction()) begin_.execute();
    select_.reset();
    select_.bind(1, *id);
    if (!select_.step()) return std::nullopt;
    const auto row = read_row(select_);
    if (!row || row->key != stored_key(key)) throw damaged_row(database_.path(), *id);
    if (row->item != item) return std::nullopt;
    return row->result;
  }

  void add(const ItemKey& key, const ItemFingerprint& item, std::span<const std::byte> result) override {
    if (!writes_) begin_to_write();
    const CheckpointRow row{.id = index_.id_for(key), .key = stored_key(key), .item = item, .result = result};
    const Checksum checksum = checksum_of(row);
    insert_.bind(1, row.id);
    if (const auto* text = std::get_if<std::string>(&row.key)) {
      insert_.bind(2, bytes_of(*text));
    } else if (const auto* number = std::get_if<std::int64_t>(&row.key)) {
      insert_.bind(2, *number);
    }
    insert_.bind(3, row.item);
    insert_.bind(4, row.result);
    insert_.bind(5, checksum);
    insert_.execute();
  }

  void commit() override {
    // (An error may have ended the transaction. Then this fails too, for its rows are gone.)
    if (!database_.in_transaction() && !writes_) return;
    const auto begun = Clock::now();
    select_.reset();
    writes_ = false;
    commit_.execute();
    if (flushes_) next_flush_ = Clock::now() + 10 * (Clock::now() - begun);
  }

  void leave_to_parent() noexcept override { lock_.leave_to_parent(); }

 private:
  using Clock = std::chrono::steady_clock;

  Database open(const std::filesystem::path& path, const CheckpointHeader& wanted,
                const std::function<bool()>& give_up) {
    if (has_content(path)) {
      // A connection that cannot write leaves what is not ours, or damaged, as it is.
      Database database{path, Database::Access::read};
      require_same(path, read_header(database), wanted);
      index_ = read_rows(database, keyed_, give_up);
    } else {
      create_checkpoint(path, wanted);
    }
    return Database{path, Database::Access::write};
  }

  /// A position is the row's id.
  ItemKey stored_key(const ItemKey& key) const { return keyed_ ? key : ItemKey{}; }

  /// Every commit is in the log when it returns, where the death of the process cannot harm it. Against a loss of power
  /// the disk must have it too, which takes long: so the disk is waited for as often as that costs a tenth of the
  /// time, and a result that comes alone is on the disk at once.
  void begin_to_write() {
    select_.reset();
    // What began as a look may see an old state, if somebody else has written meanwhile.
    if (database_.in_transaction()) commit_.execute();
    const bool flush = Clock::now() >= next_flush_;
    if (flush != flushes_) database_.execute(flush ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL");
    flushes_ = flush;
    begin_to_write_.execute();
    writes_ = true;
  }

  const bool keyed_;
  RowIndex index_{keyed_};
  FileLock lock_;  // released after the database is closed
  Database database_;
  Statement select_ = database_.prepare(std::string(select_row) + " WHERE id = ?");
  Statement insert_ = database_.prepare("INSERT OR REPLACE INTO results VALUES(?, ?, ?, ?, ?)");
  Statement begin_ = database_.prepare("BEGIN");
  Statement begin_to_write_ = database_.prepare("BEGIN IMMEDIATE");
  Statement commit_ = database_.prepare("COMMIT");
  bool writes_ = false;  // a transaction that does has begun
  bool flushes_ = true;  // the default of a connection
  Clock::time_point next_flush_ = Clock::time_point::min();
};

class SqliteCheckpoint final : public CheckpointStore {
 public:
  SqliteCheckpoint(std::filesystem::path path, CheckpointOptions options)
      : path_(std::move(path)), options_(std::move(options)) {}

  std::unique_ptr<CheckpointSession> open(const CheckpointIdentity& identity,
                                          const std::function<bool()>& give_up) override {
    return std::make_unique<SqliteSession>(path_, CheckpointHeader{options_.version, identity}, give_up);
  }

 private:
  const std::filesystem::path path_;
  const CheckpointOptions options_;
};

}  // namespace detail

/// A checkpoint in a SQLite file: `.checkpoint = sqlite_checkpoint("run.ckpt", {.version = "prompt-3"})`. A run stores
/// each success there before it reports it, and takes what it finds there instead of calling the function again.
/// Failures are never stored. The file is made when it does not exist, and opened, checked and locked when the run
/// begins; it stays until you delete it (with -wal and -shm beside it, if the process died).
///
/// Rows are keyed by item_key where the run has one (then each item must have a key of its own), else by position. A
/// changed item under the same key is computed again. A run throws CheckpointError if the file is of other types,
/// another version or key mode, damaged, in use, or no checkpoint at all; then it is left as it is. And it throws if a
/// result cannot be stored; what was reported by then is safe.
///
/// A result that was reported survives the death of the process at any instant, and of the machine if it came alone;
/// the last moments of many that come at once may be computed again after a loss of power. The file is only data, and
/// reading a hostile one is safe; new ones can be read and written by their owner only.
///
/// Thread-safe: one store may be given to several calls, one after the other.
inline std::shared_ptr<CheckpointStore> sqlite_checkpoint(const std::filesystem::path& path,
                                                          CheckpointOptions options = {}) {
  return std::make_shared<detail::SqliteCheckpoint>(path, std::move(options));
}

/// What is in a checkpoint file.
struct CheckpointInfo {
  std::filesystem::path path;
  int schema_version;         ///< Of the file's format.
  std::string version;        ///< As it was said in CheckpointOptions.
  std::string result_type;    ///< With the fields of aggregates: "Page{std::string, int}".
  std::size_t completed;      ///< Results in it.
  std::uintmax_t size_bytes;  ///< On disk, the log of a run that goes on or died included.
};

/// Looks into a checkpoint file without changing it, also while a run uses it. CheckpointError if it is missing or not
/// one of ours. Results are counted, not checked.
inline CheckpointInfo checkpoint_info(const std::filesystem::path& path) {
  using namespace detail;
  if (!has_content(path)) throw checkpoint_error(path, "there is no such file, or an empty one");
  Database database{path, Database::Access::read};
  database.execute("BEGIN");  // one moment for all that is read
  CheckpointHeader header = read_header(database);
  const auto completed = static_cast<std::size_t>(database.number("SELECT count(*) FROM results"));
  return {.path = path,
          .schema_version = checkpoint_schema,
          .version = std::move(header.version),
          .result_type = std::move(header.identity.result_type),
          .completed = completed,
          .size_bytes = std::filesystem::file_size(path) + Database::size_of_log(path)};
}

}  // namespace pyarallel

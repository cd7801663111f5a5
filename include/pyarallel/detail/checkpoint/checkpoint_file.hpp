// The file of a SQLite checkpoint: what is in it, how one is made, and how one is told from everything else.
//
//   application_id   "pyra"
//   user_version     the version of this format
//   meta             what the results are: see CheckpointHeader
//   results          a row for each success: id, key (the number or the bytes of an ItemKey), the item's fingerprint,
//                    the encoded result, and a checksum of the others. Where items are known by their position, that
//                    is the id, and there is no key.
//
// There is no index of the keys: to keep it up would cost several times what the rows cost, for each of them would
// change another page of it. Whoever opens the file reads it all anyway, to check it, and so learns where the keys are.
//
// The file is always in WAL mode, also when nobody uses it, so that opening it does not change it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/checkpoint_store.hpp"
#include "pyarallel/codec.hpp"
#include "pyarallel/detail/checkpoint/errors.hpp"
#include "pyarallel/detail/checkpoint/sqlite.hpp"
#include "pyarallel/detail/process/descriptor.hpp"
#include "pyarallel/detail/sip_hash.hpp"

namespace pyarallel::detail {

inline constexpr std::int64_t checkpoint_application = 0x70797261;  // "pyra"
inline constexpr int checkpoint_schema = 1;

/// What a file says of its results.
struct CheckpointHeader {
  std::string version;
  CheckpointIdentity identity;
};

inline std::string_view key_mode(bool keyed) { return keyed ? "item_key" : "position"; }

// What is in sqlite_master, to the letter.
inline constexpr const char* create_meta =
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID";
inline constexpr const char* create_results =
    "CREATE TABLE results(id INTEGER PRIMARY KEY, key, item BLOB NOT NULL, result BLOB NOT NULL, checksum BLOB NOT "
    "NULL)";

// Rows -----------------------------------------------------------------------------------------------

struct CheckpointRow {
  std::int64_t id = 0;
  ItemKey key;
  ItemFingerprint item;
  std::span<const std::byte> result;  // valid as long as the statement stays
};

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span{text}); }

inline void add_to(SipHash128& hash, std::int64_t number) {
  std::array<std::byte, 8> bytes{};  // little-endian, whatever the machine
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(number & 0xff);
    number >>= 8;
  }
  hash.update(bytes);
}
inline void add_to(SipHash128& hash, const ItemKey& key) {
  add_to(hash, static_cast<std::int64_t>(key.index()));
  if (const auto* number = std::get_if<std::int64_t>(&key)) add_to(hash, *number);
  if (const auto* text = std::get_if<std::string>(&key)) {
    add_to(hash, static_cast<std::int64_t>(text->size()));
    hash.update(bytes_of(*text));
  }
}

using Checksum = SipHash128::Digest;

/// Of a row without its checksum.
inline Checksum checksum_of(const CheckpointRow& row) {
  SipHash128 hash{0x636865636b706f69, 0x6e742d726f777321};
  add_to(hash, row.id);
  add_to(hash, row.key);
  hash.update(row.item);
  hash.update(row.result);
  return hash.finish();
}

inline constexpr std::string_view select_row = "SELECT id, key, item, result, checksum FROM results";

/// The row that select_row stands at. Nothing if it is not as it was written.
inline std::optional<CheckpointRow> read_row(const Statement& select) {
  CheckpointRow row{.id = select.number(0), .key = {}, .item = {}, .result = {}};
  if (const auto number = select.maybe_number(1)) {
    row.key = *number;
  } else if (const auto bytes = select.maybe_bytes(1)) {
    row.key = std::string(reinterpret_cast<const char*>(bytes->data()), bytes->size());
  }
  const auto item = select.maybe_bytes(2);
  const auto result = select.maybe_bytes(3);
  const auto checksum = select.maybe_bytes(4);
  if (!item || item->size() != row.item.size() || !result || !checksum) return std::nullopt;
  std::ranges::copy(*item, row.item.begin());
  row.result = *result;
  if (!std::ranges::equal(*checksum, checksum_of(row))) return std::nullopt;
  return row;
}

/// Which rows there are. Of a key only a hash is kept: 128 bits, which no two keys share.
class RowIndex {
 public:
  explicit RowIndex(bool keyed) : keyed_(keyed) {}

  /// Nothing if there is none.
  std::optional<std::int64_t> find(const ItemKey& key) const {
    if (!keyed_) {
      const std::int64_t position = std::get<std::int64_t>(key);
      return position <= highest_ ? std::optional{position} : std::nullopt;  // it may be there
    }
    const auto found = ids_.find(hash_of(key));
    return found != ids_.end() ? std::optional{found->second} : std::nullopt;
  }

  /// The id for a row of this key: its own, if there is one already. (A new one need not be known: a run asks for each
  /// key once.)
  std::int64_t id_for(const ItemKey& key) {
    if (!keyed_) return std::get<std::int64_t>(key);
    if (const auto known = find(key)) return *known;
    return ++highest_;
  }

  /// A row of the file. False if it cannot be one of ours.
  bool add(const CheckpointRow& row) {
    constexpr std::int64_t most = std::int64_t{1} << 62;  // so that there is always another
    const bool has_key = !std::holds_alternative<std::monostate>(row.key);
    if (has_key != keyed_ || row.id < 0 || row.id > most) return false;
    highest_ = std::max(highest_, row.id);
    return !keyed_ || ids_.emplace(hash_of(row.key), row.id).second;
  }

 private:
  static SipHash128::Digest hash_of(const ItemKey& key) {
    SipHash128 hash{0x77686963682d6b65, 0x792d77686572652e};
    add_to(hash, key);
    return hash.finish();
  }
  struct FirstBytes {
    std::size_t operator()(const SipHash128::Digest& hash) const noexcept {
      std::size_t first = 0;
      std::memcpy(&first, hash.data(), sizeof first);
      return first;
    }
  };

  bool keyed_;
  std::int64_t highest_ = -1;
  std::unordered_map<SipHash128::Digest, std::int64_t, FirstBytes> ids_;  // where rows have keys
};

/// CheckpointError unless each row is as it was written. Reads the whole file. Stops once `give_up()`.
inline RowIndex read_rows(Database& database, bool keyed, const std::function<bool()>& give_up) {
  constexpr std::size_t rows_between_looks = 256;
  RowIndex index{keyed};
  Statement select = database.prepare(select_row);
  for (std::size_t rows = 1; select.step(); ++rows) {
    const auto row = read_row(select);
    if (!row || !index.add(*row)) throw damaged_row(database.path(), select.number(0));
    if (rows % rows_between_looks == 0 && give_up()) break;
  }
  return index;
}

// The file -------------------------------------------------------------------------------------------

/// What a file says of itself; it is only read. CheckpointError if it is none of ours, or not whole.
inline CheckpointHeader read_header(Database& database) {
  const auto& path = database.path();
  if (database.number("PRAGMA application_id") != checkpoint_application) throw no_checkpoint(path);
  const std::int64_t schema = database.number("PRAGMA user_version");
  if (schema != checkpoint_schema) {
    throw checkpoint_error(path, "its format has version {}, and this pyarallel reads {}; {}", schema,
                           checkpoint_schema,
                           schema > checkpoint_schema ? "use the pyarallel that wrote it, or a newer one"
                                                      : "delete it to compute everything again");
  }
  std::map<std::string, std::string> objects;
  Statement schemas = database.prepare("SELECT name, type, sql FROM sqlite_master");
  while (schemas.step()) {
    objects[schemas.maybe_text(0).value_or("")] =
        schemas.maybe_text(1).value_or("") + ": " + schemas.maybe_text(2).value_or("");
  }
  const std::map<std::string, std::string> expected{{"meta", std::string("table: ") + create_meta},
                                                    {"results", std::string("table: ") + create_results}};
  if (objects != expected) throw damaged(path, "its schema is another one");
  std::map<std::string, std::string> meta;
  Statement select = database.prepare("SELECT name, value FROM meta");
  while (select.step()) meta[select.maybe_text(0).value_or("")] = select.maybe_text(1).value_or("");

  const bool keyed = meta["keys"] == key_mode(true);
  if (meta.size() != 5 || (!keyed && meta["keys"] != key_mode(false)) || !meta.contains("version") ||
      meta["codec"].empty() || meta["codec"].find_first_not_of("0123456789") != std::string::npos ||
      meta["codec"].size() > 9) {
    throw damaged(path, "its description is incomplete");
  }
  return {.version = meta["version"],
          .identity = {.result_type = meta["result_type"],
                       .item_type = meta["item_type"],
                       .codec_version = std::stoi(meta["codec"]),
                       .keyed = keyed}};
}

/// CheckpointError unless results of `header` mean the same to a run that wants `wanted`.
inline void require_same(const std::filesystem::path& path, const CheckpointHeader& header,
                         const CheckpointHeader& wanted) {
  const auto compare = [&](std::string_view what, const std::string& there, const std::string& here) {
    if (there == here) return;
    throw checkpoint_error(path,
                           "its results are of another {}: the file has '{}', this run has '{}'; use another file, or "
                           "delete this one to compute everything again",
                           what, there, here);
  };
  compare("version", header.version, wanted.version);
  compare("result type", header.identity.result_type, wanted.identity.result_type);
  compare("item type", header.identity.item_type, wanted.identity.item_type);
  compare("key mode", std::string(key_mode(header.identity.keyed)), std::string(key_mode(wanted.identity.keyed)));
  compare("encoding (codec version)", std::to_string(header.identity.codec_version),
          std::to_string(wanted.identity.codec_version));
}

/// False if there is no such file, or an empty one. CheckpointError if it is none that SQLite may see: it would take
/// a very small one for an empty database, whose log means nothing, and roll back what a journal says.
inline bool has_content(const std::filesystem::path& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return false;
    throw checkpoint_error(path, "{}", text_of_errno(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    throw checkpoint_error(path, "this is no regular file but a {}; links are not followed",
                           S_ISLNK(status.st_mode)   ? "symbolic link"
                           : S_ISDIR(status.st_mode) ? "directory"
                                                     : "special file");
  }
  if (status.st_size == 0) return false;
  constexpr off_t smallest_database = 512;
  if (status.st_size < smallest_database) throw no_checkpoint(path);
  struct stat journal {};
  if (::lstat((path.string() + "-journal").c_str(), &journal) == 0 && journal.st_size > 0) {
    throw checkpoint_error(path,
                           "there is a rollback journal beside it, {}-journal, which no checkpoint has; move it away",
                           path.filename().string());
  }
  return true;
}

/// Makes a file without results. It appears with its name when it is whole, so that a process that dies on the way
/// leaves none, or one that the next takes away. The caller holds the file's lock.
inline void create_checkpoint(const std::filesystem::path& path, const CheckpointHeader& header) {
  const std::string made = path.string() + "-new";
  const auto remove_logs = [](const std::string& name) {
    for (const char* const suffix : {"-wal", "-shm", "-journal"}) ::unlink((name + suffix).c_str());
  };
  const auto remove_made = [&] {
    remove_logs(made);
    ::unlink(made.c_str());
  };
  remove_made();
  {
    const Descriptor file{::open(made.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600)};
    if (!file) throw checkpoint_error(path, "it cannot be made: {}", text_of_errno(errno));
  }
  try {
    Database database{made, Database::Access::write};
    database.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; BEGIN");
    database.execute(
        fmt::format("PRAGMA application_id = {}; PRAGMA user_version = {}", checkpoint_application, checkpoint_schema));
    database.execute(create_meta);
    database.execute(create_results);
    Statement insert = database.prepare("INSERT INTO meta VALUES(?, ?)");
    const auto add = [&](std::string_view name, std::string_view value) {
      insert.bind(1, name);
      insert.bind(2, value);
      insert.execute();
    };
    add("version", header.version);
    add("result_type", header.identity.result_type);
    add("item_type", header.identity.item_type);
    add("keys", key_mode(header.identity.keyed));
    add("codec", std::to_string(header.identity.codec_version));
    database.execute("COMMIT");
  } catch (...) {
    remove_made();
    throw;
  }
  remove_logs(path.string());  // of a database that was deleted: they would be taken for the new one's
  if (std::rename(made.c_str(), path.c_str()) != 0) {
    const int error = errno;
    remove_made();
    throw checkpoint_error(path, "it cannot be made: {}", text_of_errno(error));
  }
  const auto folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  if (const Descriptor opened{::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)}) ::fsync(opened.get());
}

}  // namespace pyarallel::detail

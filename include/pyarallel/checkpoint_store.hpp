// Where the results of a run rest between runs: what the library asks of such a store. <pyarallel/checkpoint.hpp>
// has one, in SQLite.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "pyarallel/codec.hpp"
#include "pyarallel/detail/fmt.hpp"
#include "pyarallel/detail/type_text.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel {

/// What the stored results of a run are, and what they were made of. Results of one identity mean nothing to a run
/// of another.
struct CheckpointIdentity {
  std::string result_type;  ///< With the fields of aggregates: "Page{std::string, int}".
  std::string item_type;
  int codec_version = 0;  ///< Of the encoding of the results; see codec_version.
  bool keyed = false;     ///< By item_key, else by position.
};

/// A hash of an item's encoding (SipHash-2-4, 128 bits): another one means another item.
using ItemFingerprint = std::array<std::byte, 16>;

/// A store while one run uses it. All calls come from the thread that made the parallel call (of a forked worker:
/// its only one).
class CheckpointSession {
 public:
  CheckpointSession() = default;
  CheckpointSession(const CheckpointSession&) = delete;
  CheckpointSession& operator=(const CheckpointSession&) = delete;
  /// Ends the use of the store. What was not committed may be lost.
  virtual ~CheckpointSession() = default;

  /// The encoded result that was added for this key and fingerprint; nothing if there is none, or one of another
  /// fingerprint only. Valid until the next call. `key`: an std::int64_t or a string; without item_key, the position.
  /// Asked once for each key, before anything is added for it.
  virtual std::optional<std::span<const std::byte>> find(const ItemKey& key, const ItemFingerprint& item) = 0;
  /// Adds a result, instead of one of another fingerprint if there is one for this key.
  virtual void add(const ItemKey& key, const ItemFingerprint& item, std::span<const std::byte> result) = 0;
  /// When this returns, everything added survives the death of the process.
  virtual void commit() = 0;
  /// Called in a forked worker, which inherits the session and uses it no more: lets go of what its parent alone
  /// should hold, such as a lock. The destructor does not run there.
  virtual void leave_to_parent() noexcept {}
};

/// Keeps the successes of runs, so that a later run need not repeat them: `.checkpoint = store`.
class CheckpointStore {
 public:
  CheckpointStore() = default;
  CheckpointStore(const CheckpointStore&) = delete;
  CheckpointStore& operator=(const CheckpointStore&) = delete;
  virtual ~CheckpointStore() = default;

  /// Called when a run begins. Throws CheckpointError if another run uses the store, or if what is in it cannot be
  /// used for this one. May return early once `give_up()` is true: then nothing is asked of the session but to end.
  virtual std::unique_ptr<CheckpointSession> open(const CheckpointIdentity& identity,
                                                  const std::function<bool()>& give_up) = 0;
};

namespace detail {

/// What a run must know of its types to store results; void* is a const T*, a const R* or the place of an R.
struct CheckpointTypes {
  void (*encode_item)(const void* item, Bytes& out);
  void (*encode_result)(const void* result, Bytes& out);
  /// Makes an R. Throws what decoding throws; takes all of the bytes.
  void (*decode_result)(std::span<const std::byte> bytes, void* place);
  std::string (*item_type)();
  std::string (*result_type)();
};

template <class T>
void encode_untyped(const void* value, Bytes& out) {
  Codec<T>::encode(*static_cast<const T*>(value), out);
}

template <class T>
void decode_untyped(std::span<const std::byte> bytes, void* place) {
  T* const value = ::new (place) T(Codec<T>::decode(bytes));
  if (bytes.empty()) return;
  std::destroy_at(value);
  throw std::runtime_error(fmt::format("Codec: {} bytes are left over", bytes.size()));
}

template <class T, class R>
inline constexpr CheckpointTypes checkpoint_types{&encode_untyped<T>, &encode_untyped<R>, &decode_untyped<R>,
                                                  &type_text<T>, &type_text<R>};

template <class T, class R>
concept checkpoint_has_a_Codec_for_item_and_result = Serializable<T> && Serializable<R>;

}  // namespace detail

/// What `.checkpoint =` takes: a store, or nullptr for none. Does not compile unless item and result types are
/// Serializable.
template <class T, class R>
class CheckpointArg {
 public:
  CheckpointArg() = default;

  template <class Store>
    requires(std::convertible_to<Store, std::shared_ptr<CheckpointStore>> &&
             detail::checkpoint_has_a_Codec_for_item_and_result<T, R>)
  explicit(false) CheckpointArg(Store&& store)
      : store_(std::forward<Store>(store)), types_(&detail::checkpoint_types<T, R>) {}

  /// A store needs a Codec for the type of the items, and for what the function returns.
  template <class Store>
    requires(std::convertible_to<Store, std::shared_ptr<CheckpointStore>> &&
             !detail::checkpoint_has_a_Codec_for_item_and_result<T, R>)
  explicit(false) CheckpointArg(Store&& store) = delete;

  CheckpointStore* store() const noexcept { return store_.get(); }
  const detail::CheckpointTypes* types() const noexcept { return types_; }

 private:
  std::shared_ptr<CheckpointStore> store_;
  const detail::CheckpointTypes* types_ = nullptr;  // only where there is a store: others need no codecs
};

}  // namespace pyarallel

// A run and its checkpoint: which items have a result already, and how new ones are kept.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_set>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/checkpoint_store.hpp"
#include "pyarallel/detail/message.hpp"
#include "pyarallel/detail/sip_hash.hpp"
#include "pyarallel/error.hpp"

namespace pyarallel::detail {

/// "17" or "'orders/17'"
inline std::string text_of_key(const ItemKey& key) {
  if (const auto* number = std::get_if<std::int64_t>(&key)) return std::to_string(*number);
  if (const auto* text = std::get_if<std::string>(&key)) return message({"'", *text, "'"});
  return "none";
}

/// Opens the store for a run. Throws what CheckpointStore::open() throws.
inline std::unique_ptr<CheckpointSession> open_checkpoint(CheckpointStore& store, const CheckpointTypes& types,
                                                          bool keyed, const std::function<bool()>& give_up) {
  return store.open({.result_type = types.result_type(),
                     .item_type = types.item_type(),
                     .codec_version = codec_version,
                     .keyed = keyed},
                    give_up);
}

class RunCheckpoint {
 public:
  /// Opens the store, and throws what that throws. `keyed`: items have a key in `keys` before they come here; else they
  /// are known by their position. `items`: how many there will be, if that is known. `give_up`: as for
  /// CheckpointStore::open().
  RunCheckpoint(CheckpointStore& store, const CheckpointTypes& types, bool keyed, const std::vector<ItemKey>& keys,
                std::size_t items, const std::function<bool()>& give_up)
      : session_(open_checkpoint(store, types, keyed, give_up)),
        types_(types),
        keyed_(keyed),
        keys_(keys),
        seen_(keyed ? std::min(items, most_expected) : 0, KeyHash{keys}, SameKey{keys}) {}

  /// Makes the item's result in `place` if there is one. False if not: then the item is remembered in `slot` until
  /// add(). CheckpointError if the item has no key, or another one's, or if its result cannot be decoded.
  bool find(std::size_t index, std::size_t slot, const void* item, void* place) {
    if (keyed_) check_key(index);
    const ItemFingerprint fingerprint = fingerprint_of(index, item);
    const auto bytes = session_->find(key_of(index), fingerprint);
    if (!bytes) {
      if (fingerprints_.size() <= slot) fingerprints_.resize(slot + 1);
      fingerprints_[slot] = fingerprint;
      return false;
    }
    try {
      types_.decode_result(*bytes, place);
    } catch (const std::exception& e) {
      throw CheckpointError(message({"checkpoint: the stored result of item ", index, " cannot be decoded: ", e.what(),
                                     "; if its Codec has changed, change the version too, and use another file"}));
    }
    return true;
  }

  /// Adds the result of the item in `slot`.
  void add(std::size_t index, std::size_t slot, const void* result) {
    bytes_.clear();
    try {
      types_.encode_result(result, bytes_);
    } catch (const std::exception& e) {
      throw CheckpointError(message({"checkpoint: the result of item ", index, " cannot be stored: ", e.what(),
                                     "; a later run would repeat a call that succeeded, so this one ends"}));
    }
    session_->add(key_of(index), fingerprints_[slot], bytes_);
  }

  /// What was added is durable when this returns.
  void commit() { session_->commit(); }

  void leave_to_parent() noexcept { session_->leave_to_parent(); }

 private:
  static constexpr std::size_t most_expected = std::size_t{1} << 20;  // the input may end long before its end

  ItemKey key_of(std::size_t index) const { return keyed_ ? keys_[index] : ItemKey{static_cast<std::int64_t>(index)}; }

  void check_key(std::size_t index) {
    if (std::holds_alternative<std::monostate>(keys_[index])) {
      throw CheckpointError(message({"checkpoint: item ", index,
                                     " has no key: with item_key, each item must have one to store its result under"}));
    }
    const auto [other, is_new] = seen_.insert(index);
    if (is_new) return;
    throw CheckpointError(
        message({"checkpoint: items ", *other, " and ", index, " have the same key, ", text_of_key(keys_[index]),
                 ": one result would replace the other; keys must be unique with a checkpoint"}));
  }

  ItemFingerprint fingerprint_of(std::size_t index, const void* item) {
    bytes_.clear();
    try {
      types_.encode_item(item, bytes_);
    } catch (const std::exception& e) {
      throw CheckpointError(message({"checkpoint: item ", index, " cannot be encoded: ", e.what()}));
    }
    // The key is no secret: it only has to stay the same.
    SipHash128 hash{0x70796172616c6c65, 0x6c206974656d7321};
    hash.update(bytes_);
    return hash.finish();
  }

  // The keys that were seen, by the position of their items: each is stored once.
  struct KeyHash {
    const std::vector<ItemKey>& keys;
    std::size_t operator()(std::size_t index) const { return std::hash<ItemKey>{}(keys[index]); }
  };
  struct SameKey {
    const std::vector<ItemKey>& keys;
    bool operator()(std::size_t a, std::size_t b) const { return keys[a] == keys[b]; }
  };

  const std::unique_ptr<CheckpointSession> session_;
  const CheckpointTypes& types_;
  const bool keyed_;
  const std::vector<ItemKey>& keys_;
  std::unordered_set<std::size_t, KeyHash, SameKey> seen_;
  std::vector<ItemFingerprint> fingerprints_;  // by slot, of items that were not found
  Bytes bytes_;
};

}  // namespace pyarallel::detail

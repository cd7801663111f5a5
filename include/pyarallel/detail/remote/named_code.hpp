// Code that all copies of a program have under the same name, so that one can tell another which to run.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstring>
#include <string>
#include <string_view>

namespace pyarallel::detail {

/// An entry in the list of all code of this type. A static object: made before main(), or with a library that is loaded
/// later.
template <class Function>
class NamedCode {
 public:
  NamedCode(const char* name, Function* code) noexcept : name_(name), code_(code) {
    next_ = first().load(std::memory_order_relaxed);
    while (!first().compare_exchange_weak(next_, this, std::memory_order_release, std::memory_order_relaxed)) {
    }
  }
  NamedCode(const NamedCode&) = delete;
  NamedCode& operator=(const NamedCode&) = delete;

  /// The same in every copy of the program. O(entries), as find().
  std::string name() const {
    // Types that files have for themselves may have the same name in several of them. The order of such entries is that
    // of the files in the program.
    std::size_t older = 0;
    for (const NamedCode* entry = next_; entry != nullptr; entry = entry->next_) older += same_name(*entry);
    return name_ + ('#' + std::to_string(older));
  }

  /// Null: there is none.
  static Function* find(std::string_view name) {
    for (const NamedCode* entry = first().load(std::memory_order_acquire); entry != nullptr; entry = entry->next_) {
      if (name.starts_with(entry->name_) && entry->name() == name) return entry->code_;
    }
    return nullptr;
  }

 private:
  std::size_t same_name(const NamedCode& other) const noexcept { return std::strcmp(name_, other.name_) == 0 ? 1 : 0; }

  static std::atomic<const NamedCode*>& first() noexcept {
    static constinit std::atomic<const NamedCode*> entry{nullptr};
    return entry;
  }

  const char* name_;
  Function* code_;
  const NamedCode* next_ = nullptr;
};

}  // namespace pyarallel::detail

// Where items come from: found by index on the workers, or pulled one by one on the driver.
#pragma once

#include <concepts>
#include <cstddef>
#include <iterator>
#include <memory>
#include <new>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/invoke.hpp"

namespace pyarallel::detail {

/// Workers find these items themselves.
template <class Items>
concept IndexedInput = std::ranges::random_access_range<Items> && std::ranges::sized_range<Items>;

/// Elements that stay put may be used where they are.
template <class Items>
inline constexpr bool stays_put =
    std::ranges::forward_range<Items> && std::is_lvalue_reference_v<std::ranges::range_reference_t<Items>>;

/// Items that arrive while the run goes on: the range has a ready(), which says whether asking for the next would tell
/// anything.
template <class Items>
inline constexpr bool items_arrive = false;

/// An item while it is worked on: the element itself where it stays put, else an object made of it.
template <class Items>
class Kept {
  using Reference = std::ranges::range_reference_t<Items>;
  using Item = item_t<Items>;

 public:
  Kept() = default;
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;
  ~Kept() { reset(); }

  /// Reads *it, once. Throws what that throws.
  template <class Iterator>
  void emplace(Iterator& it) {
    if constexpr (stays_put<Items>) {
      element_ = std::addressof(*it);
    } else if constexpr (std::is_lvalue_reference_v<Reference> && !std::is_constructible_v<Item, Reference>) {
      static_assert(std::move_constructible<Item>,
                    "pyarallel: items of a single-pass range of lvalues must be copyable or movable");
      element_ = ::new (static_cast<void*>(storage_)) Item(std::move(*it));
    } else {
      element_ = ::new (static_cast<void*>(storage_)) Item(*it);  // a prvalue is made in place
    }
  }

  void reset() noexcept {
    if constexpr (!stays_put<Items>) {
      if (element_ != nullptr) std::destroy_at(element_);
    }
    element_ = nullptr;
  }

  item_arg_t<Items> get() const noexcept { return static_cast<item_arg_t<Items>>(*element_); }

 private:
  using Element = std::conditional_t<stays_put<Items>, std::remove_reference_t<Reference>, Item>;
  static constexpr std::size_t storage_size = stays_put<Items> ? 1 : sizeof(Item);
  static constexpr std::size_t storage_alignment = stays_put<Items> ? 1 : alignof(Item);

  Element* element_ = nullptr;
  alignas(storage_alignment) std::byte storage_[storage_size];
};

/// Reads a range front to back, each element once, and no further than asked: the iterator moves on
/// only when the next element is wanted.
template <class Items>
class Puller {
 public:
  explicit Puller(Items& items) : items_(items) {}

  /// True if there is another element; then take() or skip() it before asking again.
  bool has_next() {
    if (exhausted_) return false;
    if (!it_) {
      it_.emplace(std::ranges::begin(items_));
    } else if (taken_) {
      ++*it_;
      taken_ = false;
    }
    exhausted_ = *it_ == std::ranges::end(items_);
    return !exhausted_;
  }

  void take(Kept<Items>& item) {
    item.emplace(*it_);
    taken_ = true;
  }

  void skip() noexcept { taken_ = true; }

  /// Known to have no more elements, without looking.
  bool exhausted() const noexcept { return exhausted_; }

 private:
  Items& items_;
  std::optional<std::ranges::iterator_t<Items>> it_;
  bool taken_ = false;
  bool exhausted_ = false;
};

/// The number of elements where the range can tell without being read, else 0.
template <class Items>
std::size_t known_size(Items& items) {
  if constexpr (std::ranges::sized_range<Items>) {
    return static_cast<std::size_t>(std::ranges::size(items));
  } else {
    return 0;
  }
}

}  // namespace pyarallel::detail

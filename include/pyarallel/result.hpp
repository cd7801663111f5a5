// What a run gives back: every value, every failure, and how it ended.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/receipt.hpp"
#include "pyarallel/error.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel {

namespace detail {
template <class R>
struct ItemResultAccess;
template <class R>
struct MapResultAccess;
}  // namespace detail

/// One item's receipt. attempts == 0 and duration == 0: nothing ran for it in this run.
/// `duration` is from the first attempt's start to the final outcome, backoff included, queueing excluded.
template <class R>
class ItemResult {
 public:
  std::size_t index = 0;
  ItemKey key = {};
  int attempts = 0;
  Duration duration = {};

  /// Nothing ran, no value, no error.
  ItemResult() = default;
  ItemResult(ItemResult&&) = default;
  ItemResult& operator=(ItemResult&&) = default;
  /// Copies own their value, also where the original looks at the run's (in on_result).
  ItemResult(const ItemResult& other)
    requires std::copy_constructible<R>
      : index(other.index), key(other.key), attempts(other.attempts), duration(other.duration) {
    if (other.ok()) {
      outcome_.template emplace<Value>(std::in_place_type<R>, other.value());
    } else if (const auto* error = std::get_if<Error>(&other.outcome_)) {
      outcome_ = *error;
    }
  }
  ItemResult& operator=(const ItemResult& other)
    requires std::copy_constructible<R>
  {
    return *this = ItemResult(other);
  }
  ~ItemResult() = default;

  bool ok() const noexcept { return std::holds_alternative<Value>(outcome_); }

  /// Throws the item's own exception if it failed.
  const R& value() const& { return *checked().get(); }
  R&& value() && { return std::move(*checked().get()); }

  /// std::logic_error if ok().
  const Error& error() const {
    if (const auto* error = std::get_if<Error>(&outcome_)) return *error;
    throw std::logic_error("ItemResult::error(): item " + std::to_string(index) + " has no error");
  }

 private:
  template <class>
  friend class MapResult;
  template <class>
  friend struct detail::ItemResultAccess;

  // A value of its own, or one that lives in the run: on_result and streams must not move results of any size in
  // and out for each item.
  class Value {
   public:
    template <class... Args>
    explicit Value(std::in_place_type_t<R>, Args&&... args) : own_(std::in_place, std::forward<Args>(args)...) {}
    explicit Value(R* of_the_run) : of_the_run_(of_the_run) {}
    // Whoever moves it away owns it.
    Value(Value&& other) noexcept(std::is_nothrow_move_constructible_v<R>) { take(other); }
    Value& operator=(Value&& other) noexcept(std::is_nothrow_move_constructible_v<R>) {
      if (this == &other) return *this;
      own_.reset();
      of_the_run_ = nullptr;
      take(other);
      return *this;
    }
    ~Value() = default;
    R* get() const noexcept { return own_ ? std::addressof(*own_) : of_the_run_; }

   private:
    void take(Value& other) {
      if (R* const value = other.get()) own_.emplace(std::move(*value));
    }

    mutable std::optional<R> own_;
    R* of_the_run_ = nullptr;
  };

  const Value& checked() const {
    if (const auto* value = std::get_if<Value>(&outcome_)) return *value;
    if (const auto* error = std::get_if<Error>(&outcome_)) error->rethrow();
    throw std::logic_error("ItemResult::value(): nothing ran for this item");
  }

  std::variant<std::monostate, Value, Error> outcome_;
};

/// One item that succeeded.
template <class R>
struct Success {
  std::size_t index;
  const R& value;
};

namespace detail {

/// Builds an ItemResult for the ledger.
template <class R>
struct ItemResultAccess {
  static ItemResult<R> make(std::size_t index, const Receipt& receipt, ItemKey key) {
    ItemResult<R> item;
    item.index = index;
    item.key = std::move(key);
    item.attempts = receipt.attempts;
    item.duration = receipt.duration;
    return item;
  }
  static void look_at(ItemResult<R>& item, R* value) {
    item.outcome_.template emplace<typename ItemResult<R>::Value>(value);
  }
  template <class V>
  static void set_value(ItemResult<R>& item, V&& value) {
    item.outcome_.template emplace<typename ItemResult<R>::Value>(std::in_place_type<R>, std::forward<V>(value));
  }
  static void clear(ItemResult<R>& item) noexcept { item.outcome_ = std::monostate{}; }
  static void set_error(ItemResult<R>& item, Error error) { item.outcome_ = std::move(error); }
};

/// Everything a run leaves behind but the values: it does not depend on R.
struct Summary {
  std::size_t size = 0;
  RunStatus status = RunStatus::completed;
  std::vector<Failure> failures;   // in input order; every other item has a value
  std::exception_ptr never_ran;    // the error of the items that never ran
  std::exception_ptr interrupted;  // the error of the items that were killed with their worker when the run ended
  RawArray<Receipt> receipts;      // null: attempts are 1 where something ran, durations as in `blocks`
  std::vector<Block> blocks;       // in input order; empty: durations were not measured
  std::vector<ItemKey> keys;       // of the items admitted, if there are keys

  Summary() = default;
  Summary(Summary&& other) noexcept
      : size(std::exchange(other.size, 0)),
        status(other.status),
        failures(std::exchange(other.failures, {})),
        never_ran(std::move(other.never_ran)),
        interrupted(std::move(other.interrupted)),
        receipts(std::move(other.receipts)),
        blocks(std::exchange(other.blocks, {})),
        keys(std::exchange(other.keys, {})) {}
  Summary& operator=(Summary&& other) noexcept {
    Summary moved{std::move(other)};
    swap(moved);
    return *this;
  }
  Summary(const Summary& other)
      : size(other.size),
        status(other.status),
        failures(other.failures),
        never_ran(other.never_ran),
        interrupted(other.interrupted),
        blocks(other.blocks),
        keys(other.keys) {
    if (!other.receipts) return;
    receipts = allocate_raw<Receipt>(size, Fill::none);
    std::uninitialized_copy_n(other.receipts.get(), size, receipts.get());
  }
  ~Summary() = default;

  void swap(Summary& other) noexcept {
    std::swap(size, other.size);
    std::swap(status, other.status);
    failures.swap(other.failures);
    std::swap(never_ran, other.never_ran);
    std::swap(interrupted, other.interrupted);
    blocks.swap(other.blocks);
    receipts.swap(other.receipts);
    keys.swap(other.keys);
  }

  bool is_unrun(const Failure& failure) const { return never_ran && failure.error.ptr() == never_ran; }
  /// It has no outcome of its own, because the run ended first.
  bool is_truncated(const Failure& failure) const {
    return is_unrun(failure) || (interrupted && failure.error.ptr() == interrupted);
  }

  const Failure* failure_at(std::size_t index) const {
    const auto found = std::lower_bound(failures.begin(), failures.end(), index,
                                        [](const Failure& failure, std::size_t i) { return failure.index < i; });
    return found != failures.end() && found->index == index ? &*found : nullptr;
  }

  Receipt receipt_at(std::size_t index, const Failure* failure) const {
    if (receipts) return receipts.get()[index];
    if (failure != nullptr && is_unrun(*failure)) return {};
    const auto next = std::upper_bound(blocks.begin(), blocks.end(), index,
                                       [](std::size_t i, const Block& block) { return i < block.first; });
    return {.duration = next == blocks.begin() ? Duration{} : std::prev(next)->duration, .attempts = 1};
  }

  ItemKey key_at(std::size_t index) const { return index < keys.size() ? keys[index] : ItemKey{}; }

  void throw_on_failure() const;
  void throw_unless_whole() const;
};

inline void Summary::throw_on_failure() const {
  std::vector<Failure> real;
  for (const Failure& failure : failures) {
    if (!is_truncated(failure)) real.push_back(failure);
  }
  if (real.empty()) return;
  constexpr std::size_t shown = 3;
  std::string what = std::to_string(real.size()) + " of " + std::to_string(size) + " tasks failed: ";
  for (std::size_t i = 0; i < std::min(shown, real.size()); ++i) {
    what += (i == 0 ? "[" : "; [") + std::to_string(real[i].index) + "] " + real[i].error.type_name() + ": " +
            real[i].error.what();
  }
  if (real.size() > shown) what += "; ... " + std::to_string(real.size() - shown) + " more";
  throw ExceptionGroup(std::move(what), std::move(real));
}

inline void Summary::throw_unless_whole() const {
  const auto explain = [this](const char* how) {
    const auto unrun = static_cast<std::size_t>(
        std::count_if(failures.begin(), failures.end(), [this](const Failure& failure) { return is_unrun(failure); }));
    return std::string("the run ") + how + " after " + std::to_string(size - unrun) + " items" +
           (unrun > 0 ? ", " + std::to_string(unrun) + " never ran" : "") +
           ": these are partial results, read them with successes(), failures() or ok_values()";
  };
  switch (status) {
    case RunStatus::timed_out:
      throw TimeoutError(explain("timed out"));
    case RunStatus::aborted:
      throw Aborted(explain("was aborted (max_errors)"));
    case RunStatus::cancelled:
      throw Cancelled(explain("was cancelled (stop)"));
    case RunStatus::completed:
      throw_on_failure();
  }
}

}  // namespace detail

/// The values that succeeded, with their indices, in input order: a forward range that refers to the
/// MapResult it came from.
template <class R>
class Successes {
 public:
  class iterator {
   public:
    using value_type = Success<R>;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;  // in C++17 terms, for Success is made on the fly
    using iterator_concept = std::forward_iterator_tag;

    iterator() = default;
    Success<R> operator*() const { return {index_, values_[index_]}; }
    iterator& operator++() {
      ++index_;
      skip_failures();
      return *this;
    }
    iterator operator++(int) {
      iterator old = *this;
      ++*this;
      return old;
    }
    friend bool operator==(const iterator& a, const iterator& b) { return a.index_ == b.index_; }

   private:
    friend class Successes;
    iterator(const R* values, std::size_t index, std::span<const Failure> failures)
        : values_(values), index_(index), failures_(failures) {
      skip_failures();
    }
    void skip_failures() {
      while (!failures_.empty() && failures_.front().index == index_) {
        failures_ = failures_.subspan(1);
        ++index_;
      }
    }

    const R* values_ = nullptr;
    std::size_t index_ = 0;
    std::span<const Failure> failures_;  // those at index_ or later
  };

  iterator begin() const { return {values_, 0, failures_}; }
  iterator end() const { return {values_, size_, {}}; }
  std::size_t size() const noexcept { return size_ - failures_.size(); }
  bool empty() const noexcept { return size() == 0; }

 private:
  template <class>
  friend class MapResult;
  Successes(const R* values, std::size_t size, std::span<const Failure> failures)
      : values_(values), size_(size), failures_(failures) {}

  const R* values_;
  std::size_t size_;
  std::span<const Failure> failures_;
};

template <class R>
class OwnedSuccesses;

/// The outcome of a map, in input order. Functions that return void give MapResult<std::monostate>.
/// Whole-result access throws when there is no whole result: TimeoutError / Aborted / Cancelled for
/// a truncated run (checked first), then ExceptionGroup when items failed. A partial list never
/// reads as the whole. Movable, not copyable unless R is. Const members may be called from several
/// threads at once. Looking up an item by index costs O(log failures).
template <class R>
class MapResult {
 public:
  /// An empty, completed result.
  MapResult() = default;
  MapResult(MapResult&&) noexcept = default;
  MapResult& operator=(MapResult&& other) noexcept {
    MapResult moved{std::move(other)};
    swap(moved);
    return *this;
  }
  MapResult(const MapResult& other)
    requires std::copy_constructible<R>
      : MapResult(other, CopyTag{}) {}
  MapResult& operator=(const MapResult& other)
    requires std::copy_constructible<R>
  {
    return *this = MapResult(other);
  }
  ~MapResult() { destroy_values(); }

  /// Completed, and every item succeeded.
  bool ok() const noexcept { return complete() && summary_.failures.empty(); }
  RunStatus status() const noexcept { return summary_.status; }
  bool complete() const noexcept { return status() == RunStatus::completed; }
  bool timed_out() const noexcept { return status() == RunStatus::timed_out; }
  bool aborted() const noexcept { return status() == RunStatus::aborted; }
  bool cancelled() const noexcept { return status() == RunStatus::cancelled; }
  /// Items with an entry.
  std::size_t size() const noexcept { return summary_.size; }
  bool empty() const noexcept { return size() == 0; }

  /// All values, in one piece. Throws unless the result is whole, as do the other four here.
  std::span<const R> values() const& {
    if (!ok()) summary_.throw_unless_whole();
    return {values_.get(), size()};
  }
  /// Moves the elements out.
  std::vector<R> values() && {
    summary_.throw_unless_whole();
    return std::move(*this).ok_values();
  }
  /// No check of the index, as in std::vector.
  const R& operator[](std::size_t index) const {
    if (!ok()) summary_.throw_unless_whole();
    return values_.get()[index];
  }
  const R* begin() const { return values().data(); }
  const R* end() const { return begin() + size(); }

  /// ExceptionGroup of the items that ran and failed, if any; never for truncation.
  void throw_on_failure() const { summary_.throw_on_failure(); }

  /// Item i's value, or throws item i's own exception; std::out_of_range.
  const R& at(std::size_t index) const {
    if (index >= size()) {
      throw std::out_of_range("MapResult::at(): index " + std::to_string(index) + " is not below size " +
                              std::to_string(size()));
    }
    if (const Failure* failure = summary_.failure_at(index)) failure->error.rethrow();
    return values_.get()[index];
  }

  /// What succeeded, as a forward range of Success<R> that refers to this result (of an rvalue: that
  /// owns it). Never throws for failures or truncation.
  Successes<R> successes() const& { return {values_.get(), size(), summary_.failures}; }
  OwnedSuccesses<R> successes() && { return OwnedSuccesses<R>{std::move(*this)}; }

  /// What failed or never ran, in input order. Never throws.
  std::span<const Failure> failures() const& { return summary_.failures; }
  std::vector<Failure> failures() && { return summary_.failures; }

  /// The values that are there, in input order: copies, or moves from an rvalue.
  std::vector<R> ok_values() const& {
    std::vector<R> all;
    all.reserve(successes().size());
    for_each_value([&](R& value) { all.push_back(std::as_const(value)); });
    return all;
  }
  std::vector<R> ok_values() && {
    if (summary_.failures.empty()) {
      return std::vector<R>(std::make_move_iterator(values_.get()), std::make_move_iterator(values_.get() + size()));
    }
    std::vector<R> all;
    all.reserve(successes().size());
    for_each_value([&](R& value) { all.push_back(std::move(value)); });
    return all;
  }

  /// A receipt for every entry: copies, or moves from an rvalue.
  std::vector<ItemResult<R>> item_results() const& {
    return make_item_results([](R& value) -> const R& { return value; });
  }
  std::vector<ItemResult<R>> item_results() && {
    return make_item_results([](R& value) -> R&& { return std::move(value); });
  }

 private:
  template <class>
  friend struct detail::MapResultAccess;

  struct CopyTag {};
  MapResult(const MapResult& other, CopyTag) : summary_(other.summary_) {
    values_ = detail::allocate_raw<R>(size(), detail::Fill::none);
    std::size_t done = 0;
    try {
      for (; done < size(); ++done) {
        if (!summary_.failure_at(done)) std::construct_at(values_.get() + done, other.values_.get()[done]);
      }
    } catch (...) {
      while (done-- > 0) {
        if (!summary_.failure_at(done)) std::destroy_at(values_.get() + done);
      }
      summary_.size = 0;
      throw;
    }
  }

  MapResult(detail::RawArray<R> values, detail::Summary&& summary)
      : values_(std::move(values)), summary_(std::move(summary)) {}

  void swap(MapResult& other) noexcept {
    values_.swap(other.values_);
    summary_.swap(other.summary_);
  }

  template <class Visit>
  void for_each_value(Visit&& visit) const {
    std::size_t index = 0;
    for (const Failure& failure : summary_.failures) {
      for (; index < failure.index; ++index) visit(values_.get()[index]);
      ++index;
    }
    for (; index < size(); ++index) visit(values_.get()[index]);
  }

  template <class Take>
  std::vector<ItemResult<R>> make_item_results(Take take) const {
    using Access = detail::ItemResultAccess<R>;
    std::vector<ItemResult<R>> all;
    all.reserve(size());
    auto failure = summary_.failures.begin();
    for (std::size_t index = 0; index < size(); ++index) {
      const Failure* failed = failure != summary_.failures.end() && failure->index == index ? &*failure++ : nullptr;
      auto item = Access::make(index, summary_.receipt_at(index, failed), summary_.key_at(index));
      if (failed != nullptr) {
        Access::set_error(item, failed->error);
      } else {
        Access::set_value(item, take(values_.get()[index]));
      }
      all.push_back(std::move(item));
    }
    return all;
  }

  void destroy_values() noexcept {
    if constexpr (!std::is_trivially_destructible_v<R>) {
      for_each_value([](R& value) { std::destroy_at(std::addressof(value)); });
    }
  }

  detail::RawArray<R> values_;  // raw where an item failed
  detail::Summary summary_;
};

/// The same, of a result that nobody else holds: `for (auto& [index, value] : parallel_map(...).successes())`.
template <class R>
class OwnedSuccesses {
 public:
  typename Successes<R>::iterator begin() const { return result_.successes().begin(); }
  typename Successes<R>::iterator end() const { return result_.successes().end(); }
  std::size_t size() const noexcept { return result_.size() - result_.failures().size(); }
  bool empty() const noexcept { return size() == 0; }

 private:
  template <class>
  friend class MapResult;
  explicit OwnedSuccesses(MapResult<R>&& result) : result_(std::move(result)) {}

  MapResult<R> result_;
};

namespace detail {

template <class R>
struct MapResultAccess {
  static MapResult<R> make(RawArray<R> values, Summary&& summary) { return {std::move(values), std::move(summary)}; }
  static const Summary& summary(const MapResult<R>& result) { return result.summary_; }
};

}  // namespace detail
}  // namespace pyarallel

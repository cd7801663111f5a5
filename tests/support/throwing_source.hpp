// A source of items that throws at a chosen moment.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>

#include "counted.hpp"

namespace support {

enum class Where { begin, increment, dereference, compare };

struct SourceFailed : std::runtime_error {
  using runtime_error::runtime_error;
};

/// 0, 1, 2, ... without an end, but item `at` cannot be had.
class ThrowingSource {
 public:
  ThrowingSource(Where where, int at, Counts& counts) : where_(where), at_(at), counts_(&counts) {}

  class iterator {
   public:
    using value_type = Counted;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    explicit iterator(ThrowingSource& source) : source_(&source) {}
    iterator(iterator&&) = default;
    iterator& operator=(iterator&&) = default;

    Counted operator*() const {
      source_->maybe_throw(Where::dereference, source_->position_);
      return Counted{*source_->counts_, source_->position_};
    }
    iterator& operator++() {
      source_->maybe_throw(Where::increment, source_->position_ + 1);
      ++source_->position_;
      return *this;
    }
    void operator++(int) { ++*this; }
    bool operator==(std::default_sentinel_t) const { return source_->at_end(); }

   private:
    ThrowingSource* source_;
  };

  iterator begin() {
    maybe_throw(Where::begin, 0);
    return iterator{*this};
  }
  std::default_sentinel_t end() const { return {}; }

  std::function<void()> before_throw = [] {};
  int thrown = 0;  // so often

 private:
  bool at_end() {
    maybe_throw(Where::compare, position_);
    return false;
  }
  void maybe_throw(Where where, int position) {
    if (where != where_ || position != at_) return;
    ++thrown;
    before_throw();
    throw SourceFailed("item " + std::to_string(at_));
  }

  Where where_;
  int at_;
  int position_ = 0;
  Counts* counts_;
};

}  // namespace support

// Single-pass sources, as a generator or a stream would be, that write down how they are read.
#pragma once

#include <cstddef>
#include <functional>
#include <iterator>
#include <thread>
#include <type_traits>
#include <utility>

namespace support {

/// The range make(0), make(1), ..., make(count - 1), each made when it is read. Reading it twice, going
/// past its end, or from another thread than the one that made the range is counted as a mistake.
template <class Make>
class SinglePass {
 public:
  using Element = std::invoke_result_t<Make&, int>;

  SinglePass(int count, Make make) : make_(std::move(make)), count_(count) {}
  SinglePass(const SinglePass&) = delete;
  SinglePass& operator=(const SinglePass&) = delete;

  class iterator {
   public:
    using value_type = std::remove_cvref_t<Element>;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    explicit iterator(SinglePass& source) : source_(&source) {}
    iterator(iterator&&) = default;
    iterator& operator=(iterator&&) = default;

    Element operator*() const { return source_->read(); }
    iterator& operator++() {
      source_->advance();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& it, std::default_sentinel_t) { return it.at_end(); }

   private:
    bool at_end() const { return source_->at_end(); }

    SinglePass* source_;
  };

  iterator begin() {
    ++begun;
    check_thread();
    return iterator{*this};
  }
  std::default_sentinel_t end() const { return {}; }

  int begun = 0;
  int reads = 0;
  int increments = 0;
  int mistakes = 0;
  std::function<void(int)> on_read = [](int) {};       // before the element with this number is read
  std::function<void(int)> on_increment = [](int) {};  // before the iterator leaves the element with this number

 private:
  friend class iterator;

  Element read() {
    check_thread();
    if (read_already_ || at_end()) ++mistakes;
    read_already_ = true;
    on_read(position_);
    ++reads;
    return make_(position_);
  }
  void advance() {
    check_thread();
    if (at_end()) ++mistakes;
    on_increment(position_);
    read_already_ = false;
    ++position_;
    ++increments;
  }
  bool at_end() const { return position_ == count_; }
  void check_thread() {
    if (std::this_thread::get_id() != thread_) ++mistakes;
  }

  Make make_;
  int count_;
  int position_ = 0;
  bool read_already_ = false;
  std::thread::id thread_ = std::this_thread::get_id();
};

}  // namespace support

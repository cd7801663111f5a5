// The driver's side of input that is pulled: it reads items one by one, at most a window ahead of what is
// resolved.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "pyarallel/detail/clock.hpp"
#include "pyarallel/detail/run/raw_array.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/detail/run/workplace.hpp"

namespace pyarallel::detail {

/// As many slots as were needed at once so far. They never move, for workers use them while the driver
/// adds more.
template <class Items>
class Window {
 public:
  struct Slot {
    std::size_t index = 0;
    Kept<Items> item;
  };

  explicit Window(std::size_t size) : size_(size) {}
  Window(const Window&) = delete;
  Window& operator=(const Window&) = delete;
  ~Window() {
    while (made_ > 0) std::destroy_at(slots_.at(--made_));
  }

  std::size_t size() const noexcept { return size_; }
  bool full() const noexcept { return unresolved_ == size_; }
  bool empty() const noexcept { return unresolved_ == 0; }
  Slot& operator[](std::size_t place) const noexcept { return *slots_.at(place); }

  /// A free place, for an item that is put there with fill().
  std::size_t find_place() {
    if (free_.empty()) {
      slots_.grow_to(made_ + 1);
      std::construct_at(slots_.at(made_));
      free_.push_back(made_++);
    }
    return free_.back();
  }
  void fill() noexcept {
    free_.pop_back();
    ++unresolved_;
  }
  void clear(std::size_t place) {
    slots_.at(place)->item.reset();
    free_.push_back(place);
    --unresolved_;
  }

 private:
  std::size_t size_;
  GrowingArray<Slot> slots_;
  std::size_t made_ = 0;
  std::vector<std::size_t> free_;
  std::size_t unresolved_ = 0;
};

/// What became of the next item of the input. none: there is none to be had now. resolved: it needs no worker.
enum class Pull { none, resolved, placed };

template <class Runner, class Items>
class Admission {
 public:
  /// `looks`: whether the driver has to look at the items, or workers find them by their index.
  Admission(Runner& runner, std::size_t window, bool looks = true)
      : runner_(runner), puller_(runner.items()), window_(window), looks_(looks) {}

  Window<Items>& window() noexcept { return window_; }

  /// False if there is nothing to do. An empty input is complete, also where the run is stopped before it begins.
  bool begin() {
    if (Runner::sized) return true;
    bool any = true;
    ended_ = !runner_.driver().guarded([&] { any = puller_.has_next(); });
    return any && !ended_;
  }

  /// Reads one item into the window, in `place`, if there is room for it.
  Pull pull(std::size_t& place) {
    if (ended_ || window_.full() || !may_admit()) return Pull::none;
    const bool read = this->read([&] {
      place = window_.find_place();
      if (looks_) {
        puller_.take(window_[place].item);
      } else {
        puller_.skip();
      }
      window_.fill();
      window_[place].index = runner_.next_index();
    });
    if (!read) return Pull::none;
    const Pull pull = runner_.admit(window_[place].index, place, window_[place].item);
    if (pull == Pull::none) reject(place);
    if (pull == Pull::resolved) free(place);
    return pull;
  }

  /// The same for an item that is done with before the next one is wanted: it takes no place. Its index. With
  /// `alone`, nothing if there is anything else in the window.
  std::optional<std::size_t> pull_into(Kept<Items>& item, bool alone) {
    if (ended_ || (alone ? !window_.empty() : window_.full()) || !may_admit()) return std::nullopt;
    if (!read([&] { puller_.take(item); })) return std::nullopt;
    return runner_.next_index();
  }

  /// The item in this place cannot run, and so the call fails: nothing more is admitted.
  void reject(std::size_t place) {
    ended_ = true;
    Resolved item{.slot = place, .ran = false};
    settle({&item, 1});
  }

  /// Outcomes that came together.
  void settle(std::span<Resolved> items) {
    for (Resolved& item : items) {
      item.index = window_[item.slot].index;
      window_[item.slot].item.reset();
    }
    runner_.store(items);
    for (Resolved& item : items) {
      const std::size_t slot = item.slot;
      if (runner_.settle(item)) free(slot);
    }
  }

  /// The slot may have another item.
  void free(std::size_t slot) { window_.clear(slot); }

  /// Nothing more is to be pulled.
  bool ended() const noexcept { return ended_; }
  /// And all slots are free.
  bool finished() const noexcept { return ended_ && window_.empty(); }
  /// The input is known to have no more items.
  bool exhausted() const noexcept {
    return puller_.exhausted() || (Runner::sized && runner_.admitted() == runner_.size());
  }

 private:
  /// Calls take_it() if there is a next item. False if not, or if the source threw.
  template <class TakeIt>
  bool read(TakeIt take_it) {
    const bool read = runner_.driver().guarded([&] {
      ended_ = !puller_.has_next();
      if (!ended_) take_it();
    });
    ended_ = ended_ || !read;
    return !ended_;
  }

  bool may_admit() {
    if constexpr (items_arrive<Items>) {
      if (!runner_.items().ready()) return false;
    }
    return !runner_.run().closed() && !(runner_.plan().timeout && runner_.run().stop_if_due(clock().now()));
  }

  Runner& runner_;
  Puller<Items> puller_;
  Window<Items> window_;
  const bool looks_;
  bool ended_ = false;
};

}  // namespace pyarallel::detail

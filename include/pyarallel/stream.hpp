// parallel_iter: one function over many inputs, each result as soon as it is there, in constant memory.
#pragma once

#include <concepts>
#include <cstddef>
#include <iterator>
#include <memory>
#include <ranges>
#include <utility>

#include "pyarallel/detail/invoke.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"
#if PYARALLEL_HAS_FORK
#include "pyarallel/detail/process/crew.hpp"
#endif
#include "pyarallel/detail/run/stream_run.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/status.hpp"

namespace pyarallel {

/// What parallel_iter gives: a move-only, single-pass input_range of ItemResult<R>, in completion order unless
/// `ordered`. It yields what was resolved, and nothing for items that never ran.
///
/// The run begins with the first begin(): then workers start (and with processes, are forked), and the time of
/// `timeout` begins. Input is read, and callbacks are called, inside begin() and ++. A consumer that does not go on
/// stops admission: no more items and results than one window (Batch::size) are alive at any moment, the one in
/// the consumer's hands included.
///
/// It ends after the last item, after the n-th failure with max_errors, at the deadline, or on stop; what was
/// resolved by then is yielded first (but nothing after the n-th failure). When it has ended, nothing of it is
/// running any more: the last ++ waits for that. An exception of the source, a callback, a key function or
/// worker_init leaves begin() or ++ after that, and ends the stream; callbacks are called no more once one of these
/// has thrown. A stream that has ended is empty.
///
/// Destroying a stream that has not ended stops admission, asks running items to stop and waits for them
/// (processes: kills them).
///
/// While the consumer is busy with a result, tasks on threads are still asked to stop in time; workers in other
/// processes that are late are killed at the next ++.
///
/// One thread at a time; it may be another one later.
template <class R>
class ResultStream : public std::ranges::view_interface<ResultStream<R>> {
 public:
  class iterator {
   public:
    using value_type = ItemResult<R>;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    iterator() = default;
    /// The current result; it may be moved from. Valid until the next ++.
    ItemResult<R>& operator*() const { return run_->current(); }
    ItemResult<R>* operator->() const { return &run_->current(); }
    /// Waits for the next result. Throws as the stream does.
    iterator& operator++() {
      run_->next();
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& it, std::default_sentinel_t) {
      return it.run_ == nullptr || it.run_->over();
    }

   private:
    friend class ResultStream;
    explicit iterator(detail::AnyStreamRun<R>* run) : run_(run) {}

    detail::AnyStreamRun<R>* run_ = nullptr;
  };

  ResultStream(ResultStream&&) noexcept = default;
  /// Ends the stream that was here, as its destructor does.
  ResultStream& operator=(ResultStream&&) noexcept = default;

  /// Waits for the first result. Later calls give the same as the last iterator. Throws as the stream does.
  iterator begin() {
    if (run_ && !run_->begun()) run_->next();
    return iterator{run_.get()};
  }
  std::default_sentinel_t end() const noexcept { return {}; }

  /// How it ended; meaningful once it has.
  RunStatus status() const noexcept { return run_ ? run_->status() : RunStatus::completed; }

  /// For parallel_iter.
  explicit ResultStream(std::unique_ptr<detail::AnyStreamRun<R>> run) : run_(std::move(run)) {}

 private:
  std::unique_ptr<detail::AnyStreamRun<R>> run_;
};

/// Applies fn to every item, in parallel, and gives each result as soon as it is there (ResultStream says when and
/// in which order): for input or output too large to hold, or endless. `fn` is called as by parallel_map.
///
///     for (auto& item : parallel_iter(parse, lines, {.workers = 4})) {
///       if (item.ok()) save(std::move(item).value());
///     }
///
/// Errors of items are data, in the results. std::invalid_argument for bad options is thrown here.
///
/// Lvalues (fn and items) are referred to and must outlive the stream; rvalues are moved into it.
template <class F, std::ranges::input_range Items>
ResultStream<result_t<F, Items>> parallel_iter(F&& fn, Items&& items,
                                               const StreamOptions<item_t<Items>, result_t<F, Items>>& options = {}) {
  using R = result_t<F, Items>;
  return ResultStream<R>{detail::make_stream_run<R, Items>(std::forward<Items>(items),
                                                           detail::ItemFunction<F>{std::forward<F>(fn)}, options)};
}

/// The same with options said once, in `shared`; a field set in `overrides` wins.
template <class F, std::ranges::input_range Items, std::same_as<Options> Shared>
ResultStream<result_t<F, Items>> parallel_iter(F&& fn, Items&& items, const Shared& shared,
                                               const StreamOptions<item_t<Items>, result_t<F, Items>>& overrides = {}) {
  return parallel_iter(std::forward<F>(fn), std::forward<Items>(items), detail::merged(shared, overrides));
}

}  // namespace pyarallel

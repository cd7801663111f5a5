// A stream from beginning to end, as its ResultStream sees it.
#pragma once

#include <concepts>
#include <cstddef>
#include <exception>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/run/crew_run.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/pulled.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/detail/run/stream_runner.hpp"
#include "pyarallel/detail/run/timekeeper.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

template <class Items>
inline constexpr bool is_initializer_list = false;
template <class Item>
inline constexpr bool is_initializer_list<std::initializer_list<Item>> = true;

/// What does not depend on the types of items and function.
template <class R>
class AnyStreamRun {
 public:
  AnyStreamRun() = default;
  AnyStreamRun(const AnyStreamRun&) = delete;
  AnyStreamRun& operator=(const AnyStreamRun&) = delete;
  virtual ~AnyStreamRun() = default;

  /// Waits for the next outcome, which is current() then. False if there is none: everything has ended.
  virtual bool next() = 0;
  /// next() was called.
  virtual bool begun() const noexcept = 0;

  ItemResult<R>& current() noexcept { return current_; }
  RunStatus status() const noexcept { return status_; }
  bool over() const noexcept { return over_; }

 protected:
  ItemResult<R> current_;
  RunStatus status_ = RunStatus::completed;
  bool over_ = false;
};

/// `Items`: a reference, or a range of its own. `Where`: PulledRun or CrewRun.
template <class R, class Items, class Invoke, template <class, class> class Where>
class StreamRun final : public AnyStreamRun<R> {
  using Range = std::remove_reference_t<Items>;
  using Options = StreamOptions<item_t<Range>, R>;
  using Runner = StreamRunner<R, Range, Invoke>;

 public:
  /// std::invalid_argument for bad options.
  StreamRun(Items&& items, Invoke&& invoke, const Options& options)
      : options_(options), plan_(plan_for(options_)), items_(std::forward<Items>(items)), invoke_(std::move(invoke)) {}

  ~StreamRun() override {
    if (!run_) return;
    run_->abandon();
    leave(StopReason::cancelled);
    timekeeper_.reset();
    run_->end();
  }

  bool begun() const noexcept override { return begun_; }

  bool next() override {
    if (this->over_) return false;
    if (!std::exchange(begun_, true)) {
      if (!begin()) return false;
    } else {
      ItemResultAccess<R>::clear(this->current_);
      run_->runner().let_go();
      if (slot_) run_->admission().free(*slot_);
      slot_.reset();
      if (run_->runner().had_enough_failures()) {
        leave(StopReason::aborted);
        return end();
      }
    }
    const auto ready = [this] { return run_->runner().ready(); };
    if (!ready() && run_directly()) return true;
    if (!ready() || run_->workers_matter()) run_->advance(ready);
    if (!ready()) return end();
    slot_ = run_->runner().take(this->current_);
    return true;
  }

 private:
  static Plan plan_for(const Options& options) {
    Plan plan = make_plan(options, Runner::takes_task);
    // Failures are counted as they are yielded, not as they happen on some worker: see StreamRunner.
    plan.max_errors = std::numeric_limits<std::size_t>::max();
    plan.may_change_threads = true;
    return plan;
  }

  bool begin() {
    this->over_ = true;  // if this throws, or there is nothing to do
    if (std::ranges::sized_range<Range> && known_size(items_) == 0) return false;
    run_.emplace(items_, invoke_, options_, plan_);
    if (!run_->begin()) return end();
    const bool tasks_have_limits = plan_.takes_task && (plan_.timeout || plan_.task_timeout);
    if (Where<Runner, Range>::runs_in_this_process && tasks_have_limits && !plan_.runs_inline()) {
      timekeeper_.emplace(run_->runner().run());
    }
    this->over_ = false;
    return true;
  }

  /// Runs the next item here and now, where that is possible and better.
  bool run_directly() {
    if constexpr (Where<Runner, Range>::runs_in_this_process) {
      const auto run_item = [this](std::size_t index, auto& item) {
        run_->runner().run_directly(index, item, this->current_);
      };
      return run_->run_directly(run_item, options_.ordered);
    } else {
      return false;
    }
  }

  /// Stops the run, if it is not stopped yet, and waits for what runs, or kills it.
  void leave(StopReason reason) {
    run_->runner().abandon();
    run_->runner().run().stop(reason);
    const auto never = [] { return false; };
    run_->advance(never);
  }

  bool end() {
    this->over_ = true;
    timekeeper_.reset();
    run_->end();
    this->status_ = run_->runner().end(run_->exhausted());
    const std::exception_ptr exception = run_->runner().run().call_failure();
    run_.reset();
    if (exception) std::rethrow_exception(exception);
    return false;
  }

  const Options options_;
  const Plan plan_;
  Items items_;
  Invoke invoke_;
  std::optional<Where<Runner, Range>> run_;  // while it lasts
  std::optional<Timekeeper> timekeeper_;     // where workers cannot keep the time themselves
  std::optional<std::size_t> slot_;          // of the current outcome, if it has one
  bool begun_ = false;
};

/// `invoke`: as ItemFunction.
template <class R, class Items, class Invoke>
std::unique_ptr<AnyStreamRun<R>> make_stream_run(Items&& items, Invoke invoke,
                                                 const StreamOptions<item_t<Items>, R>& options) {
  static_assert(std::move_constructible<R>,
                "pyarallel: what the function returns must be movable; return a std::unique_ptr to it instead");
  static_assert(std::is_lvalue_reference_v<Items> || std::move_constructible<Items>,
                "pyarallel: a stream keeps a range that is a temporary, so it must be movable; name it, and keep it "
                "until the stream is gone");
  static_assert(!is_initializer_list<Items>,
                "pyarallel: the elements of a temporary std::initializer_list are gone before the stream reads them; "
                "use a std::vector");
  if constexpr (Serializable<R>) {
    RemoteExecutor* const remote = options.executor.remote();
    if (remote != nullptr) remote->check(remote_function(invoke.fn));
    if (options.executor.get() == Executor::process || (remote != nullptr && !remote->is_local())) {
      require_codec_for_sent_items<std::remove_reference_t<Items>>();
      return std::make_unique<StreamRun<R, Items, Invoke, CrewRun>>(std::forward<Items>(items), std::move(invoke),
                                                                    options);
    }
  }
  return std::make_unique<StreamRun<R, Items, Invoke, PulledRun>>(std::forward<Items>(items), std::move(invoke),
                                                                  options);
}

}  // namespace pyarallel::detail

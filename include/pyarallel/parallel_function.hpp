// parallel(fn): a function that keeps its plain call, and gains map, starmap and stream.
#pragma once

#include <functional>
#include <memory>
#include <ranges>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/invoke.hpp"
#include "pyarallel/map.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"
#include "pyarallel/stream.hpp"

namespace pyarallel {

/// A function with the options of its parallel calls said once:
///
///     const auto fetch = parallel(fetch_page, {.workers = 10, .retry = Retry{.attempts = 3}});
///     Page page   = fetch(url);                              // as before
///     auto result = fetch.map(urls);                         // as parallel_map
///     for (auto& item : fetch.stream(urls, {.ordered = true})) ...  // as parallel_iter
///
/// A field that is set in the options of a call wins over the default; the rest is inherited. The function is
/// called through a const reference.
///
/// Copies share the function. It may be stored, static, and used from several threads at once, if the function may
/// be called so; a stream keeps the function alive.
template <class F>
class ParallelFunction {
 public:
  /// As parallel().
  explicit ParallelFunction(F fn, Options defaults = {})
      : said_(std::make_shared<const Said>(std::move(fn), std::move(defaults))) {}

  using pyarallel_target = const F;

  /// The function that all copies share.
  const F& target() const noexcept { return said_->fn; }

  /// fn(args...)
  template <class... Args>
  std::invoke_result_t<const F&, Args...> operator()(Args&&... args) const {
    return std::invoke(said_->fn, std::forward<Args>(args)...);
  }

  /// parallel_map of the function.
  template <std::ranges::input_range Items>
  MapResult<result_t<const F, Items>> map(
      Items&& items, const MapOptions<item_t<Items>, result_t<const F, Items>>& options = {}) const {
    return parallel_map(said_->fn, std::forward<Items>(items), said_->defaults, options);
  }

  /// parallel_starmap of the function.
  template <std::ranges::input_range Items>
  MapResult<starmap_result_t<const F, Items>> starmap(
      Items&& items, const MapOptions<item_t<Items>, starmap_result_t<const F, Items>>& options = {}) const {
    return parallel_starmap(said_->fn, std::forward<Items>(items), said_->defaults, options);
  }

  /// parallel_iter of the function.
  template <std::ranges::input_range Items>
  ResultStream<result_t<const F, Items>> stream(
      Items&& items, const StreamOptions<item_t<Items>, result_t<const F, Items>>& options = {}) const {
    // A copy of this, which the stream keeps, and with it the function.
    return parallel_iter(ParallelFunction(*this), std::forward<Items>(items), said_->defaults, options);
  }

 private:
  struct Said {
    Said(F&& function, Options&& options) : fn(std::move(function)), defaults(std::move(options)) {}
    const F fn;
    const Options defaults;
  };

  std::shared_ptr<const Said> said_;
};

/// Gives `fn` parallel calls whose options are `defaults` (see ParallelFunction). Lvalues are copied. Member
/// functions of an object: parallel(std::bind_front(&Client::fetch, &client)).
template <class F>
ParallelFunction<std::decay_t<F>> parallel(F&& fn, Options defaults = {}) {
  return ParallelFunction<std::decay_t<F>>{std::forward<F>(fn), std::move(defaults)};
}

}  // namespace pyarallel

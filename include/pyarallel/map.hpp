// parallel_map and parallel_starmap: one function over many inputs, all results collected.
#pragma once

#include <concepts>
#include <ranges>
#include <type_traits>
#include <utility>

#include "pyarallel/detail/invoke.hpp"
#include "pyarallel/detail/process/shared_memory.hpp"
#if PYARALLEL_HAS_FORK
#include "pyarallel/detail/process/crew.hpp"
#endif
#include "pyarallel/detail/run/collect.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel {

/// Applies fn to every item, in parallel; results in input order. `fn` is called as fn(item, task) if
/// it can be, else as fn(item), concurrently and through one shared object.
///
/// Errors of items are data, in the result. What is thrown: std::invalid_argument for bad options
/// (before anything runs), whatever the source, a key function, worker_init or a callback throws
/// (after running items have ended), CheckpointError when a checkpoint cannot be used or written, std::system_error
/// when workers cannot be started.
///
/// Items that are random access and stay put are not copied, and may be changed by fn if the range
/// is mutable; others are pulled lazily, on the calling thread. Calls may nest, and run at the same
/// time from several threads.
template <class F, std::ranges::input_range Items>
MapResult<result_t<F, Items>> parallel_map(F&& fn, Items&& items,
                                           const MapOptions<item_t<Items>, result_t<F, Items>>& options = {}) {
  return detail::collect<result_t<F, Items>>(items, detail::ItemFunction<F&>{fn}, options);
}

/// The same with options said once, in `shared`; a field set in `overrides` wins.
template <class F, std::ranges::input_range Items, std::same_as<Options> Shared>
MapResult<result_t<F, Items>> parallel_map(F&& fn, Items&& items, const Shared& shared,
                                           const MapOptions<item_t<Items>, result_t<F, Items>>& overrides = {}) {
  return parallel_map(std::forward<F>(fn), std::forward<Items>(items), detail::merged(shared, overrides));
}

/// fn(a, b, ...) or fn(a, b, ..., task) over a range of tuples or pairs; otherwise as parallel_map.
template <class F, std::ranges::input_range Items>
MapResult<starmap_result_t<F, Items>> parallel_starmap(
    F&& fn, Items&& items, const MapOptions<item_t<Items>, starmap_result_t<F, Items>>& options = {}) {
  return detail::collect<starmap_result_t<F, Items>>(items, detail::TupleFunction<F>{fn}, options);
}

/// The same with options said once, in `shared`; a field set in `overrides` wins.
template <class F, std::ranges::input_range Items, std::same_as<Options> Shared>
MapResult<starmap_result_t<F, Items>> parallel_starmap(
    F&& fn, Items&& items, const Shared& shared,
    const MapOptions<item_t<Items>, starmap_result_t<F, Items>>& overrides = {}) {
  return parallel_starmap(std::forward<F>(fn), std::forward<Items>(items), detail::merged(shared, overrides));
}

}  // namespace pyarallel

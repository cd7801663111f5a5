// A map from beginning to end: options -> plan -> run -> result.
#pragma once

#include <concepts>
#include <ranges>

#include "pyarallel/detail/run/forked.hpp"
#include "pyarallel/detail/run/indexed.hpp"
#include "pyarallel/detail/run/item_runner.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/pulled.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

/// `invoke(item, task)` for each item, from any thread.
template <class R, class Items, class Invoke>
MapResult<R> collect(Items& items, Invoke invoke, const MapOptions<item_t<Items>, R>& options, bool takes_task) {
  static_assert(std::move_constructible<R>,
                "pyarallel: what the function returns must be movable; return a std::unique_ptr to it instead");
  const Plan plan = make_plan(options, takes_task);
  if (std::ranges::sized_range<Items> && known_size(items) == 0) return {};

  if constexpr (Serializable<R>) {
    if (plan.forks()) return ForkedRun<R, Items, Invoke>{items, invoke, options, plan}.run();
  }
  using Runner = ItemRunner<R, Items, Invoke>;
  Runner runner{items, invoke, options, plan};
  if constexpr (IndexedInput<Items>) {
    if (!plan.keyed) {  // keys are made by the driver, item by item
      IndexedRun<Runner, Items>{runner}.run();
      return runner.finish(true);
    }
  }
  PulledRun<Runner, Items> pulled{runner};
  return runner.finish(pulled.run());
}

}  // namespace pyarallel::detail

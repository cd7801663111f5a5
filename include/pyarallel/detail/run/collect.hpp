// A map from beginning to end: options -> plan -> run -> result.
#pragma once

#include <concepts>
#include <ranges>

#include "pyarallel/detail/run/crew_run.hpp"
#include "pyarallel/detail/run/indexed.hpp"
#include "pyarallel/detail/run/map_runner.hpp"
#include "pyarallel/detail/run/plan.hpp"
#include "pyarallel/detail/run/pulled.hpp"
#include "pyarallel/detail/run/run_checkpoint.hpp"
#include "pyarallel/detail/run/source.hpp"
#include "pyarallel/options.hpp"
#include "pyarallel/result.hpp"

namespace pyarallel::detail {

/// `invoke`: as ItemFunction.
template <class R, class Items, class Invoke>
MapResult<R> collect(Items& items, Invoke invoke, const MapOptions<item_t<Items>, R>& options) {
  static_assert(std::move_constructible<R>,
                "pyarallel: what the function returns must be movable; return a std::unique_ptr to it instead");
  using Runner = MapRunner<R, Items, Invoke>;
  const Plan plan = make_plan(options, Runner::takes_task);
  if (options.executor.remote() != nullptr) options.executor.remote()->check(remote_function(invoke.fn));
  if (std::ranges::sized_range<Items> && known_size(items) == 0) {
    // A checkpoint that cannot be used is an error whatever the input.
    const auto never = [] { return false; };
    if (plan.stored) open_checkpoint(*options.checkpoint.store(), *options.checkpoint.types(), plan.keyed, never);
    return {};
  }

  const auto run_to_the_end = [](auto&& run) {
    if (run.begin()) {
      const auto never = [] { return false; };
      run.advance(never);
      run.end();
    }
    return run.runner().finish(run.exhausted());
  };
  if constexpr (Serializable<R>) {
    if (plan.has_crew()) return run_to_the_end(CrewRun<Runner, Items>{items, invoke, options, plan});
  }
  if constexpr (IndexedInput<Items>) {
    if (!plan.driver_looks()) {
      IndexedRun<Runner, Items> run{items, invoke, options, plan};
      run.run();
      return run.runner().finish(true);
    }
  }
  return run_to_the_end(PulledRun<Runner, Items>{items, invoke, options, plan});
}

}  // namespace pyarallel::detail

// How fn is called: fn(item, task) if it can be, else fn(item); void becomes std::monostate.
#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <ranges>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "pyarallel/status.hpp"

namespace pyarallel {

namespace detail {

template <class Answer>
using value_or_unit = std::conditional_t<std::is_void_v<Answer>, std::monostate, std::remove_cvref_t<Answer>>;

template <class F, class... Args>
inline constexpr bool takes_task = std::invocable<F&, Args..., const Task&>;

template <class F, class... Args>
decltype(auto) invoke_item(F& fn, const Task& task, Args&&... args) {
  if constexpr (takes_task<F, Args...>) {
    return std::invoke(fn, std::forward<Args>(args)..., task);
  } else {
    return std::invoke(fn, std::forward<Args>(args)...);
  }
}

/// fn as a run calls it. `F`: a reference, or a function object of its own.
template <class F>
struct ItemFunction {
  F fn;

  template <class Item>
  static constexpr bool takes_task = detail::takes_task<F, Item>;

  template <class Item>
  decltype(auto) operator()(Item& item, const Task& task) {
    return invoke_item(fn, task, item);
  }
};

/// The same with the elements of a tuple for the arguments (std::apply).
template <class F, class Tuple>
decltype(auto) apply_item(F& fn, const Task& task, Tuple&& tuple) {
  return std::apply(
      [&]<class... Elements>(Elements&&... elements) -> decltype(auto) {
        return invoke_item(fn, task, std::forward<Elements>(elements)...);
      },
      std::forward<Tuple>(tuple));
}

template <class F, class... Args>
auto call_result() {
  if constexpr (takes_task<F, Args...>) {
    return std::type_identity<value_or_unit<std::invoke_result_t<F&, Args..., const Task&>>>{};
  } else if constexpr (std::invocable<F&, Args...>) {
    return std::type_identity<value_or_unit<std::invoke_result_t<F&, Args...>>>{};
  } else {
    static_assert(std::invocable<F&, Args...>,
                  "pyarallel: the function must be callable as fn(item, task) or fn(item) with an item of this range "
                  "(parallel_starmap: with the elements of its tuples)");
    return std::type_identity<std::monostate>{};
  }
}

template <class F, class Tuple, std::size_t... I>
auto apply_result(std::index_sequence<I...>) {
  return call_result<F, decltype(std::get<I>(std::declval<Tuple>()))...>();
}

template <class F, class Tuple>
inline constexpr bool apply_takes_task = []<std::size_t... I>(std::index_sequence<I...>) {
  return takes_task<F, decltype(std::get<I>(std::declval<Tuple>()))...>;
}(std::make_index_sequence<std::tuple_size_v<std::remove_cvref_t<Tuple>>>{});

/// fn as a starmap calls it.
template <class F>
struct TupleFunction {
  F& fn;

  template <class Item>
  static constexpr bool takes_task = apply_takes_task<F, Item>;

  template <class Item>
  decltype(auto) operator()(Item& item, const Task& task) {
    return apply_item(fn, task, item);
  }
};

template <class Tuple>
consteval auto tuple_indices() {
  constexpr bool is_tuple = requires { std::tuple_size<Tuple>::value; };
  static_assert(is_tuple, "pyarallel: parallel_starmap takes a range of tuples or pairs");
  if constexpr (is_tuple) {
    return std::make_index_sequence<std::tuple_size_v<Tuple>>{};
  } else {
    return std::index_sequence<>{};
  }
}

}  // namespace detail

/// The type of an item of a range.
template <std::ranges::input_range Items>
using item_t = std::ranges::range_value_t<Items>;

/// What fn is called with: the range's own lvalue (T& or const T&), else const T& to a pulled item,
/// which is kept until its last attempt ended.
template <std::ranges::input_range Items>
using item_arg_t = std::conditional_t<std::is_lvalue_reference_v<std::ranges::range_reference_t<Items>>,
                                      std::ranges::range_reference_t<Items>, const item_t<Items>&>;

/// What a map of F over Items gives for each item: F's result without reference and const;
/// std::monostate for void.
template <class F, std::ranges::input_range Items>
using result_t = typename decltype(detail::call_result<F, item_arg_t<Items>>())::type;

/// The same for parallel_starmap.
template <class F, std::ranges::input_range Items>
using starmap_result_t =
    typename decltype(detail::apply_result<F, item_arg_t<Items>>(detail::tuple_indices<item_t<Items>>()))::type;

}  // namespace pyarallel

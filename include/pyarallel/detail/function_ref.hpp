// A reference to a callable: what std::function is, without the copy and the allocation.
#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace pyarallel::detail {

template <class Signature>
class FunctionRef;

template <class Answer, class... Args>
class FunctionRef<Answer(Args...)> {
 public:
  /// `f` must outlive this.
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  explicit(false) FunctionRef(F&& f) noexcept
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> Answer {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  Answer operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  Answer (*call_)(void*, Args...);
};

}  // namespace pyarallel::detail

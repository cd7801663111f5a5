// Memory that a test shares with the processes it forks.
#pragma once

#include <new>

#include "pyarallel/detail/process/shared_memory.hpp"

namespace support {

/// An object that the test and the processes forked later see alike. It is never destroyed.
template <class T>
class Shared {
 public:
  T* operator->() const { return object_; }
  T& operator*() const { return *object_; }

 private:
  pyarallel::detail::SharedMemory memory_{sizeof(T)};
  T* object_ = ::new (memory_.data()) T{};
};

}  // namespace support

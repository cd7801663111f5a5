// Values as bytes.
#pragma once

#include "pyarallel/codec.hpp"

namespace support {

template <class T>
pyarallel::Bytes encoded(const T& value) {
  pyarallel::Bytes bytes;
  pyarallel::Codec<T>::encode(value, bytes);
  return bytes;
}

}  // namespace support

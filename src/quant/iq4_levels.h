// The non-uniform levels of IQ4_NL and IQ4_XS: the nearest one.
#pragma once

#include "quant/blocks.h"

namespace still {

inline int nearest_iq4_index(float x) {
  int low = 0, high = 15;  // x lies between levels low and high
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (x < static_cast<float>(kIq4Values[middle]) ? high : low) = middle;
  }
  return x - static_cast<float>(kIq4Values[low]) < static_cast<float>(kIq4Values[high]) - x ? low : high;
}

inline float nearest_iq4_level(float x) {
  return static_cast<float>(kIq4Values[nearest_iq4_index(x)]);
}

}  // namespace still

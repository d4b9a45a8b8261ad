#include "engine/stats.h"

#include <algorithm>

namespace still {

void Histogram::observe(double seconds, std::int64_t times) {
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
  counts[static_cast<std::size_t>(bound - kBounds.begin())] += times;
  n += times;
  sum += seconds * static_cast<double>(times);
}

}  // namespace still

// f32 activations to int8 blocks.
#include <cmath>
#include <limits>

#include "kernels/ref/ref_kernels.h"

namespace still::ref {

void quantize_rows(const float* x, std::int64_t x_stride, std::int64_t n_rows, std::int64_t k, std::int32_t block,
                   std::int8_t* q, float* scale, std::int16_t* sums) {
  for (std::int64_t row = 0; row < n_rows; ++row, x += x_stride) {
    for (std::int64_t begin = 0; begin < k; begin += block) {
      float amax = 0;
      bool finite = true;
      for (std::int64_t i = begin; i < begin + block; ++i) {
        finite = finite && std::isfinite(x[i]);
        amax = std::fmax(amax, std::fabs(x[i]));
      }
      const bool empty = !finite || amax < 0x1.0p-120f;  // below it 127 / amax could overflow
      const float inv = empty ? 0.0f : 127.0f / amax;
      *scale++ = !finite ? std::numeric_limits<float>::quiet_NaN() : empty ? 0.0f : amax / 127.0f;
      for (std::int64_t i = begin; i < begin + block; i += 16) {
        int sum = 0;
        for (std::int64_t j = i; j < i + 16; ++j) {
          const int rounded = empty ? 0 : static_cast<int>(std::nearbyintf(x[j] * inv));
          *q++ = static_cast<std::int8_t>(rounded);
          sum += rounded;
        }
        *sums++ = static_cast<std::int16_t>(sum);
      }
    }
  }
}

}  // namespace still::ref

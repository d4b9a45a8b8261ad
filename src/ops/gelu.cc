#include "ops/gelu.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "ops/parallel.h"

namespace still {

void activate(Exec& exec, TensorView x, Activation activation) {
  const std::int64_t n = x.row_size();
  constexpr float kInvSqrt2 = 1.0f / std::numbers::sqrt2_v<float>;
  constexpr float kTanhScale = 0.7978845608f;  // sqrt(2 / pi)
  // Each element costs tens of operations.
  parallel_rows(exec, x.rows(), n * 8, [&](std::int64_t begin, std::int64_t end) {
    float* values = x.f32();
    for (std::int64_t i = begin * n; i < end * n; ++i) {
      const float v = values[i];
      switch (activation) {
        case Activation::kGelu:
          values[i] = 0.5f * v * (1.0f + std::erf(v * kInvSqrt2));
          break;
        case Activation::kGeluTanh:
          values[i] = 0.5f * v * (1.0f + std::tanh(kTanhScale * (v + 0.044715f * v * v * v)));
          break;
        case Activation::kRelu:
          values[i] = std::max(v, 0.0f);
          break;
      }
    }
  });
}

}  // namespace still

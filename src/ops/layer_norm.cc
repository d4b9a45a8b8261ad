#include "ops/layer_norm.h"

#include <cmath>

#include "base/check.h"
#include "ops/parallel.h"

namespace still {

void layer_norm(Exec& exec, TensorView y, TensorView x, TensorView residual, TensorView w, TensorView b, float eps) {
  const std::int64_t n = x.row_size();
  STILL_DCHECK(y.shape == x.shape && w.shape.n_elements() == n && b.shape.n_elements() == n);
  STILL_DCHECK(residual.data == nullptr || residual.shape == x.shape);
  const float* weights = w.f32();
  const float* biases = b.f32();
  parallel_rows(exec, x.rows(), 2 * n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const float* in = x.f32() + row * n;
      const float* add = residual.data != nullptr ? residual.f32() + row * n : nullptr;
      float* out = y.f32() + row * n;
      double sum = 0, squares = 0;
      for (std::int64_t i = 0; i < n; ++i) {
        out[i] = add != nullptr ? in[i] + add[i] : in[i];
        sum += static_cast<double>(out[i]);
      }
      const double mean = sum / static_cast<double>(n);
      for (std::int64_t i = 0; i < n; ++i) {
        const double distance = static_cast<double>(out[i]) - mean;
        squares += distance * distance;
      }
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(n) + static_cast<double>(eps));
      for (std::int64_t i = 0; i < n; ++i)
        out[i] = static_cast<float>((static_cast<double>(out[i]) - mean) * scale) * weights[i] + biases[i];
    }
  });
}

}  // namespace still

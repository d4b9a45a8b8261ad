#include "ops/rms_norm.h"

#include "base/check.h"
#include "ops/cuda_exec.h"
#include "ops/parallel.h"

namespace still {

void rms_norm(Exec& exec, TensorView y, TensorView x, TensorView w, float eps) {
  const std::int64_t n = x.row_size();
  STILL_DCHECK(y.shape == x.shape && w.shape.n_elements() == n);
  if (exec.cuda() != nullptr) return exec.cuda()->rms_norm(y, x, w, eps);
  const float* x_rows = x.f32();
  float* y_rows = y.f32();
  parallel_rows(exec, x.rows(), n, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row)
      exec.kernels().rms_norm(x_rows + row * n, w.f32(), y_rows + row * n, n, eps);
  });
}

}  // namespace still

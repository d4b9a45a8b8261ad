#include "ops/logits.h"

#include <cstring>

#include "base/check.h"
#include "ops/comm.h"
#include "ops/cuda_exec.h"
#include "ops/linear.h"

namespace still {

void logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
            TensorView gathered) {
  const auto n_rows = static_cast<std::int64_t>(rows.size());
  if (n_rows == 0) return;
  const std::int64_t hidden_size = x.row_size();
  const bool is_part = head.n_out != y.row_size();  // the rank has some rows of the head
  STILL_DCHECK(y.rows() == n_rows && (!is_part || exec.comm() != nullptr));
  STILL_DCHECK(gathered.rows() >= n_rows && gathered.row_size() == hidden_size);
  if (exec.cuda() != nullptr) return exec.cuda()->logits(y, x, head, gathered);
  for (std::int64_t i = 0; i < n_rows; ++i) {
    const std::int64_t row = rows[static_cast<std::size_t>(i)];
    STILL_DCHECK(row >= 0 && row < x.rows());
    std::memcpy(gathered.f32() + i * hidden_size, x.f32() + row * hidden_size,
                static_cast<std::size_t>(hidden_size) * sizeof(float));
  }
  const TensorView input{gathered.data, DType::kF32, {n_rows, hidden_size}};
  if (is_part) {
    linear(exec, input, {{.y = {exec.comm()->columns(), DType::kF32, {n_rows, head.n_out}}, .w = &head, .bias = {}}});
    exec.comm()->gather_columns(nullptr, y.f32(), n_rows);
    return;
  }
  linear(exec, input, {{.y = y, .w = &head, .bias = {}}});
}

}  // namespace still

#include "ops/logits.h"

#include <cstring>

#include "base/check.h"
#include "ops/comm.h"
#include "ops/cuda_exec.h"
#include "ops/linear.h"

namespace still {

void take_rows(Exec& exec, TensorView y, TensorView x, std::span<const std::int32_t> rows) {
  STILL_DCHECK(y.rows() == static_cast<std::int64_t>(rows.size()) && y.row_size() == x.row_size());
  if (exec.cuda() != nullptr) return exec.cuda()->take_wanted(y, x);
  const std::int64_t width = x.row_size();
  for (std::int64_t i = 0; i < y.rows(); ++i) {
    const std::int64_t row = rows[static_cast<std::size_t>(i)];
    STILL_DCHECK(row >= 0 && row < x.rows());
    std::memcpy(y.f32() + i * width, x.f32() + row * width, static_cast<std::size_t>(width) * sizeof(float));
  }
}

void logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
            TensorView gathered) {
  const std::int64_t n_rows = y.rows();
  if (n_rows == 0) return;
  const std::int64_t hidden_size = x.row_size();
  const bool is_part = head.n_out != y.row_size();  // the rank has some rows of the head
  STILL_DCHECK(!is_part || exec.comm() != nullptr);
  STILL_DCHECK(rows.empty() ? x.rows() == n_rows : static_cast<std::int64_t>(rows.size()) == n_rows);
  STILL_DCHECK(gathered.rows() >= n_rows && gathered.row_size() == hidden_size);
  if (exec.cuda() != nullptr) return exec.cuda()->logits(y, x, rows.empty(), head, gathered);
  const TensorView input = rows.empty() ? x : TensorView{gathered.data, DType::kF32, {n_rows, hidden_size}};
  if (!rows.empty()) take_rows(exec, input, x, rows);
  if (is_part) {
    linear(exec, input, {{.y = {exec.comm()->columns(), DType::kF32, {n_rows, head.n_out}}, .w = &head, .bias = {}}});
    exec.comm()->gather_columns(nullptr, y.f32(), n_rows);
    return;
  }
  linear(exec, input, {{.y = y, .w = &head, .bias = {}}});
}

void best_logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
                 TensorView gathered, const Screening& screening) {
  STILL_DCHECK(exec.cuda() == nullptr && exec.comm() == nullptr);
  const std::int64_t n_rows = y.rows();
  if (n_rows == 0) return;
  TensorView input = x;
  if (!rows.empty()) {
    input = {gathered.data, DType::kF32, {n_rows, x.row_size()}};
    take_rows(exec, input, x, rows);
  }
  if (screening.head.best_only(exec, y, input, head, screening.norm, screening.best)) return;
  linear(exec, input, {{.y = y, .w = &head, .bias = {}}});
}

}  // namespace still

#include "ops/copy.h"

#include <cstring>

#include "ops/cuda_exec.h"

namespace still {

void copy_from_host(Exec& exec, TensorView y, const float* x) {
  const std::int64_t bytes = y.rows() * y.row_size() * static_cast<std::int64_t>(sizeof(float));
  if (exec.cuda() != nullptr) {
    exec.cuda()->stream().copy_to_device(y.data, x, bytes);
    exec.cuda()->forget_copies(nullptr);
    return;
  }
  std::memcpy(y.data, x, static_cast<std::size_t>(bytes));
}

}  // namespace still

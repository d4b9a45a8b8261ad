#include "ops/embed.h"

#include "base/check.h"
#include "kernels/packing.h"
#include "ops/cuda_exec.h"
#include "ops/parallel.h"
#include "quant/registry.h"

namespace still {

void embed(Exec& exec, TensorView y, const EmbeddingTable& table, std::span<const TokenId> ids) {
  const auto n_tokens = static_cast<std::int64_t>(ids.size());
  STILL_DCHECK(y.rows() == n_tokens && (n_tokens == 0 || y.row_size() == table.row_size));
  if (exec.cuda() != nullptr) return exec.cuda()->embed(y, table);
  float* values = y.f32();
  const QuantFormat* format = find_format(table.dtype);
  const bool from_packed = table.data == nullptr;
  STILL_DCHECK(from_packed ? table.packed != nullptr && table.packed->k == table.row_size : format != nullptr);
  const std::int64_t row_bytes = from_packed ? 0 : dtype_bytes(table.dtype, table.row_size);
  parallel_rows(exec, n_tokens, table.row_size, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t id = ids[static_cast<std::size_t>(token)];
      STILL_DCHECK(id >= 0 && id < table.n_rows);
      float* row = values + token * table.row_size;
      if (from_packed) {
        decode_packed_row(table.packed->format, table.packed->packed, table.packed->panel_bytes, table.row_size, id,
                          row);
      } else {
        format->decode_row(reinterpret_cast<const std::uint8_t*>(table.data) + id * row_bytes, row, table.row_size);
      }
    }
  });
}

}  // namespace still

// Weight: a matrix packed for the device, or a vector of f32. The model owns the memory.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/kernel_table.h"
#include "tensor/tensor.h"

namespace still {

// y = W x with W [n_out, k], packed in panels (kernels/packing.h; on a GPU kernels/cuda_packing.h).
struct Weight {
  std::string name;  // canonical, for messages
  PackedFormat format = PackedFormat::kF32;
  std::int64_t n_out = 0, k = 0;
  const std::uint8_t* packed = nullptr;
  std::int64_t panel_bytes = 0;
  bool is_part = false;  // the rank has some columns: its products are parts of a sum over ranks (ops/comm.h)
  explicit operator bool() const { return packed != nullptr; }
};

// A table whose rows are looked up: as in the file (a mapped file's bytes, or f32 rows), not packed.
struct EmbeddingTable {
  std::string name;
  DType dtype = DType::kF32;
  std::int64_t n_rows = 0, row_size = 0;
  const std::byte* data = nullptr;
  // When the table lives only as the packed head (tied embeddings), rows are read from it.
  const Weight* packed = nullptr;
  // The rank has rows [first_row, first_row + packed->n_out) only; the others' are zeros in its part of a sum.
  bool is_part = false;
  std::int64_t first_row = 0;
};

}  // namespace still

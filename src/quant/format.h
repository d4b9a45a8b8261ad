// A weight format of ggml files: how its rows become f32 and how f32 becomes such rows. One file per format exports one
// QuantFormat; registry.cc lists them.
#pragma once

#include <cstdint>

#include "tensor/dtype.h"

namespace still {

struct QuantFormat {
  DType dtype;
  // row: dtype_bytes(dtype, n) bytes as in a file, any alignment; values: [n]. n is a multiple of the block size.
  // The float operations are those of ggml's dequantize_row_*: d is multiplied by the sub-block's scale first.
  void (*decode_row)(const std::uint8_t* row, float* values, std::int64_t n);
  // The inverse, by least squares on the values alone (no importance); values must be finite. The 32-wide formats of
  // plain rounding give the same bytes as ggml's quantize_row_*_ref.
  void (*encode_row)(const float* values, std::uint8_t* row, std::int64_t n);
};

}  // namespace still

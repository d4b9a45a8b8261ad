// Sizes of packed weights: plan/ and the loader ask here, so that a plan is what the loader allocates.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/kernel_table.h"
#include "tensor/dtype.h"

namespace still {

// The packed format that computes a file's type; nullopt: not computed by this program (refused by name at load).
std::optional<PackedFormat> packed_format(DType type);
DType packed_dtype(PackedFormat format);

std::int64_t packed_tile_k(PackedFormat format);       // weights of a row in a tile: 1, 32 or 256
std::int64_t packed_tile_bytes(PackedFormat format);   // bytes of a tile of 16 rows
std::int32_t activation_block(PackedFormat format);    // 32 or 256; 0 for float formats
std::int64_t packed_quant_bytes(PackedFormat format);  // of a tile: its quants; the rest of the tile is scales

// Where the quants of a panel of n_tiles begin: after all tiles' scales, 64-byte aligned. Scales come first so that a
// kernel which asks for a panel's scales as it begins reads memory front to back (docs/cpu-kernels.md).
inline std::int64_t packed_quants_at(PackedFormat format, std::int64_t n_tiles) {
  return (n_tiles * (packed_tile_bytes(format) - packed_quant_bytes(format)) + 63) / 64 * 64;
}
// Bytes of the panel of 16 rows: all tiles' scales, then all tiles' quants; every panel starts 64-byte aligned. k must
// be a multiple of packed_tile_k.
inline std::int64_t packed_panel_bytes(PackedFormat format, std::int64_t k) {
  return (k / packed_tile_k(format) * packed_tile_bytes(format) + 63) / 64 * 64;
}
inline std::int64_t packed_bytes(PackedFormat format, std::int64_t n_out, std::int64_t k) {
  return (n_out + kPanelRows - 1) / kPanelRows * packed_panel_bytes(format, k);
}

// Row `row` of a packed matrix as f32 [k]: the same bits as QuantFormat::decode_row gives for the file's row.
void decode_packed_row(PackedFormat format, const std::uint8_t* packed, std::int64_t panel_bytes, std::int64_t k,
                       std::int64_t row, float* values);

}  // namespace still

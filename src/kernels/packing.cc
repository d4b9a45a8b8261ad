// Sizes of packed tiles (docs/cpu-kernels.md), and rows read back from them.
#include "kernels/packing.h"

#include "base/check.h"
#include "kernels/ref/packed_block.h"

namespace still {

namespace {
struct Layout {
  PackedFormat format;
  DType dtype;
  std::int64_t tile_k;
  std::int64_t quant_bytes;  // of a tile of 16 rows
  std::int64_t scale_bytes;
};
constexpr Layout kLayouts[kPackedFormatCount] = {
    {PackedFormat::kF32, DType::kF32, 1, 64, 0},
    {PackedFormat::kF16, DType::kF16, 1, 32, 0},
    {PackedFormat::kBF16, DType::kBF16, 1, 32, 0},
    {PackedFormat::kQ4_0, DType::kQ4_0, 32, 4 * 64, 32},
    {PackedFormat::kQ4_1, DType::kQ4_1, 32, 4 * 64, 64},
    {PackedFormat::kQ5_0, DType::kQ5_0, 32, 5 * 64, 32},
    {PackedFormat::kQ5_1, DType::kQ5_1, 32, 5 * 64, 64},
    {PackedFormat::kQ8_0, DType::kQ8_0, 32, 8 * 64, 32},
    {PackedFormat::kIQ4_NL, DType::kIQ4_NL, 32, 4 * 64, 32},
    {PackedFormat::kQ2_K, DType::kQ2_K, 256, 16 * 64, 2 * 256 + 64},
    {PackedFormat::kQ3_K, DType::kQ3_K, 256, 24 * 64, 256 + 32},
    {PackedFormat::kQ4_K, DType::kQ4_K, 256, 32 * 64, 2 * 128 + 64},
    {PackedFormat::kQ5_K, DType::kQ5_K, 256, 40 * 64, 2 * 128 + 64},
    {PackedFormat::kQ6_K, DType::kQ6_K, 256, 48 * 64, 256 + 32},
    {PackedFormat::kIQ4_XS, DType::kIQ4_XS, 256, 32 * 64, 128 + 32},
};

constexpr bool in_enum_order() {
  for (int i = 0; i < kPackedFormatCount; ++i)
    if (static_cast<int>(kLayouts[i].format) != i) return false;
  return true;
}
static_assert(in_enum_order());

const Layout& layout(PackedFormat format) {
  return kLayouts[static_cast<int>(format)];
}
}  // namespace

std::optional<PackedFormat> packed_format(DType type) {
  for (const Layout& row : kLayouts)
    if (row.dtype == type) return row.format;
  return std::nullopt;
}

DType packed_dtype(PackedFormat format) {
  return layout(format).dtype;
}
std::int64_t packed_tile_k(PackedFormat format) {
  return layout(format).tile_k;
}
std::int64_t packed_quant_bytes(PackedFormat format) {
  return layout(format).quant_bytes;
}
std::int64_t packed_tile_bytes(PackedFormat format) {
  return layout(format).quant_bytes + layout(format).scale_bytes;
}
std::int32_t activation_block(PackedFormat format) {
  const std::int64_t tile_k = layout(format).tile_k;
  return tile_k == 1 ? 0 : static_cast<std::int32_t>(tile_k);
}

void decode_packed_row(PackedFormat format, const std::uint8_t* packed, std::int64_t panel_bytes, std::int64_t k,
                       std::int64_t row, float* values) {
  const std::uint8_t* panel = packed + row / kPanelRows * panel_bytes;
  const int lane = static_cast<int>(row % kPanelRows);
  if (activation_block(format) == 0) {
    for (std::int64_t i = 0; i < k; ++i) values[i] = packed_float(format, panel, i, lane);
    return;
  }
  const std::int64_t n_tiles = k / packed_tile_k(format);
  for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
    const PackedBlock block = unpack_block(format, panel, n_tiles, tile, lane);
    for (int i = 0; i < block.size; ++i) {
      const int sub = i / block.sub_size;
      const float scale = block.size == 32 ? block.d : block.d * static_cast<float>(block.scale[sub]);
      float value = scale * static_cast<float>(block.w[i]);
      if (block.has_min) value += block.size == 32 ? block.m : -(block.m * static_cast<float>(block.min[sub]));
      *values++ = value;
    }
  }
}

}  // namespace still

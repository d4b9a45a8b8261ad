// Sizes of packed tiles (docs/cpu-kernels.md), and rows read back from them.
#include "kernels/packing.h"

#include <cstring>

#include "base/check.h"
#include "kernels/ref/packed_block.h"
#include "tensor/float16.h"

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

namespace {
// n vectors' pieces of a row, side by side.
template <int kVectors>
void gather_pieces(const std::uint8_t* quants, int lane, std::uint8_t* bytes) {
  for (int v = 0; v < kVectors; ++v) std::memcpy(bytes + 4 * v, quants + 64 * v + 4 * lane, 4);
}
float read_f16(const std::uint8_t* at) {
  std::uint16_t bits;
  std::memcpy(&bits, at, 2);
  return f16_to_f32(bits);
}

void decode_tile_q8_0(const std::uint8_t* quants, const std::uint8_t* scales, int lane, float* values) {
  std::uint8_t bytes[32];
  gather_pieces<8>(quants, lane, bytes);
  const float d = read_f16(scales + 2 * lane);
  for (int i = 0; i < 32; ++i) values[i] = d * static_cast<float>(bytes[i] - 128);
}

void decode_tile_q6_k(const std::uint8_t* quants, const std::uint8_t* scales, int lane, float* values) {
  const float d = read_f16(scales + 256 + 2 * lane);
  for (int step = 0; step < 4; ++step) {
    std::uint8_t bytes[48];
    gather_pieces<12>(quants + step * 12 * 64, lane, bytes);
    for (int part = 0; part < 4; ++part) {
      const int sub = step / 2 * 8 + part * 2 + step % 2;
      const auto scale = static_cast<std::int8_t>(scales[(sub / 2 * kPanelRows + lane) * 2 + sub % 2]);
      const float factor = d * static_cast<float>(scale);
      const std::uint8_t *low = bytes + part % 2 * 16, *high = bytes + 32;
      const int low_shift = part < 2 ? 0 : 4, high_shift = 2 * part;
      for (int i = 0; i < 16; ++i) {
        const int w = (low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4;
        values[sub * 16 + i] = factor * static_cast<float>(w - 32);
      }
    }
  }
}
}  // namespace

void decode_packed_panel(PackedFormat format, const std::uint8_t* panel, std::int64_t k, float* values) {
  if (format != PackedFormat::kQ8_0 && format != PackedFormat::kQ6_K) {
    for (int lane = 0; lane < kPanelRows; ++lane) decode_packed_row(format, panel, 0, k, lane, values + lane * k);
    return;
  }
  const std::int64_t tile_k = packed_tile_k(format), n_tiles = k / tile_k, quant_bytes = packed_quant_bytes(format);
  const std::uint8_t* quants = panel + packed_quants_at(format, n_tiles);
  const auto decode = format == PackedFormat::kQ8_0 ? decode_tile_q8_0 : decode_tile_q6_k;
  for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
    const std::uint8_t* scales = panel + tile * (packed_tile_bytes(format) - quant_bytes);
    for (int lane = 0; lane < kPanelRows; ++lane)
      decode(quants + tile * quant_bytes, scales, lane, values + lane * k + tile * tile_k);
  }
}

}  // namespace still

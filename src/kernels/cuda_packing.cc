#include "kernels/cuda_packing.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/packing.h"
#include "kernels/ref/packed_block.h"
#include "tensor/float16.h"

namespace still {

bool is_cuda_quantized(PackedFormat format) {
  return !is_cuda_f8(format) && format != kCudaQ8F16 && activation_block(format) != 0;
}

bool is_cuda_f8(PackedFormat format) {
  return format == kCudaF8Row || format == kCudaF8Block;
}

PackedFormat cuda_f16_form(PackedFormat format) {
  return format == PackedFormat::kQ8_0 || format == PackedFormat::kIQ4_NL ? kCudaQ8F16 : format;
}

PackedFormat cuda_f8_format(PackedFormat format, std::int64_t k) {
  return !is_cuda_f8(format) && activation_block(format) == 0 && k % 16 == 0 ? kCudaF8Row : format;
}

std::int64_t cuda_f8_scales(PackedFormat format, std::int64_t n_out, std::int64_t k) {
  return format == kCudaF8Row ? n_out : (n_out + 127) / 128 * ((k + 127) / 128);
}

CudaQuantLayout cuda_quant_layout(PackedFormat format) {
  switch (format) {
    case PackedFormat::kQ4_0:
      return {.bits = 4, .sub = 32, .has_min = false, .block = 32};
    case PackedFormat::kQ4_1:
      return {.bits = 4, .sub = 32, .has_min = true, .block = 32};
    case PackedFormat::kQ5_0:
      return {.bits = 5, .sub = 32, .has_min = false, .block = 32};
    case PackedFormat::kQ5_1:
      return {.bits = 5, .sub = 32, .has_min = true, .block = 32};
    case PackedFormat::kQ8_0:
    case PackedFormat::kIQ4_NL:
      return {.bits = 8, .sub = 32, .has_min = false, .block = 32};
    case PackedFormat::kQ2_K:
      return {.bits = 4, .sub = 16, .has_min = true, .block = 256};
    case PackedFormat::kQ3_K:
      return {.bits = 4, .sub = 16, .has_min = false, .block = 256};
    case PackedFormat::kQ4_K:
      return {.bits = 4, .sub = 32, .has_min = true, .block = 256};
    case PackedFormat::kQ5_K:
      return {.bits = 5, .sub = 32, .has_min = true, .block = 256};
    case PackedFormat::kQ6_K:
      return {.bits = 6, .sub = 16, .has_min = false, .block = 256};
    case PackedFormat::kIQ4_XS:
      return {.bits = 8, .sub = 32, .has_min = false, .block = 256};
    default:
      STILL_CHECK(!"not a quantised format");
  }
}

std::int64_t cuda_row_elements(PackedFormat format, std::int64_t k) {
  return is_cuda_quantized(format) ? k : (k + 7) / 8 * 8;
}

std::int64_t cuda_panel_bytes(PackedFormat format, std::int64_t k) {
  if (is_cuda_f8(format)) return kPanelRows * k;
  if (!is_cuda_quantized(format))
    return kPanelRows * cuda_row_elements(format, k) * (format == PackedFormat::kF32 ? 4 : 2);
  const CudaQuantLayout layout = cuda_quant_layout(format);
  const std::int64_t n_tiles = k / layout.block;
  const std::int64_t n_scales = layout.block == 32 ? (n_tiles + 7) / 8 * 8 : n_tiles;
  return n_tiles * layout.quant_bytes() + n_scales * layout.scale_bytes();
}

std::int64_t cuda_packed_bytes(PackedFormat format, std::int64_t n_out, std::int64_t k) {
  if (is_cuda_f8(format)) return n_out * k + 4 * cuda_f8_scales(format, n_out, k);
  // Float rows are not padded to whole panels, so that matrices which follow one another are one matrix.
  if (!is_cuda_quantized(format)) return cuda_panel_bytes(format, k) / kPanelRows * n_out;
  return (n_out + kPanelRows - 1) / kPanelRows * cuda_panel_bytes(format, k);
}

namespace {

void pack_floats(PackedFormat format, const std::uint8_t* cpu_panel, std::int64_t k, std::uint8_t* gpu_panel) {
  const std::int64_t stride = cuda_row_elements(format, k);
  for (int row = 0; row < kPanelRows; ++row) {
    for (std::int64_t i = 0; i < stride; ++i) {
      const float value = i < k ? packed_float(format, cpu_panel, i, row) : 0.0f;
      if (format == PackedFormat::kF32) {
        std::memcpy(gpu_panel + (row * stride + i) * 4, &value, 4);
      } else {
        const std::uint16_t bits = f32_to_bf16(value);
        std::memcpy(gpu_panel + (row * stride + i) * 2, &bits, 2);
      }
    }
  }
}

// Where weight `i` (0..31) of a group of 32 lies: which of the 4 lanes of its row, which half (register pair), which
// byte.
struct Place {
  int t, half, byte;
};
Place place_of(int i, int sub) {
  if (sub == 32) return {i / 8, i % 8 / 4, i % 4};
  return {i % 16 / 4, i / 16, i % 4};
}

// One row's block into a tile: `quants` of the tile, `scales` of the tile or, 32 wide, of its eight; `row` 0..15.
void put_block(const CudaQuantLayout& layout, const PackedBlock& block, std::int64_t tile, int row,
               std::uint8_t* quants, std::uint8_t* scales) {
  const int n_groups = layout.block / 32;
  const int g = row % 8, upper = row / 8;
  for (int group = 0; group < n_groups; ++group) {
    for (int i = 0; i < 32; ++i) {
      const Place place = place_of(i, layout.sub);
      const int lane = 4 * g + place.t, w = block.w[32 * group + i];
      if (layout.bits == 8) {
        quants[group * 512 + lane * 16 + (2 * place.half + upper) * 4 + place.byte] = static_cast<std::uint8_t>(w);
        continue;
      }
      // Words of 4 bytes: low nibbles are the first half's, high nibbles the second's.
      std::uint8_t* low = layout.block == 32
                              ? quants + lane * 8 + upper * 4 + place.byte
                              : quants + group / 2 * 512 + lane * 16 + group % 2 * 8 + upper * 4 + place.byte;
      *low = static_cast<std::uint8_t>(*low | ((w & 15) << (4 * place.half)));
      const int reg = 2 * place.half + upper;
      std::uint8_t* high = quants + 16 * layout.block / 2;
      if (layout.bits == 5 && layout.block == 32) {
        const int bit = 4 * reg + place.byte;
        high[lane * 2 + bit / 8] = static_cast<std::uint8_t>(high[lane * 2 + bit / 8] | (((w >> 4) & 1) << (bit % 8)));
      } else if (layout.bits == 5) {
        std::uint8_t& byte = high[lane * 16 + group / 2 * 4 + place.byte];
        byte = static_cast<std::uint8_t>(byte | (((w >> 4) & 1) << (4 * (group % 2) + reg)));
      } else if (layout.bits == 6) {
        std::uint8_t& byte = high[group / 4 * 512 + lane * 16 + group % 4 * 4 + place.byte];
        byte = static_cast<std::uint8_t>(byte | (((w >> 4) & 3) << (2 * reg)));
      }
    }
  }
  const std::uint16_t d = f32_to_f16(block.d), m = f32_to_f16(block.m);
  if (layout.block == 32) {
    std::uint8_t* halves = scales + row * (layout.has_min ? 32 : 16);
    const int i = static_cast<int>(tile % 8);
    std::memcpy(halves + 2 * cuda_scale_place(8, layout.has_min, false, i), &d, 2);
    if (layout.has_min) std::memcpy(halves + 2 * cuda_scale_place(8, true, true, i), &m, 2);
    return;
  }
  if (layout.has_min) {
    std::memcpy(scales + row * 4, &d, 2);
    std::memcpy(scales + row * 4 + 2, &m, 2);
  } else {
    std::memcpy(scales + row * 4, &block.d, 4);
  }
  const int n_sub = 256 / layout.sub, row_bytes = n_sub * (layout.has_min ? 2 : 1);
  for (int sub = 0; sub < n_sub; ++sub) {
    std::uint8_t* bytes = scales + 64 + row * row_bytes;
    bytes[cuda_scale_place(n_sub, layout.has_min, false, sub)] = static_cast<std::uint8_t>(block.scale[sub]);
    if (layout.has_min) bytes[cuda_scale_place(n_sub, true, true, sub)] = static_cast<std::uint8_t>(block.min[sub]);
  }
}

// The nearest e4m3 of a value of at most 448, ties to even.
std::uint8_t to_e4m3(float value) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, 4);
  const std::uint32_t sign = bits >> 31 << 7;
  const float magnitude = std::fabs(value);
  if (magnitude < 0x1p-6f)
    return static_cast<std::uint8_t>(sign | static_cast<std::uint32_t>(std::rint(magnitude * 512)));
  bits &= 0x7fffffffu;
  const std::uint32_t code = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(sign | std::min(code, 0x7eu));
}

}  // namespace

float cuda_pack_f8_row(const float* row, std::int64_t n, std::uint8_t* out) {
  float most = 0;
  for (std::int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(row[i]));
  const float scale = most > 0 ? most / 448 : 1.0f;
  for (std::int64_t i = 0; i < n; ++i) out[i] = to_e4m3(row[i] / scale);
  return scale;
}

void cuda_pack_panel(PackedFormat format, const std::uint8_t* cpu_panel, std::int64_t k, std::uint8_t* gpu_panel) {
  if (!is_cuda_quantized(format)) {
    pack_floats(format, cpu_panel, k, gpu_panel);
    return;
  }
  const CudaQuantLayout layout = cuda_quant_layout(format);
  const std::int64_t n_tiles = k / layout.block;
  std::memset(gpu_panel, 0, static_cast<std::size_t>(cuda_panel_bytes(format, k)));
  for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
    for (int row = 0; row < kPanelRows; ++row) {
      const PackedBlock block = unpack_block(format, cpu_panel, n_tiles, tile, row);
      const std::int64_t first = layout.block == 32 ? tile / 8 * 8 : tile;
      put_block(layout, block, tile, row, gpu_panel + tile * layout.quant_bytes(),
                gpu_panel + n_tiles * layout.quant_bytes() + first * layout.scale_bytes());
    }
  }
}

}  // namespace still

#include "kernels/cuda_packing.h"

#include <cstring>

#include "base/check.h"
#include "kernels/packing.h"
#include "kernels/ref/packed_block.h"
#include "tensor/float16.h"

namespace still {

bool is_cuda_quantized(PackedFormat format) {
  return activation_block(format) != 0;
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
  if (!is_cuda_quantized(format))
    return kPanelRows * cuda_row_elements(format, k) * (format == PackedFormat::kF32 ? 4 : 2);
  const CudaQuantLayout layout = cuda_quant_layout(format);
  return k / layout.block * (layout.quant_bytes() + layout.scale_bytes());
}

std::int64_t cuda_packed_bytes(PackedFormat format, std::int64_t n_out, std::int64_t k) {
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

// One row's block into a tile: `quants` and `scales` of the tile, `row` 0..15.
void put_block(const CudaQuantLayout& layout, const PackedBlock& block, int row, std::uint8_t* quants,
               std::uint8_t* scales) {
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
    if (layout.has_min) {
      std::memcpy(scales + row * 4, &d, 2);
      std::memcpy(scales + row * 4 + 2, &m, 2);
    } else {
      std::memcpy(scales + row * 2, &d, 2);
    }
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
    scales[64 + row * row_bytes + sub] = static_cast<std::uint8_t>(block.scale[sub]);
    if (layout.has_min) scales[64 + row * row_bytes + n_sub + sub] = static_cast<std::uint8_t>(block.min[sub]);
  }
}

}  // namespace

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
      put_block(layout, block, row, gpu_panel + tile * layout.quant_bytes(),
                gpu_panel + n_tiles * layout.quant_bytes() + tile * layout.scale_bytes());
    }
  }
}

}  // namespace still

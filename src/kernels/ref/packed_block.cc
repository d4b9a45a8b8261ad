#include "kernels/ref/packed_block.h"

#include <cstring>

#include "base/check.h"
#include "kernels/packing.h"
#include "quant/blocks.h"
#include "tensor/float16.h"

namespace still {

namespace {
// A tile seen from one of its 16 rows.
struct TileRow {
  const std::uint8_t* quants;
  const std::uint8_t* scales;
  int lane;

  // Byte `i` of the block's quants: vector i / 4 holds 4 bytes of each row.
  std::uint8_t quant(int i) const { return quants[i / 4 * 64 + lane * 4 + i % 4]; }
  float f16(int offset) const {
    std::uint16_t bits;
    std::memcpy(&bits, scales + offset + 2 * lane, 2);
    return f16_to_f32(bits);
  }
  // Sub-block `sub` of pair-interleaved scales [n / 2][16][2].
  std::uint8_t pair(int offset, int sub) const { return scales[offset + (sub / 2 * 16 + lane) * 2 + sub % 2]; }
};

void read_32(PackedFormat format, const TileRow& row, PackedBlock& block) {
  block.size = block.sub_size = 32;
  block.scale[0] = 1;
  block.d = row.f16(0);
  if (format == PackedFormat::kQ8_0) {
    for (int i = 0; i < 32; ++i) block.w[i] = row.quant(i) - 128;
    return;
  }
  block.has_min = format == PackedFormat::kQ4_1 || format == PackedFormat::kQ5_1;
  if (block.has_min) block.m = row.f16(32);
  const bool five_bits = format == PackedFormat::kQ5_0 || format == PackedFormat::kQ5_1;
  for (int i = 0; i < 32; ++i) {
    const int nibble = i < 16 ? row.quant(i) & 15 : row.quant(i - 16) >> 4;
    const int fifth = five_bits ? (row.quant(16 + i % 4) >> (i / 4)) & 1 : 0;
    const int q = nibble | (fifth << 4);
    switch (format) {
      case PackedFormat::kQ4_0:
        block.w[i] = q - 8;
        break;
      case PackedFormat::kQ5_0:
        block.w[i] = q - 16;
        break;
      case PackedFormat::kIQ4_NL:
        block.w[i] = kIq4Values[q];
        break;
      default:
        block.w[i] = q;
        break;
    }
  }
}

// The integer weight of position i in a super-block of 256.
int weight_256(PackedFormat format, const TileRow& row, int i) {
  const int chunk64 = i / 64, chunk128 = i / 128;
  const int nibble_byte = chunk64 * 32 + i % 32;  // Q4_K, Q5_K: 32 bytes a chunk of 64
  const int two_bit_shift = i % 128 / 32 * 2;     // Q2_K, Q3_K: 32 bytes a chunk of 128
  switch (format) {
    case PackedFormat::kQ2_K:
      return (row.quant(chunk128 * 32 + i % 32) >> two_bit_shift) & 3;
    case PackedFormat::kQ3_K: {
      const int low = (row.quant(chunk128 * 32 + i % 32) >> two_bit_shift) & 3;
      const int high = (row.quant(64 + i % 32) >> (i / 32)) & 1;
      return low + 4 * high - 4;
    }
    case PackedFormat::kQ4_K:
      return i % 64 < 32 ? row.quant(nibble_byte) & 15 : row.quant(nibble_byte) >> 4;
    case PackedFormat::kQ5_K: {
      const int low = i % 64 < 32 ? row.quant(nibble_byte) & 15 : row.quant(nibble_byte) >> 4;
      return low | (((row.quant(128 + i % 32) >> (i / 32)) & 1) << 4);
    }
    case PackedFormat::kQ6_K: {
      const int part = i % 128 / 32, step = chunk128 * 2 + i % 32 / 16;  // 48 bytes a step
      const int byte = row.quant(step * 48 + part % 2 * 16 + i % 16);
      const int low = part < 2 ? byte & 15 : byte >> 4;
      const int high = (row.quant(step * 48 + 32 + i % 16) >> (2 * part)) & 3;
      return (low | (high << 4)) - 32;
    }
    case PackedFormat::kIQ4_XS: {
      const int byte = row.quant(i / 32 * 16 + i % 16);
      return kIq4Values[i % 32 < 16 ? byte & 15 : byte >> 4];
    }
    default:
      STILL_CHECK(!"not a 256-wide format");
  }
}

void read_256(PackedFormat format, const TileRow& row, PackedBlock& block) {
  block.size = 256;
  for (int i = 0; i < 256; ++i) block.w[i] = weight_256(format, row, i);
  switch (format) {
    case PackedFormat::kQ4_K:
    case PackedFormat::kQ5_K:
    case PackedFormat::kIQ4_XS:
      block.sub_size = 32;
      break;
    default:
      block.sub_size = 16;
      break;
  }
  block.has_min = format == PackedFormat::kQ2_K || format == PackedFormat::kQ4_K || format == PackedFormat::kQ5_K;
  const int n_sub = 256 / block.sub_size;
  const int scale_bytes = n_sub * kPanelRows;
  for (int sub = 0; sub < n_sub; ++sub) {
    const std::uint8_t byte = row.pair(0, sub);
    block.scale[sub] = block.has_min ? byte : static_cast<std::int8_t>(byte);
    if (block.has_min) block.min[sub] = row.pair(scale_bytes, sub);
  }
  block.d = row.f16(block.has_min ? 2 * scale_bytes : scale_bytes);
  if (block.has_min) block.m = row.f16(2 * scale_bytes + 32);
}
}  // namespace

PackedBlock unpack_block(PackedFormat format, const std::uint8_t* panel, std::int64_t n_tiles, std::int64_t tile,
                         int lane) {
  const std::int64_t quant_bytes = packed_quant_bytes(format);
  const std::int64_t scale_bytes = packed_tile_bytes(format) - quant_bytes;
  const TileRow row{panel + packed_quants_at(format, n_tiles) + tile * quant_bytes, panel + tile * scale_bytes, lane};
  PackedBlock block;
  if (packed_tile_k(format) == 32) {
    read_32(format, row, block);
  } else {
    read_256(format, row, block);
  }
  return block;
}

float packed_float(PackedFormat format, const std::uint8_t* panel, std::int64_t k, int lane) {
  const std::int64_t idx = k * kPanelRows + lane;
  if (format == PackedFormat::kF32) {
    float value;
    std::memcpy(&value, panel + 4 * idx, 4);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, panel + 2 * idx, 2);
  return format == PackedFormat::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits);
}

}  // namespace still

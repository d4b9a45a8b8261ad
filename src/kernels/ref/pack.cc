// A file's rows to panels of 16 interleaved rows (docs/cpu-kernels.md). One function per format says where a block's
// quants and scales go; everything else is shared.
#include <algorithm>
#include <cstring>

#include "kernels/packing.h"
#include "kernels/ref/ref_kernels.h"
#include "quant/blocks.h"

namespace still::ref {

namespace {
// The place of one row's block in a tile.
struct TileRow {
  std::uint8_t* quants;
  std::uint8_t* scales;
  int lane;

  // Bytes of the block in pieces of four, from vector `first` on.
  void put_quants(int first, const void* bytes, int n) const {
    for (int v = 0; v < n / 4; ++v)
      std::memcpy(quants + (first + v) * 64 + lane * 4, static_cast<const std::uint8_t*>(bytes) + 4 * v, 4);
  }
  void put_f16(int offset, std::uint16_t bits) const { std::memcpy(scales + offset + 2 * lane, &bits, 2); }
  template <class T>
  void put_pairs(int offset, const T* values, int n) const {
    for (int i = 0; i < n / 2; ++i) std::memcpy(scales + offset + (i * kPanelRows + lane) * 2, values + 2 * i, 2);
  }
  // Q5_0, Q5_1: bit k of the file's 32 bits is the fifth bit of weight k = 4 g + j; here byte j, bit g.
  void put_fifth_bits(int vector, const std::uint8_t (&qh)[4]) const {
    std::uint8_t bytes[4] = {};
    for (int k = 0; k < 32; ++k)
      bytes[k % 4] = static_cast<std::uint8_t>(bytes[k % 4] | (((qh[k / 8] >> (k % 8)) & 1) << (k / 4)));
    put_quants(vector, bytes, 4);
  }
};

void pack_block(const BlockQ4_0& block, const TileRow& row) {
  row.put_quants(0, block.qs, 16);
  row.put_f16(0, block.d);
}
void pack_block(const BlockIQ4_NL& block, const TileRow& row) {
  row.put_quants(0, block.qs, 16);
  row.put_f16(0, block.d);
}
void pack_block(const BlockQ4_1& block, const TileRow& row) {
  row.put_quants(0, block.qs, 16);
  row.put_f16(0, block.d);
  row.put_f16(32, block.m);
}
void pack_block(const BlockQ5_0& block, const TileRow& row) {
  row.put_quants(0, block.qs, 16);
  row.put_fifth_bits(4, block.qh);
  row.put_f16(0, block.d);
}
void pack_block(const BlockQ5_1& block, const TileRow& row) {
  row.put_quants(0, block.qs, 16);
  row.put_fifth_bits(4, block.qh);
  row.put_f16(0, block.d);
  row.put_f16(32, block.m);
}
void pack_block(const BlockQ8_0& block, const TileRow& row) {
  std::uint8_t biased[32];
  for (int i = 0; i < 32; ++i) biased[i] = static_cast<std::uint8_t>(block.qs[i] + 128);
  row.put_quants(0, biased, 32);
  row.put_f16(0, block.d);
}
void pack_block(const BlockQ2_K& block, const TileRow& row) {
  std::uint8_t scales[16], mins[16];
  for (int i = 0; i < 16; ++i) {
    scales[i] = block.scales[i] & 15;
    mins[i] = block.scales[i] >> 4;
  }
  row.put_quants(0, block.qs, 64);
  row.put_pairs(0, scales, 16);
  row.put_pairs(256, mins, 16);
  row.put_f16(512, block.d);
  row.put_f16(544, block.dmin);
}
void pack_block(const BlockQ3_K& block, const TileRow& row) {
  std::int8_t scales[16];
  unpack_scales_q3(block.scales, scales);
  row.put_quants(0, block.qs, 64);
  row.put_quants(16, block.hmask, 32);
  row.put_pairs(0, scales, 16);
  row.put_f16(256, block.d);
}
void pack_scales_k4(const std::uint8_t (&packed)[12], std::uint16_t d, std::uint16_t dmin, const TileRow& row) {
  std::uint8_t scales[8], mins[8];
  unpack_scales_k4(packed, scales, mins);
  row.put_pairs(0, scales, 8);
  row.put_pairs(128, mins, 8);
  row.put_f16(256, d);
  row.put_f16(288, dmin);
}
void pack_block(const BlockQ4_K& block, const TileRow& row) {
  row.put_quants(0, block.qs, 128);
  pack_scales_k4(block.scales, block.d, block.dmin, row);
}
void pack_block(const BlockQ5_K& block, const TileRow& row) {
  row.put_quants(0, block.qs, 128);
  row.put_quants(32, block.qh, 32);
  pack_scales_k4(block.scales, block.d, block.dmin, row);
}
void pack_block(const BlockQ6_K& block, const TileRow& row) {
  // Four steps of 16 bytes of each part: the first 16 of a half's parts of 32, then the second.
  for (int step = 0; step < 4; ++step) {
    const std::uint8_t* low = block.ql + step / 2 * 64 + step % 2 * 16;
    row.put_quants(step * 12, low, 16);
    row.put_quants(step * 12 + 4, low + 32, 16);
    row.put_quants(step * 12 + 8, block.qh + step / 2 * 32 + step % 2 * 16, 16);
  }
  row.put_pairs(0, block.scales, 16);
  row.put_f16(256, block.d);
}
void pack_block(const BlockIQ4_XS& block, const TileRow& row) {
  std::int8_t scales[8];
  unpack_scales_iq4_xs(block, scales);
  row.put_quants(0, block.qs, 128);
  row.put_pairs(0, scales, 8);
  row.put_f16(128, block.d);
}

template <PackedFormat kFormat>
struct BlockOf;
template <>
struct BlockOf<PackedFormat::kQ4_0> {
  using Type = BlockQ4_0;
};
template <>
struct BlockOf<PackedFormat::kQ4_1> {
  using Type = BlockQ4_1;
};
template <>
struct BlockOf<PackedFormat::kQ5_0> {
  using Type = BlockQ5_0;
};
template <>
struct BlockOf<PackedFormat::kQ5_1> {
  using Type = BlockQ5_1;
};
template <>
struct BlockOf<PackedFormat::kQ8_0> {
  using Type = BlockQ8_0;
};
template <>
struct BlockOf<PackedFormat::kIQ4_NL> {
  using Type = BlockIQ4_NL;
};
template <>
struct BlockOf<PackedFormat::kQ2_K> {
  using Type = BlockQ2_K;
};
template <>
struct BlockOf<PackedFormat::kQ3_K> {
  using Type = BlockQ3_K;
};
template <>
struct BlockOf<PackedFormat::kQ4_K> {
  using Type = BlockQ4_K;
};
template <>
struct BlockOf<PackedFormat::kQ5_K> {
  using Type = BlockQ5_K;
};
template <>
struct BlockOf<PackedFormat::kQ6_K> {
  using Type = BlockQ6_K;
};
template <>
struct BlockOf<PackedFormat::kIQ4_XS> {
  using Type = BlockIQ4_XS;
};

const std::uint8_t* source_row(const PackArgs& args, std::int64_t row) {
  return args.source + (args.row_map == nullptr ? row : args.row_map[row]) * args.row_bytes;
}

void pack_float_row(std::int64_t element_bytes, std::int64_t k, const std::uint8_t* source, std::uint8_t* panel,
                    int lane) {
  for (std::int64_t i = 0; i < k; ++i)
    std::memcpy(panel + (i * kPanelRows + lane) * element_bytes, source + i * element_bytes,
                static_cast<std::size_t>(element_bytes));
}

template <PackedFormat kFormat>
void pack_quantized_row(std::int64_t k, const std::uint8_t* source, std::uint8_t* panel, int lane) {
  const std::int64_t n_tiles = k / packed_tile_k(kFormat);
  const std::int64_t quant_bytes = packed_quant_bytes(kFormat);
  const std::int64_t scale_bytes = packed_tile_bytes(kFormat) - quant_bytes;
  std::uint8_t* quants = panel + packed_quants_at(kFormat, n_tiles);
  for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
    pack_block(load_block<typename BlockOf<kFormat>::Type>(source, tile),
               TileRow{quants + tile * quant_bytes, panel + tile * scale_bytes, lane});
  }
}
}  // namespace

template <PackedFormat kFormat>
void pack(const PackArgs& args) {
  for (std::int64_t p = args.panel_begin; p < args.panel_end; ++p) {
    std::uint8_t* panel = args.packed + p * args.panel_bytes;
    const std::int64_t n_rows = std::min<std::int64_t>(kPanelRows, args.n_out - p * kPanelRows);
    std::memset(panel, 0, static_cast<std::size_t>(args.panel_bytes));  // rows past the end, padding
    for (int lane = 0; lane < n_rows; ++lane) {
      const std::uint8_t* source = source_row(args, p * kPanelRows + lane);
      if constexpr (kFormat <= PackedFormat::kBF16) {
        pack_float_row(packed_tile_bytes(kFormat) / kPanelRows, args.k, source, panel, lane);
      } else {
        pack_quantized_row<kFormat>(args.k, source, panel, lane);
      }
    }
  }
}

#define STILL_INSTANTIATE(format) template void pack<PackedFormat::format>(const PackArgs& args);
STILL_INSTANTIATE(kF32)
STILL_INSTANTIATE(kF16)
STILL_INSTANTIATE(kBF16)
STILL_INSTANTIATE(kQ4_0)
STILL_INSTANTIATE(kQ4_1)
STILL_INSTANTIATE(kQ5_0)
STILL_INSTANTIATE(kQ5_1)
STILL_INSTANTIATE(kQ8_0)
STILL_INSTANTIATE(kIQ4_NL)
STILL_INSTANTIATE(kQ2_K)
STILL_INSTANTIATE(kQ3_K)
STILL_INSTANTIATE(kQ4_K)
STILL_INSTANTIATE(kQ5_K)
STILL_INSTANTIATE(kQ6_K)
STILL_INSTANTIATE(kIQ4_XS)

}  // namespace still::ref

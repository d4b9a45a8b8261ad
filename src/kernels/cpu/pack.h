// A file's rows to panels of 16 interleaved rows (docs/cpu-kernels.md): a block's quant bytes are transposed in pieces
// of 4 bytes, 16 bytes of 16 rows at a time; sub-block scales are unpacked row by row.
#pragma once

#include "kernels/cpu/formats.h"

namespace still {
namespace {

// Where a format's fields lie in a block of the file (ggml-common.h of ggml 0.25); -1: there is none.
struct FileBlock {
  int bytes;
  int d, second;            // f16 d; f16 m or dmin
  int quants, quant_bytes;  // quants that become vectors as they are
  int more, more_bytes;     // those of the vectors after them: fifth bits, qh, hmask
};

// What rows past the end are packed from. Q8_0's quants are stored plus 128: there, 128 becomes 0.
alignas(64) constexpr uint8_t kZeroBlock[256] = {};
alignas(64) constexpr uint8_t kZeroQ8Block[34] = {0,   0,   128, 128, 128, 128, 128, 128, 128, 128, 128, 128,
                                                  128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128, 128,
                                                  128, 128, 128, 128, 128, 128, 128, 128, 128, 128};

STILL_INLINE void zero_bytes(uint8_t* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = 0;
}
STILL_INLINE void put_f16(const uint8_t* const* blocks, int offset, uint8_t* out) {
  for (int lane = 0; lane < kPanelRows; ++lane) __builtin_memcpy(out + 2 * lane, blocks[lane] + offset, 2);
}

// One row's scales, pair-interleaved: values [n] to [n / 2][16][2].
template <int N>
STILL_INLINE void put_pairs(const uint8_t* values, int lane, uint8_t* out) {
  for (int i = 0; i < N / 2; ++i) __builtin_memcpy(out + (i * kPanelRows + lane) * 2, values + 2 * i, 2);
}

// 8 bytes of 6-bit scales (Q4_K, Q5_K: 8 scales and 8 minimums in 12 bytes).
STILL_INLINE void scales_q4_k(const uint8_t* packed, uint8_t* scales, uint8_t* mins) {
  uint32_t word[3];
  __builtin_memcpy(word, packed, 12);
  constexpr uint32_t kLow6 = 0x3f3f3f3f, kLow4 = 0x0f0f0f0f, kHigh2 = 0x30303030;
  const uint32_t scale[2] = {word[0] & kLow6, (word[2] & kLow4) | ((word[0] >> 2) & kHigh2)};
  const uint32_t min[2] = {word[1] & kLow6, ((word[2] >> 4) & kLow4) | ((word[1] >> 2) & kHigh2)};
  __builtin_memcpy(scales, scale, 8);
  __builtin_memcpy(mins, min, 8);
}
// 16 scales of 6 bits in 12 bytes, stored plus 32.
STILL_INLINE void scales_q3_k(const uint8_t* packed, uint8_t* scales) {
  uint32_t word[3];
  __builtin_memcpy(word, packed, 12);
  for (int i = 0; i < 4; ++i) {
    const uint32_t low = (word[i % 2] >> (4 * (i / 2))) & 0x0f0f0f0f;
    const uint32_t high = ((word[2] >> (2 * i)) & 0x03030303) << 4;
    // Subtracts 32 from each byte of 0..63: bits 5..7 become the sign.
    const uint32_t biased = (low | high) ^ 0x20202020;
    const uint32_t sign = biased & 0x20202020;
    const uint32_t value = biased | (sign << 1) | (sign << 2);
    __builtin_memcpy(scales + 4 * i, &value, 4);
  }
}
STILL_INLINE void scales_iq4_xs(const uint8_t* high_bytes, const uint8_t* low_bytes, uint8_t* scales) {
  uint16_t high;
  __builtin_memcpy(&high, high_bytes, 2);
  for (int i = 0; i < 8; ++i) {
    const int low = (low_bytes[i / 2] >> (4 * (i % 2))) & 15;
    scales[i] = static_cast<uint8_t>((low | ((high >> (2 * i)) & 3) << 4) - 32);
  }
}

// A format's file block, and how one row's sub-block scales go into a tile.
struct PackQ4_0 {
  static constexpr FileBlock kFile{18, 0, -1, 2, 16, -1, 0};
  using F = Q4_0;
};
struct PackQ4_1 {
  static constexpr FileBlock kFile{20, 0, 2, 4, 16, -1, 0};
  using F = Q4_1;
};
struct PackQ5_0 {
  static constexpr FileBlock kFile{22, 0, -1, 6, 16, 2, 4};
  using F = Q5_0;
};
struct PackQ5_1 {
  static constexpr FileBlock kFile{24, 0, 2, 8, 16, 4, 4};
  using F = Q5_1;
};
struct PackQ8_0 {
  static constexpr FileBlock kFile{34, 0, -1, 2, 32, -1, 0};
  using F = Q8_0;
};
struct PackIQ4_NL {
  static constexpr FileBlock kFile{18, 0, -1, 2, 16, -1, 0};
  using F = IQ4_NL;
};
struct PackQ2_K {
  static constexpr FileBlock kFile{84, 80, 82, 16, 64, -1, 0};
  using F = Q2_K;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) {
    uint8_t scale[16], min[16];
    for (int i = 0; i < 16; ++i) {
      scale[i] = block[i] & 15;
      min[i] = block[i] >> 4;
    }
    put_pairs<16>(scale, lane, out);
    put_pairs<16>(min, lane, out + F::kMinAt);
  }
};
struct PackQ3_K {
  static constexpr FileBlock kFile{110, 108, -1, 32, 64, 0, 32};
  using F = Q3_K;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) {
    uint8_t scale[16];
    scales_q3_k(block + 96, scale);
    put_pairs<16>(scale, lane, out);
  }
};
struct PackQ4_K {
  static constexpr FileBlock kFile{144, 0, 2, 16, 128, -1, 0};
  using F = Q4_K;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) {
    uint8_t scale[8], min[8];
    scales_q4_k(block + 4, scale, min);
    put_pairs<8>(scale, lane, out);
    put_pairs<8>(min, lane, out + F::kMinAt);
  }
};
struct PackQ5_K {
  static constexpr FileBlock kFile{176, 0, 2, 48, 128, 16, 32};
  using F = Q5_K;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) { PackQ4_K::scales(block, lane, out); }
};
struct PackQ6_K {
  static constexpr FileBlock kFile{210, 208, -1, 0, 128, 128, 64};
  using F = Q6_K;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) {
    put_pairs<16>(block + 192, lane, out);
  }
};
struct PackIQ4_XS {
  static constexpr FileBlock kFile{136, 0, -1, 8, 128, -1, 0};
  using F = IQ4_XS;
  static STILL_INLINE void scales(const uint8_t* block, int lane, uint8_t* out) {
    uint8_t scale[8];
    scales_iq4_xs(block + 2, block + 4, scale);
    put_pairs<8>(scale, lane, out);
  }
};

// Bit 4g + j of each word to bit g of byte j: a transposed 8 x 4 bit matrix, by exchanging bits of the bit's index.
template <int kShift>
constexpr uint32_t exchange_bits(uint32_t x, uint32_t mask) {
  const uint32_t t = ((x >> kShift) ^ x) & mask;
  return x ^ t ^ (t << kShift);
}
constexpr uint32_t fifth_bits(uint32_t x) {  // index bits g2 g1 g0 j1 j0
  x = exchange_bits<14>(x, 0x0000cccc);      // j1 g1 g0 g2 j0
  x = exchange_bits<7>(x, 0x00aa00aa);       // j1 j0 g0 g2 g1
  x = exchange_bits<2>(x, 0x0c0c0c0c);       // j1 j0 g2 g0 g1
  return exchange_bits<1>(x, 0x22222222);    // j1 j0 g2 g1 g0
}
static_assert(fifth_bits(1u << (4 * 5 + 2)) == 1u << (8 * 2 + 5) && fifth_bits(1u << (4 * 2 + 1)) == 1u << (8 + 2));

template <class P>
STILL_INLINE void pack_tile(const uint8_t* const* blocks, int n_rows, uint8_t* quants, uint8_t* scales) {
  using F = typename P::F;
  constexpr FileBlock kFile = P::kFile;
  const auto put_vectors = [&](int offset, int n_bytes, int first) STILL_UNROLLED {
    for (int at = 0; at < n_bytes; at += 16) {
      Bytes pieces[4];
      gather_pieces(blocks, offset + at, pieces);
      uint8_t* out = quants + 64 * F::place(first + at / 4);
      repeat<4>([&](auto v) STILL_UNROLLED {
        constexpr int kVector = decltype(v)::value;
        if constexpr (F::kBlock == 32 && F::kQuantBytes == 512) pieces[kVector] = b_flip_signs(pieces[kVector]);
        b_store(out + 64 * kVector, pieces[kVector]);
      });
    }
  };
  put_vectors(kFile.quants, kFile.quant_bytes, 0);
  if constexpr (kFile.more_bytes == 4) {
    uint32_t words[kPanelRows];
    for (int lane = 0; lane < kPanelRows; ++lane) __builtin_memcpy(&words[lane], blocks[lane] + kFile.more, 4);
    for (uint32_t& word : words) word = fifth_bits(word);
    __builtin_memcpy(quants + 16 * kFile.quant_bytes, words, sizeof words);
  } else if constexpr (kFile.more_bytes > 0) {
    put_vectors(kFile.more, kFile.more_bytes, kFile.quant_bytes / 4);
  }
  put_f16(blocks, kFile.d, scales + F::kDAt);
  if constexpr (F::kHasMin) put_f16(blocks, kFile.second, scales + F::kMAt);
  if constexpr (F::kBlock == 256) {
    if (n_rows < kPanelRows) zero_bytes(scales, F::kDAt);
    for (int lane = 0; lane < n_rows; ++lane) P::scales(blocks[lane], lane, scales);
  }
}

STILL_INLINE const uint8_t* source_row(const PackArgs& args, int64_t row) {
  return args.source + (args.row_map == nullptr ? row : args.row_map[row]) * args.row_bytes;
}

template <class P>
void pack_quantized(const PackArgs& args) {
  using F = typename P::F;
  const int64_t n_tiles = args.k / F::kBlock;
  const int64_t scale_bytes = n_tiles * F::kScaleBytes;
  for (int64_t panel = args.panel_begin; panel < args.panel_end; ++panel) {
    uint8_t* scales = args.packed + panel * args.panel_bytes;
    uint8_t* quants = scales + quants_at<F>(n_tiles);
    zero_bytes(scales + scale_bytes, quants - scales - scale_bytes);
    const int n_rows = static_cast<int>(min_of(kPanelRows, args.n_out - panel * kPanelRows));
    const uint8_t* blocks[kPanelRows];
    int64_t strides[kPanelRows];
    for (int lane = 0; lane < kPanelRows; ++lane) {
      const bool exists = lane < n_rows;
      blocks[lane] = exists                 ? source_row(args, panel * kPanelRows + lane)
                     : P::kFile.bytes == 34 ? kZeroQ8Block
                                            : kZeroBlock;
      strides[lane] = exists ? P::kFile.bytes : 0;
    }
    for (int64_t tile = 0; tile < n_tiles; ++tile, quants += F::kQuantBytes, scales += F::kScaleBytes) {
      pack_tile<P>(blocks, n_rows, quants, scales);
      for (int lane = 0; lane < kPanelRows; ++lane) blocks[lane] += strides[lane];
    }
  }
}

// F32, F16, BF16: elements of kBytes, to [k][16].
template <int kBytes>
void pack_floats(const PackArgs& args) {
  constexpr int64_t kStep = 16 / kBytes;
  const int64_t used_bytes = args.k * kPanelRows * kBytes;
  for (int64_t panel = args.panel_begin; panel < args.panel_end; ++panel) {
    uint8_t* out = args.packed + panel * args.panel_bytes;
    const int64_t n_rows = min_of(kPanelRows, args.n_out - panel * kPanelRows);
    const uint8_t* rows[kPanelRows];
    for (int lane = 0; lane < kPanelRows; ++lane)
      rows[lane] = source_row(args, panel * kPanelRows + min_of(lane, n_rows - 1));
    const int64_t whole = n_rows == kPanelRows ? args.k / kStep * kStep : 0;
    for (int64_t i = 0; i < whole; i += kStep) {
      Bytes pieces[4];
      gather_pieces(rows, i * kBytes, pieces);
      repeat<4>([&](auto v) STILL_UNROLLED {
        constexpr int kVector = decltype(v)::value;
        if constexpr (kBytes == 2) pieces[kVector] = b_split_halves(pieces[kVector]);
        b_store_unaligned(out + i * kPanelRows * kBytes + 64 * kVector, pieces[kVector]);
      });
    }
    if (n_rows < kPanelRows) zero_bytes(out, used_bytes);
    for (int64_t lane = 0; lane < n_rows; ++lane)
      for (int64_t i = whole; i < args.k; ++i)
        __builtin_memcpy(out + (i * kPanelRows + lane) * kBytes, rows[lane] + i * kBytes, kBytes);
    zero_bytes(out + used_bytes, args.panel_bytes - used_bytes);
  }
}

}  // namespace
}  // namespace still

// Weights as the kernels see them: a format is a struct that loads a chunk of 16 rows into a lane's registers, turns it
// into A operands of the tensor core, and multiplies. kernels/cuda_packing.h describes the memory.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4): it holds rows g and g + 8 of the panel, and results of the columns 2 t
// and 2 t + 1 of each 8 columns (tokens). Integer sums inside a block are exact and blocks are folded with the CPU's
// fma (docs/arithmetic.md); only the order of blocks differs, since the warps of a block share a row.
//
// One token leaves seven of the tensor core's eight columns free. They part k instead: lane l holds elements 8 l to
// 8 l + 7 of a chunk of activations, which is what the B operand of column g wants for the slice g of k, and gives
// zeros for the other slices. So no element moves between lanes, one accumulator gathers the whole chunk with a column
// for each slice, and each lane adds up its own two columns. The four lanes of a row are added after each chunk.
//
// Quantised weights and FP8: a result is the same bits for one token and for many, of Q8_0 and IQ4_NL where all rows
// are multiplied as f16. Chunks are multiplied alike (what four lanes add here is the same tree there), chunk i belongs
// to part i % n_parts of the row, a part adds its chunks in order, and the parts are added in order: linear.cu says how
// many parts a row has.
#pragma once

#include <initializer_list>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda_packing.h"

namespace still::cuda {

// Where a panel's weights begin, and the sizes that locate a chunk.
struct Panel {
  const std::uint8_t* base;
  int n_tiles;    // quantised: tiles of a row; floats: unused
  int rows_left;  // rows of the matrix from this panel on
  int k;
  const float* scales = nullptr;  // FP8: of this panel's rows, or of its row of blocks
};

// cuda_scale_place for device code.
__host__ __device__ constexpr int scale_place(int n_sub, bool has_min, bool is_min, int i) {
  const int each = n_sub / 4;
  return i % 8 / 2 * each * (has_min ? 2 : 1) + (is_min ? each : 0) + i % 2 + i / 8 * 2;
}
constexpr bool is_same_place() {
  for (const int n_sub : {8, 16})
    for (const bool has_min : {false, true})
      for (int i = 0; i < 2 * n_sub; ++i)
        if (scale_place(n_sub, has_min, i >= n_sub, i % n_sub) !=
            cuda_scale_place(n_sub, has_min, i >= n_sub, i % n_sub))
          return false;
  return true;
}
static_assert(is_same_place());

// Of the four lanes that share rows: ((0 + 1) + (2 + 3)) of v[0] in even lanes, of v[1] in odd ones.
template <class T>
__device__ __forceinline__ T fold_lanes(const T (&v)[2], int lane) {
  const bool is_odd = lane % 2 != 0;
  T sum = (is_odd ? v[1] : v[0]) + __shfl_xor_sync(0xffffffffu, is_odd ? v[0] : v[1], 1);
  sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  return sum;
}

template <int kBits, int kSub, bool kMin, int kBlock>
struct Quant {
  static constexpr bool kHasRowScales = false;
  static __device__ __forceinline__ const float* scales_of(const std::uint8_t*, int, int, int) { return nullptr; }
  static constexpr int kStoredBits = kBits, kSubBlock = kSub, kBlockSize = kBlock;
  static constexpr bool kHasMin = kMin;
  static constexpr int kGroups = kBlock == 256 ? 8 : 4;  // groups of 32 weights in a chunk
  static constexpr int kWords = kBits == 8 ? 4 : 2;      // words of a lane and group without the bits above the fourth
  static constexpr int kTileQuant = 16 * kBlock * kBits / 8;
  static constexpr int kRowScales = 256 / kSub * (kMin ? 2 : 1);
  static constexpr int kTileScale = kBlock == 32 ? (kMin ? 64 : 32) : 64 + 16 * kRowScales;
  static constexpr int kHighWords = kBits == 6 ? 8 : kBits == 5 ? 4 : 1;
  // Signed weights are moved to the top of their byte, which multiplies them by a power of two.
  static constexpr float kFactor = kMin || kBits == 8 ? 1.0f
                                   : kBits == 4       ? 1.0f / 16
                                   : kBits == 5       ? 1.0f / 8
                                                      : 1.0f / 4;
  static constexpr int kChunk = 32 * kGroups;
  static constexpr bool kIsFolded = true;  // multiply_single leaves the lanes' row complete
  // Of a lane, for 8 columns: its four results, and where a chunk is half of one token's, that half's.
  static constexpr int kSums = kBlock == 256 ? 4 : 8;

  struct Chunk {
    std::uint32_t low[kGroups * kWords];
    std::uint32_t high[kHighWords];
    std::uint32_t d[kBlock == 256 ? 2 : 1];  // rows g and g + 8
    // Sub-blocks' scales and minimums; 32-wide: d and m of the groups.
    std::uint32_t sub[2][kBlock == 256 ? kRowScales / 4 : kMin ? 4 : 2];
  };
  // Where the scales of a panel begin, and of the eight tiles from tile 8 i on where blocks are 32 wide.
  static __device__ __forceinline__ const std::uint8_t* scales_of(const Panel& panel) {
    return panel.base + static_cast<std::int64_t>(panel.n_tiles) * kTileQuant;
  }

  static __device__ __forceinline__ int n_chunks(const Panel& panel) {
    return kBlock == 256 ? panel.n_tiles : (panel.n_tiles + 3) / 4;
  }

  static __device__ __forceinline__ void load(Chunk& c, const Panel& panel, int chunk, int lane) {
    const int g = lane / 4;
    if constexpr (kBlock == 256) {
      const std::uint8_t* quants = panel.base + static_cast<std::int64_t>(chunk) * kTileQuant + lane * 16;
#pragma unroll
      for (int i = 0; i < kGroups * kWords / 4; ++i) {
        const uint4 v = load_stream(quants + i * 512);
        c.low[4 * i] = v.x, c.low[4 * i + 1] = v.y, c.low[4 * i + 2] = v.z, c.low[4 * i + 3] = v.w;
      }
      if constexpr (kBits == 5 || kBits == 6) {
#pragma unroll
        for (int i = 0; i < kHighWords / 4; ++i) {
          const uint4 v = load_stream(quants + 2048 + i * 512);
          c.high[4 * i] = v.x, c.high[4 * i + 1] = v.y, c.high[4 * i + 2] = v.z, c.high[4 * i + 3] = v.w;
        }
      }
      const std::uint8_t* scales = scales_of(panel) + static_cast<std::int64_t>(chunk) * kTileScale;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = g + 8 * r;
        c.d[r] = load_stream4(scales + row * 4);
        const std::uint8_t* sub = scales + 64 + row * kRowScales;
        if constexpr (kRowScales == 8) {
          const uint2 v = load_stream8(sub);
          c.sub[r][0] = v.x, c.sub[r][1] = v.y;
        } else {
#pragma unroll
          for (int i = 0; i < kRowScales / 16; ++i) {
            const uint4 v = load_stream(sub + 16 * i);
            c.sub[r][4 * i] = v.x, c.sub[r][4 * i + 1] = v.y, c.sub[r][4 * i + 2] = v.z, c.sub[r][4 * i + 3] = v.w;
          }
        }
      }
    } else {
      if constexpr (kBits == 5) c.high[0] = c.high[1] = c.high[2] = c.high[3] = 0;
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const int tile = chunk * 4 + j;
        const bool is_inside = tile < panel.n_tiles;
        const std::uint8_t* quants = panel.base + static_cast<std::int64_t>(tile) * kTileQuant;
        if constexpr (kBits == 8) {
          const uint4 v = is_inside ? load_stream(quants + lane * 16) : make_uint4(0, 0, 0, 0);
          c.low[4 * j] = v.x, c.low[4 * j + 1] = v.y, c.low[4 * j + 2] = v.z, c.low[4 * j + 3] = v.w;
        } else {
          const uint2 v = is_inside ? load_stream8(quants + lane * 8) : make_uint2(0, 0);
          c.low[2 * j] = v.x, c.low[2 * j + 1] = v.y;
          if constexpr (kBits == 5) c.high[j] = is_inside ? load_stream2(quants + 256 + lane * 2) : 0;
        }
      }
      // A chunk is half of what lies together.
      const std::uint8_t* scales = scales_of(panel) + static_cast<std::int64_t>(chunk / 2) * 8 * kTileScale;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const std::uint8_t* row = scales + (g + 8 * r) * (kTileScale / 2) + chunk % 2 * (kTileScale / 4);
        if constexpr (kMin) {
          const uint4 v = load_stream(row);
          c.sub[r][0] = v.x, c.sub[r][1] = v.y, c.sub[r][2] = v.z, c.sub[r][3] = v.w;
        } else {
          const uint2 v = load_stream8(row);
          c.sub[r][0] = v.x, c.sub[r][1] = v.y;
        }
      }
    }
  }

  // The bits above the fourth of register `reg` of group j, in bit 0 of each byte (5 bits) or bits 0 and 1 (6 bits).
  template <class C>
  static __device__ __forceinline__ std::uint32_t fifth(const C& c, int j, int reg) {
    if constexpr (kBlock == 256) return (c.high[j / 2] >> (4 * (j % 2) + reg)) & 0x01010101u;
    return (((c.high[j] >> (4 * reg)) & 15u) * 0x00204081u) & 0x01010101u;
  }

  // Group j's A registers: rows g, g + 8 of the first half, rows g, g + 8 of the second (weights of kFactor^-1 size).
  template <class C>
  static __device__ __forceinline__ void unpack(const C& c, int j, std::uint32_t (&a)[4]) {
    if constexpr (kBits == 8) {
      a[0] = c.low[4 * j], a[1] = c.low[4 * j + 1], a[2] = c.low[4 * j + 2], a[3] = c.low[4 * j + 3];
    } else {
      const std::uint32_t w[2] = {c.low[2 * j], c.low[2 * j + 1]};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (kMin) {
          a[r] = w[r] & 0x0f0f0f0fu;
          a[r + 2] = (w[r] >> 4) & 0x0f0f0f0fu;
          if constexpr (kBits == 5) {
            a[r] |= fifth(c, j, r) << 4;
            a[r + 2] |= fifth(c, j, r + 2) << 4;
          }
        } else if constexpr (kBits == 4) {
          a[r] = (w[r] << 4) & 0xf0f0f0f0u;
          a[r + 2] = w[r] & 0xf0f0f0f0u;
        } else if constexpr (kBits == 5) {
          a[r] = ((w[r] << 3) & 0x78787878u) | (fifth(c, j, r) << 7);
          a[r + 2] = ((w[r] >> 1) & 0x78787878u) | (fifth(c, j, r + 2) << 7);
        } else {
          a[r] = ((w[r] << 2) & 0x3c3c3c3cu) | ((c.high[j] << (6 - 2 * r)) & 0xc0c0c0c0u);
          a[r + 2] = ((w[r] >> 2) & 0x3c3c3c3cu) | ((c.high[j] << (2 - 2 * r)) & 0xc0c0c0c0u);
        }
      }
    }
  }

  // Sub-block scale or minimum `i` of row g (r 0) or g + 8 (r 1).
  static __device__ __forceinline__ int byte_of(std::uint32_t word, int i) {
    return kMin ? static_cast<int>((word >> (8 * i)) & 255u)
                : static_cast<int>(static_cast<std::int8_t>((word >> (8 * i)) & 255u));
  }
  static __device__ __forceinline__ int scale(const Chunk& c, int r, int i) {
    const int at = scale_place(256 / kSub, kMin, false, i);
    return byte_of(c.sub[r][at / 4], at % 4);
  }
  static __device__ __forceinline__ int minimum(const Chunk& c, int r, int i) {
    const int at = scale_place(256 / kSub, kMin, true, i);
    return byte_of(c.sub[r][at / 4], at % 4);
  }
  // d and m of row g (r 0) or g + 8 (r 1), of group j where blocks are 32 wide.
  static __device__ __forceinline__ float half_of(const Chunk& c, int r, bool is_min, int j) {
    const int at = scale_place(8, kMin, is_min, j);
    return half_bits_to_float((c.sub[r][at / 2] >> (16 * (at % 2))) & 0xffffu);
  }
  static __device__ __forceinline__ float d(const Chunk& c, int r, int j = 0) {
    if constexpr (kBlock == 256) return kMin ? half_bits_to_float(c.d[r] & 0xffffu) : __uint_as_float(c.d[r]);
    return half_of(c, r, false, j);
  }
  static __device__ __forceinline__ float m(const Chunk& c, int r, int j = 0) {
    if constexpr (kBlock == 256) return half_bits_to_float(c.d[r] >> 16);
    return half_of(c, r, true, j);
  }

  // --- one token -----------------------------------------------------------------------------------------------------
  static constexpr int kSingleChunk = 256;
  struct Single {
    std::uint32_t low[8 * kWords];
    std::uint32_t high[kBits == 6 ? 8 : kBits == 5 ? (kBlock == 256 ? 4 : 8) : 1];
    std::uint32_t d[kBlock == 256 ? 2 : 1];
    std::uint32_t sub[2][kRowScales == 32 || (kBlock == 32 && kMin) ? 2 : 1];  // of the lane's columns
  };
  static __device__ __forceinline__ int n_single_chunks(const Panel& panel) {
    return kBlock == 256 ? panel.n_tiles : (panel.n_tiles + 7) / 8;
  }
  static __device__ __forceinline__ void load_single(Single& c, const Panel& panel, int chunk, int lane) {
    const int g = lane / 4, t = lane % 4;
    if constexpr (kBlock == 256) {
      const std::uint8_t* quants = panel.base + static_cast<std::int64_t>(chunk) * kTileQuant + lane * 16;
#pragma unroll
      for (int i = 0; i < 2 * kWords; ++i) {
        const uint4 v = load_stream(quants + i * 512);
        c.low[4 * i] = v.x, c.low[4 * i + 1] = v.y, c.low[4 * i + 2] = v.z, c.low[4 * i + 3] = v.w;
      }
      if constexpr (kBits == 5 || kBits == 6) {
#pragma unroll
        for (int i = 0; i < kHighWords / 4; ++i) {
          const uint4 v = load_stream(quants + 2048 + i * 512);
          c.high[4 * i] = v.x, c.high[4 * i + 1] = v.y, c.high[4 * i + 2] = v.z, c.high[4 * i + 3] = v.w;
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int tile = chunk * 8 + j;
        const bool is_inside = tile < panel.n_tiles;
        const std::uint8_t* quants = panel.base + static_cast<std::int64_t>(tile) * kTileQuant;
        if constexpr (kBits == 8) {
          const uint4 v = is_inside ? load_stream(quants + lane * 16) : make_uint4(0, 0, 0, 0);
          c.low[4 * j] = v.x, c.low[4 * j + 1] = v.y, c.low[4 * j + 2] = v.z, c.low[4 * j + 3] = v.w;
        } else {
          const uint2 v = is_inside ? load_stream8(quants + lane * 8) : make_uint2(0, 0);
          c.low[2 * j] = v.x, c.low[2 * j + 1] = v.y;
          if constexpr (kBits == 5) c.high[j] = is_inside ? load_stream2(quants + 256 + lane * 2) : 0;
        }
      }
    }
    const std::uint8_t* scales = scales_of(panel) + static_cast<std::int64_t>(chunk) * kTileScale * (256 / kBlock);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = g + 8 * r;
      if constexpr (kBlock == 256) {
        c.d[r] = load_stream4(scales + row * 4);
        const std::uint8_t* sub = scales + 64 + row * kRowScales + t * (kRowScales / 4);
        if constexpr (kRowScales == 8) c.sub[r][0] = load_stream2(sub);
        if constexpr (kRowScales == 16) c.sub[r][0] = load_stream4(sub);
        if constexpr (kRowScales == 32) {
          const uint2 v = load_stream8(sub);
          c.sub[r][0] = v.x, c.sub[r][1] = v.y;
        }
      } else if constexpr (kMin) {
        const uint2 v = load_stream8(scales + row * 32 + t * 8);
        c.sub[r][0] = v.x, c.sub[r][1] = v.y;
      } else {
        c.sub[r][0] = load_stream4(scales + row * 16 + t * 4);
      }
    }
  }
  // Which of a chunk's activations a lane holds: four from element_of(lane, 0) on and four from element_of(lane, 1) on.
  static __device__ __forceinline__ int element_of(int lane, int half) {
    return kSub == 32 ? 8 * lane + 4 * half : 4 * lane + 128 * half;
  }
  struct Column {
    std::uint32_t words[2];
    int sums[kSub == 32 ? 2 : 4];        // of the lane's columns
    float scale[kBlock == 256 ? 1 : 2];  // likewise, where blocks are 32 wide
  };
  // Quantised as quantize_rows does it.
  static __device__ __forceinline__ Column make_column(const float (&v)[8], int lane) {
    float most = 0, bad = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      most = fmaxf(most, fabsf(v[i]));
      bad += v[i] - v[i];  // NaN where one is NaN or infinite
    }
#pragma unroll
    for (int i = 1; i < kBlock / 8; i *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    const bool is_finite = __all_sync(0xffffffffu, bad == 0.0f) != 0, is_zero = most < 0x1p-120f || !is_finite;
    const float inverse = is_zero ? 0.0f : __fdiv_rn(127.0f, most);
    float scale = is_zero ? 0.0f : __fdiv_rn(most, 127.0f);
    if (!is_finite) scale = __int_as_float(0x7fc00000);
    Column column;
    // Adding 1.5 * 2^23 rounds to the nearest even integer and leaves it in the low bits.
    std::uint32_t q[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) q[i] = __float_as_uint(__fadd_rn(__fmul_rn(v[i], inverse), 12582912.0f));
#pragma unroll
    for (int i = 0; i < 2; ++i)
      column.words[i] = __byte_perm(__byte_perm(q[4 * i], q[4 * i + 1], 0x0040),
                                    __byte_perm(q[4 * i + 2], q[4 * i + 3], 0x0040), 0x5410);
    const int t = lane % 4;
    if constexpr (kMin) {
      int sum[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) sum[i] = __dp4a(static_cast<int>(column.words[i]), 0x01010101, 0);
      if constexpr (kSub == 32) {
        int all = sum[0] + sum[1];
        all += __shfl_xor_sync(0xffffffffu, all, 1);
        all += __shfl_xor_sync(0xffffffffu, all, 2);
        column.sums[0] = __shfl_sync(0xffffffffu, all, 8 * t);
        column.sums[1] = __shfl_sync(0xffffffffu, all, 8 * t + 4);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 1);
          sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], 2);
          column.sums[2 * i] = __shfl_sync(0xffffffffu, sum[i], 8 * t);
          column.sums[2 * i + 1] = __shfl_sync(0xffffffffu, sum[i], 8 * t + 4);
        }
      }
    }
    if constexpr (kBlock == 256) {
      column.scale[0] = scale;
    } else {
      column.scale[0] = __shfl_sync(0xffffffffu, scale, 8 * t);
      column.scale[1] = __shfl_sync(0xffffffffu, scale, 8 * t + 4);
    }
    return column;
  }

  // f[0] += this chunk times the token, of row g in lanes of even t and of row g + 8 in the others.
  static __device__ __forceinline__ void multiply_single(const Single& c, const Column& x, const Panel&, int, int lane,
                                                         float (&f)[4]) {
    const int g = lane / 4;
    // Columns: 32-wide sub-blocks; 16-wide ones take two accumulators.
    int acc[2][4] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      std::uint32_t a[4];
      unpack(c, j, a);
      if constexpr (kSub == 32) {
        mma_s8_add(acc[j % 2], a, g == j ? x.words[0] : 0, g == j ? x.words[1] : 0);
      } else {
        const std::uint32_t word = x.words[j / 4];
        mma_s8_add(acc[j / 4], a, g == j % 4 * 2 ? word : 0, g == j % 4 * 2 + 1 ? word : 0);
      }
    }
    if constexpr (kSub == 32) {
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[0][i] += acc[1][i];
    }
    if constexpr (kBlock == 256) {
      int sum[2] = {0, 0}, min[2] = {0, 0};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int e = 0; e < (kSub == 32 ? 2 : 4); ++e) {
          sum[r] += acc[e / 2][2 * r + e % 2] * byte_of(c.sub[r][0], e);
          if constexpr (kMin)
            min[r] += x.sums[e] * (kSub == 32 ? byte_of(c.sub[r][0], 2 + e) : byte_of(c.sub[r][1], e));
        }
      }
      const float d = kMin ? half_bits_to_float((lane % 2 == 0 ? c.d[0] : c.d[1]) & 0xffffu)
                           : __uint_as_float(lane % 2 == 0 ? c.d[0] : c.d[1]);
      f[0] = fmaf(__fmul_rn(d * kFactor, x.scale[0]), static_cast<float>(fold_lanes(sum, lane)), f[0]);
      if constexpr (kMin) {
        const float m = half_bits_to_float((lane % 2 == 0 ? c.d[0] : c.d[1]) >> 16);
        f[0] = fmaf(-__fmul_rn(m, x.scale[0]), static_cast<float>(fold_lanes(min, lane)), f[0]);
      }
    } else {
      float sum[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float d = __fmul_rn(half_bits_to_float((c.sub[r][0] >> (16 * e)) & 0xffffu) * kFactor, x.scale[e]);
          const auto dot = static_cast<float>(acc[0][2 * r + e]);
          sum[r] = e == 0 ? __fmul_rn(d, dot) : fmaf(d, dot, sum[r]);
          if constexpr (kMin) {
            const float m = half_bits_to_float((c.sub[r][1] >> (16 * e)) & 0xffffu);
            sum[r] = fmaf(__fmul_rn(m, x.scale[e]), static_cast<float>(x.sums[e]), sum[r]);
          }
        }
      }
      f[0] = __fadd_rn(f[0], fold_lanes(sum, lane));
    }
  }

  // --- more tokens ---------------------------------------------------------------------------------------------------
  // f[n] += this chunk times 8 columns n; f[n][0..3] is the accumulator of (rows g, g + 8) x (columns 2 t, 2 t + 1).
  template <int kColumns8>
  static __device__ __forceinline__ void multiply(const Chunk& c, const Panel& panel, const CudaActivations& x,
                                                  int n_rows, int chunk, int lane, float (&f)[kColumns8][kSums]) {
    const int g = lane / 4, t = lane % 4, k = panel.k;
    const int n_blocks = k / kBlock;
    int sums[kColumns8][4], mins[kColumns8][4];      // blocks of 256
    float pairs[kColumns8][4], first[kColumns8][4];  // of 32: of two groups, and of the first two
#pragma unroll
    for (int n = 0; n < kColumns8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = mins[n][i] = 0, pairs[n][i] = first[n][i] = 0;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int at = chunk * kChunk + 32 * j;
      if constexpr (kBlock == 32) {
        if (j == 2) {
#pragma unroll
          for (int n = 0; n < kColumns8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) first[n][i] = pairs[n][i], pairs[n][i] = 0;
        }
        if (at >= k) continue;
      }
      std::uint32_t a[4];
      unpack(c, j, a);
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
        const int column = 8 * n + g, at_column = 8 * n + 2 * t;
        const std::int8_t* q = x.q + static_cast<std::int64_t>(column) * k + at;
        int acc[4], acc2[4];
        if constexpr (kSub == 32) {
          uint2 b = make_uint2(0, 0);
          if (column < n_rows) b = *reinterpret_cast<const uint2*>(q + 8 * t);
          mma_s8(acc, a[0], a[1], a[2], a[3], b.x, b.y);
        } else {
          std::uint32_t b0 = 0, b1 = 0;
          if (column < n_rows) {
            b0 = *reinterpret_cast<const std::uint32_t*>(q + 4 * t);
            b1 = *reinterpret_cast<const std::uint32_t*>(q + 16 + 4 * t);
          }
          mma_s8_k16(acc, a[0], a[1], b0);
          mma_s8_k16(acc2, a[2], a[3], b1);
        }
        // Two 16-sums of each column, low and high half of a word.
        std::uint32_t two_sums[2] = {0, 0};
        if constexpr (kMin) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (at_column + e < n_rows)
              two_sums[e] = *reinterpret_cast<const std::uint32_t*>(
                  x.sums + (static_cast<std::int64_t>(at_column + e) * k + at) / 16);
        }
        if constexpr (kBlock == 256) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int r = i / 2;
            const int low = static_cast<std::int16_t>(two_sums[i % 2] & 0xffffu);
            const int high = static_cast<std::int32_t>(two_sums[i % 2]) >> 16;
            if constexpr (kSub == 32) {
              sums[n][i] += acc[i] * scale(c, r, j);
              if constexpr (kMin) mins[n][i] += (low + high) * minimum(c, r, j);
            } else {
              sums[n][i] += acc[i] * scale(c, r, 2 * j) + acc2[i] * scale(c, r, 2 * j + 1);
              if constexpr (kMin) mins[n][i] += low * minimum(c, r, 2 * j) + high * minimum(c, r, 2 * j + 1);
            }
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int r = i / 2;
            float s = 0.0f;
            if (at_column + i % 2 < n_rows)
              s = x.scale[static_cast<std::int64_t>(at_column + i % 2) * n_blocks + at / 32];
            const float scale = __fmul_rn(d(c, r, j) * kFactor, s);
            const auto dot = static_cast<float>(acc[i]);
            float v = j % 2 == 0 ? __fmul_rn(scale, dot) : fmaf(scale, dot, pairs[n][i]);
            if constexpr (kMin) {
              const int sum = static_cast<std::int16_t>(two_sums[i % 2] & 0xffffu) +
                              (static_cast<std::int32_t>(two_sums[i % 2]) >> 16);
              v = fmaf(__fmul_rn(m(c, r, j), s), static_cast<float>(sum), v);
            }
            pairs[n][i] = v;
          }
        }
      }
    }
    if constexpr (kBlock == 256) {
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = 8 * n + 2 * t + i % 2, r = i / 2;
          float s = 0.0f;
          if (column < n_rows) s = x.scale[static_cast<std::int64_t>(column) * n_blocks + chunk];
          f[n][i] = fmaf(__fmul_rn(d(c, r) * kFactor, s), static_cast<float>(sums[n][i]), f[n][i]);
          if constexpr (kMin) f[n][i] = fmaf(-__fmul_rn(m(c, r), s), static_cast<float>(mins[n][i]), f[n][i]);
        }
      }
    } else {
      // A chunk is half of one token's: its sum waits for the other half's.
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float half = __fadd_rn(first[n][i], pairs[n][i]);
          if (chunk % 2 == 0) {
            f[n][4 + i] = half;
          } else {
            f[n][i] = __fadd_rn(f[n][i], __fadd_rn(f[n][4 + i], half));
          }
        }
      }
    }
  }

  // Weights of group j as f32: v[r][0..7], row g + 8 r. Element e stands at place_of(j, t, e / 4) + e % 4 of the chunk.
  static __device__ __forceinline__ void decode(const Chunk& c, const Panel&, int, int j, int, float (&v)[2][8]) {
    std::uint32_t a[4];
    unpack(c, j, a);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const int half = e / 4;
        const std::uint32_t byte = a[2 * half + r] >> (8 * (e % 4));
        const float w =
            kMin ? static_cast<float>(byte & 255u) : static_cast<float>(static_cast<std::int8_t>(byte)) * kFactor;
        if constexpr (kBlock == 32) {
          v[r][e] = kMin ? __fadd_rn(__fmul_rn(d(c, r, j), w), m(c, r, j)) : d(c, r, j) * w;
        } else {
          const int sub = kSub == 32 ? j : 2 * j + half;
          const float scaled = __fmul_rn(d(c, r), static_cast<float>(scale(c, r, sub)));
          v[r][e] = __fmul_rn(scaled, w);
          if constexpr (kMin) v[r][e] = __fsub_rn(v[r][e], __fmul_rn(m(c, r), static_cast<float>(minimum(c, r, sub))));
        }
      }
    }
  }
  static __device__ __forceinline__ int place_of(int j, int t, int half) {
    return 32 * j + (kSub == 32 ? 8 * t + 4 * half : 16 * half + 4 * t);
  }
};

// Rows of bf16 as they are; a lane's 16 bytes are 8 consecutive weights of a row, whose order inside the tensor core's
// k does not matter as long as activations are read in the same one.
struct Bf16 {
  static constexpr bool kHasRowScales = false;
  static __device__ __forceinline__ const float* scales_of(const std::uint8_t*, int, int, int) { return nullptr; }
  static constexpr bool kIsFolded = false;  // a row's sum lies in four lanes
  static constexpr int kSums = 4;
  static constexpr int kSteps = 4;  // of 32 weights
  static constexpr int kChunk = 32 * kSteps;
  struct Chunk {
    uint4 w[kSteps][2];
  };
  static __device__ __forceinline__ int n_chunks(const Panel& panel) { return (panel.k + kChunk - 1) / kChunk; }
  static __device__ __forceinline__ void load(Chunk& c, const Panel& panel, int chunk, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Rows past the end repeat the last; their results are not stored.
      const int row = min(g + 8 * r, panel.rows_left - 1);
      const std::uint8_t* base = panel.base + static_cast<std::int64_t>(row) * panel.k * 2;
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int at = chunk * kChunk + 32 * s + 8 * t;
        c.w[s][r] = at < panel.k ? load_stream256(base + at * 2) : make_uint4(0, 0, 0, 0);
      }
    }
  }
  template <int kColumns8>
  static __device__ __forceinline__ void multiply(const Chunk& c, const Panel& panel, const CudaActivations& x,
                                                  int n_rows, int chunk, int lane, float (&f)[kColumns8][4]) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
      const int column = 8 * n + g;
      uint4 b[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        const int at = chunk * kChunk + 32 * s + 8 * t;
        b[s] = make_uint4(0, 0, 0, 0);
        if (column < n_rows && at < panel.k)
          b[s] = *reinterpret_cast<const uint4*>(x.bf16 + static_cast<std::int64_t>(column) * panel.k + at);
      }
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        mma_bf16(f[n], c.w[s][0].x, c.w[s][1].x, c.w[s][0].y, c.w[s][1].y, b[s].x, b[s].y);
        mma_bf16(f[n], c.w[s][0].z, c.w[s][1].z, c.w[s][0].w, c.w[s][1].w, b[s].z, b[s].w);
      }
    }
  }

  // --- one token: columns are slices of 32 ---------------------------------------------------------------------------
  static constexpr int kSingleChunk = kChunk;
  using Single = Chunk;
  static __device__ __forceinline__ int n_single_chunks(const Panel& panel) { return n_chunks(panel); }
  static __device__ __forceinline__ void load_single(Chunk& c, const Panel& panel, int chunk, int lane) {
    load(c, panel, chunk, lane);
  }
  static __device__ __forceinline__ int element_of(int lane, int half) { return 8 * lane + 4 * half; }
  struct Column {
    std::uint32_t words[4];
  };
  static __device__ __forceinline__ Column make_column(const float (&v)[8], int) {
    return {{pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])}};
  }
  static __device__ __forceinline__ void multiply_single(const Chunk& c, const Column& x, const Panel&, int, int lane,
                                                         float (&f)[4]) {
    const int g = lane / 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const bool is_mine = g == s;
      mma_bf16(f, c.w[s][0].x, c.w[s][1].x, c.w[s][0].y, c.w[s][1].y, is_mine ? x.words[0] : 0,
               is_mine ? x.words[1] : 0);
      mma_bf16(f, c.w[s][0].z, c.w[s][1].z, c.w[s][0].w, c.w[s][1].w, is_mine ? x.words[2] : 0,
               is_mine ? x.words[3] : 0);
    }
  }
};

// FP8 (e4m3) rows, each with a scale (kIsBlocks: 128 x 128 weights with one), which multiply sums. A lane's 16 bytes
// are 16 consecutive weights of a row: four steps of the tensor core's k. Weights become f16 exactly; activations are
// f16 after a power of two that brings the largest of a chunk near 2^12. All weights of a chunk that have one scale are
// a single chain of steps of the tensor core, in all kernels.
template <bool kIsBlocks>
struct F8 {
  static constexpr bool kHasRowScales = !kIsBlocks, kIsFolded = true;
  static constexpr int kSums = 4;
  static __device__ __forceinline__ const float* scales_of(const std::uint8_t* weights, int n_out, int k,
                                                           int panel_idx) {
    const auto* scales = reinterpret_cast<const float*>(weights + static_cast<std::int64_t>(n_out) * k);
    return scales + (kIsBlocks ? panel_idx / 8 * ((k + 127) / 128) : 16 * panel_idx);
  }
  static constexpr int kChunk = 256, kSingleChunk = 256;
  static constexpr int kGroups = kChunk / 32;
  struct Chunk {
    uint4 w[4][2];
  };
  using Single = Chunk;
  static __device__ __forceinline__ int n_chunks(const Panel& panel) { return (panel.k + kChunk - 1) / kChunk; }
  static __device__ __forceinline__ int n_single_chunks(const Panel& panel) { return n_chunks(panel); }
  static __device__ __forceinline__ void load_slice(Chunk& c, const Panel& panel, int chunk, int s, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(g + 8 * r, panel.rows_left - 1), at = chunk * kChunk + 64 * s + 16 * t;
      const std::uint8_t* base = panel.base + static_cast<std::int64_t>(row) * panel.k;
      c.w[s][r] = at < panel.k ? load_stream256(base + at) : make_uint4(0, 0, 0, 0);
    }
  }
  static __device__ __forceinline__ void load(Chunk& c, const Panel& panel, int chunk, int lane) {
#pragma unroll
    for (int s = 0; s < 4; ++s) load_slice(c, panel, chunk, s, lane);
  }
  static __device__ __forceinline__ void load_single(Chunk& c, const Panel& panel, int chunk, int lane) {
    load(c, panel, chunk, lane);
  }

  static __device__ __forceinline__ std::uint32_t word(const uint4& v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
  }
  static __device__ __forceinline__ float block_scale(const Panel& panel, int column) {
    return kIsBlocks ? __ldg(panel.scales + column / 128) : 1.0f;
  }

  // --- one token ---------------------------------------------------------------------------------------------------
  static __device__ __forceinline__ int element_of(int lane, int half) {
    return 64 * (lane / 8) + 16 * (lane % 4) + 8 * (lane / 4 % 2) + 4 * half;
  }
  struct Column {
    std::uint32_t words[4];
    float scale;
  };
  static __device__ __forceinline__ Column make_column(const float (&v)[8], int) {
    float most = 0, bad = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      most = fmaxf(most, fabsf(v[i]));
      bad += v[i] - v[i];
    }
#pragma unroll
    for (int i = 1; i < 32; i *= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    const bool is_finite = __all_sync(0xffffffffu, bad == 0.0f) != 0;
    // 2^(exponent of most - 12) and its inverse, from the exponent's bits.
    const int exponent = max(static_cast<int>(__float_as_uint(most) >> 23) - 12, 14);
    const float inverse = __uint_as_float(static_cast<std::uint32_t>(254 - exponent) << 23);
    Column column;
    column.scale = is_finite ? __uint_as_float(static_cast<std::uint32_t>(exponent) << 23) : __int_as_float(0x7fc00000);
#pragma unroll
    for (int i = 0; i < 4; ++i) column.words[i] = pack_f16(v[2 * i] * inverse, v[2 * i + 1] * inverse);
    return column;
  }
  static __device__ __forceinline__ void multiply_single(const Chunk& c, const Column& x, const Panel& panel, int chunk,
                                                         int lane, float (&f)[4]) {
    const int g = lane / 4, t = lane % 4;
    // A slice is 64 weights, in column 2 s; its second half's activations come from the next column's lanes.
    std::uint32_t words[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = x.words[i];
      words[4 + i] = __shfl_down_sync(0xffffffffu, x.words[i], 4);
    }
    const auto slice = [&](int s, int i, float(&acc)[4]) {
      std::uint32_t a[4];
      e4m3_to_f16(word(c.w[s][0], i), a[0], a[2]);
      e4m3_to_f16(word(c.w[s][1], i), a[1], a[3]);
      const bool is_mine = g == 2 * s;
      mma_f16(acc, a[0], a[1], a[2], a[3], is_mine ? words[2 * i] : 0, is_mine ? words[2 * i + 1] : 0);
    };
    // A chain goes on in the next slice's column, which the next lane of four has.
    const auto move_on = [](float(&acc)[4]) {
      acc[0] = __shfl_up_sync(0xffffffffu, acc[0], 1);
      acc[2] = __shfl_up_sync(0xffffffffu, acc[2], 1);
    };
    if constexpr (!kIsBlocks) {
      float acc[4] = {};
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (s > 0) move_on(acc);
#pragma unroll
        for (int i = 0; i < 4; ++i) slice(s, i, acc);
      }
      // Lane 3 of four has the sums of both rows; even lanes take row g, odd ones row g + 8.
      const float low = __shfl_sync(0xffffffffu, acc[0], lane | 3), high = __shfl_sync(0xffffffffu, acc[2], lane | 3);
      f[0] = fmaf(t % 2 == 0 ? low : high, x.scale, f[0]);
    } else {
      float acc[2][4] = {};
#pragma unroll
      for (int second = 0; second < 2; ++second) {
        if (second == 1) move_on(acc[0]), move_on(acc[1]);
#pragma unroll
        for (int i = 0; i < 4; ++i) slice(second, i, acc[0]), slice(2 + second, i, acc[1]);
      }
      // Lanes 1 and 3 have a half's sums of both rows.
      const float low = t < 2 ? acc[0][0] : acc[1][0], high = t < 2 ? acc[0][2] : acc[1][2];
      const float from_next = __shfl_xor_sync(0xffffffffu, low, 1);
      const int at = chunk * kChunk + 128 * (t / 2);
      const float half = at < panel.k ? __fmul_rn(t % 2 == 0 ? from_next : high, block_scale(panel, at)) : 0.0f;
      f[0] = fmaf(__fadd_rn(half, __shfl_xor_sync(0xffffffffu, half, 2)), x.scale, f[0]);
    }
  }

  // --- more tokens: x.f16 rows, and x.scale [rows][chunks] -----------------------------------------------------------
  template <int kColumns8>
  static __device__ __forceinline__ void multiply(const Chunk& c, const Panel& panel, const CudaActivations& x,
                                                  int n_rows, int chunk, int lane, float (&f)[kColumns8][4]) {
    const int g = lane / 4, t = lane % 4;
    float sums[kIsBlocks ? 2 : 1][kColumns8][4] = {};  // chains of as many weights as have a scale
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      const int at = chunk * kChunk + 64 * s + 16 * t;
      uint4 b[kColumns8][2];
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
        b[n][0] = b[n][1] = make_uint4(0, 0, 0, 0);
        if (8 * n + g < n_rows && at < panel.k) {
          const auto* from =
              reinterpret_cast<const uint4*>(x.f16 + static_cast<std::int64_t>(8 * n + g) * panel.k + at);
          b[n][0] = from[0], b[n][1] = from[1];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        std::uint32_t a[4];
        e4m3_to_f16(word(c.w[s][0], i), a[0], a[2]);
        e4m3_to_f16(word(c.w[s][1], i), a[1], a[3]);
#pragma unroll
        for (int n = 0; n < kColumns8; ++n)
          mma_f16(sums[kIsBlocks ? s / 2 : 0][n], a[0], a[1], a[2], a[3], word(b[n][i / 2], i % 2 * 2),
                  word(b[n][i / 2], i % 2 * 2 + 1));
      }
    }
    const int begin = chunk * kChunk, n_chunks = (panel.k + kChunk - 1) / kChunk;
    float block[2] = {1, 1};
    if constexpr (kIsBlocks) {
      block[0] = block_scale(panel, begin);
      block[1] = begin + 128 < panel.k ? block_scale(panel, begin + 128) : 0.0f;
    }
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * t + i % 2;
        const float scale = column < n_rows ? x.scale[static_cast<std::int64_t>(column) * n_chunks + chunk] : 0.0f;
        float sum = sums[0][n][i];
        if constexpr (kIsBlocks) sum = __fadd_rn(__fmul_rn(sum, block[0]), __fmul_rn(sums[1][n][i], block[1]));
        f[n][i] = fmaf(sum, scale, f[n][i]);
      }
    }
  }

  // As Quant's; a group is half of the lane's 16 bytes of a step.
  static __device__ __forceinline__ void decode(const Chunk& c, const Panel& panel, int chunk, int j, int lane,
                                                float (&v)[2][8]) {
    const int g = lane / 4;
    const float block = block_scale(panel, chunk * kChunk + 32 * j);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(g + 8 * r, panel.rows_left - 1);
      const float scale = kIsBlocks ? block : __ldg(panel.scales + row);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t pair[2];
        e4m3_to_f16(word(c.w[j / 2][r], j % 2 * 2 + i), pair[0], pair[1]);
#pragma unroll
        for (int e = 0; e < 4; ++e)
          v[r][4 * i + e] = half_bits_to_float((pair[e / 2] >> (16 * (e % 2))) & 0xffffu) * scale;
      }
    }
  }
  static __device__ __forceinline__ int place_of(int j, int t, int half) {
    return 64 * (j / 2) + 16 * t + 8 * (j % 2) + 4 * half;
  }
};

// Q8_0 and IQ4_NL as they are packed, multiplied as FP8 is: a weight becomes f16 with one rounding of q d, activations
// are FP8's, and a chunk of 256 is a single chain in all kernels. Products are multiples of 2^-24, as d is, so that
// small ones are exact; beyond 65504 they would be infinite: no block of a matrix that f16 holds has such a scale.
struct Q8F16 : Quant<8, 32, false, 32> {
  // The A operand of a step, from a word of row g and one of row g + 8; scales as two equal f16.
  static __device__ __forceinline__ void operand(std::uint32_t low, std::uint32_t high, const std::uint32_t (&scale)[2],
                                                 std::uint32_t* a) {
    int8_to_f16(low, a[0], a[2]);
    int8_to_f16(high, a[1], a[3]);
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = mul_f16(a[i], scale[i % 2]);
  }
  // Half i of a word, twice.
  static __device__ __forceinline__ std::uint32_t twice(std::uint32_t word, int i) {
    const __half2 two = *reinterpret_cast<const __half2*>(&word), v = i == 0 ? __low2half2(two) : __high2half2(two);
    return *reinterpret_cast<const std::uint32_t*>(&v);
  }

  using Column = F8<false>::Column;
  static __device__ __forceinline__ Column make_column(const float (&v)[8], int lane) {
    return F8<false>::make_column(v, lane);
  }
  static __device__ __forceinline__ void multiply_single(const Single& c, const Column& x, const Panel&, int, int lane,
                                                         float (&f)[4]) {
    const int t = lane % 4;
    float acc[4] = {};
    std::uint32_t scales[2];
    // Tile j is multiplied in column j, which lane j / 2 of four has; so the chain goes from column to column. What the
    // other columns gather (other tiles' activations) is overwritten or left.
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j % 2 == 1) {
        acc[1] = acc[0], acc[3] = acc[2];
      } else {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          if (j > 0) acc[2 * r] = __shfl_up_sync(0xffffffffu, acc[2 * r + 1], 1);
          scales[r] = __shfl_sync(0xffffffffu, c.sub[r][0], (lane & ~3) | (j / 2));
        }
      }
      const std::uint32_t scale[2] = {twice(scales[0], j % 2), twice(scales[1], j % 2)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t a[4];
        operand(c.low[4 * j + 2 * half], c.low[4 * j + 2 * half + 1], scale, a);
        mma_f16(acc, a[0], a[1], a[2], a[3], x.words[2 * half], x.words[2 * half + 1]);
      }
    }
    // Lane 3 of four has the sums of both rows; even lanes take row g, odd ones row g + 8.
    const float low = __shfl_sync(0xffffffffu, acc[1], lane | 3), high = __shfl_sync(0xffffffffu, acc[3], lane | 3);
    f[0] = fmaf(t % 2 == 0 ? low : high, x.scale, f[0]);
  }

  // x as F8's; f[n][4..7] hand the chain on to the second half of the 256 activations that have a scale.
  template <int kColumns8>
  static __device__ __forceinline__ void multiply(const Chunk& c, const Panel& panel, const CudaActivations& x,
                                                  int n_rows, int chunk, int lane, float (&f)[kColumns8][kSums]) {
    const int g = lane / 4, t = lane % 4;
    uint4 b[kColumns8][kGroups];
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int j = 0; j < kGroups; ++j) {
        const int at = chunk * kChunk + 32 * j + 8 * t;
        b[n][j] = make_uint4(0, 0, 0, 0);
        if (8 * n + g < n_rows && at < panel.k)
          b[n][j] = *reinterpret_cast<const uint4*>(x.f16 + static_cast<std::int64_t>(8 * n + g) * panel.k + at);
      }
    }
    float sums[kColumns8][4];
#pragma unroll
    for (int n = 0; n < kColumns8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = chunk % 2 == 0 ? 0.0f : f[n][4 + i];
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const std::uint32_t scale[2] = {twice(c.sub[0][j / 2], j % 2), twice(c.sub[1][j / 2], j % 2)};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        std::uint32_t a[4];
        operand(c.low[4 * j + 2 * half], c.low[4 * j + 2 * half + 1], scale, a);
#pragma unroll
        for (int n = 0; n < kColumns8; ++n)
          mma_f16(sums[n], a[0], a[1], a[2], a[3], half == 0 ? b[n][j].x : b[n][j].z,
                  half == 0 ? b[n][j].y : b[n][j].w);
      }
    }
    const int n_chunks = (panel.k + kSingleChunk - 1) / kSingleChunk;
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (chunk % 2 == 0) {
          f[n][4 + i] = sums[n][i];
        } else {
          const int column = 8 * n + 2 * t + i % 2;
          const float scale =
              column < n_rows ? x.scale[static_cast<std::int64_t>(column) * n_chunks + chunk / 2] : 0.0f;
          f[n][i] = fmaf(sums[n][i], scale, f[n][i]);
        }
      }
    }
  }
};

// The format's struct for a PackedFormat that is not floats: body is called with a value of it. IQ4_NL is kept as Q8_0.
template <class Body>
bool with_quant(PackedFormat format, Body&& body) {
  if (format == kCudaF8Row) return body(F8<false>()), true;
  if (format == kCudaF8Block) return body(F8<true>()), true;
  switch (format) {
    case PackedFormat::kQ4_0:
      return body(Quant<4, 32, false, 32>()), true;
    case PackedFormat::kQ4_1:
      return body(Quant<4, 32, true, 32>()), true;
    case PackedFormat::kQ5_0:
      return body(Quant<5, 32, false, 32>()), true;
    case PackedFormat::kQ5_1:
      return body(Quant<5, 32, true, 32>()), true;
    case PackedFormat::kQ8_0:
    case PackedFormat::kIQ4_NL:
      return body(Quant<8, 32, false, 32>()), true;
    case PackedFormat::kQ2_K:
      return body(Quant<4, 16, true, 256>()), true;
    case PackedFormat::kQ3_K:
      return body(Quant<4, 16, false, 256>()), true;
    case PackedFormat::kQ4_K:
      return body(Quant<4, 32, true, 256>()), true;
    case PackedFormat::kQ5_K:
      return body(Quant<5, 32, true, 256>()), true;
    case PackedFormat::kQ6_K:
      return body(Quant<6, 16, false, 256>()), true;
    case PackedFormat::kIQ4_XS:
      return body(Quant<8, 32, false, 256>()), true;
    default:
      return false;
  }
}

}  // namespace still::cuda

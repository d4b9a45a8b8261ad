// Weights as the kernels see them: a format is a struct that loads a chunk of 16 rows into a lane's registers, turns it
// into A operands of the tensor core, and multiplies. kernels/cuda_packing.h describes the memory.
//
// Lane l of a warp is (g, t) = (l / 4, l % 4): it holds rows g and g + 8 of the panel, and results of the columns 2 t
// and 2 t + 1 of each 8 columns (tokens). Integer sums inside a block are exact and blocks are folded with the CPU's
// fma (docs/arithmetic.md); only the order of blocks differs, since the warps of a block share a row.
#pragma once

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/cuda_kernels.h"

namespace still::cuda {

// Where a panel's weights begin, and the sizes that locate a chunk.
struct Panel {
  const std::uint8_t* base;
  int n_tiles;    // quantised: tiles of a row; floats: unused
  int rows_left;  // rows of the matrix from this panel on
  int k;
};

template <int kBits, int kSub, bool kMin, int kBlock>
struct Quant {
  static constexpr int kStoredBits = kBits, kSubBlock = kSub;
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

  struct Chunk {
    std::uint32_t low[kGroups * kWords];
    std::uint32_t high[kHighWords];
    std::uint32_t d[kBlock == 256 ? 2 : 8];  // rows g and g + 8; 32-wide: of each group
    std::uint32_t sub[2][kBlock == 256 ? kRowScales / 4 : 1];
  };

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
      const std::uint8_t* scales = panel.base + static_cast<std::int64_t>(panel.n_tiles) * kTileQuant +
                                   static_cast<std::int64_t>(chunk) * kTileScale;
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
        const std::uint8_t* scales = panel.base + static_cast<std::int64_t>(panel.n_tiles) * kTileQuant +
                                     static_cast<std::int64_t>(tile) * kTileScale;
        if constexpr (kBits == 8) {
          const uint4 v = is_inside ? load_stream(quants + lane * 16) : make_uint4(0, 0, 0, 0);
          c.low[4 * j] = v.x, c.low[4 * j + 1] = v.y, c.low[4 * j + 2] = v.z, c.low[4 * j + 3] = v.w;
        } else {
          const uint2 v = is_inside ? load_stream8(quants + lane * 8) : make_uint2(0, 0);
          c.low[2 * j] = v.x, c.low[2 * j + 1] = v.y;
          if constexpr (kBits == 5) c.high[j] = is_inside ? load_stream2(quants + 256 + lane * 2) : 0;
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = g + 8 * r;
          if constexpr (kMin) {
            c.d[2 * j + r] = is_inside ? load_stream4(scales + row * 4) : 0;
          } else {
            c.d[2 * j + r] = is_inside ? load_stream2(scales + row * 2) : 0;
          }
        }
      }
    }
  }

  // The bits above the fourth of register `reg` of group j, in bit 0 of each byte (5 bits) or bits 0 and 1 (6 bits).
  static __device__ __forceinline__ std::uint32_t fifth(const Chunk& c, int j, int reg) {
    if constexpr (kBlock == 256) return (c.high[j / 2] >> (4 * (j % 2) + reg)) & 0x01010101u;
    return (((c.high[j] >> (4 * reg)) & 15u) * 0x00204081u) & 0x01010101u;
  }

  // Group j's A registers: rows g, g + 8 of the first half, rows g, g + 8 of the second (weights of kFactor^-1 size).
  static __device__ __forceinline__ void unpack(const Chunk& c, int j, std::uint32_t (&a)[4]) {
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
  static __device__ __forceinline__ int scale(const Chunk& c, int r, int i) {
    const std::uint32_t byte = c.sub[r][i / 4] >> (8 * (i % 4));
    return kMin ? static_cast<int>(byte & 255u) : static_cast<int>(static_cast<std::int8_t>(byte));
  }
  static __device__ __forceinline__ int minimum(const Chunk& c, int r, int i) { return scale(c, r, 256 / kSub + i); }
  // d and m of row g (r 0) or g + 8 (r 1), of group j where blocks are 32 wide.
  static __device__ __forceinline__ float d(const Chunk& c, int r, int j = 0) {
    if constexpr (kBlock == 256) return kMin ? half_bits_to_float(c.d[r] & 0xffffu) : __uint_as_float(c.d[r]);
    return half_bits_to_float(c.d[2 * j + r] & 0xffffu);
  }
  static __device__ __forceinline__ float m(const Chunk& c, int r, int j = 0) {
    return half_bits_to_float(c.d[(kBlock == 256 ? 0 : 2 * j) + r] >> 16);
  }

  // One column's chunk, quantised by the warp as quantize_rows would: lane l holds elements 8 l to 8 l + 7.
  struct Column {
    std::uint32_t words[2];
    int sum16;    // of the 16 elements that lanes l and l ^ 1 hold
    float scale;  // of the lane's block
  };
  static __device__ __forceinline__ Column quantize(const float* x, int n, int lane) {
    float v[8] = {};
    if (8 * lane < n && 8 * lane < kChunk) {
      const float4 a = *reinterpret_cast<const float4*>(x + 8 * lane);
      const float4 b = *reinterpret_cast<const float4*>(x + 8 * lane + 4);
      v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    }
    float most = 0, sum = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      most = fmaxf(most, fabsf(v[i]));
      sum += v[i] - v[i];  // NaN where one is NaN or infinite
    }
#pragma unroll
    for (int i = 1; i < kBlock / 8; i *= 2) {
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
      sum += __shfl_xor_sync(0xffffffffu, sum, i);
    }
    const bool is_finite = sum == 0.0f, is_zero = most < 0x1p-120f || !is_finite;
    const float inverse = is_zero ? 0.0f : __fdiv_rn(127.0f, most);
    Column column{{0, 0}, 0, is_zero ? 0.0f : __fdiv_rn(most, 127.0f)};
    if (!is_finite) column.scale = __int_as_float(0x7fc00000);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int q = is_zero ? 0 : __float2int_rn(__fmul_rn(v[i], inverse));
      column.sum16 += q;
      column.words[i / 4] |= static_cast<std::uint32_t>(q & 255) << (8 * (i % 4));
    }
    column.sum16 += __shfl_xor_sync(0xffffffffu, column.sum16, 1);
    return column;
  }

  // f[n] += this chunk times 8 columns n; f[n] is the accumulator of (rows g, g + 8) x (columns 2 t, 2 t + 1).
  // kIsSingle: only the first of each pair of columns is wanted.
  template <int kColumns8, bool kIsSingle>
  static __device__ __forceinline__ void multiply(const Chunk& c, const Panel& panel, const CudaActivations& x,
                                                  int n_rows, int chunk, int lane, float (&f)[kColumns8][4]) {
    const int g = lane / 4, t = lane % 4, k = panel.k;
    const int n_blocks = k / kBlock;
    Column single;
    if constexpr (kIsSingle) single = quantize(x.f32 + chunk * kChunk, k - chunk * kChunk, lane);
    int sums[kColumns8][4], mins[kColumns8][4];
#pragma unroll
    for (int n = 0; n < kColumns8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] = mins[n][i] = 0;
#pragma unroll
    for (int j = 0; j < kGroups; ++j) {
      const int at = chunk * kChunk + 32 * j;
      if (kBlock == 32 && at >= k) break;
      std::uint32_t a[4];
      unpack(c, j, a);
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
        const int column = 8 * n + g, first = 8 * n + 2 * t;
        const std::int8_t* q = x.q + static_cast<std::int64_t>(column) * k + at;
        int acc[4], acc2[4];
        if constexpr (kSub == 32) {
          uint2 b = make_uint2(0, 0);
          if constexpr (kIsSingle) {
            b.x = __shfl_sync(0xffffffffu, single.words[0], 4 * j + t);
            b.y = __shfl_sync(0xffffffffu, single.words[1], 4 * j + t);
            if (g != 0) b = make_uint2(0, 0);
          } else if (column < n_rows) {
            b = *reinterpret_cast<const uint2*>(q + 8 * t);
          }
          mma_s8(acc, a[0], a[1], a[2], a[3], b.x, b.y);
        } else {
          std::uint32_t b0 = 0, b1 = 0;
          if constexpr (kIsSingle) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              const int from = 4 * j + 2 * half + t / 2;
              const std::uint32_t low = __shfl_sync(0xffffffffu, single.words[0], from);
              const std::uint32_t high = __shfl_sync(0xffffffffu, single.words[1], from);
              (half == 0 ? b0 : b1) = g != 0 ? 0 : t % 2 == 0 ? low : high;
            }
          } else if (column < n_rows) {
            b0 = *reinterpret_cast<const std::uint32_t*>(q + 4 * t);
            b1 = *reinterpret_cast<const std::uint32_t*>(q + 16 + 4 * t);
          }
          mma_s8_k16(acc, a[0], a[1], b0);
          mma_s8_k16(acc2, a[2], a[3], b1);
        }
        // Two 16-sums of each column, low and high half of a word.
        std::uint32_t two_sums[2] = {0, 0};
        if constexpr (kMin && kIsSingle) {
          const int low = __shfl_sync(0xffffffffu, single.sum16, 4 * j);
          const int high = __shfl_sync(0xffffffffu, single.sum16, 4 * j + 2);
          two_sums[0] = (static_cast<std::uint32_t>(low) & 0xffffu) | static_cast<std::uint32_t>(high) << 16;
        } else if constexpr (kMin) {
#pragma unroll
          for (int e = 0; e < 2; ++e)
            if (first + e < n_rows)
              two_sums[e] = *reinterpret_cast<const std::uint32_t*>(
                  x.sums + (static_cast<std::int64_t>(first + e) * k + at) / 16);
        }
        if constexpr (kBlock == 256) {
#pragma unroll
          for (int i = 0; i < 4; i += kIsSingle ? 2 : 1) {
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
          for (int i = 0; i < 4; i += kIsSingle ? 2 : 1) {
            const int r = i / 2;
            float s = 0.0f;
            if constexpr (kIsSingle) {
              s = __shfl_sync(0xffffffffu, single.scale, 4 * j);
            } else if (first + i % 2 < n_rows) {
              s = x.scale[static_cast<std::int64_t>(first + i % 2) * n_blocks + at / 32];
            }
            f[n][i] = fmaf(__fmul_rn(d(c, r, j) * kFactor, s), static_cast<float>(acc[i]), f[n][i]);
            if constexpr (kMin) {
              const int sum = static_cast<std::int16_t>(two_sums[i % 2] & 0xffffu) +
                              (static_cast<std::int32_t>(two_sums[i % 2]) >> 16);
              f[n][i] = fmaf(__fmul_rn(m(c, r, j), s), static_cast<float>(sum), f[n][i]);
            }
          }
        }
      }
    }
    if constexpr (kBlock == 256) {
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; i += kIsSingle ? 2 : 1) {
          const int column = 8 * n + 2 * t + i % 2, r = i / 2;
          float s = 0.0f;
          if constexpr (kIsSingle) {
            s = single.scale;
          } else if (column < n_rows) {
            s = x.scale[static_cast<std::int64_t>(column) * n_blocks + chunk];
          }
          f[n][i] = fmaf(__fmul_rn(d(c, r) * kFactor, s), static_cast<float>(sums[n][i]), f[n][i]);
          if constexpr (kMin) f[n][i] = fmaf(-__fmul_rn(m(c, r), s), static_cast<float>(mins[n][i]), f[n][i]);
        }
      }
    }
  }

  // Weights of group j as f32: v[r][0..7], row g + 8 r. Element e stands at column_of(t, e) of the group.
  static __device__ __forceinline__ void decode(const Chunk& c, int j, float (&v)[2][8]) {
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
  static __device__ __forceinline__ int column_of(int t, int half) {
    return kSub == 32 ? 8 * t + 4 * half : 16 * half + 4 * t;
  }
};

// Rows of bf16 as they are; a lane's 16 bytes are 8 consecutive weights of a row, whose order inside the tensor core's
// k does not matter as long as activations are read in the same one.
struct Bf16 {
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
        c.w[s][r] = at < panel.k ? load_stream(base + at * 2) : make_uint4(0, 0, 0, 0);
      }
    }
  }
  template <int kColumns8, bool kIsSingle>
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
};

// The format's struct for a PackedFormat: body is called with a value of it. IQ4_NL is kept as Q8_0.
template <class Body>
bool with_quant(PackedFormat format, Body&& body) {
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

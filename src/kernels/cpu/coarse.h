// The coarse copy of an output head's panel (kernel_table.h, CoarseArgs). A lane owns a row, so that maxima and sums
// need no exchange between lanes; a tile of 16 rows x 32 weights lies in the first cache as floats.
#pragma once

#include "kernels/cpu/formats.h"

namespace still {
namespace {

constexpr int kCoarseBlock = 32;
using CoarseTile = float[kPanelRows];

// A panel's weights as floats, kBlock columns at a time: the bits of decode_packed_row.
template <int kElementBytes, bool kIsBf16 = false>
struct CoarseFloats {
  static constexpr int kBlock = kCoarseBlock;
  static STILL_INLINE void decode(const uint8_t* panel, int64_t, int64_t block_idx, CoarseTile* w) {
    const uint8_t* from = panel + block_idx * kBlock * kPanelRows * kElementBytes;
    for (int i = 0; i < kBlock; ++i, from += kPanelRows * kElementBytes) {
      if constexpr (kElementBytes == 4) {
        f_store(w[i], f_load(reinterpret_cast<const float*>(from)));
      } else {
        f_store(w[i], kIsBf16 ? f_from_bf16(from) : f_from_f16(from));
      }
    }
  }
};

template <class F>
struct CoarseQuants {
  static constexpr int kBlock = F::kBlock;
  static STILL_INLINE void decode(const uint8_t* panel, int64_t n_blocks, int64_t block_idx, CoarseTile* w) {
    constexpr int kSub = F::kVectors * 4;
    const uint8_t* scales = panel + block_idx * F::kScaleBytes;
    const uint8_t* quants = panel + quants_at<F>(n_blocks) + block_idx * F::kQuantBytes;
    const Floats d = f_from_f16(scales + F::kDAt), offset = f_set(static_cast<float>(F::kOffset));
    alignas(64) uint8_t sub_scales[F::kSubs][kPanelRows];
    if constexpr (F::kSubs > 1) {
      for (int pair = 0; pair < F::kSubs / 2; ++pair)
        for (int lane = 0; lane < kPanelRows; ++lane)
          for (int i = 0; i < 2; ++i) sub_scales[2 * pair + i][lane] = scales[(pair * kPanelRows + lane) * 2 + i];
    }
    for (int step = 0; step < F::kSteps; ++step) {
      repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
        constexpr int J = decltype(j)::value;
        const int sub = F::sub(step, J);
        Floats factor = d;
        if constexpr (F::kSubs > 1) factor = f_mul(d, f_from_int8(sub_scales[sub]));
        repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
          constexpr int I = decltype(i)::value;
          const Bytes x = F::template vector<J, I>(quants, step);
          repeat<4>([&](auto byte) STILL_UNROLLED {
            constexpr int kByte = decltype(byte)::value;
            f_store(w[sub * kSub + 4 * I + kByte], f_mul(factor, f_sub(f_from_byte<kByte>(x), offset)));
          });
        });
      });
    }
  }
};

STILL_INLINE Floats sum_of_squares(const CoarseTile* w) {
  Floats sum = f_zero();
  for (int i = 0; i < kCoarseBlock; ++i) {
    const Floats v = f_load(w[i]);
    sum = f_fma(v, v, sum);
  }
  return sum;
}

// A tile to Q4_0; w becomes what that leaves of it. Returns the copy's sums of squares.
STILL_INLINE Floats make_coarse(CoarseTile* w, uint8_t* scales, uint8_t* quants) {
  Floats high = f_zero(), low = f_zero();
  for (int i = 0; i < kCoarseBlock; ++i) {
    const Floats v = f_load(w[i]);
    high = f_max(high, v);
    low = f_min(low, v);
  }
  const Floats neg_low = f_neg(low);
  Floats wanted = f_mul(f_where_greater(high, neg_low, high, low), f_set(-0.125f));
  wanted = f_where_greater(f_set(kCoarseLargest), f_max(high, neg_low), wanted, f_zero());
  f_to_f16(scales, wanted);
  const Floats d = f_from_f16(scales);
  const Floats inverse = f_zero_where_equal(f_div(f_set(1.0f), d), d, f_zero());
  // Sums with 2^23 are rounded to integers, which stand in their low bits.
  constexpr float kInteger = 0x1p23f;
  const Floats first = f_set(kInteger), last = f_set(kInteger + 15), zero_at = f_set(kInteger + 8);
  Floats squares = f_zero();
  for (int v = 0; v < 4; ++v) {
    constexpr int32_t kExponents = static_cast<int32_t>(0x4b000000u + 0xb0000000u);
    Ints word = i_zero();
    repeat<2>([&](auto half) STILL_UNROLLED {
      repeat<4>([&](auto byte) STILL_UNROLLED {
        constexpr int kHalf = decltype(half)::value, kByte = decltype(byte)::value;
        float* at = w[16 * kHalf + 4 * v + kByte];
        const Floats x = f_load(at);
        // A NaN becomes a number here and stays in what is left.
        const Floats q = f_min(f_max(first, f_fma(x, inverse, zero_at)), last);
        const Floats level = f_sub(q, zero_at);
        f_store(at, f_minus_fma(d, level, x));
        squares = f_fma(level, level, squares);
        word = i_add(word, i_shift_left<8 * kByte + 4 * kHalf>(i_abs_bits(q)));
      });
    });
    // Of the exponents 0x4b, two reach into the word: of the bytes that were not shifted, and of those by 4.
    i_store(quants + 64 * v, i_sub(word, i_broadcast(&kExponents)));
  }
  return f_mul(f_mul(d, d), squares);
}

template <class W>
void coarse(const CoarseArgs& args) {
  alignas(64) CoarseTile w[W::kBlock];
  alignas(64) CoarseTile twice[kCoarseMostTwice];
  const int64_t n_blocks = args.k / W::kBlock, n_tiles = (args.k + args.n_twice) / kCoarseBlock;
  uint8_t* quants = args.copy + quants_at<Q4_0>(n_tiles);
  Floats row = f_zero(), copy = f_zero(), left = f_zero(), second = f_zero(), twice_left = f_zero();
  int32_t n_moved = 0;
  for (int64_t block = 0; block < n_blocks; ++block) {
    W::decode(args.panel, n_blocks, block, w);
    for (int i = 0; i < W::kBlock; i += kCoarseBlock) {
      const int64_t column = block * W::kBlock + i, tile = column / kCoarseBlock;
      row = f_add(row, sum_of_squares(w + i));
      copy = f_add(copy, make_coarse(w + i, args.copy + tile * Q4_0::kScaleBytes, quants + tile * Q4_0::kQuantBytes));
      for (; n_moved < args.n_twice && args.columns[n_moved] < column + kCoarseBlock; ++n_moved) {
        float* from = w[i + args.columns[n_moved] - column];
        f_store(twice[args.places[n_moved]], f_load(from));
        f_store(from, f_zero());
      }
      left = f_add(left, sum_of_squares(w + i));
    }
  }
  for (int32_t i = 0; i < args.n_twice; i += kCoarseBlock) {
    const int64_t tile = (args.k + i) / kCoarseBlock;
    second =
        f_add(second, make_coarse(twice + i, args.copy + tile * Q4_0::kScaleBytes, quants + tile * Q4_0::kQuantBytes));
    twice_left = f_add(twice_left, sum_of_squares(twice + i));
  }
  f_store(args.sums->row, row);
  f_store(args.sums->copy, copy);
  f_store(args.sums->left, left);
  f_store(args.sums->second, second);
  f_store(args.sums->twice_left, twice_left);
}

void set_coarse(CpuKernels& table) {
  table.coarse[static_cast<int>(PackedFormat::kF32)] = coarse<CoarseFloats<4>>;
  table.coarse[static_cast<int>(PackedFormat::kF16)] = coarse<CoarseFloats<2>>;
  table.coarse[static_cast<int>(PackedFormat::kBF16)] = coarse<CoarseFloats<2, true>>;
  table.coarse[static_cast<int>(PackedFormat::kQ8_0)] = coarse<CoarseQuants<Q8_0>>;
  table.coarse[static_cast<int>(PackedFormat::kQ6_K)] = coarse<CoarseQuants<Q6_K>>;
}

}  // namespace
}  // namespace still

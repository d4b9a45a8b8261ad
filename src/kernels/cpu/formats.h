// How each quantised format's packed tiles (docs/cpu-kernels.md) become unsigned bytes in the order of k, and what its
// sub-block scales are. A format has
//   kBlock         weights of a row that share d and an activation scale: 32 or 256
//   kSubs, kVectors  sub-blocks of a block, and vectors (of 4 weights) of a sub-block
//   kMax           the largest unsigned weight
//   kOffset        weight = unsigned weight - kOffset (symmetric formats), else kHasMin
//   kQuantBytes, kScaleBytes  of a tile
//   kSteps         a block is unpacked in steps of kStepSubs sub-blocks; steps of a block may be a loop at run time
//   sub(step, j)   which sub-block is the step's j-th;  unpack<j>(quants, step): its weights, from a tile's quants
#pragma once

namespace still {
namespace {

// The 16 levels of IQ4_NL and IQ4_XS, plus 128.
alignas(16) constexpr uint8_t kIq4Levels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};

template <int kSubBlocks, int kSubVectors, int kMaxWeight, bool kMinimum, int kWeightOffset, int kQuantVectors>
struct Format {
  static constexpr int kSubs = kSubBlocks, kVectors = kSubVectors, kMax = kMaxWeight, kOffset = kWeightOffset;
  static constexpr int kStepSubs = kSubs == 1 ? 1 : 2, kSteps = kSubs / kStepSubs;
  static constexpr int sub(int step, int j) { return step * kStepSubs + j; }
  static constexpr bool kHasMin = kMinimum;
  static constexpr int kBlock = kSubs * kVectors * 4;
  static constexpr int kQuantBytes = kQuantVectors * 64;
  // Where the parts of a tile's scales lie: sub-block scales, minimums, d, then dmin or m.
  static constexpr int kPairBytes = kBlock == 32 ? 0 : kSubs * kPanelRows;
  static constexpr int kMinAt = kPairBytes, kDAt = kPairBytes * (kHasMin ? 2 : 1), kMAt = kDAt + 32;
  static constexpr int kScaleBytes = kDAt + (kHasMin ? 64 : 32);
  using Sub = Weights<kMaxWeight, kSubVectors>;
};

// Vector `idx` of the bytes shifted right, masked.
STILL_INLINE Bytes field(const uint8_t* quants, int idx, int shift, uint8_t mask) {
  return b_and(b_shift_right_by(b_load(quants + 64 * idx), shift), mask);
}
// One bit of each byte of a vector, moved to bit kTo.
template <int kFrom, int kTo>
STILL_INLINE Bytes bit(Bytes x) {
  return b_and(b_shift_right<kFrom - kTo>(x), 1 << kTo);
}

template <bool kMinimum>
struct FourBits : Format<1, 8, 15, kMinimum, 8, 4> {
  template <int J>
  static STILL_INLINE Weights<15, 8> unpack(const uint8_t* quants, int) {
    Weights<15, 8> w;
    repeat<4>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes x = b_load(quants + 64 * I);
      w.template set<I>(b_and(x, 15));
      w.template set<4 + I>(b_and(b_shift_right<4>(x), 15));
    });
    return w;
  }
};
using Q4_0 = FourBits<false>;
using Q4_1 = FourBits<true>;

template <bool kMinimum>
struct FiveBits : Format<1, 8, 31, kMinimum, 16, 5> {
  template <int J>
  static STILL_INLINE Weights<31, 8> unpack(const uint8_t* quants, int) {
    Weights<31, 8> w;
    const Bytes fifth = b_load(quants + 64 * 4);
    repeat<4>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes x = b_load(quants + 64 * I);
      w.template set<I>(b_or(b_and(x, 15), bit<I, 4>(fifth)));
      w.template set<4 + I>(b_or(b_and(b_shift_right<4>(x), 15), bit<4 + I, 4>(fifth)));
    });
    return w;
  }
};
using Q5_0 = FiveBits<false>;
using Q5_1 = FiveBits<true>;

struct Q8_0 : Format<1, 8, 255, false, 128, 8> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int) {
    Sub w;
    repeat<8>([&](auto i)
                  STILL_UNROLLED { w.template set<decltype(i)::value>(b_load(quants + 64 * decltype(i)::value)); });
    return w;
  }
};

struct IQ4_NL : Format<1, 8, 255, false, 128, 4> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int) {
    Sub w;
    repeat<4>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes x = b_load(quants + 64 * (4 * J + I));
      w.template set<I>(b_lookup(kIq4Levels, b_and(x, 15)));
      w.template set<4 + I>(b_lookup(kIq4Levels, b_and(b_shift_right<4>(x), 15)));
    });
    return w;
  }
};

struct IQ4_XS : Format<8, 8, 255, false, 128, 32> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    return IQ4_NL::unpack<J>(quants + 64 * 8 * step, 0);
  }
};

struct Q4_K : Format<8, 8, 15, true, 0, 32> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    Sub w;
    repeat<8>([&](auto i) STILL_UNROLLED {
      w.template set<decltype(i)::value>(field(quants, 8 * step + decltype(i)::value, 4 * J, 15));
    });
    return w;
  }
};

struct Q5_K : Format<8, 8, 31, true, 0, 40> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    Sub w;
    repeat<8>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes fifth = b_shift_right_by(b_load(quants + 64 * (32 + I)), 2 * step);
      w.template set<I>(b_or(field(quants, 8 * step + I, 4 * J, 15), bit<J, 4>(fifth)));
    });
    return w;
  }
};

// Sub-blocks of 16 in halves of 128 weights, which lie in parts of 32: weight l of the four parts shares bytes. A step
// is the first or second 16 of the four parts, so that each vector is loaded once: sub-block 8 * half + 2 * part +
// second.
template <int kMaxWeight, bool kMinimum, int kWeightOffset, int kQuantVectors>
struct SixteenWide : Format<16, 4, kMaxWeight, kMinimum, kWeightOffset, kQuantVectors> {
  static constexpr int kStepSubs = 4, kSteps = 4;
  static constexpr int sub(int step, int j) { return step / 2 * 8 + 2 * j + step % 2; }
};

struct Q6_K : SixteenWide<63, false, 32, 48> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    const int half = step / 2, first = step % 2 * 4;
    Sub w;
    repeat<4>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes low = field(quants, half * 16 + J % 2 * 8 + first + I, J / 2 * 4, 15);
      const Bytes high = b_load(quants + 64 * (32 + half * 8 + first + I));
      w.template set<I>(b_or(low, b_and(b_shift_right<2 * J - 4>(high), 0x30)));
    });
    return w;
  }
};

struct Q3_K : SixteenWide<7, false, 4, 24> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    const int half = step / 2, first = step % 2 * 4;
    Sub w;
    repeat<4>([&](auto i) STILL_UNROLLED {
      constexpr int I = decltype(i)::value;
      const Bytes low = field(quants, half * 8 + first + I, 2 * J, 3);
      w.template set<I>(b_or(low, b_shift_right<-2>(field(quants, 16 + first + I, 4 * half + J, 1))));
    });
    return w;
  }
};

struct Q2_K : SixteenWide<3, true, 0, 16> {
  template <int J>
  static STILL_INLINE Sub unpack(const uint8_t* quants, int step) {
    Sub w;
    repeat<4>([&](auto i) STILL_UNROLLED {
      w.template set<decltype(i)::value>(field(quants, step / 2 * 8 + step % 2 * 4 + decltype(i)::value, 2 * J, 3));
    });
    return w;
  }
};

}  // namespace
}  // namespace still

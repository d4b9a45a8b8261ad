// How each quantised format's packed tiles (docs/cpu-kernels.md) become unsigned bytes in the order of k, and what its
// sub-block scales are. A format has
//   kBlock         weights of a row that share d and an activation scale: 32 or 256
//   kSubs, kVectors  sub-blocks of a block, and vectors (of 4 weights) of a sub-block
//   kMax           the largest unsigned weight
//   kOffset        weight = unsigned weight - kOffset (symmetric formats), else kHasMin
//   kQuantBytes, kScaleBytes  of a tile
//   kSteps         a block is unpacked in steps of kStepSubs sub-blocks; steps of a block may be a loop at run time
//   sub(step, j)   which sub-block is the step's j-th;  vector<j, i>(quants, step): its i-th vector of weights, from a
//                  tile's quants;  order(i): the vector to take i-th, so that those made from the same bytes are
//                  neighbours;  place(i): where vector i of the file's bytes lies in the tile (4 neighbours stay such)
//   kSideBySide    panels that go side by side in linear_one.h; 1: that way is slower (Q3_K's shifts depend on the
//   step,
//                  which is a loop there). Few where a vector costs many instructions, or the two nibbles of a weight
//                  share a costly one and are multiplied together
#pragma once

namespace still {
namespace {

// The 16 levels of IQ4_NL and IQ4_XS, plus 128.
alignas(16) constexpr uint8_t kIq4Levels[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};
// The levels themselves, as bytes of two's complement.
alignas(16) constexpr uint8_t kIq4SignedLevels[16] = {129, 152, 173, 191, 207, 221, 234, 246,
                                                      1,   13,  25,  38,  53,  69,  89,  113};

template <int kSubBlocks, int kSubVectors, int kMaxWeight, bool kMinimum, int kWeightOffset, int kQuantVectors>
struct Format {
  static constexpr int kSubs = kSubBlocks, kVectors = kSubVectors, kMax = kMaxWeight, kOffset = kWeightOffset;
  static constexpr int kStepSubs = kSubs == 1 ? 1 : 2, kSteps = kSubs / kStepSubs;
  static constexpr int sub(int step, int j) { return step * kStepSubs + j; }
  static constexpr int order(int i) { return i; }
  static constexpr int place(int i) { return i; }
  static constexpr bool kHasMin = kMinimum;
  // One column on AVX2 (linear_one.h): panels that go in step, and how far ahead their quants are asked for (0: not).
  static constexpr int kSideBySide = 4, kAskAhead = 0;
  static constexpr int kBlock = kSubs * kVectors * 4;
  static constexpr int kQuantBytes = kQuantVectors * 64;
  // Where the parts of a tile's scales lie: sub-block scales, minimums, d, then dmin or m.
  static constexpr int kPairBytes = kBlock == 32 ? 0 : kSubs * kPanelRows;
  static constexpr int kMinAt = kPairBytes, kDAt = kPairBytes * (kHasMin ? 2 : 1), kMAt = kDAt + 32;
  static constexpr int kScaleBytes = kDAt + (kHasMin ? 64 : 32);
  using Sub = Weights<kMaxWeight, kSubVectors>;
};

// From a panel's scales to its quants (packing.h).
template <class F>
constexpr int64_t quants_at(int64_t n_tiles) {
  return (n_tiles * F::kScaleBytes + 63) / 64 * 64;
}

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
  static constexpr int order(int i) { return i / 2 + i % 2 * 4; }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int) {
    return b_and(b_shift_right<I / 4 * 4>(b_load(quants + 64 * (I % 4))), 15);
  }
};
using Q4_0 = FourBits<false>;
using Q4_1 = FourBits<true>;

template <bool kMinimum>
struct FiveBits : Format<1, 8, 31, kMinimum, 16, 5> {
  static constexpr int kSideBySide = 2, kAskAhead = 1024;
  static constexpr int order(int i) { return i / 2 + i % 2 * 4; }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int) {
    const Bytes low = b_and(b_shift_right<I / 4 * 4>(b_load(quants + 64 * (I % 4))), 15);
    return b_or(low, bit<I, 4>(b_load(quants + 64 * 4)));
  }
};
using Q5_0 = FiveBits<false>;
using Q5_1 = FiveBits<true>;

struct Q8_0 : Format<1, 8, 255, false, 128, 8> {
  template <int J, int I>
  static STILL_INLINE Bytes signed_vector(const uint8_t* quants, int step) {
    return b_flip_signs(vector<J, I>(quants, step));
  }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int) {
    return b_load(quants + 64 * I);
  }
};

struct IQ4_NL : Format<1, 8, 255, false, 128, 4> {
  template <int J, int I>
  static STILL_INLINE Bytes signed_vector(const uint8_t* quants, int) {
    return b_lookup(kIq4SignedLevels, b_and(b_shift_right<I / 4 * 4>(b_load(quants + 64 * (4 * J + I % 4))), 15));
  }
  static constexpr int order(int i) { return i / 2 + i % 2 * 4; }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int) {
    return b_lookup(kIq4Levels, b_and(b_shift_right<I / 4 * 4>(b_load(quants + 64 * (4 * J + I % 4))), 15));
  }
};

struct IQ4_XS : Format<8, 8, 255, false, 128, 32> {
  static constexpr int kSideBySide = 2;
  static constexpr int order(int i) { return IQ4_NL::order(i); }
  template <int J, int I>
  static STILL_INLINE Bytes signed_vector(const uint8_t* quants, int step) {
    return IQ4_NL::signed_vector<J, I>(quants + 64 * 8 * step, 0);
  }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    return IQ4_NL::vector<J, I>(quants + 64 * 8 * step, 0);
  }
};

struct Q4_K : Format<8, 8, 15, true, 0, 32> {
  static constexpr int kSideBySide = 2, kAskAhead = 1024;
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    return field(quants, 8 * step + I, 4 * J, 15);
  }
};

struct Q5_K : Format<8, 8, 31, true, 0, 40> {
  static constexpr int kSideBySide = 2, kAskAhead = 4096;
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    const Bytes fifth = b_move_bit<4>(b_load(quants + 64 * (32 + I)), 2 * step + J);
    return b_or(field(quants, 8 * step + I, 4 * J, 15), fifth);
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

// Its vectors lie in the order in which they are used, twelve a step: 4 of ql for the first two parts' weights (low
// nibbles) and the last two's, 4 of the next part's, 4 of qh.
struct Q6_K : SixteenWide<63, false, 32, 48> {
  static constexpr int kSideBySide = 2, kAskAhead = 1024;
  static constexpr int place(int i) {
    return i < 32 ? (i / 16 * 2 + i / 4 % 2) * 12 + i / 8 % 2 * 4 + i % 4 : (i / 4 - 8) * 12 + 8 + i % 4;
  }
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    const Bytes low = field(quants, step * 12 + J % 2 * 4 + I, J / 2 * 4, 15);
    const Bytes high = b_load(quants + 64 * (step * 12 + 8 + I));
    return b_or(low, b_and(b_shift_right<2 * J - 4>(high), 0x30));
  }
};

struct Q3_K : SixteenWide<7, false, 4, 24> {
  static constexpr int kSideBySide = 1;
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    const int half = step / 2, first = step % 2 * 4;
    const Bytes low = field(quants, half * 8 + first + I, 2 * J, 3);
    return b_or(low, b_shift_right<-2>(field(quants, 16 + first + I, 4 * half + J, 1)));
  }
};

struct Q2_K : SixteenWide<3, true, 0, 16> {
  static constexpr int kSideBySide = 2;
  template <int J, int I>
  static STILL_INLINE Bytes vector(const uint8_t* quants, int step) {
    return field(quants, step / 2 * 8 + step % 2 * 4 + I, 2 * J, 3);
  }
};

// The weights of the step's sub-block J, all at once.
template <class F, int J>
STILL_INLINE typename F::Sub unpack(const uint8_t* quants, int step) {
  typename F::Sub w;
  repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
    constexpr int I = F::order(decltype(i)::value);
    w.template set<I>(F::template vector<J, I>(quants, step));
  });
  return w;
}

// The same, each vector made where it is used: for few registers.
template <class F, int J>
struct LazyWeights {
  static constexpr int kMax = F::kMax, kVectors = F::kVectors, kParts = F::Sub::kParts;
  const uint8_t* quants;
  int step;
  static constexpr int order(int i) { return F::order(i); }
  template <int kPart, int I>
  STILL_INLINE Bytes get() const {
    const Bytes x = F::template vector<J, I>(quants, step);
    if constexpr (kParts == 1) {
      return x;
    } else {
      return b_and(b_shift_right<4 * kPart>(x), 15);
    }
  }
};

// The same as int16 (dot.h, add_wide_dots), for formats of 32-wide blocks.
template <class F>
struct WideWeights {
  static constexpr int kVectors = F::kVectors;
  const uint8_t* quants;
  static constexpr int order(int i) { return F::order(i); }
  template <int I>
  STILL_INLINE void get(Pairs (&halves)[2]) const {
    const Bytes x = F::template vector<0, I>(quants, 0);
    halves[0] = p_even_bytes(x);
    halves[1] = b_shift_right<8>(x);
  }
};

}  // namespace
}  // namespace still

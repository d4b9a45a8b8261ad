// Many columns where registers are few (AVX2), for blocks of 256: eight columns lie across the lanes of a register and
// a row's weights are broadcast. Activations are then vpmaddubsw's operand in memory: a word of weights for up to 64
// columns takes one instruction besides a product and a sum for each eight of them, where broadcast activations take
// two loads of weights and four broadcasts for each eight. Weights above 63 (IQ4_XS) are multiplied nibble by nibble,
// the upper with 16 times the scale. Groups of 64 columns, the rest of 32, 16 and 8: for each pass of kRegroupedPass
// rows, each block holds all its groups, one after the other. Sums wait in L2 for the next block and are transposed
// into y with the last one.
#pragma once

#include "kernels/cpu/linear_many.h"

namespace still {
namespace {

template <class F>
constexpr bool kAcross = kFewRegisters && F::kBlock == 256;
// Sums of activations are multiplied by a block's minimums, or by its scales for the offset.
template <class F>
constexpr bool kTakesSums = F::kHasMin || !kOffsetInSums<F>;

// Rows of a pass from which on it is faster: fewer are multiplied as in linear_many.h (measured).
constexpr int64_t kAcrossFrom = 64;

// Columns of the group that begins where `left` are left, a multiple of 8.
STILL_INLINE int64_t across_columns(int64_t left) {
  return left >= 64 ? 64 : left >= 32 ? 32 : left >= 16 ? 16 : 8;
}
STILL_INLINE int64_t across_rows_of_pass(int64_t n_rows, int64_t pass) {
  return (min_of(kRegroupedPass, n_rows - pass) + 7) / 8 * 8;
}

template <class F>
void regroup_across(const RegroupArgs& args) {
  constexpr int64_t kWords = ColumnLayout<F>::kWords;
  const int64_t n_blocks = args.x.k / F::kBlock;
  for (int64_t row = args.row_begin; row < args.row_end; row += 8) {
    const int64_t pass = row / kRegroupedPass * kRegroupedPass, n = across_rows_of_pass(args.n_rows, pass);
    if (n < kAcrossFrom) {
      RegroupArgs rest = args;
      rest.row_begin = row;
      return regroup<F>(rest);
    }
    int64_t group = 0;
    while (group + across_columns(n - group) <= row - pass) group += across_columns(n - group);
    int32_t* out = args.out + pass * n_blocks * kWords + group * kWords + (row - pass - group);
    regroup_columns<F, 8>(args.x, row, min_of(8, args.n_rows - row), 0, n_blocks, out, across_columns(n - group),
                          n * kWords);
  }
}

template <class F>
constexpr Regrouping kAcrossRegrouping = {regroup_across<F>, F::kBlock,
                                          static_cast<int32_t>(ColumnLayout<F>::kWords * 4)};

// A block of a panel: a word for each of the 16 rows, time and again.
template <class F>
struct alignas(64) AcrossBlock {
  uint8_t weights[kPartBytes<F, true>];
  int32_t scales[F::kSubs][16];  // twice, as an int16 pair
  int32_t sum_factors[kTakesSums<F> ? F::kSubs / 2 : 1][16];
  float d[16], m[16];

  void set(const uint8_t* quants, const uint8_t* stored) {
    unpack_blocks<F>(quants, 1, 0, weights);
    for (int sub = 0; sub < F::kSubs; ++sub)
      b_store(reinterpret_cast<uint8_t*>(scales[sub]), scale_half(scale_pairs<F>(stored + sub / 2 * 32), sub % 2));
    f_store(d, f_from_f16(stored + F::kDAt));
    if constexpr (kTakesSums<F>) {
      const uint8_t* factors = stored + (F::kHasMin ? F::kMinAt : 0);
      for (int pair = 0; pair < F::kSubs / 2; ++pair)
        b_store(reinterpret_cast<uint8_t*>(sum_factors[pair]), scale_pairs<F>(factors + 32 * pair));
    }
    if constexpr (F::kHasMin) f_store(m, f_neg(f_from_f16(stored + F::kMAt)));  // -(dmin * s) = (-dmin) * s
  }
};

// sums[16][8 * N] += the products of a block; is_first: 0 +. A sub-block's activations stay in L1 for all rows, whose
// integer sums wait in `dots` meanwhile.
template <class F, int N>
__attribute__((noinline)) void multiply_across(const AcrossBlock<F>& block, const int32_t* x, float* sums,
                                               bool is_first) {
  constexpr int kColumns = 8 * N;
  using Layout = ColumnLayout<F>;
  const auto load = [&](const int32_t* p) STILL_UNROLLED { return *reinterpret_cast<const __m256i*>(p); };
  const auto store = [&](int32_t* p, __m256i value) STILL_UNROLLED { *reinterpret_cast<__m256i*>(p) = value; };
  const int32_t *scale = x + Layout::kScaleAt * kColumns, *column_sums = x + Layout::kSumsAt * kColumns;
  constexpr int kSteps = !kOffsetInSums<F> && kInt16Steps<F::kMax> < F::kVectors ? kInt16Steps<F::kMax> : F::kVectors;
  constexpr int kParts = F::Sub::kParts, kRuns = F::kVectors / kSteps;
  static_assert(kParts == 1 || !kOffsetInSums<F>);  // the offset would be added with each part
  alignas(32) int32_t dots[16 * kColumns];
  for (int i = 0; i < 2 * kColumns; ++i) store(dots + 8 * i, _mm256_setzero_si256());
  const uint8_t* w = block.weights;
  const int32_t *q = x, *offsets = column_sums, *scales = block.scales[0];
  for (int sub = 0; sub < F::kSubs; ++sub) {
    int32_t* to = dots;
    for (int row = 0; row < 16; ++row, w += 4, ++scales, to += kColumns) {
      asm("" : "+r"(q));  // else g++ loads the activations before this loop, which puts them on the stack
      repeat<kParts * kRuns>([&](auto pass) STILL_UNROLLED {
        constexpr int kPart = decltype(pass)::value / kRuns, kRun = decltype(pass)::value % kRuns;
        __m256i run_sums[N];
        repeat<kSteps>([&](auto step) STILL_UNROLLED {
          constexpr int kStep = decltype(step)::value, kVector = kRun * kSteps + kStep;
          int32_t word;
          __builtin_memcpy(&word, w + 64 * (kPart * F::kVectors + kVector), 4);
          const __m256i weights = _mm256_set1_epi32(word);
          repeat<N>([&](auto v) STILL_UNROLLED {
            constexpr int V = decltype(v)::value;
            const __m256i product = _mm256_maddubs_epi16(weights, load(q + kVector * kColumns + 8 * V));
            if constexpr (kStep > 0) {
              run_sums[V] = _mm256_add_epi16(run_sums[V], product);
            } else if constexpr (kOffsetInSums<F>) {
              run_sums[V] = _mm256_add_epi16(product, load(offsets + 8 * V));
            } else {
              run_sums[V] = product;
            }
            asm("" : "+x"(run_sums[V]));  // else g++ adds as a tree, which needs registers
          });
        });
        __m256i factor = _mm256_set1_epi32(*scales);
        if constexpr (kPart == 1) factor = _mm256_slli_epi16(factor, 4);  // of the upper nibbles
        repeat<N>([&](auto v) STILL_UNROLLED {
          constexpr int V = decltype(v)::value;
          store(to + 8 * V, _mm256_add_epi32(_mm256_madd_epi16(run_sums[V], factor), load(to + 8 * V)));
        });
      });
    }
    w += kParts * F::kVectors * 64 - 64;
    q += F::kVectors * kColumns;
    offsets += kColumns;
  }
  const int32_t* dot = dots;
  for (int row = 0; row < 16; ++row, sums += kColumns, dot += kColumns) {
    const __m256 d = _mm256_set1_ps(block.d[row]);
    __m256 m;
    __m256i sum_factors[F::kSubs / 2];
    if constexpr (F::kHasMin) m = _mm256_set1_ps(block.m[row]);
    if constexpr (kTakesSums<F>) {
      repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
        sum_factors[decltype(pair)::value] = _mm256_set1_epi32(block.sum_factors[decltype(pair)::value][row]);
      });
    }
    for (int v = 0; v < kColumns; v += 8) {
      const __m256 s = _mm256_load_ps(reinterpret_cast<const float*>(scale + v));
      const __m256 before = is_first ? _mm256_setzero_ps() : _mm256_load_ps(sums + v);
      __m256i all = load(dot + v), sum_dot;
      if constexpr (kTakesSums<F>) {
        sum_dot = _mm256_madd_epi16(sum_factors[0], load(column_sums + v));
        repeat<F::kSubs / 2 - 1>([&](auto pair) STILL_UNROLLED {
          constexpr int kPair = decltype(pair)::value + 1;
          sum_dot = _mm256_add_epi32(sum_dot,
                                     _mm256_madd_epi16(sum_factors[kPair], load(column_sums + kPair * kColumns + v)));
        });
        if constexpr (!F::kHasMin) all = _mm256_sub_epi32(all, _mm256_slli_epi32(sum_dot, log2_of(F::kOffset)));
      }
      __m256 sum = _mm256_fmadd_ps(_mm256_mul_ps(d, s), _mm256_cvtepi32_ps(all), before);
      if constexpr (F::kHasMin) sum = _mm256_fmadd_ps(_mm256_mul_ps(m, s), _mm256_cvtepi32_ps(sum_dot), sum);
      _mm256_store_ps(sums + v, sum);
    }
  }
}

STILL_INLINE void transpose_8(const float* from, int64_t stride, __m256 (&out)[8]) {
  __m256 in[8], pairs[8];
  for (int i = 0; i < 8; ++i) in[i] = _mm256_load_ps(from + i * stride);
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(in[2 * i], in[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(in[2 * i], in[2 * i + 1]);
  }
  for (int half = 0; half < 2; ++half) {  // of the lower four rows, of the upper four
    const __m256* p = pairs + 4 * half;
    in[4 * half] = _mm256_shuffle_ps(p[0], p[2], 0x44);
    in[4 * half + 1] = _mm256_shuffle_ps(p[0], p[2], 0xee);
    in[4 * half + 2] = _mm256_shuffle_ps(p[1], p[3], 0x44);
    in[4 * half + 3] = _mm256_shuffle_ps(p[1], p[3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    out[i] = _mm256_permute2f128_ps(in[i], in[4 + i], 0x20);
    out[4 + i] = _mm256_permute2f128_ps(in[i], in[4 + i], 0x31);
  }
}

// y[c][lanes] = sums[lanes][c] of n of n_columns columns. V: Floats (not looked at where those are one register).
template <class V>
__attribute__((noinline)) void store_across(const float* sums, int64_t n_columns, int64_t n, int64_t n_lanes, float* y,
                                            int64_t y_stride) {
  for (int64_t c = 0; c < n; c += 8, sums += 8) {
    __m256 low[8], high[8];
    transpose_8(sums, n_columns, low);
    transpose_8(sums + 8 * n_columns, n_columns, high);
    for (int i = 0; i < 8 && c + i < n; ++i, y += y_stride) {
      if (n_lanes == kPanelRows) {
        f_store(y, V{low[i], high[i]});
      } else {
        f_store_some(y, V{low[i], high[i]}, n_lanes);
      }
    }
  }
}

template <class F>
void multiply_all_across(const LinearArgs& args) {
  constexpr int64_t kWords = ColumnLayout<F>::kWords, kPanels = 4;  // panels: for all of them a block is read once
  constexpr int64_t kSums = kRegroupedPass * 16;                    // of a panel
  static_assert(kPanels * (sizeof(AcrossBlock<F>) + kSums * 4) <= kLinearScratchBytes);
  const int64_t n_blocks = args.k / F::kBlock;
  auto* blocks = reinterpret_cast<AcrossBlock<F>*>(args.scratch);
  float* sums = reinterpret_cast<float*>(args.scratch + kPanels * sizeof(AcrossBlock<F>));
  for (int64_t row = 0; row < args.n_rows; row += kRegroupedPass) {
    const int64_t n = min_of(kRegroupedPass, args.n_rows - row), padded = across_rows_of_pass(args.n_rows, row);
    if (padded < kAcrossFrom) {
      LinearArgs rest = args;
      rest.n_rows = n;
      rest.y += row * args.y_stride;
      rest.regrouped += row * n_blocks * kWords;
      return multiply_regrouped<F>(rest);
    }
    for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += kPanels) {
      const int n_panels = static_cast<int>(min_of(kPanels, args.panel_end - panel));
      const int32_t* x = args.regrouped + row * n_blocks * kWords;
      for (int64_t b = 0; b < n_blocks; ++b) {
        const bool is_last = b + 1 == n_blocks;
        PanelPart parts[kPanels];
        for (int p = 0; p < n_panels; ++p) {
          parts[p] = panel_part<F>(args, panel + p, row, b);
          blocks[p].set(parts[p].quants, parts[p].scales);
          // The next block, of these panels or of the next ones.
          parts[p].ahead =
              is_last ? args.weights + (panel + kPanels + p) * args.panel_bytes : parts[p].quants + F::kQuantBytes;
          parts[p].ahead_lines = (F::kQuantBytes / 64 * 64 + padded - 1) / padded;  // with each 64 columns
          parts[p].ahead_end = parts[p].ahead + F::kQuantBytes;
          const uint8_t* scales =
              parts[p].scales + (is_last ? kPanels * args.panel_bytes - b * F::kScaleBytes : F::kScaleBytes);
          for (int64_t i = 0; i < F::kScaleBytes; i += 64) prefetch_l2(scales + i);
        }
        for (int64_t group = 0, columns; group < padded; group += columns, x += columns * kWords) {
          columns = across_columns(padded - group);
          for (int p = 0; p < n_panels; ++p) {
            PanelPart& part = parts[p];
            for (int64_t i = 0; i < part.ahead_lines && part.ahead < part.ahead_end; ++i, part.ahead += 64)
              prefetch_l2(part.ahead);
            float* group_sums = sums + p * kSums + group * 16;
            const auto multiply = columns == 64   ? multiply_across<F, 8>
                                  : columns == 32 ? multiply_across<F, 4>
                                  : columns == 16 ? multiply_across<F, 2>
                                                  : multiply_across<F, 1>;
            multiply(blocks[p], x, group_sums, b == 0);
            if (is_last)
              store_across<Floats>(group_sums, columns, min_of(columns, n - group), part.n_lanes,
                                   part.y + group * args.y_stride, args.y_stride);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace still

// Many columns where registers are few (AVX2), for blocks of 256: eight columns lie across the lanes of a register and
// a row's weights are broadcast. Activations are then vpmaddubsw's operand in memory: a word of weights for up to 64
// columns takes one instruction besides a product and a sum for each eight of them, where broadcast activations take
// two loads of weights and four broadcasts for each eight. Groups of 64 columns, the rest of 32, 16 and 8: for each
// pass of kRegroupedPass rows, each block holds all its groups, one after the other. Sums wait in L2 for the next block
// and are transposed into y with the last one.
//
// Weights above 63 (IQ4_XS) are multiplied as int16, which holds them times their sub-block's scale as well: so there
// is nothing to do between the sub-blocks, and a block's sums stay in registers, two rows of 32 columns at a time. With
//   w0 q0 + w1 q1 = (w0 + q1) (w1 + q0) - w0 w1 - q0 q1
// (Winograd's inner product) half of the multiplications become additions, which more units can do; what is taken off
// is summed once for a row and once for a column. Integers wrap on the way, the result does not.
#pragma once

#include "kernels/cpu/linear_many.h"

namespace still {
namespace {

template <class F>
constexpr bool kAcross = kFewRegisters && F::kBlock == 256;
template <class F>
constexpr bool kScaledWeights = kWide<F, 8>;
template <class F>
constexpr int64_t kAcrossWords = ColumnLayout<F, 8>::kWords;

// Rows of a pass from which on it is faster: fewer are multiplied as in linear_many.h (measured).
constexpr int64_t kAcrossFrom = 64;

// Columns of the group that begins where `left` are left, a multiple of 8.
template <class F>
STILL_INLINE int64_t across_columns(int64_t left) {
  return left >= 64 && !kScaledWeights<F> ? 64 : left >= 32 ? 32 : left >= 16 ? 16 : 8;
}
STILL_INLINE int64_t across_rows_of_pass(int64_t n_rows, int64_t pass) {
  return (min_of(kRegroupedPass, n_rows - pass) + 7) / 8 * 8;
}

template <class F>
void regroup_across(const RegroupArgs& args) {
  constexpr int64_t kWords = kAcrossWords<F>;
  const int64_t n_blocks = args.x.k / F::kBlock;
  for (int64_t row = args.row_begin; row < args.row_end; row += 8) {
    const int64_t pass = row / kRegroupedPass * kRegroupedPass, n = across_rows_of_pass(args.n_rows, pass);
    if (n < kAcrossFrom) {
      RegroupArgs rest = args;
      rest.row_begin = row;
      rest.out += pass * n_blocks * (kWords - kGroupBlockWords<F> / kGroup);  // where this pass begins
      return regroup<F>(rest);
    }
    int64_t group = 0;
    while (group + across_columns<F>(n - group) <= row - pass) group += across_columns<F>(n - group);
    int32_t* out = args.out + pass * n_blocks * kWords + group * kWords + (row - pass - group);
    regroup_columns<F, 8>(args.x, row, min_of(8, args.n_rows - row), 0, n_blocks, out, across_columns<F>(n - group),
                          n * kWords);
  }
}

template <class F>
constexpr Regrouping kAcrossRegrouping = {regroup_across<F>, F::kBlock, static_cast<int32_t>(kAcrossWords<F> * 4)};

// A block of a panel: a word for each of the 16 rows, time and again.
template <class F, bool = kScaledWeights<F>>
struct alignas(64) AcrossBlock {
  uint8_t weights[kPartBytes<F, true>];
  int32_t scales[F::kSubs][16];  // twice, as an int16 pair
  int32_t minimums[F::kHasMin ? F::kSubs / 2 : 1][16];
  float d[16], m[16];

  void set(const uint8_t* quants, const uint8_t* stored) {
    unpack_blocks<F>(quants, 1, 0, weights);
    for (int sub = 0; sub < F::kSubs; ++sub)
      b_store(reinterpret_cast<uint8_t*>(scales[sub]), scale_half(scale_pairs<F>(stored + sub / 2 * 32), sub % 2));
    f_store(d, f_from_f16(stored + F::kDAt));
    if constexpr (F::kHasMin) {
      for (int pair = 0; pair < F::kSubs / 2; ++pair)
        b_store(reinterpret_cast<uint8_t*>(minimums[pair]), scale_pairs<F>(stored + F::kMinAt + 32 * pair));
    }
    if constexpr (F::kHasMin) f_store(m, f_neg(f_from_f16(stored + F::kMAt)));  // -(dmin * s) = (-dmin) * s
  }
};

// Of signed weights times their scales: the pairs of kWide, and minus the sum of their products.
template <class F>
struct alignas(64) AcrossBlock<F, true> {
  int32_t weights[F::kBlock / 2][16];
  int32_t minus_products[16];
  float d[16];

  void set(const uint8_t* quants, const uint8_t* stored) {
    static_assert(128 * 32 + 127 < 32768);  // weights by scales of 6 bits, plus an activation
    __m256i minus[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int step = 0; step < F::kSteps; ++step) {
      repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
        constexpr int J = decltype(j)::value;
        const int sub = F::sub(step, J);
        alignas(64) int32_t scales[16], bytes[16];
        b_store(reinterpret_cast<uint8_t*>(scales), scale_half(scale_pairs<F>(stored + sub / 2 * 32), sub % 2));
        repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
          constexpr int I = decltype(i)::value;
          b_store(reinterpret_cast<uint8_t*>(bytes), F::template signed_vector<J, I>(quants, step));
          int32_t* out = weights[2 * (sub * F::kVectors + I)];
          for (int half = 0; half < 2; ++half) {
            const __m256i scale = *reinterpret_cast<const __m256i*>(scales + 8 * half);
            const __m256i all = *reinterpret_cast<const __m256i*>(bytes + 8 * half);
            const __m256i even = _mm256_mullo_epi16(_mm256_srai_epi16(_mm256_slli_epi16(all, 8), 8), scale);
            const __m256i odd = _mm256_mullo_epi16(_mm256_srai_epi16(all, 8), scale);
            *reinterpret_cast<__m256i*>(out + 8 * half) = even;
            *reinterpret_cast<__m256i*>(out + 16 + 8 * half) = odd;
            minus[half] = _mm256_sub_epi32(minus[half], _mm256_madd_epi16(even, odd));
          }
        });
      });
    }
    for (int half = 0; half < 2; ++half) *reinterpret_cast<__m256i*>(minus_products + 8 * half) = minus[half];
    f_store(d, f_from_f16(stored + F::kDAt));
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
  constexpr int kRuns = F::kVectors / kSteps;
  static_assert(F::Sub::kParts == 1 && (F::kHasMin || kOffsetInSums<F>));
  alignas(32) int32_t dots[16 * kColumns];
  for (int i = 0; i < 2 * kColumns; ++i) store(dots + 8 * i, _mm256_setzero_si256());
  const uint8_t* w = block.weights;
  const int32_t *q = x, *offsets = column_sums, *scales = block.scales[0];
  for (int sub = 0; sub < F::kSubs; ++sub) {
    int32_t* to = dots;
    for (int row = 0; row < 16; ++row, w += 4, ++scales, to += kColumns) {
      asm("" : "+r"(q));  // else g++ loads the activations before this loop, which puts them on the stack
      repeat<kRuns>([&](auto run) STILL_UNROLLED {
        constexpr int kRun = decltype(run)::value;
        __m256i run_sums[N];
        repeat<kSteps>([&](auto step) STILL_UNROLLED {
          constexpr int kStep = decltype(step)::value, kVector = kRun * kSteps + kStep;
          int32_t word;
          __builtin_memcpy(&word, w + 64 * kVector, 4);
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
        const __m256i factor = _mm256_set1_epi32(*scales);
        repeat<N>([&](auto v) STILL_UNROLLED {
          constexpr int V = decltype(v)::value;
          store(to + 8 * V, _mm256_add_epi32(_mm256_madd_epi16(run_sums[V], factor), load(to + 8 * V)));
        });
      });
    }
    w += F::kVectors * 64 - 64;
    q += F::kVectors * kColumns;
    offsets += kColumns;
  }
  const int32_t* dot = dots;
  for (int row = 0; row < 16; ++row, sums += kColumns, dot += kColumns) {
    const __m256 d = _mm256_set1_ps(block.d[row]);
    __m256 m;
    __m256i minimums[F::kSubs / 2];
    if constexpr (F::kHasMin) {
      m = _mm256_set1_ps(block.m[row]);
      repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
        minimums[decltype(pair)::value] = _mm256_set1_epi32(block.minimums[decltype(pair)::value][row]);
      });
    }
    for (int v = 0; v < kColumns; v += 8) {
      const __m256 s = _mm256_load_ps(reinterpret_cast<const float*>(scale + v));
      const __m256 before = is_first ? _mm256_setzero_ps() : _mm256_load_ps(sums + v);
      __m256 sum = _mm256_fmadd_ps(_mm256_mul_ps(d, s), _mm256_cvtepi32_ps(load(dot + v)), before);
      if constexpr (F::kHasMin) {
        __m256i sum_dot = _mm256_madd_epi16(minimums[0], load(column_sums + v));
        repeat<F::kSubs / 2 - 1>([&](auto pair) STILL_UNROLLED {
          constexpr int kPair = decltype(pair)::value + 1;
          sum_dot =
              _mm256_add_epi32(sum_dot, _mm256_madd_epi16(minimums[kPair], load(column_sums + kPair * kColumns + v)));
        });
        sum = _mm256_fmadd_ps(_mm256_mul_ps(m, s), _mm256_cvtepi32_ps(sum_dot), sum);
      }
      _mm256_store_ps(sums + v, sum);
    }
  }
}

// The same with kScaledWeights. Meanwhile a part of the next group's activations, which begins at `ahead`, is asked for
// into L2, one of kAcrossPanels panels a quarter of them: they come from L3 and the first panel would wait for them.
constexpr int64_t kAcrossPanels = 4;
template <class F, int N>
__attribute__((noinline)) void multiply_scaled(const AcrossBlock<F>& block, const int32_t* x, float* sums,
                                               bool is_first, const int32_t* ahead) {
  using Layout = ColumnLayout<F, 8>;
  constexpr int kColumns = 8 * N, kRows = 2;  // whose sums fill half of the registers
  constexpr int64_t kAsks = kAcrossPanels * 16 / kRows;
  constexpr int64_t kAskedLines = (kColumns * kAcrossWords<F> / 16 + kAsks - 1) / kAsks;
  const auto load = [&](const int32_t* p) STILL_UNROLLED { return *reinterpret_cast<const __m256i*>(p); };
  const float* scale = reinterpret_cast<const float*>(x + Layout::kScaleAt * kColumns);
  const int32_t* products = x + Layout::kSumsAt * kColumns;
  for (int row = 0; row < 16; row += kRows) {
    repeat<kAskedLines>([&](auto i) STILL_UNROLLED { prefetch_l2(ahead + 16 * decltype(i)::value); });
    ahead += 16 * kAskedLines;
    __m256i dots[kRows][N];
    repeat<kRows * N>([&](auto i) STILL_UNROLLED {
      constexpr int R = decltype(i)::value / N, V = decltype(i)::value % N;
      dots[R][V] = _mm256_sub_epi32(_mm256_set1_epi32(block.minus_products[row + R]), load(products + 8 * V));
    });
    const int32_t *w = block.weights[0] + row, *q = x;
    constexpr int kUnrolled = 2;
    for (int word = 0; word < F::kBlock / 4; word += kUnrolled, w += kUnrolled * 32, q += kUnrolled * 2 * kColumns) {
      repeat<kUnrolled>([&](auto i) STILL_UNROLLED {
        constexpr int I = decltype(i)::value;
        __m256i even[kRows], odd[kRows];
        repeat<kRows>([&](auto r) STILL_UNROLLED {
          even[decltype(r)::value] = _mm256_set1_epi32(w[32 * I + decltype(r)::value]);
          odd[decltype(r)::value] = _mm256_set1_epi32(w[32 * I + 16 + decltype(r)::value]);
        });
        repeat<N>([&](auto v) STILL_UNROLLED {
          constexpr int V = decltype(v)::value;
          __m256i q_even = load(q + 2 * I * kColumns + 8 * V), q_odd = load(q + (2 * I + 1) * kColumns + 8 * V);
          // Else g++ loads all of them for each row: as many instructions less as loads more; best is some of both.
          if constexpr (V > 0) asm("" : "+x"(q_even), "+x"(q_odd));
          repeat<kRows>([&](auto r) STILL_UNROLLED {
            constexpr int R = decltype(r)::value;
            const __m256i x_even = _mm256_add_epi16(even[R], q_odd), x_odd = _mm256_add_epi16(odd[R], q_even);
            dots[R][V] = _mm256_add_epi32(dots[R][V], _mm256_madd_epi16(x_even, x_odd));
            asm("" : "+x"(dots[R][V]));  // else g++ adds as a tree, which needs registers
          });
        });
      });
    }
    repeat<kRows>([&](auto r) STILL_UNROLLED {
      const __m256 d = _mm256_set1_ps(block.d[row + decltype(r)::value]);
      repeat<N>([&](auto v) STILL_UNROLLED {
        constexpr int V = decltype(v)::value;
        float* sum = sums + (row + decltype(r)::value) * kColumns + 8 * V;
        const __m256 before = is_first ? _mm256_setzero_ps() : _mm256_load_ps(sum);
        const __m256 factor = _mm256_mul_ps(d, _mm256_load_ps(scale + 8 * V));
        _mm256_store_ps(sum, _mm256_fmadd_ps(factor, _mm256_cvtepi32_ps(dots[decltype(r)::value][V]), before));
      });
    });
  }
}

template <class F>
STILL_INLINE void multiply_across(int64_t n_columns, const AcrossBlock<F>& block, const int32_t* x, float* sums,
                                  bool is_first, const int32_t* ahead) {
  if constexpr (kScaledWeights<F>) {
    const auto multiply = n_columns == 32   ? multiply_scaled<F, 4>
                          : n_columns == 16 ? multiply_scaled<F, 2>
                                            : multiply_scaled<F, 1>;
    multiply(block, x, sums, is_first, ahead);
  } else {
    const auto multiply = n_columns == 64   ? multiply_across<F, 8>
                          : n_columns == 32 ? multiply_across<F, 4>
                          : n_columns == 16 ? multiply_across<F, 2>
                                            : multiply_across<F, 1>;
    multiply(block, x, sums, is_first);
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
  constexpr int64_t kWords = kAcrossWords<F>, kPanels = kAcrossPanels;  // panels: for all of them a block is read once
  constexpr int64_t kSums = kRegroupedPass * 16;                        // of a panel
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
          columns = across_columns<F>(padded - group);
          for (int p = 0; p < n_panels; ++p) {
            PanelPart& part = parts[p];
            for (int64_t i = 0; i < part.ahead_lines && part.ahead < part.ahead_end; ++i, part.ahead += 64)
              prefetch_l2(part.ahead);
            float* group_sums = sums + p * kSums + group * 16;
            // The next group's activations.
            const int32_t* ahead = x + columns * kWords + p * columns * kWords / kPanels;
            multiply_across<F>(columns, blocks[p], x, group_sums, b == 0, ahead);
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

// y = W x for quantised weights (docs/arithmetic.md, "Products with quantised weights"; docs/cpu-kernels.md).
// Activations are first regrouped so that everything a block of weights needs of all columns lies in one run of memory.
//   few columns (up to kMaxColumns): the weights are read once and unpacked in registers, for all columns;
//   many columns: a panel's weights are unpacked once per chunk of k into scratch, then used for every group of
//   columns.
#pragma once

#include "kernels/cpu/formats.h"

namespace still {
namespace {

// Activations of kColumns rows, regrouped; int32 words of one block:
//   q [kBlock / 4][kColumns], four int8 a word;  scale [kColumns] f32;
//   32-wide:  [kColumns], -kOffset * sum(q) as int32, or with a minimum f32(sum(q));
//   256-wide: [kSubs / 2][kColumns], the sums of two neighbouring sub-blocks as int16 pairs;
//   kOffsetInSums: [kSubs][kColumns] what a sub-block's int16 sums start at (dot.h).
template <class F>
constexpr bool kOffsetInSums =
    kFewRegisters && !F::kHasMin && F::kMax <= 63 && 2 * F::kVectors * F::kOffset * 127 < 32768;
// kWide: a word of q is two int16 instead, [kBlock / 4][2][kColumns]: q[4v] and q[4v + 2], then q[4v + 1] and q[4v +
// 3]. Of 256-wide formats those eight columns that linear_across.h takes; in place of all sums there is the sum of
// q[2i] * q[2i + 1].
template <class F, int kColumns>
constexpr bool kWide = kFewRegisters && F::kMax > 63 && (F::kBlock == 32 ? kColumns >= 4 : kColumns == 8);
template <class F, int kColumns = 1>
struct ColumnLayout {
  static constexpr int kScaleAt = F::kBlock / (kWide<F, kColumns> ? 2 : 4), kSumsAt = kScaleAt + 1;
  static constexpr int kSums = F::kBlock == 32 || kWide<F, kColumns> ? 1 : kOffsetInSums<F> ? F::kSubs : F::kSubs / 2;
  static constexpr int kWords = kSumsAt + kSums;
};

STILL_INLINE int32_t pair_word(int32_t low, int32_t high) {
  return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffffu) | static_cast<uint32_t>(high) << 16);
}

template <class F>
STILL_INLINE void regroup_sums(const int16_t* sums, int32_t* out, int64_t n_columns) {
  if constexpr (F::kBlock == 32) {
    const int32_t sum = sums[0] + sums[1];
    if constexpr (F::kHasMin) {
      const float value = static_cast<float>(sum);
      __builtin_memcpy(out, &value, 4);
    } else {
      *out = -F::kOffset * sum;
    }
  } else {
    for (int i = 0; i < F::kSubs / 2; ++i) {
      out[i * n_columns] = F::kVectors == 4
                               ? pair_word(sums[2 * i], sums[2 * i + 1])
                               : pair_word(sums[4 * i] + sums[4 * i + 1], sums[4 * i + 2] + sums[4 * i + 3]);
    }
  }
}

// kOffsetInSums, of a block of one column: the int16 pairs of -kOffset * (sum of q[4v] + q[4v + 1]) and of
// -kOffset * (sum of q[4v + 2] + q[4v + 3]), for each sub-block.
template <class F>
STILL_INLINE void offset_words(const uint8_t* q, int32_t* out, int64_t stride) {
  for (int sub = 0; sub < F::kSubs; ++sub, q += F::kVectors * 4) {
    __m128i pairs = _mm_setzero_si128();
    for (int i = 0; i < F::kVectors * 4; i += 16) {
      const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i));
      pairs = _mm_add_epi16(pairs, _mm_maddubs_epi16(_mm_set1_epi8(1), x));
    }
    pairs = _mm_add_epi16(pairs, _mm_shuffle_epi32(pairs, 0x4e));
    pairs = _mm_add_epi16(pairs, _mm_shuffle_epi32(pairs, 0xb1));
    out[sub * stride] = _mm_cvtsi128_si32(_mm_mullo_epi16(pairs, _mm_set1_epi16(-F::kOffset)));
  }
}

// A block of four columns, the first of which goes to out[0].
template <class F, int kColumns>
STILL_INLINE void regroup_four(const uint8_t* const* q, int64_t offset, int32_t* out, int64_t stride) {
  const auto put = [&](int at, __m128i words)
                       STILL_UNROLLED { _mm_storeu_si128(reinterpret_cast<__m128i*>(out + at * stride), words); };
  __m128i pairs = _mm_setzero_si128();
  for (int piece = 0; piece < F::kBlock / 16; ++piece) {
    __m128i x[4];
    for (int c = 0; c < 4; ++c) x[c] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q[c] + offset + 16 * piece));
    const __m128i low01 = _mm_unpacklo_epi32(x[0], x[1]), high01 = _mm_unpackhi_epi32(x[0], x[1]);
    const __m128i low23 = _mm_unpacklo_epi32(x[2], x[3]), high23 = _mm_unpackhi_epi32(x[2], x[3]);
    const __m128i words[4] = {_mm_unpacklo_epi64(low01, low23), _mm_unpackhi_epi64(low01, low23),
                              _mm_unpacklo_epi64(high01, high23), _mm_unpackhi_epi64(high01, high23)};
    for (int v = 0; v < 4; ++v) {
      if constexpr (kWide<F, kColumns>) {
        const __m128i even = _mm_srai_epi16(_mm_slli_epi16(words[v], 8), 8), odd = _mm_srai_epi16(words[v], 8);
        put(2 * (4 * piece + v), even);
        put(2 * (4 * piece + v) + 1, odd);
        if constexpr (F::kBlock == 256) pairs = _mm_add_epi32(pairs, _mm_madd_epi16(even, odd));
      } else {
        put(4 * piece + v, words[v]);
      }
      if constexpr (kOffsetInSums<F>) pairs = _mm_add_epi16(pairs, _mm_maddubs_epi16(_mm_set1_epi8(1), words[v]));
    }
    if constexpr (kOffsetInSums<F>) {
      constexpr int kPieces = F::kVectors / 4;  // of a sub-block
      if (piece % kPieces != kPieces - 1) continue;
      put(ColumnLayout<F, kColumns>::kSumsAt + piece / kPieces, _mm_mullo_epi16(pairs, _mm_set1_epi16(-F::kOffset)));
      pairs = _mm_setzero_si128();
    }
  }
  if constexpr (F::kBlock == 256 && kWide<F, kColumns>) put(ColumnLayout<F, kColumns>::kSumsAt, pairs);
}

// Blocks [block, block + n_blocks) of the rows [row, row + n_rows); columns past n_rows repeat the last one. They may
// be some of `stride` columns of blocks of block_words.
template <class F, int kColumns>
STILL_INLINE void regroup_columns(const QuantizedRows& x, int64_t row, int64_t n_rows, int64_t block, int64_t n_blocks,
                                  int32_t* out, int64_t stride, int64_t block_words) {
  using Layout = ColumnLayout<F, kColumns>;
  const int64_t blocks_of_row = x.k / F::kBlock;
  const uint8_t* q[kColumns];
  int64_t rows[kColumns];
  for (int c = 0; c < kColumns; ++c) {
    rows[c] = row + min_of(c, n_rows - 1);
    q[c] = reinterpret_cast<const uint8_t*>(x.q) + rows[c] * x.k;
  }
  for (int64_t b = block; b < block + n_blocks; ++b, out += block_words) {
    if constexpr (kColumns == 16) {
      for (int piece = 0; piece < F::kBlock / 16; ++piece) {
        Bytes words[4];
        gather_pieces(q, b * F::kBlock + 16 * piece, words);
        repeat<4>([&](auto v) STILL_UNROLLED {
          b_store_unaligned(out + (4 * piece + decltype(v)::value) * stride, words[decltype(v)::value]);
        });
      }
    } else if constexpr (kColumns % 4 == 0) {
      for (int c = 0; c < kColumns; c += 4) regroup_four<F, kColumns>(q + c, b * F::kBlock, out + c, stride);
    } else {
      for (int c = 0; c < kColumns; ++c) {
        for (int i = 0; i < F::kBlock / 4; ++i) __builtin_memcpy(out + i * stride + c, q[c] + b * F::kBlock + 4 * i, 4);
        if constexpr (kOffsetInSums<F>)
          offset_words<F>(q[c] + b * F::kBlock, out + Layout::kSumsAt * stride + c, stride);
      }
    }
    for (int c = 0; c < kColumns; ++c) {
      __builtin_memcpy(out + Layout::kScaleAt * stride + c, x.scale + rows[c] * blocks_of_row + b, 4);
      if constexpr (!kOffsetInSums<F> && !(F::kBlock == 256 && kWide<F, kColumns>))
        regroup_sums<F>(x.sums + (rows[c] * x.k + b * F::kBlock) / 16, out + Layout::kSumsAt * stride + c, stride);
    }
  }
}
template <class F, int kColumns>
void regroup_columns(const QuantizedRows& x, int64_t row, int64_t n_rows, int64_t block, int64_t n_blocks,
                     int32_t* out) {
  regroup_columns<F, kColumns>(x, row, n_rows, block, n_blocks, out, kColumns,
                               ColumnLayout<F, kColumns>::kWords * kColumns);
}

// A part of a panel and the outputs that it adds to.
struct PanelPart {
  const uint8_t* quants;  // packed, or unpacked by unpack_blocks
  const uint8_t* scales;
  float* y;         // element of the first row of the panel, first column
  int64_t n_lanes;  // rows of the panel that exist
  // What to ask for meanwhile, ahead_lines of 64 bytes with each block: [ahead, ahead_end).
  const uint8_t *ahead = nullptr, *ahead_end = nullptr;
  int64_t ahead_lines = 0;
};
struct ColumnRange {
  int64_t n;  // columns that exist
  int64_t y_stride;
  bool is_first;  // y starts at 0, else at what it holds
};

template <class F, bool kUnpacked>
constexpr int kPartBytes = kUnpacked ? F::kSubs * F::kVectors * F::Sub::kParts * 64 : F::kQuantBytes;

template <class F, bool kUnpacked, int J>
STILL_INLINE auto sub_block(const uint8_t* quants, int step) {
  const uint8_t* stored = quants + F::sub(step, J) * F::kVectors * F::Sub::kParts * 64;
  if constexpr (kFewRegisters && kUnpacked) {
    return StoredWeights<F::kMax, F::kVectors>{stored};
  } else if constexpr (kFewRegisters) {
    return LazyWeights<F, J>{quants, step};
  } else if constexpr (kUnpacked) {
    typename F::Sub w;
    w.load(stored);
    return w;
  } else {
    return unpack<F, J>(quants, step);
  }
}

// body(step): unrolled where that is little code, so that shifts have immediate counts.
template <int kSteps, int kColumns, class Body>
STILL_INLINE void for_steps(const Body& body) {
  if constexpr (kColumns <= 2) {
    repeat<kSteps>([&](auto step) STILL_UNROLLED { body(decltype(step)::value); });
  } else {
    for (int step = 0; step < kSteps; ++step) body(step);
  }
}

template <class F>
STILL_INLINE Pairs scale_pairs(const uint8_t* p) {
  if constexpr (F::kHasMin) {
    return p_from_u8(p);
  } else {
    return p_from_int8(p);
  }
}

constexpr int log2_of(int x) {
  return x <= 1 ? 0 : 1 + log2_of(x / 2);
}

STILL_INLINE Floats f_broadcast(const int32_t* p) {
  float x;
  __builtin_memcpy(&x, p, 4);
  return f_set(x);
}

// Columns whose dot products run side by side: the largest divisor up to kColumnsAtOnce.
constexpr int columns_at_once(int n_columns) {
  int n = n_columns < kColumnsAtOnce ? n_columns : kColumnsAtOnce;
  while (n_columns % n != 0) --n;
  return n;
}

// Part `step` of a block's lines into L2: into L1 that many lines at once would wait for its few fill buffers.
template <class F>
STILL_INLINE void prefetch_part(const uint8_t* quants, int step) {
  constexpr int kLines = F::kQuantBytes / 64 / F::kSteps;
  repeat<kLines>([&](auto line) STILL_UNROLLED { prefetch_l2(quants + 64 * (step * kLines + decltype(line)::value)); });
}
// How far ahead, where panels are read front to back. The distances are measured (docs/cpu-kernels.md).
template <class F, int kColumns>
constexpr int64_t kPrefetchBytes = F::kBlock == 32 && kColumns == 1 ? 2 * 1024 : 16 * 1024;

// One block of one panel: acc[c] = fma(d * s, f32(dot), acc[c]) and the minimum's part.
template <class F, bool kUnpacked, int kColumns, bool kPrefetch = !kUnpacked>
STILL_INLINE void add_block(const uint8_t* quants, const uint8_t* scales, const int32_t* x, Floats* acc) {
  using Layout = ColumnLayout<F, kColumns>;
  const Floats d = f_from_f16(scales + F::kDAt);
  Floats m;
  if constexpr (F::kHasMin) m = f_from_f16(scales + F::kMAt);
  const int32_t* scale = x + Layout::kScaleAt * kColumns;
  const int32_t* sums = x + Layout::kSumsAt * kColumns;
  constexpr int kAtOnce = columns_at_once(kColumns);
  static_assert(kColumns % kAtOnce == 0);

  if constexpr (F::kBlock == 32) {
    if constexpr (kPrefetch) prefetch_part<F>(quants + kPrefetchBytes<F, kColumns>, 0);
    if constexpr (kWide<F, kColumns>) {
      Ints dots[kColumns];
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kColumn = decltype(column)::value;
        dots[kColumn] = i_broadcast(sums + kColumn);
      });
      add_wide_dots<kColumns>(dots, WideWeights<F>{quants}, x, kColumns);
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kColumn = decltype(column)::value;
        acc[kColumn] = f_fma(f_mul(d, f_broadcast(scale + kColumn)), f_from_ints(dots[kColumn]), acc[kColumn]);
      });
      return;
    }
    const auto w = sub_block<F, kUnpacked, 0>(quants, 0);
    repeat<kColumns / kAtOnce>([&](auto group) STILL_UNROLLED {
      constexpr int kFirst = decltype(group)::value * kAtOnce;
      Ints dots[kAtOnce];
      repeat<kAtOnce>([&](auto column) STILL_UNROLLED {
        constexpr int kColumn = decltype(column)::value;
        dots[kColumn] = F::kHasMin || kOffsetInSums<F> ? i_zero() : i_broadcast(sums + kFirst + kColumn);
      });
      add_dots<kAtOnce, kOffsetInSums<F>>(dots, w, x + kFirst, kColumns, sums + kFirst);
      repeat<kAtOnce>([&](auto column) STILL_UNROLLED {
        constexpr int kColumn = kFirst + decltype(column)::value;
        const Floats s = f_broadcast(scale + kColumn);
        acc[kColumn] = f_fma(f_mul(d, s), f_from_ints(dots[decltype(column)::value]), acc[kColumn]);
        if constexpr (F::kHasMin) acc[kColumn] = f_fma(f_mul(m, s), f_broadcast(sums + kColumn), acc[kColumn]);
      });
    });
  } else {
    Ints dots[kColumns];
    repeat<kColumns>([&](auto column) STILL_UNROLLED { dots[decltype(column)::value] = i_zero(); });
    for_steps<F::kSteps, kColumns>([&](int step) STILL_UNROLLED {
      if constexpr (kPrefetch) prefetch_part<F>(quants + kPrefetchBytes<F, kColumns>, step);
      repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
        const int sub = F::sub(step, decltype(j)::value);
        const Ints sub_scale = scale_half(scale_pairs<F>(scales + sub / 2 * 32), sub % 2);
        const auto w = sub_block<F, kUnpacked, decltype(j)::value>(quants, step);
        const int32_t* q = x + sub * F::kVectors * kColumns;
        repeat<kColumns / kAtOnce>([&](auto group) STILL_UNROLLED {
          constexpr int kFirst = decltype(group)::value * kAtOnce;
          add_scaled_dots<kAtOnce, kOffsetInSums<F>>(dots + kFirst, w, q + kFirst, kColumns, sub_scale,
                                                     sums + sub * kColumns + kFirst);
        });
      });
    });
    if constexpr (kOffsetInSums<F>) {
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kColumn = decltype(column)::value;
        acc[kColumn] = f_fma(f_mul(d, f_broadcast(scale + kColumn)), f_from_ints(dots[kColumn]), acc[kColumn]);
      });
      return;
    }
    Pairs factors[F::kSubs / 2];  // of the activation sums: minimums, or scales for the offset
    repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
      factors[decltype(pair)::value] =
          scale_pairs<F>(scales + (F::kHasMin ? F::kMinAt : 0) + 32 * decltype(pair)::value);
    });
    if constexpr (F::kHasMin) m = f_neg(m);  // -(dmin * s) = (-dmin) * s
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int kColumn = decltype(column)::value;
      Ints sum = i_zero();
      repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
        sum =
            p_dot(sum, factors[decltype(pair)::value], i_broadcast(sums + decltype(pair)::value * kColumns + kColumn));
      });
      const Floats s = f_broadcast(scale + kColumn);
      if constexpr (F::kHasMin) {
        acc[kColumn] = f_fma(f_mul(d, s), f_from_ints(dots[kColumn]), acc[kColumn]);
        acc[kColumn] = f_fma(f_mul(m, s), f_from_ints(sum), acc[kColumn]);
      } else {
        const Ints dot = i_sub(dots[kColumn], i_shift_left<log2_of(F::kOffset)>(sum));
        acc[kColumn] = f_fma(f_mul(d, s), f_from_ints(dot), acc[kColumn]);
      }
    });
  }
}

}  // namespace
}  // namespace still

#include "kernels/cpu/linear_one.h"

namespace still {
namespace {

// y of kPanels panels and kColumns columns, over n_blocks blocks. kAhead: prefetches what the parts name.
template <class F, bool kUnpacked, int kPanels, int kColumns, bool kAhead = false>
__attribute__((noinline)) void multiply(const PanelPart* panels, int64_t n_blocks, const int32_t* x,
                                        const ColumnRange& columns) {
  Floats acc[kPanels][kColumns];
  const uint8_t *quants[kPanels], *scales[kPanels];
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    constexpr int kPanel = decltype(panel)::value;
    const PanelPart& part = panels[kPanel];
    quants[kPanel] = part.quants;
    scales[kPanel] = part.scales;
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int kColumn = decltype(column)::value;
      const bool is_zero = columns.is_first || kColumn >= columns.n;
      acc[kPanel][kColumn] = is_zero ? f_zero() : f_load_some(part.y + kColumn * columns.y_stride, part.n_lanes);
    });
  });
  constexpr bool kGoInStep = kInStep<F, kUnpacked, kColumns> && !kAhead;
  if constexpr (kGoInStep) ask_for_scales<F, kPanels>(scales, n_blocks);
  for (int64_t b = 0; b < n_blocks; ++b) {
    if constexpr (kGoInStep) add_block_of_panels<F, kPanels, kColumns>(quants, scales, x, acc);
    repeat<kPanels>([&](auto panel) STILL_UNROLLED {
      constexpr int kPanel = decltype(panel)::value;
      if constexpr (kAhead) {
        const uint8_t* ahead = panels[kPanel].ahead + b * panels[kPanel].ahead_lines * 64;
        const uint8_t* end = ahead + panels[kPanel].ahead_lines * 64;
        if (end > panels[kPanel].ahead_end) end = panels[kPanel].ahead_end;
        for (; ahead < end; ahead += 64) prefetch_l2(ahead);
      }
      if constexpr (!kGoInStep)
        add_block<F, kUnpacked, kColumns, !kUnpacked && !kAhead>(quants[kPanel], scales[kPanel], x, acc[kPanel]);
      quants[kPanel] += kPartBytes<F, kUnpacked>;
      scales[kPanel] += F::kScaleBytes;
    });
    x += ColumnLayout<F, kColumns>::kWords * kColumns;
  }
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int kPanel = decltype(panel)::value, kColumn = decltype(column)::value;
      if (kColumn >= columns.n) return;
      float* y = panels[kPanel].y + kColumn * columns.y_stride;
      if (panels[kPanel].n_lanes == kPanelRows) {
        f_store(y, acc[kPanel][kColumn]);
      } else {
        f_store_some(y, acc[kPanel][kColumn], panels[kPanel].n_lanes);
      }
    });
  });
}

template <class F>
STILL_INLINE PanelPart panel_part(const LinearArgs& args, int64_t panel, int64_t row, int64_t block) {
  const uint8_t* start = args.weights + panel * args.panel_bytes;
  return {start + quants_at<F>(args.k / F::kBlock) + block * F::kQuantBytes, start + block * F::kScaleBytes,
          args.y + row * args.y_stride + panel * kPanelRows, min_of(kPanelRows, args.n_out - panel * kPanelRows)};
}

// Parts of the weights that are read side by side. For one column, where DRAM is the bound, few registers take as many
// as the format says; else the small tiles of 32-wide formats are read best in four streams, the large ones of
// K-quants in one with a far prefetch.
template <class F, int kColumns>
constexpr int kStreams = kColumns == 2 && kInStep<F, false, kColumns> ? 2
                         : kColumns > 1                               ? 1
                         : kFewRegisters                              ? F::kSideBySide
                         : F::kBlock == 32                            ? 4
                                                                      : 1;

// Rows [0, n_rows) of activations, at most kColumns.
template <class F, int kColumns>
void multiply_few(const LinearArgs& args) {
  constexpr int64_t kBlockBytes = ColumnLayout<F, kColumns>::kWords * kColumns * 4;
  int32_t* x = reinterpret_cast<int32_t*>(args.scratch);
  const int64_t n_blocks = args.k / F::kBlock;
  const int64_t step = kLinearScratchBytes / kBlockBytes;
  for (int64_t block = 0; block < n_blocks; block += step) {
    const int64_t count = min_of(step, n_blocks - block);
    if (!args.same_x || count < n_blocks) regroup_columns<F, kColumns>(args.x, 0, args.n_rows, block, count, x);
    const ColumnRange columns{args.n_rows, args.y_stride, block == 0};
    constexpr int kParts = kStreams<F, kColumns>;
    const int64_t part_panels = (args.panel_end - args.panel_begin) / kParts;
    for (int64_t i = 0; i < part_panels; ++i) {
      PanelPart parts[kParts];
      for (int p = 0; p < kParts; ++p) parts[p] = panel_part<F>(args, args.panel_begin + p * part_panels + i, 0, block);
      multiply<F, false, kParts, kColumns>(parts, count, x, columns);
    }
    int64_t panel = args.panel_begin + kParts * part_panels;
    if constexpr (kParts == 3 && kInStep<F, false, kColumns>) {
      if (panel + 2 <= args.panel_end) {
        const PanelPart parts[2] = {panel_part<F>(args, panel, 0, block), panel_part<F>(args, panel + 1, 0, block)};
        multiply<F, false, 2, kColumns>(parts, count, x, columns);
        panel += 2;
      }
    }
    for (; panel < args.panel_end; ++panel) {
      const PanelPart part = panel_part<F>(args, panel, 0, block);
      multiply<F, false, 1, kColumns>(&part, count, x, columns);
    }
  }
}

// How panels are asked for that are unpacked next: `ahead` bytes further on while these are unpacked, or, where a group
// has few columns, a part with each group of columns, since reading and multiplying would alternate else.
constexpr bool kAheadWithGroups = kFewRegisters;
template <class F>
void unpack_blocks(const uint8_t* quants, int64_t n_blocks, int64_t ahead, uint8_t* out) {
  for (int64_t b = 0; b < n_blocks; ++b, quants += F::kQuantBytes, out += kPartBytes<F, true>) {
    for_steps<F::kSteps, 1>([&](int step) STILL_UNROLLED {
      if constexpr (!kAheadWithGroups) prefetch_part<F>(quants + ahead, step);
      repeat<F::kStepSubs>([&](auto sub) STILL_UNROLLED {
        constexpr int J = decltype(sub)::value;
        unpack<F, J>(quants, step).store(out + F::sub(step, J) * F::kVectors * F::Sub::kParts * 64);
      });
    });
  }
}

// Rows [row, row + n) of activations in groups of kColumns, n <= kManyRows.
constexpr int64_t kManyRows = 256;
// Unpacked weights at once: kPanelsAtOnce panels of a chunk of k. They and a group's activations of the chunk stay in
// L1. !kUnpacked: the same with packed weights, unpacked in registers for each group.
constexpr int kPanelsAtOnce = 2;
constexpr int64_t kChunkWeights = 512;  // of a row
template <class F, bool kUnpacked>
constexpr int64_t kChunk = kChunkWeights / (kUnpacked ? F::Sub::kParts : 1);  // nibbles take twice the room
template <class F, bool kUnpacked, int kColumns>
void multiply_many(const LinearArgs& args, int64_t row, int64_t n) {
  constexpr int64_t kGroupBlockWords = ColumnLayout<F, kColumns>::kWords * kColumns;
  constexpr int64_t kUnpackedBytes = kUnpacked ? kChunk<F, true> / F::kBlock * kPartBytes<F, true> : 0;  // of a panel
  uint8_t* unpacked = args.scratch;
  int32_t* x = reinterpret_cast<int32_t*>(args.scratch + kPanelsAtOnce * kUnpackedBytes);
  const int64_t n_groups = (n + kColumns - 1) / kColumns;
  const int64_t n_blocks = args.k / F::kBlock;
  const int64_t x_bytes = kLinearScratchBytes - kPanelsAtOnce * kUnpackedBytes;
  const int64_t fitting = min_of(x_bytes / (n_groups * kGroupBlockWords * 4), kChunk<F, kUnpacked> / F::kBlock);
  const int64_t n_chunks = (n_blocks + fitting - 1) / fitting;
  const int64_t step = (n_blocks + n_chunks - 1) / n_chunks;
  for (int64_t block = 0; block < n_blocks; block += step) {
    const int64_t count = min_of(step, n_blocks - block);
    for (int64_t g = 0; g < n_groups; ++g)
      regroup_columns<F, kColumns>(args.x, row + g * kColumns, min_of(kColumns, n - g * kColumns), block, count,
                                   x + g * count * kGroupBlockWords);
    for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += kPanelsAtOnce) {
      const int n_panels = static_cast<int>(min_of(kPanelsAtOnce, args.panel_end - panel));
      PanelPart parts[kPanelsAtOnce];
      for (int p = 0; p < n_panels; ++p) {
        PanelPart& part = parts[p];
        part = panel_part<F>(args, panel + p, row, block);
        if constexpr (kAheadWithGroups) {
          part.ahead = part.quants + kPanelsAtOnce * args.panel_bytes;
          part.ahead_end = part.ahead + count * F::kQuantBytes;
          part.ahead_lines = (F::kQuantBytes / 64 + n_groups - 1) / n_groups;
          const uint8_t* scales = part.scales + kPanelsAtOnce * args.panel_bytes;
          for (int64_t i = 0; i < count * F::kScaleBytes; i += 64) prefetch_l2(scales + i);
        }
        if constexpr (kUnpacked) {
          uint8_t* out = unpacked + p * kUnpackedBytes;
          unpack_blocks<F>(part.quants, count, kPanelsAtOnce * args.panel_bytes, out);
          part.quants = out;
        }
      }
      for (int64_t g = 0; g < n_groups; ++g) {
        const ColumnRange columns{min_of(kColumns, n - g * kColumns), args.y_stride, block == 0};
        for (int c = kColumns; c < 2 * kColumns; ++c) prefetch(parts[0].y + c * args.y_stride);  // the next group's
        for (int p = 0; p < n_panels; ++p) {
          multiply<F, kUnpacked, 1, kColumns, kAheadWithGroups>(&parts[p], count, x + g * count * kGroupBlockWords,
                                                                columns);
          parts[p].y += kColumns * args.y_stride;
          if constexpr (kAheadWithGroups) parts[p].ahead += count * parts[p].ahead_lines * 64;
        }
      }
    }
  }
}

// Rows up to which weights are rather unpacked again for each group of 4 columns, where registers are few: all where it
// costs nothing beside the products, 16 where it costs little, none (4) else. Measured (docs/cpu-kernels.md).
template <class F>
constexpr int64_t kPackedRows = !kFewRegisters                      ? 0
                                : kWide<F, 4>                       ? INT64_MAX
                                : F::kMax <= 15 && F::kVectors == 8 ? 16
                                                                    : 4;

}  // namespace
}  // namespace still

#include "kernels/cpu/linear_across.h"

namespace still {
namespace {

template <class F>
void linear_quantized(const LinearArgs& args) {
  const int64_t n = args.n_rows;
  if constexpr (kFewRegisters) {
    if (args.regrouped != nullptr) {
      if constexpr (kAcross<F>) return multiply_all_across<F>(args);
      return multiply_regrouped<F>(args);
    }
  }
  if (n == 1) return multiply_few<F, 1>(args);
  if (n == 2) return multiply_few<F, 2>(args);
  if constexpr (kInStep<F, false, 3>) {
    if (n == 3) return multiply_few<F, 3>(args);
    if (n == 5) return multiply_few<F, 5>(args);
    if (n == 6) return multiply_few<F, 6>(args);
    if (n == 7) return multiply_few<F, 7>(args);
    if (n == 8) return multiply_few<F, 8>(args);
  }
  if (n <= 4) return multiply_few<F, 4>(args);
  if constexpr (kMaxColumns == 16) {
    if (n <= 8) return multiply_few<F, 8>(args);
    if (n <= 12) return multiply_few<F, 12>(args);
    if (n <= 16) return multiply_few<F, 16>(args);
    if (n <= 24 || (n > 32 && n <= 36)) return multiply_many<F, true, 12>(args, 0, n);
  }
  if constexpr (kPackedRows<F> > 4) {
    if (n <= kPackedRows<F>) {
      constexpr int64_t kRows = 64;  // more would leave room for few blocks of int16 activations
      for (int64_t row = 0; row < n; row += kRows)
        multiply_many<F, false, kMaxColumns>(args, row, min_of(kRows, n - row));
      return;
    }
  }
  if constexpr (kPackedRows<F> < INT64_MAX) {
    for (int64_t row = 0; row < n; row += kManyRows)
      multiply_many<F, true, kMaxColumns>(args, row, min_of(kManyRows, n - row));
  }
}

template <class F>
constexpr void set_linear(CpuKernels& table, PackedFormat format) {
  table.linear[static_cast<int>(format)] = linear_quantized<F>;
  if constexpr (kAcross<F>) {
    table.regrouping[static_cast<int>(format)] = &kAcrossRegrouping<F>;
  } else if constexpr (kFewRegisters) {
    table.regrouping[static_cast<int>(format)] = &kRegrouping<F>;
  }
}

}  // namespace
}  // namespace still

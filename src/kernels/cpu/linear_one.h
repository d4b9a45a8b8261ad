// One to eight columns of activations where registers are few. Of one column a panel's sums need few of them: several
// panels go side by side, a vector of each at a time; of two columns two panels, of more one. So each word of
// activations is loaded once for all of them, and memory sees as many streams, each read line by line from front to
// back, which the hardware's prefetchers follow better than any prefetch instruction (docs/cpu-kernels.md). What they
// miss is asked for: a panel's scales, all at once as it begins, and its quants where kInStepAhead says so. Included by
// linear_quantized.h.
#pragma once

namespace still {
namespace {

// Whether a product goes this way. Weights above 63 of several columns have a better one (kWide).
template <class F, bool kUnpacked, int kColumns>
constexpr bool kInStep = kFewRegisters && !kUnpacked && F::kSideBySide > 1 && (kColumns == 1 || F::kMax <= 63);
// How far ahead quants are asked for: several columns leave the prefetchers fewer streams to follow.
template <class F, int kColumns>
constexpr int64_t kInStepAhead = F::kAskAhead > 0 || kColumns == 1 ? F::kAskAhead : 1024;

// The panels' scales, at once: they lie between the last panel's quants and this one's, so memory is read front to
// back. Of long panels the prefetchers find the rest by themselves.
constexpr int64_t kAskedScaleBytes = 2 * 1024;
template <class F, int kPanels>
STILL_INLINE void ask_for_scales(const uint8_t* const* scales, int64_t n_blocks) {
  const int64_t n_bytes = min_of(n_blocks * F::kScaleBytes, kAskedScaleBytes);
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    for (int64_t i = 0; i < n_bytes; i += 64) prefetch(scales[decltype(panel)::value] + i);
  });
}

// One block of each panel: acc[p][c] = fma(d * s, f32(dot), acc[p][c]) and the minimum's part, of the columns
// [kFirst, kFirst + kCount) of kColumns.
template <class F, int kPanels, int kColumns, int kFirst, int kCount>
STILL_INLINE void add_block_of_panels(const uint8_t* const* tiles, const uint8_t* const* scales, const int32_t* x,
                                      Floats (*acc)[kColumns]) {
  using Layout = ColumnLayout<F, kColumns>;
  // Weights above 63 are multiplied as signed ones, and each product is widened; the offset has no part in it.
  constexpr bool kSigned = F::kMax > 63, kFromOffsets = kOffsetInSums<F>;
  constexpr bool kFromZero = F::kBlock == 256 || F::kHasMin || kFromOffsets || kSigned;
  constexpr int kRun = !kFromOffsets && kInt16Steps<F::kMax> < F::kVectors ? kInt16Steps<F::kMax> : F::kVectors;
  static_assert(!kSigned || kColumns == 1);
  x += kFirst;
  const int32_t* sums_of_x = x + Layout::kSumsAt * kColumns;
  Ints dots[kPanels][kCount];
  repeat<kPanels * kCount>([&](auto i) STILL_UNROLLED {
    constexpr int kPanel = decltype(i)::value / kCount, kColumn = decltype(i)::value % kCount;
    dots[kPanel][kColumn] = kFromZero ? i_zero() : i_broadcast(sums_of_x + kColumn);
  });
  constexpr int kStepLines = F::kQuantBytes / 64 / F::kSteps, kStepSlots = F::kStepSubs * F::kVectors;
  // A loop, since the code of all steps and panels would not fit the instruction cache.
  for (int step = 0; step < F::kSteps; ++step) {
    repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
      constexpr int J = decltype(j)::value;
      const int sub = F::sub(step, J);
      const int32_t* q = x + sub * F::kVectors * kColumns;
      const uint8_t* quants[kPanels];
      repeat<kPanels>([&](auto panel) STILL_UNROLLED {
        quants[decltype(panel)::value] = tiles[decltype(panel)::value];
        // Else g++ keeps what sub-blocks share on the stack: a store and a load instead of the load.
        if constexpr (F::kSteps > 1) asm("" : "+r"(quants[decltype(panel)::value]));
      });
      const auto factor = [&](int panel) STILL_UNROLLED {
        if constexpr (F::kBlock == 256) {
          return scale_half(scale_pairs<F>(scales[panel] + sub / 2 * 32), sub % 2);
        } else {
          return p_ones();
        }
      };
      if constexpr (kSigned) {
        Pairs factors[kPanels];
        repeat<kPanels>([&](auto panel)
                            STILL_UNROLLED { factors[decltype(panel)::value] = factor(decltype(panel)::value); });
        repeat<F::kVectors>([&](auto i) STILL_UNROLLED {
          constexpr int kVector = F::order(decltype(i)::value);
          const Ints word = i_broadcast(q + kVector);
          repeat<kPanels>([&](auto panel) STILL_UNROLLED {
            constexpr int kPanel = decltype(panel)::value;
            const auto w = F::template signed_vector<J, kVector>(quants[kPanel], step);
            dots[kPanel][0] = p_dot(dots[kPanel][0], maddubs_signed(w, word), factors[kPanel]);
            p_keep(dots[kPanel][0]);
          });
        });
        return;
      }
      repeat<F::kVectors / kRun>([&](auto run) STILL_UNROLLED {
        Pairs sums[kPanels][kCount];
        repeat<kRun>([&](auto i) STILL_UNROLLED {
          constexpr int kIndex = decltype(run)::value * kRun + decltype(i)::value, kVector = F::order(kIndex);
          constexpr int kLine = ((J * F::kVectors + kIndex) * kStepLines + kStepSlots - 1) / kStepSlots;
          constexpr int kEndLine = ((J * F::kVectors + kIndex + 1) * kStepLines + kStepSlots - 1) / kStepSlots;
          Ints words[kCount];
          repeat<kCount>([&](auto column) STILL_UNROLLED {
            words[decltype(column)::value] = i_broadcast(q + kVector * kColumns + decltype(column)::value);
          });
          if constexpr (kInStepAhead<F, kColumns> > 0 && kFirst == 0) {
            // The step's lines spread over its vectors: many at once would wait for the few fill buffers.
            repeat<kEndLine - kLine>([&](auto line) STILL_UNROLLED {
              const int64_t at = kInStepAhead<F, kColumns> + 64 * (step * kStepLines + kLine + decltype(line)::value);
              repeat<kPanels>([&](auto panel) STILL_UNROLLED { prefetch_l2(quants[decltype(panel)::value] + at); });
            });
          }
          repeat<kPanels>([&](auto panel) STILL_UNROLLED {
            const Bytes w = LazyWeights<F, J>{quants[decltype(panel)::value], step}.template get<0, kVector>();
            repeat<kCount>([&](auto column) STILL_UNROLLED {
              constexpr int kColumn = decltype(column)::value;
              const Pairs product = maddubs(w, words[kColumn]);
              Pairs& sum = sums[decltype(panel)::value][kColumn];
              add_product<decltype(i)::value == 0, kFromOffsets>(sum, product, sums_of_x + sub * kColumns + kColumn);
              p_keep(sum);
            });
          });
        });
        repeat<kPanels>([&](auto panel) STILL_UNROLLED {
          constexpr int kPanel = decltype(panel)::value;
          const Pairs scale = factor(kPanel);
          repeat<kCount>([&](auto column) STILL_UNROLLED {
            Ints& dot = dots[kPanel][decltype(column)::value];
            dot = p_dot(dot, sums[kPanel][decltype(column)::value], scale);
            p_keep(dot);
          });
        });
      });
    });
  }
  repeat<kPanels * kCount>([&](auto i) STILL_UNROLLED {
    constexpr int kPanel = decltype(i)::value / kCount, kColumn = decltype(i)::value % kCount;
    const Floats s = f_broadcast(x + Layout::kScaleAt * kColumns + kColumn);
    const uint8_t* scale = scales[kPanel];
    Ints dot = dots[kPanel][kColumn];
    Floats& to = acc[kPanel][kFirst + kColumn];
    const Floats d = f_from_f16(scale + F::kDAt);
    // The activation sums' products with minimums, or with scales for the offset.
    const auto sums_dot = [&](int at) STILL_UNROLLED {
      Ints sum = i_zero();
      repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
        constexpr int kPair = decltype(pair)::value;
        sum = p_dot(sum, scale_pairs<F>(scale + at + 32 * kPair), i_broadcast(sums_of_x + kPair * kColumns + kColumn));
      });
      return sum;
    };
    if constexpr (F::kBlock == 256 && !F::kHasMin && !kFromOffsets && !kSigned)
      dot = i_sub(dot, i_shift_left<log2_of(F::kOffset)>(sums_dot(0)));
    to = f_fma(f_mul(d, s), f_from_ints(dot), to);
    if constexpr (F::kHasMin) {
      const Floats m = f_from_f16(scale + F::kMAt);
      if constexpr (F::kBlock == 32) {
        to = f_fma(f_mul(m, s), f_broadcast(sums_of_x + kColumn), to);
      } else {
        to = f_fma(f_mul(f_neg(m), s), f_from_ints(sums_dot(F::kMinAt)), to);  // -(dmin * s) = (-dmin) * s
      }
    }
  });
}

// The same of all columns, in groups of up to kColumnsAtOnce that are about equal; the block's weights stay in L1.
template <class F, int kPanels, int kColumns, int kFirst = 0>
STILL_INLINE void add_block_of_panels(const uint8_t* const* tiles, const uint8_t* const* scales, const int32_t* x,
                                      Floats (*acc)[kColumns]) {
  constexpr int kLeft = kColumns - kFirst, kGroups = (kLeft + kColumnsAtOnce - 1) / kColumnsAtOnce;
  constexpr int kCount = (kLeft + kGroups - 1) / kGroups;
  add_block_of_panels<F, kPanels, kColumns, kFirst, kCount>(tiles, scales, x, acc);
  if constexpr (kCount < kLeft) add_block_of_panels<F, kPanels, kColumns, kFirst + kCount>(tiles, scales, x, acc);
}

}  // namespace
}  // namespace still

// One column of activations, where a panel's sums need few registers: several panels go side by side, a vector of each
// at a time. So each word of activations is loaded once for all of them, and memory sees as many streams, each read
// line by line from front to back, which the hardware's prefetchers follow better than any prefetch instruction
// (docs/cpu-kernels.md). What they miss is asked for: a panel's scales, all at once as it begins, and its
// quants where F::kAskAhead says so. Included by linear_quantized.h.
#pragma once

namespace still {
namespace {

// Whether a product goes this way.
template <class F, bool kUnpacked, int kColumns>
constexpr bool kOneColumn = kFewRegisters && !kUnpacked && kColumns == 1 && F::kSideBySide > 1;

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

// One block of each panel: acc[p] = fma(d * s, f32(dot), acc[p]) and the minimum's part.
template <class F, int kPanels>
STILL_INLINE void add_block_of_panels(const uint8_t* const* tiles, const uint8_t* const* scales, const int32_t* x,
                                      Floats* acc) {
  using Layout = ColumnLayout<F>;
  // Weights above 63 are multiplied as signed ones, and each product is widened; the offset has no part in it.
  constexpr bool kSigned = F::kMax > 63, kFromOffsets = kOffsetInSums<F>;
  constexpr bool kFromZero = F::kBlock == 256 || F::kHasMin || kFromOffsets || kSigned;
  constexpr int kRun = !kFromOffsets && kInt16Steps<F::kMax> < F::kVectors ? kInt16Steps<F::kMax> : F::kVectors;
  const int32_t* sums_of_x = x + Layout::kSumsAt;
  Ints dots[kPanels];
  repeat<kPanels>([&](auto panel)
                      STILL_UNROLLED { dots[decltype(panel)::value] = kFromZero ? i_zero() : i_broadcast(sums_of_x); });
  constexpr int kStepLines = F::kQuantBytes / 64 / F::kSteps, kStepSlots = F::kStepSubs * F::kVectors;
  // A loop, since the code of all steps and panels would not fit the instruction cache.
  for (int step = 0; step < F::kSteps; ++step) {
    repeat<F::kStepSubs>([&](auto j) STILL_UNROLLED {
      constexpr int J = decltype(j)::value;
      const int sub = F::sub(step, J);
      const int32_t* q = x + sub * F::kVectors;
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
            dots[kPanel] = p_dot(dots[kPanel], maddubs_signed(w, word), factors[kPanel]);
            p_keep(dots[kPanel]);
          });
        });
        return;
      }
      repeat<F::kVectors / kRun>([&](auto run) STILL_UNROLLED {
        Pairs sums[kPanels];
        repeat<kRun>([&](auto i) STILL_UNROLLED {
          constexpr int kIndex = decltype(run)::value * kRun + decltype(i)::value, kVector = F::order(kIndex);
          constexpr int kFirst = ((J * F::kVectors + kIndex) * kStepLines + kStepSlots - 1) / kStepSlots;
          constexpr int kEnd = ((J * F::kVectors + kIndex + 1) * kStepLines + kStepSlots - 1) / kStepSlots;
          const Ints word = i_broadcast(q + kVector);
          if constexpr (F::kAskAhead > 0) {
            // The step's lines spread over its vectors: many at once would wait for the few fill buffers.
            repeat<kEnd - kFirst>([&](auto line) STILL_UNROLLED {
              const int64_t at = F::kAskAhead + 64 * (step * kStepLines + kFirst + decltype(line)::value);
              repeat<kPanels>([&](auto panel) STILL_UNROLLED { prefetch_l2(quants[decltype(panel)::value] + at); });
            });
          }
          repeat<kPanels>([&](auto panel) STILL_UNROLLED {
            const LazyWeights<F, J> w{quants[decltype(panel)::value], step};
            const Pairs product = maddubs(w.template get<0, kVector>(), word);
            Pairs& sum = sums[decltype(panel)::value];
            add_product<decltype(i)::value == 0, kFromOffsets>(sum, product, sums_of_x + sub);
            p_keep(sum);
          });
        });
        repeat<kPanels>([&](auto panel) STILL_UNROLLED {
          constexpr int kPanel = decltype(panel)::value;
          dots[kPanel] = p_dot(dots[kPanel], sums[kPanel], factor(kPanel));
          p_keep(dots[kPanel]);
        });
      });
    });
  }
  const Floats s = f_broadcast(x + Layout::kScaleAt);
  repeat<kPanels>([&](auto panel) STILL_UNROLLED {
    constexpr int kPanel = decltype(panel)::value;
    const uint8_t* scale = scales[kPanel];
    const Floats d = f_from_f16(scale + F::kDAt);
    if constexpr (F::kBlock == 256 && !F::kHasMin && !kFromOffsets && !kSigned) {
      Ints sum = i_zero();
      repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
        constexpr int kPair = decltype(pair)::value;
        sum = p_dot(sum, scale_pairs<F>(scale + 32 * kPair), i_broadcast(sums_of_x + kPair));
      });
      dots[kPanel] = i_sub(dots[kPanel], i_shift_left<log2_of(F::kOffset)>(sum));
    }
    acc[kPanel] = f_fma(f_mul(d, s), f_from_ints(dots[kPanel]), acc[kPanel]);
    if constexpr (F::kHasMin) {
      Floats m = f_from_f16(scale + F::kMAt);
      if constexpr (F::kBlock == 32) {
        acc[kPanel] = f_fma(f_mul(m, s), f_broadcast(sums_of_x), acc[kPanel]);
      } else {
        Ints sum = i_zero();
        repeat<F::kSubs / 2>([&](auto pair) STILL_UNROLLED {
          constexpr int kPair = decltype(pair)::value;
          sum = p_dot(sum, scale_pairs<F>(scale + F::kMinAt + 32 * kPair), i_broadcast(sums_of_x + kPair));
        });
        acc[kPanel] = f_fma(f_mul(f_neg(m), s), f_from_ints(sum), acc[kPanel]);  // -(dmin * s) = (-dmin) * s
      }
    }
  });
}

}  // namespace
}  // namespace still

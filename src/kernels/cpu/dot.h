// Integer dot products of unsigned weights with int8 activations, for up to kColumnsAtOnce columns. Included by the
// lanes_*.h headers. With VNNI a product goes straight into int32. Without it vpmaddubsw gives int16, of which as many
// are added before widening as cannot overflow for the format's largest weight; weights above 63 are split in nibbles.
#pragma once

namespace still {
namespace {

// N vectors of 16 rows x 4 weights of at most kMax.
template <int kMaxWeight, int N>
struct Weights {
  static constexpr int kMax = kMaxWeight, kVectors = N, kParts = !kHasVnni && kMax > 63 ? 2 : 1;
  Bytes v[N * kParts];

  static constexpr int order(int i) { return i; }
  template <int kPart, int I>
  STILL_INLINE Bytes get() const {
    return v[kPart * N + I];
  }

  template <int I>
  STILL_INLINE void set(Bytes x) {
    if constexpr (kParts == 1) {
      v[I] = x;
    } else {
      v[I] = b_and(x, 15);
      v[N + I] = b_and(b_shift_right<4>(x), 15);
    }
  }
  // As unpacked once for many columns: N * kParts vectors.
  STILL_INLINE void load(const uint8_t* p) {
    repeat<N * kParts>([&](auto i) STILL_UNROLLED { v[decltype(i)::value] = b_load(p + 64 * decltype(i)::value); });
  }
  STILL_INLINE void store(uint8_t* p) const {
    repeat<N * kParts>([&](auto i) STILL_UNROLLED { b_store(p + 64 * decltype(i)::value, v[decltype(i)::value]); });
  }
};

// The same as stored, read vector by vector: for few registers.
template <int kMaxWeight, int N>
struct StoredWeights {
  static constexpr int kMax = kMaxWeight, kVectors = N, kParts = Weights<kMax, N>::kParts;
  const uint8_t* bytes;
  static constexpr int order(int i) { return i; }
  template <int kPart, int I>
  STILL_INLINE Bytes get() const {
    return b_load(bytes + 64 * (kPart * N + I));
  }
};

// Products of weights of at most kMax that int16 holds: each adds two of kMax * 127 (-128 does not occur).
template <int kMax>
constexpr int kInt16Steps = kMax > 63   ? 8
                            : kMax > 31 ? 2
                            : kMax > 15 ? 4
                            : kMax > 7  ? 8
                                        : 16;

// sum += product; the first product begins the sum, at 0 or at the offset (int16_dots).
template <bool kIsFirst, bool kFromOffsets>
STILL_INLINE void add_product(Pairs& sum, Pairs product, const int32_t* offset) {
  if constexpr (!kIsFirst) {
    sum = p_add(sum, product);
  } else if constexpr (kFromOffsets) {
    sum = p_add(i_broadcast(offset), product);
  } else {
    sum = product;
  }
}

// body(part, column, sums): the int16 sums of each run of kInt16Steps vectors; `part` says which nibble.
//
// kFromOffsets: the sums start at `offsets` (int16 pairs, a word for each column) and wrap. Where those are -offset
// times the sums of q that a lane's products have, they end as sums of (w - offset) * q, which int16 holds if the
// offset is half of what w can be: 2 * 8 * 16 * 127 (fifth bits) and 2 * 4 * 32 * 127 (sixth bits) are 32512.
template <int kColumns, bool kFromOffsets, class W, class Body>
STILL_INLINE void int16_dots(const W& w, const int32_t* q, int q_stride, const int32_t* offsets, const Body& body) {
  constexpr int kSteps = !kFromOffsets && kInt16Steps<W::kMax> < W::kVectors ? kInt16Steps<W::kMax> : W::kVectors;
  constexpr int kRuns = W::kVectors / kSteps;
  // With few registers all columns' sums are in them and a vector of weights only while it is used, else the reverse.
  // Not one form for both: each loop around others lengthens what the compiler takes for all that is inside.
  if constexpr (kFewRegisters) {
    constexpr int kPartsAtOnce = kColumns <= 2 ? W::kParts : 1;
    repeat<W::kParts / kPartsAtOnce * kRuns>([&](auto pass) STILL_UNROLLED {
      constexpr int kFirstPart = decltype(pass)::value / kRuns, kFirst = decltype(pass)::value % kRuns * kSteps;
      Pairs sums[kPartsAtOnce][kColumns];
      repeat<kSteps>([&](auto step) STILL_UNROLLED {
        constexpr int kVector = W::order(kFirst + decltype(step)::value);
        Bytes weights[kPartsAtOnce];
        repeat<kPartsAtOnce>([&](auto part) STILL_UNROLLED {
          weights[decltype(part)::value] = w.template get<kFirstPart + decltype(part)::value, kVector>();
        });
        repeat<kColumns>([&](auto column) STILL_UNROLLED {
          constexpr int kColumn = decltype(column)::value;
          const Ints x = i_broadcast(q + kVector * q_stride + kColumn);
          repeat<kPartsAtOnce>([&](auto part) STILL_UNROLLED {
            Pairs& sum = sums[decltype(part)::value][kColumn];
            const Pairs product = maddubs(weights[decltype(part)::value], x);
            add_product<decltype(step)::value == 0, kFromOffsets>(sum, product, offsets + kColumn);
            p_keep(sum);  // g++ would add the products as a tree, which needs a register for each of them.
          });
        });
      });
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        repeat<kPartsAtOnce>([&](auto part) STILL_UNROLLED {
          constexpr int kPart = decltype(part)::value, kColumn = decltype(column)::value;
          body(Int<kFirstPart + kPart>{}, Int<kColumn>{}, sums[kPart][kColumn]);
        });
      });
    });
  } else {
    repeat<W::kParts * kRuns * kColumns>([&](auto dot) STILL_UNROLLED {
      constexpr int kDot = decltype(dot)::value, kColumn = kDot % kColumns;
      constexpr int kPart = kDot / kColumns / kRuns, kFirst = kDot / kColumns % kRuns * kSteps;
      Pairs sum;
      repeat<kSteps>([&](auto step) STILL_UNROLLED {
        constexpr int kVector = W::order(kFirst + decltype(step)::value);
        const Pairs product = maddubs(w.template get<kPart, kVector>(), i_broadcast(q + kVector * q_stride + kColumn));
        add_product<decltype(step)::value == 0, kFromOffsets>(sum, product, offsets + kColumn);
      });
      body(Int<kPart>{}, Int<kColumn>{}, sum);
    });
  }
}

// acc[c] += sum of w * q over the N vectors. q: [N][q_stride], column c at offset c.
// kFromOffsets (never with VNNI): see int16_dots.
template <int kColumns, bool kFromOffsets = false, class W>
STILL_INLINE void add_dots(Ints* acc, const W& w, const int32_t* q, int q_stride, const int32_t* offsets = nullptr) {
  if constexpr (kHasVnni) {
    repeat<W::kVectors>([&](auto i) STILL_UNROLLED {
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kVector = decltype(i)::value, kColumn = decltype(column)::value;
        acc[kColumn] =
            vnni_dot(acc[kColumn], w.template get<0, kVector>(), i_broadcast(q + kVector * q_stride + kColumn));
      });
    });
  } else {
    int16_dots<kColumns, kFromOffsets>(w, q, q_stride, offsets, [&](auto part, auto column, Pairs sums) STILL_UNROLLED {
      Pairs ones = p_ones();
      if constexpr (decltype(part)::value == 1) ones = p_shift_left<4>(ones);
      acc[decltype(column)::value] = p_dot(acc[decltype(column)::value], sums, ones);
    });
  }
}

// The same times the sub-block's scale (scale_low, scale_high).
template <int kColumns, bool kFromOffsets = false, class W>
STILL_INLINE void add_scaled_dots(Ints* acc, const W& w, const int32_t* q, int q_stride, Ints scale,
                                  const int32_t* offsets = nullptr) {
  if constexpr (kHasVnni) {
    Ints dots[kColumns];
    repeat<kColumns>([&](auto column) STILL_UNROLLED { dots[decltype(column)::value] = i_zero(); });
    add_dots<kColumns>(dots, w, q, q_stride);
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int kColumn = decltype(column)::value;
      acc[kColumn] = i_add(acc[kColumn], vnni_scale(dots[kColumn], scale));
    });
  } else {
    int16_dots<kColumns, kFromOffsets>(w, q, q_stride, offsets, [&](auto part, auto column, Pairs sums) STILL_UNROLLED {
      const Pairs factor = decltype(part)::value == 1 ? p_shift_left<4>(scale) : scale;
      acc[decltype(column)::value] = p_dot(acc[decltype(column)::value], sums, factor);
      // At once, or g++ adds sub-blocks' products first, all of which then wait on the stack.
      if constexpr (kFewRegisters && kColumns > 2) p_keep(acc[decltype(column)::value]);
    });
  }
}

// acc[c] += sum of w * q for weights above 63 as int16, where registers are few: as many instructions as two nibbles,
// but no sums to widen. Of a vector of 4 weights x 16 rows the first half holds weights 0 and 2, the second 1 and 3. q:
// [N][2][q_stride] int16 pairs.
template <int kColumns, class W>
STILL_INLINE void add_wide_dots(Ints* acc, const W& w, const int32_t* q, int q_stride) {
  repeat<W::kVectors>([&](auto i) STILL_UNROLLED {
    constexpr int kVector = W::order(decltype(i)::value);
    Pairs halves[2];
    w.template get<kVector>(halves);
    repeat<2>([&](auto half) STILL_UNROLLED {
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kHalf = decltype(half)::value, kColumn = decltype(column)::value;
        acc[kColumn] = p_dot(acc[kColumn], halves[kHalf], i_broadcast(q + (2 * kVector + kHalf) * q_stride + kColumn));
        p_keep(acc[kColumn]);
      });
    });
  });
}

}  // namespace
}  // namespace still

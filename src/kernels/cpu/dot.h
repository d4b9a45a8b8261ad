// Integer dot products of unsigned weights with int8 activations, for up to kColumnsAtOnce columns. Included by the
// lanes_*.h headers. With VNNI a product goes straight into int32. Without it vpmaddubsw gives int16, of which as many
// are added before widening as cannot overflow for the format's largest weight; weights above 63 are split in nibbles.
#pragma once

namespace still {
namespace {

// N vectors of 16 rows x 4 weights of at most kMax.
template <int kMax, int N>
struct Weights {
  static constexpr int kParts = !kHasVnni && kMax > 63 ? 2 : 1;
  Bytes v[N * kParts];

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

// Products of weights of at most kMax that int16 holds: each adds two of kMax * 127 (-128 does not occur).
template <int kMax>
constexpr int kInt16Steps = kMax > 63   ? 8
                            : kMax > 31 ? 2
                            : kMax > 15 ? 4
                            : kMax > 7  ? 8
                                        : 16;

// body(sums): the int16 sums of each run of kInt16Steps vectors, column by column; `part` says which nibble.
template <int kMax, int N, int kColumns, class Body>
STILL_INLINE void int16_dots(const Weights<kMax, N>& w, const int32_t* q, int q_stride, const Body& body) {
  constexpr int kSteps = kInt16Steps<kMax> < N ? kInt16Steps<kMax> : N;
  repeat<Weights<kMax, N>::kParts>([&](auto part) STILL_UNROLLED {
    repeat<N / kSteps>([&](auto run) STILL_UNROLLED {
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kFirst = decltype(run)::value * kSteps, kColumn = decltype(column)::value;
        Pairs sums = p_zero();
        repeat<kSteps>([&](auto step) STILL_UNROLLED {
          constexpr int kVector = kFirst + decltype(step)::value;
          const Pairs product =
              maddubs(w.v[decltype(part)::value * N + kVector], i_broadcast(q + kVector * q_stride + kColumn));
          sums = decltype(step)::value == 0 ? product : p_add(sums, product);
        });
        body(part, column, sums);
      });
    });
  });
}

// acc[c] += sum of w * q over the N vectors. q: [N][q_stride], column c at offset c.
template <int kMax, int N, int kColumns>
STILL_INLINE void add_dots(Ints* acc, const Weights<kMax, N>& w, const int32_t* q, int q_stride) {
  if constexpr (kHasVnni) {
    repeat<N>([&](auto i) STILL_UNROLLED {
      repeat<kColumns>([&](auto column) STILL_UNROLLED {
        constexpr int kVector = decltype(i)::value, kColumn = decltype(column)::value;
        acc[kColumn] = vnni_dot(acc[kColumn], w.v[kVector], i_broadcast(q + kVector * q_stride + kColumn));
      });
    });
  } else {
    int16_dots<kMax, N, kColumns>(w, q, q_stride, [&](auto part, auto column, Pairs sums) STILL_UNROLLED {
      Pairs ones = p_ones();
      if constexpr (decltype(part)::value == 1) ones = p_shift_left<4>(ones);
      acc[decltype(column)::value] = p_dot(acc[decltype(column)::value], sums, ones);
    });
  }
}

// The same times the sub-block's scale (scale_low, scale_high).
template <int kMax, int N, int kColumns>
STILL_INLINE void add_scaled_dots(Ints* acc, const Weights<kMax, N>& w, const int32_t* q, int q_stride, Ints scale) {
  if constexpr (kHasVnni) {
    Ints dots[kColumns];
    repeat<kColumns>([&](auto column) STILL_UNROLLED { dots[decltype(column)::value] = i_zero(); });
    add_dots<kMax, N, kColumns>(dots, w, q, q_stride);
    repeat<kColumns>([&](auto column) STILL_UNROLLED {
      constexpr int kColumn = decltype(column)::value;
      acc[kColumn] = i_add(acc[kColumn], vnni_scale(dots[kColumn], scale));
    });
  } else {
    int16_dots<kMax, N, kColumns>(w, q, q_stride, [&](auto part, auto column, Pairs sums) STILL_UNROLLED {
      const Pairs factor = decltype(part)::value == 1 ? p_shift_left<4>(scale) : scale;
      acc[decltype(column)::value] = p_dot(acc[decltype(column)::value], sums, factor);
    });
  }
}

}  // namespace
}  // namespace still

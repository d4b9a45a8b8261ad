// Kernels over rows of floats: quantisation, norms, residual sums, SwiGLU, RoPE, reductions over logits
// (docs/arithmetic.md). Each lane keeps one of tree16's partial sums.
#pragma once

namespace still {
namespace {

// body(i, n): n = 16 for whole vectors, less for the last one.
template <class Body>
STILL_INLINE void for_vectors(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) body(i, 16);
  if (i < n) body(i, n - i);
}
STILL_INLINE Floats load_up_to_16(const float* p, int64_t n) {
  return n == 16 ? f_load(p) : f_load_some(p, n);
}
STILL_INLINE void store_up_to_16(float* p, Floats x, int64_t n) {
  if (n == 16) {
    f_store(p, x);
  } else {
    f_store_some(p, x, n);
  }
}

// exp(x) / 2^n, n the nearest to x / log(2).
STILL_INLINE Floats exp_of_rest(Floats x, Floats n) {
  Floats r = f_minus_fma(n, f_set(0.693359375f), x);
  r = f_minus_fma(n, f_set(-2.12194440e-4f), r);
  Floats p = f_set(1.9875691500e-4f);
  p = f_fma(p, r, f_set(1.3981999507e-3f));
  p = f_fma(p, r, f_set(8.3334519073e-3f));
  p = f_fma(p, r, f_set(4.1665795894e-2f));
  p = f_fma(p, r, f_set(1.6666665459e-1f));
  p = f_fma(p, r, f_set(5.0000001201e-1f));
  return f_add(f_fma(p, f_mul(r, r), r), f_set(1.0f));
}
STILL_INLINE Floats exp_of(Floats x) {
  const Floats n = f_round(f_mul(x, f_set(1.44269504f)));
  return f_exp_ends(x, exp_of_rest(x, n), n);
}
// Of what is at most 0, or NaN.
STILL_INLINE Floats exp_of_difference(Floats x) {
  const Floats n = f_round(f_mul(x, f_set(1.44269504f)));
  return f_exp_low_end(x, exp_of_rest(x, n), n);
}

void quantize_rows(const float* x, int64_t x_stride, int64_t n_rows, int64_t k, int32_t block, int8_t* q, float* scale,
                   int16_t* sums) {
  constexpr int32_t kInfinityBits = 0x7f800000;
  for (int64_t row = 0; row < n_rows; ++row) {
    const float* values = x + row * x_stride;
    for (int64_t begin = 0; begin < k; begin += block, values += block) {
      Ints max_bits = i_abs_bits(f_load(values));
      for (int32_t i = 16; i < block; i += 16) max_bits = i_max(max_bits, i_abs_bits(f_load(values + i)));
      const int32_t bits = i_max_lane(max_bits);
      float amax;
      __builtin_memcpy(&amax, &bits, 4);
      const bool is_finite = bits < kInfinityBits;
      const bool is_empty = !is_finite || amax < 0x1.0p-120f;  // below it 127 / amax could overflow
      *scale++ = !is_finite ? __builtin_nanf("") : is_empty ? 0.0f : amax / 127.0f;
      if (is_empty) {
        for (int32_t i = 0; i < block; ++i) *q++ = 0;
        for (int32_t i = 0; i < block; i += 16) *sums++ = 0;
        continue;
      }
      const Floats inv = f_set(127.0f / amax);
      for (int32_t i = 0; i < block; i += 16, q += 16)
        *sums++ = static_cast<int16_t>(f_to_int8(q, f_mul(f_load(values + i), inv)));
    }
  }
}

STILL_INLINE float norm_factor(const float* x, int64_t n, float eps) {
  Floats partial = f_zero();
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    const Floats v = load_up_to_16(x + i, lanes);
    partial = f_fma(v, v, partial);
  });
  const float mean = f_tree_sum(partial) / static_cast<float>(n);
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps)));
}

STILL_INLINE void scale_row(const float* x, const float* w, float* y, int64_t n, float factor) {
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    const Floats scaled = f_mul(load_up_to_16(x + i, lanes), f_set(factor));
    store_up_to_16(y + i, f_mul(scaled, load_up_to_16(w + i, lanes)), lanes);
  });
}

void rms_norm(const float* x, const float* w, float* y, int64_t n, float eps) {
  scale_row(x, w, y, n, norm_factor(x, n, eps));
}

void add(float* y, const float* x, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    store_up_to_16(y + i, f_add(load_up_to_16(y + i, lanes), load_up_to_16(x + i, lanes)), lanes);
  });
}

void add_rms_norm(float* x, const float* delta, const float* w, float* y, int64_t n, float eps) {
  add(x, delta, n);
  rms_norm(x, w, y, n, eps);
}

void swiglu(const float* gate, const float* up, float* y, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    const Floats g = load_up_to_16(gate + i, lanes);
    const Floats silu = f_div(g, f_add(f_set(1.0f), exp_of(f_neg(g))));
    store_up_to_16(y + i, f_mul(silu, load_up_to_16(up + i, lanes)), lanes);
  });
}

void rope(const RopeArgs& args) {
  const int64_t half = args.n_rot / 2;
  for (int64_t head = 0; head < args.n_heads; ++head) {
    const float* x = args.x + head * args.head_dim;
    float* y = args.y + head * args.head_dim;
    if (args.pairs) {
      for (int64_t i = 0; i < half; ++i) {
        const float a = x[2 * i], b = x[2 * i + 1];
        y[2 * i] = __builtin_fmaf(a, args.cos[i], -(b * args.sin[i]));
        y[2 * i + 1] = __builtin_fmaf(a, args.sin[i], b * args.cos[i]);
      }
    } else {
      for_vectors(half, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
        const Floats a = load_up_to_16(x + i, lanes), b = load_up_to_16(x + half + i, lanes);
        const Floats cos = load_up_to_16(args.cos + i, lanes), sin = load_up_to_16(args.sin + i, lanes);
        store_up_to_16(y + i, f_fma(a, cos, f_neg(f_mul(b, sin))), lanes);
        store_up_to_16(y + half + i, f_fma(a, sin, f_mul(b, cos)), lanes);
      });
    }
    if (x != y)
      for (int64_t i = args.n_rot; i < args.head_dim; ++i) y[i] = x[i];
  }
}

STILL_INLINE float max_of_row(const float* x, int64_t n) {
  Floats max = f_set(-__builtin_inff());
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    // Past the end: the first element once more.
    max = lanes == 16 ? f_max(max, f_load(x + i)) : f_max(max, f_set(x[i]));
    for (int64_t j = 1; lanes < 16 && j < lanes; ++j) max = f_max(max, f_set(x[i + j]));
  });
  return f_max_lane(max);
}

int64_t argmax(const float* x, int64_t n) {
  const Floats max = f_set(max_of_row(x, n));
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const uint32_t equal = f_equal_lanes(f_load(x + i), max);
    if (equal != 0) return i + __builtin_ctz(equal);
  }
  const uint32_t equal = f_equal_lanes(load_up_to_16(x + i, n - i), max) & ((1u << (n - i)) - 1);
  return equal != 0 ? i + __builtin_ctz(equal) : 0;  // 0: NaNs only
}

float log_sum_exp(const float* x, int64_t n) {
  const float max = max_of_row(x, n);
  Floats partial = f_zero();
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    const Floats y = exp_of(f_sub(load_up_to_16(x + i, lanes), f_set(max)));
    partial = f_add(partial, lanes == 16 ? y : f_keep_some(y, lanes));
  });
  return static_cast<float>(__builtin_log(static_cast<double>(f_tree_sum(partial)))) + max;
}

void exp_shifted(const float* x, float shift, float* y, int64_t n) {
  for_vectors(n, [&](int64_t i, int64_t lanes) STILL_UNROLLED {
    store_up_to_16(y + i, exp_of(f_sub(load_up_to_16(x + i, lanes), f_set(shift))), lanes);
  });
}

}  // namespace
}  // namespace still

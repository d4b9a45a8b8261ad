// The functions and sums of docs/arithmetic.md that several reference kernels share.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace still::ref {

// exp in f32: Cephes' expf, Horner form with fma; at most about 1 unit in the last place off.
inline float exp_f32(float x) {
  if (x != x) return x;
  if (x < -87.33654f) return 0.0f;
  if (x > 88.72283f) return std::numeric_limits<float>::infinity();
  const float n = std::nearbyintf(x * 1.44269504f);
  float r = std::fma(-n, 0.693359375f, x);
  r = std::fma(-n, -2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = std::fma(p, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  const float y = std::fma(p, r * r, r) + 1.0f;
  const int exponent = static_cast<int>(n);
  const auto power_of_two = [](int e) { return std::bit_cast<float>(static_cast<std::uint32_t>(e + 127) << 23); };
  const int first = exponent / 2;
  return y * power_of_two(first) * power_of_two(exponent - first);
}

inline float silu(float x) {
  return x / (1.0f + exp_f32(-x));
}

// The end of tree16: 16 partial sums to one.
inline float fold16(float (&partial)[16]) {
  for (int width = 8; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) partial[i] += partial[i + width];
  return partial[0];
}

inline float tree16_of_squares(const float* x, std::int64_t n) {
  float partial[16] = {};
  for (std::int64_t i = 0; i < n; ++i) partial[i % 16] = std::fma(x[i], x[i], partial[i % 16]);
  return fold16(partial);
}

}  // namespace still::ref

// Least-squares fits that several encoders share: the scale (and minimum) of a few weights, searched over a handful of
// starting scales, each refined in closed form for the integers it rounds to.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace still::fit {

// x rounded to the nearest integer and clamped; NaN gives lo.
inline int round_clamped(float x, int lo, int hi) {
  const float rounded = std::nearbyintf(x);
  if (!(rounded > static_cast<float>(lo))) return lo;
  return rounded < static_cast<float>(hi) ? static_cast<int>(rounded) : hi;
}

// x cut to an integer and clamped; NaN gives lo.
inline int floor_clamped(float x, int lo, int hi) {
  if (!(x > static_cast<float>(lo))) return lo;
  return x < static_cast<float>(hi) ? static_cast<int>(x) : hi;
}

// The factor by which x is divided: 0 for 0.
inline float inverse(float x) {
  return x != 0.0f ? 1.0f / x : 0.0f;
}

// How much an element's error counts: large weights more, as they meet large activations more often than not.
inline float importance(float x, float mean_square) {
  return std::sqrt(mean_square) + std::fabs(x);
}

inline float mean_square(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return sum / static_cast<float>(n);
}

struct Affine {
  float scale = 0;  // x ~ scale * q - min, 0 <= q <= q_max
  float min = 0;    // >= 0
};

inline Affine fit_affine(const float* x, int n, int q_max) {
  const float lo = std::min(0.0f, *std::min_element(x, x + n));
  const float hi = *std::max_element(x, x + n);
  if (!(hi > lo)) return {0.0f, -lo};
  const float spread = mean_square(x, n);
  Affine best{(hi - lo) / static_cast<float>(q_max), -lo};
  float best_error = std::numeric_limits<float>::infinity();
  for (int step = -10; step <= 10; ++step) {
    const float inv = (static_cast<float>(q_max) + 0.1f * static_cast<float>(step)) / (hi - lo);
    float sw = 0, sq = 0, sqq = 0, sx = 0, sqx = 0;
    for (int i = 0; i < n; ++i) {
      const float w = importance(x[i], spread);
      const float q = static_cast<float>(round_clamped(inv * (x[i] - lo), 0, q_max));
      sw += w;
      sq += w * q;
      sqq += w * q * q;
      sx += w * x[i];
      sqx += w * q * x[i];
    }
    const float determinant = sw * sqq - sq * sq;
    if (!(determinant > 0)) continue;
    Affine candidate{(sw * sqx - sx * sq) / determinant, -(sqq * sx - sq * sqx) / determinant};
    if (candidate.min < 0) candidate = {sqx / sqq, 0.0f};
    float error = 0;
    for (int i = 0; i < n; ++i) {
      const float q = static_cast<float>(round_clamped(inv * (x[i] - lo), 0, q_max));
      const float difference = candidate.scale * q - candidate.min - x[i];
      error += importance(x[i], spread) * difference * difference;
    }
    if (error < best_error) {
      best_error = error;
      best = candidate;
    }
  }
  return best;
}

// x ~ scale * level(q): the scale for which round_to_level(x / scale) fits best. `extreme` is the level of largest
// magnitude, onto which the largest |x| is first mapped. round_to_level(float) returns the level as a float.
template <class RoundToLevel>
float fit_scale(const float* x, int n, float extreme, RoundToLevel&& round_to_level) {
  float largest = 0;
  for (int i = 0; i < n; ++i)
    if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
  if (largest == 0.0f) return 0.0f;
  const float spread = mean_square(x, n);
  float best_scale = largest / extreme;
  float best_gain = 0;  // (sum w l x)^2 / (sum w l^2): what the fit takes off the squared error
  for (int step = -10; step <= 10; ++step) {
    for (const float sign : {1.0f, -1.0f}) {
      const float inv = sign * extreme * (1.0f + 0.025f * static_cast<float>(step)) / largest;
      float slx = 0, sll = 0;
      for (int i = 0; i < n; ++i) {
        const float w = importance(x[i], spread);
        const float level = round_to_level(inv * x[i]);
        slx += w * level * x[i];
        sll += w * level * level;
      }
      if (sll > 0 && slx * slx > best_gain * sll) {
        best_gain = slx * slx / sll;
        best_scale = slx / sll;
      }
    }
  }
  return best_scale;
}

}  // namespace still::fit

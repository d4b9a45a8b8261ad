// Norms, residual sums, SwiGLU, RoPE and the reductions over logits.
#include <cmath>
#include <limits>

#include "kernels/ref/float_math.h"
#include "kernels/ref/ref_kernels.h"

namespace still::ref {

void rms_norm(const float* x, const float* w, float* y, std::int64_t n, float eps) {
  const float mean = tree16_of_squares(x, n) / static_cast<float>(n);
  const float r = 1.0f / std::sqrt(mean + eps);
  for (std::int64_t i = 0; i < n; ++i) y[i] = x[i] * r * w[i];
}

void add_rms_norm(float* x, const float* delta, const float* w, float* y, std::int64_t n, float eps) {
  add(x, delta, n);
  rms_norm(x, w, y, n, eps);
}

void add(float* y, const float* x, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] += x[i];
}

void swiglu(const float* gate, const float* up, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = silu(gate[i]) * up[i];
}

void rope(const RopeArgs& args) {
  const std::int32_t half = args.n_rot / 2;
  for (std::int64_t head = 0; head < args.n_heads; ++head) {
    const float* x = args.x + head * args.head_dim;
    float* y = args.y + head * args.head_dim;
    for (std::int32_t i = 0; i < half; ++i) {
      const std::int32_t first = args.pairs ? 2 * i : i, second = args.pairs ? 2 * i + 1 : i + half;
      const float a = x[first], b = x[second];
      y[first] = std::fma(a, args.cos[i], -(b * args.sin[i]));
      y[second] = std::fma(a, args.sin[i], b * args.cos[i]);
    }
    for (std::int32_t i = args.n_rot; i < args.head_dim; ++i) y[i] = x[i];
  }
}

std::int64_t argmax(const float* x, std::int64_t n) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < n; ++i)
    if (x[i] > x[best] || (std::isnan(x[best]) && !std::isnan(x[i]))) best = i;
  return best;
}

float log_sum_exp(const float* x, std::int64_t n) {
  float max = -std::numeric_limits<float>::infinity();
  for (std::int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  float partial[16] = {};
  for (std::int64_t i = 0; i < n; ++i) partial[i % 16] += exp_f32(x[i] - max);
  return static_cast<float>(std::log(static_cast<double>(fold16(partial)))) + max;
}

void exp_shifted(const float* x, float shift, float* y, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) y[i] = exp_f32(x[i] - shift);
}

}  // namespace still::ref

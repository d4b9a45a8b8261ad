#include "ops/encoder_attention.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace still {

namespace {

// Sixteen strided partial sums, added in a fixed tree: the compiler may use vectors without changing the order.
float dot(const float* a, const float* b, std::int64_t n) {
  float sums[16] = {};
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int lane = 0; lane < 16; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += a[i] * b[i];
  for (int width = 8; width > 0; width /= 2)
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  return sums[0];
}

}  // namespace

void encoder_attention(Exec& exec, TensorView out, TensorView q, TensorView k, TensorView v,
                       std::span<const std::int32_t> q_start, std::int64_t n_heads, float scale, TensorView scores) {
  const std::int64_t width = q.row_size(), head_dim = width / n_heads;
  STILL_DCHECK(width == n_heads * head_dim && out.shape == q.shape && k.shape == q.shape && v.shape == q.shape);
  const auto n_seqs = static_cast<std::int64_t>(q_start.size()) - 1;
  const auto attend = [&](std::int64_t seq, std::int64_t head, std::int64_t row, float* weights) {
    const std::int64_t first = q_start[static_cast<std::size_t>(seq)];
    const std::int64_t n = q_start[static_cast<std::size_t>(seq + 1)] - first;
    const std::int64_t offset = head * head_dim;
    const float* query = q.f32() + row * width + offset;
    float top = -INFINITY;
    for (std::int64_t i = 0; i < n; ++i) {
      weights[i] = dot(query, k.f32() + (first + i) * width + offset, head_dim) * scale;
      top = std::max(top, weights[i]);
    }
    float sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      weights[i] = std::exp(weights[i] - top);
      sum += weights[i];
    }
    float* target = out.f32() + row * width + offset;
    std::fill_n(target, head_dim, 0.0f);
    for (std::int64_t i = 0; i < n; ++i) {
      const float* value = v.f32() + (first + i) * width + offset;
      for (std::int64_t d = 0; d < head_dim; ++d) target[d] += weights[i] * value[d];
    }
    for (std::int64_t d = 0; d < head_dim; ++d) target[d] /= sum;
  };
  const std::int64_t n_threads = exec.n_threads();
  STILL_DCHECK(scores.rows() >= n_threads);
  // Rows of queries are dealt out in turn: long and short sequences spread evenly.
  exec.threads().run([&](int thread_idx) {
    float* weights = scores.f32() + thread_idx * scores.row_size();
    for (std::int64_t seq = 0; seq < n_seqs; ++seq) {
      const std::int64_t begin = q_start[static_cast<std::size_t>(seq)],
                         end = q_start[static_cast<std::size_t>(seq + 1)];
      STILL_DCHECK(end - begin <= scores.row_size());
      for (std::int64_t head = 0; head < n_heads; ++head)
        for (std::int64_t row = begin + (thread_idx + n_threads - (begin + head) % n_threads) % n_threads; row < end;
             row += n_threads)
          attend(seq, head, row, weights);
    }
  });
}

}  // namespace still

#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "ops/parallel.h"

namespace still {

namespace {
// Llama 3.1's rule: long wavelengths are stretched, short ones kept, those between are blended.
double llama3_frequency(const RopeConfig& config, double frequency) {
  const double turns = config.orig_len * frequency / (2 * std::numbers::pi);  // within the original length
  if (turns > config.high_freq_factor) return frequency;
  if (turns < config.low_freq_factor) return frequency / config.factor;
  const double keep = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor);
  return (1 - keep) * frequency / config.factor + keep * frequency;
}

// The pair whose wavelength turns `n` times within the original length (YaRN, arXiv:2309.00071, section 3.2).
double yarn_pair(const RopeConfig& config, double n) {
  return config.n_rot * std::log(config.orig_len / (2 * std::numbers::pi * n)) / (2 * std::log(config.theta));
}

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}
}  // namespace

std::vector<double> rope_inverse_frequencies(const RopeConfig& config) {
  const int half = config.n_rot / 2;
  std::vector<double> frequencies(static_cast<std::size_t>(half));
  const double lo = std::max(std::floor(yarn_pair(config, config.beta_fast)), 0.0);
  double hi = std::min(std::ceil(yarn_pair(config, config.beta_slow)), static_cast<double>(config.n_rot - 1));
  if (lo == hi) hi += 0.001;
  for (int i = 0; i < half; ++i) {
    double frequency = std::pow(config.theta, -2.0 * i / config.n_rot);
    switch (config.scaling) {
      case RopeScaling::kNone:
        break;
      case RopeScaling::kLinear:
        frequency /= config.factor;
        break;
      case RopeScaling::kLlama3:
        frequency = llama3_frequency(config, frequency);
        break;
      case RopeScaling::kYarn: {
        const double ramp = std::clamp((i - lo) / (hi - lo), 0.0, 1.0);
        frequency = frequency / config.factor * ramp + frequency * (1 - ramp);
        break;
      }
    }
    if (!config.freq_divisors.empty()) frequency /= config.freq_divisors[static_cast<std::size_t>(i)];
    frequencies[static_cast<std::size_t>(i)] = frequency;
  }
  return frequencies;
}

double rope_attention_factor(const RopeConfig& config) {
  if (config.scaling != RopeScaling::kYarn) return 1.0;
  if (config.mscale != 0 && config.mscale_all_dim != 0)
    return yarn_mscale(config.factor, config.mscale) / yarn_mscale(config.factor, config.mscale_all_dim);
  return yarn_mscale(config.factor, 1.0);
}

std::int64_t RopeTable::bytes(const RopeConfig& config, std::int64_t max_seq_len) {
  return max_seq_len * config.n_rot / 2 * 2 * static_cast<std::int64_t>(sizeof(float));
}

// The angle of position 256 a + b is the sum of two angles: by the addition theorem in double a table of 131072
// positions takes milliseconds instead of half a second, and differs from direct values by less than 1e-11.
RopeTable::RopeTable(const RopeConfig& config, std::int64_t max_seq_len)
    : config_(config), max_seq_len_(max_seq_len), half_(config.n_rot / 2) {
  STILL_DCHECK(config.n_rot % 2 == 0);
  STILL_DCHECK(config.freq_divisors.empty() || static_cast<std::int64_t>(config.freq_divisors.size()) == half_);
  constexpr std::int64_t kFine = 256;
  const std::vector<double> frequencies = rope_inverse_frequencies(config);
  const double factor = rope_attention_factor(config);
  cos_.resize(static_cast<std::size_t>(max_seq_len * half_));
  sin_.resize(static_cast<std::size_t>(max_seq_len * half_));
  std::vector<double> fine_cos(static_cast<std::size_t>(kFine * half_)), fine_sin(fine_cos.size());
  for (std::int64_t b = 0; b < std::min(kFine, max_seq_len); ++b) {
    for (std::int64_t i = 0; i < half_; ++i) {
      const double angle = static_cast<double>(b) * frequencies[static_cast<std::size_t>(i)];
      fine_cos[static_cast<std::size_t>(b * half_ + i)] = std::cos(angle) * factor;
      fine_sin[static_cast<std::size_t>(b * half_ + i)] = std::sin(angle) * factor;
    }
  }
  std::vector<double> coarse_cos(static_cast<std::size_t>(half_)), coarse_sin(static_cast<std::size_t>(half_));
  for (std::int64_t pos = 0; pos < max_seq_len; ++pos) {
    if (pos % kFine == 0) {
      for (std::size_t i = 0; i < coarse_cos.size(); ++i) {
        coarse_cos[i] = std::cos(static_cast<double>(pos) * frequencies[i]);
        coarse_sin[i] = std::sin(static_cast<double>(pos) * frequencies[i]);
      }
    }
    const double* b_cos = fine_cos.data() + pos % kFine * half_;
    const double* b_sin = fine_sin.data() + pos % kFine * half_;
    float* cos_row = cos_.data() + pos * half_;
    float* sin_row = sin_.data() + pos * half_;
    for (std::int64_t i = 0; i < half_; ++i) {
      const double a_cos = coarse_cos[static_cast<std::size_t>(i)], a_sin = coarse_sin[static_cast<std::size_t>(i)];
      cos_row[i] = static_cast<float>(a_cos * b_cos[i] - a_sin * b_sin[i]);
      sin_row[i] = static_cast<float>(a_sin * b_cos[i] + a_cos * b_sin[i]);
    }
  }
}

void rope(Exec& exec, TensorView x, std::int64_t n_heads, const RopeTable& table,
          std::span<const std::int32_t> positions) {
  const std::int64_t n_tokens = x.rows();
  if (n_tokens == 0) return;
  const std::int64_t row_size = x.row_size();
  STILL_DCHECK(static_cast<std::int64_t>(positions.size()) == n_tokens && row_size % n_heads == 0);
  STILL_DCHECK(table.config().n_rot <= row_size / n_heads);
  float* values = x.f32();
  parallel_rows(exec, n_tokens, row_size, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t pos = positions[static_cast<std::size_t>(token)];
      STILL_DCHECK(pos >= 0 && pos < table.max_seq_len());
      float* row = values + token * row_size;
      exec.kernels().rope({.x = row,
                           .y = row,
                           .cos = table.cos(pos),
                           .sin = table.sin(pos),
                           .n_heads = n_heads,
                           .head_dim = static_cast<std::int32_t>(row_size / n_heads),
                           .n_rot = table.config().n_rot,
                           .pairs = table.config().pairs});
    }
  });
}

}  // namespace still

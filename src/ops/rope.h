// Rotary position embedding.  Su et al. 2021, arXiv:2104.09864, eq. (34); scaling: linear, Llama 3, YaRN
// (arXiv:2309.00071).
#pragma once

#include <span>
#include <vector>

#include "base/result.h"
#include "ops/exec.h"

namespace still {

enum class RopeScaling { kNone, kLinear, kLlama3, kYarn };

struct RopeConfig {
  std::int32_t n_rot = 0;  // rotated elements of a head
  bool pairs = false;      // (2i, 2i+1) instead of (i, i + n_rot/2)
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // Llama 3
  double orig_len = 0.0;                                 // tokens before stretching (Llama 3, YaRN)
  double beta_fast = 32.0, beta_slow = 1.0;              // YaRN
  double mscale = 0.0, mscale_all_dim = 0.0;             // YaRN, DeepSeek
  std::vector<float> freq_divisors;                      // [n_rot / 2]; GGUF's rope_freqs.weight; empty: none
};

// cos and sin of every position up to max_seq_len, computed in double, stored in f32.
class RopeTable {
 public:
  RopeTable() = default;
  RopeTable(const RopeConfig& config, std::int64_t max_seq_len);
  static std::int64_t bytes(const RopeConfig& config, std::int64_t max_seq_len);
  const float* cos(std::int64_t pos) const { return cos_.data() + pos * half_; }
  const float* sin(std::int64_t pos) const { return sin_.data() + pos * half_; }
  std::int64_t max_seq_len() const { return max_seq_len_; }
  const RopeConfig& config() const { return config_; }

 private:
  RopeConfig config_;
  std::int64_t max_seq_len_ = 0, half_ = 0;
  std::vector<float> cos_, sin_;
};

// Inverse frequencies [n_rot / 2] after scaling, in double; and the factor on cos/sin (YaRN's attention factor, else
// 1).
std::vector<double> rope_inverse_frequencies(const RopeConfig& config);
double rope_attention_factor(const RopeConfig& config);

// x: [n_tokens, n_heads * head_dim] f32, rotated in place by each token's position.
void rope(Exec& exec, TensorView x, std::int64_t n_heads, const RopeTable& table,
          std::span<const std::int32_t> positions);

}  // namespace still

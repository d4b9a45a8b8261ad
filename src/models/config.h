// ModelConfig: the hyperparameters of every architecture this project knows, in one plain struct.
// Names follow the glossary in HACKING.md; zero means "this architecture has no such part".
#pragma once

#include <cstdint>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "ops/rope.h"

namespace still {

struct ModelConfig {
  std::string model_type;  // Hugging Face's model_type: "qwen2", "llama"
  std::int32_t n_layers = 0;
  std::int32_t n_dense_layers = 0;  // leading layers with a dense FFN (MoE models)
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_seq_len = 0;  // tokens
  float rms_norm_eps = 1e-6f;
  bool tied_embeddings = false;
  bool attention_bias = false;      // biases on q, k, v
  std::int64_t sliding_window = 0;  // tokens; 0: none
  RopeConfig rope;

  // Multi-head latent attention.  DeepSeek-V2, arXiv:2405.04434, section 2.1
  std::int64_t q_lora_rank = 0, kv_lora_rank = 0;
  std::int32_t qk_nope_head_dim = 0, qk_rope_head_dim = 0, v_head_dim = 0;
  // Mixture of experts.  DeepSeek-V3, arXiv:2412.19437, section 2.1.2
  std::int32_t n_experts = 0, n_experts_per_tok = 0, n_shared_experts = 0;
  std::int64_t moe_intermediate_size = 0;
  std::int32_t n_groups = 0, topk_group = 0;
  float route_scale = 1.0f;
  // Multi-token prediction.  arXiv:2412.19437, section 2.2
  std::int32_t n_mtp_layers = 0;
};

// Members of config.json with the checks that every architecture needs: present, of the right type, positive, below a
// limit that keeps products of sizes inside 64 bits.
class ConfigReader {
 public:
  explicit ConfigReader(const JsonObject& json) : json_(json) {}
  Result<std::int64_t> integer(std::string_view key, std::int64_t min, std::int64_t max) const;
  Result<std::int64_t> integer_or(std::string_view key, std::int64_t fallback, std::int64_t min,
                                  std::int64_t max) const;
  Result<double> number_or(std::string_view key, double fallback, double min, double max) const;
  Result<bool> boolean_or(std::string_view key, bool fallback) const;
  Result<std::string> string_or(std::string_view key, std::string fallback) const;
  bool has(std::string_view key) const;

 private:
  const JsonObject& json_;
};

// The part that llama and qwen2 share: sizes, heads, eps, rope with its scaling.
Result<ModelConfig> read_decoder_config(const JsonObject& json);

}  // namespace still

// Grouped-query attention with rotary embedding, as llama and qwen2 have it: projections, RoPE, cache, attention,
// output.
#pragma once

#include "models/arch.h"

namespace still {

struct GqaWeights {
  const Weight* q = nullptr;  // [n_heads * head_dim, hidden_size]
  const Weight* k = nullptr;  // [n_kv_heads * head_dim, hidden_size]
  const Weight* v = nullptr;
  const Weight* o = nullptr;          // [hidden_size, n_heads * head_dim]
  TensorView q_bias, k_bias, v_bias;  // absent where the architecture has none
};

// Tensors of layer `layer`, under "model.layers.<layer>.self_attn.".
void append_gqa_tensors(const ModelConfig& config, std::int32_t layer, std::vector<TensorSpec>& specs);
GqaWeights bind_gqa(const WeightSet& weights, std::int32_t layer);

// attention(rope(W_q x), rope(W_k x), W_v x) with x the normed rows, to be multiplied by W_o; keys and values go to the
// cache, whose layers are counted by `layer`.
TensorView gqa_attention(const ForwardArgs& args, const GqaWeights& weights, std::int32_t layer, TensorView normed);

}  // namespace still

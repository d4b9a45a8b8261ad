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

// hidden += W_o attention(rope(W_q x), rope(W_k x), W_v x) with x the normed rows; keys and values go to the cache,
// whose layers are counted by `layer`.
void gqa_attention(const ForwardArgs& args, const GqaWeights& weights, std::int32_t layer, TensorView hidden,
                   TensorView normed);

}  // namespace still

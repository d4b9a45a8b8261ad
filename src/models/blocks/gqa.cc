#include "models/blocks/gqa.h"

#include <cmath>

#include "ops/linear.h"

namespace still {

namespace {
std::string attention_name(std::int32_t layer, std::string_view rest) {
  return fmt::format("model.layers.{}.self_attn.{}", layer, rest);
}
}  // namespace

void append_gqa_tensors(const ModelConfig& config, std::int32_t layer, std::vector<TensorSpec>& specs) {
  const std::int64_t q_size = std::int64_t{config.n_heads} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.n_kv_heads} * config.head_dim;
  const auto add = [&](std::string_view name, Shape shape, TensorRole role, Share share) {
    specs.push_back({attention_name(layer, name), shape, role, false, share, layer});
  };
  add("q_proj.weight", {q_size, config.hidden_size}, TensorRole::kMatrix, Share::kHeads);
  add("k_proj.weight", {kv_size, config.hidden_size}, TensorRole::kMatrix, Share::kKvHeads);
  add("v_proj.weight", {kv_size, config.hidden_size}, TensorRole::kMatrix, Share::kKvHeads);
  add("o_proj.weight", {config.hidden_size, q_size}, TensorRole::kMatrix, Share::kHeadColumns);
  if (!config.attention_bias) return;
  add("q_proj.bias", {q_size}, TensorRole::kVector, Share::kHeads);
  add("k_proj.bias", {kv_size}, TensorRole::kVector, Share::kKvHeads);
  add("v_proj.bias", {kv_size}, TensorRole::kVector, Share::kKvHeads);
}

GqaWeights bind_gqa(const WeightSet& weights, std::int32_t layer) {
  return {.q = weights.matrix(attention_name(layer, "q_proj.weight")),
          .k = weights.matrix(attention_name(layer, "k_proj.weight")),
          .v = weights.matrix(attention_name(layer, "v_proj.weight")),
          .o = weights.matrix(attention_name(layer, "o_proj.weight")),
          .q_bias = weights.vector(attention_name(layer, "q_proj.bias")),
          .k_bias = weights.vector(attention_name(layer, "k_proj.bias")),
          .v_bias = weights.vector(attention_name(layer, "v_proj.bias"))};
}

TensorView gqa_attention(const ForwardArgs& args, const GqaWeights& weights, std::int32_t layer, TensorView normed) {
  const ModelConfig& config = args.config;
  const std::int64_t n_tokens = args.batch.n_tokens();
  const std::int64_t stride = args.buffers.qkv_stride;
  const TensorView q{args.buffers.q, DType::kF32, {n_tokens, std::int64_t{config.n_heads} * config.head_dim}, stride};
  const TensorView k{
      args.buffers.k, DType::kF32, {n_tokens, std::int64_t{config.n_kv_heads} * config.head_dim}, stride};
  const TensorView v{args.buffers.v, DType::kF32, k.shape, stride};
  const TensorView attn{args.buffers.attn, args.buffers.layout.type, q.shape};

  linear(args.exec, normed,
         {{q, weights.q, weights.q_bias}, {k, weights.k, weights.k_bias}, {v, weights.v, weights.v_bias}});
  rope_kv_write(args.exec, q, k, v, config.n_heads, args.rope, args.cache, layer, args.batch);
  const float scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  attention(args.exec, attn, q, args.cache, layer, args.batch, config.n_heads, scale, config.sliding_window);
  return attn;
}

}  // namespace still

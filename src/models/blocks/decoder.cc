#include "models/blocks/decoder.h"

#include "ops/copy.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/logits.h"
#include "ops/rms_norm.h"

namespace still {

std::vector<TensorSpec> decoder_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> specs;
  const auto add = [&](std::string name, Shape shape, TensorRole role, Share share, std::int32_t layer) {
    specs.push_back({std::move(name), shape, role, false, share, layer});
  };
  add("model.embed_tokens.weight", {config.vocab_size, config.hidden_size}, TensorRole::kEmbedding, Share::kVocabulary,
      -1);
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    add(prefix + "input_layernorm.weight", {config.hidden_size}, TensorRole::kVector, Share::kWhole, layer);
    append_gqa_tensors(config, layer, specs);
    add(prefix + "post_attention_layernorm.weight", {config.hidden_size}, TensorRole::kVector, Share::kWhole, layer);
    append_mlp_tensors(config, layer, specs);
  }
  add("model.norm.weight", {config.hidden_size}, TensorRole::kVector, Share::kWhole, -1);
  // With tied embeddings the head is the table again, packed.
  add(config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", {config.vocab_size, config.hidden_size},
      TensorRole::kMatrix, Share::kVocabulary, -1);
  return specs;
}

std::unique_ptr<ArchWeights> bind_decoder(const ModelConfig& config, const WeightSet& weights) {
  auto bound = std::make_unique<DecoderWeights>();
  bound->embedding = weights.embedding("model.embed_tokens.weight");
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    bound->layers.push_back({.input_norm = weights.vector(prefix + "input_layernorm.weight"),
                             .post_attention_norm = weights.vector(prefix + "post_attention_layernorm.weight"),
                             .attention = bind_gqa(weights, layer),
                             .mlp = bind_mlp(weights, layer)});
  }
  bound->final_norm = weights.vector("model.norm.weight");
  bound->head = weights.matrix(config.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight");
  return bound;
}

namespace {
// Behind the last layer's attention only rows whose logits are wanted go on: of a prompt one. They move to q and ffn,
// which are free by then.
struct LastRows {
  TensorView hidden, attn;
};
LastRows take_last_rows(const ForwardArgs& args, TensorView hidden, TensorView attn) {
  const auto n = static_cast<std::int64_t>(args.batch.logit_rows.size());
  const LastRows rows{.hidden = {args.buffers.q, DType::kF32, {n, hidden.row_size()}},
                      .attn = {args.buffers.ffn, attn.dtype, {n, attn.row_size()}}};
  take_rows(args.exec, rows.hidden, hidden, args.batch.logit_rows);
  take_rows(args.exec, rows.attn, attn, args.batch.logit_rows);
  return rows;
}
bool can_take_last_rows(const ForwardArgs& args) {
  const auto n_wanted = static_cast<std::int64_t>(args.batch.logit_rows.size()), n_tokens = args.batch.n_tokens();
  const std::int64_t q_size = std::int64_t{args.config.n_heads} * args.config.head_dim;
  return !args.batch.wants_all_states && n_wanted < n_tokens &&
         n_wanted * args.config.hidden_size <= n_tokens * q_size &&
         n_wanted * q_size <= n_tokens * args.config.intermediate_size;
}
}  // namespace

void decoder_forward(const ForwardArgs& args) {
  const ModelConfig& config = args.config;
  const auto& weights = static_cast<const DecoderWeights&>(args.weights);
  const std::int64_t n_tokens = args.batch.n_tokens();
  const auto n_wanted = static_cast<std::int64_t>(args.batch.logit_rows.size());
  TensorView hidden{args.buffers.hidden, DType::kF32, {n_tokens, config.hidden_size}};
  TensorView normed{args.buffers.normed, args.buffers.layout.type, {n_tokens, config.hidden_size}};
  bool has_all_rows = true;

  if (args.layer_begin == 0) {
    embed(args.exec, hidden, *weights.embedding, args.batch.ids);
  } else {
    copy_from_host(args.exec, hidden, args.buffers.input);
  }
  for (std::int32_t layer = args.layer_begin; layer < args.layer_end; ++layer) {
    // A cancelled prompt of hundreds of tokens would hold its client and the next ones up for seconds.
    if (args.batch.is_abandoned != nullptr && args.batch.is_abandoned->load(std::memory_order_relaxed)) return;
    const DecoderLayer& w = weights.layers[static_cast<std::size_t>(layer)];
    rms_norm(args.exec, normed, hidden, w.input_norm, config.rms_norm_eps);
    TensorView attn = gqa_attention(args, w.attention, layer - args.layer_begin, normed);
    if (layer + 1 == config.n_layers && can_take_last_rows(args)) {
      if (n_wanted == 0) return;
      const LastRows rows = take_last_rows(args, hidden, attn);
      hidden = rows.hidden;
      attn = rows.attn;
      normed = {normed.data, normed.dtype, {n_wanted, config.hidden_size}};
      has_all_rows = false;
    }
    linear_add(args.exec, hidden, attn, *w.attention.o);
    rms_norm(args.exec, normed, hidden, w.post_attention_norm, config.rms_norm_eps);
    gated_mlp(args, w.mlp, hidden, normed);
  }
  if (args.layer_end < config.n_layers) return;
  if (n_wanted == 0) return;
  rms_norm(args.exec, normed, hidden, weights.final_norm, config.rms_norm_eps);
  const TensorView y{args.buffers.logits, DType::kF32, {n_wanted, config.vocab_size}};
  const TensorView gathered{args.buffers.gathered, args.buffers.layout.type, {n_wanted, config.hidden_size}};
  const auto rows = has_all_rows ? args.batch.logit_rows : std::span<const std::int32_t>();
  if (args.buffers.screen != nullptr && !args.batch.best.banned_begin.empty()) {
    best_logits(args.exec, y, normed, *weights.head, rows, gathered,
                {.head = *args.buffers.screen, .norm = weights.final_norm, .best = args.batch.best});
    return;
  }
  logits(args.exec, y, normed, *weights.head, rows, gathered);
}

}  // namespace still

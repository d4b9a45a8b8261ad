// The activations of one step: one layout, used by the planner (bytes) and by the engine (create).
#include "models/arch.h"

namespace still {

namespace {
struct Widths {
  std::int64_t q, kv;
};
Widths widths(const ModelConfig& config) {
  return {std::int64_t{config.n_heads} * config.head_dim, std::int64_t{config.n_kv_heads} * config.head_dim};
}
}  // namespace

std::int64_t StepBuffers::bytes(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows) {
  const Widths width = widths(config);
  const auto floats = [](std::int64_t n) { return Arena::rounded(n * static_cast<std::int64_t>(sizeof(float))); };
  return 2 * floats(max_tokens * config.hidden_size) + 2 * floats(max_tokens * width.q) +
         2 * floats(max_tokens * width.kv) + floats(max_tokens * config.intermediate_size) +
         floats(max_logit_rows * config.hidden_size) + floats(max_logit_rows * config.vocab_size);
}

Result<StepBuffers> StepBuffers::create(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows,
                                        Arena& arena) {
  STILL_TRY(arena, Arena::create(bytes(config, max_tokens, max_logit_rows), "activations"));
  const Widths width = widths(config);
  StepBuffers buffers;
  buffers.max_tokens = max_tokens;
  buffers.max_logit_rows = max_logit_rows;
  buffers.hidden = arena.allocate_array<float>(max_tokens * config.hidden_size);
  buffers.normed = arena.allocate_array<float>(max_tokens * config.hidden_size);
  buffers.q = arena.allocate_array<float>(max_tokens * width.q);
  buffers.attn = arena.allocate_array<float>(max_tokens * width.q);
  buffers.k = arena.allocate_array<float>(max_tokens * width.kv);
  buffers.v = arena.allocate_array<float>(max_tokens * width.kv);
  buffers.ffn = arena.allocate_array<float>(max_tokens * config.intermediate_size);
  buffers.gathered = arena.allocate_array<float>(max_logit_rows * config.hidden_size);
  buffers.logits = arena.allocate_array<float>(max_logit_rows * config.vocab_size);
  return buffers;
}

}  // namespace still

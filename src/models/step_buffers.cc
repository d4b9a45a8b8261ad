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

// Calls take(pointer, bytes) for every buffer; the pointers get their values from it.
template <class Take>
void lay_out(StepBuffers& buffers, const ModelConfig& config, Take&& take) {
  const Widths width = widths(config);
  const std::int64_t n = buffers.max_tokens, rows = buffers.max_logit_rows, f32 = sizeof(float);
  const std::int64_t element = buffers.layout.type == DType::kBF16 ? 2 : 4;
  take(buffers.hidden, n * config.hidden_size * f32);
  take(buffers.normed, n * config.hidden_size * element);
  if (buffers.layout.is_joined) {
    buffers.qkv_stride = width.q + 2 * width.kv;
    take(buffers.q, n * buffers.qkv_stride * f32);
    buffers.k = buffers.q == nullptr ? nullptr : buffers.q + width.q;
    buffers.v = buffers.q == nullptr ? nullptr : buffers.q + width.q + width.kv;
    take(buffers.attn, n * width.q * element);
  } else {
    take(buffers.q, n * width.q * f32);
    take(buffers.attn, n * width.q * element);
    take(buffers.k, n * width.kv * f32);
    take(buffers.v, n * width.kv * f32);
  }
  take(buffers.ffn, n * config.intermediate_size * element);
  take(buffers.gathered, rows * config.hidden_size * element);
  take(buffers.logits, rows * config.vocab_size * f32);
}
}  // namespace

std::int64_t StepBuffers::bytes(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows,
                                ActivationLayout layout) {
  StepBuffers buffers;
  buffers.max_tokens = max_tokens;
  buffers.max_logit_rows = max_logit_rows;
  buffers.layout = layout;
  std::int64_t total = 0;
  lay_out(buffers, config, [&](auto*&, std::int64_t bytes) { total += Arena::rounded(bytes); });
  return total;
}

Result<StepBuffers> StepBuffers::create(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows,
                                        Arena& arena) {
  STILL_TRY(arena, Arena::create(bytes(config, max_tokens, max_logit_rows), "activations"));
  StepBuffers buffers;
  buffers.max_tokens = max_tokens;
  buffers.max_logit_rows = max_logit_rows;
  lay_out(buffers, config, [&](auto*& pointer, std::int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(arena.allocate(bytes));
  });
  return buffers;
}

Result<StepBuffers> StepBuffers::create_on_cuda(const ModelConfig& config, std::int64_t max_tokens,
                                                std::int64_t max_logit_rows, ActivationLayout layout,
                                                DeviceBuffer& memory) {
  STILL_TRY(memory, DeviceBuffer::create(bytes(config, max_tokens, max_logit_rows, layout), "activations"));
  StepBuffers buffers;
  buffers.max_tokens = max_tokens;
  buffers.max_logit_rows = max_logit_rows;
  buffers.layout = layout;
  std::byte* at = memory.data();
  lay_out(buffers, config, [&](auto*& pointer, std::int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
    at += Arena::rounded(bytes);
  });
  return buffers;
}

}  // namespace still

// GGUF tensor names to Hugging Face names, which are the canonical ones here, and back. One table serves llama, qwen2,
// qwen3 and deepseek2: the names do not contradict each other.
//   "blk.3.attn_q.weight" <-> "model.layers.3.self_attn.q_proj.weight"
// Tensors that exist in GGUF alone keep a name in the same style:
//   attn_k_b, attn_v_b (the halves of kv_b_proj, k_b transposed) <-> self_attn.k_b_proj, v_b_proj
//   ffn_gate_exps and so on (all experts in one 3-D tensor)      <-> mlp.experts.gate_proj
//   rope_freqs.weight (divisors of the rotation frequencies)      <-> rope_freqs.weight
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace still {

// Nothing for names that the table does not hold.
std::optional<std::string> gguf_to_hf_tensor_name(std::string_view gguf_name);
std::optional<std::string> hf_to_gguf_tensor_name(std::string_view hf_name);

}  // namespace still

#include "files/tensor_names.h"

#include <utility>

namespace still {

namespace {

struct NamePair {
  std::string_view gguf;
  std::string_view hf;
};

constexpr NamePair kModelNames[] = {
    {"token_embd.weight", "model.embed_tokens.weight"},
    {"output_norm.weight", "model.norm.weight"},
    {"output.weight", "lm_head.weight"},
    {"output.bias", "lm_head.bias"},
    {"rope_freqs.weight", "rope_freqs.weight"},
};

// Without "blk.N." and "model.layers.N.", and without ".weight" or ".bias".
constexpr NamePair kLayerNames[] = {
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    // Multi-head latent attention
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"attn_k_b", "self_attn.k_b_proj"},
    {"attn_v_b", "self_attn.v_b_proj"},
    // Mixture of experts
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.experts.gate_proj"},
    {"ffn_up_exps", "mlp.experts.up_proj"},
    {"ffn_down_exps", "mlp.experts.down_proj"},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
    // Multi-token prediction
    {"nextn.eh_proj", "eh_proj"},
    {"nextn.enorm", "enorm"},
    {"nextn.hnorm", "hnorm"},
    {"nextn.embed_tokens", "embed_tokens"},
    {"nextn.shared_head_norm", "shared_head.norm"},
    {"nextn.shared_head_head", "shared_head.head"},
};

// The one name whose ending differs too. Early files leave out ".bias".
constexpr NamePair kRouteBias = {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"};

// "blk.12.attn_q.weight" with prefix "blk." -> {"12", "attn_q.weight"}
std::optional<std::pair<std::string_view, std::string_view>> split_layer(std::string_view name,
                                                                         std::string_view prefix) {
  if (!name.starts_with(prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  std::size_t n_digits = 0;
  while (n_digits < name.size() && name[n_digits] >= '0' && name[n_digits] <= '9') ++n_digits;
  if (n_digits == 0 || n_digits >= name.size() || name[n_digits] != '.') return std::nullopt;
  return std::pair(name.substr(0, n_digits), name.substr(n_digits + 1));
}

std::optional<std::string> translate(std::string_view name, std::string_view NamePair::* from,
                                     std::string_view NamePair::* to, std::string_view prefix_from,
                                     std::string_view prefix_to) {
  for (const NamePair& pair : kModelNames)
    if (pair.*from == name) return std::string(pair.*to);
  const auto layer = split_layer(name, prefix_from);
  if (!layer) return std::nullopt;
  const auto& [number, rest] = *layer;
  const auto join = [&](std::string_view body, std::string_view ending) {
    return std::string(prefix_to) + std::string(number) + "." + std::string(body) + std::string(ending);
  };
  if (rest == kRouteBias.*from) return join(kRouteBias.*to, "");
  const std::size_t dot = rest.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  const std::string_view body = rest.substr(0, dot), ending = rest.substr(dot);
  if (ending != ".weight" && ending != ".bias") return std::nullopt;
  for (const NamePair& pair : kLayerNames)
    if (pair.*from == body) return join(pair.*to, ending);
  return std::nullopt;
}

}  // namespace

std::optional<std::string> gguf_to_hf_tensor_name(std::string_view gguf_name) {
  if (gguf_name.starts_with("blk.") && gguf_name.ends_with(".exp_probs_b"))
    return gguf_to_hf_tensor_name(std::string(gguf_name) + ".bias");
  return translate(gguf_name, &NamePair::gguf, &NamePair::hf, "blk.", "model.layers.");
}

std::optional<std::string> hf_to_gguf_tensor_name(std::string_view hf_name) {
  return translate(hf_name, &NamePair::hf, &NamePair::gguf, "model.layers.", "blk.");
}

}  // namespace still

#include "files/tensor_names.h"

#include <gtest/gtest.h>

#include <utility>

namespace still {
namespace {

TEST(TensorNames, TranslateBothWays) {
  const std::pair<const char*, const char*> names[] = {
      {"token_embd.weight", "model.embed_tokens.weight"},
      {"output_norm.weight", "model.norm.weight"},
      {"output.weight", "lm_head.weight"},
      {"rope_freqs.weight", "rope_freqs.weight"},
      {"blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"},
      {"blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"},
      {"blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"},
      {"blk.3.attn_v.bias", "model.layers.3.self_attn.v_proj.bias"},
      {"blk.3.attn_output.weight", "model.layers.3.self_attn.o_proj.weight"},
      {"blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"},
      {"blk.3.attn_k_norm.weight", "model.layers.3.self_attn.k_norm.weight"},
      {"blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"},
      {"blk.3.ffn_gate.weight", "model.layers.3.mlp.gate_proj.weight"},
      {"blk.3.ffn_up.weight", "model.layers.3.mlp.up_proj.weight"},
      {"blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"},
      {"blk.60.attn_q_a.weight", "model.layers.60.self_attn.q_a_proj.weight"},
      {"blk.60.attn_q_a_norm.weight", "model.layers.60.self_attn.q_a_layernorm.weight"},
      {"blk.60.attn_q_b.weight", "model.layers.60.self_attn.q_b_proj.weight"},
      {"blk.60.attn_kv_a_mqa.weight", "model.layers.60.self_attn.kv_a_proj_with_mqa.weight"},
      {"blk.60.attn_kv_a_norm.weight", "model.layers.60.self_attn.kv_a_layernorm.weight"},
      {"blk.60.attn_kv_b.weight", "model.layers.60.self_attn.kv_b_proj.weight"},
      {"blk.60.attn_k_b.weight", "model.layers.60.self_attn.k_b_proj.weight"},
      {"blk.60.attn_v_b.weight", "model.layers.60.self_attn.v_b_proj.weight"},
      {"blk.60.ffn_gate_inp.weight", "model.layers.60.mlp.gate.weight"},
      {"blk.60.exp_probs_b.bias", "model.layers.60.mlp.gate.e_score_correction_bias"},
      {"blk.60.ffn_gate_exps.weight", "model.layers.60.mlp.experts.gate_proj.weight"},
      {"blk.60.ffn_up_exps.weight", "model.layers.60.mlp.experts.up_proj.weight"},
      {"blk.60.ffn_down_exps.weight", "model.layers.60.mlp.experts.down_proj.weight"},
      {"blk.60.ffn_gate_shexp.weight", "model.layers.60.mlp.shared_experts.gate_proj.weight"},
      {"blk.60.ffn_up_shexp.weight", "model.layers.60.mlp.shared_experts.up_proj.weight"},
      {"blk.60.ffn_down_shexp.weight", "model.layers.60.mlp.shared_experts.down_proj.weight"},
      {"blk.61.nextn.eh_proj.weight", "model.layers.61.eh_proj.weight"},
      {"blk.61.nextn.enorm.weight", "model.layers.61.enorm.weight"},
      {"blk.61.nextn.hnorm.weight", "model.layers.61.hnorm.weight"},
      {"blk.61.nextn.embed_tokens.weight", "model.layers.61.embed_tokens.weight"},
      {"blk.61.nextn.shared_head_norm.weight", "model.layers.61.shared_head.norm.weight"},
      {"blk.61.nextn.shared_head_head.weight", "model.layers.61.shared_head.head.weight"},
  };
  for (const auto& [gguf, hf] : names) {
    EXPECT_EQ(gguf_to_hf_tensor_name(gguf), hf);
    EXPECT_EQ(hf_to_gguf_tensor_name(hf), gguf);
  }
  EXPECT_EQ(gguf_to_hf_tensor_name("blk.3.exp_probs_b"), "model.layers.3.mlp.gate.e_score_correction_bias");
}

TEST(TensorNames, UnknownNamesAreNotGuessed) {
  for (const char* name : {"", "blk.", "blk.1", "blk.1.", "blk.x.attn_q.weight", "blk.1.attn_q", "blk.1.attn_q.scale",
                           "blk.1.attn_qkv.weight", "v.blk.0.attn_q.weight", "attn_q.weight", ".weight"}) {
    EXPECT_EQ(gguf_to_hf_tensor_name(name), std::nullopt) << name;
    EXPECT_EQ(hf_to_gguf_tensor_name(name), std::nullopt) << name;
  }
  EXPECT_EQ(hf_to_gguf_tensor_name("model.layers.0.mlp.experts.5.gate_proj.weight"), std::nullopt);
}

}  // namespace
}  // namespace still

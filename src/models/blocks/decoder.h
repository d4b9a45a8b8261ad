// The dense decoder that llama and qwen2 are: embedding, layers of attention and gated MLP with norms before each,
// head. The two differ in their config (biases, rope scaling) and nowhere else.
#pragma once

#include "models/arch.h"
#include "models/blocks/gqa.h"
#include "models/blocks/mlp.h"

namespace still {

struct DecoderLayer {
  TensorView input_norm, post_attention_norm;  // [hidden_size]
  GqaWeights attention;
  MlpWeights mlp;
};

struct DecoderWeights : ArchWeights {
  const EmbeddingTable* embedding = nullptr;
  std::vector<DecoderLayer> layers;
  TensorView final_norm;
  const Weight* head = nullptr;
};

std::vector<TensorSpec> decoder_tensors(const ModelConfig& config);
std::unique_ptr<ArchWeights> bind_decoder(const ModelConfig& config, const WeightSet& weights);
void decoder_forward(const ForwardArgs& args);

}  // namespace still

// The gated feed-forward block: hidden += W_down (silu(W_gate x) * (W_up x)).
#pragma once

#include "models/arch.h"

namespace still {

struct MlpWeights {
  const Weight* gate = nullptr;  // [intermediate_size, hidden_size]
  const Weight* up = nullptr;
  const Weight* down = nullptr;  // [hidden_size, intermediate_size]
};

// Tensors under "model.layers.<layer>.mlp.".
void append_mlp_tensors(const ModelConfig& config, std::int32_t layer, std::vector<TensorSpec>& specs);
MlpWeights bind_mlp(const WeightSet& weights, std::int32_t layer);
void gated_mlp(const ForwardArgs& args, const MlpWeights& weights, TensorView hidden, TensorView normed);

}  // namespace still

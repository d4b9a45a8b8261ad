#include "models/blocks/mlp.h"

#include "ops/linear.h"

namespace still {

namespace {
std::string mlp_name(std::int32_t layer, std::string_view rest) {
  return fmt::format("model.layers.{}.mlp.{}", layer, rest);
}
}  // namespace

void append_mlp_tensors(const ModelConfig& config, std::int32_t layer, std::vector<TensorSpec>& specs) {
  const auto add = [&](std::string_view name, Shape shape, Share share) {
    specs.push_back({mlp_name(layer, name), shape, TensorRole::kMatrix, false, share, layer});
  };
  add("gate_proj.weight", {config.intermediate_size, config.hidden_size}, Share::kFfn);
  add("up_proj.weight", {config.intermediate_size, config.hidden_size}, Share::kFfn);
  add("down_proj.weight", {config.hidden_size, config.intermediate_size}, Share::kFfnColumns);
}

MlpWeights bind_mlp(const WeightSet& weights, std::int32_t layer) {
  return {.gate = weights.matrix(mlp_name(layer, "gate_proj.weight")),
          .up = weights.matrix(mlp_name(layer, "up_proj.weight")),
          .down = weights.matrix(mlp_name(layer, "down_proj.weight"))};
}

void gated_mlp(const ForwardArgs& args, const MlpWeights& weights, TensorView hidden, TensorView normed) {
  const TensorView inner{args.buffers.ffn, args.buffers.layout.type, {hidden.rows(), args.config.intermediate_size}};
  linear_swiglu(args.exec, inner, normed, *weights.gate, *weights.up);
  linear_add(args.exec, hidden, inner, *weights.down);
}

}  // namespace still

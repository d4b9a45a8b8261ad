#include "plan/layer_split.h"

#include <algorithm>

namespace still {

namespace {
// The GPU's part alone.
Result<LayerSplit> plan_with(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                             EngineSettings settings, std::int64_t gpu_bytes, std::int32_t n_gpu_layers, bool to_f8,
                             WeightLayout& layout, std::int64_t& max_k) {
  LayerSplit split{.n_gpu_layers = n_gpu_layers};
  const std::int32_t n_host = config.n_layers - n_gpu_layers;
  STILL_TRY(layout,
            weight_layout(arch, config, checkpoint, {.is_on_cuda = true, .n_host_layers = n_host, .to_f8 = to_f8}));
  max_k = 0;
  settings.has_f32_activations = false;
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source == nullptr || item.spec.role != TensorRole::kMatrix) continue;
    max_k = std::max(max_k, item.spec.shape[1]);
    const bool is_half = item.format == PackedFormat::kBF16 || item.format == PackedFormat::kF16;
    if (item.is_on_cuda && !is_half) settings.has_f32_activations = true;
  }
  settings.n_host_layers = n_host;
  settings.memory_limit = gpu_bytes;
  STILL_TRY(split.gpu, plan_memory(config, layout.arena_bytes - layout.host_bytes, max_k, settings));
  return split;
}
}  // namespace

Result<LayerSplit> plan_layer_split(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                                    const EngineSettings& wanted, std::int64_t gpu_bytes, std::int64_t host_bytes,
                                    std::optional<std::int32_t> n_gpu_layers, bool to_f8) {
  EngineSettings settings = wanted;
  settings.cuda_device = std::max(0, settings.cuda_device);
  if (settings.context == 0) settings.context = std::min(kGoodSplitContext, config.max_seq_len);
  if (n_gpu_layers && (*n_gpu_layers < 1 || *n_gpu_layers > config.n_layers))
    return error(Code::kInvalidArgument, "{} layers on the GPU: expected 1 to {}, or auto", *n_gpu_layers,
                 config.n_layers);
  std::optional<Error> reason;
  const std::int32_t most = n_gpu_layers.value_or(config.n_layers);
  for (std::int32_t n = most; n >= 1; --n) {
    WeightLayout layout;
    std::int64_t max_k = 0;
    Result<LayerSplit> split = plan_with(arch, config, checkpoint, settings, gpu_bytes, n, to_f8, layout, max_k);
    if (split && (n == most || !n_gpu_layers)) {
      // Fewer layers on the GPU would be more on the host.
      if (n < config.n_layers) {
        STILL_TRY(split->host, plan_host_part(config, layout.host_bytes, max_k, split->gpu.settings, host_bytes));
      }
      return split;
    }
    if (split)
      return error(Code::kResourceExhausted, "{} layers on the GPU: {}; {} of {} layers fit it", *n_gpu_layers,
                   reason->message, n, config.n_layers);
    if (split.error().code != Code::kResourceExhausted) return split;
    if (!reason) reason = split.error();
  }
  return error(Code::kResourceExhausted, "no layer fits the GPU beside a context of {} tokens: {}", settings.context,
               reason->message);
}

}  // namespace still

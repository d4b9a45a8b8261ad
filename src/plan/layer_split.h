// A model's layers shared out between a GPU and the host: the last ones and the head on the GPU, as many as its memory
// takes with the context's keys and values; the first ones on the CPU. Exact, from the headers, as memory.h.
#pragma once

#include <optional>

#include "plan/memory.h"

namespace still {

struct LayerSplit {
  std::int32_t n_gpu_layers = 0;
  MemoryPlan gpu, host;  // host: all zeros where every layer is on the GPU
};

// wanted: as for an engine on the GPU; without a context it is kGoodSplitContext or the model's, and may get longer
// when the engine is made. n_gpu_layers: absent: as many as fit. kResourceExhausted, with the number that fits, where
// they do not.
inline constexpr std::int64_t kGoodSplitContext = 4096;
Result<LayerSplit> plan_layer_split(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                                    const EngineSettings& wanted, std::int64_t gpu_bytes, std::int64_t host_bytes,
                                    std::optional<std::int32_t> n_gpu_layers, bool to_f8 = false);

}  // namespace still

// Does it fit, if not why, and what is the nearest that does. One cell or a whole grid of model x quantisation x
// devices x context x concurrency; the split of a model over a GPU and host memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/deployment.h"
#include "plan/message.h"

namespace still {

struct FitAnswer {
  bool fits = false;
  std::int64_t capacity = 0;  // bytes of a device that the engine may use
  RankMemory memory;          // of the fullest rank
  RankWeights weights;
  std::int64_t max_kv_tokens = 0;    // over all sequences; 0: not even the weights fit
  std::int64_t max_context = 0;      // of one sequence at the wanted concurrency; at most the model's
  std::int64_t max_concurrency = 0;  // at the wanted context
  Message reason;                    // of a no: one sentence
  std::vector<Message> nearest;      // of a no: single changes that make it a yes, smallest first
  std::vector<Message> notes;        // what the hardware cannot do directly
  std::int64_t reserved = 0;         // bytes the engine takes of a device, where it reserves (vLLM)
};

// with_nearest false: the verdict alone. Errors only where the deployment is impossible as such (a split that does not
// divide, numbers that cannot be).
Result<FitAnswer> check_fit(const ModelShape& shape, const Quantisation& quantisation, const DeviceSet& devices,
                            const DeploymentSettings& settings, bool with_nearest = true);

struct FitCell {
  bool fits = false;
  std::int64_t need = 0, capacity = 0, max_kv_tokens = 0;
};
// Cells of contexts x concurrencies for one deployment: the weights are planned once. cells[i * n_concurrencies + j].
Result<std::vector<FitCell>> fit_grid(const ModelShape& shape, const Quantisation& quantisation,
                                      const DeviceSet& devices, DeploymentSettings settings,
                                      const std::vector<std::int64_t>& contexts,
                                      const std::vector<std::int64_t>& concurrencies);

// One GPU (or several) beside host memory: whole layers on the GPU as far as they fit; of a model with experts all but
// the routed experts first, then whole layers of experts.
struct OffloadPlan {
  std::int64_t gpu_layers = 0;   // layers wholly on the GPU
  bool experts_on_host = false;  // attention, dense and shared parts of all layers on the GPU
  std::int64_t gpu_bytes = 0, host_bytes = 0;
  std::int64_t host_layer_bytes = 0;  // of whole layers on the host; the rest of host_bytes is experts and the table
  std::int64_t host_expert_bytes = 0;
  bool fits = false;
  Message reason;
};
Result<OffloadPlan> plan_offload(const ModelShape& shape, const Quantisation& quantisation, const DeviceSet& gpus,
                                 std::int64_t host_capacity, const DeploymentSettings& settings);

}  // namespace still

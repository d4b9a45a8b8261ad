// The first layers of a model that does not fit its GPU: computed by the CPU before the GPU's part of the step, their
// keys and values in host memory.
#pragma once

#include <memory>

#include "models/model.h"
#include "plan/memory.h"

namespace still {

class HostLayers {
 public:
  // plan: of this part (plan_host_part).
  static Result<std::unique_ptr<HostLayers>> create(std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                    const CpuKernels* kernels);
  // The step's hidden states after the last of these layers, [max_tokens, hidden_size] in pinned memory.
  const float* output() const { return buffers_.hidden; }
  // Overwrites output().
  Status run(const RaggedBatch& batch);

 private:
  HostLayers() = default;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  PinnedBuffer pinned_;
  StepBuffers buffers_;
  RopeTable rope_;
};

}  // namespace still

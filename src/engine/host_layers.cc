#include "engine/host_layers.h"

namespace still {

Result<std::unique_ptr<HostLayers>> HostLayers::create(std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                       const CpuKernels* kernels) {
  auto part = std::unique_ptr<HostLayers>(new HostLayers);
  const EngineSettings& settings = plan.settings;
  const ModelConfig& config = model->config();
  ExecOptions options = exec_options(config, model->max_k(), plan);
  options.kernels = kernels;
  STILL_TRY(part->exec_, Exec::create(options));
  STILL_TRY(part->cache_, KvCache::create(kv_geometry(config, settings), plan.n_blocks));
  STILL_TRY(part->buffers_, StepBuffers::create(config, settings.chunk_tokens, plan.max_logit_rows, part->arena_));
  // Of the buffers' own room for hidden states nothing is touched.
  STILL_TRY(part->pinned_, PinnedBuffer::create(settings.chunk_tokens * config.hidden_size * 4, "hidden states"));
  part->buffers_.hidden = reinterpret_cast<float*>(part->pinned_.data());
  // A padded step reads rows that no token wrote.
  std::fill_n(part->buffers_.hidden, settings.chunk_tokens * config.hidden_size, 0.0f);
  part->rope_ = RopeTable(config.rope, settings.context);
  part->model_ = std::move(model);
  return part;
}

Status HostLayers::run(const RaggedBatch& batch) {
  return model_->forward(*exec_, batch, cache_, rope_, buffers_);
}

}  // namespace still

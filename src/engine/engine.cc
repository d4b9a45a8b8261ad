#include "engine/engine.h"

#include <chrono>

#include "engine/core.h"
#include "kernels/dispatch.h"
#include "ops/cuda_exec.h"

namespace still {

namespace {

// The CPU's forward pass: everything that a step touches, allocated here once by the plan's formulas.
class ModelForward : public ForwardPass {
 public:
  static Result<std::unique_ptr<ModelForward>> create(std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                      const CpuKernels* kernels) {
    auto forward = std::unique_ptr<ModelForward>(new ModelForward);
    const EngineSettings& settings = plan.settings;
    ExecOptions options = exec_options(model->config(), model->max_k(), plan);
    options.kernels = kernels;
    STILL_TRY(forward->exec_, Exec::create(options));
    STILL_TRY(forward->cache_, KvCache::create(kv_geometry(model->config(), settings), plan.n_blocks));
    STILL_TRY(forward->buffers_,
              StepBuffers::create(model->config(), settings.chunk_tokens, plan.max_logit_rows, forward->arena_));
    forward->rope_ = RopeTable(model->config().rope, settings.context);
    forward->model_ = std::move(model);
    return forward;
  }

  Result<float*> run(const RaggedBatch& batch) override {
    STILL_TRY_STATUS(model_->forward(*exec_, batch, cache_, rope_, buffers_));
    return buffers_.logits;
  }
  ThreadPool* threads() override { return &exec_->threads(); }
  bool can_copy_blocks() const override { return true; }
  void copy_block(std::int32_t from, std::int32_t to) override { cache_.copy_block(from, to); }

 private:
  ModelForward() = default;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  StepBuffers buffers_;
  RopeTable rope_;
};

// The same on a GPU: what the plan counted lies there, logits stay there.
class CudaForward : public ForwardPass {
 public:
  static Result<std::unique_ptr<CudaForward>> create(std::shared_ptr<const Model> model, const MemoryPlan& plan) {
    auto forward = std::unique_ptr<CudaForward>(new CudaForward);
    const EngineSettings& settings = plan.settings;
    STILL_TRY(forward->exec_, Exec::create(exec_options(model->config(), model->max_k(), plan)));
    STILL_TRY(forward->cache_, KvCache::create_on_cuda(kv_geometry(model->config(), settings), plan.n_blocks,
                                                       forward->exec_->cuda()->stream()));
    STILL_TRY(forward->buffers_,
              StepBuffers::create_on_cuda(model->config(), settings.chunk_tokens, plan.max_logit_rows,
                                          activation_layout(settings), forward->memory_));
    forward->rope_ = RopeTable(model->config().rope, settings.context);
    forward->model_ = std::move(model);
    return forward;
  }

  // The engine's thread is not the one that made it.
  Result<float*> run(const RaggedBatch& batch) override {
    STILL_TRY_STATUS(use_cuda_device(model_->cuda_device()));
    STILL_TRY_STATUS(model_->forward(*exec_, batch, cache_, rope_, buffers_));
    return nullptr;
  }
  bool is_on_device() const override { return true; }
  Result<float*> fetch_row(std::int64_t row) override {
    const std::int64_t n = model_->config().vocab_size;
    return exec_->cuda()->fetch(buffers_.logits + row * n, n);
  }
  Result<std::span<const TokenId>> sample(std::span<const CudaSampleRow> rows) override {
    return exec_->cuda()->sample(buffers_.logits, rows);
  }

 private:
  CudaForward() = default;
  std::shared_ptr<const Model> model_;
  DeviceBuffer memory_;
  KvCache cache_;
  StepBuffers buffers_;
  RopeTable rope_;
  std::unique_ptr<Exec> exec_;
};

// Bytes that are free on a GPU now.
Result<std::int64_t> free_cuda_memory(std::int32_t device) {
  std::string reason;
  for (const CudaDeviceInfo& info : list_cuda_devices(&reason))
    if (info.index == device) return info.free_bytes;
  return error(Code::kUnavailable, "GPU {}: {}", device, reason);
}

// Tokens of a step where the caller left the number to us: a GPU is filled by more rows than a CPU.
constexpr std::int64_t kCudaChunkTokens = 8192;

}  // namespace

struct Engine::State {
  std::shared_ptr<const Model> model;
  EngineOptions options;
  MemoryPlan plan;
  std::unique_ptr<EngineCore> core;
};

Result<std::unique_ptr<Engine>> Engine::create(std::shared_ptr<const Model> model, const EngineOptions& options) {
  if (options.max_queue < 0)
    return error(Code::kInvalidArgument, "queue {}: expected 0 or more requests", options.max_queue);
  if (options.max_draft < 0)
    return error(Code::kInvalidArgument, "draft {}: expected 0 or more tokens", options.max_draft);
  auto state = std::make_unique<State>();
  EngineSettings settings = options.settings;
  // The weights are loaded already: what is available now does not count them, the plan does.
  const bool on_cuda = model->cuda_device() >= 0;
  settings.cuda_device = model->cuda_device();
  settings.has_f32_activations = model->has_f32_activations();
  if (on_cuda && settings.kv_type != KvType::kF16)
    return error(Code::kUnsupported, "KV type: on a GPU keys and values are kept as f16");
  if (on_cuda && settings.chunk_tokens == EngineSettings().chunk_tokens) settings.chunk_tokens = kCudaChunkTokens;
  if (settings.memory_limit <= 0 && on_cuda) {
    STILL_TRY(const std::int64_t free_bytes, free_cuda_memory(model->cuda_device()));
    settings.memory_limit = free_bytes + model->weight_bytes();
  }
  if (settings.memory_limit <= 0) settings.memory_limit = available_memory() + model->weight_bytes();
  STILL_TRY(state->plan, plan_memory(model->config(), model->weight_bytes(), model->max_k(), settings));
  const MemoryPlan& plan = state->plan;
  const CpuKernels* kernels = options.kernels;
  if (kernels == nullptr) {
    STILL_TRY(kernels, default_cpu_kernels());
  }
  std::unique_ptr<ForwardPass> forward;
  if (on_cuda) {
    STILL_TRY(forward, CudaForward::create(model, plan));
  } else {
    STILL_TRY(forward, ModelForward::create(model, plan, kernels));
  }
  CoreOptions core;
  core.scheduler = {.max_seqs = plan.settings.max_seqs,
                    .chunk_tokens = plan.settings.chunk_tokens,
                    .max_logit_rows = plan.max_logit_rows,
                    .block_size = plan.settings.block_size,
                    .step = options.step,
                    .max_draft = options.speculation == Speculation::kOff ? 0 : options.max_draft};
  core.n_blocks = plan.n_blocks;
  core.context = plan.settings.context;
  core.prefix_cache = options.prefix_cache;
  core.max_queue = options.max_queue;
  core.preempt_every_step = options.preempt_every_step;
  core.kernels = kernels;
  core.seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  state->core =
      std::make_unique<EngineCore>(core, make_vocab(model->tokenizer(), model->config().vocab_size), std::move(forward),
                                   options.speculation == Speculation::kLookup ? make_lookup_drafter() : nullptr);
  state->options = options;
  state->model = std::move(model);
  return std::unique_ptr<Engine>(new Engine(std::move(state)));
}

Engine::Engine(std::unique_ptr<State> state) : state_(std::move(state)) {}
Engine::~Engine() = default;

Result<RequestId> Engine::submit(Request request, std::shared_ptr<EventSink> sink) {
  return state_->core->submit(std::move(request), std::move(sink));
}
void Engine::cancel(RequestId id) {
  state_->core->cancel(id);
}
void Engine::stop_thinking(RequestId id) {
  state_->core->stop_thinking(id);
}
EngineStats Engine::stats() const {
  return state_->core->stats();
}
bool Engine::step() {
  return state_->core->step();
}
void Engine::start() {
  state_->core->start();
}
void Engine::stop(bool drain) {
  state_->core->stop(drain);
}
bool Engine::is_started() const {
  return state_->core->is_started();
}
const MemoryPlan& Engine::plan() const {
  return state_->plan;
}
const Model& Engine::model() const {
  return *state_->model;
}
const EngineOptions& Engine::options() const {
  return state_->options;
}

}  // namespace still

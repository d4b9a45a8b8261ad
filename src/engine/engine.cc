#include "engine/engine.h"

#include <chrono>

#include "engine/core.h"
#include "engine/host_layers.h"
#include "engine/model_drafter.h"
#include "engine/parallel_forward.h"
#include "kernels/dispatch.h"
#include "ops/cuda_exec.h"

namespace still {

namespace {

// Rows of activations that the CPU's products take through a panel of weights together.
constexpr std::int64_t kCpuRowGroup = 4;

// The CPU's forward pass: everything that a step touches, allocated here once by the plan's formulas.
class ModelForward : public ForwardPass {
 public:
  static Result<std::unique_ptr<ModelForward>> create(std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                      const CpuKernels* kernels, const CpuTopology* topology) {
    ExecOptions options = exec_options(model->config(), model->max_k(), plan);
    options.kernels = kernels;
    options.topology = topology;
    STILL_TRY(std::shared_ptr<Exec> exec, Exec::create(options));
    STILL_TRY(std::unique_ptr<ModelForward> forward,
              create_with(std::move(exec), std::move(model), plan, plan.settings.chunk_tokens, plan.max_logit_rows,
                          plan.settings.context));
    if (plan.settings.screens_head) {
      const ModelConfig& config = forward->model_->config();
      STILL_TRY(forward->screen_, ScreenedHead::create(config.vocab_size, config.hidden_size));
      forward->buffers_.screen = &forward->screen_;
    }
    return forward;
  }
  // The draft model's, which runs between the other's steps on the same threads and scratch.
  Result<std::unique_ptr<ModelForward>> create_draft(std::shared_ptr<const Model> draft, const MemoryPlan& plan) const {
    return create_with(exec_, std::move(draft), plan, draft_chunk_tokens(plan.settings), plan.settings.max_seqs,
                       draft_context(plan.settings));
  }

  Result<float*> run(const RaggedBatch& batch) override {
    STILL_TRY_STATUS(model_->forward(*exec_, batch, cache_, rope_, buffers_));
    return buffers_.logits;
  }
  ThreadPool* threads() override { return &exec_->threads(); }
  bool can_copy_blocks() const override { return true; }
  void copy_block(std::int32_t from, std::int32_t to) override { cache_.copy_block(from, to); }
  ScreenStats screen_stats() const override { return screen_.stats(); }

 private:
  ModelForward() = default;
  static Result<std::unique_ptr<ModelForward>> create_with(std::shared_ptr<Exec> exec,
                                                           std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                           std::int64_t max_tokens, std::int64_t max_logit_rows,
                                                           std::int64_t context) {
    auto forward = std::unique_ptr<ModelForward>(new ModelForward);
    STILL_TRY(forward->cache_, KvCache::create(kv_geometry(model->config(), plan.settings), plan.n_blocks));
    STILL_TRY(forward->buffers_, StepBuffers::create(model->config(), max_tokens, max_logit_rows, forward->arena_));
    forward->rope_ = RopeTable(model->config().rope, context);
    forward->exec_ = std::move(exec);
    forward->model_ = std::move(model);
    return forward;
  }

  std::shared_ptr<const Model> model_;
  std::shared_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  StepBuffers buffers_;
  RopeTable rope_;
  ScreenedHead screen_;
};

// The same on a GPU: what the plan counted lies there, logits stay there.
class CudaForward : public ForwardPass {
 public:
  // comm: of a rank of several; host: the layers before the GPU's.
  static Result<std::unique_ptr<CudaForward>> create(std::shared_ptr<const Model> model, const MemoryPlan& plan,
                                                     Comm* comm = nullptr, std::unique_ptr<HostLayers> host = nullptr) {
    auto forward = std::unique_ptr<CudaForward>(new CudaForward);
    const EngineSettings& settings = plan.settings;
    ExecOptions options = exec_options(model->config(), model->max_k(), plan);
    options.comm = comm;
    STILL_TRY(forward->exec_, Exec::create(options));
    STILL_TRY(forward->cache_, KvCache::create_on_cuda(kv_geometry(model->config(), settings), plan.n_blocks,
                                                       forward->exec_->cuda()->stream()));
    STILL_TRY(forward->buffers_,
              StepBuffers::create_on_cuda(model->config(), settings.chunk_tokens, plan.max_logit_rows,
                                          activation_layout(settings), forward->memory_));
    if (host != nullptr) forward->buffers_.input = host->output();
    forward->host_ = std::move(host);
    forward->rope_ = RopeTable(model->config().rope, settings.context);
    STILL_TRY_STATUS(forward->exec_->cuda()->upload_rope(forward->rope_));
    STILL_TRY_STATUS(forward->exec_->cuda()->wait("rotary table"));
    forward->model_ = std::move(model);
    return forward;
  }
  float* logits() { return buffers_.logits; }

  // The engine's thread is not the one that made it.
  Result<float*> run(const RaggedBatch&) override { return error(Code::kInternal, "the logits are on a GPU"); }
  bool is_on_device() const override { return true; }
  Status launch(const RaggedBatch& batch, std::span<const CudaSampleRow> draws) override {
    CudaExec& cuda = *exec_->cuda();
    Status launched = use_cuda_device(model_->cuda_device());
    if (launched && host_ != nullptr) {
      launched = cuda.wait("the GPU's step");  // it may still read the last hidden states
      if (launched) launched = host_->run(batch);
    }
    cuda.stage_draws(draws);
    if (launched) launched = model_->forward(*exec_, batch, cache_, rope_, buffers_);
    if (launched) launched = cuda.draw(buffers_.logits);
    return launched;
  }
  Result<std::span<const TokenId>> collect() override { return exec_->cuda()->collect(); }
  void abandon() override { exec_->cuda()->abandon(); }
  DeviceTimes device_times() const override {
    return {.busy = exec_->cuda()->busy_seconds(), .idle = exec_->cuda()->idle_seconds()};
  }
  Result<float*> fetch_row(std::int64_t row) override {
    const std::int64_t n = model_->config().vocab_size;
    return exec_->cuda()->fetch(buffers_.logits + row * n, n);
  }

 private:
  CudaForward() = default;
  std::shared_ptr<const Model> model_;
  std::unique_ptr<HostLayers> host_;  // null: all layers are on the GPU
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

// All ranks of a model that GPUs share, each planned alike on its own.
Result<std::unique_ptr<ForwardPass>> create_ranks(const std::shared_ptr<const Model>& model, const MemoryPlan& plan) {
  STILL_TRY(std::unique_ptr<CudaGroup> group,
            CudaGroup::create(group_options(model->config(), plan.settings, plan.max_logit_rows)));
  std::vector<std::unique_ptr<ForwardPass>> forwards;
  for (const Model* rank : model->ranks()) {
    MemoryPlan own = plan;
    own.settings.cuda_device = rank->cuda_device();
    const auto index = static_cast<int>(forwards.size());
    // A rank lives as long as rank 0, which holds it.
    STILL_TRY(std::unique_ptr<CudaForward> forward,
              CudaForward::create(std::shared_ptr<const Model>(model, rank), own, &group->rank(index)));
    group->set_logits(index, forward->logits());
    forwards.push_back(std::move(forward));
  }
  return make_parallel_forward(std::move(forwards), std::move(group));
}

// The drafter that the options ask for; null: none.
Result<std::unique_ptr<Drafter>> make_drafter(const Model& model, const EngineOptions& options, const MemoryPlan& plan,
                                              const CpuKernels* kernels, const ModelForward* forward) {
  std::unique_ptr<Drafter> drafter;
  if (options.speculation == Speculation::kLookup) drafter = make_lookup_drafter();
  if (options.draft == nullptr) return drafter;
  const EngineSettings& settings = plan.settings;
  const auto ends = model.tokenizer().end_of_generation();
  ModelDrafterOptions draft{
      .vocab_size = options.draft->config().vocab_size,
      .n_tokens = std::min(options.draft->config().vocab_size, model.config().vocab_size),
      .n_blocks = plan.n_blocks,
      .block_size = settings.block_size,
      .context = draft_context(settings),
      .max_seqs = settings.max_seqs,
      .chunk_tokens = draft_chunk_tokens(settings),
      .max_blocks = (settings.context + settings.block_size - 1) / settings.block_size,
      .kernels = kernels,
      .end_tokens = {ends.begin(), ends.end()},
  };
  STILL_TRY(std::unique_ptr<ModelForward> draft_forward, forward->create_draft(options.draft, plan));
  std::unique_ptr<Drafter> by_model = make_model_drafter(draft, std::move(draft_forward));
  if (drafter == nullptr) return by_model;
  return make_chained_drafter(std::move(drafter), std::move(by_model));
}

}  // namespace

std::shared_ptr<const DraftShape> draft_shape(const Model& draft) {
  return std::make_shared<const DraftShape>(
      DraftShape{.config = draft.config(), .weight_bytes = draft.weight_bytes(), .max_k = draft.max_k()});
}

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
  const bool drafts = options.speculation != Speculation::kOff || options.draft != nullptr;
  if (model->cuda_device() >= 0 && settings.reproducible && drafts)
    return error(Code::kUnsupported,
                 "speculation: on a GPU drafted tokens are computed in another order, so it cannot be reproducible");
  settings.draft = nullptr;
  if (options.draft != nullptr) {
    if (model->cuda_device() >= 0 || options.draft->cuda_device() >= 0)
      return error(Code::kUnsupported, "a draft model works on the CPU only: choose the CPU, or no draft model");
    STILL_TRY_STATUS(check_same_vocabulary(model->tokenizer(), options.draft->tokenizer()));
    settings.draft = draft_shape(*options.draft);
  }
  // The weights are loaded already: what is available now does not count them, the plan does.
  const bool on_cuda = model->cuda_device() >= 0;
  settings.cuda_device = model->cuda_device();
  settings.has_f32_activations = model->has_f32_activations();
  settings.n_host_layers = model->n_host_layers();
  settings.screens_head = !on_cuda && options.screens_head && model->screens_head();
  STILL_TRY_STATUS(check_kv_type(settings.kv_type, on_cuda));
  if (settings.n_host_layers > 0) STILL_TRY_STATUS(check_kv_type(settings.kv_type, false));
  if (on_cuda && settings.gpu_memory > 0) settings.memory_limit = settings.gpu_memory;
  if (settings.memory_limit <= 0 && on_cuda) {
    STILL_TRY(const std::int64_t free_bytes, free_cuda_memory(model->cuda_device()));
    settings.memory_limit = free_bytes + model->weight_bytes();
  }
  const Model* fullest = model.get();
  settings.rank_devices.clear();
  settings.rank_columns.clear();
  for (const Model* rank : model->ranks()) {
    settings.rank_devices.push_back(rank->cuda_device());
    settings.rank_columns.push_back(rank->parts().vocabulary.begin);
    if (rank->weight_bytes() > fullest->weight_bytes()) fullest = rank;
  }
  if (!settings.rank_devices.empty()) settings.rank_columns.push_back(model->config().vocab_size);
  if (settings.memory_limit <= 0) {
    settings.memory_limit = available_memory() + model->weight_bytes();
    if (options.draft != nullptr) settings.memory_limit += options.draft->weight_bytes();
  }
  STILL_TRY(state->plan, plan_memory(fullest->config(), fullest->weight_bytes(), fullest->max_k(), settings));
  const MemoryPlan& plan = state->plan;
  const CpuKernels* kernels = options.kernels;
  if (kernels == nullptr) {
    STILL_TRY(kernels, default_cpu_kernels());
  }
  std::unique_ptr<HostLayers> host_layers;
  if (plan.settings.n_host_layers > 0) {
    STILL_TRY(const MemoryPlan host_plan,
              plan_host_part(model->config(), model->host_weight_bytes(), model->max_k(), plan.settings,
                             available_memory() + model->host_weight_bytes()));
    STILL_TRY(host_layers, HostLayers::create(model, host_plan, kernels));
  }
  std::unique_ptr<ForwardPass> forward;
  std::unique_ptr<Drafter> drafter;
  if (on_cuda) {
    if (!settings.rank_devices.empty()) {
      STILL_TRY(forward, create_ranks(model, plan));
    } else {
      STILL_TRY(forward, CudaForward::create(model, plan, nullptr, std::move(host_layers)));
    }
    STILL_TRY(drafter, make_drafter(*model, options, plan, kernels, nullptr));
  } else {
    STILL_TRY(std::unique_ptr<ModelForward> on_cpu, ModelForward::create(model, plan, kernels, options.topology));
    STILL_TRY(drafter, make_drafter(*model, options, plan, kernels, on_cpu.get()));
    forward = std::move(on_cpu);
  }
  CoreOptions core;
  core.scheduler = {.max_seqs = plan.settings.max_seqs,
                    .chunk_tokens = plan.settings.chunk_tokens,
                    .max_logit_rows = plan.max_logit_rows,
                    .block_size = plan.settings.block_size,
                    .step = options.step,
                    .max_draft = drafter == nullptr ? 0 : options.max_draft,
                    .answers_by_token = on_cuda && settings.reproducible};
  if (!on_cuda) core.scheduler.step.row_group = kCpuRowGroup;
  core.n_blocks = plan.n_blocks;
  core.context = plan.settings.context;
  core.prefix_cache = options.prefix_cache;
  core.max_queue = options.max_queue;
  core.preempt_every_step = options.preempt_every_step;
  // The host's layers want to know a step's tokens before it begins.
  core.run_ahead = options.run_ahead && plan.settings.n_host_layers == 0;
  core.kernels = kernels;
  core.around_step_ends = options.around_step_ends;
  core.seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  state->core = std::make_unique<EngineCore>(core, make_vocab(model->tokenizer(), model->config().vocab_size),
                                             std::move(forward), std::move(drafter));
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

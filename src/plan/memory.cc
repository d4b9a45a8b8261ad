#include "plan/memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <string>

#include "base/arithmetic.h"
#include "tensor/cuda.h"

namespace still {

namespace {

// The program's own pages, templates, bookkeeping; and what the tokenizer takes for a word, as measured on the three
// models of docs/plan.md.
constexpr std::int64_t kRuntimeBytes = std::int64_t{8} << 20;
constexpr std::int64_t kRuntimeBytesOfWord = 176;
// A draft model's prompt is computed in smaller steps: its activations are memory, and others wait for it.
constexpr std::int64_t kDraftChunkTokens = 256;
// On a GPU: the library's workspace, captured steps and the allocator's slack.
constexpr std::int64_t kCudaRuntimeBytes = std::int64_t{512} << 20;
// NCCL's buffers: an estimate.
constexpr std::int64_t kNcclBytes = std::int64_t{512} << 20;
// Below this a chat is not possible, so a plan that only fits less is refused.
constexpr std::int64_t kMinContext = 256;

double gib(std::int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

// A number from a one-line file such as cgroup's memory.max; -1 where absent or "max".
std::int64_t read_number(const std::string& path) {
  std::ifstream file(path);
  std::int64_t value = -1;
  return file >> value ? value : -1;
}

std::int64_t read_field(const std::string& path, const std::string& field) {
  std::ifstream file(path);
  std::string name;
  std::int64_t value = 0;
  while (file >> name >> value) {
    if (name == field) return value;
    file.ignore(256, '\n');
  }
  return -1;
}

MemoryPlan with_blocks(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                       const EngineSettings& settings) {
  MemoryPlan plan;
  plan.settings = settings;
  const KvGeometry geometry = kv_geometry(config, settings);
  plan.weight_bytes = Arena::reserved(weight_bytes);
  plan.n_blocks = ceil_div(settings.kv_tokens, settings.block_size);
  plan.kv_bytes = Arena::reserved(plan.n_blocks * geometry.block_bytes());
  plan.kv_bytes_per_token = geometry.block_bytes() / settings.block_size;
  plan.max_logit_rows = settings.is_host_part ? 0 : std::max<std::int64_t>(16, settings.max_seqs);
  plan.workspace_bytes = Arena::reserved(StepBuffers::bytes(config, settings.chunk_tokens, plan.max_logit_rows,
                                                            activation_layout(settings))) +
                         Arena::reserved(Exec::scratch_bytes(exec_options(config, max_k, plan)));
  if (settings.cuda_device >= 0 && !settings.rank_devices.empty())
    plan.workspace_bytes += Arena::reserved(CudaGroup::bytes(group_options(config, settings, plan.max_logit_rows), 0));
  plan.rope_bytes = RopeTable::bytes(config.rope, settings.context);
  if (settings.screens_head)
    plan.screen_bytes = Arena::reserved(ScreenedHead::bytes(config.vocab_size, config.hidden_size));
  plan.runtime_bytes =
      settings.cuda_device >= 0 ? kCudaRuntimeBytes : kRuntimeBytes + kRuntimeBytesOfWord * config.vocab_size;
  if (settings.cuda_device >= 0 && !settings.rank_devices.empty()) plan.runtime_bytes += kNcclBytes;
  if (settings.draft != nullptr) {
    const ModelConfig& draft = settings.draft->config;
    plan.draft_weight_bytes = Arena::reserved(settings.draft->weight_bytes);
    plan.draft_kv_bytes = Arena::reserved(plan.n_blocks * kv_geometry(draft, settings).block_bytes());
    plan.draft_workspace_bytes =
        Arena::reserved(StepBuffers::bytes(draft, draft_chunk_tokens(settings), settings.max_seqs)) +
        RopeTable::bytes(draft.rope, draft_context(settings));
    plan.runtime_bytes += kRuntimeBytesOfWord * draft.vocab_size;
  }
  return plan;
}

// Of one block: the draft model's keys and values lie in as many.
std::int64_t all_block_bytes(const ModelConfig& config, const EngineSettings& settings) {
  const std::int64_t bytes = kv_geometry(config, settings).block_bytes();
  return settings.draft == nullptr ? bytes : bytes + kv_geometry(settings.draft->config, settings).block_bytes();
}

// What rounding may add to the caches when their blocks become more.
std::int64_t cache_slack(const EngineSettings& settings) {
  return (settings.draft == nullptr ? 1 : 2) * Arena::reserved(1 << 21);
}

// The longest context (a multiple of a block) for which one sequence fits into `limit`; 0 if none does.
std::int64_t longest_context(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                             EngineSettings settings, std::int64_t limit) {
  std::int64_t low = 0, high = ceil_div(config.max_seq_len, settings.block_size);
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    settings.context = middle * settings.block_size;
    settings.kv_tokens = settings.context;
    if (with_blocks(config, weight_bytes, max_k, settings).total_bytes() <= limit)
      low = middle;
    else
      high = middle - 1;
  }
  return std::min(low * settings.block_size, config.max_seq_len);
}

// Settings that do not fit only because of the steps of so many sequences: says how many would.
Status check_sequences(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                       const EngineSettings& wanted) {
  const auto plan_of = [&](std::int64_t n_seqs) {
    EngineSettings settings = wanted;
    settings.max_seqs = n_seqs;
    // The chunk grew with the sequences, beyond what is usual.
    if (wanted.chunk_tokens == wanted.max_seqs)
      settings.chunk_tokens = std::max(std::min(wanted.chunk_tokens, EngineSettings().chunk_tokens), n_seqs);
    return with_blocks(config, weight_bytes, max_k, settings);
  };
  std::int64_t low = 0, high = wanted.max_seqs - 1;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    if (plan_of(middle).total_bytes() <= wanted.memory_limit)
      low = middle;
    else
      high = middle - 1;
  }
  if (low < 1) return ok();
  const MemoryPlan plan = plan_of(wanted.max_seqs);
  return error(
      Code::kResourceExhausted,
      "{} sequences at once need {:.2f} GiB (weights {:.2f}, KV cache {:.2f}, workspace {:.2f}), {:.2f} GiB are "
      "available: {} sequences fit",
      wanted.max_seqs, gib(plan.total_bytes()), gib(plan.weight_bytes), gib(plan.kv_bytes), gib(plan.workspace_bytes),
      gib(wanted.memory_limit), low);
}

}  // namespace

std::int64_t available_memory() {
  std::int64_t available = read_field("/proc/meminfo", "MemAvailable:") * 1024;
  // cgroup v2; the page cache that a group may drop counts as free.
  const std::int64_t limit = read_number("/sys/fs/cgroup/memory.max");
  const std::int64_t used = read_number("/sys/fs/cgroup/memory.current");
  if (limit > 0 && used >= 0) {
    const std::int64_t cache = std::max<std::int64_t>(0, read_field("/sys/fs/cgroup/memory.stat", "inactive_file"));
    available = std::min(available, limit - used + cache);
  }
  return std::max<std::int64_t>(0, available);
}

KvGeometry kv_geometry(const ModelConfig& config, const EngineSettings& settings) {
  const std::int32_t n_host = settings.n_host_layers;
  return {.n_layers = settings.is_host_part ? n_host : config.n_layers - n_host,
          .n_kv_heads = config.n_kv_heads,
          .head_dim = config.head_dim,
          .block_size = settings.block_size,
          .type = settings.kv_type};
}

std::int64_t draft_chunk_tokens(const EngineSettings& settings) {
  return std::max(std::min(settings.chunk_tokens, kDraftChunkTokens), settings.max_seqs);
}

std::int64_t draft_context(const EngineSettings& settings) {
  return std::min(settings.context, settings.draft->config.max_seq_len);
}

ActivationLayout activation_layout(const EngineSettings& settings) {
  if (settings.cuda_device < 0) return {};
  return {.is_joined = true, .type = settings.has_f32_activations ? DType::kF32 : DType::kBF16};
}

ExecOptions exec_options(const ModelConfig& config, std::int64_t max_k, const MemoryPlan& plan) {
  const EngineSettings& settings = plan.settings;
  if (settings.cuda_device >= 0) {
    ExecOptions options;
    options.max_tokens = std::max(settings.chunk_tokens, settings.max_seqs);
    options.cuda = CudaOptions{
        .device = settings.cuda_device,
        .max_tokens = options.max_tokens,
        .max_seqs = settings.max_seqs,
        .max_rows = plan.max_logit_rows,
        .max_blocks = ceil_div(settings.context, settings.block_size),
        .block_size = settings.block_size,
        .max_k = max_k,
        .max_gate = config.intermediate_size,
        .max_matrix = std::max(config.intermediate_size * config.hidden_size, config.vocab_size * config.hidden_size),
        .n_heads = config.n_heads,
        .n_kv_heads = config.n_kv_heads,
        .head_dim = config.head_dim,
        .vocab_size = config.vocab_size,
        .has_f32_activations = settings.has_f32_activations,
        .reproducible = settings.reproducible,
        .measure_idle = settings.measure_idle};
    return options;
  }
  // A decode is split over KV segments only where there are fewer (sequence, head) pairs than threads can use.
  const std::int64_t split_seqs = std::min<std::int64_t>(settings.max_seqs, settings.n_threads);
  ExecOptions options{.n_threads = settings.n_threads,
                      .max_tokens = std::max(settings.chunk_tokens, settings.max_seqs),
                      .max_k = max_k,
                      .max_attention_parts = split_seqs * config.n_heads * ceil_div(settings.context, kKvSegment),
                      .head_dim = config.head_dim,
                      .n_heads = config.n_heads};
  if (settings.screens_head)
    options.max_k = std::max(options.max_k, config.hidden_size + ScreenedHead::twice_columns(config.hidden_size));
  if (settings.draft != nullptr) {
    const ModelConfig& draft = settings.draft->config;
    options.max_k = std::max(options.max_k, settings.draft->max_k);
    options.max_attention_parts = std::max(options.max_attention_parts,
                                           split_seqs * draft.n_heads * ceil_div(draft_context(settings), kKvSegment));
    options.head_dim = std::max(options.head_dim, draft.head_dim);
    options.n_heads = std::max(options.n_heads, draft.n_heads);
  }
  return options;
}

CudaGroupOptions group_options(const ModelConfig& config, const EngineSettings& settings, std::int64_t max_logit_rows) {
  return {.devices = settings.rank_devices,
          .max_tokens = std::max(settings.chunk_tokens, settings.max_seqs),
          .hidden_size = config.hidden_size,
          .max_rows = max_logit_rows,
          .first_column = settings.rank_columns,
          .has_bf16_parts = !settings.has_f32_activations,
          // NCCL's order of additions depends on how many rows there are.
          .use_nccl = !settings.reproducible};
}

namespace {
Result<MemoryPlan> plan_with_chunk(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                   const EngineSettings& wanted, std::int64_t chunk_tokens) {
  EngineSettings settings = wanted;
  settings.chunk_tokens = chunk_tokens;
  if (settings.n_threads <= 0) settings.n_threads = usable_cores();
  if (settings.max_seqs < 1)
    return error(Code::kInvalidArgument, "sequences {}: expected 1 or more", settings.max_seqs);
  if (settings.chunk_tokens < 1)
    return error(Code::kInvalidArgument, "chunk {}: expected 1 token or more", settings.chunk_tokens);
  if (settings.context < 0)
    return error(Code::kInvalidArgument, "context {}: expected 0 (what fits) or more", settings.context);
  if (settings.kv_tokens < 0)
    return error(Code::kInvalidArgument, "KV tokens {}: expected 0 (what fits) or more", settings.kv_tokens);
  if (settings.block_size < kKvTile || settings.block_size % kKvTile != 0)
    return error(Code::kInvalidArgument, "block size {}: expected a multiple of {}", settings.block_size, kKvTile);
  if (settings.context > config.max_seq_len)
    return error(Code::kInvalidArgument, "context {}: this model was made for at most {} tokens", settings.context,
                 config.max_seq_len);
  settings.chunk_tokens = std::max(settings.chunk_tokens, settings.max_seqs);
  settings.screens_head = false;  // until all else fits
  if (settings.memory_limit <= 0) settings.memory_limit = available_memory();

  const std::int64_t longest = longest_context(config, weight_bytes, max_k, settings, settings.memory_limit);
  if (settings.context == 0) {
    settings.context = longest;
    if (longest < std::min(kMinContext, config.max_seq_len)) {
      EngineSettings least = settings;
      least.context = least.kv_tokens = std::min(kMinContext, config.max_seq_len);
      STILL_TRY_STATUS(check_sequences(config, weight_bytes, max_k, least));
      return error(
          Code::kResourceExhausted,
          "the model needs {:.2f} GiB with a context of {} tokens, {:.2f} GiB are available: choose a smaller model or "
          "quantisation",
          gib(with_blocks(config, weight_bytes, max_k, least).total_bytes()), least.context,
          gib(settings.memory_limit));
    }
  }
  const std::int64_t wanted_tokens = settings.kv_tokens > 0
                                         ? settings.kv_tokens
                                         : ceil_div(settings.context, settings.block_size) * settings.block_size;
  if (wanted_tokens < settings.context)
    return error(Code::kInvalidArgument, "KV tokens {}: less than one context of {} tokens", wanted_tokens,
                 settings.context);
  settings.kv_tokens = wanted_tokens;
  MemoryPlan plan = with_blocks(config, weight_bytes, max_k, settings);
  if (plan.total_bytes() > settings.memory_limit) {
    if (wanted_tokens >= 2 * settings.context) {
      // One context would fit: what is too much is the number of tokens for all sequences together.
      const std::int64_t block_bytes = all_block_bytes(config, settings);
      const std::int64_t room =
          settings.memory_limit - (plan.total_bytes() - plan.kv_bytes - plan.draft_kv_bytes) - cache_slack(settings);
      const std::int64_t fitting = std::max<std::int64_t>(0, room / block_bytes) * settings.block_size;
      if (fitting >= settings.context)
        return error(
            Code::kResourceExhausted,
            "{} sequences with a KV cache of {} tokens in all need {:.2f} GiB (weights {:.2f}, KV cache {:.2f}), "
            "{:.2f} GiB are available: {} tokens fit, which is {} at a time with a context of {} tokens",
            settings.max_seqs, wanted_tokens, gib(plan.total_bytes()), gib(plan.weight_bytes), gib(plan.kv_bytes),
            gib(settings.memory_limit), fitting, fitting / settings.context, settings.context);
    }
    STILL_TRY_STATUS(check_sequences(config, weight_bytes, max_k, settings));
    return error(
        Code::kResourceExhausted,
        "a context of {} tokens needs {:.2f} GiB (weights {:.2f}, KV cache {:.2f}, workspace {:.2f}), {:.2f} GiB are "
        "available: {}",
        settings.context, gib(plan.total_bytes()), gib(plan.weight_bytes), gib(plan.kv_bytes),
        gib(plan.workspace_bytes), gib(settings.memory_limit),
        longest >= kMinContext ? fmt::format("the longest context that fits is {}", longest)
                               : std::string("choose a smaller model or quantisation"));
  }
  if (wanted.kv_tokens == 0 && settings.max_seqs > 1) {
    // Room for every sequence's whole context, or as much of it as fits.
    const std::int64_t block_bytes = all_block_bytes(config, settings);
    const std::int64_t spare = settings.memory_limit - plan.total_bytes() - cache_slack(settings);
    const std::int64_t spare_blocks = std::max<std::int64_t>(0, spare / block_bytes);
    const std::int64_t all_blocks = ceil_div(settings.context, settings.block_size) * settings.max_seqs;
    settings.kv_tokens = std::min(all_blocks, plan.n_blocks + spare_blocks) * settings.block_size;
    plan = with_blocks(config, weight_bytes, max_k, settings);
  }
  if (wanted.screens_head && settings.cuda_device < 0 && settings.draft == nullptr) {
    settings.screens_head = true;
    const MemoryPlan with_screen = with_blocks(config, weight_bytes, max_k, settings);
    settings.screens_head = with_screen.total_bytes() <= settings.memory_limit;
    if (settings.screens_head) plan = with_screen;
  }
  return plan;
}

}  // namespace

Result<MemoryPlan> plan_memory(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                               const EngineSettings& wanted) {
  // A GPU is filled by more rows than a CPU; on a large one 16,384 save 3 % of a prefill's time.
  constexpr std::int64_t kCudaTokens = 8192, kTokensOfLargeGpus = 16384, kLargeGpu = 60LL << 30;
  if (wanted.cuda_device < 0 || wanted.n_host_layers > 0 || wanted.chunk_tokens != EngineSettings().chunk_tokens)
    return plan_with_chunk(config, weight_bytes, max_k, wanted, wanted.chunk_tokens);
  const std::int64_t gpu_bytes = wanted.gpu_memory > 0 ? wanted.gpu_memory : cuda_total_memory(wanted.cuda_device);
  if (gpu_bytes >= kLargeGpu) {
    Result<MemoryPlan> plan = plan_with_chunk(config, weight_bytes, max_k, wanted, kTokensOfLargeGpus);
    if (plan && 20 * plan->workspace_bytes <= gpu_bytes) return plan;
  }
  return plan_with_chunk(config, weight_bytes, max_k, wanted, kCudaTokens);
}

Result<MemoryPlan> plan_host_part(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                  const EngineSettings& gpu_settings, std::int64_t memory_limit) {
  EngineSettings settings = gpu_settings;
  settings.cuda_device = -1;
  settings.is_host_part = true;
  settings.screens_head = false;
  settings.memory_limit = memory_limit;
  const MemoryPlan plan = with_blocks(config, weight_bytes, max_k, settings);
  if (plan.total_bytes() <= memory_limit) return plan;
  return error(Code::kResourceExhausted,
               "{} of {} layers in host memory need {:.2f} GiB (weights {:.2f}, KV cache {:.2f}), {:.2f} GiB are "
               "available: choose a shorter context, a smaller model or quantisation",
               settings.n_host_layers, config.n_layers, gib(plan.total_bytes()), gib(plan.weight_bytes),
               gib(plan.kv_bytes), gib(memory_limit));
}

}  // namespace still

#include "plan/deployment.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/arithmetic.h"
#include "plan/closest.h"

namespace still {

namespace {

using enum TensorPart;

// Bytes of a KV row of n elements.
std::int64_t kv_row_bytes(const KvStorage& kv, std::int64_t n) {
  return ceil_div(n, kv.block_elements) * kv.block_bytes;
}

// Of one token in one layer on one rank of `tensor`. MLA keeps one latent for all heads, so every rank has it whole;
// fewer KV heads than ranks are copied.
std::int64_t layer_kv_bytes(const ModelConfig& c, const KvStorage& kv, std::int64_t tensor, bool latent) {
  if (c.kv_lora_rank > 0 && latent) return kv_row_bytes(kv, c.kv_lora_rank + c.qk_rope_head_dim);
  if (c.kv_lora_rank > 0)
    return ceil_div(c.n_heads, tensor) *
           (kv_row_bytes(kv, c.qk_nope_head_dim + c.qk_rope_head_dim) + kv_row_bytes(kv, c.v_head_dim));
  const std::int64_t heads = std::max<std::int64_t>(1, c.n_kv_heads / tensor);
  return 2 * heads * kv_row_bytes(kv, c.head_dim);
}

// What must be a multiple of the tensor degree (or, of KV heads, may also be a divisor of it).
struct Dimension {
  const char* name;
  std::int64_t size;
  std::int64_t unit;  // a part must be whole units: FP8 tiles, K-quant blocks
};

std::vector<Dimension> split_dimensions(const ModelShape& shape, const Quantisation& q, std::int64_t expert) {
  const ModelConfig& c = shape.config;
  const std::int64_t tile = q.kind == Quantisation::Kind::kBlockFp8 ? 128 : 1;
  std::vector<Dimension> dims = {{"attention heads", c.n_heads, 1}};
  if (c.n_experts == 0 || c.n_dense_layers > 0) dims.push_back({"feed-forward width", c.intermediate_size, tile});
  if (c.n_experts > 0 && expert == 1) dims.push_back({"expert width", c.moe_intermediate_size, tile});
  if (c.n_shared_experts > 0)
    dims.push_back({"shared expert width", c.n_shared_experts * c.moe_intermediate_size, tile});
  return dims;
}

bool divides(const Dimension& d, std::int64_t n) {
  return d.size % n == 0 && d.size / n % d.unit == 0;
}

bool kv_heads_do(const ModelConfig& c, std::int64_t n) {
  return c.kv_lora_rank > 0 || c.n_kv_heads % n == 0 || n % c.n_kv_heads == 0;
}

std::string counts_text(const std::vector<std::int64_t>& counts) {
  std::string text;
  for (const std::int64_t n : counts) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return text;
}

enum class Cut { kRows, kCols, kNone };
Cut cut_of(TensorPart part) {
  switch (part) {
    case kEmbedding:
    case kOutput:
    case kQuery:
    case kKey:
    case kValue:
    case kQueryB:
    case kKvB:
    case kGate:
    case kUp:
      return Cut::kRows;
    case kAttnOut:
    case kDown:
      return Cut::kCols;
    default:
      return Cut::kNone;
  }
}

}  // namespace

double to_gb(std::int64_t bytes) {
  return static_cast<double>(bytes) * 1e-9;
}
double to_gib(std::int64_t bytes) {
  return static_cast<double>(bytes) / (std::int64_t{1} << 30);
}
std::string both_units(std::int64_t bytes) {
  return fmt::format("{:.2f} GB ({:.2f} GiB)", to_gb(bytes), to_gib(bytes));
}

Result<KvStorage> find_kv_storage(std::string_view name) {
  static const std::vector<KvStorage> kAll = {{"f16", 1, 2},    {"bf16", 1, 2},   {"f32", 1, 4},    {"fp8", 1, 1},
                                              {"int8", 32, 34}, {"q8_0", 32, 34}, {"q5_1", 32, 24}, {"q5_0", 32, 22},
                                              {"q4_1", 32, 20}, {"q4_0", 32, 18}};
  for (const KvStorage& kv : kAll)
    if (folded_name(kv.name) == folded_name(name)) return kv;
  return error(Code::kNotFound, "no KV type \"{}\" (f32, f16, bf16, fp8, int8, q8_0, q5_1, q5_0, q4_1, q4_0)", name);
}

Result<EngineProfile> find_engine_profile(std::string_view name) {
  constexpr std::int64_t kMiB = std::int64_t{1} << 20;
  // llama.cpp: 500 MiB beside its buffers, as gguf-parser takes for a device; f32 activations.
  const EngineProfile llama_cpp{.name = "llama.cpp",
                                .utilisation = 0.97,
                                .runtime_bytes = 500 * kMiB,
                                .table_on_host = true,
                                .activation_bytes = 4,
                                .splits_by_layer = true};
  EngineProfile no_fa = llama_cpp, old = llama_cpp;
  no_fa.name = "llama.cpp-no-fa";
  no_fa.flash_attention = false;
  old.name = "llama.cpp-2025-02";
  old.latent_kv = false;
  const std::vector<EngineProfile> all = {
      EngineProfile{},
      {.name = "vllm", .utilisation = 0.9, .reserves = true},
      llama_cpp,
      no_fa,
      old,
      {.name = "transformers", .utilisation = 0.97, .runtime_bytes = 600 * kMiB, .whole_prompt = true}};
  for (const EngineProfile& profile : all)
    if (folded_name(profile.name) == folded_name(name)) return profile;
  return error(Code::kNotFound,
               "no engine profile \"{}\" (still, vllm, llama.cpp, llama.cpp-no-fa, llama.cpp-2025-02, transformers)",
               name);
}

std::vector<std::int64_t> possible_tensor_ranks(const ModelShape& shape, const Quantisation& q, std::int64_t max) {
  std::vector<std::int64_t> counts;
  const std::vector<Dimension> dims = split_dimensions(shape, q, 1);
  for (std::int64_t n = 1; n <= max; ++n)
    if (kv_heads_do(shape.config, n) &&
        std::all_of(dims.begin(), dims.end(), [n](const Dimension& d) { return divides(d, n); }))
      counts.push_back(n);
  return counts;
}

Status check_parallelism(const ModelShape& shape, const Quantisation& q, const Parallelism& p) {
  const ModelConfig& c = shape.config;
  constexpr std::int64_t kMost = 1 << 20;
  using Degree = std::pair<const char*, std::int64_t>;
  for (const auto& [what, n] :
       {Degree("tensor", p.tensor), Degree("pipeline", p.pipeline), Degree("expert", p.expert), Degree("data", p.data)})
    if (n < 1 || n > kMost) return error(Code::kInvalidArgument, "{} {} ranks: expected 1 to {}", n, what, kMost);
  if (p.redundant < 0 || p.redundant > 4096)
    return error(Code::kInvalidArgument, "{} redundant experts: expected 0 to 4096", p.redundant);
  if (p.pipeline > c.n_layers)
    return error(Code::kInvalidArgument, "{} pipeline stages: {} has {} layers", p.pipeline, shape.name, c.n_layers);
  if (p.expert > 1) {
    if (c.n_experts == 0)
      return error(Code::kInvalidArgument, "expert parallelism {}: {} has no experts", p.expert, shape.name);
    const std::int64_t n_experts = c.n_experts + p.redundant;
    if (n_experts % p.expert != 0)
      return error(Code::kInvalidArgument, "{} experts cannot be spread over {} ranks evenly: choose a divisor of {}{}",
                   n_experts, p.expert, n_experts,
                   fmt::format(", or {} redundant experts", p.redundant + p.expert - n_experts % p.expert));
    if ((p.tensor * p.data) % p.expert != 0)
      return error(Code::kInvalidArgument, "expert parallelism {} must divide the {} tensor x data ranks", p.expert,
                   p.tensor * p.data);
  } else if (p.redundant > 0) {
    return error(Code::kInvalidArgument, "redundant experts need expert parallelism (--expert)");
  }
  const std::string possible = counts_text(possible_tensor_ranks(shape, q, 64));
  for (const Dimension& d : split_dimensions(shape, q, p.expert)) {
    if (divides(d, p.tensor)) continue;
    if (d.size % p.tensor == 0)
      return error(Code::kInvalidArgument, "{} {} over {} ranks is {} each, not whole FP8 tiles of {}: possible are {}",
                   d.name, d.size, p.tensor, d.size / p.tensor, d.unit, possible);
    return error(Code::kInvalidArgument, "{} {} cannot be split over {} ranks: possible are {}", d.name, d.size,
                 p.tensor, possible);
  }
  if (!kv_heads_do(c, p.tensor))
    return error(Code::kInvalidArgument, "{} KV heads cannot be split over or copied to {} ranks: possible are {}",
                 c.n_kv_heads, p.tensor, possible);
  return ok();
}

Result<Parallelism> choose_parallelism(const ModelShape& shape, const Quantisation& q, std::int64_t n_devices,
                                       const EngineProfile& engine, std::int64_t devices_per_node) {
  if (n_devices < 1) return error(Code::kInvalidArgument, "{} devices: expected 1 or more", n_devices);
  Parallelism best{.tensor = 1, .pipeline = n_devices};
  for (const std::int64_t tensor :
       possible_tensor_ranks(shape, q, std::min(engine.splits_by_layer ? 1 : n_devices, devices_per_node)))
    if (n_devices % tensor == 0) best = {.tensor = tensor, .pipeline = n_devices / tensor};
  STILL_TRY_STATUS(check_parallelism(shape, q, best));
  return best;
}

Result<RankWeights> plan_rank_weights(const ModelShape& shape, const Quantisation& q,
                                      const DeploymentSettings& settings) {
  const Parallelism& p = settings.parallelism;
  const ModelConfig& c = shape.config;
  STILL_TRY_STATUS(check_parallelism(shape, q, p));
  if (q.kind == Quantisation::Kind::kOwn && !shape.has_own_types)
    return error(Code::kInvalidArgument, "{} is a shape without a file: name a quantisation", shape.name);
  const std::int64_t stage_layers = ceil_div(c.n_layers, p.pipeline);
  std::vector<RankWeights> stages(static_cast<std::size_t>(p.pipeline));
  RankWeights result;
  for (const PlannedTensor& t : planned_tensors(q, shape)) {
    if (t.group == WeightGroup::kMtp && !settings.with_mtp) continue;
    // The published files carry copies of embedding and head in the MTP module; they are shared, not loaded twice.
    const bool is_copy = t.group == WeightGroup::kMtp && (t.part == kEmbedding || t.part == kOutput);
    result.file_bytes += planned_bytes(q, shape, t);
    if (is_copy) continue;
    std::int64_t rows = t.rows, cols = t.cols, count = t.count;
    const bool is_expert = t.is_routed && p.expert > 1;
    if (is_expert && count > 1) count = (count + p.redundant) / p.expert;
    // With EP every expert is cut over the ranks of a stage that are left.
    const std::int64_t ways = is_expert ? p.tensor * p.data / p.expert : p.tensor;
    const bool is_kv_part = t.part == kKey || t.part == kValue;
    if (t.part == kKvB && t.count > 1) {  // [heads, ...]: whole heads to each rank
      count = ceil_div(count, ways);
    } else if (!t.is_vector) {
      const Cut cut = cut_of(t.part);
      if (cut == Cut::kRows)
        rows =
            is_kv_part ? ceil_div(rows, std::min<std::int64_t>(ways, std::max(1, c.n_kv_heads))) : ceil_div(rows, ways);
      // A cut inside a block is possible only at block borders: the fullest rank gets the rounded part.
      if (cut == Cut::kCols) cols = ceil_div(cols, ways);
    }
    std::int64_t bytes = planned_bytes(q, shape, t, rows, cols, count);
    // Files with a tensor for each expert: the ranks share them, and the copies, evenly.
    if (is_expert && t.count == 1) {
      const std::int64_t n_experts = std::max(1, c.n_experts);
      bytes = ceil_div(bytes * (n_experts + p.redundant), n_experts * p.expert);
    }
    const bool on_host = (settings.experts_on_host && t.group == WeightGroup::kExperts) ||
                         (settings.engine.table_on_host && t.part == kEmbedding && !c.tied_embeddings);
    if (on_host) {
      result.host_bytes += planned_bytes(q, shape, t);
      continue;
    }
    const auto add = [&](std::int64_t stage) {
      RankWeights& rank = stages[static_cast<std::size_t>(stage)];
      rank.groups[static_cast<std::size_t>(t.group)] += bytes;
      rank.bytes += bytes;
      result.all_ranks_bytes += bytes * p.tensor * p.data;
    };
    if (t.layer >= 0) {
      add(std::min(t.layer / stage_layers, p.pipeline - 1));
    } else if (t.part == kEmbedding) {
      add(0);
      if (c.tied_embeddings && p.pipeline > 1) add(p.pipeline - 1);
    } else {
      add(p.pipeline - 1);
    }
  }
  const auto fullest =
      std::max_element(stages.begin(), stages.end(), [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
  result.groups = fullest->groups;
  result.bytes = fullest->bytes;
  const std::int64_t layers =
      std::min<std::int64_t>(stage_layers + (settings.with_mtp ? c.n_mtp_layers : 0), c.n_layers + c.n_mtp_layers);
  const std::int64_t per_token = layers * layer_kv_bytes(c, settings.kv, p.tensor, settings.engine.latent_kv);
  (c.sliding_window > 0 ? result.window_kv_bytes_per_token : result.kv_bytes_per_token) = per_token;
  return result;
}

RankMemory plan_rank_memory(const ModelShape& shape, const RankWeights& weights, const DeploymentSettings& s) {
  const ModelConfig& c = shape.config;
  RankMemory memory;
  memory.weight_bytes = weights.bytes;
  const std::int64_t n_seqs = ceil_div(s.concurrency, s.parallelism.data);  // of the fullest data rank
  const auto kv_of = [&](std::int64_t context) {
    const std::int64_t tokens = ceil_div(context, s.block_size) * s.block_size;
    const std::int64_t window = ceil_div(std::max<std::int64_t>(c.sliding_window, 1), s.block_size) * s.block_size;
    return n_seqs *
           (weights.kv_bytes_per_token * tokens + weights.window_kv_bytes_per_token * std::min(tokens, window));
  };
  memory.kv_bytes = kv_of(s.context);
  // The residual stream, its norm and two parts in flight; and the larger of q, k, v and of gate, up, their product,
  // which do not live together. The peaks that transformers reports for a 32B follow this to the byte a token
  // (fit_test.cc). An expert layer dispatches each token to its experts.
  const std::int64_t tp = s.parallelism.tensor;
  const std::int64_t prompt = std::max<std::int64_t>(1, s.context - s.answer_tokens);
  const std::int64_t step = s.engine.whole_prompt ? prompt * n_seqs : std::max(s.chunk_tokens, n_seqs);
  const std::int64_t q_width = c.kv_lora_rank > 0 ? std::int64_t{c.n_heads} * (c.qk_nope_head_dim + c.qk_rope_head_dim)
                                                  : std::int64_t{c.n_heads} * c.head_dim;
  const std::int64_t dispatch =
      c.n_experts > 0 ? c.n_experts_per_tok * (c.hidden_size + 2 * c.moe_intermediate_size / tp) : 0;
  memory.activation_bytes =
      s.engine.activation_bytes * step *
      (4 * c.hidden_size + 3 * std::max(ceil_div(q_width, tp), ceil_div(c.intermediate_size, tp)) + dispatch);
  if (!s.engine.flash_attention)  // scores of every head, and one mask
    memory.activation_bytes += 4 * (ceil_div(c.n_heads, tp) + 1) * s.chunk_tokens * s.context;
  memory.logit_bytes = 4 * c.vocab_size * std::max<std::int64_t>(n_seqs, 16);  // rows wanted at once, whole
  if (s.engine.whole_prompt) {
    // Two moments: the prompt's step with the prompt's KV, and the last token with all of it.
    const std::int64_t early = kv_of(prompt) + memory.activation_bytes;
    memory.logit_bytes = 2 * c.vocab_size * n_seqs;
    if (early > memory.kv_bytes)
      memory.activation_bytes = early - memory.kv_bytes;
    else
      memory.activation_bytes = memory.activation_bytes / prompt;
  }
  memory.runtime_bytes = s.engine.runtime_bytes;
  return memory;
}

std::int64_t kv_bytes_per_token(const ModelShape& shape, const KvStorage& kv, bool latent) {
  return shape.config.n_layers * layer_kv_bytes(shape.config, kv, 1, latent);
}

std::int64_t kv_bytes_of_sequence(const ModelShape& shape, const KvStorage& kv, std::int64_t tokens,
                                  std::int64_t block_size) {
  if (shape.config.sliding_window > 0) tokens = std::min(tokens, shape.config.sliding_window);
  return kv_bytes_per_token(shape, kv) * (ceil_div(tokens, block_size) * block_size);
}

double mean_kv_tokens(const ModelShape& shape, std::int64_t context) {
  const auto n = static_cast<double>(context), window = static_cast<double>(shape.config.sliding_window);
  return window <= 0 || n <= window ? n / 2 : window - window * window / (2 * n);
}

}  // namespace still

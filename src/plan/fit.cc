#include "plan/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace still {

namespace {

constexpr std::int64_t kUsefulContext = 2048;  // below this no reasoning model answers anything

std::int64_t capacity_of(const Device& device, const EngineProfile& engine) {
  return static_cast<std::int64_t>(static_cast<double>(device.usable_bytes) * engine.utilisation);
}

// What the process itself takes beside the weights that it keeps there.
constexpr std::int64_t kHostProcess = std::int64_t{1} << 30;

// Of one machine: the stages of a pipeline may lie in several.
std::int64_t host_need(const RankWeights& weights, const DeploymentSettings& s) {
  if (weights.host_bytes == 0) return 0;
  const std::int64_t n_nodes = (s.parallelism.n_ranks() + s.devices_per_node - 1) / s.devices_per_node;
  const std::int64_t n_parts = std::clamp<std::int64_t>(n_nodes, 1, s.parallelism.pipeline);
  return (weights.host_bytes + n_parts - 1) / n_parts + kHostProcess;
}

Status check_settings(const ModelShape& shape, const DeploymentSettings& s) {
  if (s.context < 1) return error(Code::kInvalidArgument, "context {}: expected 1 token or more", s.context);
  if (s.context > shape.config.max_seq_len)
    return error(Code::kInvalidArgument, "context {}: {} was made for at most {} tokens", s.context, shape.name,
                 shape.config.max_seq_len);
  if (s.concurrency < 1 || s.concurrency > 1'000'000)
    return error(Code::kInvalidArgument, "concurrency {}: expected 1 to 1000000", s.concurrency);
  if (s.chunk_tokens < 1 || s.chunk_tokens > 1 << 20)
    return error(Code::kInvalidArgument, "chunk {}: expected 1 to 1048576 tokens", s.chunk_tokens);
  if (s.block_size < 1 || s.block_size > 4096)
    return error(Code::kInvalidArgument, "block size {}: expected 1 to 4096", s.block_size);
  if (!(s.engine.utilisation > 0) || s.engine.utilisation > 1)
    return error(Code::kInvalidArgument, "utilisation {}: expected above 0, at most 1", s.engine.utilisation);
  return ok();
}

void fill(FitAnswer& a, const ModelShape& shape, const DeploymentSettings& s) {
  a.memory = plan_rank_memory(shape, a.weights, s);
  a.fits = a.memory.need() <= a.capacity;
  if (s.host_capacity > 0 && host_need(a.weights, s) > s.host_capacity) {
    a.fits = false;
    a.reason = message("{:.2f} GiB must lie in host memory, {:.2f} GiB are there", to_gib(host_need(a.weights, s)),
                       to_gib(s.host_capacity));
    return;  // no context and no number of sequences changes it
  }
  const std::int64_t room = a.capacity - (a.memory.need() - a.memory.kv_bytes);
  const std::int64_t per_token = a.weights.kv_bytes_per_token + a.weights.window_kv_bytes_per_token;
  a.max_kv_tokens = room <= 0 || per_token == 0 ? 0 : room / per_token * s.parallelism.data;
  a.max_context =
      std::min<std::int64_t>(shape.config.max_seq_len, a.max_kv_tokens / s.concurrency / s.block_size * s.block_size);
  // A sequence keeps no more than its window, however long it grows.
  const std::int64_t window = shape.config.sliding_window;
  if (window > 0 && a.max_context >= std::min<std::int64_t>(window, shape.config.max_seq_len))
    a.max_context = shape.config.max_seq_len;
  const std::int64_t kept = window > 0 ? std::min(window, s.context) : s.context;
  // More sequences also need more logits; the bound is found by stepping down from the KV's.
  DeploymentSettings wider = s;
  std::int64_t low = 0,
               high = std::min<std::int64_t>(
                   1'000'000, a.max_kv_tokens / std::max<std::int64_t>(1, std::min(kept, a.max_kv_tokens)) + 1);
  while (low < high) {
    wider.concurrency = (low + high + 1) / 2;
    if (plan_rank_memory(shape, a.weights, wider).need() <= a.capacity)
      low = wider.concurrency;
    else
      high = wider.concurrency - 1;
  }
  a.max_concurrency = low;
}

std::vector<Message> hardware_notes(const Device& d, const Quantisation& q) {
  using Compute = Quantisation::Compute;
  std::vector<Message> notes;
  if (d.sm == 0) {  // not NVIDIA's: what the row has no peak of
    if (q.compute == Compute::kBF16 && d.bf16 == 0)
      notes.push_back(message("{} does not compute BF16: convert to F16 and check for overflow", d.name));
    if (q.compute == Compute::kFp8 && d.fp8 == 0)
      notes.push_back(message("{} has no FP8 units: the weights are read as FP8 and multiplied as F16", d.name));
    if (q.compute == Compute::kInt8 && d.int8 == 0) notes.push_back(message("{} has no INT8 matrix units", d.name));
    return notes;
  }
  if (q.compute == Compute::kBF16 && d.sm < 80)
    notes.push_back(message(
        "{} does not compute BF16 (needs compute capability 8.0): convert to F16 and check for overflow", d.name));
  if (q.compute == Compute::kFp8 && d.sm < 89)
    notes.push_back(
        message("{} has no FP8 units (needs 8.9): the weights are read as FP8 and multiplied as F16", d.name));
  if (q.compute == Compute::kInt8 && d.sm < 75)
    notes.push_back(message("{} has no INT8 tensor units (needs 7.5)", d.name));
  if (d.sm < 80) notes.push_back(message("{} cannot run FlashAttention-2 (needs 8.0)", d.name));
  return notes;
}

}  // namespace

Result<FitPlanner> FitPlanner::make(const ModelShape& shape, const Quantisation& q, const DeviceSet& devices,
                                    const DeploymentSettings& s) {
  if (s.parallelism.n_ranks() != devices.count)
    return error(Code::kInvalidArgument, "tensor {} x pipeline {}{} makes {} ranks, but there are {} devices",
                 s.parallelism.tensor, s.parallelism.pipeline,
                 s.parallelism.data > 1 ? fmt::format(" x data {}", s.parallelism.data) : "", s.parallelism.n_ranks(),
                 devices.count);
  FitPlanner planner;
  planner.shape_ = &shape;
  planner.quantisation_ = q;
  planner.devices_ = devices;
  planner.settings_ = s;
  STILL_TRY(planner.weights_, plan_rank_weights(shape, q, s));
  planner.capacity_ = capacity_of(devices.device, s.engine);
  planner.notes_ = hardware_notes(devices.device, q);
  planner.next_count_ = devices.count + 1;
  return planner;
}

Result<FitAnswer> FitPlanner::at(std::int64_t context, std::int64_t concurrency, bool details) {
  settings_.context = context;
  settings_.concurrency = concurrency;
  STILL_TRY_STATUS(check_settings(*shape_, settings_));
  const DeploymentSettings& s = settings_;
  FitAnswer a;
  a.weights = weights_;
  a.capacity = capacity_;
  fill(a, *shape_, settings_);
  if (s.engine.reserves) a.reserved = a.capacity;
  if (details) a.notes = notes_;
  if (a.fits) return a;
  const std::int64_t fixed = a.memory.need() - a.memory.kv_bytes;
  if (!a.reason.empty()) {
    // Host memory, said already.
  } else if (a.memory.weight_bytes > a.capacity) {
    a.reason = message("the weights alone take {:.2f} GiB a device, {:.2f} GiB are usable",
                       to_gib(a.memory.weight_bytes), to_gib(a.capacity));
  } else if (fixed > a.capacity) {
    a.reason = message(
        "weights {:.2f} GiB, workspace and runtime {:.2f} GiB a device leave no room for a KV cache in {:.2f} GiB",
        to_gib(a.memory.weight_bytes), to_gib(fixed - a.memory.weight_bytes), to_gib(a.capacity));
  } else {
    a.reason = message("{} x {} tokens of KV take {:.2f} GiB a device, {:.2f} GiB are left ({} tokens)", s.concurrency,
                       s.context, to_gib(a.memory.kv_bytes), to_gib(a.capacity - fixed), a.max_kv_tokens);
  }
  if (details) find_nearest(a, context, concurrency);
  return a;
}

bool FitPlanner::fits(const Alternative& other, std::int64_t context, std::int64_t concurrency) const {
  if (other.settings.host_capacity > 0 && host_need(other.weights, other.settings) > other.settings.host_capacity)
    return false;
  DeploymentSettings s = other.settings;
  s.context = context;
  s.concurrency = concurrency;
  return plan_rank_memory(*shape_, other.weights, s).need() <= capacity_;
}

// What of the single changes does not depend on context and concurrency.
void FitPlanner::find_alternatives() {
  has_alternatives_ = true;
  const DeploymentSettings& s = settings_;
  if (s.kv.block_elements == 1 && s.kv.block_bytes >= 2) {
    DeploymentSettings other = s;
    other.kv = *find_kv_storage("q8_0");
    if (auto weights = plan_rank_weights(*shape_, quantisation_, other))
      smaller_kv_.push_back({other, *weights, message("KV cache in q8_0")});
  }
  for (const char* name : {"Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XXS", "IQ1_S"}) {
    const Quantisation smaller = *find_quantisation(name);
    const std::int64_t bytes = weight_file_bytes(smaller, *shape_);
    if (bytes >= weights_.file_bytes) continue;
    DeploymentSettings other = s;
    if (auto p = choose_parallelism(*shape_, smaller, s.parallelism.n_ranks(), s.engine)) other.parallelism = *p;
    if (auto weights = plan_rank_weights(*shape_, smaller, other))
      smaller_types_.push_back(
          {other, *weights, message("{} instead of {} ({})", smaller.name, quantisation_.name, both_units(bytes))});
  }
}

void FitPlanner::add_device_sets(std::int64_t context, std::int64_t concurrency, FitAnswer& a) {
  for (const Alternative& set : larger_sets_) {
    if (!fits(set, context, concurrency)) continue;
    a.nearest.push_back(set.text);
    return;
  }
  while (next_count_ <= std::max<std::int64_t>(64, 2 * devices_.count)) {
    const std::int64_t n = next_count_++;
    auto p = choose_parallelism(*shape_, quantisation_, n, settings_.engine);
    if (!p || (p->pipeline > 1 && p->tensor < 8 && n > 8 && !settings_.engine.splits_by_layer)) continue;
    DeploymentSettings other = settings_;
    other.parallelism = *p;
    const auto weights = plan_rank_weights(*shape_, quantisation_, other);
    if (!weights) continue;
    larger_sets_.push_back(
        {other, *weights, message("{}x {} (tensor {}, pipeline {})", n, devices_.device.name, p->tensor, p->pipeline)});
    if (!fits(larger_sets_.back(), context, concurrency)) continue;
    a.nearest.push_back(larger_sets_.back().text);
    return;
  }
}

void FitPlanner::find_nearest(FitAnswer& a, std::int64_t context, std::int64_t concurrency) {
  if (!has_alternatives_) find_alternatives();
  if (a.max_context >= kUsefulContext) a.nearest.push_back(message("context {} instead of {}", a.max_context, context));
  if (a.max_concurrency >= 1)
    a.nearest.push_back(message("{} sequences at once instead of {}", a.max_concurrency, concurrency));
  for (const auto* kind : {&smaller_kv_, &smaller_types_}) {
    for (const Alternative& other : *kind) {
      if (!fits(other, context, concurrency)) continue;
      a.nearest.push_back(other.text);
      break;
    }
  }
  add_device_sets(context, concurrency, a);
}

Result<FitAnswer> check_fit(const ModelShape& shape, const Quantisation& q, const DeviceSet& devices,
                            const DeploymentSettings& s, bool with_nearest) {
  STILL_TRY_STATUS(check_settings(shape, s));
  STILL_TRY(FitPlanner planner, FitPlanner::make(shape, q, devices, s));
  return planner.at(s.context, s.concurrency, with_nearest);
}

Result<OffloadPlan> plan_offload(const ModelShape& shape, const Quantisation& q, const DeviceSet& gpus,
                                 std::int64_t host_capacity, const DeploymentSettings& wanted) {
  STILL_TRY_STATUS(check_settings(shape, wanted));
  if (q.kind == Quantisation::Kind::kOwn && !shape.has_own_types)
    return error(Code::kInvalidArgument, "{} is a shape without a file: name a quantisation", shape.name);
  const std::int64_t capacity = capacity_of(gpus.device, wanted.engine) * gpus.count;
  const std::int64_t n_layers = shape.config.n_layers;
  std::vector<std::int64_t> layer_bytes(static_cast<std::size_t>(n_layers)), expert_bytes(layer_bytes.size());
  std::int64_t head_bytes = 0, embedding_bytes = 0;
  for (const PlannedTensor& t : planned_tensors(q, shape)) {
    if (t.group == WeightGroup::kMtp) continue;
    const std::int64_t bytes = planned_bytes(q, shape, t);
    if (t.layer >= 0) {
      (t.group == WeightGroup::kExperts ? expert_bytes : layer_bytes)[static_cast<std::size_t>(t.layer)] += bytes;
    } else {
      (t.part == TensorPart::kEmbedding ? embedding_bytes : head_bytes) += bytes;
    }
  }
  DeploymentSettings s = wanted;
  s.parallelism = {};
  const RankMemory rest = plan_rank_memory(shape, RankWeights{}, s);
  const std::int64_t fixed = (rest.activation_bytes + rest.runtime_bytes) * gpus.count + rest.logit_bytes;
  const std::int64_t kv_layer = kv_bytes_of_sequence(shape, s.kv, s.context, s.block_size) * s.concurrency / n_layers;

  OffloadPlan plan;
  plan.gpu_bytes = fixed;
  plan.host_bytes = embedding_bytes + kHostProcess;  // the table is looked up on the host
  std::int64_t dense = head_bytes;
  for (const std::int64_t bytes : layer_bytes) dense += bytes + kv_layer;
  const auto place = [&](std::int64_t bytes, bool on_gpu) { (on_gpu ? plan.gpu_bytes : plan.host_bytes) += bytes; };
  const auto place_layer = [&](std::int64_t layer, std::int64_t experts, bool on_gpu) {
    place(layer + experts, on_gpu);
    if (on_gpu) return;
    plan.host_layer_bytes += layer;
    plan.host_expert_bytes += experts;
  };
  plan.experts_on_host = shape.is_moe() && fixed + dense <= capacity;
  if (plan.experts_on_host) {
    plan.gpu_bytes += dense;
    for (std::size_t i = 0; i < expert_bytes.size(); ++i) {
      const bool on_gpu = plan.gpu_bytes + expert_bytes[i] <= capacity;
      place_layer(0, expert_bytes[i], on_gpu);
      plan.gpu_layers += on_gpu;
    }
  } else {
    // The head goes first: it is read for every token and is a large matrix. Then the last layers, as others do.
    bool head_on_gpu = plan.gpu_bytes + head_bytes <= capacity;
    place_layer(head_bytes, 0, head_on_gpu);
    for (std::size_t i = expert_bytes.size(); i-- > 0;) {
      const std::int64_t bytes = layer_bytes[i] + expert_bytes[i] + kv_layer;
      const bool on_gpu = head_on_gpu && plan.gpu_bytes + bytes <= capacity &&
                          plan.gpu_layers == static_cast<std::int64_t>(expert_bytes.size() - 1 - i);
      place_layer(layer_bytes[i] + kv_layer, expert_bytes[i], on_gpu);
      plan.gpu_layers += on_gpu;
    }
  }
  plan.fits = plan.gpu_bytes <= capacity && plan.host_bytes <= host_capacity;
  if (plan.gpu_bytes > capacity)
    plan.reason =
        message("the GPU's own workspace takes {:.2f} GiB of {:.2f} GiB", to_gib(plan.gpu_bytes), to_gib(capacity));
  else if (!plan.fits)
    plan.reason = message("{:.2f} GiB must lie in host memory, {:.2f} GiB are there", to_gib(plan.host_bytes),
                          to_gib(host_capacity));
  return plan;
}

}  // namespace still

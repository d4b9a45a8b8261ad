// The memory of a deployment on one host, exact: the same numbers are what the engine allocates.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "dist/cuda_group.h"
#include "models/model.h"

namespace still {

// A smaller model of the same vocabulary that drafts tokens: what its headers say.
struct DraftShape {
  ModelConfig config;
  std::int64_t weight_bytes = 0, max_k = 0;
};

struct EngineSettings {
  int n_threads = 0;                // 0: the physical cores
  std::int64_t context = 0;         // tokens of one sequence at most; 0: what fits, at most the model's
  std::int64_t max_seqs = 1;        // sequences decoded together
  std::int64_t kv_tokens = 0;       // tokens the KV cache holds in all; 0: context * max_seqs, or what fits
  std::int64_t chunk_tokens = 512;  // tokens of one step at most; on a GPU 512 leaves the number to the plan
  std::int64_t block_size = 32;     // positions of a KV block
  KvType kv_type = KvType::kF16;
  std::int64_t memory_limit = 0;  // bytes this engine may take; 0: what the machine has available
  // Where it computes: a GPU, whose memory is then what all bytes here are of; -1: the CPU.
  std::int32_t cuda_device = -1;
  bool has_f32_activations = true;  // on a GPU: Model::has_f32_activations()
  // On a GPU: answers do not depend on what else is computed at the time, bit by bit (the CPU's never do).
  bool reproducible = false;
  // On the CPU: a ScreenedHead is kept where memory is left for it; in a plan, whether it is (Model::screens_head()).
  bool screens_head = false;
  bool measure_idle = false;  // on a GPU: EngineStats::device_idle_s is kept
  // With a GPU: the first layers, which the CPU computes; the bytes are then of the GPU's part, or of the host's
  // (plan_host_part).
  std::int32_t n_host_layers = 0;
  bool is_host_part = false;
  std::int64_t gpu_memory = 0;  // bytes that this engine may take of a GPU; 0: what is free
  // Tensor parallelism: the GPUs of the ranks, and the columns of the logits that each has (CudaGroupOptions). All
  // bytes are then those of one rank's GPU, the fullest one's. A server is told their number.
  std::int32_t n_ranks = 1;
  std::vector<std::int32_t> rank_devices;
  std::vector<std::int64_t> rank_columns;
  std::shared_ptr<const DraftShape> draft = nullptr;  // null: no model drafts
};

struct MemoryPlan {
  EngineSettings settings;        // with every 0 replaced by what was chosen
  std::int64_t weight_bytes = 0;  // packed weights
  std::int64_t kv_bytes = 0;
  std::int64_t workspace_bytes = 0;  // activations, logits, kernels' scratch
  std::int64_t rope_bytes = 0;
  std::int64_t screen_bytes = 0;  // of the output head's coarse copy
  // The draft model's: weights; keys and values, in blocks of the same number; activations and rope.
  std::int64_t draft_weight_bytes = 0, draft_kv_bytes = 0, draft_workspace_bytes = 0;
  std::int64_t runtime_bytes = 0;  // tokenizer, stacks, the program itself: an estimate, the only one here
  std::int64_t kv_bytes_per_token = 0;
  std::int64_t n_blocks = 0;
  std::int64_t max_logit_rows = 0;
  std::int64_t draft_bytes() const { return draft_weight_bytes + draft_kv_bytes + draft_workspace_bytes; }
  std::int64_t total_bytes() const {
    return weight_bytes + kv_bytes + workspace_bytes + rope_bytes + screen_bytes + draft_bytes() + runtime_bytes;
  }
};

KvGeometry kv_geometry(const ModelConfig& config, const EngineSettings& settings);
ActivationLayout activation_layout(const EngineSettings& settings);
// Of the operators' scratch, which a draft model shares.
ExecOptions exec_options(const ModelConfig& config, std::int64_t max_k, const MemoryPlan& plan);
// Tokens of one step of the draft model, and positions it can reach: beyond them it drafts nothing.
std::int64_t draft_chunk_tokens(const EngineSettings& settings);
std::int64_t draft_context(const EngineSettings& settings);

// Of settings with ranks.
CudaGroupOptions group_options(const ModelConfig& config, const EngineSettings& settings, std::int64_t max_logit_rows);

// kResourceExhausted with the nearest setting that fits, in one sentence, when the wanted one does not.
Result<MemoryPlan> plan_memory(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                               const EngineSettings& wanted);

// The part of an engine's layers that the host computes, with the context and cache that its GPU's part has.
Result<MemoryPlan> plan_host_part(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                  const EngineSettings& gpu_settings, std::int64_t memory_limit);

// Bytes that this process may still take: MemAvailable and the cgroup's limit, whichever is less.
std::int64_t available_memory();

}  // namespace still

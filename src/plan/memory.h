// The memory of a deployment on one host, exact: the same numbers are what the engine allocates.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
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
  std::int64_t chunk_tokens = 512;  // tokens of one step at most
  std::int64_t block_size = 32;     // positions of a KV block
  KvType kv_type = KvType::kF16;
  std::int64_t memory_limit = 0;  // bytes this engine may take; 0: what the machine has available
  // Where it computes: a GPU, whose memory is then what all bytes here are of; -1: the CPU.
  std::int32_t cuda_device = -1;
  bool has_f32_activations = true;                    // on a GPU: Model::has_f32_activations()
  std::shared_ptr<const DraftShape> draft = nullptr;  // null: no model drafts
};

struct MemoryPlan {
  EngineSettings settings;        // with every 0 replaced by what was chosen
  std::int64_t weight_bytes = 0;  // packed weights
  std::int64_t kv_bytes = 0;
  std::int64_t workspace_bytes = 0;  // activations, logits, kernels' scratch
  std::int64_t rope_bytes = 0;
  // The draft model's: weights; keys and values, in blocks of the same number; activations and rope.
  std::int64_t draft_weight_bytes = 0, draft_kv_bytes = 0, draft_workspace_bytes = 0;
  std::int64_t runtime_bytes = 0;  // tokenizer, stacks, the program itself: an estimate, the only one here
  std::int64_t kv_bytes_per_token = 0;
  std::int64_t n_blocks = 0;
  std::int64_t max_logit_rows = 0;
  std::int64_t draft_bytes() const { return draft_weight_bytes + draft_kv_bytes + draft_workspace_bytes; }
  std::int64_t total_bytes() const {
    return weight_bytes + kv_bytes + workspace_bytes + rope_bytes + draft_bytes() + runtime_bytes;
  }
};

KvGeometry kv_geometry(const ModelConfig& config, const EngineSettings& settings);
ActivationLayout activation_layout(const EngineSettings& settings);
// Of the operators' scratch, which a draft model shares.
ExecOptions exec_options(const ModelConfig& config, std::int64_t max_k, const MemoryPlan& plan);
// Tokens of one step of the draft model, and positions it can reach: beyond them it drafts nothing.
std::int64_t draft_chunk_tokens(const EngineSettings& settings);
std::int64_t draft_context(const EngineSettings& settings);

// kResourceExhausted with the nearest setting that fits, in one sentence, when the wanted one does not.
Result<MemoryPlan> plan_memory(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                               const EngineSettings& wanted);

// Bytes that this process may still take: MemAvailable and the cgroup's limit, whichever is less.
std::int64_t available_memory();

}  // namespace still

// ModelShape: what a plan needs to know of a model: its hyperparameters and the list of its tensors, with no byte of
// their data. Made from a header, or from the hyperparameters alone by the formulas of each architecture; so models
// that this program does not run (MLA, experts, MTP) are planned too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files/checkpoint.h"
#include "models/config.h"

namespace still {

// What a tensor does: decides its type under a mixture rule, and how ranks share it.
enum class TensorPart : std::uint8_t {
  kEmbedding,
  kOutput,
  kQuery,
  kKey,
  kValue,
  kAttnOut,  // grouped-query attention
  kQueryA,
  kQueryB,
  kKvA,
  kKvB,  // multi-head latent attention
  kGate,
  kUp,
  kDown,  // feed-forward, dense, shared or routed
  kRouter,
  kRouteBias,
  kNorm,
  kBias,
  kMtpProjection,
  kOther,
};

enum class WeightGroup : std::uint8_t {
  kEmbedding,
  kAttention,
  kFeedForward,
  kExperts,
  kSharedExperts,
  kRouter,
  kNorms,
  kOutput,
  kMtp,
  kOther
};
inline constexpr int kWeightGroupCount = 10;
std::string_view group_name(WeightGroup group);

// By the tensor's canonical name.
TensorPart part_of_name(std::string_view name);

struct PlannedTensor {
  TensorPart part = TensorPart::kOther;
  WeightGroup group = WeightGroup::kOther;
  std::int32_t layer = -1;          // -1: outside the layers
  std::int64_t rows = 1, cols = 1;  // [rows, cols] of one matrix, cols contiguous; a vector has one row
  std::int64_t count = 1;           // matrices: routed experts of a layer, or 1
  bool is_vector = false;
  bool is_routed = false;         // one routed expert, or all of a layer (count), in the MTP module too
  std::optional<DType> own_type;  // of the file, where there is one
  std::int64_t own_bytes = 0;
  std::int64_t n_params() const { return rows * cols * count; }
};

struct ModelShape {
  std::string name, title, licence, base, quality_key;  // the last three: empty where unknown
  ModelConfig config;
  std::vector<PlannedTensor> tensors;
  // Of files with several weights in a word, or scales beside the weights: the tensors by the hyperparameters, which
  // other types, parameters and operations are counted by. Empty otherwise.
  std::vector<PlannedTensor> unpacked;
  bool has_own_types = false;   // the tensors came from a file
  std::int64_t file_bytes = 0;  // of that file
  std::string own_type_name;    // the type that holds the most bytes of the file

  const std::vector<PlannedTensor>& weights() const { return unpacked.empty() ? tensors : unpacked; }
  bool is_mla() const { return config.kv_lora_rank > 0; }
  bool is_moe() const { return config.n_experts > 0; }
  std::int64_t n_params(bool with_mtp = false) const;  // the MTP module counts only with_mtp
  // Parameters that one token reads, without the embedding table (one row of it) and the MTP module.
  std::int64_t n_active_params() const;
  std::int64_t n_routed_params() const;
};

// config.json of any architecture planned here; kUnsupported names them.
Result<ModelConfig> read_plan_config(const JsonObject& json);

// kInvalidArgument for sizes that no model has, naming the field.
Result<ModelShape> shape_from_config(const ModelConfig& config, std::string name);
// From a header. kCorrupt where the header's tensors and its hyperparameters contradict each other.
Result<ModelShape> shape_from_checkpoint(const Checkpoint& checkpoint, std::string name);

}  // namespace still

// Arch: one architecture, described by functions and data. One file per architecture exports one `const Arch`
// (models/registry.cc lists them); it knows nothing of quantisation, devices or batching.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "ops/attention.h"
#include "ops/exec.h"
#include "ops/screened_head.h"
#include "ops/weight.h"
#include "tensor/cuda.h"

namespace still {

enum class TensorRole {
  kMatrix,     // packed for the device: y = W x
  kVector,     // norms and biases, held as f32
  kEmbedding,  // rows are looked up; stays in the mapped file
};

// What of a tensor a rank has where several share a model (models/shard.h): all of it, or its own heads, feed-forward
// elements or token ids. They are rows of the tensor, or columns of a matrix whose products are then parts of a sum.
enum class Share { kWhole, kHeads, kKvHeads, kFfn, kVocabulary, kHeadColumns, kFfnColumns };

// A tensor that a checkpoint must (or may) have, by its Hugging Face name.
struct TensorSpec {
  std::string name;
  Shape shape;
  TensorRole role = TensorRole::kMatrix;
  bool optional = false;
  Share share = Share::kWhole;
  std::int32_t layer = -1;  // -1: of no layer
};

// What the loader made of the specs. Lookups by name happen at load only.
class WeightSet {
 public:
  const Weight* matrix(std::string_view name) const;  // null where absent
  TensorView vector(std::string_view name) const;     // data null where absent
  const EmbeddingTable* embedding(std::string_view name) const;

  std::vector<Weight> matrices;
  struct NamedVector {
    std::string name;
    TensorView view;
  };
  std::vector<NamedVector> vectors;
  std::vector<EmbeddingTable> embeddings;
};

// Where and how activations lie. On the CPU: f32, one tensor after the other. On a GPU q, k and v are columns of one
// tensor, and what products read is bf16 where all matrices are 16-bit floats.
struct ActivationLayout {
  bool is_joined = false;
  DType type = DType::kF32;  // of normed, attn, ffn, gathered: f32 or bf16
};

// The activations of one step, laid out once at load for `max_tokens` tokens and `max_logit_rows` wanted rows.
// Widths come from the config; an architecture with other needs adds its own.
struct StepBuffers {
  std::int64_t max_tokens = 0, max_logit_rows = 0;
  ActivationLayout layout;
  std::int64_t qkv_stride = 0;     // elements from row to row of q, k and v; 0: their widths
  float* hidden = nullptr;         // [max_tokens, hidden_size], the residual stream
  void* normed = nullptr;          // [max_tokens, hidden_size]
  float* q = nullptr;              // [max_tokens, n_heads * head_dim]
  float* k = nullptr;              // [max_tokens, n_kv_heads * head_dim]
  float* v = nullptr;              // [max_tokens, n_kv_heads * head_dim]
  void* attn = nullptr;            // [max_tokens, n_heads * head_dim]
  void* ffn = nullptr;             // [max_tokens, intermediate_size]
  void* gathered = nullptr;        // [max_logit_rows, hidden_size]
  float* logits = nullptr;         // [max_logit_rows, vocab_size]
  ScreenedHead* screen = nullptr;  // for the largest logits alone; null: none
  // On a GPU that has the last layers only: the residual stream that the host's layers give, in pinned memory.
  const float* input = nullptr;  // [max_tokens, hidden_size]

  static std::int64_t bytes(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows,
                            ActivationLayout layout = {});
  static Result<StepBuffers> create_on_cuda(const ModelConfig& config, std::int64_t max_tokens,
                                            std::int64_t max_logit_rows, ActivationLayout layout, DeviceBuffer& memory);
  static Result<StepBuffers> create(const ModelConfig& config, std::int64_t max_tokens, std::int64_t max_logit_rows,
                                    Arena& arena);
};

// Weights bound to the places where the forward pass reads them; each architecture derives its own.
struct ArchWeights {
  virtual ~ArchWeights() = default;
};

struct ForwardArgs {
  Exec& exec;
  const ModelConfig& config;
  const ArchWeights& weights;
  const RopeTable& rope;
  const RaggedBatch& batch;
  KvCache& cache;
  StepBuffers& buffers;
  // Which layers are computed here: the first include the embedding, the last the head. `cache` has these alone.
  std::int32_t layer_begin, layer_end;
};

struct Arch {
  std::string_view model_type;
  Result<ModelConfig> (*read_config)(const JsonObject& json);
  std::vector<TensorSpec> (*tensors)(const ModelConfig& config);
  std::unique_ptr<ArchWeights> (*bind)(const ModelConfig& config, const WeightSet& weights);
  // One step: writes buffers.logits rows [0, batch.logit_rows.size()).
  void (*forward)(const ForwardArgs& args);
};

// All architectures; null and kUnsupported, naming those that exist, for an unknown one.
std::span<const Arch* const> architectures();
Result<const Arch*> find_arch(std::string_view model_type);

}  // namespace still

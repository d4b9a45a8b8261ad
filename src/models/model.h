// Model: a checkpoint's weights packed for this machine, ready for forward passes. Immutable after load and shared by
// engines; the exact bytes are known before (weight_layout), so that a plan is what the loader allocates.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/mapped_file.h"
#include "files/checkpoint.h"
#include "kernels/kernel_table.h"
#include "models/arch.h"
#include "models/shard.h"
#include "text/tokenizer.h"

namespace still {

// Where every tensor of a model goes and what it takes, from headers alone.
struct WeightLayout {
  struct Item {
    TensorSpec spec;                           // its shape is that of the rank's slice
    TensorSlice slice;                         // of the source
    const CheckpointTensor* source = nullptr;  // null: an absent optional tensor
    PackedFormat format = PackedFormat::kF32;  // of a matrix or, on a GPU, an embedding
    bool is_on_cuda = false;
    std::int64_t bytes = 0;       // in the weight arena; 0 for an embedding that stays in the file
    std::int64_t file_bytes = 0;  // of the slice

    // The slice's first byte; row i of it lies i rows of the source on, or of a tensor with permuted rows, whose
    // columns alone are cut here, source_row(i).
    const std::uint8_t* data() const;
    std::int64_t source_row(std::int64_t i) const { return source->source_row(slice.rows.begin + i); }
    bool has_whole_rows() const { return source->shape.rank < 2 || slice.columns.size() == source->shape[1]; }
  };
  std::vector<Item> items;
  RankParts parts;
  std::int64_t arena_bytes = 0;   // packed matrices and f32 vectors
  std::int64_t host_bytes = 0;    // of these, with a GPU: in host memory
  std::int64_t mapped_bytes = 0;  // embedding rows, read in place
};
// Checks that every tensor exists, has the wanted shape and a type that computes.
// Where the tensors go.
struct WeightPlacement {
  bool is_on_cuda = false;  // GPU memory, embeddings too
  // Of these, the layers that stay in host memory, from the first on; the embedding then stays in the file.
  std::int32_t n_host_layers = 0;
  Rank rank = {};
  bool to_f8 = false;  // in GPU memory, matrices of floats become FP8 (e4m3) with a scale for each row
};
// config: of the whole model.
Result<WeightLayout> weight_layout(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                                   const WeightPlacement& placement = {});

// Whether the matrix that makes logits, in host memory, is one for a ScreenedHead.
bool screens_head(const WeightLayout& layout);

struct LoadOptions {
  int n_threads = 0;
  const CpuKernels* kernels = nullptr;                                  // null: default_cpu_kernels()
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // bytes of the file
  std::int32_t cuda_device = -1;                                        // the GPU that gets the weights; -1: the CPU
  std::int32_t n_host_layers = 0;                                       // with a GPU: layers that the CPU computes
  Rank rank;                                                            // of several that share the model
  bool to_f8 = false;                                                   // on a GPU: weight_layout's
  const CpuTopology* topology = nullptr;                                // as of the engine's threads
};

// A model of random weights for measurements: the shapes of a real one, its types by tensor, a small vocabulary of
// bytes in a table of the full size. Made in GPU memory on the spot.
struct RandomModelSpec {
  ModelConfig config;  // qwen2 or llama
  std::function<DType(const TensorSpec&)> type_of;
  std::uint64_t seed = 1;
  std::int32_t cuda_device = 0;
  Rank rank;
  bool to_f8 = false;  // matrices of floats as FP8
};

class Model {
 public:
  static Result<std::shared_ptr<const Model>> load(const std::filesystem::path& path, const LoadOptions& options);
  static Result<std::shared_ptr<const Model>> load(std::shared_ptr<const Checkpoint> checkpoint,
                                                   const LoadOptions& options);

  static Result<std::shared_ptr<const Model>> make_random(const RandomModelSpec& spec);

  // Tensor parallelism: `load` is called for each rank and its device; the result is rank 0's, which knows the others.
  static Result<std::shared_ptr<const Model>> over_devices(
      std::span<const std::int32_t> devices,
      const std::function<Result<std::shared_ptr<const Model>>(Rank, std::int32_t device)>& load);
  // All ranks in order where this is rank 0 of several; empty where it is alone or another rank.
  std::vector<const Model*> ranks() const;
  const RankParts& parts() const { return parts_; }

  const Arch& arch() const { return *arch_; }
  const ModelConfig& config() const { return config_; }  // of this rank
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& chat_template() const { return chat_template_; }  // empty: the model ships none
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  // Where it computes: on the GPU, or on the CPU; and what the host's layers take where there are both.
  std::int64_t weight_bytes() const { return cuda_device_ >= 0 ? device_memory_.size() : arena_.size(); }
  std::int64_t host_weight_bytes() const { return cuda_device_ >= 0 ? arena_.size() : 0; }
  std::int32_t n_host_layers() const { return n_host_layers_; }
  std::int32_t cuda_device() const { return cuda_device_; }  // -1: the weights are the CPU's
  // On a GPU: whether some matrix is not of 16-bit floats, so that activations stay f32.
  bool has_f32_activations() const { return has_f32_activations_; }
  // Bytes of packed weights and KV-independent data read for one decoded token: the bandwidth bound of `bench`.
  std::int64_t bytes_per_token() const { return bytes_per_token_; }
  // Multiply-accumulates of one token in the matrices but the head, and in the head.
  std::int64_t macs_per_token() const { return macs_per_token_; }
  std::int64_t head_macs() const { return head_macs_; }
  std::int64_t max_k() const { return max_k_; }
  // On the CPU: whether an engine may keep a ScreenedHead.
  bool screens_head() const { return screens_head_; }

  // One step of the layers that are where `exec` computes; positions must lie below rope's max_seq_len.
  // On a GPU it is under way when this returns; an error ends the batch's requests.
  Status forward(Exec& exec, const RaggedBatch& batch, KvCache& cache, const RopeTable& rope,
                 StepBuffers& buffers) const;

 private:
  Model() = default;
  Status load_on_host(const WeightLayout& layout, const LoadOptions& options, const CpuKernels& kernels);
  Status load_on_cuda(const WeightLayout& layout, const LoadOptions& options, const CpuKernels& kernels);
  // Places the layout's items in device memory; `fill` brings each matrix and vector there.
  template <class Fill>
  Status place_on_cuda(const WeightLayout& layout, std::int32_t device, Fill&& fill);
  const Arch* arch_ = nullptr;
  ModelConfig config_;
  RankParts parts_;
  std::vector<std::shared_ptr<const Model>> other_ranks_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<Tokenizer> tokenizer_;
  std::string chat_template_;
  Arena arena_;
  std::int32_t cuda_device_ = -1, n_host_layers_ = 0;
  bool has_f32_activations_ = true, screens_head_ = false;
  DeviceBuffer device_memory_;
  WeightSet weights_;
  std::unique_ptr<ArchWeights> bound_;
  std::int64_t bytes_per_token_ = 0, macs_per_token_ = 0, head_macs_ = 0, max_k_ = 0;
};

// The tokenizer and chat template of a checkpoint (GGUF metadata or tokenizer.json).
Result<Tokenizer> load_tokenizer(const Checkpoint& checkpoint);

}  // namespace still

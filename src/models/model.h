// Model: a checkpoint's weights packed for this machine, ready for forward passes. Immutable after load and shared by
// engines; the exact bytes are known before (weight_layout), so that a plan is what the loader allocates.
#pragma once

#include <functional>
#include <memory>
#include <optional>

#include "base/mapped_file.h"
#include "files/checkpoint.h"
#include "models/arch.h"
#include "text/tokenizer.h"

namespace still {

// Where every tensor of a model goes and what it takes, from headers alone.
struct WeightLayout {
  struct Item {
    TensorSpec spec;
    const CheckpointTensor* source = nullptr;  // null: an absent optional tensor
    std::int64_t bytes = 0;                    // in the weight arena; 0 for an embedding that stays in the file
    std::int64_t file_bytes = 0;
  };
  std::vector<Item> items;
  std::int64_t arena_bytes = 0;   // packed matrices and f32 vectors
  std::int64_t mapped_bytes = 0;  // embedding rows, read in place
};
// Checks that every tensor exists, has the wanted shape and a type that computes.
// on_cuda: sizes in GPU memory, where embeddings lie too.
Result<WeightLayout> weight_layout(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                                   bool on_cuda = false);

struct LoadOptions {
  int n_threads = 0;
  const CpuKernels* kernels = nullptr;                                  // null: default_cpu_kernels()
  std::function<void(std::int64_t done, std::int64_t total)> progress;  // bytes of the file
  std::int32_t cuda_device = -1;                                        // the GPU that gets the weights; -1: the CPU
  const CpuTopology* topology = nullptr;                                // as of the engine's threads
};

// A model of random weights for measurements: the shapes of a real one, its types by tensor, a small vocabulary of
// bytes in a table of the full size. Made in GPU memory on the spot.
struct RandomModelSpec {
  ModelConfig config;  // qwen2 or llama
  std::function<DType(const TensorSpec&)> type_of;
  std::uint64_t seed = 1;
  std::int32_t cuda_device = 0;
};

class Model {
 public:
  static Result<std::shared_ptr<const Model>> load(const std::filesystem::path& path, const LoadOptions& options);
  static Result<std::shared_ptr<const Model>> load(std::shared_ptr<const Checkpoint> checkpoint,
                                                   const LoadOptions& options);

  static Result<std::shared_ptr<const Model>> make_random(const RandomModelSpec& spec);

  const Arch& arch() const { return *arch_; }
  const ModelConfig& config() const { return config_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const std::string& chat_template() const { return chat_template_; }  // empty: the model ships none
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  std::int64_t weight_bytes() const { return arena_.size() + device_memory_.size(); }
  std::int32_t cuda_device() const { return cuda_device_; }  // -1: the weights are the CPU's
  // On a GPU: whether some matrix is not of 16-bit floats, so that activations stay f32.
  bool has_f32_activations() const { return has_f32_activations_; }
  // Bytes of packed weights and KV-independent data read for one decoded token: the bandwidth bound of `bench`.
  std::int64_t bytes_per_token() const { return bytes_per_token_; }
  // Multiply-accumulates of one token in the matrices but the head, and in the head.
  std::int64_t macs_per_token() const { return macs_per_token_; }
  std::int64_t head_macs() const { return head_macs_; }
  std::int64_t max_k() const { return max_k_; }

  // One step; positions must lie below rope's max_seq_len.
  // On a GPU it is under way when this returns; an error ends the batch's requests.
  Status forward(Exec& exec, const RaggedBatch& batch, KvCache& cache, const RopeTable& rope,
                 StepBuffers& buffers) const;

 private:
  Model() = default;
  Status load_on_cuda(const WeightLayout& layout, const LoadOptions& options, const CpuKernels& kernels);
  // Places the layout's items in device memory; `fill` brings each matrix and vector there.
  template <class Fill>
  Status place_on_cuda(const WeightLayout& layout, std::int32_t device, Fill&& fill);
  const Arch* arch_ = nullptr;
  ModelConfig config_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<Tokenizer> tokenizer_;
  std::string chat_template_;
  Arena arena_;
  std::int32_t cuda_device_ = -1;
  bool has_f32_activations_ = true;
  DeviceBuffer device_memory_;
  WeightSet weights_;
  std::unique_ptr<ArchWeights> bound_;
  std::int64_t bytes_per_token_ = 0, macs_per_token_ = 0, head_macs_ = 0, max_k_ = 0;
};

// The tokenizer and chat template of a checkpoint (GGUF metadata or tokenizer.json).
Result<Tokenizer> load_tokenizer(const Checkpoint& checkpoint);

}  // namespace still

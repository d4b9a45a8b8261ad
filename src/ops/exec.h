// Exec: where operators run. Carries the device, the threads, the kernel table and per-thread scratch; one owner at a
// time. With ExecOptions::cuda the operators run on a GPU (cuda_exec.h), and all tensors they are given lie there.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "ops/cuda_options.h"
#include "ops/work_shares.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace still {

class Comm;
class CudaExec;
struct RaggedBatch;

struct ExecOptions {
  int n_threads = 0;                    // 0: the physical cores
  const CpuKernels* kernels = nullptr;  // null: default_cpu_kernels()
  std::int64_t max_tokens = 512;        // most tokens of one forward: sizes the scratch
  std::int64_t max_k = 0;               // widest input of a linear: sizes the quantised activations
  std::int64_t max_attention_parts =
      0;  // most (sequence, query head, segment) partial results of one attention call; more are not split
  std::int32_t head_dim = 0, n_heads = 0;
  std::optional<CudaOptions> cuda;        // absent: the CPU
  Comm* comm = nullptr;                   // where several ranks share the model; lives longer than the Exec
  const CpuTopology* topology = nullptr;  // where the threads run; null: this machine's
};

// Activations of one linear, quantised: as in QuantizedRows, for max_tokens rows of max_k.
struct ActivationBuffers {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  std::int16_t* sums = nullptr;
};

// A piece of an attention call: n_q queries of a sequence (or one query's segments [segment_begin, segment_end)) and
// one KV head.
struct AttentionTask {
  std::int64_t seq, kv_head, q_begin, n_q;
  std::int64_t segment_begin, segment_end;  // of the whole query when first_part is -1
  std::int64_t first_part;  // where in attention_partials the query's parts begin; -1: finished in one go
  std::int64_t cost;        // multiply-adds
};

class Exec {
 public:
  static Result<std::unique_ptr<Exec>> create(const ExecOptions& options);
  ~Exec();
  // Bytes create() will take beside the threads' stacks, of the device's memory: the plan's formula.
  static std::int64_t scratch_bytes(const ExecOptions& options);

  Comm* comm() const { return options_.comm; }
  CudaExec* cuda() { return cuda_.get(); }  // null: the operators run on the CPU
  // Calls body with the batch once its lists are where the operators run; on a GPU body may get a padded batch of the
  // same shape, or not be called at all where what it launched was captured.
  Status run_step(const RaggedBatch& batch, const std::function<void(const RaggedBatch&)>& body);

  const CpuKernels& kernels() const { return *kernels_; }
  ThreadPool& threads() { return *threads_; }
  int n_threads() const { return threads_->size(); }

  // 64-byte aligned scratch of one thread, for kernels: max(kLinearScratchBytes, kAttentionScratchBytes).
  std::uint8_t* thread_scratch(int thread_idx);
  WorkShares& work_shares() { return *work_shares_; }
  // Quantised activations of the current linear, in blocks of 32 or 256 (a group of weights may need both).
  const ActivationBuffers& activations(std::int32_t block) const { return activations_[block == 32 ? 0 : 1]; }
  // Room for most_regrouped_bytes() of a linear's activations.
  std::int32_t* regrouped() { return regrouped_; }
  // Partial results of attention: m, l, o as in AttentionMergeArgs, for max_attention_parts.
  float* attention_partials() { return attention_partials_; }
  // Lists that attention fills anew in each call; kept so that their memory is.
  std::vector<AttentionTask>& attention_tasks() { return attention_tasks_; }
  std::vector<AttentionTask>& attention_merges() { return attention_merges_; }
  const ExecOptions& options() const { return options_; }

 private:
  Exec();
  ExecOptions options_;
  std::unique_ptr<CudaExec> cuda_;
  const CpuKernels* kernels_ = nullptr;
  std::unique_ptr<ThreadPool> threads_;
  std::unique_ptr<WorkShares> work_shares_;
  Arena arena_;
  std::uint8_t* thread_scratch_ = nullptr;
  ActivationBuffers activations_[2];
  std::int32_t* regrouped_ = nullptr;
  float* attention_partials_ = nullptr;
  std::vector<AttentionTask> attention_tasks_, attention_merges_;
};

}  // namespace still

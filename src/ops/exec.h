// Exec: where operators run. Carries the device, the threads, the kernel table and per-thread scratch; one owner at a time.
// A CUDA device will stand beside the CPU behind the same operators; nobody outside ops/ asks which one it is.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "base/thread_pool.h"
#include "kernels/kernel_table.h"
#include "tensor/arena.h"
#include "tensor/tensor.h"

namespace still {

struct ExecOptions {
  int n_threads = 0;                 // 0: the physical cores
  const CpuKernels* kernels = nullptr;  // null: default_cpu_kernels()
  std::int64_t max_tokens = 512;     // most tokens of one forward: sizes the scratch
  std::int64_t max_k = 0;            // widest input of a linear: sizes the quantised activations
  std::int64_t max_attention_parts = 0;  // most (sequence, query head, segment) partial results of one attention call; more are not split
  std::int32_t head_dim = 0, n_heads = 0;
};

class Exec {
 public:
  static Result<std::unique_ptr<Exec>> create(const ExecOptions& options);
  // Bytes create() will take beside the threads' stacks: the plan's formula.
  static std::int64_t scratch_bytes(const ExecOptions& options);

  const CpuKernels& kernels() const { return *kernels_; }
  ThreadPool& threads() { return *threads_; }
  int n_threads() const { return threads_->size(); }

  // 64-byte aligned scratch of one thread, for kernels: max(kLinearScratchBytes, kAttentionScratchBytes).
  std::uint8_t* thread_scratch(int thread_idx);
  // Quantised activations of the current linear.
  std::int8_t* activation_q() { return activation_q_; }
  float* activation_scale() { return activation_scale_; }
  std::int16_t* activation_sums() { return activation_sums_; }
  // Partial results of attention: m, l, o as in AttentionMergeArgs.
  float* attention_partials() { return attention_partials_; }
  const ExecOptions& options() const { return options_; }

 private:
  Exec() = default;
  ExecOptions options_;
  const CpuKernels* kernels_ = nullptr;
  std::unique_ptr<ThreadPool> threads_;
  Arena arena_;
  std::uint8_t* thread_scratch_ = nullptr;
  std::int8_t* activation_q_ = nullptr;
  float* activation_scale_ = nullptr;
  std::int16_t* activation_sums_ = nullptr;
  float* attention_partials_ = nullptr;
};

}  // namespace still

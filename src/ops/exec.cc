#include "ops/exec.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "ops/cuda_exec.h"

namespace still {

namespace {
constexpr std::int64_t kThreadScratchBytes = std::max(kLinearScratchBytes, kAttentionScratchBytes);

int thread_count(const ExecOptions& options) {
  return options.n_threads > 0 ? options.n_threads : usable_cores();
}

// Of each of the two buffers: the one for blocks of 32 has the more scales.
struct ActivationSizes {
  std::int64_t q, scale, sums;  // bytes
  explicit ActivationSizes(const ExecOptions& options, std::int32_t block) {
    const std::int64_t n = options.max_tokens * options.max_k;
    q = Arena::rounded(n);
    scale = Arena::rounded((n + block - 1) / block * 4);
    sums = Arena::rounded((n + 15) / 16 * 2);
  }
  std::int64_t total() const { return q + scale + sums; }
};

std::int64_t regrouped_bytes(const ExecOptions& options) {
  return options.max_tokens < kRegroupFrom ? 0
                                           : Arena::rounded(most_regrouped_bytes(options.max_tokens, options.max_k));
}

std::int64_t partial_bytes(const ExecOptions& options) {
  return Arena::rounded(options.max_attention_parts * (options.head_dim + 2) * 4);
}
}  // namespace

Exec::Exec() = default;
Exec::~Exec() = default;

std::int64_t Exec::scratch_bytes(const ExecOptions& options) {
  if (options.cuda) return CudaExec::scratch_bytes(*options.cuda);
  return thread_count(options) * kThreadScratchBytes + ActivationSizes(options, 32).total() +
         ActivationSizes(options, 256).total() + regrouped_bytes(options) + partial_bytes(options);
}

Result<std::unique_ptr<Exec>> Exec::create(const ExecOptions& options) {
  if (options.n_threads < 0 || options.n_threads > 4096)
    return error(Code::kInvalidArgument, "threads: {}, expected 1 to 4096, or 0 for the physical cores",
                 options.n_threads);
  if (options.max_tokens < 1)
    return error(Code::kInvalidArgument, "tokens of a step: {}, expected at least 1", options.max_tokens);
  STILL_CHECK(options.max_k >= 0 && options.max_attention_parts >= 0 && options.head_dim >= 0);
  std::unique_ptr<Exec> exec(new Exec());
  exec->options_ = options;
  exec->kernels_ = options.kernels;
  if (exec->kernels_ == nullptr) {
    STILL_TRY(exec->kernels_, default_cpu_kernels());
  }
  if (options.cuda) {
    STILL_TRY(exec->cuda_, CudaExec::create(*options.cuda, options.comm));
    exec->threads_ = std::make_unique<ThreadPool>(ThreadPool::Options{.n_threads = 1});
    return exec;
  }
  STILL_TRY(exec->arena_, Arena::create(scratch_bytes(options), "scratch of the operators"));
  const int n_threads = thread_count(options);
  exec->thread_scratch_ = exec->arena_.allocate_array<std::uint8_t>(n_threads * kThreadScratchBytes);
  for (const std::int32_t block : {32, 256}) {
    const ActivationSizes sizes(options, block);
    exec->activations_[block == 32 ? 0 : 1] = {exec->arena_.allocate_array<std::int8_t>(sizes.q),
                                               exec->arena_.allocate_array<float>(sizes.scale / 4),
                                               exec->arena_.allocate_array<std::int16_t>(sizes.sums / 2)};
  }
  exec->regrouped_ = exec->arena_.allocate_array<std::int32_t>(regrouped_bytes(options) / 4);
  exec->attention_partials_ = exec->arena_.allocate_array<float>(partial_bytes(options) / 4);
  exec->threads_ =
      std::make_unique<ThreadPool>(ThreadPool::Options{.n_threads = n_threads, .topology = options.topology});
  exec->work_shares_ = std::make_unique<WorkShares>(n_threads);
  return exec;
}

Status Exec::run_step(const RaggedBatch& batch, const std::function<void(const RaggedBatch&)>& body) {
  if (cuda_ != nullptr) return cuda_->run_step(batch, body);
  body(batch);
  return ok();
}

std::uint8_t* Exec::thread_scratch(int thread_idx) {
  STILL_DCHECK(thread_idx >= 0 && thread_idx < n_threads());
  return thread_scratch_ + thread_idx * kThreadScratchBytes;
}

}  // namespace still

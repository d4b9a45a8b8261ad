// ModelRunner: a step's slots to one ragged batch, one forward pass, and the rows of logits that belong to each slot.
// Nothing is allocated after the constructor.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/result.h"
#include "base/thread_pool.h"
#include "engine/scheduler.h"
#include "kernels/cuda/cuda_kernels.h"
#include "ops/attention.h"

namespace still {

// The model behind an interface, so that the engine is tested without one.
class ForwardPass {
 public:
  virtual ~ForwardPass() = default;
  // Logits [batch.logit_rows.size(), vocab_size] f32; the caller may overwrite them; valid until the next run. An error
  // ends the batch's requests, not the engine.
  virtual Result<float*> run(const RaggedBatch& batch) = 0;
  // KV blocks can be copied, and are: see Scheduler::copies().
  virtual bool can_copy_blocks() const { return false; }
  virtual void copy_block(std::int32_t, std::int32_t) { STILL_CHECK(false); }
  // Threads that idle between two runs; null: none.
  virtual ThreadPool* threads() { return nullptr; }
  // Where logits stay on a device: run() then gives no pointer, rows are fetched, and tokens can be drawn there.
  virtual bool is_on_device() const { return false; }
  // A row of the last run's logits, [vocab_size], until the next call.
  virtual Result<float*> fetch_row(std::int64_t) { return error(Code::kUnsupported, "the logits are on the host"); }
  // Tokens of the given rows; -1 where the logits are not finite.
  virtual Result<std::span<const TokenId>> sample(std::span<const CudaSampleRow>) {
    return error(Code::kUnsupported, "tokens are drawn on the host");
  }
};

struct RunnerLimits {
  std::int64_t vocab_size = 0;
  std::int64_t max_tokens = 0, max_seqs = 0, max_logit_rows = 0;
  std::int64_t max_blocks = 0;  // of one sequence
};

class ModelRunner {
 public:
  ModelRunner(ForwardPass& forward, const RunnerLimits& limits);

  Status run(std::span<const StepSlot> slots, const std::atomic<bool>* is_abandoned = nullptr);

  // Rows of slot s: first those of the prompt's log-probabilities (see n_prompt_rows), then, where the slot is
  // complete, that of its last token and those of its draft.
  // From a device they are valid until the next call, and empty where it has failed.
  std::span<float> logits(std::size_t slot_idx, std::int64_t row);
  std::int64_t row_of(std::size_t slot_idx, std::int64_t row) const { return first_row_[slot_idx] + row; }
  // Tokens of the chunk whose successor is a prompt token that was not scored yet; they are [first, first + n).
  static std::int64_t n_prompt_rows(const StepSlot& slot, std::int64_t* first = nullptr);

 private:
  ForwardPass& forward_;
  RunnerLimits limits_;
  std::vector<TokenId> ids_;
  std::vector<std::int32_t> positions_, q_start_, kv_len_, block_tables_, logit_rows_;
  std::vector<std::int64_t> first_row_;  // [n_slots]
  float* logits_ = nullptr;
};

}  // namespace still

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
#include "ops/screened_head.h"

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

  // Where logits stay on a device, these take the place of run(). Two steps may be under way.
  virtual bool is_on_device() const { return false; }
  // A step and the draw of the given rows' tokens. An id -1 - i of the batch is the token drawn for row i of the launch
  // before. After an error: collect what was launched before, then abandon().
  virtual Status launch(const RaggedBatch&, std::span<const CudaSampleRow>) { return on_host(); }
  // Waits for the oldest launch: its tokens, until the second launch after this call; -1 where logits are not finite.
  virtual Result<std::span<const TokenId>> collect() { return tl::unexpected(on_host().error()); }
  // A row of the last launch's logits, [vocab_size], until the next call.
  virtual Result<float*> fetch_row(std::int64_t) { return tl::unexpected(on_host().error()); }
  // Waits and forgets all launches.
  virtual void abandon() {}
  struct DeviceTimes {
    double busy = 0, idle = 0;  // seconds inside steps and between them
  };
  virtual DeviceTimes device_times() const { return {}; }
  virtual ScreenStats screen_stats() const { return {}; }

 private:
  static Status on_host() { return error(Code::kUnsupported, "the logits are on the host"); }
};

struct RunnerLimits {
  std::int64_t vocab_size = 0;
  std::int64_t max_tokens = 0, max_seqs = 0, max_logit_rows = 0;
  std::int64_t max_blocks = 0;      // of one sequence
  bool answers_come_first = false;  // slots whose token is an answer's stand before the others
};

class ModelRunner {
 public:
  ModelRunner(ForwardPass& forward, const RunnerLimits& limits);

  // Makes the step's batch: row_of() is known then. Tokens below 0 are passed on as they are.
  void prepare(std::span<const StepSlot> slots);
  // best: what of the wanted rows is read, until the pass has run.
  Status run(const std::atomic<bool>* is_abandoned = nullptr, const BestOnly& best = {});  // on the host
  Status launch(std::span<const CudaSampleRow> draws);                                     // on a device

  // Rows of slot s: first those of the prompt's log-probabilities (see n_prompt_rows), then, where the slot is
  // complete, that of its last token and those of its draft.
  // From a device they are valid until the next call, and empty where it has failed.
  std::span<float> logits(std::size_t slot_idx, std::int64_t row);
  std::int64_t row_of(std::size_t slot_idx, std::int64_t row) const { return first_row_[slot_idx] + row; }
  // Tokens of the chunk whose successor is a prompt token that was not scored yet; they are [first, first + n).
  static std::int64_t n_prompt_rows(const StepSlot& slot, std::int64_t* first = nullptr);

 private:
  RaggedBatch batch() const;
  ForwardPass& forward_;
  RunnerLimits limits_;
  std::vector<TokenId> ids_;
  std::vector<std::int32_t> positions_, q_start_, kv_len_, block_tables_, logit_rows_;
  std::vector<std::int64_t> first_row_;  // [n_slots]
  std::int64_t n_answer_seqs_ = 0;
  float* logits_ = nullptr;
};

}  // namespace still

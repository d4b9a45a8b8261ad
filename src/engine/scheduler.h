// Scheduler: which sequences compute how many tokens in the next step. Decodes first, one token each (and drafts where
// there is room), then prefill in chunks: users take turns, and within a user the first come is first. When blocks run
// out, the youngest of the lowest priority gives its blocks back and is computed again later (preemption by
// recomputation); the oldest never does, so that work goes on. Continuous batching: Yu et al. 2022 (Orca, OSDI'22);
// chunked prefill: Agrawal et al. 2023, arXiv:2308.16369. Knows no model, no clock and no thread; the engine's thread
// owns it.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/prefix_cache.h"
#include "engine/sequence.h"
#include "engine/step_time.h"

namespace still {

struct SchedulerOptions {
  std::int64_t max_seqs = 1;
  std::int64_t chunk_tokens = 512;   // of a step at most
  std::int64_t max_logit_rows = 16;  // >= max_seqs
  std::int64_t block_size = 32;
  StepLimits step;
  std::int64_t max_draft = 0;  // 0: no speculation
  // Tokens of answers are computed one at a time even where several are known (after a preemption, a forced text), and
  // their keys and values serve no other request: those of a prompt are not the same bits.
  bool answers_by_token = false;
  bool copies_tails = false;  // blocks can be copied: prompts share beginnings to the token, not to the block
};

// What one sequence does in a step: computes tokens [n_computed, n_computed + n_tokens), then its draft.
struct StepSlot {
  Sequence* sequence = nullptr;
  std::int64_t n_tokens = 0;
  bool is_complete() const { return n_tokens == sequence->n_pending(); }  // a token may be sampled
};

struct BlockCopy {
  std::int32_t from = 0, to = 0;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, PrefixCache& cache);

  void add(Sequence* sequence);      // waits
  void remove(Sequence* sequence);   // finished or cancelled: its blocks are free
  void preempt(Sequence* sequence);  // gives its blocks back and waits

  // The next step. Drafts are asked of `drafter` (may be null). `admitted` receives the sequences that begin.
  std::span<const StepSlot> schedule(Drafter* drafter, std::vector<Sequence*>& admitted);
  // What must be copied before the forward pass, in this order; then it is to be told.
  std::span<const BlockCopy> copies() const { return copies_; }
  void copied();
  // After the forward pass: registers the blocks that have become full.
  void computed(Sequence* sequence, std::int64_t n_tokens);
  // How long the step took, for the choice of the next chunk.
  void observe_step(std::int64_t n_decode, std::int64_t n_drafted, std::int64_t n_prefill, double seconds);

  std::span<Sequence* const> waiting() const { return waiting_; }  // no order, see queue_position
  std::span<Sequence* const> running() const { return running_; }
  std::int64_t queue_position(const Sequence& sequence) const;  // sequences that would be taken before it
  double prefill_tokens_per_s() const { return step_time_.prefill_tokens_per_s(); }
  std::int64_t n_preemptions() const { return n_preemptions_; }

 private:
  struct User {
    std::string name;
    std::int64_t n_sequences = 0;
    std::uint64_t last_turn = 0;
  };
  bool goes_before(const Sequence& a, const Sequence& b) const;
  bool is_younger(const Sequence& a, const Sequence& b) const;
  Sequence* next_waiting() const;
  std::int32_t allocate_block();  // -1: none
  bool ensure_blocks(Sequence& sequence, std::int64_t n_tokens, bool may_preempt);
  Sequence* find_victim(const Sequence& for_whom) const;
  void schedule_decodes();
  void schedule_drafts();
  void schedule_prefills(std::int64_t budget, std::vector<Sequence*>& admitted);
  bool admit(Sequence& sequence);
  void take_tail(Sequence& sequence);
  void give_chunk(Sequence& sequence, std::int64_t& budget);
  void release_blocks(Sequence& sequence);
  void take_turn(Sequence& sequence) { users_[static_cast<std::size_t>(sequence.user_idx)].last_turn = ++turn_; }
  void drop_slot(const Sequence& sequence);
  std::int64_t blocks_for(std::int64_t n_tokens) const {
    return (n_tokens + options_.block_size - 1) / options_.block_size;
  }
  std::int64_t prefill_budget(std::int64_t n_decode) const;

  SchedulerOptions options_;
  PrefixCache& cache_;
  std::vector<Sequence*> waiting_, running_;
  std::vector<Sequence*> prefilling_;  // scratch of one step
  std::vector<StepSlot> slots_;
  std::vector<BlockCopy> copies_;  // the blocks copied from are referenced
  Drafter* drafter_ = nullptr;     // of this step
  std::vector<DraftTask> draft_tasks_;
  double draft_seconds_ = 0;  // that the drafter took of this step
  std::vector<User> users_;
  std::uint64_t turn_ = 0;
  std::int64_t n_preemptions_ = 0;
  std::int64_t rows_left_ = 0;  // rows of logits beyond one for each running sequence
  StepTime step_time_;
  DraftCost draft_cost_;
};

}  // namespace still

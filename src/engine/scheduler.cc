#include "engine/scheduler.h"

#include <algorithm>

#include "base/check.h"

namespace still {

Scheduler::Scheduler(const SchedulerOptions& options, PrefixCache& cache)
    : options_(options), cache_(cache), step_time_(options.step) {
  STILL_CHECK(options.max_logit_rows >= options.max_seqs);
  STILL_CHECK(options.chunk_tokens >= options.max_seqs);
  running_.reserve(static_cast<std::size_t>(options.max_seqs));
  prefilling_.reserve(static_cast<std::size_t>(options.max_seqs));
  slots_.reserve(static_cast<std::size_t>(options.max_seqs));
  copies_.reserve(static_cast<std::size_t>(options.max_seqs));
  draft_tasks_.reserve(static_cast<std::size_t>(options.max_seqs));
}

void Scheduler::add(Sequence* sequence) {
  std::int32_t free_idx = -1;
  for (std::size_t i = 0; i < users_.size() && sequence->user_idx < 0; ++i) {
    if (users_[i].n_sequences == 0)
      free_idx = static_cast<std::int32_t>(i);
    else if (users_[i].name == sequence->request.user)
      sequence->user_idx = static_cast<std::int32_t>(i);
  }
  if (sequence->user_idx < 0) {
    if (free_idx < 0) {
      free_idx = static_cast<std::int32_t>(users_.size());
      users_.emplace_back();
    }
    sequence->user_idx = free_idx;
    // A newcomer comes last in this round, so that a stream of them starves nobody.
    users_[static_cast<std::size_t>(free_idx)] = {sequence->request.user, 0, turn_};
  }
  ++users_[static_cast<std::size_t>(sequence->user_idx)].n_sequences;
  waiting_.push_back(sequence);
}

void Scheduler::remove(Sequence* sequence) {
  release_blocks(*sequence);
  std::erase(sequence->is_running ? running_ : waiting_, sequence);
  sequence->is_running = false;
  --users_[static_cast<std::size_t>(sequence->user_idx)].n_sequences;
}

void Scheduler::preempt(Sequence* sequence) {
  STILL_CHECK(sequence->is_running);
  release_blocks(*sequence);
  drop_slot(*sequence);
  std::erase(running_, sequence);
  sequence->is_running = false;
  ++sequence->usage.n_preemptions;
  ++n_preemptions_;
  waiting_.push_back(sequence);
}

void Scheduler::release_blocks(Sequence& sequence) {
  const std::int64_t begin = sequence.n_registered * options_.block_size;
  if (options_.copies_tails && sequence.request.keep_prefix && sequence.n_computed > begin) {
    const std::span<const TokenId> computed(sequence.tokens.data(), static_cast<std::size_t>(sequence.n_computed));
    cache_.insert_tail(sequence.key, computed.subspan(static_cast<std::size_t>(begin)),
                       sequence.blocks[static_cast<std::size_t>(sequence.n_registered)]);
  }
  // Last first: of a cached beginning the end is forgotten before the start, without which it cannot be found.
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) cache_.release(*block);
  sequence.blocks.clear();
  sequence.draft.clear();
  sequence.draft_strengths.clear();
  sequence.n_drafter_computed = -1;
  sequence.n_computed = 0;
  sequence.n_registered = 0;
  sequence.key = {};
}

void Scheduler::drop_slot(const Sequence& sequence) {
  std::erase_if(slots_, [&](const StepSlot& slot) { return slot.sequence == &sequence; });
}

// Waiting ones: priority, then those that had begun, then the user whose turn is longest ago, then arrival.
bool Scheduler::goes_before(const Sequence& a, const Sequence& b) const {
  if (a.request.priority != b.request.priority) return a.request.priority > b.request.priority;
  if (a.has_token != b.has_token) return a.has_token;
  if (!a.has_token && a.user_idx != b.user_idx) {
    const auto turn = [&](const Sequence& s) { return users_[static_cast<std::size_t>(s.user_idx)].last_turn; };
    if (turn(a) != turn(b)) return turn(a) < turn(b);
  }
  return a.arrival < b.arrival;
}

bool Scheduler::is_younger(const Sequence& a, const Sequence& b) const {
  if (a.request.priority != b.request.priority) return a.request.priority < b.request.priority;
  return a.arrival > b.arrival;
}

Sequence* Scheduler::next_waiting() const {
  Sequence* best = nullptr;
  for (Sequence* sequence : waiting_)
    if (best == nullptr || goes_before(*sequence, *best)) best = sequence;
  return best;
}

std::int64_t Scheduler::queue_position(const Sequence& sequence) const {
  return std::count_if(waiting_.begin(), waiting_.end(),
                       [&](const Sequence* other) { return other != &sequence && goes_before(*other, sequence); });
}

Sequence* Scheduler::find_victim(const Sequence& for_whom) const {
  Sequence* youngest = nullptr;
  for (Sequence* sequence : running_)
    if (!sequence->blocks.empty() && is_younger(*sequence, for_whom) &&
        (youngest == nullptr || is_younger(*sequence, *youngest)))
      youngest = sequence;
  return youngest;
}

// What a drafter has in the block is of other tokens.
std::int32_t Scheduler::allocate_block() {
  const std::int32_t block = cache_.allocate();
  if (block >= 0 && drafter_ != nullptr) drafter_->forget_block(block);
  return block;
}

// Blocks for n_tokens tokens in all. False: not even by preempting the younger ones; what was allocated stays.
bool Scheduler::ensure_blocks(Sequence& sequence, std::int64_t n_tokens, bool may_preempt) {
  const std::int64_t n_blocks = blocks_for(n_tokens);
  while (static_cast<std::int64_t>(sequence.blocks.size()) < n_blocks) {
    const std::int32_t block = allocate_block();
    if (block >= 0) {
      sequence.blocks.push_back(block);
      continue;
    }
    Sequence* victim = may_preempt ? find_victim(sequence) : nullptr;
    if (victim == nullptr) return false;
    preempt(victim);
  }
  return true;
}

// Oldest first, so that it is the youngest that finds no block; preempting changes running_, so it is walked by hand.
void Scheduler::schedule_decodes() {
  std::sort(running_.begin(), running_.end(), [&](const Sequence* a, const Sequence* b) { return is_younger(*b, *a); });
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (!sequence.is_decoding() || sequence.will_end()) continue;
    if (ensure_blocks(sequence, sequence.length(), true)) slots_.push_back({&sequence, 1});
  }
  // One that found none waits with its blocks for an older one to finish; it is the youngest, so others go on.
}

void Scheduler::schedule_drafts() {
  const auto n_decode = static_cast<std::int64_t>(slots_.size());
  // A row is left for one that waits: drafts do not keep it from beginning.
  const std::int64_t max_total = std::min(rows_left_ - (waiting_.empty() ? 0 : 1), options_.chunk_tokens - n_decode);
  draft_tasks_.clear();
  if (max_total <= 0 || draft_cost_.wants_plain(n_decode)) return;
  for (const StepSlot& slot : slots_) {
    Sequence& sequence = *slot.sequence;
    const std::int64_t most =
        std::min({sequence.draft_record.max(), max_total, sequence.max_length - sequence.length() - 1});
    if (most <= 0) continue;
    // Drafters may write keys and values of the draft; where blocks are short, it is as long as those at hand hold.
    ensure_blocks(sequence, sequence.length() + most, false);
    const std::int64_t held = static_cast<std::int64_t>(sequence.blocks.size()) * options_.block_size;
    const std::int64_t room = std::min(most, held - sequence.length());
    if (room <= 0) continue;
    draft_tasks_.push_back({.tokens = &sequence.tokens,
                            .sampling = &sequence.request.sampling,
                            .seed = sequence.seed,
                            .n_prompt = sequence.n_prompt,
                            .blocks = sequence.blocks,
                            .record = &sequence.draft_record,
                            .room = room,
                            .n_computed = &sequence.n_drafter_computed,
                            .draft = &sequence.draft,
                            .strengths = &sequence.draft_strengths});
  }
  if (draft_tasks_.empty()) return;
  drafter_->propose({.tasks = draft_tasks_, .n_decode = n_decode, .max_total = max_total, .cost = &draft_cost_});
  draft_seconds_ = drafter_->seconds();
}

std::int64_t Scheduler::prefill_budget(std::int64_t n_decode) const {
  const auto n_running = static_cast<std::int64_t>(running_.size());
  const std::int64_t n_free = options_.max_seqs - n_running;
  const std::int64_t n_behind = n_running - n_decode + std::min(static_cast<std::int64_t>(waiting_.size()), n_free);
  return std::min(options_.chunk_tokens - n_decode, step_time_.affordable_prefill(n_decode, n_behind));
}

void Scheduler::observe_step(std::int64_t n_decode, std::int64_t n_drafted, std::int64_t n_prefill, double seconds) {
  // What the drafter took is not a step's, with or without prefill: it may be catching up with a prompt.
  seconds = std::max(0.0, seconds - draft_seconds_);
  if (n_prefill == 0) draft_cost_.observe(n_decode, n_drafted, seconds);
  step_time_.observe(n_decode, n_prefill, seconds);
}

// Takes the cached beginning, and begins only where the rest fits beside what running prefills still need.
bool Scheduler::admit(Sequence& sequence) {
  if (!sequence.request.prompt_logprobs) {
    // The last token is computed in any case: its logits are wanted.
    const std::int64_t n_known =
        options_.answers_by_token ? std::min(sequence.n_prompt, sequence.length() - 1) : sequence.length() - 1;
    sequence.key = cache_.match(sequence.tokens, n_known / options_.block_size, sequence.blocks);
  }
  std::int64_t promised = 0;
  for (const Sequence* other : running_)
    promised +=
        std::max<std::int64_t>(0, blocks_for(other->length()) - static_cast<std::int64_t>(other->blocks.size()));
  const auto n_matched = static_cast<std::int64_t>(sequence.blocks.size());
  if (!running_.empty() && blocks_for(sequence.length() + 1) - n_matched + promised > cache_.n_available()) {
    release_blocks(sequence);
    return false;
  }
  sequence.n_computed = n_matched * options_.block_size;
  sequence.n_registered = n_matched;
  if (options_.copies_tails && !sequence.request.prompt_logprobs) take_tail(sequence);
  std::erase(waiting_, &sequence);
  running_.push_back(&sequence);
  sequence.is_running = true;
  return true;
}

// The cached beginning goes on within the next block: a copy of it is the sequence's own.
void Scheduler::take_tail(Sequence& sequence) {
  const std::span<const TokenId> known(sequence.tokens.data(), static_cast<std::size_t>(sequence.length() - 1));
  const PrefixCache::Tail tail =
      cache_.match_tail(sequence.key, known.subspan(static_cast<std::size_t>(sequence.n_computed)));
  if (tail.block < 0) return;
  // The drafter's keys and values are not copied: it computes the tail again.
  const std::int32_t own = allocate_block();
  if (own < 0) {
    cache_.release(tail.block);
    return;
  }
  sequence.blocks.push_back(own);
  sequence.n_computed += tail.n_tokens;
  copies_.push_back({.from = tail.block, .to = own});
}

void Scheduler::copied() {
  for (const BlockCopy& copy : copies_) cache_.release(copy.from);
  copies_.clear();
}

void Scheduler::give_chunk(Sequence& sequence, std::int64_t& budget) {
  std::int64_t n = std::min(sequence.n_pending(), budget);
  if (sequence.request.prompt_logprobs && sequence.n_computed < sequence.n_prompt) n = std::min(n, rows_left_ + 1);
  if (options_.answers_by_token) n = std::min(n, std::max<std::int64_t>(1, sequence.n_prompt - sequence.n_computed));
  if (n <= 0) return;
  if (!ensure_blocks(sequence, sequence.n_computed + n, true)) {
    // As many as the blocks at hand hold.
    n = std::min(n, static_cast<std::int64_t>(sequence.blocks.size()) * options_.block_size - sequence.n_computed);
    if (n <= 0) return;
  }
  if (sequence.request.prompt_logprobs) rows_left_ -= n - 1;
  budget -= n;
  slots_.push_back({&sequence, n});
  take_turn(sequence);
}

void Scheduler::schedule_prefills(std::int64_t budget, std::vector<Sequence*>& admitted) {
  prefilling_.clear();
  for (Sequence* sequence : running_)
    if (!sequence->is_decoding()) prefilling_.push_back(sequence);
  while (budget > 0) {
    Sequence* best = nullptr;
    for (Sequence* sequence : prefilling_)
      if (sequence->is_running && (best == nullptr || goes_before(*sequence, *best))) best = sequence;
    // A waiting one may be due before one that is being computed: another user's, or of higher priority.
    if (static_cast<std::int64_t>(running_.size()) < options_.max_seqs && rows_left_ > 0) {
      Sequence* next = next_waiting();
      if (next != nullptr && (best == nullptr || goes_before(*next, *best)) && admit(*next)) {
        --rows_left_;
        admitted.push_back(next);
        best = next;
        prefilling_.push_back(next);
      }
    }
    if (best == nullptr) return;
    give_chunk(*best, budget);
    std::erase(prefilling_, best);
  }
}

std::span<const StepSlot> Scheduler::schedule(Drafter* drafter, std::vector<Sequence*>& admitted) {
  slots_.clear();
  admitted.clear();
  drafter_ = drafter;
  draft_seconds_ = 0;
  for (Sequence* sequence : running_) {
    sequence->draft.clear();
    sequence->draft_strengths.clear();
  }
  rows_left_ = options_.max_logit_rows - static_cast<std::int64_t>(running_.size());
  schedule_decodes();
  const auto n_decode = static_cast<std::int64_t>(slots_.size());
  if (drafter != nullptr && n_decode > 0) schedule_drafts();
  std::int64_t n_drafted = 0;
  for (const StepSlot& slot : slots_) n_drafted += static_cast<std::int64_t>(slot.sequence->draft.size());
  rows_left_ -= n_drafted;
  schedule_prefills(std::min(prefill_budget(n_decode), options_.chunk_tokens - n_decode - n_drafted), admitted);
  return slots_;
}

void Scheduler::computed(Sequence* sequence, std::int64_t n_tokens) {
  sequence->n_computed += n_tokens;
  if (!sequence->request.keep_prefix) return;
  const std::int64_t block_size = options_.block_size;
  const std::int64_t n_shared =
      options_.answers_by_token ? std::min(sequence->n_computed, sequence->n_prompt) : sequence->n_computed;
  while ((sequence->n_registered + 1) * block_size <= n_shared) {
    const auto begin = static_cast<std::size_t>(sequence->n_registered * block_size);
    const std::span<const TokenId> block_tokens(sequence->tokens.data() + begin, static_cast<std::size_t>(block_size));
    sequence->key =
        cache_.insert(sequence->key, block_tokens, sequence->blocks[static_cast<std::size_t>(sequence->n_registered)]);
    ++sequence->n_registered;
  }
}

}  // namespace still

#include "engine/model_runner.h"

#include <algorithm>

#include "base/check.h"

namespace still {

ModelRunner::ModelRunner(ForwardPass& forward, const RunnerLimits& limits) : forward_(forward), limits_(limits) {
  ids_.reserve(static_cast<std::size_t>(limits.max_tokens));
  positions_.reserve(static_cast<std::size_t>(limits.max_tokens));
  q_start_.reserve(static_cast<std::size_t>(limits.max_seqs + 1));
  kv_len_.reserve(static_cast<std::size_t>(limits.max_seqs));
  block_tables_.reserve(static_cast<std::size_t>(limits.max_seqs * limits.max_blocks));
  logit_rows_.reserve(static_cast<std::size_t>(limits.max_logit_rows));
  first_row_.reserve(static_cast<std::size_t>(limits.max_seqs));
}

std::int64_t ModelRunner::n_prompt_rows(const StepSlot& slot, std::int64_t* first) {
  const Sequence& sequence = *slot.sequence;
  if (!sequence.request.prompt_logprobs) return 0;
  // Row i tells about token i + 1.
  const std::int64_t begin = std::max(sequence.n_computed, sequence.n_scored - 1);
  const std::int64_t end = std::min(sequence.n_computed + slot.n_tokens, sequence.n_prompt - 1);
  if (first != nullptr) *first = begin;
  return std::max<std::int64_t>(0, end - begin);
}

void ModelRunner::prepare(std::span<const StepSlot> slots) {
  ids_.clear();
  positions_.clear();
  q_start_.assign(1, 0);
  kv_len_.clear();
  block_tables_.clear();
  logit_rows_.clear();
  first_row_.clear();
  n_answer_seqs_ = 0;
  for (const StepSlot& slot : slots) {
    const Sequence& sequence = *slot.sequence;
    if (sequence.is_answering()) ++n_answer_seqs_;
    const auto first_token = static_cast<std::int32_t>(ids_.size());
    const std::int64_t end = sequence.n_computed + slot.n_tokens;
    for (std::int64_t pos = sequence.n_computed; pos < end; ++pos)
      ids_.push_back(sequence.tokens[static_cast<std::size_t>(pos)]);
    ids_.insert(ids_.end(), sequence.draft.begin(), sequence.draft.end());
    const std::int64_t kv_len = end + static_cast<std::int64_t>(sequence.draft.size());
    for (std::int64_t pos = sequence.n_computed; pos < kv_len; ++pos)
      positions_.push_back(static_cast<std::int32_t>(pos));
    q_start_.push_back(static_cast<std::int32_t>(ids_.size()));
    kv_len_.push_back(static_cast<std::int32_t>(kv_len));
    block_tables_.insert(block_tables_.end(), sequence.blocks.begin(), sequence.blocks.end());
    block_tables_.resize(kv_len_.size() * static_cast<std::size_t>(limits_.max_blocks), 0);

    first_row_.push_back(static_cast<std::int64_t>(logit_rows_.size()));
    std::int64_t first = 0;
    const std::int64_t n_prompt_rows = ModelRunner::n_prompt_rows(slot, &first);
    for (std::int64_t i = 0; i < n_prompt_rows; ++i)
      logit_rows_.push_back(first_token + static_cast<std::int32_t>(first - sequence.n_computed + i));
    if (!slot.is_complete()) continue;
    const auto last = first_token + static_cast<std::int32_t>(slot.n_tokens) - 1;
    for (std::int32_t i = 0; i <= static_cast<std::int32_t>(sequence.draft.size()); ++i)
      logit_rows_.push_back(last + i);
  }
  STILL_CHECK(static_cast<std::int64_t>(ids_.size()) <= limits_.max_tokens);
  STILL_CHECK(static_cast<std::int64_t>(logit_rows_.size()) <= limits_.max_logit_rows);
}

RaggedBatch ModelRunner::batch() const {
  return {.ids = ids_,
          .positions = positions_,
          .q_start = q_start_,
          .kv_len = kv_len_,
          .block_tables = block_tables_,
          .max_blocks = limits_.max_blocks,
          .logit_rows = logit_rows_,
          .n_answer_seqs = limits_.answers_come_first ? n_answer_seqs_ : -1};
}

Status ModelRunner::run(const std::atomic<bool>* is_abandoned, const BestOnly& best) {
  RaggedBatch wanted = batch();
  wanted.is_abandoned = is_abandoned;
  wanted.best = best;
  STILL_TRY(logits_, forward_.run(wanted));
  return ok();
}

Status ModelRunner::launch(std::span<const CudaSampleRow> draws) {
  return forward_.launch(batch(), draws);
}

std::span<float> ModelRunner::logits(std::size_t slot_idx, std::int64_t row) {
  if (forward_.is_on_device()) {
    const Result<float*> fetched = forward_.fetch_row(row_of(slot_idx, row));
    if (!fetched) return {};
    return {*fetched, static_cast<std::size_t>(limits_.vocab_size)};
  }
  return {logits_ + (first_row_[slot_idx] + row) * limits_.vocab_size, static_cast<std::size_t>(limits_.vocab_size)};
}

}  // namespace still

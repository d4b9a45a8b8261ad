#include "engine/thinking.h"

namespace still {

ThinkingState::ThinkingState(const ThinkingParams& params, const Vocab& vocab) {
  is_tracked_ = vocab.has_thinking() && params.mode != ThinkingMode::kUntracked;
  if (!is_tracked_) return;
  open_ = vocab.think_open;
  close_ = vocab.think_close;
  is_inside_ = params.starts_in_thinking;
  budget_ = params.budget;
  is_forbidden_ = params.mode == ThinkingMode::kForbidden;
  is_stopping_ = is_forbidden_ && is_inside_;
  must_open_ = params.mode == ThinkingMode::kRequired && !is_inside_;
  opening_ = vocab.open_block;
  // A forbidden block has nothing to excuse.
  if (!is_forbidden_) closing_ = params.budget_message;
  closing_.insert(closing_.end(), vocab.close_block.begin(), vocab.close_block.end());
}

std::span<const TokenId> ThinkingState::forced_tokens() const {
  if (must_open_) return opening_;
  if (is_inside_ && is_closing()) return closing_;
  return {};
}

bool ThinkingState::accept(TokenId id) {
  ++n_answer_;
  if (!is_tracked_) return false;
  if (id == open_ && !is_finished_) {
    is_inside_ = true;
    must_open_ = false;
    return true;
  }
  if (id == close_) {
    is_finished_ = is_finished_ || is_inside_;
    is_inside_ = false;
    return true;
  }
  // The message that closes a block is the engine's, not the model's thinking: a budget of N counts at most N.
  if (is_inside_ && !is_closing()) ++n_tokens_;
  return id == open_;
}

void ThinkingState::stop() {
  if (!is_tracked_) return;
  is_stopping_ = true;
  must_open_ = false;
  is_forbidden_ = is_forbidden_ || !is_inside_;
}

bool ThinkingState::may_open() const {
  return is_tracked_ && !is_inside_ && !is_finished_ && !is_forbidden_ && n_answer_ == 0;
}

TokenId ThinkingState::banned_tag() const {
  // One block an answer: a second one would escape the budget.
  return is_tracked_ && (is_forbidden_ || is_finished_ || is_inside_ || budget_ == 0) ? open_ : -1;
}

}  // namespace still

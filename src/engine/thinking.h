// ThinkingState: where a sequence stands with its <think> block, by token id: literal text that looks like a tag is
// other tokens. Counts the tokens inside, and says which tokens must come now so that a block is required, limited or
// closed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/event.h"
#include "engine/request.h"
#include "engine/vocab.h"

namespace still {

class ThinkingState {
 public:
  ThinkingState() = default;
  ThinkingState(const ThinkingParams& params, const Vocab& vocab);

  // What must follow instead of sampled tokens, in order; empty: sample. Ask before each sampled token.
  std::span<const TokenId> forced_tokens() const;
  // A token was chosen or forced. True: it is a tag, and no text.
  bool accept(TokenId id);
  // Steering: the block is closed at the next token, or never opened.
  void stop();

  bool is_inside() const { return is_inside_; }
  bool is_finished() const { return is_finished_; }  // a block was closed
  // The tokens may still turn into reasoning: a constraint on the answer must let the opening tag through.
  bool may_open() const;
  Channel channel() const { return is_inside_ ? Channel::kReasoning : Channel::kContent; }
  std::int64_t n_tokens() const { return n_tokens_; }  // the model's own inside the block: no tags, no closing message
  TokenId banned_tag() const;                          // -1: none
  TokenId open_tag() const { return open_; }

 private:
  bool is_closing() const { return is_stopping_ || (budget_ >= 0 && n_tokens_ >= budget_); }

  bool is_tracked_ = false, is_inside_ = false, is_finished_ = false, is_forbidden_ = false, is_stopping_ = false;
  bool must_open_ = false;
  TokenId open_ = -1, close_ = -1;
  std::int64_t budget_ = -1, n_tokens_ = 0, n_answer_ = 0;
  std::vector<TokenId> opening_, closing_;  // forced sequences
};

}  // namespace still

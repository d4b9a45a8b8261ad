// TokenConstraint: what text a request may produce, as a bitset of the tokens allowed next. Grammars, JSON schemas and
// regular expressions are behind this interface; the engine knows none of them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "tensor/tensor.h"

namespace still {

// A bitset of token ids: id is allowed where bit id % 32 of word id / 32 is set. [ceil(vocab_size / 32)]
using TokenMask = std::span<std::uint32_t>;
constexpr std::int64_t token_mask_words(std::int64_t vocab_size) {
  return (vocab_size + 31) / 32;
}

// One object per sequence: it holds the state after the tokens accepted so far. Called by one of the engine's threads
// at a time; it must not block, and a slow fill_mask() delays every request. Tokens are never taken back: drafts are
// accepted one by one as they prove right, and a preempted sequence keeps its state.
class TokenConstraint {
 public:
  virtual ~TokenConstraint() = default;
  // Sets the bits of the tokens allowed next and clears the others; an end token is allowed where the text may end.
  // A mask that allows nothing ends the request with an error.
  virtual void fill_mask(TokenMask mask) = 0;
  // `id` was chosen, from the last mask. False: it does not fit (the request ends with an error).
  virtual bool accept(TokenId id) = 0;
  // Nothing may follow: the request ends with reason kStop, without an end token being sampled.
  virtual bool is_complete() const = 0;
  // Why it allows nothing any more, where that is its own failure; empty: the text leaves nothing.
  virtual std::string_view problem() const { return {}; }
};

}  // namespace still

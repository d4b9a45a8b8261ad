// Drafter: proposes the next tokens of a sequence; the model verifies them all in one step. A proposal is never
// trusted: a token is accepted where the sampler, with its position's own random number, chooses just that token. With
// a draft that is one token (a one-hot q) this is the exact rejection rule of Leviathan et al. 2022, arXiv:2211.17192:
// the text is the same with and without, at every temperature.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "tensor/tensor.h"

namespace still {

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Writes at most draft.size() tokens that may follow `tokens` (the whole sequence so far) and returns how many.
  virtual std::int64_t propose(std::span<const TokenId> tokens, std::span<TokenId> draft) = 0;
};

// Prompt lookup: what followed the latest earlier occurrence of the sequence's last `max_ngram` tokens, or fewer down
// to `min_ngram`. Costs one scan of the sequence.
std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram = 2, std::int64_t max_ngram = 4);

// How many tokens are worth drafting for one sequence: grows when all were accepted, shrinks when few were, and tries
// again after a pause where nothing ever was.
class DraftLength {
 public:
  explicit DraftLength(std::int64_t max_length = 0) : max_(max_length), length_(max_length) {}
  std::int64_t next();  // call once per decode step
  void update(std::int64_t n_drafted, std::int64_t n_accepted);

 private:
  std::int64_t max_ = 0, length_ = 0;
  std::int64_t pause_ = 0, next_pause_ = 8;
};

}  // namespace still

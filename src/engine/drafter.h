// Drafter: proposes the next tokens of a sequence; the model verifies them all in one step. A proposal is never
// trusted: a token is accepted where the sampler, with its position's own random number, chooses just that token. With
// a draft that is one token (a one-hot q) this is the exact rejection rule of Leviathan et al. 2022, arXiv:2211.17192:
// the text is the same with and without, at every temperature.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "tensor/tensor.h"

namespace still {

struct Proposal {
  std::int64_t n_tokens = 0;
  int strength = 0;  // below kDraftStrengths; proposals of one strength come true about equally often
};
inline constexpr int kDraftStrengths = 4;

class Drafter {
 public:
  virtual ~Drafter() = default;
  // Writes at most draft.size() tokens that may follow `tokens` (the whole sequence so far).
  virtual Proposal propose(std::span<const TokenId> tokens, std::span<TokenId> draft) = 0;
};

// Prompt lookup: what followed the latest earlier occurrence of the sequence's last `max_ngram` tokens, or fewer down
// to `min_ngram`; the longer the match, the stronger. Costs one scan of the sequence.
std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram = 2, std::int64_t max_ngram = 8);

// What drafted tokens cost on this machine: the time of a step as its rows grow, as moving means. Only ratios matter.
class DraftCost {
 public:
  // A step without prefill: `n_drafted` rows beside one row of each of `n_decode` sequences.
  void observe(std::int64_t n_decode, std::int64_t n_drafted, double seconds);
  double relative() const { return relative_; }  // of one more row, in steps without drafts

 private:
  std::int64_t n_decode_ = 0;  // what plain_ is a mean of
  double plain_ = 0;           // seconds of a step without drafts; 0: not seen yet
  double relative_ = 0.1;
};

// How many tokens are worth drafting for one sequence. With p the share of such proposals' tokens that came true and c
// the cost of a row, L drafted tokens give (1 - p^(L+1)) / (1 - p) tokens for 1 + c L (Leviathan et al. 2022, equation
// 1 and theorem 3.8); the best L is taken, and where none pays, one is tried again after a pause that doubles.
class DraftLength {
 public:
  explicit DraftLength(std::int64_t max_length = 0) : max_(max_length) {}
  std::int64_t max() const { return max_; }
  // Call once per decode step that has a proposal.
  std::int64_t choose(int strength, double cost);
  void update(int strength, std::int64_t n_drafted, std::int64_t n_accepted);

 private:
  struct Record {
    double hits = 1.4, trials = 2;  // of single tokens, the newest ones count most; the start is a hopeful guess
    std::int64_t pause = 0, next_pause = 4;
  };
  std::int64_t max_ = 0;
  std::array<Record, kDraftStrengths> records_;
};

}  // namespace still

// Drafter: proposes the next tokens of sequences; the model verifies them all in one step. A proposal is never trusted:
// a token is accepted where the sampler, with its position's own random number, chooses just that token. With a draft
// that is one token (a one-hot q) this is the exact rejection rule of Leviathan et al. 2022, arXiv:2211.17192: the text
// is the same with and without, at every temperature.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/request.h"
#include "tensor/tensor.h"

namespace still {

// Kinds of proposals: those of one strength come true about equally often. The first are of prompt lookup, by the
// length of the match; the others of a draft model, by the probability that it gave the token.
inline constexpr int kLookupStrengths = 5, kModelStrengths = 6;
inline constexpr int kDraftStrengths = kLookupStrengths + kModelStrengths;

// What steps of this engine take by their rows, as moving means; of them, what drafted rows cost.
class DraftCost {
 public:
  // A step without prefill: one row of each of n_decode sequences, and n_drafted rows more.
  void observe(std::int64_t n_decode, std::int64_t n_drafted, double seconds);
  // What n_more drafted rows of one of n_decode sequences cost beside the n_drafted that its neighbours have, in that
  // sequence's share of a step without drafts: worth it where as many tokens more are expected.
  double of_rows(std::int64_t n_decode, std::int64_t n_drafted, std::int64_t n_more) const;
  // The same of `seconds` spent for n_seqs of the sequences.
  double of_seconds(std::int64_t n_decode, std::int64_t n_seqs, double seconds) const;
  // A step without drafts is due, to know what it takes.
  bool wants_plain(std::int64_t n_decode) const;

 private:
  static constexpr std::int64_t kMaxRows = 64;  // beyond, by the slope of the last
  double step_seconds(double n_rows, std::int64_t n_decode) const;
  struct Mean {
    double seconds = 0;         // 0: never seen
    std::int64_t n_drafts = 0;  // steps with drafts of so many sequences since
  };
  std::array<Mean, kMaxRows + 1> by_rows_;
};

// How often a sequence's drafts came true, and so how many tokens are worth drafting. With p the share of such
// proposals' tokens that came true and c the cost of a row, L drafted tokens give (1 - p^(L+1)) / (1 - p) tokens for
// 1 + c L (Leviathan et al. 2022, equation 1 and theorem 3.8); the best L is taken, and where none pays, one is tried
// again after a pause that doubles.
class DraftRecord {
 public:
  explicit DraftRecord(std::int64_t max_length = 0);
  std::int64_t max() const { return max_; }
  // cost(L): of L drafted tokens, as DraftCost has it. Call once per decode step that has a proposal.
  template <class Cost>
  std::int64_t choose(int strength, Cost&& cost) {
    Record& record = records_[static_cast<std::size_t>(strength)];
    double expected = 1, power = 1, best_rate = kWorthIt;
    std::int64_t best = 0;
    for (std::int64_t length = 1; length <= max_; ++length) {
      power *= record.share();
      expected += power;
      const double rate = expected / (1 + cost(length));
      if (rate <= best_rate) continue;
      best_rate = rate;
      best = length;
    }
    return best > 0 || max_ == 0 ? best : try_again(record);
  }
  // For a drafter whose tokens cost something before their strength is known: whether the next is worth `cost`, by how
  // often its tokens came true. Call once per decode step.
  bool begins(double cost);
  double share(int strength) const { return records_[static_cast<std::size_t>(strength)].share(); }
  double model_share() const { return of_model_.share(); }
  // Of the tokens of these strengths, the first n_accepted came true.
  void update(std::span<const std::uint8_t> strengths, std::int64_t n_accepted);

  static constexpr double kWorthIt = 1.03;  // sampling the rows and looking for drafts is not free

 private:
  struct Record {
    double hits = 1.4, trials = 2;  // of single tokens, the newest ones count most; the start is a hopeful guess
    std::int64_t pause = 0, next_pause = 4;
    double share() const { return hits / trials < 0.99 ? hits / trials : 0.99; }
  };
  std::int64_t try_again(Record& record) const;  // tokens to draft although it did not pay: mostly 0
  static void add(Record& record, double memory, std::int64_t n_hits, std::int64_t n_misses);

  std::int64_t max_ = 0;
  std::array<Record, kDraftStrengths> records_;
  Record of_model_;
};

// What one sequence brings to a drafter and gets from it.
struct DraftTask {
  std::vector<TokenId>* tokens = nullptr;  // the sequence so far; may grow while drafting, but is then cut again
  const SamplingParams* sampling = nullptr;
  std::uint64_t seed = 0;
  std::int64_t n_prompt = 0;
  std::span<const std::int32_t> blocks = {};  // room for the keys and values of tokens and draft
  DraftRecord* record = nullptr;
  std::int64_t room = 0;  // most tokens of the draft
  // A drafter's own keys and values of the sequence: tokens computed; -1: look which blocks are known.
  std::int64_t* n_computed = nullptr;
  // The proposal, empty before.
  std::vector<TokenId>* draft = nullptr;
  std::vector<std::uint8_t>* strengths = nullptr;
};

struct DraftBatch {
  std::span<DraftTask> tasks = {};
  std::int64_t n_decode = 0;   // sequences that decode in this step; more than tasks where some have no room
  std::int64_t max_total = 0;  // drafted tokens of all together
  const DraftCost* cost = nullptr;
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  virtual void propose(const DraftBatch& batch) = 0;
  // The block was given to another sequence: what it held is gone.
  virtual void forget_block(std::int32_t) {}
  // Seconds that the last propose() computed; the step's own time is counted without them.
  virtual double seconds() const { return 0; }
};

// Prompt lookup: what followed the latest earlier occurrence of the sequence's last `max_ngram` tokens, or fewer down
// to `min_ngram`; the longer the match, the stronger. Costs one scan of the sequence.
std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram = 1, std::int64_t max_ngram = 8);

// Asks the first; what it proposes nothing for, it asks the second.
std::unique_ptr<Drafter> make_chained_drafter(std::unique_ptr<Drafter> first, std::unique_ptr<Drafter> second);

}  // namespace still

#include "engine/drafter.h"

#include <algorithm>

namespace still {

namespace {

class LookupDrafter : public Drafter {
 public:
  LookupDrafter(std::int64_t min_ngram, std::int64_t max_ngram) : min_ngram_(min_ngram), max_ngram_(max_ngram) {}

  // The latest occurrence of the longest ngram: one scan backwards, comparing suffixes.
  Proposal propose(std::span<const TokenId> tokens, std::span<TokenId> draft) override {
    const auto n = static_cast<std::int64_t>(tokens.size());
    if (n < min_ngram_ + 1 || draft.empty()) return {};
    const auto at = [&](std::int64_t pos) { return tokens[static_cast<std::size_t>(pos)]; };
    std::int64_t best_length = min_ngram_ - 1, best_end = -1;
    for (std::int64_t end = n - 2; end >= 0 && best_length < max_ngram_; --end) {
      if (at(end) != at(n - 1)) continue;
      std::int64_t length = 1;
      while (length < max_ngram_ && end - length >= 0 && at(end - length) == at(n - 1 - length)) ++length;
      if (length <= best_length) continue;
      best_length = length;
      best_end = end;
    }
    if (best_end < 0) return {};
    // Where the continuation reaches the sequence's own end, it goes on with itself: a loop repeats.
    const std::int64_t period = n - 1 - best_end;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(draft.size()); ++i)
      draft[static_cast<std::size_t>(i)] = at(best_end + 1 + i % period);
    // Lengths 1-2, 3-4, 5-7 and 8 or more.
    const int strength = best_length <= 2 ? 0 : best_length <= 4 ? 1 : best_length <= 7 ? 2 : 3;
    return {.n_tokens = static_cast<std::int64_t>(draft.size()), .strength = strength};
  }

 private:
  std::int64_t min_ngram_, max_ngram_;
};

}  // namespace

std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram, std::int64_t max_ngram) {
  return std::make_unique<LookupDrafter>(min_ngram, max_ngram);
}

void DraftCost::observe(std::int64_t n_decode, std::int64_t n_drafted, double seconds) {
  constexpr double kNewest = 0.1, kMin = 0.005, kMax = 2;
  constexpr double kMeasurable = 2e-4;  // seconds; below, the scheduler of the system is what is timed
  if (n_decode < 1 || seconds < kMeasurable) return;
  if (n_drafted == 0) {
    plain_ = n_decode == n_decode_ && plain_ > 0 ? plain_ + kNewest * (seconds - plain_) : seconds;
    n_decode_ = n_decode;
  } else if (n_decode == n_decode_ && plain_ > 0) {
    const double sample = (seconds / plain_ - 1) / static_cast<double>(n_drafted);
    relative_ += kNewest * (std::clamp(sample, kMin, kMax) - relative_);
  }
}

std::int64_t DraftLength::choose(int strength, double cost) {
  Record& record = records_[static_cast<std::size_t>(strength)];
  const double p = std::min(record.hits / record.trials, 0.99);
  constexpr double kWorthIt = 1.03;  // sampling the rows and looking for drafts is not free
  double expected = 1, power = 1, best_rate = kWorthIt;
  std::int64_t best = 0;
  for (std::int64_t length = 1; length <= max_; ++length) {
    power *= p;
    expected += power;
    const double rate = expected / (1 + cost * static_cast<double>(length));
    if (rate <= best_rate) continue;
    best_rate = rate;
    best = length;
  }
  if (best > 0 || max_ == 0) return best;
  if (record.pause > 0) {
    --record.pause;
    return 0;
  }
  record.pause = record.next_pause;
  record.next_pause = std::min<std::int64_t>(128, record.next_pause * 2);
  return std::min<std::int64_t>(2, max_);
}

void DraftLength::update(int strength, std::int64_t n_drafted, std::int64_t n_accepted) {
  if (n_drafted == 0) return;
  Record& record = records_[static_cast<std::size_t>(strength)];
  constexpr double kMemory = 0.85;
  record.hits = kMemory * record.hits + static_cast<double>(n_accepted);
  record.trials = kMemory * record.trials + static_cast<double>(n_accepted + (n_accepted < n_drafted ? 1 : 0));
  if (n_accepted > 0) record.next_pause = 4;
}

}  // namespace still

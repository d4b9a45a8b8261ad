#include "engine/drafter.h"

#include <algorithm>

namespace still {

namespace {

class LookupDrafter : public Drafter {
 public:
  LookupDrafter(std::int64_t min_ngram, std::int64_t max_ngram) : min_ngram_(min_ngram), max_ngram_(max_ngram) {}

  // The latest occurrence of the longest ngram: one scan backwards, comparing suffixes.
  std::int64_t propose(std::span<const TokenId> tokens, std::span<TokenId> draft) override {
    const auto n = static_cast<std::int64_t>(tokens.size());
    if (n < min_ngram_ + 1 || draft.empty()) return 0;
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
    if (best_end < 0) return 0;
    // Where the continuation reaches the sequence's own end, it goes on with itself: a loop repeats.
    const std::int64_t period = n - 1 - best_end;
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(draft.size()); ++i)
      draft[static_cast<std::size_t>(i)] = at(best_end + 1 + i % period);
    return static_cast<std::int64_t>(draft.size());
  }

 private:
  std::int64_t min_ngram_, max_ngram_;
};

}  // namespace

std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram, std::int64_t max_ngram) {
  return std::make_unique<LookupDrafter>(min_ngram, max_ngram);
}

std::int64_t DraftLength::next() {
  if (pause_ > 0) {
    --pause_;
    return 0;
  }
  return length_;
}

void DraftLength::update(std::int64_t n_drafted, std::int64_t n_accepted) {
  if (n_drafted == 0) return;
  if (n_accepted == n_drafted) {
    length_ = std::min(max_, length_ * 2);
    next_pause_ = 8;
  } else if (n_accepted > 0) {
    length_ = std::max<std::int64_t>(1, n_accepted + 1);
    next_pause_ = 8;
  } else {
    length_ = std::max<std::int64_t>(1, length_ / 2);
    if (length_ > 1) return;
    pause_ = next_pause_;
    next_pause_ = std::min<std::int64_t>(256, next_pause_ * 2);
  }
  length_ = std::min(length_, max_);
}

}  // namespace still

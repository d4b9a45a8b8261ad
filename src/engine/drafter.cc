#include "engine/drafter.h"

#include <algorithm>

#include "base/check.h"

namespace still {

namespace {

class LookupDrafter : public Drafter {
 public:
  LookupDrafter(std::int64_t min_ngram, std::int64_t max_ngram) : min_ngram_(min_ngram), max_ngram_(max_ngram) {}

  void propose(const DraftBatch& batch) override {
    std::int64_t n_drafted = 0;
    for (const DraftTask& task : batch.tasks) {
      const std::int64_t room = std::min(task.room, batch.max_total - n_drafted);
      const Match match = find(*task.tokens);
      if (room <= 0 || match.end < 0) continue;
      const std::int64_t n = std::min(room, task.record->choose(match.strength(), [&](std::int64_t length) {
        return batch.cost->of_rows(batch.n_decode, n_drafted, length);
      }));
      // Where the continuation reaches the sequence's own end, it goes on with itself: a loop repeats.
      const auto period = static_cast<std::int64_t>(task.tokens->size()) - 1 - match.end;
      for (std::int64_t i = 0; i < n; ++i) {
        task.draft->push_back((*task.tokens)[static_cast<std::size_t>(match.end + 1 + i % period)]);
        task.strengths->push_back(static_cast<std::uint8_t>(match.strength()));
      }
      n_drafted += n;
    }
  }

 private:
  struct Match {
    std::int64_t end = -1;  // of the earlier occurrence, its last token; -1: none
    std::int64_t length = 0;
    // Lengths 1, 2, 3-4, 5-7 and 8 or more.
    int strength() const { return length <= 1 ? 0 : length <= 2 ? 1 : length <= 4 ? 2 : length <= 7 ? 3 : 4; }
  };

  // The latest occurrence of the longest ngram: one scan backwards, comparing suffixes.
  Match find(std::span<const TokenId> tokens) const {
    const auto n = static_cast<std::int64_t>(tokens.size());
    Match best{.length = min_ngram_ - 1};
    const auto at = [&](std::int64_t pos) { return tokens[static_cast<std::size_t>(pos)]; };
    for (std::int64_t end = n - 2; end >= 0 && best.length < max_ngram_; --end) {
      if (at(end) != at(n - 1)) continue;
      std::int64_t length = 1;
      while (length < max_ngram_ && end - length >= 0 && at(end - length) == at(n - 1 - length)) ++length;
      if (length > best.length) best = {.end = end, .length = length};
    }
    return best;
  }

  std::int64_t min_ngram_, max_ngram_;
};

class ChainedDrafter : public Drafter {
 public:
  ChainedDrafter(std::unique_ptr<Drafter> first, std::unique_ptr<Drafter> second)
      : first_(std::move(first)), second_(std::move(second)) {}

  void propose(const DraftBatch& batch) override {
    first_->propose(batch);
    // Those without a proposal to the front; the order of tasks means nothing.
    const auto rest = std::partition(batch.tasks.begin(), batch.tasks.end(),
                                     [](const DraftTask& task) { return task.draft->empty(); });
    DraftBatch left = batch;
    left.tasks = batch.tasks.first(static_cast<std::size_t>(rest - batch.tasks.begin()));
    for (auto task = rest; task != batch.tasks.end(); ++task)
      left.max_total -= static_cast<std::int64_t>(task->draft->size());
    second_->propose(left);
  }
  void forget_block(std::int32_t block) override {
    first_->forget_block(block);
    second_->forget_block(block);
  }
  double seconds() const override { return first_->seconds() + second_->seconds(); }

 private:
  std::unique_ptr<Drafter> first_, second_;
};

}  // namespace

std::unique_ptr<Drafter> make_lookup_drafter(std::int64_t min_ngram, std::int64_t max_ngram) {
  return std::make_unique<LookupDrafter>(min_ngram, max_ngram);
}

std::unique_ptr<Drafter> make_chained_drafter(std::unique_ptr<Drafter> first, std::unique_ptr<Drafter> second) {
  return std::make_unique<ChainedDrafter>(std::move(first), std::move(second));
}

void DraftCost::observe(std::int64_t n_decode, std::int64_t n_drafted, double seconds) {
  constexpr double kNewest = 0.1;
  constexpr double kMeasurable = 2e-4;  // seconds; below, the scheduler of the system is what is timed
  if (n_decode < 1 || seconds < kMeasurable) return;
  if (n_decode <= kMaxRows) {
    Mean& plain = by_rows_[static_cast<std::size_t>(n_decode)];
    plain.n_drafts = n_drafted > 0 ? plain.n_drafts + 1 : 0;
  }
  if (n_decode + n_drafted > kMaxRows) return;
  double& mean = by_rows_[static_cast<std::size_t>(n_decode + n_drafted)].seconds;
  // One step that was disturbed must not count for many.
  mean = mean == 0 ? seconds : mean + kNewest * (std::min(seconds, 3 * mean) - mean);
}

// Between two numbers of rows that were seen, in proportion; above the last, a guess.
double DraftCost::step_seconds(double n_rows, std::int64_t n_decode) const {
  constexpr double kGuess = 0.1;  // of a plain step, each row
  const double plain = by_rows_[static_cast<std::size_t>(n_decode)].seconds;
  double below = static_cast<double>(n_decode), below_seconds = plain;
  for (std::int64_t n = n_decode + 1; n <= kMaxRows; ++n) {
    // More rows are never taken to be faster.
    const double here = std::max(below_seconds, by_rows_[static_cast<std::size_t>(n)].seconds);
    if (by_rows_[static_cast<std::size_t>(n)].seconds == 0) continue;
    const auto at = static_cast<double>(n);
    if (at >= n_rows) return below_seconds + (here - below_seconds) * (n_rows - below) / (at - below);
    below = at;
    below_seconds = here;
  }
  return below_seconds + kGuess * plain * (n_rows - below);
}

double DraftCost::of_rows(std::int64_t n_decode, std::int64_t n_drafted, std::int64_t n_more) const {
  constexpr double kUnknown = 0.1;
  if (n_decode < 1 || n_decode > kMaxRows || by_rows_[static_cast<std::size_t>(n_decode)].seconds == 0)
    return kUnknown * static_cast<double>(n_more);
  const auto before = static_cast<double>(n_decode + n_drafted), after = before + static_cast<double>(n_more);
  const double share = (step_seconds(after, n_decode) - step_seconds(before, n_decode)) /
                       by_rows_[static_cast<std::size_t>(n_decode)].seconds;
  return std::max(share, 0.005 * static_cast<double>(n_more)) * static_cast<double>(n_decode);
}

double DraftCost::of_seconds(std::int64_t n_decode, std::int64_t n_seqs, double seconds) const {
  STILL_DCHECK(n_seqs > 0);
  const double plain = n_decode <= kMaxRows ? by_rows_[static_cast<std::size_t>(n_decode)].seconds : 0;
  constexpr double kUnknown = 0.3;
  return (plain == 0 ? kUnknown : seconds / plain) * static_cast<double>(n_decode) / static_cast<double>(n_seqs);
}

bool DraftCost::wants_plain(std::int64_t n_decode) const {
  constexpr std::int64_t kEvery = 64, kFirst = 2;
  if (n_decode < 1 || n_decode > kMaxRows) return false;
  const Mean& plain = by_rows_[static_cast<std::size_t>(n_decode)];
  return plain.n_drafts >= (plain.seconds == 0 ? kFirst : kEvery);
}

DraftRecord::DraftRecord(std::int64_t max_length) : max_(max_length) {
  // What a draft model says of itself is about what comes true.
  constexpr std::array<double, kModelStrengths> kGuess = {0.15, 0.4, 0.6, 0.8, 0.92, 0.97};
  for (std::size_t i = 0; i < kGuess.size(); ++i) records_[kLookupStrengths + i].hits = 2 * kGuess[i];
}

std::int64_t DraftRecord::try_again(Record& record) const {
  if (record.pause > 0) {
    --record.pause;
    return 0;
  }
  record.pause = record.next_pause;
  record.next_pause = std::min<std::int64_t>(128, record.next_pause * 2);
  return std::min<std::int64_t>(2, max_);
}

bool DraftRecord::begins(double cost) {
  if (max_ == 0) return false;
  return 1 + of_model_.share() > kWorthIt * (1 + cost) || try_again(of_model_) > 0;
}

void DraftRecord::add(Record& record, double memory, std::int64_t n_hits, std::int64_t n_misses) {
  record.hits = memory * record.hits + static_cast<double>(n_hits);
  record.trials = memory * record.trials + static_cast<double>(n_hits + n_misses);
  if (n_hits > 0) record.next_pause = 4;
}

void DraftRecord::update(std::span<const std::uint8_t> strengths, std::int64_t n_accepted) {
  constexpr double kMemory = 0.95;
  std::array<std::int64_t, kDraftStrengths> hits{}, misses{};
  for (std::int64_t i = 0; i < std::min<std::int64_t>(n_accepted + 1, static_cast<std::int64_t>(strengths.size())); ++i)
    ++(i < n_accepted ? hits : misses)[strengths[static_cast<std::size_t>(i)]];
  std::int64_t n_hits = 0, n_misses = 0;
  for (std::size_t i = 0; i < kDraftStrengths; ++i) {
    if (hits[i] + misses[i] == 0) continue;
    const bool is_model = i >= kLookupStrengths;
    add(records_[i], kMemory, hits[i], misses[i]);
    n_hits += is_model ? hits[i] : 0;
    n_misses += is_model ? misses[i] : 0;
  }
  if (n_hits + n_misses > 0) add(of_model_, kMemory, n_hits, n_misses);
}

}  // namespace still

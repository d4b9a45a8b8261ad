#include "engine/model_drafter.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "base/check.h"
#include "engine/sampler.h"

namespace still {

namespace {

// By the probability that the draft model gave its token.
std::uint8_t strength_of(float logprob) {
  constexpr std::array<float, kModelStrengths - 1> kBounds = {0.25f, 0.5f, 0.75f, 0.9f, 0.97f};
  const float p = std::exp(logprob);
  std::size_t i = 0;
  while (i < kBounds.size() && p >= kBounds[i]) ++i;
  return static_cast<std::uint8_t>(kLookupStrengths + i);
}

// What a forward pass takes for so many sequences, as moving means.
class RoundSeconds {
 public:
  void observe(std::int64_t n_seqs, double seconds) {
    double& mean = by_seqs_[index(n_seqs)];
    mean = mean == 0 ? seconds : mean + 0.1 * (std::min(seconds, 3 * mean) - mean);
  }
  // Of the nearest number that was seen; 0: none was.
  double of(std::int64_t n_seqs) const {
    const std::size_t at = index(n_seqs);
    for (std::size_t d = 0; d < by_seqs_.size(); ++d) {
      if (at + d < by_seqs_.size() && by_seqs_[at + d] > 0) return by_seqs_[at + d];
      if (at >= d && by_seqs_[at - d] > 0) return by_seqs_[at - d];
    }
    return 0;
  }

 private:
  std::size_t index(std::int64_t n_seqs) const {
    return static_cast<std::size_t>(std::min<std::int64_t>(n_seqs, static_cast<std::int64_t>(by_seqs_.size()) - 1));
  }
  std::array<double, 65> by_seqs_{};
};

class ModelDrafter : public Drafter {
 public:
  ModelDrafter(const ModelDrafterOptions& options, std::unique_ptr<ForwardPass> forward)
      : options_(options), forward_(std::move(forward)), knows_(static_cast<std::size_t>(options.n_blocks), 0) {
    const auto n_seqs = static_cast<std::size_t>(options.max_seqs);
    ids_.reserve(static_cast<std::size_t>(options.chunk_tokens));
    positions_.reserve(static_cast<std::size_t>(options.chunk_tokens));
    q_start_.reserve(n_seqs + 1);
    kv_len_.reserve(n_seqs);
    block_tables_.reserve(n_seqs * static_cast<std::size_t>(options.max_blocks));
    logit_rows_.reserve(n_seqs);
    active_.reserve(n_seqs);
    const int n_threads = forward_->threads() != nullptr ? forward_->threads()->size() : 1;
    samplers_.assign(static_cast<std::size_t>(n_threads), Sampler(*options.kernels));
  }

  void propose(const DraftBatch& batch) override {
    const auto start = std::chrono::steady_clock::now();
    begin(batch);
    while (!active_.empty() && run_round(batch)) {
    }
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  void forget_block(std::int32_t block) override { knows_[static_cast<std::size_t>(block)] = 0; }
  double seconds() const override { return seconds_; }

 private:
  // A sequence that is being drafted for.
  struct Active {
    const DraftTask* task = nullptr;
    std::int64_t room = 0;
    std::int64_t n_given = 0;                     // tokens in this round's batch
    bool has_row = false;                         // the last of them gives a token
    std::int64_t row = 0;                         // of the logits
    double expected = 1, all_true = 1, cost = 1;  // of the draft so far: tokens, that all come true, steps
    Sample sample;
  };

  // Chooses who drafts, and how far behind each is.
  void begin(const DraftBatch& batch) {
    active_.clear();
    const std::int64_t n_tasks = static_cast<std::int64_t>(batch.tasks.size());
    if (n_tasks == 0) return;
    const std::int64_t share = batch.max_total / n_tasks;
    const std::int64_t n_expected = std::min<std::int64_t>(n_tasks, options_.max_seqs);
    for (const DraftTask& task : batch.tasks) {
      const auto length = static_cast<std::int64_t>(task.tokens->size());
      // The last token of a draft is not computed by the drafter.
      const std::int64_t room = std::min({task.room, share, options_.context - length + 1});
      if (room <= 0 || static_cast<std::int64_t>(active_.size()) == options_.max_seqs) continue;
      if (!task.record->begins(token_cost(batch, n_expected))) continue;
      find_known(task);
      active_.push_back({.task = &task, .room = room, .sample = {}});
    }
  }

  // What one more drafted token costs: a round of the draft model and a row of the model.
  double token_cost(const DraftBatch& batch, std::int64_t n_seqs) const {
    return batch.cost->of_seconds(batch.n_decode, n_seqs, round_seconds_.of(n_seqs)) + row_cost(batch, n_seqs);
  }
  double row_cost(const DraftBatch& batch, std::int64_t n_seqs) const {
    return batch.cost->of_rows(batch.n_decode, 0, 2 * n_seqs) / static_cast<double>(2 * n_seqs);
  }

  // The beginning whose keys and values the drafter has already; marks blocks that have become full.
  void find_known(const DraftTask& task) {
    std::int64_t& n = *task.n_computed;
    const auto length = static_cast<std::int64_t>(task.tokens->size());
    if (n < 0) {
      n = 0;
      for (const std::int32_t block : task.blocks) {
        if (knows_[static_cast<std::size_t>(block)] == 0) break;
        n += options_.block_size;
      }
      n = std::min(n, length - 1);
    }
    for (std::int64_t i = n / options_.block_size - 1; i >= 0; --i) {
      std::uint8_t& known = knows_[static_cast<std::size_t>(task.blocks[static_cast<std::size_t>(i)])];
      if (known != 0) break;
      known = 1;
    }
  }

  // One forward pass for all that are active, a token for each that is not behind any more. False: it failed, and
  // what there is must do.
  bool run_round(const DraftBatch& batch) {
    const auto start = std::chrono::steady_clock::now();
    make_batch();
    const Result<float*> logits = forward_->run({.ids = ids_,
                                                 .positions = positions_,
                                                 .q_start = q_start_,
                                                 .kv_len = kv_len_,
                                                 .block_tables = block_tables_,
                                                 .max_blocks = options_.max_blocks,
                                                 .logit_rows = logit_rows_});
    if (!logits) {
      active_.clear();
      return false;
    }
    for (Active& a : active_) *a.task->n_computed += a.n_given;
    sample(*logits);
    const auto n_seqs = static_cast<std::int64_t>(active_.size());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (static_cast<std::int64_t>(ids_.size()) <= 3 * n_seqs) round_seconds_.observe(n_seqs, seconds);
    const double cost = token_cost(batch, n_seqs), row = row_cost(batch, n_seqs);
    std::erase_if(active_, [&](Active& a) { return !goes_on(a, cost, row); });
    return true;
  }

  // Each gets what it is behind, as far as the chunk holds it; the others of the batch wait for that, so where there
  // are any it is little at a time.
  void make_batch() {
    constexpr std::int64_t kCatchUpTogether = 64;
    ids_.clear();
    positions_.clear();
    q_start_.assign(1, 0);
    kv_len_.clear();
    block_tables_.clear();
    logit_rows_.clear();
    std::int64_t left = options_.chunk_tokens;
    if (active_.size() > 1) left = std::min(left, kCatchUpTogether + static_cast<std::int64_t>(active_.size()));
    auto waiting = static_cast<std::int64_t>(active_.size());  // each gets one token at least
    for (Active& a : active_) {
      --waiting;
      const std::vector<TokenId>& tokens = *a.task->tokens;
      const std::int64_t begin = *a.task->n_computed;
      const std::int64_t n_drafted = static_cast<std::int64_t>(a.task->draft->size());
      const std::int64_t end = static_cast<std::int64_t>(tokens.size()) + n_drafted;
      a.n_given = std::min(end - begin, left - waiting);
      a.has_row = begin + a.n_given == end;
      left -= a.n_given;
      for (std::int64_t pos = begin; pos < begin + a.n_given; ++pos) {
        const auto i = static_cast<std::size_t>(pos);
        const TokenId id = i < tokens.size() ? tokens[i] : (*a.task->draft)[i - tokens.size()];
        // One that it does not have (padding of the model's table) becomes another: only its drafts suffer.
        ids_.push_back(id < options_.vocab_size ? id : 0);
        positions_.push_back(static_cast<std::int32_t>(pos));
      }
      if (a.has_row) logit_rows_.push_back(static_cast<std::int32_t>(ids_.size()) - 1);
      q_start_.push_back(static_cast<std::int32_t>(ids_.size()));
      kv_len_.push_back(static_cast<std::int32_t>(begin + a.n_given));
      block_tables_.insert(block_tables_.end(), a.task->blocks.begin(), a.task->blocks.end());
      block_tables_.resize(kv_len_.size() * static_cast<std::size_t>(options_.max_blocks), 0);
    }
  }

  void sample(float* logits) {
    std::int64_t row = 0;
    for (Active& a : active_)
      if (a.has_row) a.row = row++;
    const auto one = [&](Active& a, Sampler& sampler) {
      if (!a.has_row) return;
      // The sampler's random number is of the position behind the tokens; penalties count the drafted ones, too.
      std::vector<TokenId>& tokens = *a.task->tokens;
      const std::size_t n_before = tokens.size();
      tokens.insert(tokens.end(), a.task->draft->begin(), a.task->draft->end());
      sampler.sample({.logits = {logits + a.row * options_.vocab_size, static_cast<std::size_t>(options_.n_tokens)},
                      .params = a.task->sampling,
                      .tokens = tokens,
                      .n_prompt = a.task->n_prompt,
                      .seed = a.task->seed,
                      .banned = {},
                      .banned_ends = a.task->sampling->ignore_eos ? std::span<const TokenId>(options_.end_tokens)
                                                                  : std::span<const TokenId>(),
                      .banned_stops = {},
                      .mask = {},
                      .n_logprobs = 0},
                     a.sample);
      tokens.resize(n_before);
    };
    ThreadPool* threads = forward_->threads();
    if (threads == nullptr || row < 2) {
      for (Active& a : active_) one(a, samplers_[0]);
      return;
    }
    threads->run([&](int thread_idx) {
      for (std::size_t i = static_cast<std::size_t>(thread_idx); i < active_.size();
           i += static_cast<std::size_t>(threads->size()))
        one(active_[i], samplers_[static_cast<std::size_t>(thread_idx)]);
    });
  }

  // Takes the round's token; whether one more is worth its cost: the rate of the whole step must grow by it.
  bool goes_on(Active& a, double cost, double row) {
    if (!a.has_row || a.sample.id < 0) return false;  // still behind: it goes on in the next step
    std::vector<TokenId>& draft = *a.task->draft;
    const std::uint8_t strength = strength_of(a.sample.logprob);
    a.all_true *= a.task->record->share(strength);
    // Drawn, but not worth a row: the model will hardly choose it.
    if (!draft.empty() && a.all_true * a.cost < a.expected * row) return false;
    draft.push_back(a.sample.id);
    a.task->strengths->push_back(strength);
    a.expected += a.all_true;
    a.cost += cost;
    if (static_cast<std::int64_t>(draft.size()) >= a.room) return false;
    if (std::binary_search(options_.end_tokens.begin(), options_.end_tokens.end(), a.sample.id)) return false;
    return a.all_true * a.task->record->model_share() * a.cost > a.expected * cost;
  }

  ModelDrafterOptions options_;
  std::unique_ptr<ForwardPass> forward_;
  std::vector<std::uint8_t> knows_;  // [n_blocks]: all positions are computed, of the tokens that the block holds
  std::vector<Sampler> samplers_;    // one per thread
  std::vector<Active> active_;
  std::vector<TokenId> ids_;
  std::vector<std::int32_t> positions_, q_start_, kv_len_, block_tables_, logit_rows_;
  RoundSeconds round_seconds_;
  double seconds_ = 0;
};

}  // namespace

std::unique_ptr<Drafter> make_model_drafter(const ModelDrafterOptions& options, std::unique_ptr<ForwardPass> forward) {
  STILL_CHECK(options.chunk_tokens >= options.max_seqs && options.n_tokens <= options.vocab_size);
  return std::make_unique<ModelDrafter>(options, std::move(forward));
}

Status check_same_vocabulary(const Tokenizer& model, const Tokenizer& draft) {
  constexpr std::int64_t kMostPadding = 1024;
  const std::int64_t n_model = model.vocab_size(), n_draft = draft.vocab_size();
  if (std::abs(n_model - n_draft) > kMostPadding)
    return error(Code::kInvalidArgument, "the draft model has a vocabulary of {} tokens, expected the model's of {}",
                 n_draft, n_model);
  for (TokenId id = 0; id < std::min(n_model, n_draft); ++id) {
    if (model.token_text(id) == draft.token_text(id)) continue;
    return error(Code::kInvalidArgument, "the draft model has another vocabulary: its token {} is not the model's", id);
  }
  return ok();
}

}  // namespace still

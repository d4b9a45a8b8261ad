// A model for tests of the engine: its next-token scores are a hash of the whole sequence as read back from the KV
// blocks, so that a wrong block, position or length gives other tokens; or they follow a script.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "engine/core.h"
#include "kernels/dispatch.h"

namespace still::testing {

struct FakeSettings {
  std::int64_t vocab_size = 64;
  std::int64_t block_size = 4, n_blocks = 64, context = 64;
  std::int64_t max_seqs = 4, chunk_tokens = 16, max_logit_rows = 16;
  float spread = 4.0f;  // of the hashed scores
  // As a device does: logits are fetched, tokens drawn there (by the host's sampler, so that answers compare).
  bool on_device = false;
  // Where the largest logits alone are wanted, all others are -infinity, as a screened head may leave them.
  bool screens = false;
  // The most probable token after these; -1: by hash.
  std::function<TokenId(std::span<const TokenId>)> script;
};

class FakeForward : public ForwardPass {
 public:
  explicit FakeForward(FakeSettings settings)
      : settings_(std::move(settings)),
        cells_(static_cast<std::size_t>(settings_.n_blocks * settings_.block_size), -1),
        logits_(static_cast<std::size_t>(settings_.max_logit_rows * settings_.vocab_size)) {
    history_.reserve(static_cast<std::size_t>(settings_.context));
  }

  bool is_on_device() const override { return settings_.on_device; }
  Status launch(const RaggedBatch& batch, std::span<const CudaSampleRow> draws) override {
    STILL_CHECK(launches_.size() < 2);
    max_under_way = std::max<std::int64_t>(max_under_way, static_cast<std::int64_t>(launches_.size()) + 1);
    std::vector<TokenId> ids(batch.ids.begin(), batch.ids.end());
    for (TokenId& id : ids)
      if (id < 0) id = drawn_.at(static_cast<std::size_t>(-1 - id));
    RaggedBatch known = batch;
    known.ids = ids;
    STILL_TRY([[maybe_unused]] const float* logits, run(known));
    drawn_.clear();
    for (const CudaSampleRow& draw : draws) {
      const float* row = logits_.data() + draw.row * settings_.vocab_size;
      std::vector<float> copy(row, row + settings_.vocab_size);
      SamplingParams params;
      params.temperature = draw.temperature;
      params.top_k = draw.top_k;
      params.top_p = draw.top_p;
      params.min_p = draw.min_p;
      Sample sample;
      Sampler(**select_cpu_kernels("ref"))
          .sample({.logits = copy,
                   .params = &params,
                   .random = draw.random,
                   .banned = std::span<const TokenId>(draw.banned, draw.n_banned)},
                  sample);
      drawn_.push_back(sample.id);
    }
    launches_.push_back(drawn_);
    return ok();
  }
  Result<std::span<const TokenId>> collect() override {
    STILL_CHECK(!launches_.empty());
    if (++n_collected == fail_collect_at) {
      launches_.pop_front();
      return error(Code::kInternal, "the device is gone");
    }
    collected_ = std::move(launches_.front());
    launches_.pop_front();
    return std::span<const TokenId>(collected_);
  }
  void abandon() override { launches_.clear(); }
  Result<float*> fetch_row(std::int64_t row) override {
    fetched_.assign(logits_.begin() + row * settings_.vocab_size, logits_.begin() + (row + 1) * settings_.vocab_size);
    ++n_fetched;
    return fetched_.data();
  }

  Result<float*> run(const RaggedBatch& batch) override {
    ++n_runs;
    if (on_run) on_run();
    max_tokens_seen = std::max(max_tokens_seen, batch.n_tokens());
    if (fail_at == n_runs) return error(Code::kInternal, "the device is gone");
    for (std::int64_t seq = 0; seq < batch.n_seqs(); ++seq) {
      const auto s = static_cast<std::size_t>(seq);
      const std::int32_t q_len = batch.q_start[s + 1] - batch.q_start[s];
      for (std::int32_t i = 0; i < q_len; ++i) {
        const auto token = static_cast<std::size_t>(batch.q_start[s] + i);
        STILL_CHECK(batch.positions[token] == batch.kv_len[s] - q_len + i);
        cell(batch.block_table(seq), batch.positions[token]) = batch.ids[token];
      }
    }
    std::size_t row_idx = 0;
    for (const std::int32_t token : batch.logit_rows) {
      std::size_t s = 0;
      while (batch.q_start[s + 1] <= token) ++s;
      history_.clear();
      for (std::int32_t pos = 0; pos <= batch.positions[static_cast<std::size_t>(token)]; ++pos)
        history_.push_back(cell(batch.block_table(static_cast<std::int64_t>(s)), pos));
      float* row = logits_.data() + static_cast<std::int64_t>(row_idx) * settings_.vocab_size;
      fill(row);
      if (settings_.screens && !batch.best.banned_begin.empty()) keep_best(row, batch.best, row_idx);
      ++row_idx;
    }
    return logits_.data();
  }

  bool can_copy_blocks() const override { return true; }
  void copy_block(std::int32_t from, std::int32_t to) override {
    const auto cell_of = [&](std::int32_t block) { return cells_.begin() + block * settings_.block_size; };
    std::copy_n(cell_of(from), settings_.block_size, cell_of(to));
  }

  std::function<void()> on_run;
  std::int64_t n_runs = 0, fail_at = -1, max_tokens_seen = 0;
  std::int64_t n_screened = 0, n_collected = 0, fail_collect_at = -1, n_fetched = 0, max_under_way = 0;

 private:
  TokenId& cell(const std::int32_t* block_table, std::int64_t pos) {
    const std::int64_t slot =
        block_table[pos / settings_.block_size] * settings_.block_size + pos % settings_.block_size;
    return cells_[static_cast<std::size_t>(slot)];
  }
  void fill(float* row) const {
    std::uint64_t hash = 1;
    for (const TokenId id : history_) hash = counter_random(hash, static_cast<std::uint64_t>(id));
    for (std::int64_t id = 0; id < settings_.vocab_size; ++id)
      row[id] =
          settings_.spread * static_cast<float>(to_unit(counter_random(hash, 1000 + static_cast<std::uint64_t>(id))));
    const TokenId next = settings_.script ? settings_.script(history_) : -1;
    if (next >= 0) row[next] = 100.0f;
  }

  void keep_best(float* row, const BestOnly& best, std::size_t row_idx) {
    ++n_screened;
    const float none = -std::numeric_limits<float>::infinity();
    for (auto i = best.banned_begin[row_idx]; i < best.banned_begin[row_idx + 1]; ++i)
      row[best.banned[static_cast<std::size_t>(i)]] = none;
    const float largest = *std::max_element(row, row + settings_.vocab_size);
    std::replace_if(row, row + settings_.vocab_size, [&](float value) { return value < largest; }, none);
  }

  FakeSettings settings_;
  std::vector<TokenId> cells_;
  std::vector<float> logits_;
  std::vector<TokenId> history_;
  std::vector<TokenId> drawn_, collected_;
  std::deque<std::vector<TokenId>> launches_;
  std::vector<float> fetched_;
};

// Ids: 0 is the end token, 1 <think>, 2 </think>, 3 "\n", 4.. the letters "a", "b", ...
inline constexpr TokenId kEnd = 0, kOpen = 1, kClose = 2, kNewline = 3, kA = 4;

inline Vocab fake_vocab(std::int64_t size) {
  static const std::vector<std::string> texts = [] {
    std::vector<std::string> all = {"<end>", "<think>", "</think>", "\n"};
    for (int i = 0; i < 26; ++i) all.push_back(std::string(1, static_cast<char>('a' + i)));
    while (all.size() < 4096) all.push_back("[" + std::to_string(all.size()) + "]");
    return all;
  }();
  Vocab vocab;
  vocab.size = size;
  vocab.end_tokens = {kEnd};
  vocab.think_open = kOpen;
  vocab.think_close = kClose;
  vocab.open_block = {kOpen, kNewline};
  vocab.close_block = {kClose, kNewline, kNewline};
  vocab.context = &texts;
  vocab.bytes_of = [](const void* context, TokenId id) {
    return std::string_view((*static_cast<const std::vector<std::string>*>(context))[static_cast<std::size_t>(id)]);
  };
  vocab.is_hidden_of = [](const void*, TokenId id) { return id == kEnd; };
  return vocab;
}

struct FakeEngine {
  explicit FakeEngine(const FakeSettings& settings, const std::function<void(CoreOptions&)>& change = {},
                      std::unique_ptr<Drafter> drafter = nullptr) {
    CoreOptions options;
    options.scheduler = {.max_seqs = settings.max_seqs,
                         .chunk_tokens = settings.chunk_tokens,
                         .max_logit_rows = settings.max_logit_rows,
                         .block_size = settings.block_size,
                         .step = {.target_s = 0, .max_stall = 0, .min_chunk = 4},
                         .max_draft = drafter != nullptr ? 4 : 0};
    options.n_blocks = settings.n_blocks;
    options.context = settings.context;
    options.kernels = *select_cpu_kernels("ref");
    if (change) change(options);
    auto owned = std::make_unique<FakeForward>(settings);
    forward = owned.get();
    core = std::make_unique<EngineCore>(options, fake_vocab(settings.vocab_size), std::move(owned), std::move(drafter));
  }
  // Steps until all is done; false where that takes too many steps.
  bool run_all(int max_steps = 100000) {
    while (core->step())
      if (--max_steps == 0) return false;
    return true;
  }
  FakeForward* forward = nullptr;
  std::unique_ptr<EngineCore> core;
};

// Collects a request's events and checks their order.
class Recorder : public EventSink {
 public:
  void on_event(const Event& event) override {
    STILL_CHECK(!is_finished);
    if (const auto* e = std::get_if<StartedEvent>(&event)) {
      started = *e;
      n_started += 1;
    }
    if (const auto* e = std::get_if<ProgressEvent>(&event)) progress.push_back(*e);
    if (const auto* e = std::get_if<PromptTokenEvent>(&event)) prompt_tokens.push_back(*e);
    if (const auto* e = std::get_if<TokenEvent>(&event)) {
      STILL_CHECK(n_started == 1);
      tokens.push_back(*e);
      (e->channel == Channel::kReasoning ? reasoning : text) += e->text;
      if (e->id >= 0) ids.push_back(e->id);
    }
    if (const auto* e = std::get_if<FinishedEvent>(&event)) {
      finished = *e;
      is_finished = true;
    }
  }
  StartedEvent started;
  std::vector<ProgressEvent> progress;
  std::vector<PromptTokenEvent> prompt_tokens;
  std::vector<TokenEvent> tokens;
  std::vector<TokenId> ids;
  std::string text, reasoning;
  FinishedEvent finished;
  bool is_finished = false;
  int n_started = 0;
};

}  // namespace still::testing

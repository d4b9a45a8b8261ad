#include "engine/drafter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "engine/fake_forward.h"
#include "engine/model_drafter.h"

namespace still {
namespace {

using Tokens = std::vector<TokenId>;

// What a drafter proposes for one sequence that trusts it: nothing is known of costs yet.
struct Asked {
  Tokens draft;
  std::vector<std::uint8_t> strengths;
  Asked(Drafter& drafter, Tokens tokens, std::int64_t n) {
    const DraftCost cost;
    DraftRecord record(n);
    for (std::uint8_t strength = 0; strength < kDraftStrengths; ++strength)
      for (int i = 0; i < 50; ++i) record.update(std::vector<std::uint8_t>(8, strength), 8);
    std::int64_t n_computed = -1;
    DraftTask task{.tokens = &tokens,
                   .record = &record,
                   .room = n,
                   .n_computed = &n_computed,
                   .draft = &draft,
                   .strengths = &strengths};
    drafter.propose({.tasks = {&task, 1}, .n_decode = 1, .max_total = 100, .cost = &cost});
  }
};

TEST(LookupDrafter, ContinuesTheLongestMatch) {
  const auto drafter = make_lookup_drafter(2, 8);
  // 2 3 stands twice before the end; 1 2 3 once: what followed that is proposed.
  EXPECT_EQ(Asked(*drafter, {1, 2, 3, 7, 8, 9, 2, 3, 5, 1, 2, 3}, 3).draft, (Tokens{7, 8, 9}));
}

TEST(LookupDrafter, GoesOnWithALoop) {
  const auto drafter = make_lookup_drafter(2, 8);
  EXPECT_EQ(Asked(*drafter, {1, 2, 3, 1, 2, 3}, 5).draft, (Tokens{1, 2, 3, 1, 2}));
}

TEST(LookupDrafter, ProposesNothingWithoutAMatch) {
  const auto drafter = make_lookup_drafter(2, 8);
  EXPECT_TRUE(Asked(*drafter, {1, 2, 3, 4, 5}, 4).draft.empty());
  EXPECT_TRUE(Asked(*drafter, {1, 2, 9, 2}, 4).draft.empty());
  EXPECT_TRUE(Asked(*drafter, {}, 4).draft.empty());
  EXPECT_TRUE(Asked(*drafter, {1, 2, 1, 2}, 0).draft.empty());
}

TEST(LookupDrafter, LongerMatchesAreStronger) {
  const auto drafter = make_lookup_drafter(2, 8);
  const Asked weak(*drafter, {1, 2, 9, 1, 2}, 4);
  const Asked strong(*drafter, {1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 8}, 4);
  ASSERT_FALSE(weak.draft.empty());
  ASSERT_FALSE(strong.draft.empty());
  EXPECT_LT(weak.strengths[0], strong.strengths[0]);
  EXPECT_LT(strong.strengths[0], kLookupStrengths);
}

// One that always says the same token.
class SayDrafter : public Drafter {
 public:
  explicit SayDrafter(TokenId id) : id_(id) {}
  void propose(const DraftBatch& batch) override {
    n_asked += static_cast<int>(batch.tasks.size());
    max_total = batch.max_total;
    for (const DraftTask& task : batch.tasks) task.draft->push_back(id_);
  }
  int n_asked = 0;
  std::int64_t max_total = 0;

 private:
  TokenId id_;
};

TEST(ChainedDrafter, AsksTheSecondWhereTheFirstHasNothing) {
  auto second = std::make_unique<SayDrafter>(77);
  SayDrafter& say = *second;
  const auto drafter = make_chained_drafter(make_lookup_drafter(2, 8), std::move(second));
  EXPECT_EQ(Asked(*drafter, {1, 2, 1, 2}, 2).draft, (Tokens{1, 2}));
  EXPECT_EQ(say.n_asked, 0);
  EXPECT_EQ(Asked(*drafter, {1, 2, 3, 4}, 2).draft, (Tokens{77}));
  EXPECT_EQ(say.n_asked, 1);
}

TEST(DraftCost, IsWhatARowAddsToASequencesShareOfAStep) {
  DraftCost cost;
  for (int i = 0; i < 200; ++i) {
    cost.observe(1, 0, 0.010);
    cost.observe(1, 4, 0.012);
  }
  EXPECT_NEAR(cost.of_rows(1, 0, 4), 0.2, 1e-6);
  EXPECT_NEAR(cost.of_rows(1, 0, 2), 0.1, 1e-6) << "between what was seen, in proportion";
  EXPECT_NEAR(cost.of_seconds(1, 1, 0.005), 0.5, 1e-6);
  // Of four sequences each step gives four tokens: a row must bring a quarter of that time.
  DraftCost four;
  for (int i = 0; i < 200; ++i) {
    four.observe(4, 0, 0.020);
    four.observe(4, 4, 0.030);
  }
  EXPECT_NEAR(four.of_rows(4, 0, 1), 4 * 0.125, 1e-6);
  EXPECT_NEAR(four.of_rows(4, 2, 2), 4 * 0.25, 1e-6);
  EXPECT_NEAR(four.of_seconds(4, 4, 0.010), 0.5, 1e-6) << "shared by the four";
  EXPECT_NEAR(four.of_seconds(4, 1, 0.010), 2, 1e-6);
}

TEST(DraftCost, WantsAPlainStepNowAndThen) {
  DraftCost cost;
  EXPECT_FALSE(cost.wants_plain(1));
  int n_plain = 0;
  for (int i = 0; i < 650; ++i) {
    const bool is_plain = cost.wants_plain(1);
    n_plain += is_plain ? 1 : 0;
    cost.observe(1, is_plain ? 0 : 3, 0.010);
  }
  EXPECT_GE(n_plain, 9);
  EXPECT_LE(n_plain, 12);
}

const auto rows_cost = [](double row) { return [row](std::int64_t n) { return row * static_cast<double>(n); }; };

TEST(DraftRecord, GrowsWhereDraftsComeTrueAndIsShortWhereRowsAreDear) {
  DraftRecord cheap(8), dear(8);
  const std::vector<std::uint8_t> four(4, 0);
  for (int i = 0; i < 30; ++i) {
    cheap.update(four, 4);
    dear.update(four, 3);
  }
  EXPECT_EQ(cheap.choose(0, rows_cost(0.05)), 8);
  EXPECT_LT(dear.choose(0, rows_cost(0.4)), 4);
}

TEST(DraftRecord, StopsWhereNothingComesTrueAndTriesAgainMoreSeldom) {
  DraftRecord record(8);
  const auto tries = [&](int n_steps) {
    int n = 0;
    for (int i = 0; i < n_steps; ++i) {
      const std::int64_t chosen = record.choose(1, rows_cost(0.1));
      if (chosen > 0) record.update(std::vector<std::uint8_t>(static_cast<std::size_t>(chosen), 1), 0);
      n += chosen > 0 ? 1 : 0;
    }
    return n;
  };
  tries(20);
  EXPECT_LE(tries(1000), 20);
  // Another strength has its own record.
  EXPECT_GT(record.choose(3, rows_cost(0.1)), 0);
  // What comes true again is drafted again.
  for (int i = 0; i < 20; ++i) record.update(std::vector<std::uint8_t>(2, 1), 2);
  EXPECT_GT(record.choose(1, rows_cost(0.1)), 2);
}

TEST(DraftRecord, OfNothingIsNothing) {
  DraftRecord record(0);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(record.choose(0, rows_cost(0.0)), 0);
  EXPECT_FALSE(record.begins(0));
}

TEST(DraftRecord, AModelThatIsTooDearOrTooWrongIsAskedSeldom) {
  DraftRecord record(8);
  const std::vector<std::uint8_t> two(2, kLookupStrengths + 3);
  const auto n_begun = [&](double cost, int n_steps, std::int64_t n_accepted) {
    int n = 0;
    for (int i = 0; i < n_steps; ++i) {
      if (!record.begins(cost)) continue;
      ++n;
      record.update(two, n_accepted);
    }
    return n;
  };
  EXPECT_EQ(n_begun(0.4, 100, 2), 100);
  EXPECT_LE(n_begun(1.2, 1000, 0), 40) << "a token costs more than one";
  EXPECT_LE(n_begun(0.3, 1000, 0), 40) << "none comes true";
  EXPECT_GT(record.share(kLookupStrengths + 4), 0.8) << "kinds that were not seen keep their guess";
}

// A draft model that is wrong about nothing: every token that it drafts comes true, alone and together, in chunks,
// with blocks shared, given back and found again. One wrong position or block of its own keys and values would show.
struct FakeSpeculation {
  testing::FakeForward* draft = nullptr;
  std::unique_ptr<testing::FakeEngine> engine;
  explicit FakeSpeculation(const testing::FakeSettings& settings, const testing::FakeSettings& of_draft,
                           const std::function<void(CoreOptions&)>& change = {}) {
    auto forward = std::make_unique<testing::FakeForward>(of_draft);
    draft = forward.get();
    ModelDrafterOptions options{.vocab_size = of_draft.vocab_size,
                                .n_tokens = std::min(of_draft.vocab_size, settings.vocab_size),
                                .n_blocks = settings.n_blocks,
                                .block_size = settings.block_size,
                                .context = of_draft.context,
                                .max_seqs = settings.max_seqs,
                                .chunk_tokens = settings.chunk_tokens,
                                .max_blocks = (settings.context + settings.block_size - 1) / settings.block_size,
                                .kernels = *select_cpu_kernels("ref"),
                                .end_tokens = {testing::kEnd}};
    engine = std::make_unique<testing::FakeEngine>(settings, change, make_model_drafter(options, std::move(forward)));
  }
};

std::vector<Request> requests_of(std::uint64_t seed, int n) {
  Rng rng(seed);
  std::vector<Request> requests;
  for (int i = 0; i < n; ++i) {
    Request request;
    request.prompt = {5, 6, 7, 8, 9, 10, 11, 12};  // shared by all
    const std::int64_t n_own = rng.below(20);
    for (std::int64_t j = 0; j < n_own; ++j) request.prompt.push_back(static_cast<TokenId>(4 + rng.below(50)));
    request.max_tokens = 1 + rng.below(30);
    request.sampling.temperature = i % 3 == 0 ? 0.0f : i % 3 == 1 ? 0.7f : 1.3f;
    request.sampling.top_p = i % 2 == 0 ? 1.0f : 0.9f;
    request.sampling.seed = rng.next();
    request.sampling.ignore_eos = true;
    request.thinking.mode = ThinkingMode::kUntracked;
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  std::vector<std::vector<TokenId>> ids;
  EngineStats stats;
};

Outcome run(testing::FakeEngine& engine, const std::vector<Request>& requests, std::uint64_t seed) {
  std::vector<std::shared_ptr<testing::Recorder>> recorders;
  Rng rng(seed);
  for (const Request& request : requests) {
    recorders.push_back(std::make_shared<testing::Recorder>());
    EXPECT_TRUE(engine.core->submit(request, recorders.back()));
    for (std::int64_t i = rng.below(6); i > 0; --i) engine.core->step();
  }
  EXPECT_TRUE(engine.run_all());
  Outcome outcome{.ids = {}, .stats = engine.core->stats()};
  for (const auto& recorder : recorders) {
    EXPECT_EQ(recorder->finished.reason, FinishReason::kLength);
    outcome.ids.push_back(recorder->ids);
  }
  return outcome;
}

TEST(ModelDrafter, WhatATwinDraftsAlwaysComesTrue) {
  for (const std::uint64_t seed : {1u, 2u}) {
    SCOPED_TRACE(seed);
    const auto requests = requests_of(seed, 60);
    const auto settings = [](std::int64_t n_blocks, std::int64_t max_seqs, std::int64_t chunk) {
      return testing::FakeSettings{
          .n_blocks = n_blocks, .max_seqs = max_seqs, .chunk_tokens = chunk, .max_logit_rows = 32};
    };
    testing::FakeEngine plain(settings(64, 1, 16));
    const auto want = run(plain, requests, seed);
    struct Case {
      const char* name;
      testing::FakeSettings fake;
      bool prefix_cache = true, preempt = false;
    };
    const Case cases[] = {{"alone", settings(64, 1, 16)},
                          {"together", settings(200, 8, 16)},
                          {"no prefix cache", settings(200, 8, 16), false},
                          {"small chunks", settings(200, 4, 5)},
                          {"few blocks", settings(17, 8, 16)},
                          {"preempted at each step", settings(64, 4, 16), true, true}};
    for (const Case& c : cases) {
      SCOPED_TRACE(c.name);
      FakeSpeculation speculation(c.fake, c.fake, [&](CoreOptions& o) {
        o.prefix_cache = c.prefix_cache;
        o.preempt_every_step = c.preempt;
      });
      // A model that takes longer than its twin, whatever else the machine does: else drafting might not pay.
      speculation.engine->forward->on_run = [] { std::this_thread::sleep_for(std::chrono::microseconds(300)); };
      const auto got = run(*speculation.engine, requests, seed);
      EXPECT_EQ(got.ids, want.ids);
      if (!c.preempt) {
        EXPECT_GT(got.stats.drafted_tokens, 50);
      }
      EXPECT_EQ(got.stats.accepted_tokens, got.stats.drafted_tokens);
      EXPECT_EQ(got.stats.n_blocks_cached + speculation.engine->core->pool().n_free(), c.fake.n_blocks);
    }
  }
}

// One that is wrong about every third token, knows fewer ids and fewer positions: the text is the model's all the same.
TEST(ModelDrafter, AWorseModelChangesNothing) {
  const std::uint64_t seed = 7;
  const auto requests = requests_of(seed, 60);
  const testing::FakeSettings settings{.n_blocks = 100, .max_seqs = 6, .max_logit_rows = 32};
  testing::FakeEngine plain(settings);
  const auto want = run(plain, requests, seed);
  testing::FakeSettings worse = settings;
  worse.vocab_size = 48;
  worse.context = 40;
  worse.script = [](std::span<const TokenId> history) { return history.size() % 3 == 0 ? TokenId{9} : TokenId{-1}; };
  FakeSpeculation speculation(settings, worse);
  const auto got = run(*speculation.engine, requests, seed);
  EXPECT_EQ(got.ids, want.ids);
  EXPECT_GT(got.stats.drafted_tokens, got.stats.accepted_tokens);
}

// Of greedy drafts only the largest logits are asked for, by the rules that hold before the draft: where a token of it
// changes them (an end or stop token is let through, a tag is banned), nothing is chosen from what the model left out.
TEST(ModelDrafter, DraftsOfAScreenedHeadChangeNothing) {
  const std::uint64_t seed = 11;
  Rng rng(seed);
  auto requests = requests_of(seed, 150);
  for (Request& request : requests) {
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = rng.below(2) == 0;
    request.max_tokens = 12 + rng.below(20);
    request.min_tokens = rng.below(12);
    if (rng.below(2) == 0) request.stop_tokens = {static_cast<TokenId>(4 + rng.below(20))};
    request.thinking.mode = rng.below(2) == 0 ? ThinkingMode::kAuto : ThinkingMode::kUntracked;
    if (rng.below(2) == 0) request.thinking.budget = rng.below(6);
  }
  const auto answers = [&](testing::FakeEngine& engine) {
    std::vector<std::vector<TokenId>> ids;
    for (const Request& request : requests) {
      const auto recorder = std::make_shared<testing::Recorder>();
      EXPECT_TRUE(engine.core->submit(request, recorder));
      EXPECT_TRUE(engine.run_all());
      ids.push_back(recorder->ids);
    }
    return ids;
  };
  testing::FakeSettings settings{.vocab_size = 56, .n_blocks = 100, .max_logit_rows = 32};
  testing::FakeEngine plain(settings);
  const auto want = answers(plain);
  const testing::FakeSettings twin = settings;
  settings.screens = true;
  FakeSpeculation speculation(settings, twin);
  speculation.engine->forward->on_run = [] { std::this_thread::sleep_for(std::chrono::microseconds(300)); };
  EXPECT_EQ(answers(*speculation.engine), want);
  EXPECT_GT(speculation.engine->forward->n_screened, 300);
  EXPECT_GT(speculation.engine->core->stats().accepted_tokens, 200);
}

TEST(ModelDrafter, AFailureCostsDraftsOnly) {
  const auto requests = requests_of(8, 10);
  const testing::FakeSettings settings{.max_logit_rows = 32};
  testing::FakeEngine plain(settings);
  const auto want = run(plain, requests, 8);
  FakeSpeculation speculation(settings, settings);
  speculation.draft->fail_at = 5;
  EXPECT_EQ(run(*speculation.engine, requests, 8).ids, want.ids);
  EXPECT_GT(speculation.draft->n_runs, 5);
}

// The first tokens of 4,000 requests of other seeds, behind a drafted one: as often as the model's probabilities say.
TEST(ModelDrafter, LeavesTheDistributionAsItIs) {
  const testing::FakeSettings settings{
      .vocab_size = 16, .n_blocks = 512, .max_seqs = 16, .chunk_tokens = 64, .max_logit_rows = 64, .spread = 2.0f};
  testing::FakeSettings other = settings;
  other.spread = 0.7f;  // a flatter distribution, of the same order
  constexpr int kRequests = 4000;
  std::vector<std::vector<double>> counts(2, std::vector<double>(256, 0));
  EngineStats stats;
  for (const bool speculates : {false, true}) {
    FakeSpeculation speculation(settings, other);
    testing::FakeEngine plain(settings);
    testing::FakeEngine& engine = speculates ? *speculation.engine : plain;
    std::vector<std::shared_ptr<testing::Recorder>> recorders;
    for (int i = 0; i < kRequests; ++i) {
      Request request;
      request.prompt = {5, 6, 7};
      request.max_tokens = 4;
      request.sampling.temperature = 1;
      // Other seeds with than without: the same text would prove nothing about the distribution.
      request.sampling.seed = static_cast<std::uint64_t>(i + (speculates ? 1000000 : 0));
      request.sampling.ignore_eos = true;
      request.thinking.mode = ThinkingMode::kUntracked;
      recorders.push_back(std::make_shared<testing::Recorder>());
      if (!engine.core->submit(request, recorders.back())) {
        while (engine.core->step()) {
        }
        ASSERT_TRUE(engine.core->submit(request, recorders.back()));
      }
    }
    ASSERT_TRUE(engine.run_all());
    for (const auto& recorder : recorders)
      counts[speculates][static_cast<std::size_t>(recorder->ids[1] * 16 + recorder->ids[2])] += 1;
    if (speculates) stats = engine.core->stats();
  }
  EXPECT_GT(stats.accepted_tokens, 1000);
  EXPECT_GT(stats.drafted_tokens, stats.accepted_tokens);
  // Two samples of one distribution: chi-square over the pairs of tokens that are seen often enough.
  double chi2 = 0;
  int n_cells = 0;
  for (std::size_t i = 0; i < 256; ++i) {
    const double a = counts[0][i], b = counts[1][i];
    if (a + b < 20) continue;
    chi2 += (a - b) * (a - b) / (a + b);
    ++n_cells;
  }
  std::printf("chi-square %.1f over %d cells\n", chi2, n_cells);
  ASSERT_GT(n_cells, 30);
  // Mean n - 1, standard deviation sqrt(2 (n - 1)): 4 of them.
  EXPECT_LT(chi2, n_cells - 1 + 4 * std::sqrt(2.0 * (n_cells - 1)));
}

}  // namespace
}  // namespace still

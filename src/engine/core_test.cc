// EngineCore without a model: the life of requests, and that answers do not depend on what else goes on.
#include "engine/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>

#include "engine/fake_forward.h"

namespace still {
namespace {

using ::testing::ElementsAre;
using testing::FakeEngine;
using testing::FakeSettings;
using ::testing::HasSubstr;
using testing::kA;
using testing::kClose;
using testing::kEnd;
using testing::kNewline;
using testing::kOpen;
using testing::Recorder;

// Says `script`, one token after the other, whatever the prompt of n_prompt tokens.
std::function<TokenId(std::span<const TokenId>)> say(std::vector<TokenId> script, std::size_t n_prompt) {
  return [script = std::move(script), n_prompt](std::span<const TokenId> history) {
    const std::size_t i = history.size() - n_prompt;
    return i < script.size() ? script[i] : kEnd;
  };
}

std::shared_ptr<Recorder> submit(FakeEngine& engine, Request request, RequestId* id = nullptr) {
  const auto recorder = std::make_shared<Recorder>();
  const auto submitted = engine.core->submit(std::move(request), recorder);
  EXPECT_TRUE(submitted) << submitted.error().message;
  if (submitted && id != nullptr) *id = *submitted;
  return recorder;
}

Request greedy(std::vector<TokenId> prompt, std::int64_t max_tokens = -1) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

TEST(EngineCore, AnswersUntilTheEndToken) {
  FakeEngine engine({.script = say({kA, kA + 1, kA + 2}, 2)});
  const auto recorder = submit(engine, greedy({5, 6}));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->text, "abc");
  EXPECT_THAT(recorder->ids, ElementsAre(kA, kA + 1, kA + 2, kEnd));
  EXPECT_TRUE(recorder->tokens.back().is_end);
  EXPECT_EQ(recorder->finished.reason, FinishReason::kStop);
  EXPECT_EQ(recorder->finished.stop_token, kEnd);
  EXPECT_EQ(recorder->finished.usage.n_prompt, 2);
  EXPECT_EQ(recorder->finished.usage.n_completion, 4);
  EXPECT_GT(recorder->finished.timings.ttft.count(), 0);
}

// Who sends for many sinks is told where the ends of a step begin and where they are over.
TEST(EngineCore, TellsAroundTheEndsOfAStep) {
  struct EndsSink : EventSink {
    explicit EndsSink(std::string& record) : record(record) {}
    void on_event(const Event&) override {}
    void on_step_end() override { record += '.'; }
    std::string& record;
  };
  std::string record;
  FakeEngine engine({.script = say({kA, kA}, 2)}, [&](CoreOptions& options) {
    options.around_step_ends = [&](bool begins) { record += begins ? '(' : ')'; };
  });
  for (int i = 0; i < 3; ++i)
    ASSERT_TRUE(engine.core->submit(greedy({5, static_cast<TokenId>(6 + i)}), std::make_shared<EndsSink>(record)));
  while (engine.core->step()) {
  }
  EXPECT_THAT(record, ::testing::StartsWith("(...)"));
  std::size_t n_ends = 0;
  for (std::size_t at = 0; at < record.size(); at = record.find(')', at) + 1, ++n_ends) {
    EXPECT_EQ(record[at], '(') << record;
    EXPECT_EQ(record[at + 1], '.') << record;
  }
  EXPECT_GE(n_ends, 3u) << record;
  EXPECT_EQ(std::ranges::count(record, '('), std::ranges::count(record, ')'));
}

TEST(EngineCore, CountsAnAnswerBeforeItsEndIsTold) {
  struct LastSink : EventSink {
    explicit LastSink(FakeEngine& engine) : engine(engine) {}
    void on_event(const Event& event) override {
      if (!is_finished && std::holds_alternative<FinishedEvent>(event)) at_end = engine.core->stats();
      is_finished |= std::holds_alternative<FinishedEvent>(event);
    }
    void on_step_end() override {
      if (is_finished) at_step_end = engine.core->stats();
    }
    FakeEngine& engine;
    bool is_finished = false;
    EngineStats at_end, at_step_end;
  };
  FakeEngine engine({.script = [](auto) { return kA; }});
  const auto sink = std::make_shared<LastSink>(engine);
  ASSERT_TRUE(engine.core->submit(greedy({5, 6}, 3), sink));
  while (engine.core->step()) {
  }
  ASSERT_TRUE(sink->is_finished);
  for (const EngineStats& stats : {sink->at_end, sink->at_step_end}) {
    EXPECT_EQ(stats.n_running, 0);
    EXPECT_EQ(stats.completion_tokens, 3);
    EXPECT_EQ(stats.n_finished[static_cast<std::size_t>(FinishReason::kLength)], 1);
  }
}

TEST(EngineCore, StopsAtMaxTokensAndSaysWhenTheContextIsFull) {
  FakeEngine engine({.context = 12, .script = [](auto) { return kA; }});
  const auto limited = submit(engine, greedy({5, 6}, 3));
  const auto full = submit(engine, greedy({5, 6}));
  const auto nothing = submit(engine, greedy({5, 6}, 0));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(limited->text, "aaa");
  EXPECT_EQ(limited->finished.reason, FinishReason::kLength);
  EXPECT_TRUE(limited->finished.warnings.empty());
  EXPECT_EQ(full->text, "aaaaaaaaaa");
  EXPECT_EQ(full->finished.reason, FinishReason::kLength);
  ASSERT_EQ(full->finished.warnings.size(), 1u);
  EXPECT_THAT(full->finished.warnings[0], HasSubstr("context of 12 tokens is full"));
  EXPECT_EQ(nothing->text, "");
  EXPECT_EQ(nothing->finished.reason, FinishReason::kLength);
}

TEST(EngineCore, StopStringsStopTokensMinTokensAndBans) {
  FakeEngine engine({.max_seqs = 8, .script = say({kA, kA + 1, kA + 2, kA + 3}, 1)});
  Request request = greedy({9});
  request.stop = {"bc"};
  const auto stopped = submit(engine, request);
  request = greedy({9});
  request.stop_tokens = {kA + 2};
  const auto stop_token = submit(engine, request);
  request = greedy({9}, 10);
  request.min_tokens = 7;
  const auto longer = submit(engine, request);
  request = greedy({9}, 10);
  request.sampling.ignore_eos = true;
  const auto ignoring = submit(engine, request);
  request = greedy({9}, 1);
  request.banned_tokens = {kA};
  const auto banned = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(stopped->text, "a");
  EXPECT_EQ(stopped->finished.reason, FinishReason::kStopString);
  EXPECT_EQ(stopped->finished.matched_stop, "bc");
  EXPECT_EQ(stop_token->text, "ab");
  EXPECT_EQ(stop_token->finished.stop_token, kA + 2);
  EXPECT_EQ(longer->finished.usage.n_completion, 8) << "seven and the end token";
  EXPECT_EQ(ignoring->finished.usage.n_completion, 10);
  EXPECT_EQ(ignoring->finished.reason, FinishReason::kLength);
  EXPECT_NE(banned->ids[0], kA);
}

TEST(EngineCore, RefusesWhatCannotBe) {
  FakeEngine engine({.vocab_size = 64, .context = 16});
  const auto message = [&](const std::function<void(Request&)>& change) {
    Request request = greedy({5, 6});
    change(request);
    const auto result = engine.core->submit(std::move(request), std::make_shared<Recorder>());
    EXPECT_FALSE(result);
    return result ? std::string() : result.error().message;
  };
  EXPECT_EQ(message([](Request& r) { r.sampling.temperature = -1; }), "temperature -1: expected 0 or more");
  EXPECT_THAT(message([](Request& r) { r.sampling.temperature = NAN; }), HasSubstr("temperature nan"));
  EXPECT_EQ(message([](Request& r) { r.sampling.temperature = INFINITY; }),
            "temperature inf: expected a finite number, 0 or more");
  EXPECT_THAT(message([](Request& r) { r.sampling.top_p = 0; }), HasSubstr("top_p 0"));
  EXPECT_THAT(message([](Request& r) { r.sampling.top_k = -2; }), HasSubstr("top_k -2"));
  EXPECT_THAT(message([](Request& r) { r.sampling.min_p = 1.5f; }), HasSubstr("min_p 1.5"));
  EXPECT_THAT(message([](Request& r) { r.sampling.repetition_penalty = 0; }), HasSubstr("repetition_penalty 0"));
  EXPECT_THAT(message([](Request& r) { r.sampling.logit_bias = {{64, 1.0f}}; }),
              HasSubstr("token 64 is not in the vocabulary of 64"));
  EXPECT_THAT(message([](Request& r) { r.prompt.clear(); }), HasSubstr("the prompt is empty"));
  EXPECT_THAT(message([](Request& r) { r.prompt = {3, -1}; }), HasSubstr("token -1 at place 1"));
  EXPECT_THAT(message([](Request& r) { r.prompt.assign(17, 5); }),
              HasSubstr("the prompt has 17 tokens, the context holds 16"));
  EXPECT_THAT(message([](Request& r) { r.prompt.assign(16, 5); }), HasSubstr("an answer needs at least one"));
  EXPECT_THAT(message([](Request& r) { r.max_tokens = -3; }), HasSubstr("max_tokens -3"));
  EXPECT_THAT(message([](Request& r) { r.stop = {""}; }), HasSubstr("empty string"));
  EXPECT_THAT(message([](Request& r) { r.n_logprobs = 21; }), HasSubstr("logprobs 21"));
  EXPECT_THAT(message([](Request& r) { r.thinking.budget = -7; }), HasSubstr("thinking budget -7"));
  EXPECT_EQ(engine.core->stats().n_rejected, 16);
  EXPECT_FALSE(engine.core->step());
}

// --- thinking ---

TEST(Thinking, SplitsChannelsAndTrimsNewlines) {
  FakeEngine engine({.script = say({kOpen, kNewline, kA, kA + 1, kNewline, kClose, kNewline, kNewline, kA + 2}, 1)});
  const auto recorder = submit(engine, greedy({9}));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "ab\n");
  EXPECT_EQ(recorder->text, "c");
  EXPECT_EQ(recorder->finished.usage.n_reasoning, 4);
  EXPECT_TRUE(recorder->tokens[0].is_tag);
}

TEST(Thinking, StartsInsideWhereThePromptDoes) {
  FakeEngine engine({.script = say({kA, kClose, kA + 1}, 2)});
  Request request = greedy({9, kOpen});
  request.thinking.starts_in_thinking = true;
  request.stop = {"a"};
  const auto recorder = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "a") << "stop strings are of the answer";
  EXPECT_EQ(recorder->text, "b");
}

TEST(Thinking, NeverClosedIsAllReasoning) {
  FakeEngine engine({.script = [](auto) { return kA; }});
  Request request = greedy({9}, 5);
  request.thinking.starts_in_thinking = true;
  const auto recorder = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "aaaaa");
  EXPECT_EQ(recorder->finished.reason, FinishReason::kLength);
}

TEST(Thinking, BudgetClosesTheBlockWithItsMessage) {
  // Thinks for ever; says "x" once the block is closed.
  const TokenId x = kA + 23;
  FakeEngine engine({.script = [x](std::span<const TokenId> history) {
    if (std::find(history.begin(), history.end(), kClose) == history.end()) return kA;
    return history.back() == x ? kEnd : x;
  }});
  Request request = greedy({9});
  request.thinking.starts_in_thinking = true;
  request.thinking.budget = 3;
  request.thinking.budget_message = {kA + 4, kA + 5};
  const auto recorder = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "aaaef");
  EXPECT_EQ(recorder->text, "x");
  EXPECT_TRUE(recorder->tokens[3].is_forced);
  EXPECT_EQ(recorder->finished.usage.n_reasoning, 3) << "at most the budget: the closing message is not the model's";
  EXPECT_EQ(recorder->finished.reason, FinishReason::kStop);
}

TEST(Thinking, ForbiddenAndRequired) {
  FakeEngine engine({.script = [](std::span<const TokenId> history) { return history.back() == kOpen ? kA : kOpen; }});
  Request request = greedy({9}, 6);
  request.thinking.mode = ThinkingMode::kForbidden;
  const auto forbidden = submit(engine, request);
  request.thinking.starts_in_thinking = true;
  const auto closed = submit(engine, request);
  request = greedy({9}, 4);
  request.thinking.mode = ThinkingMode::kRequired;
  const auto required = submit(engine, request);
  request.thinking.mode = ThinkingMode::kUntracked;
  const auto raw = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  for (const TokenId id : forbidden->ids) EXPECT_NE(id, kOpen);
  EXPECT_EQ(forbidden->reasoning, "");
  EXPECT_THAT(std::vector<TokenId>(closed->ids.begin(), closed->ids.begin() + 3),
              ElementsAre(kClose, kNewline, kNewline));
  EXPECT_EQ(closed->reasoning, "");
  EXPECT_EQ(required->ids[0], kOpen);
  EXPECT_NE(required->reasoning, "");
  EXPECT_THAT(raw->text, HasSubstr("<think>"));
}

TEST(Thinking, StopThinkingAnswersNow) {
  const TokenId x = kA + 23;
  FakeEngine engine({.script = [x](std::span<const TokenId> history) {
    if (std::find(history.begin(), history.end(), kClose) == history.end()) return kA;
    return history.back() == x ? kEnd : x;
  }});
  Request request = greedy({9});
  request.thinking.starts_in_thinking = true;
  RequestId id = 0;
  const auto recorder = submit(engine, request, &id);
  while (recorder->reasoning.size() < 4) engine.core->step();
  engine.core->stop_thinking(id);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "aaaa");
  EXPECT_EQ(recorder->text, "x");
}

// --- constraints ---

// The letters of `word` one by one, then nothing.
class WordConstraint : public TokenConstraint {
 public:
  explicit WordConstraint(std::vector<TokenId> word) : word_(std::move(word)) {}
  void fill_mask(TokenMask mask) override {
    std::fill(mask.begin(), mask.end(), 0u);
    if (pos_ < word_.size()) mask[static_cast<std::size_t>(word_[pos_] / 32)] |= 1u << (word_[pos_] % 32);
  }
  bool accept(TokenId id) override { return pos_ < word_.size() && word_[pos_++] == id; }
  bool is_complete() const override { return is_closed && pos_ == word_.size(); }
  bool is_closed = true;

 private:
  std::vector<TokenId> word_;
  std::size_t pos_ = 0;
};

TEST(Constraint, BeginsAfterThinking) {
  FakeEngine engine({.script = say({kOpen, kA, kA, kClose, kA, kA, kA}, 1)});
  Request request = greedy({9});
  request.constraint = std::make_shared<WordConstraint>(std::vector<TokenId>{kA + 7, kA + 8});
  const auto recorder = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->reasoning, "aa");
  EXPECT_EQ(recorder->text, "hi");
  EXPECT_EQ(recorder->finished.reason, FinishReason::kStop);
}

TEST(Constraint, ThatAllowsNothingEndsWithAnError) {
  FakeEngine engine({.script = [](auto) { return kA; }});
  Request request = greedy({9});
  const auto constraint = std::make_shared<WordConstraint>(std::vector<TokenId>{kA + 7});
  constraint->is_closed = false;
  request.constraint = constraint;
  const auto recorder = submit(engine, request);
  const auto other = submit(engine, greedy({9}, 3));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(recorder->text, "h");
  EXPECT_EQ(recorder->finished.reason, FinishReason::kError);
  EXPECT_THAT(recorder->finished.error.message, HasSubstr("constraint allows no token"));
  EXPECT_EQ(other->text, "aaa");
}

// --- scheduling ---

TEST(EngineCore, SecondRequestFindsThePrefix) {
  FakeEngine engine({.script = [](auto) { return kA; }});
  std::vector<TokenId> prompt(19);
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<TokenId>(10 + i);
  const auto first = submit(engine, greedy(prompt, 3));
  ASSERT_TRUE(engine.run_all());
  const auto second = submit(engine, greedy(prompt, 3));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(first->started.n_cached, 0);
  EXPECT_EQ(second->started.n_cached, 18) << "all but the last, whose logits are wanted";
  EXPECT_EQ(engine.core->stats().cached_tokens, 18);
  EXPECT_EQ(engine.core->stats().queried_tokens, 38);
  EXPECT_EQ(first->ids, second->ids);
  Request request = greedy(prompt, 3);
  request.keep_prefix = false;
  request.prompt[0] = 40;
  submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  const auto private_again = submit(engine, request);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(private_again->started.n_cached, 0);
  // Another question behind the same beginning, which ends within a block.
  prompt[17] = 50;
  const auto other = submit(engine, greedy(prompt, 3));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(other->started.n_cached, 17);
}

TEST(EngineCore, CancelFreesBlocksAtTheNextStep) {
  FakeEngine engine({.block_size = 64, .script = [](auto) { return kA; }},
                    [](CoreOptions& o) { o.prefix_cache = false; });
  RequestId running_id = 0, waiting_id = 0;
  const auto running = submit(engine, greedy(std::vector<TokenId>(20, 7)), &running_id);
  for (int i = 0; i < 3; ++i) submit(engine, greedy({7}, 40));
  const auto waiting = submit(engine, greedy({8}), &waiting_id);
  for (int i = 0; i < 5; ++i) engine.core->step();
  EXPECT_EQ(engine.core->stats().n_blocks_used, 4);
  EXPECT_EQ(engine.core->stats().n_waiting, 1);
  engine.core->cancel(running_id);
  engine.core->cancel(waiting_id);
  engine.core->cancel(4711);
  engine.core->step();
  EXPECT_TRUE(running->is_finished);
  EXPECT_EQ(running->finished.reason, FinishReason::kCancelled);
  EXPECT_TRUE(waiting->is_finished);
  EXPECT_EQ(waiting->n_started, 0);
  EXPECT_EQ(engine.core->stats().n_blocks_used, 3);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(engine.core->pool().n_free(), 64);
}

// A chunk may take seconds: where all that computes is cancelled meanwhile, it is given up and nothing comes of it.
TEST(EngineCore, CancelGivesUpAForwardPassThatNobodyElseNeeds) {
  FakeEngine engine({.n_blocks = 128, .context = 256, .chunk_tokens = 8, .script = [](auto) { return kA; }});
  RequestId first_id = 0, second_id = 0;
  const auto first = submit(engine, greedy(std::vector<TokenId>(100, 6), 1), &first_id);
  engine.core->step();
  EXPECT_EQ(first->progress.back().n_prefilled, 8);
  engine.forward->on_run = [&] { engine.core->cancel(first_id); };
  EXPECT_TRUE(engine.core->step());
  engine.forward->on_run = nullptr;
  EXPECT_EQ(first->progress.back().n_prefilled, 8) << "the chunk does not count";
  EXPECT_EQ(engine.core->stats().prompt_tokens, 8);
  EXPECT_FALSE(engine.core->step());
  EXPECT_EQ(first->finished.reason, FinishReason::kCancelled);
  // Beside another that goes on, it is ended at the next step.
  const auto chat = submit(engine, greedy({5}, 100));
  engine.core->step();
  const auto second = submit(engine, greedy(std::vector<TokenId>(100, 7), 1), &second_id);
  engine.forward->on_run = [&] { engine.core->cancel(second_id); };
  const std::size_t before = chat->ids.size();
  engine.core->step();
  EXPECT_EQ(chat->ids.size(), before + 1);
  EXPECT_FALSE(second->is_finished);
  engine.core->step();
  EXPECT_EQ(second->finished.reason, FinishReason::kCancelled);
  EXPECT_EQ(chat->ids.size(), before + 2);
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(chat->ids, std::vector<TokenId>(100, kA));
}

TEST(EngineCore, QueueIsBoundedAndTellsPlaces) {
  FakeEngine engine({.max_seqs = 1, .script = [](auto) { return kA; }}, [](CoreOptions& o) { o.max_queue = 3; });
  std::vector<std::shared_ptr<Recorder>> recorders;
  for (int i = 0; i < 4; ++i) recorders.push_back(submit(engine, greedy({5}, 2)));
  const auto refused = engine.core->submit(greedy({5}, 2), std::make_shared<Recorder>());
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
  EXPECT_THAT(refused.error().message, HasSubstr("queue full"));
  ASSERT_TRUE(engine.run_all());
  std::vector<std::int64_t> places;
  for (const ProgressEvent& event : recorders[3]->progress)
    if (event.is_waiting) places.push_back(event.queue_position);
  EXPECT_THAT(places, ElementsAre(2, 1, 0));
  EXPECT_TRUE(engine.core->submit(greedy({5}, 2), std::make_shared<Recorder>()));
}

TEST(EngineCore, UsersTakeTurns) {
  FakeEngine engine({.context = 128, .max_seqs = 2, .chunk_tokens = 8, .script = [](auto) { return kA; }});
  Request heavy = greedy(std::vector<TokenId>(100, 7), 2);
  heavy.user = "heavy";
  std::vector<std::shared_ptr<Recorder>> heavies;
  for (int i = 0; i < 3; ++i) heavies.push_back(submit(engine, heavy));
  engine.core->step();
  Request light = greedy({8, 9, 10}, 2);
  light.user = "light";
  const auto recorder = submit(engine, light);
  for (int i = 0; i < 4; ++i) engine.core->step();
  EXPECT_TRUE(recorder->is_finished) << "a short prompt of another user does not wait for a long one";
  EXPECT_FALSE(heavies[0]->is_finished);
  ASSERT_TRUE(engine.run_all());
}

TEST(EngineCore, PriorityGoesFirst) {
  FakeEngine engine({.max_seqs = 1, .script = [](auto) { return kA; }});
  submit(engine, greedy({5}, 3));
  engine.core->step();
  const auto low = submit(engine, greedy({5}, 3));
  Request request = greedy({5}, 3);
  request.priority = 1;
  const auto high = submit(engine, request);
  while (!high->is_finished) engine.core->step();
  EXPECT_EQ(low->n_started, 0);
  ASSERT_TRUE(engine.run_all());
}

TEST(EngineCore, DecodesGoOnDuringALongPrefill) {
  FakeEngine engine({.n_blocks = 128, .context = 256, .chunk_tokens = 8, .script = [](auto) { return kA; }});
  const auto chat = submit(engine, greedy({5}, 100));
  engine.core->step();
  submit(engine, greedy(std::vector<TokenId>(200, 6), 1));
  for (int i = 0; i < 10; ++i) {
    const std::size_t before = chat->ids.size();
    engine.core->step();
    EXPECT_EQ(chat->ids.size(), before + 1);
  }
  EXPECT_LE(engine.forward->max_tokens_seen, 8);
  ASSERT_TRUE(engine.run_all());
}

TEST(EngineCore, AFailedForwardEndsItsRequestsOnly) {
  FakeEngine engine({.script = [](auto) { return kA; }});
  const auto lost = submit(engine, greedy({5}, 9));
  engine.core->step();
  engine.forward->fail_at = engine.forward->n_runs + 1;
  engine.core->step();
  EXPECT_EQ(lost->finished.reason, FinishReason::kError);
  EXPECT_EQ(lost->finished.error.message, "the device is gone");
  const auto next = submit(engine, greedy({5}, 2));
  ASSERT_TRUE(engine.run_all());
  EXPECT_EQ(next->text, "aa");
}

TEST(EngineCore, PromptLogprobsComeOnceForEachToken) {
  for (const bool preempt : {false, true}) {
    FakeEngine engine({.max_seqs = 2, .chunk_tokens = 8, .max_logit_rows = 4},
                      [&](CoreOptions& o) { o.preempt_every_step = preempt; });
    Request request = greedy({5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 3);
    request.n_logprobs = 2;
    request.prompt_logprobs = true;
    const auto recorder = submit(engine, request);
    ASSERT_TRUE(engine.run_all());
    ASSERT_EQ(recorder->prompt_tokens.size(), 11u);
    for (std::size_t i = 0; i < 11; ++i) {
      EXPECT_EQ(recorder->prompt_tokens[i].pos, static_cast<std::int64_t>(i));
      EXPECT_EQ(recorder->prompt_tokens[i].id, static_cast<TokenId>(5 + i));
      EXPECT_EQ(recorder->prompt_tokens[i].logprobs.has_value(), i > 0);
      if (i > 0) {
        EXPECT_EQ(recorder->prompt_tokens[i].logprobs->top.size(), 2u);
      }
    }
    // The scores of a prompt's tokens are those that sampling them would tell.
    Request shorter = greedy({5, 6, 7}, 1);
    shorter.n_logprobs = 2;
    const auto sampled = submit(engine, shorter);
    ASSERT_TRUE(engine.run_all());
    EXPECT_EQ(sampled->tokens[0].logprobs->top[0].id, recorder->prompt_tokens[3].logprobs->top[0].id);
    EXPECT_EQ(sampled->tokens[0].logprobs->top[0].logprob, recorder->prompt_tokens[3].logprobs->top[0].logprob);
    EXPECT_EQ(sampled->tokens[0].logprobs->logprob, sampled->tokens[0].logprobs->top[0].logprob);
  }
}

// --- the same answer, whatever else ---

std::vector<Request> random_requests(std::uint64_t seed, int n) {
  Rng rng(seed);
  std::vector<Request> requests;
  for (int i = 0; i < n; ++i) {
    Request request;
    const std::int64_t n_prompt = 1 + rng.below(40);
    // Few different beginnings, so that prefixes are shared.
    const auto base = static_cast<TokenId>(10 + rng.below(3));
    for (std::int64_t j = 0; j < n_prompt; ++j)
      request.prompt.push_back(j < 12 ? static_cast<TokenId>(base + j) : static_cast<TokenId>(rng.below(50)));
    request.max_tokens = rng.below(5) == 0 ? -1 : rng.below(24);
    request.sampling.temperature = static_cast<float>(rng.below(3)) * 0.6f;
    request.sampling.top_k = static_cast<std::int32_t>(rng.below(2) * 8);
    request.sampling.top_p = rng.below(2) == 0 ? 1.0f : 0.8f;
    request.sampling.repetition_penalty = rng.below(3) == 0 ? 1.2f : 1.0f;
    request.sampling.seed = rng.next();
    request.n_logprobs = static_cast<std::int32_t>(rng.below(4)) - 1;
    request.thinking.starts_in_thinking = rng.below(3) == 0;
    request.thinking.budget = rng.below(3) == 0 ? rng.below(6) : -1;
    request.thinking.budget_message = {20, 21};
    if (rng.below(3) == 0) request.stop = {"a", "bc"};
    request.user = std::string(1, static_cast<char>('a' + rng.below(3)));
    request.priority = static_cast<std::int32_t>(rng.below(2));
    requests.push_back(std::move(request));
  }
  return requests;
}

struct Outcome {
  std::vector<TokenId> ids;
  std::string text, reasoning;
  FinishReason reason;
  std::vector<float> logprobs;
  friend bool operator==(const Outcome&, const Outcome&) = default;
};
Outcome outcome(const Recorder& recorder) {
  Outcome out{recorder.ids, recorder.text, recorder.reasoning, recorder.finished.reason, {}};
  for (const TokenEvent& token : recorder.tokens)
    if (token.logprobs) out.logprobs.push_back(token.logprobs->logprob);
  return out;
}

std::vector<Outcome> run_alone(const std::vector<Request>& requests) {
  std::vector<Outcome> outcomes;
  for (const Request& request : requests) {
    FakeEngine engine({.max_seqs = 1, .chunk_tokens = 64}, [](CoreOptions& o) { o.prefix_cache = false; });
    const auto recorder = submit(engine, request);
    EXPECT_TRUE(engine.run_all());
    outcomes.push_back(outcome(*recorder));
  }
  return outcomes;
}

struct Setting {
  const char* name;
  FakeSettings fake;
  bool prefix_cache = true, preempt = false, speculate = false, run_ahead = true;
};

// Half of the requests need nothing of the host on a device, so that steps overlap.
void leave_to_the_device(std::vector<Request>& requests) {
  for (std::size_t i = 0; i < requests.size(); i += 2) {
    requests[i].n_logprobs = -1;
    requests[i].sampling.repetition_penalty = 1;
    requests[i].sampling.min_p = i % 4 == 0 ? 0.1f : 0.0f;
  }
}

TEST(SameAnswer, WhateverTheSettings) {
  const std::uint64_t seed = 4;
  auto requests = random_requests(seed, 60);
  leave_to_the_device(requests);
  const auto want = run_alone(requests);
  const Setting settings[] = {
      {.name = "batched", .fake = {}},
      {.name = "batched, no prefix cache", .fake = {}, .prefix_cache = false},
      {.name = "chunk of 1", .fake = {.max_seqs = 1, .chunk_tokens = 1}},
      {.name = "16 together", .fake = {.n_blocks = 256, .max_seqs = 16, .chunk_tokens = 64, .max_logit_rows = 32}},
      {.name = "few blocks", .fake = {.n_blocks = 16, .max_seqs = 8}},
      {.name = "blocks of 1", .fake = {.block_size = 1, .n_blocks = 100, .max_seqs = 8}},
      {.name = "preempted at each step", .fake = {}, .preempt = true},
      {.name = "preempted at each step, no prefix cache", .fake = {}, .prefix_cache = false, .preempt = true},
      {.name = "speculation", .fake = {.max_logit_rows = 24}, .speculate = true},
      {.name = "speculation, few blocks",
       .fake = {.n_blocks = 17, .max_seqs = 8, .max_logit_rows = 24},
       .speculate = true},
      {.name = "device", .fake = {.on_device = true}},
      {.name = "device, no run ahead", .fake = {.on_device = true}, .run_ahead = false},
      {.name = "device, 16 together",
       .fake = {.n_blocks = 256, .max_seqs = 16, .chunk_tokens = 64, .max_logit_rows = 32, .on_device = true}},
      {.name = "device, chunk of 1", .fake = {.max_seqs = 1, .chunk_tokens = 1, .on_device = true}},
      {.name = "device, few blocks", .fake = {.n_blocks = 16, .max_seqs = 8, .on_device = true}},
      {.name = "device, blocks of 1", .fake = {.block_size = 1, .n_blocks = 100, .max_seqs = 8, .on_device = true}},
      {.name = "device, preempted at each step", .fake = {.on_device = true}, .preempt = true},
      {.name = "device, preempted at each step, no prefix cache",
       .fake = {.on_device = true},
       .prefix_cache = false,
       .preempt = true},
      {.name = "device, speculation", .fake = {.max_logit_rows = 24, .on_device = true}, .speculate = true},
  };
  for (const Setting& setting : settings) {
    SCOPED_TRACE(setting.name);
    FakeEngine engine(
        setting.fake,
        [&](CoreOptions& o) {
          o.prefix_cache = setting.prefix_cache;
          o.preempt_every_step = setting.preempt;
          o.run_ahead = setting.run_ahead;
        },
        setting.speculate ? make_lookup_drafter(1, 3) : nullptr);
    std::vector<std::shared_ptr<Recorder>> recorders;
    Rng rng(seed + 1);
    for (const Request& request : requests) {
      recorders.push_back(submit(engine, request));
      for (std::int64_t i = rng.below(6); i > 0; --i) engine.core->step();
    }
    ASSERT_TRUE(engine.run_all());
    for (std::size_t i = 0; i < requests.size(); ++i) {
      ASSERT_TRUE(recorders[i]->is_finished);
      ASSERT_EQ(outcome(*recorders[i]), want[i]) << "request " << i << ", seed " << seed;
    }
    const EngineStats stats = engine.core->stats();
    EXPECT_EQ(stats.n_running + stats.n_waiting + stats.n_blocks_used, 0);
    EXPECT_EQ(stats.n_blocks_cached + engine.core->pool().n_free(), setting.fake.n_blocks) << "no block is lost";
    if (setting.preempt) {
      EXPECT_GT(stats.n_preemptions, 100);
    }
    if (std::string_view(setting.name) == "few blocks") {
      EXPECT_GT(stats.n_preemptions, 0);
    }
    if (setting.speculate) {
      EXPECT_GT(stats.drafted_tokens, 0);
    }
  }
}

// Requests of which none needs the host: two steps are under way all the time, tags, budgets and ends included.
TEST(SameAnswer, WhereStepsOverlap) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    auto requests = random_requests(seed, 50);
    for (Request& request : requests) {
      request.n_logprobs = -1;
      request.sampling.repetition_penalty = 1;
      if (request.max_tokens == 0) request.max_tokens = 7;
      if (seed % 3 == 0 && (request.max_tokens < 0 || request.max_tokens >= 3)) request.min_tokens = 3;
    }
    const auto want = run_alone(requests);
    const bool has_few_blocks = seed % 2 == 0, preempts = seed % 4 == 1;
    FakeEngine engine({.n_blocks = has_few_blocks ? 16 : 64, .max_seqs = 6, .on_device = true},
                      [&](CoreOptions& o) { o.preempt_every_step = preempts; });
    std::vector<std::shared_ptr<Recorder>> recorders;
    Rng rng(seed + 1);
    for (const Request& request : requests) {
      recorders.push_back(submit(engine, request));
      for (std::int64_t i = rng.below(6); i > 0; --i) engine.core->step();
    }
    ASSERT_TRUE(engine.run_all());
    for (std::size_t i = 0; i < requests.size(); ++i) ASSERT_EQ(outcome(*recorders[i]), want[i]) << "request " << i;
    EXPECT_EQ(engine.forward->max_under_way, 2);
    EXPECT_EQ(engine.forward->n_fetched, 0) << "the host samples nothing";
    EXPECT_EQ(engine.core->pool().n_free() + engine.core->cache().n_unused(), has_few_blocks ? 16 : 64);
  }
}

TEST(EngineCore, AFailedDeviceEndsItsRequestsOnly) {
  for (const bool at_launch : {true, false}) {
    SCOPED_TRACE(at_launch);
    FakeEngine engine({.on_device = true});
    const auto first = submit(engine, greedy({5, 6, 7}, 30)), second = submit(engine, greedy({8, 9}, 30));
    for (int i = 0; i < 4; ++i) engine.core->step();
    (at_launch ? engine.forward->fail_at : engine.forward->fail_collect_at) =
        (at_launch ? engine.forward->n_runs : engine.forward->n_collected) + 1;
    ASSERT_TRUE(engine.run_all());
    for (const auto& recorder : {first, second}) {
      EXPECT_EQ(recorder->finished.reason, FinishReason::kError);
      EXPECT_EQ(recorder->finished.error.message, "the device is gone");
      EXPECT_GT(recorder->ids.size(), 1u);
    }
    const auto third = submit(engine, greedy({5, 6, 7}, 30));
    ASSERT_TRUE(engine.run_all());
    EXPECT_NE(third->finished.reason, FinishReason::kError);
    EXPECT_EQ(engine.core->pool().n_free() + engine.core->cache().n_unused(), 64);
  }
}

// Text that repeats is drafted and accepted; the answer is the same, in fewer steps.
TEST(SameAnswer, SpeculationSavesSteps) {
  const auto loop = [](std::span<const TokenId> history) { return static_cast<TokenId>(kA + history.size() % 5); };
  std::int64_t steps[2];
  std::string texts[2];
  for (const bool speculate : {false, true}) {
    FakeEngine engine({.script = loop}, {}, speculate ? make_lookup_drafter() : nullptr);
    // A step that takes as long with drafts as without, whatever the machine does besides: drafts always pay.
    engine.forward->on_run = [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); };
    const auto recorder = submit(engine, greedy({5}, 60));
    ASSERT_TRUE(engine.run_all());
    steps[speculate] = engine.core->stats().n_steps;
    texts[speculate] = recorder->text;
    if (speculate) {
      EXPECT_GT(recorder->finished.usage.n_accepted, 20);
    }
  }
  EXPECT_EQ(texts[0], texts[1]);
  EXPECT_LT(steps[1], steps[0] / 2);
}

TEST(RandomStreams, WithCancelsNothingIsLost) {
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    SCOPED_TRACE(seed);
    const auto requests = random_requests(seed, 80);
    FakeEngine engine({.n_blocks = 20, .max_seqs = 6, .on_device = seed > 4}, {},
                      seed % 2 == 0 ? make_lookup_drafter(1, 2) : nullptr);
    std::vector<std::shared_ptr<Recorder>> recorders;
    std::vector<RequestId> ids;
    Rng rng(seed);
    for (const Request& request : requests) {
      ids.emplace_back();
      recorders.push_back(submit(engine, request, &ids.back()));
      for (std::int64_t i = rng.below(4); i > 0; --i) engine.core->step();
      if (rng.below(3) == 0)
        engine.core->cancel(ids[static_cast<std::size_t>(rng.below(static_cast<std::int64_t>(ids.size())))]);
      if (rng.below(5) == 0) engine.core->stop_thinking(ids.back());
    }
    ASSERT_TRUE(engine.run_all());
    std::int64_t n_finished = 0;
    for (const auto& recorder : recorders) n_finished += recorder->is_finished ? 1 : 0;
    EXPECT_EQ(n_finished, static_cast<std::int64_t>(requests.size()));
    EXPECT_EQ(engine.core->pool().n_free() + engine.core->cache().n_unused(), 20);
  }
}

TEST(EngineThread, ServesManyThreadsAndDrains) {
  const auto requests = random_requests(9, 40);
  const auto want = run_alone(requests);
  FakeEngine engine({.n_blocks = 40});
  engine.core->start();
  std::vector<std::thread> clients;
  std::vector<Outcome> got(requests.size());
  for (std::size_t client = 0; client < 4; ++client) {
    clients.emplace_back([&, client] {
      for (std::size_t i = client; i < requests.size(); i += 4) {
        const auto queue = std::make_shared<EventQueue>();
        ASSERT_TRUE(engine.core->submit(requests[i], queue));
        Recorder recorder;
        while (!recorder.is_finished) recorder.on_event(queue->pop());
        got[i] = outcome(recorder);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  for (std::size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(got[i], want[i]) << i;

  const auto last = submit(engine, requests[0]);
  engine.core->stop(true);
  EXPECT_TRUE(last->is_finished);
  EXPECT_NE(last->finished.reason, FinishReason::kCancelled);
  const auto late = engine.core->submit(requests[0], std::make_shared<Recorder>());
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Code::kUnavailable);
}

TEST(EngineThread, StopWithoutDrainCancels) {
  FakeEngine engine({.n_blocks = 20000, .context = 60000, .script = [](auto) { return kA; }});
  const auto recorder = submit(engine, greedy({5}));
  engine.core->start();
  engine.core->stop(false);
  EXPECT_TRUE(recorder->is_finished);
  EXPECT_EQ(recorder->finished.reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace still

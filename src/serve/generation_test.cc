// The stream of events that every API writes from: its order, its errors, and that a generation which is cancelled, at
// any time, ends once and gives its model back.
#include "serve/generation.h"

#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "serve/testing.h"

namespace still {
namespace {

using namespace std::chrono_literals;

// Writes the calls down, and complains where they come in a wrong order.
class RecordingSink : public GenerationSink {
 public:
  void on_begun(const GenerationBegun& begun) override {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(has_begun || is_over);
    has_begun = true;
    id = begun.id;
    n_prompt = begun.n_prompt;
    EXPECT_EQ(begun.n_prompt, static_cast<std::int64_t>(begun.prompt_ids.size()));
    EXPECT_NE(begun.model, nullptr);
    changed_.notify_all();
  }
  void on_piece(GenerationPiece&& piece) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(has_begun && !is_over);
    EXPECT_EQ(done.count(piece.answer), 0U) << "a piece after the end of its answer";
    texts[piece.answer] += piece.reasoning + piece.content;
    ++n_pieces;
    changed_.notify_all();
  }
  void on_done(const GenerationDone& ended) override {
    const std::lock_guard lock(mutex_);
    EXPECT_TRUE(has_begun && !is_over);
    EXPECT_TRUE(done.emplace(ended.answer, ended.finished.reason).second);
  }
  void on_end() override { finish(nullptr); }
  void on_failed(const Error& error) override { finish(&error); }

  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 60s, [this] { return is_over; })) << "no last call";
  }
  void wait_for_pieces(int n) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, 60s, [&] { return is_over || n_pieces >= n; }));
  }

  bool has_begun = false, is_over = false;
  int n_pieces = 0;
  std::int64_t n_prompt = 0;
  std::string id;
  std::map<int, std::string> texts;
  std::map<int, FinishReason> done;
  std::optional<Error> failure;

 private:
  void finish(const Error* error) {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(is_over) << "two last calls";
    is_over = true;
    if (error != nullptr) failure = *error;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
};

class GenerationTest : public testing::ApiTest {
 protected:
  void SetUp() override { use_model(); }
  static GenerationInput input(std::int64_t max_tokens, const std::string& model = "qwen2") {
    GenerationInput input;
    input.model.name = model;
    input.prompt = TokenInput{.ids = {1, 2, 3, 4, 5}};
    input.sampling = {{"temperature", 1.0}, {"seed", 11}};
    input.max_tokens = max_tokens;
    input.ignore_eos = true;
    return input;
  }
  std::shared_ptr<RecordingSink> run(GenerationInput wish) {
    auto sink = std::make_shared<RecordingSink>();
    start_generation(context, std::move(wish), sink);
    sink->wait();
    return sink;
  }
  // The last call is made before the lease is given back.
  void expect_all_given_back() {
    for (int i = 0; i < 5000 && (pool->n_open > 0 || context.generations->size() > 0); ++i) {
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_EQ(pool->n_open, 0);
    EXPECT_EQ(context.generations->size(), 0);
    for (int i = 0; i < 5000 && pool->model().engine->stats().n_blocks_used > 0; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(pool->model().engine->stats().n_blocks_used, 0);
  }
};

TEST_F(GenerationTest, TellsEverythingOnceAndInOrder) {
  const auto sink = run(input(12));
  EXPECT_FALSE(sink->failure);
  EXPECT_EQ(sink->n_prompt, 5);
  EXPECT_TRUE(sink->id.starts_with("gen-"));
  ASSERT_EQ(sink->done.size(), 1U);
  EXPECT_EQ(sink->done.at(0), FinishReason::kLength);
  expect_all_given_back();
}

TEST_F(GenerationTest, SeveralAnswersHaveFollowingSeeds) {
  GenerationInput several = input(16);
  several.n = 3;
  const auto together = run(several);
  ASSERT_EQ(together->done.size(), 3U);
  for (int answer = 0; answer < 3; ++answer) {
    GenerationInput one = input(16);
    one.sampling["seed"] = 11 + answer;
    EXPECT_EQ(run(one)->texts[0], together->texts[answer]) << answer;
  }
  EXPECT_NE(together->texts[0], together->texts[1]);
  expect_all_given_back();
}

TEST_F(GenerationTest, FailuresComeOnceAndNothingIsBegun) {
  GenerationInput long_prompt = input(4);
  long_prompt.prompt = TokenInput{.ids = std::vector<TokenId>(100000, 1)};
  GenerationInput bad_sampling = input(4);
  bad_sampling.sampling = {{"top_p", -3}};
  GenerationInput bad_token = input(4);
  bad_token.prompt = TokenInput{.ids = {1, 1 << 30}};
  GenerationInput bad_schema = input(4);
  bad_schema.format.kind = FormatWish::Kind::kRegex;
  bad_schema.format.pattern = "([";
  const std::pair<GenerationInput, Code> cases[] = {
      {input(4, "missing"), Code::kNotFound},  {input(4, "huge"), Code::kInternal},
      {long_prompt, Code::kResourceExhausted}, {bad_sampling, Code::kInvalidArgument},
      {bad_token, Code::kInvalidArgument},     {bad_schema, Code::kInvalidArgument}};
  for (const auto& [wish, code] : cases) {
    const auto sink = run(wish);
    ASSERT_TRUE(sink->failure);
    EXPECT_EQ(sink->failure->code, code) << sink->failure->message;
    EXPECT_FALSE(sink->failure->message.empty());
    EXPECT_FALSE(sink->has_begun);
  }
  expect_all_given_back();
}

TEST_F(GenerationTest, CancelledWhileItWaitsForItsModel) {
  const auto sink = std::make_shared<RecordingSink>();
  const auto generation = start_generation(context, input(4, "slow"), sink);
  EXPECT_EQ(context.generations->find(generation->id()), generation);
  generation->cancel();
  generation->cancel();
  sink->wait();
  ASSERT_TRUE(sink->failure);
  EXPECT_EQ(sink->failure->code, Code::kCancelled);
  EXPECT_EQ(context.generations->find(generation->id()), nullptr);
  expect_all_given_back();
}

TEST_F(GenerationTest, TellsWhereItStands) {
  const auto waiting = std::make_shared<RecordingSink>();
  const auto slow = start_generation(context, input(4, "slow"), waiting);
  EXPECT_EQ(slow->state().phase, GenerationState::Phase::kLoading);
  EXPECT_EQ(slow->state().model, "slow");
  slow->cancel();
  waiting->wait();
  const auto sink = std::make_shared<RecordingSink>();
  const auto generation = start_generation(context, input(-1), sink);
  sink->wait_for_pieces(3);
  const GenerationState state = generation->state();
  EXPECT_EQ(state.phase, GenerationState::Phase::kRunning);
  EXPECT_EQ(state.n_prompt, 5);
  EXPECT_EQ(state.n_prefilled, 5);
  EXPECT_GE(state.n_completion, 3);
  generation->cancel();
  sink->wait();
  expect_all_given_back();
}

TEST_F(GenerationTest, AGrammarThatCompilesLongKeepsNobodyElseWaiting) {
  std::promise<void> release;
  ASSERT_TRUE(context.grammars.post([held = release.get_future().share()] { held.wait(); }));
  GenerationInput constrained = input(8);
  constrained.format.kind = FormatWish::Kind::kChoice;
  constrained.format.choices = {"ab", "abc"};
  constrained.ignore_eos = false;
  const auto first = std::make_shared<RecordingSink>(), second = std::make_shared<RecordingSink>();
  const auto cancelled = start_generation(context, constrained, first);
  const auto kept = start_generation(context, constrained, second);
  EXPECT_FALSE(run(input(8))->failure);
  EXPECT_FALSE(first->is_over || second->is_over);
  EXPECT_EQ(kept->state().phase, GenerationState::Phase::kLoading);
  cancelled->cancel();
  first->wait();
  ASSERT_TRUE(first->failure);
  EXPECT_EQ(first->failure->code, Code::kCancelled);
  release.set_value();
  second->wait();
  if (grammar_engine().starts_with("none")) {
    ASSERT_TRUE(second->failure);
  } else {
    EXPECT_TRUE(second->texts[0].starts_with("ab")) << second->texts[0];
  }
  expect_all_given_back();
}

TEST_F(GenerationTest, TheEndOfTheServerEndsWhatWaitsForItsGrammar) {
  std::promise<void> release;
  ASSERT_TRUE(context.grammars.post([held = release.get_future().share()] { held.wait(); }));
  GenerationInput constrained = input(8);
  constrained.format.kind = FormatWish::Kind::kJsonObject;
  const auto sink = std::make_shared<RecordingSink>(), late = std::make_shared<RecordingSink>();
  start_generation(context, constrained, sink);
  std::thread stop([this] { context.grammars.stop(); });
  release.set_value();
  stop.join();
  sink->wait();
  start_generation(context, constrained, late);
  late->wait();
  ASSERT_TRUE(late->failure);
  EXPECT_EQ(late->failure->code, Code::kUnavailable);
  expect_all_given_back();
}

TEST_F(GenerationTest, CancelledWhileItRuns) {
  const auto sink = std::make_shared<RecordingSink>();
  GenerationInput wish = input(-1);
  wish.n = 2;
  const auto generation = start_generation(context, wish, sink);
  sink->wait_for_pieces(2);
  generation->cancel();
  sink->wait();
  EXPECT_FALSE(sink->failure);
  ASSERT_EQ(sink->done.size(), 2U);
  generation->cancel();
  expect_all_given_back();
}

TEST_F(GenerationTest, CancelledAtAnyMoment) {
  for (int i = 0; i < 60; ++i) {
    const auto sink = std::make_shared<RecordingSink>();
    const auto generation = start_generation(context, input(200), sink);
    std::this_thread::sleep_for(std::chrono::microseconds(50 * i));
    std::thread other([&] { generation->cancel(); });
    generation->cancel();
    other.join();
    sink->wait();
    EXPECT_TRUE(sink->failure || sink->done.size() == 1) << i;
  }
  expect_all_given_back();
}

TEST_F(GenerationTest, ManyAtOnceAnswerAsAlone) {
  constexpr int kRequests = 12;
  std::vector<std::string> alone;
  const auto wish_of = [](int i) {
    GenerationInput wish = input(20 + i);
    wish.prompt = TokenInput{.ids = {i + 1, 2, 3, static_cast<TokenId>(10 + i % 3)}};
    wish.sampling["seed"] = 100 + i;
    return wish;
  };
  for (int i = 0; i < kRequests; ++i) alone.push_back(run(wish_of(i))->texts[0]);
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < kRequests; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    start_generation(context, wish_of(i), sinks.back());
  }
  for (int i = 0; i < kRequests; ++i) {
    sinks[static_cast<std::size_t>(i)]->wait();
    EXPECT_EQ(sinks[static_cast<std::size_t>(i)]->texts[0], alone[static_cast<std::size_t>(i)]) << i;
  }
  expect_all_given_back();
}

}  // namespace
}  // namespace still

// Greedy answers with and without a coarse copy of the output head are the same, token by token.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "engine/engine.h"
#include "engine/generate.h"
#include "text/tokenizer.h"

namespace still {
namespace {

struct Answers {
  std::vector<std::vector<TokenId>> tokens;
  EngineStats stats;
};

class Sink : public EventSink {
 public:
  void on_event(const Event& event) override {
    if (const auto* token = std::get_if<TokenEvent>(&event); token != nullptr && token->id >= 0)
      tokens.push_back(token->id);
  }
  std::vector<TokenId> tokens;
};

// Two requests one after the other and three together; some with bans, one that is drawn and one with a penalty.
Answers answer(const std::shared_ptr<const Model>& model, bool screens_head, bool looks_up = false) {
  Answers answers;
  EngineOptions options{.settings = {.n_threads = 2, .context = 256, .max_seqs = 3}, .screens_head = screens_head};
  options.speculation = looks_up ? Speculation::kLookup : Speculation::kOff;
  auto engine = Engine::create(model, options);
  if (!engine) {
    ADD_FAILURE() << engine.error().message;
    return answers;
  }
  EXPECT_EQ((*engine)->plan().settings.screens_head, screens_head);
  EXPECT_EQ((*engine)->plan().screen_bytes > 0, screens_head);
  const std::string texts[] = {
      "Question: A train travels 60 miles in 1.5 hours. How fast is it? Answer:", "def fibonacci(n):\n",
      "Once upon a time", "The three largest cities of Italy are", "x = 3; y = 4; x * y ="};
  std::vector<std::shared_ptr<Sink>> sinks;
  const auto submit = [&](int i) {
    Request request;
    if (model->config().vocab_size > 1000)
      request.prompt = model->tokenizer().encode(texts[i]);
    else
      request.prompt = {static_cast<TokenId>(3 + i), 17, 5, static_cast<TokenId>(40 + 3 * i)};
    request.max_tokens = 100;
    request.sampling.temperature = i == 3 ? 0.8f : 0;
    request.sampling.seed = 7;
    request.sampling.ignore_eos = i % 2 == 0;
    if (i == 4) request.sampling.repetition_penalty = 1.1f;
    if (i == 2) request.banned_tokens = {11, 13, 220};
    sinks.push_back(std::make_shared<Sink>());
    const auto id = (*engine)->submit(std::move(request), sinks.back());
    EXPECT_TRUE(id) << id.error().message;
  };
  const auto finish = [&] {
    while ((*engine)->step()) {
    }
  };
  submit(0);
  finish();
  submit(1);
  submit(2);
  finish();
  submit(0);
  submit(3);
  submit(4);
  finish();
  for (const auto& sink : sinks) answers.tokens.push_back(sink->tokens);
  answers.stats = (*engine)->stats();
  return answers;
}

// STILL_SCREEN as wanted while this lives.
class ScreenVariable {
 public:
  explicit ScreenVariable(const char* value) {
    if (const char* old = std::getenv("STILL_SCREEN")) old_ = old;
    ::setenv("STILL_SCREEN", value, 1);
  }
  ~ScreenVariable() {
    if (old_.has_value())
      ::setenv("STILL_SCREEN", old_->c_str(), 1);
    else
      ::unsetenv("STILL_SCREEN");
  }
  ScreenVariable(const ScreenVariable&) = delete;
  ScreenVariable& operator=(const ScreenVariable&) = delete;

 private:
  std::optional<std::string> old_;
};

EngineStats expect_same_answers(const std::filesystem::path& path) {
  SCOPED_TRACE(path);
  const auto model = Model::load(path, {.n_threads = 2});
  if (!model) {
    ADD_FAILURE() << model.error().message;
    return {};
  }
  const Answers full = answer(*model, false), screened = answer(*model, true);
  EXPECT_EQ(full.tokens, screened.tokens);
  EXPECT_EQ(full.stats.screened_rows, 0);
  EXPECT_GT(screened.stats.screened_rows, 40);
  // The rows that verify drafts, too.
  const Answers drafted = answer(*model, true, true);
  EXPECT_EQ(full.tokens, drafted.tokens);
  EXPECT_GT(drafted.stats.accepted_tokens, 0);
  EXPECT_GT(drafted.stats.screened_rows, 100);
  return screened.stats;
}

TEST(Screening, GreedyAnswersAreThoseOfTheFullProduct) {
  const ScreenVariable on("on");                    // small heads, too, from the first step
  for (const char* name : {"llama", "qwen2_tied"})  // the others' rows are no whole blocks of the copy
    expect_same_answers(std::filesystem::path(STILL_SOURCE_DIR) / "testdata/tiny" / name);
}

TEST(Screening, GreedyAnswersOfRealModelsAreThoseOfTheFullProduct) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set";
  const ScreenVariable on("on");
  int n_models = 0;
  for (const char* name : {"smollm2.gguf", "q05.gguf", "q15.gguf"}) {
    const std::filesystem::path path = std::filesystem::path(folder) / name;
    if (!std::filesystem::exists(path)) continue;
    ++n_models;
    const EngineStats stats = expect_same_answers(path);
    EXPECT_LT(stats.exact_panels, stats.screened_panels / 2) << name;
  }
  if (n_models == 0) GTEST_SKIP() << folder << " holds none of the models";
}

}  // namespace
}  // namespace still

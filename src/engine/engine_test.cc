// The engine with models: the same answer, whatever runs beside it; perplexity; chat requests; refusals at start.
// Tiny models of testdata/ always; the real smollm2.gguf (quantised) where STILL_TEST_MODELS names its folder.
#include "engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/json.h"
#include "base/rng.h"
#include "base/topology.h"
#include "engine/bench.h"
#include "engine/chat.h"
#include "engine/generate.h"
#include "engine/perplexity.h"
#include "kernels/dispatch.h"

namespace still {
namespace {

using ::testing::HasSubstr;

std::string tiny_path(const std::string& name) {
  return std::string(STILL_SOURCE_DIR) + "/testdata/tiny/" + name;
}

std::shared_ptr<const Model> load(const std::string& path) {
  auto model = Model::load(std::filesystem::path(path), {.n_threads = 2});
  EXPECT_TRUE(model) << model.error().message;
  return model ? *model : nullptr;
}

struct Setting {
  std::string name;
  EngineOptions options;
  bool together = true;  // all requests at once
};

EngineOptions base_options(std::int64_t context) {
  EngineOptions options;
  options.settings.n_threads = 1;
  options.settings.context = context;
  options.settings.max_seqs = 1;
  options.prefix_cache = false;
  return options;
}

// Two nodes of this machine's first core: one that has but one core can be told so, too.
const CpuTopology& two_nodes() {
  static const CpuTopology topology = [] {
    const int cpu = CpuTopology::machine().nodes.at(0).cpus.at(0);
    return CpuTopology{{{0, {cpu}}, {1, {cpu}}}};
  }();
  return topology;
}

// drafts: models that may draft, by what they are to the one that is tested.
using Drafts = std::vector<std::pair<std::string, std::shared_ptr<const Model>>>;

std::vector<Setting> settings(std::int64_t context, const Drafts& drafts) {
  std::vector<Setting> all;
  const auto add = [&](std::string name, const std::function<void(EngineOptions&)>& change) {
    Setting setting{std::move(name), base_options(context)};
    setting.options.settings.max_seqs = 16;
    change(setting.options);
    all.push_back(std::move(setting));
  };
  add("16 together", [](EngineOptions&) {});
  add("prefix cache", [](EngineOptions& o) { o.prefix_cache = true; });
  add("chunk of 1", [](EngineOptions& o) { o.settings.max_seqs = o.settings.chunk_tokens = 1; });
  add("chunk of 17", [](EngineOptions& o) { o.settings.chunk_tokens = 17; });
  add("preempted at each step", [](EngineOptions& o) { o.preempt_every_step = true; });
  add("few blocks", [&](EngineOptions& o) { o.settings.kv_tokens = context + 64; });
  add("2 threads", [](EngineOptions& o) { o.settings.n_threads = 2; });
  add("3 threads, alone", [](EngineOptions& o) {
    o.settings.n_threads = 3;
    o.settings.max_seqs = 1;
  });
  add("speculation", [](EngineOptions& o) { o.speculation = Speculation::kLookup; });
  for (const auto& [name, draft] : drafts) {
    add("drafts of " + name, [&](EngineOptions& o) { o.draft = draft; });
    add("drafts of " + name + ", alone", [&](EngineOptions& o) {
      o.draft = draft;
      o.settings.max_seqs = 1;
      o.settings.n_threads = 2;
    });
    add("drafts of " + name + " and lookup, few blocks, preempted", [&](EngineOptions& o) {
      o.draft = draft;
      o.speculation = Speculation::kLookup;
      o.prefix_cache = true;
      o.preempt_every_step = true;
      o.settings.kv_tokens = context + 64;
    });
  }
  add("two nodes", [](EngineOptions& o) {
    o.settings.n_threads = 3;
    o.topology = &two_nodes();
  });
  add("blocks of 96", [](EngineOptions& o) { o.settings.block_size = 96; });
  for (const std::string& isa : available_isas())
    add("ISA " + isa, [&](EngineOptions& o) { o.kernels = *select_cpu_kernels(isa); });
  return all;
}

std::vector<Request> requests_for(const Model& model, int n, std::int64_t max_prompt, std::int64_t n_gen) {
  Rng rng(99);
  const std::int64_t vocab = std::min(model.config().vocab_size, model.tokenizer().vocab_size());
  std::vector<TokenId> shared;
  for (int i = 0; i < 70; ++i) shared.push_back(static_cast<TokenId>(rng.below(vocab)));
  std::vector<Request> requests;
  for (int i = 0; i < n; ++i) {
    Request request;
    const std::int64_t n_prompt = 1 + rng.below(max_prompt);
    const std::int64_t n_shared = i % 2 == 0 ? rng.below(std::min<std::int64_t>(70, n_prompt)) : 0;
    request.prompt.assign(shared.begin(), shared.begin() + static_cast<std::ptrdiff_t>(n_shared));
    while (static_cast<std::int64_t>(request.prompt.size()) < n_prompt)
      request.prompt.push_back(static_cast<TokenId>(rng.below(vocab)));
    request.max_tokens = n_gen;
    request.n_logprobs = 3;
    request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
    request.sampling.top_p = 0.95f;
    request.sampling.seed = rng.next();
    request.sampling.ignore_eos = i % 2 == 0;
    request.thinking.mode = ThinkingMode::kUntracked;
    requests.push_back(std::move(request));
  }
  return requests;
}

// Ids, and the bits of every log-probability.
struct Answer {
  std::vector<TokenId> ids;
  std::vector<float> logprobs;
  friend bool operator==(const Answer&, const Answer&) = default;
};

class AnswerSink : public EventSink {
 public:
  void on_event(const Event& event) override {
    if (const auto* token = std::get_if<TokenEvent>(&event); token != nullptr && token->id >= 0) {
      answer.ids.push_back(token->id);
      answer.logprobs.push_back(token->logprobs->logprob);
      for (const TopLogprob& top : token->logprobs->top) answer.logprobs.push_back(top.logprob);
    }
    if (const auto* event_finished = std::get_if<FinishedEvent>(&event)) finished = *event_finished;
  }
  Answer answer;
  std::optional<FinishedEvent> finished;
};

std::vector<Answer> answers(const std::shared_ptr<const Model>& model, const EngineOptions& options,
                            const std::vector<Request>& requests, bool together) {
  auto engine = Engine::create(model, options);
  EXPECT_TRUE(engine) << engine.error().message;
  std::vector<Answer> result;
  if (!engine) return result;
  std::vector<std::shared_ptr<AnswerSink>> sinks;
  for (const Request& request : requests) {
    sinks.push_back(std::make_shared<AnswerSink>());
    const auto id = (*engine)->submit(request, sinks.back());
    EXPECT_TRUE(id) << id.error().message;
    while (!together && (*engine)->step()) {
    }
  }
  while ((*engine)->step()) {
  }
  for (const auto& sink : sinks) {
    EXPECT_TRUE(sink->finished);
    result.push_back(sink->answer);
  }
  const EngineStats stats = (*engine)->stats();
  EXPECT_EQ(stats.n_blocks_used, 0);
  return result;
}

void expect_same_answers(const std::shared_ptr<const Model>& model, int n, std::int64_t max_prompt, std::int64_t n_gen,
                         std::int64_t context, const Drafts& drafts) {
  const auto requests = requests_for(*model, n, max_prompt, n_gen);
  const auto want = answers(model, base_options(context), requests, false);
  for (const Setting& setting : settings(context, drafts)) {
    SCOPED_TRACE(setting.name);
    const auto got = answers(model, setting.options, requests, setting.together);
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(got[i].ids, want[i].ids) << "request " << i;
      ASSERT_EQ(got[i].logprobs, want[i].logprobs) << "request " << i;
    }
  }
}

class TinyModel : public ::testing::TestWithParam<const char*> {};

TEST_P(TinyModel, SameAnswerWhateverTheSettings) {
  const auto model = load(tiny_path(GetParam()) + "/model.gguf");
  ASSERT_TRUE(model);
  // Of the same vocabulary: itself, and the same shape with other weights.
  const std::string other = std::string(GetParam()).starts_with("llama") ? "llama" : "qwen2";
  const auto sibling = load(tiny_path(other + (other == GetParam() ? "_tied" : "")) + "/model.gguf");
  ASSERT_TRUE(sibling);
  expect_same_answers(model, 16, 120, 20, std::min<std::int64_t>(192, model->config().max_seq_len),
                      {{"itself", model}, {"another", sibling}});
}

TEST_P(TinyModel, GreedyEqualsTheReference) {
  const auto model = load(tiny_path(GetParam()) + "/model.gguf");
  ASSERT_TRUE(model);
  std::ifstream file(tiny_path(GetParam()) + "/expect.json");
  std::stringstream text;
  text << file.rdbuf();
  const auto expect = parse_json(text.str(), "expect.json");
  ASSERT_TRUE(expect);
  Request request;
  for (const Json& id : expect->as_object().at("prompt").as_array()) request.prompt.push_back(id.to_number<TokenId>());
  std::vector<TokenId> want;
  for (const Json& id : expect->as_object().at("greedy").as_array()) {
    if (model->tokenizer().ends_generation(id.to_number<TokenId>())) break;  // the reference goes on behind it
    want.push_back(id.to_number<TokenId>());
  }
  request.max_tokens = static_cast<std::int64_t>(want.size());
  request.sampling.temperature = 0;
  auto engine = Engine::create(model, base_options(128));
  ASSERT_TRUE(engine) << engine.error().message;
  const auto result = generate(**engine, request);
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->ids(), want);
}

INSTANTIATE_TEST_SUITE_P(All, TinyModel, ::testing::Values("llama", "llama_tied", "qwen2", "qwen2_tied"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Engine, ADraftOfAnotherVocabularyIsRefusedInASentence) {
  const auto model = load(tiny_path("qwen2") + "/model.gguf"), other = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model && other);
  EngineOptions options = base_options(128);
  options.draft = other;
  const auto engine = Engine::create(model, options);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, Code::kInvalidArgument);
  EXPECT_THAT(engine.error().message, HasSubstr("the draft model"));
  EXPECT_THAT(engine.error().message, HasSubstr("vocabulary"));
}

TEST(Engine, ADraftModelIsInThePlan) {
  const auto model = load(tiny_path("qwen2") + "/model.gguf"), draft = load(tiny_path("qwen2_tied") + "/model.gguf");
  ASSERT_TRUE(model && draft);
  EngineOptions options = base_options(128);
  const auto plain = Engine::create(model, options);
  options.draft = draft;
  const auto with = Engine::create(model, options);
  ASSERT_TRUE(plain && with);
  const MemoryPlan& plan = (*with)->plan();
  EXPECT_EQ(plan.draft_weight_bytes, draft->weight_bytes());
  EXPECT_GE(plan.draft_kv_bytes, plan.n_blocks * kv_geometry(draft->config(), plan.settings).block_bytes());
  EXPECT_GT(plan.total_bytes(), (*plain)->plan().total_bytes() + plan.draft_weight_bytes + plan.draft_kv_bytes);
  // One byte less than the plan is refused.
  options.settings.memory_limit = plan.total_bytes();
  EXPECT_TRUE(Engine::create(model, options));
  options.settings.memory_limit -= 1;
  const auto refused = Engine::create(model, options);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Code::kResourceExhausted);
}

TEST(Engine, CancelledInTheMiddleFreesItsBlocks) {
  const auto model = load(tiny_path("qwen2") + "/model.gguf");
  ASSERT_TRUE(model);
  auto engine = Engine::create(model, base_options(128));
  ASSERT_TRUE(engine);
  Request request;
  request.prompt.assign(40, 7);
  request.sampling.ignore_eos = true;
  int n_tokens = 0;
  const auto result = generate(**engine, request, [&](const Event& event) {
    n_tokens += std::holds_alternative<TokenEvent>(event) ? 1 : 0;
    return n_tokens < 5;
  });
  ASSERT_TRUE(result);
  EXPECT_EQ(result->finished.reason, FinishReason::kCancelled);
  EXPECT_EQ((*engine)->stats().n_blocks_used, 0);
}

TEST(Engine, EmptyModelSettingsAreRefusedInASentence) {
  const auto model = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model);
  EngineOptions options = base_options(64);
  options.settings.memory_limit = 1 << 20;
  const auto engine = Engine::create(model, options);
  ASSERT_FALSE(engine);
  EXPECT_EQ(engine.error().code, Code::kResourceExhausted);
  options = base_options(model->config().max_seq_len + 1);
  EXPECT_FALSE(Engine::create(model, options));
}

TEST(Engine, KvTypesOfGpusAreRefusedOnACpu) {
  const auto model = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model);
  for (const KvType type : {KvType::kF16, KvType::kInt8, KvType::kBF16, KvType::kF8}) {
    EngineOptions options = base_options(64);
    options.settings.kv_type = type;
    const auto engine = Engine::create(model, options);
    ASSERT_EQ(engine.has_value(), type == KvType::kF16 || type == KvType::kInt8) << kv_type_name(type);
    if (engine) continue;
    EXPECT_EQ(engine.error().code, Code::kUnsupported);
    EXPECT_THAT(engine.error().message,
                HasSubstr(std::string("KV type ") + std::string(kv_type_name(type)) + ": for GPUs only"));
  }
}

TEST(Engine, GenerateWorksWithItsOwnThread) {
  const auto model = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model);
  Request request;
  request.prompt = {5, 6, 7};
  request.max_tokens = 8;
  request.sampling.temperature = 0;
  auto engine = Engine::create(model, base_options(64));
  ASSERT_TRUE(engine);
  const auto alone = generate(**engine, request);
  (*engine)->start();
  const auto threaded = generate(**engine, request);
  ASSERT_TRUE(alone && threaded);
  EXPECT_EQ(alone->ids(), threaded->ids());
  request.sampling.temperature = -1;
  const auto refused = generate(**engine, request);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().message, "temperature -1: expected 0 or more");
}

TEST(Bench, CountsTokens) {
  const auto model = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model);
  EngineOptions options = base_options(128);
  options.settings.max_seqs = 3;
  auto engine = Engine::create(model, options);
  ASSERT_TRUE(engine);
  const auto prefill = bench_prefill(**engine, 64, 3);
  ASSERT_TRUE(prefill);
  EXPECT_EQ(prefill->tokens_per_s.size(), 3u);
  EXPECT_GT(prefill->min(), 0);
  const auto decode = bench_decode(**engine, 10, 20, 3, 2);
  ASSERT_TRUE(decode) << decode.error().message;
  EXPECT_GE(decode->max(), decode->median());
  EXPECT_FALSE(bench_prefill(**engine, 1000, 1));
  EXPECT_FALSE(bench_decode(**engine, 10, 0, 4, 1));
}

// Against the definition: each chunk computed token by token through the engine's prompt log-probabilities.
TEST(Perplexity, EqualsPromptLogprobs) {
  const auto model = load(tiny_path("llama") + "/model.gguf");
  ASSERT_TRUE(model);
  std::string text;
  Rng rng(3);
  while (text.size() < 3000) text += " the ring of thinking is other"[rng.below(30)];
  const auto result = perplexity(*model, text, {.n_ctx = 64, .n_chunks = 2, .n_threads = 1});
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->n_chunks, 2);
  EXPECT_EQ(result->n_scored, 2 * 31);

  const auto tokens = model->tokenizer().encode(text, {.add_special = true, .parse_special = false});
  auto engine = Engine::create(model, base_options(128));
  ASSERT_TRUE(engine);
  double sum = 0;
  for (int chunk = 0; chunk < 2; ++chunk) {
    Request request;
    request.prompt.assign(tokens.begin() + chunk * 64, tokens.begin() + (chunk + 1) * 64);
    if (model->tokenizer().adds_bos()) request.prompt[0] = model->tokenizer().bos();
    request.max_tokens = 0;
    request.n_logprobs = 0;
    request.prompt_logprobs = true;
    const auto scored = generate(**engine, request);
    ASSERT_TRUE(scored) << scored.error().message;
    ASSERT_EQ(scored->prompt_tokens.size(), 64u);
    for (std::size_t pos = 33; pos < 64; ++pos) sum -= scored->prompt_tokens[pos].logprobs->logprob;
  }
  EXPECT_NEAR(result->perplexity, std::exp(sum / 62), 1e-4 * result->perplexity);
  EXPECT_FALSE(perplexity(*model, "too short", {.n_ctx = 64}));
}

// --- chat requests: a template that prefills <think>, one that does not, one that knows how to forbid ---

Tokenizer chat_tokenizer(bool can_think) {
  TokenizerData data;
  data.pre = "gpt-2";
  // All bytes in GPT-2's spelling, so that every text encodes.
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    static int next = 0;
    if (byte == 0) next = 256;
    const int code = is_printable ? byte : next++;
    std::string text;
    if (code < 0x80) {
      text = static_cast<char>(code);
    } else {
      text = {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
    }
    data.tokens.push_back(text);
  }
  data.types.assign(256, TokenType::kNormal);
  const auto add = [&](const char* text, TokenType type) {
    data.tokens.push_back(text);
    data.types.push_back(type);
  };
  add("<|user|>", TokenType::kControl);
  add("<|bot|>", TokenType::kControl);
  add("<|end|>", TokenType::kControl);
  if (can_think) {
    add("<think>", TokenType::kUserDefined);
    add("</think>", TokenType::kUserDefined);
  }
  data.eos = 258;
  auto tokenizer = Tokenizer::make(std::move(data));
  EXPECT_TRUE(tokenizer) << tokenizer.error().message;
  return std::move(*tokenizer);
}

std::string prompt_of(bool can_think, std::string_view ending, const ChatThinking& thinking, Request* out = nullptr,
                      std::string_view user = "Hi") {
  const Tokenizer tokenizer = chat_tokenizer(can_think);
  const std::string source =
      "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|bot|>{{ m.content "
      "}}<|end|>{% endif %}"
      "{% endfor %}<|bot|>" +
      std::string(ending);
  auto parsed = load_chat_template(source, "test");
  EXPECT_TRUE(parsed) << parsed.error().message;
  ChatRequest chat;
  chat.messages.push_back(JsonObject{{"role", "user"}, {"content", user}});
  auto request = make_chat_request(tokenizer, *parsed, chat, thinking);
  EXPECT_TRUE(request) << request.error().message;
  if (out != nullptr) *out = *request;
  return tokenizer.decode(request->prompt, false);
}

TEST(ChatRequest, ThinkingIsPrefilledAsTheModelKnowsIt) {
  const ChatThinking automatic{}, off{.mode = ThinkingMode::kForbidden}, none{.budget = 0};
  Request request;
  const std::string_view newline = "{{ '<think>\\n' }}";  // Jinja drops a newline at the end of a template
  EXPECT_EQ(prompt_of(true, newline, automatic, &request), "<|user|>Hi<|bot|><think>\n");
  EXPECT_TRUE(request.thinking.starts_in_thinking);
  EXPECT_EQ(prompt_of(true, newline, off, &request), "<|user|>Hi<|bot|><think>\n\n</think>\n\n");
  EXPECT_FALSE(request.thinking.starts_in_thinking);
  EXPECT_EQ(request.thinking.mode, ThinkingMode::kForbidden);
  EXPECT_EQ(prompt_of(true, newline, none), "<|user|>Hi<|bot|><think>\n\n</think>\n\n");
  EXPECT_EQ(prompt_of(true, "<think>", off), "<|user|>Hi<|bot|><think>\n\n</think>\n\n");
  // A reasoning model whose template does not open the block.
  const std::string_view silent = "{% if false %}<think>{% endif %}";
  EXPECT_EQ(prompt_of(true, silent, automatic, &request), "<|user|>Hi<|bot|>");
  EXPECT_FALSE(request.thinking.starts_in_thinking);
  EXPECT_EQ(prompt_of(true, silent, off), "<|user|>Hi<|bot|><think>\n\n</think>\n\n");
  // A template that is told.
  const std::string_view hybrid =
      "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}";
  EXPECT_EQ(prompt_of(true, hybrid, automatic), "<|user|>Hi<|bot|>");
  EXPECT_EQ(prompt_of(true, hybrid, off), "<|user|>Hi<|bot|><think>\n\n</think>\n\n");
  // A model that does not think.
  EXPECT_EQ(prompt_of(false, "", off), "<|user|>Hi<|bot|>");
}

TEST(ChatRequest, MessagesCannotSpellTags) {
  Request request;
  prompt_of(true, "", {}, &request, "<think><|end|>");
  for (const TokenId id : request.prompt) EXPECT_TRUE(id < 258) << "only the template's <|user|> and <|bot|>: " << id;
  EXPECT_FALSE(request.thinking.starts_in_thinking);
}

TEST(ChatRequest, BudgetHasAMessage) {
  Request request;
  prompt_of(true, "<think>\n", {.budget = 10}, &request);
  EXPECT_EQ(request.thinking.budget, 10);
  EXPECT_EQ(chat_tokenizer(true).decode(request.thinking.budget_message, false), kBudgetMessage);
}

// --- a real, quantised model ---

TEST(RealModel, SameBitsWhateverTheSettings) {
  const char* folder = std::getenv("STILL_TEST_MODELS");
  if (folder == nullptr) GTEST_SKIP() << "STILL_TEST_MODELS is not set: no smollm2.gguf";
  const std::string path = std::string(folder) + "/smollm2.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "no " << path;
  const auto model = load(path);
  ASSERT_TRUE(model);
  expect_same_answers(model, 8, 100, 12, 256, {});
}

}  // namespace
}  // namespace still

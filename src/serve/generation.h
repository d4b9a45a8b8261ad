// Generation: what every API reduces a request to, and the one stream of events that every API's encoder writes from.
// parse (api/*.cc: JSON to GenerationInput) -> start_generation (model, template, grammar, tools, thinking, engine) ->
// GenerationSink (events in the order begun, progress*, piece*, done or failed) -> encode (api/*.cc: events to bytes).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/json.h"
#include "engine/event.h"
#include "engine/request.h"
#include "serve/http/message.h"
#include "serve/model_pool.h"

namespace still {

// Every dialect of thinking control ends here (parsers fill what was said; absent: the model's default).
struct ThinkingWish {
  std::optional<bool> enabled;  // think, enable_thinking, thinking.type, reasoning_effort none
  std::string effort;           // "minimal" ... "max": becomes a budget and the template's variable
  std::int64_t budget = -1;     // tokens; -1: none
  std::string budget_message;
  bool constrain = false;     // the grammar holds inside thinking too
  bool must_support = false;  // a wish to think is an error where the model cannot (Ollama), not ignored
};

enum class ReasoningFormat : std::uint8_t {
  kSplit,   // reasoning apart from content (default)
  kRaw,     // all in content, with the tags, the one that the template wrote included
  kBoth,    // reasoning apart, and the raw text in content
  kHidden,  // only the answer
};

// What the answer must look like.
struct FormatWish {
  enum class Kind : std::uint8_t { kNone, kJsonObject, kJsonSchema, kRegex, kChoice, kGrammar };
  Kind kind = Kind::kNone;
  Json schema;                       // kJsonSchema
  std::string pattern;               // kRegex, kGrammar (EBNF)
  std::vector<std::string> choices;  // kChoice
};

struct ToolWish {
  enum class Choice : std::uint8_t { kAuto, kNone, kRequired, kNamed };
  JsonArray tools;  // OpenAI's shape
  Choice choice = Choice::kAuto;
  std::string name;  // kNamed
  bool parallel = true;
};

struct ChatInput {
  JsonArray messages;  // OpenAI's shape: role, content (string), reasoning_content, tool_calls, tool_call_id, name
  bool continue_final_message = false;
  JsonObject template_variables;    // chat_template_kwargs
  std::string template_override;    // Jinja or Go; empty: the model's
  std::vector<TokenId> prefix_ids;  // before the rendered messages: an earlier answer's tokens (Ollama's context)
};
struct TextInput {
  std::string text;                // raw, BOS added as the model wants it
  bool add_special_tokens = true;  // BOS
};
struct TokenInput {
  std::vector<TokenId> ids;
};

struct GenerationInput {
  ModelWish model;
  std::variant<ChatInput, TextInput, TokenInput> prompt;
  // Fields that the client set; the others come from the manifest, then from the model's generation_config, then from
  // `fallback`: each API's documented defaults.
  JsonObject
      sampling;  // temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed, ...
  SamplingParams fallback;
  std::vector<std::pair<TokenId, float>> logit_bias;
  std::int64_t max_tokens = -1, min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<TokenId> stop_tokens;
  bool ignore_eos = false;
  std::int32_t n_logprobs = -1;
  bool prompt_logprobs = false;
  std::int32_t n = 1;  // answers; streams of the same prompt with seeds seed, seed + 1, ...
  ThinkingWish thinking;
  ReasoningFormat reasoning_format = ReasoningFormat::kSplit;
  FormatWish format;
  ToolWish tools;
  // A prompt longer than the context: refuse (kResourceExhausted), or drop the oldest turns and say so (only chat).
  bool may_truncate = false;
  std::int32_t priority = 0;
  bool wants_progress = false;
  bool wants_tokens = false;            // GenerationPiece::tokens without log-probabilities too
  std::vector<std::string> warnings;    // of the request itself, told with the answer's
  std::shared_ptr<RequestFacts> facts;  // for the access log; null: nobody asks
  std::string user;  // requests of different users take turns: the API key's name, else the peer's address
};

// Who asks, and where the access log's facts go.
void set_asker(GenerationInput& input, const HttpRequest& request);

// A step's news of one answer. Texts of a kind, joined over an answer, are valid UTF-8.
struct ToolCallDelta {
  int index = 0;
  std::string id, name;   // set in the first delta of a call
  std::string arguments;  // JSON text, to be joined
};
struct GenerationPiece {
  int answer = 0;         // of n
  std::string reasoning;  // either may be empty
  std::string content;
  std::vector<ToolCallDelta> tool_calls;
  std::vector<TokenEvent> tokens;  // behind this piece, where n_logprobs >= 0 or ids are wanted
};

struct GenerationDone {  // of one answer
  int answer = 0;
  FinishedEvent finished;
  bool has_tool_calls = false;
};

struct GenerationBegun {
  std::string id;                      // of the Generation, for X-Still-Generation
  const ServedModel* model = nullptr;  // lives until the sink's last call
  std::chrono::nanoseconds load_duration{};
  std::int64_t n_prompt = 0;
  std::vector<TokenId> prompt_ids;
  std::vector<std::string> warnings;  // dropped turns, clamped context, ignored options
};

// Called on the engine's thread (or a pool's, or that of a cancellation before the start), one call at a time for a
// generation. A call may use the Generation, but must not wait for it.
class GenerationSink {
 public:
  virtual ~GenerationSink() = default;
  virtual void on_begun(const GenerationBegun& begun) = 0;
  virtual void on_progress(const ProgressEvent&, int /*answer*/) {}
  virtual void on_prompt_token(const PromptTokenEvent&, int /*answer*/) {}
  virtual void on_piece(GenerationPiece&& piece) = 0;
  virtual void on_done(const GenerationDone& done) = 0;
  virtual void on_step_end() {}  // flush
  // All answers are done: the last call, after the last on_done.
  virtual void on_end() = 0;
  // Instead of all that is still to come: the request was refused or broke. The last call. Of the codes,
  // kResourceExhausted always means a prompt longer than the context, kUnavailable a server that is too busy.
  virtual void on_failed(const Error& error) = 0;
};

// Where a generation stands, for those who watch it.
struct GenerationState {
  enum class Phase : std::uint8_t {
    kLoading,  // the model, or the grammar of the answer's form, is not there yet
    kWaiting,  // for a place among the running ones
    kPrefill,  // the prompt is being read
    kRunning,
  };
  Phase phase = Phase::kLoading;
  std::string model, user;
  std::int64_t queue_position = 0;  // requests before it, while it waits
  std::int64_t n_prompt = 0, n_prefilled = 0, n_completion = 0;
};

// A generation under way.
class Generation {
 public:
  virtual ~Generation() = default;
  virtual std::string id() const = 0;  // steering handle, told in X-Still-Generation: "gen-7f3a..."
  virtual void cancel() = 0;
  virtual void stop_thinking() = 0;
  virtual GenerationState state() const = 0;
};

struct ServeContext;  // serve/context.h: pool, library of models, grammar caches, settings, registry of generations

// Returns at once; the sink hears everything, errors too. The generation is kept in the registry until its last call,
// so that POST /v1/generations/{id}/stop_thinking and /cancel find it.
std::shared_ptr<Generation> start_generation(ServeContext& context, GenerationInput input,
                                             std::shared_ptr<GenerationSink> sink);

}  // namespace still

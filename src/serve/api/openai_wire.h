// What the answers of OpenAI's API have in common: ids, usage, log-probabilities, SSE.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/event.h"
#include "serve/generation.h"
#include "serve/http/message.h"

namespace still {

// Names an answer: the same in all of its chunks.
struct OpenAiHead {
  std::string id;            // "chatcmpl-..."
  std::string object;        // "chat.completion.chunk"
  std::int64_t created = 0;  // seconds since 1970
  std::string model;         // as the client wrote it
  std::string fingerprint;   // version and model: answers of the same fingerprint and seed are equal

  // {"id":...,"system_fingerprint":...  without the closing brace.
  std::string json() const;
};
OpenAiHead make_openai_head(std::string_view id_prefix, std::string_view object, std::string_view model,
                            const ServedModel* served);
std::string system_fingerprint(const ServedModel& served);
std::string random_hex(int n_digits);

// Tokens of all answers to a request; the prompt is counted once for each prompt.
struct OpenAiUsage {
  std::int64_t n_prompt = 0, n_cached = 0, n_completion = 0, n_reasoning = 0;
  void add(const Usage& usage, bool is_new_prompt);
  // {"prompt_tokens":...}, with DeepSeek's prompt_cache_hit_tokens beside OpenAI's details.
  void append_to(std::string& out) const;
};

// "stop", "length", "tool_calls", "abort".
std::string_view openai_finish_reason(const GenerationDone& done);

// {"token":"a","logprob":-0.1,"bytes":[97],"top_logprobs":[...]}
void append_chat_logprob(std::string& out, const TokenEvent& token);

// The four arrays of a completion's logprobs.
class CompletionLogprobs {
 public:
  void add(std::string_view bytes, const std::optional<Logprobs>& logprobs);
  // {"tokens":[...],...}; empties the arrays, but offsets go on.
  std::string take();
  bool empty() const { return tokens_.empty(); }
  void skip_text(std::string_view text);  // text before the first token that is told

 private:
  std::string tokens_, logprobs_, tops_, offsets_;
  std::int64_t offset_ = 0;  // characters before the next token
};
// A token as text; "bytes:\xe4\xbd" where it is no whole character.
std::string completion_token_text(std::string_view bytes);

// ,"warnings":[...] or nothing.
void append_warnings(std::string& out, const std::vector<std::string>& warnings);
void merge_warnings(std::vector<std::string>& into, const std::vector<std::string>& more);

// One SSE stream. Not thread-safe but for what the writer is.
class SseStream {
 public:
  explicit SseStream(std::shared_ptr<ResponseWriter> writer) : writer_(std::move(writer)) {}
  void start(std::string_view generation_id, const std::vector<std::string>& warnings);
  bool is_started() const { return is_started_; }
  void send(std::string_view json);  // data: ...
  void flush();
  void ping_if_silent();  // a comment, ten seconds after the last byte
  void finish();          // data: [DONE]

 private:
  std::shared_ptr<ResponseWriter> writer_;
  bool is_started_ = false, has_unsent_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace still

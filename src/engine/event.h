// Events: what a running request tells. They arrive in the order started, progress*, prompt token*, token*, finished;
// only finished comes always, and it is the last.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "base/result.h"
#include "engine/request.h"

namespace still {

using Duration = std::chrono::nanoseconds;

struct StartedEvent {
  std::int64_t n_prompt = 0;  // tokens
  std::int64_t n_cached = 0;  // of them, found in the prefix cache
  std::uint64_t seed = 0;
};

// Sent while a request waits (when its place changes) and after each prefill chunk.
struct ProgressEvent {
  std::int64_t queue_position = 0;  // requests that wait before it; 0 with n_prefilled == 0: it is next
  bool is_waiting = false;
  std::int64_t n_prefilled = 0;  // tokens of the prompt in the KV cache
  std::int64_t n_prompt = 0;
};

struct TopLogprob {
  TokenId id = -1;
  float logprob = 0;
  std::string bytes;  // may be a part of a character
};

// Natural log of the model's own distribution: before temperature, penalties and masks.
struct Logprobs {
  float logprob = 0;
  std::vector<TopLogprob> top;  // best first; n_logprobs of them
};

enum class Channel : std::uint8_t { kReasoning, kContent };

struct PromptTokenEvent {
  std::int64_t pos = 0;
  TokenId id = -1;
  std::string bytes;
  std::optional<Logprobs> logprobs;  // of this token given those before; absent for the first
};

// A token of the answer. Texts of a channel, joined, are valid UTF-8; a text may be empty: the token is part of a
// character, a thinking tag, an end token, or held back because a stop string may be beginning.
struct TokenEvent {
  TokenId id = -1;  // -1: no new token, only text that had been held back
  std::string text;
  std::string bytes;  // of the token itself
  Channel channel = Channel::kContent;
  bool is_tag = false;     // <think> or </think>
  bool is_end = false;     // an end or stop token: not part of the answer's text
  bool is_forced = false;  // not sampled: thinking was opened or closed by the engine
  std::optional<Logprobs> logprobs;
};

enum class FinishReason : std::uint8_t { kStop, kLength, kStopString, kCancelled, kError };
std::string_view to_string(FinishReason reason);  // "stop", "length", "stop_string", "cancelled", "error"

struct Usage {
  std::int64_t n_prompt = 0;
  std::int64_t n_cached = 0;      // of the prompt
  std::int64_t n_completion = 0;  // all tokens after the prompt, end token and forced ones included
  std::int64_t n_reasoning = 0;   // of them, inside the thinking block (tags and the closing message not counted)
  std::int64_t n_drafted = 0, n_accepted = 0;  // speculation
  std::int64_t n_preemptions = 0;
};

struct Timings {
  Duration queue{};    // submit to first computation
  Duration prefill{};  // from there to the first token
  Duration decode{};   // first token to last
  Duration ttft{};     // submit to first token
  Duration total{};
};

struct FinishedEvent {
  FinishReason reason = FinishReason::kStop;
  std::string matched_stop;  // kStopString
  TokenId stop_token = -1;   // kStop: the end token; -1 where a constraint was complete
  Usage usage;
  Timings timings;
  std::vector<std::string> warnings;  // what was limited or dropped, in sentences
  Error error;                        // kError
};

using Event = std::variant<StartedEvent, ProgressEvent, PromptTokenEvent, TokenEvent, FinishedEvent>;

// Where a request's events go. Called on the engine's thread, which waits: hand over and return. The event is reused by
// the engine: copy what is kept. on_event may call Engine::cancel and the like, but not submit, step or stop.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void on_event(const Event& event) = 0;
  // All events of one step were given out: a place to wake a reader once, not once per token.
  virtual void on_step_end() {}
};

// A sink that another thread reads. Thread-safe; unbounded (an answer is bounded by the context).
class EventQueue : public EventSink {
 public:
  void on_event(const Event& event) override;
  Event pop();                                     // waits
  std::optional<Event> pop_for(Duration timeout);  // empty: nothing came
  std::optional<Event> try_pop();

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Event> events_;
};

}  // namespace still

// Request: what a client wants of the engine, as tokens and numbers; no text format and no protocol.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "engine/constraint.h"
#include "tensor/tensor.h"

namespace still {

using RequestId = std::uint64_t;  // given by Engine::submit; 0 is never one

// Order of application: logit bias and bans, penalties, mask, temperature, top_k, top_p, min_p, draw.
// Defaults leave the model's distribution as it is.
struct SamplingParams {
  float temperature = 1.0f;  // >= 0; 0: the most probable token
  std::int32_t top_k = 0;    // >= 0; 0: off
  float top_p = 1.0f;        // (0, 1]; nucleus, Holtzman et al. 2019, arXiv:1904.09751
  float min_p = 0.0f;        // [0, 1]; share of the best token's probability, arXiv:2407.01082
  float repetition_penalty =
      1.0f;  // > 0; divides positive logits, multiplies negative ones: prompt and answer. arXiv:1909.05858
  float presence_penalty = 0.0f;     // [-2, 2]; subtracted from the logits of tokens that the answer holds
  float frequency_penalty = 0.0f;    // [-2, 2]; subtracted once per occurrence in the answer
  std::int32_t penalty_last_n = -1;  // tokens that the penalties look back; -1: all
  std::vector<std::pair<TokenId, float>> logit_bias;  // added to the logits; each within [-100, 100]
  std::optional<std::uint64_t> seed;                  // absent: one is drawn, StartedEvent tells it
  bool ignore_eos = false;                            // end tokens are never sampled

  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

enum class ThinkingMode : std::uint8_t {
  kAuto,       // as the model likes
  kRequired,   // the answer begins with <think>
  kForbidden,  // <think> is never sampled; an open block is closed at once
  kUntracked,  // <think> and </think> are tokens like others: raw completions
};

// The tags are single tokens of the vocabulary; a model without them has no thinking, and only kRequired is refused
// then.
struct ThinkingParams {
  ThinkingMode mode = ThinkingMode::kAuto;
  std::int64_t budget = -1;         // tokens inside the block after which it is closed; -1: no limit
  bool starts_in_thinking = false;  // the prompt ends inside an open block
  // What the model is made to say before </think> when the budget is used up or stop_thinking() was called.
  std::vector<TokenId> budget_message;
};

struct Request {
  std::vector<TokenId> prompt;
  std::int64_t max_tokens = -1;      // of the answer; -1: until the context is full. 0: only the prompt is computed
  std::int64_t min_tokens = 0;       // end tokens are not sampled before
  std::vector<std::string> stop;     // texts that end the answer; not part of its text. Not looked for in the reasoning
  std::vector<TokenId> stop_tokens;  // beside the model's own end tokens
  std::vector<TokenId> banned_tokens;  // never sampled
  std::int32_t n_logprobs =
      -1;  // best tokens told with each token; -1: no log-probabilities; 0: only the chosen token's
  bool prompt_logprobs = false;  // PromptTokenEvent for each token of the prompt (needs n_logprobs >= 0)
  SamplingParams sampling;
  ThinkingParams thinking;
  std::shared_ptr<TokenConstraint> constraint;
  bool constrain_reasoning = false;   // false: the constraint begins after </think>
  std::string user;                   // requests of different users take turns
  std::int32_t priority = 0;          // higher first
  bool keep_prefix = true;            // its KV may serve later requests with the same beginning
  std::vector<std::string> warnings;  // told again in FinishedEvent: what was dropped when the request was made
};

inline constexpr std::int32_t kMaxLogprobs = 20;
inline constexpr std::size_t kMaxStopStrings = 64;

// What a request is checked against.
struct RequestLimits {
  std::int64_t vocab_size = 0;
  std::int64_t context = 0;  // tokens of one sequence at most
  bool has_thinking_tokens = false;
};

// kInvalidArgument in a sentence ("temperature -1: expected 0 or more"); kResourceExhausted for a prompt that leaves no
// room for an answer, with both numbers.
Status check_request(const Request& request, const RequestLimits& limits);

}  // namespace still

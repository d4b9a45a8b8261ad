#include "engine/request.h"

#include <cmath>

namespace still {

namespace {

Status check_range(std::string_view name, double value, bool is_in_range, std::string_view wanted) {
  if (!std::isnan(value) && is_in_range) return ok();
  return error(Code::kInvalidArgument, "{} {}: expected {}{}", name, value,
               std::isfinite(value) ? "" : "a finite number, ", wanted);
}

Status check_ids(std::string_view name, const std::vector<TokenId>& ids, std::int64_t vocab_size) {
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocab_size)
      return error(Code::kInvalidArgument, "{}: token {} at place {} is not in the vocabulary of {}", name, ids[i], i,
                   vocab_size);
  return ok();
}

Status check_sampling(const SamplingParams& params, std::int64_t vocab_size) {
  STILL_TRY_STATUS(check_range("temperature", params.temperature,
                               params.temperature >= 0 && !std::isinf(params.temperature), "0 or more"));
  STILL_TRY_STATUS(check_range("top_k", params.top_k, params.top_k >= 0, "0 (off) or more"));
  STILL_TRY_STATUS(check_range("top_p", params.top_p, params.top_p > 0 && params.top_p <= 1, "more than 0, at most 1"));
  STILL_TRY_STATUS(check_range("min_p", params.min_p, params.min_p >= 0 && params.min_p <= 1, "0 to 1"));
  STILL_TRY_STATUS(check_range("repetition_penalty", params.repetition_penalty,
                               params.repetition_penalty > 0 && !std::isinf(params.repetition_penalty), "more than 0"));
  STILL_TRY_STATUS(check_range("presence_penalty", params.presence_penalty,
                               params.presence_penalty >= -2 && params.presence_penalty <= 2, "-2 to 2"));
  STILL_TRY_STATUS(check_range("frequency_penalty", params.frequency_penalty,
                               params.frequency_penalty >= -2 && params.frequency_penalty <= 2, "-2 to 2"));
  STILL_TRY_STATUS(
      check_range("penalty_last_n", params.penalty_last_n, params.penalty_last_n >= -1, "-1 (all), 0 or more"));
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size)
      return error(Code::kInvalidArgument, "logit_bias: token {} is not in the vocabulary of {}", id, vocab_size);
    STILL_TRY_STATUS(check_range("logit_bias", bias, bias >= -100 && bias <= 100, "-100 to 100"));
  }
  return ok();
}

}  // namespace

Status check_request(const Request& request, const RequestLimits& limits) {
  if (request.prompt.empty()) return error(Code::kInvalidArgument, "the prompt is empty: expected one token or more");
  STILL_TRY_STATUS(check_ids("prompt", request.prompt, limits.vocab_size));
  STILL_TRY_STATUS(check_ids("stop tokens", request.stop_tokens, limits.vocab_size));
  STILL_TRY_STATUS(check_ids("banned tokens", request.banned_tokens, limits.vocab_size));
  STILL_TRY_STATUS(check_ids("thinking budget message", request.thinking.budget_message, limits.vocab_size));
  if (request.max_tokens < -1)
    return error(Code::kInvalidArgument, "max_tokens {}: expected -1 (until the context is full), 0 or more",
                 request.max_tokens);
  if (request.min_tokens < 0)
    return error(Code::kInvalidArgument, "min_tokens {}: expected 0 or more", request.min_tokens);
  if (request.max_tokens >= 0 && request.min_tokens > request.max_tokens)
    return error(Code::kInvalidArgument, "min_tokens {}: expected at most max_tokens, {}", request.min_tokens,
                 request.max_tokens);
  if (request.stop.size() > kMaxStopStrings)
    return error(Code::kInvalidArgument, "{} stop strings: expected at most {}", request.stop.size(), kMaxStopStrings);
  for (const std::string& stop : request.stop)
    if (stop.empty()) return error(Code::kInvalidArgument, "stop: an empty string would end every answer");
  if (request.n_logprobs < -1 || request.n_logprobs > kMaxLogprobs)
    return error(Code::kInvalidArgument, "logprobs {}: expected -1 (none) to {}", request.n_logprobs, kMaxLogprobs);
  if (request.prompt_logprobs && request.n_logprobs < 0)
    return error(Code::kInvalidArgument, "log-probabilities of the prompt need logprobs 0 or more, found {}",
                 request.n_logprobs);
  STILL_TRY_STATUS(check_sampling(request.sampling, limits.vocab_size));
  if (request.thinking.budget < -1)
    return error(Code::kInvalidArgument, "thinking budget {}: expected -1 (no limit), 0 or more",
                 request.thinking.budget);
  if (request.thinking.mode == ThinkingMode::kRequired && !limits.has_thinking_tokens)
    return error(Code::kUnsupported, "thinking required: this model's vocabulary has no <think> and </think> tokens");
  const std::int64_t room = request.max_tokens == 0 ? 0 : 1;
  const auto n_prompt = static_cast<std::int64_t>(request.prompt.size());
  if (n_prompt + room > limits.context) {
    return error(Code::kResourceExhausted,
                 "the prompt has {} tokens, the context holds {}{}: shorten it or choose a larger context", n_prompt,
                 limits.context, n_prompt == limits.context ? " and an answer needs at least one" : "");
  }
  return ok();
}

}  // namespace still

// From messages to a Request: renders the model's chat template, encodes it so that no message can spell a control
// token, and applies what was chosen about thinking. One place for every API and command.
#pragma once

#include <string>

#include "base/result.h"
#include "engine/request.h"
#include "models/model.h"
#include "text/chat_template.h"

namespace still {

struct ChatThinking {
  ThinkingMode mode = ThinkingMode::kAuto;
  std::int64_t budget = -1;  // tokens; -1: none; 0: as kForbidden
  // What the model says when the budget is used up. Empty: kBudgetMessage.
  std::string budget_message;
};
inline constexpr std::string_view kBudgetMessage = "\n\nI have thought about this for long enough and answer now.\n";

// The template that the model ships, or one chosen by its special tokens.
Result<ChatTemplate> chat_template_of(const Model& model, std::string_view name);

// temperature, top_p, top_k, min_p and repetition_penalty of the model's generation_config, where they are valid;
// without one, `fallback`. do_sample false is temperature 0.
SamplingParams default_sampling(const Model& model, const SamplingParams& fallback);

// prompt, thinking and its starts_in_thinking are set; the rest is the caller's. bos_token and eos_token of `chat` are
// filled in where empty; the template variables enable_thinking and thinking are set unless the mode is kAuto or they
// are given. Forbidden: an open block that the template wrote is closed, and where the model thinks unasked an empty
// block is written, as the models were trained to see it. Required: the engine opens the block where the template does
// not.
Result<Request> make_chat_request(const Model& model, const ChatTemplate& chat_template, ChatRequest chat,
                                  const ChatThinking& thinking = {});

// The parts of make_chat_request that need no model, for tests.
Result<Request> make_chat_request(const Tokenizer& tokenizer, const ChatTemplate& chat_template, ChatRequest chat,
                                  const ChatThinking& thinking);

}  // namespace still

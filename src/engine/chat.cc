#include "engine/chat.h"

#include <algorithm>
#include <cmath>

#include "text/think_splitter.h"

namespace still {

namespace {

std::string spelling(const Tokenizer& tokenizer, TokenId id) {
  return id >= 0 ? std::string(tokenizer.token_text(id)) : std::string();
}

void append(std::vector<TokenId>& prompt, const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<TokenId> ids = tokenizer.encode(text);
  prompt.insert(prompt.end(), ids.begin(), ids.end());
}

// The last turn, after its control tokens, holds a closed block already: the template knows how to forbid.
bool ends_with_closed_block(const Tokenizer& tokenizer, const ThinkTokens& tokens, std::span<const TokenId> prompt) {
  for (std::size_t i = prompt.size(); i > 0; --i) {
    const TokenId id = prompt[i - 1];
    if (id == *tokens.end) return true;
    if (id == *tokens.begin || tokenizer.is_special(id) || tokenizer.ends_generation(id)) return false;
  }
  return false;
}

// A last message of the assistant that goes on and brings its reasoning: no template repeats that, so it is written
// here behind the beginning of an answer.
struct BegunAnswer {
  std::string reasoning, content;
};
BegunAnswer take_begun_answer(ChatRequest& chat) {
  if (!chat.continue_final_message || chat.messages.size() < 2) return {};
  const auto text_of = [&](std::string_view key) {
    const JsonObject* message = chat.messages.back().if_object();
    const Json* value = message != nullptr ? message->if_contains(key) : nullptr;
    return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  BegunAnswer begun{text_of("reasoning_content"), text_of("content")};
  if (begun.reasoning.empty() || text_of("role") != "assistant") return {};
  chat.messages.pop_back();
  chat.continue_final_message = false;
  chat.add_generation_prompt = true;
  return begun;
}

void append_begun_answer(std::vector<TokenId>& prompt, const Tokenizer& tokenizer, const BegunAnswer& begun) {
  const auto append_text = [&](std::string_view text) {
    const TextRun run{.text = text};  // not trusted: tags in it are text
    const std::vector<TokenId> ids = tokenizer.encode_runs({&run, 1});
    prompt.insert(prompt.end(), ids.begin(), ids.end());
  };
  if (!prompt_ends_in_thinking(tokenizer, prompt)) append(prompt, tokenizer, "<think>\n");
  append_text(begun.reasoning);
  if (begun.content.empty()) return;
  append(prompt, tokenizer, "\n</think>\n\n");
  append_text(begun.content);
}

}  // namespace

Result<ChatTemplate> chat_template_of(const Model& model, std::string_view name) {
  if (model.chat_template().empty()) return fallback_chat_template(model.tokenizer());
  return load_chat_template(model.chat_template(), name);
}

SamplingParams default_sampling(const Model& model, const SamplingParams& fallback) {
  const JsonObject& shipped = model.checkpoint().generation_config();
  SamplingParams params = fallback;
  const auto read = [&](std::string_view key, auto& target, double min, double max) {
    const Json* value = shipped.if_contains(key);
    if (value == nullptr || !value->is_number()) return;
    const auto number = value->to_number<double>();
    if (number >= min && number <= max) target = static_cast<std::decay_t<decltype(target)>>(number);
  };
  read("temperature", params.temperature, 0, 100);
  read("top_p", params.top_p, 1e-6, 1);
  read("top_k", params.top_k, 0, 1e9);
  read("min_p", params.min_p, 0, 1);
  read("repetition_penalty", params.repetition_penalty, 1e-3, 1e3);
  if (const Json* sample = shipped.if_contains("do_sample");
      sample != nullptr && sample->is_bool() && !sample->get_bool())
    params.temperature = 0;
  return params;
}

Result<Request> make_chat_request(const Model& model, const ChatTemplate& chat_template, ChatRequest chat,
                                  const ChatThinking& thinking) {
  return make_chat_request(model.tokenizer(), chat_template, std::move(chat), thinking);
}

Result<Request> make_chat_request(const Tokenizer& tokenizer, const ChatTemplate& chat_template, ChatRequest chat,
                                  const ChatThinking& thinking) {
  const ThinkTokens tokens = find_think_tokens(tokenizer);
  ThinkingMode mode = thinking.budget == 0 ? ThinkingMode::kForbidden : thinking.mode;
  if (chat.bos_token.empty()) chat.bos_token = spelling(tokenizer, tokenizer.bos());
  if (chat.eos_token.empty()) chat.eos_token = spelling(tokenizer, tokenizer.eos());
  if (mode == ThinkingMode::kRequired || mode == ThinkingMode::kForbidden) {
    // The names that published templates use (Qwen3; DeepSeek-V3.1). emplace: what the caller gives wins.
    chat.variables.emplace("enable_thinking", mode == ThinkingMode::kRequired);
    chat.variables.emplace("thinking", mode == ThinkingMode::kRequired);
  }
  const BegunAnswer begun = tokens.are_tokens() ? take_begun_answer(chat) : BegunAnswer{};
  STILL_TRY(const RenderedChat rendered, render_chat(chat_template, chat));

  Request request;
  request.prompt = encode_chat(tokenizer, rendered);
  if (!begun.reasoning.empty()) append_begun_answer(request.prompt, tokenizer, begun);
  request.thinking.mode = mode;
  request.thinking.budget = mode == ThinkingMode::kForbidden ? -1 : thinking.budget;
  request.thinking.starts_in_thinking = tokens.are_tokens() && prompt_ends_in_thinking(tokenizer, request.prompt);
  if (tokens.are_tokens() && thinking.budget > 0)
    request.thinking.budget_message =
        tokenizer.encode(thinking.budget_message.empty() ? kBudgetMessage : std::string_view(thinking.budget_message),
                         {.parse_special = false});
  if (mode == ThinkingMode::kForbidden && tokens.are_tokens() && !chat.continue_final_message) {
    if (request.thinking.starts_in_thinking) {
      // "<think>\n\n</think>\n\n", of which the template wrote the beginning.
      const bool has_newline = tokenizer.token_bytes(request.prompt.back()).ends_with('\n');
      append(request.prompt, tokenizer, has_newline ? "\n</think>\n\n" : "\n\n</think>\n\n");
    } else if (chat_template.mentions("think>") && !ends_with_closed_block(tokenizer, tokens, request.prompt)) {
      append(request.prompt, tokenizer, "<think>\n\n</think>\n\n");
    }
    request.thinking.starts_in_thinking = false;
  }
  return request;
}

}  // namespace still

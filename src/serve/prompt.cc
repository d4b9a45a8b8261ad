#include "serve/prompt.h"

#include <algorithm>

#include "engine/chat.h"
#include "serve/sampling_defaults.h"
#include "serve/thinking_wish.h"
#include "serve/truncation.h"
#include "text/think_splitter.h"

namespace still {

namespace {

// The manifest's system prompt stands where the client gives none; "developer" is the system role of newer models.
JsonArray complete_messages(const JsonArray& given, const ServedModel& served, const ChatTemplate& chat_template) {
  JsonArray messages;
  const bool has_system = std::any_of(given.begin(), given.end(), [](const Json& message) {
    return role_of(message) == "system" || role_of(message) == "developer";
  });
  if (!has_system && !served.system.empty()) messages.push_back({{"role", "system"}, {"content", served.system}});
  for (const Json& message : given) {
    messages.push_back(message);
    if (role_of(message) == "developer" && !chat_template.mentions("developer"))
      messages.back().get_object()["role"] = "system";
  }
  return messages;
}

Status refuse_without_engine(const ServedModel& served, std::string_view what) {
  if (served.engine != nullptr) return ok();
  return error(Code::kInvalidArgument, "\"{}\" does not support {}", served.name, what);
}

// Turns of calls alone have no content (null), which some templates add to text. Those get an empty one.
bool fill_content(JsonArray& messages) {
  bool is_changed = false;
  for (Json& message : messages) {
    JsonObject* object = message.if_object();
    Json* content = object != nullptr ? object->if_contains("content") : nullptr;
    if (content == nullptr || !content->is_null()) continue;
    *content = "";
    is_changed = true;
  }
  return is_changed;
}

std::int64_t context_of(const GenerationInput& input, const ServedModel& served) {
  const std::int64_t wanted = input.model.context;
  return wanted > 0 ? std::min(wanted, served.engine->context()) : served.engine->context();
}

// Room for the answer where turns have to go anyway: what the client wants of it, at most a quarter of the context.
std::int64_t reserve_of(const GenerationInput& input, std::int64_t context) {
  const std::int64_t quarter = std::max<std::int64_t>(1, context / 4);
  return input.max_tokens >= 0 ? std::clamp<std::int64_t>(input.max_tokens, 1, quarter)
                               : std::max<std::int64_t>(1, quarter / 2);
}

Result<Request> chat_request(const GenerationInput& input, const ChatInput& chat, const ServedModel& served,
                             std::int64_t context) {
  STILL_TRY(const std::shared_ptr<const ChatTemplate> template_ptr, chat_template_for(input, served));
  const ChatTemplate& chat_template = *template_ptr;
  ChatRequest base;
  base.continue_final_message = chat.continue_final_message;
  base.variables = chat.template_variables;
  if (input.tools.choice != ToolWish::Choice::kNone) base.tools = input.tools.tools;
  STILL_TRY(const ChatThinking thinking,
            resolve_thinking(input.thinking, served.can_think, served.name, base.variables));
  const auto render_as = [&](const JsonArray& messages) {
    ChatRequest request = base;
    request.messages = messages;
    return make_chat_request(*served.model, chat_template, std::move(request), thinking);
  };
  const auto render = [&](JsonArray messages) -> Result<Request> {
    Result<Request> first = render_as(messages);
    if (!first && fill_content(messages)) {
      if (Result<Request> second = render_as(messages)) first = std::move(second);
    }
    STILL_TRY(Request made, std::move(first));
    made.prompt.insert(made.prompt.begin(), chat.prefix_ids.begin(), chat.prefix_ids.end());
    return made;
  };
  const JsonArray messages = complete_messages(chat.messages, served, chat_template);
  const std::int64_t room = input.max_tokens == 0 ? 0 : 1;
  if (!input.may_truncate) {
    return render(messages);
  }
  STILL_TRY(Request whole, render(messages));
  if (static_cast<std::int64_t>(whole.prompt.size()) + room <= context) return whole;
  STILL_TRY(FittedChat fitted, fit_chat(messages, context - reserve_of(input, context), render));
  if (fitted.n_dropped > 0)
    fitted.request.warnings.push_back(fmt::format(
        "the context of {} tokens is too small for the whole chat: the oldest {} of {} messages were dropped", context,
        fitted.n_dropped, messages.size()));
  return std::move(fitted.request);
}

// A raw completion: special tokens in the text count, as with every engine; an empty prompt is a document's beginning.
Request text_request(const TextInput& text, const ServedModel& served) {
  const Tokenizer& tokenizer = served.model->tokenizer();
  Request request;
  request.prompt = tokenizer.encode(text.text);
  const bool wants_bos = text.add_special_tokens && tokenizer.adds_bos() && tokenizer.bos() >= 0;
  if (wants_bos && (request.prompt.empty() || request.prompt.front() != tokenizer.bos()))
    request.prompt.insert(request.prompt.begin(), tokenizer.bos());
  if (request.prompt.empty()) {
    const TokenId first = tokenizer.bos() >= 0 ? tokenizer.bos() : tokenizer.eos();
    if (first >= 0) request.prompt.push_back(first);
  }
  return request;
}

// Tags are tokens like others in a raw completion, unless the client speaks of thinking.
Status set_raw_thinking(const GenerationInput& input, const ServedModel& served, Request& request) {
  const ThinkingWish& wish = input.thinking;
  const bool is_wished = wish.enabled || !wish.effort.empty() || wish.budget >= 0;
  if (!is_wished || !served.can_think) {
    request.thinking.mode = ThinkingMode::kUntracked;
    return ok();
  }
  JsonObject ignored;
  STILL_TRY(const ChatThinking thinking, resolve_thinking(wish, true, served.name, ignored));
  const Tokenizer& tokenizer = served.model->tokenizer();
  request.thinking.mode = thinking.mode;
  request.thinking.budget = thinking.budget;
  request.thinking.starts_in_thinking = prompt_ends_in_thinking(tokenizer, request.prompt);
  if (thinking.budget > 0)
    request.thinking.budget_message =
        tokenizer.encode(thinking.budget_message.empty() ? kBudgetMessage : std::string_view(thinking.budget_message),
                         {.parse_special = false});
  return ok();
}

Result<Request> raw_request(const GenerationInput& input, const ServedModel& served, std::int64_t context) {
  if (const auto* chat = std::get_if<ChatInput>(&input.prompt)) return chat_request(input, *chat, served, context);
  Request request;
  if (const auto* text = std::get_if<TextInput>(&input.prompt)) {
    request = text_request(*text, served);
  } else {
    request.prompt = std::get<TokenInput>(input.prompt).ids;
  }
  STILL_TRY_STATUS(set_raw_thinking(input, served, request));
  return request;
}

}  // namespace

namespace {
// Clients do not say: Jinja has statements in {% %}, Go's actions begin with a field or a keyword.
TemplateLanguage language_of(std::string_view source) {
  if (source.find("{%") != std::string_view::npos) return TemplateLanguage::kJinja;
  for (std::size_t at = source.find("{{"); at != std::string_view::npos; at = source.find("{{", at + 2)) {
    std::string_view action = source.substr(at + 2);
    action.remove_prefix(std::min(action.find_first_not_of("- \t\r\n"), action.size()));
    for (const std::string_view beginning : {".", "$", "if ", "range ", "with ", "end", "else", "define ", "template "})
      if (action.starts_with(beginning)) return TemplateLanguage::kGo;
  }
  return TemplateLanguage::kJinja;
}
}  // namespace

Result<std::shared_ptr<const ChatTemplate>> chat_template_for(const GenerationInput& input, const ServedModel& served) {
  const auto* chat = std::get_if<ChatInput>(&input.prompt);
  if (chat != nullptr && !chat->template_override.empty()) {
    Result<ChatTemplate> own =
        load_chat_template(chat->template_override, "this request", language_of(chat->template_override));
    if (!own) return error(Code::kInvalidArgument, "{}", own.error().message);
    return std::make_shared<const ChatTemplate>(std::move(*own));
  }
  if (!served.chat_template)
    return error(Code::kInvalidArgument, "\"{}\" does not support chat: it has no chat template", served.name);
  // Not owned: the lease keeps the model.
  return std::shared_ptr<const ChatTemplate>(std::shared_ptr<void>(), &*served.chat_template);
}

Result<std::vector<TokenId>> prompt_tokens(const GenerationInput& input, const ServedModel& served) {
  STILL_TRY_STATUS(refuse_without_engine(served, "generate"));
  STILL_TRY(Request request, raw_request(input, served, served.engine->context()));
  return std::move(request.prompt);
}

Result<Request> prepare_prompt(const GenerationInput& input, const ServedModel& served) {
  STILL_TRY_STATUS(
      refuse_without_engine(served, std::holds_alternative<ChatInput>(input.prompt) ? "chat" : "generate"));
  const std::int64_t context = context_of(input, served);
  STILL_TRY(Request request, raw_request(input, served, context));
  STILL_TRY_STATUS(set_sampling(input, served, request));
  const auto n_prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t room = request.max_tokens == 0 ? 0 : 1;
  if (n_prompt + room > context)
    return error(Code::kResourceExhausted,
                 "the prompt has {} tokens, the context holds {}{}: shorten it or choose a larger context", n_prompt,
                 context, n_prompt == context ? " and an answer needs at least one" : "");
  if (input.model.context > served.engine->context())
    request.warnings.push_back(fmt::format("a context of {} tokens was asked for, the model has {}",
                                           input.model.context, served.engine->context()));
  if (context < served.engine->context() && (request.max_tokens < 0 || request.max_tokens > context - n_prompt))
    request.max_tokens = context - n_prompt;
  request.warnings.insert(request.warnings.begin(), input.warnings.begin(), input.warnings.end());
  request.min_tokens = input.min_tokens;
  request.stop_tokens = input.stop_tokens;
  request.n_logprobs = input.n_logprobs;
  request.prompt_logprobs = input.prompt_logprobs;
  request.constrain_reasoning = input.thinking.constrain;
  request.user = input.user;
  request.priority = input.priority;
  return request;
}

}  // namespace still

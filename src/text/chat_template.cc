#include "text/chat_template.h"

#include <algorithm>
#include <array>

#include "text/go_template.h"
#include "text/jinja/interpreter.h"

namespace still {

namespace {

constexpr std::string_view kTrustedVariables[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
constexpr std::string_view kKnownRoles[] = {"system",   "user",    "assistant", "tool",       "developer",
                                            "function", "ipython", "model",     "observation"};

// DeepSeek's markers, for U+FF5C and U+2581 are easily mistaken for | and _.
#define STILL_MARK(text) "<\xef\xbd\x9c" text "\xef\xbd\x9c>"
#define STILL_JOIN "\xe2\x96\x81"

constexpr std::string_view kChatMl =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' "
    "}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

constexpr std::string_view kLlama3 =
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

constexpr std::string_view kDeepseek =
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '" STILL_MARK("User") "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" STILL_MARK("Assistant") "' + message['content'].split('</think>')[-1] + '"
    STILL_MARK("end" STILL_JOIN "of" STILL_JOIN "sentence") "' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" STILL_MARK("Assistant") "<think>\\n' }}{% endif %}";

bool contains_any(std::string_view text, std::initializer_list<std::string_view> words) {
  return std::ranges::any_of(words, [&](std::string_view word) { return text.find(word) != std::string_view::npos; });
}

bool replace_all(std::string& text, std::string_view from, std::string_view to) {
  bool found = false;
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
    found = true;
  }
  return found;
}

std::string mend_template(std::string_view source) {
  std::string text(source);
  constexpr std::string_view kCallsEnd = "{{'" STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "end")
      STILL_MARK("end" STILL_JOIN "of" STILL_JOIN "sentence") "'}}";
  const std::string wrong = std::string(kCallsEnd) + "{%- endif %}{%- endfor %}";
  const std::string right = "{%- endif %}{%- endfor %}" + std::string(kCallsEnd);
  if (replace_all(text, wrong, right)) {
    replace_all(text, "{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}",
                "{%- set ns.is_tool = false -%}{%- set ns.is_first = false -%}{%- for tool in message['tool_calls']%}");
    replace_all(text, "{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}",
                "{%- if not ns.is_tool %}{%- set ns.is_output_first = true %}{%- endif %}{%- set ns.is_tool = true -%}"
                "{%- if ns.is_output_first %}");
  }
  return text;
}

// Every message's role that is a well-known word counts as the template's own.
void trust_roles(jinja::Value& messages) {
  if (!messages.list()) return;
  for (const jinja::Value& message : messages.list()->items) {
    if (!message.dict()) continue;
    for (auto& [key, value] : message.dict()->entries)
      if (key.text()->bytes() == "role" && value.text() &&
          std::ranges::find(kKnownRoles, value.text()->bytes()) != std::end(kKnownRoles))
        value = jinja::Value::trusted(value.text()->bytes());
  }
}

std::vector<ChatSegment> to_segments(const jinja::Text& text) {
  std::vector<ChatSegment> segments;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = begin + 1;
    while (end < text.size() && text.is_trusted(end) == text.is_trusted(begin)) ++end;
    segments.push_back({text.bytes().substr(begin, end - begin), text.is_trusted(begin)});
    begin = end;
  }
  return segments;
}

// Arguments of tool calls as a string or as an object, whichever the template treats.
Status convert_arguments(JsonObject& message, bool as_object) {
  Json* calls = message.if_contains("tool_calls");
  if (!calls || !calls->is_array()) return ok();
  for (Json& call : calls->get_array()) {
    Json* function = call.is_object() ? call.get_object().if_contains("function") : nullptr;
    JsonObject* holder = function && function->is_object() ? function->if_object() : call.if_object();
    Json* arguments = holder ? holder->if_contains("arguments") : nullptr;
    if (!arguments) continue;
    if (as_object && arguments->is_string()) {
      STILL_TRY(Json parsed, parse_json(std::string_view(arguments->get_string()), "arguments of a tool call"));
      *arguments = std::move(parsed);
    } else if (!as_object && !arguments->is_string()) {
      *arguments = to_json(*arguments);
    }
  }
  return ok();
}

Result<JsonArray> prepare_messages(const ChatTemplate& chat_template, const ChatRequest& request) {
  const std::string& source = chat_template.source();
  const bool is_go = chat_template.language() == TemplateLanguage::kGo;
  const bool drops_thinking = !is_go && chat_template.mentions("</think>");
  const bool arguments_as_object =
      is_go || contains_any(source, {"arguments | tojson", "arguments|tojson", "arguments.items", "arguments|items",
                                     "arguments | items", "arguments is mapping", "arguments is string"});
  const bool asks_for_none = contains_any(source, {"['content'] is none", "content is none"});
  JsonArray messages = request.messages;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    JsonObject* message = messages[i].if_object();
    if (!message || !message->if_contains("role") || !message->at("role").is_string())
      return error(Code::kInvalidArgument, "messages[{}]: a message is an object with a role", i);
    STILL_TRY_STATUS(convert_arguments(*message, arguments_as_object));
    if (message->at("role").as_string() != "assistant") continue;
    Json* content = message->if_contains("content");
    const bool has_calls = message->if_contains("tool_calls") && message->at("tool_calls").is_array();
    const bool is_empty = !content || (content->is_string() && content->get_string().empty());
    if (has_calls && is_empty && (asks_for_none || !content))
      (*message)["content"] = asks_for_none ? Json(nullptr) : Json("");
    const bool stays_open = request.continue_final_message && i + 1 == messages.size();
    if (drops_thinking || stays_open || !content || !content->is_string()) continue;
    const std::string_view text = content->get_string();
    const std::size_t end = text.rfind("</think>");
    if (end == std::string_view::npos) continue;
    const std::size_t begin = std::min(text.find_first_not_of('\n', end + 8), text.size());
    *content = std::string(text.substr(begin));
  }
  return messages;
}

// Cuts the text off behind the last message's content: what the template puts after it would end the turn.
Status cut_after(RenderedChat& rendered, std::string_view content) {
  while (!content.empty() && std::string_view(" \t\r\n").find(content.back()) != std::string_view::npos)
    content.remove_suffix(1);
  const std::string text = rendered.text();
  const std::size_t at = text.rfind(content);
  if (content.empty() || at == std::string::npos)
    return error(Code::kInvalidArgument,
                 "the last message cannot be continued: the chat template does not repeat its text");
  std::size_t left = at + content.size();
  for (std::size_t i = 0; i < rendered.segments.size(); ++i) {
    std::string& segment = rendered.segments[i].text;
    if (segment.size() >= left) {
      segment.resize(left);
      rendered.segments.resize(i + 1);
      break;
    }
    left -= segment.size();
  }
  return ok();
}

}  // namespace

struct ChatTemplate::Parsed {
  std::string name, source;
  TemplateLanguage language = TemplateLanguage::kJinja;
  std::vector<jinja::Stmt> body;  // kJinja
  go::ChatTemplate go;            // kGo
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Parsed> parsed) : parsed_(std::move(parsed)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

std::string RenderedChat::text() const {
  std::string out;
  for (const ChatSegment& segment : segments) out += segment.text;
  return out;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view source, std::string_view name, TemplateLanguage language) {
  constexpr std::size_t kMaxSource = 1 << 20;
  if (source.size() > kMaxSource)
    return error(Code::kCorrupt, "chat template of {}: {} bytes, at most {}", name, source.size(), kMaxSource);
  auto parsed = std::make_unique<Parsed>();
  parsed->name = name;
  parsed->source = source;
  parsed->language = language;
  try {
    if (language == TemplateLanguage::kGo) {
      parsed->go = go::parse_chat_template(source);
    } else {
      parsed->body = jinja::parse_template(source);
    }
  } catch (const jinja::Failure& failure) {
    return error(Code::kCorrupt, "chat template of {}: {}", name, failure.what());
  }
  return ChatTemplate(std::move(parsed));
}

Result<RenderedChat> ChatTemplate::render_segments(const Json& context,
                                                   std::optional<std::chrono::system_clock::time_point> now) const {
  if (!context.is_object())
    return error(Code::kInvalidArgument, "chat template of {}: the variables are no object", parsed_->name);
  try {
    if (parsed_->language == TemplateLanguage::kGo)
      return RenderedChat{to_segments(go::render_chat(parsed_->go, context.get_object(), now))};
    jinja::Environment environment;
    environment.now = now;
    for (const auto& [key, json] : context.get_object()) {
      const bool trusted = std::ranges::find(kTrustedVariables, std::string_view(key)) != std::end(kTrustedVariables);
      jinja::Value value = jinja::from_json(json, trusted);
      if (key == "messages") trust_roles(value);
      environment.variables.emplace_back(std::string(key), std::move(value));
    }
    return RenderedChat{to_segments(jinja::render(parsed_->body, environment))};
  } catch (const jinja::Failure& failure) {
    return error(Code::kInvalidArgument, "chat template of {}: {}", parsed_->name, failure.what());
  }
}

Result<std::string> ChatTemplate::render(const Json& context) const {
  STILL_TRY(RenderedChat rendered, render_segments(context));
  return rendered.text();
}

const std::string& ChatTemplate::name() const {
  return parsed_->name;
}
const std::string& ChatTemplate::source() const {
  return parsed_->source;
}
TemplateLanguage ChatTemplate::language() const {
  return parsed_->language;
}
bool ChatTemplate::takes_tools() const {
  return parsed_->language == TemplateLanguage::kGo ? parsed_->go.reads_tools : mentions("tools");
}
bool ChatTemplate::mentions(std::string_view word) const {
  return parsed_->source.find(word) != std::string::npos;
}

Result<ChatTemplate> load_chat_template(std::string_view source, std::string_view name, TemplateLanguage language) {
  if (language == TemplateLanguage::kGo) return ChatTemplate::parse(source, name, language);
  return ChatTemplate::parse(mend_template(source), name);
}

Result<RenderedChat> render_chat(const ChatTemplate& chat_template, const ChatRequest& request) {
  if (request.messages.empty()) return error(Code::kInvalidArgument, "messages: none given");
  if (!request.tools.empty() && !chat_template.takes_tools())
    return error(Code::kUnsupported, "tools: the chat template of {} has no place for them", chat_template.name());
  STILL_TRY(JsonArray messages, prepare_messages(chat_template, request));
  std::string last_content;
  if (request.continue_final_message) {
    const JsonObject& last = messages.back().get_object();
    const Json* content = last.if_contains("content");
    if (last.at("role").as_string() != "assistant" || !content || !content->is_string())
      return error(Code::kInvalidArgument,
                   "the last message cannot be continued: it is no assistant message with text");
    last_content = content->get_string();
  }
  JsonObject context = request.variables;
  context["messages"] = std::move(messages);
  context["tools"] = request.tools.empty() ? Json(nullptr) : Json(request.tools);
  context["add_generation_prompt"] = request.add_generation_prompt && !request.continue_final_message;
  context["bos_token"] = request.bos_token;
  context["eos_token"] = request.eos_token;
  STILL_TRY(RenderedChat rendered, chat_template.render_segments(context, request.now));
  if (request.continue_final_message) STILL_TRY_STATUS(cut_after(rendered, last_content));
  return rendered;
}

std::vector<TokenId> encode_chat(const Tokenizer& tokenizer, const RenderedChat& rendered) {
  std::vector<TextRun> runs;
  for (const ChatSegment& segment : rendered.segments) runs.push_back({segment.text, segment.is_trusted});
  return tokenizer.encode_runs(runs);
}

Result<ChatTemplate> fallback_chat_template(const Tokenizer& tokenizer) {
  if (tokenizer.find(STILL_MARK("Assistant"))) return ChatTemplate::parse(kDeepseek, "built-in deepseek");
  if (tokenizer.find("<|start_header_id|>")) return ChatTemplate::parse(kLlama3, "built-in llama3");
  return ChatTemplate::parse(kChatMl, "built-in chatml");
}

}  // namespace still

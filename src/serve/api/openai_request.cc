#include "serve/api/openai_request.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "serve/api/ollama_wire.h"
#include "serve/thinking_wish.h"

namespace still {

namespace {

constexpr std::int64_t kMaxAnswers = 128;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;

void read_stream(JsonFields& fields, OpenAiStream& stream) {
  stream.is_on = fields.boolean("stream").value_or(false);
  const JsonObject* object = fields.object("stream_options");
  if (object == nullptr) return;
  JsonFields options(*object, "field", "stream_options.");
  stream.include_usage = options.boolean("include_usage").value_or(false);
  stream.continuous_usage = options.boolean("continuous_usage_stats").value_or(false);
  stream.include_usage = stream.include_usage || stream.continuous_usage;
  if (Status status = options.status(); !status) fields.adopt(status.error(), options.wrong_field());
}

// {"50256": -100}
void read_logit_bias(JsonFields& fields, std::vector<std::pair<TokenId, float>>& bias) {
  const JsonObject* object = fields.object("logit_bias");
  if (object == nullptr) return;
  for (const auto& [key, value] : *object) {
    TokenId id = -1;
    const auto [end, failure] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (failure != std::errc() || end != key.data() + key.size() || !value.is_number()) {
      fields.fail("logit_bias", "must map token ids to numbers from -100 to 100");
      return;
    }
    bias.emplace_back(id, static_cast<float>(value.to_number<double>()));
  }
}

void read_stop_tokens(JsonFields& fields, GenerationInput& input) {
  for (const std::int64_t id : fields.integers("stop_token_ids")) {
    if (id < 0 || id > std::numeric_limits<TokenId>::max()) {
      fields.fail("stop_token_ids", "must be an array of token ids");
      return;
    }
    input.stop_tokens.push_back(static_cast<TokenId>(id));
  }
}

// The newer name of two, where both are sent.
std::optional<std::int64_t> read_max_tokens(JsonFields& fields) {
  const auto newer = fields.integer_in("max_completion_tokens", -1, kMaxTokens);
  const auto older = fields.integer_in("max_tokens", -1, kMaxTokens);
  return newer ? newer : older;
}

}  // namespace

SamplingParams openai_sampling_defaults() {
  return {};
}

void read_openai_model(JsonFields& fields, ModelWish& model) {
  model.name = fields.required_text("model");
  if (fields.is_ok() && model.name.empty()) fields.fail("model", "is empty");
  model.context = fields.integer_in("num_ctx", 0, kMaxTokens).value_or(model.context);
  const Json* keep_alive = fields.find("keep_alive");
  if (keep_alive == nullptr) return;
  Result<std::optional<std::chrono::nanoseconds>> time =
      OllamaFields(JsonObject{{"keep_alive", *keep_alive}}).keep_alive();
  if (!time) {
    fields.fail("keep_alive", "must be a time like \"5m\" or a number of seconds");
    return;
  }
  model.keep_alive = *time;
}

namespace {

// vLLM's fields that this server does not have: what holds an answer to something, or changes the prompt, must not be
// dropped in silence; what only tells more is.
void refuse_unknown_constraints(JsonFields& fields) {
  for (const std::string_view name : {"bad_words", "allowed_token_ids"}) {
    const Json* value = fields.find(name);
    if (value == nullptr || (value->is_array() && value->get_array().empty())) continue;
    fields.fail(name, "is not supported: logit_bias forbids tokens, guided_regex and grammar hold answers to a form");
  }
  if (fields.has("truncate_prompt_tokens"))
    fields.fail("truncate_prompt_tokens", "is not supported: a prompt that is too long is an error here");
}

void warn_of_unknown(JsonFields& fields, GenerationInput& input) {
  const Json* logprobs = fields.find("prompt_logprobs");
  if (logprobs != nullptr && *logprobs != false && *logprobs != 0)
    input.warnings.push_back("prompt_logprobs has no effect here: completions with echo and logprobs tell them");
}

}  // namespace

void read_openai_sampling(JsonFields& fields, GenerationInput& input) {
  refuse_unknown_constraints(fields);
  warn_of_unknown(fields, input);
  input.fallback = openai_sampling_defaults();
  // Ollama's names in their own object, vLLM's beside the others.
  if (const JsonObject* options = fields.object("options")) {
    std::vector<std::string> ignored;
    if (Status applied = apply_ollama_options(*options, input, ignored); !applied)
      fields.adopt(applied.error(), "options");
  }
  constexpr std::array<std::string_view, 8> kNumbers = {
      "temperature",       "top_p",          "min_p", "repetition_penalty", "presence_penalty",
      "frequency_penalty", "repeat_penalty", ""};
  for (const std::string_view name : kNumbers)
    if (const auto number = name.empty() ? std::nullopt : fields.number(name)) input.sampling[name] = *number;
  constexpr std::int64_t kMaxInt = std::numeric_limits<std::int32_t>::max();
  if (const auto number = fields.integer_in("top_k", -1, kMaxInt)) input.sampling["top_k"] = *number;
  if (const auto number = fields.integer_in("repeat_last_n", -1, kMaxInt)) input.sampling["repeat_last_n"] = *number;
  if (const auto number = fields.integer("seed")) input.sampling["seed"] = *number;
  read_logit_bias(fields, input.logit_bias);
  if (fields.has("stop")) input.stop = fields.texts("stop");
  if (std::find(input.stop.begin(), input.stop.end(), "") != input.stop.end())
    fields.fail("stop", "holds an empty string, which would end every answer");
  read_stop_tokens(fields, input);
  input.min_tokens = fields.integer_in("min_tokens", 0, kMaxTokens).value_or(0);
  input.ignore_eos = fields.boolean("ignore_eos").value_or(false);
  input.n = static_cast<std::int32_t>(fields.integer_in("n", 1, kMaxAnswers).value_or(1));
  input.priority = static_cast<std::int32_t>(fields.integer_in("priority", -1000, 1000).value_or(0));
}

namespace {

// thinking: true, {"type": "enabled", "budget_tokens": 1024}, as DeepSeek's and Anthropic's clients send it.
void read_thinking_member(JsonFields& fields, ThinkingWish& wish) {
  const Json* value = fields.find("thinking");
  if (value == nullptr) return;
  if (const bool* flag = value->if_bool()) {
    wish.enabled = *flag;
    return;
  }
  const JsonObject* object = fields.object("thinking");
  if (object == nullptr) return;
  JsonFields thinking(*object, "field", "thinking.");
  const std::string type = thinking.text("type").value_or("");
  if (type == "enabled" || type == "disabled")
    wish.enabled = type == "enabled";
  else if (!type.empty() && type != "adaptive" && type != "auto")
    thinking.fail("type", fmt::format("is \"{}\": expected enabled, disabled or adaptive", type));
  if (const auto budget = thinking.integer_in("budget_tokens", -1, kMaxTokens)) wish.budget = *budget;
  if (Status status = thinking.status(); !status) fields.adopt(status.error(), thinking.wrong_field());
}

void set_effort(JsonFields& fields, std::string_view name, const std::optional<std::string>& effort,
                ThinkingWish& wish) {
  if (!effort || effort->empty()) return;
  if (!effort_budget(*effort)) {
    fields.fail(name, fmt::format("is \"{}\": expected none, minimal, low, medium, high, xhigh or max", *effort));
    return;
  }
  wish.effort = *effort;
}

// chat_template_kwargs go to the template; those that switch thinking are a wish, too.
void read_template_variables(JsonFields& fields, GenerationInput& input) {
  const JsonObject* variables = fields.object("chat_template_kwargs");
  if (variables == nullptr) return;
  JsonFields reader(*variables, "field", "chat_template_kwargs.");
  for (const std::string_view name : {"enable_thinking", "thinking"})
    if (const Json* value = reader.find(name); value != nullptr && value->is_bool())
      input.thinking.enabled = value->get_bool();
  if (const Json* budget = reader.find("thinking_budget"); budget != nullptr && budget->is_int64())
    input.thinking.budget = std::max<std::int64_t>(-1, budget->get_int64());
  if (auto* chat = std::get_if<ChatInput>(&input.prompt)) chat->template_variables = *variables;
}

}  // namespace

void read_openai_thinking(JsonFields& fields, GenerationInput& input) {
  ThinkingWish& wish = input.thinking;
  read_template_variables(fields, input);
  set_effort(fields, "reasoning_effort", fields.text("reasoning_effort"), wish);
  if (const JsonObject* object = fields.object("reasoning")) {
    JsonFields reasoning(*object, "field", "reasoning.");
    set_effort(reasoning, "effort", reasoning.text("effort"), wish);
    if (const auto enabled = reasoning.boolean("enabled")) wish.enabled = enabled;
    if (const auto budget = reasoning.integer_in("max_tokens", -1, kMaxTokens)) wish.budget = *budget;
    if (reasoning.boolean("exclude").value_or(false)) input.reasoning_format = ReasoningFormat::kHidden;
    if (Status status = reasoning.status(); !status) fields.adopt(status.error(), reasoning.wrong_field());
  }
  read_thinking_member(fields, wish);
  if (const auto enabled = fields.boolean("enable_thinking")) wish.enabled = enabled;
  if (const Json* think = fields.find("think")) {
    if (think->is_bool())
      wish.enabled = think->get_bool();
    else
      set_effort(fields, "think", fields.text("think"), wish);
  }
  for (const std::string_view name : {"thinking_budget", "thinking_token_budget", "thinking_budget_tokens",
                                      "reasoning_budget_tokens", "reasoning_budget"})
    if (const auto budget = fields.integer_in(name, -1, kMaxTokens)) wish.budget = *budget;
  if (auto message = fields.text("reasoning_budget_message")) wish.budget_message = std::move(*message);
  if (fields.boolean("include_reasoning") == false) input.reasoning_format = ReasoningFormat::kHidden;

  const auto format = fields.text("reasoning_format");
  if (!format) return;
  if (*format == "none" || *format == "raw")
    input.reasoning_format = ReasoningFormat::kRaw;
  else if (*format == "deepseek-legacy")
    input.reasoning_format = ReasoningFormat::kBoth;
  else if (*format == "hidden")
    input.reasoning_format = ReasoningFormat::kHidden;
  else if (*format != "deepseek" && *format != "auto" && *format != "parsed")
    fields.fail("reasoning_format",
                fmt::format("is \"{}\": expected deepseek, deepseek-legacy, none, hidden or auto", *format));
}

namespace {

// A schema as an object, or as its text.
void set_schema(JsonFields& fields, std::string_view name, FormatWish& format) {
  const Json* value = fields.find(name);
  if (value == nullptr) return;
  format.kind = FormatWish::Kind::kJsonSchema;
  if (const auto* text = value->if_string()) {
    Result<Json> parsed = parse_json(*text, name);
    if (!parsed) {
      fields.fail(name, "is no JSON: " + parsed.error().message);
      return;
    }
    format.schema = std::move(*parsed);
  } else {
    format.schema = *value;
  }
  if (!format.schema.is_object() && !format.schema.is_bool()) fields.fail_type(name, "object");
}

void set_pattern(JsonFields& fields, std::string_view name, FormatWish::Kind kind, FormatWish& format) {
  auto pattern = fields.text(name);
  if (!pattern || pattern->empty()) return;
  format.kind = kind;
  format.pattern = std::move(*pattern);
}

void set_choices(JsonFields& fields, std::string_view name, FormatWish& format) {
  if (!fields.has(name)) return;
  if (fields.array(name) == nullptr) return;
  format.kind = FormatWish::Kind::kChoice;
  format.choices = fields.texts(name);
  if (format.choices.empty()) fields.fail(name, "is empty: expected one choice or more");
}

void read_response_format(JsonFields& fields, FormatWish& format) {
  const JsonObject* object = fields.object("response_format");
  if (object == nullptr) return;
  JsonFields wish(*object, "field", "response_format.");
  const std::string type = wish.required_text("type");
  if (type == "json_object") {
    format.kind = FormatWish::Kind::kJsonObject;
    set_schema(wish, "schema", format);  // llama-server's and DeepSeek clients' spelling
  } else if (type == "json_schema") {
    const JsonObject* inner = wish.object("json_schema");
    if (inner == nullptr) {
      wish.fail("json_schema", "is required with type json_schema");
    } else {
      JsonFields schema(*inner, "field", "response_format.json_schema.");
      if (!schema.has("schema")) schema.fail("schema", "is required");
      set_schema(schema, "schema", format);
      if (Status status = schema.status(); !status) wish.adopt(status.error(), schema.wrong_field());
    }
  } else if (type != "text" && wish.is_ok()) {
    wish.fail("type", fmt::format("is \"{}\": expected text, json_object or json_schema", type));
  }
  if (Status status = wish.status(); !status) fields.adopt(status.error(), wish.wrong_field());
}

}  // namespace

void read_openai_format(JsonFields& fields, FormatWish& format) {
  read_response_format(fields, format);
  set_schema(fields, "json_schema", format);
  set_schema(fields, "guided_json", format);
  set_pattern(fields, "guided_regex", FormatWish::Kind::kRegex, format);
  set_choices(fields, "guided_choice", format);
  set_pattern(fields, "guided_grammar", FormatWish::Kind::kGrammar, format);
  set_pattern(fields, "grammar", FormatWish::Kind::kGrammar, format);
  const JsonObject* object = fields.object("structured_outputs");
  if (object == nullptr) return;
  JsonFields wish(*object, "field", "structured_outputs.");
  set_schema(wish, "json", format);
  set_pattern(wish, "regex", FormatWish::Kind::kRegex, format);
  set_choices(wish, "choice", format);
  set_pattern(wish, "grammar", FormatWish::Kind::kGrammar, format);
  if (wish.boolean("json_object").value_or(false)) format.kind = FormatWish::Kind::kJsonObject;
  if (Status status = wish.status(); !status) fields.adopt(status.error(), wish.wrong_field());
}

namespace {

// Where in the request a tool or a message stands: "tools[0].".
std::string place(std::string_view list, std::size_t i) {
  return fmt::format("{}[{}].", list, i);
}

std::string read_tool(JsonFields& fields, const JsonArray& tools, std::size_t i) {
  const JsonObject* object = tools[i].if_object();
  if (object == nullptr) {
    fields.fail("tools", "must be an array of objects");
    return {};
  }
  JsonFields tool(*object, "field", place("tools", i));
  const std::string type = tool.text("type").value_or("function");
  if (type != "function") tool.fail("type", fmt::format("is \"{}\": expected function", type));
  std::string name;
  if (const JsonObject* inner = tool.object("function")) {
    JsonFields function(*inner, "field", place("tools", i) + "function.");
    name = function.required_text("name");
    function.object("parameters");
    function.text("description");
    if (Status status = function.status(); !status) tool.adopt(status.error(), function.wrong_field());
  } else {
    tool.fail("function", "is required");
  }
  if (Status status = tool.status(); !status) fields.adopt(status.error(), tool.wrong_field());
  return name;
}

}  // namespace

void read_openai_tools(JsonFields& fields, ToolWish& wish) {
  std::vector<std::string> names;
  if (const JsonArray* tools = fields.array("tools")) {
    for (std::size_t i = 0; i < tools->size(); ++i) names.push_back(read_tool(fields, *tools, i));
    wish.tools = *tools;
  }
  wish.parallel = fields.boolean("parallel_tool_calls").value_or(true);
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return;
  if (const auto* word = choice->if_string()) {
    if (*word == "none")
      wish.choice = ToolWish::Choice::kNone;
    else if (*word == "required" || *word == "any")
      wish.choice = ToolWish::Choice::kRequired;
    else if (*word != "auto")
      fields.fail("tool_choice", fmt::format("is \"{}\": expected none, auto, required or a function", *word));
  } else if (const JsonObject* object = fields.object("tool_choice")) {
    JsonFields named(*object, "field", "tool_choice.");
    const JsonObject* function = named.object("function");
    if (function == nullptr) {
      named.fail("function", "is required");
    } else {
      JsonFields inner(*function, "field", "tool_choice.function.");
      wish.choice = ToolWish::Choice::kNamed;
      wish.name = inner.required_text("name");
      if (inner.is_ok() && std::find(names.begin(), names.end(), wish.name) == names.end())
        inner.fail("name", fmt::format("is \"{}\": no such tool", wish.name));
      if (Status status = inner.status(); !status) named.adopt(status.error(), inner.wrong_field());
    }
    if (Status status = named.status(); !status) fields.adopt(status.error(), named.wrong_field());
  }
  const bool must_call = wish.choice == ToolWish::Choice::kRequired || wish.choice == ToolWish::Choice::kNamed;
  if (must_call && names.empty()) fields.fail("tool_choice", "asks for a call, but there are no tools");
}

namespace {

// The text of a message's content: a string, null, or parts of text.
std::string read_content(JsonFields& message, std::string_view where) {
  const Json* content = message.find("content");
  if (content == nullptr) return {};
  if (const auto* text = content->if_string()) return std::string(*text);
  const JsonArray* parts = content->if_array();
  if (parts == nullptr) {
    message.fail("content", "must be a string or an array of parts");
    return {};
  }
  std::string joined;
  for (std::size_t i = 0; i < parts->size(); ++i) {
    const JsonObject* object = (*parts)[i].if_object();
    if (object == nullptr) {
      message.fail("content", "must be a string or an array of parts");
      return {};
    }
    JsonFields part(*object, "field", fmt::format("{}content[{}].", where, i));
    const std::string type = part.required_text("type");
    std::optional<std::string> text;
    if (type == "text" || type == "input_text" || type == "output_text") {
      text = part.required_text("text");
    } else if (type == "refusal") {
      text = part.required_text("refusal");
    } else if (part.is_ok()) {
      part.fail("type", fmt::format("is \"{}\": only text is understood, no images, sound or files", type));
    }
    if (Status status = part.status(); !status) {
      message.adopt(status.error(), part.wrong_field());
      return {};
    }
    if (i > 0) joined += '\n';
    joined += text.value_or("");
  }
  return joined;
}

JsonArray read_tool_calls(JsonFields& message, std::string_view where) {
  JsonArray calls;
  const JsonArray* given = message.array("tool_calls");
  if (given == nullptr) return calls;
  for (std::size_t i = 0; i < given->size(); ++i) {
    const std::string here = fmt::format("{}tool_calls[{}].", where, i);
    const JsonObject* object = (*given)[i].if_object();
    if (object == nullptr) {
      message.fail("tool_calls", "must be an array of objects");
      return {};
    }
    JsonFields call(*object, "field", here);
    JsonObject made{{"type", "function"}};
    if (auto id = call.text("id")) made["id"] = *id;
    if (const JsonObject* inner = call.object("function")) {
      JsonFields function(*inner, "field", here + "function.");
      JsonObject made_function{{"name", function.required_text("name")}};
      const Json* arguments = function.find("arguments");
      made_function["arguments"] = arguments == nullptr ? Json("{}") : *arguments;
      if (arguments != nullptr && !arguments->is_string() && !arguments->is_object())
        function.fail("arguments", "must be a string of JSON");
      if (Status status = function.status(); !status) call.adopt(status.error(), function.wrong_field());
      made["function"] = std::move(made_function);
    } else {
      call.fail("function", "is required");
    }
    if (Status status = call.status(); !status) {
      message.adopt(status.error(), call.wrong_field());
      return {};
    }
    calls.push_back(std::move(made));
  }
  return calls;
}

JsonObject read_message(JsonFields& message, std::string_view where) {
  const std::string role = message.required_text("role");
  constexpr std::array<std::string_view, 6> kRoles = {"system", "developer", "user", "assistant", "tool", "function"};
  if (message.is_ok() && std::find(kRoles.begin(), kRoles.end(), role) == kRoles.end())
    message.fail("role", fmt::format("is \"{}\": expected system, developer, user, assistant or tool", role));
  JsonObject made{{"role", role == "function" ? "tool" : role}};
  std::string content = read_content(message, where);
  JsonArray calls = read_tool_calls(message, where);
  // Templates tell a turn of calls alone by its content: none, not "".
  if (content.empty() && !calls.empty())
    made["content"] = nullptr;
  else
    made["content"] = content;
  if (!calls.empty()) made["tool_calls"] = std::move(calls);
  if (role == "assistant") {
    auto reasoning = message.text("reasoning_content");
    if (!reasoning)
      reasoning = message.find("reasoning") != nullptr && message.find("reasoning")->is_string()
                      ? message.text("reasoning")
                      : std::nullopt;
    if (reasoning && !reasoning->empty()) made["reasoning_content"] = *reasoning;
  }
  if (auto name = message.text("name")) made["name"] = *name;
  if (auto id = message.text("tool_call_id")) made["tool_call_id"] = *id;
  return made;
}

}  // namespace

JsonArray read_openai_messages(JsonFields& fields, bool& is_prefix) {
  JsonArray messages;
  const JsonArray* given = fields.array("messages");
  if (given == nullptr || given->empty()) {
    fields.fail("messages", given == nullptr ? "is required" : "is empty: expected one message or more");
    return messages;
  }
  for (std::size_t i = 0; i < given->size(); ++i) {
    const JsonObject* object = (*given)[i].if_object();
    if (object == nullptr) {
      fields.fail("messages", "must be an array of objects");
      return {};
    }
    const std::string where = place("messages", i);
    JsonFields message(*object, "field", where);
    messages.push_back(read_message(message, where));
    const bool is_last_answer =
        i + 1 == given->size() && messages.back().get_object()["role"].get_string() == "assistant";
    if (message.boolean("prefix").value_or(false)) {
      is_prefix = is_last_answer;
      if (!is_last_answer) message.fail("prefix", "is only for an assistant's message at the end");
    }
    if (Status status = message.status(); !status) {
      fields.adopt(status.error(), message.wrong_field());
      return {};
    }
  }
  return messages;
}

ChatCall read_chat_call(JsonFields& fields) {
  ChatCall call;
  GenerationInput& input = call.input;
  input.prompt = ChatInput{};
  read_openai_model(fields, input.model);
  auto& chat = std::get<ChatInput>(input.prompt);
  chat.messages = read_openai_messages(fields, chat.continue_final_message);
  if (fields.boolean("continue_final_message").value_or(false)) {
    chat.continue_final_message = true;
    if (!chat.messages.empty() && chat.messages.back().get_object()["role"].get_string() != "assistant")
      fields.fail("continue_final_message", "needs an assistant's message at the end");
  }
  if (fields.boolean("add_generation_prompt") == false && !chat.continue_final_message)
    fields.fail("add_generation_prompt",
                "cannot be false: a chat is answered by the assistant, or its message continued");
  if (const auto best_of = fields.integer_in("best_of", 1, kMaxAnswers); best_of.value_or(1) > 1)
    input.warnings.push_back("best_of has no effect on a chat: completions choose the best");
  if (auto text = fields.text("chat_template")) chat.template_override = *text;
  read_stream(fields, call.stream);
  read_openai_sampling(fields, input);
  read_openai_thinking(fields, input);
  read_openai_format(fields, input.format);
  read_openai_tools(fields, input.tools);
  if (const auto n = read_max_tokens(fields)) input.max_tokens = *n;
  const bool wants_logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer_in("top_logprobs", 0, kMaxLogprobs);
  if (top.value_or(0) > 0 && !wants_logprobs) fields.fail("top_logprobs", "needs \"logprobs\": true");
  if (wants_logprobs) input.n_logprobs = static_cast<std::int32_t>(top.value_or(0));
  call.includes_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  call.returns_token_ids = fields.boolean("return_token_ids").value_or(false);
  input.wants_tokens = call.returns_token_ids || call.stream.continuous_usage;
  return call;
}

namespace {

// A string, several, ids, or several lists of ids.
void read_prompts(JsonFields& fields, CompletionCall& call) {
  const Json* prompt = fields.find("prompt");
  const auto fail = [&] {
    fields.fail("prompt", "must be a string, an array of strings, of token ids, or of arrays of token ids");
  };
  const auto read_ids = [](const JsonArray& list, std::vector<TokenId>& ids) {
    for (const Json& id : list) {
      if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > std::numeric_limits<TokenId>::max()) return false;
      ids.push_back(static_cast<TokenId>(id.get_int64()));
    }
    return true;
  };
  const bool adds_special = fields.boolean("add_special_tokens").value_or(true);
  if (prompt == nullptr) {
    call.prompts.emplace_back(TextInput{.add_special_tokens = adds_special});
    return;
  }
  if (const auto* text = prompt->if_string()) {
    call.prompts.emplace_back(TextInput{std::string(*text), adds_special});
    return;
  }
  const JsonArray* list = prompt->if_array();
  if (list == nullptr) return fail();
  if (list->empty()) return fields.fail("prompt", "is empty");
  constexpr std::size_t kMaxPrompts = 2048;
  if (list->front().is_number()) {
    TokenInput input;
    if (!read_ids(*list, input.ids)) return fail();
    call.prompts.emplace_back(std::move(input));
    return;
  }
  if (list->size() > kMaxPrompts)
    return fields.fail("prompt", fmt::format("has {} prompts: expected at most {}", list->size(), kMaxPrompts));
  for (const Json& item : *list) {
    TokenInput input;
    if (const auto* text = item.if_string())
      call.prompts.emplace_back(TextInput{std::string(*text), adds_special});
    else if (const JsonArray* ids = item.if_array(); ids != nullptr && !ids->empty() && read_ids(*ids, input.ids))
      call.prompts.emplace_back(std::move(input));
    else
      return fail();
  }
}

}  // namespace

CompletionCall read_completion_call(JsonFields& fields) {
  CompletionCall call;
  GenerationInput& input = call.input;
  read_openai_model(fields, input.model);
  read_prompts(fields, call);
  read_stream(fields, call.stream);
  read_openai_sampling(fields, input);
  read_openai_thinking(fields, input);
  read_openai_format(fields, input.format);
  input.max_tokens = read_max_tokens(fields).value_or(16);
  if (!fields.text("suffix").value_or("").empty())
    fields.fail("suffix", "is not supported: this server completes only at the end of a text");
  call.echo = fields.boolean("echo").value_or(false);
  // Token counts in every chunk, and the ids, come from the tokens themselves.
  const Json* logprobs = fields.find("logprobs");
  if (logprobs != nullptr && logprobs->is_bool())
    call.n_logprobs = logprobs->get_bool() ? 0 : -1;
  else if (const auto n = fields.integer_in("logprobs", 0, kMaxLogprobs))
    call.n_logprobs = static_cast<std::int32_t>(*n);
  input.n_logprobs = call.n_logprobs;
  input.prompt_logprobs = call.echo && call.n_logprobs >= 0;
  call.n = input.n;
  if (const auto best_of = fields.integer_in("best_of", 1, kMaxAnswers)) {
    if (*best_of < call.n) fields.fail("best_of", fmt::format("is {}: expected at least n, {}", *best_of, call.n));
    if (*best_of > call.n && call.stream.is_on) fields.fail("best_of", "cannot be streamed");
    input.n = static_cast<std::int32_t>(*best_of);
    if (input.n > call.n) input.n_logprobs = std::max(input.n_logprobs, 0);
  }
  call.includes_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  call.returns_token_ids = fields.boolean("return_token_ids").value_or(false);
  input.wants_tokens = call.returns_token_ids || call.stream.continuous_usage;
  return call;
}

}  // namespace still

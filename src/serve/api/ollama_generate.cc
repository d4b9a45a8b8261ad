// See ollama_generate.h.
#include "serve/api/ollama_generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "serve/api/json_fields.h"

namespace still {

namespace {

Status read_common(const OllamaFields& fields, OllamaCall& call) {
  STILL_TRY(call.model, fields.model());
  GenerationInput& input = call.input;
  input.model.name = call.model;
  STILL_TRY(input.model.keep_alive, fields.keep_alive());
  STILL_TRY(const std::optional<bool> only_renders, fields.flag("_debug_render_only"));
  if (only_renders.value_or(false)) {
    return error(Code::kInvalidArgument,
                 "field \"_debug_render_only\" is not supported: /tokenize and /detokenize show "
                 "the rendered prompt");
  }
  STILL_TRY(const std::optional<bool> stream, fields.flag("stream"));
  call.stream = stream.value_or(true);
  input.fallback = ollama_sampling_defaults();
  STILL_TRY(JsonObject options, fields.object("options"));
  // Beside options, as our own field: how the reasoning is told.
  STILL_TRY(std::string reasoning_format, fields.text("reasoning_format"));
  if (const auto* inner = options.if_contains("reasoning_format"); inner != nullptr && inner->is_string()) {
    reasoning_format = std::string(inner->get_string());
    options.erase("reasoning_format");
  }
  if (reasoning_format == "none" || reasoning_format == "raw") {
    input.reasoning_format = ReasoningFormat::kRaw;
  } else if (reasoning_format == "deepseek-legacy") {
    input.reasoning_format = ReasoningFormat::kBoth;
  } else if (reasoning_format == "hidden") {
    input.reasoning_format = ReasoningFormat::kHidden;
  } else if (!reasoning_format.empty() && reasoning_format != "deepseek" && reasoning_format != "auto") {
    return error(Code::kInvalidArgument,
                 "invalid reasoning_format: \"{}\" (must be \"deepseek\", \"none\", \"deepseek-legacy\" or \"hidden\")",
                 reasoning_format);
  }
  STILL_TRY_STATUS(apply_ollama_options(options, input, call.warnings));
  STILL_TRY(input.thinking, read_ollama_think(fields));
  input.thinking.must_support = input.thinking.enabled.value_or(false);
  STILL_TRY(const std::optional<std::int64_t> budget, fields.integer("thinking_budget"));
  if (budget) input.thinking.budget = *budget;
  STILL_TRY(input.format, read_ollama_format(fields));
  STILL_TRY(const std::optional<bool> truncate, fields.flag("truncate"));
  input.may_truncate = truncate.value_or(true);
  STILL_TRY(const std::optional<std::int64_t> top_logprobs, fields.integer("top_logprobs"));
  if (top_logprobs && (*top_logprobs < 0 || *top_logprobs > kMaxLogprobs)) {
    return error(Code::kInvalidArgument, "top_logprobs must be between 0 and {}", kMaxLogprobs);
  }
  STILL_TRY(const std::optional<bool> logprobs, fields.flag("logprobs"));
  call.wants_logprobs = logprobs.value_or(false);
  if (call.wants_logprobs) input.n_logprobs = static_cast<std::int32_t>(top_logprobs.value_or(0));
  STILL_TRY(const std::optional<bool> progress, fields.flag("progress"));
  call.wants_progress = input.wants_progress = progress.value_or(false) && call.stream;
  return ok();
}

// Members that are absent or null count as empty.
Result<std::string> text_of(const JsonObject& object, std::string_view key, std::string_view where) {
  const Json* value = object.if_contains(key);
  if (value == nullptr || value->is_null()) return std::string();
  if (!value->is_string()) return error(Code::kInvalidArgument, "{}: \"{}\" must be of type string", where, key);
  return std::string(value->get_string());
}

Status check_no_images(const Json* images, std::string_view model) {
  if (images == nullptr || images->is_null()) return ok();
  if (!images->is_array()) return error(Code::kInvalidArgument, "field \"images\" must be of type array");
  if (images->get_array().empty()) return ok();
  return error(Code::kInvalidArgument, "\"{}\" does not support image input", model);
}

// Ollama's calls {id, function{index, name, arguments: object}} as OpenAI's.
Result<JsonArray> convert_tool_calls(const JsonArray& calls, std::string_view where) {
  JsonArray out;
  for (const Json& call : calls) {
    const Json* function = call.is_object() ? call.get_object().if_contains("function") : nullptr;
    if (function == nullptr || !function->is_object()) {
      return error(Code::kInvalidArgument, "{}: a tool call without \"function\"", where);
    }
    STILL_TRY(const std::string name, text_of(function->get_object(), "name", where));
    STILL_TRY(const std::string id, text_of(call.get_object(), "id", where));
    const Json* arguments = function->get_object().if_contains("arguments");
    std::string text = "{}";
    if (arguments != nullptr && !arguments->is_null()) {
      text = arguments->is_string() ? std::string(arguments->get_string()) : to_json(*arguments);
    }
    JsonObject converted{{"type", "function"}, {"function", JsonObject{{"name", name}, {"arguments", text}}}};
    if (!id.empty()) converted["id"] = id;
    out.push_back(std::move(converted));
  }
  return out;
}

Result<JsonObject> convert_message(const Json& json, std::size_t idx, std::string_view model) {
  const std::string where = fmt::format("messages[{}]", idx);
  const JsonObject* message = json.if_object();
  if (message == nullptr) return error(Code::kInvalidArgument, "{} must be of type object", where);
  STILL_TRY(std::string role, text_of(*message, "role", where));
  std::ranges::transform(role, role.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (role != "system" && role != "user" && role != "assistant" && role != "tool") {
    return error(Code::kInvalidArgument,
                 "invalid role: {}, role must be one of [\"system\", \"user\", \"assistant\", "
                 "\"tool\"]",
                 role);
  }
  STILL_TRY(const std::string content, text_of(*message, "content", where));
  STILL_TRY_STATUS(check_no_images(message->if_contains("images"), model));
  JsonObject out{{"role", role}, {"content", content}};
  STILL_TRY(const std::string thinking, text_of(*message, "thinking", where));
  if (!thinking.empty()) out["reasoning_content"] = thinking;
  STILL_TRY(const std::string tool_name, text_of(*message, "tool_name", where));
  STILL_TRY(const std::string call_id, text_of(*message, "tool_call_id", where));
  if (!tool_name.empty()) out["name"] = tool_name;
  if (!call_id.empty()) out["tool_call_id"] = call_id;
  if (const Json* calls = message->if_contains("tool_calls"); calls != nullptr && !calls->is_null()) {
    if (!calls->is_array()) return error(Code::kInvalidArgument, "{}: \"tool_calls\" must be of type array", where);
    STILL_TRY(JsonArray converted, convert_tool_calls(calls->get_array(), where));
    if (!converted.empty()) out["tool_calls"] = std::move(converted);
  }
  return out;
}

}  // namespace

Result<OllamaCall> read_ollama_chat(const OllamaFields& fields) {
  OllamaCall call{.route = OllamaRoute::kChat};
  STILL_TRY_STATUS(read_common(fields, call));
  STILL_TRY(const JsonArray messages, fields.array("messages"));
  call.is_load = messages.empty();
  ChatInput chat;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    STILL_TRY(JsonObject message, convert_message(messages[i], i, call.model));
    chat.messages.push_back(std::move(message));
  }
  STILL_TRY(call.input.tools.tools, fields.array("tools"));
  for (const Json& tool : call.input.tools.tools) {
    if (!tool.is_object()) return error(Code::kInvalidArgument, "field \"tools\" must be an array of objects");
  }
  call.input.prompt = std::move(chat);
  return call;
}

Result<OllamaCall> read_ollama_generate(const OllamaFields& fields) {
  OllamaCall call{.route = OllamaRoute::kGenerate};
  STILL_TRY_STATUS(read_common(fields, call));
  STILL_TRY(const std::string prompt, fields.text("prompt"));
  STILL_TRY(const std::string suffix, fields.text("suffix"));
  STILL_TRY(const std::string system, fields.text("system"));
  STILL_TRY(const std::string chat_template, fields.text("template"));
  STILL_TRY(const JsonArray context, fields.array("context"));
  STILL_TRY(const std::optional<bool> raw, fields.flag("raw"));
  STILL_TRY_STATUS(check_no_images(fields.find("images"), call.model));
  if (raw.value_or(false) && (!system.empty() || !chat_template.empty() || !context.empty())) {
    return error(Code::kInvalidArgument, "raw mode does not support template, system, or context");
  }
  call.is_load = prompt.empty() && suffix.empty();
  if (!suffix.empty()) return error(Code::kInvalidArgument, "\"{}\" does not support insert", call.model);
  if (raw.value_or(false)) {
    call.input.prompt = TextInput{.text = prompt};
    return call;
  }
  call.wants_context = call.input.wants_tokens = true;
  ChatInput chat{.template_override = chat_template};
  for (const Json& id : context) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > std::numeric_limits<TokenId>::max()) {
      return error(Code::kInvalidArgument, "field \"context\" must be an array of token ids");
    }
    chat.prefix_ids.push_back(static_cast<TokenId>(id.get_int64()));
  }
  if (!system.empty()) chat.messages.push_back(JsonObject{{"role", "system"}, {"content", system}});
  chat.messages.push_back(JsonObject{{"role", "user"}, {"content", prompt}});
  call.input.prompt = std::move(chat);
  return call;
}

OllamaSink::OllamaSink(OllamaCall call, std::shared_ptr<ResponseWriter> writer)
    : call_(std::move(call)), writer_(std::move(writer)) {}

void OllamaSink::start_stream() {
  if (std::exchange(is_started_, true)) return;
  writer_->start(200, "application/x-ndjson", {{"X-Still-Generation", id_}});
}

void OllamaSink::append_head(std::string& line) const {
  line += "{\"model\":";
  append_json_string(line, call_.model);
  line += ",\"created_at\":\"";
  append_rfc3339(line, std::chrono::system_clock::now());
  line += '"';
}

void OllamaSink::append_message(std::string& line, const Text& text) const {
  if (call_.route == OllamaRoute::kGenerate) {
    line += ",\"response\":";
    append_json_string(line, text.content);
    if (!text.thinking.empty()) {
      line += ",\"thinking\":";
      append_json_string(line, text.thinking);
    }
  } else {
    line += ",\"message\":{\"role\":\"assistant\",\"content\":";
    append_json_string(line, text.content);
    if (!text.thinking.empty()) {
      line += ",\"thinking\":";
      append_json_string(line, text.thinking);
    }
    if (!text.tool_calls.empty()) line += ",\"tool_calls\":[" + text.tool_calls + ']';
    line += '}';
  }
  if (!text.logprobs.empty()) line += ",\"logprobs\":[" + text.logprobs + ']';
}

void OllamaSink::write_line(std::string& line) {
  line += '\n';
  writer_->write(line);
  line.clear();
}

void OllamaSink::on_begun(const GenerationBegun& begun) {
  id_ = begun.id;
  load_duration_ = begun.load_duration;
  if (call_.wants_context) ids_ = begun.prompt_ids;
  call_.warnings.insert(call_.warnings.end(), begun.warnings.begin(), begun.warnings.end());
}

void OllamaSink::on_progress(const ProgressEvent& event, int /*answer*/) {
  if (!call_.wants_progress || !writer_) return;
  start_stream();
  append_head(line_);
  append_message(line_, {});
  fmt::format_to(
      std::back_inserter(line_),
      ",\"done\":false,\"progress\":{{\"waiting\":{},\"queue_position\":{},\"completed\":{},\"total\":{}}}}}",
      event.is_waiting, event.queue_position, event.n_prefilled, event.n_prompt);
  write_line(line_);
}

void OllamaSink::append_logprobs(const std::vector<TokenEvent>& tokens) {
  std::string& out = pending_.logprobs;
  const auto append_one = [&](std::string_view bytes, float logprob) {
    out += "{\"token\":";
    append_json_bytes(out, bytes);
    fmt::format_to(std::back_inserter(out), ",\"logprob\":{},\"bytes\":[", std::max(logprob, -9999.0f));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      fmt::format_to(std::back_inserter(out), "{}{}", i == 0 ? "" : ",", static_cast<unsigned char>(bytes[i]));
    }
    out += ']';
  };
  for (const TokenEvent& token : tokens) {
    if (!token.logprobs || token.id < 0) continue;
    if (!out.empty()) out += ',';
    append_one(token.bytes, token.logprobs->logprob);
    if (!token.logprobs->top.empty()) {
      out += ",\"top_logprobs\":[";
      for (std::size_t i = 0; i < token.logprobs->top.size(); ++i) {
        if (i > 0) out += ',';
        append_one(token.logprobs->top[i].bytes, token.logprobs->top[i].logprob);
        out += '}';
      }
      out += ']';
    }
    out += '}';
  }
}

// Ollama tells a call once it is whole: when the next begins, or at the end.
void OllamaSink::add_tool_calls(const std::vector<ToolCallDelta>& deltas) {
  for (const ToolCallDelta& delta : deltas) {
    if (!open_calls_.empty() && open_calls_.begin()->first != delta.index) {
      close_tool_call(open_calls_.begin()->first, pending_.tool_calls);
    }
    OpenToolCall& open = open_calls_[delta.index];
    if (!delta.id.empty()) open.id = delta.id;
    if (!delta.name.empty()) open.name = delta.name;
    open.arguments += delta.arguments;
  }
}

void OllamaSink::close_tool_call(int index, std::string& out) {
  const OpenToolCall call = std::move(open_calls_.at(index));
  open_calls_.erase(index);
  std::string arguments = call.arguments.empty() ? "{}" : call.arguments;
  // The text is kept as the model wrote it, so that the order of keys stays; it only has to be an object.
  const Result<Json> parsed = parse_json(arguments, "arguments");
  if (!parsed || !parsed->is_object()) {
    call_.warnings.push_back(fmt::format("the call of {} broke off and was left out: {}", call.name, arguments));
    return;
  }
  std::erase_if(arguments, [](char c) { return c == '\n' || c == '\r'; });  // NDJSON; in strings they are escaped
  if (!out.empty()) out += ',';
  out += "{\"id\":";
  append_json_string(out, call.id);
  fmt::format_to(std::back_inserter(out), ",\"function\":{{\"index\":{},\"name\":", index);
  append_json_string(out, call.name);
  out += ",\"arguments\":" + arguments + "}}";
}

void OllamaSink::on_piece(GenerationPiece&& piece) {
  if (call_.wants_context) {
    for (const TokenEvent& token : piece.tokens) {
      if (token.id >= 0 && !token.is_end) ids_.push_back(token.id);
    }
  }
  if (call_.wants_logprobs) append_logprobs(piece.tokens);
  pending_.content += piece.content;
  pending_.thinking += piece.reasoning;
  add_tool_calls(piece.tool_calls);
}

void OllamaSink::on_step_end() {
  if (!call_.stream || !writer_) return;
  const bool has_text = !pending_.content.empty() || !pending_.thinking.empty() || !pending_.tool_calls.empty();
  // Log-probabilities of a token without text wait for the next text: clients take a line without content for an error.
  if (has_text) {
    start_stream();
    append_head(line_);
    append_message(line_, pending_);
    line_ += ",\"done\":false}";
    write_line(line_);
    pending_ = {};
  }
  if (is_started_) writer_->flush();
}

void OllamaSink::append_totals(std::string& line, const GenerationDone& done) const {
  const FinishedEvent& finished = done.finished;
  const char* reason = finished.reason == FinishReason::kLength      ? "length"
                       : finished.reason == FinishReason::kCancelled ? "cancelled"
                                                                     : "stop";
  fmt::format_to(std::back_inserter(line), ",\"done\":true,\"done_reason\":\"{}\"", reason);
  if (call_.wants_context) {
    fmt::format_to(std::back_inserter(line), ",\"context\":[{}]", fmt::join(ids_, ","));
  }
  const auto total = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - arrived_);
  const std::array<std::pair<const char*, std::int64_t>, 6> figures = {
      {{"total_duration", total.count()},
       {"load_duration", load_duration_.count()},
       {"prompt_eval_count", finished.usage.n_prompt},
       {"prompt_eval_duration", finished.timings.prefill.count()},
       {"eval_count", finished.usage.n_completion},
       {"eval_duration", finished.timings.decode.count()}}};
  for (const auto& [name, value] : figures) {
    if (value != 0) fmt::format_to(std::back_inserter(line), ",\"{}\":{}", name, value);
  }
}

void OllamaSink::on_done(const GenerationDone& done) {
  if (!writer_) return;
  if (done.finished.reason == FinishReason::kError) {
    on_failed(done.finished.error);
    return;
  }
  while (!open_calls_.empty()) close_tool_call(open_calls_.begin()->first, pending_.tool_calls);
  const bool has_text = !pending_.content.empty() || !pending_.thinking.empty() || !pending_.tool_calls.empty();
  if (call_.stream && has_text) {
    append_head(line_);
    append_message(line_, pending_);
    line_ += ",\"done\":false}\n";
    final_ = std::exchange(line_, {});
    pending_ = {};
  }
  std::vector<std::string> warnings = call_.warnings;
  for (const std::string& warning : done.finished.warnings) {
    if (std::ranges::find(warnings, warning) == warnings.end()) warnings.push_back(warning);
  }
  append_head(final_);
  append_message(final_, pending_);
  append_totals(final_, done);
  if (!warnings.empty()) {
    final_ += ",\"warnings\":[";
    for (std::size_t i = 0; i < warnings.size(); ++i) {
      if (i > 0) final_ += ',';
      append_json_string(final_, warnings[i]);
    }
    final_ += ']';
  }
  final_ += '}';
}

void OllamaSink::on_end() {
  if (!writer_ || final_.empty()) return;
  if (call_.stream) {
    start_stream();
    write_line(final_);
    writer_->flush();
    writer_->finish();
  } else {
    writer_->send({.body = std::move(final_), .headers = {{"X-Still-Generation", id_}}});
  }
  writer_.reset();
}

void OllamaSink::on_failed(const Error& error) {
  if (!writer_) return;
  OllamaError known = ollama_error(error, call_.model);
  if (error.code == Code::kResourceExhausted) {
    known = {400, "the input length exceeds the context length: " + error.message};
  }
  if (is_started_) {
    line_ = ollama_error_json(known.text);
    write_line(line_);
    writer_->flush();
    writer_->finish();
  } else {
    send_ollama_error(*writer_, known.status, known.text);
  }
  writer_.reset();
}

}  // namespace still

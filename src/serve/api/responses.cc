// See responses.h.
#include "serve/api/responses.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>

#include "serve/api/errors.h"
#include "serve/api/json_fields.h"
#include "serve/context.h"
#include "serve/thinking_wish.h"

namespace still {

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;

// The text of a string or of text parts.
Result<std::string> plain_text(const Json* content, std::string_view where) {
  if (content == nullptr || content->is_null()) return std::string();
  if (content->is_string()) return std::string(content->get_string());
  if (!content->is_array()) return error(Code::kInvalidArgument, "{}: must be a string or an array of parts", where);
  std::string text;
  for (const Json& part : content->get_array()) {
    if (!part.is_object()) return error(Code::kInvalidArgument, "{}: a part must be an object", where);
    const std::string type = member_text(part.get_object(), "type");
    if (type == "refusal") {
      text += member_text(part.get_object(), "refusal");
    } else if (type == "input_text" || type == "output_text" || type == "text" || type == "summary_text" ||
               type == "reasoning_text") {
      text += member_text(part.get_object(), "text");
    } else {
      return error(Code::kInvalidArgument, "{}: parts of type \"{}\" are not supported", where, type);
    }
  }
  return text;
}

// Items to messages: calls and reasoning belong to the assistant's message beside them.
class ItemConverter {
 public:
  Status add(const Json& json, std::size_t idx) {
    const std::string where = fmt::format("input[{}]", idx);
    const JsonObject* item = json.if_object();
    if (item == nullptr) return error(Code::kInvalidArgument, "{}: must be an object", where);
    std::string type = member_text(*item, "type");
    if (type.empty() && item->contains("role")) type = "message";
    if (type == "message") return add_message(*item, where);
    if (type == "function_call") {
      JsonObject& message = assistant();
      if (!message.contains("tool_calls")) message["tool_calls"] = JsonArray();
      message["tool_calls"].get_array().push_back(JsonObject{
          {"id", member_text(*item, "call_id")},
          {"type", "function"},
          {"function",
           JsonObject{{"name", member_text(*item, "name")}, {"arguments", member_text(*item, "arguments")}}}});
      return ok();
    }
    if (type == "function_call_output") {
      STILL_TRY(const std::string text, plain_text(item->if_contains("output"), where + ".output"));
      out.push_back(JsonObject{{"role", "tool"}, {"tool_call_id", member_text(*item, "call_id")}, {"content", text}});
      return ok();
    }
    if (type == "reasoning") {
      STILL_TRY(std::string text, plain_text(item->if_contains("content"), where + ".content"));
      if (text.empty()) {
        STILL_TRY(text, plain_text(item->if_contains("summary"), where + ".summary"));
      }
      // Opens the assistant's turn that it belongs to.
      out.push_back(JsonObject{{"role", "assistant"}, {"content", ""}, {"reasoning_content", text}});
      return ok();
    }
    return error(Code::kInvalidArgument, "{}: items of type \"{}\" are not supported", where, type);
  }

  JsonArray out;

 private:
  // The assistant's message at the end, where later items may join it.
  JsonObject& assistant() {
    if (out.empty() || out.back().get_object().at("role") != "assistant") {
      out.push_back(JsonObject{{"role", "assistant"}, {"content", ""}});
    }
    return out.back().get_object();
  }

  Status add_message(const JsonObject& item, const std::string& where) {
    std::string role = member_text(item, "role");
    if (role == "developer") role = "system";
    if (role != "system" && role != "user" && role != "assistant") {
      return error(Code::kInvalidArgument, "{}.role: must be user, assistant, system or developer, not \"{}\"", where,
                   role);
    }
    STILL_TRY(const std::string text, plain_text(item.if_contains("content"), where + ".content"));
    if (role == "assistant" && !out.empty()) {
      JsonObject& last = out.back().get_object();
      if (last.at("role") == "assistant" && last.at("content") == "" && !last.contains("tool_calls")) {
        last["content"] = text;  // after its reasoning
        return ok();
      }
    }
    out.push_back(JsonObject{{"role", role}, {"content", text}});
    return ok();
  }
};

Result<FormatWish> read_format(const JsonObject& text) {
  FormatWish wish;
  const Json* format = text.if_contains("format");
  if (format == nullptr || format->is_null()) return wish;
  if (!format->is_object()) return error(Code::kInvalidArgument, "field \"text.format\" must be of type object");
  const std::string type = member_text(format->get_object(), "type");
  if (type == "text" || type.empty()) return wish;
  if (type == "json_object") {
    wish.kind = FormatWish::Kind::kJsonObject;
    return wish;
  }
  if (type != "json_schema") {
    return error(Code::kInvalidArgument, "text.format.type: must be text, json_object or json_schema, not \"{}\"",
                 type);
  }
  const Json* schema = format->get_object().if_contains("schema");
  if (schema == nullptr || !schema->is_object()) {
    return error(Code::kInvalidArgument, "field \"text.format.schema\" is required");
  }
  wish.kind = FormatWish::Kind::kJsonSchema;
  wish.schema = *schema;
  return wish;
}

Result<ToolWish> read_tools(JsonFields& fields, std::vector<std::string>& warnings) {
  ToolWish wish;
  if (const JsonArray* tools = fields.array("tools")) {
    for (const Json& json : *tools) {
      const JsonObject* tool = json.if_object();
      if (tool == nullptr) return error(Code::kInvalidArgument, "tools: a tool must be an object");
      const std::string type = member_text(*tool, "type");
      if (type != "function") {  // they run on OpenAI's servers
        warnings.push_back(fmt::format("the tool of type \"{}\" is not known here and was left out", type));
        continue;
      }
      JsonObject function;
      for (const char* key : {"name", "description", "parameters"}) {
        if (const Json* value = tool->if_contains(key); value != nullptr && !value->is_null()) function[key] = *value;
      }
      if (!function.contains("name")) return error(Code::kInvalidArgument, "field \"tools[].name\" is required");
      wish.tools.push_back(JsonObject{{"type", "function"}, {"function", std::move(function)}});
    }
  }
  wish.parallel = fields.boolean("parallel_tool_calls").value_or(true);
  const Json* choice = fields.find("tool_choice");
  if (choice == nullptr) return wish;
  if (choice->is_object()) {
    if (member_text(choice->get_object(), "type") != "function") {
      return error(Code::kInvalidArgument, "tool_choice.type: only \"function\" is supported");
    }
    wish.choice = ToolWish::Choice::kNamed;
    wish.name = member_text(choice->get_object(), "name");
    return wish;
  }
  const std::string word = choice->is_string() ? std::string(choice->get_string()) : to_json(*choice);
  if (word == "none") {
    wish.choice = ToolWish::Choice::kNone;
  } else if (word == "required") {
    wish.choice = ToolWish::Choice::kRequired;
  } else if (word != "auto") {
    return error(Code::kInvalidArgument, "tool_choice: must be auto, none, required or a function, not {}", word);
  }
  return wish;
}

Status read_reasoning(JsonFields& fields, ThinkingWish& wish) {
  const JsonObject* reasoning = fields.object("reasoning");
  if (reasoning == nullptr) return ok();
  JsonFields inner(*reasoning, "field", "reasoning.");
  wish.effort = inner.text("effort").value_or("");
  const auto budget = inner.integer_in("max_tokens", -1, std::int64_t{1} << 31);
  STILL_TRY_STATUS(inner.status());
  if (!wish.effort.empty() && !effort_budget(wish.effort)) {
    return error(Code::kInvalidArgument,
                 "field \"reasoning.effort\" is \"{}\": expected none, minimal, low, medium, high, xhigh or max",
                 wish.effort);
  }
  if (wish.effort == "none") wish = {.enabled = false};
  if (budget) wish.budget = *budget;
  return ok();
}

// What needs a memory of earlier responses, or a queue of jobs.
Status refuse_state(const JsonFields& fields, std::string& param) {
  const auto refuse = [&](std::string_view key, std::string_view why) {
    param = key;
    return error(Code::kInvalidArgument, "{} is not supported: {}", key, why);
  };
  if (fields.has("previous_response_id")) {
    return refuse("previous_response_id", "this server keeps no responses; send the whole conversation as input");
  }
  if (fields.has("conversation")) {
    return refuse("conversation", "this server keeps no conversations; send the whole conversation as input");
  }
  if (fields.has("prompt")) return refuse("prompt", "this server keeps no prompts");
  const Json* background = fields.find("background");
  if (background != nullptr && *background == true) return refuse("background", "responses are made while you wait");
  return ok();
}

std::string logprob_elements(const std::vector<TokenEvent>& tokens) {
  std::string out;
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
    if (!token.logprobs || token.id < 0 || token.channel != Channel::kContent || token.is_tag || token.is_end) continue;
    if (!out.empty()) out += ',';
    append_one(token.bytes, token.logprobs->logprob);
    out += ",\"top_logprobs\":[";
    for (std::size_t i = 0; i < token.logprobs->top.size(); ++i) {
      if (i > 0) out += ',';
      append_one(token.logprobs->top[i].bytes, token.logprobs->top[i].logprob);
      out += '}';
    }
    out += "]}";
  }
  return out;
}

}  // namespace

Result<ResponsesCall> read_responses_call(const JsonObject& body, std::string& param) {
  JsonFields fields(body);
  ResponsesCall call;
  GenerationInput& input = call.input;
  const auto finish = [&]() -> Status {
    if (!fields.is_ok()) param = fields.wrong_field();
    return fields.status();
  };
  call.model = input.model.name = fields.required_text("model");
  call.stream = fields.boolean("stream").value_or(false);
  const Json* items = fields.find("input");
  if (items == nullptr) fields.fail("input", "is required");
  if (items != nullptr && !items->is_string() && !items->is_array()) fields.fail_type("input", "string or array");
  const auto max_tokens = fields.integer("max_output_tokens");
  if (max_tokens && *max_tokens < 1) fields.fail("max_output_tokens", "must be 1 or more");
  for (const char* key : {"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"}) {
    if (const auto number = fields.number(key)) input.sampling[key] = *number;
  }
  for (const char* key : {"top_k", "seed"}) {
    if (const auto number = fields.integer(key)) input.sampling[key] = *number;
  }
  const std::string instructions = fields.text("instructions").value_or("");
  const std::string truncation = fields.text("truncation").value_or("disabled");
  const auto top_logprobs = fields.integer_in("top_logprobs", 0, kMaxLogprobs);
  const JsonArray* include = fields.array("include");
  const JsonObject* text = fields.object("text");
  STILL_TRY_STATUS(finish());
  STILL_TRY_STATUS(refuse_state(fields, param));
  input.max_tokens = max_tokens.value_or(-1);
  input.may_truncate = truncation == "auto";
  call.wants_logprobs = top_logprobs.value_or(0) > 0;
  if (include != nullptr) {
    for (const Json& word : *include) call.wants_logprobs |= word == "message.output_text.logprobs";
  }
  if (call.wants_logprobs) input.n_logprobs = static_cast<std::int32_t>(top_logprobs.value_or(0));
  ItemConverter converter;
  if (!instructions.empty()) converter.out.push_back(JsonObject{{"role", "system"}, {"content", instructions}});
  param = "input";
  if (items->is_string()) {
    converter.out.push_back(JsonObject{{"role", "user"}, {"content", items->get_string()}});
  } else {
    const JsonArray& array = items->get_array();
    for (std::size_t i = 0; i < array.size(); ++i) STILL_TRY_STATUS(converter.add(array[i], i));
    if (array.empty()) return error(Code::kInvalidArgument, "input: at least one item is required");
  }
  input.prompt = ChatInput{.messages = std::move(converter.out)};
  param = "text";
  if (text != nullptr) {
    STILL_TRY(input.format, read_format(*text));
  }
  param = "tools";
  STILL_TRY(input.tools, read_tools(fields, call.warnings));
  param = "reasoning";
  STILL_TRY_STATUS(read_reasoning(fields, input.thinking));
  STILL_TRY_STATUS(finish());
  param.clear();
  input.wants_progress = call.stream;

  const auto echo = [&](const char* key, Json fallback) {
    const Json* value = fields.find(key);
    call.echo[key] = value != nullptr ? *value : std::move(fallback);
  };
  echo("instructions", nullptr);
  echo("max_output_tokens", nullptr);
  echo("model", nullptr);
  echo("parallel_tool_calls", true);
  call.echo["previous_response_id"] = nullptr;
  echo("reasoning", JsonObject{{"effort", nullptr}, {"summary", nullptr}});
  call.echo["store"] = false;
  echo("temperature", nullptr);
  echo("text", JsonObject{{"format", JsonObject{{"type", "text"}}}});
  echo("tool_choice", "auto");
  echo("tools", JsonArray());
  echo("top_p", nullptr);
  echo("truncation", "disabled");
  echo("metadata", JsonObject());
  return call;
}

ResponsesSink::ResponsesSink(ResponsesCall call, std::shared_ptr<ResponseWriter> writer)
    : call_(std::move(call)), writer_(std::move(writer)), created_(std::time(nullptr)) {}

void ResponsesSink::event(std::string_view name, std::string_view members) {
  writer_->write(fmt::format("event: {0}\ndata: {{\"type\":\"{0}\",\"sequence_number\":{1},{2}}}\n\n", name,
                             sequence_++, members));
}

std::string ResponsesSink::response_json(std::string_view status, std::string_view rest) const {
  std::string output;
  for (const Item& item : items_) {
    if (!output.empty()) output += ',';
    const bool is_cut = (status == "incomplete" || status == "failed") && &item == &items_.back();
    output += item_json(item, is_cut ? "incomplete" : "completed");
  }
  const std::string echo = to_json(call_.echo);
  return fmt::format(R"({{"id":"resp_{}","object":"response","created_at":{},"status":"{}","background":false,{},)"
                     R"("output":[{}],{}}})",
                     suffix_, created_, status, rest, output, std::string_view(echo).substr(1, echo.size() - 2));
}

void ResponsesSink::on_begun(const GenerationBegun& begun) {
  generation_ = begun.id;
  const std::size_t dash = begun.id.find('-');
  suffix_ = dash == std::string::npos ? begun.id : begun.id.substr(dash + 1);
  call_.warnings.insert(call_.warnings.end(), begun.warnings.begin(), begun.warnings.end());
}

void ResponsesSink::start_stream() {
  if (std::exchange(is_started_, true)) return;
  writer_->start(200, "text/event-stream", {{"Cache-Control", "no-cache"}, {"X-Still-Generation", generation_}});
  const std::string response = response_json("in_progress", R"("error":null,"incomplete_details":null,"usage":null)");
  event("response.created", "\"response\":" + response);
  event("response.in_progress", "\"response\":" + response);
}

// A long prompt is silent for a while: a comment keeps proxies from closing the connection.
void ResponsesSink::on_progress(const ProgressEvent& /*event*/, int /*answer*/) {
  const auto now = std::chrono::steady_clock::now();
  if (!writer_ || !call_.stream || generation_.empty() || now - last_ping_ < std::chrono::seconds(10)) return;
  last_ping_ = now;
  start_stream();
  writer_->write(": ping\n\n");
  writer_->flush();
}

std::string ResponsesSink::item_json(const Item& item, std::string_view status) const {
  switch (item.kind) {
    case Kind::kReasoning:
      return fmt::format(
          R"({{"id":"{}","type":"reasoning","status":"{}","summary":[{}]}})", item.id, status,
          item.text.empty() ? "" : fmt::format(R"({{"type":"summary_text","text":{}}})", json_string(item.text)));
    case Kind::kFunctionCall:
      return fmt::format(R"({{"id":"{}","type":"function_call","status":"{}","call_id":{},"name":{},"arguments":{}}})",
                         item.id, status, json_string(item.call_id), json_string(item.name), json_string(item.text));
    case Kind::kMessage:
      break;
  }
  return fmt::format(
      R"({{"id":"{}","type":"message","status":"{}","role":"assistant","content":[{}]}})", item.id, status,
      status == "in_progress" ? ""
                              : fmt::format(R"({{"type":"output_text","text":{},"annotations":[],"logprobs":[{}]}})",
                                            json_string(item.text), item.logprobs));
}

std::string ResponsesSink::place() const {
  return fmt::format("\"item_id\":\"{}\",\"output_index\":{}", items_.back().id, items_.size() - 1);
}

void ResponsesSink::open_item(Item item) {
  close_item("completed");
  is_open_ = true;
  const std::string_view prefix = item.kind == Kind::kReasoning ? "rs" : item.kind == Kind::kMessage ? "msg" : "fc";
  item.id = fmt::format("{}_{}_{}", prefix, suffix_, items_.size());
  if (call_.stream) start_stream();  // before the item counts as output
  items_.push_back(std::move(item));
  if (!call_.stream) return;
  const Item& open = items_.back();
  event("response.output_item.added",
        fmt::format("\"output_index\":{},\"item\":{}", items_.size() - 1, item_json(open, "in_progress")));
  if (open.kind == Kind::kReasoning) {
    event("response.reasoning_summary_part.added",
          place() + R"(,"summary_index":0,"part":{"type":"summary_text","text":""})");
  } else if (open.kind == Kind::kMessage) {
    event("response.content_part.added",
          place() + R"(,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]})");
  }
}

void ResponsesSink::close_item(std::string_view status) {
  if (!std::exchange(is_open_, false) || !call_.stream) return;
  const Item& item = items_.back();
  const std::string text = json_string(item.text);
  switch (item.kind) {
    case Kind::kReasoning:
      event("response.reasoning_summary_text.done", fmt::format("{},\"summary_index\":0,\"text\":{}", place(), text));
      event("response.reasoning_summary_part.done",
            fmt::format(R"({},"summary_index":0,"part":{{"type":"summary_text","text":{}}})", place(), text));
      break;
    case Kind::kMessage:
      event("response.output_text.done",
            fmt::format("{},\"content_index\":0,\"text\":{},\"logprobs\":[{}]", place(), text, item.logprobs));
      event("response.content_part.done",
            fmt::format(
                R"({},"content_index":0,"part":{{"type":"output_text","text":{},"annotations":[],"logprobs":[{}]}})",
                place(), text, item.logprobs));
      break;
    case Kind::kFunctionCall:
      event("response.function_call_arguments.done",
            fmt::format("{},\"name\":{},\"arguments\":{}", place(), json_string(item.name), text));
      break;
  }
  event("response.output_item.done",
        fmt::format("\"output_index\":{},\"item\":{}", items_.size() - 1, item_json(item, status)));
}

void ResponsesSink::add_text(Kind kind, const std::string& text, const std::string& logprobs) {
  if (text.empty()) {
    if (!logprobs.empty() && is_open_ && items_.back().kind == kind) {
      items_.back().logprobs += (items_.back().logprobs.empty() ? "" : ",") + logprobs;
    }
    return;
  }
  if (!is_open_ || items_.back().kind != kind) open_item({.kind = kind});
  Item& item = items_.back();
  item.text += text;
  if (!logprobs.empty()) item.logprobs += (item.logprobs.empty() ? "" : ",") + logprobs;
  if (!call_.stream) return;
  if (kind == Kind::kReasoning) {
    event("response.reasoning_summary_text.delta",
          fmt::format("{},\"summary_index\":0,\"delta\":{}", place(), json_string(text)));
  } else {
    event("response.output_text.delta",
          fmt::format("{},\"content_index\":0,\"delta\":{},\"logprobs\":[{}]", place(), json_string(text), logprobs));
  }
}

void ResponsesSink::add_tool_call(const ToolCallDelta& delta) {
  if (!is_open_ || items_.back().kind != Kind::kFunctionCall || items_.back().call_index != delta.index) {
    open_item({.kind = Kind::kFunctionCall, .call_id = delta.id, .name = delta.name, .call_index = delta.index});
  }
  if (delta.arguments.empty()) return;
  items_.back().text += delta.arguments;
  if (!call_.stream) return;
  event("response.function_call_arguments.delta",
        fmt::format("{},\"delta\":{}", place(), json_string(delta.arguments)));
}

void ResponsesSink::on_piece(GenerationPiece&& piece) {
  if (!writer_) return;
  add_text(Kind::kReasoning, piece.reasoning, "");
  add_text(Kind::kMessage, piece.content, call_.wants_logprobs ? logprob_elements(piece.tokens) : "");
  for (const ToolCallDelta& delta : piece.tool_calls) add_tool_call(delta);
}

void ResponsesSink::on_step_end() {
  if (writer_ && is_started_) writer_->flush();
}

void ResponsesSink::on_done(const GenerationDone& done) {
  if (!writer_) return;
  const FinishedEvent& finished = done.finished;
  if (finished.reason == FinishReason::kError) return on_failed(finished.error);
  // "cancelled" is for responses in the background; what was cut here is incomplete.
  const bool is_cancelled = finished.reason == FinishReason::kCancelled;
  const bool is_cut = is_cancelled || finished.reason == FinishReason::kLength;
  status_ = is_cut ? "incomplete" : "completed";
  if (call_.stream) start_stream();
  close_item(status_);
  const Usage& usage = finished.usage;
  std::string rest = fmt::format(
      R"("error":null,"incomplete_details":{},"usage":{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{}}},)"
      R"("output_tokens":{},"output_tokens_details":{{"reasoning_tokens":{}}},"total_tokens":{}}})",
      is_cancelled ? R"({"reason":"cancelled"})"
      : is_cut     ? R"({"reason":"max_output_tokens"})"
                   : "null",
      usage.n_prompt, usage.n_cached, usage.n_completion, usage.n_reasoning, usage.n_prompt + usage.n_completion);
  for (const std::string& warning : finished.warnings) {
    if (std::ranges::find(call_.warnings, warning) == call_.warnings.end()) call_.warnings.push_back(warning);
  }
  for (std::size_t i = 0; i < call_.warnings.size(); ++i) {
    rest += i == 0 ? ",\"warnings\":[" : ",";
    append_json_bytes(rest, call_.warnings[i]);
  }
  if (!call_.warnings.empty()) rest += ']';
  final_ = response_json(status_, rest);
}

void ResponsesSink::on_end() {
  if (!writer_) return;
  if (call_.stream) {
    start_stream();
    event(status_ == "incomplete" ? "response.incomplete" : "response.completed", "\"response\":" + final_);
    writer_->flush();
    writer_->finish();
  } else {
    writer_->send({.body = std::move(final_), .headers = {{"X-Still-Generation", generation_}}});
  }
  writer_.reset();
}

void ResponsesSink::on_failed(const Error& error) {
  if (!writer_) return;
  if (is_started_) {
    close_item("incomplete");
    const std::string rest =
        fmt::format(R"("error":{{"code":"server_error","message":{}}},"incomplete_details":null,"usage":null)",
                    json_string(error.message));
    event("response.failed", "\"response\":" + response_json("failed", rest));
    writer_->flush();
    writer_->finish();
  } else {
    writer_->send(error_response(ApiShape::kOpenAi, error));
  }
  writer_.reset();
}

namespace {

void handle_responses(ServeContext& context, const RequestPtr& request, const WriterPtr& writer) {
  const Result<JsonObject> body = parse_body(request->body);
  if (!body) return writer->send(error_response(ApiShape::kOpenAi, body.error()));
  std::string param;
  Result<ResponsesCall> call = read_responses_call(*body, param);
  if (!call) return writer->send(error_response(ApiShape::kOpenAi, call.error(), {.param = param}));
  set_asker(call->input, *request);
  GenerationInput input = call->input;
  const auto sink = std::make_shared<ResponsesSink>(std::move(*call), writer);
  const std::shared_ptr<Generation> generation = start_generation(context, std::move(input), sink);
  writer->on_closed([weak = std::weak_ptr(generation)] {
    if (const auto alive = weak.lock()) alive->cancel();
  });
}

}  // namespace

void add_responses_routes(Router& router, ServeContext& context) {
  router.add(
      {"POST", "/v1/responses", RouteClass::kCompute,
       [&context](const RequestPtr& request, const WriterPtr& writer) { handle_responses(context, request, writer); }});
  for (const char* method : {"GET", "DELETE"}) {
    router.add(
        {method, "/v1/responses/{id}", RouteClass::kRead, [](const RequestPtr& request, const WriterPtr& writer) {
           const std::string message =
               fmt::format("Response with id '{}' not found: this server keeps none.", request->capture("id"));
           writer->send(error_response(ApiShape::kOpenAi, 404, message));
         }});
  }
}

}  // namespace still

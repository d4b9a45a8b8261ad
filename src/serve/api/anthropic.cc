// See anthropic.h.
#include "serve/api/anthropic.h"

#include <fmt/format.h>

#include <algorithm>

#include "serve/api/errors.h"
#include "serve/api/json_fields.h"
#include "serve/context.h"
#include "serve/prompt.h"

namespace still {

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;

// The text of a string or of text blocks. Other blocks are refused by name.
Result<std::string> plain_text(const Json& content, std::string_view where) {
  if (content.is_null()) return std::string();
  if (content.is_string()) return std::string(content.get_string());
  if (!content.is_array()) {
    return error(Code::kInvalidArgument, "{}: must be a string or an array of content blocks", where);
  }
  std::string text;
  for (const Json& block : content.get_array()) {
    if (!block.is_object()) return error(Code::kInvalidArgument, "{}: a content block must be an object", where);
    const std::string type = member_text(block.get_object(), "type");
    if (type != "text")
      return error(Code::kInvalidArgument, "{}: blocks of type \"{}\" are not supported", where, type);
    text += member_text(block.get_object(), "text");
  }
  return text;
}

// One message of Anthropic's is one or several of OpenAI's: results of tools are messages of their own.
class MessageConverter {
 public:
  Status add(const Json& json, std::size_t idx) {
    where_ = fmt::format("messages.{}", idx);
    const JsonObject* message = json.if_object();
    if (message == nullptr) return error(Code::kInvalidArgument, "{}: must be an object", where_);
    const std::string role = member_text(*message, "role");
    if (role != "user" && role != "assistant" && role != "system") {
      return error(Code::kInvalidArgument, "{}.role: must be \"user\" or \"assistant\", not \"{}\"", where_, role);
    }
    const Json* content = message->if_contains("content");
    if (content == nullptr || content->is_null()) {
      return error(Code::kInvalidArgument, "{}.content: field required", where_);
    }
    if (!content->is_array()) {
      STILL_TRY(const std::string text, plain_text(*content, where_ + ".content"));
      out.push_back(JsonObject{{"role", role}, {"content", text}});
      return ok();
    }
    text_.clear(), reasoning_.clear(), calls_.clear();
    has_text_ = false;
    for (const Json& block : content->get_array()) {
      if (!block.is_object()) return error(Code::kInvalidArgument, "{}: a content block must be an object", where_);
      STILL_TRY_STATUS(add_block(block.get_object(), role));
    }
    flush(role);
    return ok();
  }

  JsonArray out;

 private:
  Status add_block(const JsonObject& block, const std::string& role) {
    const std::string type = member_text(block, "type");
    if (type == "text") {
      text_ += member_text(block, "text");
      has_text_ = true;
      return ok();
    }
    if (type == "thinking" || type == "redacted_thinking") {
      reasoning_ += member_text(block, "thinking");
      return ok();
    }
    if (type == "tool_use" && role == "assistant") {
      const Json* input = block.if_contains("input");
      calls_.push_back(JsonObject{{"id", member_text(block, "id")},
                                  {"type", "function"},
                                  {"function", JsonObject{{"name", member_text(block, "name")},
                                                          {"arguments", input != nullptr ? to_json(*input) : "{}"}}}});
      return ok();
    }
    if (type == "tool_result" && role == "user") {
      const Json* content = block.if_contains("content");
      STILL_TRY(const std::string text, plain_text(content != nullptr ? *content : Json(), where_ + ".tool_result"));
      out.push_back(
          JsonObject{{"role", "tool"}, {"tool_call_id", member_text(block, "tool_use_id")}, {"content", text}});
      return ok();
    }
    return error(Code::kInvalidArgument, "{}: blocks of type \"{}\" are not supported in a message of the {}", where_,
                 type, role);
  }

  void flush(const std::string& role) {
    if (!has_text_ && calls_.empty() && reasoning_.empty()) return;  // only results of tools
    JsonObject message{{"role", role}, {"content", text_}};
    if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
    if (!calls_.empty()) message["tool_calls"] = calls_;
    out.push_back(std::move(message));
  }

  std::string where_, text_, reasoning_;
  bool has_text_ = false;
  JsonArray calls_;
};

Result<ToolWish> read_anthropic_tools(JsonFields& fields, std::vector<std::string>& warnings) {
  ToolWish wish;
  if (const JsonArray* tools = fields.array("tools")) {
    for (const Json& json : *tools) {
      const JsonObject* tool = json.if_object();
      if (tool == nullptr) return error(Code::kInvalidArgument, "tools: a tool must be an object");
      const std::string name = member_text(*tool, "name"), type = member_text(*tool, "type");
      if (!type.empty() && type != "custom") {  // Anthropic's own tools run on its servers
        warnings.push_back(fmt::format("the tool \"{}\" of type {} is not known here and was left out", name, type));
        continue;
      }
      if (name.empty()) return error(Code::kInvalidArgument, "tools: name: field required");
      const Json* schema = tool->if_contains("input_schema");
      wish.tools.push_back(
          JsonObject{{"type", "function"},
                     {"function", JsonObject{{"name", name},
                                             {"description", member_text(*tool, "description")},
                                             {"parameters", schema != nullptr ? *schema : Json(JsonObject())}}}});
    }
  }
  const JsonObject* choice = fields.object("tool_choice");
  if (choice == nullptr) return wish;
  const std::string type = member_text(*choice, "type");
  if (type == "any") {
    wish.choice = ToolWish::Choice::kRequired;
  } else if (type == "tool") {
    wish.choice = ToolWish::Choice::kNamed;
    wish.name = member_text(*choice, "name");
  } else if (type == "none") {
    wish.choice = ToolWish::Choice::kNone;
  } else if (type != "auto") {
    return error(Code::kInvalidArgument, "tool_choice.type: must be auto, any, tool or none, not \"{}\"", type);
  }
  if (const Json* one = choice->if_contains("disable_parallel_tool_use"); one != nullptr && one->is_bool()) {
    wish.parallel = !one->get_bool();
  }
  return wish;
}

Result<ThinkingWish> read_thinking(JsonFields& fields) {
  ThinkingWish wish;
  if (const JsonObject* thinking = fields.object("thinking")) {
    JsonFields inner(*thinking, "field", "thinking.");
    const std::string type = inner.required_text("type");
    const auto budget = inner.integer("budget_tokens");
    STILL_TRY_STATUS(inner.status());
    if (type != "enabled" && type != "disabled" && type != "adaptive") {
      return error(Code::kInvalidArgument, "thinking.type: must be enabled, disabled or adaptive, not \"{}\"", type);
    }
    if (budget && *budget < 0) return error(Code::kInvalidArgument, "thinking.budget_tokens: must be 0 or more");
    if (type != "adaptive") wish.enabled = type == "enabled";
    if (budget && type == "enabled") wish.budget = *budget;
  }
  if (const JsonObject* output = fields.object("output_config")) wish.effort = member_text(*output, "effort");
  return wish;
}

std::string new_message_id(std::string_view generation) {
  const std::size_t dash = generation.find('-');
  return "msg_" + std::string(dash == std::string_view::npos ? generation : generation.substr(dash + 1));
}

}  // namespace

Result<AnthropicCall> read_anthropic_call(const JsonObject& body, bool counts_only) {
  JsonFields fields(body);
  AnthropicCall call;
  call.model = fields.required_text("model");
  const JsonArray* messages = fields.array("messages");
  if (messages == nullptr) fields.fail("messages", "is required");
  const auto max_tokens = fields.integer("max_tokens");
  if (!max_tokens && !counts_only) fields.fail("max_tokens", "is required");
  if (max_tokens && *max_tokens < 1 && !counts_only) fields.fail("max_tokens", "must be 1 or more");
  call.stream = fields.boolean("stream").value_or(false);
  GenerationInput& input = call.input;
  for (const char* key : {"temperature", "top_p"}) {
    if (const auto number = fields.number(key)) input.sampling[key] = *number;
  }
  for (const char* key : {"top_k", "seed"}) {
    if (const auto number = fields.integer(key)) input.sampling[key] = *number;
  }
  input.stop = fields.texts("stop_sequences");
  STILL_TRY_STATUS(fields.status());
  if (messages->empty()) return error(Code::kInvalidArgument, "messages: at least one message is required");
  input.model.name = call.model;
  input.max_tokens = max_tokens.value_or(-1);
  MessageConverter converter;
  if (const Json* system = fields.find("system")) {
    STILL_TRY(const std::string text, plain_text(*system, "system"));
    if (!text.empty()) converter.out.push_back(JsonObject{{"role", "system"}, {"content", text}});
  }
  for (std::size_t i = 0; i < messages->size(); ++i) STILL_TRY_STATUS(converter.add((*messages)[i], i));
  ChatInput chat{.messages = std::move(converter.out)};
  // A last message of the assistant is the beginning of the answer, as Anthropic has it.
  if (!chat.messages.empty()) {
    const JsonObject& last = chat.messages.back().get_object();
    chat.continue_final_message = last.at("role") == "assistant" && !last.contains("tool_calls");
  }
  input.prompt = std::move(chat);
  STILL_TRY(input.tools, read_anthropic_tools(fields, call.warnings));
  STILL_TRY(input.thinking, read_thinking(fields));
  STILL_TRY_STATUS(fields.status());
  input.wants_progress = call.stream;
  return call;
}

AnthropicSink::AnthropicSink(AnthropicCall call, std::shared_ptr<ResponseWriter> writer)
    : call_(std::move(call)), writer_(std::move(writer)) {}

void AnthropicSink::event(std::string_view name, std::string_view members) {
  out_ = fmt::format("event: {0}\ndata: {{\"type\":\"{0}\"{1}{2}}}\n\n", name, members.empty() ? "" : ",", members);
  writer_->write(out_);
}

void AnthropicSink::on_begun(const GenerationBegun& begun) {
  generation_ = begun.id;
  id_ = new_message_id(begun.id);
  n_prompt_ = begun.n_prompt;
  call_.warnings.insert(call_.warnings.end(), begun.warnings.begin(), begun.warnings.end());
}

void AnthropicSink::start_stream() {
  if (std::exchange(is_started_, true)) return;
  writer_->start(200, "text/event-stream", {{"Cache-Control", "no-cache"}, {"X-Still-Generation", generation_}});
  event("message_start",
        fmt::format("\"message\":{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{},"
                    "\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,"
                    "\"usage\":{{\"input_tokens\":{},\"output_tokens\":0}}}}",
                    id_, json_string(call_.model), n_prompt_));
  event("ping", "");
}

// A long prompt is silent for a while: a ping keeps proxies from closing the connection.
void AnthropicSink::on_progress(const ProgressEvent& /*event*/, int /*answer*/) {
  const auto now = std::chrono::steady_clock::now();
  if (!writer_ || !call_.stream || generation_.empty() || now - last_ping_ < std::chrono::seconds(10)) return;
  last_ping_ = now;
  if (is_started_) {
    event("ping", "");
  } else {
    start_stream();
  }
  writer_->flush();
}

void AnthropicSink::open_block(Block block) {
  close_block();
  is_open_ = true;
  blocks_.push_back(std::move(block));
  if (!call_.stream) return;
  start_stream();
  const Block& open = blocks_.back();
  std::string content;
  if (open.kind == Kind::kThinking) content = R"("type":"thinking","thinking":"","signature":"")";
  if (open.kind == Kind::kText) content = R"("type":"text","text":"")";
  if (open.kind == Kind::kToolUse) {
    content = fmt::format(R"("type":"tool_use","id":{},"name":{},"input":{{}})", json_string(open.id),
                          json_string(open.name));
  }
  event("content_block_start", fmt::format("\"index\":{},\"content_block\":{{{}}}", blocks_.size() - 1, content));
}

void AnthropicSink::close_block() {
  if (!std::exchange(is_open_, false) || !call_.stream) return;
  event("content_block_stop", fmt::format("\"index\":{}", blocks_.size() - 1));
}

void AnthropicSink::add_text(Kind kind, const std::string& text) {
  if (text.empty()) return;
  if (!is_open_ || blocks_.back().kind != kind) open_block({.kind = kind});
  if (!call_.stream) {
    blocks_.back().text += text;
    return;
  }
  const bool is_thinking = kind == Kind::kThinking;
  event("content_block_delta", fmt::format("\"index\":{},\"delta\":{{\"type\":\"{}\",\"{}\":{}}}", blocks_.size() - 1,
                                           is_thinking ? "thinking_delta" : "text_delta",
                                           is_thinking ? "thinking" : "text", json_string(text)));
}

void AnthropicSink::add_tool_call(const ToolCallDelta& delta) {
  if (!is_open_ || blocks_.back().kind != Kind::kToolUse || blocks_.back().call_index != delta.index) {
    open_block({.kind = Kind::kToolUse, .id = delta.id, .name = delta.name, .call_index = delta.index});
  }
  if (delta.arguments.empty()) return;
  if (!call_.stream) {
    blocks_.back().text += delta.arguments;
    return;
  }
  event("content_block_delta",
        fmt::format("\"index\":{},\"delta\":{{\"type\":\"input_json_delta\",\"partial_json\":{}}}", blocks_.size() - 1,
                    json_string(delta.arguments)));
}

void AnthropicSink::on_piece(GenerationPiece&& piece) {
  if (!writer_) return;
  add_text(Kind::kThinking, piece.reasoning);
  add_text(Kind::kText, piece.content);
  for (const ToolCallDelta& delta : piece.tool_calls) add_tool_call(delta);
}

void AnthropicSink::on_step_end() {
  if (writer_ && is_started_) writer_->flush();
}

std::string AnthropicSink::usage(const Usage& usage) const {
  // input_tokens are those that no cache had, as Anthropic counts.
  return fmt::format(
      R"("usage":{{"input_tokens":{},"cache_creation_input_tokens":0,"cache_read_input_tokens":{},"output_tokens":{}}})",
      usage.n_prompt - usage.n_cached, usage.n_cached, usage.n_completion);
}

std::string AnthropicSink::stop_members(const GenerationDone& done) const {
  const FinishedEvent& finished = done.finished;
  std::string_view reason = "end_turn";
  if (finished.reason == FinishReason::kLength) reason = "max_tokens";
  if (finished.reason == FinishReason::kStopString) reason = "stop_sequence";
  if (done.has_tool_calls && finished.reason != FinishReason::kLength) reason = "tool_use";
  return fmt::format("\"stop_reason\":\"{}\",\"stop_sequence\":{}", reason,
                     finished.reason == FinishReason::kStopString ? json_string(finished.matched_stop) : "null");
}

std::string AnthropicSink::message(const GenerationDone& done) {
  std::string content;
  for (const Block& block : blocks_) {
    if (!content.empty()) content += ',';
    switch (block.kind) {
      case Kind::kThinking:
        content += fmt::format(R"({{"type":"thinking","thinking":{},"signature":""}})", json_string(block.text));
        break;
      case Kind::kText:
        content += fmt::format(R"({{"type":"text","text":{}}})", json_string(block.text));
        break;
      case Kind::kToolUse: {
        const Result<Json> input = parse_json(block.text.empty() ? "{}" : block.text, "input");
        if (!input || !input->is_object()) {
          call_.warnings.push_back(fmt::format("the call of {} broke off: {}", block.name, block.text));
        }
        content += fmt::format(R"({{"type":"tool_use","id":{},"name":{},"input":{}}})", json_string(block.id),
                               json_string(block.name), input && input->is_object() ? to_json(*input) : "{}");
        break;
      }
    }
  }
  return fmt::format(R"({{"id":"{}","type":"message","role":"assistant","model":{},"content":[{}],{},{})", id_,
                     json_string(call_.model), content, stop_members(done), usage(done.finished.usage));
}

void AnthropicSink::on_done(const GenerationDone& done) {
  if (!writer_) return;
  if (done.finished.reason == FinishReason::kError) return on_failed(done.finished.error);
  // There is no stop_reason for an answer that was cut: as a normal end it would be taken for whole.
  if (done.finished.reason == FinishReason::kCancelled) return on_failed({Code::kCancelled, "request canceled"});
  close_block();
  std::string rest;
  if (!call_.stream) final_ = message(done);
  for (const std::string& warning : done.finished.warnings) {
    if (std::ranges::find(call_.warnings, warning) == call_.warnings.end()) call_.warnings.push_back(warning);
  }
  for (const std::string& warning : call_.warnings) {
    rest += rest.empty() ? ",\"warnings\":[" : ",";
    append_json_bytes(rest, warning);
  }
  if (!rest.empty()) rest += ']';
  if (call_.stream) {
    start_stream();
    event("message_delta", fmt::format("\"delta\":{{{}}},{}{}", stop_members(done), usage(done.finished.usage), rest));
  } else {
    final_ += rest + '}';
  }
}

void AnthropicSink::on_end() {
  if (!writer_) return;
  if (call_.stream) {
    start_stream();
    event("message_stop", "");
    writer_->flush();
    writer_->finish();
  } else {
    writer_->send({.body = std::move(final_), .headers = {{"X-Still-Generation", generation_}}});
  }
  writer_.reset();
}

void AnthropicSink::on_failed(const Error& error) {
  if (!writer_) return;
  if (is_started_) {
    writer_->write(fmt::format("event: error\ndata: {}\n\n", error_body(ApiShape::kAnthropic, error)));
    writer_->flush();
    writer_->finish();
  } else {
    writer_->send(error_response(ApiShape::kAnthropic, error));
  }
  writer_.reset();
}

namespace {

Result<AnthropicCall> parse_call(const HttpRequest& request, bool counts_only) {
  STILL_TRY(const JsonObject body, parse_body(request.body));
  STILL_TRY(AnthropicCall call, read_anthropic_call(body, counts_only));
  set_asker(call.input, request);
  return call;
}

void handle_messages(ServeContext& context, const RequestPtr& request, const WriterPtr& writer) {
  Result<AnthropicCall> call = parse_call(*request, false);
  if (!call) return writer->send(error_response(ApiShape::kAnthropic, call.error()));
  GenerationInput input = call->input;
  const auto sink = std::make_shared<AnthropicSink>(std::move(*call), writer);
  const std::shared_ptr<Generation> generation = start_generation(context, std::move(input), sink);
  writer->on_closed([weak = std::weak_ptr(generation)] {
    if (const auto alive = weak.lock()) alive->cancel();
  });
}

// The model is loaded where it is not: only its tokenizer and template can tell.
void handle_count(ServeContext& context, const RequestPtr& request, const WriterPtr& writer) {
  const Result<AnthropicCall> call = parse_call(*request, true);
  if (!call) return writer->send(error_response(ApiShape::kAnthropic, call.error()));
  const auto ticket = std::make_shared<std::shared_ptr<void>>();
  const auto ready = [writer, input = call->input](Result<std::shared_ptr<ModelLease>> lease) {
    if (!lease) return writer->send(error_response(ApiShape::kAnthropic, lease.error()));
    const Result<std::vector<TokenId>> tokens = prompt_tokens(input, (*lease)->model());
    if (!tokens) return writer->send(error_response(ApiShape::kAnthropic, tokens.error()));
    writer->send({.body = fmt::format("{{\"input_tokens\":{}}}", tokens->size())});
  };
  *ticket = context.pool->acquire(call->input.model, ready);
  writer->on_closed([ticket] { ticket->reset(); });
}

}  // namespace

void add_anthropic_routes(Router& router, ServeContext& context) {
  router.add(
      {"POST", "/v1/messages", RouteClass::kCompute,
       [&context](const RequestPtr& request, const WriterPtr& writer) { handle_messages(context, request, writer); }});
  router.add(
      {"POST", "/v1/messages/count_tokens", RouteClass::kCompute,
       [&context](const RequestPtr& request, const WriterPtr& writer) { handle_count(context, request, writer); }});
}

}  // namespace still

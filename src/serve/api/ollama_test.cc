// Ollama's, Anthropic's and the responses API without a model: requests read, errors named, events written.
#include <gtest/gtest.h>

#include <condition_variable>

#include "serve/api/anthropic.h"
#include "serve/api/json_fields.h"
#include "serve/api/ollama_facts.h"
#include "serve/api/ollama_generate.h"
#include "serve/api/ollama_pull.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"
#include "serve/api/responses.h"

namespace still {
namespace {

// Keeps what a handler answers.
class RecordingWriter : public ResponseWriter {
 public:
  void send(HttpResponse response) override {
    status = response.status;
    body = response.body;
    is_finished = true;
  }
  void start(int code, std::string_view type, std::vector<HttpHeader>) override {
    status = code;
    content_type = std::string(type);
    ++n_starts;
  }
  void write(std::string_view bytes) override { body += bytes; }
  void flush() override { ++n_flushes; }
  void finish() override { is_finished = true; }
  void abort() override { is_aborted = true; }
  void on_closed(std::function<void()> gone) override { closed = std::move(gone); }
  bool is_closed() const override { return false; }

  int status = 0, n_starts = 0, n_flushes = 0;
  std::string content_type, body;
  bool is_finished = false, is_aborted = false;
  std::function<void()> closed;
};

OllamaFields fields_of(std::string_view json) {
  Result<OllamaFields> fields = OllamaFields::parse(json);
  EXPECT_TRUE(fields) << fields.error().message;
  return std::move(*fields);
}

std::vector<JsonObject> lines_of(std::string_view body) {
  std::vector<JsonObject> lines;
  while (!body.empty()) {
    const std::size_t end = body.find('\n');
    EXPECT_NE(end, std::string_view::npos) << "a line without end: " << body;
    lines.push_back(parse_json(body.substr(0, end), "line")->get_object());
    if (end == std::string_view::npos) break;
    body.remove_prefix(end + 1);
  }
  return lines;
}

// (name, data) of a stream of server-sent events.
std::vector<std::pair<std::string, JsonObject>> events_of(std::string_view body) {
  std::vector<std::pair<std::string, JsonObject>> events;
  while (!body.empty()) {
    const std::size_t end = body.find("\n\n");
    EXPECT_NE(end, std::string_view::npos);
    if (end == std::string_view::npos) break;
    const std::string_view block = body.substr(0, end);
    body.remove_prefix(end + 2);
    if (block.starts_with(':')) continue;
    const std::size_t data = block.find("\ndata: ");
    EXPECT_TRUE(block.starts_with("event: ")) << block;
    events.emplace_back(block.substr(7, data - 7), parse_json(block.substr(data + 7), "event")->get_object());
    EXPECT_EQ(events.back().first, events.back().second.at("type").as_string());
  }
  return events;
}

GenerationBegun begun() {
  return {.id = "gen-7f", .n_prompt = 5, .prompt_ids = {1, 2, 3, 4, 5}};
}

GenerationDone done(FinishReason reason = FinishReason::kStop) {
  GenerationDone end;
  end.finished.reason = reason;
  end.finished.usage = {.n_prompt = 5, .n_cached = 2, .n_completion = 7, .n_reasoning = 3};
  end.finished.timings.prefill = std::chrono::milliseconds(20);
  end.finished.timings.decode = std::chrono::milliseconds(70);
  return end;
}

// Thinks "hm", says "Hi", calls a tool.
void play(GenerationSink& sink, bool with_tool, FinishReason reason = FinishReason::kStop) {
  sink.on_begun(begun());
  sink.on_piece({.reasoning = "hm"});
  sink.on_step_end();
  sink.on_piece({.content = "H"});
  sink.on_step_end();
  sink.on_piece({.content = "i \"\xc3\xa4\"\n"});
  sink.on_step_end();
  GenerationDone end = done(reason);
  if (with_tool) {
    sink.on_piece({.tool_calls = {{.index = 0, .id = "call_1", .name = "add", .arguments = "{\"b\":1,"}}});
    sink.on_step_end();
    sink.on_piece({.tool_calls = {{.index = 0, .arguments = "\"a\":2}"}}});
    sink.on_step_end();
    end.has_tool_calls = true;
  }
  sink.on_done(end);
  sink.on_step_end();
  sink.on_end();
}

TEST(OllamaRequest, NamesWhatIsWrong) {
  const auto message_of = [](std::string_view body) {
    Result<OllamaFields> fields = OllamaFields::parse(body);
    if (!fields) return fields.error().message;
    Result<OllamaCall> call = read_ollama_chat(*fields);
    return call ? std::string() : call.error().message;
  };
  EXPECT_EQ(message_of(""), "missing request body");
  EXPECT_EQ(message_of("{}"), "model is required");
  EXPECT_NE(message_of("{\"model\": "), "");
  EXPECT_EQ(message_of(R"({"model":"m","think":"maybe"})"),
            "invalid think value: \"maybe\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)");
  EXPECT_NE(message_of(R"({"model":"m","_debug_render_only":true})").find("not supported"), std::string::npos);
  EXPECT_EQ(message_of(R"({"model":"m","_debug_render_only":false})"), "");
  EXPECT_EQ(message_of(R"({"model":"m","top_logprobs":21})"), "top_logprobs must be between 0 and 20");
  EXPECT_EQ(message_of(R"({"model":"m","options":{"num_ctx":"big"}})"), "option \"num_ctx\" must be of type integer");
  EXPECT_EQ(message_of(R"({"model":"m","options":{"temperature":true}})"),
            "option \"temperature\" must be of type float32");
  EXPECT_EQ(message_of(R"({"model":"m","options":{"stop":[1]}})"),
            "option \"stop\" must be of type an array of strings");
  EXPECT_EQ(message_of(R"({"model":"m","options":{"use_mmap":1}})"), "option \"use_mmap\" must be of type boolean");
  EXPECT_EQ(message_of(R"({"model":"m","stream":"yes"})"), "field \"stream\" must be of type boolean, not string");
  EXPECT_EQ(message_of(R"({"model":"m","messages":[{"role":"user","images":["aGk="]}]})"),
            "\"m\" does not support image input");
  EXPECT_EQ(message_of(R"({"model":"m","messages":[{"role":"clown"}]})").substr(0, 19), "invalid role: clown");
  EXPECT_EQ(message_of(R"({"model":"m","format":"xml"})"),
            "invalid format: \"xml\"; expected \"json\" or a valid JSON Schema object");
  const auto raw = read_ollama_generate(fields_of(R"({"model":"m","prompt":"x","raw":true,"system":"s"})"));
  ASSERT_FALSE(raw);
  EXPECT_EQ(raw.error().message, "raw mode does not support template, system, or context");
}

TEST(RequestBody, HalfAPairOfSurrogatesIsAReplacementCharacter) {
  const auto text_of = [](std::string_view escaped) {
    const auto body = parse_body(fmt::format(R"({{"a":"{}"}})", escaped));
    EXPECT_TRUE(body) << escaped << ": " << body.error().message;
    return body ? std::string(body->at("a").as_string()) : std::string();
  };
  const std::string mark = "\xef\xbf\xbd";
  EXPECT_EQ(text_of(R"(cut \ud83d)"), "cut " + mark);
  EXPECT_EQ(text_of(R"(\uDE00!)"), mark + "!");
  EXPECT_EQ(text_of(R"(\ud83d\ud83d\ude00\ude00)"), mark + "\xf0\x9f\x98\x80" + mark);
  EXPECT_EQ(text_of(R"(\ud83d\u0041)"), mark + "A");
  EXPECT_EQ(text_of(R"(\\ud83d \"\\)"), R"(\ud83d "\)");  // a backslash, not an escape
  EXPECT_EQ(text_of(R"(\u00e4)"), "\xc3\xa4");
  EXPECT_FALSE(parse_body(R"({"a":"\ud83"})"));
  EXPECT_FALSE(parse_body(R"({"a":"\)"));
  EXPECT_EQ(fields_of(R"({"model":"\ud83d"})").json().at("model").as_string(), mark);
}

TEST(OllamaRequest, ReadsOptionsWithTheirDefaults) {
  const auto call = read_ollama_chat(fields_of(R"({"name":"m","messages":[{"role":"USER","content":"hi"}],
      "tools":[],"format":null,"keep_alive":"1h30m","think":"low",
      "options":{"temperature":null,"num_ctx":2048.0,"seed":7,"stop":["a","b"],"repeat_penalty":1.5,"mirostat":2,
                 "num_predict":-2,"wings":2}})"));
  ASSERT_TRUE(call) << call.error().message;
  EXPECT_EQ(call->model, "m");
  EXPECT_TRUE(call->stream);
  EXPECT_EQ(call->input.model.context, 2048);
  EXPECT_EQ(call->input.model.keep_alive, std::chrono::minutes(90));
  EXPECT_EQ(call->input.sampling, (JsonObject{{"seed", 7}, {"repetition_penalty", 1.5}}));
  EXPECT_EQ(call->input.fallback.top_k, 40);
  EXPECT_FLOAT_EQ(call->input.fallback.temperature, 0.8f);
  EXPECT_EQ(call->input.fallback.penalty_last_n, 64);
  EXPECT_EQ(call->input.max_tokens, -1);
  EXPECT_EQ(call->input.stop, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(call->input.thinking.effort, "low");
  EXPECT_TRUE(call->input.thinking.must_support);
  EXPECT_EQ(call->warnings.size(), 2u);  // mirostat, wings
  EXPECT_EQ(std::get<ChatInput>(call->input.prompt).messages[0].at("role"), "user");
}

TEST(OllamaRequest, ReadsKeepAliveAsOllamaDoes) {
  const auto seconds = [](std::string_view value) {
    const auto kept = fields_of("{\"keep_alive\":" + std::string(value) + "}").keep_alive();
    return kept && *kept ? std::chrono::duration<double>(**kept).count() : std::nan("");
  };
  EXPECT_EQ(seconds("\"5m\""), 300);
  EXPECT_EQ(seconds("300"), 300);
  EXPECT_EQ(seconds("-1"), -1);
  EXPECT_EQ(seconds("0"), 0);
  EXPECT_EQ(seconds("\"-1s\""), -1);
  EXPECT_EQ(seconds("\"1.5s\""), 1.5);
  EXPECT_TRUE(std::isnan(seconds("null")));
  EXPECT_FALSE(fields_of(R"({"keep_alive":"5 minutes"})").keep_alive());
  EXPECT_FALSE(fields_of(R"({"keep_alive":"5"})").keep_alive());
  EXPECT_FALSE(fields_of(R"({"keep_alive":[]})").keep_alive());
}

TEST(OllamaRequest, TurnsToolCallsIntoOpenAisShape) {
  const auto call = read_ollama_chat(fields_of(
      R"({"model":"m","messages":[{"role":"assistant","content":"","thinking":"t","tool_calls":[
          {"id":"c1","function":{"index":0,"name":"f","arguments":{"z":1,"a":2}}}]},
          {"role":"tool","tool_name":"f","tool_call_id":"c1","content":"3"}]})"));
  ASSERT_TRUE(call) << call.error().message;
  const JsonArray& messages = std::get<ChatInput>(call->input.prompt).messages;
  EXPECT_EQ(messages[0].at("tool_calls").at(0).at("function").at("arguments"), R"({"z":1,"a":2})");
  EXPECT_EQ(messages[0].at("reasoning_content"), "t");
  EXPECT_EQ(messages[1].at("tool_call_id"), "c1");
}

TEST(OllamaStream, WritesALinePerStepAndTheFiguresLast) {
  auto writer = std::make_shared<RecordingWriter>();
  OllamaSink sink({.route = OllamaRoute::kChat, .model = "M"}, writer);
  play(sink, true);
  EXPECT_EQ(writer->status, 200);
  EXPECT_EQ(writer->content_type, "application/x-ndjson");
  EXPECT_EQ(writer->n_starts, 1);
  EXPECT_TRUE(writer->is_finished);
  const auto lines = lines_of(writer->body);
  ASSERT_EQ(lines.size(), 5u);
  EXPECT_EQ(lines[0].at("message"), (JsonObject{{"role", "assistant"}, {"content", ""}, {"thinking", "hm"}}));
  EXPECT_EQ(lines[2].at("message").at("content"), "i \"\xc3\xa4\"\n");
  EXPECT_EQ(to_json(lines[3].at("message").at("tool_calls")),
            R"([{"id":"call_1","function":{"index":0,"name":"add","arguments":{"b":1,"a":2}}}])");
  EXPECT_EQ(lines[4].at("done"), true);
  EXPECT_EQ(lines[4].at("done_reason"), "stop");
  EXPECT_EQ(lines[4].at("prompt_eval_count"), 5);
  EXPECT_EQ(lines[4].at("eval_count"), 7);
  EXPECT_EQ(lines[4].at("eval_duration"), 70'000'000);
  EXPECT_FALSE(lines[4].contains("load_duration"));  // left out where 0
  EXPECT_FALSE(lines[4].contains("warnings"));
  const std::string created(lines[4].at("created_at").as_string());
  EXPECT_EQ(created.size(), 30u) << created;
  EXPECT_EQ(created.back(), 'Z');
}

TEST(OllamaStream, HasNoLineWithoutContentForStrictReaders) {
  auto writer = std::make_shared<RecordingWriter>();
  OllamaSink sink({.route = OllamaRoute::kChat, .model = "M"}, writer);
  sink.on_begun(begun());
  sink.on_piece({.content = "<think>\n"});
  sink.on_step_end();
  sink.on_piece({});  // a token that is half a character
  sink.on_step_end();
  sink.on_piece({.content = "x"});
  sink.on_step_end();
  sink.on_done(done());
  sink.on_end();
  for (const JsonObject& line : lines_of(writer->body)) {
    if (line.at("done") == false) {
      EXPECT_NE(line.at("message").at("content"), "");
    }
  }
}

TEST(OllamaStream, AnswersInOneObjectWithContextAndWarnings) {
  auto writer = std::make_shared<RecordingWriter>();
  OllamaCall call{.route = OllamaRoute::kGenerate, .model = "M", .stream = false, .wants_context = true};
  call.warnings = {"w"};
  OllamaSink sink(std::move(call), writer);
  GenerationBegun start = begun();
  start.warnings = {"dropped"};
  sink.on_begun(start);
  TokenEvent token, end_token;
  token.id = 9;
  end_token.id = 2, end_token.is_end = true;
  sink.on_piece({.content = "x", .tokens = {token, end_token}});
  GenerationDone end = done(FinishReason::kLength);
  end.finished.warnings = {"dropped"};
  sink.on_done(end);
  sink.on_end();
  const Json json = *parse_json(writer->body, "body");
  EXPECT_EQ(json.at("response"), "x");
  EXPECT_EQ(json.at("done_reason"), "length");
  EXPECT_EQ(json.at("context"), (JsonArray{1, 2, 3, 4, 5, 9}));
  EXPECT_EQ(json.at("warnings"), (JsonArray{"w", "dropped"}));
}

TEST(OllamaStream, ErrorsHaveTheirStatusBeforeAndALineAfterTheFirstByte) {
  auto early = std::make_shared<RecordingWriter>();
  OllamaSink refused({.model = "M"}, early);
  refused.on_failed({Code::kNotFound, "there is no model M"});
  refused.on_end();
  EXPECT_EQ(early->status, 404);
  EXPECT_EQ(early->body, R"({"error":"model 'M' not found"})");

  auto full = std::make_shared<RecordingWriter>();
  OllamaSink too_long({.model = "M"}, full);
  too_long.on_failed({Code::kResourceExhausted, "9 tokens"});
  EXPECT_EQ(full->status, 400);
  EXPECT_TRUE(full->body.find("the input length exceeds the context length") != std::string::npos) << full->body;

  auto late = std::make_shared<RecordingWriter>();
  OllamaSink broken({.model = "M"}, late);
  broken.on_begun(begun());
  broken.on_piece({.content = "x"});
  broken.on_step_end();
  broken.on_failed({Code::kInternal, "the disk is gone"});
  EXPECT_EQ(late->status, 200);
  EXPECT_EQ(lines_of(late->body).back().at("error"), "the disk is gone");
  EXPECT_TRUE(late->is_finished);
}

TEST(OllamaStream, LeavesOutACallThatBrokeOffAndSaysSo) {
  auto writer = std::make_shared<RecordingWriter>();
  OllamaSink sink({.model = "M", .stream = false}, writer);
  sink.on_begun(begun());
  sink.on_piece({.tool_calls = {{.index = 0, .id = "c", .name = "f", .arguments = "{\"a\":"}}});
  sink.on_done(done(FinishReason::kLength));
  sink.on_end();
  const Json json = *parse_json(writer->body, "body");
  EXPECT_FALSE(json.at("message").as_object().contains("tool_calls"));
  EXPECT_EQ(json.at("warnings").as_array().size(), 1u);
}

TEST(OllamaFacts, RoundsCountsAsOllamaDoes) {
  EXPECT_EQ(ollama_count(134'515'008), "134.52M");
  EXPECT_EQ(ollama_count(7'615'616'512), "7.6B");
  EXPECT_EQ(ollama_count(2'000'000'000), "2B");
  EXPECT_EQ(ollama_count(12'300), "12K");
  EXPECT_EQ(ollama_count(7), "7");
}

TEST(OllamaFacts, WritesTheModelfile) {
  LibraryModel model{.name = "m:latest", .path = "/blob"};
  model.parameters = {{"temperature", 0.5}, {"stop", JsonArray{"<a>", "b"}}};
  model.system = "Be brief.";
  const std::string modelfile = modelfile_text(model, "{{ .Prompt }}");
  EXPECT_NE(modelfile.find("\nFROM /blob\n"), std::string::npos) << modelfile;
  EXPECT_NE(modelfile.find("SYSTEM \"\"\"Be brief.\"\"\"\n"), std::string::npos) << modelfile;
  EXPECT_NE(modelfile.find("PARAMETER stop <a>\n"), std::string::npos) << modelfile;
}

// A transfer that a test lets go on.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool is_open = false;
  void open() {
    const std::lock_guard lock(mutex);
    is_open = true;
    changed.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return is_open; });
  }
};

struct Heard {
  std::mutex mutex;
  std::vector<std::string> lines;
  bool is_over = false;
  std::condition_variable over;
  PullListener listener() {
    return {.line =
                [this](const JsonObject& line) {
                  const std::lock_guard lock(mutex);
                  lines.emplace_back(line.at("status").as_string());
                },
            .end =
                [this](const Status&) {
                  const std::lock_guard lock(mutex);
                  is_over = true;
                  over.notify_all();
                }};
  }
  void wait() {
    std::unique_lock lock(mutex);
    over.wait(lock, [&] { return is_over; });
  }
};

TEST(OllamaPulls, TwoClientsShareOneTransfer) {
  Gate gate;
  Heard first, second;
  std::atomic<int> n_runs{0};
  OllamaPulls pulls;
  const auto work = [&](const ProgressFn& progress, const CancelToken&) -> Result<PullReport> {
    ++n_runs;
    progress({.phase = Progress::Phase::kListing});
    gate.wait();
    progress(
        {.phase = Progress::Phase::kDownloading, .digest = std::string(64, 'a'), .done_bytes = 1, .total_bytes = 2});
    return PullReport();
  };
  pulls.join("m", first.listener(), work);
  pulls.join("m", second.listener(), work);
  EXPECT_EQ(pulls.n_transfers(), 1u);
  gate.open();
  first.wait();
  second.wait();
  EXPECT_EQ(n_runs, 1);
  EXPECT_EQ(first.lines.back(), "success");
  EXPECT_EQ(second.lines.back(), "success");
  EXPECT_EQ(std::count(second.lines.begin(), second.lines.end(), "pulling aaaaaaaaaaaa"), 1);
}

TEST(OllamaPulls, StopsWhenTheLastClientLeaves) {
  Heard first, second;
  std::atomic<bool> was_cancelled{false};
  {
    OllamaPulls pulls;
    const auto work = [&](const ProgressFn&, const CancelToken& cancel) -> Result<PullReport> {
      while (!cancel.is_cancelled()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      was_cancelled = true;
      return error(Code::kCancelled, "stopped");
    };
    const auto one = pulls.join("m", first.listener(), work);
    const auto two = pulls.join("m", second.listener(), work);
    pulls.leave("m", one);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(was_cancelled);
    pulls.leave("m", two);
  }
  EXPECT_TRUE(was_cancelled);
}

TEST(Anthropic, StreamsBlocksInOrder) {
  auto writer = std::make_shared<RecordingWriter>();
  AnthropicSink sink({.model = "M", .stream = true}, writer);
  play(sink, true);
  std::vector<std::string> names;
  std::string text, thinking, arguments;
  const auto events = events_of(writer->body);
  for (const auto& [name, data] : events) {
    names.push_back(name);
    if (name != "content_block_delta") continue;
    const JsonObject& delta = data.at("delta").as_object();
    if (delta.at("type") == "text_delta") text += delta.at("text").as_string();
    if (delta.at("type") == "thinking_delta") thinking += delta.at("thinking").as_string();
    if (delta.at("type") == "input_json_delta") arguments += delta.at("partial_json").as_string();
  }
  EXPECT_EQ(names, (std::vector<std::string>{"message_start", "ping", "content_block_start", "content_block_delta",
                                             "content_block_stop", "content_block_start", "content_block_delta",
                                             "content_block_delta", "content_block_stop", "content_block_start",
                                             "content_block_delta", "content_block_delta", "content_block_stop",
                                             "message_delta", "message_stop"}));
  EXPECT_EQ(thinking, "hm");
  EXPECT_EQ(text, "Hi \"\xc3\xa4\"\n");
  EXPECT_EQ(arguments, R"({"b":1,"a":2})");
  EXPECT_EQ(events[13].second.at("delta").at("stop_reason"), "tool_use");
  EXPECT_EQ(events[13].second.at("usage").at("output_tokens"), 7);
}

TEST(Anthropic, AnswersInOneMessage) {
  auto writer = std::make_shared<RecordingWriter>();
  AnthropicSink sink({.model = "M"}, writer);
  play(sink, false, FinishReason::kLength);
  const Json json = *parse_json(writer->body, "body");
  EXPECT_EQ(json.at("content").at(0).at("thinking"), "hm");
  EXPECT_EQ(json.at("content").at(1), (JsonObject{{"type", "text"}, {"text", "Hi \"\xc3\xa4\"\n"}}));
  EXPECT_EQ(json.at("stop_reason"), "max_tokens");
  EXPECT_EQ(json.at("usage"), (JsonObject{{"input_tokens", 3},
                                          {"cache_creation_input_tokens", 0},
                                          {"cache_read_input_tokens", 2},
                                          {"output_tokens", 7}}));
}

TEST(Anthropic, AnAnswerThatWasCutIsAnError) {
  auto streamed = std::make_shared<RecordingWriter>();
  AnthropicSink stream({.model = "M", .stream = true}, streamed);
  play(stream, false, FinishReason::kCancelled);
  const auto events = events_of(streamed->body);
  EXPECT_EQ(events.back().first, "error");
  EXPECT_EQ(events.back().second.at("error").at("type"), "api_error");
  for (const auto& [name, data] : events) EXPECT_NE(name, "message_stop");
  EXPECT_EQ(streamed->body.find("end_turn"), std::string::npos);
  EXPECT_TRUE(streamed->is_finished);
  auto whole = std::make_shared<RecordingWriter>();
  AnthropicSink sink({.model = "M"}, whole);
  play(sink, false, FinishReason::kCancelled);
  EXPECT_EQ(whole->status, 499);
  EXPECT_EQ(parse_json(whole->body, "body")->at("type"), "error");
}

TEST(Anthropic, ReadsBlocksToolsAndThinking) {
  const JsonObject body = parse_json(R"({"model":"m","max_tokens":9,"system":[{"type":"text","text":"S"}],
    "messages":[{"role":"user","content":"q"},
      {"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"x"},
        {"type":"tool_use","id":"c","name":"f","input":{"k":1}}]},
      {"role":"user","content":[{"type":"tool_result","tool_use_id":"c","content":[{"type":"text","text":"r"}]},
        {"type":"text","text":"go on"}]}],
    "tools":[{"name":"f","input_schema":{"type":"object"}},{"type":"web_search_20250305","name":"web_search"}],
    "tool_choice":{"type":"any"},"thinking":{"type":"enabled","budget_tokens":64},"stop_sequences":["END"]})",
                                     "body")
                              ->get_object();
  const auto call = read_anthropic_call(body, false);
  ASSERT_TRUE(call) << call.error().message;
  const JsonArray& messages = std::get<ChatInput>(call->input.prompt).messages;
  ASSERT_EQ(messages.size(), 5u);
  EXPECT_EQ(messages[0].at("content"), "S");
  EXPECT_EQ(messages[2].at("reasoning_content"), "t");
  EXPECT_EQ(messages[2].at("tool_calls").at(0).at("function").at("arguments"), R"({"k":1})");
  EXPECT_EQ(messages[3], (JsonObject{{"role", "tool"}, {"tool_call_id", "c"}, {"content", "r"}}));
  EXPECT_EQ(messages[4].at("content"), "go on");
  EXPECT_EQ(call->input.tools.tools.size(), 1u);
  EXPECT_EQ(call->input.tools.choice, ToolWish::Choice::kRequired);
  EXPECT_EQ(call->input.thinking.budget, 64);
  EXPECT_EQ(call->input.max_tokens, 9);
  EXPECT_EQ(call->warnings.size(), 1u);
}

TEST(Anthropic, NamesWhatIsWrong) {
  const auto message_of = [](std::string_view body) {
    const auto call = read_anthropic_call(parse_json(body, "body")->get_object(), false);
    return call ? std::string() : call.error().message;
  };
  EXPECT_EQ(message_of(R"({"max_tokens":1,"messages":[]})"), "field \"model\" is required");
  EXPECT_EQ(message_of(R"({"model":"m","messages":[{"role":"user","content":"x"}]})"),
            "field \"max_tokens\" is required");
  EXPECT_EQ(message_of(R"({"model":"m","max_tokens":1,"messages":[]})"), "messages: at least one message is required");
  EXPECT_NE(message_of(R"({"model":"m","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image"}]}]})")
                .find("\"image\""),
            std::string::npos);
  EXPECT_NE(message_of(R"({"model":"m","max_tokens":1,"messages":[{"role":"user","content":3}]})"), "");
}

TEST(Responses, StreamsItemsWithRisingNumbers) {
  auto writer = std::make_shared<RecordingWriter>();
  std::string param;
  auto call =
      read_responses_call(parse_json(R"({"model":"M","input":"hi","stream":true})", "body")->get_object(), param);
  ASSERT_TRUE(call) << call.error().message;
  ResponsesSink sink(std::move(*call), writer);
  play(sink, true);
  const auto events = events_of(writer->body);
  std::string text, reasoning;
  for (std::size_t i = 0; i < events.size(); ++i) {
    EXPECT_EQ(events[i].second.at("sequence_number"), static_cast<std::int64_t>(i));
    if (events[i].first == "response.output_text.delta") text += events[i].second.at("delta").as_string();
    if (events[i].first == "response.reasoning_summary_text.delta") {
      reasoning += events[i].second.at("delta").as_string();
    }
  }
  EXPECT_EQ(text, "Hi \"\xc3\xa4\"\n");
  EXPECT_EQ(reasoning, "hm");
  EXPECT_EQ(events.front().first, "response.created");
  EXPECT_EQ(events.back().first, "response.completed");
  const Json& response = events.back().second.at("response");
  EXPECT_EQ(response.at("status"), "completed");
  EXPECT_EQ(response.at("output").as_array().size(), 3u);
  EXPECT_EQ(std::string(response.at("output").at(1).at("content").at(0).at("text").as_string()), text);
  EXPECT_EQ(response.at("output").at(2).at("arguments"), R"({"b":1,"a":2})");
  EXPECT_EQ(response.at("usage").at("output_tokens_details").at("reasoning_tokens"), 3);
  EXPECT_EQ(response.at("usage").at("input_tokens_details").at("cached_tokens"), 2);
}

TEST(Responses, SaysWhenItWasCut) {
  auto writer = std::make_shared<RecordingWriter>();
  std::string param;
  auto call = read_responses_call(parse_json(R"({"model":"M","input":"hi"})", "body")->get_object(), param);
  ASSERT_TRUE(call);
  ResponsesSink sink(std::move(*call), writer);
  play(sink, false, FinishReason::kLength);
  const Json json = *parse_json(writer->body, "body");
  EXPECT_EQ(json.at("status"), "incomplete");
  EXPECT_EQ(json.at("incomplete_details").at("reason"), "max_output_tokens");
  EXPECT_EQ(json.at("output").at(1).at("status"), "incomplete");
}

TEST(Responses, AnAnswerThatWasCutIsIncomplete) {
  const auto play_to = [](std::string_view body, bool breaks) {
    auto writer = std::make_shared<RecordingWriter>();
    std::string param;
    auto call = read_responses_call(parse_json(body, "body")->get_object(), param);
    EXPECT_TRUE(call);
    ResponsesSink sink(std::move(*call), writer);
    if (breaks) {
      sink.on_begun(begun());
      sink.on_piece({.content = "H"});
      sink.on_failed({Code::kInternal, "the GPU is gone"});
    } else {
      play(sink, false, FinishReason::kCancelled);
    }
    return writer;
  };
  const Json whole = *parse_json(play_to(R"({"model":"M","input":"hi"})", false)->body, "body");
  EXPECT_EQ(whole.at("status"), "incomplete");
  EXPECT_EQ(whole.at("incomplete_details").at("reason"), "cancelled");
  EXPECT_EQ(whole.at("output").at(1).at("status"), "incomplete");
  for (const bool breaks : {false, true}) {
    const auto events = events_of(play_to(R"({"model":"M","input":"hi","stream":true})", breaks)->body);
    EXPECT_EQ(events.back().first, breaks ? "response.failed" : "response.incomplete");
    const Json& response = events.back().second.at("response");
    EXPECT_EQ(response.at("status"), breaks ? "failed" : "incomplete");
    EXPECT_EQ(response.at("output").as_array().back().at("status"), "incomplete");
    const auto& done = events[events.size() - 2];
    EXPECT_EQ(done.first, "response.output_item.done");
    EXPECT_EQ(done.second.at("item").at("status"), "incomplete");
  }
}

TEST(Responses, NamesAnEffortThatIsNone) {
  for (const char* effort : {"5", "\"much\"", "{}"}) {
    std::string param;
    const auto call = read_responses_call(
        parse_json(fmt::format(R"({{"model":"M","input":"hi","reasoning":{{"effort":{}}}}})", effort), "body")
            ->get_object(),
        param);
    ASSERT_FALSE(call) << effort;
    EXPECT_NE(call.error().message.find("reasoning.effort"), std::string::npos) << call.error().message;
  }
  std::string param;
  EXPECT_TRUE(read_responses_call(
      parse_json(R"({"model":"M","input":"hi","reasoning":{"effort":null,"summary":"auto"}})", "body")->get_object(),
      param));
}

TEST(Responses, ReadsItemsAndRefusesState) {
  std::string param;
  const auto call = read_responses_call(
      parse_json(
          R"({"model":"m","instructions":"I","input":[{"role":"user","content":[{"type":"input_text","text":"q"}]},
      {"type":"reasoning","summary":[{"type":"summary_text","text":"t"}]},
      {"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
      {"type":"function_call_output","call_id":"c","output":"r"}],
      "text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}},"reasoning":{"effort":"low"}})",
          "body")
          ->get_object(),
      param);
  ASSERT_TRUE(call) << call.error().message;
  const JsonArray& messages = std::get<ChatInput>(call->input.prompt).messages;
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].at("role"), "system");
  EXPECT_EQ(messages[2].at("reasoning_content"), "t");
  EXPECT_EQ(messages[2].at("tool_calls").at(0).at("id"), "c");
  EXPECT_EQ(messages[3].at("tool_call_id"), "c");
  EXPECT_EQ(call->input.format.kind, FormatWish::Kind::kJsonSchema);
  EXPECT_EQ(call->input.thinking.effort, "low");
  const auto stateful = read_responses_call(
      parse_json(R"({"model":"m","input":"x","previous_response_id":"resp_1"})", "body")->get_object(), param);
  ASSERT_FALSE(stateful);
  EXPECT_EQ(param, "previous_response_id");
  const auto image = read_responses_call(
      parse_json(R"({"model":"m","input":[{"role":"user","content":[{"type":"input_image"}]}]})", "body")->get_object(),
      param);
  ASSERT_FALSE(image);
  EXPECT_EQ(param, "input");
}

}  // namespace
}  // namespace still

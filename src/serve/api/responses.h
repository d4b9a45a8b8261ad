// /v1/responses, the stateless subset that published clients use: requests to GenerationInput, events to its stream or
// to one response object. Apart from the routes, so that tests feed events without a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "serve/generation.h"
#include "serve/http/message.h"

namespace still {

struct ResponsesCall {
  std::string model;
  bool stream = false;
  bool wants_logprobs = false;
  JsonObject echo;  // members of the request that the response repeats, with their defaults
  GenerationInput input;
  std::vector<std::string> warnings;
};

// `param` becomes the field that an error is about.
Result<ResponsesCall> read_responses_call(const JsonObject& body, std::string& param);

class ResponsesSink : public GenerationSink {
 public:
  ResponsesSink(ResponsesCall call, std::shared_ptr<ResponseWriter> writer);

  void on_begun(const GenerationBegun& begun) override;
  void on_progress(const ProgressEvent& event, int answer) override;
  void on_piece(GenerationPiece&& piece) override;
  void on_done(const GenerationDone& done) override;
  void on_step_end() override;
  void on_end() override;
  void on_failed(const Error& error) override;

 private:
  enum class Kind : std::uint8_t { kReasoning, kMessage, kFunctionCall };
  struct Item {
    Kind kind = Kind::kMessage;
    std::string id, text;  // text: or the arguments of a call
    std::string call_id, name;
    std::string logprobs;  // elements of the array
    int call_index = -1;
  };
  void start_stream();
  void event(std::string_view name, std::string_view members);
  void open_item(Item item);
  void close_item(std::string_view status);
  void add_text(Kind kind, const std::string& text, const std::string& logprobs);
  void add_tool_call(const ToolCallDelta& delta);
  std::string place() const;  // "item_id":...,"output_index":...
  std::string item_json(const Item& item, std::string_view status) const;
  std::string response_json(std::string_view status, std::string_view rest) const;

  ResponsesCall call_;
  std::shared_ptr<ResponseWriter> writer_;
  bool is_started_ = false, is_open_ = false;
  std::string generation_, suffix_;
  std::int64_t created_ = 0, sequence_ = 0;
  std::vector<Item> items_;
  std::string status_ = "completed", final_;
  std::chrono::steady_clock::time_point last_ping_ = std::chrono::steady_clock::now();
};

}  // namespace still

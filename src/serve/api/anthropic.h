// Anthropic's /v1/messages: requests to GenerationInput, events to its stream or to one message. Apart from the
// routes, so that tests feed events without a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "serve/generation.h"
#include "serve/http/message.h"

namespace still {

struct AnthropicCall {
  std::string model;
  bool stream = false;
  GenerationInput input;
  std::vector<std::string> warnings;
};

// `counts_only`: /v1/messages/count_tokens, which needs no max_tokens. kInvalidArgument: `field "..." ...`.
Result<AnthropicCall> read_anthropic_call(const JsonObject& body, bool counts_only);

class AnthropicSink : public GenerationSink {
 public:
  AnthropicSink(AnthropicCall call, std::shared_ptr<ResponseWriter> writer);

  void on_begun(const GenerationBegun& begun) override;
  void on_progress(const ProgressEvent& event, int answer) override;
  void on_piece(GenerationPiece&& piece) override;
  void on_done(const GenerationDone& done) override;
  void on_step_end() override;
  void on_end() override;
  void on_failed(const Error& error) override;

 private:
  enum class Kind : std::uint8_t { kThinking, kText, kToolUse };
  struct Block {
    Kind kind = Kind::kText;
    std::string text;  // or the arguments of a tool call
    std::string id, name;
    int call_index = -1;
  };
  void start_stream();
  void event(std::string_view name, std::string_view members);  // members: after "type", without the braces
  void open_block(Block block);
  void close_block();
  void add_text(Kind kind, const std::string& text);
  void add_tool_call(const ToolCallDelta& delta);
  std::string usage(const Usage& usage) const;
  std::string message(const GenerationDone& done);
  std::string stop_members(const GenerationDone& done) const;  // "stop_reason":...,"stop_sequence":...

  AnthropicCall call_;
  std::shared_ptr<ResponseWriter> writer_;
  bool is_started_ = false, is_open_ = false;
  std::string id_, generation_;
  std::int64_t n_prompt_ = 0;
  std::vector<Block> blocks_;
  std::string out_;  // reused
  std::string final_;
  std::chrono::steady_clock::time_point last_ping_ = std::chrono::steady_clock::now();
};

}  // namespace still

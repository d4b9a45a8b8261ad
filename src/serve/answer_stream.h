// AnswerStream: the engine's events of one answer to the pieces that encoders write. Decides what of the reasoning is
// told and how, and takes tool calls out of the text. Not thread-safe.
#pragma once

#include <memory>
#include <string>

#include "engine/event.h"
#include "serve/generation.h"
#include "serve/tool_calls.h"

namespace still {

struct AnswerStreamOptions {
  int answer = 0;
  ReasoningFormat reasoning_format = ReasoningFormat::kSplit;
  bool wants_tokens = false;               // pieces carry the TokenEvents
  std::unique_ptr<ToolCallReader> reader;  // null: text is not looked through for calls
};

class AnswerStream {
 public:
  AnswerStream(AnswerStreamOptions options, GenerationSink& sink) : options_(std::move(options)), sink_(sink) {}

  void on_token(const TokenEvent& event);
  // Gives out what was held back, then the end.
  void on_finished(const FinishedEvent& event);

 private:
  bool has_raw_content() const {
    return options_.reasoning_format == ReasoningFormat::kRaw || options_.reasoning_format == ReasoningFormat::kBoth;
  }
  void add_reasoning(const TokenEvent& event, GenerationPiece& piece);
  void add_content(const TokenEvent& event, GenerationPiece& piece);
  void add_raw_tag(const TokenEvent& event, GenerationPiece& piece);
  void open_raw(GenerationPiece& piece);
  void send(GenerationPiece&& piece);

  AnswerStreamOptions options_;
  GenerationSink& sink_;
  bool is_raw_open_ = false;  // <think> was written into the content, </think> was not
  bool has_tool_calls_ = false;
};

}  // namespace still

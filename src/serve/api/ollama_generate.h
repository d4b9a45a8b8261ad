// /api/generate and /api/chat: requests to GenerationInput, and events to NDJSON lines or one object. Apart from the
// routes, so that tests feed events without a model.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "serve/api/ollama_wire.h"
#include "serve/generation.h"
#include "serve/http/message.h"

namespace still {

enum class OllamaRoute : std::uint8_t { kGenerate, kChat };

struct OllamaCall {
  OllamaRoute route = OllamaRoute::kChat;
  std::string model;  // as the client wrote it, echoed in each answer
  bool stream = true;
  bool wants_logprobs = false;
  bool wants_context = false;  // /api/generate but raw: the ids to go on from
  bool wants_progress = false;
  bool is_load = false;  // nothing to answer: load the model, or unload it where keep_alive is 0
  GenerationInput input;
  std::vector<std::string> warnings;
};

// The fields that are checked without a model. kInvalidArgument with Ollama's text.
Result<OllamaCall> read_ollama_chat(const OllamaFields& fields);
Result<OllamaCall> read_ollama_generate(const OllamaFields& fields);

// Writes what a generation tells. With `stream` each step's text is a line, flushed once a step; else one object at the
// end. Before the first byte an error has its real status, later it is the last line.
class OllamaSink : public GenerationSink {
 public:
  OllamaSink(OllamaCall call, std::shared_ptr<ResponseWriter> writer);

  void on_begun(const GenerationBegun& begun) override;
  void on_progress(const ProgressEvent& event, int answer) override;
  void on_piece(GenerationPiece&& piece) override;
  void on_done(const GenerationDone& done) override;
  void on_step_end() override;
  void on_end() override;
  void on_failed(const Error& error) override;

 private:
  struct OpenToolCall {
    std::string id, name, arguments;
  };
  struct Text {  // of a line, or of the whole answer
    std::string content, thinking;
    std::string tool_calls;  // elements of the array, as JSON
    std::string logprobs;    // likewise
  };
  void start_stream();
  void append_head(std::string& line) const;
  void append_message(std::string& line, const Text& text) const;
  void append_totals(std::string& line, const GenerationDone& done) const;
  void append_logprobs(const std::vector<TokenEvent>& tokens);
  void add_tool_calls(const std::vector<ToolCallDelta>& deltas);
  void close_tool_call(int index, std::string& out);
  void write_line(std::string& line);

  OllamaCall call_;
  std::shared_ptr<ResponseWriter> writer_;
  bool is_started_ = false;
  std::string id_;
  std::chrono::nanoseconds load_duration_{};
  std::vector<TokenId> ids_;  // prompt and answer, for `context`
  std::map<int, OpenToolCall> open_calls_;
  Text pending_;
  std::string line_;   // reused
  std::string final_;  // the last line, or the one object, until on_end
  std::chrono::steady_clock::time_point arrived_ = std::chrono::steady_clock::now();
};

}  // namespace still

// /v1/chat/completions: a generation's events to one answer or to chunks. Apart from the routes, so that tests feed
// events without a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "serve/api/openai_request.h"
#include "serve/api/openai_wire.h"

namespace still {

class OpenAiChatSink : public GenerationSink {
 public:
  OpenAiChatSink(const ChatCall& call, std::shared_ptr<ResponseWriter> writer);

  void on_begun(const GenerationBegun& begun) override;
  void on_progress(const ProgressEvent& event, int answer) override;
  void on_piece(GenerationPiece&& piece) override;
  void on_done(const GenerationDone& done) override;
  void on_step_end() override;
  void on_end() override;
  void on_failed(const Error& error) override;

 private:
  struct Call {
    std::string id, name, arguments;
  };
  struct Answer {
    std::string reasoning, content, logprobs, token_ids;
    std::vector<Call> calls;
    GenerationDone done;
    std::int64_t n_completion = 0;
  };
  // The beginning of a chunk: up to {"index":i,"delta":{
  void begin_chunk(std::string& out, int answer) const;
  void end_chunk(std::string& out, int answer) const;  // the usage so far, where every chunk tells it
  void append_message(std::string& out, const Answer& answer) const;
  void send_whole();

  std::string model_;
  OpenAiStream stream_;
  bool has_logprobs_, includes_stop_, returns_token_ids_;
  std::shared_ptr<ResponseWriter> writer_;
  SseStream sse_;
  OpenAiHead head_;
  std::string head_json_, generation_id_, chunk_;
  std::vector<TokenId> prompt_ids_;
  std::vector<Answer> answers_;
  std::int64_t n_prompt_ = 0;
  OpenAiUsage usage_;
  std::vector<std::string> warnings_;
};

}  // namespace still

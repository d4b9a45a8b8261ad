#include "serve/answer_stream.h"

namespace still {

// Raw text spells the tags as DeepSeek-R1 does: the engine drops the newlines behind a tag, and the opening one may
// stand in the prompt.
void AnswerStream::open_raw(GenerationPiece& piece) {
  if (is_raw_open_ || !has_raw_content()) return;
  piece.content += "<think>\n";
  is_raw_open_ = true;
}

void AnswerStream::add_reasoning(const TokenEvent& event, GenerationPiece& piece) {
  if (event.text.empty()) return;
  open_raw(piece);
  if (has_raw_content()) piece.content += event.text;
  const ReasoningFormat format = options_.reasoning_format;
  if (format == ReasoningFormat::kSplit || format == ReasoningFormat::kBoth) piece.reasoning += event.text;
}

void AnswerStream::add_content(const TokenEvent& event, GenerationPiece& piece) {
  if (options_.reader != nullptr)
    options_.reader->add(event, piece);
  else
    piece.content += event.text;
}

void AnswerStream::add_raw_tag(const TokenEvent& event, GenerationPiece& piece) {
  const bool is_closing = event.bytes.starts_with("</");
  if (is_closing && event.channel == Channel::kContent) {
    piece.content += "</think>";  // of no block
    return;
  }
  open_raw(piece);
  if (is_closing) {
    piece.content += "</think>\n\n";
    is_raw_open_ = false;
  }
}

void AnswerStream::on_token(const TokenEvent& event) {
  GenerationPiece piece;
  piece.answer = options_.answer;
  if (event.channel == Channel::kReasoning)
    add_reasoning(event, piece);
  else
    add_content(event, piece);
  if (event.is_tag && has_raw_content()) add_raw_tag(event, piece);
  if (options_.wants_tokens && event.id >= 0) piece.tokens.push_back(event);
  send(std::move(piece));
}

void AnswerStream::send(GenerationPiece&& piece) {
  has_tool_calls_ = has_tool_calls_ || !piece.tool_calls.empty();
  if (piece.reasoning.empty() && piece.content.empty() && piece.tool_calls.empty() && piece.tokens.empty()) return;
  sink_.on_piece(std::move(piece));
}

void AnswerStream::on_finished(const FinishedEvent& event) {
  GenerationPiece piece;
  piece.answer = options_.answer;
  if (options_.reader != nullptr) options_.reader->finish(piece);
  send(std::move(piece));
  sink_.on_done({.answer = options_.answer, .finished = event, .has_tool_calls = has_tool_calls_});
}

}  // namespace still

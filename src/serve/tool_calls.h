// Tool calls in the text of an answer: the seam between a generation and the parsers of text/tool_call_parser.h.
#pragma once

#include <memory>
#include <string_view>

#include "serve/generation.h"

namespace still {

// Splits the content of one answer into text and calls. One per answer.
class ToolCallReader {
 public:
  virtual ~ToolCallReader() = default;
  // Appends to content and tool_calls of `piece`; may hold back what could become a call.
  virtual void add(std::string_view text, GenerationPiece& piece) = 0;
  virtual void finish(GenerationPiece& piece) = 0;
};

}  // namespace still

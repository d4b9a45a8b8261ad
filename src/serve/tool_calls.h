// Tool calls in the text of an answer: the seam between a generation and the parsers of text/tool_call_parser.h.
#pragma once

#include <memory>

#include "serve/generation.h"

namespace still {

// Splits the content of one answer into text and calls. One per answer.
class ToolCallReader {
 public:
  virtual ~ToolCallReader() = default;
  // Appends to content and tool_calls of `piece`; may hold back what could become a call.
  virtual void add(const TokenEvent& event, GenerationPiece& piece) = 0;
  virtual void finish(GenerationPiece& piece) = 0;
};

// How calls are found in the answers to one request. Immutable.
class ToolCallPlan {
 public:
  virtual ~ToolCallPlan() = default;
  virtual std::unique_ptr<ToolCallReader> make_reader() const = 0;
};

// Null where there is nothing to look for: no tools, or a template that teaches no format. Calls get ids where the
// model gave none; only the first counts where parallel calls are not wanted.
std::shared_ptr<const ToolCallPlan> plan_tool_calls(const ToolWish& wish, const ChatTemplate& chat_template,
                                                    const std::shared_ptr<const Model>& model);

// Where a call is required: the answer is held to a JSON schema, so that every template can serve. A named function (or
// the only one): its parameters. Several: {"name": ..., "arguments": ...}, one form for each.
Json required_call_schema(const ToolWish& wish);
// Reads such an answer: one call, told at its end; text that is no whole object comes as arguments as it is.
std::shared_ptr<const ToolCallPlan> plan_required_call(const ToolWish& wish);

}  // namespace still

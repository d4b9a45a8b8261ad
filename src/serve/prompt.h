// From a GenerationInput to the engine's Request: template, thinking, sampling, what the answer must look like. All
// that is done before the engine is asked, on a thread of the pool.
#pragma once

#include <functional>
#include <memory>

#include "base/result.h"
#include "engine/request.h"
#include "serve/generation.h"
#include "serve/tool_calls.h"

namespace still {

struct PreparedPrompt {
  Request request;  // without its constraint: each answer has its own
  std::function<Result<std::shared_ptr<TokenConstraint>>()> make_constraint;
  std::function<std::unique_ptr<ToolCallReader>()> make_tool_reader;
};

// kInvalidArgument for a request that this model cannot serve; kResourceExhausted for a prompt longer than the context.
// What was dropped or limited stands in request.warnings.
Result<PreparedPrompt> prepare_prompt(const GenerationInput& input, const ServedModel& served);

// The prompt alone, as tokens: for counting and /tokenize.
Result<std::vector<TokenId>> prompt_tokens(const GenerationInput& input, const ServedModel& served);

}  // namespace still

// From a GenerationInput to the engine's Request: template, thinking, sampling, what the answer must look like. All
// that is done before the engine is asked, on a thread of the pool.
#pragma once

#include <memory>

#include "base/result.h"
#include "engine/request.h"
#include "serve/generation.h"

namespace still {

// kInvalidArgument for a request that this model cannot serve; kResourceExhausted for a prompt longer than the context.
// What was dropped or limited stands in its warnings.
Result<Request> prepare_prompt(const GenerationInput& input, const ServedModel& served);

// The chat template that a request uses: its own, or the model's. kInvalidArgument where there is none.
Result<std::shared_ptr<const ChatTemplate>> chat_template_for(const GenerationInput& input, const ServedModel& served);

// The prompt alone, as tokens: for counting and /tokenize.
Result<std::vector<TokenId>> prompt_tokens(const GenerationInput& input, const ServedModel& served);

}  // namespace still

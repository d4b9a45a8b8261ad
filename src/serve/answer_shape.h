// What an answer must look like: the grammar that a format or a required tool call sets, and how calls are found in the
// text. Compiled once for a request; each answer has its own state.
#pragma once

#include <memory>

#include "base/result.h"
#include "serve/generation.h"
#include "serve/grammar_cache.h"
#include "serve/tool_calls.h"

namespace still {

struct AnswerShape {
  std::shared_ptr<const CompiledGrammar> grammar;  // null: none
  std::shared_ptr<const ToolCallPlan> tools;       // null: none

  std::shared_ptr<TokenConstraint> make_constraint() const;
  std::unique_ptr<ToolCallReader> make_reader() const;
};

// Whether a grammar must be compiled for it, which takes up to seconds: on the thread of GrammarCache::post().
bool needs_grammar(const GenerationInput& input);

// kInvalidArgument names the place in the schema that is wrong, kUnsupported what cannot be enforced.
Result<AnswerShape> prepare_answer(GrammarCache& grammars, const GenerationInput& input, const ServedModel& served);

}  // namespace still

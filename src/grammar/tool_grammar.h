// Grammars that make the model call a tool, in the format that its chat template teaches (tool_choice "required" or a
// name): the answer is one call, or several where that is allowed, and each call's arguments fit the tool's schema.
#pragma once

#include <memory>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "grammar/compiler.h"
#include "text/tool_call_parser.h"

namespace still {

struct ToolGrammarOptions {
  std::string_view name;        // the only tool that may be called; empty: any
  bool allows_several = false;  // up to 16 calls
};

// `tools`: OpenAI's shape, {"type": "function", "function": {"name": ..., "parameters": schema}}.
// kInvalidArgument for tools of another shape or an unknown name; kUnsupported for ToolCallFormat::kNone.
// What is produced is what ToolCallParser of the same format reads.
Result<std::shared_ptr<const CompiledGrammar>> compile_tool_calls(GrammarCompiler& compiler, ToolCallFormat format,
                                                                  const JsonArray& tools,
                                                                  const ToolGrammarOptions& options = {});

}  // namespace still

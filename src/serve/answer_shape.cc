#include "serve/answer_shape.h"

#include "grammar/tool_grammar.h"
#include "serve/prompt.h"

namespace still {

namespace {

Result<std::shared_ptr<const CompiledGrammar>> compile_format(GrammarCompiler& compiler, const FormatWish& format) {
  switch (format.kind) {
    case FormatWish::Kind::kNone:
      break;
    case FormatWish::Kind::kJsonObject:
      return compiler.compile_json_object();
    case FormatWish::Kind::kJsonSchema:
      return compiler.compile_json_schema(format.schema, "schema");
    case FormatWish::Kind::kRegex:
      return compiler.compile_regex(format.pattern);
    case FormatWish::Kind::kChoice:
      return compiler.compile_choice(format.choices);
    case FormatWish::Kind::kGrammar:
      return compiler.compile_ebnf(format.pattern);
  }
  return nullptr;
}

// In the format that the template teaches; else, any model can be held to JSON.
Result<std::shared_ptr<const CompiledGrammar>> compile_required_call(GrammarCompiler& compiler,
                                                                     const GenerationInput& input,
                                                                     const ServedModel& served) {
  const ToolWish& tools = input.tools;
  STILL_TRY(const std::shared_ptr<const ChatTemplate> chat_template, chat_template_for(input, served));
  const ToolCallFormat format = detect_tool_call_format(*chat_template);
  if (format == ToolCallFormat::kNone) return compiler.compile_json_schema(required_call_schema(tools), "tools");
  const bool is_named = tools.choice == ToolWish::Choice::kNamed;
  return compile_tool_calls(
      compiler, format, tools.tools,
      {.name = is_named ? std::string_view(tools.name) : std::string_view(), .allows_several = false});
}

bool has_tools(const GenerationInput& input) {
  return std::holds_alternative<ChatInput>(input.prompt) && !input.tools.tools.empty();
}

bool must_call(const GenerationInput& input) {
  const ToolWish::Choice choice = input.tools.choice;
  return has_tools(input) && (choice == ToolWish::Choice::kRequired || choice == ToolWish::Choice::kNamed);
}

}  // namespace

bool needs_grammar(const GenerationInput& input) {
  return must_call(input) || input.format.kind != FormatWish::Kind::kNone;
}

std::shared_ptr<TokenConstraint> AnswerShape::make_constraint() const {
  return grammar == nullptr ? nullptr : still::make_constraint(grammar);
}

std::unique_ptr<ToolCallReader> AnswerShape::make_reader() const {
  return tools == nullptr ? nullptr : tools->make_reader();
}

Result<AnswerShape> prepare_answer(GrammarCache& grammars, const GenerationInput& input, const ServedModel& served) {
  AnswerShape shape;
  const ToolWish& tools = input.tools;
  if (has_tools(input)) {
    STILL_TRY(const std::shared_ptr<const ChatTemplate> chat_template, chat_template_for(input, served));
    shape.tools = plan_tool_calls(tools, *chat_template, served.model);
    if (must_call(input) && shape.tools == nullptr) shape.tools = plan_required_call(tools);
  }
  if (!needs_grammar(input)) return shape;
  STILL_TRY(const std::shared_ptr<GrammarCompiler> compiler, grammars.compiler_of(served.model));
  auto compiled =
      must_call(input) ? compile_required_call(*compiler, input, served) : compile_format(*compiler, input.format);
  if (!compiled) {
    // Too large a schema is not a prompt that is too long.
    Error failure = std::move(compiled).error();
    if (failure.code == Code::kResourceExhausted) failure.code = Code::kInvalidArgument;
    return tl::unexpected(std::move(failure));
  }
  shape.grammar = std::move(*compiled);
  return shape;
}

}  // namespace still

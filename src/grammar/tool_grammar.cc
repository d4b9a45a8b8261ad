// See tool_grammar.h.
#include "grammar/tool_grammar.h"

#include <fmt/format.h>

#include "text/unicode.h"

namespace still {
namespace {

using Node = GrammarDraft::Node;

#define STILL_MARK(text) "<\xef\xbd\x9c" text "\xef\xbd\x9c>"
#define STILL_JOIN "\xe2\x96\x81"

// What stands around calls, and around the name and the arguments of one.
struct CallLayout {
  std::string_view begin, before_name, after_name, end_call, between, end;
  bool name_is_json = true;  // quoted, as a JSON string
};

Result<CallLayout> layout_of(ToolCallFormat format) {
  constexpr std::string_view kObject = "{\"name\": ", kArguments = ", \"arguments\": ";
  switch (format) {
    case ToolCallFormat::kHermes:
      return CallLayout{"<tool_call>\n", kObject, kArguments, "}", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>"};
    case ToolCallFormat::kLlama3:
      return CallLayout{"", kObject, ", \"parameters\": ", "}", "; ", ""};
    case ToolCallFormat::kMistral:  // its mark is a control token; the parser needs none at the beginning
      return CallLayout{"[", kObject, kArguments, "}", ", ", "]"};
    case ToolCallFormat::kDeepSeek:
      return CallLayout{
          STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "begin"),
          STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "begin") "function" STILL_MARK("tool" STILL_JOIN "sep"),
          "\n```json\n",
          "\n```" STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "end"),
          "\n",
          STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "end"),
          false};
    case ToolCallFormat::kDeepSeek31:
      return CallLayout{STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "begin"),
                        STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "begin"),
                        STILL_MARK("tool" STILL_JOIN "sep"),
                        STILL_MARK("tool" STILL_JOIN "call" STILL_JOIN "end"),
                        "",
                        STILL_MARK("tool" STILL_JOIN "calls" STILL_JOIN "end"),
                        false};
    default:
      return error(Code::kUnsupported, "tool_choice: the model's chat template has no format for tool calls");
  }
}

}  // namespace

Result<std::shared_ptr<const CompiledGrammar>> compile_tool_calls(GrammarCompiler& compiler, ToolCallFormat format,
                                                                  const JsonArray& tools,
                                                                  const ToolGrammarOptions& options) {
  STILL_TRY(const CallLayout layout, layout_of(format));
  GrammarDraft draft;
  std::vector<Node> calls;
  for (std::size_t i = 0; i < tools.size(); ++i) {
    const JsonObject* tool = tools[i].if_object();
    const Json* function = tool ? tool->if_contains("function") : nullptr;
    const JsonObject* object = function ? function->if_object() : nullptr;
    const Json* name = object ? object->if_contains("name") : nullptr;
    if (!name || !name->is_string() || name->get_string().empty() || !is_valid_utf8(name->get_string()) ||
        name->get_string().find_first_of("\n\"\\<[{") != std::string_view::npos)
      return error(Code::kInvalidArgument,
                   "tools[{}]: expected {{\"function\": {{\"name\": ..., \"parameters\": ...}}}}", i);
    if (!options.name.empty() && std::string_view(name->get_string()) != options.name) continue;
    const Json* parameters = object->if_contains("parameters");
    const Json any = JsonObject{{"type", "object"}};
    const Json& schema = parameters && !parameters->is_null() ? *parameters : any;
    if (!schema.is_object())
      return error(Code::kInvalidArgument, "tools[{}].function.parameters: expected a schema of an object", i);
    const std::string place = fmt::format("tools[{}].function.parameters", i);
    // Arguments are an object, whatever the schema forgets to say.
    Json arguments_schema = schema;
    if (!schema.get_object().contains("type")) arguments_schema.get_object()["type"] = "object";
    STILL_TRY(const Node arguments, add_json_schema(draft, arguments_schema, place));
    const std::string shown = layout.name_is_json ? to_json(*name) : std::string(name->get_string());
    calls.push_back(draft.sequence({draft.literal(fmt::format("{}{}{}", layout.before_name, shown, layout.after_name)),
                                    arguments, draft.literal(layout.end_call)}));
  }
  if (calls.empty())
    return options.name.empty()
               ? error(Code::kInvalidArgument, "tool_choice: a call is required, but there are no tools")
               : error(Code::kInvalidArgument, "tool_choice: \"{}\" is none of the tools", options.name);
  const GrammarDraft::Rule call = draft.declare_rule("tools");
  draft.define(call, draft.choice(std::move(calls)));
  std::vector<Node> parts{draft.literal(layout.begin), draft.call(call)};
  if (options.allows_several)
    parts.push_back(draft.repeat(draft.sequence({draft.literal(layout.between), draft.call(call)}), 0, 15));
  parts.push_back(draft.literal(layout.end));
  const Node root = draft.sequence(std::move(parts));
  return compiler.compile_draft(draft, root, "tools");
}

}  // namespace still

// See compiler.h: the kinds of sources, each reduced to the text of a grammar. The engine behind is
// backend_xgrammar.cc.
#include "grammar/compiler.h"

#include "grammar/regex.h"
#include "text/unicode.h"

namespace still {

Status GrammarCompiler::check_size(std::size_t n_bytes, std::string_view name) const {
  if (n_bytes > limits_.max_source_bytes)
    return error(Code::kResourceExhausted, "{}: {} bytes, more than {}", name, n_bytes, limits_.max_source_bytes);
  return ok();
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_draft(const GrammarDraft& draft,
                                                                              GrammarDraft::Node root,
                                                                              std::string_view name) {
  auto ebnf = draft.to_ebnf(root);
  if (!ebnf) {
    // Places begin with the name already.
    const std::string& message = ebnf.error().message;
    if (message.starts_with(name)) return tl::unexpected(ebnf.error());
    return error(ebnf.error().code, "{}: {}", name, message);
  }
  return compile_text(std::move(*ebnf), name);
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_json_schema(const Json& schema,
                                                                                    std::string_view name,
                                                                                    const SchemaOptions& options) {
  STILL_TRY_STATUS(check_size(to_json(schema).size(), name));
  GrammarDraft draft;
  STILL_TRY(const GrammarDraft::Node root, add_json_schema(draft, schema, name, options));
  return compile_draft(draft, root, name);
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_json_object(const SchemaOptions& options) {
  GrammarDraft draft;
  const GrammarDraft::Node root = add_json_object(draft, options);
  return compile_draft(draft, root, "json_object");
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_regex(std::string_view pattern,
                                                                              std::string_view name) {
  STILL_TRY_STATUS(check_size(pattern.size(), name));
  GrammarDraft draft;
  STILL_TRY(const RegexNode root, add_regex(draft, pattern, {.place = name}));
  return compile_draft(draft, root.node, name);
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_ebnf(std::string_view ebnf,
                                                                             std::string_view name) {
  STILL_TRY_STATUS(check_size(ebnf.size(), name));
  if (!is_valid_utf8(ebnf) || ebnf.find('\0') != std::string_view::npos)
    return error(Code::kInvalidArgument, "{}: not valid UTF-8 text", name);
  return compile_text(std::string(ebnf), name);
}

Result<std::shared_ptr<const CompiledGrammar>> GrammarCompiler::compile_choice(std::span<const std::string> choices,
                                                                               std::string_view name) {
  if (choices.empty()) return error(Code::kInvalidArgument, "{}: no texts to choose from", name);
  std::size_t n_bytes = 0;
  GrammarDraft draft;
  std::vector<GrammarDraft::Node> options;
  for (const std::string& choice : choices) {
    if (choice.empty() || !is_valid_utf8(choice))
      return error(Code::kInvalidArgument, "{}: a text to choose is empty or not valid UTF-8", name);
    n_bytes += choice.size();
    options.push_back(draft.literal(choice));
  }
  STILL_TRY_STATUS(check_size(n_bytes, name));
  const GrammarDraft::Node root = draft.choice(std::move(options));
  return compile_draft(draft, root, name);
}

}  // namespace still

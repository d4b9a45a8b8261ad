// In place of backend_xgrammar.cc where xgrammar's source was not there when the program was built.
#include "base/check.h"
#include "grammar/compiler.h"

namespace still {

Result<std::shared_ptr<GrammarCompiler>> GrammarCompiler::make(const Tokenizer&, const GrammarLimits&) {
  return error(Code::kUnsupported,
               "this build cannot constrain answers (JSON schemas, patterns, grammars, forced tool calls): it was made "
               "without xgrammar; tools/fetch_xgrammar.sh gets its source");
}

std::shared_ptr<TokenConstraint> make_constraint(std::shared_ptr<const CompiledGrammar>) {
  STILL_CHECK(false);  // there is no CompiledGrammar without a compiler
  return nullptr;
}

std::string_view grammar_engine() {
  return "none: built without xgrammar, answers cannot be constrained";
}

}  // namespace still

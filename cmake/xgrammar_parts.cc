// Compiled into the target xgrammar (cmake/xgrammar.cmake): the front ends that are left out of it refuse, fatal checks
// throw the bare sentence, and warnings are dropped, for src/grammar/ refuses beforehand what xgrammar would ignore.
#include <stdexcept>
#include <string>

#include "json_schema_converter.h"
#include "lark_converter.h"
#include "structural_tag.h"
#include "support/logging.h"
#include "testing.h"

namespace xgrammar {

Grammar JSONSchemaToGrammar(const std::string&, bool, std::optional<int>,
                            std::optional<std::pair<std::string, std::string>>, bool, std::optional<int>, bool,
                            JSONFormat, std::vector<std::string>) {
  throw std::runtime_error("xgrammar's JSON schema front end is not part of this build");
}

Result<Grammar, StructuralTagError> StructuralTagToGrammar(const std::string&, const std::optional<TokenizerInfo>&) {
  throw std::runtime_error("xgrammar's structural tags are not part of this build");
}

Grammar LarkToGrammar(const std::string&, const std::optional<TokenizerInfo>&, const std::vector<NamedGrammar>&) {
  throw std::runtime_error("xgrammar's Lark front end is not part of this build");
}

// For its debug prints.
std::string PrintTokenByIds(const std::vector<int32_t>&, const TokenizerInfo&, int) {
  return "";
}

void LogFatalImpl(const std::string&, int, const std::string& message) {
  throw std::runtime_error(message);
}

void LogMessageImpl(const std::string&, int, int, const std::string&) {}

}  // namespace xgrammar

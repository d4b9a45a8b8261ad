// JSON schemas and patterns: any text becomes a grammar within the limits, or is refused in a sentence that names it.
// Only the conversion: compiling it for a vocabulary takes too long for a fuzzer, and is xgrammar's.
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "grammar/json_schema.h"
#include "grammar/regex.h"

using namespace still;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), std::min<std::size_t>(size, 16384));
  GrammarDraft draft;
  if (const auto schema = parse_json(text, "input")) {
    const auto root = add_json_schema(draft, *schema, "input");
    if (!root)
      STILL_CHECK(root.error().message.starts_with("input"));
    else
      (void)draft.to_ebnf(*root);
  } else {
    const auto node = add_regex(draft, text, {.in_json_string = true, .opens_unanchored_end = true, .place = "input"});
    if (!node)
      STILL_CHECK(node.error().message.starts_with("input: at character "));
    else
      (void)draft.to_ebnf(node->node);
  }
  return 0;
}

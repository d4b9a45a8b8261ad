// JSON schemas (2020-12, and the older spellings that clients still send) to grammar nodes. Every text that the grammar
// produces validates; not every valid text is produced: keys come in the order of the schema, keys that the schema does
// not name only where additionalProperties asks for them, numbers have at most 18 digits before the point and 17 behind
// it, and white space is one blank or one line end with an indent. What the grammar cannot hold (not, if,
// uniqueItems, contains, dependent..., overlapping oneOf, ...) is refused by name and place instead of being ignored.
#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "grammar/draft.h"

namespace still {

struct SchemaOptions {
  bool allows_whitespace = true;  // false: {"a":1,"b":[2,3]}
};

// Adds the schema; `name` stands before the JSON pointer in errors: "response_format" gives
// "response_format/properties/a/pattern: ...". kInvalidArgument: malformed or nothing can fit; kUnsupported: refused;
// kResourceExhausted: too big.
Result<GrammarDraft::Node> add_json_schema(GrammarDraft& draft, const Json& schema, std::string_view name,
                                           const SchemaOptions& options = {});

// Any JSON object.
GrammarDraft::Node add_json_object(GrammarDraft& draft, const SchemaOptions& options = {});

}  // namespace still

// Regular expressions to grammar nodes: the part of JavaScript's and Python's syntax that a token mask can hold.
// Not here, and refused by name: look-around, back references, word boundaries, \p classes, inline flags, and anchors
// inside the expression. Where the two languages differ (\s, \D, .), only what both accept is produced.
#pragma once

#include <string_view>

#include "base/result.h"
#include "grammar/draft.h"

namespace still {

struct RegexOptions {
  // The text matched is the inside of a JSON string: quotes, backslashes and control characters appear escaped.
  bool in_json_string = false;
  // A pattern with only one of the anchors ^ and $ is open at its other end (JSON schema); a pattern with none or both
  // is the whole text, and so is every pattern where this is false.
  bool opens_unanchored_end = false;
  std::string_view place;  // for errors
};

struct RegexNode {
  GrammarDraft::Node node = -1;
  std::int64_t min_length = 0, max_length = 0;  // characters; max_length -1: no limit
};

// kInvalidArgument for a malformed pattern, kUnsupported for what is refused; both name `place` and the position.
Result<RegexNode> add_regex(GrammarDraft& draft, std::string_view pattern, const RegexOptions& options);

// A set of characters as it appears inside a JSON string.
GrammarDraft::Node add_json_chars(GrammarDraft& draft, const CharSet& set);

}  // namespace still

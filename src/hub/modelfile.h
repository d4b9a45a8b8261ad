// Modelfiles: what Ollama makes models from, one instruction a line. Keywords in any case, # begins a comment line, a
// value in """ """ goes over several lines, one in " " is quoted.
//   FROM name-or-path     PARAMETER stop <|im_end|>   TEMPLATE """..."""   SYSTEM ...    ADAPTER path
//   LICENSE """..."""     MESSAGE user Hello           REQUIRES 0.5.0
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace still {

struct Modelfile {
  std::vector<std::string> from;  // the first is the model; more are parts of it
  std::vector<std::string> adapters;
  JsonObject parameters;  // numbers and booleans as such where they read as one; stop: an array; others last one wins
  std::string template_text;
  std::string system;
  std::vector<std::string> licences;
  JsonArray messages;  // [{"role": "user", "content": "..."}]
  std::string requires_version;
  JsonObject other;  // DRAFT, RENDERER, PARSER: known, kept as text under their lower-case names
};

// kInvalidArgument, with the line: an unknown instruction, a value that does not end, no FROM, a role that is none.
Result<Modelfile> parse_modelfile(std::string_view text);

// A text that parse_modelfile reads back to the same, as /api/show gives it. Values that hold """ cannot be written
// and are left out with a comment.
std::string write_modelfile(const Modelfile& modelfile);

// Parameters as /api/show prints them: name padded to 30 characters, value; one line for each stop string.
std::string format_parameters(const JsonObject& parameters);

// The JSON value that a parameter's text stands for: stop strings and other words stay text.
Json parse_parameter(std::string_view name, std::string_view value);

}  // namespace still

// Evaluates a template of Go's text/template.
#pragma once

#include <chrono>
#include <limits>
#include <optional>

#include "text/go/syntax.h"
#include "text/go/value.h"

namespace still::go {

// Bounds of one rendering; a template that passes one fails with a message.
struct Limits {
  std::int64_t max_steps = 5'000'000;
  std::int64_t max_bytes = 64 << 20;  // of the output and of any one string
  int max_depth = 100;                // of templates inside templates
};

struct Environment {
  Value data;  // the dot at the start, and $
  Limits limits;
  std::optional<std::chrono::system_clock::time_point> now;  // for currentDate; unset: the clock
  int last_order = std::numeric_limits<int>::max();          // nodes of the body after this one are left out
};

// Throws Failure.
Text render(const Template& parsed, const Environment& environment);

}  // namespace still::go

// Evaluates a template's syntax tree.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja/syntax.h"
#include "text/jinja/value.h"

namespace still::jinja {

// Bounds of one rendering; a template that passes one fails with a message.
struct Limits {
  std::int64_t max_steps = 5'000'000;  // evaluated nodes and touched elements
  std::int64_t max_bytes = 64 << 20;   // of any one string
  int max_depth = 400;                 // of nested expressions, blocks and macro calls
};

struct Environment {
  std::vector<std::pair<std::string, Value>> variables;
  Limits limits;
  std::optional<std::chrono::system_clock::time_point> now;  // for strftime_now; unset: the clock
};

// Throws Failure.
Text render(const std::vector<Stmt>& body, const Environment& environment);

// Arguments of a call, by position or name.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at that position or of that name; null if absent.
  const Value* find(std::size_t position, std::string_view name) const;
  const Value& need(std::size_t position, std::string_view name, std::string_view callee) const;
};

// What built-in filters, tests and methods need of the interpreter.
class Services {
 public:
  virtual ~Services() = default;
  virtual void charge(std::int64_t steps) = 0;             // fails when the budget is used up
  virtual void check_size(std::size_t n_bytes) const = 0;  // fails for strings above the limit
};

Value apply_filter(Services& services, const std::string& name, const Value& value, const Arguments& arguments);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments);
Value call_method(Services& services, const Method& method, const Arguments& arguments);
bool has_method(const Value& value, std::string_view name);
Value get_attribute(const Value& value, const std::string& name);  // value.name
Value get_item(const Value& value, const Value& key);              // value[key]
bool contains(Services& services, const Value& container, const Value& item);
// The elements that a loop sees: keys of a dict, characters of a string.
std::vector<Value> elements(Services& services, const Value& value);

}  // namespace still::jinja

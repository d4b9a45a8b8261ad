// The syntax of Go's text/template: text between actions, {{ pipelines }}, if, range, with, define, template, block,
// break, continue, comments, trim markers. As documented at pkg.go.dev/text/template.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/go/value.h"

namespace still::go {

struct Pipe;

struct Expr {
  enum class Kind { kDot, kNil, kConstant, kVariable, kFunction, kPipe };
  Kind kind = Kind::kDot;
  std::string name;                  // of a variable ("$x", "$") or function
  Value constant;                    // kConstant
  std::shared_ptr<const Pipe> pipe;  // kPipe: in parentheses
  std::vector<std::string> fields;   // .A.B behind it
};

struct Command {
  std::vector<Expr> args;  // a function and its arguments, or one operand
};

struct Pipe {
  std::vector<std::string> variables;  // declared or assigned: at most two, and two only in a range
  bool declares = false;               // := instead of =
  std::vector<Command> commands;
};

struct Node {
  enum class Kind { kText, kAction, kIf, kRange, kWith, kTemplate, kBreak, kContinue };
  Kind kind = Kind::kText;
  std::string text;  // kText; the name of kTemplate
  Pipe pipe;         // no commands: absent
  std::vector<Node> body, otherwise;
  int order = 0;  // of the source, starting at 1
};

struct Template {
  std::vector<Node> body;
  std::map<std::string, std::vector<Node>, std::less<>> defined;

  // Whether a field or variable of that name, in any case, is read anywhere: "messages", "response", "tools".
  bool reads(std::string_view name) const;
  // The order of the first action of the body that reads .Response; 0: none.
  int first_response() const;
};

// Throws Failure, with the line.
Template parse_template(std::string_view source);

bool is_function(std::string_view name);

}  // namespace still::go

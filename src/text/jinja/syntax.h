// Template source to syntax tree: Jinja 2 with trim_blocks and lstrip_blocks, as Hugging Face renders chat templates.
// Not here: include, import, extends, block, recursive loops; they fail by name.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/value.h"

namespace still::jinja {

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct Keyword {
  std::string name;
  ExprPtr value;
};

enum class ExprKind {
  kLiteral,    // literal
  kName,       // name
  kList,       // args
  kTuple,      // args
  kDict,       // args: key, value, key, value, ...
  kAttribute,  // args[0] . name
  kIndex,      // args[0] [ args[1] ]
  kSlice,      // args[0] [ args[1] : args[2] : args[3] ], each but the first may be null
  kCall,       // args[0] ( args[1..], keywords )
  kFilter,     // args[0] | name ( args[1..], keywords ); args[0] null inside a filter block
  kTest,       // args[0] is name ( args[1..] )
  kNot,        // args[0]
  kNegate,     // args[0]
  kPlus,       // args[0]
  kBinary,     // args[0] name args[1]; name is the operator, "and" and "or" included
  kCompare,    // args[0] operators[0] args[1] operators[1] args[2] ...
  kCondition,  // args[0] if args[1] else args[2] (may be null)
};

struct Expr {
  ExprKind kind;
  int line = 0;
  std::string name;
  Value literal;
  std::vector<ExprPtr> args;
  std::vector<Keyword> keywords;
  std::vector<std::string> operators;
};

enum class StmtKind {
  kText,          // text
  kOutput,        // expr
  kIf,            // expr, body, otherwise
  kFor,           // targets in expr if condition: body, else otherwise
  kSet,           // targets = expr
  kSetBlock,      // targets[0] = rendered body, through the filter `expr` if there is one
  kSetAttribute,  // targets[0] . targets[1] = expr
  kMacro,         // targets[0] = name, parameters, body
  kCallBlock,     // call(parameters) expr: body
  kFilterBlock,   // expr applied to the rendered body
  kWith,          // targets[i] = values[i], body
  kScope,         // body as it is (generation)
  kBreak,
  kContinue,
  kDo,  // expr
};

struct Stmt {
  StmtKind kind;
  int line = 0;
  std::string text;
  ExprPtr expr, condition;
  std::vector<std::string> targets;
  std::vector<Keyword> parameters;  // value null: no default
  std::vector<Stmt> body, otherwise;
};

// Throws Failure with the line.
std::vector<Stmt> parse_template(std::string_view source);

}  // namespace still::jinja

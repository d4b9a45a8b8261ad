#include "text/jinja/interpreter.h"

#include <algorithm>
#include <cmath>
#include <ctime>

#include "text/unicode.h"

namespace still::jinja {

namespace {

struct Scope {
  std::shared_ptr<Scope> parent;
  std::vector<std::pair<std::string, Value>> variables;

  const Value* find(std::string_view name) const {
    for (const Scope* scope = this; scope; scope = scope->parent.get())
      for (const auto& [key, value] : scope->variables)
        if (key == name) return &value;
    return nullptr;
  }
  void set(const std::string& name, Value value) {
    for (auto& [key, old] : variables)
      if (key == name) {
        old = std::move(value);
        return;
      }
    variables.emplace_back(name, std::move(value));
  }
};

enum class Flow { kNormal, kBreak, kContinue };

constexpr std::string_view kFunctions[] = {"range", "namespace", "raise_exception", "strftime_now", "dict"};

}  // namespace

// A macro, the caller() of a call block, or a built-in function (stmt null).
struct Macro {
  std::string name;
  const Stmt* stmt = nullptr;
  std::weak_ptr<Scope> scope;  // where it was defined; weak, for that scope holds the macro
};

const Value* Arguments::find(std::size_t position, std::string_view name) const {
  if (position < positional.size()) return &positional[position];
  for (const auto& [key, value] : named)
    if (key == name) return &value;
  return nullptr;
}

const Value& Arguments::need(std::size_t position, std::string_view name, std::string_view callee) const {
  const Value* found = find(position, name);
  if (!found) fail("{} needs the argument {}", callee, name);
  return *found;
}

namespace {

class Interpreter final : public Services {
 public:
  explicit Interpreter(const Environment& environment) : environment_(environment) {
    auto root = std::make_shared<Scope>();
    for (const std::string_view name : kFunctions) {
      auto function = std::make_shared<Macro>();
      function->name = name;
      root->set(std::string(name), Value(std::shared_ptr<const Macro>(std::move(function))));
    }
    for (const auto& [name, value] : environment.variables) root->set(name, value);
    scope_ = std::make_shared<Scope>();
    scope_->parent = std::move(root);
  }

  Text run(const std::vector<Stmt>& body) {
    Text out;
    out_ = &out;
    execute(body);
    return out;
  }

  void charge(std::int64_t steps) override {
    steps_ += steps;
    if (steps_ > environment_.limits.max_steps) fail("more than {} steps", environment_.limits.max_steps);
  }
  void check_size(std::size_t n_bytes) const override {
    if (n_bytes > static_cast<std::size_t>(environment_.limits.max_bytes))
      fail("a text of more than {} bytes", environment_.limits.max_bytes);
  }

 private:
  struct Depth {
    explicit Depth(Interpreter& interpreter) : depth(interpreter.depth_) {
      if (++depth > interpreter.environment_.limits.max_depth) {
        --depth;
        fail("nested deeper than {}", interpreter.environment_.limits.max_depth);
      }
    }
    ~Depth() { --depth; }
    int& depth;
  };

  // Runs `action` with a new scope below `parent`.
  template <class Action>
  auto in_scope(std::shared_ptr<Scope> parent, Action action) {
    auto scope = std::make_shared<Scope>();
    scope->parent = std::move(parent);
    struct Restore {
      std::shared_ptr<Scope>& current;
      std::shared_ptr<Scope> saved;
      ~Restore() { current = std::move(saved); }
    } restore{scope_, scope_};
    scope_ = std::move(scope);
    return action();
  }

  // What `action` prints.
  template <class Action>
  Text capture(Action action) {
    Text out;
    struct Restore {
      Text*& current;
      Text* saved;
      ~Restore() { current = saved; }
    } restore{out_, out_};
    out_ = &out;
    action();
    return out;
  }

  void print(const Text& text) {
    charge(static_cast<std::int64_t>(text.size() / 64));
    check_size(out_->size() + text.size());
    out_->append(text);
  }

  Flow execute(const std::vector<Stmt>& body) {
    for (const Stmt& stmt : body)
      if (const Flow flow = execute(stmt); flow != Flow::kNormal) return flow;
    return Flow::kNormal;
  }

  Flow execute(const Stmt& stmt) {
    const Depth depth(*this);
    charge(1);
    try {
      return execute_stmt(stmt);
    } catch (const Failure& failure) {
      if (std::string_view(failure.what()).starts_with("line ")) throw;
      fail("line {}: {}", stmt.line, failure.what());
    }
  }

  Flow execute_stmt(const Stmt& stmt) {
    switch (stmt.kind) {
      case StmtKind::kText:
        print(Text(stmt.text, true));
        return Flow::kNormal;
      case StmtKind::kOutput:
        print(to_text(evaluate(*stmt.expr)));
        return Flow::kNormal;
      case StmtKind::kIf:
        return execute(evaluate(*stmt.expr).is_true() ? stmt.body : stmt.otherwise);
      case StmtKind::kFor:
        execute_for(stmt);
        return Flow::kNormal;
      case StmtKind::kSet:
        assign(stmt.targets, evaluate(*stmt.expr));
        return Flow::kNormal;
      case StmtKind::kSetBlock: {
        Value value = capture([&] { in_scope(scope_, [&] { return execute(stmt.body); }); });
        if (stmt.expr) value = evaluate_filter(*stmt.expr, &value);
        assign(stmt.targets, value);
        return Flow::kNormal;
      }
      case StmtKind::kSetAttribute: {
        const Value* target = scope_->find(stmt.targets[0]);
        if (!target || !target->is_namespace())
          fail("cannot set {}.{}: not a namespace", stmt.targets[0], stmt.targets[1]);
        const Value keep = *target;
        keep.dict()->set(Value::trusted(stmt.targets[1]), evaluate(*stmt.expr));
        return Flow::kNormal;
      }
      case StmtKind::kMacro:
        scope_->set(stmt.targets[0], make_macro(stmt.targets[0], stmt));
        return Flow::kNormal;
      case StmtKind::kCallBlock: {
        const Value callee = evaluate(*stmt.expr->args[0]);
        Arguments arguments = evaluate_arguments(*stmt.expr);
        arguments.named.emplace_back("caller", make_macro("caller", stmt));
        print(to_text(call(callee, arguments)));
        return Flow::kNormal;
      }
      case StmtKind::kFilterBlock: {
        const Value value = capture([&] { in_scope(scope_, [&] { return execute(stmt.body); }); });
        print(to_text(evaluate_filter(*stmt.expr, &value)));
        return Flow::kNormal;
      }
      case StmtKind::kWith:
        return in_scope(scope_, [&] {
          for (const Keyword& variable : stmt.parameters) scope_->set(variable.name, evaluate(*variable.value));
          return execute(stmt.body);
        });
      case StmtKind::kScope:
        return execute(stmt.body);
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
      case StmtKind::kDo:
        evaluate(*stmt.expr);
        return Flow::kNormal;
    }
    return Flow::kNormal;
  }

  Value make_macro(const std::string& name, const Stmt& stmt) {
    auto macro = std::make_shared<Macro>();
    macro->name = name;
    macro->stmt = &stmt;
    macro->scope = scope_;
    return Value(std::shared_ptr<const Macro>(std::move(macro)));
  }

  void assign(const std::vector<std::string>& targets, const Value& value) {
    if (targets.size() == 1) return scope_->set(targets[0], value);
    const std::vector<Value> parts = elements(*this, value);
    if (parts.size() != targets.size()) fail("{} values for {} names", parts.size(), targets.size());
    for (std::size_t i = 0; i < parts.size(); ++i) scope_->set(targets[i], parts[i]);
  }

  void execute_for(const Stmt& stmt) {
    auto items = std::make_shared<std::vector<Value>>(elements(*this, evaluate(*stmt.expr)));
    if (stmt.condition) {
      std::vector<Value> kept;
      for (const Value& item : *items) {
        in_scope(scope_, [&] {
          assign(stmt.targets, item);
          if (evaluate(*stmt.condition).is_true()) kept.push_back(item);
        });
      }
      *items = std::move(kept);
    }
    for (std::size_t i = 0; i < items->size(); ++i) {
      charge(1);
      const Flow flow = in_scope(scope_, [&] {
        auto loop = std::make_shared<Loop>();
        loop->items = items;
        loop->index = i;
        scope_->set("loop", Value(std::shared_ptr<const Loop>(std::move(loop))));
        assign(stmt.targets, (*items)[i]);
        return execute(stmt.body);
      });
      if (flow == Flow::kBreak) break;
    }
    if (items->empty()) in_scope(scope_, [&] { return execute(stmt.otherwise); });
  }

  Value evaluate(const Expr& expr) {
    const Depth depth(*this);
    charge(1);
    switch (expr.kind) {
      case ExprKind::kLiteral:
        return expr.literal;
      case ExprKind::kName: {
        const Value* value = scope_->find(expr.name);
        return value ? *value : Value(Undefined{expr.name});
      }
      case ExprKind::kList:
      case ExprKind::kTuple:
        return Value(evaluate_all(expr.args), expr.kind == ExprKind::kTuple);
      case ExprKind::kDict: {
        auto dict = std::make_shared<Dict>();
        for (std::size_t i = 0; i < expr.args.size(); i += 2) {
          charge(static_cast<std::int64_t>(dict->entries.size() / 8));
          const Value key = evaluate(*expr.args[i]);
          if (!key.text() && !key.is_number() && !key.is_none()) fail("a dict key of type {}", key.type_name());
          dict->set(key, evaluate(*expr.args[i + 1]));
        }
        return dict;
      }
      case ExprKind::kAttribute:
        return get_attribute(evaluate(*expr.args[0]), expr.name);
      case ExprKind::kIndex: {
        const Value object = evaluate(*expr.args[0]);
        if (object.text()) charge(static_cast<std::int64_t>(object.text()->size() / 64));
        return get_item(object, evaluate(*expr.args[1]));
      }
      case ExprKind::kSlice:
        return evaluate_slice(expr);
      case ExprKind::kCall: {
        const Value callee = evaluate(*expr.args[0]);
        return call(callee, evaluate_arguments(expr));
      }
      case ExprKind::kFilter:
        return evaluate_filter(expr, nullptr);
      case ExprKind::kTest: {
        const Value value = evaluate(*expr.args[0]);
        const Arguments arguments = evaluate_arguments(expr);
        if (expr.name == "in" && !arguments.positional.empty()) return contains(*this, arguments.positional[0], value);
        return apply_test(expr.name, value, arguments);
      }
      case ExprKind::kNot:
        return !evaluate(*expr.args[0]).is_true();
      case ExprKind::kNegate:
      case ExprKind::kPlus: {
        const Value value = evaluate(*expr.args[0]);
        if (!value.is_number()) fail("a sign before {}", value.type_name());
        if (expr.kind == ExprKind::kPlus) return value;
        return value.is_float() ? Value(-value.as_double()) : Value(checked(0, value.as_int(), '-'));
      }
      case ExprKind::kBinary:
        return evaluate_binary(expr);
      case ExprKind::kCompare:
        return evaluate_compare(expr);
      case ExprKind::kCondition:
        if (evaluate(*expr.args[1]).is_true()) return evaluate(*expr.args[0]);
        return expr.args[2] ? evaluate(*expr.args[2]) : Value();
    }
    return Value();
  }

  std::vector<Value> evaluate_all(const std::vector<ExprPtr>& exprs, std::size_t first = 0) {
    std::vector<Value> values;
    for (std::size_t i = first; i < exprs.size(); ++i) values.push_back(evaluate(*exprs[i]));
    return values;
  }

  Arguments evaluate_arguments(const Expr& expr) {
    Arguments arguments{evaluate_all(expr.args, 1), {}};
    for (const Keyword& keyword : expr.keywords) arguments.named.emplace_back(keyword.name, evaluate(*keyword.value));
    return arguments;
  }

  Value evaluate_filter(const Expr& expr, const Value* input) {
    const Value value = expr.args[0] ? evaluate_filter_input(*expr.args[0], input) : *input;
    return apply_filter(*this, expr.name, value, evaluate_arguments(expr));
  }
  // The head of a chain of filters in a filter block has no value of its own: the block's text is.
  Value evaluate_filter_input(const Expr& expr, const Value* input) {
    return input && expr.kind == ExprKind::kFilter ? evaluate_filter(expr, input) : evaluate(expr);
  }

  Value evaluate_slice(const Expr& expr) {
    const Value value = evaluate(*expr.args[0]);
    std::int64_t bounds[3];
    bool given[3];
    for (std::size_t i = 0; i < 3; ++i) {
      const Value bound = expr.args[i + 1] ? evaluate(*expr.args[i + 1]) : Value(None{});
      given[i] = !bound.is_none();
      if (given[i] && (!bound.is_number() || bound.is_float())) fail("a slice bound of type {}", bound.type_name());
      bounds[i] = given[i] ? bound.as_int() : 0;
    }
    const std::int64_t step = given[2] ? bounds[2] : 1;
    if (step == 0) fail("a slice with step 0");
    if (!value.list() && !value.text()) fail("cannot slice {}", value.type_name());
    const std::vector<Value> items = elements(*this, value);
    const auto n = static_cast<std::int64_t>(items.size());
    const auto clamp = [&](std::int64_t bound) {
      if (bound < 0)
        bound = bound < -n ? -1 : bound + n;
      else if (bound > n)
        bound = n;
      return step > 0 ? std::max<std::int64_t>(bound, 0) : std::min(bound, n - 1);
    };
    const std::int64_t first = given[0] ? clamp(bounds[0]) : step > 0 ? 0 : n - 1;
    const std::int64_t last = given[1] ? clamp(bounds[1]) : step > 0 ? n : -1;
    std::vector<Value> picked;
    for (std::int64_t i = first; step > 0 ? i < last : i > last;) {
      picked.push_back(items[static_cast<std::size_t>(i)]);
      if (__builtin_add_overflow(i, step, &i)) break;
    }
    if (value.list()) return Value(std::move(picked), value.list()->is_tuple);
    Text out;
    for (const Value& part : picked) out.append(*part.text());
    return out;
  }

  static std::int64_t checked(std::int64_t a, std::int64_t b, char op) {
    std::int64_t result = 0;
    const bool overflow = op == '+'   ? __builtin_add_overflow(a, b, &result)
                          : op == '-' ? __builtin_sub_overflow(a, b, &result)
                                      : __builtin_mul_overflow(a, b, &result);
    if (overflow) fail("{} {} {} is too large", a, op, b);
    return result;
  }

  Value evaluate_binary(const Expr& expr) {
    const std::string& op = expr.name;
    const Value left = evaluate(*expr.args[0]);
    if (op == "and") return left.is_true() ? evaluate(*expr.args[1]) : left;
    if (op == "or") return left.is_true() ? left : evaluate(*expr.args[1]);
    const Value right = evaluate(*expr.args[1]);
    if (op == "~") return concatenate(to_text(left), to_text(right));
    for (const Value* side : {&left, &right})
      if (const Undefined* undefined = side->undefined()) fail("'{}' is undefined", undefined->name);
    if (left.is_number() && right.is_number()) return arithmetic(op, left, right);
    if (op == "+" && left.text() && right.text()) return concatenate(*left.text(), *right.text());
    if (op == "+" && left.list() && right.list()) {
      std::vector<Value> items = left.list()->items;
      items.insert(items.end(), right.list()->items.begin(), right.list()->items.end());
      charge(static_cast<std::int64_t>(items.size()));
      return Value(std::move(items), left.list()->is_tuple);
    }
    if (op == "*" && (left.text() || left.list()) && right.is_int()) return repeat(left, right.as_int());
    if (op == "*" && (right.text() || right.list()) && left.is_int()) return repeat(right, left.as_int());
    if (op == "%" && left.text()) {
      Arguments arguments;
      arguments.positional = right.list() && right.list()->is_tuple ? right.list()->items : std::vector<Value>{right};
      return apply_filter(*this, "format", left, arguments);
    }
    fail("{} {} {} cannot be computed", left.type_name(), op, right.type_name());
  }

  Value concatenate(const Text& left, const Text& right) {
    check_size(left.size() + right.size());
    charge(static_cast<std::int64_t>((left.size() + right.size()) / 64));
    Text out = left;
    out.append(right);
    return out;
  }

  Value repeat(const Value& value, std::int64_t n) {
    n = std::max<std::int64_t>(n, 0);
    const auto size = static_cast<std::int64_t>(value.text() ? value.text()->size() : value.list()->items.size());
    if (size > 0 && n > environment_.limits.max_bytes / size) check_size(static_cast<std::size_t>(-1));
    charge(size * n);
    if (value.text()) {
      Text out;
      for (std::int64_t i = 0; i < n && size > 0; ++i) out.append(*value.text());
      return out;
    }
    std::vector<Value> items;
    for (std::int64_t i = 0; i < n && size > 0; ++i)
      items.insert(items.end(), value.list()->items.begin(), value.list()->items.end());
    return Value(std::move(items), value.list()->is_tuple);
  }

  static Value arithmetic(const std::string& op, const Value& left, const Value& right) {
    const bool floats = left.is_float() || right.is_float();
    const double a = left.as_double(), b = right.as_double();
    if ((op == "/" || op == "//" || op == "%") && b == 0) fail("division by zero");
    if (op == "/") return a / b;
    if (op == "**") {
      const double power = std::pow(a, b);
      if (floats || b < 0) return power;
      if (std::fabs(power) > 9e15) fail("{} ** {} is too large", left.as_int(), right.as_int());
      return static_cast<std::int64_t>(power);
    }
    if (floats) {
      if (op == "//") return std::floor(a / b);
      if (op == "%") {
        const double rest = std::fmod(a, b);
        return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
      }
      return op == "+" ? a + b : op == "-" ? a - b : a * b;
    }
    const std::int64_t x = left.as_int(), y = right.as_int();
    if (op == "//" || op == "%") {
      if (y == -1) return op == "%" ? std::int64_t{0} : checked(0, x, '-');
      const std::int64_t quotient = x / y - ((x % y != 0 && (x < 0) != (y < 0)) ? 1 : 0);
      return op == "//" ? quotient : x - quotient * y;
    }
    return checked(x, y, op[0]);
  }

  Value evaluate_compare(const Expr& expr) {
    Value left = evaluate(*expr.args[0]);
    for (std::size_t i = 0; i < expr.operators.size(); ++i) {
      const Value right = evaluate(*expr.args[i + 1]);
      const std::string& op = expr.operators[i];
      if (left.text() && right.text())
        charge(static_cast<std::int64_t>(std::min(left.text()->size(), right.text()->size()) / 64));
      if (left.list() && right.list()) charge(static_cast<std::int64_t>(left.list()->items.size()));
      const bool holds = op == "=="       ? equal(left, right)
                         : op == "!="     ? !equal(left, right)
                         : op == "in"     ? contains(*this, right, left)
                         : op == "not in" ? !contains(*this, right, left)
                         : op == "<"      ? compare(left, right) < 0
                         : op == ">"      ? compare(left, right) > 0
                         : op == "<="     ? compare(left, right) <= 0
                                          : compare(left, right) >= 0;
      if (!holds) return false;
      left = right;
    }
    return true;
  }

  Value call(const Value& callee, const Arguments& arguments) {
    if (const Method* method = callee.method()) return call_method(*this, *method, arguments);
    if (const Macro* macro = callee.macro())
      return macro->stmt ? call_macro(*macro, arguments) : call_function(macro->name, arguments);
    if (const Undefined* undefined = callee.undefined())
      fail("'{}' is undefined and cannot be called", undefined->name);
    fail("{} cannot be called", callee.type_name());
  }

  Value call_macro(const Macro& macro, const Arguments& arguments) {
    const auto defined_in = macro.scope.lock();
    if (!defined_in) fail("the macro {} is called after its scope ended", macro.name);
    return capture([&] {
      in_scope(defined_in, [&] {
        const auto& parameters = macro.stmt->parameters;
        if (arguments.positional.size() > parameters.size())
          fail("macro {} takes {} arguments, {} are given", macro.name, parameters.size(), arguments.positional.size());
        for (const auto& [name, value] : arguments.named)
          if (name == "caller")
            scope_->set(name, value);
          else if (std::ranges::none_of(parameters, [&](const Keyword& parameter) { return parameter.name == name; }))
            fail("macro {} has no argument {}", macro.name, name);
        for (std::size_t i = 0; i < parameters.size(); ++i) {
          const Value* given = arguments.find(i, parameters[i].name);
          scope_->set(parameters[i].name, given                 ? *given
                                          : parameters[i].value ? evaluate(*parameters[i].value)
                                                                : Value(Undefined{parameters[i].name}));
        }
        return execute(macro.stmt->body);
      });
    });
  }

  Value call_function(const std::string& name, const Arguments& arguments) {
    if (name == "namespace" || name == "dict") {
      auto dict = std::make_shared<Dict>();
      if (const Value* base = arguments.find(0, ""); base && base->dict())
        dict->entries = base->dict()->entries, dict->depth = base->dict()->depth;
      for (const auto& [key, value] : arguments.named) dict->set(Value::trusted(key), value);
      dict->is_namespace = name == "namespace";
      return dict;
    }
    if (name == "raise_exception") {
      const Text message = to_text(arguments.need(0, "message", name));
      fail("{}", message.bytes());
    }
    if (name == "strftime_now") return format_now(to_text(arguments.need(0, "format", name)).bytes());
    return range(arguments);
  }

  Value range(const Arguments& arguments) {
    std::int64_t bounds[3] = {0, 0, 1};
    const std::size_t n = arguments.positional.size();
    if (n < 1 || n > 3) fail("range takes 1 to 3 arguments");
    for (std::size_t i = 0; i < n; ++i) {
      const Value& bound = arguments.positional[i];
      if (!bound.is_number() || bound.is_float()) fail("range of {}", bound.type_name());
      bounds[n == 1 ? 1 : i] = bound.as_int();
    }
    if (bounds[2] == 0) fail("range with step 0");
    std::vector<Value> items;
    for (std::int64_t i = bounds[0]; bounds[2] > 0 ? i < bounds[1] : i > bounds[1];) {
      charge(1);
      if (items.size() > 100000) fail("a range of more than 100000 numbers");
      items.emplace_back(i);
      if (__builtin_add_overflow(i, bounds[2], &i)) break;
    }
    return items;
  }

  Value format_now(const std::string& format) {
    const std::time_t seconds =
        std::chrono::system_clock::to_time_t(environment_.now.value_or(std::chrono::system_clock::now()));
    std::tm parts{};
    localtime_r(&seconds, &parts);
    char buffer[256];
    const std::size_t n = format.size() > 100 ? 0 : std::strftime(buffer, sizeof(buffer), format.c_str(), &parts);
    return Value::trusted(std::string_view(buffer, n));
  }

  const Environment& environment_;
  std::shared_ptr<Scope> scope_;
  Text* out_ = nullptr;
  std::int64_t steps_ = 0;
  int depth_ = 0;
};

}  // namespace

Text render(const std::vector<Stmt>& body, const Environment& environment) {
  return Interpreter(environment).run(body);
}

}  // namespace still::jinja

// See interpreter.h.
#include "text/go/interpreter.h"

#include <algorithm>
#include <array>
#include <ctime>

#include "text/unicode.h"

namespace still::go {

namespace {

constexpr std::array<std::string_view, 21> kFunctions = {
    "and",    "or",          "not",           "eq",    "ne",      "lt",     "le",      "gt",
    "ge",     "len",         "index",         "slice", "print",   "printf", "println", "json",
    "toJson", "currentDate", "yesterdayDate", "html",  "urlquery"};

using Arguments = std::vector<Value>;

class Interpreter {
 public:
  Interpreter(const Template& parsed, const Environment& environment) : parsed_(parsed), environment_(environment) {}

  Text run() {
    variables_ = {{"$", environment_.data}};
    run_list(parsed_.body, environment_.data, environment_.last_order);
    return std::move(out_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  void charge(std::int64_t steps = 1) {
    n_steps_ += steps;
    if (n_steps_ > environment_.limits.max_steps) fail("the template takes too many steps");
  }
  void check_size(std::size_t n_bytes) const {
    if (n_bytes > static_cast<std::size_t>(environment_.limits.max_bytes)) fail("the template makes too much text");
  }
  void charge_text(const Text& text) {
    check_size(text.size());
    charge(static_cast<std::int64_t>(text.size() / 64));
  }

  Flow run_list(const std::vector<Node>& nodes, const Value& dot, int last_order) {
    for (const Node& node : nodes) {
      if (node.order > last_order) break;
      charge();
      const std::size_t n_variables = variables_.size();
      switch (node.kind) {
        case Node::Kind::kText:
          put(Text(node.text, true));
          break;
        case Node::Kind::kAction: {
          const Value value = evaluate(node.pipe, dot);
          if (node.pipe.variables.empty()) {
            Text text;
            append_text(text, value);
            put(text);
          }
          continue;  // a variable declared here lives on
        }
        case Node::Kind::kIf:
        case Node::Kind::kWith: {
          const Value value = evaluate(node.pipe, dot);
          const bool is_true = value.is_true();
          const Value& inner = node.kind == Node::Kind::kWith && is_true ? value : dot;
          const Flow flow = run_list(is_true ? node.body : node.otherwise, inner, last_order);
          variables_.resize(n_variables);
          if (flow != Flow::kNext) return flow;
          break;
        }
        case Node::Kind::kRange:
          run_range(node, dot, last_order);
          break;
        case Node::Kind::kTemplate: {
          const auto found = parsed_.defined.find(node.text);
          if (found == parsed_.defined.end()) fail("template \"{}\" not defined", node.text);
          if (++depth_ > environment_.limits.max_depth)
            fail("templates call each other deeper than {}", environment_.limits.max_depth);
          const Value data = node.pipe.commands.empty() ? Value() : evaluate(node.pipe, dot);
          std::vector<std::pair<std::string, Value>> outer = std::exchange(variables_, {{"$", data}});
          run_list(found->second, data, std::numeric_limits<int>::max());
          variables_ = std::move(outer);
          --depth_;
          break;
        }
        case Node::Kind::kBreak:
          return Flow::kBreak;
        case Node::Kind::kContinue:
          return Flow::kContinue;
      }
      variables_.resize(n_variables);
    }
    return Flow::kNext;
  }

  void run_range(const Node& node, const Value& dot, int last_order) {
    const std::size_t n_outer = variables_.size();
    // The variables are set for each element, below.
    const Value value = evaluate_commands(node.pipe, dot);
    std::vector<std::pair<Value, Value>> elements;
    if (const List* list = value.list()) {
      for (std::size_t i = 0; i < list->items.size(); ++i)
        elements.emplace_back(Value(static_cast<std::int64_t>(i)), list->items[i]);
    } else if (const Map* map = value.map(); map && !map->is_struct) {
      for (const auto& [key, item] : map->entries) elements.emplace_back(Value(key), item);
      std::ranges::sort(elements, {},
                        [](const auto& entry) -> const std::string& { return entry.first.text()->bytes(); });
    } else if (const std::int64_t* count = value.integer()) {
      charge(std::max<std::int64_t>(*count, 0));
      for (std::int64_t i = 0; i < *count; ++i) elements.emplace_back(Value(i), Value(i));
    } else if (!value.is_nil()) {
      fail("range cannot iterate over {}", value.type_name());
    }
    if (elements.empty()) {
      run_list(node.otherwise, dot, last_order);
      variables_.resize(n_outer);
      return;
    }
    const std::vector<std::string>& names = node.pipe.variables;
    for (const auto& [key, item] : elements) {
      charge();
      if (names.size() == 1) set_variable(names[0], item, node.pipe.declares);
      if (names.size() == 2) {
        set_variable(names[0], key, node.pipe.declares);
        set_variable(names[1], item, node.pipe.declares);
      }
      const Flow flow = run_list(node.body, item, last_order);
      variables_.resize(n_outer);
      if (flow == Flow::kBreak) break;
    }
  }

  void put(const Text& text) {
    charge_text(text);
    check_size(out_.size() + text.size());
    out_.append(text);
  }

  void set_variable(const std::string& name, const Value& value, bool declares) {
    if (declares) {
      variables_.emplace_back(name, value);
      return;
    }
    for (std::size_t i = variables_.size(); i-- > 0;)
      if (variables_[i].first == name) {
        variables_[i].second = value;
        return;
      }
    fail("undefined variable \"{}\"", name);
  }

  Value evaluate(const Pipe& pipe, const Value& dot) {
    Value value = evaluate_commands(pipe, dot);
    for (const std::string& name : pipe.variables) set_variable(name, value, pipe.declares);
    return value;
  }

  Value evaluate_commands(const Pipe& pipe, const Value& dot) {
    Value value;
    bool has_value = false;
    for (const Command& command : pipe.commands) {
      charge();
      const Expr& first = command.args[0];
      if (first.kind == Expr::Kind::kFunction) {
        value = with_fields(call(command, dot, has_value ? &value : nullptr), first.fields);
      } else {
        value = evaluate(first, dot);
      }
      has_value = true;
    }
    return value;
  }

  Value evaluate(const Expr& expr, const Value& dot) {
    charge();
    switch (expr.kind) {
      case Expr::Kind::kDot:
        return with_fields(dot, expr.fields);
      case Expr::Kind::kNil:
        return {};
      case Expr::Kind::kConstant:
        return expr.constant;
      case Expr::Kind::kVariable:
        for (std::size_t i = variables_.size(); i-- > 0;)
          if (variables_[i].first == expr.name) return with_fields(variables_[i].second, expr.fields);
        fail("undefined variable \"{}\"", expr.name);
      case Expr::Kind::kFunction: {
        Command command;
        command.args.push_back(expr);
        return with_fields(call(command, dot, nullptr), expr.fields);
      }
      case Expr::Kind::kPipe:
        return with_fields(evaluate(*expr.pipe, dot), expr.fields);
    }
    return {};
  }

  Value with_fields(Value value, const std::vector<std::string>& fields) {
    for (const std::string& field : fields) {
      const Map* map = value.map();
      if (!map) {
        if (value.is_nil()) fail("nil has no field {}", field);
        fail("can't evaluate field {} in type {}", field, value.type_name());
      }
      const Value* found = map->find(field);
      if (!found && map->is_struct) fail("can't evaluate field {} in type {}", field, map->type);
      Value next = found ? *found : Value();
      value = std::move(next);
    }
    return value;
  }

  Value call(const Command& command, const Value& dot, const Value* piped) {
    const std::string& name = command.args[0].name;
    const std::size_t n_args = command.args.size() - 1 + (piped ? 1 : 0);
    const auto argument = [&](std::size_t i) -> Value {
      return i + 1 < command.args.size() ? evaluate(command.args[i + 1], dot) : *piped;
    };
    // The two that evaluate only what they need.
    if (name == "and" || name == "or") {
      if (n_args == 0) fail("{} needs an argument", name);
      Value value;
      for (std::size_t i = 0; i < n_args; ++i) {
        value = argument(i);
        if (value.is_true() == (name == "or")) break;
      }
      return value;
    }
    Arguments args;
    for (std::size_t i = 0; i < n_args; ++i) args.push_back(argument(i));
    return call(name, args);
  }

  static void expect(const std::string& name, const Arguments& args, std::size_t min, std::size_t max) {
    if (args.size() < min || args.size() > max) fail("wrong number of args for {}: {}", name, args.size());
  }

  Value call(const std::string& name, const Arguments& args) {
    constexpr std::size_t kAny = 1000;
    if (name == "not") {
      expect(name, args, 1, 1);
      return !args[0].is_true();
    }
    if (name == "eq") {
      expect(name, args, 2, kAny);
      return std::any_of(args.begin() + 1, args.end(), [&](const Value& other) { return equal(args[0], other); });
    }
    if (name == "ne" || name == "lt" || name == "le" || name == "gt" || name == "ge") {
      expect(name, args, 2, 2);
      if (name == "ne") return !equal(args[0], args[1]);
      if (name == "lt") return less(args[0], args[1]);
      if (name == "ge") return !less(args[0], args[1]);
      if (name == "gt") return less(args[1], args[0]);
      return !less(args[1], args[0]);
    }
    if (name == "len") {
      expect(name, args, 1, 1);
      if (const Text* text = args[0].text()) return static_cast<std::int64_t>(text->size());
      if (const List* list = args[0].list()) return static_cast<std::int64_t>(list->items.size());
      if (const Map* map = args[0].map(); map && !map->is_struct) return static_cast<std::int64_t>(map->entries.size());
      fail("len of type {}", args[0].type_name());
    }
    if (name == "index") {
      expect(name, args, 1, kAny);
      Value value = args[0];
      for (std::size_t i = 1; i < args.size(); ++i) value = index(value, args[i]);
      return value;
    }
    if (name == "slice") return slice(args);
    if (name == "json" || name == "toJson") {
      expect(name, args, 1, 1);
      Text out;
      append_json(out, args[0]);
      charge_text(out);
      return out;
    }
    if (name == "print" || name == "println") {
      Text out;
      for (std::size_t i = 0; i < args.size(); ++i) {
        if (i > 0 && (name == "println" || (!args[i].text() && !args[i - 1].text()))) out.append(" ", true);
        append_text(out, args[i], 1);
        charge_text(out);
      }
      if (name == "println") out.append("\n", true);
      return out;
    }
    if (name == "printf") return format(args);
    if (name == "currentDate" || name == "yesterdayDate") {
      const auto now = environment_.now.value_or(std::chrono::system_clock::now());
      const std::time_t seconds = std::chrono::system_clock::to_time_t(now) - (name == "currentDate" ? 0 : 86400);
      std::tm parts{};
      localtime_r(&seconds, &parts);
      char text[16];
      std::strftime(text, sizeof text, "%Y-%m-%d", &parts);
      return Value::trusted(text);
    }
    return escape(name, args);
  }

  static bool equal(const Value& a, const Value& b) {
    if (a.is_nil() || b.is_nil()) return a.is_nil() && b.is_nil();
    // A JSON number is a float to Go and an integer here: numbers compare by value.
    if (a.is_number() && b.is_number())
      return a.integer() && b.integer() ? *a.integer() == *b.integer() : a.number() == b.number();
    if (a.text() && b.text()) return a.text()->bytes() == b.text()->bytes();
    if (a.boolean() && b.boolean()) return *a.boolean() == *b.boolean();
    fail("incompatible types for comparison: {} and {}", a.type_name(), b.type_name());
  }
  static bool less(const Value& a, const Value& b) {
    if (a.is_number() && b.is_number())
      return a.integer() && b.integer() ? *a.integer() < *b.integer() : a.number() < b.number();
    if (a.text() && b.text()) return a.text()->bytes() < b.text()->bytes();
    fail("invalid types for comparison: {} and {}", a.type_name(), b.type_name());
  }

  static Value index(const Value& value, const Value& key) {
    if (const Map* map = value.map(); map && !map->is_struct) {
      if (!key.text()) fail("index of a map must be a string, not {}", key.type_name());
      const Value* found = map->find(key.text()->bytes());
      return found ? *found : Value();
    }
    if (!value.list() && !value.text()) fail("can't index item of type {}", value.type_name());
    if (!key.integer()) fail("cannot index with type {}", key.type_name());
    const std::int64_t at = *key.integer();
    const std::size_t size = value.list() ? value.list()->items.size() : value.text()->size();
    if (at < 0 || static_cast<std::size_t>(at) >= size) fail("index out of range: {}", at);
    if (value.list()) return value.list()->items[static_cast<std::size_t>(at)];
    return static_cast<std::int64_t>(static_cast<unsigned char>(value.text()->bytes()[static_cast<std::size_t>(at)]));
  }

  Value slice(const Arguments& args) {
    expect("slice", args, 1, 3);
    if (!args[0].list() && !args[0].text()) fail("can't slice item of type {}", args[0].type_name());
    const auto size = static_cast<std::int64_t>(args[0].list() ? args[0].list()->items.size() : args[0].text()->size());
    std::int64_t bounds[2] = {0, size};
    for (std::size_t i = 1; i < args.size(); ++i) {
      if (!args[i].integer()) fail("cannot slice with type {}", args[i].type_name());
      bounds[i - 1] = *args[i].integer();
    }
    if (bounds[0] < 0 || bounds[1] > size || bounds[0] > bounds[1])
      fail("invalid slice index: {} > {}", bounds[0], bounds[1]);
    if (const Text* text = args[0].text())
      return text->substr(static_cast<std::size_t>(bounds[0]), static_cast<std::size_t>(bounds[1] - bounds[0]));
    charge(bounds[1] - bounds[0]);
    const auto& items = args[0].list()->items;
    return List{{items.begin() + bounds[0], items.begin() + bounds[1]}};
  }

  // fmt's Sprintf: the verbs v s d q f g e x X t c and %%, the flags - + 0 and space, width and precision.
  Value format(const Arguments& args) {
    expect("printf", args, 1, 1000);
    if (!args[0].text()) fail("printf needs a format, not {}", args[0].type_name());
    const Text& pattern = *args[0].text();
    const std::string& bytes = pattern.bytes();
    Text out;
    std::size_t next = 1;
    for (std::size_t pos = 0; pos < bytes.size();) {
      if (bytes[pos] != '%') {
        const std::size_t end = std::min(bytes.find('%', pos), bytes.size());
        out.append(pattern.substr(pos, end - pos));
        pos = end;
        continue;
      }
      ++pos;
      std::string flags;
      while (pos < bytes.size() && std::string_view("-+0 #").find(bytes[pos]) != std::string_view::npos)
        flags += bytes[pos++];
      const auto read_number = [&]() {
        int number = -1;
        while (pos < bytes.size() && bytes[pos] >= '0' && bytes[pos] <= '9' && number < 100000)
          number = std::max(number, 0) * 10 + (bytes[pos++] - '0');
        return number;
      };
      const int width = read_number();
      int precision = -1;
      if (pos < bytes.size() && bytes[pos] == '.') {
        ++pos;
        precision = std::max(read_number(), 0);
      }
      if (width > 10000 || precision > 1000) fail("printf: a width of {} or precision of {}", width, precision);
      if (pos >= bytes.size()) {
        out.append("%!(NOVERB)", true);
        break;
      }
      const char verb = bytes[pos++];
      if (verb == '%') {
        out.append("%", true);
        continue;
      }
      if (next >= args.size()) {
        out.append(std::string("%!") + verb + "(MISSING)", true);
        continue;
      }
      Text piece = format_one(verb, flags, precision, args[next++]);
      pad(out, std::move(piece), width, flags);
      charge_text(out);
    }
    if (next < args.size()) {
      out.append("%!(EXTRA ", true);
      for (std::size_t i = next; i < args.size(); ++i) {
        out.append((i > next ? ", " : "") + args[i].type_name() + "=", true);
        append_text(out, args[i], 1);
      }
      out.append(")", true);
    }
    charge_text(out);
    return out;
  }

  static Text format_one(char verb, const std::string& flags, int precision, const Value& value) {
    Text out;
    const auto has = [&](char flag) { return flags.find(flag) != std::string::npos; };
    const auto sign = [&](bool negative) { return negative ? "-" : has('+') ? "+" : has(' ') ? " " : ""; };
    const auto magnitude = [](std::int64_t n) {
      return n < 0 ? ~static_cast<std::uint64_t>(n) + 1 : static_cast<std::uint64_t>(n);
    };
    if (verb == 'v' || (verb == 's' && !value.is_number() && !value.boolean())) {
      append_text(out, value, 1);
      if (precision >= 0 && value.text()) out = out.substr(0, char_offset(out.bytes(), precision));
    } else if (verb == 'q' && value.text()) {
      append_quoted(out, *value.text());
    } else if (verb == 't' && value.boolean()) {
      out.append(*value.boolean() ? "true" : "false", true);
    } else if (verb == 'd' && value.integer()) {
      out.append(fmt::format("{}{}", sign(*value.integer() < 0), magnitude(*value.integer())), true);
    } else if ((verb == 'x' || verb == 'X') && value.integer()) {
      const std::uint64_t n = magnitude(*value.integer());
      out.append(
          std::string(sign(*value.integer() < 0)) + (verb == 'x' ? fmt::format("{:x}", n) : fmt::format("{:X}", n)),
          true);
    } else if ((verb == 'x' || verb == 'X') && value.text()) {
      const Text& text = *value.text();
      for (std::size_t i = 0; i < text.size(); ++i) {
        const auto byte = static_cast<unsigned char>(text.bytes()[i]);
        out.append(verb == 'x' ? fmt::format("{:02x}", byte) : fmt::format("{:02X}", byte), text.is_trusted(i));
      }
    } else if (verb == 'c' && value.integer()) {
      std::string text;
      const std::int64_t code = *value.integer();
      append_utf8(text, code < 0 || code > 0x10ffff ? char32_t{0xfffd} : static_cast<char32_t>(code));
      out.append(text, true);
    } else if (value.floating() && std::string_view("fFgGeE").find(verb) != std::string_view::npos) {
      const double number = *value.floating();
      const char kind = verb == 'F' ? 'f' : verb;
      std::string spec = std::string("%") + (has('+') ? "+" : has(' ') ? " " : "");
      if (precision < 0 && (kind == 'g' || kind == 'G')) {
        append_text(out, value);
      } else {
        spec += fmt::format(".{}{}", precision < 0 ? 6 : precision, kind);
        char buffer[1400];
        const int n = std::snprintf(buffer, sizeof buffer, spec.c_str(), number);
        out.append(std::string_view(buffer, static_cast<std::size_t>(std::max(n, 0))), true);
      }
    } else {
      out.append(fmt::format("%!{}({}=", verb, value.type_name()), true);
      append_text(out, value, 1);
      out.append(")", true);
    }
    return out;
  }

  // The byte at which character number `n` starts.
  static std::size_t char_offset(const std::string& bytes, int n) {
    std::size_t pos = 0;
    for (int i = 0; i < n && pos < bytes.size(); ++i) pos += static_cast<std::size_t>(decode_char(bytes, pos).size);
    return pos;
  }

  static void pad(Text& out, Text piece, int width, const std::string& flags) {
    int n_chars = 0;
    for (std::size_t pos = 0; pos < piece.size(); ++n_chars)
      pos += static_cast<std::size_t>(decode_char(piece.bytes(), pos).size);
    const std::string fill(static_cast<std::size_t>(std::max(width - n_chars, 0)), ' ');
    const bool is_left = flags.find('-') != std::string::npos;
    const bool zeros = !is_left && flags.find('0') != std::string::npos;
    if (zeros && !fill.empty()) {
      const bool is_signed = !piece.empty() && (piece.bytes()[0] == '-' || piece.bytes()[0] == '+');
      if (is_signed) out.append(piece.substr(0, 1));
      out.append(std::string(fill.size(), '0'), true);
      out.append(is_signed ? piece.substr(1) : piece);
      return;
    }
    if (!is_left) out.append(fill, true);
    out.append(piece);
    if (is_left) out.append(fill, true);
  }

  // html and urlquery: the printed arguments, escaped.
  Value escape(const std::string& name, const Arguments& args) {
    Text joined, out;
    for (const Value& value : args) append_text(joined, value, 1);
    charge_text(joined);
    for (std::size_t i = 0; i < joined.size(); ++i) {
      const char c = joined.bytes()[i];
      std::string piece(1, c);
      if (name == "html") {
        constexpr std::string_view kChars = "&<>\"'";
        constexpr std::string_view kNames[] = {"&amp;", "&lt;", "&gt;", "&#34;", "&#39;"};
        if (const std::size_t at = kChars.find(c); at != std::string_view::npos) piece = kNames[at];
        if (c == '\0') piece = "\xef\xbf\xbd";
      } else if (c == ' ') {
        piece = "+";
      } else if (std::isalnum(static_cast<unsigned char>(c)) == 0 &&
                 std::string_view("-_.~").find(c) == std::string_view::npos) {
        piece = fmt::format("%{:02X}", static_cast<unsigned char>(c));
      }
      out.append(piece, joined.is_trusted(i));
    }
    charge_text(out);
    return out;
  }

  const Template& parsed_;
  const Environment& environment_;
  Text out_;
  std::vector<std::pair<std::string, Value>> variables_;
  std::int64_t n_steps_ = 0;
  int depth_ = 0;
};

}  // namespace

bool is_function(std::string_view name) {
  return std::ranges::find(kFunctions, name) != kFunctions.end();
}

Text render(const Template& parsed, const Environment& environment) {
  return Interpreter(parsed, environment).run();
}

}  // namespace still::go

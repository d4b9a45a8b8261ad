#include "text/jinja/syntax.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "text/unicode.h"

namespace still::jinja {

namespace {

constexpr int kMaxDepth = 100;  // of nested expressions and blocks; the parser and the evaluator recurse

enum class TokenKind {
  kText,
  kBlockBegin,
  kBlockEnd,
  kOutputBegin,
  kOutputEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

bool is_space_at(std::string_view text, std::size_t pos, std::size_t* size) {
  const DecodedChar c = decode_char(text, pos);
  *size = static_cast<std::size_t>(c.size);
  return c.size > 0 && ((char_class(c.code) & kClassSpace) || (c.code >= 0x1c && c.code <= 0x1f));
}

std::string_view strip_right(std::string_view text) {
  std::size_t end = 0;
  for (std::size_t pos = 0, size = 0; pos < text.size(); pos += size)
    if (!is_space_at(text, pos, &size)) end = pos + size;
  return text.substr(0, end);
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Line ends become \n, and one at the very end is dropped, as Jinja does.
    for (std::size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        source_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        source_ += source[i];
      }
    }
    if (source_.ends_with('\n')) source_.pop_back();
  }

  std::vector<Token> run() {
    bool line_starting = true;  // nothing but white space may have stood before on this line
    while (pos_ < source_.size()) {
      const std::size_t open = find_open();
      std::string_view text = std::string_view(source_).substr(pos_, open - pos_);
      if (open == source_.size()) {
        put_text(text);
        break;
      }
      const char kind = source_[open + 1];
      const char sign = open + 2 < source_.size() ? source_[open + 2] : '\0';
      const std::string_view whole = text;
      if (sign == '-') {
        text = strip_right(text);
      } else if (sign != '+' && kind != '{') {
        const std::size_t line_begin = text.rfind('\n') == std::string_view::npos ? 0 : text.rfind('\n') + 1;
        if ((line_begin > 0 || line_starting) && text.find_first_not_of(" \t", line_begin) == std::string_view::npos)
          text = text.substr(0, line_begin);
      }
      put_text(text);
      count_lines(whole);
      pos_ = open + 2 + (sign == '-' || sign == '+' ? 1 : 0);
      const std::size_t before = pos_;
      if (kind == '#') {
        skip_comment();
      } else if (kind == '%' && try_raw()) {
      } else {
        lex_code(kind == '%');
      }
      line_starting = pos_ > before && source_[pos_ - 1] == '\n';
    }
    tokens_.push_back({TokenKind::kEnd, "", line_});
    return std::move(tokens_);
  }

 private:
  std::size_t find_open() const {
    for (std::size_t at = pos_; (at = source_.find('{', at)) != std::string::npos && at + 1 < source_.size(); ++at)
      if (source_[at + 1] == '{' || source_[at + 1] == '%' || source_[at + 1] == '#') return at;
    return source_.size();
  }

  void put_text(std::string_view text) {
    if (!text.empty()) tokens_.push_back({TokenKind::kText, std::string(text), line_});
  }
  void count_lines(std::string_view text) { line_ += static_cast<int>(std::count(text.begin(), text.end(), '\n')); }

  // After a closing mark: "-" eats white space, otherwise (blocks and comments) the first line end goes.
  void finish_tag(char sign, bool trims) {
    const std::size_t begin = pos_;
    if (sign == '-') {
      for (std::size_t size = 0; is_space_at(source_, pos_, &size);) pos_ += size;
    } else if (trims && sign != '+' && pos_ < source_.size() && source_[pos_] == '\n') {
      ++pos_;
    }
    count_lines(std::string_view(source_).substr(begin, pos_ - begin));
  }

  void skip_comment() {
    const std::size_t end = source_.find("#}", pos_);
    if (end == std::string::npos) fail("line {}: a comment has no end", line_);
    const char sign = end > pos_ && (source_[end - 1] == '-' || source_[end - 1] == '+') ? source_[end - 1] : '\0';
    count_lines(std::string_view(source_).substr(pos_, end - pos_));
    pos_ = end + 2;
    finish_tag(sign, true);
  }

  // {% raw %} ... {% endraw %}: at pos_ is what follows "{%".
  bool try_raw() {
    std::size_t at = source_.find_first_not_of(" \t\n", pos_);
    if (at == std::string::npos || source_.compare(at, 3, "raw") != 0) return false;
    at = source_.find_first_not_of(" \t\n", at + 3);
    if (at == std::string::npos) return false;
    char sign = '\0';
    if (source_[at] == '-' || source_[at] == '+') sign = source_[at++];
    if (source_.compare(at, 2, "%}") != 0) return false;
    pos_ = at + 2;
    finish_tag(sign, true);
    for (std::size_t open = pos_; (open = source_.find("{%", open)) != std::string::npos; open += 2) {
      std::size_t name = open + 2;
      const bool strips = name < source_.size() && source_[name] == '-';
      if (strips) ++name;
      name = source_.find_first_not_of(" \t\n", name);
      if (name == std::string::npos || source_.compare(name, 6, "endraw") != 0) continue;
      std::size_t close = source_.find_first_not_of(" \t\n", name + 6);
      if (close == std::string::npos) continue;
      char end_sign = '\0';
      if (source_[close] == '-' || source_[close] == '+') end_sign = source_[close++];
      if (source_.compare(close, 2, "%}") != 0) continue;
      std::string_view text = std::string_view(source_).substr(pos_, open - pos_);
      count_lines(text);
      if (strips) {
        text = strip_right(text);
      } else {
        const std::size_t line_begin = text.rfind('\n') == std::string_view::npos ? 0 : text.rfind('\n') + 1;
        if (line_begin > 0 && text.find_first_not_of(" \t", line_begin) == std::string_view::npos)
          text = text.substr(0, line_begin);
      }
      put_text(text);
      pos_ = close + 2;
      finish_tag(end_sign, true);
      return true;
    }
    fail("line {}: raw has no endraw", line_);
  }

  void lex_code(bool block) {
    tokens_.push_back({block ? TokenKind::kBlockBegin : TokenKind::kOutputBegin, "", line_});
    const char close = block ? '%' : '}';
    int open_brackets = 0;
    for (;;) {
      if (pos_ >= source_.size()) fail("line {}: a {} has no end", line_, block ? "block" : "print statement");
      const char c = source_[pos_];
      std::size_t size = 0;
      if (is_space_at(source_, pos_, &size)) {
        if (c == '\n') ++line_;
        pos_ += size;
        continue;
      }
      if (open_brackets == 0) {
        const bool signed_end = (c == '-' || (c == '+' && block)) && pos_ + 1 < source_.size() &&
                                source_[pos_ + 1] == close && source_.substr(pos_ + 2, 1) == "}";
        if (signed_end || (c == close && source_.substr(pos_ + 1, 1) == "}")) {
          pos_ += signed_end ? 3 : 2;
          tokens_.push_back({block ? TokenKind::kBlockEnd : TokenKind::kOutputEnd, "", line_});
          finish_tag(signed_end ? c : '\0', block);
          return;
        }
      }
      if (c == '\'' || c == '"') {
        lex_string(c);
      } else if (c >= '0' && c <= '9') {
        lex_number();
      } else if (is_name_start(c)) {
        const std::size_t begin = pos_;
        while (pos_ < source_.size() &&
               (is_name_start(source_[pos_]) || (source_[pos_] >= '0' && source_[pos_] <= '9')))
          ++pos_;
        tokens_.push_back({TokenKind::kName, source_.substr(begin, pos_ - begin), line_});
      } else {
        lex_operator(open_brackets);
      }
    }
  }

  static bool is_name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || static_cast<unsigned char>(c) >= 128;
  }

  void lex_operator(int& open_brackets) {
    for (const std::string_view op : {"**", "//", "==", "!=", "<=", ">="})
      if (source_.compare(pos_, 2, op) == 0) {
        tokens_.push_back({TokenKind::kOperator, std::string(op), line_});
        pos_ += 2;
        return;
      }
    const char c = source_[pos_];
    if (std::string_view("+-*/%~<>=()[]{}.,:|").find(c) == std::string_view::npos)
      fail("line {}: unexpected character \"{}\"", line_, std::string(1, c));
    if (c == '(' || c == '[' || c == '{') ++open_brackets;
    if (c == ')' || c == ']' || c == '}') --open_brackets;
    if (open_brackets < 0) fail("line {}: unexpected \"{}\"", line_, std::string(1, c));
    tokens_.push_back({TokenKind::kOperator, std::string(1, c), line_});
    ++pos_;
  }

  void lex_number() {
    std::string digits;
    bool is_float = false;
    const auto take_digits = [&] {
      while (pos_ < source_.size() && ((source_[pos_] >= '0' && source_[pos_] <= '9') || source_[pos_] == '_')) {
        if (source_[pos_] != '_') digits += source_[pos_];
        ++pos_;
      }
    };
    const auto is_digit = [&](std::size_t at) {
      return at < source_.size() && source_[at] >= '0' && source_[at] <= '9';
    };
    take_digits();
    if (pos_ < source_.size() && source_[pos_] == '.' && is_digit(pos_ + 1)) {
      is_float = true;
      digits += '.';
      ++pos_;
      take_digits();
    }
    if (pos_ < source_.size() && (source_[pos_] | 32) == 'e') {
      const std::size_t sign =
          pos_ + 1 < source_.size() && (source_[pos_ + 1] == '+' || source_[pos_ + 1] == '-') ? 1 : 0;
      if (is_digit(pos_ + 1 + sign)) {
        is_float = true;
        digits.append(source_, pos_, 1 + sign);
        pos_ += 1 + sign;
        take_digits();
      }
    }
    tokens_.push_back({is_float ? TokenKind::kFloat : TokenKind::kInteger, digits, line_});
  }

  void lex_string(char quote) {
    std::string out;
    const int line = line_;
    for (++pos_; pos_ < source_.size() && source_[pos_] != quote; ++pos_) {
      const char c = source_[pos_];
      if (c == '\n') ++line_;
      if (c != '\\' || pos_ + 1 >= source_.size()) {
        out += c;
        continue;
      }
      const char escape = source_[++pos_];
      const auto hex = [&](std::size_t n) {
        std::uint32_t code = 0;
        const char* begin = source_.data() + pos_ + 1;
        if (source_.size() - pos_ - 1 < n || std::from_chars(begin, begin + n, code, 16).ptr != begin + n)
          fail("line {}: a string has an incomplete \\{} escape", line_, std::string(1, escape));
        pos_ += n;
        append_utf8(out, code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0xfffd : code);
      };
      switch (escape) {
        case 'n':
          out += '\n';
          break;
        case 't':
          out += '\t';
          break;
        case 'r':
          out += '\r';
          break;
        case 'a':
          out += '\a';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case 'v':
          out += '\v';
          break;
        case '\\':
        case '\'':
        case '"':
          out += escape;
          break;
        case '\n':
          ++line_;
          break;
        case 'x':
          hex(2);
          break;
        case 'u':
          hex(4);
          break;
        case 'U':
          hex(8);
          break;
        default:
          if (escape >= '0' && escape <= '7') {
            std::uint32_t code = 0;
            std::size_t n = 0;
            for (; n < 3 && pos_ + n < source_.size() && source_[pos_ + n] >= '0' && source_[pos_ + n] <= '7'; ++n)
              code = code * 8 + static_cast<std::uint32_t>(source_[pos_ + n] - '0');
            pos_ += n - 1;
            append_utf8(out, code);
          } else {
            out += '\\';
            out += escape;
          }
      }
    }
    if (pos_ >= source_.size()) fail("line {}: a string has no end", line);
    ++pos_;
    tokens_.push_back({TokenKind::kString, std::move(out), line});
  }

  std::string source_;
  std::size_t pos_ = 0;
  int line_ = 1;
  std::vector<Token> tokens_;
};

ExprPtr make(ExprKind kind, int line) {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

template <class... Args>
ExprPtr make(ExprKind kind, int line, std::string name, Args... args) {
  auto expr = make(kind, line);
  expr->name = std::move(name);
  (expr->args.push_back(std::move(args)), ...);
  return expr;
}

class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  std::vector<Stmt> run() {
    std::vector<Stmt> body = parse_body({});
    if (current().kind != TokenKind::kEnd) fail_here("unexpected \"{}\"", current().text);
    return body;
  }

 private:
  struct Nesting {
    explicit Nesting(Parser& parser) : depth(parser.depth_) {
      if (++depth > kMaxDepth) parser.fail_here("nested deeper than {}", kMaxDepth);
    }
    ~Nesting() { --depth; }
    int& depth;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  template <class... Args>
  [[noreturn]] void fail_here(fmt::format_string<Args...> format, Args&&... args) const {
    fail("line {}: {}", current().line, fmt::format(format, std::forward<Args>(args)...));
  }
  bool at_operator(std::string_view op) const { return current().kind == TokenKind::kOperator && current().text == op; }
  bool at_name(std::string_view name) const { return current().kind == TokenKind::kName && current().text == name; }
  bool skip_operator(std::string_view op) { return at_operator(op) && (++at_, true); }
  bool skip_name(std::string_view name) { return at_name(name) && (++at_, true); }
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail_here("expected \"{}\", found \"{}\"", op, describe());
  }
  std::string describe() const {
    switch (current().kind) {
      case TokenKind::kBlockEnd:
        return "%}";
      case TokenKind::kOutputEnd:
        return "}}";
      case TokenKind::kEnd:
        return "end of template";
      default:
        return current().text;
    }
  }
  std::string expect_name() {
    if (current().kind != TokenKind::kName) fail_here("expected a name, found \"{}\"", describe());
    return tokens_[at_++].text;
  }
  void expect_block_end() {
    if (current().kind != TokenKind::kBlockEnd) fail_here("expected \"%}}\", found \"{}\"", describe());
    ++at_;
  }

  // Statements up to a block whose first word is in `ends` (left at that word), or the end of the template.
  std::vector<Stmt> parse_body(const std::set<std::string_view>& ends) {
    const Nesting nesting(*this);
    std::vector<Stmt> body;
    for (;;) {
      const Token& token = current();
      if (token.kind == TokenKind::kText) {
        body.push_back({.kind = StmtKind::kText, .line = token.line, .text = token.text});
        ++at_;
      } else if (token.kind == TokenKind::kOutputBegin) {
        ++at_;
        Stmt stmt{.kind = StmtKind::kOutput, .line = token.line};
        stmt.expr = parse_tuple(true);
        if (current().kind != TokenKind::kOutputEnd) fail_here("expected \"}}}}\", found \"{}\"", describe());
        ++at_;
        body.push_back(std::move(stmt));
      } else if (token.kind == TokenKind::kBlockBegin) {
        ++at_;
        if (current().kind == TokenKind::kName && ends.contains(current().text)) return body;
        body.push_back(parse_statement());
      } else {
        if (!ends.empty()) fail_here("expected \"{}\" before the end of the template", *ends.begin());
        return body;
      }
    }
  }

  std::vector<Stmt> parse_body_until(std::string_view end) {
    expect_block_end();
    std::vector<Stmt> body = parse_body({end});
    ++at_;
    expect_block_end();
    return body;
  }

  Stmt parse_statement() {
    const int line = current().line;
    const std::string word = expect_name();
    Stmt stmt{.kind = StmtKind::kScope, .line = line};
    if (word == "if") {
      parse_if(stmt);
    } else if (word == "for") {
      parse_for(stmt);
    } else if (word == "set") {
      parse_set(stmt);
    } else if (word == "macro") {
      stmt.kind = StmtKind::kMacro;
      stmt.targets.push_back(expect_name());
      expect_operator("(");
      parse_parameters(stmt);
      stmt.body = parse_body_until("endmacro");
    } else if (word == "call") {
      stmt.kind = StmtKind::kCallBlock;
      if (skip_operator("(")) parse_parameters(stmt);
      stmt.expr = parse_expression();
      if (stmt.expr->kind != ExprKind::kCall) fail_here("call needs a macro call");
      stmt.body = parse_body_until("endcall");
    } else if (word == "filter") {
      stmt.kind = StmtKind::kFilterBlock;
      stmt.expr = parse_filters(nullptr, true);
      stmt.body = parse_body_until("endfilter");
    } else if (word == "with") {
      stmt.kind = StmtKind::kWith;
      while (current().kind == TokenKind::kName) {
        Keyword keyword{expect_name(), nullptr};
        expect_operator("=");
        keyword.value = parse_expression();
        stmt.parameters.push_back(std::move(keyword));
        if (!skip_operator(",")) break;
      }
      stmt.body = parse_body_until("endwith");
    } else if (word == "generation") {
      stmt.body = parse_body_until("endgeneration");
    } else if (word == "break" || word == "continue") {
      if (loop_depth_ == 0) fail_here("{} outside of a loop", word);
      stmt.kind = word == "break" ? StmtKind::kBreak : StmtKind::kContinue;
      expect_block_end();
    } else if (word == "do") {
      stmt.kind = StmtKind::kDo;
      stmt.expr = parse_tuple(true);
      expect_block_end();
    } else {
      fail("line {}: the statement \"{}\" is not known", line, word);
    }
    return stmt;
  }

  void parse_if(Stmt& stmt) {
    stmt.kind = StmtKind::kIf;
    stmt.expr = parse_tuple(true);
    expect_block_end();
    stmt.body = parse_body({"elif", "else", "endif"});
    const Token word = current();
    ++at_;
    if (word.text == "elif") {
      const Nesting nesting(*this);
      Stmt next{.kind = StmtKind::kIf, .line = word.line};
      parse_if(next);
      stmt.otherwise.push_back(std::move(next));
      return;
    }
    if (word.text == "else") {
      expect_block_end();
      stmt.otherwise = parse_body({"endif"});
      ++at_;
    }
    expect_block_end();
  }

  void parse_for(Stmt& stmt) {
    stmt.kind = StmtKind::kFor;
    const bool parenthesized = skip_operator("(");
    do {
      if (at_name("in")) break;
      stmt.targets.push_back(expect_name());
    } while (skip_operator(","));
    if (parenthesized) expect_operator(")");
    if (!skip_name("in")) fail_here("expected \"in\", found \"{}\"", describe());
    stmt.expr = parse_tuple(false);
    if (skip_name("if")) stmt.condition = parse_expression();
    if (at_name("recursive")) fail_here("recursive loops are not supported");
    expect_block_end();
    ++loop_depth_;
    stmt.body = parse_body({"else", "endfor"});
    --loop_depth_;
    if (skip_name("else")) {
      expect_block_end();
      stmt.otherwise = parse_body({"endfor"});
    }
    ++at_;
    expect_block_end();
  }

  void parse_set(Stmt& stmt) {
    stmt.targets.push_back(expect_name());
    if (skip_operator(".")) {
      stmt.kind = StmtKind::kSetAttribute;
      stmt.targets.push_back(expect_name());
      expect_operator("=");
      stmt.expr = parse_tuple(true);
      expect_block_end();
      return;
    }
    while (skip_operator(",")) stmt.targets.push_back(expect_name());
    if (skip_operator("=")) {
      stmt.kind = StmtKind::kSet;
      stmt.expr = parse_tuple(true);
      expect_block_end();
      return;
    }
    stmt.kind = StmtKind::kSetBlock;
    if (at_operator("|")) stmt.expr = parse_filters(nullptr, false);
    stmt.body = parse_body_until("endset");
  }

  void parse_parameters(Stmt& stmt) {
    while (!skip_operator(")")) {
      Keyword parameter{expect_name(), nullptr};
      if (skip_operator("=")) parameter.value = parse_expression();
      stmt.parameters.push_back(std::move(parameter));
      if (!at_operator(")")) expect_operator(",");
    }
  }

  // One expression, or several with commas between: a tuple.
  ExprPtr parse_tuple(bool with_condition) {
    const int line = current().line;
    auto first = with_condition ? parse_expression() : parse_or();
    if (!at_operator(",")) return first;
    auto tuple = make(ExprKind::kTuple, line);
    tuple->args.push_back(std::move(first));
    while (skip_operator(",")) {
      if (current().kind == TokenKind::kBlockEnd || current().kind == TokenKind::kOutputEnd || at_operator(")")) break;
      tuple->args.push_back(with_condition ? parse_expression() : parse_or());
    }
    return tuple;
  }

  ExprPtr parse_expression() {
    const Nesting nesting(*this);
    auto value = parse_or();
    while (at_name("if")) {
      const int line = current().line;
      ++at_;
      auto condition = parse_or();
      ExprPtr otherwise;
      if (skip_name("else")) otherwise = parse_expression();
      value = make(ExprKind::kCondition, line, "", std::move(value), std::move(condition), std::move(otherwise));
      limit_chain(value);
    }
    return value;
  }

  // Chains (a + b + c ...) nest to the left without recursion here, but the evaluator recurses.
  void limit_chain(const ExprPtr& expr) {
    int depth = 0;
    for (const Expr* at = expr.get(); at; at = at->args.empty() ? nullptr : at->args[0].get())
      if (++depth > 4 * kMaxDepth) fail_here("an expression is nested deeper than {}", 4 * kMaxDepth);
  }

  template <class Next>
  ExprPtr parse_binary(Next next, std::initializer_list<std::string_view> operators, bool names = false) {
    auto left = next();
    for (int n = 1;; ++n) {
      const auto found = std::find_if(operators.begin(), operators.end(),
                                      [&](std::string_view op) { return names ? at_name(op) : at_operator(op); });
      if (found == operators.end()) return left;
      if (n > kMaxDepth) fail_here("more than {} operators in a row", kMaxDepth);
      const int line = current().line;
      ++at_;
      left = make(ExprKind::kBinary, line, std::string(*found), std::move(left), next());
    }
  }

  ExprPtr parse_or() {
    return parse_binary([&] { return parse_and(); }, {"or"}, true);
  }
  ExprPtr parse_and() {
    return parse_binary([&] { return parse_not(); }, {"and"}, true);
  }
  ExprPtr parse_not() {
    const int line = current().line;
    if (skip_name("not")) {
      const Nesting nesting(*this);
      return make(ExprKind::kNot, line, "", parse_not());
    }
    return parse_compare();
  }

  ExprPtr parse_compare() {
    const int line = current().line;
    auto first = parse_sum();
    ExprPtr chain;
    for (;;) {
      std::string op;
      for (const std::string_view candidate : {"==", "!=", "<", ">", "<=", ">="})
        if (at_operator(candidate)) op = candidate;
      if (at_name("in")) op = "in";
      if (at_name("not") && ahead().kind == TokenKind::kName && ahead().text == "in") op = "not in";
      if (op.empty()) return chain ? std::move(chain) : std::move(first);
      at_ += op == "not in" ? 2 : 1;
      if (!chain) {
        chain = make(ExprKind::kCompare, line);
        chain->args.push_back(std::move(first));
      }
      chain->operators.push_back(op);
      chain->args.push_back(parse_sum());
    }
  }

  ExprPtr parse_sum() {
    return parse_binary([&] { return parse_concat(); }, {"+", "-"});
  }
  ExprPtr parse_concat() {
    return parse_binary([&] { return parse_product(); }, {"~"});
  }
  ExprPtr parse_product() {
    return parse_binary([&] { return parse_power(); }, {"*", "//", "/", "%"});
  }
  ExprPtr parse_power() {
    return parse_binary([&] { return parse_unary(true); }, {"**"});
  }

  ExprPtr parse_unary(bool with_filters) {
    const Nesting nesting(*this);
    const int line = current().line;
    ExprPtr value;
    if (skip_operator("-")) {
      value = make(ExprKind::kNegate, line, "", parse_unary(false));
    } else if (skip_operator("+")) {
      value = make(ExprKind::kPlus, line, "", parse_unary(false));
    } else {
      value = parse_primary();
    }
    value = parse_postfix(std::move(value));
    return with_filters ? parse_filters(std::move(value), false) : std::move(value);
  }

  ExprPtr parse_primary() {
    const Token token = current();
    auto literal = [&](Value value) {
      auto expr = make(ExprKind::kLiteral, token.line);
      expr->literal = std::move(value);
      return expr;
    };
    switch (token.kind) {
      case TokenKind::kName:
        ++at_;
        if (token.text == "true" || token.text == "True") return literal(true);
        if (token.text == "false" || token.text == "False") return literal(false);
        if (token.text == "none" || token.text == "None") return literal(None{});
        return make(ExprKind::kName, token.line, token.text);
      case TokenKind::kString: {
        std::string text;
        for (; current().kind == TokenKind::kString; ++at_) text += current().text;
        return literal(Text(std::move(text), true));
      }
      case TokenKind::kInteger: {
        ++at_;
        std::int64_t number = 0;
        const char* end = token.text.data() + token.text.size();
        if (std::from_chars(token.text.data(), end, number).ec != std::errc())
          fail_here("the number {} is too large", token.text);
        return literal(number);
      }
      case TokenKind::kFloat: {
        ++at_;
        double number = 0;
        if (std::from_chars(token.text.data(), token.text.data() + token.text.size(), number).ec != std::errc())
          fail_here("the number {} is out of range", token.text);
        return literal(number);
      }
      case TokenKind::kOperator:
        if (token.text == "(") {
          ++at_;
          if (skip_operator(")")) return make(ExprKind::kTuple, token.line);
          auto inner = parse_tuple(true);
          expect_operator(")");
          return inner;
        }
        if (token.text == "[") return parse_list();
        if (token.text == "{") return parse_dict();
        [[fallthrough]];
      default:
        fail_here("expected an expression, found \"{}\"", describe());
    }
  }

  ExprPtr parse_list() {
    auto list = make(ExprKind::kList, current().line);
    expect_operator("[");
    while (!skip_operator("]")) {
      list->args.push_back(parse_expression());
      if (!at_operator("]")) expect_operator(",");
    }
    return list;
  }

  ExprPtr parse_dict() {
    auto dict = make(ExprKind::kDict, current().line);
    expect_operator("{");
    while (!skip_operator("}")) {
      dict->args.push_back(parse_expression());
      expect_operator(":");
      dict->args.push_back(parse_expression());
      if (!at_operator("}")) expect_operator(",");
    }
    return dict;
  }

  ExprPtr parse_postfix(ExprPtr value) {
    for (int n = 0;; ++n) {
      if (n > kMaxDepth) fail_here("more than {} subscripts or calls in a row", kMaxDepth);
      const int line = current().line;
      if (skip_operator(".")) {
        if (current().kind == TokenKind::kInteger) {
          auto index = make(ExprKind::kLiteral, line);
          index->literal = static_cast<std::int64_t>(std::atoll(current().text.c_str()));
          ++at_;
          value = make(ExprKind::kIndex, line, "", std::move(value), std::move(index));
        } else {
          std::string name = expect_name();
          value = make(ExprKind::kAttribute, line, std::move(name), std::move(value));
        }
      } else if (at_operator("[")) {
        value = parse_subscript(std::move(value));
      } else if (at_operator("(")) {
        auto call = make(ExprKind::kCall, line, "", std::move(value));
        parse_arguments(*call);
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  ExprPtr parse_subscript(ExprPtr value) {
    const int line = current().line;
    expect_operator("[");
    ExprPtr parts[3];
    int n_colons = 0;
    for (int i = 0; i < 3; ++i) {
      if (!at_operator(":") && !at_operator("]")) parts[i] = parse_tuple(true);
      if (i == 2 || !skip_operator(":")) break;
      ++n_colons;
    }
    expect_operator("]");
    if (n_colons > 0)
      return make(ExprKind::kSlice, line, "", std::move(value), std::move(parts[0]), std::move(parts[1]),
                  std::move(parts[2]));
    if (!parts[0]) fail_here("an empty subscript");
    return make(ExprKind::kIndex, line, "", std::move(value), std::move(parts[0]));
  }

  void parse_arguments(Expr& call) {
    expect_operator("(");
    while (!skip_operator(")")) {
      if (at_operator("*") || at_operator("**")) fail_here("\"{}\" in arguments is not supported", current().text);
      if (current().kind == TokenKind::kName && ahead().kind == TokenKind::kOperator && ahead().text == "=") {
        Keyword keyword{expect_name(), nullptr};
        ++at_;
        keyword.value = parse_expression();
        call.keywords.push_back(std::move(keyword));
      } else {
        if (!call.keywords.empty()) fail_here("a positional argument after a named one");
        call.args.push_back(parse_expression());
      }
      if (!at_operator(")")) expect_operator(",");
    }
  }

  // "| filter(...)" and "is test" after a value; `first`: the name of a filter stands here without "|".
  ExprPtr parse_filters(ExprPtr value, bool first) {
    for (int n = 0;; ++n) {
      if (n > kMaxDepth) fail_here("more than {} filters in a row", kMaxDepth);
      const int line = current().line;
      if (first || skip_operator("|")) {
        first = false;
        std::string name = expect_name();
        while (skip_operator(".")) name += "." + expect_name();
        auto filter = make(ExprKind::kFilter, line, std::move(name), std::move(value));
        if (at_operator("(")) parse_arguments(*filter);
        value = std::move(filter);
      } else if (value && skip_name("is")) {
        value = parse_test(std::move(value), line);
      } else if (value && at_operator("(")) {
        auto call = make(ExprKind::kCall, line, "", std::move(value));
        parse_arguments(*call);
        value = std::move(call);
      } else {
        return value;
      }
    }
  }

  ExprPtr parse_test(ExprPtr value, int line) {
    const bool negated = skip_name("not");
    std::string name;
    if (current().kind == TokenKind::kOperator && (at_operator("==") || at_operator("!="))) {
      fail_here("a test needs a name");
    }
    name = expect_name();
    auto test = make(ExprKind::kTest, line, name, std::move(value));
    const auto starts_argument = [&] {
      switch (current().kind) {
        case TokenKind::kString:
        case TokenKind::kInteger:
        case TokenKind::kFloat:
          return true;
        case TokenKind::kName:
          return !at_name("else") && !at_name("or") && !at_name("and") && !at_name("is") && !at_name("if") &&
                 !at_name("not") && !at_name("in");
        case TokenKind::kOperator:
          return at_operator("[") || at_operator("{");
        default:
          return false;
      }
    };
    if (at_operator("(")) {
      parse_arguments(*test);
    } else if (starts_argument()) {
      test->args.push_back(parse_postfix(parse_primary()));
    }
    return negated ? make(ExprKind::kNot, line, "", std::move(test)) : std::move(test);
  }

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;
};

}  // namespace

std::vector<Stmt> parse_template(std::string_view source) {
  return Parser(Lexer(source).run()).run();
}

}  // namespace still::jinja

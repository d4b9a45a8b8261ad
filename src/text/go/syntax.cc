// See syntax.h.
#include "text/go/syntax.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/unicode.h"

namespace still::go {

namespace {

constexpr int kMaxDepth = 100;  // of nested parentheses and blocks
constexpr std::string_view kSpaces = " \t\r\n";

struct Token {
  enum class Kind { kEnd, kIdentifier, kField, kVariable, kDot, kConstant, kPunctuation };
  Kind kind = Kind::kEnd;
  std::string text;  // identifier, field without its dot, variable with its $, punctuation
  Value constant;
  bool spaced = false;  // white space before it
};

bool is_space(char c) {
  return kSpaces.find(c) != std::string_view::npos;
}

bool is_word_byte(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}

bool equal_but_case(std::string_view a, std::string_view b) {
  const auto lower = [](char c) { return std::tolower(static_cast<unsigned char>(c)); };
  return std::ranges::equal(a, b, {}, lower, lower);
}

// The tokens of one action.
class Lexer {
 public:
  Lexer(std::string_view text, int line) : text_(text), line_(line) {}

  std::vector<Token> run() {
    std::vector<Token> tokens;
    for (;;) {
      Token token = next();
      const bool is_end = token.kind == Token::Kind::kEnd;
      tokens.push_back(std::move(token));
      if (is_end) return tokens;
    }
  }

 private:
  Token next() {
    Token token;
    while (pos_ < text_.size() && is_space(text_[pos_])) {
      token.spaced = true;
      ++pos_;
    }
    if (pos_ == text_.size()) return token;
    const char c = text_[pos_];
    if (c == '"') {
      token.kind = Token::Kind::kConstant;
      token.constant = Value(Text(interpreted('"'), true));
    } else if (c == '`') {
      const std::size_t end = text_.find('`', pos_ + 1);
      if (end == std::string_view::npos) fail("line {}: a raw string does not end", line_);
      token.kind = Token::Kind::kConstant;
      token.constant = Value(Text(std::string(text_.substr(pos_ + 1, end - pos_ - 1)), true));
      pos_ = end + 1;
    } else if (c == '\'') {
      const std::string bytes = interpreted('\'');
      const DecodedChar decoded = decode_char(bytes, 0);
      if (decoded.size == 0 || static_cast<std::size_t>(decoded.size) != bytes.size())
        fail("line {}: a character constant holds one character", line_);
      token.kind = Token::Kind::kConstant;
      token.constant = Value(static_cast<std::int64_t>(decoded.code));
    } else if (c == '.' && !(pos_ + 1 < text_.size() && std::isdigit(static_cast<unsigned char>(text_[pos_ + 1])))) {
      ++pos_;
      token.text = word();
      token.kind = token.text.empty() ? Token::Kind::kDot : Token::Kind::kField;
    } else if (c == '$') {
      ++pos_;
      token.kind = Token::Kind::kVariable;
      token.text = "$" + word();
    } else if (std::isdigit(static_cast<unsigned char>(c)) != 0 || c == '.' ||
               ((c == '-' || c == '+') && pos_ + 1 < text_.size() &&
                (std::isdigit(static_cast<unsigned char>(text_[pos_ + 1])) != 0 || text_[pos_ + 1] == '.'))) {
      token.kind = Token::Kind::kConstant;
      token.constant = number();
    } else if (is_word_byte(c)) {
      token.kind = Token::Kind::kIdentifier;
      token.text = word();
    } else {
      token.kind = Token::Kind::kPunctuation;
      if (text_.substr(pos_, 2) == ":=") {
        token.text = ":=";
      } else if (std::string_view("()|,=").find(c) != std::string_view::npos) {
        token.text = std::string(1, c);
      } else {
        fail("line {}: unexpected \"{}\" in an action", line_, c);
      }
      pos_ += token.text.size();
    }
    return token;
  }

  std::string word() {
    const std::size_t begin = pos_;
    while (pos_ < text_.size() && is_word_byte(text_[pos_])) ++pos_;
    return std::string(text_.substr(begin, pos_ - begin));
  }

  Value number() {
    const std::size_t begin = pos_;
    if (text_[pos_] == '-' || text_[pos_] == '+') ++pos_;
    const bool is_hex = text_.substr(pos_, 2) == "0x" || text_.substr(pos_, 2) == "0X";
    while (pos_ < text_.size() &&
           (std::isalnum(static_cast<unsigned char>(text_[pos_])) != 0 || text_[pos_] == '.' || text_[pos_] == '_' ||
            (!is_hex && (text_[pos_] == '-' || text_[pos_] == '+') && std::tolower(text_[pos_ - 1]) == 'e')))
      ++pos_;
    std::string spelled(text_.substr(begin, pos_ - begin));
    const std::string original = spelled;
    std::erase(spelled, '_');
    const bool negative = spelled.starts_with('-');
    std::string_view digits = spelled;
    if (digits.starts_with('-') || digits.starts_with('+')) digits.remove_prefix(1);
    int base = 10;
    if (digits.size() > 2 && digits[0] == '0') {
      const char mark = static_cast<char>(std::tolower(static_cast<unsigned char>(digits[1])));
      base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
      if (base != 10) digits.remove_prefix(2);
    }
    std::uint64_t integer = 0;
    const auto [stop, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), integer, base);
    if (problem == std::errc() && stop == digits.data() + digits.size() && integer <= std::uint64_t{1} << 62)
      return Value(negative ? -static_cast<std::int64_t>(integer) : static_cast<std::int64_t>(integer));
    double real = 0;
    const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), real);
    if (base != 10 || failure != std::errc() || end != digits.data() + digits.size() || !std::isfinite(real))
      fail("line {}: bad number {}", line_, original);
    return Value(negative ? -real : real);
  }

  // A string with escapes, as Go's.
  std::string interpreted(char quote) {
    std::string out;
    ++pos_;
    for (;;) {
      if (pos_ >= text_.size() || text_[pos_] == '\n') fail("line {}: a string does not end", line_);
      const char c = text_[pos_++];
      if (c == quote) return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (pos_ >= text_.size()) fail("line {}: a string does not end", line_);
      const char mark = text_[pos_++];
      constexpr std::string_view kMarks = "abfnrtv\\'\"", kBytes = "\a\b\f\n\r\t\v\\'\"";
      if (const std::size_t at = kMarks.find(mark); at != std::string_view::npos) {
        out += kBytes[at];
      } else if (mark == 'x') {
        out += static_cast<char>(code_of(2, 16));
      } else if (mark == 'u' || mark == 'U') {
        const std::uint32_t code = code_of(mark == 'u' ? 4 : 8, 16);
        if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail("line {}: an impossible \\{}", line_, mark);
        append_utf8(out, static_cast<char32_t>(code));
      } else if (mark >= '0' && mark <= '7') {
        --pos_;
        const std::uint32_t code = code_of(3, 8);
        if (code > 255) fail("line {}: an impossible octal escape", line_);
        out += static_cast<char>(code);
      } else {
        fail("line {}: unknown escape \\{}", line_, mark);
      }
    }
  }

  std::uint32_t code_of(std::size_t n_digits, int base) {
    std::uint32_t code = 0;
    const std::string_view digits = text_.substr(pos_, n_digits);
    const auto [stop, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), code, base);
    if (digits.size() != n_digits || problem != std::errc() || stop != digits.data() + n_digits)
      fail("line {}: an escape needs {} digits", line_, n_digits);
    pos_ += n_digits;
    return code;
  }

  std::string_view text_;
  int line_;
  std::size_t pos_ = 0;
};

// A template cut into text and actions, trim markers applied and comments gone.
struct Piece {
  bool is_action = false;
  std::string text;
  int line = 1;
};

std::string_view trim_right(std::string_view text) {
  const std::size_t end = text.find_last_not_of(kSpaces);
  return text.substr(0, end == std::string_view::npos ? 0 : end + 1);
}
std::string_view trim_left(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(kSpaces);
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

// Where an action that begins behind "{{" ends: the position of its "}}"; strings may hold braces.
std::size_t find_action_end(std::string_view source, std::size_t pos, int line) {
  while (pos < source.size()) {
    const char c = source[pos];
    if (source.substr(pos, 2) == "}}") return pos;
    ++pos;
    if (c != '"' && c != '\'' && c != '`') continue;
    while (pos < source.size() && source[pos] != c) {
      if (c != '`' && source[pos] == '\n') fail("line {}: a string does not end", line);
      pos += c != '`' && source[pos] == '\\' ? 2 : 1;
    }
    ++pos;
  }
  fail("line {}: an action {{{{ does not end", line);
}

std::vector<Piece> cut(std::string_view source) {
  std::vector<Piece> pieces;
  bool trims = false;  // the action before asked for it
  std::size_t pos = 0;
  int line = 1;
  while (pos < source.size()) {
    const std::size_t open = source.find("{{", pos);
    std::string_view text = source.substr(pos, open == std::string_view::npos ? open : open - pos);
    const auto text_lines = static_cast<int>(std::ranges::count(text, '\n'));
    if (trims) text = trim_left(text);
    std::size_t begin = open + 2;
    const bool trims_before = open != std::string_view::npos && begin + 1 < source.size() && source[begin] == '-' &&
                              is_space(source[begin + 1]);
    if (trims_before) {
      text = trim_right(text);
      begin += 2;
    }
    if (!text.empty()) pieces.push_back({false, std::string(text), line});
    line += text_lines;
    if (open == std::string_view::npos) break;
    if (source.substr(begin, 2) == "/*") {
      const std::size_t close = source.find("*/", begin + 2);
      if (close == std::string_view::npos) fail("line {}: a comment does not end", line);
      std::size_t end = close + 2;
      trims = end + 1 < source.size() && is_space(source[end]) && source[end + 1] == '-';
      if (trims) end += 2;
      if (source.substr(end, 2) != "}}") fail("line {}: a comment ends before its action does", line);
      line += static_cast<int>(std::ranges::count(source.substr(open, end - open), '\n'));
      pos = end + 2;
      continue;
    }
    const std::size_t close = find_action_end(source, begin, line);
    std::string_view action = source.substr(begin, close - begin);
    trims = action.size() >= 2 && action.back() == '-' && is_space(action[action.size() - 2]);
    if (trims) action.remove_suffix(2);
    pieces.push_back({true, std::string(action), line});
    line += static_cast<int>(std::ranges::count(source.substr(open, close - open), '\n'));
    pos = close + 2;
  }
  return pieces;
}

class Parser {
 public:
  explicit Parser(std::string_view source) : pieces_(cut(source)) {}

  Template run() {
    std::string end;
    result_.body = parse_list(0, end, true);
    if (!end.empty()) fail("line {}: unexpected {{{{{}}}}}", line_, end);
    return std::move(result_);
  }

 private:
  // Up to an "end" or "else", which `end` then names ("" at the end of the template). The tokens behind "else" stay in
  // tokens_.
  std::vector<Node> parse_list(int depth, std::string& end, bool is_top = false) {
    if (depth > kMaxDepth) fail("line {}: blocks are nested deeper than {}", line_, kMaxDepth);
    std::vector<Node> nodes;
    end.clear();
    while (next_ < pieces_.size()) {
      Piece& piece = pieces_[next_++];
      line_ = piece.line;
      Node node;
      node.order = ++order_;
      if (!piece.is_action) {
        node.text = std::move(piece.text);
        nodes.push_back(std::move(node));
        continue;
      }
      tokens_ = Lexer(piece.text, line_).run();
      at_ = 0;
      const std::string word = peek().kind == Token::Kind::kIdentifier ? peek().text : "";
      if (word == "end" || word == "else") {
        ++at_;
        if (word == "end") expect_end();
        end = word;
        return nodes;
      }
      if (word == "if" || word == "range" || word == "with") {
        ++at_;
        node.kind = word == "if" ? Node::Kind::kIf : word == "range" ? Node::Kind::kRange : Node::Kind::kWith;
        parse_branch(node, depth, word);
      } else if (word == "define" || word == "block") {
        ++at_;
        const std::string name = parse_name(word);
        if (word == "define") {
          if (!is_top) fail("line {}: unexpected {{{{define}}}} inside a block", line_);
          expect_end();
        } else {
          node.kind = Node::Kind::kTemplate;
          node.text = name;
          node.pipe = parse_pipe(0, false);
          expect_end();
        }
        const std::vector<std::string> outer = std::exchange(variables_, {"$"});
        const int outer_ranges = std::exchange(n_ranges_, 0);
        std::string stop;
        std::vector<Node> body = parse_list(depth + 1, stop);
        if (stop != "end") fail("line {}: {{{{{}}}}} without its end", line_, word);
        variables_ = outer;
        n_ranges_ = outer_ranges;
        result_.defined[name] = std::move(body);
        if (word == "define") continue;
      } else if (word == "template") {
        ++at_;
        node.kind = Node::Kind::kTemplate;
        node.text = parse_name(word);
        if (peek().kind != Token::Kind::kEnd) node.pipe = parse_pipe(0, false);
        expect_end();
      } else if (word == "break" || word == "continue") {
        ++at_;
        expect_end();
        if (n_ranges_ == 0) fail("line {}: {{{{{}}}}} outside of a range", line_, word);
        node.kind = word == "break" ? Node::Kind::kBreak : Node::Kind::kContinue;
      } else {
        node.kind = Node::Kind::kAction;
        node.pipe = parse_pipe(0, false);
        expect_end();
      }
      nodes.push_back(std::move(node));
    }
    return nodes;
  }

  void parse_branch(Node& node, int depth, const std::string& word) {
    const std::size_t n_variables = variables_.size();
    const bool is_range = node.kind == Node::Kind::kRange;
    const int line = line_;
    node.pipe = parse_pipe(0, is_range);
    expect_end();
    n_ranges_ += is_range ? 1 : 0;
    std::string end;
    node.body = parse_list(depth + 1, end);
    n_ranges_ -= is_range ? 1 : 0;
    if (end == "else") {
      // "else if" and "else with" are a branch of their own inside the else, and share its end.
      const std::string again = peek().kind == Token::Kind::kIdentifier ? peek().text : "";
      if ((again == "if" || again == "with") && !is_range) {
        ++at_;
        Node inner;
        inner.order = ++order_;
        inner.kind = again == "if" ? Node::Kind::kIf : Node::Kind::kWith;
        if (depth > kMaxDepth) fail("line {}: blocks are nested deeper than {}", line_, kMaxDepth);
        parse_branch(inner, depth + 1, again);
        node.otherwise.push_back(std::move(inner));
        end = "end";
      } else {
        expect_end();
        node.otherwise = parse_list(depth + 1, end);
      }
    }
    if (end != "end") fail("line {}: {{{{{}}}}} without its end", line, word);
    variables_.resize(n_variables);
  }

  std::string parse_name(const std::string& word) {
    const Token token = take();
    if (token.kind != Token::Kind::kConstant || !token.constant.text())
      fail("line {}: {{{{{}}}}} needs a name in quotes", line_, word);
    return token.constant.text()->bytes();
  }

  Pipe parse_pipe(int depth, bool in_range) {
    if (depth > kMaxDepth) fail("line {}: parentheses are nested deeper than {}", line_, kMaxDepth);
    Pipe pipe;
    if (depth == 0) parse_declaration(pipe, in_range);
    for (;;) {
      Command command;
      while (starts_operand()) {
        if (!command.args.empty() && !peek().spaced && peek().kind != Token::Kind::kPunctuation &&
            tokens_[at_ - 1].text != "(")
          fail("line {}: operands need a space between them", line_);
        command.args.push_back(parse_operand(depth));
      }
      if (command.args.empty()) fail("line {}: missing value", line_);
      const Expr& first = command.args[0];
      if (first.kind == Expr::Kind::kNil) fail("line {}: nil is not a command", line_);
      if (command.args.size() > 1 && first.kind != Expr::Kind::kFunction)
        fail("line {}: only a function can have arguments", line_);
      if (!pipe.commands.empty() && first.kind != Expr::Kind::kFunction)
        fail("line {}: only a function can stand behind |", line_);
      pipe.commands.push_back(std::move(command));
      if (peek().kind != Token::Kind::kPunctuation || peek().text != "|") break;
      ++at_;
    }
    for (const std::string& name : pipe.variables)
      if (pipe.declares) variables_.push_back(name);
    return pipe;
  }

  void parse_declaration(Pipe& pipe, bool in_range) {
    const auto is_punctuation = [&](std::size_t at, std::string_view text) {
      return at < tokens_.size() && tokens_[at].kind == Token::Kind::kPunctuation && tokens_[at].text == text;
    };
    if (peek().kind != Token::Kind::kVariable) return;
    std::size_t n = 1;
    if (in_range && is_punctuation(at_ + 1, ",") && at_ + 2 < tokens_.size() &&
        tokens_[at_ + 2].kind == Token::Kind::kVariable)
      n = 2;
    const std::size_t sign = at_ + (n == 2 ? 3 : 1);
    if (!is_punctuation(sign, ":=") && !is_punctuation(sign, "=")) return;
    pipe.declares = tokens_[sign].text == ":=";
    for (std::size_t i = 0; i < n; ++i) {
      const std::string& name = tokens_[at_ + 2 * i].text;
      if (!pipe.declares) check_variable(name);
      pipe.variables.push_back(name);
    }
    at_ = sign + 1;
  }

  bool starts_operand() const {
    const Token& token = peek();
    return token.kind != Token::Kind::kEnd && (token.kind != Token::Kind::kPunctuation || token.text == "(");
  }

  Expr parse_operand(int depth) {
    const Token token = take();
    Expr expr;
    switch (token.kind) {
      case Token::Kind::kDot:
        break;
      case Token::Kind::kField:
        expr.fields.push_back(token.text);
        break;
      case Token::Kind::kVariable:
        check_variable(token.text);
        expr.kind = Expr::Kind::kVariable;
        expr.name = token.text;
        break;
      case Token::Kind::kConstant:
        expr.kind = Expr::Kind::kConstant;
        expr.constant = token.constant;
        break;
      case Token::Kind::kIdentifier:
        if (token.text == "true" || token.text == "false") {
          expr.kind = Expr::Kind::kConstant;
          expr.constant = Value(token.text == "true");
        } else if (token.text == "nil") {
          expr.kind = Expr::Kind::kNil;
        } else {
          if (!is_function(token.text)) fail("line {}: function \"{}\" not defined", line_, token.text);
          expr.kind = Expr::Kind::kFunction;
          expr.name = token.text;
        }
        break;
      default: {  // "("
        expr.kind = Expr::Kind::kPipe;
        expr.pipe = std::make_shared<const Pipe>(parse_pipe(depth + 1, false));
        const Token close = take();
        if (close.kind != Token::Kind::kPunctuation || close.text != ")") fail("line {}: missing \")\"", line_);
        break;
      }
    }
    while (peek().kind == Token::Kind::kField && !peek().spaced) {
      if (expr.kind == Expr::Kind::kConstant || expr.kind == Expr::Kind::kNil)
        fail("line {}: a constant has no field {}", line_, peek().text);
      expr.fields.push_back(take().text);
    }
    return expr;
  }

  void check_variable(const std::string& name) {
    if (std::ranges::find(variables_, name) == variables_.end())
      fail("line {}: undefined variable \"{}\"", line_, name);
  }

  const Token& peek() const { return tokens_[at_]; }
  Token take() {
    const Token& token = tokens_[at_];
    if (token.kind != Token::Kind::kEnd) ++at_;
    return token;
  }
  void expect_end() {
    if (peek().kind != Token::Kind::kEnd) fail("line {}: unexpected \"{}\" in an action", line_, peek().text);
  }

  std::vector<Piece> pieces_;
  std::size_t next_ = 0;
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int line_ = 1, order_ = 0, n_ranges_ = 0;
  std::vector<std::string> variables_ = {"$"};
  Template result_;
};

bool reads_name(const Pipe& pipe, std::string_view name);
bool reads_name(const Expr& expr, std::string_view name) {
  if (expr.kind == Expr::Kind::kVariable && equal_but_case(expr.name, name)) return true;
  if (std::ranges::any_of(expr.fields, [&](const std::string& field) { return equal_but_case(field, name); }))
    return true;
  return expr.pipe && reads_name(*expr.pipe, name);
}
bool reads_name(const Pipe& pipe, std::string_view name) {
  for (const Command& command : pipe.commands)
    for (const Expr& expr : command.args)
      if (reads_name(expr, name)) return true;
  return false;
}
bool reads_name(const std::vector<Node>& nodes, std::string_view name) {
  return std::ranges::any_of(nodes, [&](const Node& node) {
    return reads_name(node.pipe, name) || reads_name(node.body, name) || reads_name(node.otherwise, name);
  });
}

int find_response(const std::vector<Node>& nodes) {
  for (const Node& node : nodes) {
    if (node.kind == Node::Kind::kAction)
      for (const Command& command : node.pipe.commands)
        for (const Expr& expr : command.args)
          if (std::ranges::find(expr.fields, "Response") != expr.fields.end() && expr.kind == Expr::Kind::kDot)
            return node.order;
    if (const int found = find_response(node.body); found > 0) return found;
    if (const int found = find_response(node.otherwise); found > 0) return found;
  }
  return 0;
}

}  // namespace

bool Template::reads(std::string_view name) const {
  if (reads_name(body, name)) return true;
  return std::ranges::any_of(defined, [&](const auto& entry) { return reads_name(entry.second, name); });
}

int Template::first_response() const {
  return find_response(body);
}

Template parse_template(std::string_view source) {
  return Parser(source).run();
}

}  // namespace still::go

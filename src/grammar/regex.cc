// See regex.h. A recursive-descent parser that writes the nodes as it goes.
#include "grammar/regex.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "text/unicode.h"

namespace still {
namespace {

constexpr int kMaxPatternDepth = 50;
constexpr std::int64_t kMaxRepeat = 10'000;

const CharSet& digits() {
  static const CharSet set{{'0', '9'}};
  return set;
}
const CharSet& word_chars() {
  static const CharSet set{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
  return set;
}
const CharSet& ascii_spaces() {
  static const CharSet set{{'\t', '\r'}, {' ', ' '}};
  return set;
}
// What JavaScript or Python calls white space.
const CharSet& all_spaces() {
  static const CharSet set{{'\t', '\r'},     {0x1c, 0x20},     {0x85, 0x85},     {0xa0, 0xa0},
                           {0x1680, 0x1680}, {0x2000, 0x200a}, {0x2028, 0x2029}, {0x202f, 0x202f},
                           {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}};
  return set;
}
const CharSet& ascii() {
  static const CharSet set{{0, 0x7f}};
  return set;
}

class RegexParser {
 public:
  RegexParser(GrammarDraft& draft, std::string_view pattern, const RegexOptions& options)
      : draft_(draft), text_(pattern), options_(options) {}

  Result<RegexNode> parse() {
    if (!is_valid_utf8(text_)) return fail("not valid UTF-8");
    STILL_TRY(RegexNode node, parse_choice(0));
    if (pos_ < text_.size()) return fail("')' without '('");
    return node;
  }

 private:
  template <class... Args>
  tl::unexpected<Error> fail(fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kInvalidArgument, "{}: at character {}: {}", options_.place, n_chars(),
                 fmt::format(format, std::forward<Args>(args)...));
  }
  template <class... Args>
  tl::unexpected<Error> refuse(fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kUnsupported, "{}: at character {}: {}", options_.place, n_chars(),
                 fmt::format(format, std::forward<Args>(args)...));
  }
  std::int64_t n_chars() const {
    return 1 + std::count_if(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(std::min(pos_, text_.size())),
                             [](char c) { return (c & 0xc0) != 0x80; });
  }
  char peek(std::size_t ahead = 0) const { return pos_ + ahead < text_.size() ? text_[pos_ + ahead] : '\0'; }
  bool at_end() const { return pos_ >= text_.size(); }
  bool take(char c) {
    if (at_end() || text_[pos_] != c) return false;
    ++pos_;
    return true;
  }
  char32_t next_char() {
    const DecodedChar c = decode_char(text_, pos_);
    pos_ += static_cast<std::size_t>(std::max(c.size, 1));
    return c.code;
  }

  RegexNode chars(const CharSet& set) {
    return {options_.in_json_string ? add_json_chars(draft_, set) : draft_.set(set), 1, 1};
  }
  RegexNode any_text() { return {draft_.repeat(chars(CharSet::all()).node, 0, GrammarDraft::kNoLimit), 0, -1}; }

  static void append(RegexNode& to, const RegexNode& part) {
    to.min_length += part.min_length;
    to.max_length = to.max_length < 0 || part.max_length < 0 ? -1 : to.max_length + part.max_length;
  }

  Result<RegexNode> parse_choice(int depth) {
    if (depth > kMaxPatternDepth) return refuse("more than {} groups inside one another", kMaxPatternDepth);
    std::vector<GrammarDraft::Node> options;
    RegexNode all;
    do {
      STILL_TRY(RegexNode option, parse_sequence(depth));
      all.min_length = options.empty() ? option.min_length : std::min(all.min_length, option.min_length);
      const bool unlimited = option.max_length < 0 || (!options.empty() && all.max_length < 0);
      all.max_length = unlimited ? -1 : std::max(all.max_length, option.max_length);
      options.push_back(option.node);
    } while (take('|'));
    all.node = draft_.choice(std::move(options));
    return all;
  }

  Result<RegexNode> parse_sequence(int depth) {
    std::vector<GrammarDraft::Node> parts;
    RegexNode all;
    const bool is_outer = depth == 0;
    bool begins = false, ends = false;
    while (take('^')) {
      if (!is_outer) return refuse("an anchor inside a group");
      begins = true;
    }
    while (!at_end() && peek() != '|' && peek() != ')') {
      if (peek() == '^') return refuse("an anchor inside the expression");
      if (take('$')) {
        if (!is_outer || (!at_end() && peek() != '|' && peek() != '$'))
          return refuse("an anchor inside the expression");
        ends = true;
        continue;
      }
      STILL_TRY(RegexNode part, parse_repeat(depth));
      append(all, part);
      parts.push_back(part.node);
    }
    if (is_outer && options_.opens_unanchored_end && begins != ends) {
      const RegexNode rest = any_text();
      append(all, rest);
      parts.insert(begins ? parts.end() : parts.begin(), rest.node);
    }
    all.node = draft_.sequence(std::move(parts));
    return all;
  }

  Result<RegexNode> parse_repeat(int depth) {
    STILL_TRY(RegexNode node, parse_atom(depth));
    bool repeated = false;
    while (!at_end()) {
      std::int64_t min = 0, max = GrammarDraft::kNoLimit;
      if (take('*')) {
      } else if (take('+')) {
        min = 1;
      } else if (take('?')) {
        max = 1;
      } else if (peek() == '{') {
        const std::size_t begin = pos_++;
        const auto low = take_number();
        if (!low) {  // a brace that means itself, as in /{}/
          pos_ = begin;
          break;
        }
        min = max = *low;
        if (take(',')) {
          const auto high = take_number();
          max = high ? *high : GrammarDraft::kNoLimit;
        }
        if (!take('}')) return fail("a repetition is {{m}}, {{m,}} or {{m,n}}");
        if (max != GrammarDraft::kNoLimit && max < min) return fail("a repetition from {} to {}", min, max);
        if (std::max(min, max) > kMaxRepeat) return refuse("more than {} repetitions", kMaxRepeat);
      } else {
        break;
      }
      if (repeated) return fail("nothing to repeat");
      repeated = true;
      take('?');  // lazy or greedy, the text is the same
      if (peek() == '+') return refuse("possessive repetition");
      node.node = draft_.repeat(node.node, static_cast<std::int32_t>(min), static_cast<std::int32_t>(max));
      const bool unlimited = node.max_length != 0 && (max == GrammarDraft::kNoLimit || node.max_length < 0);
      node.min_length *= min;
      node.max_length = unlimited ? -1 : node.max_length * std::max<std::int64_t>(max, 0);
      if (node.min_length > 1'000'000) return refuse("a text of more than a million characters");
      node.max_length = node.max_length > 1'000'000'000 ? -1 : node.max_length;
    }
    return node;
  }

  std::optional<std::int64_t> take_number() {
    if (!std::isdigit(static_cast<unsigned char>(peek()))) return std::nullopt;
    std::int64_t value = 0;
    while (std::isdigit(static_cast<unsigned char>(peek()))) {
      value = std::min<std::int64_t>(value * 10 + (peek() - '0'), kMaxRepeat + 1);
      ++pos_;
    }
    return value;
  }

  Result<RegexNode> parse_atom(int depth) {
    if (take('(')) return parse_group(depth);
    if (take('[')) {
      STILL_TRY(CharSet set, parse_class());
      return chars(set);
    }
    if (take('.')) return chars(CharSet{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}.complement());
    if (take('\\')) {
      bool is_class = false;
      STILL_TRY(CharSet set, parse_escape(false, is_class));
      return chars(set);
    }
    if (peek() == '*' || peek() == '+' || peek() == '?') return fail("nothing to repeat");
    const char32_t code = next_char();
    return chars(CharSet{{code, code}});
  }

  Result<RegexNode> parse_group(int depth) {
    if (take('?')) {
      if (take('P') && peek() != '<') return refuse("(?P...) that is no named group");
      if (take('<')) {
        if (peek() == '=' || peek() == '!') return refuse("look-behind");
        while (!at_end() && peek() != '>') ++pos_;
        if (!take('>')) return fail("a group's name without '>'");
      } else if (!take(':')) {
        return peek() == '=' || peek() == '!' ? refuse("look-ahead") : refuse("(?{}...)", peek());
      }
    }
    STILL_TRY(RegexNode node, parse_choice(depth + 1));
    if (!take(')')) return fail("'(' without ')'");
    return node;
  }

  Result<CharSet> parse_class() {
    const bool negated = take('^');
    CharSet set;
    bool has_class = false;
    for (bool first = true;; first = false) {
      if (at_end()) return fail("'[' without ']'");
      if (!first && take(']')) break;
      if (first && peek() == ']') return refuse("an empty class, or ']' as its first character (write \\])");
      bool is_class = false;
      STILL_TRY(CharSet low, parse_class_char(is_class));
      has_class |= is_class;
      if (peek() == '-' && peek(1) != ']' && peek(1) != '\0') {
        if (is_class) return fail("a range that begins with a class");
        ++pos_;
        STILL_TRY(CharSet high, parse_class_char(is_class));
        if (is_class) return fail("a range that ends with a class");
        if (high.ranges()[0].first < low.ranges()[0].first) return fail("a range whose end is before its beginning");
        set.add(low.ranges()[0].first, high.ranges()[0].first);
      } else {
        set.add(low);
      }
    }
    if (!negated) return set.without(CharSet{{0xd800, 0xdfff}});
    // In Python \d and \w hold Unicode's digits and letters, in JavaScript only ASCII's: both agree on ASCII.
    return has_class ? ascii().without(set) : set.complement();
  }

  Result<CharSet> parse_class_char(bool& is_class) {
    is_class = false;
    if (take('\\')) return parse_escape(true, is_class);
    if (peek() == '[' && (peek(1) == ':' || peek(1) == '.' || peek(1) == '=')) return refuse("POSIX classes");
    const char32_t code = next_char();
    return CharSet{{code, code}};
  }

  // Behind a backslash.
  Result<CharSet> parse_escape(bool in_class, bool& is_class) {
    if (at_end()) return fail("a backslash at the end");
    const char32_t code = next_char();
    const auto one = [](char32_t c) { return CharSet{{c, c}}; };
    switch (code) {
      case 'd':
        is_class = true;
        return digits();
      case 'w':
        is_class = true;
        return word_chars();
      case 's':
        return ascii_spaces();
      case 'D':
        return ascii().without(digits());
      case 'W':
        return ascii().without(word_chars());
      case 'S':
        return all_spaces().complement();
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case '0':
        if (std::isdigit(static_cast<unsigned char>(peek()))) return refuse("octal escapes");
        return one(0);
      case 'x':
        return parse_hex(2);
      case 'u':
        if (take('{')) {
          STILL_TRY(CharSet set, parse_hex(0));
          if (!take('}')) return fail("\\u{{ without }}");
          return set;
        }
        return parse_hex(4);
      case 'U':
        return parse_hex(8);
      case 'b':
        if (in_class) return one('\b');
        [[fallthrough]];
      case 'B':
      case 'A':
      case 'Z':
      case 'z':
      case 'G':
        return refuse("\\{}: boundaries", static_cast<char>(code));
      case 'p':
      case 'P':
        return refuse("\\{}: classes of Unicode properties", static_cast<char>(code));
      default:
        break;
    }
    if (code >= '1' && code <= '9') return refuse("references to groups");
    if (code < 0x80 && std::isalnum(static_cast<int>(code))) return refuse("\\{}", static_cast<char>(code));
    return one(code);
  }

  // `n` digits; 0: one to six.
  Result<CharSet> parse_hex(int n) {
    char32_t value = 0;
    int got = 0;
    while (std::isxdigit(static_cast<unsigned char>(peek())) && got < (n == 0 ? 6 : n)) {
      const char c = peek();
      value = value * 16 + static_cast<char32_t>(c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
      ++pos_;
      ++got;
    }
    if (got == 0 || (n > 0 && got != n)) return fail("an escape with too few hexadecimal digits");
    if (value > 0x10ffff) return fail("an escape above U+10FFFF");
    if (value >= 0xd800 && value <= 0xdfff) return refuse("escapes of surrogates (write \\u{{...}})");
    return CharSet{{value, value}};
  }

  GrammarDraft& draft_;
  std::string_view text_;
  const RegexOptions& options_;
  std::size_t pos_ = 0;
};

}  // namespace

GrammarDraft::Node add_json_chars(GrammarDraft& draft, const CharSet& set) {
  static const CharSet kEscaped{{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};
  std::vector<GrammarDraft::Node> options;
  const CharSet plain = set.without(kEscaped);
  if (!plain.empty()) options.push_back(draft.set(plain));
  for (char32_t code : {U'"', U'\\'})
    if (set.contains(code)) options.push_back(draft.literal(std::string("\\") + static_cast<char>(code)));
  constexpr std::pair<char32_t, char> kShort[] = {{'\b', 'b'}, {'\t', 't'}, {'\n', 'n'}, {'\f', 'f'}, {'\r', 'r'}};
  for (const auto& [code, letter] : kShort)
    if (set.contains(code)) options.push_back(draft.literal(std::string("\\") + letter));
  CharSet low[2];  // last hexadecimal digit of \u000x and \u001x
  for (char32_t code = 0; code < 0x20; ++code) {
    if (!set.contains(code)) continue;
    const char32_t digit = code % 16;
    const char32_t letter = digit < 10 ? U'0' + digit : U'a' + digit - 10;
    low[code / 16].add(letter, letter);
  }
  if (!low[0].empty()) options.push_back(draft.sequence({draft.literal("\\u000"), draft.set(low[0])}));
  if (!low[1].empty()) options.push_back(draft.sequence({draft.literal("\\u001"), draft.set(low[1])}));
  return draft.choice(std::move(options));
}

Result<RegexNode> add_regex(GrammarDraft& draft, std::string_view pattern, const RegexOptions& options) {
  return RegexParser(draft, pattern, options).parse();
}

}  // namespace still

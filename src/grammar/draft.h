// GrammarDraft: a context-free grammar under construction, as an arena of nodes, from which the text for the grammar
// engine (EBNF) is written. What can never be matched (an empty choice, a rule that only leads back to itself) is cut
// out; where that reaches the root, the error names the place in the source. Bounded: foreign schemas build it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace still {

// Sorted, disjoint, inclusive ranges of code points.
class CharSet {
 public:
  using Range = std::pair<char32_t, char32_t>;
  CharSet() = default;
  CharSet(std::initializer_list<Range> ranges) {
    for (const Range& range : ranges) add(range.first, range.second);
  }
  static CharSet all();  // every character that UTF-8 can hold: no surrogates
  void add(char32_t first, char32_t last);
  void add(const CharSet& other);
  CharSet complement() const;
  CharSet without(const CharSet& other) const;
  bool contains(char32_t code) const;
  bool empty() const { return ranges_.empty(); }
  const std::vector<Range>& ranges() const { return ranges_; }

 private:
  std::vector<Range> ranges_;
};

class GrammarDraft {
 public:
  using Node = std::int32_t;
  using Rule = std::int32_t;
  static constexpr std::int32_t kNoLimit = -1;
  static constexpr std::size_t kMaxNodes = 100'000;

  Node empty();    // matches the empty text
  Node nothing();  // matches no text
  Node literal(std::string_view utf8);
  Node set(const CharSet& set);
  Node sequence(std::vector<Node> parts);
  Node choice(std::vector<Node> options);
  Node repeat(Node node, std::int32_t min, std::int32_t max);  // max: kNoLimit
  Node optional(Node node) { return choice({empty(), node}); }

  // `place` stands in errors: a JSON pointer or the like.
  Rule declare_rule(std::string_view place);
  void define(Rule rule, Node body);
  Node call(Rule rule);

  bool is_too_big() const { return nodes_.size() > kMaxNodes; }
  // The grammar from `root` on; its rule is called "root". kInvalidArgument where nothing can match, kResourceExhausted
  // for a grammar that is too big.
  Result<std::string> to_ebnf(Node root) const;

 private:
  enum class Kind : std::uint8_t { kEmpty, kLiteral, kSet, kSequence, kChoice, kRepeat, kCall };
  struct Item {
    Kind kind = Kind::kEmpty;
    std::string text;         // kLiteral
    CharSet set;              // kSet
    std::vector<Node> parts;  // kSequence, kChoice; kRepeat: one
    std::int32_t min = 0, max = 0;
    Rule rule = -1;
  };
  struct RuleItem {
    std::string place;
    Node body = -1;
  };
  struct Writer;

  Node add(Item item);
  bool can_match(Node node, const std::vector<bool>& rule_matches) const;
  std::string explain_nothing(Node node, const std::vector<bool>& rule_matches) const;

  std::vector<Item> nodes_;
  std::vector<RuleItem> rules_;
};

}  // namespace still

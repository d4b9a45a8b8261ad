// See draft.h.
#include "grammar/draft.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "text/unicode.h"

namespace still {
namespace {
constexpr std::size_t kMaxText = 4 << 20;
}

CharSet CharSet::all() {
  return {{0, 0xd7ff}, {0xe000, 0x10ffff}};
}

void CharSet::add(char32_t first, char32_t last) {
  if (first > last) return;
  std::vector<Range> merged;
  bool placed = false;
  for (const Range& range : ranges_) {
    if (range.second + 1 < first) {
      merged.push_back(range);
    } else if (last + 1 < range.first) {
      if (!std::exchange(placed, true)) merged.emplace_back(first, last);
      merged.push_back(range);
    } else {
      first = std::min(first, range.first);
      last = std::max(last, range.second);
    }
  }
  if (!placed) merged.emplace_back(first, last);
  ranges_ = std::move(merged);
}

void CharSet::add(const CharSet& other) {
  for (const Range& range : other.ranges_) add(range.first, range.second);
}

CharSet CharSet::without(const CharSet& other) const {
  CharSet out;
  for (auto [first, last] : ranges_) {
    for (const Range& hole : other.ranges_) {
      if (hole.second < first || hole.first > last) continue;
      if (hole.first > first) out.add(first, hole.first - 1);
      first = hole.second + 1;
      if (first > last) break;
    }
    if (first <= last) out.add(first, last);
  }
  return out;
}

CharSet CharSet::complement() const {
  return all().without(*this);
}

bool CharSet::contains(char32_t code) const {
  return std::ranges::any_of(ranges_, [&](const Range& range) { return range.first <= code && code <= range.second; });
}

GrammarDraft::Node GrammarDraft::add(Item item) {
  // Beyond the limit nothing grows; to_ebnf() reports it.
  if (is_too_big()) return 0;
  nodes_.push_back(std::move(item));
  return static_cast<Node>(nodes_.size()) - 1;
}

GrammarDraft::Node GrammarDraft::empty() {
  return add({});
}

GrammarDraft::Node GrammarDraft::nothing() {
  return choice({});
}

GrammarDraft::Node GrammarDraft::literal(std::string_view utf8) {
  if (utf8.empty()) return empty();
  return add({.kind = Kind::kLiteral, .text = std::string(utf8)});
}

GrammarDraft::Node GrammarDraft::set(const CharSet& set) {
  if (set.empty()) return nothing();
  return add({.kind = Kind::kSet, .set = set});
}

GrammarDraft::Node GrammarDraft::sequence(std::vector<Node> parts) {
  if (parts.size() == 1) return parts[0];
  return add({.kind = Kind::kSequence, .parts = std::move(parts)});
}

GrammarDraft::Node GrammarDraft::choice(std::vector<Node> options) {
  if (options.size() == 1) return options[0];
  return add({.kind = Kind::kChoice, .parts = std::move(options)});
}

GrammarDraft::Node GrammarDraft::repeat(Node node, std::int32_t min, std::int32_t max) {
  if (max == 0) return empty();
  if (min == 1 && max == 1) return node;
  return add({.kind = Kind::kRepeat, .parts = {node}, .min = min, .max = max});
}

GrammarDraft::Rule GrammarDraft::declare_rule(std::string_view place) {
  if (rules_.size() <= kMaxNodes) rules_.push_back({std::string(place), -1});
  return static_cast<Rule>(rules_.size()) - 1;
}

void GrammarDraft::define(Rule rule, Node body) {
  rules_[static_cast<std::size_t>(rule)].body = body;
}

GrammarDraft::Node GrammarDraft::call(Rule rule) {
  return add({.kind = Kind::kCall, .rule = rule});
}

bool GrammarDraft::can_match(Node node, const std::vector<bool>& rule_matches) const {
  const Item& item = nodes_[static_cast<std::size_t>(node)];
  const auto part_can_match = [&](Node part) { return can_match(part, rule_matches); };
  switch (item.kind) {
    case Kind::kSequence:
      return std::ranges::all_of(item.parts, part_can_match);
    case Kind::kChoice:
      return std::ranges::any_of(item.parts, part_can_match);
    case Kind::kRepeat:
      return item.min == 0 || part_can_match(item.parts[0]);
    case Kind::kCall:
      return rule_matches[static_cast<std::size_t>(item.rule)];
    default:
      return true;
  }
}

// Where the first thing that cannot match, on the way from `node`, has its place.
std::string GrammarDraft::explain_nothing(Node node, const std::vector<bool>& rule_matches) const {
  std::string place;
  std::vector<bool> visited(rules_.size());
  while (true) {
    const Item& item = nodes_[static_cast<std::size_t>(node)];
    if (item.kind == Kind::kCall) {
      if (visited[static_cast<std::size_t>(item.rule)])
        return (place.empty() ? "the schema" : place) + ": every value that fits would have to contain itself";
      visited[static_cast<std::size_t>(item.rule)] = true;
      const RuleItem& rule = rules_[static_cast<std::size_t>(item.rule)];
      if (!rule.place.empty()) place = rule.place;
      node = rule.body;
      continue;
    }
    const auto bad = std::ranges::find_if(item.parts, [&](Node part) { return !can_match(part, rule_matches); });
    if (bad == item.parts.end()) return (place.empty() ? "the schema" : place) + ": no value can fit";
    node = *bad;
  }
}

struct GrammarDraft::Writer {
  const GrammarDraft& draft;
  const std::vector<bool>& rule_matches;
  std::string out;
  std::vector<bool> wanted;
  std::vector<Rule> queue;

  void escape(char32_t code) {
    if (code < 0x80 && (std::isalnum(static_cast<int>(code)) || code == ' ' || code == '_'))
      out += static_cast<char>(code);
    else if (code <= 0xffff)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(code));
    else
      out += fmt::format("\\U{:08x}", static_cast<unsigned>(code));
  }

  void call(Rule rule) {
    if (!wanted[static_cast<std::size_t>(rule)]) {
      wanted[static_cast<std::size_t>(rule)] = true;
      queue.push_back(rule);
    }
    out += fmt::format("r{}", rule);
  }

  void write(Node node) {
    const Item& item = draft.nodes_[static_cast<std::size_t>(node)];
    switch (item.kind) {
      case Kind::kEmpty:
        out += "\"\"";
        break;
      case Kind::kLiteral:
        out += '"';
        for (std::size_t pos = 0; pos < item.text.size();) {
          const DecodedChar c = decode_char(item.text, pos);
          pos += static_cast<std::size_t>(std::max(c.size, 1));
          escape(c.code == kInvalidChar ? U'\ufffd' : c.code);
        }
        out += '"';
        break;
      case Kind::kSet:
        out += '[';
        for (const CharSet::Range& range : item.set.ranges()) {
          escape(range.first);
          if (range.second == range.first) continue;
          out += '-';
          escape(range.second);
        }
        out += ']';
        break;
      case Kind::kSequence:
        out += '(';
        if (item.parts.empty()) out += "\"\"";
        for (std::size_t i = 0; i < item.parts.size(); ++i) {
          if (i > 0) out += ' ';
          write(item.parts[i]);
        }
        out += ')';
        break;
      case Kind::kChoice: {
        out += '(';
        bool first = true;
        for (const Node part : item.parts) {
          if (!draft.can_match(part, rule_matches)) continue;
          if (!std::exchange(first, false)) out += " | ";
          write(part);
        }
        out += ')';
        break;
      }
      case Kind::kRepeat:
        if (!draft.can_match(item.parts[0], rule_matches)) {
          out += "\"\"";
          break;
        }
        out += '(';
        write(item.parts[0]);
        out += ')';
        if (item.max == kNoLimit && item.min == 0)
          out += '*';
        else if (item.max == kNoLimit && item.min == 1)
          out += '+';
        else if (item.max == kNoLimit)
          out += fmt::format("{{{},}}", item.min);
        else
          out += fmt::format("{{{},{}}}", item.min, item.max);
        break;
      case Kind::kCall:
        call(item.rule);
        break;
    }
  }
};

Result<std::string> GrammarDraft::to_ebnf(Node root) const {
  if (is_too_big() || rules_.size() > kMaxNodes)
    return error(Code::kResourceExhausted, "the grammar has more than {} parts", kMaxNodes);
  std::vector<bool> rule_matches(rules_.size(), false);
  for (bool changed = true; changed;) {
    changed = false;
    for (std::size_t i = 0; i < rules_.size(); ++i)
      if (!rule_matches[i] && rules_[i].body >= 0 && can_match(rules_[i].body, rule_matches))
        changed = rule_matches[i] = true;
  }
  if (!can_match(root, rule_matches)) return error(Code::kInvalidArgument, "{}", explain_nothing(root, rule_matches));

  Writer writer{*this, rule_matches, {}, std::vector<bool>(rules_.size()), {}};
  writer.out = "root ::= ";
  writer.write(root);
  writer.out += '\n';
  while (!writer.queue.empty()) {
    const Rule rule = writer.queue.back();
    writer.queue.pop_back();
    writer.out += fmt::format("r{} ::= ", rule);
    writer.write(rules_[static_cast<std::size_t>(rule)].body);
    writer.out += '\n';
    if (writer.out.size() > kMaxText)
      return error(Code::kResourceExhausted, "the grammar is larger than {} bytes", kMaxText);
  }
  return std::move(writer.out);
}

}  // namespace still

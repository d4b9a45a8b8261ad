// See json_schema.h. One function a type; json_schema_merge.cc has removed $ref beside other keywords and allOf before.
#include "grammar/json_schema.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "grammar/json_schema_merge.h"
#include "grammar/number_range.h"
#include "grammar/regex.h"
#include "text/unicode.h"

namespace still {
namespace {

using Node = GrammarDraft::Node;
using Rule = GrammarDraft::Rule;

constexpr int kMaxDepth = 64;
constexpr std::int64_t kMaxCount = 100'000;       // lengths and counts in a schema
constexpr std::int64_t kMaxPropertyRules = 5000;  // keys times counts of one object
constexpr std::size_t kMaxBranches = 500;
constexpr std::int32_t kMaxChain = 300;  // characters of strings with a length

// What all values share, made when first wanted.
class JsonRules {
 public:
  JsonRules(GrammarDraft& draft, const SchemaOptions& options) : draft_(draft), options_(options) {}

  // Between brackets, commas and values.
  Node space() {
    if (!options_.allows_whitespace) return draft_.empty();
    return once(space_, [&] {
      const Node indent =
          draft_.choice({draft_.repeat(draft_.literal(" "), 0, 32), draft_.repeat(draft_.literal("\t"), 1, 8)});
      return draft_.choice({draft_.empty(), draft_.literal(" "), draft_.sequence({draft_.literal("\n"), indent})});
    });
  }
  // Behind a colon.
  Node colon() {
    return options_.allows_whitespace ? draft_.choice({draft_.literal(":"), draft_.literal(": ")})
                                      : draft_.literal(":");
  }

  // One character inside a string, escapes included; no half surrogate pairs. One flat choice, and no rule of its own:
  // which tokens fit is known beforehand only within a rule, and a token of several characters that leaves it is tried
  // anew for every mask (28 us became 76 ms).
  Node character() {
    const Node digit = draft_.set({{'0', '9'}, {'A', 'F'}, {'a', 'f'}});
    const Node not_d = draft_.set({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}});
    const Node d = draft_.set({{'D', 'D'}, {'d', 'd'}});
    const Node high = draft_.set({{'8', '9'}, {'A', 'B'}, {'a', 'b'}}), low = draft_.set({{'C', 'F'}, {'c', 'f'}});
    const Node begin = draft_.literal("\\u");
    const Node letter =
        draft_.set({{'"', '"'}, {'/', '/'}, {'\\', '\\'}, {'b', 'b'}, {'f', 'f'}, {'n', 'n'}, {'r', 'r'}, {'t', 't'}});
    return draft_.choice({draft_.set(plain()), draft_.sequence({draft_.literal("\\"), letter}),
                          draft_.sequence({begin, not_d, digit, digit, digit}),
                          draft_.sequence({begin, d, draft_.set({{'0', '7'}}), digit, digit}),
                          draft_.sequence({begin, d, high, digit, digit, begin, d, low, digit, digit})});
  }
  // A string of `min` to `max` characters. As many as kMaxChain in a schema are one rule each, for
  // the same reason; each costs some 20 ms of compilation, so that the others make slow masks instead.
  Node string(std::int32_t min, std::int32_t max) {
    const Node quote = draft_.literal("\"");
    if (std::max(min, max) > chain_left_) return draft_.sequence({quote, draft_.repeat(character(), min, max), quote});
    chain_left_ -= std::max(min, max);
    Node rest = -1;
    if (max == GrammarDraft::kNoLimit) {
      const Rule rule = draft_.declare_rule("");
      draft_.define(rule, draft_.sequence({draft_.repeat(character(), 0, max), quote}));
      rest = draft_.call(rule);
    } else {
      rest = quote;
    }
    for (std::int32_t i = (max == GrammarDraft::kNoLimit ? min : max) - 1; i >= 0; --i) {
      const Rule rule = draft_.declare_rule("");
      const Node more = draft_.sequence({character(), rest});
      draft_.define(rule, i >= min ? draft_.choice({quote, more}) : more);
      rest = draft_.call(rule);
    }
    return draft_.sequence({quote, rest});
  }
  static CharSet plain() { return CharSet::all().without({{0, 0x1f}, {'"', '"'}, {'\\', '\\'}}); }

  Node string() {
    return once(string_, [&] {
      return draft_.sequence(
          {draft_.literal("\""), draft_.repeat(character(), 0, GrammarDraft::kNoLimit), draft_.literal("\"")});
    });
  }
  Node integer() {
    return once(integer_, [&] {
      const Node digits = draft_.sequence({draft_.set({{'1', '9'}}), draft_.repeat(digit(), 0, 17)});
      return draft_.choice({draft_.literal("0"), draft_.sequence({draft_.optional(draft_.literal("-")), digits})});
    });
  }
  Node number() {
    return once(number_, [&] {
      const Node whole = draft_.choice(
          {draft_.literal("0"), draft_.sequence({draft_.set({{'1', '9'}}), draft_.repeat(digit(), 0, 17)})});
      const Node fraction = draft_.optional(draft_.sequence({draft_.literal("."), draft_.repeat(digit(), 1, 17)}));
      const Node exponent = draft_.optional(
          draft_.sequence({draft_.set({{'E', 'E'}, {'e', 'e'}}), draft_.optional(draft_.set({{'+', '+'}, {'-', '-'}})),
                           draft_.repeat(digit(), 1, 2)}));
      return draft_.sequence({draft_.optional(draft_.literal("-")), whole, fraction, exponent});
    });
  }
  Node boolean() { return draft_.choice({draft_.literal("true"), draft_.literal("false")}); }
  Node null() { return draft_.literal("null"); }
  Node object() {
    return once(object_, [&] {
      return list("{", draft_.sequence({string(), colon(), value()}), "}", 0, GrammarDraft::kNoLimit);
    });
  }
  Node array() {
    return once(array_, [&] { return list("[", value(), "]", 0, GrammarDraft::kNoLimit); });
  }
  Node value() {
    return once(value_, [&] { return draft_.choice({object(), array(), string(), number(), boolean(), null()}); });
  }

  // open, `min` to `max` elements between commas, close.
  Node list(std::string_view open, Node element, std::string_view close, std::int32_t min, std::int32_t max) {
    std::vector<Node> options;
    if (min == 0) options.push_back(draft_.empty());
    if (max != 0)
      options.push_back(
          draft_.sequence({space(), element, more(element, std::max(min - 1, 0), max < 0 ? max : max - 1)}));
    return draft_.sequence({draft_.literal(open), draft_.choice(std::move(options)), space(), draft_.literal(close)});
  }
  Node more(Node element, std::int32_t min, std::int32_t max) {
    return draft_.repeat(draft_.sequence({draft_.literal(","), space(), element}), min, max);
  }

 private:
  Node digit() { return draft_.set({{'0', '9'}}); }
  template <class Make>
  Node once(std::optional<Rule>& rule, Make make) {
    if (!rule) {
      rule = draft_.declare_rule("");
      draft_.define(*rule, make());
    }
    return draft_.call(*rule);
  }

  GrammarDraft& draft_;
  SchemaOptions options_;
  std::int32_t chain_left_ = kMaxChain;
  std::optional<Rule> space_, string_, integer_, number_, object_, array_, value_;
};

class SchemaWriter {
 public:
  SchemaWriter(GrammarDraft& draft, const Json& root, std::string_view name, const SchemaOptions& options)
      : draft_(draft), rules_(draft, options), merger_(root, name) {}

  Result<Node> write(const Json& given, const std::string& place, int depth) {
    if (depth > kMaxDepth)
      return error(Code::kResourceExhausted, "{}: schemas more than {} levels inside one another", place.substr(0, 200),
                   kMaxDepth);
    if (draft_.is_too_big())
      return error(Code::kResourceExhausted, "{}: the schema makes a grammar of more than {} parts",
                   place.substr(0, 200), GrammarDraft::kMaxNodes);
    if (given.is_bool()) return given.get_bool() ? rules_.value() : nothing(place);
    if (!given.is_object())
      return error(Code::kInvalidArgument, "{}: expected a schema (an object, true or false)", place);
    STILL_TRY(const Json flat, merger_.flatten(given, place));
    if (!flat.is_object()) return flat.as_bool() ? rules_.value() : nothing(place);
    const JsonObject& schema = flat.get_object();
    if (const Json* reference = schema.if_contains("$ref"))
      return write_reference(reference->get_string(), place, depth);
    for (const auto& [key, value] : schema)
      if (const std::string_view why = why_refused(key, value); !why.empty())
        return error(Code::kUnsupported, "{}/{}: {}", place, std::string_view(key), why);
    for (const char* key : {"anyOf", "oneOf"})
      if (schema.contains(key)) return write_branches(schema, key, place, depth);
    if (schema.contains("enum") || schema.contains("const")) return write_values(schema, place);

    STILL_TRY(const std::vector<std::string> types, schema_types(schema, place));
    // A rule of its own, so that an error can name the place.
    const Rule rule = draft_.declare_rule(place);
    std::vector<Node> options;
    for (const std::string& type : types) {
      STILL_TRY(const Node node, write_type(type, schema, place, depth));
      options.push_back(node);
    }
    draft_.define(rule, draft_.choice(std::move(options)));
    return draft_.call(rule);
  }

 private:
  Node nothing(const std::string& place) {
    const Rule rule = draft_.declare_rule(place);
    draft_.define(rule, draft_.nothing());
    return draft_.call(rule);
  }

  Result<Node> write_reference(std::string_view reference, const std::string& place, int depth) {
    if (const auto known = references_.find(reference); known != references_.end()) return draft_.call(known->second);
    STILL_TRY(const Json* target, merger_.resolve(reference, place));
    const Rule rule = draft_.declare_rule(place);
    references_.emplace(std::string(reference), rule);
    STILL_TRY(
        const Node node,
        write(*target, std::string(place.substr(0, place.find('/'))) + std::string(reference.substr(1)), depth + 1));
    draft_.define(rule, node);
    return draft_.call(rule);
  }

  Result<Node> write_branches(const JsonObject& schema, const char* key, const std::string& place, int depth) {
    const Json& branches = schema.at(key);
    if (!branches.is_array() || branches.get_array().empty())
      return error(Code::kInvalidArgument, "{}/{}: expected an array of schemas", place, key);
    if (branches.get_array().size() > kMaxBranches)
      return error(Code::kResourceExhausted, "{}/{}: more than {} branches", place, key, kMaxBranches);
    JsonObject base = schema;
    base.erase(key);
    const bool has_base = std::ranges::any_of(base, [](const auto& member) { return !is_annotation(member.key()); });
    std::vector<Json> merged;
    for (std::size_t i = 0; i < branches.get_array().size(); ++i) {
      const Json& branch = branches.get_array()[i];
      if (!branch.is_object() && !branch.is_bool())
        return error(Code::kInvalidArgument, "{}/{}/{}: expected a schema (an object, true or false)", place, key, i);
      if (!has_base) {
        merged.push_back(branch);
        continue;
      }
      STILL_TRY(Json both, merger_.merge(base, branch, fmt::format("{}/{}/{}", place, key, i)));
      merged.push_back(std::move(both));
    }
    if (std::string_view(key) == "oneOf") {
      if (merged.size() > 40) return error(Code::kResourceExhausted, "{}/oneOf: more than 40 branches", place);
      for (std::size_t i = 0; i < merged.size(); ++i)
        for (std::size_t k = 0; k < i; ++k)
          if (!merger_.are_disjoint(merged[i], merged[k]))
            return error(Code::kUnsupported,
                         "{}/oneOf: a value might fit branches {} and {} at once; say anyOf, or tell them "
                         "apart by type or by a required property with const",
                         place, k, i);
    }
    const Rule rule = draft_.declare_rule(place);
    std::vector<Node> options;
    for (std::size_t i = 0; i < merged.size(); ++i) {
      STILL_TRY(const Node node, write(merged[i], fmt::format("{}/{}/{}", place, key, i), depth + 1));
      options.push_back(node);
    }
    draft_.define(rule, draft_.choice(std::move(options)));
    return draft_.call(rule);
  }

  Result<Node> write_values(const JsonObject& schema, const std::string& place) {
    const Json* list = schema.if_contains("enum");
    const Json* single = schema.if_contains("const");
    if (list && (!list->is_array() || list->get_array().empty()))
      return error(Code::kInvalidArgument, "{}/enum: expected an array of values", place);
    for (const auto& [key, value] : schema)
      if (key != "enum" && key != "const" && key != "type" && key != "format" && !is_annotation(key) &&
          is_constraint(key))
        return error(Code::kUnsupported, "{}/{}: beside {}", place, std::string_view(key), list ? "enum" : "const");
    STILL_TRY(const std::vector<std::string> types, schema_types(schema, place));
    std::vector<Node> options;
    const JsonArray values = list ? list->get_array() : JsonArray{*single};
    for (const Json& value : values) {
      if (single && value != *single) continue;
      if (std::ranges::none_of(types, [&](const std::string& type) { return has_type(value, type); })) continue;
      options.push_back(draft_.literal(to_json(value)));
    }
    const Rule rule = draft_.declare_rule(place);
    draft_.define(rule, draft_.choice(std::move(options)));
    return draft_.call(rule);
  }

  static bool is_constraint(std::string_view key) {
    constexpr std::string_view kWords[] = {"properties",        "required",         "additionalProperties",
                                           "patternProperties", "propertyNames",    "items",
                                           "prefixItems",       "additionalItems",  "pattern",
                                           "multipleOf",        "minimum",          "maximum",
                                           "exclusiveMinimum",  "exclusiveMaximum", "minLength",
                                           "maxLength",         "minItems",         "maxItems",
                                           "minProperties",     "maxProperties"};
    return std::ranges::find(kWords, key) != std::end(kWords);
  }

  Result<Node> write_type(const std::string& type, const JsonObject& schema, const std::string& place, int depth) {
    if (type == "object") return write_object(schema, place, depth);
    if (type == "array") return write_array(schema, place, depth);
    if (type == "string") return write_string(schema, place);
    if (type == "boolean") return rules_.boolean();
    if (type == "null") return rules_.null();
    return write_number(schema, place, type == "integer");
  }

  // A count in the schema; `fallback` where it has none.
  Result<std::int32_t> count(const JsonObject& schema, const char* key, std::int32_t fallback,
                             const std::string& place) {
    const Json* value = schema.if_contains(key);
    if (!value) return fallback;
    if (!has_type(*value, "integer") || value->to_number<double>() < 0)
      return error(Code::kInvalidArgument, "{}/{}: {}: expected a whole number of 0 or more", place, key,
                   to_json(*value).substr(0, 80));
    const double number = value->to_number<double>();
    if (number > kMaxCount) {
      // A limit beyond all that is produced is none.
      if (std::string_view(key).starts_with("max")) return GrammarDraft::kNoLimit;
      return error(Code::kResourceExhausted, "{}/{}: {}: more than {}", place, key, number, kMaxCount);
    }
    return static_cast<std::int32_t>(number);
  }
  Status check_order(std::int32_t min, std::int32_t max, const char* min_key, const char* max_key,
                     const std::string& place) {
    if (max != GrammarDraft::kNoLimit && min > max)
      return error(Code::kInvalidArgument, "{}: {} {} is more than {} {}: no value can fit", place, min_key, min,
                   max_key, max);
    return ok();
  }

  Result<Node> write_string(const JsonObject& schema, const std::string& place) {
    STILL_TRY(const std::int32_t min, count(schema, "minLength", 0, place));
    STILL_TRY(const std::int32_t max, count(schema, "maxLength", GrammarDraft::kNoLimit, place));
    STILL_TRY_STATUS(check_order(min, max, "minLength", "maxLength", place));
    const Node quote = draft_.literal("\"");
    if (const Json* pattern = schema.if_contains("pattern")) {
      if (!pattern->is_string()) return error(Code::kInvalidArgument, "{}/pattern: expected a string", place);
      const std::string where = place + "/pattern";
      STILL_TRY(const RegexNode regex,
                add_regex(draft_, pattern->get_string(),
                          {.in_json_string = true, .opens_unanchored_end = true, .place = where}));
      const bool is_short = max == GrammarDraft::kNoLimit || (regex.max_length >= 0 && regex.max_length <= max);
      if (regex.min_length < min || !is_short)
        return error(Code::kUnsupported,
                     "{}: minLength or maxLength beside a pattern that does not keep to them itself", place);
      return draft_.sequence({quote, regex.node, quote});
    }
    if (const Json* format = schema.if_contains("format");
        format && format->is_string() && min == 0 && max == GrammarDraft::kNoLimit) {
      if (const std::string_view pattern = format_pattern(format->get_string()); !pattern.empty()) {
        STILL_TRY(const RegexNode regex,
                  add_regex(draft_, pattern, {.in_json_string = true, .opens_unanchored_end = false, .place = place}));
        return draft_.sequence({quote, regex.node, quote});
      }
    }
    if (min == 0 && max == GrammarDraft::kNoLimit) return rules_.string();
    return rules_.string(min, max);
  }

  // Formats whose texts can be told by a pattern; the others say nothing about validity.
  static std::string_view format_pattern(std::string_view format) {
#define STILL_DATE "[12][0-9]{3}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])"
#define STILL_TIME "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
    constexpr std::pair<std::string_view, std::string_view> kFormats[] = {
        {"date", STILL_DATE},
        {"time", STILL_TIME},
        {"date-time", STILL_DATE "T" STILL_TIME},
        {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
        {"ipv4", "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"},
        {"email",
         "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,32}){0,3}@[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?(\\.[A-Za-z0-9]"
         "([A-Za-z0-9-]{0,30}[A-Za-z0-9])?){1,4}"},
        {"duration",
         "P([1-9][0-9]{0,3}Y)?([1-9][0-9]{0,3}M)?[1-9][0-9]{0,3}D(T[1-9][0-9]{0,3}H([1-9][0-9]{0,3}M([1-9][0-9]{0,3}S)?"
         ")?)?"},
    };
#undef STILL_DATE
#undef STILL_TIME
    const auto* found = std::ranges::find(kFormats, format, &std::pair<std::string_view, std::string_view>::first);
    return found == std::end(kFormats) ? std::string_view() : found->second;
  }

  Result<Node> write_number(const JsonObject& schema, const std::string& place, bool is_integer) {
    NumberRange range{.low = {}, .high = {}, .is_integer = is_integer};
    const auto read = [&](const char* key, const char* exclusive_key, std::optional<NumberBound>& bound,
                          int sign) -> Status {
      const Json* plain = schema.if_contains(key);
      const Json* exclusive = schema.if_contains(exclusive_key);
      // Draft 4: exclusiveMinimum is a flag of minimum.
      const bool is_flag = exclusive && exclusive->is_bool();
      if (plain) {
        STILL_TRY(Decimal value, to_decimal(*plain, place + "/" + key));
        bound = NumberBound{std::move(value), is_flag && exclusive->get_bool()};
      }
      if (exclusive && !is_flag) {
        STILL_TRY(Decimal value, to_decimal(*exclusive, place + "/" + exclusive_key));
        if (!bound || sign * compare(value, bound->value) >= 0) bound = NumberBound{std::move(value), true};
      }
      return ok();
    };
    STILL_TRY_STATUS(read("minimum", "exclusiveMinimum", range.low, 1));
    STILL_TRY_STATUS(read("maximum", "exclusiveMaximum", range.high, -1));
    if (schema.contains("multipleOf")) return write_multiples(schema, range, place);
    if (!range.low && !range.high) return is_integer ? rules_.integer() : rules_.number();
    return add_number(draft_, range);
  }

  Result<Node> write_multiples(const JsonObject& schema, NumberRange range, const std::string& place) {
    STILL_TRY(const Decimal step, to_decimal(schema.at("multipleOf"), place + "/multipleOf"));
    const auto refuse = [&](std::string_view why) {
      return error(Code::kUnsupported, "{}/multipleOf: {}: {}", place, to_json(schema.at("multipleOf")), why);
    };
    if (step.is_negative || step.is_zero())
      return error(Code::kInvalidArgument, "{}/multipleOf: expected a number above 0", place);
    // A power of ten: so many digits behind the point.
    if (step.whole.empty()) {
      if (step.fraction.size() > 6 || step.fraction.find_first_not_of('0') + 1 != step.fraction.size() ||
          step.fraction.back() != '1')
        return refuse("only whole numbers and 0.1, 0.01, ... are supported");
      range.max_fraction = static_cast<int>(step.fraction.size());
      return add_number(draft_, range);
    }
    if (!step.fraction.empty() || step.whole.size() > 6)
      return refuse("only whole numbers up to 999999, and 0.1, 0.01, ... are supported");
    const auto m = static_cast<std::int64_t>(std::atoi(step.whole.c_str()));
    if (range.low && range.high && range.low->value.whole.size() <= 12 && range.high->value.whole.size() <= 12) {
      const auto whole = [](const NumberBound& bound) {
        const auto value = static_cast<std::int64_t>(std::atoll(("0" + bound.value.whole).c_str()));
        return bound.value.is_negative ? -value : value;
      };
      std::vector<Node> options;
      const std::int64_t first = whole(*range.low) / m - 1, last = whole(*range.high) / m + 1;
      if (last - first > 2000) return refuse("more than 2000 multiples within the bounds");
      for (std::int64_t k = first; k <= last; ++k) {
        const Decimal value = *to_decimal(Json(k * m), place);
        const int below = compare(value, range.low->value), above = compare(value, range.high->value);
        if (below < 0 || (below == 0 && range.low->is_exclusive) || above > 0 ||
            (above == 0 && range.high->is_exclusive))
          continue;
        options.push_back(draft_.literal(fmt::format("{}", k * m)));
      }
      return draft_.choice(std::move(options));
    }
    if (range.low || range.high) return refuse("with only one bound");
    if (m > 200) return refuse("more than 200 without bounds");
    // One rule for each remainder of the digits so far.
    std::vector<Rule> states;
    for (std::int64_t i = 0; i < m; ++i) states.push_back(draft_.declare_rule(""));
    const auto step_from = [&](std::int64_t remainder, char first_digit) {
      std::vector<Node> options;
      for (char digit = first_digit; digit <= '9'; ++digit)
        options.push_back(
            draft_.sequence({draft_.literal(std::string(1, digit)),
                             draft_.call(states[static_cast<std::size_t>((remainder * 10 + digit - '0') % m)])}));
      return options;
    };
    for (std::int64_t i = 0; i < m; ++i) {
      std::vector<Node> options = step_from(i, '0');
      if (i == 0) options.push_back(draft_.empty());
      draft_.define(states[static_cast<std::size_t>(i)], draft_.choice(std::move(options)));
    }
    return draft_.choice({draft_.literal("0"),
                          draft_.sequence({draft_.optional(draft_.literal("-")), draft_.choice(step_from(0, '1'))})});
  }

  Result<Node> write_array(const JsonObject& schema, const std::string& place, int depth) {
    STILL_TRY(const std::int32_t min, count(schema, "minItems", 0, place));
    STILL_TRY(const std::int32_t max, count(schema, "maxItems", GrammarDraft::kNoLimit, place));
    STILL_TRY_STATUS(check_order(min, max, "minItems", "maxItems", place));
    const Json* items = schema.if_contains("items");
    const Json* prefix = schema.if_contains("prefixItems");
    const Json* rest = items;
    if (items && items->is_array()) {  // before 2020-12
      prefix = items;
      rest = schema.if_contains("additionalItems");
    }
    if (prefix && !prefix->is_array())
      return error(Code::kInvalidArgument, "{}/prefixItems: expected an array of schemas", place);
    const std::size_t n_prefix = prefix ? prefix->get_array().size() : 0;
    if (n_prefix > 1000) return error(Code::kResourceExhausted, "{}/prefixItems: more than 1000", place);
    Node element = -1;
    if (rest) {
      STILL_TRY(element, write(*rest, place + "/items", depth + 1));
    } else if (n_prefix == 0 || min > static_cast<std::int32_t>(n_prefix)) {
      element = rules_.value();
    } else {
      element = draft_.nothing();  // behind a prefix, only what is asked for
    }
    if (n_prefix == 0) return rules_.list("[", element, "]", min, max);

    // From the back: what may stand behind i elements.
    const auto n = static_cast<std::int32_t>(n_prefix);
    const auto element_at = [&](std::int32_t i, Node node) {
      return i == 0 ? draft_.sequence({rules_.space(), node})
                    : draft_.sequence({draft_.literal(","), rules_.space(), node});
    };
    Node after = -1;
    {
      std::vector<Node> options;
      const std::int32_t least = std::max(min - n, 0),
                         most = max == GrammarDraft::kNoLimit ? max : std::max(max - n, 0);
      options.push_back(rules_.more(element, least, most));
      after = max != GrammarDraft::kNoLimit && max < n ? draft_.nothing() : draft_.choice(std::move(options));
    }
    for (std::int32_t i = n - 1; i >= 0; --i) {
      STILL_TRY(const Node node, write(prefix->get_array()[static_cast<std::size_t>(i)],
                                       fmt::format("{}/prefixItems/{}", place, i), depth + 1));
      std::vector<Node> options;
      if (i >= min && (max == GrammarDraft::kNoLimit || i <= max)) options.push_back(draft_.empty());
      if (max == GrammarDraft::kNoLimit || i < max) options.push_back(draft_.sequence({element_at(i, node), after}));
      const Rule rule = draft_.declare_rule("");
      draft_.define(rule, draft_.choice(std::move(options)));
      after = draft_.call(rule);
    }
    return draft_.sequence({draft_.literal("["), after, rules_.space(), draft_.literal("]")});
  }

  struct Property {
    std::string name;
    Node node = -1;
    bool is_required = false;
  };
  struct ObjectPlan {
    std::vector<Property> properties;
    Node other = -1;  // a key and value that the schema does not name; -1: none
    std::int32_t min = 0, max = GrammarDraft::kNoLimit;
  };

  Result<Node> write_object(const JsonObject& schema, const std::string& place, int depth) {
    ObjectPlan plan;
    STILL_TRY(plan.min, count(schema, "minProperties", 0, place));
    STILL_TRY(plan.max, count(schema, "maxProperties", GrammarDraft::kNoLimit, place));
    STILL_TRY_STATUS(check_order(plan.min, plan.max, "minProperties", "maxProperties", place));
    const Json* properties = schema.if_contains("properties");
    const Json* required = schema.if_contains("required");
    const Json* rest = schema.if_contains("additionalProperties");
    const Json* patterns = schema.if_contains("patternProperties");
    const Json* names = schema.if_contains("propertyNames");
    const Json* unevaluated = schema.if_contains("unevaluatedProperties");
    if (properties && !properties->is_object())
      return error(Code::kInvalidArgument, "{}/properties: expected an object", place);
    if (patterns && (!patterns->is_object() || patterns->get_object().size() > 1 ||
                     (properties && !properties->get_object().empty())))
      return error(Code::kUnsupported, "{}/patternProperties: only one, without properties beside it, is supported",
                   place);
    if (patterns && patterns->get_object().empty()) patterns = nullptr;
    if (names && (patterns || (properties && !properties->get_object().empty())))
      return error(Code::kUnsupported, "{}/propertyNames: beside properties or patternProperties", place);

    std::set<std::string> required_names;
    std::vector<std::string> required_order;
    if (required) {
      if (!required->is_array())
        return error(Code::kInvalidArgument, "{}/required: expected an array of strings", place);
      for (const Json& name : required->get_array()) {
        if (!name.is_string()) return error(Code::kInvalidArgument, "{}/required: expected an array of strings", place);
        if (required_names.emplace(name.get_string()).second) required_order.emplace_back(name.get_string());
      }
    }
    if (properties)
      for (const auto& [key, value] : properties->get_object()) {
        const std::string name(key);
        STILL_TRY(const Node node, write(value, place + "/properties/" + name, depth + 1));
        plan.properties.push_back({name, node, required_names.contains(name)});
      }
    // Whether keys that are not named may be made: where the schema says so, and where it says nothing at all.
    const bool says_nothing = !properties && !rest && !patterns && !(unevaluated && !unevaluated->get_bool());
    const bool is_open = rest ? !rest->is_bool() || rest->get_bool() : says_nothing;
    Node other_value = -1;
    if (rest && !rest->is_bool()) {
      STILL_TRY(other_value, write(*rest, place + "/additionalProperties", depth + 1));
    } else if (!rest || rest->get_bool()) {
      other_value = rules_.value();
    }
    for (const std::string& name : required_order) {
      if (std::ranges::find(plan.properties, name, &Property::name) != plan.properties.end()) continue;
      if (patterns || names)
        return error(Code::kUnsupported, "{}/required: \"{}\" beside patternProperties or propertyNames", place, name);
      if (other_value < 0)
        return error(Code::kInvalidArgument,
                     "{}/required: \"{}\" is no property, and additionalProperties is false: no value can fit", place,
                     name);
      plan.properties.push_back({name, other_value, true});
    }
    if (patterns) {
      const auto& [pattern, value] = *patterns->get_object().begin();
      const std::string where = fmt::format("{}/patternProperties/{}", place, std::string_view(pattern));
      STILL_TRY(const RegexNode key,
                add_regex(draft_, pattern, {.in_json_string = true, .opens_unanchored_end = true, .place = where}));
      STILL_TRY(const Node node, write(value, where, depth + 1));
      plan.other = draft_.sequence({draft_.literal("\""), key.node, draft_.literal("\""), rules_.colon(), node});
    } else if (names && (is_open || !rest)) {
      STILL_TRY(const Json flat, merger_.merge(*names, Json(JsonObject{{"type", "string"}}), place + "/propertyNames"));
      if (other_value < 0) other_value = rules_.value();
      STILL_TRY(const Node key, write(flat, place + "/propertyNames", depth + 1));
      plan.other = draft_.sequence({key, rules_.colon(), other_value});
    } else if (is_open) {
      plan.other = draft_.sequence({other_key(plan.properties), rules_.colon(), other_value});
    }
    return write_members(plan, place);
  }

  // A key as a string, but none of the names; without escapes where there are names, for an escape could spell one.
  Node other_key(const std::vector<Property>& properties) {
    if (properties.empty()) return rules_.string();
    std::vector<std::string> names;
    for (const Property& property : properties)
      if (is_valid_utf8(property.name) && to_json(Json(property.name)) == "\"" + property.name + "\"")
        names.push_back(property.name);
    std::ranges::sort(names);
    return draft_.sequence({draft_.literal("\""), other_tail(names), draft_.literal("\"")});
  }
  // What may follow a prefix of the names, all cut by that prefix.
  Node other_tail(const std::vector<std::string>& names) {
    const Node rest = draft_.repeat(draft_.set(JsonRules::plain()), 0, GrammarDraft::kNoLimit);
    if (names.empty()) return rest;
    std::map<char32_t, std::vector<std::string>> by_first;
    std::vector<Node> options;
    bool ends_here = false;
    CharSet taken;
    for (const std::string& name : names) {
      if (name.empty()) {
        ends_here = true;
        continue;
      }
      const DecodedChar c = decode_char(name, 0);
      by_first[c.code].push_back(name.substr(static_cast<std::size_t>(c.size)));
      taken.add(c.code, c.code);
    }
    if (!ends_here) options.push_back(draft_.empty());
    options.push_back(draft_.sequence({draft_.set(JsonRules::plain().without(taken)), rest}));
    for (const auto& [code, tails] : by_first) {
      if (draft_.is_too_big()) break;
      const Rule rule = draft_.declare_rule("");
      draft_.define(rule, other_tail(tails));
      options.push_back(draft_.sequence({draft_.set({{code, code}}), draft_.call(rule)}));
    }
    return draft_.choice(std::move(options));
  }

  // Members in order. State: the properties behind us, and how many members were written, as far as that matters.
  Result<Node> write_members(const ObjectPlan& plan, const std::string& place) {
    const auto n = static_cast<std::int32_t>(plan.properties.size());
    const auto n_required =
        static_cast<std::int32_t>(std::ranges::count(plan.properties, true, &Property::is_required));
    if (plan.max != GrammarDraft::kNoLimit && n_required > plan.max)
      return error(Code::kInvalidArgument, "{}: {} required properties, but maxProperties {}: no value can fit", place,
                   n_required, plan.max);
    // Keys that are not named may repeat one another, which a grammar cannot see: a minimum may count on one of them.
    if (plan.min > n + (plan.other >= 0 ? 1 : 0)) {
      if (plan.other < 0)
        return error(Code::kInvalidArgument, "{}: minProperties {}, but only {} properties: no value can fit", place,
                     plan.min, n);
      return error(Code::kUnsupported,
                   "{}/minProperties: {}: a token mask cannot tell keys apart that the schema does not name", place,
                   plan.min);
    }
    const bool counts_min = plan.min > n_required;
    const bool counts_max = plan.max != GrammarDraft::kNoLimit && (plan.max < n || plan.other >= 0);
    const std::int32_t cap = std::max({1, counts_min ? plan.min : 0, counts_max ? plan.max : 0});
    if (static_cast<std::int64_t>(n + 1) * (cap + 1) > kMaxPropertyRules)
      return error(Code::kResourceExhausted,
                   "{}: {} properties with minProperties {} and maxProperties {} make too big a grammar", place, n,
                   plan.min, plan.max);
    // after[k]: what may follow k members; built from the last property to the first. With a minimum, unnamed keys
    // count once: `cap` is told apart from "one unnamed key more" by writing the unnamed ones last.
    std::vector<Node> after(static_cast<std::size_t>(cap) + 1);
    const auto member = [&](std::int32_t k, Node node) {
      return k == 0 ? draft_.sequence({rules_.space(), node})
                    : draft_.sequence({draft_.literal(","), rules_.space(), node});
    };
    for (std::int32_t k = 0; k <= cap; ++k) {
      std::vector<Node> options;
      if (!counts_min || k >= plan.min) options.push_back(draft_.empty());
      if (plan.other >= 0) {
        const std::int32_t missing = counts_min ? std::max(plan.min - k, 0) : 0;
        const std::int32_t room = counts_max ? plan.max - k : GrammarDraft::kNoLimit;
        if (missing <= 1 && room != 0)
          options.push_back(
              draft_.sequence({member(k, plan.other), rules_.more(plan.other, 0, room < 0 ? room : room - 1)}));
      }
      after[static_cast<std::size_t>(k)] = rule_of(draft_.choice(std::move(options)));
    }
    for (std::int32_t i = n - 1; i >= 0; --i) {
      const Property& property = plan.properties[static_cast<std::size_t>(i)];
      const Node node = draft_.sequence({draft_.literal(to_json(Json(property.name))), rules_.colon(), property.node});
      std::vector<Node> next(after.size());
      for (std::int32_t k = 0; k <= std::min(cap, i); ++k) {
        std::vector<Node> options;
        if (!counts_max || k < plan.max)
          options.push_back(draft_.sequence({member(k, node), after[static_cast<std::size_t>(std::min(k + 1, cap))]}));
        if (!property.is_required) options.push_back(after[static_cast<std::size_t>(k)]);
        next[static_cast<std::size_t>(k)] = rule_of(draft_.choice(std::move(options)));
      }
      for (std::int32_t k = i + 1; k <= cap; ++k) next[static_cast<std::size_t>(k)] = draft_.nothing();
      after = std::move(next);
    }
    return draft_.sequence({draft_.literal("{"), after[0], rules_.space(), draft_.literal("}")});
  }
  Node rule_of(Node node) {
    const Rule rule = draft_.declare_rule("");
    draft_.define(rule, node);
    return draft_.call(rule);
  }

  GrammarDraft& draft_;
  JsonRules rules_;
  SchemaMerger merger_;
  std::map<std::string, Rule, std::less<>> references_;
};

}  // namespace

Result<GrammarDraft::Node> add_json_schema(GrammarDraft& draft, const Json& schema, std::string_view name,
                                           const SchemaOptions& options) {
  return SchemaWriter(draft, schema, name, options).write(schema, std::string(name), 0);
}

GrammarDraft::Node add_json_object(GrammarDraft& draft, const SchemaOptions& options) {
  return JsonRules(draft, options).object();
}

}  // namespace still

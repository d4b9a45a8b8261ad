// Filters, tests, methods and attribute access. They behave as in Jinja 2 and Python.
#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <optional>

#include "text/jinja/interpreter.h"
#include "text/unicode.h"

namespace still::jinja {

namespace {

bool is_python_space(char32_t code) {
  return (char_class(code) & kClassSpace) || (code >= 0x1c && code <= 0x1f);
}

std::vector<Text> characters(const Text& text) {
  std::vector<Text> out;
  for (std::size_t pos = 0; pos < text.size();) {
    const auto size = static_cast<std::size_t>(decode_char(text.bytes(), pos).size);
    out.push_back(text.substr(pos, size));
    pos += size;
  }
  return out;
}

std::int64_t count_characters(std::string_view text) {
  std::int64_t n = 0;
  for (std::size_t pos = 0; pos < text.size(); ++n) pos += static_cast<std::size_t>(decode_char(text, pos).size);
  return n;
}

const Text& text_of(const Value& value, std::string_view callee) {
  if (const Text* text = value.text()) return *text;
  if (const Undefined* undefined = value.undefined())
    fail("'{}' is undefined, {} needs a string", undefined->name, callee);
  fail("{} needs a string, not {}", callee, value.type_name());
}

std::int64_t int_of(const Value& value, std::string_view callee) {
  if (!value.is_number() || value.is_float()) fail("{} needs an integer, not {}", callee, value.type_name());
  return value.as_int();
}

// str.strip: white space, or the characters of `set`.
Text strip(const Text& text, const Value* set, bool left, bool right) {
  std::vector<char32_t> wanted;
  const bool spaces = !set || set->is_none();
  if (!spaces)
    for (std::size_t pos = 0; pos < text_of(*set, "strip").size();) {
      const DecodedChar c = decode_char(set->text()->bytes(), pos);
      wanted.push_back(c.code);
      pos += static_cast<std::size_t>(c.size);
    }
  const auto strips = [&](char32_t code) {
    return spaces ? is_python_space(code) : std::ranges::find(wanted, code) != wanted.end();
  };
  std::size_t begin = 0, end = 0;
  bool seen = false;
  for (std::size_t pos = 0; pos < text.size();) {
    const DecodedChar c = decode_char(text.bytes(), pos);
    if (!strips(c.code)) {
      if (!seen) begin = pos;
      seen = true;
      end = pos + static_cast<std::size_t>(c.size);
    }
    pos += static_cast<std::size_t>(c.size);
  }
  if (!seen) return {};
  if (!left) begin = 0;
  if (!right) end = text.size();
  return text.substr(begin, end - begin);
}

Value split(const Text& text, const Value* separator, std::int64_t max_splits, bool from_right) {
  std::vector<Value> parts;
  const std::string& bytes = text.bytes();
  if (!separator || separator->is_none()) {
    std::size_t begin = std::string::npos;
    for (std::size_t pos = 0; pos < bytes.size();) {
      const DecodedChar c = decode_char(bytes, pos);
      const bool space = is_python_space(c.code);
      if (!space && begin == std::string::npos) {
        begin = pos;
        if (max_splits >= 0 && static_cast<std::int64_t>(parts.size()) == max_splits) {
          parts.emplace_back(strip(text.substr(begin), nullptr, false, true));
          return parts;
        }
      } else if (space && begin != std::string::npos) {
        parts.emplace_back(text.substr(begin, pos - begin));
        begin = std::string::npos;
      }
      pos += static_cast<std::size_t>(c.size);
    }
    if (begin != std::string::npos) parts.emplace_back(text.substr(begin));
    return parts;
  }
  const std::string& mark = text_of(*separator, "split").bytes();
  if (mark.empty()) fail("split with an empty separator");
  std::vector<std::size_t> cuts;
  if (from_right) {
    for (std::size_t end = bytes.size(); max_splits < 0 || static_cast<std::int64_t>(cuts.size()) < max_splits;) {
      if (end < mark.size()) break;
      const std::size_t at = bytes.rfind(mark, end - mark.size());
      if (at == std::string::npos) break;
      cuts.insert(cuts.begin(), at);
      end = at;
    }
  } else {
    for (std::size_t at = 0; (max_splits < 0 || static_cast<std::int64_t>(cuts.size()) < max_splits) &&
                             (at = bytes.find(mark, at)) != std::string::npos;
         at += mark.size())
      cuts.push_back(at);
  }
  std::size_t begin = 0;
  for (const std::size_t cut : cuts) {
    parts.emplace_back(text.substr(begin, cut - begin));
    begin = cut + mark.size();
  }
  parts.emplace_back(text.substr(begin));
  return parts;
}

Text replace(Services& services, const Text& text, const Text& from, const Text& to, std::int64_t max_count) {
  Text out;
  std::size_t begin = 0;
  const std::string& bytes = text.bytes();
  if (from.empty()) {  // Python puts `to` around every character
    const std::vector<Text> chars = characters(text);
    std::int64_t n = 0;
    for (std::size_t i = 0; i <= chars.size(); ++i) {
      if (max_count < 0 || n++ < max_count) out.append(to);
      services.check_size(out.size());
      if (i < chars.size()) out.append(chars[i]);
    }
    return out;
  }
  std::int64_t n = 0;
  for (std::size_t at; (max_count < 0 || n < max_count) && (at = bytes.find(from.bytes(), begin)) != std::string::npos;
       ++n) {
    out.append(text.substr(begin, at - begin));
    out.append(to);
    services.check_size(out.size());
    begin = at + from.size();
  }
  out.append(text.substr(begin));
  return out;
}

enum class Case { kUpper, kLower, kTitle, kCapitalize };

Text change_case(const Text& text, Case wanted) {
  Text out;
  bool word_begins = true;
  for (std::size_t pos = 0; pos < text.size();) {
    const DecodedChar c = decode_char(text.bytes(), pos);
    const bool upper =
        wanted == Case::kUpper || (word_begins && (wanted == Case::kTitle || wanted == Case::kCapitalize));
    std::string changed;
    if (c.code == kInvalidChar) {
      changed = text.bytes().substr(pos, 1);
    } else {
      const auto code = static_cast<utf8proc_int32_t>(c.code);
      append_utf8(changed, static_cast<char32_t>(upper ? utf8proc_toupper(code) : utf8proc_tolower(code)));
    }
    out.append(changed, text.is_trusted(pos));
    word_begins = wanted == Case::kTitle && !(char_class(c.code) & (kClassLetter | kClassMark));
    pos += static_cast<std::size_t>(c.size);
  }
  return out;
}

// Jinja's title: words begin after white space and - ( { [ <.
Text title_words(const Text& text) {
  Text out;
  bool word_begins = true;
  for (const Text& c : characters(text)) {
    out.append(change_case(c, word_begins ? Case::kUpper : Case::kLower));
    const DecodedChar decoded = decode_char(c.bytes(), 0);
    word_begins = is_python_space(decoded.code) ||
                  (c.size() == 1 && std::string_view("-({[<").find(c.bytes()[0]) != std::string_view::npos);
  }
  return out;
}

// str.format and "%" for what templates use: {} {0} {name}, %s %d %i %r %f with a precision, %%.
Text format_braces(const Text& format, const Arguments& arguments) {
  Text out;
  const std::string& bytes = format.bytes();
  std::size_t next = 0;
  for (std::size_t pos = 0; pos < bytes.size();) {
    const std::size_t mark = bytes.find_first_of("{}", pos);
    out.append(format.substr(pos, mark == std::string::npos ? mark : mark - pos));
    if (mark == std::string::npos) break;
    if (mark + 1 < bytes.size() && bytes[mark + 1] == bytes[mark]) {
      out.append(format.substr(mark, 1));
      pos = mark + 2;
      continue;
    }
    const std::size_t close = bytes.find('}', mark);
    if (bytes[mark] == '}' || close == std::string::npos) fail("format: a single \"{}\"", std::string(1, bytes[mark]));
    const std::string name = bytes.substr(mark + 1, close - mark - 1);
    std::size_t index = 0;
    const bool numbered = !name.empty() && std::from_chars(name.data(), name.data() + name.size(), index).ptr ==
                                               name.data() + name.size();
    if (name.find_first_of(":!.[") != std::string::npos) fail("format: the field \"{{{}}}\" is not supported", name);
    const Value& value = name.empty() ? arguments.need(next++, "", "format")
                         : numbered   ? arguments.need(index, "", "format")
                                      : arguments.need(std::string::npos, name, "format");
    out.append(to_text(value));
    pos = close + 1;
  }
  return out;
}

Text format_percent(const Text& format, const Arguments& arguments) {
  Text out;
  const std::string& bytes = format.bytes();
  std::size_t next = 0;
  for (std::size_t pos = 0; pos < bytes.size();) {
    const std::size_t mark = bytes.find('%', pos);
    out.append(format.substr(pos, mark == std::string::npos ? mark : mark - pos));
    if (mark == std::string::npos) break;
    std::size_t at = mark + 1;
    int precision = -1;
    if (at < bytes.size() && bytes[at] == '.') {
      const auto parsed = std::from_chars(bytes.data() + at + 1, bytes.data() + bytes.size(), precision);
      at = static_cast<std::size_t>(parsed.ptr - bytes.data());
      if (precision < 0 || precision > 60) fail("format: a precision of {}", precision);
    }
    const char kind = at < bytes.size() ? bytes[at] : '\0';
    pos = at + 1;
    if (kind == '%') {
      out.append("%", true);
      continue;
    }
    if (kind != 's' && kind != 'd' && kind != 'i' && kind != 'r' && kind != 'f')
      fail("format: \"%{}\" is not supported", std::string(1, kind));
    const Value& value = arguments.need(next++, "", "format");
    if (kind == 's') {
      out.append(to_text(value));
    } else if (kind == 'r') {
      append_repr(out, value);
    } else if (!value.is_number()) {
      fail("format: \"%{}\" of {}", std::string(1, kind), value.type_name());
    } else if (kind == 'f') {
      out.append(fmt::format("{:.{}f}", value.as_double(), precision < 0 ? 6 : precision), true);
    } else {
      out.append(std::to_string(value.is_float() ? static_cast<std::int64_t>(std::clamp(value.as_double(), -9e18, 9e18))
                                                 : value.as_int()),
                 true);
    }
  }
  return out;
}

// "a.b" or "a" of an element, as map and selectattr take it.
Value attribute_path(const Value& value, const Value& path) {
  if (!path.text()) return get_item(value, path);
  Value at = value;
  const std::string& names = path.text()->bytes();
  for (std::size_t begin = 0; begin <= names.size();) {
    const std::size_t dot = std::min(names.find('.', begin), names.size());
    const std::string name = names.substr(begin, dot - begin);
    std::int64_t index = 0;
    const bool numbered = !name.empty() && std::from_chars(name.data(), name.data() + name.size(), index).ptr ==
                                               name.data() + name.size();
    at = get_item(at, numbered ? Value(index) : Value::trusted(name));
    begin = dot + 1;
  }
  return at;
}

Value length(const Value& value) {
  if (value.text()) return count_characters(value.text()->bytes());
  if (value.list()) return static_cast<std::int64_t>(value.list()->items.size());
  if (value.dict()) return static_cast<std::int64_t>(value.dict()->entries.size());
  if (value.is_undefined()) return std::int64_t{0};
  fail("{} has no length", value.type_name());
}

Value items_of(const Value& value) {
  if (value.is_undefined()) return std::vector<Value>{};
  if (!value.dict()) fail("items of {}", value.type_name());
  std::vector<Value> items;
  for (const auto& [key, entry] : value.dict()->entries) items.emplace_back(std::vector<Value>{key, entry}, true);
  return items;
}

Value to_int(const Value& value, const Value& otherwise) {
  if (value.is_float()) {
    if (!(std::fabs(value.as_double()) < 9e18)) return otherwise;
    return static_cast<std::int64_t>(value.as_double());
  }
  if (value.is_number()) return value.as_int();
  if (!value.text()) return otherwise;
  const Text stripped = strip(*value.text(), nullptr, true, true);
  const std::string& digits = stripped.bytes();
  const char* end = digits.data() + digits.size();
  const char* begin = digits.starts_with('+') ? digits.data() + 1 : digits.data();
  std::int64_t number = 0;
  if (begin != end && std::from_chars(begin, end, number).ptr == end) return number;
  double real = 0;
  if (begin != end && std::from_chars(begin, end, real).ptr == end && std::fabs(real) < 9e18)
    return static_cast<std::int64_t>(real);
  return otherwise;
}

Value to_float(const Value& value, const Value& otherwise) {
  if (value.is_number()) return value.as_double();
  if (!value.text()) return otherwise;
  const Text stripped = strip(*value.text(), nullptr, true, true);
  double real = 0;
  const char* end = stripped.bytes().data() + stripped.size();
  return !stripped.empty() && std::from_chars(stripped.bytes().data(), end, real).ptr == end ? Value(real) : otherwise;
}

Text indent(const Text& text, const Value* width, bool first, bool blank) {
  std::string prefix = "    ";
  if (width && width->text()) prefix = width->text()->bytes();
  if (width && !width->text())
    prefix.assign(static_cast<std::size_t>(std::clamp<std::int64_t>(int_of(*width, "indent"), 0, 1000)), ' ');
  Text out;
  std::size_t begin = 0;
  for (bool is_first = true; begin <= text.size(); is_first = false) {
    const std::size_t end = std::min(text.bytes().find('\n', begin), text.size());
    if (!is_first) out.append("\n", true);
    if ((is_first && first) || (!is_first && (blank || end > begin))) out.append(prefix, true);
    out.append(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

Text escape_html(const Text& text) {
  Text out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text.bytes()[i];
    const std::string_view replaced = c == '&'    ? "&amp;"
                                      : c == '<'  ? "&lt;"
                                      : c == '>'  ? "&gt;"
                                      : c == '\'' ? "&#39;"
                                      : c == '"'  ? "&#34;"
                                                  : "";
    out.append(replaced.empty() ? std::string_view(&c, 1) : replaced, text.is_trusted(i));
  }
  return out;
}

JsonStyle json_style(const Arguments& arguments) {
  JsonStyle style;
  // Hugging Face's order: ensure_ascii, indent, separators, sort_keys.
  if (const Value* flag = arguments.find(0, "ensure_ascii")) style.ensure_ascii = flag->is_true();
  if (const Value* width = arguments.find(1, "indent"); width && width->is_number())
    style.indent = static_cast<int>(std::clamp<std::int64_t>(int_of(*width, "tojson"), 0, 100));
  if (const Value* pair = arguments.find(2, "separators"); pair && pair->list() && pair->list()->items.size() == 2) {
    style.item_separator = to_text(pair->list()->items[0]).bytes();
    style.key_separator = to_text(pair->list()->items[1]).bytes();
  }
  if (const Value* flag = arguments.find(3, "sort_keys")) style.sort_keys = flag->is_true();
  return style;
}

// Values in order; strings without regard to case unless asked, as Jinja's sort.
int compare_for_sort(const Value& a, const Value& b, bool case_sensitive) {
  if (!case_sensitive && a.text() && b.text())
    return change_case(*a.text(), Case::kLower).bytes().compare(change_case(*b.text(), Case::kLower).bytes());
  return compare(a, b);
}

Arguments skip_arguments(const Arguments& arguments, std::size_t n) {
  Arguments rest{{}, arguments.named};
  for (std::size_t i = n; i < arguments.positional.size(); ++i) rest.positional.push_back(arguments.positional[i]);
  return rest;
}

bool passes(Services& services, const Value& item, const Arguments& arguments, std::size_t test_at) {
  if (arguments.positional.size() <= test_at) return item.is_true();
  const std::string& test = text_of(arguments.positional[test_at], "select").bytes();
  const Arguments rest = skip_arguments(arguments, test_at + 1);
  if (test == "in") return contains(services, rest.need(0, "seq", "in"), item);
  return apply_test(test, item, rest);
}

Value map_filter(Services& services, const Value& value, const Arguments& arguments) {
  std::vector<Value> out;
  if (!value.is_true()) return out;  // none too, as in Jinja
  const Value* attribute = arguments.find(std::string::npos, "attribute");
  const Value* otherwise = arguments.find(std::string::npos, "default");
  for (const Value& item : elements(services, value)) {
    if (attribute) {
      Value found = attribute_path(item, *attribute);
      out.push_back(found.is_undefined() && otherwise ? *otherwise : std::move(found));
    } else {
      const std::string& filter = text_of(arguments.need(0, "filter", "map"), "map").bytes();
      out.push_back(apply_filter(services, filter, item, skip_arguments(arguments, 1)));
    }
  }
  return out;
}

Value select_filter(Services& services, const Value& value, const Arguments& arguments, bool by_attribute,
                    bool wanted) {
  std::vector<Value> out;
  if (!value.is_true()) return out;  // none too, as in Jinja
  for (const Value& item : elements(services, value)) {
    const Value tested = by_attribute ? attribute_path(item, arguments.need(0, "attribute", "selectattr")) : item;
    if (passes(services, tested, arguments, by_attribute ? 1 : 0) == wanted) out.push_back(item);
  }
  return out;
}

Value dictsort(const Value& value, const Arguments& arguments) {
  Value items = items_of(value);
  const bool case_sensitive = arguments.find(0, "case_sensitive") && arguments.find(0, "case_sensitive")->is_true();
  const Value* by = arguments.find(1, "by");
  const std::size_t at = by && by->text() && by->text()->bytes() == "value" ? 1 : 0;
  const bool reverse = arguments.find(2, "reverse") && arguments.find(2, "reverse")->is_true();
  auto& entries = items.list()->items;
  std::stable_sort(entries.begin(), entries.end(), [&](const Value& a, const Value& b) {
    const int order = compare_for_sort(a.list()->items[at], b.list()->items[at], case_sensitive);
    return reverse ? order > 0 : order < 0;
  });
  return items;
}

Value sort(Services& services, const Value& value, const Arguments& arguments) {
  std::vector<Value> items = elements(services, value);
  const bool reverse = arguments.find(0, "reverse") && arguments.find(0, "reverse")->is_true();
  const bool case_sensitive = arguments.find(1, "case_sensitive") && arguments.find(1, "case_sensitive")->is_true();
  const Value* attribute = arguments.find(2, "attribute");
  std::stable_sort(items.begin(), items.end(), [&](const Value& a, const Value& b) {
    const int order =
        attribute ? compare_for_sort(attribute_path(a, *attribute), attribute_path(b, *attribute), case_sensitive)
                  : compare_for_sort(a, b, case_sensitive);
    return reverse ? order > 0 : order < 0;
  });
  return items;
}

Value join(Services& services, const Value& value, const Arguments& arguments) {
  const Value* separator = arguments.find(0, "d");
  const Value* attribute = arguments.find(1, "attribute");
  const Text mark = separator ? to_text(*separator) : Text();
  Text out;
  bool first = true;
  for (const Value& item : elements(services, value)) {
    if (!std::exchange(first, false)) out.append(mark);
    out.append(to_text(attribute ? attribute_path(item, *attribute) : item));
    services.check_size(out.size());
  }
  return out;
}

Value extreme(Services& services, const Value& value, bool largest) {
  const std::vector<Value> items = elements(services, value);
  if (items.empty()) return Value();
  const Value* best = &items[0];
  for (const Value& item : items)
    if (const int order = compare_for_sort(item, *best, false); largest ? order > 0 : order < 0) best = &item;
  return *best;
}

Value sum(Services& services, const Value& value, const Arguments& arguments) {
  const Value* attribute = arguments.find(0, "attribute");
  std::int64_t whole = 0;
  double real = 0;
  bool is_float = false;
  for (const Value& item : elements(services, value)) {
    const Value term = attribute ? attribute_path(item, *attribute) : item;
    if (!term.is_number()) fail("sum of {}", term.type_name());
    is_float |= term.is_float();
    real += term.as_double();
    if (!term.is_float() && __builtin_add_overflow(whole, term.as_int(), &whole)) fail("sum is too large");
  }
  return is_float ? Value(real) : Value(whole);
}

Value unique(Services& services, const Value& value) {
  std::vector<Value> out;
  for (const Value& item : elements(services, value)) {
    services.charge(static_cast<std::int64_t>(out.size()));
    if (std::ranges::none_of(out, [&](const Value& seen) { return equal(seen, item); })) out.push_back(item);
  }
  return out;
}

Value reversed(Services& services, const Value& value) {
  if (const Text* text = value.text()) {
    Text out;
    const std::vector<Text> chars = characters(*text);
    for (auto c = chars.rbegin(); c != chars.rend(); ++c) out.append(*c);
    return out;
  }
  std::vector<Value> items = elements(services, value);
  std::reverse(items.begin(), items.end());
  return items;
}

Value round_number(const Value& value, const Arguments& arguments) {
  if (!value.is_number()) fail("round of {}", value.type_name());
  const Value* digits = arguments.find(0, "precision");
  const Value* method = arguments.find(1, "method");
  const double scale = std::pow(10.0, static_cast<double>(digits ? int_of(*digits, "round") : 0));
  const std::string how = method && method->text() ? method->text()->bytes() : "common";
  const double scaled = value.as_double() * scale;
  return (how == "ceil" ? std::ceil(scaled) : how == "floor" ? std::floor(scaled) : std::nearbyint(scaled)) / scale;
}

std::int64_t text_cost(const Value& value) {
  return value.text() ? static_cast<std::int64_t>(value.text()->size() / 16) : 0;
}

}  // namespace

std::vector<Value> elements(Services& services, const Value& value) {
  std::vector<Value> out;
  if (const List* list = value.list()) {
    out = list->items;
  } else if (const Dict* dict = value.dict(); dict && !dict->is_namespace) {
    for (const auto& [key, entry] : dict->entries) out.push_back(key);
  } else if (const Text* text = value.text()) {
    for (Text& c : characters(*text)) out.emplace_back(std::move(c));
  } else if (!value.is_undefined()) {
    fail("{} cannot be iterated", value.type_name());
  }
  services.charge(static_cast<std::int64_t>(out.size()));
  return out;
}

bool contains(Services& services, const Value& container, const Value& item) {
  if (const Text* text = container.text()) {
    services.charge(text_cost(container));
    return text->bytes().find(text_of(item, "in").bytes()) != std::string::npos;
  }
  if (const Dict* dict = container.dict()) {
    services.charge(static_cast<std::int64_t>(dict->entries.size()));
    return dict->find(item) != nullptr;
  }
  if (const List* list = container.list()) {
    services.charge(static_cast<std::int64_t>(list->items.size()));
    return std::ranges::any_of(list->items, [&](const Value& element) { return equal(element, item); });
  }
  if (container.is_undefined()) return false;
  fail("\"in\" needs a container, not {}", container.type_name());
}

Value apply_filter(Services& services, const std::string& name, const Value& value, const Arguments& arguments) {
  services.charge(1 + text_cost(value));
  const auto text = [&] { return to_text(value); };
  if (name == "default" || name == "d") {
    const Value* otherwise = arguments.find(0, "default_value");
    const Value* also_false = arguments.find(1, "boolean");
    const bool use = value.is_undefined() || (also_false && also_false->is_true() && !value.is_true());
    return use ? (otherwise ? *otherwise : Value(Text())) : value;
  }
  if (name == "tojson") {
    Text out;
    append_json(out, value, json_style(arguments));
    services.check_size(out.size());
    return out;
  }
  if (name == "trim") return strip(text(), arguments.find(0, "chars"), true, true);
  if (name == "length" || name == "count") return length(value);
  if (name == "string") return value.text() ? value : Value(text());
  if (name == "safe") return value;
  if (name == "upper") return change_case(text(), Case::kUpper);
  if (name == "lower") return change_case(text(), Case::kLower);
  if (name == "capitalize") return change_case(text(), Case::kCapitalize);
  if (name == "title") return title_words(text());
  if (name == "e" || name == "escape") return escape_html(text());
  if (name == "list") return elements(services, value);
  if (name == "items") return items_of(value);
  if (name == "dictsort") return dictsort(value, arguments);
  if (name == "join") return join(services, value, arguments);
  if (name == "map") return map_filter(services, value, arguments);
  if (name == "select" || name == "reject") return select_filter(services, value, arguments, false, name == "select");
  if (name == "selectattr" || name == "rejectattr")
    return select_filter(services, value, arguments, true, name == "selectattr");
  if (name == "first" || name == "last") {
    const std::vector<Value> items = elements(services, value);
    return items.empty() ? Value(Undefined{name}) : name == "first" ? items.front() : items.back();
  }
  if (name == "int")
    return to_int(value, arguments.find(0, "default") ? *arguments.find(0, "default") : Value(std::int64_t{0}));
  if (name == "float")
    return to_float(value, arguments.find(0, "default") ? *arguments.find(0, "default") : Value(0.0));
  if (name == "abs") {
    if (!value.is_number()) fail("abs of {}", value.type_name());
    if (value.is_float()) return std::fabs(value.as_double());
    if (value.as_int() == INT64_MIN) fail("abs is too large");
    return std::abs(value.as_int());
  }
  if (name == "round") return round_number(value, arguments);
  if (name == "replace") {
    const Value* count = arguments.find(2, "count");
    return replace(services, text(), to_text(arguments.need(0, "old", name)), to_text(arguments.need(1, "new", name)),
                   count && !count->is_none() ? int_of(*count, name) : -1);
  }
  if (name == "indent") {
    const Value* first = arguments.find(1, "first");
    const Value* blank = arguments.find(2, "blank");
    return indent(text(), arguments.find(0, "width"), first && first->is_true(), blank && blank->is_true());
  }
  if (name == "format") return format_percent(text(), arguments);
  if (name == "reverse") return reversed(services, value);
  if (name == "sort") return sort(services, value, arguments);
  if (name == "unique") return unique(services, value);
  if (name == "sum") return sum(services, value, arguments);
  if (name == "min") return extreme(services, value, false);
  if (name == "max") return extreme(services, value, true);
  if (name == "attr") return get_attribute(value, text_of(arguments.need(0, "name", name), name).bytes());
  if (name == "wordcount") return length(split(text(), nullptr, -1, false));
  fail("the filter \"{}\" is not known", name);
}

bool apply_test(const std::string& name, const Value& value, const Arguments& arguments) {
  const auto other = [&]() -> const Value& { return arguments.need(0, "other", name); };
  if (name == "defined") return !value.is_undefined();
  if (name == "undefined") return value.is_undefined();
  if (name == "none") return value.is_none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.dict() && !value.dict()->is_namespace;
  if (name == "iterable")
    return value.text() || value.list() || (value.dict() && !value.dict()->is_namespace) || value.is_undefined();
  if (name == "sequence")
    return value.text() || value.list() || (value.dict() && !value.dict()->is_namespace) || value.is_undefined();
  if (name == "number") return value.is_number();
  if (name == "integer") return value.is_int();
  if (name == "float") return value.is_float();
  if (name == "boolean") return value.is_bool();
  if (name == "true") return value.is_bool() && value.as_bool();
  if (name == "false") return value.is_bool() && !value.as_bool();
  if (name == "callable") return value.macro() || value.method();
  if (name == "equalto" || name == "eq" || name == "sameas") return equal(value, other());
  if (name == "ne") return !equal(value, other());
  if (name == "lt" || name == "lessthan") return compare(value, other()) < 0;
  if (name == "le") return compare(value, other()) <= 0;
  if (name == "gt" || name == "greaterthan") return compare(value, other()) > 0;
  if (name == "ge") return compare(value, other()) >= 0;
  if (name == "odd") return int_of(value, name) % 2 != 0;
  if (name == "even") return int_of(value, name) % 2 == 0;
  if (name == "divisibleby") {
    const std::int64_t divisor = int_of(other(), name);
    if (divisor == 0) fail("division by zero");
    return divisor == -1 || int_of(value, name) % divisor == 0;
  }
  if (name == "lower") return to_text(value).bytes() == change_case(to_text(value), Case::kLower).bytes();
  if (name == "upper") return to_text(value).bytes() == change_case(to_text(value), Case::kUpper).bytes();
  fail("the test \"{}\" is not known", name);
}

bool has_method(const Value& value, std::string_view name) {
  constexpr std::string_view kText[] = {
      "split",   "rsplit",  "splitlines", "strip",      "lstrip",  "rstrip",  "startswith",   "endswith",     "replace",
      "upper",   "lower",   "title",      "capitalize", "find",    "rfind",   "count",        "join",         "format",
      "isdigit", "isalpha", "isalnum",    "isspace",    "isupper", "islower", "removeprefix", "removesuffix", "index"};
  constexpr std::string_view kDict[] = {"get", "keys", "values", "items", "pop", "copy"};
  constexpr std::string_view kList[] = {"append", "index", "count", "pop", "copy"};
  constexpr std::string_view kLoop[] = {"cycle"};
  const auto in = [&](const auto& names) { return std::ranges::find(names, name) != std::end(names); };
  return value.text()   ? in(kText)
         : value.list() ? in(kList)
         : value.loop() ? in(kLoop)
                        : value.dict() && !value.dict()->is_namespace && in(kDict);
}

Value get_attribute(const Value& value, const std::string& name) {
  if (const Undefined* undefined = value.undefined()) fail("'{}' is undefined, it has no {}", undefined->name, name);
  if (const Loop* loop = value.loop()) {
    const auto n = static_cast<std::int64_t>(loop->items->size());
    const auto i = static_cast<std::int64_t>(loop->index);
    if (name == "index") return i + 1;
    if (name == "index0") return i;
    if (name == "revindex") return n - i;
    if (name == "revindex0") return n - i - 1;
    if (name == "first") return i == 0;
    if (name == "last") return i + 1 == n;
    if (name == "length") return n;
    if (name == "depth") return std::int64_t{1};
    if (name == "depth0") return std::int64_t{0};
    if (name == "previtem") return i > 0 ? (*loop->items)[loop->index - 1] : Value(Undefined{name});
    if (name == "nextitem") return i + 1 < n ? (*loop->items)[loop->index + 1] : Value(Undefined{name});
  }
  if (has_method(value, name)) return Value(std::make_shared<const Method>(Method{value, name}));
  if (value.dict())
    if (const Value* found = value.dict()->find(name)) return *found;
  return Undefined{name};
}

Value get_item(const Value& value, const Value& key) {
  if (const Undefined* undefined = value.undefined()) fail("'{}' is undefined, it has no elements", undefined->name);
  if (value.dict()) {
    if (const Value* found = value.dict()->find(key)) return *found;
    return key.text() ? get_attribute(value, key.text()->bytes()) : Value(Undefined{to_text(key).bytes()});
  }
  if (key.is_number() && !key.is_float() && (value.list() || value.text())) {
    std::int64_t index = key.as_int();
    const std::int64_t n = length(value).as_int();
    if (index < 0) index += n;
    if (index < 0 || index >= n) return Undefined{to_text(key).bytes()};
    if (value.list()) return value.list()->items[static_cast<std::size_t>(index)];
    std::size_t pos = 0;
    for (; index > 0; --index) pos += static_cast<std::size_t>(decode_char(value.text()->bytes(), pos).size);
    return value.text()->substr(pos, static_cast<std::size_t>(decode_char(value.text()->bytes(), pos).size));
  }
  return key.text() ? get_attribute(value, key.text()->bytes()) : Value(Undefined{to_text(key).bytes()});
}

namespace {

Value call_text_method(Services& services, const Text& text, const std::string& name, const Arguments& arguments) {
  const auto is_all = [&](auto&& test) {
    if (text.empty()) return false;
    for (std::size_t pos = 0; pos < text.size();) {
      const DecodedChar c = decode_char(text.bytes(), pos);
      if (!test(c.code)) return false;
      pos += static_cast<std::size_t>(c.size);
    }
    return true;
  };
  const auto matches = [&](bool at_start) {
    const Value& wanted = arguments.need(0, "prefix", name);
    const auto one = [&](const Value& part) {
      const std::string& affix = text_of(part, name).bytes();
      return at_start ? text.bytes().starts_with(affix) : text.bytes().ends_with(affix);
    };
    return wanted.list() ? std::ranges::any_of(wanted.list()->items, one) : one(wanted);
  };
  if (name == "strip") return strip(text, arguments.find(0, "chars"), true, true);
  if (name == "lstrip") return strip(text, arguments.find(0, "chars"), true, false);
  if (name == "rstrip") return strip(text, arguments.find(0, "chars"), false, true);
  if (name == "split" || name == "rsplit") {
    const Value* limit = arguments.find(1, "maxsplit");
    const Value parts = split(text, arguments.find(0, "sep"), limit ? int_of(*limit, name) : -1, name == "rsplit");
    services.charge(static_cast<std::int64_t>(parts.list()->items.size()));
    return parts;
  }
  if (name == "splitlines") {
    std::vector<Value> lines;
    for (std::size_t begin = 0; begin < text.size();) {
      const std::size_t end = std::min(text.bytes().find_first_of("\r\n", begin), text.size());
      lines.emplace_back(text.substr(begin, end - begin));
      begin = end + (text.bytes().compare(end, 2, "\r\n") == 0 ? 2 : 1);
    }
    services.charge(static_cast<std::int64_t>(lines.size()));
    return lines;
  }
  if (name == "startswith") return matches(true);
  if (name == "endswith") return matches(false);
  if (name == "removeprefix" || name == "removesuffix") {
    const std::size_t n = text_of(arguments.need(0, "prefix", name), name).size();
    if (!matches(name == "removeprefix")) return text;
    return name == "removeprefix" ? text.substr(n) : text.substr(0, text.size() - n);
  }
  if (name == "replace") {
    const Value* count = arguments.find(2, "count");
    return replace(services, text, text_of(arguments.need(0, "old", name), name),
                   text_of(arguments.need(1, "new", name), name), count ? int_of(*count, name) : -1);
  }
  if (name == "upper") return change_case(text, Case::kUpper);
  if (name == "lower") return change_case(text, Case::kLower);
  if (name == "title") return change_case(text, Case::kTitle);
  if (name == "capitalize") return change_case(text, Case::kCapitalize);
  if (name == "find" || name == "rfind" || name == "index") {
    const std::string& part = text_of(arguments.need(0, "sub", name), name).bytes();
    const std::size_t at = name == "rfind" ? text.bytes().rfind(part) : text.bytes().find(part);
    if (at == std::string::npos && name == "index") fail("index: the text is not there");
    return at == std::string::npos ? std::int64_t{-1} : count_characters(std::string_view(text.bytes()).substr(0, at));
  }
  if (name == "count")
    return static_cast<std::int64_t>(split(text, &arguments.need(0, "sub", name), -1, false).list()->items.size()) - 1;
  if (name == "join") {
    Arguments separator;
    separator.positional.emplace_back(text);
    return join(services, arguments.need(0, "iterable", name), separator);
  }
  if (name == "format") return format_braces(text, arguments);
  if (name == "isdigit")
    return is_all([](char32_t c) { return c < 128 ? c >= '0' && c <= '9' : (char_class(c) & kClassNumber) != 0; });
  if (name == "isalpha") return is_all([](char32_t c) { return (char_class(c) & kClassLetter) != 0; });
  if (name == "isalnum") return is_all([](char32_t c) { return (char_class(c) & (kClassLetter | kClassNumber)) != 0; });
  if (name == "isspace") return is_all([](char32_t c) { return is_python_space(c); });
  const bool upper = name == "isupper";
  const std::string& bytes = text.bytes();
  return bytes == change_case(text, upper ? Case::kUpper : Case::kLower).bytes() &&
         bytes != change_case(text, upper ? Case::kLower : Case::kUpper).bytes();
}

// A copy that shares no containers: what is appended cannot later come to contain the list it is in.
Value deep_copy(Services& services, const Value& value) {
  services.charge(1);
  if (const List* list = value.list()) {
    std::vector<Value> items;
    for (const Value& item : list->items) items.push_back(deep_copy(services, item));
    return Value(std::move(items), list->is_tuple);
  }
  if (const Dict* dict = value.dict()) {
    auto copy = std::make_shared<Dict>();
    for (const auto& [key, entry] : dict->entries) copy->set(key, deep_copy(services, entry));
    copy->is_namespace = dict->is_namespace;
    return copy;
  }
  return value;
}

Value call_list_method(Services& services, List& list, const std::string& name, const Arguments& arguments) {
  if (name == "append") {
    const Value& item = arguments.need(0, "object", name);
    if (item.method() || item.loop()) fail("append of {}", item.type_name());
    Value copy = deep_copy(services, item);
    list.depth = std::max(list.depth, depth_with(copy));
    list.items.push_back(std::move(copy));
    return None{};
  }
  if (name == "pop") {
    if (list.items.empty()) fail("pop from an empty list");
    const Value* at = arguments.find(0, "index");
    const auto n = static_cast<std::int64_t>(list.items.size());
    const std::int64_t index = at ? int_of(*at, name) + (int_of(*at, name) < 0 ? n : 0) : n - 1;
    if (index < 0 || index >= n) fail("pop: no element {}", index);
    const Value value = list.items[static_cast<std::size_t>(index)];
    list.items.erase(list.items.begin() + index);
    return value;
  }
  if (name == "copy") return Value(list.items, list.is_tuple);
  const Value& wanted = arguments.need(0, "value", name);
  services.charge(static_cast<std::int64_t>(list.items.size()));
  if (name == "count")
    return static_cast<std::int64_t>(
        std::ranges::count_if(list.items, [&](const Value& item) { return equal(item, wanted); }));
  for (std::size_t i = 0; i < list.items.size(); ++i)
    if (equal(list.items[i], wanted)) return static_cast<std::int64_t>(i);
  fail("index: the value is not in the list");
}

Value call_dict_method(Services& services, Dict& dict, const std::string& name, const Arguments& arguments) {
  services.charge(static_cast<std::int64_t>(dict.entries.size() / 8));
  if (name == "get" || name == "pop") {
    const Value& key = arguments.need(0, "key", name);
    const Value* found = dict.find(key);
    if (!found) {
      if (const Value* otherwise = arguments.find(1, "default")) return *otherwise;
      if (name == "pop") fail("pop: no key {}", to_text(key).bytes());
      return None{};
    }
    const Value value = *found;
    if (name == "pop") std::erase_if(dict.entries, [&](const auto& entry) { return equal(entry.first, key); });
    return value;
  }
  if (name == "copy") {
    auto copy = std::make_shared<Dict>(dict);
    return copy;
  }
  std::vector<Value> out;
  for (const auto& [key, value] : dict.entries) {
    if (name == "keys")
      out.push_back(key);
    else if (name == "values")
      out.push_back(value);
    else
      out.emplace_back(std::vector<Value>{key, value}, true);
  }
  services.charge(static_cast<std::int64_t>(out.size()));
  return out;
}

}  // namespace

Value call_method(Services& services, const Method& method, const Arguments& arguments) {
  const Value& self = method.self;
  services.charge(1 + text_cost(self));
  if (self.text()) return call_text_method(services, *self.text(), method.name, arguments);
  if (self.list()) return call_list_method(services, *self.list(), method.name, arguments);
  if (self.dict()) return call_dict_method(services, *self.dict(), method.name, arguments);
  if (self.loop() && !arguments.positional.empty())
    return arguments.positional[self.loop()->index % arguments.positional.size()];
  fail("{} has no method {}", self.type_name(), method.name);
}

}  // namespace still::jinja

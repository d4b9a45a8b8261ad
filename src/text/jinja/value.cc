#include "text/jinja/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/unicode.h"

namespace still::jinja {

bool Text::is_all_trusted() const {
  return bytes_.empty() || (marks_.empty() ? all_trusted_ : marks_.find('\0') == std::string::npos);
}

void Text::append(const Text& other) {
  if (other.empty()) return;
  if (bytes_.empty()) {
    *this = other;
    return;
  }
  if (marks_.empty() && other.marks_.empty() && all_trusted_ == other.all_trusted_) {
    bytes_ += other.bytes_;
    return;
  }
  if (marks_.empty()) marks_.assign(bytes_.size(), all_trusted_ ? '\1' : '\0');
  if (other.marks_.empty()) {
    marks_.append(other.bytes_.size(), other.all_trusted_ ? '\1' : '\0');
  } else {
    marks_ += other.marks_;
  }
  bytes_ += other.bytes_;
}

void Text::append(std::string_view bytes, bool trusted) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    marks_.clear();
    all_trusted_ = trusted;
  } else if (marks_.empty() && all_trusted_ != trusted) {
    marks_.assign(bytes_.size(), all_trusted_ ? '\1' : '\0');
  }
  if (!marks_.empty()) marks_.append(bytes.size(), trusted ? '\1' : '\0');
  bytes_ += bytes;
}

Text Text::substr(std::size_t pos, std::size_t n) const {
  Text out(bytes_.substr(pos, n), all_trusted_);
  if (!marks_.empty()) out.marks_ = marks_.substr(pos, n);
  return out;
}

Value::Value(std::vector<Value> items, bool is_tuple) {
  int depth = 1;
  for (const Value& item : items) depth = std::max(depth, depth_with(item));
  storage_ = std::make_shared<List>(List{std::move(items), is_tuple, depth});
}

int Value::depth() const {
  return list() ? list()->depth : dict() ? dict()->depth : 0;
}

bool Value::is_namespace() const {
  return dict() && dict()->is_namespace;
}

int depth_with(const Value& item) {
  if (item.is_namespace()) fail("a namespace cannot be stored in another value");
  if (item.depth() >= kMaxValueDepth) fail("a value is nested deeper than {}", kMaxValueDepth);
  return item.depth() + 1;
}

bool Value::is_true() const {
  if (is_undefined() || is_none()) return false;
  if (is_number()) return as_double() != 0;
  if (const Text* t = text()) return !t->empty();
  if (const List* l = list()) return !l->items.empty();
  if (const Dict* d = dict()) return d->is_namespace || !d->entries.empty();
  return true;
}

const char* Value::type_name() const {
  constexpr const char* kNames[] = {"undefined", "NoneType", "bool",  "int",    "float", "str",
                                    "list",      "dict",     "macro", "method", "loop"};
  return kNames[storage_.index()];
}

const Value* Dict::find(const Value& key) const {
  if (const Text* text = key.text()) return find(text->bytes());
  for (const auto& [name, value] : entries)
    if (equal(name, key)) return &value;
  return nullptr;
}

const Value* Dict::find(std::string_view key) const {
  for (const auto& [name, value] : entries)
    if (name.text() && name.text()->bytes() == key) return &value;
  return nullptr;
}

void Dict::set(const Value& key, Value value) {
  depth = std::max(depth, depth_with(value));
  if (Value* found = const_cast<Value*>(find(key))) {
    *found = std::move(value);
  } else {
    entries.emplace_back(key, std::move(value));
  }
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number())
    return a.is_float() || b.is_float() ? a.as_double() == b.as_double() : a.as_int() == b.as_int();
  if (a.text() && b.text()) return a.text()->bytes() == b.text()->bytes();
  if (a.is_none() || b.is_none()) return a.is_none() && b.is_none();
  if (a.is_undefined() || b.is_undefined()) return a.is_undefined() && b.is_undefined();
  if (a.list() && b.list()) return a.list() == b.list() || std::ranges::equal(a.list()->items, b.list()->items, equal);
  if (a.dict() && b.dict()) {
    if (a.dict() == b.dict()) return true;
    if (a.dict()->entries.size() != b.dict()->entries.size()) return false;
    for (const auto& [key, value] : a.dict()->entries) {
      const Value* other = b.dict()->find(key);
      if (!other || !equal(value, *other)) return false;
    }
    return true;
  }
  return a.macro() && a.macro() == b.macro();
}

int compare(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (!a.is_float() && !b.is_float()) return a.as_int() < b.as_int() ? -1 : a.as_int() > b.as_int();
    return a.as_double() < b.as_double() ? -1 : a.as_double() > b.as_double();
  }
  if (a.text() && b.text()) return a.text()->bytes().compare(b.text()->bytes());
  if (a.list() && b.list()) {
    const auto &x = a.list()->items, &y = b.list()->items;
    for (std::size_t i = 0; i < x.size() && i < y.size(); ++i)
      if (const int order = compare(x[i], y[i]); order != 0) return order;
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  fail("cannot order {} and {}", a.type_name(), b.type_name());
}

Value from_json(const Json& json, bool trusted, int depth) {
  if (depth > 200) fail("the context is nested deeper than 200");
  switch (json.kind()) {
    case boost::json::kind::null:
      return None{};
    case boost::json::kind::bool_:
      return json.get_bool();
    case boost::json::kind::int64:
      return json.get_int64();
    case boost::json::kind::uint64:
      return static_cast<double>(json.get_uint64());  // above 2^63
    case boost::json::kind::double_:
      return json.get_double();
    case boost::json::kind::string:
      return Text(std::string(json.get_string()), trusted);
    case boost::json::kind::array: {
      std::vector<Value> items;
      for (const Json& item : json.get_array()) items.push_back(from_json(item, trusted, depth + 1));
      return items;
    }
    case boost::json::kind::object: {
      auto dict = std::make_shared<Dict>();
      for (const auto& [key, value] : json.get_object()) {
        dict->entries.emplace_back(Text(std::string(key), trusted), from_json(value, trusted, depth + 1));
        dict->depth = std::max(dict->depth, depth_with(dict->entries.back().second));
      }
      return dict;
    }
  }
  return None{};
}

std::string double_to_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[40];
  const double magnitude = std::fabs(value);
  // Python's repr: the shortest digits that read back, plain between 1e-4 and 1e16.
  const bool plain = magnitude == 0 || (magnitude >= 1e-4 && magnitude < 1e16);
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  std::string text(buffer, end);
  if (plain && text.find('.') == std::string::npos) text += ".0";
  return text;
}

Text to_text(const Value& value) {
  if (const Text* text = value.text()) return *text;
  if (value.is_undefined()) return {};
  Text out;
  append_repr(out, value);
  return out;
}

void append_repr(Text& out, const Value& value, int depth) {
  if (depth > 200) fail("a value is nested deeper than 200");
  const auto put = [&](std::string_view bytes) { out.append(bytes, true); };
  if (value.is_none()) return put("None");
  if (value.is_bool()) return put(value.as_bool() ? "True" : "False");
  if (value.is_int()) return put(std::to_string(value.as_int()));
  if (value.is_float()) return put(double_to_text(value.as_double()));
  if (value.is_undefined()) return put("Undefined");
  if (const Text* text = value.text()) {
    const std::string& bytes = text->bytes();
    const char quote = bytes.find('\'') != std::string::npos && bytes.find('"') == std::string::npos ? '"' : '\'';
    const bool trusted = text->is_all_trusted();
    std::string quoted(1, quote);
    for (std::size_t pos = 0; pos < bytes.size();) {
      const DecodedChar c = decode_char(bytes, pos);
      const auto code = static_cast<std::uint32_t>(c.code);
      if (code == static_cast<unsigned char>(quote) || code == '\\') {
        quoted += {'\\', static_cast<char>(code)};
      } else if (code == '\n') {
        quoted += "\\n";
      } else if (code == '\r') {
        quoted += "\\r";
      } else if (code == '\t') {
        quoted += "\\t";
      } else if (code < 32 || (code >= 127 && code < 161) || code == 173) {
        quoted += fmt::format("\\x{:02x}", code);
      } else {
        quoted.append(bytes, pos, static_cast<std::size_t>(c.size));
      }
      pos += static_cast<std::size_t>(c.size);
    }
    quoted += quote;
    return out.append(quoted, trusted);
  }
  if (const List* list = value.list()) {
    put(list->is_tuple ? "(" : "[");
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) put(", ");
      append_repr(out, list->items[i], depth + 1);
    }
    return put(!list->is_tuple ? "]" : list->items.size() == 1 ? ",)" : ")");
  }
  if (const Dict* dict = value.dict()) {
    put(dict->is_namespace ? "<Namespace {" : "{");
    for (std::size_t i = 0; i < dict->entries.size(); ++i) {
      if (i > 0) put(", ");
      append_repr(out, dict->entries[i].first, depth + 1);
      put(": ");
      append_repr(out, dict->entries[i].second, depth + 1);
    }
    return put(dict->is_namespace ? "}>" : "}");
  }
  put("<");
  put(value.type_name());
  put(">");
}

namespace {

void append_json_string(Text& out, const Text& text, bool ensure_ascii) {
  std::string quoted = "\"";
  const std::string& bytes = text.bytes();
  for (std::size_t pos = 0; pos < bytes.size();) {
    const DecodedChar c = decode_char(bytes, pos);
    switch (c.code) {
      case '"':
        quoted += "\\\"";
        break;
      case '\\':
        quoted += "\\\\";
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      case '\b':
        quoted += "\\b";
        break;
      case '\f':
        quoted += "\\f";
        break;
      default:
        if (c.code < 32 || (ensure_ascii && c.code > 126 && c.code < 0x10000)) {
          quoted += fmt::format("\\u{:04x}", static_cast<std::uint32_t>(c.code));
        } else if (ensure_ascii && c.code >= 0x10000 && c.code <= 0x10ffff) {
          const auto rest = static_cast<std::uint32_t>(c.code) - 0x10000;
          quoted += fmt::format("\\u{:04x}\\u{:04x}", 0xd800 + (rest >> 10), 0xdc00 + (rest & 0x3ff));
        } else {
          quoted.append(bytes, pos, static_cast<std::size_t>(c.size));
        }
    }
    pos += static_cast<std::size_t>(c.size);
  }
  quoted += '"';
  out.append(quoted, text.is_all_trusted());
}

}  // namespace

void append_json(Text& out, const Value& value, const JsonStyle& style, int depth) {
  if (depth > 200) fail("tojson: a value is nested deeper than 200");
  const auto put = [&](std::string_view bytes) { out.append(bytes, true); };
  const auto newline = [&](int level) {
    if (style.indent >= 0) put("\n" + std::string(static_cast<std::size_t>(level * style.indent), ' '));
  };
  const auto separator = [&] {
    // With an indent Python drops the space after the comma, unless separators were given.
    put(style.indent >= 0 && style.item_separator == ", " ? "," : std::string_view(style.item_separator));
    newline(depth + 1);
  };
  if (value.is_none()) return put("null");
  if (value.is_bool()) return put(value.as_bool() ? "true" : "false");
  if (value.is_int()) return put(std::to_string(value.as_int()));
  if (value.is_float()) {
    const double number = value.as_double();
    return put(std::isnan(number)   ? "NaN"
               : std::isinf(number) ? (number < 0 ? "-Infinity" : "Infinity")
                                    : double_to_text(number));
  }
  if (const Text* text = value.text()) return append_json_string(out, *text, style.ensure_ascii);
  if (const List* list = value.list()) {
    if (list->items.empty()) return put("[]");
    put("[");
    newline(depth + 1);
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) separator();
      append_json(out, list->items[i], style, depth + 1);
    }
    newline(depth);
    return put("]");
  }
  if (const Dict* dict = value.dict()) {
    if (dict->entries.empty()) return put("{}");
    std::vector<const std::pair<Value, Value>*> entries;
    for (const auto& entry : dict->entries) entries.push_back(&entry);
    if (style.sort_keys)
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto* a, const auto* b) { return compare(a->first, b->first) < 0; });
    put("{");
    newline(depth + 1);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) separator();
      const Value& key = entries[i]->first;
      append_json_string(out, key.text() ? *key.text() : to_text(key), style.ensure_ascii);
      put(style.key_separator);
      append_json(out, entries[i]->second, style, depth + 1);
    }
    newline(depth);
    return put("}");
  }
  fail("tojson: a value of type {} is not JSON", value.type_name());
}

}  // namespace still::jinja

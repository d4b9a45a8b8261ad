// See value.h.
#include "text/go/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/unicode.h"

namespace still::go {

namespace {

constexpr int kMaxValueDepth = 100;

// strconv's shortest form: plain between `low` and `high`, else with an exponent of two digits at least.
std::string double_to_text(double value, double low, double high) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Inf" : "+Inf";
  const double magnitude = std::fabs(value);
  const bool plain = magnitude == 0 || (magnitude >= low && magnitude < high);
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value,
                                 plain ? std::chars_format::fixed : std::chars_format::scientific)
                       .ptr;
  return std::string(buffer, end);
}

// The pieces of `text` of one origin each.
template <class Body>
void for_each_char(const Text& text, Body&& body) {
  for (std::size_t pos = 0; pos < text.size();) {
    const DecodedChar c = decode_char(text.bytes(), pos);
    body(c, pos, text.is_trusted(pos));
    pos += static_cast<std::size_t>(c.size);
  }
}

}  // namespace

Value::Value(List value) : storage_(std::make_shared<const List>(std::move(value))) {}
Value::Value(Map value) : storage_(std::make_shared<const Map>(std::move(value))) {}

const Value* Map::find(std::string_view key) const {
  for (const auto& [name, value] : entries)
    if (name.bytes() == key) return &value;
  return nullptr;
}

bool Value::is_true() const {
  if (is_nil()) return false;
  if (const bool* value = boolean()) return *value;
  if (const std::int64_t* value = integer()) return *value != 0;
  if (const double* value = floating()) return *value != 0;
  if (const Text* value = text()) return !value->empty();
  if (const List* value = list()) return !value->items.empty();
  return map()->is_struct || !map()->entries.empty();
}

std::string Value::type_name() const {
  if (is_nil()) return "nil";
  if (boolean()) return "bool";
  if (integer()) return "int";
  if (floating()) return "float64";
  if (text()) return "string";
  if (list()) return "list";
  return map()->is_struct ? map()->type : "map";
}

void append_text(Text& out, const Value& value, int depth) {
  if (depth > kMaxValueDepth) fail("a value is nested deeper than {}", kMaxValueDepth);
  if (value.is_nil()) {
    out.append(depth == 0 ? "<no value>" : "<nil>", true);
  } else if (const bool* boolean = value.boolean()) {
    out.append(*boolean ? "true" : "false", true);
  } else if (const std::int64_t* integer = value.integer()) {
    out.append(std::to_string(*integer), true);
  } else if (const double* number = value.floating()) {
    out.append(double_to_text(*number, 1e-4, 1e6), true);
  } else if (const Text* text = value.text()) {
    out.append(*text);
  } else if (const List* list = value.list()) {
    if (list->json) return out.append(*list->json);
    out.append("[", true);
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.append(" ", true);
      append_text(out, list->items[i], depth + 1);
    }
    out.append("]", true);
  } else if (const Map* map = value.map(); map->json) {
    out.append(*map->json);
  } else {
    std::vector<const std::pair<Text, Value>*> entries;
    for (const auto& entry : map->entries) entries.push_back(&entry);
    if (!map->is_struct)
      std::ranges::sort(entries, {}, [](const auto* entry) -> const std::string& { return entry->first.bytes(); });
    out.append(map->is_struct ? "{" : "map[", true);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (i > 0) out.append(" ", true);
      if (!map->is_struct) {
        out.append(entries[i]->first);
        out.append(":", true);
      }
      append_text(out, entries[i]->second, depth + 1);
    }
    out.append(map->is_struct ? "}" : "]", true);
  }
}

void append_json_string(Text& out, const Text& text) {
  out.append("\"", true);
  for_each_char(text, [&](const DecodedChar& c, std::size_t pos, bool trusted) {
    const auto code = static_cast<std::uint32_t>(c.code);
    if (c.code == kInvalidChar) {
      out.append("\\ufffd", trusted);
    } else if (code == '"' || code == '\\') {
      out.append(std::string{'\\', static_cast<char>(code)}, trusted);
    } else if (code == '\n') {
      out.append("\\n", trusted);
    } else if (code == '\r') {
      out.append("\\r", trusted);
    } else if (code == '\t') {
      out.append("\\t", trusted);
    } else if (code < 32 || code == '<' || code == '>' || code == '&' || code == 0x2028 || code == 0x2029) {
      out.append(fmt::format("\\u{:04x}", code), trusted);
    } else {
      out.append(std::string_view(text.bytes()).substr(pos, static_cast<std::size_t>(c.size)), trusted);
    }
  });
  out.append("\"", true);
}

void append_quoted(Text& out, const Text& text) {
  out.append("\"", true);
  for_each_char(text, [&](const DecodedChar& c, std::size_t pos, bool trusted) {
    const auto code = static_cast<std::uint32_t>(c.code);
    if (c.code == kInvalidChar) {
      out.append(fmt::format("\\x{:02x}", static_cast<unsigned char>(text.bytes()[pos])), trusted);
    } else if (code == '"' || code == '\\') {
      out.append(std::string{'\\', static_cast<char>(code)}, trusted);
    } else if (code >= 7 && code <= 13) {
      out.append(std::string{'\\', "abtnvfr"[code - 7]}, trusted);
    } else if (code < 32 || code == 127) {
      out.append(fmt::format("\\x{:02x}", code), trusted);
    } else {
      out.append(std::string_view(text.bytes()).substr(pos, static_cast<std::size_t>(c.size)), trusted);
    }
  });
  out.append("\"", true);
}

void append_json(Text& out, const Value& value, int depth) {
  if (depth > kMaxValueDepth) fail("a value is nested deeper than {}", kMaxValueDepth);
  if (value.is_nil()) {
    out.append("null", true);
  } else if (const double* number = value.floating()) {
    if (!std::isfinite(*number)) fail("json: unsupported value: {}", *number);
    out.append(double_to_text(*number, 1e-6, 1e21), true);
  } else if (const Text* text = value.text()) {
    append_json_string(out, *text);
  } else if (const List* list = value.list()) {
    out.append("[", true);
    for (std::size_t i = 0; i < list->items.size(); ++i) {
      if (i > 0) out.append(",", true);
      append_json(out, list->items[i], depth + 1);
    }
    out.append("]", true);
  } else if (const Map* map = value.map()) {
    if (map->json) return out.append(*map->json);
    out.append("{", true);
    bool first = true;
    for (const auto& [key, item] : map->entries) {
      if (!first) out.append(",", true);
      first = false;
      append_json_string(out, key);
      out.append(":", true);
      append_json(out, item, depth + 1);
    }
    out.append("}", true);
  } else {
    append_text(out, value, depth);
  }
}

Value from_json(const Json& json, int depth) {
  if (depth > kMaxValueDepth) fail("a value is nested deeper than {}", kMaxValueDepth);
  if (json.is_null()) return {};
  if (json.is_bool()) return json.get_bool();
  if (json.is_int64()) return json.get_int64();
  if (json.is_uint64()) return static_cast<double>(json.get_uint64());
  if (json.is_double()) return json.get_double();
  if (json.is_string()) return Text(std::string(json.get_string()), false);
  if (json.is_array()) {
    List list;
    for (const Json& item : json.get_array()) list.items.push_back(from_json(item, depth + 1));
    return list;
  }
  Map map;
  for (const auto& [key, item] : json.get_object())
    map.entries.emplace_back(Text(std::string(key), false), from_json(item, depth + 1));
  return map;
}

}  // namespace still::go

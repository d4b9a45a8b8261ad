#include "serve/api/json_fields.h"

#include <array>
#include <charconv>
#include <cmath>

#include "text/detokenizer.h"
#include "text/unicode.h"

namespace still {

namespace {

// The code unit of "\uXXXX" at `at`; -1: there is none.
int escaped_unit(std::string_view text, std::size_t at) {
  if (at + 6 > text.size() || text[at] != '\\' || text[at + 1] != 'u') return -1;
  int unit = 0;
  const auto [end, failure] = std::from_chars(text.data() + at + 2, text.data() + at + 6, unit, 16);
  return failure == std::errc() && end == text.data() + at + 6 ? unit : -1;
}

bool is_high(int unit) {
  return unit >= 0xd800 && unit < 0xdc00;
}
bool is_low(int unit) {
  return unit >= 0xdc00 && unit < 0xe000;
}

// Empty: nothing is to be mended.
std::string mend_surrogates(std::string_view text) {
  std::string mended;
  std::size_t copied = 0;
  for (std::size_t at = text.find('\\'); at != std::string_view::npos; at = text.find('\\', at)) {
    const int unit = escaped_unit(text, at);
    if (unit < 0) {
      at += 2;  // the escaped character, which may be a backslash
    } else if (is_high(unit) && is_low(escaped_unit(text, at + 6))) {
      at += 12;
    } else {
      if (is_high(unit) || is_low(unit)) {
        mended += text.substr(copied, at - copied);
        mended += "\\ufffd";
        copied = at + 6;
      }
      at += 6;
    }
  }
  if (copied > 0) mended += text.substr(copied);
  return mended;
}

}  // namespace

Result<Json> parse_client_json(std::string_view body) {
  if (!is_valid_utf8(body)) return error(Code::kInvalidArgument, "request body: not valid UTF-8");
  const std::string mended = mend_surrogates(body);
  Result<Json> json = parse_json(mended.empty() ? body : mended, "request body");
  if (!json) return error(Code::kInvalidArgument, "{}", json.error().message);
  return json;
}

std::string member_text(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

Result<JsonObject> parse_body(std::string_view body) {
  if (body.find_first_not_of(" \t\r\n") == std::string_view::npos)
    return error(Code::kInvalidArgument, "missing request body");
  STILL_TRY(Json json, parse_client_json(body));
  if (!json.is_object()) return error(Code::kInvalidArgument, "request body: expected a JSON object");
  return std::move(json.get_object());
}

const Json* JsonFields::find(std::string_view name) const {
  const Json* value = object_.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void JsonFields::fail(std::string_view name, std::string_view message) {
  if (error_) return;
  param_ = prefix_ + std::string(name);
  error_ = Error{Code::kInvalidArgument, fmt::format("{} \"{}\" {}", noun_, param_, message)};
}

void JsonFields::adopt(Error error, std::string param) {
  if (error_) return;
  error_ = std::move(error);
  param_ = std::move(param);
}

Status JsonFields::status() const {
  if (error_) return tl::unexpected(*error_);
  return ok();
}

std::optional<std::string> JsonFields::text(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (const auto* text = value->if_string()) return std::string(*text);
  fail_type(name, "string");
  return {};
}

std::string JsonFields::required_text(std::string_view name) {
  if (!has(name)) fail(name, "is required");
  return text(name).value_or("");
}

std::optional<double> JsonFields::number(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_number()) return value->to_number<double>();
  fail_type(name, "number");
  return {};
}

namespace {
std::optional<std::int64_t> to_integer(const Json& value) {
  if (const auto* number = value.if_int64()) return *number;
  if (value.is_uint64()) return {};  // beyond int64
  const double* number = value.if_double();
  if (number == nullptr || std::abs(*number) > 9e15 || *number != std::floor(*number)) return {};
  return static_cast<std::int64_t>(*number);
}
}  // namespace

std::optional<std::int64_t> JsonFields::integer(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  const auto number = to_integer(*value);
  if (!number) fail_type(name, "integer");
  return number;
}

std::optional<std::int64_t> JsonFields::integer_in(std::string_view name, std::int64_t min, std::int64_t max) {
  const auto number = integer(name);
  if (!number || (*number >= min && *number <= max)) return number;
  fail(name, fmt::format("is {}: expected {} to {}", *number, min, max));
  return {};
}

std::optional<bool> JsonFields::boolean(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (const bool* flag = value->if_bool()) return *flag;
  fail_type(name, "boolean");
  return {};
}

const JsonObject* JsonFields::object(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_object()) fail_type(name, "object");
  return value->if_object();
}

const JsonArray* JsonFields::array(std::string_view name) {
  const Json* value = find(name);
  if (value == nullptr) return nullptr;
  if (!value->is_array()) fail_type(name, "array");
  return value->if_array();
}

std::vector<std::string> JsonFields::texts(std::string_view name) {
  const Json* value = find(name);
  std::vector<std::string> texts;
  if (value == nullptr) return texts;
  if (const auto* text = value->if_string()) return {std::string(*text)};
  const JsonArray* array = value->if_array();
  if (array == nullptr) {
    fail(name, "must be a string or an array of strings");
    return texts;
  }
  for (const Json& item : *array) {
    if (!item.is_string()) {
      fail(name, "must be a string or an array of strings");
      return {};
    }
    texts.emplace_back(item.get_string());
  }
  return texts;
}

std::vector<std::int64_t> JsonFields::integers(std::string_view name) {
  const JsonArray* array = this->array(name);
  std::vector<std::int64_t> numbers;
  if (array == nullptr) return numbers;
  for (const Json& item : *array) {
    const auto number = to_integer(item);
    if (!number) {
      fail(name, "must be an array of integers");
      return {};
    }
    numbers.push_back(*number);
  }
  return numbers;
}

namespace {
// 0: as it is; else the letter after the backslash, 'u' for \u00XX.
constexpr std::array<char, 256> kEscapes = [] {
  std::array<char, 256> table{};
  for (int i = 0; i < 0x20; ++i) table[static_cast<std::size_t>(i)] = 'u';
  table['\b'] = 'b';
  table['\f'] = 'f';
  table['\n'] = 'n';
  table['\r'] = 'r';
  table['\t'] = 't';
  table['"'] = '"';
  table['\\'] = '\\';
  return table;
}();
}  // namespace

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  std::size_t begin = 0;  // of what is copied as it is
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const char escape = kEscapes[byte];
    if (escape == 0) continue;
    out.append(text, begin, i - begin);
    begin = i + 1;
    out += '\\';
    out += escape;
    if (escape != 'u') continue;
    constexpr std::string_view kDigits = "0123456789abcdef";
    out += "00";
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  out.append(text, begin, text.size() - begin);
  out += '"';
}

std::string json_string(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

void append_json_bytes(std::string& out, std::string_view bytes) {
  Utf8Stream characters;
  std::string text = characters.add(bytes);
  text += characters.flush();
  append_json_string(out, text);
}

namespace {
template <class T>
void append_number(std::string& out, T number) {
  if (!std::isfinite(number)) {
    out += "null";
    return;
  }
  std::array<char, 40> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), number).ptr;
  out.append(buffer.data(), end);
}
}  // namespace

void append_json_number(std::string& out, double number) {
  append_number(out, number);
}
void append_json_number(std::string& out, float number) {
  append_number(out, number);
}

}  // namespace still

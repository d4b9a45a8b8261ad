#include "base/json.h"

#include <algorithm>
#include <boost/json/src.hpp>

namespace still {

Result<Json> parse_json(std::string_view text, std::string_view what) {
  boost::json::error_code failure;
  boost::json::stream_parser parser;
  const std::size_t used = parser.write_some(text.data(), text.size(), failure);
  if (!failure && !parser.done()) parser.finish(failure);
  std::string_view rest = failure ? std::string_view() : text.substr(used);
  const bool trailing = rest.find_first_not_of(" \t\r\n") != std::string_view::npos;
  if (failure || trailing) {
    const std::size_t at = std::min(used, text.size());
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    return error(Code::kCorrupt, "{}: not valid JSON at line {}: {}", what, line,
                 trailing ? "text after the value" : failure.message());
  }
  return parser.release();
}

std::string to_json(const Json& value) {
  return boost::json::serialize(value);
}

namespace {
void write_pretty(std::string& out, const Json& value, int indent) {
  const auto newline = [&](int depth) {
    out += '\n';
    out.append(static_cast<std::size_t>(2 * depth), ' ');
  };
  if (const JsonObject* object = value.if_object(); object != nullptr && !object->empty()) {
    out += '{';
    bool first = true;
    for (const auto& [key, member] : *object) {
      if (!std::exchange(first, false)) out += ',';
      newline(indent + 1);
      out += boost::json::serialize(boost::json::string(key)) + ": ";
      write_pretty(out, member, indent + 1);
    }
    newline(indent);
    out += '}';
  } else if (const JsonArray* array = value.if_array(); array != nullptr && !array->empty()) {
    out += '[';
    bool first = true;
    for (const Json& element : *array) {
      if (!std::exchange(first, false)) out += ',';
      newline(indent + 1);
      write_pretty(out, element, indent + 1);
    }
    newline(indent);
    out += ']';
  } else {
    out += boost::json::serialize(value);
  }
}
}  // namespace

std::string to_json_pretty(const Json& value) {
  std::string out;
  write_pretty(out, value, 0);
  return out;
}

}  // namespace still

// JSON values (Boost.JSON: ordered objects, 64-bit integers, a depth limit) with errors as Result.
// For files of many megabytes (tokenizer.json, data sets) use simdjson instead.
#pragma once

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>
#include <string>
#include <string_view>

#include "base/result.h"

namespace still {

using Json = boost::json::value;
using JsonObject = boost::json::object;
using JsonArray = boost::json::array;

// `what` names the source in the message: "config.json: line 3: expected ..."
Result<Json> parse_json(std::string_view text, std::string_view what);
std::string to_json(const Json& value);         // one line
std::string to_json_pretty(const Json& value);  // two spaces an indent

}  // namespace still

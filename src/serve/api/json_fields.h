// Typed access to the members of a request's JSON, one sentence for each mistake: field "temperature" must be of type
// number. Absent and null mean unset; members that nobody asks for are ignored. Also: fast writing of JSON strings for
// streams.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace still {

// A request's body as an object, whatever its Content-Type says. kInvalidArgument: "missing request body", what is
// wrong with the JSON, or that it is no object.
Result<JsonObject> parse_body(std::string_view body);

// A body's JSON in which each escaped surrogate without its other half ("\ud83d" of an emoji that was cut, as clients
// in JavaScript and Python send it) is U+FFFD: UTF-8 has no place for it. kInvalidArgument where it is no UTF-8 or no
// JSON.
Result<Json> parse_client_json(std::string_view body);

// The text of a member; "" where it is absent or no string.
std::string member_text(const JsonObject& object, std::string_view key);

// A view of an object; the object must outlive it. The first mistake is kept, later reads give nothing: read all, then
// ask status() once.
class JsonFields {
 public:
  // noun: how messages call a member: "field", "option". prefix: put before names: "stream_options.".
  explicit JsonFields(const JsonObject& object, std::string_view noun = "field", std::string prefix = {})
      : object_(object), noun_(noun), prefix_(std::move(prefix)) {}

  const Json* find(std::string_view name) const;  // null where absent or null
  bool has(std::string_view name) const { return find(name) != nullptr; }

  std::optional<std::string> text(std::string_view name);
  std::optional<double> number(std::string_view name);
  std::optional<std::int64_t> integer(std::string_view name);  // 3.0 is one; 3.5 is not
  std::optional<bool> boolean(std::string_view name);
  const JsonObject* object(std::string_view name);  // null: unset
  const JsonArray* array(std::string_view name);
  // A string, or an array of strings.
  std::vector<std::string> texts(std::string_view name);
  std::vector<std::int64_t> integers(std::string_view name);
  // An integer within [min, max].
  std::optional<std::int64_t> integer_in(std::string_view name, std::int64_t min, std::int64_t max);
  std::string required_text(std::string_view name);  // a mistake where unset: `field "model" is required`

  // The mistake of a caller that looked at a value itself: `field "n" <message>`.
  void fail(std::string_view name, std::string_view message);
  void fail_type(std::string_view name, std::string_view type) {
    fail(name, std::string("must be of type ").append(type));
  }
  void adopt(Error error, std::string param);  // of a nested reader

  Status status() const;  // kInvalidArgument
  bool is_ok() const { return !error_; }
  const std::string& wrong_field() const { return param_; }  // empty: none
  const JsonObject& json() const { return object_; }

 private:
  const JsonObject& object_;
  std::string noun_, prefix_;
  std::optional<Error> error_;
  std::string param_;
};

// Appends `text` in quotes, escaped. The text must be valid UTF-8; see append_json_bytes.
void append_json_string(std::string& out, std::string_view text);
std::string json_string(std::string_view text);
// The same for bytes that may be half a character: what is no UTF-8 becomes U+FFFD.
void append_json_bytes(std::string& out, std::string_view bytes);
// Shortest text that reads back as the same float; null where it is not finite.
void append_json_number(std::string& out, double number);
void append_json_number(std::string& out, float number);

}  // namespace still

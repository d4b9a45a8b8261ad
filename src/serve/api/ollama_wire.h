// The small change of Ollama's API: fields of a request with their error texts, JSON text and times as its clients
// read them, and its error shape {"error": "..."}.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "serve/generation.h"
#include "serve/http/message.h"

namespace still {

// RFC 3339 in UTC with nanoseconds: "2026-01-31T12:00:00.123456789Z".
void append_rfc3339(std::string& out, std::chrono::system_clock::time_point time);
std::string rfc3339(std::chrono::system_clock::time_point time);

// The object that a request's body holds, whatever its Content-Type. A field that is null counts as absent.
class OllamaFields {
 public:
  // kInvalidArgument: "missing request body", or where the JSON breaks.
  static Result<OllamaFields> parse(std::string_view body);
  explicit OllamaFields(JsonObject object) : object_(std::move(object)) {}

  const Json* find(std::string_view key) const;  // null: absent
  // Wrong types are kInvalidArgument and name the field.
  Result<std::string> text(std::string_view key) const;  // "" where absent
  Result<std::optional<bool>> flag(std::string_view key) const;
  Result<std::optional<std::int64_t>> integer(std::string_view key) const;
  Result<JsonObject> object(std::string_view key) const;  // empty where absent
  Result<JsonArray> array(std::string_view key) const;    // empty where absent
  // "model", or "name" as old clients still send it. kInvalidArgument "model is required".
  Result<std::string> model() const;
  // "5m", "1h30m", "-1s", or a number of seconds; negative: for ever. Absent: the server's default.
  Result<std::optional<std::chrono::nanoseconds>> keep_alive() const;

  const JsonObject& json() const { return object_; }

 private:
  JsonObject object_;
};

// Go's notation: a sequence of decimal numbers with units ns, us, ms, s, m, h. Beyond the range: the nearest.
Result<std::chrono::nanoseconds> parse_go_duration(std::string_view text);

// options of a request, checked by type and sorted into `input`; `warnings` names what has no effect here.
// kInvalidArgument: option "num_ctx" must be of type integer.
Status apply_ollama_options(const JsonObject& options, GenerationInput& input, std::vector<std::string>& warnings);
// Ollama's documented defaults: temperature 0.8, top_k 40, top_p 0.9, penalties over the last 64 tokens.
SamplingParams ollama_sampling_defaults();

// think: true, false or "minimal" ... "max"; format: "json", a schema, or nothing.
Result<ThinkingWish> read_ollama_think(const OllamaFields& fields);
Result<FormatWish> read_ollama_format(const OllamaFields& fields);

// Status and text of an error as Ollama's clients know them. `model`: as the client wrote it.
struct OllamaError {
  int status = 500;
  std::string text;
};
OllamaError ollama_error(const Error& error, std::string_view model);
// {"error": "..."} on one line.
std::string ollama_error_json(std::string_view text);
void send_ollama_error(ResponseWriter& writer, int status, std::string_view text);
void send_ollama_error(ResponseWriter& writer, const Error& error, std::string_view model);
void send_json(ResponseWriter& writer, const Json& json, int status = 200);

}  // namespace still

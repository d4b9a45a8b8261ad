// See ollama_wire.h.
#include "serve/api/ollama_wire.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <limits>

#include "serve/api/errors.h"
#include "serve/api/json_fields.h"
#include "text/unicode.h"

namespace still {

namespace {

std::string_view json_type(const Json& value) {
  switch (value.kind()) {
    case boost::json::kind::null:
      return "null";
    case boost::json::kind::bool_:
      return "boolean";
    case boost::json::kind::string:
      return "string";
    case boost::json::kind::array:
      return "array";
    case boost::json::kind::object:
      return "object";
    default:
      return "number";
  }
}

tl::unexpected<Error> wrong_type(std::string_view key, std::string_view wanted, const Json& found) {
  return error(Code::kInvalidArgument, "field \"{}\" must be of type {}, not {}", key, wanted, json_type(found));
}

std::optional<std::int64_t> as_integer(const Json& value) {
  if (value.is_int64()) return value.get_int64();
  if (value.is_uint64()) return std::numeric_limits<std::int64_t>::max();
  if (value.is_double() && std::isfinite(value.get_double())) {
    const double clamped = std::clamp(value.get_double(), -9e18, 9e18);
    return static_cast<std::int64_t>(clamped);  // towards zero, as Go does
  }
  return std::nullopt;
}

std::optional<double> as_number(const Json& value) {
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  if (value.is_double()) return value.get_double();
  return std::nullopt;
}

}  // namespace

void append_rfc3339(std::string& out, std::chrono::system_clock::time_point time) {
  using namespace std::chrono;
  const auto since = duration_cast<nanoseconds>(time.time_since_epoch());
  const auto whole = floor<seconds>(since);
  const std::time_t value = whole.count();
  std::tm utc{};
  ::gmtime_r(&value, &utc);
  fmt::format_to(std::back_inserter(out), "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", utc.tm_year + 1900,
                 utc.tm_mon + 1, utc.tm_mday, utc.tm_hour, utc.tm_min, utc.tm_sec, (since - whole).count());
}

std::string rfc3339(std::chrono::system_clock::time_point time) {
  std::string out;
  append_rfc3339(out, time);
  return out;
}

Result<OllamaFields> OllamaFields::parse(std::string_view body) {
  if (body.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return error(Code::kInvalidArgument, "missing request body");
  }
  STILL_TRY(Json json, parse_client_json(body));
  if (!json.is_object()) {
    return error(Code::kInvalidArgument, "request body: expected an object, found {}", json_type(json));
  }
  return OllamaFields(std::move(json.get_object()));
}

const Json* OllamaFields::find(std::string_view key) const {
  const Json* value = object_.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Result<std::string> OllamaFields::text(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::string();
  if (!value->is_string()) return wrong_type(key, "string", *value);
  return std::string(value->get_string());
}

Result<std::optional<bool>> OllamaFields::flag(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<bool>();
  if (!value->is_bool()) return wrong_type(key, "boolean", *value);
  return std::optional<bool>(value->get_bool());
}

Result<std::optional<std::int64_t>> OllamaFields::integer(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return std::optional<std::int64_t>();
  const auto number = value->is_double() ? std::nullopt : as_integer(*value);
  if (!number) return wrong_type(key, "integer", *value);
  return std::optional<std::int64_t>(*number);
}

Result<JsonObject> OllamaFields::object(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return JsonObject();
  if (!value->is_object()) return wrong_type(key, "object", *value);
  return value->get_object();
}

Result<JsonArray> OllamaFields::array(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) return JsonArray();
  if (!value->is_array()) return wrong_type(key, "array", *value);
  return value->get_array();
}

Result<std::string> OllamaFields::model() const {
  STILL_TRY(std::string name, text("model"));
  if (name.empty()) {
    STILL_TRY(name, text("name"));
  }
  if (name.empty()) return error(Code::kInvalidArgument, "model is required");
  return name;
}

Result<std::optional<std::chrono::nanoseconds>> OllamaFields::keep_alive() const {
  using std::chrono::nanoseconds;
  using Wish = std::optional<nanoseconds>;
  const Json* value = find("keep_alive");
  if (value == nullptr) return Wish();
  if (const auto seconds = as_number(*value)) {
    return Wish(nanoseconds(static_cast<std::int64_t>(std::clamp(*seconds, -9e9, 9e9) * 1e9)));
  }
  if (!value->is_string()) return wrong_type("keep_alive", "string or number", *value);
  STILL_TRY(const nanoseconds parsed, parse_go_duration(value->get_string()));
  return Wish(parsed);
}

Result<std::chrono::nanoseconds> parse_go_duration(std::string_view text) {
  const auto fail = [&](std::string_view why) { return error(Code::kInvalidArgument, "time: {} \"{}\"", why, text); };
  std::string_view rest = text;
  bool negative = false;
  if (!rest.empty() && (rest.front() == '-' || rest.front() == '+')) {
    negative = rest.front() == '-';
    rest.remove_prefix(1);
  }
  if (rest == "0") return std::chrono::nanoseconds(0);
  if (rest.empty()) return fail("invalid duration");
  constexpr std::array<std::pair<std::string_view, double>, 8> kUnits = {{{"ns", 1},
                                                                          {"us", 1e3},
                                                                          {"\xc2\xb5s", 1e3},
                                                                          {"\xce\xbcs", 1e3},
                                                                          {"ms", 1e6},
                                                                          {"s", 1e9},
                                                                          {"m", 6e10},
                                                                          {"h", 3.6e12}}};
  double total = 0;
  while (!rest.empty()) {
    const std::size_t n_digits = std::min(rest.find_first_not_of("0123456789."), rest.size());
    const std::string digits(rest.substr(0, n_digits));
    if (digits.find_first_of("0123456789") == std::string::npos || digits.find('.') != digits.rfind('.')) {
      return fail("invalid duration");
    }
    rest.remove_prefix(n_digits);
    const std::size_t n_unit = std::min(rest.find_first_of("0123456789."), rest.size());
    if (n_unit == 0) return fail("missing unit in duration");
    const auto unit = std::ranges::find(kUnits, rest.substr(0, n_unit), &std::pair<std::string_view, double>::first);
    if (unit == kUnits.end()) return fail("unknown unit in duration");
    total += std::strtod(digits.c_str(), nullptr) * unit->second;
    rest.remove_prefix(n_unit);
  }
  total = std::min(total, 9e18);
  return std::chrono::nanoseconds(static_cast<std::int64_t>(negative ? -total : total));
}

namespace {

enum class OptionType { kInteger, kFloat, kBoolean, kTexts };

struct OptionSpec {
  std::string_view name;
  OptionType type;
  std::string_view sampling;  // the engine's name; empty: see apply_ollama_options
  bool has_effect = true;
};

// Ollama's table of options. Those without effect choose devices or batch sizes, which the plan does here, or are
// samplers that Ollama itself dropped.
constexpr std::array<OptionSpec, 29> kOptions = {{
    {"num_keep", OptionType::kInteger, "", false},
    {"seed", OptionType::kInteger, ""},
    {"num_predict", OptionType::kInteger, ""},
    {"top_k", OptionType::kInteger, "top_k"},
    {"top_p", OptionType::kFloat, "top_p"},
    {"min_p", OptionType::kFloat, "min_p"},
    {"typical_p", OptionType::kFloat, "", false},
    {"tfs_z", OptionType::kFloat, "", false},
    {"repeat_last_n", OptionType::kInteger, "penalty_last_n"},
    {"temperature", OptionType::kFloat, "temperature"},
    {"repeat_penalty", OptionType::kFloat, "repetition_penalty"},
    {"presence_penalty", OptionType::kFloat, "presence_penalty"},
    {"frequency_penalty", OptionType::kFloat, "frequency_penalty"},
    {"mirostat", OptionType::kInteger, "", false},
    {"mirostat_tau", OptionType::kFloat, "", false},
    {"mirostat_eta", OptionType::kFloat, "", false},
    {"penalize_newline", OptionType::kBoolean, "", false},
    {"stop", OptionType::kTexts, ""},
    {"num_ctx", OptionType::kInteger, ""},
    {"num_batch", OptionType::kInteger, "", false},
    {"num_gpu", OptionType::kInteger, "", false},
    {"main_gpu", OptionType::kInteger, "", false},
    {"use_mmap", OptionType::kBoolean, "", false},
    {"use_mlock", OptionType::kBoolean, "", false},
    {"low_vram", OptionType::kBoolean, "", false},
    {"f16_kv", OptionType::kBoolean, "", false},
    {"numa", OptionType::kBoolean, "", false},
    {"num_thread", OptionType::kInteger, "", false},
    {"draft_num_predict", OptionType::kInteger, "", false},
}};

Status apply_option(const OptionSpec& spec, const Json& value, GenerationInput& input) {
  const auto wrong = [&](std::string_view type) {
    return error(Code::kInvalidArgument, "option \"{}\" must be of type {}", spec.name, type);
  };
  switch (spec.type) {
    case OptionType::kBoolean:
      return value.is_bool() ? ok() : wrong("boolean");
    case OptionType::kFloat: {
      const auto number = as_number(value);
      if (!number) return wrong("float32");
      if (!spec.sampling.empty()) input.sampling[spec.sampling] = *number;
      return ok();
    }
    case OptionType::kTexts: {
      // One string alone is Ollama's error, but harmless.
      if (value.is_string()) {
        input.stop.assign(1, std::string(value.get_string()));
        return ok();
      }
      if (!value.is_array()) return wrong("array");
      input.stop.clear();
      for (const Json& item : value.get_array()) {
        if (!item.is_string()) return wrong("an array of strings");
        if (!item.get_string().empty()) input.stop.emplace_back(item.get_string());
      }
      return ok();
    }
    case OptionType::kInteger:
      break;
  }
  const auto integer = as_integer(value);
  if (!integer) return wrong("integer");
  if (spec.name == "seed") {
    if (*integer >= 0) input.sampling["seed"] = *integer;
  } else if (spec.name == "num_predict") {
    input.max_tokens = *integer > 0 ? *integer : -1;
  } else if (spec.name == "num_ctx") {
    if (*integer <= 0) return error(Code::kInvalidArgument, "option \"num_ctx\" must be greater than 0");
    input.model.context = *integer;
  } else if (!spec.sampling.empty()) {
    input.sampling[spec.sampling] = *integer;
  }
  return ok();
}

}  // namespace

Status apply_ollama_options(const JsonObject& options, GenerationInput& input, std::vector<std::string>& warnings) {
  for (const auto& [key, value] : options) {
    if (value.is_null()) continue;
    const auto* spec = std::ranges::find(kOptions, std::string_view(key), &OptionSpec::name);
    if (spec == kOptions.end()) {
      warnings.push_back(fmt::format("option \"{}\" is not known and was ignored", std::string_view(key)));
      continue;
    }
    STILL_TRY_STATUS(apply_option(*spec, value, input));
    const bool is_off = spec->name == "mirostat" ? as_integer(value) == 0 : as_number(value) == 1.0;
    const bool is_sampler = spec->name == "mirostat" || spec->name == "typical_p" || spec->name == "tfs_z";
    if (is_sampler && !is_off) warnings.push_back(fmt::format("option \"{}\" has no effect here", spec->name));
  }
  return ok();
}

SamplingParams ollama_sampling_defaults() {
  SamplingParams params;
  params.temperature = 0.8f;
  params.top_k = 40;
  params.top_p = 0.9f;
  params.penalty_last_n = 64;
  return params;
}

Result<ThinkingWish> read_ollama_think(const OllamaFields& fields) {
  ThinkingWish wish;
  const Json* value = fields.find("think");
  if (value == nullptr) return wish;
  if (value->is_bool()) {
    wish.enabled = value->get_bool();
    return wish;
  }
  const std::string text = value->is_string() ? std::string(value->get_string()) : to_json(*value);
  constexpr std::array<std::string_view, 6> kLevels = {"minimal", "low", "medium", "high", "xhigh", "max"};
  if (value->is_string() && std::ranges::find(kLevels, std::string_view(text)) != kLevels.end()) {
    wish.enabled = true;
    wish.effort = text;
    return wish;
  }
  if (value->is_string() && (text == "true" || text == "false" || text == "none")) {
    wish.enabled = text == "true";
    return wish;
  }
  return error(Code::kInvalidArgument,
               "invalid think value: \"{}\" (must be \"high\", \"medium\", \"low\", \"max\", true, or false)", text);
}

Result<FormatWish> read_ollama_format(const OllamaFields& fields) {
  FormatWish wish;
  const Json* value = fields.find("format");
  if (value == nullptr) return wish;
  if (value->is_object()) {
    wish.kind = FormatWish::Kind::kJsonSchema;
    wish.schema = *value;
    return wish;
  }
  if (value->is_string() && value->get_string().empty()) return wish;
  if (value->is_string() && value->get_string() == "json") {
    wish.kind = FormatWish::Kind::kJsonObject;
    return wish;
  }
  return error(Code::kInvalidArgument, "invalid format: {}; expected \"json\" or a valid JSON Schema object",
               to_json(*value));
}

OllamaError ollama_error(const Error& error, std::string_view model) {
  switch (error.code) {
    case Code::kInvalidArgument:
    case Code::kUnsupported:
      return {400, error.message};
    case Code::kNotFound:
      return {404, fmt::format("model '{}' not found", model)};
    case Code::kPermissionDenied:
      return {403, error.message};
    case Code::kCancelled:
      return {499, "request canceled"};
    case Code::kUnavailable:
      return {503, error.message};
    case Code::kResourceExhausted:
      return {500, error.message};
    case Code::kCorrupt:
    case Code::kInternal:
      break;
  }
  return {500, error.message};
}

std::string ollama_error_json(std::string_view text) {
  return error_body(ApiShape::kOllama, 500, text);
}

void send_ollama_error(ResponseWriter& writer, int status, std::string_view text) {
  writer.send(error_response(ApiShape::kOllama, status, text));
}

void send_ollama_error(ResponseWriter& writer, const Error& error, std::string_view model) {
  const OllamaError known = ollama_error(error, model);
  send_ollama_error(writer, known.status, known.text);
}

void send_json(ResponseWriter& writer, const Json& json, int status) {
  writer.send({.status = status, .body = to_json(json)});
}

}  // namespace still

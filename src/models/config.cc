#include "models/config.h"

#include <cmath>

namespace still {

namespace {

const Json* find_member(const JsonObject& json, std::string_view key) {
  const Json* value = json.if_contains(key);
  return value == nullptr || value->is_null() ? nullptr : value;
}

constexpr std::int64_t kMaxWidth = std::int64_t{1} << 24;
constexpr std::int64_t kMaxTokens = std::int64_t{1} << 31;

}  // namespace

bool ConfigReader::has(std::string_view key) const {
  return find_member(json_, key) != nullptr;
}

Result<std::int64_t> ConfigReader::integer(std::string_view key, std::int64_t min, std::int64_t max) const {
  const Json* value = find_member(json_, key);
  if (value == nullptr) return error(Code::kCorrupt, "config: \"{}\" is missing", key);
  boost::system::error_code failure;
  const auto number = value->to_number<std::int64_t>(failure);
  if (failure) return error(Code::kCorrupt, "config: \"{}\" is {}, expected an integer", key, to_json(*value));
  if (number < min || number > max)
    return error(Code::kCorrupt, "config: \"{}\" is {}, expected {} to {}", key, number, min, max);
  return number;
}

Result<std::int64_t> ConfigReader::integer_or(std::string_view key, std::int64_t fallback, std::int64_t min,
                                              std::int64_t max) const {
  if (!has(key)) return fallback;
  return integer(key, min, max);
}

Result<double> ConfigReader::number_or(std::string_view key, double fallback, double min, double max) const {
  const Json* value = find_member(json_, key);
  if (value == nullptr) return fallback;
  boost::system::error_code failure;
  const double number = value->to_number<double>(failure);
  if (failure || !std::isfinite(number))
    return error(Code::kCorrupt, "config: \"{}\" is {}, expected a number", key, to_json(*value));
  if (number < min || number > max)
    return error(Code::kCorrupt, "config: \"{}\" is {}, expected {} to {}", key, number, min, max);
  return number;
}

Result<bool> ConfigReader::boolean_or(std::string_view key, bool fallback) const {
  const Json* value = find_member(json_, key);
  if (value == nullptr) return fallback;
  if (!value->is_bool())
    return error(Code::kCorrupt, "config: \"{}\" is {}, expected true or false", key, to_json(*value));
  return value->get_bool();
}

Result<std::string> ConfigReader::string_or(std::string_view key, std::string fallback) const {
  const Json* value = find_member(json_, key);
  if (value == nullptr) return fallback;
  if (!value->is_string())
    return error(Code::kCorrupt, "config: \"{}\" is {}, expected a string", key, to_json(*value));
  return std::string(value->get_string());
}

namespace {

Status read_rope_scaling(const JsonObject& json, RopeConfig& rope) {
  // transformers 5 writes everything under rope_parameters; older files have rope_theta and rope_scaling.
  const Json* scaling = find_member(json, "rope_scaling");
  if (scaling == nullptr) scaling = find_member(json, "rope_parameters");
  if (scaling == nullptr) return ok();
  if (!scaling->is_object())
    return error(Code::kCorrupt, "config: \"rope_scaling\" is {}, expected an object", to_json(*scaling));
  const ConfigReader reader(scaling->get_object());
  STILL_TRY(std::string old_name, reader.string_or("type", "default"));
  STILL_TRY(const std::string type, reader.string_or("rope_type", old_name));
  STILL_TRY(rope.theta, reader.number_or("rope_theta", rope.theta, 1.0, 1e12));
  STILL_TRY(rope.factor, reader.number_or("factor", 1.0, 1e-3, 1e6));
  STILL_TRY(rope.low_freq_factor, reader.number_or("low_freq_factor", 1.0, 1e-6, 1e6));
  STILL_TRY(rope.high_freq_factor, reader.number_or("high_freq_factor", 4.0, 1e-6, 1e6));
  STILL_TRY(rope.orig_len, reader.number_or("original_max_position_embeddings", 0.0, 0.0, 1e9));
  STILL_TRY(rope.beta_fast, reader.number_or("beta_fast", 32.0, 1e-6, 1e6));
  STILL_TRY(rope.beta_slow, reader.number_or("beta_slow", 1.0, 1e-6, 1e6));
  STILL_TRY(rope.mscale, reader.number_or("mscale", 0.0, 0.0, 1e3));
  STILL_TRY(rope.mscale_all_dim, reader.number_or("mscale_all_dim", 0.0, 0.0, 1e3));
  if (type == "default" || type == "none" || type == "mrope") {
    rope.scaling = RopeScaling::kNone;
  } else if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
  } else if (type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    if (rope.high_freq_factor <= rope.low_freq_factor)
      return error(Code::kCorrupt, "config: rope_scaling.high_freq_factor {} must be above low_freq_factor {}",
                   rope.high_freq_factor, rope.low_freq_factor);
  } else if (type == "yarn") {
    rope.scaling = RopeScaling::kYarn;
  } else {
    return error(Code::kUnsupported,
                 "config: rope_scaling type \"{}\" is not supported (default, linear, llama3, yarn are)", type);
  }
  if ((rope.scaling == RopeScaling::kLlama3 || rope.scaling == RopeScaling::kYarn) && rope.orig_len < 1.0)
    return error(Code::kCorrupt, "config: rope_scaling of type \"{}\" needs original_max_position_embeddings", type);
  return ok();
}

}  // namespace

Result<ModelConfig> read_decoder_config(const JsonObject& json) {
  const ConfigReader reader(json);
  ModelConfig config;
  STILL_TRY(config.model_type, reader.string_or("model_type", ""));
  STILL_TRY(const std::int64_t n_layers, reader.integer("num_hidden_layers", 1, 4096));
  STILL_TRY(config.hidden_size, reader.integer("hidden_size", 1, kMaxWidth));
  STILL_TRY(config.intermediate_size, reader.integer("intermediate_size", 1, kMaxWidth));
  STILL_TRY(const std::int64_t n_heads, reader.integer("num_attention_heads", 1, 65536));
  STILL_TRY(const std::int64_t n_kv_heads, reader.integer_or("num_key_value_heads", n_heads, 1, 65536));
  STILL_TRY(const std::int64_t head_dim, reader.integer_or("head_dim", config.hidden_size / n_heads, 1, 65536));
  STILL_TRY(config.vocab_size, reader.integer("vocab_size", 1, kMaxWidth));
  STILL_TRY(config.max_seq_len, reader.integer_or("max_position_embeddings", 2048, 1, kMaxTokens));
  STILL_TRY(const double eps, reader.number_or("rms_norm_eps", 1e-6, 0.0, 1.0));
  STILL_TRY(config.tied_embeddings, reader.boolean_or("tie_word_embeddings", false));
  STILL_TRY(config.rope.theta, reader.number_or("rope_theta", 10000.0, 1.0, 1e12));
  STILL_TRY_STATUS(read_rope_scaling(json, config.rope));
  if (n_heads % n_kv_heads != 0)
    return error(Code::kCorrupt, "config: num_attention_heads {} is not a multiple of num_key_value_heads {}", n_heads,
                 n_kv_heads);
  if (head_dim % 2 != 0)
    return error(Code::kCorrupt, "config: head_dim {} is odd, rotary embedding needs pairs", head_dim);
  config.n_layers = static_cast<std::int32_t>(n_layers);
  config.n_heads = static_cast<std::int32_t>(n_heads);
  config.n_kv_heads = static_cast<std::int32_t>(n_kv_heads);
  config.head_dim = static_cast<std::int32_t>(head_dim);
  config.rms_norm_eps = static_cast<float>(eps);
  config.rope.n_rot = config.head_dim;
  config.rope.pairs = false;
  return config;
}

}  // namespace still

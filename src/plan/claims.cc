#include "plan/claims.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "plan/fit.h"
#include "plan/speed.h"

namespace still {

namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return result;
}

std::string text_of(const JsonObject& o, std::string_view key) {
  const Json* value = o.if_contains(key);
  return value == nullptr || !value->is_string() ? std::string() : std::string(value->get_string());
}
double number_of(const JsonObject& o, std::string_view key) {
  const Json* value = o.if_contains(key);
  return value == nullptr || !value->is_number() ? 0 : value->to_number<double>();
}

Result<double> config_field(const ModelConfig& c, std::string_view field) {
  if (field == "n_experts") return c.n_experts;
  if (field == "n_experts_per_tok") return c.n_experts_per_tok;
  if (field == "n_shared_experts") return c.n_shared_experts;
  if (field == "topk_group") return c.topk_group;
  if (field == "kv_lora_rank") return static_cast<double>(c.kv_lora_rank);
  if (field == "max_seq_len") return static_cast<double>(c.max_seq_len);
  if (field == "sliding_window") return static_cast<double>(c.sliding_window);
  return error(Code::kInvalidArgument, "no field \"{}\"", field);
}

Result<double> fits_or_rate(const ClaimWorld& world, const JsonObject& q, const ModelShape& shape, bool wants_rate) {
  STILL_TRY(const Quantisation quant, find_quantisation(text_of(q, "quant")));
  STILL_TRY(const DeviceSet set, parse_device_set(world.devices, text_of(q, "devices")));
  DeploymentSettings settings{.context = static_cast<std::int64_t>(number_of(q, "context"))};
  STILL_TRY(settings.parallelism, choose_parallelism(shape, quant, set.count));
  STILL_TRY(const FitAnswer fit, check_fit(shape, quant, set, settings, false));
  if (!wants_rate) return fit.fits ? 1.0 : 0.0;
  const SpeedModel model = make_speed_model(shape, quant, set.device, fit.weights, settings);
  return predict_decode(model, 1, static_cast<double>(settings.context)).tok_per_s_user.low;
}

}  // namespace

std::string ClaimCheck::text() const {
  std::string result = text_of(query, "kind");
  for (const auto& [key, value] : query)
    if (key != "kind")
      result += fmt::format(" {}={}", std::string_view(key),
                            value.is_string() ? std::string(value.get_string()) : to_json(value));
  return result;
}

Result<ClaimWorld> ClaimWorld::read() {
  ClaimWorld world;
  STILL_TRY(world.models, read_known_models());
  STILL_TRY(world.devices, built_in_devices());
  STILL_TRY(world.quality, read_quality());
  return world;
}

Result<std::vector<Claim>> read_claims() {
  STILL_TRY(const Json json, parse_json(plan_data_text("claims"), "claims.json"));
  std::vector<Claim> claims;
  for (const Json& row : json.at("claims").as_array()) {
    const JsonObject& object = row.as_object();
    Claim claim{.id = text_of(object, "id"),
                .claim = text_of(object, "claim"),
                .right = text_of(object, "right"),
                .source = text_of(object, "source"),
                .verdict = text_of(object, "verdict")};
    for (const Json& group : object.at("match").as_array()) {
      std::vector<std::string> words;
      for (const Json& word : group.as_array()) words.emplace_back(word.as_string());
      claim.match.push_back(std::move(words));
    }
    for (const Json& check : object.at("checks").as_array()) {
      ClaimCheck item{.query = check.as_object(),
                      .expect = number_of(check.as_object(), "expect"),
                      .tolerance = number_of(check.as_object(), "tolerance")};
      item.query.erase("expect");
      item.query.erase("tolerance");
      claim.checks.push_back(std::move(item));
    }
    claims.push_back(std::move(claim));
  }
  return claims;
}

Result<double> answer_check(const ClaimWorld& world, const ClaimCheck& check) {
  const JsonObject& q = check.query;
  const std::string kind = text_of(q, "kind"), model = text_of(q, "model");
  if (kind == "ratio") return number_of(q, "a") / number_of(q, "b");
  if (kind == "product") return number_of(q, "a") * number_of(q, "b");
  if (kind == "quality") {
    const auto score = world.quality.score(model, text_of(q, "field"));
    if (!score) return error(Code::kNotFound, "no published {} of {}", text_of(q, "field"), model);
    return *score;
  }
  if (kind == "known") return find_known_shape(world.models, model).has_value() ? 1.0 : 0.0;
  if (kind == "device") {
    STILL_TRY(const Device device, find_device(world.devices, text_of(q, "device")));
    return (text_of(q, "field") == "f16" ? device.f16 : device.f16_f32_accumulate) * 1e-12;
  }
  STILL_TRY(const ModelShape shape, find_known_shape(world.models, model));
  if (kind == "params_b") return static_cast<double>(shape.n_params()) * 1e-9;
  if (kind == "mtp_b") return static_cast<double>(shape.n_params(true) - shape.n_params()) * 1e-9;
  if (kind == "active_b") return static_cast<double>(shape.n_active_params()) * 1e-9;
  if (kind == "active_share")
    return static_cast<double>(shape.n_active_params()) / static_cast<double>(shape.n_params());
  if (kind == "kv_bytes") return static_cast<double>(kv_bytes_per_token(shape, {}));
  if (kind == "config") return config_field(shape.config, text_of(q, "field"));
  if (kind == "base_is") return shape.base == text_of(q, "text") ? 1.0 : 0.0;
  if (kind == "licence_has") return shape.licence.find(text_of(q, "text")) != std::string::npos ? 1.0 : 0.0;
  if (kind == "kv_gib")
    return to_gib(kv_bytes_of_sequence(shape, {}, static_cast<std::int64_t>(number_of(q, "context")), 16)) *
           number_of(q, "n");
  if (kind == "fits") return fits_or_rate(world, q, shape, false);
  if (kind == "decode_at_least") return std::min(check.expect, *fits_or_rate(world, q, shape, true));
  if (kind == "vocab_differs" || kind == "same_size") {
    STILL_TRY(const ModelShape other, find_known_shape(world.models, text_of(q, "other")));
    if (kind == "vocab_differs") return shape.config.vocab_size != other.config.vocab_size ? 1.0 : 0.0;
    return shape.n_params() == other.n_params() && kv_bytes_per_token(shape, {}) == kv_bytes_per_token(other, {}) ? 1.0
                                                                                                                  : 0.0;
  }
  if (kind == "weights_gb" || kind == "weights_gib") {
    STILL_TRY(const Quantisation quant, find_quantisation(text_of(q, "quant")));
    const std::int64_t bytes = weight_file_bytes(quant, shape);
    return kind == "weights_gb" ? to_gb(bytes) : to_gib(bytes);
  }
  // Tokens/s at which one stream reads all weights but the embedding table at the device's full bandwidth.
  const double read = 2.0 * static_cast<double>(shape.n_active_params());
  if (kind == "roof" || kind == "bandwidth_share") {
    STILL_TRY(const Device device, find_device(world.devices, text_of(q, "device")));
    if (kind == "roof") return device.bandwidth / read;
    return number_of(q, "rate") * read / (number_of(q, "n") * device.bandwidth);
  }
  return error(Code::kInvalidArgument, "a check of unknown kind \"{}\"", kind);
}

namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// A word of a claim in a sentence. One that begins or ends with a digit must not be a part of a longer number or name:
// "2" is not in "256", "1.2" or "v2", but "2" and "80" are in "2x80".
bool holds_word(std::string_view text, std::string_view word) {
  for (std::size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) {
    const auto after = [&](std::size_t n) {
      return at + word.size() + n < text.size() ? text[at + word.size() + n] : ' ';
    };
    const auto before = [&](std::size_t n) { return at >= n ? text[at - n] : ' '; };
    const bool is_times = before(1) == 'x' && (is_digit(before(2)) || before(2) == ' ');
    const bool is_name = before(1) >= 'a' && before(1) <= 'z' && !is_times;
    const bool is_inside = is_digit(before(1)) || ((before(1) == '.' || before(1) == ',') && is_digit(before(2)));
    if (is_digit(word.front()) && (is_inside || is_name)) continue;
    const bool goes_on = is_digit(after(0)) || ((after(0) == '.' || after(0) == ',') && is_digit(after(1)));
    if (is_digit(word.back()) && goes_on) continue;
    return true;
  }
  return false;
}

bool is_negated(std::string_view text) {
  for (const std::string_view word : {"not ", "n't ", "never ", "without ", "neither ", " no ", "\u4e0d",
                                      "\u6ca1\u6709", "\u5e76\u975e", "\u800c\u975e"})
    if (text.find(word) != std::string_view::npos) return true;
  return false;
}

}  // namespace

bool may_deny(const Claim& claim, std::string_view sentence) {
  const std::string text = lower(sentence), own = lower(claim.claim);
  return text != own && text != claim.id && is_negated(text + " ") != is_negated(own + " ");
}

std::vector<const Claim*> match_claims(const std::vector<Claim>& claims, std::string_view sentence) {
  const std::string text = lower(sentence);
  std::vector<const Claim*> found;
  for (const Claim& claim : claims) {
    const bool matches =
        !claim.match.empty() &&
        std::all_of(claim.match.begin(), claim.match.end(), [&](const std::vector<std::string>& words) {
          return std::any_of(words.begin(), words.end(),
                             [&](const std::string& word) { return holds_word(text, word); });
        });
    if (matches || text == lower(claim.claim) || text == claim.id) found.push_back(&claim);
  }
  std::stable_sort(found.begin(), found.end(), [&](const Claim* a, const Claim* b) {
    const bool a_same = text == lower(a->claim), b_same = text == lower(b->claim);
    return a_same != b_same ? a_same : a->match.size() > b->match.size();
  });
  return found;
}

}  // namespace still

#include "files/gguf_config.h"

#include <optional>
#include <string>

#include "files/file_error.h"

namespace still {

namespace {

// Reads "{architecture}.{key}" and remembers the first key that is there but of a wrong kind.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string_view architecture)
      : metadata_(metadata), prefix_(std::string(architecture) + ".") {}

  const GgufValue* find(std::string_view key) const { return metadata_.find(prefix_ + std::string(key)); }
  const std::string& prefix() const { return prefix_; }

  // A size or count. Some architectures give one for each layer: then the common value, if there is one.
  std::optional<std::int64_t> integer(std::string_view key) {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    std::optional<std::int64_t> result = value->integer();
    if (const GgufArray* array = value->array()) {
      result = array->integer(0);
      for (std::int64_t i = 1; i < array->size(); ++i)
        if (array->integer(i) != result) return std::nullopt;
    }
    if (!result || *result < 0 || *result > kMaxSize) note_wrong(key, *value);
    return result;
  }
  std::optional<double> number(std::string_view key) {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    const std::optional<double> result = value->number();
    if (!result) note_wrong(key, *value);
    return result;
  }
  std::optional<bool> boolean(std::string_view key) {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    const std::optional<bool> result = value->boolean();
    if (!result) note_wrong(key, *value);
    return result;
  }
  std::optional<std::string_view> string(std::string_view key) {
    const GgufValue* value = find(key);
    if (value == nullptr) return std::nullopt;
    if (value->string() == nullptr) {
      note_wrong(key, *value);
      return std::nullopt;
    }
    return std::string_view(*value->string());
  }
  const std::string& wrong() const { return wrong_; }

 private:
  static constexpr std::int64_t kMaxSize = std::int64_t{1} << 40;

  void note_wrong(std::string_view key, const GgufValue& value) {
    if (!wrong_.empty()) return;
    const std::optional<std::int64_t> found = value.integer();
    wrong_ = fmt::format("{}{} is {}, which no model has", prefix_, key,
                         found ? std::to_string(*found) : "of type " + std::string(gguf_type_name(value.type())));
  }

  const GgufMetadata& metadata_;
  std::string prefix_;
  std::string wrong_;
};

template <class T>
void put(JsonObject& config, std::string_view key, const std::optional<T>& value) {
  if (value) config[key] = *value;
}

// f32 arithmetic of the converter undone: 0.0707 / 0.1 is 0.707, not 0.70700003.
double divide_as_float(double a, double b) {
  return shortest_double(static_cast<float>(a / b));
}

void put_rope(Keys& keys, JsonObject& config, bool is_deepseek) {
  config["rope_theta"] = keys.number("rope.freq_base").value_or(10000.0);
  std::optional<double> factor = keys.number("rope.scaling.factor");
  // Files of 2023 have rope.scale_linear instead.
  const std::optional<double> linear = keys.number("rope.scale_linear");
  std::string_view type = keys.string("rope.scaling.type").value_or(linear ? "linear" : "none");
  if (!factor) factor = linear;
  if (type == "none" || !factor) return;
  JsonObject scaling;
  scaling["rope_type"] = type;
  scaling["type"] = type;
  scaling["factor"] = *factor;
  put(scaling, "original_max_position_embeddings", keys.integer("rope.scaling.original_context_length"));
  put(scaling, "attention_factor", keys.number("rope.scaling.yarn_attn_factor"));
  if (!scaling.contains("attention_factor")) put(scaling, "attention_factor", keys.number("rope.scaling.attn_factor"));
  put(scaling, "extrapolation_factor", keys.number("rope.scaling.yarn_ext_factor"));
  put(scaling, "beta_fast", keys.number("rope.scaling.yarn_beta_fast"));
  put(scaling, "beta_slow", keys.number("rope.scaling.yarn_beta_slow"));
  if (is_deepseek) {
    if (!scaling.contains("beta_fast")) scaling["beta_fast"] = 32;
    if (!scaling.contains("beta_slow")) scaling["beta_slow"] = 1;
    // The key holds 0.1 * mscale_all_dim (llama.cpp pull request 17945). Every DeepSeek has mscale equal to it.
    if (const std::optional<double> multiplier = keys.number("rope.scaling.yarn_log_multiplier")) {
      const double mscale = divide_as_float(*multiplier, 0.1);
      scaling["mscale"] = mscale;
      scaling["mscale_all_dim"] = mscale;
    }
  }
  config["rope_scaling"] = std::move(scaling);
}

// Multi-head latent attention and experts. Three generations of files: attn_kv_b with plain key lengths; attn_k_b and
// attn_v_b with the lengths of the compressed form and *_mla beside them; either of them without the router's keys.
void put_deepseek(Keys& keys, const GgufShapeLookup& find_shape, JsonObject& config, std::int64_t n_layers) {
  const std::optional<std::int64_t> n_heads = keys.integer("attention.head_count");
  put(config, "num_key_value_heads", n_heads);
  config.erase("head_dim");
  if (const auto rank = keys.integer("attention.q_lora_rank"); rank && *rank > 0)
    config["q_lora_rank"] = *rank;
  else
    config["q_lora_rank"] = nullptr;
  put(config, "kv_lora_rank", keys.integer("attention.kv_lora_rank"));
  const std::int64_t rope_dim = keys.integer("rope.dimension_count").value_or(64);
  std::optional<std::int64_t> key_length = keys.integer("attention.key_length_mla");
  if (!key_length) key_length = keys.integer("attention.key_length");
  std::optional<std::int64_t> value_length = keys.integer("attention.value_length_mla");
  if (!value_length) value_length = keys.integer("attention.value_length");
  config["qk_rope_head_dim"] = rope_dim;
  if (key_length) config["qk_nope_head_dim"] = *key_length - rope_dim;
  put(config, "v_head_dim", value_length);

  const std::int64_t n_dense = keys.integer("leading_dense_block_count").value_or(0);
  config["first_k_dense_replace"] = n_dense;
  const std::optional<std::int64_t> n_experts = keys.integer("expert_count");
  bool has_route_bias = false;
  for (std::int64_t layer = n_dense; layer < std::min(n_layers, n_dense + 2); ++layer)
    has_route_bias = has_route_bias || find_shape(fmt::format("blk.{}.exp_probs_b.bias", layer)) != nullptr ||
                     find_shape(fmt::format("blk.{}.exp_probs_b", layer)) != nullptr;
  const std::int64_t gating = keys.integer("expert_gating_func").value_or(0);
  const bool is_sigmoid = gating == 2 || (gating == 0 && has_route_bias);
  config["model_type"] = is_sigmoid ? "deepseek_v3" : "deepseek_v2";
  if (!n_experts || *n_experts == 0) return;
  config["n_routed_experts"] = *n_experts;
  put(config, "num_experts_per_tok", keys.integer("expert_used_count"));
  config["n_shared_experts"] = keys.integer("expert_shared_count").value_or(0);
  put(config, "moe_intermediate_size", keys.integer("expert_feed_forward_length"));
  config["moe_layer_freq"] = 1;
  config["routed_scaling_factor"] = keys.number("expert_weights_scale").value_or(1.0);
  config["norm_topk_prob"] = keys.boolean("expert_weights_norm").value_or(false);
  config["scoring_func"] = is_sigmoid ? "sigmoid" : "softmax";
  // Early files lack the groups: the published V3/R1 has 8 of which 4, V2 has 8 of which 3, others one.
  const std::int64_t default_groups = *n_experts == 256 || *n_experts == 160 ? 8 : 1;
  const std::int64_t default_used = *n_experts == 256 ? 4 : *n_experts == 160 ? 3 : 1;
  const std::int64_t n_groups = keys.integer("expert_group_count").value_or(default_groups);
  config["n_group"] = n_groups;
  config["topk_group"] =
      keys.integer("expert_group_used_count").value_or(n_groups == default_groups ? default_used : 1);
  config["topk_method"] = has_route_bias ? "noaux_tc" : n_groups > 1 ? "group_limited_greedy" : "greedy";
}

}  // namespace

Result<JsonObject> config_from_gguf(const GgufMetadata& metadata, const GgufShapeLookup& find_shape,
                                    std::string_view name) {
  const std::optional<std::string_view> architecture = metadata.string("general.architecture");
  if (!architecture || architecture->empty())
    return file_error(Code::kCorrupt, "{}: no general.architecture in its metadata", name);
  Keys keys(metadata, *architecture);
  const bool is_deepseek = *architecture == "deepseek2";
  JsonObject config;
  config["model_type"] = *architecture;

  for (const auto& [key, gguf_key] :
       {std::pair("num_hidden_layers", "block_count"), std::pair("hidden_size", "embedding_length"),
        std::pair("num_attention_heads", "attention.head_count")}) {
    const std::optional<std::int64_t> value = keys.integer(gguf_key);
    if (!value && keys.find(gguf_key) == nullptr)
      return file_error(Code::kCorrupt, "{}: no {}{} in its metadata", name, keys.prefix(), gguf_key);
    put(config, key, value);
  }
  const std::int64_t n_blocks = keys.integer("block_count").value_or(0);
  const std::int64_t n_nextn = keys.integer("nextn_predict_layers").value_or(0);
  if (n_nextn > n_blocks)
    return file_error(Code::kCorrupt, "{}: {}nextn_predict_layers is {}, more than the {} blocks", name, keys.prefix(),
                      n_nextn, n_blocks);
  config["num_hidden_layers"] = n_blocks - n_nextn;
  if (n_nextn > 0) config["num_nextn_predict_layers"] = n_nextn;
  const std::optional<std::int64_t> n_heads = keys.integer("attention.head_count");
  const std::optional<std::int64_t> n_kv_heads = keys.integer("attention.head_count_kv");
  put(config, "num_key_value_heads", n_kv_heads ? n_kv_heads : n_heads);
  const std::optional<std::int64_t> hidden_size = keys.integer("embedding_length");
  if (const auto head_dim = keys.integer("attention.key_length"))
    config["head_dim"] = *head_dim;
  else if (hidden_size && n_heads && *n_heads > 0)
    config["head_dim"] = *hidden_size / *n_heads;
  put(config, "intermediate_size", keys.integer("feed_forward_length"));
  put(config, "rms_norm_eps", keys.number("attention.layer_norm_rms_epsilon"));
  put(config, "layer_norm_eps", keys.number("attention.layer_norm_epsilon"));
  put(config, "max_position_embeddings", keys.integer("context_length"));
  put(config, "sliding_window", keys.integer("attention.sliding_window"));
  config["hidden_act"] = "silu";

  const Shape* embedding = find_shape("token_embd.weight");
  const GgufArray* tokens = metadata.array("tokenizer.ggml.tokens");
  if (embedding != nullptr)
    config["vocab_size"] = embedding->dims[0];
  else if (const auto vocab_size = keys.integer("vocab_size"))
    config["vocab_size"] = *vocab_size;
  else if (tokens != nullptr)
    config["vocab_size"] = tokens->size();
  config["tie_word_embeddings"] = find_shape("output.weight") == nullptr;
  config["attention_bias"] = find_shape("blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = find_shape("blk.0.ffn_up.bias") != nullptr;

  put_rope(keys, config, is_deepseek);
  if (is_deepseek) {
    put_deepseek(keys, find_shape, config, n_blocks);
  } else if (keys.integer("expert_count").value_or(0) > 0) {
    put(config, "num_experts", keys.integer("expert_count"));
    put(config, "num_experts_per_tok", keys.integer("expert_used_count"));
    put(config, "moe_intermediate_size", keys.integer("expert_feed_forward_length"));
  }
  put(config, "bos_token_id", metadata.integer("tokenizer.ggml.bos_token_id"));
  put(config, "eos_token_id", metadata.integer("tokenizer.ggml.eos_token_id"));
  if (!keys.wrong().empty()) return file_error(Code::kCorrupt, "{}: {}", name, keys.wrong());
  return config;
}

JsonObject generation_config_from_gguf(const GgufMetadata& metadata) {
  JsonObject config;
  put(config, "bos_token_id", metadata.integer("tokenizer.ggml.bos_token_id"));
  put(config, "eos_token_id", metadata.integer("tokenizer.ggml.eos_token_id"));
  put(config, "pad_token_id", metadata.integer("tokenizer.ggml.padding_token_id"));
  put(config, "temperature", metadata.number("general.sampling.temp"));
  put(config, "top_k", metadata.integer("general.sampling.top_k"));
  put(config, "top_p", metadata.number("general.sampling.top_p"));
  put(config, "min_p", metadata.number("general.sampling.min_p"));
  return config;
}

}  // namespace still

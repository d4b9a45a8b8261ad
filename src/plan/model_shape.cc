#include "plan/model_shape.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <tuple>

namespace still {

namespace {

constexpr std::int64_t kMaxParams = std::int64_t{1} << 46;  // seventy trillion: a lie, not a model

class TensorList {
 public:
  explicit TensorList(std::vector<PlannedTensor>& out) : out_(out) {}
  void layer(std::int32_t layer, bool is_mtp) {
    layer_ = layer;
    is_mtp_ = is_mtp;
  }
  void matrix(TensorPart part, WeightGroup group, std::int64_t rows, std::int64_t cols, std::int64_t count = 1) {
    out_.push_back({.part = part,
                    .group = is_mtp_ ? WeightGroup::kMtp : group,
                    .layer = layer_,
                    .rows = rows,
                    .cols = cols,
                    .count = count,
                    .is_routed = group == WeightGroup::kExperts});
  }
  void vector(TensorPart part, WeightGroup group, std::int64_t size) {
    out_.push_back(
        {.part = part, .group = is_mtp_ ? WeightGroup::kMtp : group, .layer = layer_, .cols = size, .is_vector = true});
  }

 private:
  std::vector<PlannedTensor>& out_;
  std::int32_t layer_ = -1;
  bool is_mtp_ = false;
};

void list_attention(const ModelConfig& c, TensorList& list) {
  using enum TensorPart;
  constexpr auto kGroup = WeightGroup::kAttention;
  if (c.kv_lora_rank > 0) {
    const std::int64_t qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
    if (c.q_lora_rank > 0) {
      list.matrix(kQueryA, kGroup, c.q_lora_rank, c.hidden_size);
      list.vector(kNorm, WeightGroup::kNorms, c.q_lora_rank);
      list.matrix(kQueryB, kGroup, c.n_heads * qk, c.q_lora_rank);
    } else {
      list.matrix(kQuery, kGroup, c.n_heads * qk, c.hidden_size);
    }
    list.matrix(kKvA, kGroup, c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size);
    list.vector(kNorm, WeightGroup::kNorms, c.kv_lora_rank);
    list.matrix(kKvB, kGroup, std::int64_t{c.n_heads} * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank);
    list.matrix(kAttnOut, kGroup, c.hidden_size, std::int64_t{c.n_heads} * c.v_head_dim);
    return;
  }
  const std::int64_t q = std::int64_t{c.n_heads} * c.head_dim, kv = std::int64_t{c.n_kv_heads} * c.head_dim;
  list.matrix(kQuery, kGroup, q, c.hidden_size);
  list.matrix(kKey, kGroup, kv, c.hidden_size);
  list.matrix(kValue, kGroup, kv, c.hidden_size);
  list.matrix(kAttnOut, kGroup, c.hidden_size, q);
  if (c.attention_bias)
    for (const std::int64_t size : {q, kv, kv}) list.vector(kBias, kGroup, size);
  if (c.model_type == "qwen3" || c.model_type == "qwen3_moe")  // RMSNorm of each query and key head
    for (int i = 0; i < 2; ++i) list.vector(kNorm, WeightGroup::kNorms, c.head_dim);
}

void list_feed_forward(const ModelConfig& c, std::int32_t layer, TensorList& list) {
  using enum TensorPart;
  const auto mlp = [&](WeightGroup group, std::int64_t width, std::int64_t count) {
    list.matrix(kGate, group, width, c.hidden_size, count);
    list.matrix(kUp, group, width, c.hidden_size, count);
    list.matrix(kDown, group, c.hidden_size, width, count);
  };
  if (c.n_experts == 0 || layer < c.n_dense_layers) {
    mlp(WeightGroup::kFeedForward, c.intermediate_size, 1);
    return;
  }
  list.matrix(kRouter, WeightGroup::kRouter, c.n_experts, c.hidden_size);
  if (c.model_type == "deepseek_v3") list.vector(kRouteBias, WeightGroup::kRouter, c.n_experts);
  mlp(WeightGroup::kExperts, c.moe_intermediate_size, c.n_experts);
  if (c.n_shared_experts > 0) mlp(WeightGroup::kSharedExperts, c.n_shared_experts * c.moe_intermediate_size, 1);
}

Status check_config(const ModelConfig& c) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t max) -> Status {
    if (value >= 1 && value <= max) return ok();
    return error(Code::kInvalidArgument, "{} {}: expected 1 to {}", name, value, max);
  };
  STILL_TRY_STATUS(check("layers", c.n_layers, 4096));
  STILL_TRY_STATUS(check("hidden size", c.hidden_size, 1 << 20));
  STILL_TRY_STATUS(check("intermediate size", c.intermediate_size, 1 << 22));
  STILL_TRY_STATUS(check("heads", c.n_heads, 4096));
  STILL_TRY_STATUS(check("vocabulary", c.vocab_size, 1 << 24));
  STILL_TRY_STATUS(check("longest context", c.max_seq_len, std::int64_t{1} << 31));
  if (c.kv_lora_rank == 0) {
    STILL_TRY_STATUS(check("KV heads", c.n_kv_heads, 4096));
    STILL_TRY_STATUS(check("head size", c.head_dim, 4096));
    if (c.n_heads % c.n_kv_heads != 0)
      return error(Code::kInvalidArgument, "{} heads cannot share {} KV heads: expected a multiple", c.n_heads,
                   c.n_kv_heads);
  } else {
    STILL_TRY_STATUS(check("latent rank", c.kv_lora_rank, 1 << 16));
    STILL_TRY_STATUS(check("rotated head size", c.qk_rope_head_dim, 4096));
    STILL_TRY_STATUS(check("value head size", c.v_head_dim, 4096));
  }
  if (c.n_experts > 0) {
    STILL_TRY_STATUS(check("experts", c.n_experts, 1 << 16));
    STILL_TRY_STATUS(check("experts of a token", c.n_experts_per_tok, c.n_experts));
    STILL_TRY_STATUS(check("expert width", c.moe_intermediate_size, 1 << 20));
    if (c.n_dense_layers < 0 || c.n_dense_layers > c.n_layers)
      return error(Code::kInvalidArgument, "dense layers {}: expected 0 to {}", c.n_dense_layers, c.n_layers);
  }
  return ok();
}

struct PartRule {
  std::string_view text;  // occurs in the canonical name
  TensorPart part;
};
constexpr std::array kPartRules = {PartRule{"e_score_correction_bias", TensorPart::kRouteBias},
                                   PartRule{"mlp.gate.weight", TensorPart::kRouter},
                                   PartRule{"block_sparse_moe.gate.weight", TensorPart::kRouter},
                                   PartRule{"mlp.router.weight", TensorPart::kRouter},
                                   PartRule{".w1.weight", TensorPart::kGate},  // mixtral's experts
                                   PartRule{".w3.weight", TensorPart::kUp},
                                   PartRule{".w2.weight", TensorPart::kDown},
                                   PartRule{"qkv_proj", TensorPart::kQuery},  // phi3's matrices hold several
                                   PartRule{"gate_up_proj", TensorPart::kGate},
                                   PartRule{"norm", TensorPart::kNorm},
                                   PartRule{"embed_tokens", TensorPart::kEmbedding},
                                   PartRule{"lm_head", TensorPart::kOutput},
                                   PartRule{"shared_head.head", TensorPart::kOutput},
                                   PartRule{"q_a_proj", TensorPart::kQueryA},
                                   PartRule{"q_b_proj", TensorPart::kQueryB},
                                   PartRule{"kv_a_proj", TensorPart::kKvA},
                                   PartRule{"kv_b_proj", TensorPart::kKvB},
                                   PartRule{"k_b_proj", TensorPart::kKvB},  // its halves, by heads
                                   PartRule{"v_b_proj", TensorPart::kKvB},
                                   PartRule{"q_proj", TensorPart::kQuery},
                                   PartRule{"k_proj", TensorPart::kKey},
                                   PartRule{"v_proj", TensorPart::kValue},
                                   PartRule{"o_proj", TensorPart::kAttnOut},
                                   PartRule{"gate_proj", TensorPart::kGate},
                                   PartRule{"up_proj", TensorPart::kUp},
                                   PartRule{"down_proj", TensorPart::kDown},
                                   PartRule{"eh_proj", TensorPart::kMtpProjection}};

WeightGroup group_of(std::string_view name, TensorPart part) {
  using enum TensorPart;
  if (name.find("shared_experts") != std::string_view::npos) return WeightGroup::kSharedExperts;
  if (name.find("experts") != std::string_view::npos) return WeightGroup::kExperts;
  switch (part) {
    case kEmbedding:
      return WeightGroup::kEmbedding;
    case kOutput:
      return WeightGroup::kOutput;
    case kRouter:
    case kRouteBias:
      return WeightGroup::kRouter;
    case kNorm:
      return WeightGroup::kNorms;
    case kGate:
    case kUp:
    case kDown:
      return WeightGroup::kFeedForward;
    case kMtpProjection:
      return WeightGroup::kMtp;
    case kOther:
      return WeightGroup::kOther;
    default:
      return WeightGroup::kAttention;
  }
}

std::int32_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return -1;
  std::int32_t layer = 0;
  for (std::size_t i = kPrefix.size(); i < name.size() && name[i] >= '0' && name[i] <= '9' && layer < 100000; ++i)
    layer = layer * 10 + (name[i] - '0');
  return layer;
}

// Several weights in an integer: AWQ, GPTQ, compressed-tensors.
bool holds_words(const CheckpointTensor& tensor) {
  return tensor.shape.rank >= 2 &&
         (tensor.dtype == DType::kI32 || tensor.dtype == DType::kU32 || tensor.dtype == DType::kU8);
}

// Scales, zero points and the like, which are no weights.
bool is_beside_a_matrix(std::string_view name) {
  for (const std::string_view end :
       {"_scale", "_scale_inv", ".scales", ".qzeros", ".g_idx", "_zero_point", ".weight_shape"})
    if (name.ends_with(end)) return true;
  return false;
}

// A header may lie: every matrix of a layer must have the widths that the hyperparameters give it, and every layer must
// be there. The vocabulary may be padded, so embedding and head are not compared here.
class Expected {
 public:
  explicit Expected(const ModelShape& shape) : config_(shape.config) {
    for (const PlannedTensor& t : shape.tensors)
      if (!t.is_vector && t.layer >= 0) sizes_.emplace(Key{t.layer, t.part, t.group}, Size{t.rows, t.cols, t.count});
  }

  Status check(std::string_view name, const CheckpointTensor& source, const PlannedTensor& t) {
    layers_ = std::max(layers_, t.layer + 1);
    if (t.layer >= config_.n_layers + config_.n_mtp_layers)
      return error(Code::kCorrupt, "{}: it holds {}, but its hyperparameters give it {} layers", name, source.name,
                   config_.n_layers);
    if (t.layer < 0 || t.layer >= config_.n_layers || t.is_vector || is_beside_a_matrix(source.name)) return ok();
    const bool is_known = t.part != TensorPart::kOther && t.part != TensorPart::kNorm && t.part != TensorPart::kBias;
    const bool is_joined =
        source.name.find("qkv_proj") != std::string::npos || source.name.find("gate_up_proj") != std::string::npos;
    if (!is_known || is_joined || (t.part == TensorPart::kKvB && t.count > 1)) return ok();
    const auto found = sizes_.find(Key{t.layer, t.part, t.group});
    if (found == sizes_.end())
      return error(Code::kCorrupt, "{}: it holds {}, which its hyperparameters have no place for", name, source.name);
    const Size& size = found->second;
    if (holds_words(source)) {
      // All matrices have the same number of weights in a word.
      const double in_word = static_cast<double>(size.rows * size.cols) / static_cast<double>(t.rows * t.cols);
      if (weights_in_word_ == 0) weights_in_word_ = in_word;
      if (std::abs(in_word / weights_in_word_ - 1) < 0.05) return ok();
    } else if (t.rows == size.rows && t.cols == size.cols && (t.count == 1 || t.count == size.count)) {
      return ok();
    }
    return error(Code::kCorrupt, "{}: {} is {} x {}, but its hyperparameters ask for {} x {}", name, source.name,
                 t.rows, t.cols, size.rows, size.cols);
  }
  Status check_layers(std::string_view name) const {
    if (layers_ >= config_.n_layers) return ok();
    return error(Code::kCorrupt, "{}: it holds {} layers, but its hyperparameters ask for {}", name, layers_,
                 config_.n_layers);
  }

 private:
  using Key = std::tuple<std::int32_t, TensorPart, WeightGroup>;
  struct Size {
    std::int64_t rows, cols, count;
  };
  const ModelConfig& config_;
  std::map<Key, Size> sizes_;
  std::int32_t layers_ = 0;
  double weights_in_word_ = 0;
};

}  // namespace

TensorPart part_of_name(std::string_view name) {
  for (const PartRule& rule : kPartRules)
    if (name.find(rule.text) != std::string_view::npos) return rule.part;
  return TensorPart::kOther;
}

std::string_view group_name(WeightGroup group) {
  static constexpr std::array<std::string_view, kWeightGroupCount> kNames = {
      "embedding", "attention", "feed-forward", "routed experts", "shared experts",
      "router",    "norms",     "output head",  "MTP module",     "other"};
  return kNames[static_cast<std::size_t>(group)];
}

std::int64_t ModelShape::n_params(bool with_mtp) const {
  std::int64_t n = 0;
  for (const PlannedTensor& tensor : weights())
    if ((with_mtp || tensor.group != WeightGroup::kMtp) && !(tensor.part == TensorPart::kOther && tensor.is_vector))
      n += tensor.n_params();  // rope_freqs and the like are no weights
  return n;
}

std::int64_t ModelShape::n_active_params() const {
  std::int64_t n = 0;
  for (const PlannedTensor& tensor : weights()) {
    if (tensor.group == WeightGroup::kMtp) continue;
    if (tensor.part == TensorPart::kEmbedding) {
      if (config.tied_embeddings) n += tensor.n_params();
    } else if (tensor.group == WeightGroup::kExperts && config.n_experts > 0) {
      n += tensor.n_params() / config.n_experts * config.n_experts_per_tok;
    } else {
      n += tensor.n_params();
    }
  }
  return n;
}

std::int64_t ModelShape::n_routed_params() const {
  std::int64_t n = 0;
  for (const PlannedTensor& tensor : weights())
    if (tensor.group == WeightGroup::kExperts) n += tensor.n_params();
  return n;
}

namespace {

// Decoders whose memory the formulas cover. What differs beside the sizes: which of them a window bounds for all layers
// (of the others with windows in some layers every layer is counted whole), and what config.json may leave out.
struct PlannedType {
  std::string_view name, canonical;
  bool has_window = false;  // sliding_window is in force for all layers where it is given
  bool is_tied = false;     // where config.json says nothing
};
constexpr std::array kPlannedTypes = {PlannedType{"llama", "llama", true},
                                      PlannedType{"mistral", "mistral", true},
                                      PlannedType{"mixtral", "mixtral", true},
                                      PlannedType{"qwen2", "qwen2"},
                                      PlannedType{"qwen3", "qwen3"},
                                      PlannedType{"qwen3_moe", "qwen3_moe"},
                                      PlannedType{"qwen3moe", "qwen3_moe"},
                                      PlannedType{"phi3", "phi3"},
                                      PlannedType{"gpt_oss", "gpt_oss"},
                                      PlannedType{"gpt-oss", "gpt_oss"},
                                      PlannedType{"gemma", "gemma", false, true},
                                      PlannedType{"gemma2", "gemma2", false, true},
                                      PlannedType{"gemma3_text", "gemma3_text", false, true},
                                      PlannedType{"gemma3", "gemma3_text", false, true},
                                      PlannedType{"deepseek_v2", "deepseek_v2"},
                                      PlannedType{"deepseek_v3", "deepseek_v3"}};

// Experts in all layers, by the names that the configurations of mixtral, qwen3_moe and gpt_oss have for them.
Status read_experts(const ConfigReader& reader, ModelConfig& config) {
  const auto first_of = [&](std::initializer_list<const char*> keys) -> Result<std::int64_t> {
    for (const char* key : keys)
      if (reader.has(key)) return reader.integer(key, 0, 1 << 20);
    return 0;
  };
  STILL_TRY(const std::int64_t experts, first_of({"num_local_experts", "num_experts"}));
  if (experts == 0) return ok();
  STILL_TRY(const std::int64_t chosen, first_of({"num_experts_per_tok", "experts_per_token"}));
  STILL_TRY(const std::int64_t width, first_of({"moe_intermediate_size", "intermediate_size"}));
  config.n_experts = static_cast<std::int32_t>(experts);
  config.n_experts_per_tok = static_cast<std::int32_t>(chosen);
  config.moe_intermediate_size = width;
  return ok();
}

}  // namespace

Result<ModelConfig> read_plan_config(const JsonObject& json) {
  const ConfigReader reader(json);
  STILL_TRY(const std::string name, reader.string_or("model_type", ""));
  const auto known = std::find_if(kPlannedTypes.begin(), kPlannedTypes.end(),
                                  [&](const PlannedType& type) { return type.name == name; });
  if (known == kPlannedTypes.end()) {
    std::string all;
    for (const PlannedType& type : kPlannedTypes)
      if (type.name == type.canonical) all += (all.empty() ? "" : ", ") + std::string(type.name);
    return error(Code::kUnsupported, "architecture \"{}\" cannot be planned ({} can)", name, all);
  }
  const std::string type(known->canonical);
  const bool is_deepseek = type == "deepseek_v2" || type == "deepseek_v3";
  const bool is_run = type == "llama" || type == "qwen2";
  JsonObject copy = json;
  copy["model_type"] = type;
  // The reader of dense models wants a head size; MLA has none. Rotary scaling takes no memory.
  if (is_deepseek && !reader.has("head_dim")) copy["head_dim"] = 2;
  if (!is_run && !is_deepseek)
    for (const char* key : {"rope_scaling", "rope_parameters"}) copy.erase(key);
  if (known->is_tied && !reader.has("tie_word_embeddings")) copy["tie_word_embeddings"] = true;
  STILL_TRY(ModelConfig config, read_decoder_config(copy));
  STILL_TRY(config.attention_bias, reader.boolean_or("attention_bias", type == "qwen2"));
  if (type == "qwen2") config.attention_bias = true;
  STILL_TRY(const bool uses_window,
            reader.boolean_or("use_sliding_window", known->has_window && reader.has("sliding_window")));
  if (uses_window) {
    STILL_TRY(config.sliding_window, reader.integer_or("sliding_window", 0, 0, std::int64_t{1} << 31));
  }
  // A GGUF of mixtral calls itself llama.
  if (!is_deepseek) STILL_TRY_STATUS(read_experts(reader, config));
  if (!is_deepseek) return config;
  config.head_dim = 0;
  const auto small = [&](const char* key, std::int64_t fallback) {
    return reader.integer_or(key, fallback, 0, 1 << 20);
  };
  STILL_TRY(config.q_lora_rank, small("q_lora_rank", 0));
  STILL_TRY(config.kv_lora_rank, reader.integer("kv_lora_rank", 1, 1 << 16));
  STILL_TRY(const std::int64_t nope, reader.integer("qk_nope_head_dim", 1, 4096));
  STILL_TRY(const std::int64_t rope, reader.integer("qk_rope_head_dim", 1, 4096));
  STILL_TRY(const std::int64_t value, reader.integer("v_head_dim", 1, 4096));
  STILL_TRY(const std::int64_t experts, small("n_routed_experts", 0));
  STILL_TRY(const std::int64_t chosen, small("num_experts_per_tok", 0));
  STILL_TRY(const std::int64_t shared, small("n_shared_experts", 0));
  STILL_TRY(const std::int64_t dense, small("first_k_dense_replace", 0));
  STILL_TRY(const std::int64_t mtp, small("num_nextn_predict_layers", 0));
  STILL_TRY(config.moe_intermediate_size, small("moe_intermediate_size", 0));
  config.qk_nope_head_dim = static_cast<std::int32_t>(nope);
  config.qk_rope_head_dim = static_cast<std::int32_t>(rope);
  config.v_head_dim = static_cast<std::int32_t>(value);
  config.n_experts = static_cast<std::int32_t>(experts);
  config.n_experts_per_tok = static_cast<std::int32_t>(chosen);
  config.n_shared_experts = static_cast<std::int32_t>(shared);
  config.n_dense_layers = static_cast<std::int32_t>(dense);
  config.n_mtp_layers = static_cast<std::int32_t>(mtp);
  STILL_TRY(const std::int64_t groups, small("n_group", 0));
  STILL_TRY(const std::int64_t chosen_groups, small("topk_group", 0));
  config.n_groups = static_cast<std::int32_t>(groups);
  config.topk_group = static_cast<std::int32_t>(chosen_groups);
  return config;
}

Result<ModelShape> shape_from_config(const ModelConfig& config, std::string name) {
  STILL_TRY_STATUS(check_config(config));
  ModelShape shape;
  shape.name = std::move(name);
  shape.config = config;
  TensorList list(shape.tensors);
  list.matrix(TensorPart::kEmbedding, WeightGroup::kEmbedding, config.vocab_size, config.hidden_size);
  const auto block = [&](std::int32_t layer) {
    list.vector(TensorPart::kNorm, WeightGroup::kNorms, config.hidden_size);
    list_attention(config, list);
    list.vector(TensorPart::kNorm, WeightGroup::kNorms, config.hidden_size);
    list_feed_forward(config, layer, list);
  };
  for (std::int32_t layer = 0; layer < config.n_layers; ++layer) {
    list.layer(layer, false);
    block(layer);
  }
  list.layer(-1, false);
  list.vector(TensorPart::kNorm, WeightGroup::kNorms, config.hidden_size);
  if (!config.tied_embeddings)
    list.matrix(TensorPart::kOutput, WeightGroup::kOutput, config.vocab_size, config.hidden_size);
  // DeepSeek-V3, arXiv:2412.19437, section 2.2: a projection of [embedding; hidden], one layer, and in the published
  // files copies of embedding and head.
  for (std::int32_t i = 0; i < config.n_mtp_layers; ++i) {
    list.layer(config.n_layers + i, true);
    list.matrix(TensorPart::kEmbedding, WeightGroup::kMtp, config.vocab_size, config.hidden_size);
    for (int norm = 0; norm < 3; ++norm) list.vector(TensorPart::kNorm, WeightGroup::kMtp, config.hidden_size);
    list.matrix(TensorPart::kMtpProjection, WeightGroup::kMtp, config.hidden_size, 2 * config.hidden_size);
    block(config.n_layers + i);
    list.matrix(TensorPart::kOutput, WeightGroup::kMtp, config.vocab_size, config.hidden_size);
  }
  // Each size is bounded by check_config, so that no product overflows before it is compared here.
  double n_params = 0;
  for (const PlannedTensor& tensor : shape.tensors)
    n_params += static_cast<double>(tensor.rows) * static_cast<double>(tensor.cols) * static_cast<double>(tensor.count);
  if (n_params > static_cast<double>(kMaxParams))
    return error(Code::kInvalidArgument, "{:.1f} trillion parameters: no such model", n_params * 1e-12);
  return shape;
}

Result<ModelShape> shape_from_checkpoint(const Checkpoint& checkpoint, std::string name) {
  STILL_TRY(const ModelConfig config, read_plan_config(checkpoint.config()));
  STILL_TRY(ModelShape expected, shape_from_config(config, name));
  ModelShape shape;
  shape.name = std::move(name);
  shape.config = config;
  shape.has_own_types = true;
  shape.file_bytes = checkpoint.file_bytes();
  std::map<DType, std::int64_t> bytes_of_type;
  bool is_packed = false;
  Expected against(expected);
  for (const CheckpointTensor& source : checkpoint.tensors()) {
    PlannedTensor tensor{.layer = layer_of(source.name), .own_type = source.dtype, .own_bytes = source.n_bytes};
    tensor.part = part_of_name(source.name);
    tensor.group = group_of(source.name, tensor.part);
    tensor.is_routed = tensor.group == WeightGroup::kExperts;
    tensor.is_vector = source.shape.rank < 2;
    if (tensor.is_vector && tensor.part != TensorPart::kNorm && tensor.part != TensorPart::kRouteBias &&
        source.name.ends_with(".bias"))
      tensor.part = TensorPart::kBias;
    tensor.cols = source.shape[std::max(0, source.shape.rank - 1)];
    if (source.shape.rank >= 2) tensor.rows = source.shape[source.shape.rank - 2];
    if (source.shape.rank >= 3) tensor.count = source.shape[0];
    for (int axis = 1; axis < source.shape.rank - 2; ++axis) tensor.rows *= source.shape[axis];
    if (tensor.layer >= config.n_layers) tensor.group = WeightGroup::kMtp;
    is_packed = is_packed || holds_words(source) || is_beside_a_matrix(source.name);
    STILL_TRY_STATUS(against.check(shape.name, source, tensor));
    bytes_of_type[source.dtype] += source.n_bytes;
    shape.tensors.push_back(tensor);
  }
  const auto largest = std::max_element(bytes_of_type.begin(), bytes_of_type.end(),
                                        [](const auto& a, const auto& b) { return a.second < b.second; });
  if (largest != bytes_of_type.end()) shape.own_type_name = dtype_name(largest->first);
  STILL_TRY_STATUS(against.check_layers(shape.name));
  if (is_packed) {
    shape.unpacked = std::move(expected.tensors);
    return shape;
  }
  // What has no width of its own to compare (the vocabulary) is found by the number of weights.
  const double wanted = static_cast<double>(expected.n_params()), found = static_cast<double>(shape.n_params());
  if (found < 0.97 * wanted || found > 1.03 * wanted)
    return error(Code::kCorrupt, "{}: its tensors hold {:.3f} B weights, but its hyperparameters ask for {:.3f} B",
                 shape.name, found * 1e-9, wanted * 1e-9);
  return shape;
}

}  // namespace still

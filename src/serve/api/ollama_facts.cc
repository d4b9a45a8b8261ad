// See ollama_facts.h.
#include "serve/api/ollama_facts.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "tensor/dtype.h"

namespace still {

namespace {

// general.file_type of GGUF (ggml's enum llama_ftype).
std::string_view file_type_name(std::int64_t type) {
  switch (type) {
    case 0:
      return "F32";
    case 1:
      return "F16";
    case 2:
      return "Q4_0";
    case 3:
      return "Q4_1";
    case 7:
      return "Q8_0";
    case 8:
      return "Q5_0";
    case 9:
      return "Q5_1";
    case 10:
      return "Q2_K";
    case 11:
      return "Q3_K_S";
    case 12:
      return "Q3_K_M";
    case 13:
      return "Q3_K_L";
    case 14:
      return "Q4_K_S";
    case 15:
      return "Q4_K_M";
    case 16:
      return "Q5_K_S";
    case 17:
      return "Q5_K_M";
    case 18:
      return "Q6_K";
    case 19:
      return "IQ2_XXS";
    case 20:
      return "IQ2_XS";
    case 21:
      return "Q2_K_S";
    case 22:
      return "IQ3_XS";
    case 23:
      return "IQ3_XXS";
    case 24:
      return "IQ1_S";
    case 25:
      return "IQ4_NL";
    case 26:
      return "IQ3_S";
    case 27:
      return "IQ3_M";
    case 28:
      return "IQ2_S";
    case 29:
      return "IQ2_M";
    case 30:
      return "IQ4_XS";
    case 31:
      return "IQ1_M";
    case 32:
      return "BF16";
    default:
      return "unknown";
  }
}

// The type of most bytes, for files that do not say what they are.
std::string main_type(const Checkpoint& checkpoint) {
  std::map<std::string, std::int64_t> bytes;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    bytes[std::string(dtype_name(tensor.dtype))] += tensor.n_bytes;
  }
  const auto most = std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; });
  std::string name = most == bytes.end() ? "unknown" : most->first;
  std::ranges::transform(name, name.begin(), [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  return name;
}

bool has_token(const TokenizerSource& source, std::string_view token) {
  if (source.kind == TokenizerSource::Kind::kJson) {
    return source.tokenizer_json.find(fmt::format("\"{}\"", token)) != std::string_view::npos;
  }
  return std::ranges::find(source.tokens, token) != source.tokens.end();
}

std::vector<std::string> capabilities_of(const Checkpoint& checkpoint, const TokenizerSource& tokenizer,
                                         std::string_view family, std::string_view chat_template) {
  const GgufMetadata* metadata = checkpoint.gguf_metadata();
  const bool is_encoder = family.find("bert") != std::string_view::npos ||
                          (metadata && metadata->find(fmt::format("{}.pooling_type", family)) != nullptr);
  if (is_encoder) return {"embedding"};
  std::vector<std::string> out = {"completion"};
  const bool tells_tools =
      chat_template.find("tools") != std::string_view::npos || chat_template.find(".Tools") != std::string_view::npos;
  if (tells_tools) out.emplace_back("tools");
  if (has_token(tokenizer, "<think>") && has_token(tokenizer, "</think>")) out.emplace_back("thinking");
  return out;
}

Json to_json_value(const GgufValue& value, bool verbose) {
  if (const std::string* text = value.string()) return Json(*text);
  if (const auto flag = value.boolean()) return Json(*flag);
  if (const GgufArray* array = value.array()) {
    JsonArray out;
    if (array->size() > 5 && !verbose) return out;
    for (std::int64_t i = 0; i < array->size(); ++i) {
      if (array->element_type == GgufType::kString) {
        out.emplace_back(array->strings[i]);
      } else if (const auto integer = array->integer(i)) {
        out.emplace_back(*integer);
      } else if (const auto number = array->number(i); number && std::isfinite(*number)) {
        out.emplace_back(*number);
      }
    }
    return out;
  }
  if (const auto integer = value.integer()) return Json(*integer);
  const auto number = value.number();
  return number && std::isfinite(*number) ? Json(*number) : Json(0);
}

}  // namespace

std::string ollama_count(std::int64_t n) {
  const auto show = [&](double unit, int n_decimals, char letter) {
    const double value = static_cast<double>(n) / unit;
    return fmt::format("{:.{}f}{}", value, value == std::floor(value) ? 0 : n_decimals, letter);
  };
  if (n >= 1'000'000'000) return show(1e9, 1, 'B');
  if (n >= 1'000'000) return show(1e6, 2, 'M');
  if (n >= 1'000) return fmt::format("{:.0f}K", static_cast<double>(n) / 1e3);
  return std::to_string(n);
}

bool ModelFacts::can(std::string_view capability) const {
  return std::ranges::find(capabilities, capability) != capabilities.end();
}

JsonObject ModelFacts::details() const {
  JsonObject out{{"parent_model", ""},
                 {"format", format},
                 {"family", family},
                 {"families", JsonArray{Json(family)}},
                 {"parameter_size", parameter_size},
                 {"quantization_level", quantization}};
  if (context > 0) out["context_length"] = context;
  if (embedding_length > 0) out["embedding_length"] = embedding_length;
  return out;
}

Result<ModelFacts> read_model_facts(const Checkpoint& checkpoint, const LibraryModel& model) {
  ModelFacts facts;
  const GgufMetadata* metadata = checkpoint.gguf_metadata();
  facts.format = metadata != nullptr ? "gguf" : "safetensors";
  facts.family = std::string(metadata != nullptr ? metadata->string("general.architecture").value_or("")
                                                 : checkpoint.architecture());
  for (const CheckpointTensor& tensor : checkpoint.tensors()) facts.n_parameters += tensor.shape.n_elements();
  facts.parameter_size = ollama_count(facts.n_parameters);
  const auto file_type = metadata != nullptr ? metadata->integer("general.file_type") : std::nullopt;
  facts.quantization = file_type ? std::string(file_type_name(*file_type)) : main_type(checkpoint);
  const auto config_integer = [&](std::string_view key) -> std::int64_t {
    const Json* value = checkpoint.config().if_contains(key);
    return value != nullptr && value->is_int64() ? value->get_int64() : 0;
  };
  const auto size = [&](std::string_view gguf_key, std::string_view config_key) -> std::int64_t {
    if (metadata == nullptr) return config_integer(config_key);
    return metadata->integer(fmt::format("{}.{}", facts.family, gguf_key)).value_or(0);
  };
  facts.context = size("context_length", "max_position_embeddings");
  facts.embedding_length = size("embedding_length", "hidden_size");
  STILL_TRY(const TokenizerSource tokenizer, checkpoint.tokenizer_source());
  facts.chat_template = std::string(tokenizer.chat_template);
  facts.capabilities = capabilities_of(checkpoint, tokenizer, facts.family,
                                       model.template_text.empty() ? facts.chat_template : model.template_text);
  return facts;
}

Result<std::shared_ptr<const ModelFacts>> ModelFactsCache::get(const LibraryModel& model) {
  const std::string key = fmt::format("{} {} {}", model.digest, model.path.string(), model.template_text.size());
  {
    const std::lock_guard lock(mutex_);
    if (const auto found = by_key_.find(key); found != by_key_.end()) return found->second;
  }
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(model.path, {.allow_missing_data = true}));
  STILL_TRY(ModelFacts facts, read_model_facts(checkpoint, model));
  const auto shared = std::make_shared<const ModelFacts>(std::move(facts));
  const std::lock_guard lock(mutex_);
  if (by_key_.size() > 1000) by_key_.clear();
  by_key_[key] = shared;
  return shared;
}

JsonObject model_info(const Checkpoint& checkpoint, const ModelFacts& facts, bool verbose) {
  JsonObject info;
  if (const GgufMetadata* metadata = checkpoint.gguf_metadata()) {
    for (const GgufEntry& entry : metadata->entries()) {
      info[entry.key] = to_json_value(entry.value, verbose);
    }
  } else {
    info["general.architecture"] = facts.family;
    constexpr std::array<std::pair<const char*, const char*>, 7> kKeys = {
        {{"block_count", "num_hidden_layers"},
         {"context_length", "max_position_embeddings"},
         {"embedding_length", "hidden_size"},
         {"feed_forward_length", "intermediate_size"},
         {"attention.head_count", "num_attention_heads"},
         {"attention.head_count_kv", "num_key_value_heads"},
         {"vocab_size", "vocab_size"}}};
    for (const auto& [key, config_key] : kKeys) {
      const Json* value = checkpoint.config().if_contains(config_key);
      if (value != nullptr && !value->is_null()) info[fmt::format("{}.{}", facts.family, key)] = *value;
    }
  }
  info["general.parameter_count"] = facts.n_parameters;
  return info;
}

}  // namespace still

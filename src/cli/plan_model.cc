// Where a plan's model comes from: a file, a header, a remote source, a known name, the store, or numbers alone.
#include <unistd.h>

#include <filesystem>

#include "base/json.h"
#include "cli/model_ref.h"
#include "cli/plan_options.h"
#include "hub/remote_header.h"

namespace still {

namespace {

Result<ModelShape> shape_of_path(const std::filesystem::path& path, const std::string& name) {
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(path, {.allow_missing_data = true}));
  return shape_from_checkpoint(checkpoint, name);
}

Result<ModelShape> shape_of_remote(const Context& context, const std::string& what) {
  ProgressLine line(context.err);
  line.update("reading the header of " + what, -1, "");
  STILL_TRY(const RemoteModel remote, read_remote_model(what, context.environment.hub, CancelToken{}));
  std::error_code code;
  std::string pattern = (std::filesystem::temp_directory_path(code) / "still-plan-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) return error(Code::kInternal, "{}: no temporary folder", pattern);
  const std::filesystem::path folder = pattern;
  const auto read = [&]() -> Result<ModelShape> {
    STILL_TRY(const std::filesystem::path path, save_headers(remote, folder));
    return shape_of_path(path, what);
  };
  Result<ModelShape> shape = read();
  std::filesystem::remove_all(folder, code);
  return shape;
}

// The words of config.json for the short names of --arch.
std::string model_type_of(const std::string& arch) {
  if (arch == "deepseek2" || arch == "deepseek_v2") return "deepseek_v2";
  if (arch == "deepseek3") return "deepseek_v3";
  return arch;
}

}  // namespace

Result<ModelShape> shape_of_options(const ShapeOptions& o) {
  JsonObject config{{"model_type", model_type_of(o.arch)}, {"tie_word_embeddings", o.tied}};
  struct Field {
    const char *option, *key;
    const std::optional<std::int64_t>& value;
    bool is_needed = false;
  };
  const bool is_latent = model_type_of(o.arch).starts_with("deepseek_v"), has_experts = o.experts.has_value();
  const Field fields[] = {{"layers", "num_hidden_layers", o.layers, true},
                          {"hidden", "hidden_size", o.hidden, true},
                          {"heads", "num_attention_heads", o.heads, true},
                          {"ffn", "intermediate_size", o.ffn, true},
                          {"vocab", "vocab_size", o.vocab, true},
                          {"kv-heads", "num_key_value_heads", o.kv_heads},
                          {"head-dim", "head_dim", o.head_dim},
                          {"max-context", "max_position_embeddings", o.context},
                          {"window", "sliding_window", o.window},
                          {"q-rank", "q_lora_rank", o.q_rank},
                          {"kv-rank", "kv_lora_rank", o.kv_rank, is_latent},
                          {"nope-dim", "qk_nope_head_dim", o.nope, is_latent},
                          {"rope-dim", "qk_rope_head_dim", o.rope, is_latent},
                          {"value-dim", "v_head_dim", o.value, is_latent},
                          {"experts", is_latent ? "n_routed_experts" : "num_experts", o.experts},
                          {"experts-per-token", "num_experts_per_tok", o.experts_per_tok, has_experts},
                          {"shared-experts", "n_shared_experts", o.shared_experts},
                          {"expert-ffn", "moe_intermediate_size", o.expert_ffn, has_experts},
                          {"dense-layers", "first_k_dense_replace", o.dense_layers},
                          {"mtp-layers", "num_nextn_predict_layers", o.mtp_layers}};
  for (const Field& field : fields) {
    if (field.value) {
      config[field.key] = *field.value;
    } else if (field.is_needed) {
      return error(Code::kInvalidArgument, "--arch {} needs --{} too", o.arch, field.option);
    }
  }
  const bool is_mixture = o.arch == "mixtral" || o.arch == "qwen3_moe" || o.arch == "qwen3moe" || o.arch == "gpt_oss";
  if (has_experts && !is_latent && !is_mixture)
    return error(Code::kInvalidArgument,
                 "--experts: {} has no experts here (mixtral, qwen3_moe, gpt_oss, deepseek2 and deepseek_v3 have)",
                 o.arch);
  if (is_mixture && !has_experts) return error(Code::kInvalidArgument, "--arch {} needs --experts too", o.arch);
  if (!o.context) config["max_position_embeddings"] = 131072;
  if (o.window) config["use_sliding_window"] = true;
  STILL_TRY(const ModelConfig read, read_plan_config(config));
  return shape_from_config(read, o.arch + " shape");
}

Result<ModelShape> find_plan_shape(const Context& context, const PlanWorld& world, const std::string& name,
                                   std::string& quant) {
  std::error_code code;
  if (std::filesystem::exists(name, code)) return shape_of_path(name, name);
  if (is_source(name)) {
    if (name.ends_with(".safetensors"))
      return error(Code::kInvalidArgument,
                   "{}: a file of weights does not hold the shape; name its repository or folder, with config.json",
                   name);
    return shape_of_remote(context, name);
  }
  for (const std::string site : {"hf.co/", "huggingface.co/"})
    if (name.starts_with(site)) return shape_of_remote(context, "hf:" + name.substr(site.size()));
  if (name.starts_with("/") || name.starts_with("./") || name.starts_with("../") || name.ends_with(".gguf") ||
      name.ends_with(".safetensors"))
    return error(Code::kNotFound, "{}: no such file", name);
  Result<ModelShape> known = find_known_shape(world.data.models, name);
  if (known) return known;
  if (const std::size_t dash = name.rfind('-'); dash != std::string::npos && dash > 0) {
    if (const auto q = find_quantisation(name.substr(dash + 1))) {
      if (Result<ModelShape> base = find_known_shape(world.data.models, name.substr(0, dash))) {
        quant = q->name;
        return base;
      }
    }
  }
  if (const auto found = find_model(context, name)) return shape_of_path(found->path, name);
  return known;
}

}  // namespace still

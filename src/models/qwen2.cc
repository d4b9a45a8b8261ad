// Qwen2 and Qwen2.5 (R1-Distill-Qwen).  Yang et al. 2024, arXiv:2407.10671, section 2.2.1: biases on q, k, v and
// nowhere else.
#include "models/blocks/decoder.h"
#include "models/registry.h"

namespace still {

namespace {
Result<ModelConfig> read_qwen2_config(const JsonObject& json) {
  STILL_TRY(ModelConfig config, read_decoder_config(json));
  const ConfigReader reader(json);
  config.attention_bias = true;
  STILL_TRY(const bool use_sliding_window, reader.boolean_or("use_sliding_window", false));
  if (use_sliding_window)
    return error(Code::kUnsupported,
                 "config: \"use_sliding_window\" is true; qwen2 with windows in some layers is not supported");
  return config;
}
}  // namespace

const Arch kQwen2{.model_type = "qwen2",
                  .read_config = read_qwen2_config,
                  .tensors = decoder_tensors,
                  .bind = bind_decoder,
                  .forward = decoder_forward};

}  // namespace still

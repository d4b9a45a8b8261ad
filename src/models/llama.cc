// Llama 1 to 3.x and what shares its shape (SmolLM2, R1-Distill-Llama).  Touvron et al. 2023, arXiv:2302.13971; Llama
// 3: arXiv:2407.21783. No biases; the head may be tied; rope may have Llama 3's scaling or a file's own frequency
// divisors.
#include "models/blocks/decoder.h"
#include "models/registry.h"

namespace still {

namespace {
Result<ModelConfig> read_llama_config(const JsonObject& json) {
  STILL_TRY(ModelConfig config, read_decoder_config(json));
  const ConfigReader reader(json);
  STILL_TRY(config.attention_bias, reader.boolean_or("attention_bias", false));
  STILL_TRY(const bool mlp_bias, reader.boolean_or("mlp_bias", false));
  if (mlp_bias)
    return error(Code::kUnsupported, "config: \"mlp_bias\" is true; llama with MLP biases is not supported");
  return config;
}
}  // namespace

const Arch kLlama{.model_type = "llama",
                  .read_config = read_llama_config,
                  .tensors = decoder_tensors,
                  .bind = bind_decoder,
                  .forward = decoder_forward};

}  // namespace still

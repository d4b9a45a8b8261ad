// The hyperparameters of a GGUF file under the names of Hugging Face's config.json, so that models/ reads one language.
// llama, qwen2, qwen3 and deepseek2 are mapped whole; of other architectures the common keys, enough to show them.
#pragma once

#include <functional>
#include <string_view>

#include "base/json.h"
#include "base/result.h"
#include "files/gguf_value.h"
#include "tensor/tensor.h"

namespace still {

// The shape of a tensor by its GGUF name, or null: whether output.weight exists decides tie_word_embeddings, the rows
// of token_embd.weight are vocab_size.
using GgufShapeLookup = std::function<const Shape*(std::string_view gguf_name)>;

// `name` begins every message. kCorrupt if general.architecture or a key that every model has is absent or of a wrong
// kind.
Result<JsonObject> config_from_gguf(const GgufMetadata& metadata, const GgufShapeLookup& find_shape,
                                    std::string_view name);

// bos_token_id, eos_token_id, pad_token_id, and temperature, top_k, top_p, min_p where general.sampling.* has them.
JsonObject generation_config_from_gguf(const GgufMetadata& metadata);

}  // namespace still

// The small JSON files beside a safetensors model: config.json, generation_config.json, tokenizer_config.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "base/text_file.h"

namespace still {

// A file that holds one JSON object, at most 16 MiB.
Result<JsonObject> read_json_object(const std::filesystem::path& path);
Result<JsonObject> parse_json_object(std::string_view text, std::string_view name);

// config.json with what newer writers moved put back where every reader looks: rope_parameters of transformers 5
// becomes rope_theta and rope_scaling; an outer model's text_config is taken out. kCorrupt without a model_type string.
Result<JsonObject> normalize_config(JsonObject config, std::string_view name);

// chat_template of tokenizer_config.json: a string, or the entry named "default" of a list of {name, template}. "" if
// none.
std::string chat_template_of(const JsonObject& tokenizer_config);

}  // namespace still

#include "files/config_json.h"

#include <cmath>

#include "base/mapped_file.h"
#include "files/file_error.h"

namespace still {

Result<JsonObject> parse_json_object(std::string_view text, std::string_view name) {
  STILL_TRY(Json json, parse_json(text, name));
  if (!json.is_object()) return file_error(Code::kCorrupt, "{}: a JSON object is expected", name);
  return std::move(json.get_object());
}

Result<JsonObject> read_json_object(const std::filesystem::path& path) {
  STILL_TRY(const std::string text, read_text_file(path, 16 << 20));
  return parse_json_object(text, path.string());
}

namespace {
// A decimal beyond the range of double reads as infinity, and would become NaN somewhere in the model.
bool is_finite(const Json& value) {
  if (const double* number = value.if_double()) return std::isfinite(*number);
  if (const JsonObject* object = value.if_object()) {
    for (const auto& [key, member] : *object)
      if (!is_finite(member)) return false;
  } else if (const JsonArray* array = value.if_array()) {
    for (const Json& element : *array)
      if (!is_finite(element)) return false;
  }
  return true;
}
}  // namespace

Result<JsonObject> normalize_config(JsonObject config, std::string_view name) {
  if (Json* inner = config.if_contains("text_config"); inner != nullptr && inner->is_object()) {
    JsonObject text_config = inner->get_object();
    config = std::move(text_config);
  }
  const Json* model_type = config.if_contains("model_type");
  if (model_type == nullptr || !model_type->is_string()) return file_error(Code::kCorrupt, "{}: no model_type", name);
  for (const auto& [key, value] : config)
    if (!is_finite(value))
      return file_error(Code::kCorrupt, "{}: {} is out of the range of numbers", name, std::string_view(key));

  if (const Json* parameters = config.if_contains("rope_parameters");
      parameters != nullptr && parameters->is_object()) {
    JsonObject scaling = parameters->get_object();
    if (const Json* theta = scaling.if_contains("rope_theta")) {
      if (!config.contains("rope_theta")) config["rope_theta"] = *theta;
      scaling.erase("rope_theta");
    }
    const Json* type = scaling.if_contains("rope_type");
    const bool is_plain = type == nullptr || (type->is_string() && type->get_string() == "default");
    if (!is_plain && !config.contains("rope_scaling")) config["rope_scaling"] = std::move(scaling);
    config.erase("rope_parameters");
  }
  return config;
}

std::string chat_template_of(const JsonObject& tokenizer_config) {
  const auto text_of = [](const Json& value) {
    return std::string(value.get_string().c_str(), value.get_string().size());
  };
  const Json* value = tokenizer_config.if_contains("chat_template");
  if (value == nullptr) return "";
  if (value->is_string()) return text_of(*value);
  const JsonArray* list = value->if_array();
  if (list == nullptr) return "";
  for (const Json& entry : *list) {
    const JsonObject* object = entry.if_object();
    const Json* entry_name = object != nullptr ? object->if_contains("name") : nullptr;
    const Json* text = object != nullptr ? object->if_contains("template") : nullptr;
    if (entry_name != nullptr && text != nullptr && entry_name->is_string() && text->is_string() &&
        entry_name->get_string() == "default")
      return text_of(*text);
  }
  return "";
}

}  // namespace still

#include "plan/plan_data.h"

#include "base/check.h"
#include "plan/closest.h"

// STILL_PLAN_DATA is the folder data/plan (CMakeLists.txt), whose files this object depends on.
#define STILL_EMBED(symbol, file)           \
  asm(".pushsection .rodata\n"              \
      ".global " #symbol "_begin\n" #symbol \
      "_begin:\n"                           \
      ".incbin \"" STILL_PLAN_DATA "/" file \
      "\"\n"                                \
      ".global " #symbol "_end\n" #symbol   \
      "_end:\n.byte 0\n"                    \
      ".popsection\n");                     \
  extern "C" const char symbol##_begin[];   \
  extern "C" const char symbol##_end[];

STILL_EMBED(still_plan_devices, "devices.json")
STILL_EMBED(still_plan_models, "models.json")
STILL_EMBED(still_plan_quality, "quality.json")
STILL_EMBED(still_plan_claims, "claims.json")
STILL_EMBED(still_plan_zh, "zh.json")

namespace still {

std::string_view plan_data_text(std::string_view name) {
  const auto text = [](const char* begin, const char* end) {
    return std::string_view(begin, static_cast<std::size_t>(end - begin));
  };
  if (name == "devices") return text(still_plan_devices_begin, still_plan_devices_end);
  if (name == "models") return text(still_plan_models_begin, still_plan_models_end);
  if (name == "quality") return text(still_plan_quality_begin, still_plan_quality_end);
  if (name == "zh") return text(still_plan_zh_begin, still_plan_zh_end);
  if (name == "claims") return text(still_plan_claims_begin, still_plan_claims_end);
  STILL_CHECK(!"no such data");
}

Result<std::vector<KnownModel>> read_known_models() {
  STILL_TRY(const Json json, parse_json(plan_data_text("models"), "models.json"));
  std::vector<KnownModel> models;
  for (const Json& row : json.at("models").as_array()) {
    const JsonObject& object = row.as_object();
    const auto text = [&](const char* key) {
      const Json* value = object.if_contains(key);
      return value == nullptr ? std::string() : std::string(value->as_string());
    };
    KnownModel model{.name = text("name"),
                     .title = text("title"),
                     .licence = text("licence"),
                     .base = text("base"),
                     .quality_key = text("quality")};
    if (const Json* aliases = object.if_contains("aliases"))
      for (const Json& alias : aliases->as_array()) model.aliases.emplace_back(alias.as_string());
    STILL_TRY(model.config, read_plan_config(object.at("config").as_object()));
    models.push_back(std::move(model));
  }
  return models;
}

Result<ModelShape> find_known_shape(const std::vector<KnownModel>& models, std::string_view name) {
  const std::string folded = folded_name(name);
  std::vector<std::string> names;
  const auto matches = [&](const KnownModel& model) {
    if (folded_name(model.name) == folded || folded_name(model.title) == folded) return true;
    for (const std::string& alias : model.aliases)
      if (folded_name(alias) == folded) return true;
    return false;
  };
  for (const KnownModel& model : models) {
    names.push_back(model.name);
    names.insert(names.end(), model.aliases.begin(), model.aliases.end());
    if (!matches(model)) continue;
    STILL_TRY(ModelShape shape, shape_from_config(model.config, model.name));
    shape.title = model.title;
    shape.licence = model.licence;
    shape.base = model.base;
    shape.quality_key = model.quality_key;
    return shape;
  }
  return error(Code::kNotFound, "no known model \"{}\"{}", name, closest_text(name, names));
}

}  // namespace still

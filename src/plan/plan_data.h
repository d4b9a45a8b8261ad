// PlanData: the device database, known models, published results and prices, and the claims that are checked: JSON
// files of data/plan/, linked into the program. Dated data, never code; a user's own file of devices may be read over
// it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "plan/model_shape.h"

namespace still {

// The text of data/plan/<name>.json: "devices", "models", "quality", "claims", "zh" (message.h).
std::string_view plan_data_text(std::string_view name);

struct KnownModel {
  std::string name, title, licence, base, quality_key;
  std::vector<std::string> aliases;
  ModelConfig config;
};

Result<std::vector<KnownModel>> read_known_models();
// By name, alias or title; kNotFound with the closest names.
Result<ModelShape> find_known_shape(const std::vector<KnownModel>& models, std::string_view name);

}  // namespace still

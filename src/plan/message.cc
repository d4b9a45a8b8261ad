#include "plan/message.h"

#include <map>

#include "base/check.h"
#include "base/json.h"
#include "plan/plan_data.h"

namespace still {

namespace {

using Catalogue = std::map<std::string, std::string, std::less<>>;

Catalogue read_catalogue() {
  Catalogue catalogue;
  const auto json = parse_json(plan_data_text("zh"), "zh.json");
  STILL_CHECK(json && json->is_object());  // linked into the program
  for (const auto& [english, chinese] : json->get_object())
    catalogue.emplace(english, chinese.is_string() ? std::string(chinese.get_string()) : std::string());
  return catalogue;
}

}  // namespace

std::string_view chinese_format(std::string_view english) {
  static const Catalogue kCatalogue = read_catalogue();
  const auto found = kCatalogue.find(english);
  return found == kCatalogue.end() ? english : std::string_view(found->second);
}

}  // namespace still

#include "plan/cost.h"

#include <algorithm>

#include "plan/plan_data.h"

namespace still {

double usd_per_million(double usd_per_hour, double tok_per_s) {
  return tok_per_s > 0 ? usd_per_hour / (tok_per_s * 0.0036) : 0;
}

double usd_per_correct(double tokens_per_answer, double usd_per_million_tokens, double accuracy) {
  return accuracy > 0 ? tokens_per_answer * usd_per_million_tokens * 1e-6 / accuracy : 0;
}

BreakEven break_even(const OwnHardware& own, double api_usd_per_million) {
  BreakEven result;
  const double power_usd_per_s = own.power_w * 1e-3 * own.usd_per_kwh / 3600;
  const double energy_per_million = own.tok_per_s > 0 ? power_usd_per_s / own.tok_per_s * 1e6 : 0;
  const double purchase_per_day = own.purchase_usd / (own.years * 365);
  const double capacity_per_day = own.tok_per_s * 86400;
  result.own_usd_per_million_full =
      capacity_per_day > 0 ? purchase_per_day / (capacity_per_day * 1e-6) + energy_per_million : 0;
  // purchase/day + energy * tokens = api * tokens
  const double gain = api_usd_per_million - energy_per_million;
  if (gain <= 0 || capacity_per_day <= 0) return result;
  result.tokens_per_day = purchase_per_day / gain * 1e6;
  result.share_of_capacity = result.tokens_per_day / capacity_per_day;
  return result;
}

std::optional<double> QualityData::score(std::string_view model, std::string_view benchmark) const {
  for (const QualityRow& row : rows) {
    if (row.model != model) continue;
    const auto found = row.scores.find(std::string(benchmark));
    if (found != row.scores.end()) return found->second;
  }
  return std::nullopt;
}

Result<QualityData> read_quality() {
  STILL_TRY(const Json json, parse_json(plan_data_text("quality"), "quality.json"));
  QualityData data;
  for (const Json& row : json.at("rows").as_array()) {
    QualityRow quality;
    for (const auto& [key, value] : row.as_object()) {
      if (value.is_string()) quality.model = value.get_string();
      if (value.is_number()) quality.scores[std::string(key)] = value.to_number<double>();
    }
    data.rows.push_back(std::move(quality));
  }
  for (const Json& row : json.at("api_prices").as_array()) {
    const auto number = [&](const char* key) { return row.at(key).to_number<double>(); };
    data.api_prices.push_back({.name = std::string(row.at("name").as_string()),
                               .date = std::string(row.at("date").as_string()),
                               .source = std::string(row.at("source").as_string()),
                               .hit = number("hit"),
                               .miss = number("miss"),
                               .out = number("out")});
  }
  for (const Json& row : json.at("quantisation_loss").as_array())
    data.recovery[std::string(row.at("quant").as_string())] = row.at("recovery").to_number<double>();
  return data;
}

}  // namespace still

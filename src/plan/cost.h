// Money: per million tokens, per correct answer, own hardware against an API; and the published results that quality is
// judged by. All prices are data with a date (data/plan/), or the user's.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace still {

// $ per million tokens at a price an hour and a rate: price / (tok/s * 3600 / 1e6).
double usd_per_million(double usd_per_hour, double tok_per_s);
// A wrong answer is paid like a right one: tokens * price / accuracy (0 to 1).
double usd_per_correct(double tokens_per_answer, double usd_per_million_tokens, double accuracy);

struct OwnHardware {
  double purchase_usd = 0, power_w = 0, usd_per_kwh = 0.15;
  double years = 3;      // written off over
  double tok_per_s = 0;  // at full use
};
struct BreakEven {
  double own_usd_per_million_full = 0;  // at full use
  double tokens_per_day = 0;            // from which own hardware costs less than the API; 0: never
  double share_of_capacity = 0;         // of what the hardware can do in a day
};
BreakEven break_even(const OwnHardware& own, double api_usd_per_million);

struct QualityRow {
  std::string model;
  std::map<std::string, double> scores;  // aime24, cons64, math500, gpqa, lcb, codeforces
};
struct ApiPrice {
  std::string name, date, source;
  double hit = 0, miss = 0, out = 0;  // $ per million tokens
};
struct QualityData {
  std::vector<QualityRow> rows;
  std::vector<ApiPrice> api_prices;
  std::map<std::string, double> recovery;  // share of the 16-bit score that a quantisation keeps
  std::optional<double> score(std::string_view model, std::string_view benchmark) const;
};
Result<QualityData> read_quality();

}  // namespace still

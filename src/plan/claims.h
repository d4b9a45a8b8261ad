// Claims: what is often said of the R1 family and is wrong, with the right value, its source, and checks that the
// planner's own data answer (data/plan/claims.json).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "plan/cost.h"
#include "plan/device.h"
#include "plan/plan_data.h"

namespace still {

struct ClaimCheck {
  JsonObject query;
  double expect = 0, tolerance = 0;
  std::string text() const;  // "weights_gb of 7b in q4_k_m"
};
struct Claim {
  std::string id, claim, right, source, verdict;
  std::vector<std::vector<std::string>> match;  // all groups, each by one of its words
  std::vector<ClaimCheck> checks;
};
Result<std::vector<Claim>> read_claims();

struct ClaimWorld {
  std::vector<KnownModel> models;
  std::vector<Device> devices;
  QualityData quality;
  static Result<ClaimWorld> read();
};
// The planner's own answer to a check. kInvalidArgument for a query of an unknown kind.
Result<double> answer_check(const ClaimWorld& world, const ClaimCheck& check);

// A sentence that holds a claim's words with a "not" that the claim has not, or the other way round: it may be right.
bool may_deny(const Claim& claim, std::string_view sentence);
// Claims whose words a sentence holds, the most specific first.
std::vector<const Claim*> match_claims(const std::vector<Claim>& claims, std::string_view sentence);

}  // namespace still

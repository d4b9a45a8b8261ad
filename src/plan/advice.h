// Which version to choose: every model of the family in the usual quantisations on the given devices, those that fit
// and keep the goals ranked by the published result of the task, with reasons and with what is not known.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/claims.h"
#include "plan/fit.h"
#include "plan/speed.h"

namespace still {

struct AdviceRequest {
  DeviceSet devices;
  std::string task = "math";  // math, code, science, general
  std::int64_t context = 16384, concurrency = 1;
  double min_tok_per_s = 10;           // of one user
  bool permissive_licence = false;     // no community licences
  double answer_tokens = 8000;         // of a typical answer, thinking included: the user's assumption
  std::optional<double> usd_per_hour;  // of all devices; default: the database's price
  std::string quantisation;            // empty: the usual ones
};

struct Candidate {
  std::string model, title, quantisation;
  bool fits = false, fast_enough = false, licence_ok = true;
  double score = 0;  // published, times what the quantisation keeps
  bool has_score = false;
  std::int64_t weight_bytes = 0, max_context = 0, max_concurrency = 0;
  Interval tok_per_s_user, tok_per_s_total;
  double usd_per_million = 0, usd_per_correct = 0;  // 0: no price known
  std::string reason;                               // why it is not chosen
};

struct Advice {
  std::vector<Candidate> candidates;  // the best first; those that fail after them
  std::vector<std::string> because;   // sentences for the first
  std::vector<std::string> unknowns;
};
Result<Advice> advise(const ClaimWorld& world, const AdviceRequest& request);

}  // namespace still

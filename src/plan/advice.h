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
  double max_ttft_s = 0;               // seconds until the first token of a prompt of 1024 tokens; 0: any
  double max_itl_s = 0;                // seconds between a user's tokens; 0: what min_tok_per_s says
  std::string language = "any";        // of the users: any, en, zh
  double answer_tokens = 8000;         // of a typical answer, thinking included: the user's assumption
  std::optional<double> usd_per_hour;  // of all devices; default: the database's price
  KvStorage kv;
  std::optional<Device> host;      // with it, what does not fit may lie partly in host memory, at its speed
  std::int64_t host_capacity = 0;  // bytes of it
  std::string quantisation;        // empty: the usual ones
};

struct Candidate {
  std::string model, title, quantisation;
  bool fits = false, fast_enough = false, licence_ok = true;
  double score = 0;  // published, times what the quantisation keeps
  bool has_score = false;
  double score_16_bit = 0;  // published; 0: none
  std::int64_t weight_bytes = 0, max_context = 0, max_concurrency = 0;
  Interval tok_per_s_user, tok_per_s_total, ttft;
  double usd_per_million = 0, usd_per_correct = 0;  // 0: no price known
  Message reason;                                   // why it is not chosen
  Message nearest;                                  // the smallest change that would make it fit
  std::vector<Message> notes;                       // what the device does not do itself
  std::int64_t host_bytes = 0;                      // in host memory
};

struct Advice {
  std::vector<Candidate> candidates;  // the best first; those that fail after them
  std::vector<Message> because;       // sentences for the first
  std::vector<Message> unknowns;
};
Result<Advice> advise(const ClaimWorld& world, const AdviceRequest& request);

}  // namespace still

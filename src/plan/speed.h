// How fast: the roofline of a step times measured efficiency, with an interval. Formulas: docs/plan.md.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "plan/fit.h"

namespace still {

// Reads of one decode step and of a prefill, over the tensor ranks of all pipeline stages in turn.
struct SpeedModel {
  double weight_bytes = 0;       // a step with one sequence reads on one tensor rank, summed over stages, less experts
  double expert_bytes = 0;       // all routed experts there
  double expert_host_bytes = 0;  // routed experts that lie in host memory, whole node
  double layer_host_bytes = 0;   // whole layers there, read for every step
  double kv_bytes_per_token = 0;
  double flops_per_token = 0;  // 2 * active parameters, on one tensor rank
  double head_flops = 0;
  double attention_flops_per_pair = 0;  // of one query and one key, all layers, on one rank
  double step_overhead_s = 0;           // launches, all-reduce latency
  double reduce_bytes_per_token = 0;
  double link_bandwidth = 0;            // 0: one rank, nothing to reduce
  double exchange_bytes_per_token = 0;  // experts spread over ranks: dispatch and combine, of one rank's token
  std::int64_t n_experts = 0, n_experts_per_tok = 0, pipeline = 1, data = 1;
  std::int64_t expert_data = 1;  // data ranks whose tokens an expert serves: all, or with whole experts on each its own
  std::int64_t n_layers = 0;
  Device device;
  double compute_peak = 0;  // FLOP/s of the type it multiplies in
  Device host;              // bandwidth of host memory, for experts and layers there
};

SpeedModel make_speed_model(const ModelShape& shape, const Quantisation& quantisation, const Device& device,
                            const RankWeights& weights, const DeploymentSettings& settings,
                            const Device* host = nullptr);

// Of a model that lies partly in host memory: the GPU reads its part, the host its own, one after the other.
SpeedModel make_offload_model(const ModelShape& shape, const Quantisation& quantisation, const Device& gpu,
                              const DeploymentSettings& settings, const OffloadPlan& plan, const Device& host);

// n distinct experts of E that B tokens with k each touch: E * (1 - (1 - k/E)^B).
double expected_experts(std::int64_t n_experts, std::int64_t n_per_token, double n_tokens);

// Tokens a step with a module that drafts k tokens, each accepted with probability a: (1 - a^(k+1)) / (1 - a).
double expected_tokens_per_step(double acceptance, std::int64_t n_draft);
// Seconds in which a rank sends n tokens to `copies` experts each in FP8 and gets the results back in BF16 (3 B a
// value), one layer, at `bandwidth` bytes/s.  DeepSeek-V3, ISCA'25, arXiv:2505.09343, section 4.3
double expert_exchange_s(double n_tokens, double copies, double hidden_size, double bandwidth);

struct Interval {
  double value = 0, low = 0, high = 0;
};

struct SpeedPoint {
  std::int64_t concurrency = 1;
  Interval tok_per_s_user, tok_per_s_total;  // decode
  double step_s = 0;
  double bandwidth_share = 0;  // of the device's peak
  bool compute_bound = false;
};
// kv_len: tokens in each sequence's cache, on average.
SpeedPoint predict_decode(const SpeedModel& model, std::int64_t concurrency, double kv_len);
// Seconds until the first token of a prompt, alone on the devices.
Interval predict_ttft(const SpeedModel& model, std::int64_t n_prompt, std::int64_t chunk_tokens);

struct SpeedCurve {
  std::vector<SpeedPoint> points;  // 1, 2, 4, ... up to the largest that fits, and the wanted one
  std::int64_t knee = 1;           // the first from which doubling gains less than 20 %; not has_knee: the largest
  bool has_knee = false;
  std::int64_t within_goal = 0;  // the largest within the latency goal; 0: none
};
// goal_s: seconds between tokens of a user at most; 0: none. asked: a point that is wanted too; 0: none. point_of: the
// point of a number of sequences.
SpeedCurve speed_curve(const std::function<SpeedPoint(std::int64_t)>& point_of, std::int64_t max_concurrency,
                       double goal_s, std::int64_t asked = 0);
SpeedCurve predict_curve(const SpeedModel& model, std::int64_t max_concurrency, double kv_len, double goal_s,
                         std::int64_t asked = 0);

}  // namespace still

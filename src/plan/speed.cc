#include "plan/speed.h"

#include <algorithm>
#include <cmath>

namespace still {

namespace {

// An all-reduce of a few kilobytes between GPUs of one host, launch included (NCCL, aiconfigurator's p2p latency).
constexpr double kReduceLatency = 10e-6;

double peak_of(const Device& d, Quantisation::Compute compute) {
  using Compute = Quantisation::Compute;
  const double f16 = d.f16_f32_accumulate > 0 ? d.f16_f32_accumulate : d.f16;
  switch (compute) {
    case Compute::kInt8:
      return d.int8 > 0 ? d.int8 : f16;
    case Compute::kFp8:
      return d.fp8 > 0 ? d.fp8 : f16;
    case Compute::kFp4:
      return d.fp4 > 0 ? d.fp4 : f16;
    case Compute::kBF16:
      return d.bf16 > 0 ? d.bf16 : f16;
    case Compute::kF16:
      return f16;
  }
  return f16;
}

// Reading what lies in host memory, once. Experts are read at a lower share of the bandwidth than whole layers: small
// matrices, chosen anew in each layer.
constexpr double kHostExpertEfficiency = 0.33;  // KTransformers, one socket: 8.7 of 26.7 tok/s (docs/plan.md)
double host_seconds(const SpeedModel& m, double touched) {
  if (m.host.bandwidth <= 0) return 0;
  return m.expert_host_bytes * touched / (m.host.bandwidth * kHostExpertEfficiency) +
         m.layer_host_bytes / (m.host.bandwidth * m.host.efficiency.decode);
}

struct StepTime {
  double seconds = 0, bytes = 0;
  bool compute_bound = false;
};

// n_seqs: of one data rank.
StepTime step_time(const SpeedModel& m, double n_seqs, double kv_len) {
  const DeviceEfficiency& e = m.device.efficiency;
  const double touched = m.n_experts > 0 ? expected_experts(m.n_experts, m.n_experts_per_tok,
                                                            n_seqs * static_cast<double>(m.expert_data)) /
                                               static_cast<double>(m.n_experts)
                                         : 0;
  const double weights = m.weight_bytes + m.expert_bytes * touched;
  const double kv = n_seqs * kv_len * m.kv_bytes_per_token;
  const double memory = weights / (m.device.bandwidth * e.decode) + kv / (m.device.bandwidth * e.kv_read);
  const double flops = n_seqs * (m.flops_per_token + kv_len * m.attention_flops_per_pair);
  const double compute = m.compute_peak > 0 ? flops / (m.compute_peak * e.prefill) : 0;
  StepTime t{.seconds = std::max(memory, compute) + m.step_overhead_s,
             .bytes = weights + kv,
             .compute_bound = compute > memory};
  if (m.link_bandwidth > 0)
    t.seconds += n_seqs * (m.reduce_bytes_per_token + m.exchange_bytes_per_token) / m.link_bandwidth;
  t.seconds += host_seconds(m, touched);
  return t;
}

Interval with_error(double value, double relative) {
  return {value, value / (1 + relative), value * (1 + relative)};
}

}  // namespace

double expected_experts(std::int64_t n_experts, std::int64_t n_per_token, double n_tokens) {
  const auto all = static_cast<double>(n_experts);
  return all * (1 - std::pow(1 - static_cast<double>(n_per_token) / all, n_tokens));
}

double expected_tokens_per_step(double acceptance, std::int64_t n_draft) {
  double sum = 0, share = 1;
  for (std::int64_t i = 0; i <= n_draft; ++i, share *= acceptance) sum += share;
  return sum;
}

double expert_exchange_s(double n_tokens, double copies, double hidden_size, double bandwidth) {
  return 3 * n_tokens * copies * hidden_size / bandwidth;
}

SpeedModel make_speed_model(const ModelShape& shape, const Quantisation& q, const Device& device,
                            const RankWeights& weights, const DeploymentSettings& s, const Device* host) {
  const ModelConfig& c = shape.config;
  const Parallelism& p = s.parallelism;
  const auto tensor = static_cast<double>(p.tensor);
  SpeedModel m{.n_experts = c.n_experts,
               .n_experts_per_tok = c.n_experts_per_tok,
               .pipeline = p.pipeline,
               .data = p.data,
               .expert_data = p.expert > 1 ? p.data : 1,
               .n_layers = c.n_layers,
               .device = device};
  // Sums over stages of what one tensor rank holds, shared out by the file's groups.
  double embedding = 0, experts = 0;
  for (const PlannedTensor& t : planned_tensors(q, shape)) {
    if (t.group == WeightGroup::kMtp) continue;
    const auto bytes = static_cast<double>(planned_bytes(q, shape, t));
    if (t.part == TensorPart::kEmbedding && !c.tied_embeddings) embedding += bytes;
    if (t.group == WeightGroup::kExperts) experts += bytes;
  }
  const bool on_host = s.experts_on_host && host != nullptr;
  // With experts over the ranks of a stage (or of none in the model), the rest is what the ranks hold beside them.
  const auto group = static_cast<double>(p.tensor * p.data);
  const double on_rank = static_cast<double>(weights.all_ranks_bytes) / group;
  const double expert_share =
      experts * (1 + static_cast<double>(p.redundant) / std::max(1.0, static_cast<double>(c.n_experts)));
  const double experts_on_rank = on_host ? 0 : expert_share / (p.expert > 1 ? group : tensor);
  const double table = s.engine.table_on_host ? 0 : embedding / tensor;
  m.weight_bytes = std::max(0.0, on_rank - experts_on_rank - table);
  if (on_host) {
    m.expert_host_bytes = experts;
    m.host = *host;
  } else {
    m.expert_bytes = experts_on_rank;
  }
  m.kv_bytes_per_token = static_cast<double>((weights.kv_bytes_per_token + weights.window_kv_bytes_per_token)) *
                         static_cast<double>(p.pipeline);
  m.flops_per_token = 2 * static_cast<double>(shape.n_active_params()) / tensor;
  m.head_flops = 2 * static_cast<double>(c.vocab_size) * static_cast<double>(c.hidden_size) / tensor;
  const double width = shape.is_mla() ? static_cast<double>(c.n_heads) *
                                            static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)
                                      : 2.0 * c.n_heads * c.head_dim;
  m.attention_flops_per_pair = 2 * width * c.n_layers / tensor;
  m.step_overhead_s = c.n_layers * device.efficiency.overhead_us_per_layer * 1e-6;
  const bool crosses_nodes = p.tensor * p.data > s.devices_per_node;
  if (p.tensor * p.data > 1) {
    m.link_bandwidth = (device.link_bandwidth > 0   ? device.link_bandwidth / 2
                        : device.pcie_bandwidth > 0 ? device.pcie_bandwidth * 0.5
                                                    : 8e9);
    if (crosses_nodes) m.link_bandwidth = std::min(m.link_bandwidth, s.network_bandwidth);
  }
  if (p.tensor > 1) {
    m.step_overhead_s += 2.0 * c.n_layers * kReduceLatency;
    // Two all-reduces a layer; a ring moves 2 (n-1)/n of the data over each link.
    m.reduce_bytes_per_token = 2.0 * c.n_layers * 2 * (tensor - 1) / tensor * 2 * static_cast<double>(c.hidden_size);
  }
  if (p.expert > 1)
    m.exchange_bytes_per_token = 3.0 * (c.n_experts_per_tok + c.n_shared_experts) * static_cast<double>(c.hidden_size) *
                                 std::max(0, c.n_layers - c.n_dense_layers) * (1 - 1 / static_cast<double>(p.expert)) /
                                 tensor;
  m.compute_peak = peak_of(device, q.compute);
  return m;
}

SpeedModel make_offload_model(const ModelShape& shape, const Quantisation& q, const Device& gpu,
                              const DeploymentSettings& wanted, const OffloadPlan& plan, const Device& host) {
  DeploymentSettings s = wanted;
  s.parallelism = {};
  const auto weights = plan_rank_weights(shape, q, s);
  SpeedModel m = make_speed_model(shape, q, gpu, weights ? *weights : RankWeights{}, s);
  m.layer_host_bytes = static_cast<double>(plan.host_layer_bytes);
  m.expert_host_bytes = static_cast<double>(plan.host_expert_bytes);
  m.weight_bytes = std::max(0.0, m.weight_bytes - m.layer_host_bytes);
  m.expert_bytes = std::max(0.0, m.expert_bytes - m.expert_host_bytes);
  m.host = host;
  return m;
}

SpeedPoint predict_decode(const SpeedModel& m, std::int64_t concurrency, double kv_len) {
  // Stages work on different sequences at the same time: each pass carries a share of them through all stages.
  const double micro = std::ceil(static_cast<double>(concurrency) / static_cast<double>(m.pipeline * m.data));
  const StepTime t = step_time(m, micro, kv_len);
  SpeedPoint point{.concurrency = concurrency, .step_s = t.seconds, .compute_bound = t.compute_bound};
  double error = m.device.efficiency.relative_error;
  if (m.n_experts > 0) error = std::max(error, 0.35);  // uneven experts: the fullest rank sets the pace
  if (m.expert_host_bytes + m.layer_host_bytes > 0) error = std::max(error, 0.6);
  point.tok_per_s_user = with_error(1 / t.seconds, error);
  const double n_flight =
      std::min<double>(static_cast<double>(concurrency), micro * static_cast<double>(m.pipeline * m.data));
  point.tok_per_s_total = with_error(n_flight / t.seconds, error);
  point.bandwidth_share = t.bytes / t.seconds / m.device.bandwidth;
  return point;
}

Interval predict_ttft(const SpeedModel& m, std::int64_t n_prompt, std::int64_t chunk_tokens) {
  const auto n = static_cast<double>(n_prompt);
  const double n_chunks = std::ceil(n / static_cast<double>(std::max<std::int64_t>(1, chunk_tokens)));
  const double flops = n * (m.flops_per_token - m.head_flops) + m.head_flops + n * n / 2 * m.attention_flops_per_pair;
  const DeviceEfficiency& e = m.device.efficiency;
  double seconds = m.compute_peak > 0 ? flops / (m.compute_peak * e.prefill) : 0;
  const double touched = m.n_experts > 0 ? expected_experts(m.n_experts, m.n_experts_per_tok, n / n_chunks) /
                                               static_cast<double>(m.n_experts)
                                         : 0;
  const double read = n_chunks * (m.weight_bytes + m.expert_bytes * touched) / (m.device.bandwidth * e.decode);
  seconds = std::max(seconds, read) + n_chunks * m.step_overhead_s;
  if (m.link_bandwidth > 0) seconds += n * (m.reduce_bytes_per_token + m.exchange_bytes_per_token) / m.link_bandwidth;
  if (m.expert_host_bytes + m.layer_host_bytes > 0) {
    // A byte of weights is about two 4-bit weights, each a multiply and an add for every token that meets it.
    const double share =
        m.n_experts > 0 ? static_cast<double>(m.n_experts_per_tok) / static_cast<double>(m.n_experts) : 0;
    const double host_flops = n * 4 * (m.expert_host_bytes * share + m.layer_host_bytes);
    const double host_read = n_chunks * host_seconds(m, touched);
    seconds += std::max(host_read, m.host.int8 > 0 ? host_flops / (m.host.int8 * m.host.efficiency.prefill) : 0);
  }
  return with_error(seconds, std::max(0.2, e.relative_error));
}

SpeedCurve speed_curve(const std::function<SpeedPoint(std::int64_t)>& point_of, std::int64_t max_concurrency,
                       double goal_s, std::int64_t asked) {
  SpeedCurve curve;
  std::vector<std::int64_t> counts;
  for (std::int64_t n = 1; n < max_concurrency; n *= 2) counts.push_back(n);
  if (max_concurrency >= 1) counts.push_back(max_concurrency);
  for (const std::int64_t n : counts) curve.points.push_back(point_of(n));
  curve.knee = curve.points.empty() ? 0 : curve.points.back().concurrency;
  for (const SpeedPoint& point : curve.points) {
    const double doubled = point_of(2 * point.concurrency).tok_per_s_total.value;
    if (doubled >= 1.2 * point.tok_per_s_total.value) continue;
    curve.knee = point.concurrency;
    curve.has_knee = true;
    break;
  }
  if (asked > 0) {
    const auto at = std::lower_bound(counts.begin(), counts.end(), asked);
    if (at == counts.end() || *at != asked)
      curve.points.insert(curve.points.begin() + (at - counts.begin()), point_of(asked));
  }
  if (goal_s > 0) {
    std::int64_t low = 0, high = max_concurrency;
    while (low < high) {
      const std::int64_t middle = (low + high + 1) / 2;
      if (point_of(middle).step_s <= goal_s)
        low = middle;
      else
        high = middle - 1;
    }
    curve.within_goal = low;
  }
  return curve;
}

SpeedCurve predict_curve(const SpeedModel& m, std::int64_t max_concurrency, double kv_len, double goal_s,
                         std::int64_t asked) {
  return speed_curve([&](std::int64_t n) { return predict_decode(m, n, kv_len); }, max_concurrency, goal_s, asked);
}

}  // namespace still

// What `still plan` was asked, and the parts of the command that print: one function and one file a subject.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "plan/claims.h"
#include "plan/fit.h"
#include "plan/message.h"
#include "plan/speed.h"

namespace still {

struct ShapeOptions {
  std::string arch;
  std::optional<std::int64_t> layers, hidden, heads, kv_heads, head_dim, ffn, vocab, context, q_rank, kv_rank, nope,
      rope, value, experts, experts_per_tok, shared_experts, expert_ffn, dense_layers, mtp_layers, window;
  bool tied = false;
};

struct PlanOptions {
  std::vector<std::string> words;  // models; or "check" and a sentence, "devices", "machine"
  std::vector<std::string> quants, devices;
  std::vector<std::int64_t> contexts, concurrencies;
  std::string task = "math", lang, language = "any";
  std::optional<std::string> kv, engine, device_file, chart, host, api;
  std::optional<std::int64_t> tensor, pipeline, expert, data, redundant, chunk, threads;
  std::optional<double> utilisation, overhead_gib, latency_ms, usd_per_hour, answer_tokens, min_rate, host_gib,
      network_gbs, purchase_usd, power_w, usd_per_kwh, years;
  ShapeOptions shape;
  bool explain = false, json = false, csv = false, advise = false, fit = false, permissive = false, mtp = false,
       calibrate = false, verify = false, contract = false, break_even = false, experts_on_host = false;
};

// The language of tables and sentences.
struct Words {
  bool is_chinese = false;
  std::string operator()(std::string_view english) const {
    return std::string(is_chinese ? chinese_format(english) : english);
  }
  const std::string& operator()(const Message& message) const { return message.in(is_chinese); }
};

struct PlanWorld {
  ClaimWorld data;
  Words say;
};

// plan_model.cc: a path, a source, a known shape, a name in the store ("deepseek-r1:7b-q4_k_m" is a shape and a
// quantisation, which is put into `quant`); the bare shape of --arch.
Result<ModelShape> find_plan_shape(const Context& context, const PlanWorld& world, const std::string& name,
                                   std::string& quant);
Result<ModelShape> shape_of_options(const ShapeOptions& options);

// plan_cells.cc: one deployment, or a matrix of them.
struct PlannedCell {
  std::string model, quant, devices;
  DeploymentSettings settings;
  FitAnswer fit;
  std::shared_ptr<const SpeedModel> speed;
  SpeedPoint asked;  // at the wanted concurrency
  SpeedCurve curve;
  Interval ttft;
  double usd_per_million = 0;
  std::string impossible;  // a split that does not divide; not empty: the rest is not there
};
Result<DeploymentSettings> deployment_of(const PlanOptions& options, const ModelShape& shape, const Quantisation& q,
                                         std::int64_t n_devices);
// A model on a device set: what all its cells share is computed once. Keeps a reference to the shape.
class PlannedDeployment {
 public:
  // Details are what would fit instead, notes, and the curve over concurrencies: for tables and JSON.
  static Result<PlannedDeployment> make(const PlanWorld& world, const PlanOptions& options, const ModelShape& shape,
                                        const Quantisation& q, const DeviceSet& set);
  Result<PlannedCell> cell(std::int64_t context, std::int64_t concurrency, bool has_nearest, bool has_curve);

 private:
  PlannedDeployment() = default;
  PlannedCell start_;  // names; settings; what is impossible
  const ModelShape* shape_ = nullptr;
  std::optional<FitPlanner> planner_;
  double goal_s_ = 0, usd_per_hour_ = 0;
};
Result<PlannedCell> plan_cell(const PlanWorld& world, const PlanOptions& options, const ModelShape& shape,
                              const Quantisation& q, const DeviceSet& set, std::int64_t context,
                              std::int64_t concurrency);
void print_cell(const PlannedCell& cell, const ModelShape& shape, const Quantisation& q, const DeviceSet& set,
                const PlanOptions& options, const PlanWorld& world);
void print_matrix(const std::vector<PlannedCell>& cells, const Words& say);
std::string csv_header();
void append_csv(std::string& out, const PlannedCell& cell);
void print_json(const std::vector<PlannedCell>& cells);
Status write_chart(const std::vector<PlannedCell>& cells, const std::string& path, const Words& say);
std::string knee_text(const SpeedCurve& curve, const Words& say);
// "128k" from 10000 on.
std::string tokens_text(std::int64_t n);
// Of --host: a row of the database, or this machine with the bandwidth it has by its name (or a desktop's).
Result<Device> host_device(const PlanOptions& options, const PlanWorld& world);
// Bytes of host memory: of --host-memory, the row of --host, or free on this machine.
Result<std::int64_t> host_capacity(const PlanOptions& options, const PlanWorld& world);

// plan_verify.cc: calibrated speed against the engine's.
Status print_verification(const Context& context, const PlanOptions& options, const PlanWorld& world,
                          const std::string& name, const ModelShape& shape, const Quantisation& q);

// plan_host.cc: this machine: what the engine takes, calibrated speed, the contract.
Status plan_here(const Context& context, const PlanOptions& options, const PlanWorld& world, const std::string& name,
                 const ModelShape& shape, const Quantisation& q);
Status print_machine(const PlanOptions& options, const PlanWorld& world);
// The file of a name in the store, or of a path; `option` is what needs it.
Result<std::filesystem::path> plan_model_file(const Context& context, const std::string& name, const char* option);

// plan_choice.cc: claims, devices, advice, break-even, --fit.
Status check_claim(const PlanOptions& options, const PlanWorld& world);
Status list_devices(const PlanOptions& options, const PlanWorld& world);
Status print_advice(const PlanOptions& options, const PlanWorld& world);
Status print_break_even(const PlanOptions& options, const PlanWorld& world, const ModelShape& shape,
                        const Quantisation& q, const DeviceSet& set);
Status print_offload(const PlanOptions& options, const PlanWorld& world, const ModelShape& shape, const Quantisation& q,
                     const DeviceSet& set);

}  // namespace still

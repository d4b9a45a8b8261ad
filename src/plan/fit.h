// Does it fit, if not why, and what is the nearest that does. One cell or a whole grid of model x quantisation x
// devices x context x concurrency; the split of a model over a GPU and host memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plan/deployment.h"
#include "plan/message.h"

namespace still {

struct FitAnswer {
  bool fits = false;
  std::int64_t capacity = 0;  // bytes of a device that the engine may use
  RankMemory memory;          // of the fullest rank
  RankWeights weights;
  std::int64_t max_kv_tokens = 0;    // over all sequences; 0: not even the weights fit
  std::int64_t max_context = 0;      // of one sequence at the wanted concurrency; at most the model's
  std::int64_t max_concurrency = 0;  // at the wanted context
  Message reason;                    // of a no: one sentence
  std::vector<Message> nearest;      // of a no: single changes that make it a yes, smallest first
  std::vector<Message> notes;        // what the hardware cannot do directly
  std::int64_t reserved = 0;         // bytes the engine takes of a device, where it reserves (vLLM)
};

// One deployment at any contexts and concurrencies: what does not depend on them (weights, and those of the single
// changes that are tried for a no) is planned once, so that a cell of a large grid takes microseconds. Keeps references
// to the shape.
class FitPlanner {
 public:
  // Errors only where the deployment is impossible as such (a split that does not divide, numbers that cannot be).
  static Result<FitPlanner> make(const ModelShape& shape, const Quantisation& quantisation, const DeviceSet& devices,
                                 const DeploymentSettings& settings);
  // details false: the verdict and its reason alone, without what would fit and without notes.
  Result<FitAnswer> at(std::int64_t context, std::int64_t concurrency, bool details = true);
  const RankWeights& weights() const { return weights_; }
  const DeploymentSettings& settings() const { return settings_; }

 private:
  // The same deployment with one thing changed.
  struct Alternative {
    DeploymentSettings settings;
    RankWeights weights;
    Message text;
  };
  FitPlanner() = default;
  bool fits(const Alternative& other, std::int64_t context, std::int64_t concurrency) const;
  void find_alternatives();
  void add_device_sets(std::int64_t context, std::int64_t concurrency, FitAnswer& answer);
  void find_nearest(FitAnswer& answer, std::int64_t context, std::int64_t concurrency);

  const ModelShape* shape_ = nullptr;
  Quantisation quantisation_;
  DeviceSet devices_;
  DeploymentSettings settings_;
  RankWeights weights_;
  std::int64_t capacity_ = 0;
  std::vector<Message> notes_;
  bool has_alternatives_ = false;
  std::vector<Alternative> smaller_kv_, smaller_types_, larger_sets_;  // the last found as far as they were asked for
  std::int64_t next_count_ = 0;                                        // of devices, to be tried for larger_sets_
};

// One cell. with_nearest false: as details of FitPlanner::at.
Result<FitAnswer> check_fit(const ModelShape& shape, const Quantisation& quantisation, const DeviceSet& devices,
                            const DeploymentSettings& settings, bool with_nearest = true);

// One GPU (or several) beside host memory: whole layers on the GPU as far as they fit; of a model with experts all but
// the routed experts first, then whole layers of experts.
struct OffloadPlan {
  std::int64_t gpu_layers = 0;   // layers wholly on the GPU
  bool experts_on_host = false;  // attention, dense and shared parts of all layers on the GPU
  std::int64_t gpu_bytes = 0, host_bytes = 0;
  std::int64_t host_layer_bytes = 0;  // of whole layers on the host; the rest of host_bytes is experts and the table
  std::int64_t host_expert_bytes = 0;
  bool fits = false;
  Message reason;
};
Result<OffloadPlan> plan_offload(const ModelShape& shape, const Quantisation& quantisation, const DeviceSet& gpus,
                                 std::int64_t host_capacity, const DeploymentSettings& settings);

}  // namespace still

// The memory plan of a model that is served beside others.
#include <algorithm>

#include "serve/model_pool.h"

namespace still {

Result<MemoryPlan> plan_served_model(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                     EngineSettings wanted, std::int64_t available) {
  available = std::max<std::int64_t>(available, 1);  // 0 would mean the machine's
  wanted.context = std::min(wanted.context, config.max_seq_len);
  const std::int64_t wish = wanted.context;
  const std::int64_t good = std::min(std::max(wish, kGoodContext), config.max_seq_len);
  const std::int64_t half = weight_bytes + std::max<std::int64_t>(0, available - weight_bytes) / 2;

  EngineSettings settings = wanted;
  settings.memory_limit = half;
  Result<MemoryPlan> plan = plan_memory(config, weight_bytes, max_k, settings);
  if (plan && plan->settings.context >= good) return plan;
  settings.memory_limit = available;
  if (wish == 0) settings.context = 0;
  Result<MemoryPlan> all = plan_memory(config, weight_bytes, max_k, settings);
  if (all && wish == 0) {
    // Only as much more as a good context needs.
    settings.context = std::min(good, all->settings.context);
    settings.kv_tokens = 0;
    settings.max_seqs = wanted.max_seqs;
    settings.memory_limit = available;
    return plan_memory(config, weight_bytes, max_k, settings);
  }
  if (all || wish == 0 || all.error().code != Code::kResourceExhausted) return all;
  // The wish does not fit: the longest that does.
  settings.context = 0;
  settings.kv_tokens = 0;
  return plan_memory(config, weight_bytes, max_k, settings);
}

}  // namespace still

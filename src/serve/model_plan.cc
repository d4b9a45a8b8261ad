// The memory plan of a model that is served beside others.
#include <algorithm>

#include "serve/model_pool.h"

namespace still {
namespace {

// Of the KV cache for each sequence that may run, unless more is asked for.
constexpr std::int64_t kKvTokensOfSequence = 2048;

// The longest context that leaves room for another model, with as many KV tokens as its sequences could fill.
Result<MemoryPlan> plan_context(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                EngineSettings wanted, std::int64_t available) {
  wanted.context = std::min(wanted.context, config.max_seq_len);
  const std::int64_t wish = wanted.context;
  const std::int64_t good = std::min(std::max(wish, kGoodContext), config.max_seq_len);
  const std::int64_t half = weight_bytes + std::max<std::int64_t>(0, available - weight_bytes) / 2;

  EngineSettings settings = wanted;
  settings.memory_limit = half;
  Result<MemoryPlan> plan = plan_memory(config, weight_bytes, max_k, settings);
  if (plan && plan->settings.context >= good) return plan;
  settings.memory_limit = available;
  Result<MemoryPlan> all = plan_memory(config, weight_bytes, max_k, settings);
  if (all && wish == 0) {
    // Only as much more as a good context needs.
    settings.context = std::min(good, all->settings.context);
    return plan_memory(config, weight_bytes, max_k, settings);
  }
  if (all || wish == 0 || all.error().code != Code::kResourceExhausted) return all;
  // The wish does not fit: the longest that does.
  settings.context = 0;
  return plan_memory(config, weight_bytes, max_k, settings);
}

}  // namespace

Result<MemoryPlan> plan_served_model(const ModelConfig& config, std::int64_t weight_bytes, std::int64_t max_k,
                                     EngineSettings wanted, std::int64_t available) {
  const std::int64_t asked = wanted.kv_tokens > 0 ? wanted.kv_tokens : wanted.max_seqs * kKvTokensOfSequence;
  wanted.kv_tokens = 0;
  available = std::max<std::int64_t>(available, 1);  // 0 would mean the machine's
  STILL_TRY(MemoryPlan plan, plan_context(config, weight_bytes, max_k, wanted, available));
  // Sequences share the cache: few of them fill their context.
  const std::int64_t n_tokens = std::max(asked, plan.settings.context);
  if (plan.settings.kv_tokens <= n_tokens) return plan;
  EngineSettings settings = plan.settings;
  settings.kv_tokens = (n_tokens + settings.block_size - 1) / settings.block_size * settings.block_size;
  return plan_memory(config, weight_bytes, max_k, settings);
}

}  // namespace still

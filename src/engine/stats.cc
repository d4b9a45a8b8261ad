#include "engine/stats.h"

#include <algorithm>

namespace still {

template <class Bounds>
void BucketCounts<Bounds>::observe(double value, std::int64_t times) {
  const auto bound = std::lower_bound(kBounds.begin(), kBounds.end(), value);
  counts[static_cast<std::size_t>(bound - kBounds.begin())] += times;
  n += times;
  sum += value * static_cast<double>(times);
}

template <class Bounds>
void BucketCounts<Bounds>::add(const BucketCounts& other) {
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
  n += other.n;
  sum += other.sum;
}

template struct BucketCounts<SecondBounds>;
template struct BucketCounts<TokenBounds>;

void EngineStats::add_counters(const EngineStats& other) {
  for (const auto member :
       {&EngineStats::prompt_tokens, &EngineStats::cached_tokens, &EngineStats::queried_tokens,
        &EngineStats::completion_tokens, &EngineStats::reasoning_tokens, &EngineStats::recomputed_tokens,
        &EngineStats::drafted_tokens, &EngineStats::accepted_tokens, &EngineStats::screened_rows,
        &EngineStats::unscreened_rows, &EngineStats::screened_panels, &EngineStats::exact_panels, &EngineStats::n_steps,
        &EngineStats::n_preemptions, &EngineStats::n_rejected})
    this->*member += other.*member;
  for (std::size_t i = 0; i < n_finished.size(); ++i) n_finished[i] += other.n_finished[i];
  device_busy_s += other.device_busy_s;
  device_idle_s += other.device_idle_s;
  for (const auto member :
       {&EngineStats::ttft, &EngineStats::inter_token, &EngineStats::end_to_end, &EngineStats::queue,
        &EngineStats::step, &EngineStats::prefill, &EngineStats::decode, &EngineStats::inference})
    (this->*member).add(other.*member);
  for (const auto member :
       {&EngineStats::request_prompt_tokens, &EngineStats::request_completion_tokens, &EngineStats::step_tokens})
    (this->*member).add(other.*member);
}

}  // namespace still

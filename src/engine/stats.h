// EngineStats: a snapshot of counters for /metrics, `still ps` and benchmarks. Counters only grow.
#pragma once

#include <array>
#include <cstdint>

namespace still {

// Counts of observations; bucket i counts those <= kBounds[i], the last one all the others (not cumulative).
template <class Bounds>
struct BucketCounts {
  static constexpr std::array<double, 20> kBounds = Bounds::kValues;
  std::array<std::int64_t, kBounds.size() + 1> counts{};
  std::int64_t n = 0;
  double sum = 0;
  void observe(double value, std::int64_t times = 1);
  void add(const BucketCounts& other);
};

struct SecondBounds {
  static constexpr std::array<double, 20> kValues = {0.001, 0.005, 0.01, 0.02, 0.025, 0.04, 0.05, 0.075, 0.1,  0.15,
                                                     0.25,  0.5,   0.75, 1.0,  2.5,   5.0,  10.0, 30.0,  60.0, 120.0};
};
struct TokenBounds {
  static constexpr std::array<double, 20> kValues = {1,    2,    5,   10,    20,    50,  100,    200,    500, 1e3,
                                                     2000, 5000, 1e4, 20000, 50000, 1e5, 200000, 500000, 1e6, 2e6};
};
using Histogram = BucketCounts<SecondBounds>;
using TokenHistogram = BucketCounts<TokenBounds>;

struct EngineStats {
  std::int64_t n_running = 0, n_waiting = 0;
  std::int64_t n_blocks = 0, n_blocks_used = 0,
               n_blocks_cached = 0;  // used: by running sequences; cached: free to evict
  std::int64_t block_size = 0;
  // Tokens.
  std::int64_t prompt_tokens = 0;   // computed, not those found in the cache
  std::int64_t cached_tokens = 0;   // of prompts, found in the prefix cache
  std::int64_t queried_tokens = 0;  // of prompts, looked for there
  std::int64_t completion_tokens = 0;
  std::int64_t reasoning_tokens = 0;
  std::int64_t recomputed_tokens = 0;  // after preemptions
  std::int64_t drafted_tokens = 0, accepted_tokens = 0;
  // Rows of logits of which only the largest was wanted: those found by a ScreenedHead, and others; of the former's
  // products panels in all, and those that were multiplied exactly.
  std::int64_t screened_rows = 0, unscreened_rows = 0, screened_panels = 0, exact_panels = 0;
  // Events.
  std::int64_t n_steps = 0, n_preemptions = 0, n_rejected = 0;
  std::array<std::int64_t, 5> n_finished{};              // by FinishReason
  double prefill_tokens_per_s = 0;                       // what the scheduler believes
  double device_busy_s = 0, device_idle_s = 0;           // inside and between steps, where it is measured
  Histogram ttft, inter_token, end_to_end, queue, step;  // seconds
  // Of a request that ended: from its first computation to its first token, from there to its last, both; its tokens.
  Histogram prefill, decode, inference;
  TokenHistogram request_prompt_tokens, request_completion_tokens;
  TokenHistogram step_tokens;  // computed in a step, drafts included

  void add_counters(const EngineStats& other);  // what only grows, of another engine of the same model
};

}  // namespace still

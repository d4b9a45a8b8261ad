// Sampler: a row of logits to a token. The choice depends on the row, the request and (seed, position) alone, never on
// the batch: position's random number is counter_random(seed, position). Ties go to the lower id. One object per
// thread; nothing is allocated once its buffers have grown.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/request.h"
#include "kernels/kernel_table.h"

namespace still {

// The best token is chosen, whatever the random number.
bool is_greedy(const SamplingParams& params);

struct SampleInput {
  std::span<float> logits;  // [vocab_size], overwritten; a draft model's may be fewer than there are ids
  const SamplingParams* params = nullptr;
  std::span<const TokenId> tokens;  // the sequence so far; the new token's position is tokens.size()
  std::int64_t n_prompt = 0;        // of them
  std::uint64_t seed = 0;
  std::optional<std::uint64_t> random;  // the position's random bits; absent: counter_random(seed, tokens.size())
  std::span<const TokenId> banned;
  std::span<const TokenId> banned_ends, banned_stops;  // end and stop tokens, where they are not wanted yet
  TokenId banned_tag = -1;
  std::span<const std::uint32_t> mask;  // empty: all are allowed
  std::int32_t n_logprobs = -1;         // see Request
};

struct Sample {
  TokenId id = -1;  // -1: no token is allowed, or the logits are not finite
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;
};

class Sampler {
 public:
  explicit Sampler(const CpuKernels& kernels) : kernels_(&kernels) {}
  void sample(const SampleInput& input, Sample& result);
  // Log-probability of a known token, and the best n; logits are left as they are.
  void score(std::span<const float> logits, TokenId id, std::int32_t n_logprobs, Sample& result);

 private:
  struct Candidate {
    float value;
    TokenId id;
  };
  static bool is_better(const Candidate& a, const Candidate& b) {
    return a.value > b.value || (a.value == b.value && a.id < b.id);
  }
  void select_best(std::span<const float> values, std::int64_t k, bool sort);  // into candidates_
  void select_nucleus(std::span<const float> probs, double mass);              // the best until their sum is `mass`
  float best_logprobs(std::span<const float> logits, std::int32_t n, Sample& result);  // returns log(sum(exp))
  void adjust(const SampleInput& input);
  void apply_penalties(const SampleInput& input);
  TokenId draw(const SampleInput& input);
  TokenId draw_from_candidates(double u) const;

  const CpuKernels* kernels_;
  std::vector<Candidate> candidates_;
  std::vector<float> raw_row_;  // a copy of the logits, made only where log-probabilities are wanted
  std::vector<std::int32_t>
      counts_;  // [vocab_size], zero between calls: occurrences in the answer + 2^24 per one in the prompt
};

}  // namespace still

#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/rng.h"

namespace still {

namespace {
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// Below this, all probability is on the best token in f32.
constexpr float kGreedyTemperature = 1e-4f;
constexpr std::int32_t kInPrompt = 1 << 24;
}  // namespace

bool is_greedy(const SamplingParams& params) {
  return params.temperature < kGreedyTemperature || params.top_k == 1;
}

// Keeps up to 2k candidates above a rising threshold; a cut to the k best raises it. Later equals have higher ids and
// lose.
void Sampler::select_best(std::span<const float> values, std::int64_t k, bool sort) {
  candidates_.clear();
  const auto n = static_cast<std::int64_t>(values.size());
  k = std::min(k, n);
  const std::int64_t limit = std::min(n, std::max<std::int64_t>(2 * k, 64));
  float threshold = kMinusInfinity;
  const auto cut = [&] {
    if (static_cast<std::int64_t>(candidates_.size()) <= k) return;
    std::nth_element(candidates_.begin(), candidates_.begin() + (k - 1), candidates_.end(), is_better);
    candidates_.resize(static_cast<std::size_t>(k));
    threshold = candidates_.back().value;
  };
  for (std::int64_t id = 0; id < n; ++id) {
    const float value = values[static_cast<std::size_t>(id)];
    if (!(value > threshold)) continue;
    candidates_.push_back({value, static_cast<TokenId>(id)});
    if (static_cast<std::int64_t>(candidates_.size()) >= limit) cut();
  }
  cut();
  if (sort) std::sort(candidates_.begin(), candidates_.end(), is_better);
}

// probs are relative to the best one, which is 1. Few tokens hold nearly all mass: look at those above a threshold
// first.
void Sampler::select_nucleus(std::span<const float> probs, double mass) {
  for (const float threshold : {1e-4f, 1e-8f, 0.0f}) {
    candidates_.clear();
    double sum = 0;
    for (std::size_t id = 0; id < probs.size(); ++id) {
      if (!(probs[id] > threshold)) continue;
      candidates_.push_back({probs[id], static_cast<TokenId>(id)});
      sum += probs[id];
    }
    if (sum >= mass) break;
  }
  std::sort(candidates_.begin(), candidates_.end(), is_better);
  double sum = 0;
  std::size_t n = 0;
  while (n < candidates_.size() && sum < mass) sum += candidates_[n++].value;
  candidates_.resize(n);
}

void Sampler::apply_penalties(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  if (params.repetition_penalty == 1 && params.presence_penalty == 0 && params.frequency_penalty == 0) return;
  const auto n_tokens = static_cast<std::int64_t>(input.tokens.size());
  const std::int64_t first =
      params.penalty_last_n < 0 ? 0 : std::max<std::int64_t>(0, n_tokens - params.penalty_last_n);
  counts_.resize(std::max(counts_.size(), input.logits.size()), 0);
  const auto n_logits = static_cast<TokenId>(input.logits.size());
  for (std::int64_t i = first; i < n_tokens; ++i) {
    const TokenId id = input.tokens[static_cast<std::size_t>(i)];
    if (id >= n_logits) continue;
    std::int32_t& count = counts_[static_cast<std::size_t>(id)];
    if (i >= input.n_prompt)
      ++count;
    else
      count |= kInPrompt;
  }
  for (std::int64_t i = first; i < n_tokens; ++i) {
    const TokenId id = input.tokens[static_cast<std::size_t>(i)];
    if (id >= n_logits) continue;
    std::int32_t& count = counts_[static_cast<std::size_t>(id)];
    if (count == 0) continue;  // done at its first occurrence
    float& logit = input.logits[static_cast<std::size_t>(id)];
    const std::int32_t n_answer = count & (kInPrompt - 1);
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (n_answer > 0) logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(n_answer);
    count = 0;
  }
}

void Sampler::adjust(const SampleInput& input) {
  const auto n_logits = static_cast<TokenId>(input.logits.size());
  for (const auto& [id, bias] : input.params->logit_bias)
    if (id < n_logits) input.logits[static_cast<std::size_t>(id)] += bias;
  apply_penalties(input);
  const auto ban = [&](TokenId id) {
    if (id >= 0 && id < n_logits) input.logits[static_cast<std::size_t>(id)] = kMinusInfinity;
  };
  for (const TokenId id : input.banned) ban(id);
  for (const TokenId id : input.banned_ends) ban(id);
  for (const TokenId id : input.banned_stops) ban(id);
  ban(input.banned_tag);
  if (input.mask.empty()) return;
  const auto n = static_cast<std::int64_t>(input.logits.size());
  for (std::int64_t word_idx = 0; word_idx * 32 < n; ++word_idx) {
    const std::uint32_t word = input.mask[static_cast<std::size_t>(word_idx)];
    if (word == ~std::uint32_t{0}) continue;
    const std::int64_t end = std::min<std::int64_t>(n, word_idx * 32 + 32);
    for (std::int64_t id = word_idx * 32; id < end; ++id)
      if ((word >> (id % 32) & 1) == 0) input.logits[static_cast<std::size_t>(id)] = kMinusInfinity;
  }
}

TokenId Sampler::draw_from_candidates(double u) const {
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.value;
  double sum = 0;
  for (const Candidate& candidate : candidates_) {
    sum += candidate.value;
    if (sum > u * total) return candidate.id;
  }
  return candidates_.back().id;
}

TokenId Sampler::draw(const SampleInput& input) {
  const SamplingParams& params = *input.params;
  const auto n = static_cast<std::int64_t>(input.logits.size());
  const auto best = static_cast<TokenId>(kernels_->argmax(input.logits.data(), n));
  const float max = input.logits[static_cast<std::size_t>(best)];
  if (!std::isfinite(max)) return -1;
  if (is_greedy(params)) return best;

  const double u =
      to_unit(input.random.value_or(counter_random(input.seed, static_cast<std::uint64_t>(input.tokens.size()))));
  const float inverse_temperature = 1.0f / params.temperature;
  if (params.top_k > 0 && params.top_k < n) {
    select_best(input.logits, params.top_k, true);
    // Probabilities relative to the best. exp through the kernel: the same bits on every machine.
    double total = 0;
    for (Candidate& candidate : candidates_) {
      const float x = (candidate.value - max) * inverse_temperature;
      kernels_->exp_shifted(&x, 0.0f, &candidate.value, 1);
      total += candidate.value;
    }
    if (params.top_p < 1) {
      double sum = 0;
      std::size_t n_kept = 0;
      while (n_kept < candidates_.size() && sum < params.top_p * total) sum += candidates_[n_kept++].value;
      candidates_.resize(n_kept);
    }
    while (candidates_.size() > 1 && candidates_.back().value < params.min_p) candidates_.pop_back();
    return draw_from_candidates(u);
  }

  float* probs = input.logits.data();
  for (std::int64_t id = 0; id < n; ++id) probs[id] = (probs[id] - max) * inverse_temperature;
  kernels_->exp_shifted(probs, 0.0f, probs, n);
  double total = 0;
  for (std::int64_t id = 0; id < n; ++id) total += probs[id];
  if (!std::isfinite(total)) return -1;
  if (params.top_p < 1) {
    select_nucleus(input.logits, params.top_p * total);
    while (candidates_.size() > 1 && candidates_.back().value < params.min_p) candidates_.pop_back();
    return draw_from_candidates(u);
  }
  if (params.min_p > 0) {
    total = 0;
    for (std::int64_t id = 0; id < n; ++id) {
      if (probs[id] < params.min_p) probs[id] = 0;
      total += probs[id];
    }
  }
  double sum = 0;
  for (std::int64_t id = 0; id < n; ++id) {
    sum += probs[id];
    if (sum > u * total) return static_cast<TokenId>(id);
  }
  return best;
}

float Sampler::best_logprobs(std::span<const float> logits, std::int32_t n, Sample& result) {
  const float log_sum = kernels_->log_sum_exp(logits.data(), static_cast<std::int64_t>(logits.size()));
  result.top.clear();
  if (n > 0) {
    select_best(logits, n, true);
    for (const Candidate& candidate : candidates_) result.top.emplace_back(candidate.id, candidate.value - log_sum);
  }
  return log_sum;
}

void Sampler::score(std::span<const float> logits, TokenId id, std::int32_t n_logprobs, Sample& result) {
  result.id = id;
  if (logits.empty()) return;  // the device that computed them has failed
  const float log_sum = best_logprobs(logits, n_logprobs, result);
  result.logprob = logits[static_cast<std::size_t>(id)] - log_sum;
}

void Sampler::sample(const SampleInput& input, Sample& result) {
  float log_sum = 0;
  result.top.clear();
  result.id = -1;
  if (input.logits.empty()) return;  // the device that computed them has failed
  if (input.n_logprobs >= 0) {
    log_sum = best_logprobs(input.logits, input.n_logprobs, result);
    raw_row_.assign(input.logits.begin(), input.logits.end());
  }
  adjust(input);
  result.id = draw(input);
  if (result.id >= 0 && input.n_logprobs >= 0) result.logprob = raw_row_[static_cast<std::size_t>(result.id)] - log_sum;
}

}  // namespace still

// Sampler: the distribution drawn equals the one stated, by chi-square with fixed seeds; filters, penalties, masks and
// log-probabilities against a slow version in double.
#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/rng.h"
#include "kernels/dispatch.h"

namespace still {
namespace {

std::vector<float> random_logits(std::int64_t n, std::uint64_t seed, float spread = 3.0f) {
  Rng rng(seed);
  std::vector<float> logits(static_cast<std::size_t>(n));
  for (float& logit : logits) logit = spread * static_cast<float>(rng.uniform() + rng.uniform() + rng.uniform() - 1.5);
  return logits;
}

// The definition: probabilities in double after temperature, top_k, top_p, min_p. Ties go to the lower id.
std::vector<double> expected_distribution(const std::vector<float>& logits, const SamplingParams& params) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size(), 0.0);
  std::size_t n =
      params.top_k > 0 ? std::min<std::size_t>(order.size(), static_cast<std::size_t>(params.top_k)) : order.size();
  double total = 0;
  for (std::size_t i = 0; i < n; ++i)
    total += p[order[i]] = std::exp((double{logits[order[i]]} - logits[order[0]]) / params.temperature);
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const bool is_kept = (params.top_p >= 1 || sum < params.top_p * total) && (i == 0 || p[order[i]] >= params.min_p);
    sum += p[order[i]];
    if (!is_kept) p[order[i]] = 0;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= kept;
  return p;
}

class SamplerTest : public ::testing::Test {
 protected:
  SamplerTest() : kernels_(*select_cpu_kernels("ref")), sampler_(*kernels_) {}
  Sample sample(const std::vector<float>& logits, const SamplingParams& params, std::vector<TokenId> tokens = {1},
                std::int32_t n_logprobs = -1, std::vector<std::uint32_t> mask = {}) {
    std::vector<float> row = logits;
    Sample result;
    sampler_.sample({.logits = row,
                     .params = &params,
                     .tokens = tokens,
                     .n_prompt = 1,
                     .seed = params.seed.value_or(0),
                     .mask = mask,
                     .n_logprobs = n_logprobs},
                    result);
    return result;
  }
  const CpuKernels* kernels_;
  Sampler sampler_;
};

struct Case {
  const char* name;
  std::int64_t n;
  SamplingParams params;
};

TEST_F(SamplerTest, DrawsTheStatedDistribution) {
  const Case cases[] = {
      {"plain", 37, {.temperature = 1.0f}},
      {"hot", 37, {.temperature = 2.5f}},
      {"cold", 37, {.temperature = 0.3f}},
      {"top_k", 300, {.temperature = 1.5f, .top_k = 7}},
      {"top_k of one more than the vocabulary", 21, {.temperature = 1.0f, .top_k = 22}},
      {"top_p", 300, {.temperature = 1.2f, .top_p = 0.7f}},
      {"min_p", 300, {.temperature = 1.2f, .min_p = 0.2f}},
      {"all", 300, {.temperature = 1.5f, .top_k = 40, .top_p = 0.8f, .min_p = 0.05f}},
      {"top_p of nearly nothing", 50, {.temperature = 1.0f, .top_p = 0.001f}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const auto logits = random_logits(c.n, 11);
    const auto p = expected_distribution(logits, c.params);
    constexpr int kDraws = 20000;
    std::vector<int> counts(logits.size(), 0);
    SamplingParams params = c.params;
    std::vector<TokenId> tokens(1, 0);
    for (int draw = 0; draw < kDraws; ++draw) {
      params.seed = 1000 + static_cast<std::uint64_t>(draw);
      const Sample result = sample(logits, params);
      ASSERT_GE(result.id, 0);
      ++counts[static_cast<std::size_t>(result.id)];
    }
    // Cells expected below 5 are pooled. Bound: mean + 5 standard deviations of chi-square with `cells - 1` degrees.
    double chi2 = 0, pooled_p = 0;
    int cells = 0, pooled_count = 0;
    for (std::size_t id = 0; id < p.size(); ++id) {
      if (p[id] == 0) {
        ASSERT_EQ(counts[id], 0) << "token " << id << " was filtered";
        continue;
      }
      if (p[id] * kDraws < 5) {
        pooled_p += p[id];
        pooled_count += counts[id];
        continue;
      }
      chi2 += std::pow(counts[id] - p[id] * kDraws, 2) / (p[id] * kDraws);
      ++cells;
    }
    if (pooled_p * kDraws >= 5) {
      chi2 += std::pow(pooled_count - pooled_p * kDraws, 2) / (pooled_p * kDraws);
      ++cells;
    }
    const double freedom = std::max(1, cells - 1);
    EXPECT_LT(chi2, freedom + 5 * std::sqrt(2 * freedom));
  }
}

TEST_F(SamplerTest, PositionsAreIndependentDraws) {
  const std::vector<float> logits(16, 0.0f);
  std::vector<int> counts(16, 0);
  std::vector<TokenId> tokens;
  for (int pos = 0; pos < 4000; ++pos) {
    ++counts[static_cast<std::size_t>(sample(logits, {.seed = 3}, tokens).id)];
    tokens.push_back(0);
  }
  double chi2 = 0;
  for (const int count : counts) chi2 += std::pow(count - 250.0, 2) / 250.0;
  EXPECT_LT(chi2, 15 + 5 * std::sqrt(30.0));
}

TEST_F(SamplerTest, TemperatureZeroIsArgmaxWithTheLowestId) {
  EXPECT_EQ(sample({0, 3, 1, 3}, {.temperature = 0}).id, 1);
  EXPECT_EQ(sample({0, 3, 1, 3}, {.temperature = 1, .top_k = 1}).id, 1);
}

TEST_F(SamplerTest, ObeysMaskBiasAndBans) {
  const auto logits = random_logits(70, 5);
  std::vector<std::uint32_t> mask(3, 0);
  mask[1] = 1u << 9 | 1u << 3;
  mask[2] = 1u << 5;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const TokenId id = sample(logits, {.temperature = 3, .seed = seed}, {1}, -1, mask).id;
    EXPECT_TRUE(id == 41 || id == 35 || id == 69) << id;
  }
  EXPECT_EQ(sample(logits, {.temperature = 0, .logit_bias = {{17, 100.0f}}}).id, 17);
  EXPECT_EQ(sample(logits, {}, {1}, -1, {0, 0, 0}).id, -1) << "nothing is allowed";
  std::vector<float> row = {5, 4, 3};
  const std::vector<TokenId> banned = {0}, ends = {1};
  const SamplingParams params{.temperature = 0};
  const std::vector<TokenId> tokens = {0};
  Sample result;
  sampler_.sample(
      {.logits = row, .params = &params, .tokens = tokens, .n_prompt = 1, .banned = banned, .banned_ends = ends},
      result);
  EXPECT_EQ(result.id, 2);
}

TEST_F(SamplerTest, NotFiniteLogitsAreNoToken) {
  const float nan = std::nanf("");
  EXPECT_EQ(sample({nan, nan}, {.temperature = 0}).id, -1);
  EXPECT_EQ(sample({1, INFINITY, 0}, {.temperature = 1}).id, -1);
}

// Prompt [2], answer [0, 0, 1].
TEST_F(SamplerTest, PenaltiesLookAtPromptAndAnswer) {
  const std::vector<TokenId> tokens = {2, 0, 0, 1};
  EXPECT_EQ(sample({2.0f, 1.0f, 1.5f, 0.9f}, {.temperature = 0, .repetition_penalty = 2.0f}, tokens).id, 0)
      << "2/2 = 1 > 0.9";
  EXPECT_EQ(sample({1.7f, 1.0f, 1.5f, 0.9f}, {.temperature = 0, .repetition_penalty = 2.0f}, tokens).id, 3);
  EXPECT_EQ(sample({2.0f, 1.0f, 1.5f, 0.9f}, {.temperature = 0, .presence_penalty = 1.0f}, tokens).id, 2)
      << "not the prompt's";
  EXPECT_EQ(sample({2.9f, 2.0f, 1.0f, 0.9f}, {.temperature = 0, .frequency_penalty = 0.5f}, tokens).id, 0)
      << "1.9 > 1.5";
  EXPECT_EQ(sample({2.9f, 2.5f, 1.0f, 0.9f}, {.temperature = 0, .frequency_penalty = 0.5f}, tokens).id, 1)
      << "1.9 < 2.0";
  EXPECT_EQ(
      sample({2.9f, 2.5f, 1.0f, 0.9f}, {.temperature = 0, .frequency_penalty = 0.5f, .penalty_last_n = 1}, tokens).id,
      0);
}

TEST_F(SamplerTest, LogprobsAreThoseOfTheRawDistribution) {
  const auto logits = random_logits(500, 21);
  double sum = 0;
  for (const float logit : logits) sum += std::exp(double{logit});
  const Sample result = sample(logits, {.temperature = 5, .logit_bias = {{7, 50.0f}}, .seed = 1}, {1}, 5);
  EXPECT_EQ(result.id, 7);
  EXPECT_NEAR(result.logprob, logits[7] - std::log(sum), 1e-5);
  ASSERT_EQ(result.top.size(), 5u);
  std::vector<float> sorted = logits;
  std::sort(sorted.rbegin(), sorted.rend());
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_NEAR(result.top[i].second, sorted[i] - std::log(sum), 1e-5);
    EXPECT_EQ(logits[static_cast<std::size_t>(result.top[i].first)], sorted[i]);
  }
}

}  // namespace
}  // namespace still

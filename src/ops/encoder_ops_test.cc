// The operators of encoders against formulas in double.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/encoder_attention.h"
#include "ops/gelu.h"
#include "ops/layer_norm.h"
#include "ops/testing.h"

namespace still {
namespace {

using testing::FloatTensor;

TEST(LayerNorm, MatchesTheFormula) {
  Rng rng(11);
  for (const std::int64_t n : {1, 3, 64, 383}) {
    FloatTensor x = testing::random_tensor(rng, {5, n}), add = testing::random_tensor(rng, {5, n}),
                w = testing::random_tensor(rng, {n}), b = testing::random_tensor(rng, {n});
    std::vector<float> first;
    for (const auto& exec : testing::all_execs()) {
      FloatTensor y({5, n});
      layer_norm(*exec, y.view(), x.view(), add.view(), w.view(), b.view(), 1e-5f);
      for (std::int64_t row = 0; row < 5; ++row) {
        double mean = 0, variance = 0;
        for (std::int64_t i = 0; i < n; ++i)
          mean += static_cast<double>(x.at(row, i)) + static_cast<double>(add.at(row, i));
        mean /= static_cast<double>(n);
        for (std::int64_t i = 0; i < n; ++i)
          variance += std::pow(static_cast<double>(x.at(row, i)) + static_cast<double>(add.at(row, i)) - mean, 2);
        variance /= static_cast<double>(n);
        for (std::int64_t i = 0; i < n; ++i) {
          const double s = static_cast<double>(x.at(row, i)) + static_cast<double>(add.at(row, i));
          const double wanted =
              (s - mean) / std::sqrt(variance + 1e-5) * static_cast<double>(w.values[static_cast<std::size_t>(i)]) +
              static_cast<double>(b.values[static_cast<std::size_t>(i)]);
          EXPECT_NEAR(y.at(row, i), wanted, 2e-5) << n;
        }
      }
      if (first.empty()) first = y.values;
      EXPECT_TRUE(testing::same_bits(first, y.values));
      // In place, and without a residual.
      FloatTensor z = x;
      layer_norm(*exec, z.view(), z.view(), {}, w.view(), b.view(), 1e-5f);
      layer_norm(*exec, y.view(), x.view(), {}, w.view(), b.view(), 1e-5f);
      EXPECT_TRUE(testing::same_bits(y.values, z.values));
    }
  }
}

TEST(Activation, MatchesTheFormulas) {
  const auto exec = testing::make_exec(nullptr, 2);
  std::vector<float> values;
  for (float v = -12; v <= 12; v += 0.125f) values.push_back(v);
  const auto n = static_cast<std::int64_t>(values.size());
  FloatTensor erf(values, {1, n}), tanh(values, {1, n}), relu(values, {1, n});
  activate(*exec, erf.view(), Activation::kGelu);
  activate(*exec, tanh.view(), Activation::kGeluTanh);
  activate(*exec, relu.view(), Activation::kRelu);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double v = values[i];
    EXPECT_NEAR(erf.values[i], 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))), 2e-6);
    EXPECT_NEAR(tanh.values[i], 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v))), 2e-6);
    EXPECT_EQ(relu.values[i], std::max(values[i], 0.0f));
  }
}

TEST(EncoderAttention, MatchesTheFormulaForRaggedTexts) {
  Rng rng(12);
  const std::vector<std::int32_t> q_start = {0, 1, 8, 8, 41};
  for (const std::int64_t n_heads : {1, 3}) {
    const std::int64_t head_dim = 20, width = n_heads * head_dim, n_tokens = 41;
    FloatTensor q = testing::random_tensor(rng, {n_tokens, width}), k = testing::random_tensor(rng, {n_tokens, width}),
                v = testing::random_tensor(rng, {n_tokens, width});
    std::vector<float> first;
    for (const auto& exec : testing::all_execs()) {
      FloatTensor out({n_tokens, width}), scores({exec->n_threads(), 64});
      encoder_attention(*exec, out.view(), q.view(), k.view(), v.view(), q_start, n_heads, 0.25f, scores.view());
      for (std::size_t s = 0; s + 1 < q_start.size(); ++s)
        for (std::int64_t row = q_start[s]; row < q_start[s + 1]; ++row)
          for (std::int64_t column = 0; column < width; ++column) {
            const std::int64_t head = column / head_dim;
            double sum = 0, mixed = 0;
            for (std::int64_t key = q_start[s]; key < q_start[s + 1]; ++key) {
              double score = 0;
              for (std::int64_t d = head * head_dim; d < (head + 1) * head_dim; ++d)
                score += static_cast<double>(q.at(row, d)) * static_cast<double>(k.at(key, d));
              const double weight = std::exp(score * 0.25);
              sum += weight;
              mixed += weight * static_cast<double>(v.at(key, column));
            }
            EXPECT_NEAR(out.at(row, column), mixed / sum, 2e-5);
          }
      if (first.empty()) first = out.values;
      EXPECT_TRUE(testing::same_bits(first, out.values));
    }
  }
}

}  // namespace
}  // namespace still

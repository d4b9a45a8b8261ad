#include "ops/linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/testing.h"

namespace still {
namespace {

using namespace still::testing;
constexpr double kEps = 0x1.0p-24;

// One element in double from decoded weights and activations as the kernels see them, with the size of its terms.
struct Expected {
  double value = 0, size = 0;
};
Expected expected(const PackedMatrix& matrix, const FloatTensor& x, std::int64_t row, std::int64_t out) {
  const std::vector<float> w = matrix.decoded_row(out);
  const std::int32_t block = activation_block(matrix.format);
  const std::int64_t k = matrix.k;
  QuantizedActivations quantized;
  if (block != 0) {
    const auto begin = x.values.begin() + row * k;
    quantized = quantize_activations(std::vector<float>(begin, begin + k), 1, k, block);
  }
  double largest = 0;
  for (float value : w) largest = std::max(largest, std::fabs(static_cast<double>(value)));
  Expected result;
  for (std::int64_t i = 0; i < k; ++i) {
    const double a = w[static_cast<std::size_t>(i)], b = block == 0 ? x.at(row, i) : quantized.value(0, i);
    result.value += a * b;
    result.size += std::fabs(a * b) + (block == 0 ? 0 : 2 * largest * std::fabs(b));
  }
  return result;
}
double bound(const PackedMatrix& matrix, const Expected& e) {
  const std::int32_t block = activation_block(matrix.format);
  return kEps * e.size * (block == 0 ? static_cast<double>(matrix.k) : 2.0 * static_cast<double>(matrix.k / block) + 6);
}

TEST(Linear, GroupOfMixedFormatsMatchesDoubleOnEveryTableAndThreadCount) {
  Rng rng(21);
  const std::int64_t k = 512;
  const PackedMatrix q4 = random_packed_matrix(rng, PackedFormat::kQ4_K, 150, k);
  const PackedMatrix q5 = random_packed_matrix(rng, PackedFormat::kQ5_0, 33, k);
  const PackedMatrix f16 = random_packed_matrix(rng, PackedFormat::kF16, 17, k);
  const PackedMatrix* matrices[] = {&q4, &q5, &f16};
  const auto execs = all_execs();
  for (std::int64_t n_tokens : {1, 2, 5, 19}) {
    SCOPED_TRACE(n_tokens);
    FloatTensor x = random_tensor(rng, {n_tokens, k});
    FloatTensor bias = random_tensor(rng, {33});
    std::vector<FloatTensor> first;
    for (const auto& exec : execs) {
      SCOPED_TRACE(std::string(exec->kernels().name) + " threads " + std::to_string(exec->n_threads()));
      std::vector<Weight> weights;
      std::vector<FloatTensor> y;
      for (const PackedMatrix* matrix : matrices) {
        weights.push_back(weight_of(*matrix));
        y.emplace_back(Shape{n_tokens, matrix->n_out}, -1.0f);
      }
      linear(*exec, x.view(),
             {{y[0].view(), &weights[0], {}}, {y[1].view(), &weights[1], bias.view()}, {y[2].view(), &weights[2], {}}});
      if (first.empty()) {
        first = y;
        for (std::size_t i = 0; i < 3; ++i) {
          for (std::int64_t row = 0; row < n_tokens; ++row) {
            for (std::int64_t out = 0; out < matrices[i]->n_out; ++out) {
              Expected e = expected(*matrices[i], x, row, out);
              if (i == 1) {
                e.value += bias.at(out, 0);
                e.size += std::fabs(bias.at(out, 0));
              }
              EXPECT_NEAR(y[i].at(row, out), e.value, bound(*matrices[i], e));
            }
          }
        }
      }
      for (std::size_t i = 0; i < 3; ++i) EXPECT_TRUE(same_bits(first[i].values, y[i].values));
    }
  }
}

TEST(Linear, ATokenAloneGivesTheSameBitsAsInABatch) {
  Rng rng(22);
  for (PackedFormat format :
       {PackedFormat::kQ6_K, PackedFormat::kQ8_0, PackedFormat::kQ4_1, PackedFormat::kF32, PackedFormat::kBF16}) {
    const std::int64_t k = 768, n_out = 203, n_tokens = 23;
    const PackedMatrix matrix = random_packed_matrix(rng, format, n_out, k);
    const Weight w = weight_of(matrix);
    FloatTensor x = random_tensor(rng, {n_tokens, k});
    for (const auto& exec : all_execs()) {
      FloatTensor together({n_tokens, n_out});
      linear(*exec, x.view(), {{together.view(), &w, {}}});
      for (std::int64_t row = 0; row < n_tokens; ++row) {
        FloatTensor alone({1, n_out});
        linear(*exec, {x.values.data() + row * k, DType::kF32, {1, k}}, {{alone.view(), &w, {}}});
        EXPECT_EQ(
            std::memcmp(alone.values.data(), together.values.data() + row * n_out, static_cast<std::size_t>(n_out) * 4),
            0)
            << exec->kernels().name << " row " << row;
      }
    }
  }
}

TEST(LinearAdd, AddsTheProductToWhatIsThere) {
  Rng rng(23);
  const std::int64_t k = 1024, n_out = 90;
  const PackedMatrix matrix = random_packed_matrix(rng, PackedFormat::kQ5_K, n_out, k);
  const Weight w = weight_of(matrix);
  for (std::int64_t n_tokens : {1, 7}) {
    FloatTensor x = random_tensor(rng, {n_tokens, k}), before = random_tensor(rng, {n_tokens, n_out});
    for (const auto& exec : all_execs()) {
      FloatTensor product({n_tokens, n_out}), y = before;
      linear(*exec, x.view(), {{product.view(), &w, {}}});
      linear_add(*exec, y.view(), x.view(), w);
      for (std::size_t i = 0; i < y.values.size(); ++i) product.values[i] = before.values[i] + product.values[i];
      EXPECT_TRUE(same_bits(y.values, product.values)) << exec->kernels().name;
    }
  }
}

TEST(LinearSwiglu, MatchesTheFormula) {
  Rng rng(24);
  const std::int64_t k = 512, n_out = 333;
  const PackedMatrix gate = random_packed_matrix(rng, PackedFormat::kQ4_K, n_out, k);
  const PackedMatrix up = random_packed_matrix(rng, PackedFormat::kQ5_1, n_out, k);
  const Weight gate_w = weight_of(gate), up_w = weight_of(up);
  // Enough tokens that a thread's share is done in several slices.
  for (std::int64_t n_tokens : {1, 3, 400}) {
    FloatTensor x = random_tensor(rng, {n_tokens, k});
    std::vector<float> first;
    for (const auto& exec : all_execs()) {
      if (n_tokens == 400 && exec->kernels().name == std::string("ref") && exec->n_threads() > 2) continue;
      FloatTensor g({n_tokens, n_out}), u({n_tokens, n_out}), y({n_tokens, n_out});
      linear_swiglu(*exec, y.view(), x.view(), gate_w, up_w);
      if (first.empty()) {
        first = y.values;
        linear(*exec, x.view(), {{g.view(), &gate_w, {}}, {u.view(), &up_w, {}}});
        for (std::size_t i = 0; i < y.values.size(); ++i) {
          const double a = g.values[i], want = a / (1 + std::exp(-a)) * u.values[i];
          EXPECT_NEAR(y.values[i], want, 8 * kEps * std::fabs(want));
        }
      }
      EXPECT_TRUE(same_bits(first, y.values)) << exec->kernels().name << " threads " << exec->n_threads();
    }
  }
}

TEST(Linear, NaNInOneTokenStaysInThatToken) {
  Rng rng(25);
  const PackedMatrix matrix = random_packed_matrix(rng, PackedFormat::kQ4_K, 40, 512);
  const Weight w = weight_of(matrix);
  FloatTensor x = random_tensor(rng, {3, 512});
  x.values[512 + 77] = std::numeric_limits<float>::quiet_NaN();
  for (const auto& exec : all_execs()) {
    FloatTensor y({3, 40});
    linear(*exec, x.view(), {{y.view(), &w, {}}});
    for (std::int64_t out = 0; out < 40; ++out) {
      EXPECT_TRUE(std::isfinite(y.at(0, out)) && std::isnan(y.at(1, out)) && std::isfinite(y.at(2, out)));
    }
  }
}

TEST(Linear, NoTokensIsNoWork) {
  Rng rng(26);
  const PackedMatrix matrix = random_packed_matrix(rng, PackedFormat::kQ4_K, 40, 512);
  const Weight w = weight_of(matrix);
  const auto exec = make_exec(nullptr, 2);
  linear(*exec, {nullptr, DType::kF32, {0, 512}}, {{{nullptr, DType::kF32, {0, 40}}, &w, {}}});
  linear_add(*exec, {nullptr, DType::kF32, {0, 40}}, {nullptr, DType::kF32, {0, 512}}, w);
}

TEST(Exec, TakesTheBytesItPromisesAndRefusesNonsense) {
  const ExecOptions options{.n_threads = 2, .max_tokens = 33, .max_k = 1000, .max_attention_parts = 5, .head_dim = 64};
  EXPECT_TRUE(Exec::create(options).has_value());  // an arena of scratch_bytes suffices, or create() aborts
  EXPECT_GT(Exec::scratch_bytes(options), 2 * kAttentionScratchBytes + 33 * 1000);
  EXPECT_FALSE(Exec::create({.n_threads = -1}).has_value());
  EXPECT_FALSE(Exec::create({.n_threads = 1, .max_tokens = 0}).has_value());
}

}  // namespace
}  // namespace still

#include "ops/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "ops/testing.h"

namespace still {
namespace {

using namespace still::testing;

TEST(RopeFrequencies, PlainAndLinear) {
  const RopeConfig plain{.n_rot = 64, .theta = 1e6};
  const RopeConfig linear{.n_rot = 64, .theta = 1e6, .scaling = RopeScaling::kLinear, .factor = 4};
  for (int i = 0; i < 32; ++i) {
    const double want = std::pow(1e6, -i / 32.0);
    EXPECT_DOUBLE_EQ(rope_inverse_frequencies(plain)[static_cast<std::size_t>(i)], want);
    EXPECT_DOUBLE_EQ(rope_inverse_frequencies(linear)[static_cast<std::size_t>(i)], want / 4);
  }
  EXPECT_EQ(rope_attention_factor(plain), 1.0);
}

// Llama 3.1: head_dim 128, theta 5e5, factor 8, 1 to 4 turns of 8192. Wavelengths below 8192 / 4 are kept, above 8192
// divided by 8; the values in between are those of transformers 4.44's _compute_llama3_parameters, in its own form.
TEST(RopeFrequencies, Llama3KeepsShortWavesAndStretchesLongOnes) {
  const RopeConfig config{.n_rot = 128,
                          .theta = 5e5,
                          .scaling = RopeScaling::kLlama3,
                          .factor = 8,
                          .low_freq_factor = 1,
                          .high_freq_factor = 4,
                          .orig_len = 8192};
  const std::vector<double> got = rope_inverse_frequencies(config);
  int kept = 0, stretched = 0;
  for (int i = 0; i < 64; ++i) {
    const double f = std::pow(5e5, -i / 64.0), wavelength = 2 * std::numbers::pi / f;
    double want;
    if (wavelength < 8192.0 / 4) {
      want = f;
      ++kept;
    } else if (wavelength > 8192) {
      want = f / 8;
      ++stretched;
    } else {
      const double smooth = (8192 / wavelength - 1) / (4.0 - 1);
      want = (1 - smooth) * f / 8 + smooth * f;
      EXPECT_GT(want, f / 8);
      EXPECT_LT(want, f);
    }
    EXPECT_NEAR(got[static_cast<std::size_t>(i)], want, 1e-14 * want);
  }
  EXPECT_EQ(kept, 29);
  EXPECT_EQ(stretched, 29);
}

// DeepSeek-V3: 64 rotated dimensions, theta 1e4, factor 40 over 4096, beta 32 and 1: pairs up to 10 are kept, from 23
// on divided by 40. mscale = mscale_all_dim, so cos and sin are not scaled.
TEST(RopeFrequencies, YarnOfDeepSeekV3) {
  RopeConfig config{.n_rot = 64,
                    .pairs = true,
                    .theta = 1e4,
                    .scaling = RopeScaling::kYarn,
                    .factor = 40,
                    .orig_len = 4096,
                    .beta_fast = 32,
                    .beta_slow = 1,
                    .mscale = 1,
                    .mscale_all_dim = 1};
  const std::vector<double> got = rope_inverse_frequencies(config);
  for (int i = 0; i < 32; ++i) {
    const double f = std::pow(1e4, -i / 32.0), ramp = std::clamp((i - 10) / 13.0, 0.0, 1.0);
    EXPECT_NEAR(got[static_cast<std::size_t>(i)], f / 40 * ramp + f * (1 - ramp), 1e-15 * f);
  }
  EXPECT_EQ(got[10], std::pow(1e4, -10 / 32.0));
  EXPECT_LT(got[11], std::pow(1e4, -11 / 32.0));
  EXPECT_GT(got[22], std::pow(1e4, -22 / 32.0) / 40);
  EXPECT_DOUBLE_EQ(got[23], std::pow(1e4, -23 / 32.0) / 40);
  EXPECT_EQ(rope_attention_factor(config), 1.0);
  config.mscale = config.mscale_all_dim = 0;  // plain YaRN
  EXPECT_NEAR(rope_attention_factor(config), 0.1 * std::log(40.0) + 1, 1e-15);
  config.mscale = 1;
  config.mscale_all_dim = 0.707;
  EXPECT_NEAR(rope_attention_factor(config), (0.1 * std::log(40.0) + 1) / (0.0707 * std::log(40.0) + 1), 1e-15);
}

TEST(RopeTable, HoldsCosAndSinOfEveryAngle) {
  RopeConfig config{.n_rot = 32, .theta = 1e4};
  config.freq_divisors.assign(16, 2.0f);
  const std::int64_t n = 5003;
  const RopeTable table(config, n);
  EXPECT_EQ(RopeTable::bytes(config, n), n * 16 * 2 * 4);
  for (std::int64_t pos :
       {std::int64_t{0}, std::int64_t{1}, std::int64_t{255}, std::int64_t{256}, std::int64_t{4095}, n - 1}) {
    for (int i = 0; i < 16; ++i) {
      const double angle = static_cast<double>(pos) * std::pow(1e4, -i / 16.0) / 2;
      EXPECT_NEAR(table.cos(pos)[i], std::cos(angle), 0x1.0p-24);
      EXPECT_NEAR(table.sin(pos)[i], std::sin(angle), 0x1.0p-24);
    }
  }
}

TEST(Rope, RotatesEachTokenByItsPosition) {
  Rng rng(41);
  const std::int64_t n_heads = 5, head_dim = 96, n_tokens = 50;
  for (bool pairs : {false, true}) {
    const RopeConfig config{.n_rot = 64, .pairs = pairs};
    const RopeTable table(config, 2000);
    const std::vector<double> frequencies = rope_inverse_frequencies(config);
    const FloatTensor x = random_tensor(rng, {n_tokens, n_heads * head_dim});
    std::vector<std::int32_t> positions(n_tokens);
    for (std::int32_t& pos : positions) pos = static_cast<std::int32_t>(rng.below(2000));
    std::vector<float> first;
    for (const auto& exec : all_execs()) {
      FloatTensor y = x;
      rope(*exec, y.view(), n_heads, table, positions);
      if (first.empty()) {
        first = y.values;
        for (std::int64_t token = 0; token < n_tokens; ++token) {
          for (std::int64_t head = 0; head < n_heads; ++head) {
            for (int i = 0; i < 32; ++i) {
              const double angle =
                  positions[static_cast<std::size_t>(token)] * frequencies[static_cast<std::size_t>(i)];
              const std::int64_t a = head * head_dim + (pairs ? 2 * i : i),
                                 b = head * head_dim + (pairs ? 2 * i + 1 : i + 32);
              const double size = std::fabs(x.at(token, a)) + std::fabs(x.at(token, b));
              EXPECT_NEAR(y.at(token, a), x.at(token, a) * std::cos(angle) - x.at(token, b) * std::sin(angle),
                          size * 0x1.0p-22);
              EXPECT_NEAR(y.at(token, b), x.at(token, a) * std::sin(angle) + x.at(token, b) * std::cos(angle),
                          size * 0x1.0p-22);
            }
            for (std::int64_t i = 64; i < head_dim; ++i)
              EXPECT_EQ(y.at(token, head * head_dim + i), x.at(token, head * head_dim + i));
          }
        }
      }
      EXPECT_TRUE(same_bits(y.values, first)) << exec->kernels().name << " threads " << exec->n_threads();
    }
  }
}

}  // namespace
}  // namespace still

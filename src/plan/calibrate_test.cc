// A calibration on a small shape: plausible, and refused where it cannot be.
#include "plan/calibrate.h"

#include <gtest/gtest.h>

#include "plan/plan_data.h"

namespace still {
namespace {

TEST(Calibration, OfASliceOfLayersPredictsTheWholeModel) {
  const auto models = *read_known_models();
  const ModelShape smol = *find_known_shape(models, "smollm2:135m");
  const auto speed = calibrate_host(smol, *find_quantisation("q4_1"),
                                    {.n_threads = 1, .n_prompt = 32, .deep_kv_len = 256, .budget_s = 0.2});
  ASSERT_TRUE(speed) << speed.error().message;
  ASSERT_GE(speed->rounds.size(), 1u);
  const Interval step = speed->step_s(1, 64);
  // A step reads the whole slice, and no core reads 500 GB/s: the layers were computed.
  EXPECT_GT(step.value, static_cast<double>(speed->slice_bytes) / 500e9);
  EXPECT_LE(step.low, step.value);
  EXPECT_GE(step.high, step.value);
  // A prompt's tokens share the weights: never slower a token than decoding, within noise.
  EXPECT_LT(speed->prefill_s(32, 32).value / 32, 2 * step.value);
  EXPECT_GT(speed->slice_bytes, 0);
}

// What is made of the rounds, with rounds that are known.
TEST(Calibration, StepsAndPromptsFollowTheRounds) {
  HostSpeed speed{.n_prompt = 100, .decode_kv_len = 64, .prefill_pair_s = 1e-6};
  for (const double factor : {1.0, 0.9, 1.2, 1.0, 1.0})
    speed.rounds.push_back(
        {.decode = {0.010 * factor, 0.016 * factor, 0.040 * factor}, .kv_token = 1e-6, .prefill = 0.5 * factor});
  EXPECT_DOUBLE_EQ(speed.step_s(1, 64).value, 0.010);
  EXPECT_DOUBLE_EQ(speed.step_s(1, 64).low, 0.009);
  EXPECT_DOUBLE_EQ(speed.step_s(1, 64).high, 0.012);
  EXPECT_DOUBLE_EQ(speed.step_s(1, 1064).value, 0.011);
  EXPECT_NEAR(speed.step_s(4, 1064).value, 0.020, 1e-12);
  EXPECT_NEAR(speed.step_s(10, 64).value, 0.028, 1e-12);  // halfway between 4 and 16
  EXPECT_NEAR(speed.step_s(28, 64).value, 0.064, 1e-12);  // the same slope beyond
  EXPECT_DOUBLE_EQ(speed.prefill_s(100, 512).value, 0.5);
  EXPECT_DOUBLE_EQ(speed.prefill_s(50, 512).value, 0.25);
  EXPECT_DOUBLE_EQ(speed.prefill_s(1, 512).value, 0.010);  // not faster than one step
  EXPECT_NEAR(speed.prefill_s(200, 512).value, 1.0 + 200 * 100 / 2 * 1e-6, 1e-12);
  const SpeedPoint point = speed.point(4, 64);
  EXPECT_DOUBLE_EQ(point.tok_per_s_total.value, 250);
  EXPECT_DOUBLE_EQ(point.tok_per_s_user.value, 62.5);
  EXPECT_LT(point.tok_per_s_total.low, 250);
  const SpeedCurve curve = speed_curve([&](std::int64_t n) { return speed.point(n, 64); }, 64, 0.0301);
  EXPECT_EQ(curve.within_goal, 11);
  EXPECT_EQ(curve.points.size(), 7u);
  EXPECT_EQ(curve.knee, 16);
}

TEST(Calibration, IsRefusedWhereTheEngineDoesNotRunOrTheSliceIsTooLarge) {
  const auto models = *read_known_models();
  EXPECT_FALSE(calibrate_host(*find_known_shape(models, "r1"), *find_quantisation("q4_k_m"), {}));
  EXPECT_FALSE(calibrate_host(*find_known_shape(models, "7b"), *find_quantisation("own"), {}));
  EXPECT_FALSE(calibrate_host(*find_known_shape(models, "7b"), *find_quantisation("q4_k_m"), {.n_prompt = 0}));
  const auto large =
      calibrate_host(*find_known_shape(models, "70b"), *find_quantisation("f16"), {.max_slice_bytes = 1 << 20});
  ASSERT_FALSE(large);
  EXPECT_EQ(large.error().code, Code::kResourceExhausted);
}

}  // namespace
}  // namespace still

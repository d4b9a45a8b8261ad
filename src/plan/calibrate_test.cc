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
  EXPECT_GT(speed->decode_tok_per_s, 0);
  // A prompt's tokens share the weights: never slower a token than decoding, within noise.
  EXPECT_GT(speed->prefill_tok_per_s, 0.5 * speed->decode_tok_per_s);
  EXPECT_GT(speed->slice_bytes, 0);
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

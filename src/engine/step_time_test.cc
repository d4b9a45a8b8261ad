// StepTime against a machine whose step takes base + rows / rate seconds.
#include "engine/step_time.h"

#include <gtest/gtest.h>

namespace still {
namespace {

struct Machine {
  double base = 0.02, rate = 500;  // of a step, seconds; rows a second
  double step(std::int64_t n_rows) const { return base + static_cast<double>(n_rows) / rate; }
};

// Steps of one kind, each with as many prompt tokens as it may have; the last one's seconds.
double run(StepTime& time, const Machine& machine, std::int64_t n_decode, std::int64_t n_behind, int n_steps) {
  double seconds = 0;
  for (int i = 0; i < n_steps; ++i) {
    const std::int64_t n_prefill = n_behind == 0 ? 0 : time.affordable_prefill(n_decode, n_behind);
    seconds = machine.step(n_decode + n_prefill);
    time.observe(n_decode, n_prefill, seconds);
  }
  return seconds;
}

TEST(StepTime, FirstChunkIsSmallThenFitsTheTarget) {
  StepTime time({.target_s = 0.2, .good_chunk = 20});
  EXPECT_EQ(time.affordable_prefill(0, 1), 20);
  EXPECT_NEAR(run(time, {}, 0, 1, 20), 0.2, 0.01);
  EXPECT_NEAR(run(time, {.base = 0.02, .rate = 5000}, 0, 1, 40), 0.2, 0.01) << "the machine became faster";
}

TEST(StepTime, AChunkIsLongEnoughForTheUnpackingOfTheWeightsToPay) {
  StepTime time({.target_s = 0.2, .good_chunk = 128});
  const Machine slow{.base = 0.1, .rate = 100};
  EXPECT_NEAR(run(time, slow, 0, 1, 20), slow.step(128), 0.01);
}

TEST(StepTime, ThoseThatDecodeAreStalledByNoMoreThanTheirMultiple) {
  StepTime time({.target_s = 10, .max_stall = 2.3});
  const Machine machine;
  const double calm = run(time, machine, 4, 0, 20);
  EXPECT_NEAR(run(time, machine, 4, 1, 60) / calm, 2.3, 0.1);
  EXPECT_NEAR(run(time, machine, 4, 4, 60) / calm, 2.3, 0.1);
}

TEST(StepTime, ManyThatWaitForTheirFirstTokenOutweighFewThatDecode) {
  StepTime time({.target_s = 0.25, .good_chunk = 16, .max_stall = 2.3});
  const Machine machine{.base = 0.02, .rate = 1000};
  const double calm = run(time, machine, 4, 0, 20);
  EXPECT_NEAR(run(time, machine, 4, 8, 60) / calm, 4.6, 0.2);
  EXPECT_NEAR(run(time, machine, 4, 1000, 60), 0.25, 0.01) << "but a step has its target";
}

TEST(StepTime, DecodesOfAnotherNumberAreRemembered) {
  StepTime time({.target_s = 10, .max_stall = 2, .min_chunk = 16});
  const Machine machine{.base = 0.001, .rate = 1000};
  const double one = run(time, machine, 1, 0, 20), many = run(time, machine, 16, 0, 20);
  EXPECT_GT(many, 5 * one);
  EXPECT_NEAR(run(time, machine, 16, 1, 60) / many, 2, 0.2);
  EXPECT_NEAR(run(time, machine, 1, 1, 1), machine.step(17), 0.001) << "16 tokens go on whatever the limits say";
}

TEST(StepTime, ChunksFillTheGroupsThatTheProductsComputeTogether) {
  for (const std::int64_t n_decode : {1, 2, 3, 4, 5, 8, 15, 16}) {
    StepTime time({.target_s = 10, .max_stall = 2.2, .row_group = 4});
    // Any row of a group costs as much as all of it.
    const auto step = [](std::int64_t n_rows) { return 0.004 + 0.02 * static_cast<double>((n_rows + 3) / 4); };
    for (int i = 0; i < 20; ++i) time.observe(n_decode, 0, step(n_decode));
    for (int i = 0; i < 60; ++i) {
      const std::int64_t n = time.affordable_prefill(n_decode, 1);
      if (i > 0) {
        EXPECT_EQ((n_decode + n) % 4, 0) << n_decode << " and " << n;
      }
      EXPECT_GE(n, 3) << n_decode;
      time.observe(n_decode, n, step(n_decode + n));
      // A prompt's last tokens are fewer.
      time.observe(n_decode, 1, step(n_decode + 1));
    }
    const std::int64_t n = time.affordable_prefill(n_decode, 1);
    // One group beside one group is the least where its own has too little room.
    EXPECT_LE(step(n_decode + n), 2.2 * step(n_decode)) << n_decode << " and " << n;
    EXPECT_GT(step(n_decode + n + 4), 2.2 * step(n_decode)) << n_decode << " and " << n;
  }
}

TEST(StepTime, NoLimits) {
  StepTime time({.target_s = 0, .max_stall = 0});
  EXPECT_GT(time.affordable_prefill(0, 1), 1 << 30);
  time.observe(3, 0, 0.01);
  time.observe(0, 100, 0.01);
  EXPECT_GT(time.affordable_prefill(3, 1), 1 << 30);
  EXPECT_GT(StepTime({.target_s = 0}).affordable_prefill(0, 1), 1 << 30) << "alone nobody is stalled";
}

}  // namespace
}  // namespace still

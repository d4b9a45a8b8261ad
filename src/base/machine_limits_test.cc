#include "base/machine_limits.h"

#include <gtest/gtest.h>

namespace still {
namespace {

TEST(MachineLimits, ReadBandwidthIsPlausible) {
  ThreadPool one({.n_threads = 1, .pin = false});
  const Result<double> bandwidth = measure_read_bandwidth(one, std::int64_t{64} << 20);
  ASSERT_TRUE(bandwidth) << bandwidth.error().message;
  EXPECT_GT(*bandwidth, 1e8);   // a floppy is slower, everything that runs this is faster
  EXPECT_LT(*bandwidth, 2e12);  // more than any one core reads
}

TEST(MachineLimits, MoreMemoryThanThereIsIsAnError) {
  ThreadPool one({.n_threads = 1, .pin = false});
  const Result<double> bandwidth = measure_read_bandwidth(one, std::int64_t{1} << 60);
  ASSERT_FALSE(bandwidth);
  EXPECT_EQ(bandwidth.error().code, Code::kResourceExhausted);
}

}  // namespace
}  // namespace still

#include "tensor/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/rng.h"

namespace still {
namespace {

// The value of a half in double, from its fields.
double f16_value(std::uint16_t half) {
  const int exponent = (half >> 10) & 31, mantissa = half & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return half & 0x8000 ? -magnitude : magnitude;
}

TEST(Float16, EveryHalfConvertsAndComesBack) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = f16_to_f32(half);
    if ((half & 0x7c00) != 0x7c00) {
      EXPECT_EQ(static_cast<double>(value), f16_value(half)) << bits;
      EXPECT_EQ(std::signbit(value), (half & 0x8000) != 0);
      EXPECT_EQ(f32_to_f16(value), half);
    } else if ((half & 0x03ff) == 0) {
      EXPECT_TRUE(std::isinf(value));
      EXPECT_EQ(f32_to_f16(value), half);
    } else {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(f32_to_f16(value), half | 0x0200);  // quiet, payload kept
    }
  }
}

TEST(Float16, RoundsToNearestEven) {
  for (std::uint32_t bits = 0; bits < 0x7bff; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const double low = f16_value(half), high = f16_value(static_cast<std::uint16_t>(half + 1));
    const auto middle = static_cast<float>((low + high) / 2);  // exact: f32 has room
    const std::uint16_t even = half % 2 == 0 ? half : static_cast<std::uint16_t>(half + 1);
    EXPECT_EQ(f32_to_f16(middle), even);
    EXPECT_EQ(f32_to_f16(-middle), even | 0x8000);
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 0.0f)), half);
    EXPECT_EQ(f32_to_f16(std::nextafter(middle, 1e9f)), half + 1);
  }
  EXPECT_EQ(f32_to_f16(65519.99f), 0x7bff);
  EXPECT_EQ(f32_to_f16(65520.0f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(BFloat16, RoundsToNearestEvenAndKeepsNaN) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto upper = static_cast<std::uint16_t>(bits);
    const float value = bf16_to_f32(upper);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(value))));
      continue;
    }
    EXPECT_EQ(f32_to_bf16(value), upper);
    if ((upper & 0x7f80) == 0x7f80) continue;
    const float middle = std::bit_cast<float>((bits << 16) | 0x8000u);
    EXPECT_EQ(f32_to_bf16(middle), upper + (upper & 1));
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>((bits << 16) | 0x7fffu)), upper);
    EXPECT_EQ(f32_to_bf16(std::bit_cast<float>((bits << 16) | 0x8001u)), upper + 1);
  }
}

}  // namespace
}  // namespace still

// Products of bfloat16 weights on the matrix unit, which have an order of their own: within their error bound of the
// exact sum, and a row's bits the same whatever is computed with it. With an emulated unit everywhere, and on the unit
// itself where there is one.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/testing.h"

namespace still {

void emulated_bf16_linear(const LinearArgs& args);  // cpu/avx2/emulated_bf16_tiles_test.cc

namespace {

using testing::AlignedBytes;
using testing::random_floats;

using Linear = void (*)(const LinearArgs&);

bool has(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}
std::vector<std::string> units() {
  std::vector<std::string> names;
  if (has(available_isas(), "avx2")) names.emplace_back("emulated");
  if (has(inexact_isas(), "amx_bf16")) names.emplace_back("amx_bf16");
  return names;
}

class Bf16TilesTest : public ::testing::TestWithParam<std::string> {
 protected:
  Bf16TilesTest()
      : linear(GetParam() == "emulated"
                   ? emulated_bf16_linear
                   : (*select_cpu_kernels(GetParam()))->linear[static_cast<int>(PackedFormat::kBF16)]),
        seed([] {
          const char* given = std::getenv("STILL_TEST_SEED");
          return given != nullptr ? std::strtoull(given, nullptr, 10) : 20261127ull;
        }()),
        rng(seed) {
    std::printf("seed %llu (STILL_TEST_SEED sets another)\n", static_cast<unsigned long long>(seed));
  }

  // Rows of x by the panels [begin, end); y is wider than n_out and starts as -7.
  std::vector<float> product(const testing::PackedMatrix& w, const float* x, std::int64_t n_rows, std::int64_t begin,
                             std::int64_t end) const {
    static const AlignedBytes scratch(kLinearScratchBytes);
    std::vector<float> y(static_cast<std::size_t>(n_rows * (w.n_out + 3)), -7.0f);
    std::memset(scratch.data(), 0xff, static_cast<std::size_t>(kLinearScratchBytes));  // NaNs
    LinearArgs args{};
    args.weights = w.packed.data();
    args.panel_bytes = w.panel_bytes;
    args.panel_begin = begin;
    args.panel_end = end;
    args.n_out = w.n_out;
    args.k = w.k;
    args.x_f32 = x;
    args.x_stride = w.k;
    args.n_rows = n_rows;
    args.y = y.data();
    args.y_stride = w.n_out + 3;
    args.scratch = scratch.data();
    linear(args);
    return y;
  }

  Linear linear;
  unsigned long long seed;
  Rng rng;
};
INSTANTIATE_TEST_SUITE_P(Unit, Bf16TilesTest, ::testing::ValuesIn(units()),
                         [](const auto& info) { return info.param; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16TilesTest);

// The bound that linear_bf16_tiles.h states; the last term is what subnormal numbers can make.
double error_bound(const std::vector<float>& w, const float* x) {
  double size = 0, tiny = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double a = std::abs(double{w[i]}), b = std::abs(double{x[i]});
    size += a * b;
    tiny += std::ldexp(a + b + 3, -126);
  }
  const double n_roundings = 17 + 2 * std::ceil(static_cast<double>(w.size()) / 32);
  return size * (std::ldexp(1, -17) + 1.01 * n_roundings * std::ldexp(1, -24)) + tiny;
}

TEST_P(Bf16TilesTest, ErrorsStayWithinTheBound) {
  double worst = 0;
  for (const std::int64_t k : {1, 7, 31, 32, 33, 96, 512, 896, 1000, 3104}) {
    for (const std::int64_t n_out : {1, 16, 17, 48, 100}) {
      const testing::PackedMatrix w = testing::random_packed_matrix(rng, PackedFormat::kBF16, n_out, k);
      std::vector<std::int64_t> counts{1, 2 + rng.below(30)};
      if (n_out == 48) counts = {1, 15, 16, 17, 32, 33, 50, 96, 97, 130};
      for (const std::int64_t n_rows : counts) {
        std::vector<float> x = random_floats(rng, n_rows * k);
        for (float& value : x)
          if (rng.below(50) == 0) value = std::ldexp(value, static_cast<int>(rng.below(250)) - 200);
        const std::vector<float> y = product(w, x.data(), n_rows, 0, w.n_panels());
        for (std::int64_t o = 0; o < n_out; ++o) {
          const std::vector<float> row = w.decoded_row(o);
          for (std::int64_t r = 0; r < n_rows; ++r) {
            double want = 0;
            for (std::int64_t i = 0; i < k; ++i)
              want += double{row[static_cast<std::size_t>(i)]} * double{x[static_cast<std::size_t>(r * k + i)]};
            const double error = std::abs(double{y[static_cast<std::size_t>(r * (n_out + 3) + o)]} - want);
            const double bound = error_bound(row, x.data() + r * k);
            ASSERT_LE(error, bound) << fmt::format("[{}, {}] x {} rows, row {} element {}, exact {}", n_out, k, n_rows,
                                                   r, o, want);
            worst = std::max(worst, error / bound);
          }
        }
        for (std::int64_t r = 0; r < n_rows; ++r)
          for (std::int64_t o = n_out; o < n_out + 3; ++o)
            ASSERT_EQ(y[static_cast<std::size_t>(r * (n_out + 3) + o)], -7) << "written past the matrix";
      }
    }
  }
  std::printf("largest error, of what the bound allows: %.2f\n", worst);
}

TEST_P(Bf16TilesTest, RowsDoNotDependOnWhatIsComputedWithThem) {
  for (const std::int64_t k : {96, 1111, 4864}) {
    const std::int64_t n_out = 77, n_rows = 131, stride = n_out + 3;
    const testing::PackedMatrix w = testing::random_packed_matrix(rng, PackedFormat::kBF16, n_out, k);
    const std::vector<float> x = random_floats(rng, n_rows * k);
    const std::vector<float> all = product(w, x.data(), n_rows, 0, w.n_panels());
    for (const std::int64_t n : {1, 3, 16, 20, 40, 96}) {
      const std::int64_t first = rng.below(n_rows - n + 1);
      const std::vector<float> some = product(w, x.data() + first * k, n, 0, w.n_panels());
      ASSERT_EQ(std::memcmp(some.data(), all.data() + first * stride, some.size() * 4), 0)
          << fmt::format("k {}, {} rows from {}", k, n, first);
    }
    // Panels 1 to 3: the others stay as they were.
    const std::vector<float> part = product(w, x.data(), n_rows, 1, 4);
    for (std::int64_t r = 0; r < n_rows; ++r)
      for (std::int64_t o = 0; o < stride; ++o) {
        const auto at = static_cast<std::size_t>(r * stride + o);
        ASSERT_EQ(part[at], o >= 16 && o < 64 ? all[at] : -7) << fmt::format("k {}, row {} element {}", k, r, o);
      }
  }
}

TEST_P(Bf16TilesTest, WhatIsNotFiniteStaysInItsRow) {
  const std::int64_t k = 200, n_out = 20, n_rows = 3, stride = n_out + 3;
  const testing::PackedMatrix w = testing::random_packed_matrix(rng, PackedFormat::kBF16, n_out, k);
  std::vector<float> x = random_floats(rng, n_rows * k);
  const std::vector<float> before = product(w, x.data(), n_rows, 0, w.n_panels());
  x[77] = std::numeric_limits<float>::infinity();
  x[static_cast<std::size_t>(2 * k + 199)] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = product(w, x.data(), n_rows, 0, w.n_panels());
  for (std::int64_t o = 0; o < n_out; ++o) {
    EXPECT_FALSE(std::isfinite(y[static_cast<std::size_t>(o)]));
    EXPECT_EQ(y[static_cast<std::size_t>(stride + o)], before[static_cast<std::size_t>(stride + o)]);
    EXPECT_FALSE(std::isfinite(y[static_cast<std::size_t>(2 * stride + o)]));
  }
}

}  // namespace
}  // namespace still

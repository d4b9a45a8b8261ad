#include "ops/screened_head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <string_view>

#include "ops/linear.h"
#include "ops/testing.h"

namespace still {
namespace {

using namespace still::testing;
constexpr PackedFormat kFormats[] = {PackedFormat::kQ8_0, PackedFormat::kQ6_K, PackedFormat::kF16, PackedFormat::kBF16,
                                     PackedFormat::kF32};

struct Case {
  PackedMatrix matrix;
  Weight head;
  FloatTensor norm;
};
Case make_case(Rng& rng, PackedFormat format, std::int64_t n_out, std::int64_t k) {
  Case c{random_packed_matrix(rng, format, n_out, k), {}, random_tensor(rng, {k})};
  c.head = weight_of(c.matrix);
  return c;
}

// With its copy of the head made.
ScreenedHead built_screen(Exec& exec, Case& c) {
  ScreenedHead screen = *ScreenedHead::create(c.head.n_out, c.head.k);
  screen.build(exec, c.head, c.norm.view());
  return screen;
}

std::uint64_t test_seed() {
  const char* given = std::getenv("STILL_TEST_SEED");
  return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
}

// Nothing banned, for n_rows rows.
std::vector<std::int32_t> no_bans(std::int64_t n_rows) {
  return std::vector<std::int32_t>(static_cast<std::size_t>(n_rows + 1), 0);
}

// The largest allowed element of every row and its bits are the full product's, elements that are not -infinity too.
void expect_best(const FloatTensor& full, const FloatTensor& screened, const BestOnly& best) {
  const std::int64_t n_rows = full.shape[0], n_out = full.shape[1];
  for (std::int64_t r = 0; r < n_rows; ++r) {
    SCOPED_TRACE("row " + std::to_string(r));
    std::vector<bool> is_banned(static_cast<std::size_t>(n_out));
    for (std::int32_t i = best.banned_begin[static_cast<std::size_t>(r)];
         i < best.banned_begin[static_cast<std::size_t>(r + 1)]; ++i)
      is_banned[static_cast<std::size_t>(best.banned[static_cast<std::size_t>(i)])] = true;
    float largest = -std::numeric_limits<float>::infinity();
    for (std::int64_t i = 0; i < n_out; ++i)
      if (!is_banned[static_cast<std::size_t>(i)]) largest = std::max(largest, full.at(r, i));
    for (std::int64_t i = 0; i < n_out; ++i) {
      if (is_banned[static_cast<std::size_t>(i)]) continue;
      const float a = full.at(r, i), b = screened.at(r, i);
      if (a != largest && b == -std::numeric_limits<float>::infinity()) continue;
      ASSERT_EQ(std::memcmp(&a, &b, sizeof a), 0) << "element " << i << ": " << a << " and " << b;
    }
  }
}

TEST(ScreenedHead, BestLogitsAreTheFullProductsOnEveryTableAndThreadCount) {
  const std::uint64_t seed = test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  ExecOptions options;
  options.max_k = 1024 + ScreenedHead::kMostTwice;
  const auto execs = all_execs(options);
  std::int64_t n_panels = 0, n_exact = 0;
  for (const PackedFormat format : kFormats) {
    SCOPED_TRACE(static_cast<int>(format));
    std::int64_t n_screened = 0;
    for (const auto& [n_out, k] : {std::pair<std::int64_t, std::int64_t>{1, 256}, {16, 256}, {333, 512}, {4099, 768}}) {
      SCOPED_TRACE(std::to_string(n_out) + " x " + std::to_string(k));
      Case c = make_case(rng, format, n_out, k);
      for (const auto& exec : execs) {
        SCOPED_TRACE(std::string(exec->kernels().name) + " threads " + std::to_string(exec->n_threads()));
        ScreenedHead screen = built_screen(*exec, c);
        for (std::int64_t n_rows = 1; n_rows <= ScreenedHead::kMaxRows; ++n_rows) {
          FloatTensor x = random_tensor(rng, {n_rows, k});
          // Like a state that the head knows: near one of its rows.
          const std::vector<float> row = c.matrix.decoded_row(rng.below(n_out));
          for (std::int64_t i = 0; i < n_rows * k; ++i)
            x.values[static_cast<std::size_t>(i)] += 40 * row[static_cast<std::size_t>(i % k)];
          FloatTensor full({n_rows, n_out}), screened({n_rows, n_out});
          linear(*exec, x.view(), {{full.view(), &c.head, {}}});
          const auto begin = no_bans(n_rows);
          if (!screen.best_only(*exec, screened.view(), x.view(), c.head, c.norm.view(), {begin, {}})) continue;
          expect_best(full, screened, {begin, {}});
          ++n_screened;
        }
        n_panels += screen.stats().n_panels;
        n_exact += screen.stats().n_exact_panels;
      }
    }
    EXPECT_GT(n_screened, 0);
  }
  EXPECT_GT(n_panels, 0);
  EXPECT_LT(n_exact, n_panels / 2);  // that something is screened at all
}

TEST(ScreenedHead, BannedRowsAreNotTheBest) {
  Rng rng(5);
  Case c = make_case(rng, PackedFormat::kQ8_0, 1000, 256);
  const auto exec = make_exec(*default_cpu_kernels(), 2);
  ScreenedHead screen = built_screen(*exec, c);
  FloatTensor x({2, 256});
  const std::vector<float> row = c.matrix.decoded_row(700);
  for (std::size_t i = 0; i < 512; ++i) x.values[i] = 30 * row[i % 256] + 0.1f * static_cast<float>(rng.below(100));
  FloatTensor full({2, 1000}), screened({2, 1000});
  linear(*exec, x.view(), {{full.view(), &c.head, {}}});
  const std::int64_t best = exec->kernels().argmax(full.view().f32(), 1000);
  const std::vector<std::int32_t> begin = {0, 3, 4};
  const std::vector<std::int32_t> banned = {static_cast<std::int32_t>(best), 0, 999, 5};
  ASSERT_TRUE(screen.best_only(*exec, screened.view(), x.view(), c.head, c.norm.view(), {begin, banned}));
  expect_best(full, screened, {begin, banned});
  // All rows banned: nothing can be said, the full product is wanted.
  std::vector<std::int32_t> all(1000);
  for (std::int32_t i = 0; i < 1000; ++i) all[static_cast<std::size_t>(i)] = i;
  const std::vector<std::int32_t> all_begin = {0, 0, 1000};
  EXPECT_FALSE(screen.best_only(*exec, screened.view(), x.view(), c.head, c.norm.view(), {all_begin, all}));
}

// Rows that are equal have equal logits: all of them stay, so that the first is chosen as always.
TEST(ScreenedHead, TiesStay) {
  Rng rng(6);
  const std::int64_t n_out = 480, k = 256;
  Case c = make_case(rng, PackedFormat::kQ8_0, n_out, k);
  auto& rows = c.matrix.file_rows;
  const auto row_bytes = static_cast<std::size_t>(c.matrix.row_bytes());
  for (const std::size_t copy : {17u, 211u, 479u})
    std::memcpy(&rows[copy * row_bytes], &rows[100 * row_bytes], row_bytes);
  const auto exec = make_exec(*default_cpu_kernels(), 2);
  exec->kernels().pack[static_cast<int>(PackedFormat::kQ8_0)]({.source = rows.data(),
                                                               .row_map = nullptr,
                                                               .row_bytes = c.matrix.row_bytes(),
                                                               .n_out = n_out,
                                                               .k = k,
                                                               .panel_begin = 0,
                                                               .panel_end = c.matrix.n_panels(),
                                                               .packed = c.matrix.packed.data(),
                                                               .panel_bytes = c.matrix.panel_bytes});
  ScreenedHead screen = built_screen(*exec, c);
  FloatTensor x({1, k}, 0.0f), full({1, n_out}), screened({1, n_out});
  const std::vector<float> row = c.matrix.decoded_row(100);
  for (std::size_t i = 0; i < row.size(); ++i) x.values[i] = 30 * row[i];
  linear(*exec, x.view(), {{full.view(), &c.head, {}}});
  const auto begin = no_bans(1);
  ASSERT_TRUE(screen.best_only(*exec, screened.view(), x.view(), c.head, c.norm.view(), {begin, {}}));
  expect_best(full, screened, {begin, {}});
  EXPECT_EQ(exec->kernels().argmax(screened.view().f32(), n_out), 17);
  EXPECT_EQ(exec->kernels().argmax(full.view().f32(), n_out), 17);
}

// The full product in double, with activations as its kernel sees them.
std::vector<double> product(const PackedMatrix& matrix, const FloatTensor& x) {
  const std::int32_t block = activation_block(matrix.format);
  QuantizedActivations seen;
  if (block != 0) seen = quantize_activations(x.values, 1, matrix.k, block);
  std::vector<double> y(static_cast<std::size_t>(matrix.n_out));
  for (std::int64_t r = 0; r < matrix.n_out; ++r) {
    const std::vector<float> w = matrix.decoded_row(r);
    for (std::int64_t i = 0; i < matrix.k; ++i)
      y[static_cast<std::size_t>(r)] += static_cast<double>(w[static_cast<std::size_t>(i)]) *
                                        static_cast<double>(block == 0 ? x.at(0, i) : seen.value(0, i));
  }
  return y;
}

// The bound holds for the exact product in f32 and in double, where activations were made to reach it: along what the
// copy leaves of a row. That is found by taking unit vectors through the coarse product.
TEST(ScreenedHead, BoundHoldsAgainstActivationsThatReachIt) {
  const std::uint64_t seed = test_seed();
  SCOPED_TRACE(seed);
  Rng rng(seed);
  ExecOptions options;
  options.max_k = 1024;
  const std::int64_t n_out = 40, k = 512;
  for (const PackedFormat format : kFormats) {
    SCOPED_TRACE(static_cast<int>(format));
    Case c = make_case(rng, format, n_out, k);
    const auto exec = make_exec(*default_cpu_kernels(), 1, options);
    ScreenedHead screen = built_screen(*exec, c);
    FloatTensor coarse({1, n_out}), full({1, n_out});
    std::vector<float> bounds(static_cast<std::size_t>(n_out));
    std::vector<std::vector<float>> left(static_cast<std::size_t>(n_out));
    for (std::int64_t r = 0; r < n_out; ++r) left[static_cast<std::size_t>(r)] = c.matrix.decoded_row(r);
    for (std::int64_t i = 0; i < k; ++i) {
      FloatTensor unit({1, k}, 0.0f);
      unit.values[static_cast<std::size_t>(i)] = 1;
      screen.coarse(*exec, coarse.view(), unit.view(), c.head, bounds.data());
      for (std::int64_t r = 0; r < n_out; ++r)
        left[static_cast<std::size_t>(r)][static_cast<std::size_t>(i)] -= coarse.at(0, r);
    }
    double tightest = 0;
    for (std::int64_t r = 0; r < n_out; ++r) {
      for (const float size : {1e-6f, 1.0f, 1e5f}) {
        for (const bool is_random : {false, true}) {
          FloatTensor x({1, k});
          for (std::size_t i = 0; i < static_cast<std::size_t>(k); ++i)
            x.values[i] = size * (is_random ? left[static_cast<std::size_t>(rng.below(n_out))][i]
                                            : left[static_cast<std::size_t>(r)][i]);
          screen.coarse(*exec, coarse.view(), x.view(), c.head, bounds.data());
          linear(*exec, x.view(), {{full.view(), &c.head, {}}});
          const std::vector<double> expected = product(c.matrix, x);
          for (std::int64_t i = 0; i < n_out; ++i) {
            const double bound = static_cast<double>(bounds[static_cast<std::size_t>(i)]);
            const double in_f32 = std::fabs(static_cast<double>(full.at(0, i)) - static_cast<double>(coarse.at(0, i)));
            ASSERT_LE(in_f32, bound) << "row " << i << " of " << r;
            ASSERT_LE(std::fabs(expected[static_cast<std::size_t>(i)] - static_cast<double>(coarse.at(0, i))), bound);
            tightest = std::max(tightest, in_f32 / bound);
          }
        }
      }
    }
    EXPECT_GT(tightest, 0.8);  // that the activations are adversarial, and the bound no wider than it must be
  }
}

TEST(ScreenedHead, ActivationsThatAreNotFiniteGoTheFullWay) {
  Rng rng(7);
  Case c = make_case(rng, PackedFormat::kQ8_0, 100, 256);
  const auto exec = make_exec(*default_cpu_kernels(), 2);
  ScreenedHead screen = built_screen(*exec, c);
  FloatTensor y({1, 100});
  const auto begin = no_bans(1);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    FloatTensor x = random_tensor(rng, {1, 256});
    x.values[200] = bad;
    EXPECT_FALSE(screen.best_only(*exec, y.view(), x.view(), c.head, c.norm.view(), {begin, {}}));
  }
  EXPECT_EQ(screen.stats().n_full, 2);
  FloatTensor many({ScreenedHead::kMaxRows + 1, 256}, 1.0f), many_y({ScreenedHead::kMaxRows + 1, 100});
  const auto many_begin = no_bans(ScreenedHead::kMaxRows + 1);
  EXPECT_FALSE(screen.best_only(*exec, many_y.view(), many.view(), c.head, c.norm.view(), {many_begin, {}}));
}

// Rows with weights that are not finite are multiplied in any case, and what they give is not lost.
TEST(ScreenedHead, WeightsThatAreNotFiniteStay) {
  Rng rng(8);
  const std::int64_t n_out = 320, k = 256;
  Case c = make_case(rng, PackedFormat::kF32, n_out, k);
  auto* weights = reinterpret_cast<float*>(c.matrix.packed.data());
  weights[3 * kPanelRows] = std::numeric_limits<float>::infinity();                            // row 0
  weights[5 * kPanelRows * k + 7 * kPanelRows + 2] = std::numeric_limits<float>::quiet_NaN();  // row 82
  const auto exec = make_exec(*default_cpu_kernels(), 2);
  ScreenedHead screen = built_screen(*exec, c);
  FloatTensor x({1, k}, 1.0f), full({1, n_out}), screened({1, n_out});
  linear(*exec, x.view(), {{full.view(), &c.head, {}}});
  const auto begin = no_bans(1);
  ASSERT_TRUE(screen.best_only(*exec, screened.view(), x.view(), c.head, c.norm.view(), {begin, {}}));
  EXPECT_EQ(screened.at(0, 0), full.at(0, 0));
  EXPECT_TRUE(std::isnan(screened.at(0, 82)));
}

// The copy is made in steps, which go the full way; where most panels are left it rests.
TEST(ScreenedHead, IsMadeInStepsAndRestsWhereItDoesNotPay) {
  Rng rng(9);
  Case c = make_case(rng, PackedFormat::kF32, 800, 256);
  // Rows that hardly differ: all logits lie near each other.
  auto* weights = reinterpret_cast<float*>(c.matrix.packed.data());
  for (std::int64_t i = 0; i < 800 * 256; ++i)
    weights[i] = std::sin(static_cast<float>(i / kPanelRows % 256)) + 1e-4f * static_cast<float>(i % 7);
  const auto exec = make_exec(*default_cpu_kernels(), 2);
  ScreenedHead screen = *ScreenedHead::create(800, 256);
  FloatTensor y({1, 800}), full({1, 800});
  const auto begin = no_bans(1);
  FloatTensor x = random_tensor(rng, {1, 256});
  linear(*exec, x.view(), {{full.view(), &c.head, {}}});
  std::int64_t n_before = 0, n_screened = 0, n_after = 0;
  for (int i = 0; i < 200; ++i) {
    const bool is_screened = screen.best_only(*exec, y.view(), x.view(), c.head, c.norm.view(), {begin, {}});
    if (is_screened) {
      ++n_screened;
      expect_best(full, y, {begin, {}});
    } else {
      ++(n_screened == 0 ? n_before : n_after);
    }
  }
  const char* wanted = std::getenv("STILL_SCREEN");
  const bool waits = wanted == nullptr || std::string_view(wanted) != "on";
  EXPECT_EQ(n_before, (waits ? ScreenedHead::kWaitSteps : 0) + ScreenedHead::kBuildSteps);
  EXPECT_GT(n_screened, 0);
  EXPECT_GE(n_after, 64);
  EXPECT_EQ(screen.stats().n_screened, n_screened);
  EXPECT_EQ(screen.stats().n_full, n_before + n_after);
}

}  // namespace
}  // namespace still

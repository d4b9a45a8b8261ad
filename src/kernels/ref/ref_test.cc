// The reference kernels against formulas in double, with bounds computed from the inputs: one rounding of a sum of n
// terms errs by at most about n eps sum|a_i b_i| (Higham 2002, chapter 3), with eps = 2^-24.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/packing.h"
#include "kernels/ref/float_math.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/testing.h"
#include "quant/registry.h"
#include "tensor/float16.h"

namespace still {
namespace {

using namespace still::testing;
constexpr double kEps = 0x1.0p-24;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr PackedFormat kAllFormats[] = {
    PackedFormat::kF32,  PackedFormat::kF16,  PackedFormat::kBF16, PackedFormat::kQ4_0,   PackedFormat::kQ4_1,
    PackedFormat::kQ5_0, PackedFormat::kQ5_1, PackedFormat::kQ8_0, PackedFormat::kIQ4_NL, PackedFormat::kQ2_K,
    PackedFormat::kQ3_K, PackedFormat::kQ4_K, PackedFormat::kQ5_K, PackedFormat::kQ6_K,   PackedFormat::kIQ4_XS};
static_assert(std::size(kAllFormats) == kPackedFormatCount);

TEST(Packing, EveryFormatHasItsFilesTypeAndAboutItsFilesSize) {
  for (PackedFormat format : kAllFormats) {
    SCOPED_TRACE(dtype_name(packed_dtype(format)));
    EXPECT_EQ(packed_format(packed_dtype(format)), format);
    EXPECT_NE(find_format(packed_dtype(format)), nullptr);
    const std::int64_t k = 1536, file_bytes = dtype_bytes(packed_dtype(format), k) * kPanelRows;
    EXPECT_EQ(packed_panel_bytes(format, k) % 64, 0);
    EXPECT_GE(packed_panel_bytes(format, k), file_bytes);
    EXPECT_LE(static_cast<double>(packed_panel_bytes(format, k)), 1.2 * static_cast<double>(file_bytes) + 64);
  }
  EXPECT_EQ(packed_format(DType::kIQ2_XXS), std::nullopt);
}

// Rows read back from panels equal the file's rows decoded by quant/, which equal the gguf package's.
TEST(Packing, PackedRowsDecodeLikeTheFile) {
  Rng rng(1);
  for (PackedFormat format : kAllFormats) {
    SCOPED_TRACE(dtype_name(packed_dtype(format)));
    for (std::int64_t n_out : {1, 16, 37}) {
      const std::int64_t k = activation_block(format) == 0 ? 7 : 3 * packed_tile_k(format);
      const PackedMatrix matrix = random_packed_matrix(rng, format, n_out, k);
      std::vector<float> want(static_cast<std::size_t>(k));
      for (std::int64_t row = 0; row < n_out; ++row) {
        find_format(packed_dtype(format))
            ->decode_row(matrix.file_rows.data() + row * matrix.row_bytes(), want.data(), k);
        EXPECT_EQ(std::memcmp(want.data(), matrix.decoded_row(row).data(), want.size() * 4), 0) << row;
      }
      // Padding rows are zero bytes: scale 0.
      const std::int64_t last = matrix.n_panels() * kPanelRows - 1;
      if (last >= n_out) {
        for (float value : matrix.decoded_row(last)) EXPECT_EQ(value, 0.0f);
      }
    }
  }
}

TEST(Packing, RowMapPermutesAndPanelsPackAlone) {
  Rng rng(2);
  const std::int64_t n_out = 40, k = 512;
  for (PackedFormat format : {PackedFormat::kQ4_K, PackedFormat::kF16, PackedFormat::kQ5_0}) {
    const PackedMatrix matrix = random_packed_matrix(rng, format, n_out, k);
    std::vector<std::int64_t> map(n_out);
    for (std::int64_t i = 0; i < n_out; ++i) map[static_cast<std::size_t>(i)] = (i * 7) % n_out;
    AlignedBytes packed(packed_bytes(format, n_out, k));
    std::memset(packed.data(), 0xaa, static_cast<std::size_t>(packed.size()));
    for (std::int64_t panel = 0; panel < 3; ++panel) {
      kRefKernels.pack[static_cast<int>(format)]({.source = matrix.file_rows.data(),
                                                  .row_map = map.data(),
                                                  .row_bytes = matrix.row_bytes(),
                                                  .n_out = n_out,
                                                  .k = k,
                                                  .panel_begin = panel,
                                                  .panel_end = panel + 1,
                                                  .packed = packed.data(),
                                                  .panel_bytes = matrix.panel_bytes});
    }
    std::vector<float> got(static_cast<std::size_t>(k));
    for (std::int64_t row = 0; row < n_out; ++row) {
      decode_packed_row(format, packed.data(), matrix.panel_bytes, k, row, got.data());
      EXPECT_EQ(got, matrix.decoded_row(map[static_cast<std::size_t>(row)]));
    }
    for (std::int64_t row = n_out; row < 48; ++row) {
      decode_packed_row(format, packed.data(), matrix.panel_bytes, k, row, got.data());
      for (float value : got) EXPECT_EQ(value, 0.0f);
    }
  }
}

TEST(QuantizeRows, ErrsByHalfAStepAndSumsItsBlocks) {
  Rng rng(3);
  for (std::int32_t block : {32, 256}) {
    const std::int64_t n_rows = 3, k = 768, stride = 800;
    const std::vector<float> x = random_floats(rng, n_rows * stride, 3.0f);
    std::vector<std::int8_t> q(static_cast<std::size_t>(n_rows * k));
    std::vector<float> scale(static_cast<std::size_t>(n_rows * k / block));
    std::vector<std::int16_t> sums(static_cast<std::size_t>(n_rows * k / 16));
    kRefKernels.quantize_rows(x.data(), stride, n_rows, k, block, q.data(), scale.data(), sums.data());
    for (std::int64_t i = 0; i < n_rows * k; ++i) {
      const double value = x[static_cast<std::size_t>(i / k * stride + i % k)];
      const double s = scale[static_cast<std::size_t>(i / block)];
      EXPECT_LE(std::fabs(value - s * q[static_cast<std::size_t>(i)]), 0.5 * s * (1 + 1e-4));
    }
    for (std::size_t i = 0; i < sums.size(); ++i) {
      int sum = 0;
      for (std::size_t j = 0; j < 16; ++j) sum += q[16 * i + j];
      EXPECT_EQ(sums[i], sum);
    }
  }
}

TEST(QuantizeRows, ZeroTinyHugeAndNaNBlocks) {
  std::vector<float> x(6 * 32, 0.0f);
  x[32] = 1e-40f;                             // too small to invert
  x[64] = std::numeric_limits<float>::max();  // 127 / x is subnormal or tiny
  x[96] = std::numeric_limits<float>::quiet_NaN();
  x[128] = -kInfinity;
  x[160] = -0x1.0p-120f;  // the smallest that counts
  const QuantizedActivations quantized = quantize_activations(x, 1, 192, 32);
  EXPECT_EQ(quantized.scale[0], 0.0f);
  EXPECT_EQ(quantized.scale[1], 0.0f);
  EXPECT_EQ(quantized.q[32], 0);
  EXPECT_EQ(quantized.q[64], 127);
  EXPECT_TRUE(std::isnan(quantized.scale[3]) && std::isnan(quantized.scale[4]));
  EXPECT_EQ(quantized.q[96], 0);
  EXPECT_EQ(quantized.q[160], -127);
}

TEST(Linear, EveryFormatMatchesDecodedWeights) {
  Rng rng(4);
  for (PackedFormat format : kAllFormats) {
    SCOPED_TRACE(dtype_name(packed_dtype(format)));
    for (const auto& [n_out, n_rows, n_blocks] : {std::tuple{1, 1, 1}, {16, 2, 3}, {35, 3, 4}}) {
      const std::int32_t block = activation_block(format);
      const std::int64_t k = block == 0 ? 77 * n_blocks : n_blocks * block;
      const PackedMatrix matrix = random_packed_matrix(rng, format, n_out, k);
      const std::vector<float> x = random_floats(rng, n_rows * k);
      const std::int64_t y_stride = n_out + 3;
      std::vector<float> y(static_cast<std::size_t>(n_rows * y_stride), -7.0f);
      QuantizedActivations quantized;
      if (block != 0) quantized = quantize_activations(x, n_rows, k, block);
      LinearArgs args{.weights = matrix.packed.data(),
                      .panel_bytes = matrix.panel_bytes,
                      .panel_begin = 0,
                      .panel_end = matrix.n_panels(),
                      .n_out = n_out,
                      .k = k,
                      .x = {},
                      .x_f32 = x.data(),
                      .x_stride = k,
                      .n_rows = n_rows,
                      .y = y.data(),
                      .y_stride = y_stride,
                      .scratch = nullptr};
      if (block != 0) args.x = quantized.view();
      kRefKernels.linear[static_cast<int>(format)](args);
      for (std::int64_t out = 0; out < n_out; ++out) {
        const std::vector<float> w = matrix.decoded_row(out);
        for (std::int64_t row = 0; row < n_rows; ++row) {
          double want = 0, size = 0, scale_size = 0;
          for (std::int64_t i = 0; i < k; ++i) {
            const double a = w[static_cast<std::size_t>(i)];
            const double b = block == 0 ? x[static_cast<std::size_t>(row * k + i)] : quantized.value(row, i);
            want += a * b;
            size += std::fabs(a * b);
          }
          // With a minimum, w = d q - m is a difference of larger terms, each rounded on its own: their size counts.
          if (block != 0) {
            for (std::int64_t i = 0; i < k; ++i) {
              double largest = 0;
              for (std::int64_t j = i / block * block; j < (i / block + 1) * block; ++j)
                largest = std::max(largest, std::fabs(static_cast<double>(w[static_cast<std::size_t>(j)])));
              scale_size += largest * std::fabs(quantized.value(row, i));
            }
          }
          // Roundings of an element's chain: one or two per block and of d s and the decoded weight; per k for floats.
          const double n_roundings = block == 0 ? static_cast<double>(k) : 2.0 * n_blocks + 6;
          EXPECT_NEAR(y[static_cast<std::size_t>(row * y_stride + out)], want,
                      n_roundings * kEps * (size + 2 * scale_size))
              << out << " " << row;
        }
      }
      for (std::int64_t row = 0; row < n_rows; ++row)
        for (std::int64_t i = n_out; i < y_stride; ++i)
          EXPECT_EQ(y[static_cast<std::size_t>(row * y_stride + i)], -7.0f);  // padding is not written
    }
  }
}

TEST(Linear, NaNActivationsStayVisible) {
  Rng rng(5);
  const PackedMatrix matrix = random_packed_matrix(rng, PackedFormat::kQ4_K, 16, 256);
  std::vector<float> x(256, 1.0f), y(16);
  x[9] = std::numeric_limits<float>::quiet_NaN();
  const QuantizedActivations quantized = quantize_activations(x, 1, 256, 256);
  kRefKernels.linear[static_cast<int>(PackedFormat::kQ4_K)]({.weights = matrix.packed.data(),
                                                             .panel_bytes = matrix.panel_bytes,
                                                             .panel_begin = 0,
                                                             .panel_end = 1,
                                                             .n_out = 16,
                                                             .k = 256,
                                                             .x = quantized.view(),
                                                             .x_f32 = nullptr,
                                                             .x_stride = 0,
                                                             .n_rows = 1,
                                                             .y = y.data(),
                                                             .y_stride = 16,
                                                             .scratch = nullptr});
  for (float value : y) EXPECT_TRUE(std::isnan(value));
}

TEST(Functions, ExpErrsByAtMostTwoUnitsInTheLastPlace) {
  double worst = 0;
  for (double x = -87.3; x < 88.7; x += 0.000931) {
    const auto arg = static_cast<float>(x);
    const double want = std::exp(static_cast<double>(arg));
    worst = std::max(worst, std::fabs(ref::exp_f32(arg) - want) / want);
  }
  std::printf("exp: worst relative error %.2f eps\n", worst / kEps);
  EXPECT_LE(worst, 4 * kEps);  // 2 units in the last place
  EXPECT_EQ(ref::exp_f32(0.0f), 1.0f);
  EXPECT_EQ(ref::exp_f32(-kInfinity), 0.0f);
  EXPECT_EQ(ref::exp_f32(-88.0f), 0.0f);
  EXPECT_EQ(ref::exp_f32(89.0f), kInfinity);
  EXPECT_TRUE(std::isfinite(ref::exp_f32(88.7228f)));
  EXPECT_TRUE(std::isnan(ref::exp_f32(std::numeric_limits<float>::quiet_NaN())));
}

TEST(Norm, MatchesTheFormula) {
  Rng rng(6);
  for (std::int64_t n : {1, 3, 15, 16, 17, 576, 1536}) {
    const auto size = static_cast<std::size_t>(n);
    const std::vector<float> x = random_floats(rng, n), w = random_floats(rng, n), delta = random_floats(rng, n);
    const float eps = 1e-5f;
    double squares = 0;
    for (float value : x) squares += static_cast<double>(value) * value;
    const double r = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
    std::vector<float> y(size);
    kRefKernels.rms_norm(x.data(), w.data(), y.data(), n, eps);
    const double bound = (static_cast<double>(n) / 16 + 16) * kEps;
    for (std::size_t i = 0; i < size; ++i) EXPECT_NEAR(y[i], x[i] * r * w[i], bound * std::fabs(x[i] * r * w[i]));
    std::vector<float> sum = x, y_sum(size), want(size);
    kRefKernels.add_rms_norm(sum.data(), delta.data(), w.data(), y_sum.data(), n, eps);
    for (std::size_t i = 0; i < size; ++i) EXPECT_EQ(sum[i], x[i] + delta[i]);
    kRefKernels.rms_norm(sum.data(), w.data(), want.data(), n, eps);
    EXPECT_EQ(y_sum, want);
    kRefKernels.rms_norm(sum.data(), w.data(), sum.data(), n, eps);  // in place
    EXPECT_EQ(sum, want);
  }
}

TEST(Swiglu, MatchesTheFormula) {
  Rng rng(7);
  const std::vector<float> gate = random_floats(rng, 1000, 5.0f), up = random_floats(rng, 1000);
  std::vector<float> y(1000);
  kRefKernels.swiglu(gate.data(), up.data(), y.data(), 1000);
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double want = gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i];
    EXPECT_NEAR(y[i], want, 8 * kEps * std::fabs(want));
  }
}

TEST(Rope, RotatesPairsAndHalvesAndCopiesTheRest) {
  Rng rng(8);
  const std::int32_t head_dim = 20, n_rot = 12;
  const std::int64_t n_heads = 3;
  std::vector<float> cos(6), sin(6);
  for (std::size_t i = 0; i < 6; ++i) {
    cos[i] = static_cast<float>(std::cos(0.3 * static_cast<double>(i + 1)));
    sin[i] = static_cast<float>(std::sin(0.3 * static_cast<double>(i + 1)));
  }
  const std::vector<float> x = random_floats(rng, n_heads * head_dim);
  for (bool pairs : {false, true}) {
    std::vector<float> y = x;
    kRefKernels.rope({.x = y.data(),
                      .y = y.data(),
                      .cos = cos.data(),
                      .sin = sin.data(),
                      .n_heads = n_heads,
                      .head_dim = head_dim,
                      .n_rot = n_rot,
                      .pairs = pairs});
    for (std::size_t h = 0; h < 3; ++h) {
      for (std::size_t i = 0; i < 6; ++i) {
        const std::size_t a = h * 20 + (pairs ? 2 * i : i), b = h * 20 + (pairs ? 2 * i + 1 : i + 6);
        const double size = std::fabs(x[a]) + std::fabs(x[b]);
        EXPECT_NEAR(y[a], static_cast<double>(x[a]) * cos[i] - static_cast<double>(x[b]) * sin[i], 2 * kEps * size);
        EXPECT_NEAR(y[b], static_cast<double>(x[a]) * sin[i] + static_cast<double>(x[b]) * cos[i], 2 * kEps * size);
      }
      for (std::size_t i = 12; i < 20; ++i) EXPECT_EQ(y[h * 20 + i], x[h * 20 + i]);
    }
  }
}

TEST(Reductions, ArgmaxTakesTheLowestIndexAndSkipsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> x = {nan, 1, 3, nan, 3, -kInfinity};
  EXPECT_EQ(kRefKernels.argmax(x.data(), 6), 2);
  EXPECT_EQ(kRefKernels.argmax(x.data(), 1), 0);
  const std::vector<float> low = {nan, -kInfinity, -kInfinity};
  EXPECT_EQ(kRefKernels.argmax(low.data(), 3), 1);
}

TEST(Reductions, LogSumExpAndShiftedExp) {
  Rng rng(9);
  for (std::int64_t n : {1, 15, 17, 1000, 49152}) {
    const std::vector<float> x = random_floats(rng, n, 4.0f);
    double max = x[0], sum = 0;
    for (float value : x) max = std::max(max, static_cast<double>(value));
    for (float value : x) sum += std::exp(value - max);
    const double want = std::log(sum) + max;
    EXPECT_NEAR(kRefKernels.log_sum_exp(x.data(), n), want,
                kEps * (static_cast<double>(n) / 16 + 12) + 2 * kEps * (std::fabs(want) + std::fabs(max)));
    std::vector<float> y(x.size());
    kRefKernels.exp_shifted(x.data(), 1.5f, y.data(), n);
    for (std::size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], ref::exp_f32(x[i] - 1.5f));
  }
}

// A cache of one head whose blocks lie in a scrambled order.
struct Cache {
  std::int64_t n_pos;
  std::vector<std::int32_t> table;
  AlignedBytes bytes;
  KvHeadView view;

  Cache(Rng& rng, std::int64_t n, std::int32_t head_dim, KvType type, std::int64_t block_size) : n_pos(n) {
    const std::int64_t n_blocks = (n + block_size - 1) / block_size;
    for (std::int64_t b = 0; b < n_blocks; ++b) table.push_back(static_cast<std::int32_t>(b));
    for (std::int64_t b = n_blocks - 1; b > 0; --b)
      std::swap(table[static_cast<std::size_t>(b)], table[static_cast<std::size_t>(rng.below(b + 1))]);
    const std::int64_t values = block_size * head_dim * (type == KvType::kF32 ? 4 : type == KvType::kF16 ? 2 : 1);
    const std::int64_t scales = type != KvType::kInt8 ? 0 : block_size * (head_dim / kv_group(head_dim)) * 2;
    const std::int64_t block_bytes = (2 * values + 2 * scales + 63) / 64 * 64;
    bytes = AlignedBytes(n_blocks * block_bytes);
    view = {bytes.data(),        block_bytes,  0,          values,   2 * values,
            2 * values + scales, table.data(), block_size, head_dim, type};
  }
};

// What the cache keeps of one group.
std::vector<double> stored(const std::vector<float>& x, std::int32_t head_dim, KvType type) {
  std::vector<double> result;
  const std::int32_t group = kv_group(head_dim);
  for (std::size_t at = 0; at < x.size(); at += static_cast<std::size_t>(group)) {
    float amax = 0;
    for (std::size_t i = at; i < at + static_cast<std::size_t>(group); ++i) amax = std::max(amax, std::fabs(x[i]));
    const float scale = f16_to_f32(f32_to_f16(amax / 127));
    for (std::size_t i = at; i < at + static_cast<std::size_t>(group); ++i) {
      if (type == KvType::kF32) {
        result.push_back(x[i]);
      } else if (type == KvType::kF16) {
        result.push_back(f16_to_f32(f32_to_f16(x[i])));
      } else {
        result.push_back(scale == 0 ? 0.0 : scale * std::fmin(127.0, std::fmax(-127.0, std::nearbyint(x[i] / scale))));
      }
    }
  }
  return result;
}

TEST(Attention, MatchesSoftmaxInDouble) {
  Rng rng(10);
  for (KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32}) {
    for (const auto& [n, head_dim, group, n_q, window] : {std::tuple{1, 8, 1, 1, 0},
                                                          {33, 64, 3, 5, 0},
                                                          {700, 32, 2, 40, 0},
                                                          {1100, 64, 1, 3, 0},
                                                          {1100, 16, 2, 4, 530},
                                                          {600, 80, 1, 2, 7}}) {
      SCOPED_TRACE(
          fmt::format("n {} head_dim {} n_q {} window {} type {}", n, head_dim, n_q, window, static_cast<int>(type)));
      Cache cache(rng, n, head_dim, type, n % 2 == 0 ? 64 : 32);
      const std::vector<float> k = random_floats(rng, n * head_dim), v = random_floats(rng, n * head_dim);
      for (std::int64_t pos = 0; pos < n; ++pos)
        kRefKernels.kv_write(cache.view, pos, k.data() + pos * head_dim, v.data() + pos * head_dim);
      const std::vector<double> kd = stored(k, head_dim, type), vd = stored(v, head_dim, type);
      const std::int64_t q_stride = group * head_dim + 5;
      const std::vector<float> q = random_floats(rng, n_q * q_stride, 2.0f);
      std::vector<float> out(static_cast<std::size_t>(n_q * group * head_dim));
      AttentionArgs args{.kv = cache.view,
                         .q = q.data(),
                         .q_stride = q_stride,
                         .group = group,
                         .n_q = n_q,
                         .q_pos = n - n_q,
                         .kv_begin = 0,
                         .kv_end = n,
                         .window = window,
                         .scale = 1 / std::sqrt(static_cast<float>(head_dim)),
                         .out = out.data(),
                         .out_stride = group * head_dim,
                         .m = nullptr,
                         .l = nullptr,
                         .finish = true,
                         .scratch = nullptr};
      kRefKernels.attention(args);
      for (std::int64_t i = 0; i < n_q; ++i) {
        const std::int64_t pos = n - n_q + i, first = window > 0 ? std::max<std::int64_t>(0, pos + 1 - window) : 0;
        for (std::int64_t h = 0; h < group; ++h) {
          std::vector<double> score;
          double max = -1e300, largest_size = 0;
          for (std::int64_t j = first; j <= pos; ++j) {
            double s = 0, size = 0;
            for (std::int64_t d = 0; d < head_dim; ++d) {
              const double term = q[static_cast<std::size_t>(i * q_stride + h * head_dim + d)] *
                                  kd[static_cast<std::size_t>(j * head_dim + d)];
              s += term;
              size += std::fabs(term);
            }
            score.push_back(s * args.scale);
            max = std::max(max, score.back());
            largest_size = std::max(largest_size, size * args.scale);
          }
          double sum = 0;
          for (double& s : score) sum += s = std::exp(s - max);
          // A score's error shifts its weight by that much; then sums over the positions and a few exponentials.
          const double relative =
              kEps * ((head_dim + 4) * largest_size * 2 + 0.25 * static_cast<double>(score.size()) + 64);
          for (std::int64_t d = 0; d < head_dim; ++d) {
            double want = 0, size = 0;
            for (std::int64_t j = first; j <= pos; ++j) {
              const double term =
                  score[static_cast<std::size_t>(j - first)] / sum * vd[static_cast<std::size_t>(j * head_dim + d)];
              want += term;
              size += std::fabs(term);
            }
            EXPECT_NEAR(out[static_cast<std::size_t>((i * group + h) * head_dim + d)], want, relative * size);
          }
        }
      }
      // One query at a time, and segment by segment with a merge: the same bits.
      for (std::int64_t i = 0; i < n_q; ++i) {
        AttentionArgs one = args;
        std::vector<float> alone(static_cast<std::size_t>(group * head_dim));
        one.q = q.data() + i * q_stride;
        one.n_q = 1;
        one.q_pos = n - n_q + i;
        one.kv_end = one.q_pos + 1;
        one.out = alone.data();
        kRefKernels.attention(one);
        EXPECT_EQ(std::memcmp(alone.data(), out.data() + i * group * head_dim, alone.size() * 4), 0);
        std::vector<float> m, l, o;
        one.finish = false;
        for (std::int64_t segment = 0; segment < n; segment += kKvSegment) {
          std::vector<float> pm(static_cast<std::size_t>(group)), pl(pm.size()), po(alone.size());
          one.kv_begin = segment;
          one.kv_end = std::min<std::int64_t>(n, segment + kKvSegment);
          one.out = po.data();
          one.m = pm.data();
          one.l = pl.data();
          kRefKernels.attention(one);
          m.insert(m.end(), pm.begin(), pm.end());
          l.insert(l.end(), pl.begin(), pl.end());
          o.insert(o.end(), po.begin(), po.end());
        }
        kRefKernels.attention_merge({.n_parts = (n + kKvSegment - 1) / kKvSegment,
                                     .m = m.data(),
                                     .l = l.data(),
                                     .o = o.data(),
                                     .n_heads = group,
                                     .head_dim = head_dim,
                                     .out = alone.data()});
        EXPECT_EQ(std::memcmp(alone.data(), out.data() + i * group * head_dim, alone.size() * 4), 0);
      }
    }
  }
}

TEST(Attention, NaNKeysStayVisible) {
  Rng rng(12);
  for (KvType type : {KvType::kF16, KvType::kInt8, KvType::kF32}) {
    Cache cache(rng, 600, 32, type, 32);
    std::vector<float> k = random_floats(rng, 32), v = random_floats(rng, 32);
    for (std::int64_t pos = 0; pos < 600; ++pos) {
      k[3] = pos == 20 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
      kRefKernels.kv_write(cache.view, pos, k.data(), v.data());
    }
    const std::vector<float> q = random_floats(rng, 32);
    std::vector<float> out(32);
    AttentionArgs args{.kv = cache.view,
                       .q = q.data(),
                       .q_stride = 32,
                       .group = 1,
                       .n_q = 1,
                       .q_pos = 599,
                       .kv_begin = 0,
                       .kv_end = 600,
                       .window = 0,
                       .scale = 1,
                       .out = out.data(),
                       .out_stride = 32,
                       .m = nullptr,
                       .l = nullptr,
                       .finish = true,
                       .scratch = nullptr};
    kRefKernels.attention(args);
    for (float value : out) EXPECT_TRUE(std::isnan(value));
    args.window = 500;  // position 20 is out of sight
    kRefKernels.attention(args);
    for (float value : out) EXPECT_TRUE(std::isfinite(value));
  }
}

}  // namespace
}  // namespace still

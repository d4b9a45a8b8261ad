// Decoding equals the gguf package bit for bit (testdata/quant/, made by tools/make_quant_goldens.py); encoding equals
// it where ggml only rounds, and elsewhere loses no more than a format of its size may.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "quant/blocks.h"
#include "quant/k4_scales.h"
#include "quant/registry.h"

namespace still {
namespace {

std::vector<std::uint8_t> read_golden(const std::string& name) {
  std::ifstream file(std::filesystem::path(STILL_SOURCE_DIR) / "testdata/quant" / name, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << name;
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

TEST(Quant, DecodesWhatTheGgufPackageDecodes) {
  constexpr std::int64_t kValues = 1024;
  for (const QuantFormat* format : quant_formats()) {
    SCOPED_TRACE(dtype_name(format->dtype));
    const auto golden = read_golden(std::string(dtype_name(format->dtype)) + ".decode.bin");
    const std::int64_t row_bytes = dtype_bytes(format->dtype, kValues);
    ASSERT_EQ(static_cast<std::int64_t>(golden.size()), row_bytes + 4 * kValues);
    std::vector<std::uint8_t> unaligned(golden.size() + 1);  // rows of a file need not be aligned
    std::memcpy(unaligned.data() + 1, golden.data(), golden.size());
    std::vector<float> values(kValues);
    format->decode_row(unaligned.data() + 1, values.data(), kValues);
    EXPECT_EQ(std::memcmp(values.data(), golden.data() + row_bytes, 4 * kValues), 0);
  }
}

TEST(Quant, PlainRoundingEncodesToTheSameBytes) {
  constexpr std::int64_t kValues = 512;
  for (DType type : {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1, DType::kQ8_0, DType::kBF16, DType::kF16}) {
    SCOPED_TRACE(dtype_name(type));
    const auto golden = read_golden(std::string(dtype_name(type)) + ".encode.bin");
    ASSERT_EQ(static_cast<std::int64_t>(golden.size()), 4 * kValues + dtype_bytes(type, kValues));
    std::vector<float> values(kValues);
    std::memcpy(values.data(), golden.data(), 4 * kValues);
    std::vector<std::uint8_t> row(static_cast<std::size_t>(dtype_bytes(type, kValues)));
    find_format(type)->encode_row(values.data(), row.data(), kValues);
    EXPECT_EQ(std::memcmp(row.data(), golden.data() + 4 * kValues, row.size()), 0);
  }
}

double normal(Rng& rng) {
  return std::sqrt(-2 * std::log(1 - rng.uniform())) * std::cos(2 * M_PI * rng.uniform());
}

double relative_error(const QuantFormat& format, const std::vector<float>& values) {
  const auto n = static_cast<std::int64_t>(values.size());
  std::vector<std::uint8_t> row(static_cast<std::size_t>(dtype_bytes(format.dtype, n)));
  std::vector<float> decoded(values.size());
  format.encode_row(values.data(), row.data(), n);
  format.decode_row(row.data(), decoded.data(), n);
  double error = 0, total = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    error += std::pow(decoded[i] - values[i], 2);
    total += std::pow(values[i], 2);
  }
  return std::sqrt(error / total);
}

// Bounds: the error that the optimal uniform quantiser of as many levels leaves on a normal variable (Max 1960: 2 bits
// 0.345, 3 bits 0.194, 4 bits 0.107, 5 bits 0.059, 6 bits 0.032), which blocks with their own scales should meet.
TEST(Quant, EncodingLosesNoMoreThanItsBits) {
  const std::map<DType, double> bounds = {{DType::kQ2_K, 0.345}, {DType::kQ3_K, 0.194},   {DType::kQ4_K, 0.107},
                                          {DType::kQ5_K, 0.059}, {DType::kQ6_K, 0.032},   {DType::kQ4_0, 0.107},
                                          {DType::kQ4_1, 0.107}, {DType::kQ5_0, 0.059},   {DType::kQ5_1, 0.059},
                                          {DType::kQ8_0, 0.008}, {DType::kIQ4_NL, 0.107}, {DType::kIQ4_XS, 0.107},
                                          {DType::kF32, 0},      {DType::kF16, 4.9e-4},   {DType::kBF16, 3.9e-3}};
  Rng rng(7);
  for (float size : {1.0f, 0.02f, 300.0f}) {
    std::vector<float> values(16384);
    for (float& value : values) value = size * static_cast<float>(normal(rng));
    for (const QuantFormat* format : quant_formats()) {
      const double error = relative_error(*format, values);
      if (size == 1.0f)
        std::printf("%-7s relative error %.5f\n", std::string(dtype_name(format->dtype)).c_str(), error);
      EXPECT_LE(error, bounds.at(format->dtype)) << dtype_name(format->dtype) << " size " << size;
    }
  }
}

TEST(Quant, ConstantAndZeroRowsSurvive) {
  for (const QuantFormat* format : quant_formats()) {
    SCOPED_TRACE(dtype_name(format->dtype));
    std::vector<float> values(512, 0.0f), decoded(512, 1.0f);
    std::vector<std::uint8_t> row(static_cast<std::size_t>(dtype_bytes(format->dtype, 512)));
    format->encode_row(values.data(), row.data(), 512);
    format->decode_row(row.data(), decoded.data(), 512);
    for (float value : decoded) EXPECT_EQ(value, 0.0f);
    for (float constant : {1.0f, -1.0f}) {
      std::fill(values.begin(), values.end(), constant);
      EXPECT_LE(relative_error(*format, values), 0.01);
    }
  }
}

TEST(Quant, SixBitScalesPackAndUnpack) {
  Rng rng(11);
  for (int round = 0; round < 100; ++round) {
    std::uint8_t scales[8], mins[8], packed[12], scales_back[8], mins_back[8];
    for (int i = 0; i < 8; ++i) {
      scales[i] = static_cast<std::uint8_t>(rng.below(64));
      mins[i] = static_cast<std::uint8_t>(rng.below(64));
    }
    pack_scales_k4(scales, mins, packed);
    unpack_scales_k4(packed, scales_back, mins_back);
    EXPECT_EQ(std::memcmp(scales, scales_back, 8), 0);
    EXPECT_EQ(std::memcmp(mins, mins_back, 8), 0);
  }
}

TEST(Quant, UnknownFormatsAreNull) {
  EXPECT_EQ(find_format(DType::kIQ2_XXS), nullptr);
  EXPECT_EQ(find_format(DType::kI32), nullptr);
  EXPECT_EQ(find_format(DType::kQ4_K)->dtype, DType::kQ4_K);
  EXPECT_EQ(quant_formats().size(), 15u);
}

}  // namespace
}  // namespace still

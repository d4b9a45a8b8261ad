// The element types against ggml's public table: numbers from ggml.h (enum ggml_type), block sizes and bytes from
// ggml-common.h, both of ggml 0.25; and the types that safetensors 0.8 names.
#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace still {
namespace {

struct GgmlRow {
  std::uint32_t type_id;
  const char* name;
  std::int64_t block_size;
  std::int64_t block_bytes;
};

// Bytes are written as the sums of the block's fields (scales, high bits, quants), not copied from our table.
constexpr GgmlRow kGgml[] = {
    {0, "F32", 1, 4},
    {1, "F16", 1, 2},
    {2, "Q4_0", 32, 2 + 16},
    {3, "Q4_1", 32, 2 * 2 + 16},
    {6, "Q5_0", 32, 2 + 4 + 16},
    {7, "Q5_1", 32, 2 * 2 + 4 + 16},
    {8, "Q8_0", 32, 2 + 32},
    {9, "Q8_1", 32, 2 * 2 + 32},
    {10, "Q2_K", 256, 2 * 2 + 256 / 16 + 256 / 4},
    {11, "Q3_K", 256, 2 + 256 / 4 + 256 / 8 + 12},
    {12, "Q4_K", 256, 2 * 2 + 12 + 256 / 2},
    {13, "Q5_K", 256, 2 * 2 + 12 + 256 / 2 + 256 / 8},
    {14, "Q6_K", 256, 2 + 256 / 16 + 3 * 256 / 4},
    {15, "Q8_K", 256, 4 + 256 + 256 / 16 * 2},
    {16, "IQ2_XXS", 256, 2 + 256 / 8 * 2},
    {17, "IQ2_XS", 256, 2 + 256 / 8 * 2 + 256 / 32},
    {18, "IQ3_XXS", 256, 2 + 3 * (256 / 8)},
    {19, "IQ1_S", 256, 2 + 256 / 8 + 256 / 16},
    {20, "IQ4_NL", 32, 2 + 16},
    {21, "IQ3_S", 256, 2 + 13 * (256 / 32) + 256 / 64},
    {22, "IQ2_S", 256, 2 + 256 / 4 + 256 / 16},
    {23, "IQ4_XS", 256, 2 + 2 + 256 / 64 + 256 / 2},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8},
    {29, "IQ1_M", 256, 256 / 8 + 256 / 16 + 256 / 32},
    {30, "BF16", 1, 2},
    {34, "TQ1_0", 256, 2 + 256 / 64 + (256 - 4 * 256 / 64) / 5},
    {35, "TQ2_0", 256, 2 + 256 / 4},
    {39, "MXFP4", 32, 1 + 16},
    {40, "NVFP4", 64, 64 / 16 + 32},
    {41, "Q1_0", 128, 2 + 128 / 8},
    {42, "Q2_0", 64, 2 + 64 / 4},
};

TEST(DType, HoldsEveryGgmlTypeWithItsNumberBlockAndBytes) {
  for (const GgmlRow& row : kGgml) {
    const auto type = dtype_from_ggml(row.type_id);
    ASSERT_TRUE(type.has_value()) << row.name;
    const DTypeInfo& info = dtype_info(*type);
    EXPECT_EQ(info.name, row.name);
    EXPECT_EQ(info.block_size, row.block_size) << row.name;
    EXPECT_EQ(info.block_bytes, row.block_bytes) << row.name;
    EXPECT_EQ(dtype_from_name(row.name), type);
  }
}

TEST(DType, RefusesNumbersThatGgmlDoesNotDefine) {
  std::set<std::uint32_t> known;
  for (const GgmlRow& row : kGgml) known.insert(row.type_id);
  for (std::uint32_t type_id = 0; type_id < 300; ++type_id)
    EXPECT_EQ(dtype_from_ggml(type_id).has_value(), known.contains(type_id)) << type_id;
  EXPECT_FALSE(dtype_from_ggml(0xffffffffu).has_value());
}

TEST(DType, KnowsTheNamesOfSafetensors) {
  const std::pair<const char*, std::int64_t> bits[] = {
      {"BOOL", 8}, {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8},
      {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"F8_E4M3FNUZ", 8}, {"I16", 16},    {"U16", 16},
      {"F16", 16}, {"BF16", 16},   {"F8_E5M2FNUZ", 8}, {"I32", 32},        {"U32", 32},    {"F32", 32},
      {"C64", 64}, {"F64", 64},    {"I64", 64},        {"U64", 64}};
  for (const auto& [name, width] : bits) {
    const auto type = dtype_from_name(name);
    ASSERT_TRUE(type.has_value()) << name;
    EXPECT_EQ(dtype_info(*type).block_bytes * 8, width * dtype_info(*type).block_size) << name;
  }
}

TEST(DType, NamesAreFoundInAnyCaseAndOnlyWhole) {
  EXPECT_EQ(dtype_from_name("q4_k"), DType::kQ4_K);
  EXPECT_EQ(dtype_from_name("bf16"), DType::kBF16);
  EXPECT_FALSE(dtype_from_name("Q4_").has_value());
  EXPECT_FALSE(dtype_from_name("Q4_K_M").has_value());
  EXPECT_FALSE(dtype_from_name("").has_value());
}

TEST(DType, CountsBytesInWholeBlocks) {
  EXPECT_EQ(dtype_bytes(DType::kQ4_K, 1536 * 256), 1536 * 144);
  EXPECT_EQ(dtype_bytes(DType::kF32, 0), 0);
  EXPECT_EQ(dtype_bytes(DType::kF6_E2M3, 8), 6);
}

}  // namespace
}  // namespace still

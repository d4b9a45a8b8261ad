#include "tensor/dtype.h"

#include <array>
#include <cctype>

#include "base/check.h"

namespace still {

namespace {
// Block layouts: ggml-common.h of ggml 0.25. A K-quant super-block has 256 weights.
constexpr std::array kTypes{
    DTypeInfo{DType::kF32, "F32", 1, 4},
    DTypeInfo{DType::kF16, "F16", 1, 2},
    DTypeInfo{DType::kQ4_0, "Q4_0", 32, 18},
    DTypeInfo{DType::kQ4_1, "Q4_1", 32, 20},
    DTypeInfo{DType::kQ5_0, "Q5_0", 32, 22},
    DTypeInfo{DType::kQ5_1, "Q5_1", 32, 24},
    DTypeInfo{DType::kQ8_0, "Q8_0", 32, 34},
    DTypeInfo{DType::kQ8_1, "Q8_1", 32, 36},
    DTypeInfo{DType::kQ2_K, "Q2_K", 256, 84},
    DTypeInfo{DType::kQ3_K, "Q3_K", 256, 110},
    DTypeInfo{DType::kQ4_K, "Q4_K", 256, 144},
    DTypeInfo{DType::kQ5_K, "Q5_K", 256, 176},
    DTypeInfo{DType::kQ6_K, "Q6_K", 256, 210},
    DTypeInfo{DType::kQ8_K, "Q8_K", 256, 292},
    DTypeInfo{DType::kIQ2_XXS, "IQ2_XXS", 256, 66},
    DTypeInfo{DType::kIQ2_XS, "IQ2_XS", 256, 74},
    DTypeInfo{DType::kIQ3_XXS, "IQ3_XXS", 256, 98},
    DTypeInfo{DType::kIQ1_S, "IQ1_S", 256, 50},
    DTypeInfo{DType::kIQ4_NL, "IQ4_NL", 32, 18},
    DTypeInfo{DType::kIQ3_S, "IQ3_S", 256, 110},
    DTypeInfo{DType::kIQ2_S, "IQ2_S", 256, 82},
    DTypeInfo{DType::kIQ4_XS, "IQ4_XS", 256, 136},
    DTypeInfo{DType::kI8, "I8", 1, 1},
    DTypeInfo{DType::kI16, "I16", 1, 2},
    DTypeInfo{DType::kI32, "I32", 1, 4},
    DTypeInfo{DType::kI64, "I64", 1, 8},
    DTypeInfo{DType::kF64, "F64", 1, 8},
    DTypeInfo{DType::kIQ1_M, "IQ1_M", 256, 56},
    DTypeInfo{DType::kBF16, "BF16", 1, 2},
    DTypeInfo{DType::kTQ1_0, "TQ1_0", 256, 54},
    DTypeInfo{DType::kTQ2_0, "TQ2_0", 256, 66},
    DTypeInfo{DType::kMXFP4, "MXFP4", 32, 17},
    DTypeInfo{DType::kNVFP4, "NVFP4", 64, 36},
    DTypeInfo{DType::kQ1_0, "Q1_0", 128, 18},
    DTypeInfo{DType::kQ2_0, "Q2_0", 64, 18},
    DTypeInfo{DType::kF8_E4M3, "F8_E4M3", 1, 1},
    DTypeInfo{DType::kF8_E5M2, "F8_E5M2", 1, 1},
    DTypeInfo{DType::kU8, "U8", 1, 1},
    DTypeInfo{DType::kU16, "U16", 1, 2},
    DTypeInfo{DType::kU32, "U32", 1, 4},
    DTypeInfo{DType::kU64, "U64", 1, 8},
    DTypeInfo{DType::kBool, "BOOL", 1, 1},
    DTypeInfo{DType::kF8_E8M0, "F8_E8M0", 1, 1},
    DTypeInfo{DType::kF8_E4M3FNUZ, "F8_E4M3FNUZ", 1, 1},
    DTypeInfo{DType::kF8_E5M2FNUZ, "F8_E5M2FNUZ", 1, 1},
    DTypeInfo{DType::kF6_E2M3, "F6_E2M3", 4, 3},
    DTypeInfo{DType::kF6_E3M2, "F6_E3M2", 4, 3},
    DTypeInfo{DType::kF4, "F4", 2, 1},
    DTypeInfo{DType::kC64, "C64", 1, 8},
};
}  // namespace

const DTypeInfo& dtype_info(DType type) {
  for (const DTypeInfo& info : kTypes)
    if (info.type == type) return info;
  STILL_CHECK(!"a DType without a row");
}

std::optional<DType> dtype_from_ggml(std::uint32_t type_id) {
  if (type_id >= 100) return std::nullopt;
  for (const DTypeInfo& info : kTypes)
    if (static_cast<std::uint32_t>(info.type) == type_id) return info.type;
  return std::nullopt;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  const auto same = [](char a, char b) {
    return std::toupper(static_cast<unsigned char>(a)) == std::toupper(static_cast<unsigned char>(b));
  };
  for (const DTypeInfo& info : kTypes) {
    if (info.name.size() != name.size()) continue;
    bool equal = true;
    for (std::size_t i = 0; i < name.size() && equal; ++i) equal = same(info.name[i], name[i]);
    if (equal) return info.type;
  }
  return std::nullopt;
}

std::int64_t dtype_bytes(DType type, std::int64_t n) {
  const DTypeInfo& info = dtype_info(type);
  STILL_DCHECK(n % info.block_size == 0);
  return n / info.block_size * info.block_bytes;
}

}  // namespace still

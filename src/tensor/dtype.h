// Element types: every type that a ggml file of today may hold, by name, block size and bytes, so that any file can be
// shown and planned; and the types of safetensors. Which of them compute is kernels/' business.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace still {

// Values up to 99 are ggml's own type numbers (ggml.h, enum ggml_type); the rest exist in safetensors only.
enum class DType : std::uint8_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ8_1 = 9,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
  kF8_E4M3 = 100,
  kF8_E5M2 = 101,
  kU8 = 102,
  kU16 = 103,
  kU32 = 104,
  kU64 = 105,
  kBool = 106,
  kF8_E8M0 = 107,
  kF8_E4M3FNUZ = 108,
  kF8_E5M2FNUZ = 109,
  kF6_E2M3 = 110,
  kF6_E3M2 = 111,
  kF4 = 112,
  kC64 = 113,
};

struct DTypeInfo {
  DType type;
  std::string_view name;    // ggml's spelling in upper case ("Q4_K"), safetensors' for the others ("F8_E4M3")
  std::int64_t block_size;  // elements in a block; rows are whole blocks
  std::int64_t block_bytes;
};

// Never fails: every enumerator has a row.
const DTypeInfo& dtype_info(DType type);
inline std::string_view dtype_name(DType type) {
  return dtype_info(type).name;
}

std::optional<DType> dtype_from_ggml(std::uint32_t type_id);
std::optional<DType> dtype_from_name(std::string_view name);  // case-insensitive

// Bytes of n elements; n must be a multiple of block_size.
std::int64_t dtype_bytes(DType type, std::int64_t n);

}  // namespace still

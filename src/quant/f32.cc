// F32: plain floats.
#include <cstring>

#include "quant/format.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  std::memcpy(values, row, static_cast<std::size_t>(n) * sizeof(float));
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  std::memcpy(row, values, static_cast<std::size_t>(n) * sizeof(float));
}

extern constexpr QuantFormat kFormatF32{DType::kF32, decode_row, encode_row};

}  // namespace still

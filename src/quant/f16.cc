// F16: IEEE half precision.
#include <cstring>

#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, row + 2 * i, 2);
    values[i] = f16_to_f32(bits);
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint16_t bits = f32_to_f16(values[i]);
    std::memcpy(row + 2 * i, &bits, 2);
  }
}

extern constexpr QuantFormat kFormatF16{DType::kF16, decode_row, encode_row};

}  // namespace still

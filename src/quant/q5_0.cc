// Q5_0: 32 weights, 5 bits each, one scale; weight = (q - 16) d. Nibbles as in Q4_0; bit k of qh is the fifth bit of
// weight k.
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockQ5_0>(row, b);
    const float d = f16_to_f32(block.d);
    for (int k = 0; k < 32; ++k) {
      const int nibble = k < 16 ? block.qs[k] & 15 : block.qs[k - 16] >> 4;
      const int fifth = (block.qh[k / 8] >> (k % 8)) & 1;
      values[k] = static_cast<float>((nibble | (fifth << 4)) - 16) * d;
    }
  }
}

// The value of largest magnitude becomes -16 exactly.
static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    float largest = 0;
    for (int i = 0; i < 32; ++i)
      if (std::fabs(values[i]) > std::fabs(largest)) largest = values[i];
    const float d = largest / -16.0f;
    const float inv = fit::inverse(d);
    BlockQ5_0 block{};
    block.d = f32_to_f16(d);
    for (int k = 0; k < 32; ++k) {
      const int q = fit::floor_clamped(values[k] * inv + 16.5f, 0, 31);
      block.qs[k % 16] = static_cast<std::uint8_t>(block.qs[k % 16] | ((q & 15) << (k < 16 ? 0 : 4)));
      block.qh[k / 8] = static_cast<std::uint8_t>(block.qh[k / 8] | ((q >> 4) << (k % 8)));
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ5_0{DType::kQ5_0, decode_row, encode_row};

}  // namespace still

// Q5_1: 32 weights, 5 bits each, scale and minimum; weight = q d + m. Bits as in Q5_0.
#include <algorithm>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockQ5_1>(row, b);
    const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
    for (int k = 0; k < 32; ++k) {
      const int nibble = k < 16 ? block.qs[k] & 15 : block.qs[k - 16] >> 4;
      const int fifth = (block.qh[k / 8] >> (k % 8)) & 1;
      values[k] = static_cast<float>(nibble | (fifth << 4)) * d + m;
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto [lo, hi] = std::minmax_element(values, values + 32);
    const float m = *lo, d = (*hi - m) / 31.0f;
    const float inv = fit::inverse(d);
    BlockQ5_1 block{};
    block.d = f32_to_f16(d);
    block.m = f32_to_f16(m);
    for (int k = 0; k < 32; ++k) {
      const int q = fit::floor_clamped((values[k] - m) * inv + 0.5f, 0, 31);
      block.qs[k % 16] = static_cast<std::uint8_t>(block.qs[k % 16] | ((q & 15) << (k < 16 ? 0 : 4)));
      block.qh[k / 8] = static_cast<std::uint8_t>(block.qh[k / 8] | ((q >> 4) << (k % 8)));
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ5_1{DType::kQ5_1, decode_row, encode_row};

}  // namespace still

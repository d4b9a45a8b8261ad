// Q4_1: 32 weights, 4 bits each, scale and minimum; weight = q d + m. Byte j holds weights j and j + 16.
#include <algorithm>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockQ4_1>(row, b);
    const float d = f16_to_f32(block.d), m = f16_to_f32(block.m);
    for (int j = 0; j < 16; ++j) {
      values[j] = static_cast<float>(block.qs[j] & 15) * d + m;
      values[j + 16] = static_cast<float>(block.qs[j] >> 4) * d + m;
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto [lo, hi] = std::minmax_element(values, values + 32);
    const float m = *lo, d = (*hi - m) / 15.0f;
    const float inv = fit::inverse(d);
    BlockQ4_1 block;
    block.d = f32_to_f16(d);
    block.m = f32_to_f16(m);
    const auto quantize = [&](float x) { return fit::floor_clamped((x - m) * inv + 0.5f, 0, 15); };
    for (int j = 0; j < 16; ++j)
      block.qs[j] = static_cast<std::uint8_t>(quantize(values[j]) | (quantize(values[j + 16]) << 4));
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ4_1{DType::kQ4_1, decode_row, encode_row};

}  // namespace still

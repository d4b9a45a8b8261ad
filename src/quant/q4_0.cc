// Q4_0: 32 weights, 4 bits each, one scale; weight = (q - 8) d. Byte j holds weights j and j + 16.
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockQ4_0>(row, b);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < 16; ++j) {
      values[j] = static_cast<float>((block.qs[j] & 15) - 8) * d;
      values[j + 16] = static_cast<float>((block.qs[j] >> 4) - 8) * d;
    }
  }
}

// The value of largest magnitude becomes -8 exactly: one more level than a symmetric range has.
static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    float largest = 0;
    for (int i = 0; i < 32; ++i)
      if (std::fabs(values[i]) > std::fabs(largest)) largest = values[i];
    const float d = largest / -8.0f;
    const float inv = fit::inverse(d);
    BlockQ4_0 block;
    block.d = f32_to_f16(d);
    const auto quantize = [&](float x) { return fit::floor_clamped(x * inv + 8.5f, 0, 15); };
    for (int j = 0; j < 16; ++j)
      block.qs[j] = static_cast<std::uint8_t>(quantize(values[j]) | (quantize(values[j + 16]) << 4));
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ4_0{DType::kQ4_0, decode_row, encode_row};

}  // namespace still

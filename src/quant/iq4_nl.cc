// IQ4_NL: 32 weights, each one of 16 non-uniform levels, one scale; weight = level[q] d. Nibbles as in Q4_0.
#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "quant/iq4_levels.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockIQ4_NL>(row, b);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < 16; ++j) {
      values[j] = d * static_cast<float>(kIq4Values[block.qs[j] & 15]);
      values[j + 16] = d * static_cast<float>(kIq4Values[block.qs[j] >> 4]);
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    BlockIQ4_NL block;
    block.d = f32_to_f16(fit::fit_scale(values, 32, kIq4Values[0], nearest_iq4_level));
    const float inv = fit::inverse(f16_to_f32(block.d));
    for (int j = 0; j < 16; ++j)
      block.qs[j] = static_cast<std::uint8_t>(nearest_iq4_index(values[j] * inv) |
                                              (nearest_iq4_index(values[j + 16] * inv) << 4));
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatIQ4_NL{DType::kIQ4_NL, decode_row, encode_row};

}  // namespace still

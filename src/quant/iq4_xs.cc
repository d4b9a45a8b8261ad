// IQ4_XS: 256 weights, each one of 16 non-uniform levels; 8 sub-blocks of 32 with a signed 6-bit scale;
// weight = d scale level[q]. Each sub-block's 16 bytes hold nibbles as IQ4_NL does.
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "quant/iq4_levels.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    const auto block = load_block<BlockIQ4_XS>(row, b);
    const float d = f16_to_f32(block.d);
    std::int8_t scales[8];
    unpack_scales_iq4_xs(block, scales);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * static_cast<float>(scales[sub]);
      for (int j = 0; j < 16; ++j) {
        values[32 * sub + j] = scale * static_cast<float>(kIq4Values[block.qs[16 * sub + j] & 15]);
        values[32 * sub + j + 16] = scale * static_cast<float>(kIq4Values[block.qs[16 * sub + j] >> 4]);
      }
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    float scales[8], largest = 0;
    for (int sub = 0; sub < 8; ++sub) {
      scales[sub] = fit::fit_scale(values + 32 * sub, 32, kIq4Values[0], nearest_iq4_level);
      if (std::fabs(scales[sub]) > std::fabs(largest)) largest = scales[sub];
    }
    BlockIQ4_XS block{};
    block.d = f32_to_f16(largest / -32.0f);
    const float d = f16_to_f32(block.d);
    for (int sub = 0; sub < 8; ++sub) {
      const int scale = fit::round_clamped(scales[sub] * fit::inverse(d), -32, 31);
      const int stored = scale + 32;
      block.scales_l[sub / 2] = static_cast<std::uint8_t>(block.scales_l[sub / 2] | ((stored & 15) << (4 * (sub % 2))));
      block.scales_h = static_cast<std::uint16_t>(block.scales_h | ((stored >> 4) << (2 * sub)));
      const float inv = fit::inverse(d * static_cast<float>(scale));
      const float* x = values + 32 * sub;
      for (int j = 0; j < 16; ++j)
        block.qs[16 * sub + j] =
            static_cast<std::uint8_t>(nearest_iq4_index(x[j] * inv) | (nearest_iq4_index(x[j + 16] * inv) << 4));
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatIQ4_XS{DType::kIQ4_XS, decode_row, encode_row};

}  // namespace still

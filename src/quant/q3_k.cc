// Q3_K: 256 weights of 3 bits; 16 sub-blocks of 16 with a signed 6-bit scale; weight = d scale (q - 4).
// The lower two bits lie as in Q2_K; bit i / 32 of hmask[i % 32] is the third.
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    const auto block = load_block<BlockQ3_K>(row, b);
    const float d = f16_to_f32(block.d);
    std::int8_t scales[16];
    unpack_scales_q3(block.scales, scales);
    for (int i = 0; i < 256; ++i) {
      const int low = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
      const int high = (block.hmask[i % 32] >> (i / 32)) & 1;
      values[i] = d * static_cast<float>(scales[i / 16]) * static_cast<float>(low + 4 * high - 4);
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    float scales[16], largest = 0;
    for (int sub = 0; sub < 16; ++sub) {
      scales[sub] = fit::fit_scale(values + 16 * sub, 16, -4.0f,
                                   [](float x) { return static_cast<float>(fit::round_clamped(x, -4, 3)); });
      if (std::fabs(scales[sub]) > std::fabs(largest)) largest = scales[sub];
    }
    BlockQ3_K block{};
    block.d = f32_to_f16(largest / -32.0f);
    const float d = f16_to_f32(block.d);
    for (int sub = 0; sub < 16; ++sub) {
      const int scale = fit::round_clamped(scales[sub] * fit::inverse(d), -32, 31);
      const int stored = scale + 32;
      std::uint8_t& low = block.scales[sub % 8];
      low = static_cast<std::uint8_t>(low | ((stored & 15) << (sub < 8 ? 0 : 4)));
      std::uint8_t& high = block.scales[8 + sub % 4];
      high = static_cast<std::uint8_t>(high | ((stored >> 4) << (2 * (sub / 4))));
      const float inv = fit::inverse(d * static_cast<float>(scale));
      for (int i = 16 * sub; i < 16 * sub + 16; ++i) {
        const int q = fit::round_clamped(values[i] * inv, -4, 3) + 4;
        std::uint8_t& byte = block.qs[i / 128 * 32 + i % 32];
        byte = static_cast<std::uint8_t>(byte | ((q & 3) << (i % 128 / 32 * 2)));
        block.hmask[i % 32] = static_cast<std::uint8_t>(block.hmask[i % 32] | ((q >> 2) << (i / 32)));
      }
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ3_K{DType::kQ3_K, decode_row, encode_row};

}  // namespace still

// Q6_K: 256 weights of 6 bits; 16 sub-blocks of 16 with a signed 8-bit scale; weight = d scale (q - 32).
// Of each 128 weights: byte i % 64 of ql holds the low nibbles of i and i + 64; byte i % 32 of qh the upper two bits of
// i, i + 32, i + 64, i + 96.
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    const auto block = load_block<BlockQ6_K>(row, b);
    const float d = f16_to_f32(block.d);
    for (int i = 0; i < 256; ++i) {
      const int byte = block.ql[i / 128 * 64 + i % 64];
      const int low = i % 128 < 64 ? byte & 15 : byte >> 4;
      const int high = (block.qh[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
      values[i] = d * static_cast<float>(block.scales[i / 16]) * static_cast<float>((low | (high << 4)) - 32);
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    float scales[16], largest = 0;
    for (int sub = 0; sub < 16; ++sub) {
      scales[sub] = fit::fit_scale(values + 16 * sub, 16, -32.0f,
                                   [](float x) { return static_cast<float>(fit::round_clamped(x, -32, 31)); });
      if (std::fabs(scales[sub]) > std::fabs(largest)) largest = scales[sub];
    }
    BlockQ6_K block{};
    block.d = f32_to_f16(largest / -128.0f);
    const float d = f16_to_f32(block.d);
    for (int sub = 0; sub < 16; ++sub) {
      const int scale = fit::round_clamped(scales[sub] * fit::inverse(d), -128, 127);
      block.scales[sub] = static_cast<std::int8_t>(scale);
      const float inv = fit::inverse(d * static_cast<float>(scale));
      for (int i = 16 * sub; i < 16 * sub + 16; ++i) {
        const int q = fit::round_clamped(values[i] * inv, -32, 31) + 32;
        std::uint8_t& low = block.ql[i / 128 * 64 + i % 64];
        low = static_cast<std::uint8_t>(low | ((q & 15) << (i % 128 < 64 ? 0 : 4)));
        std::uint8_t& high = block.qh[i / 128 * 32 + i % 32];
        high = static_cast<std::uint8_t>(high | ((q >> 4) << (i % 128 / 32 * 2)));
      }
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ6_K{DType::kQ6_K, decode_row, encode_row};

}  // namespace still

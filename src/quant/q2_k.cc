// Q2_K: 256 weights of 2 bits; 16 sub-blocks of 16 with scale and minimum of 4 bits each;
// weight = d scale q - dmin min. Byte i % 32 of each 32-byte half holds weights i, i + 32, i + 64, i + 96 of its 128.
#include <algorithm>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    const auto block = load_block<BlockQ2_K>(row, b);
    const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
    for (int i = 0; i < 256; ++i) {
      const int q = (block.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
      const float scale = d * static_cast<float>(block.scales[i / 16] & 15);
      const float min = dmin * static_cast<float>(block.scales[i / 16] >> 4);
      values[i] = scale * static_cast<float>(q) - min;
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    fit::Affine fits[16];
    float max_scale = 0, max_min = 0;
    for (int sub = 0; sub < 16; ++sub) {
      fits[sub] = fit::fit_affine(values + 16 * sub, 16, 3);
      max_scale = std::max(max_scale, fits[sub].scale);
      max_min = std::max(max_min, fits[sub].min);
    }
    BlockQ2_K block{};
    block.d = f32_to_f16(max_scale / 15.0f);
    block.dmin = f32_to_f16(max_min / 15.0f);
    const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
    for (int sub = 0; sub < 16; ++sub) {
      const int scale = fit::round_clamped(fits[sub].scale * fit::inverse(d), 0, 15);
      const int min = fit::round_clamped(fits[sub].min * fit::inverse(dmin), 0, 15);
      block.scales[sub] = static_cast<std::uint8_t>(scale | (min << 4));
      const float inv = fit::inverse(d * static_cast<float>(scale));
      for (int i = 16 * sub; i < 16 * sub + 16; ++i) {
        const int q = fit::round_clamped((values[i] + dmin * static_cast<float>(min)) * inv, 0, 3);
        std::uint8_t& byte = block.qs[i / 128 * 32 + i % 32];
        byte = static_cast<std::uint8_t>(byte | (q << (i % 128 / 32 * 2)));
      }
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ2_K{DType::kQ2_K, decode_row, encode_row};

}  // namespace still

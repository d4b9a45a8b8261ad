// What Q4_K and Q5_K share: 8 sub-blocks of 32 weights with scale and minimum of 6 bits each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "tensor/float16.h"

namespace still {

// The inverse of unpack_scales_k4.
inline void pack_scales_k4(const std::uint8_t (&scales)[8], const std::uint8_t (&mins)[8], std::uint8_t (&packed)[12]) {
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<std::uint8_t>(scales[j] | ((scales[j + 4] >> 4) << 6));
    packed[j + 4] = static_cast<std::uint8_t>(mins[j] | ((mins[j + 4] >> 4) << 6));
    packed[j + 8] = static_cast<std::uint8_t>((scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4));
  }
}

// Fits 256 values with integers 0 ... q_max: fills the block's d, dmin and scales, and q [256].
template <class Block>
void encode_affine_256(const float* values, int q_max, Block& block, std::uint8_t (&q)[256]) {
  fit::Affine fits[8];
  float max_scale = 0, max_min = 0;
  for (int sub = 0; sub < 8; ++sub) {
    fits[sub] = fit::fit_affine(values + 32 * sub, 32, q_max);
    max_scale = std::max(max_scale, fits[sub].scale);
    max_min = std::max(max_min, fits[sub].min);
  }
  block.d = f32_to_f16(max_scale / 63.0f);
  block.dmin = f32_to_f16(max_min / 63.0f);
  const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
  std::uint8_t scales[8], mins[8];
  for (int sub = 0; sub < 8; ++sub) {
    scales[sub] = static_cast<std::uint8_t>(fit::round_clamped(fits[sub].scale * fit::inverse(d), 0, 63));
    mins[sub] = static_cast<std::uint8_t>(fit::round_clamped(fits[sub].min * fit::inverse(dmin), 0, 63));
    const float inv = fit::inverse(d * static_cast<float>(scales[sub]));
    const float min = dmin * static_cast<float>(mins[sub]);
    for (int i = 32 * sub; i < 32 * sub + 32; ++i)
      q[i] = static_cast<std::uint8_t>(fit::round_clamped((values[i] + min) * inv, 0, q_max));
  }
  pack_scales_k4(scales, mins, block.scales);
}

}  // namespace still

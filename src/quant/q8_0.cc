// Q8_0: 32 weights of 8 bits, one scale; weight = q d.
#include <algorithm>
#include <cmath>

#include "quant/blocks.h"
#include "quant/fit.h"
#include "quant/format.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    const auto block = load_block<BlockQ8_0>(row, b);
    const float d = f16_to_f32(block.d);
    for (int k = 0; k < 32; ++k) values[k] = static_cast<float>(block.qs[k]) * d;
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 32; ++b, values += 32) {
    float amax = 0;
    for (int k = 0; k < 32; ++k) amax = std::max(amax, std::fabs(values[k]));
    const float d = amax / 127.0f;
    const float inv = fit::inverse(d);
    BlockQ8_0 block;
    block.d = f32_to_f16(d);
    for (int k = 0; k < 32; ++k)  // halves away from zero, as ggml rounds here
      block.qs[k] = static_cast<std::int8_t>(fit::round_clamped(std::round(values[k] * inv), -127, 127));
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ8_0{DType::kQ8_0, decode_row, encode_row};

}  // namespace still

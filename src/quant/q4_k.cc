// Q4_K: 256 weights of 4 bits; 8 sub-blocks of 32 with scale and minimum of 6 bits each; weight = d scale q - dmin min.
// A chunk of 64 weights takes 32 bytes: low nibbles its first 32, high nibbles its last 32.
#include "quant/blocks.h"
#include "quant/format.h"
#include "quant/k4_scales.h"
#include "tensor/float16.h"

namespace still {

static void decode_row(const std::uint8_t* row, float* values, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    const auto block = load_block<BlockQ4_K>(row, b);
    const float d = f16_to_f32(block.d), dmin = f16_to_f32(block.dmin);
    std::uint8_t scales[8], mins[8];
    unpack_scales_k4(block.scales, scales, mins);
    for (int sub = 0; sub < 8; ++sub) {
      const float scale = d * static_cast<float>(scales[sub]), min = dmin * static_cast<float>(mins[sub]);
      for (int i = 0; i < 32; ++i) {
        const int byte = block.qs[sub / 2 * 32 + i];
        values[32 * sub + i] = scale * static_cast<float>(sub % 2 == 0 ? byte & 15 : byte >> 4) - min;
      }
    }
  }
}

static void encode_row(const float* values, std::uint8_t* row, std::int64_t n) {
  for (std::int64_t b = 0; b < n / 256; ++b, values += 256) {
    BlockQ4_K block;
    std::uint8_t q[256];
    encode_affine_256(values, 15, block, q);
    for (int i = 0; i < 128; ++i) {
      const int first = i / 32 * 64 + i % 32;
      block.qs[i] = static_cast<std::uint8_t>(q[first] | (q[first + 32] << 4));
    }
    store_block(row, b, block);
  }
}

extern constexpr QuantFormat kFormatQ4_K{DType::kQ4_K, decode_row, encode_row};

}  // namespace still

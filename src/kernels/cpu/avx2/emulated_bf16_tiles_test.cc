// Products on bfloat16 tiles with a matrix unit spelled out in loops (Intel SDM vol. 2, TDPBF16PS and VCVTNE2PS2BF16),
// for bf16_tiles_test.cc: everything but the instructions themselves is tested where there is no AMX.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/emulated_tiles.h"
#include "kernels/cpu/linear_bf16_tiles.h"
// clang-format on

namespace still {

namespace {
struct EmulatedBf16Tiles : EmulatedTileFile {
  static float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
  }
  static uint32_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
  }
  // What the unit makes of a subnormal number, going in or coming out.
  static float flushed(float value) {
    return (bits_of(value) & 0x7f800000) == 0 ? from_bits(bits_of(value) & 0x80000000) : value;
  }
  static uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(flushed(value));
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static float from_bf16(const uint8_t* p) {
    uint16_t half;
    __builtin_memcpy(&half, p, 2);
    return flushed(from_bits(static_cast<uint32_t>(half) << 16));
  }

  static void split(const float* x, uint8_t* high, uint8_t* low) {
    for (int i = 0; i < 32; ++i) {
      const uint16_t h = to_bf16(x[i]);
      __builtin_memcpy(high + 2 * i, &h, 2);
      const uint16_t l = to_bf16(x[i] - from_bits(static_cast<uint32_t>(h) << 16));
      __builtin_memcpy(low + 2 * i, &l, 2);
    }
  }
  template <int kSums, int kActivations, int kWeights>
  static void multiply() {
    for (int m = 0; m < rows(kSums); ++m) {
      for (int n = 0; n < row_bytes(kSums) / 4; ++n) {
        float chains[2] = {};
        for (int k = 0; k < row_bytes(kActivations) / 4; ++k)
          for (int i = 0; i < 2; ++i)
            chains[i] = flushed(__builtin_fmaf(from_bf16(&tiles[kActivations][m][4 * k + 2 * i]),
                                               from_bf16(&tiles[kWeights][k][4 * n + 2 * i]), chains[i]));
        float sum;
        __builtin_memcpy(&sum, &tiles[kSums][m][4 * n], 4);
        sum = flushed(flushed(sum) + flushed(chains[0] + chains[1]));
        __builtin_memcpy(&tiles[kSums][m][4 * n], &sum, 4);
      }
    }
  }
};
}  // namespace

void emulated_bf16_linear(const LinearArgs& args) {
  linear_bf16_tiles<EmulatedBf16Tiles>(args);
}

}  // namespace still

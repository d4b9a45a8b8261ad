// The products on tiles with a matrix unit spelled out in loops (Intel SDM vol. 2, TDPBSUD, TDPBSSD), for cpu_test.cc:
// everything but the eight instructions themselves is tested where there is no AMX.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/linear_tiles.h"
// clang-format on

namespace still {

namespace {
struct EmulatedTiles {
  static inline uint8_t config[64];
  static inline uint8_t activations[16][64];
  static inline uint8_t weights[16][64];
  static inline int32_t sums[3][16][16];

  static int rows(int tile) { return config[48 + tile]; }
  static int row_bytes(int tile) { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }
  static void load(int tile, uint8_t (&out)[16][64], const uint8_t* from, int64_t stride) {
    __builtin_memset(out, 0, sizeof out);
    for (int r = 0; r < rows(tile); ++r)
      __builtin_memcpy(out[r], from + r * stride, static_cast<uint64_t>(row_bytes(tile)));
  }

  static void configure(const uint8_t* bytes) { __builtin_memcpy(config, bytes, 64); }
  static void release() { __builtin_memset(config, 0, 64); }
  template <int kTile>
  static void zero() {
    __builtin_memset(sums[kTile], 0, sizeof sums[kTile]);
  }
  static void load_activations(const int8_t* q, int64_t stride) {
    load(3, activations, reinterpret_cast<const uint8_t*>(q), stride);
  }
  static void load_weights(const uint8_t* w) { load(4, weights, w, 64); }
  template <int kTile, bool kSigned>
  static void multiply() {
    for (int m = 0; m < rows(3); ++m)
      for (int k = 0; k < row_bytes(3); ++k)
        for (int n = 0; n < row_bytes(kTile) / 4; ++n) {
          const uint8_t w = weights[k / 4][4 * n + k % 4];
          sums[kTile][m][n] += static_cast<int8_t>(activations[m][k]) * (kSigned ? static_cast<int8_t>(w) : w);
        }
  }
  template <int kTile>
  static void store(int32_t* dots) {
    __builtin_memcpy(dots, sums[kTile], sizeof sums[kTile]);
  }
};
}  // namespace

const CpuKernels& emulated_tile_kernels() {
  static const CpuKernels table = [] {
    CpuKernels kernels = avx512_vnni_kernels();
    kernels.name = "emulated_tiles";
    set_linear_tiles<EmulatedTiles>(kernels);
    return kernels;
  }();
  return table;
}

}  // namespace still

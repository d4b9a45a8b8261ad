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
  static inline uint8_t tiles[8][16][64];

  static int rows(int tile) { return config[48 + tile]; }
  static int row_bytes(int tile) { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }

  static void configure(const uint8_t* bytes) { __builtin_memcpy(config, bytes, 64); }
  static void release() { __builtin_memset(config, 0, 64); }
  template <int kTile>
  static void zero() {
    __builtin_memset(tiles[kTile], 0, sizeof tiles[kTile]);
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    zero<kTile>();
    for (int r = 0; r < rows(kTile); ++r)
      __builtin_memcpy(tiles[kTile][r], static_cast<const uint8_t*>(from) + r * stride,
                       static_cast<uint64_t>(row_bytes(kTile)));
  }
  template <int kSums, int kActivations, int kWeights, bool kSigned>
  static void multiply() {
    for (int m = 0; m < rows(kActivations); ++m)
      for (int n = 0; n < row_bytes(kSums) / 4; ++n) {
        int32_t sum = 0;
        __builtin_memcpy(&sum, tiles[kSums][m] + 4 * n, 4);
        for (int k = 0; k < row_bytes(kActivations); ++k) {
          const uint8_t w = tiles[kWeights][k / 4][4 * n + k % 4];
          sum += static_cast<int8_t>(tiles[kActivations][m][k]) * (kSigned ? static_cast<int8_t>(w) : w);
        }
        __builtin_memcpy(tiles[kSums][m] + 4 * n, &sum, 4);
      }
  }
  template <int kTile>
  static void store(int32_t* dots) {
    __builtin_memcpy(dots, tiles[kTile], sizeof tiles[kTile]);
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

// The products on tiles with a matrix unit spelled out in loops (Intel SDM vol. 2, TDPBSUD, TDPBSSD), for cpu_test.cc:
// everything but the instructions themselves is tested where there is no AMX.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/emulated_tiles.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/linear_tiles.h"
// clang-format on

namespace still {

namespace {
struct EmulatedTiles : EmulatedTileFile {
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
    EmulatedTileFile::store<kTile>(dots, 64);
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

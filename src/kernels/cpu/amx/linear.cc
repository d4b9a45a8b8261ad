// Products with quantised weights on AMX-int8 tiles. dispatch.cc has asked the system for the tile registers; their
// shapes are set and given back within a call, on the calling thread.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/amx/parts.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/linear_tiles.h"
// clang-format on

namespace still {

namespace {
struct AmxTiles {
  static STILL_INLINE void configure(const uint8_t* config) { asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory"); }
  static STILL_INLINE void release() { _tile_release(); }
  // Names of tiles are part of the instructions.
  template <int kTile>
  static STILL_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  template <int kTile>
  static STILL_INLINE void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(kTile), "r"(from), "r"(stride) : "memory");
  }
  // The sums += activations (signed bytes) * weights.
  template <int kSums, int kActivations, int kWeights, bool kSigned>
  static STILL_INLINE void multiply() {
    if constexpr (kSigned)
      asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kActivations), "i"(kWeights));
    else
      asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kActivations), "i"(kWeights));
  }
  template <int kTile>
  static STILL_INLINE void store(int32_t* dots) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(kTile), "r"(dots), "r"(int64_t{64}) : "memory");
  }
};
}  // namespace

void amx_set_linear(CpuKernels& table) {
  set_linear_tiles<AmxTiles>(table);
}

}  // namespace still

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
// The intrinsics' inline assembly names no memory operands: the barriers keep stores of what a tile reads before it.
struct AmxTiles {
  static STILL_INLINE void configure(const uint8_t* config) { asm volatile("ldtilecfg (%0)" ::"r"(config) : "memory"); }
  static STILL_INLINE void release() { _tile_release(); }
  template <int kTile>
  static STILL_INLINE void zero() {
    if constexpr (kTile == 0) _tile_zero(0);
    if constexpr (kTile == 1) _tile_zero(1);
    if constexpr (kTile == 2) _tile_zero(2);
  }
  static STILL_INLINE void load_activations(const int8_t* q, int64_t stride) {
    asm volatile("" ::: "memory");
    _tile_loadd(3, q, stride);
  }
  static STILL_INLINE void load_weights(const uint8_t* w) {
    asm volatile("" ::: "memory");
    _tile_loadd(4, w, 64);
  }
  template <int kTile, bool kSigned>
  static STILL_INLINE void multiply() {
    if constexpr (kSigned) {
      if constexpr (kTile == 0) _tile_dpbssd(0, 3, 4);
      if constexpr (kTile == 1) _tile_dpbssd(1, 3, 4);
      if constexpr (kTile == 2) _tile_dpbssd(2, 3, 4);
    } else {
      if constexpr (kTile == 0) _tile_dpbsud(0, 3, 4);
      if constexpr (kTile == 1) _tile_dpbsud(1, 3, 4);
      if constexpr (kTile == 2) _tile_dpbsud(2, 3, 4);
    }
  }
  template <int kTile>
  static STILL_INLINE void store(int32_t* dots) {
    if constexpr (kTile == 0) _tile_stored(0, dots, 64);
    if constexpr (kTile == 1) _tile_stored(1, dots, 64);
    if constexpr (kTile == 2) _tile_stored(2, dots, 64);
  }
};
}  // namespace

void amx_set_linear(CpuKernels& table) {
  set_linear_tiles<AmxTiles>(table);
}

}  // namespace still

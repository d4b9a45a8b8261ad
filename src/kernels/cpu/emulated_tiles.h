// What the emulated matrix units of tests share: eight tiles, their shapes, and what moves rows of bytes in and out of
// them (Intel SDM vol. 1, 18.3: palette 1). Products are each unit's own.
#pragma once

#include "kernels/cpu/common.h"

namespace still {
namespace {

struct EmulatedTileFile {
  static inline uint8_t config[64];
  static inline uint8_t tiles[8][16][64];

  static int rows(int tile) { return config[48 + tile]; }
  static int row_bytes(int tile) { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }

  static void configure(const uint8_t* bytes) {
    __builtin_memcpy(config, bytes, 64);
    __builtin_memset(tiles, 0, sizeof tiles);
  }
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
  template <int kTile>
  static void store(void* to, int64_t stride) {
    for (int r = 0; r < rows(kTile); ++r)
      __builtin_memcpy(static_cast<uint8_t*>(to) + r * stride, tiles[kTile][r],
                       static_cast<uint64_t>(row_bytes(kTile)));
  }
};

}  // namespace
}  // namespace still

// Reads one row's block out of a packed panel, as plain integers: what every kernel does in its own way, spelled out.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace still {

// weight i = d * scale[i / sub_size] * w[i], and with a minimum: + m (32-wide), or - m * min[i / sub_size] (256-wide).
struct PackedBlock {
  int size = 32;      // 32 or 256
  int sub_size = 32;  // weights that share a sub-block scale: 16 or 32
  bool has_min = false;
  float d = 0, m = 0;
  std::int32_t w[256];     // unsigned where has_min, else signed
  std::int32_t scale[16];  // 32-wide: 1
  std::int32_t min[16];
};

// Row `lane` of the panel, tile `tile` of `n_tiles`; not for float formats.
PackedBlock unpack_block(PackedFormat format, const std::uint8_t* panel, std::int64_t n_tiles, std::int64_t tile,
                         int lane);

// Element (k, lane) of a panel of a float format.
float packed_float(PackedFormat format, const std::uint8_t* panel, std::int64_t k, int lane);

}  // namespace still

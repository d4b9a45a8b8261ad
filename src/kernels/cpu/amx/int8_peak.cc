// tdpbssd on four accumulator tiles, two tiles of each operand.
#include "kernels/cpu/int8_peak.h"

#include <immintrin.h>

namespace still {
namespace {

// Intel SDM volume 1, section 18.3: palette 1, 16 rows of 64 bytes for all eight tiles.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t n_rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

}  // namespace

std::int64_t int8_peak_amx(std::int64_t n_rounds) {
  const TileConfig config;
  // Not _tile_loadconfig: g++ 12's says that it reads 8 bytes, and the stores of the rest are left out.
  asm volatile("ldtilecfg (%0)" ::"r"(&config) : "memory");
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (std::int64_t round = 0; round < n_rounds; ++round) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
  return n_rounds * 4 * 16 * 16 * 64;
}

}  // namespace still

// The coarse copy of an output head's panel (kernel_table.h, CoarseArgs).
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/packing.h"
#include "kernels/ref/ref_kernels.h"
#include "tensor/float16.h"

namespace still::ref {

namespace {
constexpr std::int64_t kBlock = 32;

float sum_of_squares(const float* w) {
  float sum = 0;
  for (int i = 0; i < kBlock; ++i) sum = std::fma(w[i], w[i], sum);
  return sum;
}

// Where a tile of the copy lies.
struct Tile {
  std::uint8_t *scales, *quants;
};

// One row's block to Q4_0; w becomes what that leaves of it. Returns the copy's sum of squares.
float make_coarse(float* w, const Tile& tile, int lane) {
  float high = 0, low = 0;
  for (int i = 0; i < kBlock; ++i) {
    high = w[i] > high ? w[i] : high;
    low = w[i] < low ? w[i] : low;
  }
  // -8 is the larger side's end.
  const float wanted = (high > -low ? high : low) * -0.125f;
  const std::uint16_t bits = f32_to_f16(kCoarseLargest > (-low > high ? -low : high) ? wanted : 0);
  std::memcpy(tile.scales + 2 * lane, &bits, 2);
  const float d = f16_to_f32(bits), inverse = d == 0 ? 0 : 1 / d;
  float squares = 0;
  for (int v = 0; v < 4; ++v) {
    std::uint8_t bytes[4] = {};
    for (int half = 0; half < 2; ++half) {
      for (int byte = 0; byte < 4; ++byte) {
        float& x = w[16 * half + 4 * v + byte];
        constexpr float kInteger = 0x1p23f;  // sums with it are rounded to integers
        float q = std::fma(x, inverse, kInteger + 8);
        q = q > kInteger ? q : kInteger;  // of a NaN, too: it stays in what is left
        q = kInteger + 15 < q ? kInteger + 15 : q;
        const float level = q - (kInteger + 8);
        x = std::fma(-d, level, x);
        squares = std::fma(level, level, squares);
        bytes[byte] = static_cast<std::uint8_t>(bytes[byte] | (std::bit_cast<std::uint32_t>(q) & 15) << 4 * half);
      }
    }
    std::memcpy(tile.quants + 64 * v + 4 * lane, bytes, 4);
  }
  return d * d * squares;
}
}  // namespace

template <PackedFormat kFormat>
void coarse(const CoarseArgs& args) {
  constexpr PackedFormat kCopy = PackedFormat::kQ4_0;
  const std::int64_t n_tiles = (args.k + args.n_twice) / kBlock;
  const auto tile = [&](std::int64_t column) {
    const std::int64_t idx = column / kBlock, quant_bytes = packed_quant_bytes(kCopy);
    return Tile{args.copy + idx * (packed_tile_bytes(kCopy) - quant_bytes),
                args.copy + packed_quants_at(kCopy, n_tiles) + idx * quant_bytes};
  };
  std::vector<float> w(static_cast<std::size_t>(args.k));
  for (int lane = 0; lane < kPanelRows; ++lane) {
    decode_packed_row(kFormat, args.panel, 0, args.k, lane, w.data());
    float row = 0, copy = 0, left = 0, second = 0, twice_left = 0;
    float twice[kCoarseMostTwice];
    std::int32_t n_moved = 0;
    for (std::int64_t column = 0; column < args.k; column += kBlock) {
      float* block = w.data() + column;
      row += sum_of_squares(block);
      copy += make_coarse(block, tile(column), lane);
      for (; n_moved < args.n_twice && args.columns[n_moved] < column + kBlock; ++n_moved) {
        float& moved = w[static_cast<std::size_t>(args.columns[n_moved])];
        twice[args.places[n_moved]] = moved;
        moved = 0;
      }
      left += sum_of_squares(block);
    }
    for (std::int32_t i = 0; i < args.n_twice; i += kBlock) {
      second += make_coarse(twice + i, tile(args.k + i), lane);
      twice_left += sum_of_squares(twice + i);
    }
    args.sums->row[lane] = row;
    args.sums->copy[lane] = copy;
    args.sums->left[lane] = left;
    args.sums->second[lane] = second;
    args.sums->twice_left[lane] = twice_left;
  }
}

#define STILL_INSTANTIATE(format) template void coarse<PackedFormat::format>(const CoarseArgs& args);
STILL_INSTANTIATE(kF32)
STILL_INSTANTIATE(kF16)
STILL_INSTANTIATE(kBF16)
STILL_INSTANTIATE(kQ8_0)
STILL_INSTANTIATE(kQ6_K)

}  // namespace still::ref

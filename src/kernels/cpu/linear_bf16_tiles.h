// y = W x for bfloat16 weights on a matrix unit that multiplies tiles of bfloat16 (AMX-bf16). It cannot keep the order
// of linear_float.h, so the table that has it is used only where it is named (STILL_ISA=amx_bf16).
//
// Weights are what they are in the file. An activation is split into two bfloat16, x = high + low + rest with
// |rest| <= 2^-17 |x|, and both are multiplied. For each output element and each 32 k in their order:
// y = y + (sum over high), y = y + (sum over low), where the unit's sum (Intel SDM vol. 2, TDPBF16PS) is 16 fma over
// even k plus 16 fma over odd k. So the error is at most (2^-17 + (17 + 2 ceil(k / 32)) 2^-24) sum |w x|, which is less
// than what the reference's own chain of k fma allows from some 200 k on. Subnormal numbers count as zero. Every number
// of rows is computed like that: a row does not depend on what is computed with it.
//
// Tiles supplies the instructions, so that the rest can be tested where there is no such unit.
#pragma once

#include "kernels/cpu/common.h"

namespace still {
namespace {

constexpr int64_t kTileRows = 16, kTileBytes = 1024;
constexpr int64_t kStepK = 32;      // k of a tile of activations (16 rows) or weights (a panel)
constexpr int64_t kGroupTiles = 6;  // tiles of rows whose activations are split at once
constexpr int64_t kKeptSteps = 16;  // steps of weights that stay in scratch for all row tiles of a group
constexpr int64_t kActivationSteps = kKeptSteps * kGroupTiles;  // of one tile of rows, in scratch
constexpr int64_t kWeightTilesAt = 0, kActivationTilesAt = kWeightTilesAt + 2 * kKeptSteps * kTileBytes;
constexpr int64_t kSumsAt = kActivationTilesAt + kActivationSteps * 2 * kTileBytes;
static_assert(kSumsAt + kTileBytes <= kLinearScratchBytes);

// 0..3 sums (row tile 0 and panel 0; 0, 1; 1, 0; 1, 1), 4 and 5 weights of the panels, 6 and 7 activations.
struct Bf16TileConfig {
  alignas(64) uint8_t bytes[64] = {};
  Bf16TileConfig(int64_t rows0, int64_t rows1) {
    bytes[0] = 1;
    const int64_t rows[8] = {rows0, rows0, rows1, rows1, kTileRows, kTileRows, rows0, rows1};
    for (int tile = 0; tile < 8; ++tile) {
      bytes[16 + 2 * tile] = rows[tile] > 0 ? 64 : 0;
      bytes[48 + tile] = static_cast<uint8_t>(rows[tile]);
    }
  }
};

// [2 k][16 rows] to [16 rows][2 k], for each pair of the step's k; n_k may end before the step does.
STILL_INLINE void unpack_bf16_step(const uint8_t* panel, int64_t n_k, uint8_t* tile) {
  typedef uint16_t Halves __attribute__((vector_size(64)));
  const int64_t n_pairs = min_of(kStepK / 2, (n_k + 1) / 2);
  for (int64_t pair = 0; pair < n_pairs; ++pair) {
    Halves v;
    _mm_prefetch(reinterpret_cast<const char*>(panel + 64 * pair + 4096), _MM_HINT_T0);
    __builtin_memcpy(&v, panel + 64 * pair, 64);
    v = __builtin_shufflevector(v, v, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11,
                                27, 12, 28, 13, 29, 14, 30, 15, 31);
    __builtin_memcpy(tile + 64 * pair, &v, 64);
  }
  if (n_pairs < kStepK / 2) __builtin_memset(tile + 64 * n_pairs, 0, static_cast<uint64_t>(kTileBytes - 64 * n_pairs));
}

// Activations of up to 16 rows to [step][high, low][16 rows][32 k]; k past the end is zero.
template <class Tiles>
void split_rows(const float* x, int64_t x_stride, int64_t n_rows, int64_t n_k, uint8_t* tiles) {
  for (int64_t r = 0; r < n_rows; ++r) {
    const float* row = x + r * x_stride;
    uint8_t* out = tiles + r * 64;
    int64_t k = 0;
    for (; k + kStepK <= n_k; k += kStepK, out += 2 * kTileBytes) Tiles::split(row + k, out, out + kTileBytes);
    if (k < n_k) {
      alignas(64) float last[kStepK] = {};
      __builtin_memcpy(last, row + k, static_cast<uint64_t>((n_k - k) * 4));
      Tiles::split(last, out, out + kTileBytes);
    }
  }
}

// One or two tiles of rows by one or two panels, over the steps whose activations are in scratch.
struct Bf16Block {
  int64_t row, rows0, rows1;      // the first row; rows of the two tiles, the second's may be 0
  int64_t panel, n_panels;        // 1 or 2
  int64_t k, n_k;                 // first k, number
  const uint8_t* activations[2];  // [step][2][kTileBytes]
  bool unpacks;                   // the weights of these steps are not in scratch yet
};

template <class Tiles, int kTile>
STILL_INLINE void load_sums(const LinearArgs& args, const Bf16Block& block) {
  if (block.k == 0) return Tiles::template zero<kTile>();
  const int64_t panel = block.panel + kTile % 2, row = block.row + kTile / 2 * kTileRows;
  const float* y = args.y + row * args.y_stride + panel * kPanelRows;
  const int64_t lanes = args.n_out - panel * kPanelRows;
  if (lanes >= kPanelRows) return Tiles::template load<kTile>(y, args.y_stride * 4);
  float* sums = reinterpret_cast<float*>(args.scratch + kSumsAt);
  for (int64_t r = 0; r < (kTile < 2 ? block.rows0 : block.rows1); ++r)
    for (int64_t lane = 0; lane < lanes; ++lane) sums[r * kPanelRows + lane] = y[r * args.y_stride + lane];
  Tiles::template load<kTile>(sums, 64);
}

template <class Tiles, int kTile>
STILL_INLINE void store_sums(const LinearArgs& args, const Bf16Block& block) {
  const int64_t panel = block.panel + kTile % 2, row = block.row + kTile / 2 * kTileRows;
  float* y = args.y + row * args.y_stride + panel * kPanelRows;
  const int64_t lanes = args.n_out - panel * kPanelRows;
  if (lanes >= kPanelRows) return Tiles::template store<kTile>(y, args.y_stride * 4);
  float* sums = reinterpret_cast<float*>(args.scratch + kSumsAt);
  Tiles::template store<kTile>(sums, 64);
  for (int64_t r = 0; r < (kTile < 2 ? block.rows0 : block.rows1); ++r)
    for (int64_t lane = 0; lane < lanes; ++lane) y[r * args.y_stride + lane] = sums[r * kPanelRows + lane];
}

template <class Tiles, bool kTwoRowTiles, bool kTwoPanels>
void multiply_bf16_block(const LinearArgs& args, const Bf16Block& block) {
  constexpr int kPanels = kTwoPanels ? 2 : 1;
  uint8_t* tiles[2] = {args.scratch + kWeightTilesAt, args.scratch + kWeightTilesAt + kKeptSteps * kTileBytes};
  const auto unpack = [&](int64_t step) STILL_UNROLLED {
    for (int p = 0; p < kPanels; ++p) {
      const int64_t k = block.k + step * kStepK;
      unpack_bf16_step(args.weights + (block.panel + p) * args.panel_bytes + k * kPanelRows * 2, args.k - k,
                       tiles[p] + step % kKeptSteps * kTileBytes);
    }
  };
  load_sums<Tiles, 0>(args, block);
  if constexpr (kTwoPanels) load_sums<Tiles, 1>(args, block);
  if constexpr (kTwoRowTiles) load_sums<Tiles, 2>(args, block);
  if constexpr (kTwoRowTiles && kTwoPanels) load_sums<Tiles, 3>(args, block);
  const int64_t n_steps = (block.n_k + kStepK - 1) / kStepK;
  if (block.unpacks) unpack(0);
  for (int64_t step = 0; step < n_steps; ++step) {
    if (block.unpacks && step + 1 < n_steps) unpack(step + 1);  // a tile is read long after it was written
    Tiles::template load<4>(tiles[0] + step % kKeptSteps * kTileBytes, 64);
    if constexpr (kTwoPanels) Tiles::template load<5>(tiles[1] + step % kKeptSteps * kTileBytes, 64);
    repeat<2>([&](auto part) STILL_UNROLLED {
      const int64_t at = (2 * step + decltype(part)::value) * kTileBytes;
      Tiles::template load<6>(block.activations[0] + at, 64);
      Tiles::template multiply<0, 6, 4>();
      if constexpr (kTwoPanels) Tiles::template multiply<1, 6, 5>();
      if constexpr (kTwoRowTiles) {
        Tiles::template load<7>(block.activations[1] + at, 64);
        Tiles::template multiply<2, 7, 4>();
        if constexpr (kTwoPanels) Tiles::template multiply<3, 7, 5>();
      }
    });
  }
  store_sums<Tiles, 0>(args, block);
  if constexpr (kTwoPanels) store_sums<Tiles, 1>(args, block);
  if constexpr (kTwoRowTiles) store_sums<Tiles, 2>(args, block);
  if constexpr (kTwoRowTiles && kTwoPanels) store_sums<Tiles, 3>(args, block);
}

// Rows [row, row + n), at most kGroupTiles tiles of them. Up to two tiles are multiplied as the weights are unpacked
// and need no more than a few steps of those in scratch; then all scratch holds activations, so that panels are read in
// long runs.
template <class Tiles>
void multiply_bf16_rows(const LinearArgs& args, int64_t row, int64_t n) {
  const int64_t n_tiles = (n + kTileRows - 1) / kTileRows;
  const int64_t n_steps = n_tiles <= 2 ? kActivationSteps / n_tiles : kKeptSteps;
  uint8_t* activations = args.scratch + kActivationTilesAt;
  const auto rows_of = [&](int64_t tile) { return max_of(0, min_of(kTileRows, n - tile * kTileRows)); };
  int64_t configured[2] = {-1, -1};
  for (int64_t k = 0; k < args.k; k += n_steps * kStepK) {
    const int64_t n_k = min_of(n_steps * kStepK, args.k - k);
    for (int64_t tile = 0; tile < n_tiles; ++tile)
      split_rows<Tiles>(args.x_f32 + (row + tile * kTileRows) * args.x_stride + k, args.x_stride, rows_of(tile), n_k,
                        activations + tile * n_steps * 2 * kTileBytes);
    for (int64_t panel = args.panel_begin; panel < args.panel_end; panel += 2) {
      for (int64_t tile = 0; tile < n_tiles; tile += 2) {
        const Bf16Block block{.row = row + tile * kTileRows,
                              .rows0 = rows_of(tile),
                              .rows1 = rows_of(tile + 1),
                              .panel = panel,
                              .n_panels = min_of(2, args.panel_end - panel),
                              .k = k,
                              .n_k = n_k,
                              .activations = {activations + tile * n_steps * 2 * kTileBytes,
                                              activations + (tile + 1) * n_steps * 2 * kTileBytes},
                              .unpacks = tile == 0};
        if (configured[0] != block.rows0 || configured[1] != block.rows1) {
          configured[0] = block.rows0;
          configured[1] = block.rows1;
          Tiles::configure(Bf16TileConfig(block.rows0, block.rows1).bytes);
        }
        if (block.rows1 > 0) {
          block.n_panels == 2 ? multiply_bf16_block<Tiles, true, true>(args, block)
                              : multiply_bf16_block<Tiles, true, false>(args, block);
        } else {
          block.n_panels == 2 ? multiply_bf16_block<Tiles, false, true>(args, block)
                              : multiply_bf16_block<Tiles, false, false>(args, block);
        }
      }
    }
  }
}

template <class Tiles>
void linear_bf16_tiles(const LinearArgs& args) {
  constexpr int64_t kGroupRows = kGroupTiles * kTileRows;
  for (int64_t row = 0; row < args.n_rows; row += kGroupRows)
    multiply_bf16_rows<Tiles>(args, row, min_of(kGroupRows, args.n_rows - row));
  Tiles::release();
}

}  // namespace
}  // namespace still

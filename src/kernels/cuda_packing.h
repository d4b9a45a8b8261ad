// How weights lie in GPU memory (docs/gpu-kernels.md has the pictures), and the packing itself, which runs on the host.
//
// Float matrices: rows as they are, F16 turned into BF16. FP8: rows of bytes, then f32 scales: of each row, or of each
// 128 x 128 weights. Quantised ones: panels of 16 rows, all tiles' quants, then all tiles' scales; a tile is 16 rows x
// 32 or 256 weights, laid out so that one 16-byte load of each of a warp's 32 lanes gives the A operand of mma.m16n8k32
// (or twice m16n8k16) without a shuffle. A row's scales stand in the order in which four lanes want them, those of
// tiles 32 wide for eight tiles at a time.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace still {

// Formats that CPUs do not compute with, in the enumeration's values that are free: e4m3 with an f32 scale for each
// row, for each 128 x 128 weights.
inline constexpr PackedFormat kCudaF8Row{kPackedFormatCount};
inline constexpr PackedFormat kCudaF8Block{kPackedFormatCount + 1};
// Another way to compute with weights packed as Q8_0, not one to pack them: they are made f16 (weights.cuh).
inline constexpr PackedFormat kCudaQ8F16{kPackedFormatCount + 2};

// The properties that the kernels are templates of.
struct CudaQuantLayout {
  int bits = 0;  // 4, 5, 6, 8: as stored on the GPU (Q2_K and Q3_K are kept in 4 bits, IQ4 formats in 8)
  int sub = 32;  // weights that share a sub-block scale
  bool has_min = false;
  int block = 32;  // 32 or 256: weights of a tile's row, and of an activation block
  int quant_bytes() const { return 16 * block * bits / 8; }
  int scale_bytes() const { return block == 32 ? (has_min ? 64 : 32) : 64 + 16 * (256 / sub) * (has_min ? 2 : 1); }
};

// Where scale i (of n_sub: 8 or 16) or minimum i stands among a row's: lane t of four wants those of i = 2 t and 2 t +
// 1, and with 16 of them of 8 + 2 t and 9 + 2 t, its minimums after its scales.
constexpr int cuda_scale_place(int n_sub, bool has_min, bool is_min, int i) {
  const int each = n_sub / 4;
  return i % 8 / 2 * each * (has_min ? 2 : 1) + (is_min ? each : 0) + i % 2 + i / 8 * 2;
}

bool is_cuda_quantized(PackedFormat format);  // integers with scales of sub-blocks: not floats, not FP8
bool is_cuda_f8(PackedFormat format);
PackedFormat cuda_f16_form(PackedFormat format);  // kCudaQ8F16 where weights are packed so, else what it is
// What a matrix becomes where FP8 is wanted: kCudaF8Row if it holds floats and its rows suit, else what it is.
PackedFormat cuda_f8_format(PackedFormat format, std::int64_t k);
CudaQuantLayout cuda_quant_layout(PackedFormat format);  // of a quantised format
// Elements of a row's end that hold nothing: rows of float matrices are padded to a multiple of 8.
std::int64_t cuda_row_elements(PackedFormat format, std::int64_t k);
std::int64_t cuda_panel_bytes(PackedFormat format, std::int64_t k);  // of 16 rows
std::int64_t cuda_packed_bytes(PackedFormat format, std::int64_t n_out, std::int64_t k);

// A panel of the CPU's packing (kernels/packing.h) to a panel of the GPU's.
void cuda_pack_panel(PackedFormat format, const std::uint8_t* cpu_panel, std::int64_t k, std::uint8_t* gpu_panel);

// Floats as e4m3: `n` values of a row times 1 / scale; returns the row's scale, which brings its largest to 448.
float cuda_pack_f8_row(const float* row, std::int64_t n, std::uint8_t* out);
std::int64_t cuda_f8_scales(PackedFormat format, std::int64_t n_out, std::int64_t k);  // how many

}  // namespace still

// How weights lie in GPU memory (docs/gpu-kernels.md has the pictures), and the packing itself, which runs on the host.
//
// Float matrices: rows as they are, F16 turned into BF16. Quantised ones: panels of 16 rows, all tiles' quants, then
// all tiles' scales; a tile is 16 rows x 32 or 256 weights, laid out so that one 16-byte load of each of a warp's 32
// lanes gives the A operand of mma.m16n8k32 (or twice m16n8k16) without a shuffle.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace still {

// The properties that the kernels are templates of.
struct CudaQuantLayout {
  int bits = 0;  // 4, 5, 6, 8: as stored on the GPU (Q2_K and Q3_K are kept in 4 bits, IQ4 formats in 8)
  int sub = 32;  // weights that share a sub-block scale
  bool has_min = false;
  int block = 32;  // 32 or 256: weights of a tile's row, and of an activation block
  int quant_bytes() const { return 16 * block * bits / 8; }
  int scale_bytes() const { return block == 32 ? (has_min ? 64 : 32) : 64 + 16 * (256 / sub) * (has_min ? 2 : 1); }
};

bool is_cuda_quantized(PackedFormat format);
CudaQuantLayout cuda_quant_layout(PackedFormat format);  // of a quantised format
// Elements of a row's end that hold nothing: rows of float matrices are padded to a multiple of 8.
std::int64_t cuda_row_elements(PackedFormat format, std::int64_t k);
std::int64_t cuda_panel_bytes(PackedFormat format, std::int64_t k);  // of 16 rows
std::int64_t cuda_packed_bytes(PackedFormat format, std::int64_t n_out, std::int64_t k);

// A panel of the CPU's packing (kernels/packing.h) to a panel of the GPU's.
void cuda_pack_panel(PackedFormat format, const std::uint8_t* cpu_panel, std::int64_t k, std::uint8_t* gpu_panel);

}  // namespace still

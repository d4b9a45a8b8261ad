// The tables of the instruction sets; kernels/dispatch.cc picks one. Call one only on a machine that has the set: the
// tables are filled by code compiled for it. Each starts as a copy of the level below and overrides what it has.
#pragma once

#include "kernels/kernel_table.h"

namespace still {

extern const CpuKernels kRefKernels;

const CpuKernels& avx2_kernels();         // AVX2, FMA, F16C
const CpuKernels& avx512_kernels();       // AVX-512 F, BW, DQ, VL
const CpuKernels& avx512_vnni_kernels();  // and VNNI
const CpuKernels& amx_kernels();          // and AMX-int8; the process must have asked the system for tile data
const CpuKernels& amx_bf16_kernels();     // and AMX-bf16, AVX-512-BF16; not the reference's bits (linear_bf16_tiles.h)

}  // namespace still

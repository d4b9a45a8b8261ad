// What the files of this folder put into the table.
#pragma once

#include "kernels/kernel_table.h"

namespace still {

void avx512_set_linear_32(CpuKernels& table);
void avx512_set_linear_256(CpuKernels& table);
void avx512_set_linear_float(CpuKernels& table);
void avx512_set_pack(CpuKernels& table);
void avx512_set_rows(CpuKernels& table);
void avx512_set_coarse(CpuKernels& table);

}  // namespace still

// What the files of this folder put into the table.
#pragma once

#include "kernels/kernel_table.h"

namespace still {

void amx_set_linear(CpuKernels& table);

}  // namespace still

// Which kernel table this machine runs: the highest level that CPU and operating system support, or what the caller
// forces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kernels/kernel_table.h"

namespace still {

// Levels that this machine can run, lowest first: "ref", "avx2", "avx512", "avx512_vnni", "amx". All give the same
// bits.
std::vector<std::string> available_isas();

// Levels that it can run and that do not give those bits, only used where they are named: "amx_bf16".
std::vector<std::string> inexact_isas();

// "" or "auto": the highest of available_isas(). Otherwise a level's name; kUnsupported names what this machine has.
Result<const CpuKernels*> select_cpu_kernels(std::string_view isa);

// select_cpu_kernels(getenv("STILL_ISA")): the one environment variable that is read outside cli/.
Result<const CpuKernels*> default_cpu_kernels();

}  // namespace still

// The loops that kernels/int8_peak.h times: nothing but int8 dot products on registers, as many independent ones as
// hide the latency. Each returns the multiply-accumulates that n_rounds rounds did.
#pragma once

#include <cstdint>

namespace still {

std::int64_t int8_peak_avx2(std::int64_t n_rounds);
std::int64_t int8_peak_avx512(std::int64_t n_rounds);
std::int64_t int8_peak_avx512_vnni(std::int64_t n_rounds);
std::int64_t int8_peak_amx(std::int64_t n_rounds);

}  // namespace still

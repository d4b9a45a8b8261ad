// Packing of weights, AVX-512.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx512/parts.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/pack.h"
// clang-format on

namespace still {

void avx512_set_pack(CpuKernels& table) {
  const auto set = [&](PackedFormat format, void (*pack)(const PackArgs&)) {
    table.pack[static_cast<int>(format)] = pack;
  };
  set(PackedFormat::kF32, pack_floats<4>);
  set(PackedFormat::kF16, pack_floats<2>);
  set(PackedFormat::kBF16, pack_floats<2>);
  set(PackedFormat::kQ4_0, pack_quantized<PackQ4_0>);
  set(PackedFormat::kQ4_1, pack_quantized<PackQ4_1>);
  set(PackedFormat::kQ5_0, pack_quantized<PackQ5_0>);
  set(PackedFormat::kQ5_1, pack_quantized<PackQ5_1>);
  set(PackedFormat::kQ8_0, pack_quantized<PackQ8_0>);
  set(PackedFormat::kIQ4_NL, pack_quantized<PackIQ4_NL>);
  set(PackedFormat::kQ2_K, pack_quantized<PackQ2_K>);
  set(PackedFormat::kQ3_K, pack_quantized<PackQ3_K>);
  set(PackedFormat::kQ4_K, pack_quantized<PackQ4_K>);
  set(PackedFormat::kQ5_K, pack_quantized<PackQ5_K>);
  set(PackedFormat::kQ6_K, pack_quantized<PackQ6_K>);
  set(PackedFormat::kIQ4_XS, pack_quantized<PackIQ4_XS>);
}

}  // namespace still

// The reference as a table of kernels.
#include "kernels/ref/ref_kernels.h"

namespace still {

#define STILL_FOR_EACH_FORMAT(X)                                                                      \
  {X<PackedFormat::kF32>,    X<PackedFormat::kF16>,  X<PackedFormat::kBF16>,  X<PackedFormat::kQ4_0>, \
   X<PackedFormat::kQ4_1>,   X<PackedFormat::kQ5_0>, X<PackedFormat::kQ5_1>,  X<PackedFormat::kQ8_0>, \
   X<PackedFormat::kIQ4_NL>, X<PackedFormat::kQ2_K>, X<PackedFormat::kQ3_K>,  X<PackedFormat::kQ4_K>, \
   X<PackedFormat::kQ5_K>,   X<PackedFormat::kQ6_K>, X<PackedFormat::kIQ4_XS>}

extern constexpr CpuKernels kRefKernels{
    .name = "ref",
    .quantize_rows = ref::quantize_rows,
    .linear = STILL_FOR_EACH_FORMAT(ref::linear),
    .pack = STILL_FOR_EACH_FORMAT(ref::pack),
    .coarse = {ref::coarse<PackedFormat::kF32>, ref::coarse<PackedFormat::kF16>, ref::coarse<PackedFormat::kBF16>,
               nullptr, nullptr, nullptr, nullptr, ref::coarse<PackedFormat::kQ8_0>, nullptr, nullptr, nullptr, nullptr,
               nullptr, ref::coarse<PackedFormat::kQ6_K>, nullptr},
    .rms_norm = ref::rms_norm,
    .add_rms_norm = ref::add_rms_norm,
    .add = ref::add,
    .swiglu = ref::swiglu,
    .rope = ref::rope,
    .kv_write = ref::kv_write,
    .attention = ref::attention,
    .attention_merge = ref::attention_merge,
    .argmax = ref::argmax,
    .log_sum_exp = ref::log_sum_exp,
    .exp_shifted = ref::exp_shifted,
};

}  // namespace still

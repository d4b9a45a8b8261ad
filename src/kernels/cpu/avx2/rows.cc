// Everything but products and packing, AVX2.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx2/parts.h"
#include "kernels/cpu/lanes_avx2.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/attention.h"
// clang-format on

namespace still {

void avx2_set_rows(CpuKernels& table) {
  table.quantize_rows = quantize_rows;
  table.rms_norm = rms_norm;
  table.add_rms_norm = add_rms_norm;
  table.add = add;
  table.swiglu = swiglu;
  table.rope = rope;
  table.kv_write = kv_write;
  table.attention = attention;
  table.attention_merge = attention_merge;
  table.argmax = argmax;
  table.log_sum_exp = log_sum_exp;
  table.exp_shifted = exp_shifted;
}

}  // namespace still

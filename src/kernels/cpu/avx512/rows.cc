// Everything but products and packing, AVX-512.
// clang-format off: what comes later is written in the terms of what comes before
#include "kernels/cpu/avx512/parts.h"
#include "kernels/cpu/lanes_avx512.h"
#include "kernels/cpu/rows.h"
#include "kernels/cpu/attention.h"
// clang-format on

namespace still {

void avx512_set_rows(CpuKernels& table) {
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

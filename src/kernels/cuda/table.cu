// The table of CUDA kernels (cuda_kernels.h).
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/comm.cuh"
#include "kernels/cuda/elementwise.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/sample.cuh"

namespace still {

const CudaKernels* cuda_kernels() {
  static constexpr CudaKernels kTable{.name = "cuda",
                                      .linear = cuda::linear,
                                      .dequantize = cuda::dequantize,
                                      .quantize_rows = cuda::quantize_rows,
                                      .to_bf16 = cuda::to_bf16,
                                      .scale_rows = cuda::scale_rows,
                                      .has_f8_chains = cuda::has_f8_chains,
                                      .linear_f8 = cuda::linear_f8,
                                      .has_bf16_chains = cuda::has_bf16_chains,
                                      .linear_bf16_chain = cuda::linear_bf16_chain,
                                      .has_tiles = cuda::has_tiles,
                                      .arrange_rows = cuda::arrange_rows,
                                      .image_kind = cuda::image_kind,
                                      .repeat_bias = cuda::repeat_bias,
                                      .rms_norm = cuda::rms_norm,
                                      .gather = cuda::gather,
                                      .embed = cuda::embed,
                                      .rope_kv_write = cuda::rope_kv_write,
                                      .attention = cuda::attention,
                                      .swiglu = cuda::swiglu,
                                      .sample = cuda::sample,
                                      .fetch_step = cuda::fetch_step,
                                      .sample_scratch_bytes = cuda::sample_scratch_bytes,
                                      .sum_parts = cuda::sum_parts,
                                      .gather_columns = cuda::gather_columns,
                                      .load_rank_kernels =
                                          [] {
                                            cuda::load_sum_kernels();
                                            cuda::load_gather_kernels();
                                          },
                                      .fill_weights = cuda::fill_weights,
                                      .fill_f32 = cuda::fill_f32,
                                      .read = cuda::read};
  return &kTable;
}

}  // namespace still

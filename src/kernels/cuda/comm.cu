// Logits whose columns lie on several ranks, put together on all. The sum of parts is in elementwise.cu, since the
// norm is a part of it.
#include "kernels/cuda/comm.cuh"

namespace still::cuda {

namespace {
template <int kWidth>
__global__ void __launch_bounds__(256) gather_columns_kernel(const CudaGatherArgs args) {
  wait_for_previous();
  allow_next();
  const std::uint32_t call = next_call(args.state);
  const int n_pieces = args.n_columns / kWidth;
  const std::int64_t n = static_cast<std::int64_t>(args.n_rows) * n_pieces,
                     stride = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = blockIdx.x * std::int64_t{blockDim.x} + threadIdx.x; i < n; i += stride) {
    const std::int64_t row = i / n_pieces, column = i % n_pieces * kWidth;
    const float* from = args.columns + row * args.n_columns + column;
    const std::int64_t at = row * args.y_stride + args.first_column + column;
    if constexpr (kWidth == 4) {
      const float4 v = *reinterpret_cast<const float4*>(from);
      for (int r = 0; r < args.n_ranks; ++r) *reinterpret_cast<float4*>(args.y[r] + at) = v;
    } else {
      for (int r = 0; r < args.n_ranks; ++r) args.y[r][at] = *from;
    }
  }
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0 || !end_call(args.state, call)) return;
  // The last block: all of this rank is written.
  __threadfence_system();
  for (int r = 0; r < args.n_ranks; ++r) store_volatile(args.arrivals[r] + args.rank, call);
  for (int r = 0; r < args.n_ranks; ++r) {
    std::uint32_t n_polls = 0;
    std::uint64_t since = 0;
    while (load_volatile(args.arrivals[args.rank] + r) != call) check_patience(n_polls, since);
  }
  __threadfence_system();
}
}  // namespace

void gather_columns(void* stream, const CudaGatherArgs& args) {
  const bool is_wide = args.n_columns % 4 == 0 && args.y_stride % 4 == 0 && args.first_column % 4 == 0;
  const std::int64_t n = static_cast<std::int64_t>(args.n_rows) * args.n_columns / (is_wide ? 4 : 1);
  const unsigned n_blocks = ceil_div(n, 1024) < 264 ? ceil_div(n, 1024) : 264;
  if (is_wide) {
    launch(gather_columns_kernel<4>, n_blocks, 256, 0, stream, args);
  } else {
    launch(gather_columns_kernel<1>, n_blocks, 256, 0, stream, args);
  }
}

void load_gather_kernels() {
  load_kernel(gather_columns_kernel<1>);
  load_kernel(gather_columns_kernel<4>);
}

}  // namespace still::cuda

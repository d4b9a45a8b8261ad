// Sampling where the logits are, so that a step gives back one number a row.
//
// Pieces of a row are looked through by a block each; the block that arrives last folds them. Temperature alone is the
// Gumbel-max trick (argmax of logit / T plus Gumbel noise, which draws from the softmax exactly): the noise of a token
// depends on the row's 64 random bits and the token's id, so a draw does not depend on the batch.
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/sample.cuh"

namespace still::cuda {

namespace {
constexpr int kThreads = 256;
constexpr int kPieces = 32;
constexpr std::int64_t kArrivalBytes = 4 * 16384;  // a counter for each of at most 16384 rows
constexpr float kGreedyTemperature = 1e-4f;

struct Best {
  float value;
  std::int32_t id;
};
// The larger value, the lower id among equals; NaN loses.
__device__ __forceinline__ bool is_better(const Best& a, const Best& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, best.value, i), __shfl_xor_sync(0xffffffffu, best.id, i)};
    if (is_better(other, best)) best = other;
  }
  return best;
}
// -log(e), e exponential: -log(1 - w) with w from 32 random bits, precise where w is small and the result large.
__device__ __forceinline__ float gumbel(std::uint64_t random, std::int32_t id) {
  std::uint64_t z = random + (static_cast<std::uint64_t>(id) + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  const float w = (static_cast<float>(static_cast<std::uint32_t>(z >> 32)) + 0.5f) * 0x1p-32f;
  return -logf(-log1pf(-w));
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, int vocab_size, const CudaSampleRow* rows, Best* pieces, unsigned* arrivals,
                  std::int32_t* ids) {
  __shared__ Best shared[kThreads / 32];
  __shared__ int is_last;
  wait_for_previous();
  allow_next();
  const CudaSampleRow row = rows[blockIdx.y];
  const float* values = logits + static_cast<std::int64_t>(row.row) * vocab_size;
  const int share = (vocab_size + kPieces - 1) / kPieces;
  const int begin = static_cast<int>(blockIdx.x) * share, end = min(begin + share, vocab_size);
  const bool is_greedy = row.temperature < kGreedyTemperature || row.top_k == 1;
  const float inverse = is_greedy ? 1.0f : 1.0f / row.temperature;
  Best best{-INFINITY, vocab_size};
  for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kThreads) {
    float value = values[id];
    for (unsigned i = 0; i < row.n_banned; ++i)
      if (row.banned[i] == id) value = -INFINITY;
    if (!is_greedy) value = value * inverse + gumbel(row.random, id);
    const Best candidate{value, id};
    if (is_better(candidate, best)) best = candidate;
  }
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kThreads / 32; ++w)
      if (is_better(shared[w], best)) best = shared[w];
    pieces[blockIdx.y * kPieces + blockIdx.x] = best;
    __threadfence();
    is_last = atomicInc(arrivals + blockIdx.y, kPieces - 1) == kPieces - 1 ? 1 : 0;
  }
  __syncthreads();
  if (is_last == 0 || threadIdx.x >= 32) return;
  __threadfence();
  const volatile Best* piece = pieces + blockIdx.y * kPieces + threadIdx.x;
  best = warp_best(Best{piece->value, piece->id});
  if (threadIdx.x == 0) ids[blockIdx.y] = isfinite(best.value) ? best.id : -1;
}
}  // namespace

void sample(void* stream, const float* logits, std::int32_t vocab_size, const CudaSampleRow* rows, std::int32_t n,
            std::uint8_t* scratch, std::int32_t* ids) {
  auto* arrivals = reinterpret_cast<unsigned*>(scratch);  // zero between calls
  auto* pieces = reinterpret_cast<Best*>(scratch + kArrivalBytes);
  launch(sample_kernel, dim3(kPieces, static_cast<unsigned>(n)), kThreads, 0, stream, logits, vocab_size, rows, pieces,
         arrivals, ids);
}

std::int64_t sample_scratch_bytes(std::int32_t n, std::int32_t) {
  return kArrivalBytes + static_cast<std::int64_t>(n) * kPieces * static_cast<std::int64_t>(sizeof(Best));
}

}  // namespace still::cuda

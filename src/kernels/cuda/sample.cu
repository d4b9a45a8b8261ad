// Sampling where the logits are, so that a step gives back one number a row.
//
// Without a cut, pieces of a row are looked through by a block each; the block that arrives last folds them. With
// top-k, top-p or min-p a block takes the row: it finds which tokens stay, then draws among them. Drawing is the
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

__device__ __forceinline__ bool is_greedy(const CudaSampleRow& row) {
  return row.temperature < kGreedyTemperature || row.top_k == 1;
}
__device__ __forceinline__ bool is_cut(const CudaSampleRow& row) {
  return !is_greedy(row) && (row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f);
}
__device__ __forceinline__ void tell(std::int32_t* ids, std::int32_t* host_ids, unsigned row, std::int32_t id) {
  ids[row] = id;
  if (host_ids != nullptr) host_ids[row] = id;
}

__global__ void __launch_bounds__(kThreads)
    sample_kernel(const float* logits, int vocab_size, const CudaSampleRow* rows, Best* pieces, unsigned* arrivals,
                  std::int32_t* ids, std::int32_t* host_ids) {
  __shared__ Best shared[kThreads / 32];
  __shared__ int is_last;
  wait_for_previous();
  allow_next();
  const CudaSampleRow row = rows[blockIdx.y];
  if (is_cut(row)) return;
  const float* values = logits + static_cast<std::int64_t>(row.row) * vocab_size;
  const int share = (vocab_size + kPieces - 1) / kPieces;
  const int begin = static_cast<int>(blockIdx.x) * share, end = min(begin + share, vocab_size);
  const bool is_plain = is_greedy(row);
  const float inverse = is_plain ? 1.0f : 1.0f / row.temperature;
  Best best{-INFINITY, vocab_size};
  for (int id = begin + static_cast<int>(threadIdx.x); id < end; id += kThreads) {
    float value = values[id];
    for (unsigned i = 0; i < row.n_banned; ++i)
      if (row.banned[i] == id) value = -INFINITY;
    if (!is_plain) value = value * inverse + gumbel(row.random, id);
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
  if (threadIdx.x == 0) tell(ids, host_ids, blockIdx.y, isfinite(best.value) ? best.id : -1);
}

// Rows with a cut --------------------------------------------------------------------------------------------------
//
// A token's probability relative to the best one is exp(-d), d = (best - logit) / T. Probabilities are summed as whole
// numbers of 2^-40: in any order the same sum. Tokens of d < kReach are counted in bins of d; the best bins that hold
// enough tokens, and at most kList, are sorted, and the cut is found in that list. Where it lies elsewhere (a flat
// distribution, a very large top_k), it is found bit by bit over the whole row: slower, and as exact.
constexpr int kCutThreads = 1024, kCutWarps = kCutThreads / 32;
constexpr int kBins = 2048, kList = 4096;
constexpr float kReach = 16.0f, kBinsOfOne = kBins / kReach;

struct CutMemory {
  union {
    std::uint64_t list[kList];  // (logit's order, -id): sorted, best first
    struct {
      std::uint32_t count[kBins];
      std::uint64_t mass[kBins];
    } bins;
  };
  Best best[kCutWarps];
  std::uint64_t sums[kCutWarps];
  std::uint64_t total, before;
  std::int32_t n_list, crossing;
};

// Floats in an order of whole numbers.
__device__ __forceinline__ std::uint32_t order_of(float v) {
  const auto bits = __float_as_uint(v);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(std::uint32_t order) {
  return __uint_as_float((order & 0x80000000u) != 0 ? order & 0x7fffffffu : ~order);
}

class Cut {
 public:
  __device__ Cut(CutMemory& memory, const CudaSampleRow& row, const float* values, int vocab_size)
      : memory_(memory), row_(row), values_(values), vocab_size_(vocab_size), inverse_(1.0f / row.temperature) {}

  __device__ std::int32_t draw() {
    Best best{-INFINITY, vocab_size_};
    each([&](int id, float v) {
      const Best candidate{v, id};
      if (is_better(candidate, best)) best = candidate;
    });
    best = block_best(best);
    if (!isfinite(best.value)) return -1;
    most_ = best.value;
    const std::int64_t top_k = row_.top_k > 0 && row_.top_k < vocab_size_ ? row_.top_k : 0;
    std::int32_t id = -1;
    if (top_k > 0 || row_.top_p < 1.0f) {
      if (draw_from_list(top_k, id)) return id;
      return draw_from_row(threshold(top_k));
    }
    return draw_from_row(0);
  }

 private:
  static __device__ int tid() { return static_cast<int>(threadIdx.x); }

  template <class Body>
  __device__ void each(Body&& body) const {
    for (int id = tid(); id < vocab_size_; id += kCutThreads) {
      float v = values_[id];
      for (unsigned i = 0; i < row_.n_banned; ++i)
        if (row_.banned[i] == id) v = -INFINITY;
      body(id, isnan(v) ? -INFINITY : v);
    }
  }
  __device__ float share(float v) const { return expf((v - most_) * inverse_); }
  __device__ std::uint64_t mass(float v) const { return static_cast<std::uint64_t>(share(v) * 0x1p40f); }

  __device__ Best block_best(Best best) {
    best = warp_best(best);
    __syncthreads();
    if (tid() % 32 == 0) memory_.best[tid() / 32] = best;
    __syncthreads();
    return warp_best(memory_.best[tid() % 32]);
  }
  __device__ std::uint64_t block_sum(std::uint64_t v) {
#pragma unroll
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
    __syncthreads();
    if (tid() % 32 == 0) memory_.sums[tid() / 32] = v;
    __syncthreads();
    v = memory_.sums[tid() % 32];
#pragma unroll
    for (int i = 16; i > 0; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
    return v;
  }
  // The sum of lower threads' values.
  __device__ std::uint64_t sum_before(std::uint64_t v) {
    std::uint64_t sum = v;
#pragma unroll
    for (int i = 1; i < 32; i *= 2) {
      const std::uint64_t other = __shfl_up_sync(0xffffffffu, sum, i);
      if (tid() % 32 >= i) sum += other;
    }
    __syncthreads();
    if (tid() % 32 == 31) memory_.sums[tid() / 32] = sum;
    __syncthreads();
    std::uint64_t lower = 0;
    for (int w = 0; w < tid() / 32; ++w) lower += memory_.sums[w];
    return lower + sum - v;
  }

  // The first bin with which the sum of bins reaches `target` (kBins: none does), and the sum before it.
  template <class T>
  __device__ int find_crossing(const T* bins, std::uint64_t target, std::uint64_t& before) {
    __syncthreads();
    if (tid() < 32) {
      constexpr int kShare = kBins / 32;
      std::uint64_t own = 0;
      for (int i = 0; i < kShare; ++i) own += bins[tid() * kShare + i];
      std::uint64_t sum = own;
#pragma unroll
      for (int i = 1; i < 32; i *= 2) {
        const std::uint64_t other = __shfl_up_sync(0xffffffffu, sum, i);
        if (tid() >= i) sum += other;
      }
      if (tid() == 31 && sum < target) memory_.crossing = kBins, memory_.before = sum;
      if (sum >= target && sum - own < target) {
        std::uint64_t at = sum - own;
        int bin = tid() * kShare;
        while (at + bins[bin] < target) at += bins[bin++];
        memory_.crossing = bin, memory_.before = at;
      }
    }
    __syncthreads();
    before = memory_.before;
    return memory_.crossing;
  }

  // False: the cut does not lie in a list.
  __device__ bool draw_from_list(std::int64_t top_k, std::int32_t& id) {
    for (int i = tid(); i < kBins; i += kCutThreads) memory_.bins.count[i] = 0;
    if (tid() == 0) memory_.n_list = 0;
    __syncthreads();
    std::uint64_t all = 0;
    each([&](int, float v) {
      const float at = (most_ - v) * inverse_ * kBinsOfOne;
      if (at < kBins) atomicAdd(memory_.bins.count + static_cast<int>(at), 1u);
      all += mass(v);
    });
    all = block_sum(all);
    std::uint64_t before = 0;
    int last = 0;  // bins up to this one make the list
    if (top_k > 0) {
      last = find_crossing(memory_.bins.count, static_cast<std::uint64_t>(top_k), before);
      if (last == kBins || before + memory_.bins.count[last] > kList) return false;
    } else {
      last = find_crossing(memory_.bins.count, kList + 1, before) - 1;
      if (before == 0) return false;
    }
    __syncthreads();  // the list takes the bins' place
    each([&](int token, float v) {
      const float at = (most_ - v) * inverse_ * kBinsOfOne;
      if (!(at < kBins) || static_cast<int>(at) > last) return;
      memory_.list[atomicAdd(&memory_.n_list, 1)] =
          static_cast<std::uint64_t>(order_of(v)) << 32 | (0xffffffffu - static_cast<std::uint32_t>(token));
    });
    __syncthreads();
    int n = memory_.n_list, size = 32;
    while (size < n) size *= 2;
    for (int i = n + tid(); i < size; i += kCutThreads) memory_.list[i] = 0;
    sort(size);
    if (top_k > 0) n = min(n, static_cast<int>(top_k));

    // Those from the best on until their sum is the nucleus.
    constexpr int kOwn = kList / kCutThreads;
    if (row_.top_p < 1.0f) {
      std::uint64_t own = 0;
      for (int i = 0; i < kOwn; ++i)
        if (kOwn * tid() + i < n) own += mass(logit(kOwn * tid() + i));
      if (top_k > 0) all = block_sum(own);
      const double target = static_cast<double>(row_.top_p) * static_cast<double>(all);
      std::uint64_t sum = sum_before(own);
      if (tid() == 0) memory_.crossing = n, memory_.total = 0;
      __syncthreads();
      for (int i = 0; i < kOwn && kOwn * tid() + i < n; ++i) {
        const std::uint64_t next = sum + mass(logit(kOwn * tid() + i));
        if (static_cast<double>(sum) < target && static_cast<double>(next) >= target)
          memory_.crossing = kOwn * tid() + i + 1, memory_.total = 1;
        sum = next;
      }
      __syncthreads();
      if (top_k == 0 && memory_.total == 0) return false;
      n = memory_.crossing;
    }
    Best best{-INFINITY, vocab_size_};
    for (int i = tid(); i < n; i += kCutThreads) {
      const float v = logit(i);
      if (i > 0 && share(v) < row_.min_p) break;
      const auto token = static_cast<std::int32_t>(0xffffffffu - static_cast<std::uint32_t>(memory_.list[i]));
      const Best candidate{v * inverse_ + gumbel(row_.random, token), token};
      if (is_better(candidate, best)) best = candidate;
    }
    id = block_best(best).id;
    return true;
  }
  __device__ float logit(int i) const { return value_of(static_cast<std::uint32_t>(memory_.list[i] >> 32)); }

  // Descending; size: a power of two. Bitonic.
  __device__ void sort(int size) {
    for (int width = 2; width <= size; width *= 2) {
      for (int step = width / 2; step > 0; step /= 2) {
        __syncthreads();
        for (int i = tid(); i < size / 2; i += kCutThreads) {
          const int low = 2 * step * (i / step) + i % step, high = low + step;
          const std::uint64_t a = memory_.list[low], b = memory_.list[high];
          if ((a < b) == ((low & width) == 0)) memory_.list[low] = b, memory_.list[high] = a;
        }
      }
    }
    __syncthreads();
  }

  // A token's place among all: its logit, the lower id first among equals. kKeyBits bits.
  static constexpr int kIdBits = 20, kKeyBits = 32 + kIdBits, kDigit = 11;
  static __device__ std::uint64_t key(int id, float v) {
    return static_cast<std::uint64_t>(order_of(v)) << kIdBits | static_cast<std::uint32_t>((1 << kIdBits) - 1 - id);
  }

  // The key of the last token that stays.
  __device__ std::uint64_t threshold(std::int64_t top_k) {
    std::uint64_t least = 0;
    if (top_k > 0) least = find_key(0, static_cast<std::uint64_t>(top_k), true);
    if (row_.top_p < 1.0f) {
      std::uint64_t all = 0;
      each([&](int id, float v) { all += key(id, v) >= least ? mass(v) : 0; });
      all = block_sum(all);
      const auto target = static_cast<std::uint64_t>(ceil(static_cast<double>(row_.top_p) * static_cast<double>(all)));
      least = find_key(least, target, false);
    }
    return least;
  }
  // Of the keys from `least` on the largest with which the number of tokens, or their mass, reaches `target`.
  __device__ std::uint64_t find_key(std::uint64_t least, std::uint64_t target, bool is_count) {
    std::uint64_t prefix = 0;
    for (int shift = kKeyBits; shift > 0;) {
      const int bits = min(kDigit, shift), above = shift;
      shift -= bits;
      __syncthreads();
      for (int i = tid(); i < kBins; i += kCutThreads) memory_.bins.mass[i] = 0;
      __syncthreads();
      each([&](int id, float v) {
        const std::uint64_t k = key(id, v);
        if (k < least || k >> above != prefix) return;
        const int bin = (1 << bits) - 1 - static_cast<int>(k >> shift & ((1u << bits) - 1));
        atomicAdd(reinterpret_cast<unsigned long long*>(memory_.bins.mass + bin), is_count ? 1ull : mass(v));
      });
      std::uint64_t before = 0;
      const int bin = find_crossing(memory_.bins.mass, target, before);
      if (bin == kBins) return least;  // rounding of the target: all stay
      target -= before;
      prefix = prefix << bits | static_cast<std::uint64_t>((1 << bits) - 1 - bin);
    }
    return prefix;
  }
  __device__ std::int32_t draw_from_row(std::uint64_t least) {
    Best best{-INFINITY, vocab_size_};
    each([&](int id, float v) {
      if (key(id, v) < least || (v < most_ && share(v) < row_.min_p)) return;
      const Best candidate{v * inverse_ + gumbel(row_.random, id), id};
      if (is_better(candidate, best)) best = candidate;
    });
    return block_best(best).id;
  }

  CutMemory& memory_;
  const CudaSampleRow& row_;
  const float* values_;
  int vocab_size_;
  float inverse_, most_ = 0;
};

__global__ void __launch_bounds__(kCutThreads)
    sample_cut_kernel(const float* logits, int vocab_size, const CudaSampleRow* rows, std::int32_t* ids,
                      std::int32_t* host_ids) {
  __shared__ CutMemory memory;
  wait_for_previous();
  allow_next();
  const CudaSampleRow row = rows[blockIdx.x];
  if (!is_cut(row)) return;
  Cut cut(memory, row, logits + static_cast<std::int64_t>(row.row) * vocab_size, vocab_size);
  const std::int32_t id = cut.draw();
  if (threadIdx.x == 0) tell(ids, host_ids, blockIdx.x, id);
}

// A warp-wide piece of the batch a thread; the ids come first.
__global__ void __launch_bounds__(256)
    fetch_step_kernel(const int4* from, int4* to, int n, int n_ids, const std::int32_t* drawn) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  int4 v = make_int4(0, 0, 0, 0);
  if (i < n) v = from[i];
  // The step before this one may still read its lists, and draws its tokens last.
  wait_for_previous();
  allow_next();
  if (i >= n) return;
  if (4 * i < n_ids) {
    if (v.x < 0) v.x = drawn[-1 - v.x];
    if (4 * i + 1 < n_ids && v.y < 0) v.y = drawn[-1 - v.y];
    if (4 * i + 2 < n_ids && v.z < 0) v.z = drawn[-1 - v.z];
    if (4 * i + 3 < n_ids && v.w < 0) v.w = drawn[-1 - v.w];
  }
  to[i] = v;
}
}  // namespace

void sample(void* stream, const CudaSampleArgs& args) {
  auto* arrivals = reinterpret_cast<unsigned*>(args.scratch);  // zero between calls
  auto* pieces = reinterpret_cast<Best*>(args.scratch + kArrivalBytes);
  const auto n = static_cast<unsigned>(args.n);
  if (args.n_cut < args.n)
    launch(sample_kernel, dim3(kPieces, n), kThreads, 0, stream, args.logits, args.vocab_size, args.rows, pieces,
           arrivals, args.ids, args.host_ids);
  if (args.n_cut > 0)
    launch(sample_cut_kernel, n, kCutThreads, 0, stream, args.logits, args.vocab_size, args.rows, args.ids,
           args.host_ids);
}

std::int64_t sample_scratch_bytes(std::int32_t n, std::int32_t) {
  return kArrivalBytes + static_cast<std::int64_t>(n) * kPieces * static_cast<std::int64_t>(sizeof(Best));
}

void fetch_step(void* stream, const void* host, void* device, std::int64_t bytes, std::int32_t n_ids,
                const std::int32_t* drawn) {
  launch(fetch_step_kernel, ceil_div(bytes / 16, 256), 256, 0, stream, static_cast<const int4*>(host),
         static_cast<int4*>(device), static_cast<int>(bytes / 16), n_ids, drawn);
}

}  // namespace still::cuda

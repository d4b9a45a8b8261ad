// Products of many rows with quantised weights and FP8, bit by bit those of the kernels of few rows (linear.cu):
// weights stream from their packed form once for each 64 rows of activations, become f16 in registers, and go through
// Hopper's wgmma as its A operand; activations are its B operand in shared memory.
//
// A block takes 128 rows of the matrices (8 panels, a warp each; for SwiGLU 4 of either matrix) times 64 rows of
// activations. Its chunks of 256 activations come as images (arrange_rows makes them) by the bulk copy engine, a stage
// of shared memory each. Where there are few blocks, a cluster of four shares the groups of a row's sum.
//
// Quantised weights: integers up to 2048 times a sub-block's scale are exact in f16, activations are integers up to
// 127, and sums below 2^24 are exact in f32 whatever their order: 128 products of Q4_K (at most 15 * 63 * 127 each).
// Where weight times scale may be larger (5, 6 and 8 bits) the scale's two lowest bits are multiplied apart. Minimums
// are a product too: with the sums of 16 activations. FP8 and Q8_0 as f16: a chunk's products (where 128 have a scale,
// a half's) are one chain of the tensor core's steps of sixteen, as there.
#include <algorithm>

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.cuh"
#include "kernels/cuda/skinny.cuh"

namespace still::cuda {

namespace {
constexpr int kTileRows = static_cast<int>(kCudaTileRows), kStages = 4, kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStepBytes = 2048, kMainBytes = 16 * kStepBytes, kImageBytes = static_cast<int>(kCudaImageBytes);
constexpr int kSumsAt = kMainBytes + 2048;        // of an image: after 8 x 64 scales
constexpr int kSlotBytes = 32 * 32 * kWarps * 4;  // 32 floats of each thread
constexpr int kSharedBytes = kStages * kImageBytes + 2 * kSlotBytes;
constexpr int kMostWideChunks = 256;
constexpr int kOutStride = 132;  // of 128 results of a column: no two lanes of a warp in one bank

// Of the kernel for more rows: stages, weights, what is saved, scales.
constexpr int kWideStages = 8, kWideScales = 4, kWideThreads = kThreads + 128;
constexpr int kFifoBytes = 4 * 2 * 16 * kThreads;
__host__ __device__ constexpr int wide_shared_bytes(int columns) {
  return kWideStages * 128 * columns + kFifoBytes + 2 * columns * kThreads + kWideScales * columns * 4;
}
// n_split: blocks that share the groups of a row's sum. Tiles of activations, blocks of rows of the matrices.
struct WideShape {
  int n_split, n_tiles, n_blocks;
};

// The orders in which formats read activations.
enum class ImageKind : int { k32Of256, k16Of256, k32, kF8, kF8Blocks, kQ8F16 };
template <class Format>
constexpr ImageKind kind_of() {
  if constexpr (std::is_same_v<Format, Q8F16>) {
    return ImageKind::kQ8F16;
  } else if constexpr (!requires { Format::kSubBlock; }) {
    return Format::kHasRowScales ? ImageKind::kF8 : ImageKind::kF8Blocks;
  } else if constexpr (Format::kBlockSize == 32) {
    return ImageKind::k32;
  } else {
    return Format::kSubBlock == 32 ? ImageKind::k32Of256 : ImageKind::k16Of256;
  }
}

// Rows of activations of an image: 64, or where a block of the wide kernel takes so many, 96 or 128, whichever leaves
// fewer rows of the last image empty.
constexpr bool is_wide(ImageKind kind) {
  return kind == ImageKind::kF8 || kind == ImageKind::kQ8F16;
}
int image_rows(ImageKind kind, int n_rows, int n_chunks) {
  if (!is_wide(kind) || n_rows <= kTileRows || n_chunks > kMostWideChunks) return kTileRows;
  return (n_rows + 95) / 96 * 96 < (n_rows + 127) / 128 * 128 ? 96 : 128;
}

__host__ __device__ constexpr int image_bytes(int rows) {
  return kImageBytes / kTileRows * rows;
}

// A warp takes 256 elements of a row, a lane 8 of them. Quantised as by quantize_rows, scaled as by scale_rows.
// each: rows of an image.
__global__ void __launch_bounds__(256)
    arrange_kernel(const float* f32, const __nv_bfloat16* bf16, int k, ImageKind kind, int each, std::uint8_t* images) {
  wait_for_previous();
  allow_next();
  const int lane = static_cast<int>(threadIdx.x % 32), n_chunks = (k + 255) / 256;
  const int chunk = static_cast<int>(blockIdx.x * 8 + threadIdx.x / 32), row = static_cast<int>(blockIdx.y);
  if (chunk >= n_chunks) return;
  const int from = 256 * chunk + 8 * lane, n = row % each, step_bytes = 32 * each;
  const bool is_f8 = kind == ImageKind::kF8 || kind == ImageKind::kF8Blocks,
             is_float = is_f8 || kind == ImageKind::kQ8F16;
  float v[8] = {}, most = 0, bad = 0;
  if (from < k) {
    const std::int64_t at = static_cast<std::int64_t>(row) * k + from;
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = f32 != nullptr ? f32[at + i] : __bfloat162float(bf16[at + i]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    most = fmaxf(most, fabsf(v[i]));
    bad += v[i] - v[i];  // NaN where one is NaN or infinite
  }
  int is_bad = bad == 0.0f ? 0 : 1;
  const int block = kind == ImageKind::k32 ? 32 : 256;
  for (int i = 1; i < block / 8; i *= 2) {
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
    is_bad |= __shfl_xor_sync(0xffffffffu, is_bad, i);
  }
  float scale, inverse;
  if (is_float) {
    const int exponent = max(static_cast<int>(__float_as_uint(most) >> 23) - 12, 14);
    inverse = __uint_as_float(static_cast<std::uint32_t>(254 - exponent) << 23);
    scale = __uint_as_float(static_cast<std::uint32_t>(exponent) << 23);
  } else {
    const bool is_zero = most < 0x1p-120f || is_bad != 0;
    inverse = is_zero ? 0.0f : __fdiv_rn(127.0f, most);
    scale = is_zero ? 0.0f : __fdiv_rn(most, 127.0f);
  }
  if (is_bad != 0) scale = __int_as_float(0x7fc00000);
  std::uint8_t* image = images + (static_cast<std::int64_t>(row / each) * n_chunks + chunk) * image_bytes(each) +
                        n / 8 * 128 + n % 8 * 16;
  float sum = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float q[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      q[i] = v[4 * half + i] * inverse;
      if (!is_float) q[i] = inverse == 0.0f ? 0.0f : rintf(q[i]);
      sum += q[i];
    }
    // Step and place in it of these four.
    const int step = kind == ImageKind::k16Of256 ? lane / 2
                     : is_f8                     ? 4 * (lane / 8) + 2 * (lane % 2) + half
                                                 : 2 * (lane / 4) + half;
    const int t = kind == ImageKind::k16Of256 ? 2 * (lane % 2) + half : is_f8 ? lane % 8 / 2 : lane % 4;
    *reinterpret_cast<std::uint32_t*>(image + step * step_bytes + 4 * t) = pack_f16(q[0], q[1]);
    *reinterpret_cast<std::uint32_t*>(image + step * step_bytes + step_bytes / 2 + 4 * t) = pack_f16(q[2], q[3]);
  }
  auto* scales = reinterpret_cast<float*>(image - (n / 8 * 128 + n % 8 * 16) + 16 * step_bytes) + n;
  if (kind == ImageKind::k32) {
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane % 4 == 0) {
      scales[lane / 4 * kTileRows] = scale;
      scales[(kSumsAt - kMainBytes) / 4 + lane / 4 * kTileRows] = sum;
    }
    return;
  }
  if (lane == 0) scales[0] = scale;
  sum += __shfl_xor_sync(0xffffffffu, sum, 1);
  if (!is_float && lane % 2 == 0)  // sum i of 16
    *reinterpret_cast<__half*>(image + kSumsAt + lane / 16 * (kStepBytes / 2) + lane / 2 % 8 * 2) =
        __float2half_rn(sum);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// B: core matrices of 8 rows x 16 bytes, 128 bytes apart along rows and 1024 along k; no swizzle.
__device__ __forceinline__ std::uint64_t step_descriptor(const std::uint8_t* step) {
  return static_cast<std::uint64_t>((shared_address(step) & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(kStepBytes / 2 / 16) << 16 | static_cast<std::uint64_t>(128 / 16) << 32;
}
// All is done, and the compiler reads accumulators only now.
template <int kSize>
__device__ __forceinline__ void wgmma_finish(float (&d)[kSize]) {
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
// d (+)= a b with a [64 x 16], 16 rows of a warp, and b [16 x 64].
__device__ __forceinline__ void wgmma_step(float (&d)[32], const std::uint32_t* a, std::uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,"
      "%30,%31}, {%32,%33,%34,%35}, %36, p, 1, 1, 0;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
// d (+)= a b with a [64 x 16] and b [16 x 128].
__device__ __forceinline__ void wgmma_step(float (&d)[64], const std::uint32_t* a, std::uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,"
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
      "{%64,%65,%66,%67}, %68, p, 1, 1, 0;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
// d (+)= a b with a [64 x 16] and b [16 x 96].
__device__ __forceinline__ void wgmma_step(float (&d)[48], const std::uint32_t* a, std::uint64_t b, bool accumulate) {
  asm volatile(
      "{.reg .pred p;\n"
      "setp.ne.b32 p, %53, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47}, "
      "{%48,%49,%50,%51}, %52, p, 1, 1, 0;}"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// The warps that multiply, of a block that may have others.
__device__ __forceinline__ void tile_sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// A block's share of chunks, in the order of sums.
struct ChunkWalk {
  int group, part, chunk;
  bool ends_part = false, ends_group = false;
  int n_chunks, n_parts, end_group;
  __device__ __forceinline__ ChunkWalk(int begin, int end, int chunks, int parts)
      : group(begin), part(begin), chunk(begin), n_chunks(chunks), n_parts(parts), end_group(end) {
    look();
  }
  __device__ __forceinline__ bool is_inside() const { return group < end_group && part < n_parts; }
  __device__ __forceinline__ void look() {
    ends_part = chunk + n_parts >= n_chunks;
    ends_group = ends_part && part + kSumGroups >= n_parts;
  }
  __device__ __forceinline__ void advance() {
    if (!ends_part) {
      chunk += n_parts;
    } else {
      if (ends_group) ++group;
      part = ends_group ? group : part + kSumGroups;
      chunk = part;
    }
    look();
  }
};

// What a warp's results of a column are scaled by: columns 2 t and 2 t + 1 of each 8.
__device__ __forceinline__ float2 two_floats(const std::uint8_t* at, int n, int t) {
  return *reinterpret_cast<const float2*>(at + (8 * n + 2 * t) * 4);
}
__device__ __forceinline__ float of(const float2& two, int i) {
  return i % 2 == 0 ? two.x : two.y;
}

// A byte of a word as two equal f16; signed.
__device__ __forceinline__ std::uint32_t byte_as_f16(std::uint32_t word, int i) {
  const std::uint32_t two = __byte_perm(word ^ 0x80808080u, 0x64646464u, 0x4040 | i << 8 | i);
  const __half2 v = __hsub2(*reinterpret_cast<const __half2*>(&two), __float2half2_rn(1152.0f));
  return *reinterpret_cast<const std::uint32_t*>(&v);
}

// One chunk of 256 of a warp's 16 rows times an image. `c` holds it, or the first of two pieces, and afterwards the
// same of the chunk `next`, unless that is negative. f: sums of the part; is_alone: a part is a chunk, f sums parts.
template <class Format>
struct TileMath {
  using Held = typename Format::Chunk;
  static __device__ __forceinline__ void load(Held& c, const Panel& panel, int chunk, int lane) {
    Format::load(c, panel, chunk * (256 / Format::kChunk), lane);
  }
  // A operand of group j: two steps of 16. Of blocks of 256 weights are multiplied by their scales, `mask` of them.
  static __device__ __forceinline__ void operand(const typename Format::Chunk& c, int j, std::uint32_t mask,
                                                 std::uint32_t (&a)[8]) {
    std::uint32_t bytes[4];
    Format::unpack(c, j, bytes);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        int8_to_f16(bytes[2 * half + r], a[4 * half + r], a[4 * half + 2 + r]);
        if constexpr (Format::kBlockSize == 256) {
          constexpr int kEach = 256 / Format::kSubBlock;
          const int at = scale_place(kEach, Format::kHasMin, false, Format::kSubBlock == 32 ? j : 2 * j + half);
          const std::uint32_t scale = byte_as_f16(c.sub[r][at / 4] & mask, at % 4);
          a[4 * half + r] = mul_f16(a[4 * half + r], scale);
          a[4 * half + 2 + r] = mul_f16(a[4 * half + 2 + r], scale);
        }
      }
    }
  }

  // Groups [begin, end) into acc, which begins at zero. At most one pair of steps is under way when it returns.
  template <int kBegin, int kEnd>
  static __device__ __forceinline__ void chain(const typename Format::Chunk& c, const std::uint8_t* image,
                                               std::uint32_t mask, std::uint32_t (&a)[2][8], float (&acc)[32]) {
#pragma unroll
    for (int j = kBegin; j < kEnd; ++j) {
      operand(c, j, mask, a[j % 2]);
      wgmma_fence();
      wgmma_step(acc, a[j % 2], step_descriptor(image + 2 * j * kStepBytes), j > kBegin);
      wgmma_step(acc, a[j % 2] + 4, step_descriptor(image + (2 * j + 1) * kStepBytes), true);
      wgmma_commit();
      wgmma_wait<1>();
    }
  }

  static __device__ __forceinline__ void multiply_256(typename Format::Chunk& c, const Panel& panel, int next,
                                                      const std::uint8_t* image, int lane, bool is_alone,
                                                      float (&f)[32]) {
    const int t = lane % 4;
    typename Format::Chunk later;
    if (next >= 0) Format::load(later, panel, next, lane);
    std::uint32_t a[2][8];
    float sums[32], acc[32];
    if constexpr (Format::kStoredBits != 4) {
      // Scales are parted into a multiple of four and what is left, so that sums of 128 products are exact.
      float rest[32];
      chain<0, 8>(c, image, 0x03030303u, a, rest);
      chain<0, 4>(c, image, 0xfcfcfcfcu, a, sums);
      chain<4, 8>(c, image, 0xfcfcfcfcu, a, acc);
      wgmma_finish(rest);
      wgmma_finish(sums);
      wgmma_finish(acc);
      // Their sum may have more bits than a float: multiples of 2^14 and what is left are added apart, both exactly.
      constexpr float kUp = 1.5f * 0x1p37f;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const float high = __fadd_rn(__fadd_rn(sums[i], kUp), -kUp), high2 = __fadd_rn(__fadd_rn(acc[i], kUp), -kUp);
        const float low = __fadd_rn(__fadd_rn(sums[i], -high), __fadd_rn(acc[i], -high2));
        sums[i] = __fadd_rn(__fadd_rn(high, high2), __fadd_rn(low, rest[i]));
      }
    } else {
      chain<0, 4>(c, image, 0xffffffffu, a, sums);
      chain<4, 8>(c, image, 0xffffffffu, a, acc);
      wgmma_finish(sums);
      wgmma_finish(acc);
      // Both exact, and rounded once: as the integers' sum is.
#pragma unroll
      for (int i = 0; i < 32; ++i) sums[i] = __fadd_rn(sums[i], acc[i]);
    }
    if constexpr (Format::kHasMin) {
      // Minimums of sub-blocks 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of 16 elements.
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        if constexpr (Format::kSubBlock == 32) {
          const int at = 2 + t % 2;
          a[0][r] = byte_as_f16((t < 2 ? c.sub[r][0] : c.sub[r][1]) >> (8 * at), 0);
          a[0][2 + r] = byte_as_f16((t < 2 ? c.sub[r][2] : c.sub[r][3]) >> (8 * at), 0);
        } else {
          const std::uint32_t word = t == 0 ? c.sub[r][1] : t == 1 ? c.sub[r][3] : t == 2 ? c.sub[r][5] : c.sub[r][7];
          int8_to_f16(word, a[0][r], a[0][2 + r]);
        }
      }
      wgmma_fence();
      wgmma_step(acc, a[0], step_descriptor(image + kSumsAt), false);
      wgmma_commit();
    }
    const float d[2] = {Format::d(c, 0), Format::d(c, 1)};
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 s = two_floats(image + kMainBytes, n, t);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sums[4 * n + i] =
            fmaf(__fmul_rn(d[i / 2] * Format::kFactor, of(s, i)), sums[4 * n + i], is_alone ? 0.0f : f[4 * n + i]);
    }
    if constexpr (Format::kHasMin) {
      wgmma_finish(acc);
      const float m[2] = {Format::m(c, 0), Format::m(c, 1)};
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const float2 s = two_floats(image + kMainBytes, n, t);
#pragma unroll
        for (int i = 0; i < 4; ++i)
          sums[4 * n + i] = fmaf(-__fmul_rn(m[i / 2], of(s, i)), acc[4 * n + i], sums[4 * n + i]);
      }
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) f[i] = is_alone ? __fadd_rn(f[i], sums[i]) : sums[i];
    c = later;
  }

  // Blocks of 32: a chunk is two of the format's.
  static __device__ __forceinline__ void multiply_32(typename Format::Chunk& c, const Panel& panel, int chunk, int next,
                                                     const std::uint8_t* image, int lane, float (&f)[32]) {
    const int t = lane % 4;
    std::uint32_t a[2][8];
    float acc[32], pairs[32], first[32], held[32];
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      typename Format::Chunk later;
      if (piece == 0) {
        Format::load(later, panel, 2 * chunk + 1, lane);
      } else if (next >= 0) {
        Format::load(later, panel, 2 * next, lane);
      }
      operand(c, 0, 0, a[0]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int block = 4 * piece + j;
        wgmma_fence();
        wgmma_step(acc, a[j % 2], step_descriptor(image + 2 * block * kStepBytes), false);
        wgmma_step(acc, a[j % 2] + 4, step_descriptor(image + (2 * block + 1) * kStepBytes), true);
        wgmma_commit();
        if (j < 3) operand(c, j + 1, 0, a[(j + 1) % 2]);
        const float d[2] = {Format::d(c, 0, j) * Format::kFactor, Format::d(c, 1, j) * Format::kFactor};
        float m[2] = {0, 0};
        if constexpr (Format::kHasMin) m[0] = Format::m(c, 0, j), m[1] = Format::m(c, 1, j);
        wgmma_finish(acc);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
          const float2 s = two_floats(image + kMainBytes + block * kTileRows * 4, n, t);
          float2 x = {};
          if constexpr (Format::kHasMin) x = two_floats(image + kSumsAt + block * kTileRows * 4, n, t);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float scale = __fmul_rn(d[i / 2], of(s, i));
            float v = j % 2 == 0 ? __fmul_rn(scale, acc[4 * n + i]) : fmaf(scale, acc[4 * n + i], pairs[4 * n + i]);
            if constexpr (Format::kHasMin) v = fmaf(__fmul_rn(m[i / 2], of(s, i)), of(x, i), v);
            pairs[4 * n + i] = v;
          }
        }
        if (j == 1) {
#pragma unroll
          for (int i = 0; i < 32; ++i) first[i] = pairs[i];
        }
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const float half = __fadd_rn(first[i], pairs[i]);
        if (piece == 0) {
          held[i] = half;
        } else {
          f[i] = __fadd_rn(f[i], __fadd_rn(held[i], half));
        }
      }
      c = later;
    }
  }

  static __device__ __forceinline__ void multiply(typename Format::Chunk& c, const Panel& panel, int chunk, int next,
                                                  const std::uint8_t* image, int lane, bool is_alone, float (&f)[32]) {
    if constexpr (Format::kBlockSize == 256) {
      multiply_256(c, panel, next, image, lane, is_alone, f);
    } else {
      multiply_32(c, panel, chunk, next, image, lane, f);
    }
  }
};

template <bool kIsBlocks>
struct TileMath<F8<kIsBlocks>> {
  using Format = F8<kIsBlocks>;
  using Held = typename Format::Chunk;
  static __device__ __forceinline__ void load(Held& c, const Panel& panel, int chunk, int lane) {
    Format::load(c, panel, chunk, lane);
  }
  static constexpr int kSlices = kIsBlocks ? 2 : 4;  // of a chain
  // Slice s into acc, whose chain is a chunk or, where halves have scales, half of one; its weights' registers take the
  // next chunk's.
  static __device__ __forceinline__ void slice(typename Format::Chunk& c, const Panel& panel, int s, int next,
                                               const std::uint8_t* image, int lane, std::uint32_t (&a)[2][8],
                                               float (&acc)[32]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t* to = a[half] + 4 * i;
        e4m3_to_f16(Format::word(c.w[s][0], 2 * half + i), to[0], to[2]);
        e4m3_to_f16(Format::word(c.w[s][1], 2 * half + i), to[1], to[3]);
      }
      if (half == 1 && next >= 0) Format::load_slice(c, panel, next, s, lane);
      wgmma_fence();
      wgmma_step(acc, a[half], step_descriptor(image + (4 * s + 2 * half) * kStepBytes), s % kSlices + half > 0);
      wgmma_step(acc, a[half] + 4, step_descriptor(image + (4 * s + 2 * half + 1) * kStepBytes), true);
      wgmma_commit();
      wgmma_wait<1>();
    }
  }
  static __device__ __forceinline__ void multiply(typename Format::Chunk& c, const Panel& panel, int chunk, int next,
                                                  const std::uint8_t* image, int lane, bool is_alone, float (&f)[32]) {
    std::uint32_t a[2][8];
    float first[32];
    float second[kIsBlocks ? 32 : 1];
    float block[2] = {1, 1};
    if constexpr (kIsBlocks) {
      const int begin = chunk * 256;
      block[0] = Format::block_scale(panel, begin);
      block[1] = begin + 128 < panel.k ? Format::block_scale(panel, begin + 128) : 0.0f;
    }
    slice(c, panel, 0, next, image, lane, a, first);
    slice(c, panel, 1, next, image, lane, a, first);
    if constexpr (kIsBlocks) {
      slice(c, panel, 2, next, image, lane, a, second);
      slice(c, panel, 3, next, image, lane, a, second);
      wgmma_finish(second);
    } else {
      slice(c, panel, 2, next, image, lane, a, first);
      slice(c, panel, 3, next, image, lane, a, first);
    }
    wgmma_finish(first);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 s = two_floats(image + kMainBytes, n, lane % 4);
#pragma unroll
      for (int i = 4 * n; i < 4 * n + 4; ++i) {
        float sum = first[i];
        if constexpr (kIsBlocks) sum = __fadd_rn(__fmul_rn(sum, block[0]), __fmul_rn(second[i], block[1]));
        const float v = fmaf(sum, of(s, i), is_alone ? 0.0f : f[i]);
        f[i] = is_alone ? __fadd_rn(f[i], v) : v;
      }
    }
  }
};

template <>
struct TileMath<Q8F16> {
  struct Held {
    Q8F16::Chunk pieces[2];
  };
  static __device__ __forceinline__ void load(Held& c, const Panel& panel, int chunk, int lane) {
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) Q8F16::load(c.pieces[piece], panel, 2 * chunk + piece, lane);
  }
  static __device__ __forceinline__ void multiply(Held& c, const Panel& panel, int, int next, const std::uint8_t* image,
                                                  int lane, bool is_alone, float (&f)[32]) {
    std::uint32_t a[2][8];
    float sums[32];
#pragma unroll
    for (int piece = 0; piece < 2; ++piece) {
      Q8F16::Chunk& from = c.pieces[piece];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const std::uint32_t scale[2] = {Q8F16::twice(from.sub[0][j / 2], j % 2),
                                        Q8F16::twice(from.sub[1][j / 2], j % 2)};
#pragma unroll
        for (int half = 0; half < 2; ++half)
          Q8F16::operand(from.low[4 * j + 2 * half], from.low[4 * j + 2 * half + 1], scale, a[j % 2] + 4 * half);
        const std::uint8_t* steps = image + 2 * (4 * piece + j) * kStepBytes;
        wgmma_fence();
        wgmma_step(sums, a[j % 2], step_descriptor(steps), piece + j > 0);
        wgmma_step(sums, a[j % 2] + 4, step_descriptor(steps + kStepBytes), true);
        wgmma_commit();
        wgmma_wait<1>();
      }
      // Nearly a chunk ahead of its use.
      if (next >= 0) Q8F16::load(from, panel, 2 * next + piece, lane);
    }
    wgmma_finish(sums);
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float2 s = two_floats(image + kMainBytes, n, lane % 4);
#pragma unroll
      for (int i = 4 * n; i < 4 * n + 4; ++i) {
        const float v = fmaf(sums[i], of(s, i), is_alone ? 0.0f : f[i]);
        f[i] = is_alone ? __fadd_rn(f[i], v) : v;
      }
    }
  }
};

// f += slot or slot += f: 32 or 64 floats of a thread, 16 bytes of all threads side by side.
template <int kSize>
__device__ __forceinline__ void add_to_slot(float4* slot, int thread, bool is_new, const float (&f)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize / 4; ++i) {
    float4& at = slot[32 * kWarps * i + thread];
    float4 v = is_new ? make_float4(0, 0, 0, 0) : at;
    v.x += f[4 * i], v.y += f[4 * i + 1], v.z += f[4 * i + 2], v.w += f[4 * i + 3];
    at = v;
  }
}
template <int kSize>
__device__ __forceinline__ void take_slot(const float4* slot, int thread, float (&f)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize / 4; ++i) {
    const float4 v = slot[32 * kWarps * i + thread];
    f[4 * i] = v.x, f[4 * i + 1] = v.y, f[4 * i + 2] = v.z, f[4 * i + 3] = v.w;
  }
}

// A block's results: the sum over a cluster's groups; scale, residual, bias; into the matrices. `out` is shared memory
// for kColumns x kOutStride floats.
// kAreGated: a thread has a row of either matrix.
template <class Format, bool kAreGated, int kSize>
__device__ __forceinline__ void finish_tile(const SkinnyArgs& args, int n_split, int rank, int tile, int block,
                                            const float (&f)[kSize], std::uint8_t* shared) {
  constexpr int kColumns = 2 * kSize;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int n_panels = args.first_panel[is_swiglu ? 1 : args.n_products];
  tile_sync();  // stages are read

  auto* out = reinterpret_cast<float*>(shared);
  const int first = kAreGated && is_swiglu ? 8 * warp : 16 * warp, apart = kAreGated && is_swiglu ? 64 : 8;
#pragma unroll
  for (int i = 0; i < kColumns / 2; ++i)
    out[(8 * (i / 4) + 2 * (lane % 4) + i % 2) * kOutStride + first + lane / 4 + i % 4 / 2 * apart] = f[i];
  if (n_split > 1) {
    cluster_sync();
  } else {
    tile_sync();
  }
  std::uint32_t others[kSumGroups];  // the blocks' results
#pragma unroll
  for (int r = 0; r < kSumGroups; ++r)
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(others[r])
                 : "r"(shared_address(out)), "r"(n_split == 1 ? 0 : r));
  constexpr int kAtOnce = 4;
  // Four rows of some columns; all are asked for before the first is added.
  const auto sums_at = [&](int first, int apart, int last, int row, float4(&v)[kAtOnce]) {
    if (n_split == 1) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        v[i] = *reinterpret_cast<const float4*>(out + min(first + i * apart, last) * kOutStride + row);
      return;
    }
    float4 parts[kAtOnce][kSumGroups];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const auto at = static_cast<std::uint32_t>(4 * (min(first + i * apart, last) * kOutStride + row));
#pragma unroll
      for (int r = 0; r < kSumGroups; ++r) {
        float4& part = parts[i][r];
        asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                     : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                     : "r"(others[r] + at)
                     : "memory");
      }
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      v[i] = parts[i][0];
#pragma unroll
      for (int r = 1; r < kSumGroups; ++r) {
        v[i].x += parts[i][r].x, v[i].y += parts[i][r].y;
        v[i].z += parts[i][r].z, v[i].w += parts[i][r].w;
      }
    }
  };
  // A thread takes four rows of the matrices and every n-th column.
  const int n_quads = is_swiglu ? 16 : 32, quad = thread % n_quads, n_apart = kThreads / n_quads;
  const int n_here = kColumns / n_split, end = min((rank + 1) * n_here, args.n_rows - tile * kColumns);
  const int at_panel = (is_swiglu ? 4 : kWarps) * block + quad / 4;
  int matrix = 0;
  if (!is_swiglu)
    while (matrix + 1 < args.n_products && at_panel >= args.first_panel[matrix + 1]) ++matrix;
  const CudaProduct& product = args.products[matrix];
  const int in_matrix = at_panel - (is_swiglu ? 0 : args.first_panel[matrix]), in_panel = quad % 4 * 4;
  const int row = 16 * in_matrix + in_panel;
  if (at_panel < n_panels && row < product.n_out) {
    const int n_inside = min(4, product.n_out - row);
    const bool is_add = args.epilogue == CudaEpilogue::kAdd, has_bias = !is_add && product.bias != nullptr;
    float scale[4] = {}, up_scale[4] = {}, bias[4] = {};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int inside = min(e, n_inside - 1);
      const auto scale_of = [&](const CudaProduct& of) {
        return scaled<Format>(panel_of<Format>(args, of, in_matrix), in_panel + inside, 1.0f);
      };
      scale[e] = scale_of(product);
      if (is_swiglu) up_scale[e] = scale_of(args.products[1]);
      if (has_bias) bias[e] = product.bias[row + inside];
    }
    const std::int64_t bytes = args.y_is_bf16 ? 2 : 4;
    // Four at once where they lie so.
    const bool are_aligned = n_inside == 4 && product.y_stride % 4 == 0 &&
                             reinterpret_cast<std::uintptr_t>(product.y) % static_cast<std::uintptr_t>(4 * bytes) == 0;
    const auto place_of = [&](int in_tile) {
      const std::int64_t column = tile * kColumns + in_tile;
      return static_cast<std::uint8_t*>(product.y) + (column * product.y_stride + row) * bytes;
    };
    for (int from = rank * n_here + thread / n_quads; from < end; from += kAtOnce * n_apart) {
      float4 v[kAtOnce], up[kAtOnce], old[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        old[i] = make_float4(bias[0], bias[1], bias[2], bias[3]);
        if (!is_add) continue;
        const auto* place = reinterpret_cast<const float*>(place_of(min(from + i * n_apart, end - 1)));
        old[i] = are_aligned ? *reinterpret_cast<const float4*>(place)
                             : make_float4(place[0], place[min(1, n_inside - 1)], place[min(2, n_inside - 1)],
                                           place[n_inside - 1]);
      }
      sums_at(from, n_apart, end - 1, 4 * quad, v);
      if (is_swiglu) sums_at(from, n_apart, end - 1, 64 + 4 * quad, up);
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        float results[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
        const float ups[4] = {up[i].x, up[i].y, up[i].z, up[i].w}, olds[4] = {old[i].x, old[i].y, old[i].z, old[i].w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if constexpr (Format::kHasRowScales) results[e] *= scale[e];
          if (is_swiglu) {
            results[e] = swiglu(results[e], Format::kHasRowScales ? ups[e] * up_scale[e] : ups[e]);
          } else if (is_add || has_bias) {
            results[e] += olds[e];
          }
        }
        if (from + i * n_apart >= end) continue;
        std::uint8_t* place = place_of(from + i * n_apart);
        if (are_aligned && args.y_is_bf16) {
          *reinterpret_cast<uint2*>(place) =
              make_uint2(pack_bf16(results[0], results[1]), pack_bf16(results[2], results[3]));
        } else if (are_aligned) {
          *reinterpret_cast<float4*>(place) = make_float4(results[0], results[1], results[2], results[3]);
        } else {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            if (e < n_inside) store(args, product, tile * kColumns + from + i * n_apart, row + e, results[e]);
        }
      }
    }
  }
  if (n_split > 1) cluster_sync();  // nobody leaves while its results are read
}

template <class Format>
__device__ __forceinline__ void tile_body(const SkinnyArgs& args, int n_split, unsigned image_bytes) {
  extern __shared__ __align__(128) std::uint8_t stages[];
  __shared__ std::uint64_t full[kStages], empty[kStages];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rank = static_cast<int>(blockIdx.x) % n_split, tile = static_cast<int>(blockIdx.x) / n_split;
  const int n_chunks = (args.k + 255) / 256;
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int begin_group = n_split == 1 ? 0 : rank, end_group = n_split == 1 ? kSumGroups : rank + 1;
  if (thread == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  // The warp's panel: the launch's panels in order, of SwiGLU four of either matrix.
  const int n_panels = args.first_panel[is_swiglu ? 1 : args.n_products];
  const int wanted =
      is_swiglu ? 4 * static_cast<int>(blockIdx.y) + warp % 4 : kWarps * static_cast<int>(blockIdx.y) + warp;
  const int panel_at = min(wanted, n_panels - 1);
  int which = is_swiglu ? warp / 4 : 0;
  if (!is_swiglu)
    while (which + 1 < args.n_products && panel_at >= args.first_panel[which + 1]) ++which;
  const Panel panel =
      panel_of<Format>(args, args.products[which], panel_at - (is_swiglu ? 0 : args.first_panel[which]));

  float4* saved = reinterpret_cast<float4*>(stages + kStages * kImageBytes);  // groups
  float4* parts = saved + kSlotBytes / 16;                                    // parts of a group
  ChunkWalk walk(begin_group, end_group, n_chunks, args.n_parts);
  float f[32] = {};
  // Thread 0 asks for images kAhead chunks before they are used, in stages that all warps left two chunks ago.
  constexpr int kAhead = kStages - 2;
  ChunkWalk ahead = walk;
  int n_asked = 0;
  const auto ask = [&] {
    if (!ahead.is_inside()) return;
    const int stage = n_asked % kStages;
    if (n_asked >= kStages) barrier_wait(&empty[stage], static_cast<unsigned>(n_asked / kStages - 1) % 2);
    expect_bytes(&full[stage], image_bytes);
    copy_bulk(stages + stage * kImageBytes,
              args.x.images + (static_cast<std::int64_t>(tile) * n_chunks + ahead.chunk) * kImageBytes, image_bytes,
              &full[stage]);
    ++n_asked;
    ahead.advance();
  };
  const bool is_alone = args.n_parts == n_chunks;
  bool is_first_part = true, is_first_group = true;
  typename TileMath<Format>::Held c;
  if (walk.is_inside()) TileMath<Format>::load(c, panel, walk.chunk, lane);
  allow_next();
  wait_for_previous();
  if (thread == 0)
    for (int i = 0; i < kAhead; ++i) ask();
  for (int i = 0; walk.is_inside(); ++i) {
    const int stage = i % kStages;
    ChunkWalk after = walk;
    after.advance();
    if (thread == 0) ask();
    __syncwarp();
    barrier_wait(&full[stage], static_cast<unsigned>(i / kStages) % 2);
    TileMath<Format>::multiply(c, panel, walk.chunk, after.is_inside() ? after.chunk : -1, stages + stage * kImageBytes,
                               lane, is_alone, f);
    __syncwarp();
    if (lane == 0) barrier_arrive(&empty[stage]);
    if (!is_alone && walk.ends_part) {
      add_to_slot(parts, thread, is_first_part, f);
      is_first_part = false;
      if (walk.ends_group) take_slot(parts, thread, f);
    }
    if (walk.ends_group) {
      if (n_split == 1) add_to_slot(saved, thread, is_first_group, f);
      is_first_group = false;
      is_first_part = true;
    }
    if ((walk.ends_group && n_split == 1) || (walk.ends_part && !is_alone && !walk.ends_group)) {
#pragma unroll
      for (int j = 0; j < 32; ++j) f[j] = 0;
    }
    walk = after;
  }
  if (n_split == 1 && !is_first_group) take_slot(saved, thread, f);
  finish_tile<Format, false>(args, n_split, rank, tile, static_cast<int>(blockIdx.y), f, stages);
}

// FP8 with a scale for each row, Q8_0 as f16, and more than 64 rows of activations: 96 or 128 of them (kColumns), so
// that weights are read and made f16 once for all, and the tensor core has more to do for each. Stages are slices of 64
// activations, which a warp of its own brings. Weights come through shared memory too, by copies of which each thread
// reads its own, a chunk ahead. Two warpgroups multiply: while one adds a chunk's sums, the tensor core works for the
// other. Blocks that take whole rows stay: the next results' operands are on their way while these are finished. Of
// what is saved, groups or parts of a group, there is room for one: where parts are several chunks, clusters share the
// groups.
__device__ __forceinline__ void copy_own(void* to, const std::uint8_t* from, bool is_inside) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(is_inside ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_own() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kLeft>
__device__ __forceinline__ void wait_own() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}
template <int kColumns>
__device__ __forceinline__ std::uint64_t wide_descriptor(const std::uint8_t* step) {
  return static_cast<std::uint64_t>((shared_address(step) & 0x3ffff) >> 4) |
         static_cast<std::uint64_t>(kColumns) << 16 | static_cast<std::uint64_t>(128 / 16) << 32;
}

template <class Format, bool kIsAlone, int kColumns>  // kIsAlone: parts are single chunks
__device__ __forceinline__ void wide_body(const SkinnyArgs& args, const WideShape& shape) {
  constexpr bool kIsF8 = Format::kHasRowScales;
  constexpr int kSize = kColumns / 2, kWideStep = 32 * kColumns, kSliceBytes = 4 * kWideStep;
  constexpr int kFifoAt = kWideStages * kSliceBytes, kSlotAt = kFifoAt + kFifoBytes,
                kScalesAt = kSlotAt + 4 * kSize * kThreads;
  static_assert(kScalesAt + kWideScales * kColumns * 4 == wide_shared_bytes(kColumns));
  static_assert(kColumns * kOutStride * 4 <= kFifoAt);
  extern __shared__ __align__(128) std::uint8_t stages[];
  __shared__ std::uint64_t full[kWideStages], empty[kWideStages];
  __shared__ std::uint16_t order[kMostWideChunks];  // this block's chunks; 2^15: ends its part, 2^14: its group
  __shared__ int n_own;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  const int n_split = shape.n_split, n_tiles = shape.n_tiles;
  const int rank = static_cast<int>(blockIdx.x) % n_split, cluster = static_cast<int>(blockIdx.x) / n_split,
            n_clusters = static_cast<int>(gridDim.x) / n_split;
  const int n_chunks = (args.k + 255) / 256, n_items = n_tiles * shape.n_blocks;
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  if (thread == 0) {
    for (int i = 0; i < kWideStages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kWarps);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (thread == kThreads) {
    int n = 0;
    for (ChunkWalk walk(n_split == 1 ? 0 : rank, n_split == 1 ? kSumGroups : rank + 1, n_chunks, args.n_parts);
         walk.is_inside(); walk.advance())
      order[n++] =
          static_cast<std::uint16_t>(walk.chunk | (walk.ends_part ? 0x8000 : 0) | (walk.ends_group ? 0x4000 : 0));
    n_own = n;
  }
  __syncthreads();
  const int n_here = n_own;
  const auto chunk_at = [&](int i) { return order[i] & 0x3fff; };
  const auto block_of = [&](int item) { return item / n_tiles; };

  if (warp >= kWarps) {  // a thread of these brings the images
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    allow_next();
    wait_for_previous();
    if (thread == kThreads) {
      int q = 0;
      for (int item = cluster; item < n_items; item += n_clusters) {
        const std::uint8_t* images =
            args.x.images + static_cast<std::int64_t>(item % n_tiles) * n_chunks * image_bytes(kColumns);
        for (int i = 0; i < n_here; ++i) {
          const std::uint8_t* image = images + static_cast<std::int64_t>(chunk_at(i)) * image_bytes(kColumns);
          for (int s = 0; s < 4; ++s, ++q) {
            const int stage = q % kWideStages;
            if (q >= kWideStages) barrier_wait(&empty[stage], static_cast<unsigned>(q / kWideStages - 1) % 2);
            expect_bytes(&full[stage], kSliceBytes + (s == 0 ? kColumns * 4 : 0));
            std::uint8_t* to = stages + stage * kSliceBytes;
            copy_bulk(to, image + s * kSliceBytes, kSliceBytes, &full[stage]);
            if (s == 0) {
              copy_bulk(stages + kScalesAt + q / 4 % kWideScales * (kColumns * 4), image + 16 * kWideStep, kColumns * 4,
                        &full[stage]);
            }
          }
        }
      }
    }
    __syncwarp();
    if (n_split > 1) {
      cluster_sync();  // as finish_tile
      cluster_sync();
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    // A thread's rows: g and g + 8 of the warp's panel. Of SwiGLU in FP8 the same row of both matrices; panels, which
    // are read as they lie, are four of either.
    struct Place {
      int matrix, row;
      bool is_inside;
    };
    const int n_panels = args.first_panel[is_swiglu ? 1 : args.n_products];
    const auto place_of = [&](int item, int r) {
      if (kIsF8 && is_swiglu) {
        const int row = 64 * block_of(item) + 8 * warp + g;
        return Place{r, row, row < args.products[r].n_out};
      }
      const int wanted = is_swiglu ? 4 * block_of(item) + warp % 4 : kWarps * block_of(item) + warp,
                at = min(wanted, n_panels - 1);
      int which = is_swiglu ? warp / 4 : 0;
      if (!is_swiglu)
        while (which + 1 < args.n_products && at >= args.first_panel[which + 1]) ++which;
      const int row = 16 * (at - (is_swiglu ? 0 : args.first_panel[which])) + g + 8 * r;
      return Place{which, row, wanted < n_panels && row < args.products[which].n_out};
    };
    const std::uint8_t* rows[2];  // of panels: quants, and scales from row g on
    const auto point_at = [&](int item) {
      if constexpr (!kIsF8) {
        const Place place = place_of(item, 0);
        rows[0] = args.products[place.matrix].weights + place.row / 16 * args.panel_bytes;
        rows[1] = rows[0] + static_cast<std::int64_t>(args.n_tiles) * Format::kTileQuant + 16 * g;
        rows[0] += 16 * lane;
      } else {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const Place place = place_of(item, r);
          const CudaProduct& product = args.products[place.matrix];
          rows[r] = product.weights + static_cast<std::int64_t>(min(place.row, product.n_out - 1)) * args.k + 16 * t;
        }
      }
    };
    auto* fifo = reinterpret_cast<uint4*>(stages + kFifoAt) + thread;  // [4 slices][2 rows or tiles][threads]
    uint2 scales_of[2][2];  // panels: [rows][halves of a chunk], in whose place the next chunk's are asked for
    const auto fetch_scales = [&](int begin, int half) {
#pragma unroll
      for (int r = 0; r < 2; ++r) scales_of[r][half] = load_stream8(rows[1] + begin + 128 * r + 8 * half);
    };
    const auto fetch = [&](int begin, int s, bool is_any) {  // a group of copies, perhaps of none
      if (is_any && !kIsF8) {
        const int tile = begin / 32 + 2 * s;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const bool is_inside = tile + i < args.n_tiles;
          copy_own(fifo + (2 * s + i) * kThreads, rows[0] + (is_inside ? static_cast<std::int64_t>(tile + i) * 512 : 0),
                   is_inside);
        }
      } else if (is_any) {
        const int at = begin + 64 * s;
        const bool is_inside = at + 16 * t < args.k;
#pragma unroll
        for (int r = 0; r < 2; ++r)
          copy_own(fifo + (2 * s + r) * kThreads, rows[r] + (is_inside ? at : -16 * t), is_inside);
      }
      commit_own();
    };
    auto* slot = reinterpret_cast<float4*>(stages + kSlotAt) + thread;
    const auto release = [&](int stage) {
      if (lane == 0) barrier_arrive(&empty[stage]);
    };
    std::uint32_t a[2][16];
    uint4 w[2];
    const auto take = [&](int s) {  // the thread's weights of slice s
      wait_own<3>();
      w[0] = fifo[2 * s * kThreads], w[1] = fifo[(2 * s + 1) * kThreads];
    };
    const auto convert = [&](int s, std::uint32_t(&to)[16]) {
      if constexpr (!kIsF8) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          std::uint32_t scale[2];
#pragma unroll
          for (int r = 0; r < 2; ++r)
            scale[r] = Format::twice(s % 2 == 0 ? scales_of[r][s / 2].x : scales_of[r][s / 2].y, i);
          Format::operand(w[i].x, w[i].y, scale, to + 8 * i);
          Format::operand(w[i].z, w[i].w, scale, to + 8 * i + 4);
        }
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          e4m3_to_f16(Format::word(w[0], j), to[4 * j], to[4 * j + 2]);
          e4m3_to_f16(Format::word(w[1], j), to[4 * j + 1], to[4 * j + 3]);
        }
      }
    };

    point_at(cluster);
    const int first_begin = n_here > 0 ? 256 * chunk_at(0) : 0;
#pragma unroll
    for (int s = 0; s < 4; ++s) fetch(first_begin, s, n_here > 0);
    if constexpr (!kIsF8) fetch_scales(first_begin, 0), fetch_scales(first_begin, 1);
    allow_next();
    wait_for_previous();
    take(0);
    convert(0, a[0]);
    int n_done = 0;  // chunks, of all results
    float f[kSize] = {}, acc[kSize];
    for (int item = cluster; item < n_items; item += n_clusters) {
      bool is_first = true;  // of what the slot adds up
      for (int i = 0; i < n_here; ++i, ++n_done) {
        const bool is_last = i + 1 == n_here, is_any = !is_last || item + n_clusters < n_items;
        if (is_last && is_any) point_at(item + n_clusters);
        const int entry = order[i], begin = 256 * chunk_at(is_last ? 0 : i + 1);
        const unsigned parity = static_cast<unsigned>(n_done / 2) % 2;
        const int first_stage = n_done % 2 * 4;
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          const std::uint8_t* steps = stages + (first_stage + s) * kSliceBytes;
          barrier_wait(&full[first_stage + s], parity);
          wgmma_fence();
#pragma unroll
          for (int j = 0; j < 4; ++j)
            wgmma_step(acc, a[s % 2] + 4 * j, wide_descriptor<kColumns>(steps + j * kWideStep), s + j > 0);
          wgmma_commit();
          fetch(begin, s, is_any);
          // Of halves of which all is made operands.
          if (!kIsF8 && is_any && s % 2 == 1) fetch_scales(begin, s / 2);
          take((s + 1) % 4);
          if (s > 0) {
            wgmma_wait<1>();
            release(first_stage + s - 1);
          }
          convert((s + 1) % 4, a[(s + 1) % 2]);
        }
        wgmma_finish(acc);
        release(first_stage + 3);
        // Scales are powers of two and sums have few bits below: the products are exact.
        const std::uint8_t* scales = stages + kScalesAt + n_done % kWideScales * (kColumns * 4);
#pragma unroll
        for (int n = 0; n < kColumns / 8; ++n) {
          const float2 scale = two_floats(scales, n, t);
#pragma unroll
          for (int j = 4 * n; j < 4 * n + 4; ++j) f[j] = fmaf(acc[j], of(scale, j), f[j]);
        }
        if (kIsAlone ? n_split > 1 || (entry & 0x4000) == 0 : (entry & 0x8000) == 0) continue;
#pragma unroll
        for (int j = 0; j < kSize / 4; ++j) {
          float4& at = slot[kThreads * j];
          float4 v = is_first ? make_float4(0, 0, 0, 0) : at;
          v.x += f[4 * j], v.y += f[4 * j + 1], v.z += f[4 * j + 2], v.w += f[4 * j + 3];
          if (is_last) {
            f[4 * j] = v.x, f[4 * j + 1] = v.y, f[4 * j + 2] = v.z, f[4 * j + 3] = v.w;
          } else {
            at = v;
            f[4 * j] = f[4 * j + 1] = f[4 * j + 2] = f[4 * j + 3] = 0;
          }
        }
        is_first = false;
      }
      if (n_split > 1) break;
      const int tile = item % n_tiles;
      const bool is_add = args.epilogue == CudaEpilogue::kAdd;
      const auto scale_of = [&](const Place& place) {
        const CudaProduct& product = args.products[place.matrix];
        if constexpr (kIsF8) {
          return place.is_inside ? Format::scales_of(product.weights, product.n_out, args.k, 0)[place.row] : 0.0f;
        } else {
          return 1.0f;
        }
      };
      const Place places[2] = {place_of(item, 0), place_of(item, 1)};
      const float scale[2] = {scale_of(places[0]), scale_of(places[1])};
      const CudaProduct& product = args.products[is_swiglu ? 0 : places[0].matrix];
      if (!kIsF8 && is_swiglu) {
        // Warps of both matrices give one another half of their columns.
        constexpr int kHalf = kSize / 2;
        const bool is_gate = warp < kWarps / 2;
#pragma unroll
        for (int j = 0; j < kHalf / 4; ++j) {
          float v[4];
#pragma unroll
          for (int e = 0; e < 4; ++e) v[e] = is_gate ? f[kHalf + 4 * j + e] : f[4 * j + e];
          slot[kThreads * j] = make_float4(v[0], v[1], v[2], v[3]);
        }
        tile_sync();
        const float4* theirs = slot + ((thread ^ (kThreads / 2)) - thread);
#pragma unroll
        for (int j = 0; j < kHalf / 4; ++j) {
          const float4 four = theirs[kThreads * j];
          const float others[4] = {four.x, four.y, four.z, four.w};
          const int n = j + (is_gate ? 0 : kColumns / 16);
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float own = is_gate ? f[4 * j + e] : f[kHalf + 4 * j + e];
            const float v = is_gate ? swiglu(own, others[e]) : swiglu(others[e], own);
            const int column = tile * kColumns + 8 * n + 2 * t + e % 2;
            if (column < args.n_rows && places[e / 2].is_inside) store(args, product, column, places[e / 2].row, v);
          }
        }
        tile_sync();  // before the slots are used again
#pragma unroll
        for (int j = 0; j < kSize; ++j) f[j] = 0;
        continue;
      }
      float bias[2] = {};
      const bool has_bias = !is_swiglu && !is_add && product.bias != nullptr;
      if (has_bias) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (places[r].is_inside) bias[r] = product.bias[places[r].row];
      }
      constexpr int kAtOnce = 4;
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += kAtOnce) {
        float old[4 * kAtOnce];
#pragma unroll
        for (int j = 0; j < 4 * kAtOnce; ++j) {
          const int column = tile * kColumns + 8 * (n + j / 4) + 2 * t + j % 2, r = j % 4 / 2;
          old[j] = bias[r];
          if (is_add && column < args.n_rows && places[r].is_inside)
            old[j] = static_cast<const float*>(product.y)[column * product.y_stride + places[r].row];
        }
#pragma unroll
        for (int j = 0; j < 4 * kAtOnce; ++j) {
          const int column = tile * kColumns + 8 * (n + j / 4) + 2 * t + j % 2, r = j % 4 / 2;
          const float v = f[4 * n + j] * scale[r];
          if (column >= args.n_rows || !places[r].is_inside) continue;
          if (is_swiglu) {
            if (r == 0) store(args, product, column, places[0].row, swiglu(v, f[4 * n + j + 2] * scale[1]));
          } else {
            store(args, product, column, places[r].row, is_add || has_bias ? v + old[j] : v);
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kSize; ++j) f[j] = 0;
    }
    if (n_split > 1) finish_tile<Format, kIsF8>(args, n_split, rank, cluster % n_tiles, block_of(cluster), f, stages);
  }
}
#endif

template <class Format>
__global__ void __launch_bounds__(kThreads, 1)
    tile_kernel(const __grid_constant__ SkinnyArgs args, int n_split, unsigned image_bytes) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  tile_body<Format>(args, n_split, image_bytes);
#endif
}

template <class Format, bool kIsAlone, int kColumns>
__global__ void __launch_bounds__(kWideThreads, 1)
    wide_kernel(const __grid_constant__ SkinnyArgs args, const __grid_constant__ WideShape shape) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  wide_body<Format, kIsAlone, kColumns>(args, shape);
#endif
}

template <class Format, int kColumns>
void launch_wide(void* stream, const SkinnyArgs& args, const WideShape& shape, bool is_alone) {
  const auto kernel = is_alone ? wide_kernel<Format, true, kColumns> : wide_kernel<Format, false, kColumns>;
  (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, wide_shared_bytes(kColumns));
  const int n_items = shape.n_tiles * shape.n_blocks;
  const int n_clusters = shape.n_split == 1 ? std::min(n_items, kMultiprocessors) : n_items;  // one block on each
  const auto n_split = static_cast<unsigned>(shape.n_split);
  launch_cluster(kernel, dim3(static_cast<unsigned>(n_clusters) * n_split), kWideThreads, n_split,
                 wide_shared_bytes(kColumns), stream, args, shape);
}

template <class Format>
void launch_format(void* stream, const SkinnyArgs& args, unsigned n_panels) {
  const bool is_swiglu = args.epilogue == CudaEpilogue::kSwiglu;
  const int n_chunks = (args.k + 255) / 256;
  constexpr ImageKind kKind = kind_of<Format>();
  const int each = image_rows(kKind, args.n_rows, n_chunks);
  const unsigned n_tiles = ceil_div(args.n_rows, each), n_blocks = ceil_div(n_panels, is_swiglu ? 4 : kWarps);
  // A block's chunks, and some chunks' time of its own, in waves.
  const auto cost = [&](int n_split, int own) {
    int most = 0;
    for (int group = 0; group < kSumGroups; ++group) {
      int chunks = 0;
      for (int i = 0; i < n_chunks; ++i)
        chunks += static_cast<int>(n_split == 1 || i % args.n_parts % kSumGroups == group);
      most = chunks > most ? chunks : most;
    }
    return static_cast<int>(ceil_div(n_tiles * n_blocks * static_cast<unsigned>(n_split), kMultiprocessors)) *
           (most + own);
  };
  unsigned n_split = cost(kSumGroups, 2) < cost(1, 2) ? kSumGroups : 1;
  if constexpr (is_wide(kKind)) {
    if (each > kTileRows) {
      const bool is_alone = args.n_parts == n_chunks;
      // A block takes a whole row, or (where parts are several chunks: there is room for one kind of sums) a group.
      if (!is_alone || cost(kSumGroups, 4) < cost(1, 4)) {
        n_split = kSumGroups;
      } else {
        n_split = 1;
      }
      const WideShape shape{static_cast<int>(n_split), static_cast<int>(n_tiles), static_cast<int>(n_blocks)};
      if (each == 96) {
        launch_wide<Format, 96>(stream, args, shape, is_alone);
      } else {
        launch_wide<Format, 128>(stream, args, shape, is_alone);
      }
      return;
    }
  }
  unsigned copied = kMainBytes + 256;
  if constexpr (kKind == ImageKind::k32) {
    copied = kSumsAt + (Format::kHasMin ? 2048 : 0);
  } else if constexpr (kKind == ImageKind::k32Of256 || kKind == ImageKind::k16Of256) {
    if (Format::kHasMin) copied = kSumsAt + kStepBytes;
  }
  (void)cudaFuncSetAttribute(tile_kernel<Format>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  launch_cluster(tile_kernel<Format>, dim3(n_tiles * n_split, n_blocks), kThreads, n_split, kSharedBytes, stream, args,
                 static_cast<int>(n_split), copied);
}
// Weights packed as Q8_0 always become f16 here.
template <class Body>
void with_tiled(PackedFormat format, Body&& body) {
  if (cuda_f16_form(format) == kCudaQ8F16) {
    body(Q8F16());
    return;
  }
  with_quant(format, [&](auto quant) {
    if constexpr (!std::is_base_of_v<decltype(quant), Q8F16>) body(quant);
  });
}
}  // namespace

bool has_tiles() {
  return has_wgmma();
}

std::int32_t image_kind(PackedFormat format) {
  std::int32_t kind = -1;
  with_tiled(format, [&](auto quant) { kind = static_cast<std::int32_t>(kind_of<decltype(quant)>()); });
  return kind;
}

void arrange_rows(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, PackedFormat format,
                  std::uint8_t* images) {
  const auto kind = static_cast<ImageKind>(image_kind(format));
  launch(arrange_kernel, dim3(ceil_div(k, 2048), static_cast<unsigned>(n_rows)), 256, 0, stream, x.f32,
         reinterpret_cast<const __nv_bfloat16*>(x.bf16), k, kind, image_rows(kind, n_rows, (k + 255) / 256), images);
}

void launch_tiles(void* stream, PackedFormat format, SkinnyArgs args, int n_order) {
  const auto n_panels =
      static_cast<unsigned>(args.first_panel[args.epilogue == CudaEpilogue::kSwiglu ? 1 : args.n_products]);
  args.n_parts = parts_of((args.k + 255) / 256, n_order);
  with_tiled(format, [&](auto quant) { launch_format<decltype(quant)>(stream, args, n_panels); });
}

}  // namespace still::cuda

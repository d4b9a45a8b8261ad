// The table of CUDA kernels: plain structs and function pointers, as kernel_table.h is for CPUs, without CUDA's
// headers. A build without CUDA has no table (cuda_kernels_stub.cc). All pointers are device memory; `stream` is a
// cudaStream_t; calls are asynchronous; shapes were checked by ops/. Every kernel is launched so that it may begin
// before its predecessor on the stream has ended (programmatic dependent launch) and waits itself before it reads
// activations.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace still {

// Activations that a product reads, in the forms that exist.
struct CudaActivations {
  const float* f32 = nullptr;  // [n_rows, k]
  const std::uint16_t* bf16 = nullptr;
  const std::uint16_t* f16 = nullptr;  // [n_rows, k], each 256 of a row times 1 / scale [n_rows, ceil(k / 256)]
  const std::uint8_t* f8 = nullptr;    // [n_rows, k], e4m3, a row times scale [n_rows]
  const std::int8_t* q = nullptr;      // as QuantizedRows, contiguous rows
  const float* scale = nullptr;
  const std::int16_t* sums = nullptr;
  // For any number of rows: what arrange_rows made of them for weights of this format (quantised or FP8).
  const std::uint8_t* images = nullptr;
};
// Images of rows: for each kCudaTileRows rows and 256 elements what a block of the tile kernel copies into its shared
// memory: the elements as f16 in the order of wgmma's B operand, their scales and sums.
inline constexpr std::int64_t kCudaTileRows = 64, kCudaImageBytes = 36 * 1024;
constexpr std::int64_t cuda_image_bytes(std::int64_t n_rows, std::int64_t k) {
  return (n_rows + kCudaTileRows - 1) / kCudaTileRows * ((k + 255) / 256) * kCudaImageBytes;
}

// Where ranks leave one another their parts of a sum: each writes into the others' inboxes; words that are not all ones
// have come.
inline constexpr int kCudaMaxRanks = 16;
struct CudaExchange {
  std::uint8_t* inboxes[kCudaMaxRanks] = {};  // of each rank: [2 turns][n_ranks senders][slot_bytes], all ones
  std::int64_t slot_bytes = 0;                // of most rows: 4 * rows * k, of bf16 2 * rows * k
  std::uint32_t* state = nullptr;             // of this rank: the last call's number, blocks that are done; zeroed once
  std::int32_t rank = 0, n_ranks = 0;
};

enum class CudaEpilogue : std::int32_t { kStore, kAdd, kSwiglu };

// One matrix of a product and where its result goes.
struct CudaProduct {
  const std::uint8_t* weights = nullptr;  // kernels/cuda_packing.h
  std::int32_t n_out = 0;
  void* y = nullptr;  // [n_rows, y_stride], f32 or bf16
  std::int64_t y_stride = 0;
  const float* bias = nullptr;  // [n_out] or null
};

inline constexpr int kCudaMaxProducts = 3;
inline constexpr int kCudaSkinnyRows = 16;
inline constexpr int kCudaBf16ChainRows = 16;  // at most, of linear_bf16_chain

// y = W x + bias; y += W x; or, of two matrices, y = silu(W0 x) * (W1 x) into products[0].y.
struct CudaLinearArgs {
  PackedFormat format = PackedFormat::kF32;
  CudaEpilogue epilogue = CudaEpilogue::kStore;
  std::int32_t n_products = 1;
  CudaProduct products[kCudaMaxProducts];
  bool y_is_bf16 = false;
  std::int32_t k = 0;
  std::int32_t n_rows = 0;  // at most kCudaSkinnyRows, but for F32 and images
  // F32: f32; BF16, F16: bf16; quantised: q; FP8, kCudaQ8F16: f16. A single row, but for F32: f32 or bf16.
  CudaActivations x;
  // A single row, f32, but for F32 weights: x stands before the RMSNorm with these weights; null: it is what it is. Of
  // a row like others the norm is computed first, with the bits of rms_norm, else the results are divided by it.
  const float* norm = nullptr;  // [k]
  float eps = 0;
  // The products from this one on are in second_format (cuda_can_mix; a single row, stored).
  std::int32_t n_first = kCudaMaxProducts;
  PackedFormat second_format = PackedFormat::kF32;
  // A single row of floats is computed as it is among others, and read in the form that those have. Of quantised
  // weights and FP8 rows are always the same (packed as Q8_0: in one form), provided that the order of sums is chosen
  // by the same number of panels (16 rows of a matrix): of all products of one input, whose launches may differ with
  // the number of rows.
  bool is_row_like_others = false;
  std::int32_t n_order_panels = 0;  // 0: the launch's own
  // A single row of one product, stored, not like others: it is sent to all ranks instead, this one's own inbox
  // included, for a sum_parts with is_sent. n_ranks 0: not sent.
  CudaExchange exchange;
  // linear_f8. In how many parts (cuda_f8_part_k) k is cut; above 1 only of one product, f32 results, not SwiGLU.
  std::int32_t n_f8_parts = 1;
  // One product of some columns of longer rows: bytes from row to row of the weights and of x.f8 (0: k), and the
  // weights' scales [n_out] (null: they lie behind the weights).
  std::int64_t f8_stride = 0;
  const float* f8_scale = nullptr;
};
// Parts of k in linear_f8: two where the tensor core's chain of k / 32 steps would take longer than the weights' bytes,
// that is where a matrix has few rows, and where k is long: from 65 rows on each part is a launch of its own. By the
// shape alone, so that a row's sum is the same whatever stands beside it.
constexpr std::int32_t cuda_f8_parts(std::int64_t n_out, std::int64_t k) {
  constexpr std::int64_t kStepNs = 40, kBytesPerNs = 3000, kLongRow = 8192;
  return k >= kLongRow && k / 32 * kStepNs > n_out * k / kBytesPerNs ? 2 : 1;
}
// k of each part but the last, which may be shorter: whole slices of the kernel, and where cuBLASLt expects matrices.
constexpr std::int64_t cuda_f8_part_k(std::int64_t k, std::int32_t n_parts) {
  constexpr std::int64_t kAlign = 256;
  return ((k + n_parts - 1) / n_parts + kAlign - 1) / kAlign * kAlign;
}
// Formats of which one launch computes both: Q4_K_M keeps half of its values' projections in Q6_K.
constexpr bool cuda_can_mix(PackedFormat first, PackedFormat second) {
  return first == PackedFormat::kQ4_K && second == PackedFormat::kQ6_K;
}

// Quantised copies of rows: q [n, k], scale [n, k / block], sums [n, k / 16]; null where not wanted.
struct CudaQuantizedOut {
  std::int8_t* q = nullptr;
  float* scale = nullptr;
  std::int16_t* sums = nullptr;
};

struct CudaNormArgs {
  const float* x;                      // [*, k]
  const std::int32_t* rows = nullptr;  // which rows of x; null: the first n_rows
  const float* w;                      // [k]
  float* y_f32 = nullptr;              // [n_rows, k]
  std::uint16_t* y_bf16 = nullptr;     // [n_rows, k]
  CudaQuantizedOut block32, block256;
  std::int32_t n_rows, k;
  float eps;
};

// One step's batch in device memory. Padding tokens of a captured step have slot -1 and kv_len 0.
struct CudaBatch {
  const std::int32_t* ids = nullptr;            // [n_tokens]
  const std::int32_t* positions = nullptr;      // [n_tokens]
  const std::int32_t* slots = nullptr;          // [n_tokens] block * block_size + offset, or -1
  const std::int32_t* rows = nullptr;           // [n_rows] wanted rows
  const std::int32_t* decode_tokens = nullptr;  // [n_decodes] of sequences with one new token
  const std::int32_t* decode_seqs = nullptr;    // [n_decodes]
  const std::int32_t* tiles = nullptr;          // [n_tiles][4]: sequence, first token, tokens (<= 16), first position
  const std::int32_t* kv_len = nullptr;         // [n_seqs]
  const std::int32_t* tables = nullptr;         // [n_seqs, table_stride]
  std::int32_t table_stride = 0;
  std::int32_t n_tokens = 0, n_rows = 0, n_seqs = 0, n_decodes = 0, n_tiles = 0;
  std::int32_t max_decode_len = 0;  // an upper bound of kv_len of the decodes
  bool is_plain = false;            // decode i is token i and sequence i
};

// The keys and values of one layer. A block of one head: K [block_size][head_dim], then V [block_size /
// 32][head_dim][32], both of `type` (not f32). Of int8 with g = kv_group(head_dim) then f16 scales of K
// [block_size][head_dim / g] and of V [block_size / 32][head_dim / g][32].
struct CudaKv {
  std::uint8_t* base;
  std::int64_t block_bytes;  // from one block to the next
  std::int64_t head_bytes;   // from one head to the next inside a block
  std::int64_t v_offset;
  std::int32_t block_size, n_kv_heads, head_dim;
  KvType type = KvType::kF16;
  std::int64_t k_scale_offset = 0, v_scale_offset = 0;
};

// q and k are rotated in place (k only on its way into the cache), k and v stored. Row strides in elements. n_heads 0:
// q is left to the attention.
struct CudaRopeKvArgs {
  float* q;
  const float* k;
  const float* v;
  std::int64_t q_stride, k_stride, v_stride;
  std::int32_t n_heads, n_rot;
  bool pairs;
  const float* cos;  // [max_seq_len, n_rot / 2]
  const float* sin;
  CudaKv kv;
  const std::int32_t* positions;
  const std::int32_t* slots;
  std::int32_t n_tokens;
};

struct CudaAttentionArgs {
  const float* q;  // [n_tokens, q_stride]
  std::int64_t q_stride;
  float* out_f32 = nullptr;  // [n_tokens, n_heads * head_dim]; one of the two
  std::uint16_t* out_bf16 = nullptr;
  CudaKv kv;
  CudaBatch batch;
  std::int32_t n_heads;
  float scale;
  std::int32_t window;
  std::int32_t split;                // positions of a part of a decode; a multiple of 128
  std::int32_t parts_per_block = 1;  // of at most 8 parts: how many a block computes, one after the other
  float* partials = nullptr;         // [n_seqs][n_heads][max_parts][head_dim + 2]
  std::int32_t* arrivals = nullptr;  // [n_seqs * n_kv_heads], zero between calls
  std::int32_t max_parts = 0;
  // q is still to be rotated (rope.kv and rope.positions are not looked at; rope covers whole heads in halves; head_dim
  // 64 or 128, at most 8 heads of a KV head; strides a multiple of 4).
  bool is_q_raw = false;
  bool is_rope_fused = false;  // decodes and f16 only: k too, and k and v are still to be stored
  CudaRopeKvArgs rope = {};
};

// A sum over ranks of [n_rows, k] floats through memory that all of them reach: each rank sends its part to the others
// and waits for theirs. is_bf16: parts are rounded to bf16 on their way, each rank's own too.
struct CudaSumArgs {
  CudaExchange exchange;
  bool is_sent;                    // the product before has sent its row, also to this rank: there is no part
  const float* part;               // [n_rows, k]
  const std::uint16_t* part_bf16;  // is_bf16: the same as bf16, or null
  float* y;                        // [n_rows, k]
  bool is_new;                     // y = the sum, else y +=
  bool is_bf16;
  std::int32_t n_rows, k;
  bool has_norm;  // norm of the new y: norm.w, eps and where its results go
  CudaNormArgs norm;
};
// Columns of all ranks side by side in every rank's y.
struct CudaGatherArgs {
  const float* columns;     // [n_rows, n_columns] of this rank
  float* y[kCudaMaxRanks];  // of each rank, [n_rows, y_stride]
  std::int64_t y_stride, first_column;
  std::int32_t n_columns, n_rows;
  std::uint32_t* arrivals[kCudaMaxRanks];  // of each rank: [n_ranks] the last call whose columns came; zeroed once
  std::uint32_t* state;                    // of this rank, as in CudaSumArgs but another one
  std::int32_t rank, n_ranks;
};

// One row's sampling. Random numbers are the CPU sampler's: counter_random(seed, position).
inline constexpr int kCudaMaxBanned = 8;
struct CudaSampleRow {
  std::int32_t row = 0;   // of the logits
  float temperature = 0;  // < 1e-4: the best
  std::int32_t top_k = 0;
  float top_p = 1, min_p = 0;
  std::uint32_t n_banned = 0;
  std::int32_t banned[kCudaMaxBanned] = {};
  std::uint64_t random = 0;  // 64 random bits of this position

  bool is_cut() const { return temperature >= 1e-4f && top_k != 1 && (top_k > 0 || top_p < 1 || min_p > 0); }
  friend bool operator==(const CudaSampleRow&, const CudaSampleRow&) = default;
};

struct CudaSampleArgs {
  const float* logits;  // [*, vocab_size]
  std::int32_t vocab_size;
  const CudaSampleRow* rows;         // [n]
  std::int32_t n;                    // at most 16384
  std::int32_t n_cut;                // rows that are cut
  std::uint8_t* scratch;             // sample_scratch_bytes(most rows, vocab_size), zeroed once
  std::int32_t* ids;                 // [n]; -1 where the logits are not finite
  std::int32_t* host_ids = nullptr;  // the same into pinned memory; null: not wanted
};

struct CudaKernels {
  const char* name;  // "sm_90a"

  void (*linear)(void* stream, const CudaLinearArgs& args);
  // Rows [row_begin, row_begin + n_rows) of a matrix as bf16 [n_rows, k]; row_begin a multiple of 16.
  void (*dequantize)(void* stream, PackedFormat format, const std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                     std::int64_t row_begin, std::int64_t n_rows, std::uint16_t* out);
  // f32 or bf16 rows to quantised ones; block 32 or 256.
  void (*quantize_rows)(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::int32_t block,
                        const CudaQuantizedOut& out);
  void (*to_bf16)(void* stream, const float* x, std::int64_t n, std::uint16_t* y);
  // Rows (f32 or bf16) for products with FP8 weights, y times its scale being x: f16, the scale of each 256 elements a
  // power of two that brings the largest near 2^12; or e4m3, a scale for each row, a power of two that brings the
  // largest between 224 and 448.
  void (*scale_rows)(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, std::uint16_t* y_f16,
                     std::uint8_t* y_f8, float* scale);
  // Whether the current device has linear_f8: `linear` for FP8 with a scale for each row (k a multiple of 16) and any
  // number of rows, x.f8 (a single row also f32 or bf16); a row's sum is n_f8_parts chains over k, whatever stands
  // beside it.
  bool (*has_f8_chains)();
  void (*linear_f8)(void* stream, const CudaLinearArgs& args);
  // Whether the current device has linear_bf16_chain: `linear` for one product of BF16 or F16 weights, or SwiGLU, and
  // up to kCudaBf16ChainRows rows, x.bf16 (a single row also f32). k is cut into n_parts parts (0: as is fastest), all
  // but the last of as many whole 64 as the longest needs, a part's sum is one chain of the tensor core's steps of 16,
  // and the parts are added in order: so cuBLASLt adds that cuts k into so many. Where n_parts is given, gate and up
  // are rounded to bf16 as its results are. False: not computed, since k is no multiple of 64, the parts are too many
  // or one would be empty, or a matrix is not aligned to 16 bytes.
  bool (*has_bf16_chains)();
  bool (*linear_bf16_chain)(void* stream, const CudaLinearArgs& args, std::int32_t n_parts);
  // Whether the current device has the tile kernel: products of images.
  bool (*has_tiles)();
  // Rows (f32 or bf16) to images for weights of `format`; formats of one kind share them.
  void (*arrange_rows)(void* stream, const CudaActivations& x, std::int32_t n_rows, std::int32_t k, PackedFormat format,
                       std::uint8_t* images);
  std::int32_t (*image_kind)(PackedFormat format);
  // y[row][i] = bias[i].
  void (*repeat_bias)(void* stream, const float* bias, std::int32_t n_rows, std::int32_t n_out, float* y,
                      std::int64_t y_stride);
  void (*rms_norm)(void* stream, const CudaNormArgs& args);
  void (*gather)(void* stream, const void* x, std::int64_t row_bytes, const std::int32_t* rows, std::int32_t n_rows,
                 void* y);
  // y: [n, k] f32; weights packed as for linear, rows [first_row, first_row + n_rows) of the table: other ids give 0.
  void (*embed)(void* stream, PackedFormat format, const std::uint8_t* weights, std::int32_t k, const std::int32_t* ids,
                std::int32_t n, std::int32_t first_row, std::int32_t n_rows, float* y);
  void (*rope_kv_write)(void* stream, const CudaRopeKvArgs& args);
  void (*attention)(void* stream, const CudaAttentionArgs& args);
  // y = silu(gate) * up; gate and up: bf16 rows [n, 2 * width] side by side; y f32 or bf16 [n, width].
  void (*swiglu)(void* stream, const std::uint16_t* gate_up, std::int32_t n, std::int32_t width, float* y_f32,
                 std::uint16_t* y_bf16);
  void (*sample)(void* stream, const CudaSampleArgs& args);
  // A step's lists from pinned memory to the device, 16 bytes at a time; of the first n_ids words a negative one -1 - i
  // becomes drawn[i].
  void (*fetch_step)(void* stream, const void* host, void* device, std::int64_t bytes, std::int32_t n_ids,
                     const std::int32_t* drawn);
  std::int64_t (*sample_scratch_bytes)(std::int32_t n, std::int32_t vocab_size);

  // All ranks make the same calls in the same order; one that does not come within 20 s ends the others' contexts.
  void (*sum_parts)(void* stream, const CudaSumArgs& args);
  void (*gather_columns)(void* stream, const CudaGatherArgs& args);
  // Brings these two to the current device: a kernel's first launch may wait for the whole device, on which another
  // rank may be waiting for this one.
  void (*load_rank_kernels)();
  // For measurements: random valid weights of a format, about `deviation` large; f32 normal values.
  void (*fill_weights)(void* stream, PackedFormat format, std::uint8_t* weights, std::int64_t n_out, std::int64_t k,
                       std::uint64_t seed, float deviation);
  void (*fill_f32)(void* stream, float* x, std::int64_t n, std::uint64_t seed, float mean, float deviation);
  void (*read)(void* stream, const void* data, std::int64_t bytes, std::uint32_t* sink);  // reads all, keeps nothing
};

// Null where this build has no CUDA.
const CudaKernels* cuda_kernels();

// d = alpha-free GEMM through cuBLASLt: y [n_rows, y_stride] (+)= x [n_rows, k] * w [n_out, k]^T (+ bias).
struct CudaGemmArgs {
  const void* x;  // bf16; e4m3 with is_f8; row stride x_stride
  std::int64_t x_stride;
  const void* w;  // likewise
  std::int64_t w_stride;
  void* y;
  std::int64_t y_stride;
  bool y_is_bf16, add;
  const float* bias = nullptr;  // only with f32 y
  std::int64_t n_rows, n_out, k;
  // Above 0: bit by bit as by the algorithm for so many rows, whatever n_rows is; then a row's result depends on that
  // row alone.
  std::int64_t fixed_rows = 0;
  bool is_f8 = false;
  bool is_chain = false;           // of is_f8: only algorithms whose first rows are linear_f8's, bit by bit
  const float* x_scale = nullptr;  // is_f8: [n_rows] and [n_out], products are multiplied by
  const float* w_scale = nullptr;
  // The shape comes again: algorithms are measured when it comes first. With `add` that takes room for another y.
  bool is_recurring = false;
  void* room = nullptr;
  std::int64_t room_bytes = 0;
};

// cuBLASLt, loaded at run time; one per device and stream. Not thread-safe.
class CudaGemm {
 public:
  virtual ~CudaGemm() = default;
  virtual bool run(void* stream, const CudaGemmArgs& args) = 0;  // false: no algorithm, nothing was launched
  // Of bf16 and fixed_rows: in how many parts linear_bf16_chain gives the bits of run() for args.n_rows rows; 0: in
  // none, -1: not known. It is found out by computing both, once, where may_compare (y is overwritten, or room).
  virtual std::int32_t chain_parts(void* stream, const CudaGemmArgs& args, bool may_compare) = 0;
};
// Null, with the reason, where the library is not installed.
CudaGemm* make_cuda_gemm(const char** reason);

}  // namespace still

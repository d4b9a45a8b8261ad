// The table of CPU kernels: plain structs and function pointers, one table per instruction set.
//
// Every table but "amx_bf16" computes the same bits (docs/arithmetic.md states the order of every float operation;
// kernels/ref/ is that text as scalar code). A table of a higher level starts as a copy of the level below and
// overrides what it has. ISA files include this header, <immintrin.h> and <cstdint>, and nothing else: no inline
// function of common code may be compiled for an instruction set that the machine may lack.
#pragma once

#include <cstdint>

namespace still {

// How a weight matrix lies in memory once packed. Rows are interleaved by 16 ("a panel"), so that a vector lane owns a
// row.
enum class PackedFormat : std::uint8_t {
  kF32,
  kF16,
  kBF16,  // [k][16 rows]
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kIQ4_NL,  // tiles of 16 rows x 32 weights
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,
  kIQ4_XS,  // tiles of 16 rows x 256 weights
};
inline constexpr int kPackedFormatCount = 15;
inline constexpr int kPanelRows = 16;

// Activations quantised to int8. `block` weights share a scale: 32 for the 32-wide formats, 256 for the others.
//   scale = max|x| / 127 (0 if all are 0),  q = round_to_even(x * (127 / max|x|)),  sums = sum of 16 consecutive q
struct QuantizedRows {
  const std::int8_t* q;      // [n_rows][k]
  const float* scale;        // [n_rows][k / block]
  const std::int16_t* sums;  // [n_rows][k / 16]
  std::int64_t k;
  std::int32_t block;
};

// y[r][o] = sum_k w[o][k] * x[r][k] for o in the panels [panel_begin, panel_end); rows of w past n_out are padding and
// not written.
struct LinearArgs {
  const std::uint8_t* weights;  // packed; panel p starts at p * panel_bytes
  std::int64_t panel_bytes;
  std::int64_t panel_begin, panel_end;
  std::int64_t n_out;  // rows of the matrix
  std::int64_t k;      // columns of the matrix
  QuantizedRows x;     // quantised formats
  const float* x_f32;  // float formats: [n_rows][x_stride]
  std::int64_t x_stride;
  std::int64_t n_rows;  // rows of activations, >= 1
  float* y;             // [n_rows][y_stride], element o of row r at y[r * y_stride + o]
  std::int64_t y_stride;
  std::uint8_t* scratch;                    // kLinearScratchBytes of the calling thread, 64-byte aligned
  const std::int32_t* regrouped = nullptr;  // the rows as Regrouping::write left them; null: only x
  bool same_x = false;  // the last call with this scratch was of this format and had the same x: it may be used again
};
inline constexpr std::int64_t kLinearScratchBytes = 256 * 1024;

// Activations in the order in which a kernel for many rows reads them, written once for all threads and panels.
struct RegroupArgs {
  QuantizedRows x;
  std::int64_t n_rows;              // of all
  std::int64_t row_begin, row_end;  // what this call writes: multiples of kRegroupedRows, or n_rows
  std::int32_t* out;                // 64-byte aligned, where the first of all rows goes
};
struct Regrouping {
  void (*write)(const RegroupArgs& args);
  std::int32_t block, block_bytes;  // of a row: block_bytes for each block of activations
};
// Rows that are written together; a product may begin at a multiple of kRegroupedPass rows.
inline constexpr std::int64_t kRegroupedRows = 8, kRegroupedPass = 512;
// Rows from which on it is worth writing them, and the most bytes that an activation takes.
inline constexpr std::int64_t kRegroupFrom = 17;
inline constexpr std::int64_t most_regrouped_bytes(std::int64_t n_rows, std::int64_t k) {
  return (n_rows + kRegroupedRows - 1) / kRegroupedRows * kRegroupedRows * k * 9 / 4;
}

// Packs the panels [panel_begin, panel_end) of a matrix whose rows lie as in a file (ggml blocks, or plain floats).
struct PackArgs {
  const std::uint8_t* source;  // row r at source + row_map[r] * row_bytes (row_map may be null: identity)
  const std::int64_t* row_map;
  std::int64_t row_bytes;
  std::int64_t n_out, k;
  std::int64_t panel_begin, panel_end;
  std::uint8_t* packed;  // start of the whole packed matrix
  std::int64_t panel_bytes;
};

// A panel of an output head once more in Q4_0 (ops/screened_head.h), and n_twice of its columns again after them: what
// the first copy leaves of those. Q8_0, Q6_K and the float formats. A block's scale is its largest weight over -8, as
// f16; what the copy leaves of a weight is rounded to f32 once. Blocks with a weight of kCoarseLargest, or an
// infinite one, are copied as zeros; a NaN is copied as some level, and stays one in what is left.
struct CoarseSums {
  // Of each row, sums of squares in f32 (of a block by fma one after the other, then over the blocks): of the row, of
  // its copy without the columns again, of what that leaves of the other columns, of the columns again, and of what
  // those leave.
  float row[kPanelRows], copy[kPanelRows], left[kPanelRows], second[kPanelRows], twice_left[kPanelRows];
};
struct CoarseArgs {
  const std::uint8_t* panel;
  std::int64_t k;                        // a multiple of 32, or of the format's block
  std::int32_t n_twice;                  // a multiple of 32, at most kCoarseMostTwice
  const std::int32_t *columns, *places;  // [n_twice]: ascending; which of the columns again each becomes
  std::uint8_t* copy;                    // the panel of k + n_twice columns, 64-byte aligned
  CoarseSums* sums;
};
inline constexpr std::int32_t kCoarseMostTwice = 64;
inline constexpr float kCoarseLargest = 480000.0f;  // over 8: below f16's largest number

// kF32 keeps keys and values as they are: for oracles and training; ISA tables may leave it to the reference. kBF16 and
// kF8 (e4m3, without scales: what is beyond 448 becomes that) are on GPUs only.
enum class KvType : std::uint8_t { kF16, kInt8, kF32, kBF16, kF8 };

// Keys lie transposed in tiles of 32 positions, so that a lane owns a key and a dot product needs no horizontal sum.
inline constexpr std::int64_t kKvTile = 32;
// Attention over a sequence is folded from independent segments of this many positions, in order, whatever the threads.
inline constexpr std::int64_t kKvSegment = 512;

// One (sequence, KV head): where its keys and values lie. Position p is in block block_table[p / block_size].
// A block of one head holds, for f16 and f32:  K [block_size/32][head_dim][32],  V [block_size][head_dim] of that type;
// for int8:  K int8 likewise, K scales [block_size/32][head_dim/g][32] f16,  V int8, V scales [block_size][head_dim/g]
// f16, with g = kv_group(head_dim). The four parts start at the given byte offsets from base + block * block_bytes.
struct KvHeadView {
  std::uint8_t* base;
  std::int64_t block_bytes;
  std::int64_t k_offset, v_offset, k_scale_offset, v_scale_offset;
  const std::int32_t* block_table;
  std::int64_t block_size;  // multiple of kKvTile
  std::int32_t head_dim;
  KvType type;
};
constexpr std::int32_t kv_group(std::int32_t head_dim) {
  return head_dim % 32 == 0 ? 32 : head_dim;
}

// Queries of `group` heads that share the KV head, for n_q consecutive tokens; query i stands at position q_pos + i and
// sees positions [max(0, q_pos + i + 1 - window), q_pos + i] (window 0: all), of which this call does [kv_begin,
// kv_end). kv_begin is a multiple of kKvSegment. The result is the fold of the segments in order: per query and head
// the running maximum m, the sum l and the unnormalised output o; with `finish`, o is divided by l and m, l are not
// written.
struct AttentionArgs {
  KvHeadView kv;
  const float* q;  // head h of query i at q + i * q_stride + h * head_dim
  std::int64_t q_stride;
  std::int32_t group;
  std::int64_t n_q, q_pos;
  std::int64_t kv_begin, kv_end;
  std::int64_t window;
  float scale;  // of the scores, usually head_dim^-1/2
  float* out;   // o of head h of query i at out + i * out_stride + h * head_dim
  std::int64_t out_stride;
  float* m;  // [n_q][group], natural-log domain; -inf where nothing is visible
  float* l;  // [n_q][group]
  bool finish;
  std::uint8_t* scratch;  // kAttentionScratchBytes of the calling thread, 64-byte aligned
};
inline constexpr std::int64_t kAttentionScratchBytes = 1024 * 1024;

// Folds partial results of consecutive segments into the first (see AttentionArgs); then divides by l.
struct AttentionMergeArgs {
  std::int64_t n_parts;
  const float* m;  // [n_parts][n_heads]
  const float* l;  // [n_parts][n_heads]
  const float* o;  // [n_parts][n_heads][head_dim]
  std::int64_t n_heads;
  std::int32_t head_dim;
  float* out;  // [n_heads][head_dim]
};

// RoPE of one token: cos, sin [n_rot / 2]. pairs: (2i, 2i+1); else halves: (i, i + n_rot/2). The rest of a head is
// copied.
struct RopeArgs {
  const float* x;  // [n_heads][head_dim], may equal y
  float* y;
  const float* cos;
  const float* sin;
  std::int64_t n_heads;
  std::int32_t head_dim, n_rot;
  bool pairs;
};

struct CpuKernels {
  const char* name;  // "ref", "avx2", "avx512", "avx512_vnni", "amx", "amx_bf16"

  // block is 32 or 256 and divides k.
  void (*quantize_rows)(const float* x, std::int64_t x_stride, std::int64_t n_rows, std::int64_t k, std::int32_t block,
                        std::int8_t* q, float* scale, std::int16_t* sums);
  void (*linear[kPackedFormatCount])(const LinearArgs& args);
  const Regrouping* regrouping[kPackedFormatCount];  // null: that kernel reads activations as they are
  void (*pack[kPackedFormatCount])(const PackArgs& args);
  void (*coarse[kPackedFormatCount])(const CoarseArgs& args);  // null: not of that format

  // y = w * x * rsqrt(mean(x^2) + eps); y may equal x.
  void (*rms_norm)(const float* x, const float* w, float* y, std::int64_t n, float eps);
  // x += delta; then y = rms_norm(x).
  void (*add_rms_norm)(float* x, const float* delta, const float* w, float* y, std::int64_t n, float eps);
  void (*add)(float* y, const float* x, std::int64_t n);                         // y += x
  void (*swiglu)(const float* gate, const float* up, float* y, std::int64_t n);  // y = silu(gate) * up
  void (*rope)(const RopeArgs& args);
  // Stores one position's key and value of one head: k, v [head_dim].
  void (*kv_write)(const KvHeadView& kv, std::int64_t pos, const float* k, const float* v);
  void (*attention)(const AttentionArgs& args);
  void (*attention_merge)(const AttentionMergeArgs& args);
  // Index of the largest element, the lowest index among equals; NaNs lose.
  std::int64_t (*argmax)(const float* x, std::int64_t n);
  // log(sum(exp(x - max))) + max.
  float (*log_sum_exp)(const float* x, std::int64_t n);
  // y = exp(x - shift), returns nothing; the sampler's softmax.
  void (*exp_shifted)(const float* x, float shift, float* y, std::int64_t n);
};

}  // namespace still

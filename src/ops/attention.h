// Attention of a ragged batch over KV blocks: prefill chunks and decodes in one call.  Vaswani et al. 2017,
// arXiv:1706.03762, eq. (1); grouped heads: Ainslie et al. 2023, arXiv:2305.13245; paged: Kwon et al. 2023,
// arXiv:2309.06180.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "ops/exec.h"
#include "ops/kv_cache.h"
#include "ops/rope.h"
#include "tensor/tensor.h"

namespace still {

// Wanted rows of logits of which only the largest is read, and of row i not those of ids
// banned[banned_begin[i], banned_begin[i + 1]). banned_begin empty: all logits are wanted.
struct BestOnly {
  std::span<const std::int32_t> banned_begin;  // [n_rows + 1]
  std::span<const std::int32_t> banned;
};

// One step's tokens of all sequences, flattened. Sequence s has tokens [q_start[s], q_start[s+1]), which stand at
// positions [kv_len[s] - q_len, kv_len[s]); its blocks are block_tables[s * max_blocks ...].
struct RaggedBatch {
  std::span<const TokenId> ids;                // [n_tokens]
  std::span<const std::int32_t> positions;     // [n_tokens]
  std::span<const std::int32_t> q_start;       // [n_seqs + 1]
  std::span<const std::int32_t> kv_len;        // [n_seqs], this step's tokens included
  std::span<const std::int32_t> block_tables;  // [n_seqs, max_blocks]
  std::int64_t max_blocks = 0;
  std::span<const std::int32_t> logit_rows;  // tokens whose logits are wanted, indices into ids
  BestOnly best;                             // of these
  // The states of all tokens are read afterwards (StepBuffers::normed), not the logits alone.
  bool wants_all_states = false;
  // The first so many sequences compute one token of an answer each, the others tokens of prompts; -1: not told. Only a
  // reproducible Exec on a GPU looks at it.
  std::int64_t n_answer_seqs = -1;
  // True once nobody wants the step any more, set by another thread: a model on the CPU may then return early, with
  // keys and values in part. Null: always wanted.
  const std::atomic<bool>* is_abandoned = nullptr;

  std::int64_t n_tokens() const { return static_cast<std::int64_t>(ids.size()); }
  std::int64_t n_seqs() const { return static_cast<std::int64_t>(kv_len.size()); }
  const std::int32_t* block_table(std::int64_t seq) const { return block_tables.data() + seq * max_blocks; }
};

// Stores this step's keys and values. k, v: [n_tokens, n_kv_heads * head_dim] f32, keys already rotated.
void kv_write(Exec& exec, KvCache& cache, std::int32_t layer, TensorView k, TensorView v, const RaggedBatch& batch);

// q and k rotated by their tokens' positions (k in place only on the CPU), then kv_write: one kernel on a GPU.
void rope_kv_write(Exec& exec, TensorView q, TensorView k, TensorView v, std::int64_t n_heads, const RopeTable& table,
                   KvCache& cache, std::int32_t layer, const RaggedBatch& batch);

// softmax(q k^T scale) v with grouped heads, causal, and over the last `window` positions only where window > 0.
// out, q: [n_tokens, n_heads * head_dim] f32. This step's keys and values are already in the cache.
void attention(Exec& exec, TensorView out, TensorView q, const KvCache& cache, std::int32_t layer,
               const RaggedBatch& batch, std::int64_t n_heads, float scale, std::int64_t window = 0);

}  // namespace still

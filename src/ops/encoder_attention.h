// Attention of encoders: every token of a sequence sees all of its tokens; no cache.
#pragma once

#include <cstdint>
#include <span>

#include "ops/exec.h"

namespace still {

// out = softmax(q k^T scale) v within each sequence.  Vaswani et al. 2017, arXiv:1706.03762, eq. (1)
// out, q, k, v: [n_tokens, n_heads * head_dim] f32; sequence s has the tokens [q_start[s], q_start[s + 1]).
// scores: scratch [n_threads, longest sequence] f32. One fixed order of operations on all machines.
void encoder_attention(Exec& exec, TensorView out, TensorView q, TensorView k, TensorView v,
                       std::span<const std::int32_t> q_start, std::int64_t n_heads, float scale, TensorView scores);

}  // namespace still

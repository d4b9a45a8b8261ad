// Layer normalisation, of encoders.
#pragma once

#include "ops/exec.h"

namespace still {

// y = w * (s - mean(s)) / sqrt(variance(s) + eps) + b with s = x + residual, over the last axis.  Ba et al. 2016,
// arXiv:1607.06450, eq. (4). residual may be absent (data null).
// x, y, residual: [n_tokens, hidden_size] f32, may be the same memory; w, b: [hidden_size] f32. Mean and variance are
// summed in double, in order: encoders have no kernel of their own, and all machines give the same bits.
void layer_norm(Exec& exec, TensorView y, TensorView x, TensorView residual, TensorView w, TensorView b, float eps);

}  // namespace still

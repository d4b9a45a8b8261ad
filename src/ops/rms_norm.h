// Root mean square layer normalisation.
#pragma once

#include "ops/exec.h"

namespace still {

// y = w * x / sqrt(mean(x^2) + eps), mean over the last axis.  Zhang & Sennrich 2019, arXiv:1910.07467, eq. (4)
// x, y: [n_tokens, hidden_size] f32, may be the same memory; w: [hidden_size] f32. Squares are summed in f32 in 16
// strided partial sums.
void rms_norm(Exec& exec, TensorView y, TensorView x, TensorView w, float eps);

}  // namespace still

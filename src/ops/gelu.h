// The activation of encoders.
#pragma once

#include "ops/exec.h"

namespace still {

enum class Activation {
  kGelu,      // x * (1 + erf(x / sqrt(2))) / 2.  Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2
  kGeluTanh,  // the same paper's approximation by tanh
  kRelu,
};

// In place; x: [n_tokens, intermediate_size] f32.
void activate(Exec& exec, TensorView x, Activation activation);

}  // namespace still

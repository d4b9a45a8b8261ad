// Products with weight matrices. Activations are quantised once per call for weights that compute in integers.
#pragma once

#include <initializer_list>
#include <span>

#include "ops/exec.h"
#include "ops/weight.h"

namespace still {

// One output of a grouped call: y = W x (+ bias). y: [n_tokens, w.n_out] f32; bias: [w.n_out] f32 or absent.
struct LinearOutput {
  TensorView y;
  const Weight* w;
  TensorView bias;
};

// Several matrices of one input in one parallel region (q, k, v). x: [n_tokens, k] f32.
// All weights have the same k; formats may differ.
void linear(Exec& exec, TensorView x, std::span<const LinearOutput> outputs);
inline void linear(Exec& exec, TensorView x, std::initializer_list<LinearOutput> outputs) {
  linear(exec, x, std::span<const LinearOutput>(outputs.begin(), outputs.size()));
}

// y += W x: a product that is added to the residual stream. y: [n_tokens, w.n_out] f32
// Where the matrix is shared by ranks, the sum of their products.
void linear_add(Exec& exec, TensorView y, TensorView x, const Weight& w);

// y = silu(W_gate x) * (W_up x).  Shazeer 2020, arXiv:2002.05202, eq. (6).  y: [n_tokens, gate.n_out] f32
void linear_swiglu(Exec& exec, TensorView y, TensorView x, const Weight& gate, const Weight& up);

}  // namespace still

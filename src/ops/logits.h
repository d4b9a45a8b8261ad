// The wanted rows, and the output head on them only.
#pragma once

#include <span>

#include "ops/attention.h"
#include "ops/exec.h"
#include "ops/screened_head.h"
#include "ops/weight.h"

namespace still {

// y[i] = x[rows[i]]. On a GPU the rows are those that the step's batch wants.
void take_rows(Exec& exec, TensorView y, TensorView x, std::span<const std::int32_t> rows);

// y: [n, vocab_size] f32, of rows `rows` (n of them; none: all n, in order) of x: [*, hidden_size] f32; gathered:
// scratch [n, hidden_size] f32.
void logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
            TensorView gathered);

// Where only the largest logits are wanted: as above, or by `screen` (not empty), which leaves the others at -infinity.
// norm [hidden_size]: see ScreenedHead.
struct Screening {
  ScreenedHead& head;
  TensorView norm;
  BestOnly best;
};
void best_logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
                 TensorView gathered, const Screening& screening);

}  // namespace still

// The wanted rows, and the output head on them only.
#pragma once

#include <span>

#include "ops/exec.h"
#include "ops/weight.h"

namespace still {

// y[i] = x[rows[i]]. On a GPU the rows are those that the step's batch wants.
void take_rows(Exec& exec, TensorView y, TensorView x, std::span<const std::int32_t> rows);

// y: [n, vocab_size] f32, of rows `rows` (n of them; none: all n, in order) of x: [*, hidden_size] f32; gathered:
// scratch [n, hidden_size] f32.
void logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
            TensorView gathered);

}  // namespace still

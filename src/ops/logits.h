// The output head on the wanted rows only.
#pragma once

#include <span>

#include "ops/exec.h"
#include "ops/weight.h"

namespace still {

// y: [rows.size(), vocab_size] f32; x: [n_tokens, hidden_size] f32; gathered: scratch [rows.size(), hidden_size] f32.
void logits(Exec& exec, TensorView y, TensorView x, const Weight& head, std::span<const std::int32_t> rows,
            TensorView gathered);

}  // namespace still

// Rows of the embedding table.
#pragma once

#include <span>

#include "ops/exec.h"
#include "ops/weight.h"

namespace still {

// y: [n_tokens, hidden_size] f32; ids were checked against the table's rows when the request came in.
void embed(Exec& exec, TensorView y, const EmbeddingTable& table, std::span<const TokenId> ids);

}  // namespace still

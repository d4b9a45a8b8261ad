// What the CUDA side of an Exec is made for.
#pragma once

#include <cstdint>

namespace still {

struct CudaOptions {
  std::int32_t device = 0;
  std::int64_t max_tokens = 512, max_seqs = 1, max_rows = 16;
  std::int64_t max_blocks = 1;  // of one sequence
  std::int64_t block_size = 32;
  std::int64_t max_k = 0;       // widest input of a product
  std::int64_t max_gate = 0;    // widest SwiGLU output
  std::int64_t max_matrix = 0;  // elements of the largest product: sizes the room where quantised ones are made dense
  std::int32_t n_heads = 0, n_kv_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0;
  bool has_f32_activations = true;  // some weights are not 16-bit floats: f32 activations, copies in other types
  bool capture = true;              // decode steps as graphs
  // A token's numbers depend on its own sequence alone, not on the tokens beside it: products and attention of prompts
  // and of answers each have one order of sums, whatever the number of rows.
  bool reproducible = false;
  bool measure_idle = false;  // time between steps, by events: each costs a microsecond or two
};

}  // namespace still

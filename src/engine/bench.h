// Measured runs through the engine, sampling included: what `still bench` prints. The engine must not be started and
// should have no prefix cache. Token ids are random, end tokens are ignored, choice is greedy.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace still {

struct BenchRuns {
  std::vector<double> tokens_per_s;  // one value per repeat, after one run that is not counted
  double median() const;
  double min() const;
  double max() const;
};

// Prompt tokens per second until the first token of the answer is there.
Result<BenchRuns> bench_prefill(Engine& engine, std::int64_t n_prompt, int n_repeats);

// Tokens per second of all sequences together, n_gen tokens each, after `depth` tokens of context each (0: one token).
// is_sampled: temperature 0.8, top-k 50, top-p 0.95 instead of the best token.
Result<BenchRuns> bench_decode(Engine& engine, std::int64_t n_gen, std::int64_t depth, std::int64_t n_seqs,
                               int n_repeats, bool is_sampled = false);

// Bytes a second that the current CUDA device reads, of 4 GiB.
Result<double> measure_cuda_read_bandwidth();

}  // namespace still

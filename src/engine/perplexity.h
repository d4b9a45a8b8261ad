// Perplexity of a text, counted as llama.cpp's tool does, so that figures compare: the text's tokens in chunks of
// n_ctx; in each chunk the first token is replaced by BOS where the tokenizer adds one, and tokens [n_ctx/2, n_ctx - 1)
// predict their successors. perplexity = exp(mean of -log p).
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "models/model.h"

namespace still {

struct PerplexityOptions {
  std::int64_t n_ctx = 512;    // tokens of a chunk
  std::int64_t n_chunks = -1;  // at most; -1: all
  int n_threads = 0;
  KvType kv_type = KvType::kF16;
  bool reproducible = true;  // on a GPU: the CPU always is
  const CpuKernels* kernels = nullptr;
  // After each chunk: chunks done, chunks in all, perplexity so far. False stops with kCancelled.
  std::function<bool(std::int64_t done, std::int64_t total, double perplexity)> progress;
};

struct PerplexityResult {
  double perplexity = 0;
  double standard_error = 0;  // of the perplexity, from the spread of the scored tokens
  std::int64_t n_chunks = 0, n_scored = 0;
  double tokens_per_s = 0;
};

// kInvalidArgument where the text has fewer than 2 * n_ctx tokens (llama.cpp's rule).
Result<PerplexityResult> perplexity(const Model& model, std::string_view text, const PerplexityOptions& options);

}  // namespace still

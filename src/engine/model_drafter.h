// A smaller model of the same vocabulary as the drafter. It computes its own keys and values in blocks of the same
// numbers as the model's: what the scheduler, preemption and the prefix cache do with a block holds for both, and the
// drafter remembers which blocks it has filled. Where a sequence is behind (its prompt, tokens that others drafted),
// it catches up before it drafts. Each token is drawn with the random number that the model will draw with, so that
// the two choose alike at any temperature; how long it goes on is decided by what its tokens have been worth.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/drafter.h"
#include "engine/model_runner.h"
#include "engine/vocab.h"

namespace still {

struct ModelDrafterOptions {
  std::int64_t vocab_size = 0;  // rows of its logits
  std::int64_t n_tokens = 0;    // ids that it may propose: those of both models
  std::int64_t n_blocks = 0, block_size = 32;
  std::int64_t context = 0;  // positions that it reaches, of sequences that may be longer
  std::int64_t max_seqs = 1, chunk_tokens = 256;
  std::int64_t max_blocks = 0;  // of one sequence
  const CpuKernels* kernels = nullptr;
  std::vector<TokenId> end_tokens;  // nothing is drafted behind them; ascending
};

std::unique_ptr<Drafter> make_model_drafter(const ModelDrafterOptions& options, std::unique_ptr<ForwardPass> forward);

// kInvalidArgument, in a sentence, unless both give all tokens the same bytes (one may have more for padding).
Status check_same_vocabulary(const Tokenizer& model, const Tokenizer& draft);

}  // namespace still

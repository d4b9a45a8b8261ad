// Embedder: texts to vectors. With an encoder (BERT family) as its makers pool; with any decoder, the last token's
// final hidden state, as other servers do. A text's vector does not depend on the texts beside it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "models/encoder.h"
#include "models/model.h"

namespace still {

struct EmbedderOptions {
  int n_threads = 0;                     // 0: the physical cores
  const CpuKernels* kernels = nullptr;   // null: default_cpu_kernels()
  std::int64_t max_batch_tokens = 2048;  // of one forward pass: sizes the memory
  std::int64_t max_seq_len = 0;          // of a text, for decoders; 0: the model's, at most 8192
};

struct EmbedOptions {
  bool normalize = true;  // to length 1 (a zero vector stays one)
  bool truncate = true;   // texts that are too long are cut and told; false: kResourceExhausted
  // The first so many elements only, before normalisation (Matryoshka models, arXiv:2205.13147); 0: all.
  std::int64_t dimensions = 0;
  // Asked before each forward pass; true ends the call with kCancelled. Empty: never.
  std::function<bool()> is_cancelled;
};

struct Embeddings {
  std::int64_t n_texts = 0, dimensions = 0;
  std::vector<float> values;              // [n_texts, dimensions]
  std::int64_t n_tokens = 0;              // computed, special ones included
  std::vector<std::int64_t> n_tokens_of;  // [n_texts], after cutting
  std::vector<std::int64_t> truncated;    // indices of texts that were cut

  std::span<const float> row(std::int64_t text) const {
    return {values.data() + text * dimensions, static_cast<std::size_t>(dimensions)};
  }
};

// Thread-safe: calls wait for each other.
class Embedder {
 public:
  // Loads the model: an encoder or a decoder.
  static Result<std::unique_ptr<Embedder>> create(const std::filesystem::path& path, const EmbedderOptions& options);
  static Result<std::unique_ptr<Embedder>> create(std::shared_ptr<const Encoder> encoder,
                                                  const EmbedderOptions& options);
  static Result<std::unique_ptr<Embedder>> create(std::shared_ptr<const Model> model, const EmbedderOptions& options);
  ~Embedder();

  std::int64_t dimensions() const;
  std::int64_t max_seq_len() const;  // tokens of a text, special ones included
  std::int64_t weight_bytes() const;
  std::int64_t memory_bytes() const;  // beside the weights: buffers, cache, scratch
  bool is_encoder() const;

  // Ids as embed() takes them, special tokens included, nothing cut.
  std::vector<TokenId> tokenize(std::string_view text) const;
  // kInvalidArgument for text that is no UTF-8, for `dimensions` above the model's; kResourceExhausted for a text that
  // is too long without `truncate`; "the input length exceeds the context length" is part of that sentence. No texts:
  // no vectors.
  Result<Embeddings> embed(std::span<const std::string> texts, const EmbedOptions& options = {});
  // The same for token ids, as they are (nothing is added). kInvalidArgument for ids outside the vocabulary and for
  // empty lists.
  Result<Embeddings> embed_tokens(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options = {});

 private:
  struct State;
  explicit Embedder(std::unique_ptr<State> state);
  Result<Embeddings> run(std::vector<std::vector<TokenId>> texts, const EmbedOptions& options);
  Status run_encoder(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options, Embeddings& out);
  Status run_decoder(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options, Embeddings& out);

  std::unique_ptr<State> state_;
  std::mutex mutex_;
};

}  // namespace still

// Encoder: a BERT-family model packed for this machine (all-MiniLM, bge, e5): tokens to hidden states, every token
// seeing the whole text. Devlin et al. 2018, arXiv:1810.04805. What becomes of the states is engine/embedder's work.
// Read from safetensors with their config.json (and, where they lie beside it, sentence-transformers'
// sentence_bert_config.json, modules.json and 1_Pooling/config.json), or from a GGUF of architecture "bert".
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "files/checkpoint.h"
#include "models/model.h"
#include "ops/exec.h"
#include "ops/gelu.h"
#include "ops/weight.h"
#include "text/word_piece.h"

namespace still {

// How the states of a text's tokens become one vector.
enum class Pooling { kMean, kCls, kLast };

struct EncoderConfig {
  std::int32_t n_layers = 0, n_heads = 0;
  std::int64_t hidden_size = 0, intermediate_size = 0, vocab_size = 0;
  std::int64_t max_positions = 0;  // tokens that have a position
  std::int64_t max_seq_len = 0;    // tokens of a text, special ones included: longer ones are cut; <= max_positions
  std::int64_t n_token_types = 0;
  float layer_norm_eps = 1e-12f;
  Activation activation = Activation::kGelu;
  Pooling pooling = Pooling::kMean;
};

// Whether Encoder::load takes it ("bert"); Model::load takes the decoders.
bool is_encoder(const Checkpoint& checkpoint);

// The activations of one forward pass.
struct EncoderBuffers {
  std::int64_t max_tokens = 0;
  float* hidden = nullptr;  // [max_tokens, hidden_size]; the result
  float* mixed = nullptr;   // [max_tokens, hidden_size]
  float* q = nullptr;
  float* k = nullptr;
  float* v = nullptr;
  float* ffn = nullptr;     // [max_tokens, intermediate_size]
  float* scores = nullptr;  // [n_threads, max_seq_len]

  static std::int64_t bytes(const EncoderConfig& config, std::int64_t max_tokens, int n_threads);
  static EncoderBuffers create(const EncoderConfig& config, std::int64_t max_tokens, int n_threads, Arena& arena);
};

// Immutable after load; may be used from many threads, each with its own Exec and buffers.
class Encoder {
 public:
  static Result<std::shared_ptr<const Encoder>> load(const std::filesystem::path& path, const LoadOptions& options);
  static Result<std::shared_ptr<const Encoder>> load(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const LoadOptions& options);

  const EncoderConfig& config() const { return config_; }
  const WordPiece& tokenizer() const { return *tokenizer_; }
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  std::int64_t weight_bytes() const { return arena_.size(); }

  // Writes buffers.hidden rows [0, ids.size()). Sequence s has the tokens [q_start[s], q_start[s + 1]), at most
  // max_seq_len of them; ids are below vocab_size.
  void forward(Exec& exec, std::span<const TokenId> ids, std::span<const std::int32_t> q_start,
               EncoderBuffers& buffers) const;

 private:
  struct Layer {
    Weight q, k, v, out, up, down;
    TensorView q_bias, k_bias, v_bias, out_bias, up_bias, down_bias;
    TensorView attention_norm, attention_norm_bias, output_norm, output_norm_bias;
  };
  Encoder() = default;

  EncoderConfig config_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::optional<WordPiece> tokenizer_;
  Arena arena_;
  EmbeddingTable words_;
  TensorView positions_, token_types_;  // [max_positions, hidden_size], [n_token_types, hidden_size]
  TensorView norm_, norm_bias_;
  std::vector<Layer> layers_;
};

}  // namespace still

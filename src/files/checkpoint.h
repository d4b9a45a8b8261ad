// A model on disk, whatever its files: one .gguf, a split set of them, a .safetensors file, or a folder with
// config.json and safetensors. Names of tensors and hyperparameters are Hugging Face's in every case. The one thing
// that models/ load from; nothing here computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/json.h"
#include "base/mapped_file.h"
#include "base/result.h"
#include "files/gguf.h"
#include "files/safetensors.h"
#include "tensor/dtype.h"
#include "tensor/tensor.h"

namespace still {

struct CheckpointTensor {
  std::string name;       // "model.layers.3.self_attn.q_proj.weight"; the file's own if tensor_names.h does not know it
  std::string file_name;  // as in the file: "blk.3.attn_q.weight"
  DType dtype = DType::kF32;
  Shape shape;                       // rank 1 to 4, outermost first
  std::span<const std::byte> data;   // in the mapping; empty if the file holds only its header
  const MappedFile* file = nullptr;  // so that a loader can release pages: file->release(offset, data.size())
  std::int64_t offset = 0;           // of data in the file
  std::int64_t n_bytes = 0;          // by dtype and shape, also when data is empty

  // GGUF llama files interleave the two rotated halves of each head in the rows of q and k, so that partners lie side
  // by side. Row i in Hugging Face's order (halves) is row source_row(i) of the file; the identity for other tensors.
  std::int64_t permuted_head_dim = 0;  // rows of a head; 0: not permuted
  bool permuted_rows() const { return permuted_head_dim > 0; }
  std::int64_t source_row(std::int64_t i) const {
    if (permuted_head_dim == 0) return i;
    const std::int64_t half = permuted_head_dim / 2, row = i % permuted_head_dim;
    return i - row + row % half * 2 + row / half;
  }
};

// What a tokenizer is built from. Strings point into the checkpoint and live as long as it.
struct TokenizerSource {
  enum class Kind {
    kNone,
    kGguf,  // the arrays below
    kJson,  // tokenizer_json, and tokenizer_config_json if the folder has one
  };
  Kind kind = Kind::kNone;

  std::string_view model;                // tokenizer.ggml.model: "gpt2" is byte-level BPE, "llama" SentencePiece
  std::string_view pre;                  // tokenizer.ggml.pre: "qwen2", "smollm", ...; "" if absent
  std::vector<std::string_view> tokens;  // by id
  std::vector<std::int32_t>
      token_types;            // by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; or empty
  std::vector<float> scores;  // by id, or empty
  std::vector<std::string_view> merges;  // "left right", by rank
  std::optional<TokenId> bos_id, eos_id, eot_id, eom_id, unknown_id, padding_id, separator_id, mask_id;
  std::optional<bool> add_bos, add_eos, add_space_prefix;

  std::string_view tokenizer_json, tokenizer_config_json;

  std::string_view chat_template;                                              // "" if the model ships none
  std::vector<std::pair<std::string_view, std::string_view>> named_templates;  // "tool_use" and the like
};

struct CheckpointOptions {
  bool allow_missing_data = false;  // headers without data, missing parts: for show and plan
};

// Move-only; constant after open(), so it may be read from many threads.
class Checkpoint {
 public:
  static Result<Checkpoint> open(const std::filesystem::path& path, CheckpointOptions options = {});
  // The parts of a GGUF model in order, whatever they are called (a store may name files by digest).
  static Result<Checkpoint> open_gguf_parts(std::span<const std::filesystem::path> paths,
                                            CheckpointOptions options = {});
  Checkpoint(Checkpoint&&) = default;
  Checkpoint& operator=(Checkpoint&&) = default;

  enum class Format { kGguf, kSafetensors };
  Format format() const { return format_; }
  const std::filesystem::path& path() const { return path_; }

  // Keys of config.json: model_type, num_hidden_layers, hidden_size, num_attention_heads, num_key_value_heads,
  // head_dim, intermediate_size, rms_norm_eps, rope_theta, rope_scaling {rope_type, factor, ...}, vocab_size,
  // max_position_embeddings, tie_word_embeddings; of deepseek also q_lora_rank (null if none), kv_lora_rank,
  // qk_nope_head_dim, qk_rope_head_dim, v_head_dim, n_routed_experts, num_experts_per_tok, n_shared_experts,
  // moe_intermediate_size, first_k_dense_replace, n_group, topk_group, routed_scaling_factor, norm_topk_prob,
  // scoring_func, topk_method, num_nextn_predict_layers. From GGUF additionally attention_bias, mlp_bias.
  const JsonObject& config() const { return config_; }
  std::string_view architecture()
      const;  // config's model_type: "llama", "qwen2", "qwen3", "deepseek_v2", "deepseek_v3"
  const JsonObject& generation_config() const { return generation_config_; }  // empty if the model ships none

  std::span<const CheckpointTensor> tensors() const { return tensors_; }  // in file order
  const CheckpointTensor* find(std::string_view name) const;              // by canonical name
  bool has_all_data() const { return has_all_data_; }
  std::int64_t file_bytes() const;  // of all weight files together, as they lie on disk

  // kCorrupt if arrays contradict each other. Cheap: nothing but views.
  Result<TokenizerSource> tokenizer_source() const;

  // Null unless format() is kGguf.
  const GgufMetadata* gguf_metadata() const { return gguf_ ? &gguf_->metadata() : nullptr; }
  const GgufSet* gguf() const { return gguf_ ? &*gguf_ : nullptr; }

 private:
  Checkpoint() = default;
  static Result<Checkpoint> from_gguf(GgufSet set, const std::filesystem::path& path);
  static Result<Checkpoint> from_folder(const std::filesystem::path& folder, std::vector<std::filesystem::path> files,
                                        CheckpointOptions options);
  Status add_tensor(CheckpointTensor tensor);
  Result<TokenizerSource> gguf_tokenizer_source() const;

  Format format_ = Format::kGguf;
  std::filesystem::path path_;
  JsonObject config_;
  JsonObject generation_config_;
  std::vector<CheckpointTensor> tensors_;
  std::unordered_map<std::string, std::size_t> index_;
  bool has_all_data_ = true;
  std::optional<GgufSet> gguf_;
  std::vector<SafetensorsFile> safetensors_;
  MappedFile tokenizer_json_;
  std::vector<std::string> texts_;  // tokenizer_config.json, chat template: see tokenizer_source()
};

}  // namespace still

// BERT: see encoder.h. The norms come after each block (post-norm), positions are learned, and text has token type 0.
#include <algorithm>
#include <cstring>
#include <functional>

#include "base/text_file.h"
#include "files/config_json.h"
#include "kernels/dispatch.h"
#include "kernels/packing.h"
#include "models/encoder.h"
#include "ops/embed.h"
#include "ops/encoder_attention.h"
#include "ops/layer_norm.h"
#include "ops/linear.h"
#include "ops/parallel.h"
#include "quant/registry.h"

namespace still {

namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kMaxEncoderWidth = 1 << 20;

Result<Activation> read_activation(std::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh" || name == "gelu_fast") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  return error(Code::kUnsupported, "config: hidden_act \"{}\" is not supported (gelu, gelu_new, relu are)", name);
}

Status check(const EncoderConfig& config) {
  if (config.hidden_size % config.n_heads != 0)
    return error(Code::kCorrupt, "config: hidden size {} is not a multiple of {} heads", config.hidden_size,
                 config.n_heads);
  if (config.max_seq_len < 3) return error(Code::kCorrupt, "config: texts of {} tokens at most", config.max_seq_len);
  return ok();
}

Result<EncoderConfig> read_config_json(const JsonObject& json) {
  const ConfigReader reader(json);
  EncoderConfig config;
  STILL_TRY(const std::int64_t n_layers, reader.integer("num_hidden_layers", 1, 1024));
  STILL_TRY(const std::int64_t n_heads, reader.integer("num_attention_heads", 1, 4096));
  STILL_TRY(config.hidden_size, reader.integer("hidden_size", 1, kMaxEncoderWidth));
  STILL_TRY(config.intermediate_size, reader.integer("intermediate_size", 1, kMaxEncoderWidth));
  STILL_TRY(config.vocab_size, reader.integer("vocab_size", 1, 1 << 24));
  STILL_TRY(config.max_positions, reader.integer_or("max_position_embeddings", 512, 1, 1 << 24));
  STILL_TRY(config.n_token_types, reader.integer_or("type_vocab_size", 2, 1, 1024));
  STILL_TRY(const double eps, reader.number_or("layer_norm_eps", 1e-12, 0.0, 1.0));
  STILL_TRY(const std::string act, reader.string_or("hidden_act", "gelu"));
  STILL_TRY(config.activation, read_activation(act));
  STILL_TRY(const std::string position, reader.string_or("position_embedding_type", "absolute"));
  if (position != "absolute")
    return error(Code::kUnsupported, "config: position_embedding_type \"{}\" is not supported (absolute is)", position);
  config.n_layers = static_cast<std::int32_t>(n_layers);
  config.n_heads = static_cast<std::int32_t>(n_heads);
  config.layer_norm_eps = static_cast<float>(eps);
  config.max_seq_len = config.max_positions;
  return config;
}

// What sentence-transformers writes beside the model.
Status read_sentence_config(const fs::path& folder, EncoderConfig& config) {
  std::error_code failure;
  if (const fs::path path = folder / "sentence_bert_config.json"; fs::is_regular_file(path, failure)) {
    STILL_TRY(const JsonObject json, read_json_object(path));
    STILL_TRY(const std::int64_t limit,
              ConfigReader(json).integer_or("max_seq_length", config.max_seq_len, 1, 1 << 24));
    config.max_seq_len = std::min(config.max_seq_len, limit);
  }
  const fs::path path = folder / "1_Pooling" / "config.json";
  if (!fs::is_regular_file(path, failure)) return ok();
  STILL_TRY(const JsonObject json, read_json_object(path));
  const ConfigReader reader(json);
  STILL_TRY(const bool cls, reader.boolean_or("pooling_mode_cls_token", false));
  STILL_TRY(const bool mean, reader.boolean_or("pooling_mode_mean_tokens", false));
  STILL_TRY(const bool last, reader.boolean_or("pooling_mode_lasttoken", false));
  if (static_cast<int>(cls) + static_cast<int>(mean) + static_cast<int>(last) != 1)
    return error(Code::kUnsupported, "{}: one of cls, mean and last-token pooling is supported", path.string());
  config.pooling = cls ? Pooling::kCls : last ? Pooling::kLast : Pooling::kMean;
  return ok();
}

Result<EncoderConfig> read_gguf_config(const GgufMetadata& metadata, const Checkpoint& checkpoint) {
  const auto integer = [&](std::string_view key, std::int64_t max) -> Result<std::int64_t> {
    const GgufValue* value = metadata.find("bert." + std::string(key));
    const std::optional<std::int64_t> number = value != nullptr ? value->integer() : std::nullopt;
    if (!number || *number < 1 || *number > max)
      return error(Code::kCorrupt, "bert.{} is missing or not between 1 and {}", key, max);
    return *number;
  };
  EncoderConfig config;
  STILL_TRY(const std::int64_t n_layers, integer("block_count", 1024));
  STILL_TRY(const std::int64_t n_heads, integer("attention.head_count", 4096));
  STILL_TRY(config.hidden_size, integer("embedding_length", kMaxEncoderWidth));
  STILL_TRY(config.intermediate_size, integer("feed_forward_length", kMaxEncoderWidth));
  STILL_TRY(config.max_positions, integer("context_length", 1 << 24));
  config.n_layers = static_cast<std::int32_t>(n_layers);
  config.n_heads = static_cast<std::int32_t>(n_heads);
  config.max_seq_len = config.max_positions;
  if (const GgufValue* eps = metadata.find("bert.attention.layer_norm_epsilon"); eps != nullptr)
    config.layer_norm_eps = static_cast<float>(eps->number().value_or(1e-12));
  // llama.cpp's numbers: 0 none, 1 mean, 2 cls, 3 last.
  if (const GgufValue* pooling = metadata.find("bert.pooling_type"); pooling != nullptr) {
    const std::int64_t kind = pooling->integer().value_or(1);
    if (kind < 0 || kind > 3) return error(Code::kUnsupported, "bert.pooling_type {} is not supported", kind);
    config.pooling = kind == 2 ? Pooling::kCls : kind == 3 ? Pooling::kLast : Pooling::kMean;
  }
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    if (tensor.shape.rank != 2) continue;
    if (tensor.file_name == "token_embd.weight") config.vocab_size = tensor.shape[0];
    if (tensor.file_name == "token_types.weight") config.n_token_types = tensor.shape[0];
  }
  return config;
}

Result<WordPieceData> read_tokenizer(const Checkpoint& checkpoint, const fs::path& folder) {
  std::error_code failure;
  if (checkpoint.format() == Checkpoint::Format::kSafetensors &&
      !fs::is_regular_file(folder / "tokenizer.json", failure)) {
    STILL_TRY(const std::string vocab, read_text_file(folder / "vocab.txt", 64 << 20));
    std::string options;
    if (const fs::path path = folder / "tokenizer_config.json"; fs::is_regular_file(path, failure)) {
      STILL_TRY(options, read_text_file(path, 16 << 20));
    }
    return read_word_piece_vocab(vocab, options);
  }
  STILL_TRY(const TokenizerSource source, checkpoint.tokenizer_source());
  if (source.kind == TokenizerSource::Kind::kJson) return read_word_piece_json(source.tokenizer_json);
  if (source.kind == TokenizerSource::Kind::kGguf && source.model == "bert") {
    STILL_TRY(WordPieceData data, read_word_piece_gguf(source.tokens, source.token_types));
    if (source.unknown_id) data.unknown = *source.unknown_id;
    if (source.separator_id) data.sep = *source.separator_id;
    return data;
  }
  return error(Code::kUnsupported,
               "{}: no WordPiece tokenizer (tokenizer.json, vocab.txt or tokenizer.ggml.model bert)",
               checkpoint.path().string());
}

// Finds tensors by their names in the two kinds of files, and lays them into an arena: first their sizes, then they.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const CpuKernels& kernels) : kernels_(kernels) {
    for (const CheckpointTensor& tensor : checkpoint.tensors()) by_name_.emplace(tensor.file_name, &tensor);
    // Classifiers and the like keep the encoder under a prefix.
    prefix_ = by_name_.contains("bert.embeddings.word_embeddings.weight") ? "bert." : "";
    is_gguf_ = checkpoint.format() == Checkpoint::Format::kGguf;
  }

  void matrix(Weight& target, std::string_view hf, std::string_view gguf, std::int64_t n_out, std::int64_t k) {
    const CheckpointTensor* source = find(hf, gguf, {n_out, k});
    if (source == nullptr) return;
    const std::optional<PackedFormat> format = packed_format(source->dtype);
    if (!format || k % packed_tile_k(*format) != 0) {
      note(error(Code::kUnsupported, "{}: type {} with rows of {} does not compute here", source->file_name,
                 dtype_name(source->dtype), k));
      return;
    }
    add(packed_bytes(*format, n_out, k), [this, &target, source, format, n_out, k](std::byte* memory) {
      const std::int64_t panel_bytes = packed_panel_bytes(*format, k);
      kernels_.pack[static_cast<int>(*format)]({.source = reinterpret_cast<const std::uint8_t*>(source->data.data()),
                                                .row_map = nullptr,
                                                .row_bytes = dtype_bytes(source->dtype, k),
                                                .n_out = n_out,
                                                .k = k,
                                                .panel_begin = 0,
                                                .panel_end = (n_out + kPanelRows - 1) / kPanelRows,
                                                .packed = reinterpret_cast<std::uint8_t*>(memory),
                                                .panel_bytes = panel_bytes});
      target = {.name = source->file_name,
                .format = *format,
                .n_out = n_out,
                .k = k,
                .packed = reinterpret_cast<const std::uint8_t*>(memory),
                .panel_bytes = panel_bytes};
      if (source->file != nullptr) source->file->release(source->offset, source->n_bytes);
    });
  }

  void vector(TensorView& target, std::string_view hf, std::string_view gguf, Shape shape) {
    const CheckpointTensor* source = find(hf, gguf, shape);
    if (source == nullptr) return;
    const QuantFormat* format = find_format(source->dtype);
    if (format == nullptr || shape[shape.rank - 1] % dtype_info(source->dtype).block_size != 0) {
      note(
          error(Code::kUnsupported, "{}: type {} does not compute here", source->file_name, dtype_name(source->dtype)));
      return;
    }
    add(shape.n_elements() * static_cast<std::int64_t>(sizeof(float)), [&target, source, format](std::byte* memory) {
      format->decode_row(reinterpret_cast<const std::uint8_t*>(source->data.data()), reinterpret_cast<float*>(memory),
                         source->shape.n_elements());
      target = {memory, DType::kF32, source->shape};
    });
  }

  void table(EmbeddingTable& target, std::string_view hf, std::string_view gguf, Shape shape) {
    const CheckpointTensor* source = find(hf, gguf, shape);
    if (source == nullptr) return;
    if (find_format(source->dtype) == nullptr || shape[1] % dtype_info(source->dtype).block_size != 0)
      return note(
          error(Code::kUnsupported, "{}: type {} does not compute here", source->file_name, dtype_name(source->dtype)));
    target = {.name = source->file_name,
              .dtype = source->dtype,
              .n_rows = shape[0],
              .row_size = shape[1],
              .data = source->data.data()};
  }

  Result<Arena> run() {
    STILL_TRY_STATUS(status_);
    STILL_TRY(Arena arena, Arena::create(bytes_, "weights of the encoder"));
    for (const auto& [bytes, fill] : items_) fill(arena.allocate(bytes));
    return arena;
  }

 private:
  const CheckpointTensor* find(std::string_view hf, std::string_view gguf, Shape shape) {
    const std::string name = is_gguf_ ? std::string(gguf) : prefix_ + std::string(hf);
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) {
      note(error(Code::kCorrupt, "{}: missing from the model (expected shape {})", name, to_string(shape)));
      return nullptr;
    }
    if (!(found->second->shape == shape)) {
      note(error(Code::kCorrupt, "{}: shape {}, expected {}", name, to_string(found->second->shape), to_string(shape)));
      return nullptr;
    }
    if (found->second->data.empty()) {
      note(error(Code::kCorrupt, "{}: the file has its header only, not its data", name));
      return nullptr;
    }
    return found->second;
  }
  void note(tl::unexpected<Error> problem) {
    if (status_) status_ = std::move(problem);
  }
  void add(std::int64_t bytes, std::function<void(std::byte*)> fill) {
    bytes_ += Arena::rounded(bytes);
    items_.emplace_back(bytes, std::move(fill));
  }

  const CpuKernels& kernels_;
  std::unordered_map<std::string, const CheckpointTensor*> by_name_;
  std::string prefix_;
  bool is_gguf_ = false;
  Status status_;
  std::int64_t bytes_ = 0;
  std::vector<std::pair<std::int64_t, std::function<void(std::byte*)>>> items_;
};

}  // namespace

bool is_encoder(const Checkpoint& checkpoint) {
  return checkpoint.architecture() == "bert";
}

std::int64_t EncoderBuffers::bytes(const EncoderConfig& config, std::int64_t max_tokens, int n_threads) {
  const auto floats = [](std::int64_t n) { return Arena::rounded(n * static_cast<std::int64_t>(sizeof(float))); };
  return 5 * floats(max_tokens * config.hidden_size) + floats(max_tokens * config.intermediate_size) +
         floats(n_threads * config.max_seq_len);
}

EncoderBuffers EncoderBuffers::create(const EncoderConfig& config, std::int64_t max_tokens, int n_threads,
                                      Arena& arena) {
  EncoderBuffers buffers;
  buffers.max_tokens = max_tokens;
  for (float** part : {&buffers.hidden, &buffers.mixed, &buffers.q, &buffers.k, &buffers.v})
    *part = arena.allocate_array<float>(max_tokens * config.hidden_size);
  buffers.ffn = arena.allocate_array<float>(max_tokens * config.intermediate_size);
  buffers.scores = arena.allocate_array<float>(n_threads * config.max_seq_len);
  return buffers;
}

Result<std::shared_ptr<const Encoder>> Encoder::load(const fs::path& path, const LoadOptions& options) {
  STILL_TRY(Checkpoint checkpoint, Checkpoint::open(path));
  return load(std::make_shared<const Checkpoint>(std::move(checkpoint)), options);
}

Result<std::shared_ptr<const Encoder>> Encoder::load(std::shared_ptr<const Checkpoint> checkpoint,
                                                     const LoadOptions& options) {
  if (!is_encoder(*checkpoint))
    return error(Code::kUnsupported, "architecture \"{}\" is no encoder that is supported (bert is)",
                 checkpoint->architecture());
  std::shared_ptr<Encoder> encoder(new Encoder());
  encoder->checkpoint_ = checkpoint;
  EncoderConfig& config = encoder->config_;
  std::error_code failure;
  const fs::path folder =
      fs::is_directory(checkpoint->path(), failure) ? checkpoint->path() : checkpoint->path().parent_path();
  if (const GgufMetadata* metadata = checkpoint->gguf_metadata()) {
    STILL_TRY(config, read_gguf_config(*metadata, *checkpoint));
  } else {
    STILL_TRY(config, read_config_json(checkpoint->config()));
    STILL_TRY_STATUS(read_sentence_config(folder, config));
  }
  STILL_TRY_STATUS(check(config));
  STILL_TRY(WordPieceData words, read_tokenizer(*checkpoint, folder));
  STILL_TRY(encoder->tokenizer_, WordPiece::make(std::move(words)));
  if (encoder->tokenizer_->vocab_size() > config.vocab_size)
    return error(Code::kCorrupt, "tokenizer: {} tokens, but the model's vocabulary has {}",
                 encoder->tokenizer_->vocab_size(), config.vocab_size);

  const CpuKernels* kernels = options.kernels;
  if (kernels == nullptr) {
    STILL_TRY(kernels, default_cpu_kernels());
  }
  const std::int64_t n = config.hidden_size, inner = config.intermediate_size;
  Loader loader(*checkpoint, *kernels);
  loader.table(encoder->words_, "embeddings.word_embeddings.weight", "token_embd.weight", {config.vocab_size, n});
  loader.vector(encoder->positions_, "embeddings.position_embeddings.weight", "position_embd.weight",
                {config.max_positions, n});
  loader.vector(encoder->token_types_, "embeddings.token_type_embeddings.weight", "token_types.weight",
                {config.n_token_types, n});
  loader.vector(encoder->norm_, "embeddings.LayerNorm.weight", "token_embd_norm.weight", {n});
  loader.vector(encoder->norm_bias_, "embeddings.LayerNorm.bias", "token_embd_norm.bias", {n});
  encoder->layers_.resize(static_cast<std::size_t>(config.n_layers));
  for (std::int32_t i = 0; i < config.n_layers; ++i) {
    Layer& layer = encoder->layers_[static_cast<std::size_t>(i)];
    const std::string hf = fmt::format("encoder.layer.{}.", i), gguf = fmt::format("blk.{}.", i);
    const auto linear_of = [&](Weight& weight, TensorView& bias, std::string_view hf_name, std::string_view gguf_name,
                               std::int64_t n_out, std::int64_t k) {
      const std::string from_hf = hf + std::string(hf_name), from_gguf = gguf + std::string(gguf_name);
      loader.matrix(weight, from_hf + ".weight", from_gguf + ".weight", n_out, k);
      loader.vector(bias, from_hf + ".bias", from_gguf + ".bias", {n_out});
    };
    linear_of(layer.q, layer.q_bias, "attention.self.query", "attn_q", n, n);
    linear_of(layer.k, layer.k_bias, "attention.self.key", "attn_k", n, n);
    linear_of(layer.v, layer.v_bias, "attention.self.value", "attn_v", n, n);
    linear_of(layer.out, layer.out_bias, "attention.output.dense", "attn_output", n, n);
    linear_of(layer.up, layer.up_bias, "intermediate.dense", "ffn_up", inner, n);
    linear_of(layer.down, layer.down_bias, "output.dense", "ffn_down", n, inner);
    loader.vector(layer.attention_norm, hf + "attention.output.LayerNorm.weight", gguf + "attn_output_norm.weight",
                  {n});
    loader.vector(layer.attention_norm_bias, hf + "attention.output.LayerNorm.bias", gguf + "attn_output_norm.bias",
                  {n});
    loader.vector(layer.output_norm, hf + "output.LayerNorm.weight", gguf + "layer_output_norm.weight", {n});
    loader.vector(layer.output_norm_bias, hf + "output.LayerNorm.bias", gguf + "layer_output_norm.bias", {n});
  }
  STILL_TRY(encoder->arena_, loader.run());
  return std::shared_ptr<const Encoder>(std::move(encoder));
}

void Encoder::forward(Exec& exec, std::span<const TokenId> ids, std::span<const std::int32_t> q_start,
                      EncoderBuffers& buffers) const {
  const auto n_tokens = static_cast<std::int64_t>(ids.size());
  STILL_CHECK(n_tokens > 0 && n_tokens <= buffers.max_tokens);
  const std::int64_t n = config_.hidden_size;
  const auto view = [&](float* data, std::int64_t width) { return TensorView{data, DType::kF32, {n_tokens, width}}; };
  const TensorView hidden = view(buffers.hidden, n), mixed = view(buffers.mixed, n), q = view(buffers.q, n),
                   k = view(buffers.k, n), v = view(buffers.v, n), ffn = view(buffers.ffn, config_.intermediate_size);
  const TensorView scores{buffers.scores, DType::kF32, {exec.n_threads(), config_.max_seq_len}};
  const float scale = 1.0f / std::sqrt(static_cast<float>(n / config_.n_heads));

  embed(exec, hidden, words_, ids);
  for (std::size_t seq = 0; seq + 1 < q_start.size(); ++seq) {
    for (std::int64_t row = q_start[seq]; row < q_start[seq + 1]; ++row) {
      const float* position = positions_.f32() + (row - q_start[seq]) * n;
      float* values = buffers.hidden + row * n;
      for (std::int64_t i = 0; i < n; ++i) values[i] = values[i] + token_types_.f32()[i] + position[i];
    }
  }
  layer_norm(exec, hidden, hidden, {}, norm_, norm_bias_, config_.layer_norm_eps);
  for (const Layer& layer : layers_) {
    linear(exec, hidden, {{q, &layer.q, layer.q_bias}, {k, &layer.k, layer.k_bias}, {v, &layer.v, layer.v_bias}});
    encoder_attention(exec, mixed, q, k, v, q_start, config_.n_heads, scale, scores);
    linear(exec, mixed, {{q, &layer.out, layer.out_bias}});
    layer_norm(exec, hidden, q, hidden, layer.attention_norm, layer.attention_norm_bias, config_.layer_norm_eps);
    linear(exec, hidden, {{ffn, &layer.up, layer.up_bias}});
    activate(exec, ffn, config_.activation);
    linear(exec, ffn, {{mixed, &layer.down, layer.down_bias}});
    layer_norm(exec, hidden, mixed, hidden, layer.output_norm, layer.output_norm_bias, config_.layer_norm_eps);
  }
}

}  // namespace still

#include "files/checkpoint.h"

#include <algorithm>

#include "files/config_json.h"
#include "files/file_error.h"
#include "files/gguf_config.h"
#include "files/tensor_names.h"

namespace still {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kMaxTextBytes = 64 << 20;

// Positions in Checkpoint::texts_.
enum { kTokenizerConfigText, kChatTemplateText, kTextCount };

bool file_exists(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(path, ignored);
}

std::vector<fs::path> files_ending_in(const fs::path& folder, std::string_view ending) {
  std::vector<fs::path> found;
  std::error_code failure;
  for (fs::directory_iterator entry(folder, failure), end; !failure && entry != end; entry.increment(failure))
    if (entry->path().filename().string().ends_with(ending)) found.push_back(entry->path());
  std::sort(found.begin(), found.end());
  return found;
}

bool is_permuted(std::string_view gguf_name) {
  return gguf_name.ends_with(".attn_q.weight") || gguf_name.ends_with(".attn_k.weight") ||
         gguf_name.ends_with(".attn_q.bias") || gguf_name.ends_with(".attn_k.bias");
}

}  // namespace

Result<Checkpoint> Checkpoint::open(const fs::path& path, CheckpointOptions options) {
  std::error_code failure;
  const fs::file_status status = fs::status(path, failure);
  if (!fs::exists(status)) return file_error(Code::kNotFound, "{}: no such file or folder", path.string());
  if (!fs::is_directory(status)) {
    if (path.extension() == ".safetensors") return from_folder(path.parent_path(), {path}, options);
    // Whatever its name, a file is taken for GGUF: its first bytes tell.
    STILL_TRY(GgufSet set, GgufSet::open(path, {options.allow_missing_data}));
    return from_gguf(std::move(set), path);
  }

  if (file_exists(path / "config.json")) {
    if (const fs::path index_path = path / "model.safetensors.index.json"; file_exists(index_path)) {
      STILL_TRY(const std::string text, read_text_file(index_path, kMaxTextBytes));
      STILL_TRY(const SafetensorsIndex index, SafetensorsIndex::parse(text, index_path.string()));
      std::vector<fs::path> files;
      for (const std::string& file : index.files) files.push_back(path / file);
      STILL_TRY(Checkpoint checkpoint, from_folder(path, std::move(files), options));
      for (const auto& [tensor_name, file_idx] : index.tensors)
        if (checkpoint.find(tensor_name) == nullptr && checkpoint.has_all_data())
          return file_error(Code::kCorrupt, "{}: tensor {} is not in {}", index_path.string(), tensor_name,
                            index.files[file_idx]);
      return checkpoint;
    }
    if (file_exists(path / "model.safetensors")) return from_folder(path, {path / "model.safetensors"}, options);
    if (std::vector<fs::path> files = files_ending_in(path, ".safetensors"); !files.empty())
      return from_folder(path, std::move(files), options);
    // A plan needs no weights.
    if (options.allow_missing_data && files_ending_in(path, ".gguf").empty()) return from_folder(path, {}, options);
  }
  std::vector<fs::path> models;
  for (const fs::path& file : files_ending_in(path, ".gguf")) {
    const auto part = parse_gguf_part_name(file.filename().string());
    if (!part || part->part == 1) models.push_back(file);
  }
  if (models.empty())
    return file_error(Code::kNotFound,
                      "{}: no model in this folder: neither config.json with .safetensors files nor a .gguf file",
                      path.string());
  if (models.size() > 1)
    return file_error(Code::kInvalidArgument, "{}: {} GGUF models in this folder; name one of them, such as {}",
                      path.string(), models.size(), models.front().string());
  return open(models.front(), options);
}

Result<Checkpoint> Checkpoint::open_gguf_parts(std::span<const fs::path> paths, CheckpointOptions options) {
  STILL_TRY(GgufSet set, GgufSet::open_parts(paths, {options.allow_missing_data}));
  return from_gguf(std::move(set), paths.front());
}

Result<Checkpoint> Checkpoint::from_gguf(GgufSet set, const fs::path& path) {
  Checkpoint checkpoint;
  checkpoint.format_ = Format::kGguf;
  checkpoint.path_ = path;
  checkpoint.gguf_ = std::move(set);
  const GgufMetadata& metadata = checkpoint.gguf_->metadata();
  const std::vector<GgufFile>& parts = checkpoint.gguf_->parts();
  const GgufShapeLookup find_shape = [&](std::string_view name) -> const Shape* {
    for (const GgufFile& part : parts)
      if (const GgufTensor* tensor = part.header().find_tensor(name)) return &tensor->shape;
    return nullptr;
  };
  STILL_TRY(checkpoint.config_, config_from_gguf(metadata, find_shape, path.string()));
  checkpoint.generation_config_ = generation_config_from_gguf(metadata);
  checkpoint.has_all_data_ = checkpoint.gguf_->n_parts_missing() == 0;

  const bool is_llama = metadata.string("general.architecture") == "llama";
  for (const GgufFile& part : parts) {
    checkpoint.has_all_data_ = checkpoint.has_all_data_ && part.is_complete();
    for (const GgufTensor& source : part.header().tensors()) {
      CheckpointTensor tensor;
      tensor.name = gguf_to_hf_tensor_name(source.name).value_or(source.name);
      tensor.file_name = source.name;
      tensor.dtype = source.dtype;
      tensor.shape = source.shape;
      tensor.data = part.data(source);
      tensor.file = &part.file();
      tensor.offset = part.header().data_offset + source.offset;
      tensor.n_bytes = source.n_bytes;
      if (is_llama && is_permuted(source.name)) {
        const bool is_q = source.name.find(".attn_q.") != std::string::npos;
        const std::int64_t n_heads =
            checkpoint.config_[is_q ? "num_attention_heads" : "num_key_value_heads"].to_number<std::int64_t>();
        const std::int64_t n_rows = source.shape[0];
        if (n_heads <= 0 || n_rows % (2 * n_heads) != 0)
          return file_error(Code::kCorrupt, "{}: tensor {}: {} rows do not make {} heads of even width", path.string(),
                            source.name, n_rows, n_heads);
        tensor.permuted_head_dim = n_rows / n_heads;
      }
      STILL_TRY_STATUS(checkpoint.add_tensor(std::move(tensor)));
    }
  }
  return checkpoint;
}

Result<Checkpoint> Checkpoint::from_folder(const fs::path& folder, std::vector<fs::path> files,
                                           CheckpointOptions options) {
  Checkpoint checkpoint;
  checkpoint.format_ = Format::kSafetensors;
  checkpoint.path_ = files.size() == 1 ? files.front() : folder;
  const fs::path config_path = folder / "config.json";
  STILL_TRY(JsonObject config, read_json_object(config_path));
  STILL_TRY(checkpoint.config_, normalize_config(std::move(config), config_path.string()));
  if (const fs::path generation = folder / "generation_config.json"; file_exists(generation)) {
    STILL_TRY(checkpoint.generation_config_, read_json_object(generation));
  }

  checkpoint.has_all_data_ = !files.empty();
  for (const fs::path& path : files) {
    auto file = SafetensorsFile::open(path, options.allow_missing_data);
    if (!file && file.error().code == Code::kNotFound && options.allow_missing_data) {
      checkpoint.has_all_data_ = false;
      continue;
    }
    if (!file) return tl::unexpected(std::move(file).error());
    checkpoint.safetensors_.push_back(std::move(*file));
  }
  for (const SafetensorsFile& file : checkpoint.safetensors_) {
    for (const SafetensorsTensor& source : file.header().tensors) {
      CheckpointTensor tensor;
      tensor.name = source.name;
      tensor.file_name = source.name;
      tensor.dtype = source.dtype;
      tensor.shape = source.shape;
      tensor.data = file.data(source);
      tensor.file = &file.file();
      tensor.offset = file.header().data_offset + source.offset;
      tensor.n_bytes = source.n_bytes;
      if (tensor.data.empty() && tensor.n_bytes > 0) checkpoint.has_all_data_ = false;
      STILL_TRY_STATUS(checkpoint.add_tensor(std::move(tensor)));
    }
  }

  if (!checkpoint.config_.contains("tie_word_embeddings") && checkpoint.has_all_data_)
    checkpoint.config_["tie_word_embeddings"] = checkpoint.find("lm_head.weight") == nullptr;

  checkpoint.texts_.resize(kTextCount);
  if (file_exists(folder / "tokenizer.json")) {
    STILL_TRY(checkpoint.tokenizer_json_, MappedFile::open(folder / "tokenizer.json"));
  }
  if (const fs::path path = folder / "tokenizer_config.json"; file_exists(path)) {
    STILL_TRY(checkpoint.texts_[kTokenizerConfigText], read_text_file(path, kMaxTextBytes));
    STILL_TRY(const JsonObject tokenizer_config,
              parse_json_object(checkpoint.texts_[kTokenizerConfigText], path.string()));
    checkpoint.texts_[kChatTemplateText] = chat_template_of(tokenizer_config);
  }
  // Newer writers put the template into a file of its own, which then counts.
  if (const fs::path path = folder / "chat_template.jinja"; file_exists(path)) {
    STILL_TRY(checkpoint.texts_[kChatTemplateText], read_text_file(path, kMaxTextBytes));
  }
  return checkpoint;
}

Status Checkpoint::add_tensor(CheckpointTensor tensor) {
  const auto [place, is_new] = index_.try_emplace(tensor.name, tensors_.size());
  if (!is_new)
    return file_error(Code::kCorrupt, "{}: tensor {} appears twice, as {} and as {}", path_.string(), tensor.name,
                      tensors_[place->second].file_name, tensor.file_name);
  tensors_.push_back(std::move(tensor));
  return ok();
}

std::string_view Checkpoint::architecture() const {
  const Json* model_type = config_.if_contains("model_type");
  return model_type != nullptr && model_type->is_string() ? std::string_view(model_type->get_string())
                                                          : std::string_view();
}

const CheckpointTensor* Checkpoint::find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

std::int64_t Checkpoint::file_bytes() const {
  std::int64_t total = 0;
  if (gguf_)
    for (const GgufFile& part : gguf_->parts()) total += part.file().size();
  for (const SafetensorsFile& file : safetensors_) total += file.file().size();
  return total;
}

Result<TokenizerSource> Checkpoint::tokenizer_source() const {
  if (gguf_) return gguf_tokenizer_source();
  TokenizerSource source;
  if (tokenizer_json_.size() > 0) {
    source.kind = TokenizerSource::Kind::kJson;
    source.tokenizer_json = {reinterpret_cast<const char*>(tokenizer_json_.data()),
                             static_cast<std::size_t>(tokenizer_json_.size())};
  }
  source.tokenizer_config_json = texts_[kTokenizerConfigText];
  source.chat_template = texts_[kChatTemplateText];
  return source;
}

Result<TokenizerSource> Checkpoint::gguf_tokenizer_source() const {
  const GgufMetadata& metadata = gguf_->metadata();
  TokenizerSource source;
  constexpr std::string_view kTemplate = "tokenizer.chat_template";
  source.chat_template = metadata.string(kTemplate).value_or("");
  for (const GgufEntry& entry : metadata.entries())
    if (entry.key.starts_with(std::string(kTemplate) + ".") && entry.value.string() != nullptr)
      source.named_templates.emplace_back(std::string_view(entry.key).substr(kTemplate.size() + 1),
                                          *entry.value.string());

  const GgufArray* tokens = metadata.array("tokenizer.ggml.tokens");
  if (tokens == nullptr) return source;
  source.kind = TokenizerSource::Kind::kGguf;
  const auto corrupt = [&](std::string_view key, std::string_view what) {
    return file_error(Code::kCorrupt, "{}: tokenizer.ggml.{} {}", path_.string(), key, what);
  };
  const auto n_tokens = static_cast<std::size_t>(tokens->size());
  if (tokens->element_type != GgufType::kString) return corrupt("tokens", "is not an array of strings");
  if (n_tokens == 0 || n_tokens > (1u << 28)) return corrupt("tokens", fmt::format("has {} entries", n_tokens));
  source.tokens.reserve(n_tokens);
  for (std::size_t i = 0; i < n_tokens; ++i) source.tokens.push_back(tokens->strings[static_cast<std::int64_t>(i)]);
  source.model = metadata.string("tokenizer.ggml.model").value_or("");
  source.pre = metadata.string("tokenizer.ggml.pre").value_or("");

  if (const GgufArray* types = metadata.array("tokenizer.ggml.token_type")) {
    if (types->size() != tokens->size() || !types->integer(0))
      return corrupt("token_type", fmt::format("has {} {} entries for {} tokens", types->size(),
                                               gguf_type_name(types->element_type), n_tokens));
    source.token_types.reserve(n_tokens);
    for (std::size_t i = 0; i < n_tokens; ++i)
      source.token_types.push_back(static_cast<std::int32_t>(types->integer(static_cast<std::int64_t>(i)).value_or(0)));
  }
  if (const GgufArray* scores = metadata.array("tokenizer.ggml.scores")) {
    if (scores->size() != tokens->size() || scores->element_type != GgufType::kF32)
      return corrupt("scores", fmt::format("has {} {} entries for {} tokens", scores->size(),
                                           gguf_type_name(scores->element_type), n_tokens));
    source.scores.reserve(n_tokens);
    for (std::size_t i = 0; i < n_tokens; ++i)
      source.scores.push_back(static_cast<float>(scores->number(static_cast<std::int64_t>(i)).value_or(0)));
  }
  if (const GgufArray* merges = metadata.array("tokenizer.ggml.merges")) {
    if (merges->element_type != GgufType::kString) return corrupt("merges", "is not an array of strings");
    source.merges.reserve(static_cast<std::size_t>(merges->size()));
    for (std::int64_t i = 0; i < merges->size(); ++i) source.merges.push_back(merges->strings[i]);
  }

  const std::pair<std::string_view, std::optional<TokenId> TokenizerSource::*> ids[] = {
      {"bos_token_id", &TokenizerSource::bos_id},
      {"eos_token_id", &TokenizerSource::eos_id},
      {"eot_token_id", &TokenizerSource::eot_id},
      {"eom_token_id", &TokenizerSource::eom_id},
      {"unknown_token_id", &TokenizerSource::unknown_id},
      {"padding_token_id", &TokenizerSource::padding_id},
      {"seperator_token_id", &TokenizerSource::separator_id},  // the key is spelt so
      {"mask_token_id", &TokenizerSource::mask_id}};
  for (const auto& [key, member] : ids) {
    const std::string full_key = "tokenizer.ggml." + std::string(key);
    if (metadata.find(full_key) == nullptr) continue;
    const std::optional<std::int64_t> id = metadata.integer(full_key);
    // Some converters write 2^32 - 1 or -1 for "none".
    if (id && (*id == 0xffffffff || *id == -1)) continue;
    if (!id || *id < 0 || *id >= tokens->size())
      return corrupt(key,
                     fmt::format("is {}, but there are {} tokens", id ? std::to_string(*id) : "no number", n_tokens));
    source.*member = static_cast<TokenId>(*id);
  }
  source.add_bos = metadata.boolean("tokenizer.ggml.add_bos_token");
  source.add_eos = metadata.boolean("tokenizer.ggml.add_eos_token");
  source.add_space_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix");
  return source;
}

}  // namespace still

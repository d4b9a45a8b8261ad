#include "models/model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <future>

#include "kernels/cuda_packing.h"
#include "kernels/dispatch.h"
#include "kernels/packing.h"
#include "models/registry.h"
#include "quant/registry.h"

namespace still {

namespace {

Status check_shape(const TensorSpec& spec, const CheckpointTensor& tensor) {
  if (tensor.shape == spec.shape) return ok();
  return error(Code::kCorrupt, "{}: shape {}, expected {}", spec.name, to_string(tensor.shape), to_string(spec.shape));
}

Result<PackedFormat> format_of(const TensorSpec& spec, DType type) {
  const std::optional<PackedFormat> format = packed_format(type);
  if (!format)
    return error(Code::kUnsupported, "{}: type {} does not compute here; convert the model to another quantisation",
                 spec.name, dtype_name(type));
  if (spec.shape[1] % packed_tile_k(*format) != 0)
    return error(Code::kCorrupt, "{}: rows of {} elements are not whole blocks of {} ({})", spec.name, spec.shape[1],
                 packed_tile_k(*format), dtype_name(type));
  return *format;
}

// A slice must be whole blocks of its rows.
Status check_slice(const TensorSpec& spec, const TensorSlice& slice, DType type, Rank rank) {
  const std::int64_t block = find_format(type) == nullptr ? 1 : dtype_info(type).block_size;
  const std::int64_t width = slice.columns.size();
  if (slice.columns.begin % block == 0 && width % block == 0) return ok();
  return error(Code::kInvalidArgument,
               "{}: {} of its columns for each of {} ranks are not whole blocks of {} ({}): choose fewer ranks or "
               "another quantisation",
               spec.name, width, rank.count, block, dtype_name(type));
}

}  // namespace

bool screens_head(const WeightLayout& layout) {
  for (const WeightLayout::Item& item : layout.items)
    if (item.source != nullptr && item.spec.role == TensorRole::kMatrix && item.spec.share == Share::kVocabulary &&
        !item.is_on_cuda)
      return ScreenedHead::pays(item.format, item.spec.shape[0], item.spec.shape[1]);
  return false;
}

Result<WeightLayout> weight_layout(const Arch& arch, const ModelConfig& config, const Checkpoint& checkpoint,
                                   const WeightPlacement& placement) {
  WeightLayout layout;
  const Rank rank = placement.rank;
  std::vector<TensorSpec> specs = arch.tensors(config);
  STILL_TRY(layout.parts, share_out(specs, config, rank, [&](const TensorSpec& spec) {
              const CheckpointTensor* source = checkpoint.find(spec.name);
              return source == nullptr ? DType::kF32 : source->dtype;
            }));
  for (TensorSpec& spec : specs) {
    WeightLayout::Item item;
    const bool is_of_host_layer = spec.layer >= 0 && spec.layer < placement.n_host_layers;
    const bool stays = is_of_host_layer || (spec.role == TensorRole::kEmbedding && placement.n_host_layers > 0);
    const bool on_cuda = item.is_on_cuda = placement.is_on_cuda && !stays;
    item.source = checkpoint.find(spec.name);
    if (item.source == nullptr) {
      if (!spec.optional)
        return error(Code::kCorrupt, "{}: missing from the model (expected shape {})", spec.name,
                     to_string(spec.shape));
      item.spec = std::move(spec);
      layout.items.push_back(std::move(item));
      continue;
    }
    STILL_TRY_STATUS(check_shape(spec, *item.source));
    const DType type = item.source->dtype;
    // A table that stays in the mapped file is not cut.
    if (rank.count > 1 && (on_cuda || spec.role != TensorRole::kEmbedding)) {
      item.slice = layout.parts.slice(spec);
      if (spec.role == TensorRole::kMatrix) STILL_TRY_STATUS(check_slice(spec, item.slice, type, rank));
      spec.shape.dims[0] = item.slice.rows.size();
      if (spec.shape.rank > 1) spec.shape.dims[1] = item.slice.columns.size();
    } else {
      item.slice = {.rows = {0, spec.shape[0]}, .columns = {0, spec.shape.rank > 1 ? spec.shape[1] : 1}};
    }
    switch (spec.role) {
      case TensorRole::kMatrix: {
        STILL_TRY(item.format, format_of(spec, type));
        if (on_cuda && placement.to_f8) item.format = cuda_f8_format(item.format, spec.shape[1]);
        item.bytes = Arena::rounded(on_cuda ? cuda_packed_bytes(item.format, spec.shape[0], spec.shape[1])
                                            : packed_bytes(item.format, spec.shape[0], spec.shape[1]));
        item.file_bytes = dtype_bytes(type, spec.shape.n_elements());
        break;
      }
      case TensorRole::kVector:
        if (find_format(type) == nullptr || spec.shape.n_elements() % dtype_info(type).block_size != 0 ||
            item.slice.rows.begin % dtype_info(type).block_size != 0)
          return error(Code::kUnsupported, "{}: type {} does not compute here", spec.name, dtype_name(type));
        item.bytes = Arena::rounded(spec.shape.n_elements() * static_cast<std::int64_t>(sizeof(float)));
        item.file_bytes = dtype_bytes(type, spec.shape.n_elements());
        break;
      case TensorRole::kEmbedding:
        if (find_format(type) == nullptr || spec.shape[1] % dtype_info(type).block_size != 0)
          return error(Code::kUnsupported, "{}: type {} does not compute here", spec.name, dtype_name(type));
        item.file_bytes = dtype_bytes(type, spec.shape.n_elements());
        if (on_cuda) {
          // With a tied head its rows are read.
          STILL_TRY(item.format, format_of(spec, type));
          if (!config.tied_embeddings)
            item.bytes = Arena::rounded(cuda_packed_bytes(item.format, spec.shape[0], spec.shape[1]));
          break;
        }
        layout.mapped_bytes += item.file_bytes;
        break;
    }
    layout.arena_bytes += item.bytes;
    if (placement.is_on_cuda && !on_cuda) layout.host_bytes += item.bytes;
    item.spec = std::move(spec);
    layout.items.push_back(std::move(item));
  }
  return layout;
}

const std::uint8_t* WeightLayout::Item::data() const {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(source->data.data());
  const std::int64_t first = source->permuted_rows() ? 0 : slice.rows.begin;
  if (source->shape.rank < 2) return bytes + dtype_bytes(source->dtype, first);
  return bytes + first * dtype_bytes(source->dtype, source->shape[1]) + dtype_bytes(source->dtype, slice.columns.begin);
}

Result<std::shared_ptr<const Model>> Model::load(const std::filesystem::path& path, const LoadOptions& options) {
  STILL_TRY(Checkpoint checkpoint, Checkpoint::open(path));
  return load(std::make_shared<const Checkpoint>(std::move(checkpoint)), options);
}

namespace {

// A run of panels of one matrix: what one thread packs at a time.
struct PackTask {
  const WeightLayout::Item* item;
  std::uint8_t* packed;
  PackedFormat format;
  std::int64_t panel_begin, panel_end;
  const std::int64_t* row_map;
};

constexpr std::int64_t kPackTaskBytes = std::int64_t{1} << 20;

void pack(const PackTask& task, const CpuKernels& kernels) {
  const CheckpointTensor& source = *task.item->source;
  const TensorSlice& slice = task.item->slice;
  const std::int64_t n_out = slice.rows.size(), k = slice.columns.size();
  const std::int64_t row_bytes = dtype_bytes(source.dtype, source.shape[1]);
  kernels.pack[static_cast<int>(task.format)]({.source = task.item->data(),
                                               .row_map = task.row_map,
                                               .row_bytes = row_bytes,
                                               .n_out = n_out,
                                               .k = k,
                                               .panel_begin = task.panel_begin,
                                               .panel_end = task.panel_end,
                                               .packed = task.packed,
                                               .panel_bytes = packed_panel_bytes(task.format, k)});
  // The file's pages leave this process as soon as they are packed, so that the peak is one copy of the weights.
  if (source.file != nullptr && task.row_map == nullptr && task.item->has_whole_rows()) {
    const std::int64_t first = slice.rows.begin * row_bytes;
    const std::int64_t begin = task.panel_begin * kPanelRows * row_bytes;
    const std::int64_t end = std::min(task.panel_end * kPanelRows, n_out) * row_bytes;
    source.file->release(source.offset + first + begin, end - begin);
  }
}

}  // namespace

Result<std::shared_ptr<const Model>> Model::load(std::shared_ptr<const Checkpoint> checkpoint,
                                                 const LoadOptions& options) {
  std::shared_ptr<Model> model(new Model());
  model->checkpoint_ = checkpoint;
  STILL_TRY(model->arch_, find_arch(checkpoint->architecture()));
  STILL_TRY(model->config_, model->arch_->read_config(checkpoint->config()));
  ModelConfig& config = model->config_;
  const bool on_cuda = options.cuda_device >= 0;
  STILL_CHECK(options.n_host_layers == 0 ||
              (on_cuda && options.rank.count == 1 && options.n_host_layers < config.n_layers));
  STILL_TRY(const WeightLayout layout, weight_layout(*model->arch_, config, *checkpoint,
                                                     {.is_on_cuda = on_cuda,
                                                      .n_host_layers = options.n_host_layers,
                                                      .rank = options.rank,
                                                      .to_f8 = options.to_f8}));
  model->parts_ = layout.parts;
  // Made beside the packing, which mostly waits for memory.
  std::future<Result<Tokenizer>> tokenizer =
      std::async(std::launch::async, [&checkpoint] { return load_tokenizer(*checkpoint); });
  const auto finish_tokenizer = [&, vocab_size = config.vocab_size]() -> Status {
    STILL_TRY(model->tokenizer_, tokenizer.get());
    if (model->tokenizer_->vocab_size() > vocab_size)
      return error(Code::kCorrupt, "tokenizer: {} tokens, but the model's vocabulary has {}",
                   model->tokenizer_->vocab_size(), vocab_size);
    return ok();
  };
  STILL_TRY(const TokenizerSource text, checkpoint->tokenizer_source());
  model->chat_template_ = text.chat_template;
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source != nullptr && item.source->data.empty())
      return error(Code::kCorrupt, "{}: the file has its header only, not its data", item.spec.name);
  }
  // GGUF keeps Llama 3's rope scaling as divisors of the frequencies instead of a formula.
  if (const CheckpointTensor* divisors = checkpoint->find("rope_freqs.weight"); divisors != nullptr) {
    if (divisors->dtype != DType::kF32 || divisors->shape.n_elements() != config.rope.n_rot / 2 ||
        divisors->data.empty())
      return error(Code::kCorrupt, "rope_freqs.weight: {} {}, expected F32 [{}]", dtype_name(divisors->dtype),
                   to_string(divisors->shape), config.rope.n_rot / 2);
    config.rope.freq_divisors.resize(static_cast<std::size_t>(config.rope.n_rot / 2));
    std::memcpy(config.rope.freq_divisors.data(), divisors->data.data(), divisors->data.size());
  }

  config = layout.parts.config(std::move(config));

  const CpuKernels* kernels = options.kernels;
  if (kernels == nullptr) {
    STILL_TRY(kernels, default_cpu_kernels());
  }
  model->n_host_layers_ = options.n_host_layers;
  if (!on_cuda || options.n_host_layers > 0) STILL_TRY_STATUS(model->load_on_host(layout, options, *kernels));
  if (on_cuda) STILL_TRY_STATUS(model->load_on_cuda(layout, options, *kernels));
  STILL_TRY_STATUS(finish_tokenizer());
  model->bound_ = model->arch_->bind(config, model->weights_);
  return std::shared_ptr<const Model>(std::move(model));
}

Status Model::load_on_host(const WeightLayout& layout, const LoadOptions& options, const CpuKernels& kernels) {
  STILL_TRY(arena_, Arena::create(options.cuda_device >= 0 ? layout.host_bytes : layout.arena_bytes, "weights"));
  // By node: the threads that will multiply with a panel are near the one that packs it, which is the first to touch
  // its memory.
  ThreadPool threads({.n_threads = options.n_threads, .topology = options.topology});
  std::vector<std::vector<PackTask>> tasks(static_cast<std::size_t>(threads.n_nodes()));
  std::vector<std::vector<std::int64_t>> row_maps;
  row_maps.reserve(layout.items.size());
  std::int64_t total_file_bytes = 0;
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source == nullptr || item.is_on_cuda) continue;
    const CheckpointTensor& source = *item.source;
    if (item.spec.role == TensorRole::kEmbedding) {
      weights_.embeddings.push_back({.name = item.spec.name,
                                     .dtype = source.dtype,
                                     .n_rows = source.shape[0],
                                     .row_size = source.shape[1],
                                     .data = source.data.data()});
      continue;
    }
    std::byte* memory = arena_.allocate(item.bytes);
    if (item.spec.role == TensorRole::kVector) {
      find_format(source.dtype)
          ->decode_row(item.data(), reinterpret_cast<float*>(memory), item.spec.shape.n_elements());
      weights_.vectors.push_back({item.spec.name, {memory, DType::kF32, item.spec.shape}});
      continue;
    }
    const PackedFormat format = *packed_format(source.dtype);
    const std::int64_t n_out = item.spec.shape[0], k = item.spec.shape[1];
    const std::int64_t panel_bytes = packed_panel_bytes(format, k);
    weights_.matrices.push_back({.name = item.spec.name,
                                 .format = format,
                                 .n_out = n_out,
                                 .k = k,
                                 .packed = reinterpret_cast<const std::uint8_t*>(memory),
                                 .panel_bytes = panel_bytes,
                                 .is_part = parts_.is_sum(item.spec)});
    const bool is_head = item.spec.share == Share::kVocabulary;
    (is_head ? head_macs_ : macs_per_token_) += n_out * k;
    if (is_head) screens_head_ = ScreenedHead::pays(format, n_out, k);
    bytes_per_token_ += item.bytes;
    max_k_ = std::max(max_k_, k);
    const std::int64_t* row_map = nullptr;
    if (source.permuted_rows()) {
      auto& map = row_maps.emplace_back(static_cast<std::size_t>(n_out));
      for (std::int64_t row = 0; row < n_out; ++row) map[static_cast<std::size_t>(row)] = item.source_row(row);
      row_map = map.data();
    }
    const std::int64_t n_panels = (n_out + kPanelRows - 1) / kPanelRows;
    const std::int64_t step = std::max<std::int64_t>(1, kPackTaskBytes / panel_bytes);
    for (int node = 0; node < threads.n_nodes(); ++node) {
      const auto [first, last] = threads.node_share(n_panels, node);
      for (std::int64_t begin = first; begin < last; begin += step)
        tasks[static_cast<std::size_t>(node)].push_back(
            {&item, reinterpret_cast<std::uint8_t*>(memory), format, begin, std::min(begin + step, last), row_map});
    }
    total_file_bytes += item.file_bytes;
  }

  std::atomic<std::int64_t> done_bytes{0};
  threads.run([&](int thread_idx) {
    const int node = threads.node_of(thread_idx);
    const auto [first_thread, last_thread] = threads.node_threads(node);
    const std::vector<PackTask>& own = tasks[static_cast<std::size_t>(node)];
    // Interleaved, so that all threads read the file front to back together.
    for (auto i = static_cast<std::size_t>(thread_idx - first_thread); i < own.size();
         i += static_cast<std::size_t>(last_thread - first_thread)) {
      const PackTask& task = own[i];
      pack(task, kernels);
      const std::int64_t bytes =
          (task.panel_end - task.panel_begin) * packed_panel_bytes(task.format, task.item->spec.shape[1]);
      const std::int64_t done = done_bytes.fetch_add(bytes) + bytes;
      if (thread_idx == 0 && options.progress) options.progress(std::min(done, total_file_bytes), total_file_bytes);
    }
  });
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source != nullptr && !item.is_on_cuda && item.source->file != nullptr &&
        item.spec.role != TensorRole::kEmbedding && item.source->permuted_rows())
      item.source->file->release(item.source->offset, item.file_bytes);
  }
  return ok();
}

Result<std::shared_ptr<const Model>> Model::over_devices(
    std::span<const std::int32_t> devices,
    const std::function<Result<std::shared_ptr<const Model>>(Rank, std::int32_t device)>& load) {
  std::vector<std::shared_ptr<const Model>> models;
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const Rank rank{static_cast<std::int32_t>(i), static_cast<std::int32_t>(devices.size())};
    STILL_TRY(std::shared_ptr<const Model> model, load(rank, devices[i]));
    STILL_CHECK(model->parts_.rank == rank);
    models.push_back(std::move(model));
  }
  STILL_CHECK(!models.empty());
  // Nobody else has it yet.
  const_cast<Model&>(*models[0]).other_ranks_.assign(models.begin() + 1, models.end());
  return models[0];
}

std::vector<const Model*> Model::ranks() const {
  std::vector<const Model*> all;
  if (other_ranks_.empty()) return all;
  all.push_back(this);
  for (const auto& model : other_ranks_) all.push_back(model.get());
  return all;
}

Status Model::forward(Exec& exec, const RaggedBatch& batch, KvCache& cache, const RopeTable& rope,
                      StepBuffers& buffers) const {
  const bool is_split = n_host_layers_ > 0, is_host = exec.cuda() == nullptr;
  return exec.run_step(batch, [&](const RaggedBatch& step) {
    arch_->forward({.exec = exec,
                    .config = config_,
                    .weights = *bound_,
                    .rope = rope,
                    .batch = step,
                    .cache = cache,
                    .buffers = buffers,
                    .layer_begin = is_split && !is_host ? n_host_layers_ : 0,
                    .layer_end = is_split && is_host ? n_host_layers_ : config_.n_layers});
  });
}

}  // namespace still

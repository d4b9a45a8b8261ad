// Models in GPU memory: a checkpoint's weights packed on the host and copied piece by piece, or random ones made there.
#include <algorithm>
#include <cstring>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/cuda_packing.h"
#include "kernels/packing.h"
#include "models/model.h"
#include "models/registry.h"
#include "quant/registry.h"

namespace still {

namespace {

constexpr std::int64_t kStagingBytes = std::int64_t{64} << 20;

// Two pieces of pinned memory in turns: one is filled while the other is copied.
class Staging {
 public:
  static Result<Staging> create() {
    Staging staging;
    STILL_TRY(staging.stream_, CudaStream::create());
    for (PinnedBuffer& buffer : staging.buffers_) {
      STILL_TRY(buffer, PinnedBuffer::create(kStagingBytes, "staging of the weights"));
    }
    return staging;
  }
  // A piece whose last copy has ended.
  Result<std::uint8_t*> next() {
    STILL_TRY_STATUS(stream_.wait("copying the weights"));
    turn_ = 1 - turn_;
    return reinterpret_cast<std::uint8_t*>(buffers_[turn_].data());
  }
  void send(std::byte* to, std::int64_t bytes) { stream_.copy_to_device(to, buffers_[turn_].data(), bytes); }
  Status finish() { return stream_.wait("copying the weights"); }

 private:
  CudaStream stream_;
  PinnedBuffer buffers_[2];
  int turn_ = 0;
};

// Some rows of a matrix, packed for the GPU.
class Packer {
 public:
  Packer(ThreadPool& threads, const CpuKernels& kernels, std::int64_t max_panel_bytes)
      : threads_(threads), kernels_(kernels), panel_bytes_((max_panel_bytes + 63) / 64 * 64) {}

  Status create() {
    STILL_TRY(arena_, Arena::create(panel_bytes_ * threads_.size(), "panels being packed"));
    panels_ = arena_.allocate_array<std::uint8_t>(panel_bytes_ * threads_.size());
    return ok();
  }

  // Panels [begin, end) to `out`, where the first of them begins; float rows past the matrix's end are not written.
  void pack(const WeightLayout::Item& item, const std::int64_t* row_map, std::int64_t begin, std::int64_t end,
            std::uint8_t* out) {
    const CheckpointTensor& source = *item.source;
    const PackedFormat format = *packed_format(source.dtype);
    const std::int64_t n_out = item.spec.shape[0], k = item.spec.shape[1];
    const std::int64_t row_bytes = dtype_bytes(source.dtype, source.shape[1]), width = dtype_bytes(source.dtype, k);
    const std::int64_t gpu_bytes = cuda_panel_bytes(format, k);
    const std::uint8_t* rows = item.data();
    const bool is_plain = (format == PackedFormat::kF32 || format == PackedFormat::kBF16) && row_map == nullptr &&
                          cuda_row_elements(format, k) == k;
    threads_.run([&](int thread_idx) {
      std::uint8_t* panel = panels_ + thread_idx * panel_bytes_;
      for (std::int64_t p = begin + thread_idx; p < end; p += threads_.size()) {
        std::uint8_t* to = out + (p - begin) * gpu_bytes;
        const std::int64_t row = p * kPanelRows, n_rows = std::min<std::int64_t>(kPanelRows, n_out - row);
        if (is_plain) {
          for (std::int64_t i = 0; i < n_rows; ++i)
            std::memcpy(to + i * width, rows + (row + i) * row_bytes, static_cast<std::size_t>(width));
          continue;
        }
        kernels_.pack[static_cast<int>(format)]({.source = row_map == nullptr ? rows + row * row_bytes : rows,
                                                 .row_map = row_map == nullptr ? nullptr : row_map + row,
                                                 .row_bytes = row_bytes,
                                                 .n_out = n_out - row,
                                                 .k = k,
                                                 .panel_begin = 0,
                                                 .panel_end = 1,
                                                 .packed = panel,
                                                 .panel_bytes = packed_panel_bytes(format, k)});
        cuda_pack_panel(format, panel, k, to);
      }
    });
    if (source.file != nullptr && row_map == nullptr && item.has_whole_rows())
      source.file->release(source.offset + (item.slice.rows.begin + begin * kPanelRows) * row_bytes,
                           (std::min(end * kPanelRows, n_out) - begin * kPanelRows) * row_bytes);
  }

  // Rows of those panels as FP8, and their scales at their places.
  void pack_f8(const WeightLayout::Item& item, const std::int64_t* row_map, std::int64_t begin, std::int64_t end,
               std::uint8_t* out, std::vector<float>& scales) {
    const CheckpointTensor& source = *item.source;
    const std::int64_t n_out = item.spec.shape[0], k = item.spec.shape[1];
    const std::int64_t row_bytes = dtype_bytes(source.dtype, source.shape[1]);
    const std::uint8_t* rows = item.data();
    scales.resize(static_cast<std::size_t>(n_out));
    threads_.run([&](int thread_idx) {
      std::vector<float> values(static_cast<std::size_t>(k));
      for (std::int64_t row = begin * kPanelRows + thread_idx; row < std::min(end * kPanelRows, n_out);
           row += threads_.size()) {
        const std::int64_t from = row_map == nullptr ? row : row_map[row];
        find_format(source.dtype)->decode_row(rows + from * row_bytes, values.data(), k);
        scales[static_cast<std::size_t>(row)] =
            cuda_pack_f8_row(values.data(), k, out + (row - begin * kPanelRows) * k);
      }
    });
    if (source.file != nullptr && row_map == nullptr && item.has_whole_rows())
      source.file->release(source.offset + (item.slice.rows.begin + begin * kPanelRows) * row_bytes,
                           (std::min(end * kPanelRows, n_out) - begin * kPanelRows) * row_bytes);
  }

 private:
  ThreadPool& threads_;
  const CpuKernels& kernels_;
  std::int64_t panel_bytes_;
  Arena arena_;
  std::uint8_t* panels_ = nullptr;
};

Status check_for_cuda(const ModelConfig& config, const TensorSpec& spec, PackedFormat format) {
  if (config.hidden_size > 16384)
    return error(Code::kUnsupported, "hidden size {}: on a GPU at most 16384", config.hidden_size);
  const bool is_half = format == PackedFormat::kBF16 || format == PackedFormat::kF16;
  if (is_half && spec.shape[1] % 8 != 0)
    return error(Code::kUnsupported, "{}: rows of {} elements; on a GPU 16-bit rows are a multiple of 8", spec.name,
                 spec.shape[1]);
  return ok();
}

}  // namespace

template <class Fill>
Status Model::place_on_cuda(const WeightLayout& layout, std::int32_t device, Fill&& fill) {
  cuda_device_ = device;
  has_f32_activations_ = false;
  STILL_TRY_STATUS(use_cuda_device(device));
  STILL_TRY(device_memory_, DeviceBuffer::create(layout.arena_bytes - layout.host_bytes, "weights"));
  std::byte* at = device_memory_.data();
  std::vector<std::string> embeddings;
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source == nullptr || !item.is_on_cuda) continue;
    const TensorSpec& spec = item.spec;
    std::byte* memory = at;
    at += item.bytes;
    if (spec.role == TensorRole::kVector) {
      STILL_TRY_STATUS(fill(item, memory));
      weights_.vectors.push_back({spec.name, {memory, DType::kF32, spec.shape}});
      continue;
    }
    const PackedFormat format = item.format;
    STILL_TRY_STATUS(check_for_cuda(config_, spec, format));
    const std::int64_t n_out = spec.shape[0], k = spec.shape[1];
    const bool is_embedding = spec.role == TensorRole::kEmbedding;
    if (is_embedding)
      weights_.embeddings.push_back({.name = spec.name,
                                     .dtype = item.source->dtype,
                                     .n_rows = n_out,
                                     .row_size = k,
                                     .data = nullptr,
                                     .is_part = parts_.rank.count > 1,
                                     .first_row = parts_.vocabulary.begin});
    if (item.bytes == 0) continue;  // read from the tied head
    STILL_TRY_STATUS(fill(item, memory));
    weights_.matrices.push_back({.name = spec.name,
                                 .format = format,
                                 .n_out = n_out,
                                 .k = k,
                                 .packed = reinterpret_cast<const std::uint8_t*>(memory),
                                 .panel_bytes = cuda_panel_bytes(format, k),
                                 .is_part = parts_.is_sum(spec)});
    if (is_embedding) continue;
    const bool is_head = spec.share == Share::kVocabulary;
    (is_head ? head_macs_ : macs_per_token_) += n_out * k;
    bytes_per_token_ += item.bytes;
    max_k_ = std::max(max_k_, k);
    if (format != PackedFormat::kBF16 && format != PackedFormat::kF16) has_f32_activations_ = true;
  }
  // Only now do the matrices stay where they are.
  for (EmbeddingTable& table : weights_.embeddings)
    if (table.data == nullptr) table.packed = weights_.matrix(table.name);
  return ok();
}

Status Model::load_on_cuda(const WeightLayout& layout, const LoadOptions& options, const CpuKernels& kernels) {
  STILL_TRY_STATUS(use_cuda_device(options.cuda_device));
  ThreadPool threads({.n_threads = options.n_threads});
  STILL_TRY(Staging staging, Staging::create());
  std::int64_t total = 0, done = 0, max_panel = 0;
  for (const WeightLayout::Item& item : layout.items) {
    if (item.source == nullptr || !item.is_on_cuda || item.bytes == 0 || item.spec.role == TensorRole::kVector)
      continue;
    total += item.file_bytes;
    max_panel = std::max(max_panel, packed_panel_bytes(*packed_format(item.source->dtype), item.spec.shape[1]));
  }
  Packer packer(threads, kernels, max_panel);
  STILL_TRY_STATUS(packer.create());
  std::vector<float> f8_scales;  // of a matrix
  STILL_TRY_STATUS(
      place_on_cuda(layout, options.cuda_device, [&](const WeightLayout::Item& item, std::byte* memory) -> Status {
        const CheckpointTensor& source = *item.source;
        if (item.spec.role == TensorRole::kVector) {
          const std::int64_t n = item.spec.shape.n_elements();
          STILL_TRY(std::uint8_t* buffer, staging.next());
          find_format(source.dtype)->decode_row(item.data(), reinterpret_cast<float*>(buffer), n);
          staging.send(memory, n * 4);
          return ok();
        }
        const PackedFormat format = item.format;
        const std::int64_t n_out = item.spec.shape[0], k = item.spec.shape[1];
        const std::int64_t panel_bytes = cuda_panel_bytes(format, k), n_panels = (n_out + kPanelRows - 1) / kPanelRows;
        const std::int64_t all_bytes = cuda_packed_bytes(format, n_out, k);
        std::vector<std::int64_t> row_map;
        if (source.permuted_rows())
          for (std::int64_t row = 0; row < n_out; ++row) row_map.push_back(item.source_row(row));
        const std::int64_t step = std::max<std::int64_t>(1, kStagingBytes / panel_bytes);
        if (panel_bytes > kStagingBytes)
          return error(Code::kUnsupported, "{}: 16 rows take {} bytes", item.spec.name, panel_bytes);
        for (std::int64_t begin = 0; begin < n_panels; begin += step) {
          const std::int64_t end = std::min(begin + step, n_panels);
          STILL_TRY(std::uint8_t* buffer, staging.next());
          const std::int64_t* map = row_map.empty() ? nullptr : row_map.data();
          if (format == kCudaF8Row) {
            packer.pack_f8(item, map, begin, end, buffer, f8_scales);
            staging.send(memory + begin * panel_bytes, (std::min(end * kPanelRows, n_out) - begin * kPanelRows) * k);
          } else {
            packer.pack(item, map, begin, end, buffer);
            staging.send(memory + begin * panel_bytes, std::min(end * panel_bytes, all_bytes) - begin * panel_bytes);
          }
          if (options.progress) options.progress(std::min(total, done + item.file_bytes * end / n_panels), total);
        }
        if (format == kCudaF8Row) {
          STILL_TRY(std::uint8_t* buffer, staging.next());
          std::memcpy(buffer, f8_scales.data(), static_cast<std::size_t>(n_out) * 4);
          staging.send(memory + n_out * k, n_out * 4);
        }
        done += item.file_bytes;
        return ok();
      }));
  return staging.finish();
}

Result<std::shared_ptr<const Model>> Model::make_random(const RandomModelSpec& spec) {
  std::shared_ptr<Model> model(new Model());
  STILL_TRY(model->arch_, find_arch(spec.config.model_type));
  model->config_ = spec.config;
  std::vector<TensorSpec> tensors = model->arch_->tensors(spec.config);
  STILL_TRY(model->parts_, share_out(tensors, spec.config, spec.rank, spec.type_of));
  model->config_ = model->parts_.config(spec.config);
  const CudaKernels* kernels = cuda_kernels();
  if (kernels == nullptr) return error(Code::kUnsupported, "random models are made on a GPU: built without CUDA");

  TokenizerData tokens;  // the bytes in GPT-2's spelling: printable ones as themselves, the others from U+0100 on
  tokens.model = "gpt2";
  tokens.pre = "qwen2";
  int other = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    const int code = is_printable ? byte : 256 + other++;
    std::string text;
    if (code < 128) {
      text = static_cast<char>(code);
    } else {
      text = {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))};
    }
    tokens.tokens.push_back(text);
    tokens.types.push_back(TokenType::kNormal);
  }
  STILL_TRY(model->tokenizer_, Tokenizer::make(std::move(tokens)));

  WeightLayout layout;
  std::vector<std::unique_ptr<CheckpointTensor>> sources;
  for (TensorSpec& tensor : tensors) {
    const TensorSlice slice = model->parts_.slice(tensor);
    tensor.shape.dims[0] = slice.rows.size();
    if (tensor.shape.rank > 1) tensor.shape.dims[1] = slice.columns.size();
    sources.push_back(std::make_unique<CheckpointTensor>());
    CheckpointTensor& source = *sources.back();
    source.shape = tensor.shape;
    source.dtype = tensor.role == TensorRole::kVector ? DType::kF32 : spec.type_of(tensor);
    WeightLayout::Item item;
    if (tensor.role == TensorRole::kVector) {
      item.bytes = Arena::rounded(tensor.shape.n_elements() * 4);
    } else {
      const std::optional<PackedFormat> format = packed_format(source.dtype);
      if (!format || tensor.shape[1] % packed_tile_k(*format) != 0)
        return error(Code::kInvalidArgument, "{}: {} does not suit rows of {} elements", tensor.name,
                     dtype_name(source.dtype), tensor.shape[1]);
      item.format =
          spec.to_f8 && tensor.role == TensorRole::kMatrix ? cuda_f8_format(*format, tensor.shape[1]) : *format;
      if (tensor.role != TensorRole::kEmbedding || !spec.config.tied_embeddings)
        item.bytes = Arena::rounded(cuda_packed_bytes(item.format, tensor.shape[0], tensor.shape[1]));
    }
    item.source = &source;
    item.is_on_cuda = true;
    layout.arena_bytes += item.bytes;
    item.spec = std::move(tensor);
    layout.items.push_back(std::move(item));
  }
  STILL_TRY_STATUS(use_cuda_device(spec.cuda_device));
  STILL_TRY(CudaStream stream, CudaStream::create());
  std::uint64_t seed = spec.seed + 100000 * static_cast<std::uint64_t>(spec.rank.index);
  STILL_TRY_STATUS(
      model->place_on_cuda(layout, spec.cuda_device, [&](const WeightLayout::Item& item, std::byte* memory) -> Status {
        ++seed;
        const Shape& shape = item.spec.shape;
        if (item.spec.role == TensorRole::kVector) {
          const bool is_norm = item.spec.name.ends_with("norm.weight");
          kernels->fill_f32(stream.handle(), reinterpret_cast<float*>(memory), shape.n_elements(), seed,
                            is_norm ? 1.0f : 0.0f, is_norm ? 0.05f : 0.5f);
        } else {
          kernels->fill_weights(stream.handle(), item.format, reinterpret_cast<std::uint8_t*>(memory), shape[0],
                                shape[1], seed, 0.02f);
        }
        return ok();
      }));
  STILL_TRY_STATUS(stream.wait("making random weights"));
  model->bound_ = model->arch_->bind(model->config_, model->weights_);
  return std::shared_ptr<const Model>(std::move(model));
}

}  // namespace still

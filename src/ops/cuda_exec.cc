#include "ops/cuda_exec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/cuda_packing.h"
#include "kernels/packing.h"

namespace still {

namespace {
constexpr std::int64_t kAlign = 256;
constexpr std::int64_t kMaxDenseElements = std::int64_t{192} << 20;
constexpr std::int64_t kMaxParts = 64;
constexpr std::int64_t kDecodeBlocks = 264;  // of the decode attention, at once
constexpr std::int64_t kTile = 16;           // tokens of a warp in prefill attention

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}
std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Positions of a part of a decode's attention: fixed by the longest context, so that a sequence's parts do not depend
// on the step.
std::int64_t split_of(const CudaOptions& options) {
  const std::int64_t longest = options.max_blocks * options.block_size;
  return std::max<std::int64_t>(128, ceil_div(ceil_div(longest, kMaxParts), 128) * 128);
}
std::int64_t parts_of(const CudaOptions& options) {
  return ceil_div(options.max_blocks * options.block_size, split_of(options));
}

// Bytes of one step's batch at most: four numbers a token and a tile of at least one token, rows, sequences, tables.
std::int64_t step_bytes(const CudaOptions& options) {
  return 4 * (12 * options.max_tokens + options.max_rows + 4 * options.max_seqs +
              options.max_seqs * std::bit_ceil(static_cast<std::uint64_t>(options.max_blocks)) * 2) +
         16 * kAlign;
}

struct ScratchSizes {
  std::int64_t step, bf16, f8_scale, q, scale, sums, gate_up, dense, partials, arrivals, sample, sample_rows, sampled;
  explicit ScratchSizes(const CudaOptions& o) {
    const std::int64_t skinny = kCudaSkinnyRows * o.max_k;
    step = aligned(step_bytes(o));
    bf16 = o.has_f32_activations ? aligned(2 * o.max_tokens * o.max_k) : 0;
    f8_scale = o.has_f32_activations ? aligned(4 * std::max(o.max_tokens, o.max_rows)) : 0;
    q = aligned(skinny);
    scale = aligned(skinny / 32 * 4 + 64);
    sums = aligned(skinny / 16 * 2 + 64);
    gate_up = aligned(4 * o.max_tokens * o.max_gate);
    dense = o.has_f32_activations ? aligned(2 * std::min(o.max_matrix, kMaxDenseElements)) : 0;
    partials = aligned(4 * o.max_seqs * o.n_heads * parts_of(o) * (o.head_dim + 2));
    arrivals = aligned(4 * o.max_seqs * std::max(1, o.n_kv_heads));
    sample = aligned(cuda_kernels() == nullptr
                         ? 0
                         : cuda_kernels()->sample_scratch_bytes(static_cast<std::int32_t>(o.max_rows),
                                                                static_cast<std::int32_t>(o.vocab_size)));
    sample_rows = aligned(o.max_rows * static_cast<std::int64_t>(sizeof(CudaSampleRow)));
    sampled = aligned(o.max_rows * 4);
  }
  std::int64_t device() const {
    return step + bf16 + f8_scale + 2 * (q + scale + sums) + gate_up + dense + partials + arrivals + sample +
           sample_rows + sampled;
  }
};

// Sizes to which a step of decodes is padded.
std::int64_t ladder(std::int64_t n, std::int64_t most) {
  std::int64_t size = n <= 4 ? n : n <= 32 ? ceil_div(n, 4) * 4 : n <= 64 ? ceil_div(n, 8) * 8 : ceil_div(n, 16) * 16;
  return std::min(size, std::max(most, n));
}
}  // namespace

std::int64_t CudaExec::scratch_bytes(const CudaOptions& options) {
  return ScratchSizes(options).device();
}

Result<std::unique_ptr<CudaExec>> CudaExec::create(const CudaOptions& options) {
  std::unique_ptr<CudaExec> exec(new CudaExec());
  exec->options_ = options;
  exec->kernels_ = cuda_kernels();
  if (exec->kernels_ == nullptr) return error(Code::kUnsupported, "this program was built without CUDA");
  STILL_TRY_STATUS(use_cuda_device(options.device));
  STILL_TRY(exec->stream_, CudaStream::create());
  exec->gemm_.reset(make_cuda_gemm(&exec->gemm_missing_));
  if (exec->gemm_ != nullptr) exec->gemm_missing_ = nullptr;

  const ScratchSizes sizes(options);
  STILL_TRY(exec->memory_, DeviceBuffer::create(sizes.device(), "scratch of the operators"));
  std::byte* at = exec->memory_.data();
  const auto take = [&](auto*& pointer, std::int64_t bytes) {
    pointer = bytes == 0 ? nullptr : reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
    at += bytes;
  };
  take(exec->step_device_, sizes.step);
  take(exec->bf16_, sizes.bf16);
  take(exec->f8_scale_, sizes.f8_scale);
  for (QuantizedCopy& copy : exec->copies_) {
    take(copy.out.q, sizes.q);
    take(copy.out.scale, sizes.scale);
    take(copy.out.sums, sizes.sums);
  }
  take(exec->gate_up_, sizes.gate_up);
  exec->gate_up_bytes_ = sizes.gate_up;
  take(exec->dense_, sizes.dense);
  exec->dense_elements_ = sizes.dense / 2;
  take(exec->partials_, sizes.partials);
  take(exec->arrivals_, sizes.arrivals);
  take(exec->sample_scratch_, sizes.sample);
  take(exec->sample_rows_, sizes.sample_rows);
  take(exec->sampled_, sizes.sampled);
  exec->split_ = split_of(options);
  exec->max_parts_ = parts_of(options);
  // Counters are zero between calls.
  exec->stream_.fill(exec->arrivals_, 0, sizes.arrivals);
  exec->stream_.fill(exec->sample_scratch_, 0, sizes.sample);

  const std::int64_t row_bytes = aligned(options.vocab_size * 4);
  STILL_TRY(exec->pinned_, PinnedBuffer::create(sizes.step + sizes.sample_rows + sizes.sampled + row_bytes, "staging"));
  std::byte* host = exec->pinned_.data();
  exec->step_host_ = host;
  exec->sample_rows_host_ = reinterpret_cast<CudaSampleRow*>(host + sizes.step);
  exec->sampled_host_ = reinterpret_cast<TokenId*>(host + sizes.step + sizes.sample_rows);
  exec->row_host_ = reinterpret_cast<float*>(host + sizes.step + sizes.sample_rows + sizes.sampled);
  STILL_TRY_STATUS(exec->wait("starting the GPU"));
  return exec;
}

// Places of a step's lists in the buffer; they depend on the numbers alone, so that a captured step finds its own
// again.
struct CudaExec::Layout {
  std::int64_t ids, positions, slots, rows, decode_tokens, decode_seqs, tiles, kv_len, tables, bytes;
  Layout(std::int64_t n_tokens, std::int64_t n_rows, std::int64_t n_seqs, std::int64_t n_decodes, std::int64_t n_tiles,
         std::int64_t stride) {
    std::int64_t at = 0;
    const auto place = [&](std::int64_t n) {
      const std::int64_t begin = at;
      at += (4 * n + 15) / 16 * 16;
      return begin;
    };
    ids = place(n_tokens);
    positions = place(n_tokens);
    slots = place(n_tokens);
    rows = place(n_rows);
    decode_tokens = place(n_decodes);
    decode_seqs = place(n_decodes);
    tiles = place(4 * n_tiles);
    kv_len = place(n_seqs);
    tables = place(n_seqs * stride);
    bytes = at;
  }
};

// n_padded: tokens and sequences of a padded decode step, 0: as they are. n_parts: of its longest sequence.
void CudaExec::upload(const RaggedBatch& batch, std::int64_t n_padded, std::int64_t n_parts) {
  const std::int64_t n_real = batch.n_seqs(), n_tokens = n_padded > 0 ? n_padded : batch.n_tokens();
  const std::int64_t n_seqs = n_padded > 0 ? n_padded : n_real;
  const std::int64_t n_rows = n_padded > 0 ? n_padded : static_cast<std::int64_t>(batch.logit_rows.size());
  std::int64_t n_decodes = 0, n_tiles = 0, longest = 0, longest_decode = 0;
  for (std::int64_t seq = 0; seq < n_real; ++seq) {
    const auto s = static_cast<std::size_t>(seq);
    const std::int64_t q_len = batch.q_start[s + 1] - batch.q_start[s];
    longest = std::max<std::int64_t>(longest, batch.kv_len[s]);
    if (q_len == 1) {
      ++n_decodes;
      longest_decode = std::max<std::int64_t>(longest_decode, batch.kv_len[s]);
    } else {
      n_tiles += ceil_div(q_len, kTile);
    }
  }
  if (n_padded > 0) {
    n_decodes = n_padded;
    longest = longest_decode = n_parts * split_;
  }
  const std::int64_t block = options_.block_size, stride = ceil_div(longest, block);
  const Layout layout(n_tokens, n_rows, n_seqs, n_decodes, n_tiles, stride);
  STILL_CHECK(layout.bytes <= step_bytes(options_));
  const auto host = [&](std::int64_t offset) { return reinterpret_cast<std::int32_t*>(step_host_ + offset); };
  const auto device = [&](std::int64_t offset) { return reinterpret_cast<const std::int32_t*>(step_device_ + offset); };
  std::int32_t *ids = host(layout.ids), *positions = host(layout.positions), *slots = host(layout.slots);
  std::int32_t *rows = host(layout.rows), *decode_tokens = host(layout.decode_tokens);
  std::int32_t *decode_seqs = host(layout.decode_seqs), *tiles = host(layout.tiles), *kv_len = host(layout.kv_len);
  std::int32_t* tables = host(layout.tables);
  std::copy(batch.ids.begin(), batch.ids.end(), ids);
  std::copy(batch.positions.begin(), batch.positions.end(), positions);
  std::copy(batch.logit_rows.begin(), batch.logit_rows.end(), rows);
  std::copy(batch.kv_len.begin(), batch.kv_len.end(), kv_len);
  for (std::int64_t seq = 0; seq < n_real; ++seq) {
    const auto s = static_cast<std::size_t>(seq);
    const std::int32_t* table = batch.block_table(seq);
    const std::int64_t n_blocks = ceil_div(batch.kv_len[s], block);
    std::copy_n(table, n_blocks, tables + seq * stride);
    std::fill(tables + seq * stride + n_blocks, tables + (seq + 1) * stride, 0);
    const std::int32_t begin = batch.q_start[s], end = batch.q_start[s + 1];
    for (std::int32_t token = begin; token < end; ++token) {
      const std::int64_t pos = batch.positions[static_cast<std::size_t>(token)];
      slots[token] = static_cast<std::int32_t>(table[pos / block] * block + pos % block);
    }
    if (end - begin == 1) {
      *decode_tokens++ = begin;
      *decode_seqs++ = static_cast<std::int32_t>(seq);
      continue;
    }
    for (std::int32_t token = begin; token < end; token += kTile) {
      const auto n = std::min<std::int32_t>(kTile, end - token);
      for (const std::int32_t value :
           {static_cast<std::int32_t>(seq), token, n, batch.positions[static_cast<std::size_t>(token)]})
        *tiles++ = value;
    }
  }
  for (std::int64_t seq = n_real; seq < n_seqs; ++seq) {
    ids[seq] = positions[seq] = kv_len[seq] = 0;
    slots[seq] = -1;
    rows[seq] = static_cast<std::int32_t>(seq);
    *decode_tokens++ = static_cast<std::int32_t>(seq);
    *decode_seqs++ = static_cast<std::int32_t>(seq);
    std::fill_n(tables + seq * stride, stride, 0);
  }
  stream_.copy_to_device(step_device_, step_host_, layout.bytes);
  batch_ = {.ids = device(layout.ids),
            .positions = device(layout.positions),
            .slots = device(layout.slots),
            .rows = device(layout.rows),
            .decode_tokens = device(layout.decode_tokens),
            .decode_seqs = device(layout.decode_seqs),
            .tiles = device(layout.tiles),
            .kv_len = device(layout.kv_len),
            .tables = device(layout.tables),
            .table_stride = static_cast<std::int32_t>(stride),
            .n_tokens = static_cast<std::int32_t>(n_tokens),
            .n_rows = static_cast<std::int32_t>(n_rows),
            .n_seqs = static_cast<std::int32_t>(n_seqs),
            .n_decodes = static_cast<std::int32_t>(n_decodes),
            .n_tiles = static_cast<std::int32_t>(n_tiles),
            .max_decode_len = static_cast<std::int32_t>(longest_decode),
            .is_plain = n_padded > 0};
}

Status CudaExec::run_step(const RaggedBatch& batch, const std::function<void(const RaggedBatch&)>& body) {
  const std::int64_t n = batch.n_tokens();
  if (n == 0) return ok();
  if (is_busy_) STILL_TRY_STATUS(wait("the GPU's step"));
  is_busy_ = true;
  STILL_CHECK(n <= options_.max_tokens && batch.n_seqs() <= options_.max_seqs);
  bool is_decode = options_.capture && batch.n_seqs() == n && static_cast<std::int64_t>(batch.logit_rows.size()) == n;
  for (std::int64_t i = 0; is_decode && i < n; ++i) is_decode = batch.logit_rows[static_cast<std::size_t>(i)] == i;
  const std::int64_t n_padded = ladder(n, std::min({options_.max_seqs, options_.max_tokens, options_.max_rows}));
  if (!is_decode || n_padded > options_.max_rows) {
    upload(batch, 0, 0);
    body(batch);
    return check_cuda("launching a step");
  }
  const std::int64_t longest = *std::max_element(batch.kv_len.begin(), batch.kv_len.end());
  std::int64_t n_parts = ceil_div(longest, split_);
  if (n_parts > 8) n_parts = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n_parts)));
  n_parts = std::min(n_parts, max_parts_);
  upload(batch, n_padded, n_parts);
  StepGraph& step = graphs_[{n_padded, n_parts}];
  if (step.graph) {
    stream_.launch(step.graph);
    return check_cuda("launching a captured step");
  }
  // The body looks at sizes only.
  const auto size = static_cast<std::size_t>(n_padded);
  padded_ids_.assign(size, 0);
  padded_starts_.resize(size + 1);
  padded_rows_.resize(size);
  for (std::size_t i = 0; i <= size; ++i) padded_starts_[i] = static_cast<std::int32_t>(i);
  for (std::size_t i = 0; i < size; ++i) padded_rows_[i] = static_cast<std::int32_t>(i);
  padded_lens_.assign(size, 1);
  padded_tables_.assign(size, 0);
  const RaggedBatch padded{.ids = padded_ids_,
                           .positions = padded_ids_,
                           .q_start = padded_starts_,
                           .kv_len = padded_lens_,
                           .block_tables = padded_tables_,
                           .max_blocks = 1,
                           .logit_rows = padded_rows_};
  if (!step.was_run) {  // loads kernels and chooses algorithms, which a capture cannot
    step.was_run = true;
    body(padded);
    return check_cuda("launching a step");
  }
  stream_.begin_capture();
  body(padded);
  STILL_TRY(step.graph, stream_.end_capture());
  stream_.launch(step.graph);
  return check_cuda("launching a captured step");
}

void CudaExec::embed(TensorView y, const EmbeddingTable& table) {
  STILL_CHECK(table.packed != nullptr);
  kernels_->embed(stream_.handle(), table.packed->format, table.packed->packed, table.packed->n_out,
                  static_cast<std::int32_t>(table.row_size), batch_.ids, batch_.n_tokens, y.f32());
  norm_ = {};
  forget_copies(nullptr);
}

void CudaExec::forget_copies(const void* of) {
  for (QuantizedCopy& copy : copies_)
    if (of == nullptr || copy.of == of) copy.of = nullptr;
  if (of == nullptr || bf16_of_ == of) bf16_of_ = nullptr;
  if (of == nullptr || f8_of_ == of) f8_of_ = nullptr;
}

void CudaExec::rms_norm(TensorView y, TensorView x, TensorView w, float eps) {
  forget_copies(y.data);
  norm_ = {.x = x, .y = y, .w = w, .eps = eps, .is_pending = true};
  if (x.rows() != 1 || x.row_size() % 8 != 0) launch_norm();
}

void CudaExec::launch_norm() {
  const auto n = static_cast<std::int32_t>(norm_.x.rows());
  const TensorView y = norm_.y;
  CudaNormArgs args{.x = norm_.x.f32(),
                    .w = norm_.w.f32(),
                    .n_rows = n,
                    .k = static_cast<std::int32_t>(norm_.x.row_size()),
                    .eps = norm_.eps};
  if (y.dtype == DType::kBF16) {
    args.y_bf16 = static_cast<std::uint16_t*>(y.data);
  } else {
    args.y_f32 = y.f32();
    // What the next products read; a copy in blocks that no weight here has costs little.
    if (n > 1 && n <= kCudaSkinnyRows && options_.has_f32_activations) {
      if (args.k % 32 == 0) args.block32 = copies_[0].out, copies_[0].of = y.data;
      if (args.k % 256 == 0) args.block256 = copies_[1].out, copies_[1].of = y.data;
    } else if (n > 1 && options_.has_f32_activations) {
      args.y_bf16 = bf16_;
      bf16_of_ = y.data;
      f8_of_ = nullptr;
    }
  }
  kernels_->rms_norm(stream_.handle(), args);
  norm_.is_pending = false;
}

// A product of a single row computes the norm itself, in all formats but F32.
bool CudaExec::can_take_norm(const Weight& w, TensorView x) const {
  return norm_.is_pending && x.data == norm_.y.data && w.format != PackedFormat::kF32;
}

const std::uint16_t* CudaExec::as_bf16(TensorView x) {
  if (x.dtype == DType::kBF16) return static_cast<const std::uint16_t*>(x.data);
  if (bf16_of_ != x.data) {
    STILL_CHECK(bf16_ != nullptr);
    kernels_->to_bf16(stream_.handle(), x.f32(), x.rows() * x.row_size(), bf16_);
    bf16_of_ = x.data;
    f8_of_ = nullptr;
  }
  return bf16_;
}

// The form in which a skinny product with `w` reads x.
CudaActivations CudaExec::activations(TensorView x, const Weight& w) {
  CudaActivations result;
  if (x.dtype == DType::kBF16) {
    result.bf16 = static_cast<const std::uint16_t*>(x.data);
  } else {
    result.f32 = x.f32();
  }
  if (w.format == PackedFormat::kF32) return result;
  if (x.rows() == 1) {  // made what it must be by who reads it
    if (can_take_norm(w, x)) return {.f32 = norm_.x.f32()};
    return result;
  }
  if (is_cuda_f8(w.format)) {
    if (f8_of_ != x.data) {
      kernels_->scale_rows(stream_.handle(), result, static_cast<std::int32_t>(x.rows()),
                           static_cast<std::int32_t>(x.row_size()), bf16_, nullptr, f8_scale_);
      f8_of_ = x.data;
      bf16_of_ = nullptr;
    }
    return {.f16 = bf16_, .scale = f8_scale_};
  }
  const std::int32_t block = activation_block(w.format);
  if (block == 0) return {.bf16 = as_bf16(x)};
  QuantizedCopy& copy = copy_for(block);
  if (copy.of != x.data) {
    kernels_->quantize_rows(stream_.handle(), result, static_cast<std::int32_t>(x.rows()),
                            static_cast<std::int32_t>(x.row_size()), block, copy.out);
    copy.of = x.data;
  }
  return {.q = copy.out.q, .scale = copy.out.scale, .sums = copy.out.sums};
}

// Products of up to kCudaSkinnyRows rows (F32: any), those of one format in one launch.
void CudaExec::multiply_rows(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                             std::span<const Weight* const> weights, bool y_is_bf16) {
  std::size_t begin = 0;
  while (begin < products.size()) {
    std::size_t end = begin + 1;
    while (end < products.size() && weights[end]->format == weights[begin]->format &&
           end - begin < static_cast<std::size_t>(kCudaMaxProducts))
      ++end;
    const std::size_t n_first = end - begin;
    const PackedFormat second = end < products.size() ? weights[end]->format : PackedFormat::kF32;
    if (x.rows() == 1 && epilogue == CudaEpilogue::kStore && cuda_can_mix(weights[begin]->format, second))
      while (end < products.size() && weights[end]->format == second) ++end;
    CudaLinearArgs args{.format = weights[begin]->format,
                        .epilogue = epilogue,
                        .n_products = static_cast<std::int32_t>(end - begin),
                        .y_is_bf16 = y_is_bf16,
                        .k = static_cast<std::int32_t>(x.row_size()),
                        .n_rows = static_cast<std::int32_t>(x.rows()),
                        .x = activations(x, *weights[begin])};
    args.n_first = static_cast<std::int32_t>(n_first);
    args.second_format = second;
    if (can_take_norm(*weights[begin], x)) args.norm = norm_.w.f32(), args.eps = norm_.eps;
    for (std::size_t i = begin; i < end; ++i) args.products[i - begin] = products[i];
    kernels_->linear(stream_.handle(), args);
    begin = end;
  }
}

// One dense product of FP8 rows with scales; false: cuBLASLt does not do it.
bool CudaExec::gemm_f8(TensorView x, const Weight& w, const CudaProduct& product, bool y_is_bf16, bool add) {
  if (w.format != kCudaF8Row || w.k % 16 != 0 || w.n_out % 16 != 0 || f8_unusable_) return false;
  const auto n = static_cast<std::int32_t>(x.rows());
  if (f8_of_ != x.data) {
    CudaActivations from;
    if (x.dtype == DType::kBF16) {
      from.bf16 = static_cast<const std::uint16_t*>(x.data);
    } else {
      from.f32 = x.f32();
    }
    kernels_->scale_rows(stream_.handle(), from, n, static_cast<std::int32_t>(w.k), nullptr,
                         reinterpret_cast<std::uint8_t*>(bf16_), f8_scale_);
    f8_of_ = x.data;
    bf16_of_ = nullptr;
  }
  // The library takes no f32 bias here.
  if (product.bias != nullptr)
    kernels_->repeat_bias(stream_.handle(), product.bias, n, static_cast<std::int32_t>(w.n_out),
                          static_cast<float*>(product.y), product.y_stride);
  const bool done = gemm_->run(stream_.handle(), {.x = bf16_,
                                                  .w = w.packed,
                                                  .w_stride = w.k,
                                                  .y = product.y,
                                                  .y_stride = product.y_stride,
                                                  .y_is_bf16 = y_is_bf16,
                                                  .add = add || product.bias != nullptr,
                                                  .n_rows = n,
                                                  .n_out = w.n_out,
                                                  .k = w.k,
                                                  .is_f8 = true,
                                                  .x_scale = f8_scale_,
                                                  .w_scale = reinterpret_cast<const float*>(w.packed + w.n_out * w.k),
                                                  .is_recurring = is_recurring(n),
                                                  .room = gate_up_,
                                                  .room_bytes = gate_up_bytes_});
  f8_unusable_ = !done;
  return done;
}

// One dense product; a quantised matrix is made dense first, as many rows at a time as there is room for.
bool CudaExec::gemm(TensorView x, const Weight& w, const CudaProduct& product, bool y_is_bf16, bool add) {
  if (is_cuda_f8(w.format) && gemm_f8(x, w, product, y_is_bf16, add)) return true;
  CudaGemmArgs args{.x = as_bf16(x),
                    .w = w.packed,
                    .w_stride = w.k,
                    .y = product.y,
                    .y_stride = product.y_stride,
                    .y_is_bf16 = y_is_bf16,
                    .add = add,
                    .bias = product.bias,
                    .n_rows = x.rows(),
                    .n_out = w.n_out,
                    .k = w.k,
                    .is_recurring = is_recurring(x.rows()),
                    .room = gate_up_,
                    .room_bytes = gate_up_bytes_};
  if (!is_cuda_quantized(w.format) && !is_cuda_f8(w.format)) return gemm_->run(stream_.handle(), args);
  const std::int64_t step = std::max<std::int64_t>(kPanelRows, dense_elements_ / w.k / kPanelRows * kPanelRows);
  for (std::int64_t row = 0; row < w.n_out; row += step) {
    args.n_out = std::min(step, w.n_out - row);
    args.w = dense_;
    kernels_->dequantize(stream_.handle(), w.format, w.packed, w.n_out, w.k, row, args.n_out, dense_);
    args.y = static_cast<std::byte*>(product.y) + row * (y_is_bf16 ? 2 : 4);
    args.bias = product.bias == nullptr ? nullptr : product.bias + row;
    if (!gemm_->run(stream_.handle(), args)) return false;
  }
  return true;
}

namespace {
// Float matrices that follow one another in memory, and whose results do, are one matrix.
bool follows(const Weight& a, const Weight& b) {
  return !is_cuda_quantized(a.format) && !is_cuda_f8(a.format) && a.format == b.format && a.k == b.k &&
         a.packed + cuda_packed_bytes(a.format, a.n_out, a.k) == b.packed;
}
}  // namespace

void CudaExec::multiply_dense(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                              std::span<const Weight* const> weights, bool y_is_bf16) {
  const std::int64_t n = x.rows();
  if (epilogue == CudaEpilogue::kSwiglu) {
    const std::int64_t width = weights[0]->n_out;
    CudaProduct gate{.y = gate_up_, .y_stride = 2 * width}, up{.y = gate_up_ + width, .y_stride = 2 * width};
    bool done;
    if (follows(*weights[0], *weights[1])) {
      Weight both = *weights[0];
      both.n_out = 2 * width;
      done = gemm(x, both, gate, true, false);
    } else {
      done = gemm(x, *weights[0], gate, true, false) && gemm(x, *weights[1], up, true, false);
    }
    STILL_CHECK(done);
    kernels_->swiglu(stream_.handle(), gate_up_, static_cast<std::int32_t>(n), static_cast<std::int32_t>(width),
                     y_is_bf16 ? nullptr : static_cast<float*>(products[0].y),
                     y_is_bf16 ? static_cast<std::uint16_t*>(products[0].y) : nullptr);
    return;
  }
  for (std::size_t i = 0; i < products.size();) {
    Weight joined = *weights[i];
    std::size_t end = i + 1;
    while (end < products.size() && follows(*weights[end - 1], *weights[end]) &&
           products[end].y_stride == products[i].y_stride &&
           static_cast<std::byte*>(products[end].y) ==
               static_cast<std::byte*>(products[i].y) + joined.n_out * (y_is_bf16 ? 2 : 4) &&
           (products[i].bias == nullptr ? products[end].bias == nullptr
                                        : products[end].bias == products[i].bias + joined.n_out)) {
      joined.n_out += weights[end]->n_out;
      ++end;
    }
    const bool done = gemm(x, joined, products[i], y_is_bf16, epilogue == CudaEpilogue::kAdd);
    STILL_CHECK(done);
    i = end;
  }
}

void CudaExec::multiply(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                        std::span<const Weight* const> weights, bool y_is_bf16) {
  const bool has_f32 =
      std::any_of(weights.begin(), weights.end(), [](const Weight* w) { return w->format == PackedFormat::kF32; });
  const std::int64_t n = x.rows();
  STILL_CHECK(x.data != norm_.stale);
  if (norm_.is_pending && x.data == norm_.y.data &&
      std::any_of(weights.begin(), weights.end(), [&](const Weight* w) { return !can_take_norm(*w, x); }))
    launch_norm();
  if (has_f32 || n <= kCudaSkinnyRows) {
    multiply_rows(epilogue, x, products, weights, y_is_bf16);
    return;
  }
  const bool is_even =
      std::all_of(weights.begin(), weights.end(), [](const Weight* w) { return w->k % 8 == 0 && w->n_out % 8 == 0; });
  if (gemm_ != nullptr && is_even) {
    multiply_dense(epilogue, x, products, weights, y_is_bf16);
    return;
  }
  // Without cuBLASLt: 16 rows at a time, each time all weights.
  for (std::int64_t row = 0; row < n; row += kCudaSkinnyRows) {
    const std::int64_t width = x.row_size(), element = x.dtype == DType::kBF16 ? 2 : 4;
    const TensorView part{static_cast<std::byte*>(x.data) + row * width * element,
                          x.dtype,
                          {std::min<std::int64_t>(kCudaSkinnyRows, n - row), width}};
    std::vector<CudaProduct> moved(products.begin(), products.end());
    for (CudaProduct& product : moved)
      product.y = static_cast<std::byte*>(product.y) + row * product.y_stride * (y_is_bf16 ? 2 : 4);
    forget_copies(nullptr);
    multiply_rows(epilogue, part, moved, weights, y_is_bf16);
  }
  forget_copies(nullptr);
}

void CudaExec::linear(TensorView x, std::span<const LinearOutput> outputs) {
  CudaProduct products[kCudaMaxProducts];
  const Weight* weights[kCudaMaxProducts];
  STILL_CHECK(outputs.size() <= static_cast<std::size_t>(kCudaMaxProducts));
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    weights[i] = outputs[i].w;
    products[i] = {.weights = weights[i]->packed,
                   .n_out = static_cast<std::int32_t>(weights[i]->n_out),
                   .y = outputs[i].y.data,
                   .y_stride = outputs[i].y.stride(),
                   .bias = outputs[i].bias ? outputs[i].bias.f32() : nullptr};
  }
  multiply(CudaEpilogue::kStore, x, {products, outputs.size()}, {weights, outputs.size()}, false);
}

void CudaExec::linear_add(TensorView y, TensorView x, const Weight& w) {
  const CudaProduct product{
      .weights = w.packed, .n_out = static_cast<std::int32_t>(w.n_out), .y = y.data, .y_stride = y.stride()};
  const Weight* weight = &w;
  multiply(CudaEpilogue::kAdd, x, {&product, 1}, {&weight, 1}, false);
  // The row that a norm was of has changed: nobody may ask for that norm now.
  if (norm_.is_pending && norm_.x.data == y.data) {
    norm_.is_pending = false;
    norm_.stale = norm_.y.data;
  }
}

void CudaExec::linear_swiglu(TensorView y, TensorView x, const Weight& gate, const Weight& up) {
  const Weight* weights[2] = {&gate, &up};
  CudaProduct products[2];
  for (int i = 0; i < 2; ++i)
    products[i] = {.weights = weights[i]->packed,
                   .n_out = static_cast<std::int32_t>(weights[i]->n_out),
                   .y = y.data,
                   .y_stride = y.stride()};
  STILL_CHECK(gate.format == up.format);
  multiply(CudaEpilogue::kSwiglu, x, products, weights, y.dtype == DType::kBF16);
  // y is new: copies of what was there are none of it.
  forget_copies(y.data);
}

CudaKv CudaExec::kv_of(const KvCache& cache, std::int32_t layer) const {
  const KvHeadView head = cache.head(layer, 0, nullptr);
  return {.base = head.base,
          .block_bytes = head.block_bytes,
          .head_bytes = cache.geometry().head_block_bytes(),
          .v_offset = head.v_offset,
          .block_size = static_cast<std::int32_t>(head.block_size),
          .n_kv_heads = cache.geometry().n_kv_heads,
          .head_dim = head.head_dim};
}

void CudaExec::rope_kv_write(TensorView q, TensorView k, TensorView v, std::int64_t n_heads, const RopeTable& rope,
                             const KvCache& cache, std::int32_t layer) {
  const std::int64_t half = rope.config().n_rot / 2, n = rope.max_seq_len() * half;
  DeviceBuffer& table = rope_tables_[&rope];
  if (table.data() == nullptr) {
    auto memory = DeviceBuffer::create(RopeTable::bytes(rope.config(), rope.max_seq_len()), "rotary table");
    STILL_CHECK(memory.has_value());
    table = std::move(*memory);
    stream_.copy_to_device(table.data(), rope.cos(0), n * 4);
    stream_.copy_to_device(table.data() + n * 4, rope.sin(0), n * 4);
  }
  const auto* cos = reinterpret_cast<const float*>(table.data());
  rope_ = {.q = q.f32(),
           .k = k.f32(),
           .v = v.f32(),
           .q_stride = q.stride(),
           .k_stride = k.stride(),
           .v_stride = v.stride(),
           .n_heads = static_cast<std::int32_t>(n_heads),
           .n_rot = rope.config().n_rot,
           .pairs = rope.config().pairs,
           .cos = cos,
           .sin = cos + n,
           .kv = kv_of(cache, layer),
           .positions = batch_.positions,
           .slots = batch_.slots,
           .n_tokens = batch_.n_tokens};
  const bool is_wide = rope_.kv.head_dim == 64 || rope_.kv.head_dim == 128;
  is_q_raw_ = is_wide && rope_.n_rot == rope_.kv.head_dim && !rope_.pairs && n_heads / rope_.kv.n_kv_heads <= 8 &&
              rope_.q_stride % 4 == 0 && rope_.k_stride % 4 == 0;
  is_rope_pending_ = is_q_raw_ && batch_.n_tiles == 0;
  if (is_rope_pending_) return;
  CudaRopeKvArgs now = rope_;
  if (is_q_raw_) now.n_heads = 0;
  kernels_->rope_kv_write(stream_.handle(), now);
}

void CudaExec::attention(TensorView out, TensorView q, const KvCache& cache, std::int32_t layer, std::int64_t n_heads,
                         float scale, std::int64_t window) {
  const bool is_bf16 = out.dtype == DType::kBF16;
  // No more parts than blocks that run at once: many sequences fill the multiprocessors without.
  const std::int64_t longest = std::max(batch_.max_decode_len, 1);
  const std::int64_t n_wanted = std::max<std::int64_t>(
      1, kDecodeBlocks / (std::max(batch_.n_decodes, 1) * std::int64_t{cache.geometry().n_kv_heads}));
  const std::int64_t split =
      ceil_div(longest, split_) <= n_wanted ? split_ : ceil_div(ceil_div(longest, n_wanted), 128) * 128;
  kernels_->attention(stream_.handle(), {.q = q.f32(),
                                         .q_stride = q.stride(),
                                         .out_f32 = is_bf16 ? nullptr : out.f32(),
                                         .out_bf16 = is_bf16 ? static_cast<std::uint16_t*>(out.data) : nullptr,
                                         .kv = kv_of(cache, layer),
                                         .batch = batch_,
                                         .n_heads = static_cast<std::int32_t>(n_heads),
                                         .scale = scale,
                                         .window = static_cast<std::int32_t>(window),
                                         .split = static_cast<std::int32_t>(split),
                                         .partials = partials_,
                                         .arrivals = arrivals_,
                                         .max_parts = static_cast<std::int32_t>(max_parts_),
                                         .is_q_raw = is_q_raw_,
                                         .is_rope_fused = is_rope_pending_,
                                         .rope = rope_});
  is_q_raw_ = is_rope_pending_ = false;
  forget_copies(out.data);
}

void CudaExec::logits(TensorView y, TensorView x, const Weight& head, TensorView gathered) {
  const std::int64_t n_rows = y.rows(), width = x.row_size();
  // All rows, in order: a step of decodes.
  const bool is_all = batch_.n_rows == batch_.n_tokens && batch_.n_decodes == batch_.n_tokens;
  if (!is_all) {
    if (norm_.is_pending && x.data == norm_.y.data) launch_norm();
    kernels_->gather(stream_.handle(), x.data, width * (x.dtype == DType::kBF16 ? 2 : 4), batch_.rows,
                     static_cast<std::int32_t>(n_rows), gathered.data);
    forget_copies(nullptr);
  }
  const TensorView input{is_all ? x.data : gathered.data, x.dtype, {n_rows, width}};
  const LinearOutput output{.y = y, .w = &head, .bias = {}};
  linear(input, {&output, 1});
}

Result<std::span<const TokenId>> CudaExec::sample(const float* logits, std::span<const CudaSampleRow> rows) {
  const auto n = static_cast<std::int64_t>(rows.size());
  STILL_CHECK(n <= options_.max_rows);
  std::copy(rows.begin(), rows.end(), sample_rows_host_);
  stream_.copy_to_device(sample_rows_, sample_rows_host_, n * static_cast<std::int64_t>(sizeof(CudaSampleRow)));
  // The scratch is laid out for the most rows, so that its counters stay where they are.
  kernels_->sample(stream_.handle(), logits, static_cast<std::int32_t>(options_.vocab_size), sample_rows_,
                   static_cast<std::int32_t>(n), sample_scratch_, sampled_);
  stream_.copy_to_host(sampled_host_, sampled_, n * 4);
  STILL_TRY_STATUS(wait("the GPU's step"));
  return std::span<const TokenId>(sampled_host_, rows.size());
}

Result<float*> CudaExec::fetch(const float* row, std::int64_t n) {
  STILL_CHECK(n <= options_.vocab_size);
  stream_.copy_to_host(row_host_, row, n * 4);
  STILL_TRY_STATUS(wait("the GPU's step"));
  return row_host_;
}

}  // namespace still

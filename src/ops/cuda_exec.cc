#include "ops/cuda_exec.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/arithmetic.h"
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
constexpr std::int64_t kGroupedRows = 64;
// Rows from which the tile kernel is faster than the kernel of few rows, and up to which it is faster than the dense
// products of quantised weights, of those packed as Q8_0, and of FP8.
constexpr std::int64_t kTiledRows = 17, kMostTiledRows = 192, kMostTiledQ8Rows = 384, kMostTiledF8Rows = 64;
// Rows from which weights packed as Q8_0 are multiplied faster as f16.
constexpr std::int64_t kQ8F16Rows = 9;
// Rows whose algorithm of a dense product is that of all answers with --reproducible: streaming weights costs as much
// for 1 as for 128.
constexpr std::int64_t kAnswerRows = 128;
// Rows up to which the kernel of FP8 chains is faster than cuBLASLt.
constexpr std::int64_t kMostChainRows = 64;
// Decodes up to which the attention also turns and stores their keys: more are served better by a kernel of its own.
constexpr std::int64_t kFusedRopeDecodes = 32;

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}
// Positions of a part of a decode's attention: fixed by the longest context, so that a sequence's parts do not depend
// on the step.
std::int64_t split_of(const CudaOptions& options) {
  const std::int64_t longest = options.max_blocks * options.block_size;
  // Reproducible: the same for one sequence, which wants many parts, and for hundreds, which want none.
  return std::max<std::int64_t>(options.reproducible ? 256 : 128, ceil_div(ceil_div(longest, kMaxParts), 128) * 128);
}
std::int64_t parts_of(const CudaOptions& options) {
  return ceil_div(options.max_blocks * options.block_size, split_of(options));
}

// Bytes of one step's batch at most: four numbers a token and a tile of at least one token, rows, sequences, tables.
std::int64_t step_bytes(const CudaOptions& options) {
  return static_cast<std::int64_t>(sizeof(CudaSampleRow)) * options.max_rows +
         4 * (12 * options.max_tokens + options.max_rows + 4 * options.max_seqs +
              options.max_seqs * std::bit_ceil(static_cast<std::uint64_t>(options.max_blocks)) * 2) +
         16 * kAlign;
}

struct ScratchSizes {
  std::int64_t step, bf16, f8_scale, q, scale, sums, gate_up, dense, partials, arrivals, sample, sample_rows, sampled;
  explicit ScratchSizes(const CudaOptions& o) {
    const std::int64_t skinny = kCudaSkinnyRows * o.max_k;
    step = aligned(step_bytes(o));
    bf16 = o.has_f32_activations ? aligned(2 * o.max_tokens * o.max_k) : 0;
    f8_scale = o.has_f32_activations
                   ? aligned(4 * std::max({o.max_tokens, o.max_rows, kCudaSkinnyRows * ceil_div(o.max_k, 256)}))
                   : 0;
    q = aligned(skinny);
    scale = aligned(skinny / 32 * 4 + 64);
    sums = aligned(skinny / 16 * 2 + 64);
    gate_up = aligned(4 * o.max_tokens * o.max_gate);
    // Or the images of as many rows as there is room for, of a tile at least.
    dense = o.has_f32_activations
                ? aligned(std::max(2 * std::min(o.max_matrix, kMaxDenseElements), cuda_image_bytes(1, o.max_k)))
                : 0;
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

std::int32_t n_cut(std::span<const CudaSampleRow> rows) {
  return static_cast<std::int32_t>(
      std::count_if(rows.begin(), rows.end(), [](const CudaSampleRow& row) { return row.is_cut(); }));
}

// Sizes to which a step of decodes is padded.
std::int64_t ladder(std::int64_t n, std::int64_t most) {
  std::int64_t size = n <= 4 ? n : n <= 32 ? ceil_div(n, 4) * 4 : n <= 64 ? ceil_div(n, 8) * 8 : ceil_div(n, 16) * 16;
  return std::min(size, std::max(most, n));
}
}  // namespace

std::int64_t CudaExec::scratch_bytes(const CudaOptions& options) {
  return ScratchSizes(options).device();
}

Result<std::unique_ptr<CudaExec>> CudaExec::create(const CudaOptions& options, Comm* comm) {
  std::unique_ptr<CudaExec> exec(new CudaExec());
  exec->options_ = options;
  exec->comm_ = comm;
  exec->kernels_ = cuda_kernels();
  if (exec->kernels_ == nullptr) return error(Code::kUnsupported, "this program was built without CUDA");
  if (options.vocab_size > (1 << 20))
    return error(Code::kUnsupported, "{} tokens of vocabulary: on a GPU at most {}", options.vocab_size, 1 << 20);
  STILL_TRY_STATUS(use_cuda_device(options.device));
  STILL_TRY(exec->stream_, CudaStream::create());
  exec->gemm_.reset(make_cuda_gemm(&exec->gemm_missing_));
  if (exec->gemm_ != nullptr) exec->gemm_missing_ = nullptr;
  exec->has_tiles_ = exec->kernels_->has_tiles();
  exec->has_f8_chains_ = exec->kernels_->has_f8_chains();
  exec->has_bf16_chains_ = exec->kernels_->has_bf16_chains();

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
  STILL_TRY(exec->pinned_,
            PinnedBuffer::create(2 * sizes.step + sizes.sample_rows + 3 * sizes.sampled + row_bytes, "staging"));
  std::byte* host = exec->pinned_.data();
  const auto take_host = [&](auto*& pointer, std::int64_t bytes) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(host);
    host += bytes;
  };
  for (Stage& stage : exec->stages_) {
    take_host(stage.lists, sizes.step);
    take_host(stage.ids, sizes.sampled);
    STILL_TRY(stage.done, CudaEvent::create(false));
  }
  take_host(exec->sample_rows_host_, sizes.sample_rows);
  take_host(exec->sampled_host_, sizes.sampled);
  take_host(exec->row_host_, row_bytes);
  exec->draws_.reserve(static_cast<std::size_t>(options.max_rows));
  for (std::int64_t i = 0; options.measure_idle && i < kTimes; ++i) {
    STILL_TRY(exec->begins_[i], CudaEvent::create(true));
    STILL_TRY(exec->ends_[i], CudaEvent::create(true));
  }
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

// A sequence's token is a decode's. Reproducible: a prompt's last token is not, though it may come alone.
bool CudaExec::is_decode(const RaggedBatch& batch, std::int64_t seq) const {
  if (options_.reproducible && batch.n_answer_seqs >= 0) return seq < batch.n_answer_seqs;
  const auto s = static_cast<std::size_t>(seq);
  return batch.q_start[s + 1] - batch.q_start[s] == 1;
}

// n_padded: tokens and sequences of a padded decode step, 0: as they are. n_parts: of its longest sequence.
Status CudaExec::upload(const RaggedBatch& batch, std::int64_t n_padded, std::int64_t n_parts) {
  // The memory of the step before the last one: its lists were read long ago, but a caller that draws nothing may not
  // have waited.
  Stage& stage = stages_[n_steps_ % 2];
  if (stage.is_used) STILL_TRY_STATUS(stage.is_drawn ? stage.done.wait("the GPU's step") : wait("the GPU's step"));
  stage.is_used = true;
  stage.is_drawn = false;
  const std::int64_t n_real = batch.n_seqs(), n_tokens = n_padded > 0 ? n_padded : batch.n_tokens();
  const std::int64_t n_seqs = n_padded > 0 ? n_padded : n_real;
  const std::int64_t n_rows = n_padded > 0 ? n_padded : static_cast<std::int64_t>(batch.logit_rows.size());
  std::int64_t n_decodes = 0, n_tiles = 0, longest = 0, longest_decode = 0;
  for (std::int64_t seq = 0; seq < n_real; ++seq) {
    const auto s = static_cast<std::size_t>(seq);
    const std::int64_t q_len = batch.q_start[s + 1] - batch.q_start[s];
    longest = std::max<std::int64_t>(longest, batch.kv_len[s]);
    if (is_decode(batch, seq)) {
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
  n_answer_rows_ = n_decodes;
  n_answer_wanted_ = std::count_if(batch.logit_rows.begin(), batch.logit_rows.end(),
                                   [&](std::int32_t row) { return row < n_decodes; });
  const std::int64_t block = options_.block_size, stride = ceil_div(longest, block);
  const Layout layout(n_tokens, n_rows, n_seqs, n_decodes, n_tiles, stride);
  const auto draw_bytes = static_cast<std::int64_t>(draws_.size() * sizeof(CudaSampleRow));
  STILL_CHECK(layout.bytes + draw_bytes <= step_bytes(options_));
  const auto host = [&](std::int64_t offset) { return reinterpret_cast<std::int32_t*>(stage.lists + offset); };
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
    if (is_decode(batch, seq)) {
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
  if (draw_bytes > 0) std::memcpy(stage.lists + layout.bytes, draws_.data(), static_cast<std::size_t>(draw_bytes));
  stage.n_draws = static_cast<std::int64_t>(draws_.size());
  draw_rows_ = reinterpret_cast<const CudaSampleRow*>(step_device_ + layout.bytes);
  if (options_.measure_idle) {
    begins_[n_steps_ % kTimes].record(stream_);
    constexpr std::chrono::milliseconds kPause{20};  // longer: there was nothing to do
    follows_at_once_[n_steps_ % kTimes] =
        n_collected_ < n_steps_ || (n_steps_ > 0 && std::chrono::steady_clock::now() - last_collected_ < kPause);
  }
  ++n_steps_;
  kernels_->fetch_step(stream_.handle(), stage.lists, step_device_, layout.bytes + draw_bytes,
                       static_cast<std::int32_t>(batch.n_tokens()), sampled_);
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
  return ok();
}

Status CudaExec::check_launched(std::string_view what) {
  if (std::exchange(has_failed_, false))
    return error(Code::kInternal, "{}: cuBLASLt has no way to compute one of its products", what);
  return check_cuda(what);
}

Status CudaExec::run_step(const RaggedBatch& batch, const std::function<void(const RaggedBatch&)>& launch) {
  const auto body = [&](const RaggedBatch& step) {
    launch(step);
    add_parts();  // where no row was wanted, of the last layer
  };
  const std::int64_t n = batch.n_tokens();
  if (n == 0) return ok();
  STILL_CHECK(n <= options_.max_tokens && batch.n_seqs() <= options_.max_seqs);
  bool is_decodes = options_.capture && batch.n_seqs() == n && static_cast<std::int64_t>(batch.logit_rows.size()) == n;
  if (options_.reproducible && batch.n_answer_seqs >= 0) is_decodes = is_decodes && batch.n_answer_seqs == n;
  for (std::int64_t i = 0; is_decodes && i < n; ++i) is_decodes = batch.logit_rows[static_cast<std::size_t>(i)] == i;
  const std::int64_t n_padded = ladder(n, std::min({options_.max_seqs, options_.max_tokens, options_.max_rows}));
  if (!is_decodes || n_padded > options_.max_rows) {
    STILL_TRY_STATUS(upload(batch, 0, 0));
    body(batch);
    return check_launched("launching a step");
  }
  const std::int64_t longest = *std::max_element(batch.kv_len.begin(), batch.kv_len.end());
  std::int64_t n_parts = ceil_div(longest, split_);
  if (n_parts > 8) n_parts = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n_parts)));
  n_parts = std::min(n_parts, max_parts_);
  STILL_TRY_STATUS(upload(batch, n_padded, n_parts));
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
    return check_launched("launching a step");
  }
  stream_.begin_capture();
  body(padded);
  STILL_TRY(CudaGraph graph, stream_.end_capture());
  STILL_TRY_STATUS(check_launched("capturing a step"));
  step.graph = std::move(graph);
  stream_.launch(step.graph);
  return check_cuda("launching a captured step");
}

void CudaExec::embed(TensorView y, const EmbeddingTable& table) {
  STILL_CHECK(table.packed != nullptr);
  norm_ = {};
  const std::int64_t n = y.rows() * table.row_size;
  float* part = table.is_part ? comm_->part(n) : nullptr;
  kernels_->embed(stream_.handle(), table.packed->format, table.packed->packed,
                  static_cast<std::int32_t>(table.row_size), batch_.ids, batch_.n_tokens,
                  static_cast<std::int32_t>(table.first_row), static_cast<std::int32_t>(table.packed->n_out),
                  part != nullptr ? part : y.f32());
  forget_copies(nullptr);
  if (part != nullptr) {
    sum_ = {y.f32(), y.rows(), table.row_size, true, PartKind::kF32};
  } else if (table.is_part) {
    comm_->sum_in_place(stream_.handle(), y.f32(), n);
  }
}

void CudaExec::add_parts() {
  if (sum_.y == nullptr) return;
  comm_->add_parts(stream_.handle(), sum_.y, sum_.n_rows, sum_.k, sum_.is_new, sum_.kind);
  sum_ = {};
}

void CudaExec::forget_copies(const void* of) {
  for (QuantizedCopy& copy : copies_)
    if (of == nullptr || copy.of == of) copy.of = nullptr;
  if (of == nullptr || bf16_of_ == of) bf16_of_ = nullptr;
  if (of == nullptr || f8_of_ == of) f8_of_ = nullptr;
  if (of == nullptr || images_of_ == of) images_of_ = nullptr;
}

void CudaExec::rms_norm(TensorView y, TensorView x, TensorView w, float eps) {
  forget_copies(y.data);
  norm_ = {.x = x, .y = y, .w = w, .eps = eps, .is_pending = true};
  if (x.rows() != 1 || x.row_size() % 8 != 0 || sum_.y != nullptr) launch_norm();  // a sum of ranks comes with its norm
}

void CudaExec::launch_norm() {
  norm_.is_pending = false;
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
    if (n > 1 && n <= kCudaSkinnyRows && has_quantized_) {
      if (args.k % 32 == 0) args.block32 = copies_[0].out, copies_[0].of = y.data;
      if (args.k % 256 == 0) args.block256 = copies_[1].out, copies_[1].of = y.data;
    } else if (n > 1 && options_.has_f32_activations) {
      args.y_bf16 = bf16_;
      bf16_of_ = y.data;
      f8_of_ = nullptr;
    }
  }
  if (sum_.y != nullptr && sum_.y == norm_.x.data &&
      comm_->add_parts_and_norm(stream_.handle(), sum_.y, sum_.is_new, sum_.kind, args)) {
    sum_ = {};
    return;
  }
  add_parts();
  kernels_->rms_norm(stream_.handle(), args);
}

// A product of a single row computes the norm itself, in all formats but F32; with --reproducible where it is computed
// by the kernel of one row (floats: see multiply()).
bool CudaExec::can_take_norm(const Weight& w, TensorView x) const {
  if (!norm_.is_pending || x.data != norm_.y.data || w.format == PackedFormat::kF32) return false;
  if (!options_.reproducible) return true;
  const Weight* weight = &w;
  return n_answer_rows_ > 0 && norm_.y.dtype == DType::kF32 && (is_cuda_quantized(w.format) || can_chain({&weight, 1}));
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

// How products in rows compute with `w`. Tiles make f16 of what is packed as Q8_0; reproducible rows are the same in
// fewer.
PackedFormat CudaExec::form_of(const Weight& w, std::int64_t n_rows) const {
  return options_.reproducible || n_rows >= kQ8F16Rows ? cuda_f16_form(w.format) : w.format;
}

// The form in which a skinny product, or one of tiles, with `w` reads x.
CudaActivations CudaExec::activations(TensorView x, const Weight& w, bool in_tiles) {
  CudaActivations result;
  const PackedFormat format = form_of(w, x.rows());
  if (x.dtype == DType::kBF16) {
    result.bf16 = static_cast<const std::uint16_t*>(x.data);
  } else {
    result.f32 = x.f32();
  }
  if (format == PackedFormat::kF32) return result;
  if (in_tiles) {
    const std::int32_t kind = kernels_->image_kind(format);
    auto* images = reinterpret_cast<std::uint8_t*>(dense_);
    if (images_of_ != x.data || images_kind_ != kind) {
      kernels_->arrange_rows(stream_.handle(), result, static_cast<std::int32_t>(x.rows()),
                             static_cast<std::int32_t>(x.row_size()), format, images);
      images_of_ = x.data;
      images_kind_ = kind;
    }
    return {.images = images};
  }
  const std::int32_t block = activation_block(w.format);
  // Made what it must be by who reads it.
  if (x.rows() == 1 && (!options_.reproducible || block != 0 || is_cuda_f8(format))) {
    if (can_take_norm(w, x)) return {.f32 = norm_.x.f32()};
    return result;
  }
  if (is_cuda_f8(format) || format == kCudaQ8F16) {
    if (f8_of_ != x.data || is_f8_bytes_) {
      kernels_->scale_rows(stream_.handle(), result, static_cast<std::int32_t>(x.rows()),
                           static_cast<std::int32_t>(x.row_size()), bf16_, nullptr, f8_scale_);
      f8_of_ = x.data;
      is_f8_bytes_ = false;
      bf16_of_ = nullptr;
    }
    return {.f16 = bf16_, .scale = f8_scale_};
  }
  if (block == 0) return {.bf16 = as_bf16(x)};
  QuantizedCopy& copy = copy_for(block);
  if (copy.of != x.data) {
    kernels_->quantize_rows(stream_.handle(), result, static_cast<std::int32_t>(x.rows()),
                            static_cast<std::int32_t>(x.row_size()), block, copy.out);
    copy.of = x.data;
  }
  return {.q = copy.out.q, .scale = copy.out.scale, .sums = copy.out.sums};
}

// Products of up to kCudaSkinnyRows rows (F32, in tiles: any), those of one format in one launch.
void CudaExec::multiply_rows(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                             std::span<const Weight* const> weights, bool y_is_bf16, bool in_tiles) {
  std::int32_t n_panels = 0;
  for (std::size_t i = 0; i < (epilogue == CudaEpilogue::kSwiglu ? 1 : products.size()); ++i)
    n_panels += static_cast<std::int32_t>(ceil_div(products[i].n_out, kPanelRows));
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
    CudaLinearArgs args{.format = form_of(*weights[begin], x.rows()),
                        .epilogue = epilogue,
                        .n_products = static_cast<std::int32_t>(end - begin),
                        .y_is_bf16 = y_is_bf16,
                        .k = static_cast<std::int32_t>(x.row_size()),
                        .n_rows = static_cast<std::int32_t>(x.rows()),
                        .x = activations(x, *weights[begin], in_tiles)};
    args.n_first = static_cast<std::int32_t>(n_first);
    args.second_format = second;
    args.is_row_like_others = options_.reproducible;
    args.n_order_panels = n_panels;
    if (exchange_ != nullptr) args.exchange = *exchange_;
    has_quantized_ |= is_cuda_quantized(args.format);
    if (can_take_norm(*weights[begin], x)) args.norm = norm_.w.f32(), args.eps = norm_.eps;
    for (std::size_t i = begin; i < end; ++i) args.products[i - begin] = products[i];
    kernels_->linear(stream_.handle(), args);
    begin = end;
  }
}

// The rows of x in e4m3, which lie in bf16_ with a scale for each.
const std::uint8_t* CudaExec::as_f8(TensorView x) {
  auto* bytes = reinterpret_cast<std::uint8_t*>(bf16_);
  if (f8_of_ == x.data && is_f8_bytes_) return bytes;
  STILL_CHECK(bytes != nullptr);
  CudaActivations from;
  if (x.dtype == DType::kBF16) {
    from.bf16 = static_cast<const std::uint16_t*>(x.data);
  } else {
    from.f32 = x.f32();
  }
  kernels_->scale_rows(stream_.handle(), from, static_cast<std::int32_t>(x.rows()),
                       static_cast<std::int32_t>(x.row_size()), nullptr, bytes, f8_scale_);
  f8_of_ = x.data;
  is_f8_bytes_ = true;
  bf16_of_ = nullptr;
  return bytes;
}

// One dense product of FP8 rows with scales; false: cuBLASLt does not do it, or, is_chain, not with the bits of the
// chain kernel.
bool CudaExec::gemm_f8(TensorView x, std::int64_t begin, std::int64_t n, const Weight& w, const CudaProduct& product,
                       bool y_is_bf16, bool add, bool is_chain, Columns columns) {
  if (w.format != kCudaF8Row || w.k % 16 != 0 || w.n_out % 16 != 0 || (f8_unusable_ && !is_chain)) return false;
  const std::uint8_t* bytes = as_f8(x);
  // The library takes no f32 bias here.
  if (product.bias != nullptr)
    kernels_->repeat_bias(stream_.handle(), product.bias, static_cast<std::int32_t>(n),
                          static_cast<std::int32_t>(w.n_out), static_cast<float*>(product.y), product.y_stride);
  const bool done = gemm_->run(stream_.handle(), {.x = bytes + begin * w.k + columns.begin,
                                                  .x_stride = w.k,
                                                  .w = w.packed + columns.begin,
                                                  .w_stride = w.k,
                                                  .y = product.y,
                                                  .y_stride = product.y_stride,
                                                  .y_is_bf16 = y_is_bf16,
                                                  .add = add || product.bias != nullptr,
                                                  .n_rows = n,
                                                  .n_out = w.n_out,
                                                  .k = columns.n,
                                                  .is_f8 = true,
                                                  .is_chain = is_chain,
                                                  .x_scale = f8_scale_ + begin,
                                                  .w_scale = reinterpret_cast<const float*>(w.packed + w.n_out * w.k),
                                                  .is_recurring = is_recurring(n),
                                                  .room = gate_up_,
                                                  .room_bytes = gate_up_bytes_});
  if (!is_chain) f8_unusable_ = !done;
  return done;
}

CudaGemmArgs CudaExec::gemm_args(const std::uint16_t* x, std::int64_t n, const Weight& w, const CudaProduct& product,
                                 bool y_is_bf16, bool add, std::int64_t fixed_rows) const {
  return {.x = x,
          .x_stride = w.k,
          .w = w.packed,
          .w_stride = w.k,
          .y = product.y,
          .y_stride = product.y_stride,
          .y_is_bf16 = y_is_bf16,
          .add = add,
          .bias = product.bias,
          .n_rows = n,
          .n_out = w.n_out,
          .k = w.k,
          .fixed_rows = fixed_rows,
          .is_recurring = is_recurring(n),
          .room = gate_up_,
          .room_bytes = gate_up_bytes_};
}

// One dense product; a quantised matrix is made dense first, as many rows at a time as there is room for.
bool CudaExec::gemm(TensorView x, std::int64_t begin, std::int64_t n, const Weight& w, const CudaProduct& product,
                    bool y_is_bf16, bool add, std::int64_t fixed_rows) {
  if (is_cuda_f8(w.format) && fixed_rows == 0 && gemm_f8(x, begin, n, w, product, y_is_bf16, add, false, {0, w.k}))
    return true;
  CudaGemmArgs args = gemm_args(as_bf16(x) + begin * x.row_size(), n, w, product, y_is_bf16, add, fixed_rows);
  if (!is_cuda_quantized(w.format) && !is_cuda_f8(w.format)) return gemm_->run(stream_.handle(), args);
  images_of_ = nullptr;
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
// Products i to the returned one, exclusive, are one with `joined`; `element`: bytes of a result.
std::size_t join(std::span<const CudaProduct> products, std::span<const Weight* const> weights, std::size_t i,
                 std::int64_t element, Weight& joined) {
  joined = *weights[i];
  std::size_t next = i + 1;
  while (next < products.size() && follows(*weights[next - 1], *weights[next]) &&
         products[next].y_stride == products[i].y_stride &&
         static_cast<std::byte*>(products[next].y) == static_cast<std::byte*>(products[i].y) + joined.n_out * element &&
         (products[i].bias == nullptr ? products[next].bias == nullptr
                                      : products[next].bias == products[i].bias + joined.n_out)) {
    joined.n_out += weights[next]->n_out;
    ++next;
  }
  return next;
}
bool is_even(std::span<const Weight* const> weights) {
  return std::all_of(weights.begin(), weights.end(),
                     [](const Weight* w) { return w->k % 8 == 0 && w->n_out % 8 == 0; });
}
}  // namespace

void CudaExec::multiply_dense(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                              std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t begin,
                              std::int64_t end, std::int64_t fixed_rows) {
  const std::int64_t n = end - begin, element = y_is_bf16 ? 2 : 4;
  const auto first_row = [&](const CudaProduct& product) {
    return static_cast<void*>(static_cast<std::byte*>(product.y) + begin * product.y_stride * element);
  };
  if (epilogue == CudaEpilogue::kSwiglu) {
    const std::int64_t width = weights[0]->n_out;
    CudaProduct gate{.y = gate_up_, .y_stride = 2 * width}, up{.y = gate_up_ + width, .y_stride = 2 * width};
    bool done;
    if (follows(*weights[0], *weights[1])) {
      Weight both = *weights[0];
      both.n_out = 2 * width;
      done = gemm(x, begin, n, both, gate, true, false, fixed_rows);
    } else {
      done = gemm(x, begin, n, *weights[0], gate, true, false, fixed_rows) &&
             gemm(x, begin, n, *weights[1], up, true, false, fixed_rows);
    }
    if (!done) has_failed_ = true;
    kernels_->swiglu(stream_.handle(), gate_up_, static_cast<std::int32_t>(n), static_cast<std::int32_t>(width),
                     y_is_bf16 ? nullptr : static_cast<float*>(first_row(products[0])),
                     y_is_bf16 ? static_cast<std::uint16_t*>(first_row(products[0])) : nullptr);
    return;
  }
  for (std::size_t i = 0; i < products.size();) {
    Weight joined;
    const std::size_t next = join(products, weights, i, element, joined);
    CudaProduct product = products[i];
    product.y = first_row(product);
    if (!gemm(x, begin, n, joined, product, y_is_bf16, epilogue == CudaEpilogue::kAdd, fixed_rows)) has_failed_ = true;
    i = next;
  }
}

// Whether the tile kernel computes these products.
bool CudaExec::can_tile(std::span<const Weight* const> weights) const {
  return has_tiles_ && dense_ != nullptr && std::all_of(weights.begin(), weights.end(), [](const Weight* w) {
           return is_cuda_quantized(w->format) || is_cuda_f8(w->format);
         });
}
// Whether it is the fastest for so many rows.
bool CudaExec::is_tiled(std::int64_t n, std::span<const Weight* const> weights) const {
  if (!can_tile(weights) || n < kTiledRows) return false;
  return std::all_of(weights.begin(), weights.end(), [&](const Weight* w) {
    return n <= (is_cuda_f8(w->format)                    ? kMostTiledF8Rows
                 : cuda_f16_form(w->format) == kCudaQ8F16 ? kMostTiledQ8Rows
                                                          : kMostTiledRows);
  });
}

void CudaExec::multiply(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                        std::span<const Weight* const> weights, bool y_is_bf16) {
  const bool has_f32 =
      std::any_of(weights.begin(), weights.end(), [](const Weight* w) { return w->format == PackedFormat::kF32; });
  const std::int64_t n = x.rows();
  STILL_CHECK(x.data != norm_.stale);
  if (norm_.is_pending && x.data == norm_.y.data &&
      std::any_of(weights.begin(), weights.end(), [&](const Weight* w) { return !can_take_norm(*w, x); }) &&
      !(options_.reproducible && n_answer_rows_ > 0 && n == 1 &&
        bf16_chain_parts(epilogue, x, products, weights, y_is_bf16, n, false) > 0))
    launch_norm();
  if (options_.reproducible && !has_f32) {
    multiply_reproducibly(epilogue, x, products, weights, y_is_bf16);
    return;
  }
  if (!has_f32 && is_tiled(n, weights)) {
    multiply_in_groups(epilogue, x, products, weights, y_is_bf16, 0, n);
    return;
  }
  if (n <= kCudaBf16ChainRows && can_chain_bf16(weights) &&
      multiply_bf16_chain(epilogue, x, products, weights, y_is_bf16, n, 0))
    return;
  if (has_f32 || n <= kCudaSkinnyRows) {
    multiply_rows(epilogue, x, products, weights, y_is_bf16, false);
    return;
  }
  const bool is_quantized =
      std::all_of(weights.begin(), weights.end(), [](const Weight* w) { return is_cuda_quantized(w->format); });
  // Without tiles: up to so many rows it costs less to read quantised weights for each 16 of them than to make them
  // dense.
  if (gemm_ != nullptr && is_even(weights) && !(is_quantized && n <= kGroupedRows)) {
    multiply_dense(epilogue, x, products, weights, y_is_bf16, 0, n, 0);
    return;
  }
  // Without cuBLASLt: 16 rows at a time, each time all weights.
  multiply_in_groups(epilogue, x, products, weights, y_is_bf16, 0, n);
}

void CudaExec::multiply_in_groups(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                                  std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t begin,
                                  std::int64_t end) {
  const std::int64_t width = x.row_size(), element = x.dtype == DType::kBF16 ? 2 : 4;
  const bool in_tiles = can_tile(weights) && end - begin >= kTiledRows;
  std::int64_t step = kCudaSkinnyRows;
  if (in_tiles) {
    const std::int64_t n_images = dense_elements_ * 2 / cuda_image_bytes(1, width);
    step = (n_images > 1 ? n_images / 2 * 2 : 1) * kCudaTileRows;  // images may be used in pairs
  }
  if (begin == 0 && end <= step && end == x.rows()) {
    multiply_rows(epilogue, x, products, weights, y_is_bf16, in_tiles);
    return;
  }
  for (std::int64_t row = begin; row < end; row += step) {
    const TensorView part{static_cast<std::byte*>(x.data) + row * width * element,
                          x.dtype,
                          {std::min<std::int64_t>(step, end - row), width}};
    CudaProduct moved[kCudaMaxProducts];
    for (std::size_t i = 0; i < products.size(); ++i) {
      moved[i] = products[i];
      moved[i].y = static_cast<std::byte*>(moved[i].y) + row * moved[i].y_stride * (y_is_bf16 ? 2 : 4);
    }
    forget_copies(nullptr);
    multiply_rows(epilogue, part, {moved, products.size()}, weights, y_is_bf16, in_tiles);
  }
  forget_copies(nullptr);
}

// Whether the chain kernel computes these products.
bool CudaExec::can_chain(std::span<const Weight* const> weights) const {
  return has_f8_chains_ && bf16_ != nullptr && std::all_of(weights.begin(), weights.end(), [](const Weight* w) {
           return w->format == kCudaF8Row && w->k % 16 == 0;
         });
}

// y += x of some columns times theirs of the weights, by the chain kernel.
void CudaExec::add_chains(TensorView x, const Weight& w, const CudaProduct& product, Columns columns) {
  CudaLinearArgs args{.format = kCudaF8Row,
                      .epilogue = CudaEpilogue::kAdd,
                      .k = static_cast<std::int32_t>(columns.n),
                      .n_rows = static_cast<std::int32_t>(x.rows()),
                      .x = {.f8 = as_f8(x) + columns.begin, .scale = f8_scale_},
                      .f8_stride = w.k,
                      .f8_scale = reinterpret_cast<const float*>(w.packed + w.n_out * w.k)};
  args.products[0] = product;
  args.products[0].weights = w.packed + columns.begin;
  kernels_->linear_f8(stream_.handle(), args);
}

// The first n rows, by chains over k, one each or (cuda_f8_parts) one for each part: of many by cuBLASLt where its bits
// are those of the kernel.
void CudaExec::multiply_chains(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                               std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n) {
  const TensorView rows{x.data, x.dtype, {n, x.row_size()}};
  forget_copies(nullptr);  // of another number of rows
  // Not by a launch's products but by all that there are at any number of rows.
  const std::int32_t n_parts = products.size() == 1 && epilogue != CudaEpilogue::kSwiglu && !y_is_bf16
                                   ? cuda_f8_parts(weights[0]->n_out, x.row_size())
                                   : 1;
  const auto launch = [&](std::span<const CudaProduct> some) {
    CudaLinearArgs args{.format = kCudaF8Row,
                        .epilogue = epilogue,
                        .n_products = static_cast<std::int32_t>(some.size()),
                        .y_is_bf16 = y_is_bf16,
                        .k = static_cast<std::int32_t>(x.row_size()),
                        .n_rows = static_cast<std::int32_t>(n),
                        .n_f8_parts = n_parts};
    std::copy(some.begin(), some.end(), args.products);
    if (n > 1) {
      args.x = {.f8 = as_f8(rows), .scale = f8_scale_};
    } else if (can_take_norm(*weights[0], x)) {
      args.x.f32 = norm_.x.f32();
      args.norm = norm_.w.f32(), args.eps = norm_.eps;
    } else if (x.dtype == DType::kBF16) {
      args.x.bf16 = static_cast<const std::uint16_t*>(x.data);
    } else {
      args.x.f32 = x.f32();
    }
    kernels_->linear_f8(stream_.handle(), args);
  };
  if (n <= kMostChainRows || gemm_ == nullptr) {
    launch(products);
  } else if (epilogue == CudaEpilogue::kSwiglu) {
    const std::int64_t width = weights[0]->n_out;
    const CudaProduct gate{.weights = products[0].weights, .y = gate_up_, .y_stride = 2 * width},
        up{.weights = products[1].weights, .y = gate_up_ + width, .y_stride = 2 * width};
    if (width % 8 == 0 && gemm_f8(rows, 0, n, *weights[0], gate, true, false, true, {0, x.row_size()}) &&
        gemm_f8(rows, 0, n, *weights[1], up, true, false, true, {0, x.row_size()})) {
      kernels_->swiglu(stream_.handle(), gate_up_, static_cast<std::int32_t>(n), static_cast<std::int32_t>(width),
                       y_is_bf16 ? nullptr : static_cast<float*>(products[0].y),
                       y_is_bf16 ? static_cast<std::uint16_t*>(products[0].y) : nullptr);
    } else {
      launch(products);
    }
  } else {
    const std::int64_t k = x.row_size(), part_k = cuda_f8_part_k(k, n_parts);
    for (std::size_t i = 0; i < products.size(); ++i) {
      if (!gemm_f8(rows, 0, n, *weights[i], products[i], y_is_bf16, epilogue == CudaEpilogue::kAdd, true,
                   {0, std::min(k, part_k)})) {
        launch(products.subspan(i, 1));
        continue;
      }
      // What y holds now cannot be taken back: a part that cuBLASLt does not do is the kernel's alone.
      CudaProduct rest = products[i];
      rest.bias = nullptr;
      for (std::int64_t at = part_k; at < k; at += part_k) {
        const Columns columns{at, std::min(part_k, k - at)};
        if (!gemm_f8(rows, 0, n, *weights[i], rest, y_is_bf16, true, true, columns))
          add_chains(rows, *weights[i], rest, columns);
      }
    }
  }
  if (n < x.rows()) forget_copies(nullptr);
}

// Whether the chain kernel of bf16 weights computes products with these.
bool CudaExec::can_chain_bf16(std::span<const Weight* const> weights) const {
  return has_bf16_chains_ && std::all_of(weights.begin(), weights.end(), [](const Weight* w) {
           return (w->format == PackedFormat::kBF16 || w->format == PackedFormat::kF16) && w->k % 64 == 0;
         });
}

// Into how many parts the chain kernel must cut k to give the first n rows, of answers, the bits that the dense product
// gives them with --reproducible; 0: it cannot, -1: not known yet (may_compare: x is there to find it out).
std::int32_t CudaExec::bf16_chain_parts(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                                        std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n,
                                        bool may_compare) {
  if (n > kCudaBf16ChainRows || gemm_ == nullptr || !is_even(weights) || !can_chain_bf16(weights)) return 0;
  Weight joined;
  CudaProduct product = products[0];
  const bool is_swiglu = epilogue == CudaEpilogue::kSwiglu;
  if (is_swiglu) {
    if (!follows(*weights[0], *weights[1])) return 0;
    joined = *weights[0];
    joined.n_out *= 2;
    product = {.y = gate_up_, .y_stride = joined.n_out};
  } else if (join(products, weights, 0, y_is_bf16 ? 2 : 4, joined) != products.size()) {
    return 0;
  }
  const std::uint16_t* rows = may_compare ? as_bf16(x) : nullptr;
  return gemm_->chain_parts(
      stream_.handle(),
      gemm_args(rows, n, joined, product, is_swiglu || y_is_bf16, epilogue == CudaEpilogue::kAdd, kAnswerRows),
      may_compare);
}

// The first n rows in one launch of the chain kernel, which takes a single row's norm along; n_parts 0: as is fastest.
// False: they are not one product, or not one for that kernel.
bool CudaExec::multiply_bf16_chain(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                                   std::span<const Weight* const> weights, bool y_is_bf16, std::int64_t n,
                                   std::int32_t n_parts) {
  CudaLinearArgs args{.format = PackedFormat::kBF16,
                      .epilogue = epilogue,
                      .n_products = epilogue == CudaEpilogue::kSwiglu ? 2 : 1,
                      .y_is_bf16 = y_is_bf16,
                      .k = static_cast<std::int32_t>(x.row_size()),
                      .n_rows = static_cast<std::int32_t>(n)};
  args.products[0] = products[0];
  if (epilogue == CudaEpilogue::kSwiglu) {
    args.products[1] = products[1];
  } else {
    Weight joined;
    if (join(products, weights, 0, y_is_bf16 ? 2 : 4, joined) != products.size()) return false;
    args.products[0].n_out = static_cast<std::int32_t>(joined.n_out);
  }
  if (n > 1 || x.dtype == DType::kBF16) args.x.bf16 = as_bf16(x);
  if (n == 1 && norm_.is_pending && x.data == norm_.y.data) {
    args.x = {.f32 = norm_.x.f32()};
    args.norm = norm_.w.f32(), args.eps = norm_.eps;
  } else if (args.x.bf16 == nullptr) {
    args.x.f32 = x.f32();
  }
  if (exchange_ != nullptr) args.exchange = *exchange_;
  return kernels_->linear_bf16_chain(stream_.handle(), args, n_parts);
}

// The rows of answers first, then those of prompts, each in one order of sums whatever their number: of floats that of
// the dense product's algorithm for kAnswerRows or kPromptRows rows, up to 16 rows of answers by the chain kernel where
// it gives the same bits; for answers, FP8 with a scale for each row by chains, other FP8 and quantised weights by the
// kernels of few rows, 16 at a time; for prompts the dense product.
void CudaExec::multiply_reproducibly(CudaEpilogue epilogue, TensorView x, std::span<const CudaProduct> products,
                                     std::span<const Weight* const> weights, bool y_is_bf16) {
  constexpr std::int64_t kPromptRows = 4096;
  const std::int64_t n = x.rows(), n_answer = std::min(n, n_answer_rows_);
  const bool is_chained = can_chain(weights);
  if (gemm_ == nullptr || !is_even(weights)) {
    const std::int64_t begin = is_chained ? n_answer : 0;
    if (begin < n) multiply_in_groups(epilogue, x, products, weights, y_is_bf16, begin, n);
    if (is_chained && n_answer > 0) multiply_chains(epilogue, x, products, weights, y_is_bf16, n_answer);
    return;
  }
  const bool has_quantized = std::any_of(weights.begin(), weights.end(), [](const Weight* w) {
    return is_cuda_quantized(w->format) || is_cuda_f8(w->format);
  });
  // Dense first: it reads the copy of all rows in bf16, which the groups overwrite.
  if (n_answer < n) multiply_dense(epilogue, x, products, weights, y_is_bf16, n_answer, n, kPromptRows);
  if (n_answer == 0) return;
  if (is_chained) {
    multiply_chains(epilogue, x, products, weights, y_is_bf16, n_answer);
  } else if (!has_quantized) {
    std::int32_t n_parts = bf16_chain_parts(epilogue, x, products, weights, y_is_bf16, n_answer, false);
    if (n_parts < 0) n_parts = bf16_chain_parts(epilogue, x, products, weights, y_is_bf16, n_answer, true);
    if (n_parts > 0 && multiply_bf16_chain(epilogue, x, products, weights, y_is_bf16, n_answer, n_parts)) return;
    if (norm_.is_pending && x.data == norm_.y.data) launch_norm();
    multiply_dense(epilogue, x, products, weights, y_is_bf16, 0, n_answer, kAnswerRows);
  } else {
    multiply_in_groups(epilogue, x, products, weights, y_is_bf16, 0, n_answer);
  }
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
  CudaProduct product{
      .weights = w.packed, .n_out = static_cast<std::int32_t>(w.n_out), .y = y.data, .y_stride = y.stride()};
  const Weight* weight = &w;
  if (!w.is_part) {
    multiply(CudaEpilogue::kAdd, x, {&product, 1}, {&weight, 1}, false);
  } else {
    add_parts();
    const std::int64_t n = y.rows() * w.n_out;
    if (float* part = comm_->part(n); part != nullptr) {
      product.y = part;
      const bool is_bf16 = comm_->takes_bf16_parts() && w.format != PackedFormat::kF32;
      // One row has a kernel of its own, which sends it.
      const bool is_sent =
          y.rows() == 1 && w.format != PackedFormat::kF32 && !options_.reproducible && comm_->exchange() != nullptr;
      if (is_sent) exchange_ = comm_->exchange();
      multiply(CudaEpilogue::kStore, x, {&product, 1}, {&weight, 1}, is_bf16);
      exchange_ = nullptr;
      sum_ = {y.f32(), y.rows(), w.n_out, false,
              is_sent   ? PartKind::kSent
              : is_bf16 ? PartKind::kBF16
                        : PartKind::kF32};
    } else {
      // The residual stream counts once in the sum.
      multiply(comm_->rank() == 0 ? CudaEpilogue::kAdd : CudaEpilogue::kStore, x, {&product, 1}, {&weight, 1}, false);
      comm_->sum_in_place(stream_.handle(), y.f32(), n);
    }
  }
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
          .head_dim = head.head_dim,
          .type = head.type,
          .k_scale_offset = head.k_scale_offset,
          .v_scale_offset = head.v_scale_offset};
}

Status CudaExec::upload_rope(const RopeTable& rope) {
  const std::int64_t n = rope.max_seq_len() * rope.config().n_rot / 2;
  DeviceBuffer& table = rope_tables_[&rope];
  if (table.data() != nullptr) return ok();
  STILL_TRY(table, DeviceBuffer::create(RopeTable::bytes(rope.config(), rope.max_seq_len()), "rotary table"));
  stream_.copy_to_device(table.data(), rope.cos(0), n * 4);
  stream_.copy_to_device(table.data() + n * 4, rope.sin(0), n * 4);
  return ok();
}

void CudaExec::rope_kv_write(TensorView q, TensorView k, TensorView v, std::int64_t n_heads, const RopeTable& rope,
                             const KvCache& cache, std::int32_t layer) {
  const std::int64_t half = rope.config().n_rot / 2, n = rope.max_seq_len() * half;
  STILL_CHECK(upload_rope(rope));
  const DeviceBuffer& table = rope_tables_[&rope];
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
  is_rope_pending_ =
      is_q_raw_ && batch_.n_tiles == 0 && batch_.n_decodes <= kFusedRopeDecodes && rope_.kv.type == KvType::kF16;
  if (is_rope_pending_) return;
  CudaRopeKvArgs now = rope_;
  if (is_q_raw_) now.n_heads = 0;
  kernels_->rope_kv_write(stream_.handle(), now);
}

void CudaExec::attention(TensorView out, TensorView q, const KvCache& cache, std::int32_t layer, std::int64_t n_heads,
                         float scale, std::int64_t window) {
  const bool is_bf16 = out.dtype == DType::kBF16;
  // No more parts than blocks that run at once: many sequences fill the multiprocessors without. Where an answer must
  // not depend on the others, always the same, but several of them in a block.
  const std::int64_t longest = std::max(batch_.max_decode_len, 1);
  const std::int64_t n_wanted = std::max<std::int64_t>(
      1, kDecodeBlocks / (std::max(batch_.n_decodes, 1) * std::int64_t{cache.geometry().n_kv_heads}));
  const std::int64_t split = options_.reproducible || ceil_div(longest, split_) <= n_wanted
                                 ? split_
                                 : ceil_div(ceil_div(longest, n_wanted), 128) * 128;
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
                                         .parts_per_block = static_cast<std::int32_t>(
                                             options_.reproducible ? ceil_div(ceil_div(longest, split), n_wanted) : 1),
                                         .partials = partials_,
                                         .arrivals = arrivals_,
                                         .max_parts = static_cast<std::int32_t>(max_parts_),
                                         .is_q_raw = is_q_raw_,
                                         .is_rope_fused = is_rope_pending_,
                                         .rope = rope_});
  is_q_raw_ = is_rope_pending_ = false;
  forget_copies(out.data);
}

void CudaExec::take_wanted(TensorView y, TensorView x) {
  STILL_CHECK(y.rows() == batch_.n_rows && y.dtype == x.dtype);
  kernels_->gather(stream_.handle(), x.data, x.row_size() * (x.dtype == DType::kBF16 ? 2 : 4), batch_.rows,
                   batch_.n_rows, y.data);
  forget_copies(nullptr);
  n_answer_rows_ = n_answer_wanted_;
}

void CudaExec::logits(TensorView y, TensorView x, bool is_taken, const Weight& head, TensorView gathered) {
  const std::int64_t n_rows = y.rows(), width = x.row_size();
  // All rows, in order: a step of decodes.
  const bool is_all = is_taken || (batch_.n_rows == batch_.n_tokens && batch_.n_decodes == batch_.n_tokens);
  if (!is_all) {
    if (norm_.is_pending && x.data == norm_.y.data) launch_norm();
    kernels_->gather(stream_.handle(), x.data, width * (x.dtype == DType::kBF16 ? 2 : 4), batch_.rows,
                     static_cast<std::int32_t>(n_rows), gathered.data);
    forget_copies(nullptr);
  }
  const TensorView input{is_all ? x.data : gathered.data, x.dtype, {n_rows, width}};
  if (head.n_out != y.row_size()) {  // the rank has some rows of the head
    const LinearOutput part{.y = {comm_->columns(), DType::kF32, {n_rows, head.n_out}}, .w = &head, .bias = {}};
    linear(input, {&part, 1});
    comm_->gather_columns(stream_.handle(), y.f32(), n_rows);
    return;
  }
  const LinearOutput output{.y = y, .w = &head, .bias = {}};
  const std::int64_t n_answer_rows = n_answer_rows_;
  n_answer_rows_ = n_rows;  // whoever asks for logits, a prompt's last token or an answer's: by one kernel
  linear(input, {&output, 1});
  n_answer_rows_ = n_answer_rows;
}

void CudaExec::stage_draws(std::span<const CudaSampleRow> rows) {
  STILL_CHECK(static_cast<std::int64_t>(rows.size()) <= options_.max_rows);
  draws_.assign(rows.begin(), rows.end());
}

Status CudaExec::draw(const float* logits) {
  Stage& stage = stages_[(n_steps_ - 1) % 2];
  stage.is_drawn = true;
  if (!draws_.empty())
    kernels_->sample(stream_.handle(), {.logits = logits,
                                        .vocab_size = static_cast<std::int32_t>(options_.vocab_size),
                                        .rows = draw_rows_,
                                        .n = static_cast<std::int32_t>(draws_.size()),
                                        .n_cut = n_cut(draws_),
                                        .scratch = sample_scratch_,
                                        .ids = sampled_,
                                        .host_ids = stage.ids});
  draws_.clear();
  if (options_.measure_idle) ends_[(n_steps_ - 1) % kTimes].record(stream_);
  stage.done.record(stream_);
  return check_cuda("launching a step");
}

Result<std::span<const TokenId>> CudaExec::collect() {
  STILL_CHECK(n_collected_ < n_steps_);
  Stage& stage = stages_[n_collected_ % 2];
  STILL_TRY_STATUS(stage.done.wait("the GPU's step"));
  if (options_.measure_idle) {
    const std::int64_t i = n_collected_ % kTimes, before = (n_collected_ + kTimes - 1) % kTimes;
    busy_seconds_ += ends_[i].seconds_since(begins_[i]);
    if (follows_at_once_[i]) idle_seconds_ += begins_[i].seconds_since(ends_[before]);
  }
  last_collected_ = std::chrono::steady_clock::now();
  ++n_collected_;
  return std::span<const TokenId>(stage.ids, static_cast<std::size_t>(stage.n_draws));
}

void CudaExec::abandon() {
  (void)wait("the GPU's step");
  n_collected_ = n_steps_;
  for (Stage& stage : stages_) stage.is_used = false;
  draws_.clear();
}

Result<std::span<const TokenId>> CudaExec::sample(const float* logits, std::span<const CudaSampleRow> rows) {
  const auto n = static_cast<std::int64_t>(rows.size());
  STILL_CHECK(n <= options_.max_rows);
  std::copy(rows.begin(), rows.end(), sample_rows_host_);
  stream_.copy_to_device(sample_rows_, sample_rows_host_, n * static_cast<std::int64_t>(sizeof(CudaSampleRow)));
  // The scratch is laid out for the most rows, so that its counters stay where they are.
  kernels_->sample(stream_.handle(), {.logits = logits,
                                      .vocab_size = static_cast<std::int32_t>(options_.vocab_size),
                                      .rows = sample_rows_,
                                      .n = static_cast<std::int32_t>(n),
                                      .n_cut = n_cut(rows),
                                      .scratch = sample_scratch_,
                                      .ids = sampled_});
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

// One parallel region per call: quantise the activations and, for many tokens, put them into the order that the kernel
// reads (each thread a share, then a barrier), then each thread takes a contiguous range of panels, equal in bytes
// over all matrices of the group, helps the slower ones at its end, and finishes its slices of the output (bias, sum,
// SwiGLU) while they are in its cache. On several NUMA nodes each matrix is first parted among them, as the loader did
// when it placed the weights. Who computes a panel does not change a bit of it.
#include "ops/linear.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/packing.h"
#include "ops/comm.h"
#include "ops/cuda_exec.h"

namespace still {

namespace {
// Below this many bytes of weights (times tokens) threads are not woken: about 5 us of one core.
constexpr std::int64_t kInlineBytes = 64 * 1024;
// Activations up to this many elements are quantised by the caller before the region.
constexpr std::int64_t kInlineQuantize = 16 * 1024;
// Shares are counted in units of this many panels: more, and the last unit of long panels (100 to 200 KB) lets the
// other threads wait; fewer, and kernels that read panels of one token side by side could not. What a thread takes at
// once is at least kLeastBytes of weights, 6 to 10 us of one core, and for more than a few tokens kLeastUnits: the
// kernel regroups their activations each time, but where it is told that they are the last call's (same_x).
constexpr std::int64_t kUnitPanels = 2, kLeastBytes = 96 * 1024, kLeastUnits = 8, kFewTokens = 4;
// Second operands of the epilogues lie behind the kernel's part of a thread's scratch.
constexpr std::int64_t kTempFloats = (kAttentionScratchBytes - kLinearScratchBytes) / 4;
constexpr std::int64_t kMaxRows = 4096;  // tokens of one kernel call
static_assert(kMaxRows % kRegroupedPass == 0);
static_assert(kTempFloats / kMaxRows >= kPanelRows);
// Floats of an output slice that should stay in a core's second-level cache until its epilogue.
constexpr std::int64_t kSliceFloats = 64 * 1024;

enum class Epilogue { kStore, kAdd, kSwiglu };

// y = epilogue(W x); `up` is the second matrix of SwiGLU.
struct Product {
  float* y;
  const Weight* w;
  const Weight* up;
  const float* bias;

  std::int64_t n_panels() const { return (w->n_out + kPanelRows - 1) / kPanelRows; }
  std::int64_t panel_bytes() const { return w->panel_bytes + (up != nullptr ? up->panel_bytes : 0); }
};

// A thread in a region, and what its last call of a kernel left in its scratch.
struct Worker {
  int thread_idx;
  int format = -1;  // of the kernel
  std::int64_t row = 0;
};

class LinearCall {
 public:
  LinearCall(Exec& exec, TensorView x, Epilogue epilogue)
      : exec_(exec), x_(x.f32()), n_tokens_(x.rows()), k_(x.row_size()), epilogue_(epilogue) {}

  // Products follow one another; `each` calls its argument with every Product.
  template <class Each>
  void run(Each&& each) {
    std::int64_t total_bytes = 0, largest_panel = 1;
    bool need[2] = {false, false};  // activations in blocks of 32, of 256
    each([&](const Product& product) {
      total_bytes += product.n_panels() * product.panel_bytes();
      largest_panel = std::max(largest_panel, product.panel_bytes());
      for (const Weight* w : {product.w, product.up}) {
        if (w == nullptr) continue;
        STILL_DCHECK(w->k == k_ && w->panel_bytes == packed_panel_bytes(w->format, k_));
        const std::int32_t block = activation_block(w->format);
        if (block != 0) need[block == 32 ? 0 : 1] = true;
        plan_regrouping(w->format);
      }
    });
    STILL_DCHECK(!(need[0] || need[1]) || (n_tokens_ <= exec_.options().max_tokens && k_ <= exec_.options().max_k));
    const bool inline_only = total_bytes * n_tokens_ < kInlineBytes;
    const std::int64_t n_threads = inline_only ? 1 : exec_.n_threads();
    const bool share_quantize = n_threads > 1 && (need[0] || need[1]) && n_tokens_ * k_ > kInlineQuantize;
    if (!share_quantize) quantize(need, 0, 1);
    if (n_threads == 1) {
      Worker worker{0};
      each([&](const Product& product) { multiply(product, 0, product.n_panels(), worker); });
      return;
    }
    const ThreadPool& threads = exec_.threads();
    WorkShares& shares = exec_.work_shares();
    for (int node = 0; node < threads.n_nodes(); ++node) {
      const auto [first, last] = threads.node_threads(node);
      std::int64_t begin = 0;
      for (int i = first; i < last; ++i) {
        const std::int64_t end = units_until(each, node, i + 1 - first, last - first);
        shares.set(i, begin, end);
        begin = end;
      }
    }
    const std::int64_t least =
        n_tokens_ > kFewTokens ? kLeastUnits : std::max<std::int64_t>(1, kLeastBytes / (kUnitPanels * largest_panel));
    exec_.threads().run([&](int thread_idx) {
      if (share_quantize) {
        quantize(need, thread_idx, n_threads);
        exec_.threads().barrier();
      }
      Worker worker{thread_idx};
      const int node = threads.node_of(thread_idx);
      const auto [first, last] = threads.node_threads(node);
      for (;;) {
        const auto units = shares.take(thread_idx, first, last, least);
        if (units.first == units.second) return;
        multiply_units(each, node, units, worker);
      }
    });
  }

 private:
  // The node's part of a matrix.
  std::pair<std::int64_t, std::int64_t> part(const Product& product, int node) const {
    return exec_.threads().node_share(product.n_panels(), node);
  }

  // Units of the node's parts, one after the other, up to the share_idx-th of n_shares of their bytes.
  template <class Each>
  std::int64_t units_until(const Each& each, int node, std::int64_t share_idx, std::int64_t n_shares) const {
    std::int64_t bytes = 0;
    each([&](const Product& product) {
      const auto [first, last] = part(product, node);
      bytes += (last - first) * product.panel_bytes();
    });
    std::int64_t left = bytes * share_idx / n_shares, n_units = 0;
    each([&](const Product& product) {
      const auto [first, last] = part(product, node);
      const std::int64_t n_panels = std::min(last - first, (left + product.panel_bytes() - 1) / product.panel_bytes());
      n_units += (n_panels + kUnitPanels - 1) / kUnitPanels;
      left -= std::min(left, (last - first) * product.panel_bytes());
    });
    return n_units;
  }

  template <class Each>
  void multiply_units(const Each& each, int node, std::pair<std::int64_t, std::int64_t> units, Worker& worker) {
    std::int64_t offset = 0;
    each([&](const Product& product) {
      const auto [first, last] = part(product, node);
      const std::int64_t n_units = (last - first + kUnitPanels - 1) / kUnitPanels;
      const std::int64_t begin = std::clamp<std::int64_t>(units.first - offset, 0, n_units);
      const std::int64_t end = std::clamp<std::int64_t>(units.second - offset, 0, n_units);
      if (begin < end)
        multiply(product, first + begin * kUnitPanels, std::min(first + end * kUnitPanels, last), worker);
      offset += n_units;
    });
  }

  // Activations regrouped for the kernels of one or more formats.
  struct Regrouped {
    const Regrouping* how;
    std::int32_t* rows;
  };

  // The kernel of a format will have them, while there is room for all that this call wants.
  void plan_regrouping(PackedFormat format) {
    const Regrouping* how = exec_.kernels().regrouping[static_cast<int>(format)];
    if (how == nullptr || n_tokens_ < kRegroupFrom || find_regrouped(format) != nullptr) return;
    const std::int64_t bytes =
        (n_tokens_ + kRegroupedRows - 1) / kRegroupedRows * kRegroupedRows * regrouped_row_bytes(*how);
    const std::int64_t room = most_regrouped_bytes(exec_.options().max_tokens, exec_.options().max_k);
    if (n_regrouped_ == kMostRegrouped || regrouped_bytes_ + bytes > room) return;
    regrouped_[n_regrouped_++] = {how, exec_.regrouped() + regrouped_bytes_ / 4};
    regrouped_bytes_ += (bytes + 63) / 64 * 64;
  }
  std::int64_t regrouped_row_bytes(const Regrouping& how) const { return k_ / how.block * how.block_bytes; }
  const Regrouped* find_regrouped(PackedFormat format) const {
    for (int i = 0; i < n_regrouped_; ++i)
      if (regrouped_[i].how == exec_.kernels().regrouping[static_cast<int>(format)]) return &regrouped_[i];
    return nullptr;
  }

  void quantize(const bool (&need)[2], std::int64_t thread_idx, std::int64_t n_threads) {
    if (n_regrouped_ == 0) return quantize_blocks(need, thread_idx, n_threads);
    // The thread's share of all rows; those that are regrouped together, at once.
    const std::int64_t n_groups = (n_tokens_ + kRegroupedRows - 1) / kRegroupedRows;
    const std::int64_t last = n_groups * (thread_idx + 1) / n_threads;
    for (std::int64_t group = n_groups * thread_idx / n_threads; group < last; ++group) {
      const std::int64_t row = group * kRegroupedRows, end = std::min(row + kRegroupedRows, n_tokens_);
      for (const std::int32_t block : {32, 256}) {
        if (!need[block == 32 ? 0 : 1]) continue;
        const ActivationBuffers& buffers = exec_.activations(block);
        exec_.kernels().quantize_rows(x_ + row * k_, k_, end - row, k_, block, buffers.q + row * k_,
                                      buffers.scale + row * (k_ / block), buffers.sums + row * (k_ / 16));
      }
      for (int i = 0; i < n_regrouped_; ++i) {
        const Regrouping& how = *regrouped_[i].how;
        const ActivationBuffers& buffers = exec_.activations(how.block);
        how.write({.x = {buffers.q, buffers.scale, buffers.sums, k_, how.block},
                   .n_rows = n_tokens_,
                   .row_begin = row,
                   .row_end = end,
                   .out = regrouped_[i].rows});
      }
    }
  }

  // The thread's share of all blocks, rows one after the other.
  void quantize_blocks(const bool (&need)[2], std::int64_t thread_idx, std::int64_t n_threads) {
    for (const std::int32_t block : {32, 256}) {
      if (!need[block == 32 ? 0 : 1]) continue;
      STILL_DCHECK(k_ % block == 0);
      const ActivationBuffers& buffers = exec_.activations(block);
      const std::int64_t row_blocks = k_ / block, n_blocks = n_tokens_ * row_blocks;
      const std::int64_t end = n_blocks * (thread_idx + 1) / n_threads;
      for (std::int64_t at = n_blocks * thread_idx / n_threads; at < end;) {
        // Whole rows in one call, parts of a row each in their own.
        const bool at_row_start = at % row_blocks == 0;
        const std::int64_t n_rows = at_row_start ? std::max<std::int64_t>(1, (end - at) / row_blocks) : 1;
        const std::int64_t width = std::min(row_blocks - at % row_blocks, end - at);
        exec_.kernels().quantize_rows(x_ + at * block, k_, n_rows, width * block, block, buffers.q + at * block,
                                      buffers.scale + at, buffers.sums + at * block / 16);
        at += n_rows * width;
      }
    }
  }

  void multiply(const Product& product, std::int64_t panel_begin, std::int64_t panel_end, Worker& worker) {
    const std::int64_t y_stride = product.w->n_out;
    auto* temp = reinterpret_cast<float*>(exec_.thread_scratch(worker.thread_idx) + kLinearScratchBytes);
    const bool plain = epilogue_ == Epilogue::kStore && product.bias == nullptr;
    for (std::int64_t row = 0; row < n_tokens_; row += kMaxRows) {
      const std::int64_t n_rows = std::min(kMaxRows, n_tokens_ - row);
      const std::int64_t most_panels = plain ? panel_end - panel_begin : slice_panels(n_rows);
      for (std::int64_t p = panel_begin; p < panel_end; p += most_panels) {
        const std::int64_t end = std::min(p + most_panels, panel_end);
        const std::int64_t first = p * kPanelRows, width = std::min(end * kPanelRows, y_stride) - first;
        float* y = product.y + row * y_stride + first;
        if (epilogue_ == Epilogue::kAdd) {
          call_kernel(*product.w, p, end, row, n_rows, temp, width, worker);
          for (std::int64_t r = 0; r < n_rows; ++r) exec_.kernels().add(y + r * y_stride, temp + r * width, width);
          continue;
        }
        call_kernel(*product.w, p, end, row, n_rows, y, y_stride, worker);
        if (epilogue_ == Epilogue::kSwiglu) {
          call_kernel(*product.up, p, end, row, n_rows, temp, width, worker);
          for (std::int64_t r = 0; r < n_rows; ++r)
            exec_.kernels().swiglu(y + r * y_stride, temp + r * width, y + r * y_stride, width);
        } else if (product.bias != nullptr) {
          for (std::int64_t r = 0; r < n_rows; ++r) exec_.kernels().add(y + r * y_stride, product.bias + first, width);
        }
      }
    }
  }

  static std::int64_t slice_panels(std::int64_t n_rows) {
    return std::max<std::int64_t>(
        1, std::min(kTempFloats, n_rows == 1 ? kTempFloats : kSliceFloats) / n_rows / kPanelRows);
  }

  // Panels [begin, end) for tokens [row, row + n_rows); their first element goes to y[0].
  void call_kernel(const Weight& w, std::int64_t begin, std::int64_t end, std::int64_t row, std::int64_t n_rows,
                   float* y, std::int64_t y_stride, Worker& worker) {
    LinearArgs args{.weights = w.packed,
                    .panel_bytes = w.panel_bytes,
                    .panel_begin = begin,
                    .panel_end = end,
                    .n_out = w.n_out,
                    .k = k_,
                    .x = {},
                    .x_f32 = x_ + row * k_,
                    .x_stride = k_,
                    .n_rows = n_rows,
                    // The kernel adds the element's index in the whole matrix.
                    .y = y - begin * kPanelRows,
                    .y_stride = y_stride,
                    .scratch = exec_.thread_scratch(worker.thread_idx),
                    .same_x = worker.format == static_cast<int>(w.format) && worker.row == row};
    worker.format = static_cast<int>(w.format);
    worker.row = row;
    if (const std::int32_t block = activation_block(w.format); block != 0) {
      const ActivationBuffers& buffers = exec_.activations(block);
      args.x = {buffers.q + row * k_, buffers.scale + row * (k_ / block), buffers.sums + row * (k_ / 16), k_, block};
      if (const Regrouped* regrouped = find_regrouped(w.format); regrouped != nullptr)
        args.regrouped = regrouped->rows + row * regrouped_row_bytes(*regrouped->how) / 4;
    }
    exec_.kernels().linear[static_cast<int>(w.format)](args);
  }

  Exec& exec_;
  const float* x_;
  std::int64_t n_tokens_, k_;
  Epilogue epilogue_;
  static constexpr int kMostRegrouped = 4;
  Regrouped regrouped_[kMostRegrouped];
  int n_regrouped_ = 0;
  std::int64_t regrouped_bytes_ = 0;
};
}  // namespace

void linear(Exec& exec, TensorView x, std::span<const LinearOutput> outputs) {
  if (x.rows() == 0) return;
  if (exec.cuda() != nullptr) return exec.cuda()->linear(x, outputs);
  LinearCall(exec, x, Epilogue::kStore).run([&](auto&& take) {
    for (const LinearOutput& output : outputs) {
      STILL_DCHECK(output.y.rows() == x.rows() && output.y.row_size() == output.w->n_out);
      STILL_DCHECK(!output.bias || output.bias.shape.n_elements() == output.w->n_out);
      take(Product{output.y.f32(), output.w, nullptr, output.bias ? output.bias.f32() : nullptr});
    }
  });
}

void linear_add(Exec& exec, TensorView y, TensorView x, const Weight& w) {
  STILL_DCHECK(y.rows() == x.rows() && y.row_size() == (x.rows() == 0 ? 0 : w.n_out));
  if (x.rows() == 0) return;
  if (exec.cuda() != nullptr) return exec.cuda()->linear_add(y, x, w);
  if (w.is_part) {
    Comm& comm = *exec.comm();
    const TensorView part{comm.part(y.rows() * w.n_out), DType::kF32, y.shape};
    linear(exec, x, {{part, &w, {}}});
    comm.add_parts(nullptr, y.f32(), y.rows(), w.n_out, false, PartKind::kF32);
    return;
  }
  LinearCall(exec, x, Epilogue::kAdd).run([&](auto&& take) { take(Product{y.f32(), &w, nullptr, nullptr}); });
}

void linear_swiglu(Exec& exec, TensorView y, TensorView x, const Weight& gate, const Weight& up) {
  if (x.rows() == 0) return;
  STILL_DCHECK(gate.n_out == up.n_out && y.rows() == x.rows() && y.row_size() == gate.n_out);
  if (exec.cuda() != nullptr) return exec.cuda()->linear_swiglu(y, x, gate, up);
  LinearCall(exec, x, Epilogue::kSwiglu).run([&](auto&& take) { take(Product{y.f32(), &gate, &up, nullptr}); });
}

}  // namespace still

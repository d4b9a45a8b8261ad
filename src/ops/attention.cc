// Work is cut into pieces that any thread may take: (sequence, KV head, some queries) of a prefill, (sequence, KV head,
// some segments) of a decode over a long context. A segment's result and the order of folding are fixed
// (docs/arithmetic.md), so the cut changes no bit.
#include "ops/attention.h"

#include <algorithm>
#include <atomic>

#include "base/check.h"
#include "ops/cuda_exec.h"
#include "ops/parallel.h"

namespace still {

void rope_kv_write(Exec& exec, TensorView q, TensorView k, TensorView v, std::int64_t n_heads, const RopeTable& table,
                   KvCache& cache, std::int32_t layer, const RaggedBatch& batch) {
  if (exec.cuda() != nullptr) return exec.cuda()->rope_kv_write(q, k, v, n_heads, table, cache, layer);
  rope(exec, q, n_heads, table, batch.positions);
  rope(exec, k, cache.geometry().n_kv_heads, table, batch.positions);
  kv_write(exec, cache, layer, k, v, batch);
}

void kv_write(Exec& exec, KvCache& cache, std::int32_t layer, TensorView k, TensorView v, const RaggedBatch& batch) {
  const KvGeometry& geometry = cache.geometry();
  const std::int64_t head_dim = geometry.head_dim, row_size = geometry.n_kv_heads * head_dim;
  const std::int64_t n_tokens = batch.n_tokens();
  if (n_tokens == 0) return;
  STILL_DCHECK(k.rows() == n_tokens && k.row_size() == row_size && v.shape == k.shape);
  // Head by head: a thread's writes stay in its own heads' memory where there are enough of them.
  parallel_rows(exec, geometry.n_kv_heads * n_tokens, 2 * head_dim, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t seq = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const auto kv_head = static_cast<std::int32_t>(i / n_tokens);
      const std::int64_t token = i % n_tokens;
      if (token == 0) seq = 0;
      while (batch.q_start[static_cast<std::size_t>(seq + 1)] <= token) ++seq;
      const std::int64_t pos = batch.positions[static_cast<std::size_t>(token)];
      const std::int64_t at = token * row_size + kv_head * head_dim;
      exec.kernels().kv_write(cache.head(layer, kv_head, batch.block_table(seq)), pos, k.f32() + at, v.f32() + at);
    }
  });
}

namespace {
constexpr std::int64_t kQueriesPerTask = 32;
// Multiply-adds below which the caller does everything itself: about 5 us.
constexpr std::int64_t kInlineWork = 128 * 1024;

class AttentionCall {
 public:
  AttentionCall(Exec& exec, const float* q, float* out, const KvCache& cache, std::int32_t layer,
                const RaggedBatch& batch, std::int64_t n_heads, float scale, std::int64_t window)
      : exec_(exec),
        q_(q),
        out_(out),
        cache_(cache),
        layer_(layer),
        batch_(batch),
        n_heads_(n_heads),
        scale_(scale),
        window_(window),
        n_kv_heads_(cache.geometry().n_kv_heads),
        head_dim_(cache.geometry().head_dim),
        group_(n_heads / n_kv_heads_) {}

  void run() {
    list_tasks();
    auto& tasks = exec_.attention_tasks();
    const auto& merges = exec_.attention_merges();
    std::int64_t total = 0;
    for (const AttentionTask& task : tasks) total += task.cost;
    if (exec_.n_threads() == 1 || tasks.size() == 1 || total < kInlineWork) {
      for (const AttentionTask& task : tasks) attend(task, 0);
      for (const AttentionTask& merge : merges) fold(merge);
      return;
    }
    // Dearest first, so that the threads end together.
    std::sort(tasks.begin(), tasks.end(),
              [](const AttentionTask& a, const AttentionTask& b) { return a.cost > b.cost; });
    std::atomic<std::size_t> next{0};
    exec_.threads().run([&](int thread_idx) {
      for (std::size_t i = next.fetch_add(1); i < tasks.size(); i = next.fetch_add(1)) attend(tasks[i], thread_idx);
      if (merges.empty()) return;
      exec_.threads().barrier();
      for (std::size_t i = static_cast<std::size_t>(thread_idx); i < merges.size();
           i += static_cast<std::size_t>(exec_.n_threads()))
        fold(merges[i]);
    });
  }

 private:
  std::int64_t q_start(std::int64_t seq) const { return batch_.q_start[static_cast<std::size_t>(seq)]; }
  std::int64_t q_len(std::int64_t seq) const { return q_start(seq + 1) - q_start(seq); }
  std::int64_t kv_len(std::int64_t seq) const { return batch_.kv_len[static_cast<std::size_t>(seq)]; }
  std::int64_t position(std::int64_t seq, std::int64_t query) const { return kv_len(seq) - q_len(seq) + query; }
  std::int64_t first_visible(std::int64_t pos) const {
    return window_ > 0 ? std::max<std::int64_t>(0, pos + 1 - window_) : 0;
  }
  // Multiply-adds of the queries [begin, begin + n) of one KV head.
  std::int64_t cost(std::int64_t seq, std::int64_t begin, std::int64_t n) const {
    const std::int64_t last = position(seq, begin + n - 1);
    return n * group_ * (last + 1 - first_visible(last)) * 2 * head_dim_;
  }

  void list_tasks() {
    auto& tasks = exec_.attention_tasks();
    auto& merges = exec_.attention_merges();
    tasks.clear();
    merges.clear();
    std::int64_t total = 0;
    for (std::int64_t seq = 0; seq < batch_.n_seqs(); ++seq)
      if (q_len(seq) > 0) total += n_kv_heads_ * cost(seq, 0, q_len(seq));
    // Pieces no larger than this, so that no thread waits long for the last one.
    const std::int64_t piece = std::max<std::int64_t>(total / (4 * exec_.n_threads()), 1);
    std::int64_t n_parts = 0;
    for (std::int64_t seq = 0; seq < batch_.n_seqs(); ++seq) {
      if (q_len(seq) == 0) continue;
      for (std::int64_t kv_head = 0; kv_head < n_kv_heads_; ++kv_head) {
        if (q_len(seq) == 1) {
          list_decode(seq, kv_head, piece, n_parts);
        } else {
          list_prefill(seq, kv_head, piece);
        }
      }
    }
  }

  void list_prefill(std::int64_t seq, std::int64_t kv_head, std::int64_t piece) {
    const std::int64_t affordable = piece / std::max<std::int64_t>(1, cost(seq, 0, q_len(seq)) / q_len(seq));
    const std::int64_t step = std::clamp<std::int64_t>(affordable, 8, kQueriesPerTask);
    for (std::int64_t begin = 0; begin < q_len(seq); begin += step) {
      const std::int64_t n = std::min(step, q_len(seq) - begin);
      exec_.attention_tasks().push_back({seq, kv_head, begin, n, 0, 0, -1, cost(seq, begin, n)});
    }
  }

  void list_decode(std::int64_t seq, std::int64_t kv_head, std::int64_t piece, std::int64_t& n_parts) {
    auto& tasks = exec_.attention_tasks();
    const std::int64_t pos = position(seq, 0);
    const std::int64_t begin = first_visible(pos) / kKvSegment, end = pos / kKvSegment + 1;
    const std::int64_t work = cost(seq, 0, 1);
    const std::int64_t segment_work = group_ * kKvSegment * 2 * head_dim_;
    const std::int64_t step = std::max<std::int64_t>(1, piece / segment_work);
    const std::int64_t parts = (end - begin) * group_;
    if (exec_.n_threads() == 1 || end - begin <= step || n_parts + parts > exec_.options().max_attention_parts) {
      tasks.push_back({seq, kv_head, 0, 1, 0, 0, -1, work});
      return;
    }
    for (std::int64_t at = begin; at < end; at += step) {
      const std::int64_t n = std::min(step, end - at);
      tasks.push_back({seq, kv_head, 0, 1, at, at + n, n_parts + (at - begin) * group_, n * segment_work});
    }
    exec_.attention_merges().push_back({seq, kv_head, 0, 1, begin, end, n_parts, 0});
    n_parts += parts;
  }

  // Partials lie as [max_attention_parts] m, then l, then [max_attention_parts][head_dim] o.
  float* part_m(std::int64_t part) { return exec_.attention_partials() + part; }
  float* part_l(std::int64_t part) { return part_m(part) + exec_.options().max_attention_parts; }
  float* part_o(std::int64_t part) {
    return exec_.attention_partials() + 2 * exec_.options().max_attention_parts + part * head_dim_;
  }
  std::int64_t element(const AttentionTask& task) const {
    return (q_start(task.seq) + task.q_begin) * n_heads_ * head_dim_ + task.kv_head * group_ * head_dim_;
  }

  void attend(const AttentionTask& task, int thread_idx) {
    AttentionArgs args{.kv = cache_.head(layer_, static_cast<std::int32_t>(task.kv_head), batch_.block_table(task.seq)),
                       .q = q_ + element(task),
                       .q_stride = n_heads_ * head_dim_,
                       .group = static_cast<std::int32_t>(group_),
                       .n_q = task.n_q,
                       .q_pos = position(task.seq, task.q_begin),
                       .kv_begin = 0,
                       .kv_end = 0,
                       .window = window_,
                       .scale = scale_,
                       .out = out_ + element(task),
                       .out_stride = n_heads_ * head_dim_,
                       .m = nullptr,
                       .l = nullptr,
                       .finish = true,
                       .scratch = exec_.thread_scratch(thread_idx)};
    if (task.first_part < 0) {
      args.kv_begin = first_visible(args.q_pos) / kKvSegment * kKvSegment;
      args.kv_end = args.q_pos + task.n_q;
      exec_.kernels().attention(args);
      return;
    }
    args.finish = false;
    args.out_stride = group_ * head_dim_;
    for (std::int64_t segment = task.segment_begin; segment < task.segment_end; ++segment) {
      const std::int64_t part = task.first_part + (segment - task.segment_begin) * group_;
      args.kv_begin = segment * kKvSegment;
      args.kv_end = std::min(args.kv_begin + kKvSegment, args.q_pos + 1);
      args.out = part_o(part);
      args.m = part_m(part);
      args.l = part_l(part);
      exec_.kernels().attention(args);
    }
  }

  void fold(const AttentionTask& merge) {
    exec_.kernels().attention_merge({.n_parts = merge.segment_end - merge.segment_begin,
                                     .m = part_m(merge.first_part),
                                     .l = part_l(merge.first_part),
                                     .o = part_o(merge.first_part),
                                     .n_heads = group_,
                                     .head_dim = static_cast<std::int32_t>(head_dim_),
                                     .out = out_ + element(merge)});
  }

  Exec& exec_;
  const float* q_;
  float* out_;
  const KvCache& cache_;
  std::int32_t layer_;
  const RaggedBatch& batch_;
  std::int64_t n_heads_;
  float scale_;
  std::int64_t window_, n_kv_heads_, head_dim_, group_;
};
}  // namespace

void attention(Exec& exec, TensorView out, TensorView q, const KvCache& cache, std::int32_t layer,
               const RaggedBatch& batch, std::int64_t n_heads, float scale, std::int64_t window) {
  if (batch.n_tokens() == 0) return;
  const KvGeometry& geometry = cache.geometry();
  STILL_DCHECK(q.rows() == batch.n_tokens() && q.row_size() == n_heads * geometry.head_dim && out.shape == q.shape);
  STILL_DCHECK(n_heads % geometry.n_kv_heads == 0 && out.data != q.data);
  if (exec.cuda() != nullptr) return exec.cuda()->attention(out, q, cache, layer, n_heads, scale, window);
  STILL_DCHECK(exec.options().max_attention_parts == 0 || exec.options().head_dim >= geometry.head_dim);
  AttentionCall(exec, q.f32(), out.f32(), cache, layer, batch, n_heads, scale, window).run();
}

}  // namespace still

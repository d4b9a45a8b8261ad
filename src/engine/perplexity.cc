#include "engine/perplexity.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/dispatch.h"
#include "ops/cuda_exec.h"
#include "plan/memory.h"

namespace still {

namespace {

// Rows of logits computed at a time: enough to keep the head's product busy, little memory (64 x 152k f32 = 39 MB).
constexpr std::int64_t kRows = 64;

// One sequence in its own cache; nothing is shared between chunks.
class Scorer {
 public:
  static Result<std::unique_ptr<Scorer>> create(const Model& model, const PerplexityOptions& options) {
    auto scorer = std::unique_ptr<Scorer>(new Scorer(model));
    MemoryPlan plan;
    plan.settings = {.n_threads = options.n_threads > 0 ? options.n_threads : usable_cores(),
                     .context = options.n_ctx,
                     .kv_tokens = options.n_ctx,
                     .chunk_tokens = options.n_ctx,
                     .kv_type = options.kv_type,
                     .cuda_device = model.cuda_device(),
                     .has_f32_activations = model.has_f32_activations(),
                     .reproducible = options.reproducible};
    plan.n_blocks = (options.n_ctx + plan.settings.block_size - 1) / plan.settings.block_size;
    plan.max_logit_rows = kRows;
    ExecOptions exec = exec_options(model.config(), model.max_k(), plan);
    exec.kernels = options.kernels;
    STILL_TRY(scorer->exec_, Exec::create(exec));
    const KvGeometry geometry = kv_geometry(model.config(), plan.settings);
    if (model.cuda_device() >= 0) {
      STILL_TRY(scorer->cache_, KvCache::create_on_cuda(geometry, plan.n_blocks, scorer->exec_->cuda()->stream()));
      STILL_TRY(scorer->buffers_, StepBuffers::create_on_cuda(model.config(), options.n_ctx, kRows,
                                                              activation_layout(plan.settings), scorer->memory_));
    } else {
      STILL_TRY(scorer->cache_, KvCache::create(geometry, plan.n_blocks));
      STILL_TRY(scorer->buffers_, StepBuffers::create(model.config(), options.n_ctx, kRows, scorer->arena_));
    }
    scorer->rope_ = RopeTable(model.config().rope, options.n_ctx);
    scorer->block_table_.resize(static_cast<std::size_t>(plan.n_blocks));
    std::iota(scorer->block_table_.begin(), scorer->block_table_.end(), 0);
    return scorer;
  }

  // Computes tokens [begin, end) and calls score(pos, logits) for those from `first_scored` on; end - first_scored <=
  // kRows.
  template <class Score>
  Status run(std::span<const TokenId> tokens, std::int64_t begin, std::int64_t end, std::int64_t first_scored,
             Score&& score) {
    positions_.resize(static_cast<std::size_t>(end - begin));
    std::iota(positions_.begin(), positions_.end(), static_cast<std::int32_t>(begin));
    rows_.clear();
    for (std::int64_t pos = std::max(begin, first_scored); pos < end; ++pos)
      rows_.push_back(static_cast<std::int32_t>(pos - begin));
    const std::int32_t q_start[2] = {0, static_cast<std::int32_t>(end - begin)};
    const std::int32_t kv_len[1] = {static_cast<std::int32_t>(end)};
    STILL_TRY_STATUS(
        model_.forward(*exec_,
                       {.ids = tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
                        .positions = positions_,
                        .q_start = q_start,
                        .kv_len = kv_len,
                        .block_tables = block_table_,
                        .max_blocks = static_cast<std::int64_t>(block_table_.size()),
                        .logit_rows = rows_,
                        .n_answer_seqs = 0},
                       cache_, rope_, buffers_));
    const std::int64_t vocab_size = model_.config().vocab_size;
    for (std::size_t i = 0; i < rows_.size(); ++i) {
      const float* logits = buffers_.logits + static_cast<std::int64_t>(i) * vocab_size;
      if (exec_->cuda() != nullptr) {
        STILL_TRY(logits, exec_->cuda()->fetch(logits, vocab_size));
      }
      score(begin + rows_[i], logits);
    }
    return ok();
  }
  const CpuKernels& kernels() const { return exec_->kernels(); }

 private:
  explicit Scorer(const Model& model) : model_(model) {}
  const Model& model_;
  std::unique_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  DeviceBuffer memory_;
  StepBuffers buffers_;
  RopeTable rope_;
  std::vector<std::int32_t> block_table_, positions_, rows_;
};

}  // namespace

Result<PerplexityResult> perplexity(const Model& model, std::string_view text, const PerplexityOptions& options) {
  if (options.n_ctx < 4 || options.n_ctx > model.config().max_seq_len)
    return error(Code::kInvalidArgument, "context {}: expected 4 to {}", options.n_ctx, model.config().max_seq_len);
  STILL_TRY_STATUS(check_kv_type(options.kv_type, model.cuda_device() >= 0));
  if (!model.ranks().empty() || model.n_host_layers() > 0)
    return error(Code::kUnsupported,
                 "perplexity is measured on one device: leave out --tensor-parallel and "
                 "--gpu-layers, or take --device cpu");
  const Tokenizer& tokenizer = model.tokenizer();
  std::vector<TokenId> tokens = tokenizer.encode(text, {.add_special = true, .parse_special = false});
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  if (n_tokens < 2 * options.n_ctx)
    return error(Code::kInvalidArgument, "the text has {} tokens: a perplexity over chunks of {} needs {} or more",
                 n_tokens, options.n_ctx, 2 * options.n_ctx);
  STILL_TRY(const auto scorer, Scorer::create(model, options));
  std::int64_t n_chunks = n_tokens / options.n_ctx;
  if (options.n_chunks >= 0) n_chunks = std::min(n_chunks, options.n_chunks);

  const auto start = std::chrono::steady_clock::now();
  const std::int64_t vocab_size = model.config().vocab_size, first = options.n_ctx / 2;
  double sum = 0, sum_squares = 0;
  PerplexityResult result;
  for (std::int64_t chunk = 0; chunk < n_chunks; ++chunk) {
    const std::span<TokenId> ids(tokens.data() + chunk * options.n_ctx, static_cast<std::size_t>(options.n_ctx));
    const TokenId replaced = ids[0];
    if (tokenizer.adds_bos() && tokenizer.bos() >= 0) ids[0] = tokenizer.bos();
    const auto score = [&](std::int64_t pos, const float* logits) {
      const TokenId next = ids[static_cast<std::size_t>(pos + 1)];
      const double nll = scorer->kernels().log_sum_exp(logits, vocab_size) - logits[next];
      sum += nll;
      sum_squares += nll * nll;
      ++result.n_scored;
    };
    // The unscored half in one step, then as many as there are rows; the last token predicts nothing.
    STILL_TRY_STATUS(scorer->run(ids, 0, first, first, score));
    for (std::int64_t pos = first; pos < options.n_ctx - 1; pos += kRows)
      STILL_TRY_STATUS(scorer->run(ids, pos, std::min(pos + kRows, options.n_ctx - 1), pos, score));
    ids[0] = replaced;
    result.n_chunks = chunk + 1;
    result.perplexity = std::exp(sum / static_cast<double>(result.n_scored));
    if (options.progress && !options.progress(chunk + 1, n_chunks, result.perplexity))
      return error(Code::kCancelled, "stopped after {} of {} chunks", chunk + 1, n_chunks);
  }
  if (result.n_scored > 1) {
    const double n = static_cast<double>(result.n_scored), mean = sum / n;
    const double variance = std::max(0.0, (sum_squares / n - mean * mean) / (n - 1));
    result.standard_error = std::sqrt(variance) * result.perplexity;
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.tokens_per_s = static_cast<double>(n_chunks * options.n_ctx) / seconds;
  return result;
}

}  // namespace still

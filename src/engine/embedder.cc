// See embedder.h.
#include "engine/embedder.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "text/unicode.h"

namespace still {

namespace {
constexpr std::int64_t kDecoderBlock = 32;     // positions of a KV block
constexpr std::int64_t kMaxDecoderLen = 8192;  // tokens, unless asked for more
// Model::forward as a Status, whether or not a device can make it fail.
template <class AnyModel, class... Args>
Status forward(const AnyModel& model, Args&&... args) {
  if constexpr (std::is_void_v<decltype(model.forward(args...))>) {
    model.forward(args...);
    return ok();
  } else {
    return model.forward(args...);
  }
}
}  // namespace

struct Embedder::State {
  std::shared_ptr<const Encoder> encoder;  // one of the two
  std::shared_ptr<const Model> model;
  std::unique_ptr<Exec> exec;
  Arena arena;
  EncoderBuffers encoder_buffers;
  StepBuffers step_buffers;
  KvCache cache;
  RopeTable rope;
  std::vector<std::int32_t> block_table;
  std::int64_t max_seq_len = 0, batch_tokens = 0, memory_bytes = 0;
  Pooling pooling = Pooling::kLast;

  std::int64_t width() const { return encoder ? encoder->config().hidden_size : model->config().hidden_size; }
  std::int64_t vocab_size() const { return encoder ? encoder->config().vocab_size : model->config().vocab_size; }
};

Embedder::Embedder(std::unique_ptr<State> state) : state_(std::move(state)) {}
Embedder::~Embedder() = default;

Result<std::unique_ptr<Embedder>> Embedder::create(const std::filesystem::path& path, const EmbedderOptions& options) {
  STILL_TRY(Checkpoint opened, Checkpoint::open(path));
  auto checkpoint = std::make_shared<const Checkpoint>(std::move(opened));
  const LoadOptions load{.n_threads = options.n_threads, .kernels = options.kernels};
  if (still::is_encoder(*checkpoint)) {
    STILL_TRY(std::shared_ptr<const Encoder> encoder, Encoder::load(checkpoint, load));
    return create(std::move(encoder), options);
  }
  STILL_TRY(std::shared_ptr<const Model> model, Model::load(checkpoint, load));
  return create(std::move(model), options);
}

Result<std::unique_ptr<Embedder>> Embedder::create(std::shared_ptr<const Encoder> encoder,
                                                   const EmbedderOptions& options) {
  auto state = std::make_unique<State>();
  const EncoderConfig& config = encoder->config();
  state->max_seq_len = config.max_seq_len;
  state->batch_tokens = std::max(options.max_batch_tokens, config.max_seq_len);
  state->pooling = config.pooling;
  const ExecOptions exec{.n_threads = options.n_threads,
                         .kernels = options.kernels,
                         .max_tokens = state->batch_tokens,
                         .max_k = std::max(config.hidden_size, config.intermediate_size)};
  STILL_TRY(state->exec, Exec::create(exec));
  const int n_threads = state->exec->n_threads();
  const std::int64_t bytes = EncoderBuffers::bytes(config, state->batch_tokens, n_threads);
  STILL_TRY(state->arena, Arena::create(bytes, "activations of the encoder"));
  state->encoder_buffers = EncoderBuffers::create(config, state->batch_tokens, n_threads, state->arena);
  state->memory_bytes = state->arena.size() + Exec::scratch_bytes(state->exec->options());
  state->encoder = std::move(encoder);
  return std::unique_ptr<Embedder>(new Embedder(std::move(state)));
}

Result<std::unique_ptr<Embedder>> Embedder::create(std::shared_ptr<const Model> model, const EmbedderOptions& options) {
  if (model->cuda_device() >= 0)
    return error(Code::kUnsupported, "embeddings are computed on the CPU, and this model is loaded on a GPU");
  auto state = std::make_unique<State>();
  const ModelConfig& config = model->config();
  const std::int64_t limit =
      options.max_seq_len > 0 ? options.max_seq_len : std::min(config.max_seq_len, kMaxDecoderLen);
  state->max_seq_len = std::min(limit, config.max_seq_len);
  state->batch_tokens =
      std::min(std::max<std::int64_t>(options.max_batch_tokens, 1), std::min<std::int64_t>(limit, 512));
  if (const GgufMetadata* metadata = model->checkpoint().gguf_metadata()) {
    const auto architecture = metadata->string("general.architecture");
    const GgufValue* pooling = architecture ? metadata->find(std::string(*architecture) + ".pooling_type") : nullptr;
    if (pooling != nullptr && pooling->integer() == 1) state->pooling = Pooling::kMean;
    if (pooling != nullptr && pooling->integer() == 2) state->pooling = Pooling::kCls;
  }
  const ExecOptions exec{.n_threads = options.n_threads,
                         .kernels = options.kernels,
                         .max_tokens = state->batch_tokens,
                         .max_k = model->max_k(),
                         .head_dim = config.head_dim,
                         .n_heads = config.n_heads};
  STILL_TRY(state->exec, Exec::create(exec));
  const KvGeometry geometry{.n_layers = config.n_layers,
                            .n_kv_heads = config.n_kv_heads,
                            .head_dim = config.head_dim,
                            .block_size = kDecoderBlock};
  const std::int64_t n_blocks = (state->max_seq_len + kDecoderBlock - 1) / kDecoderBlock;
  STILL_TRY(state->cache, KvCache::create(geometry, n_blocks));
  state->block_table.resize(static_cast<std::size_t>(n_blocks));
  std::iota(state->block_table.begin(), state->block_table.end(), 0);
  STILL_TRY(state->arena, Arena::create(StepBuffers::bytes(config, state->batch_tokens, 1), "activations"));
  STILL_TRY(state->step_buffers, StepBuffers::create(config, state->batch_tokens, 1, state->arena));
  state->rope = RopeTable(config.rope, state->max_seq_len);
  state->memory_bytes = state->arena.size() + state->cache.bytes() + RopeTable::bytes(config.rope, state->max_seq_len) +
                        Exec::scratch_bytes(state->exec->options());
  state->model = std::move(model);
  return std::unique_ptr<Embedder>(new Embedder(std::move(state)));
}

std::int64_t Embedder::dimensions() const {
  return state_->width();
}
std::int64_t Embedder::max_seq_len() const {
  return state_->max_seq_len;
}
std::int64_t Embedder::weight_bytes() const {
  return state_->encoder ? state_->encoder->weight_bytes() : state_->model->weight_bytes();
}
std::int64_t Embedder::memory_bytes() const {
  return state_->memory_bytes;
}
bool Embedder::is_encoder() const {
  return state_->encoder != nullptr;
}

std::vector<TokenId> Embedder::tokenize(std::string_view text) const {
  if (state_->encoder) return state_->encoder->tokenizer().encode(text);
  return state_->model->tokenizer().encode(text, {.add_special = true, .parse_special = false});
}

Result<Embeddings> Embedder::embed(std::span<const std::string> texts, const EmbedOptions& options) {
  std::vector<std::vector<TokenId>> ids;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (!is_valid_utf8(texts[i])) return error(Code::kInvalidArgument, "input {}: not valid UTF-8", i);
    ids.push_back(tokenize(texts[i]));
    // A decoder without BOS has nothing to say of an empty text but the state of some token that stands for one.
    if (ids.back().empty()) {
      const Tokenizer& tokenizer = state_->model->tokenizer();
      const TokenId end = tokenizer.eos() >= 0 ? tokenizer.eos() : TokenId{0};
      ids.back().push_back(end);
    }
  }
  return run(std::move(ids), options);
}

Result<Embeddings> Embedder::embed_tokens(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].empty()) return error(Code::kInvalidArgument, "input {}: no tokens", i);
    for (const TokenId id : texts[i])
      if (id < 0 || id >= state_->vocab_size())
        return error(Code::kInvalidArgument, "input {}: token id {} is outside the vocabulary of {}", i, id,
                     state_->vocab_size());
  }
  return run({texts.begin(), texts.end()}, options);
}

namespace {
Status check_wanted(const EmbedOptions& options) {
  if (options.is_cancelled && options.is_cancelled()) return error(Code::kCancelled, "request canceled");
  return ok();
}
}  // namespace

Result<Embeddings> Embedder::run(std::vector<std::vector<TokenId>> texts, const EmbedOptions& options) {
  const std::int64_t width = state_->width();
  if (options.dimensions < 0 || options.dimensions > width)
    return error(Code::kInvalidArgument, "dimensions {}: the model's vectors have {}", options.dimensions, width);
  Embeddings out;
  out.n_texts = static_cast<std::int64_t>(texts.size());
  out.dimensions = width;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::vector<TokenId>& ids = texts[i];
    const auto n = static_cast<std::int64_t>(ids.size());
    if (n > state_->max_seq_len) {
      if (!options.truncate)
        return error(Code::kResourceExhausted,
                     "the input length exceeds the context length: input {} has {} tokens, the model takes {}", i, n,
                     state_->max_seq_len);
      // What ends a text for the encoder ends the cut one, too.
      const TokenId last = ids.back();
      ids.resize(static_cast<std::size_t>(state_->max_seq_len));
      if (state_->encoder && last == state_->encoder->tokenizer().data().sep) ids.back() = last;
      out.truncated.push_back(static_cast<std::int64_t>(i));
    }
    out.n_tokens_of.push_back(static_cast<std::int64_t>(ids.size()));
    out.n_tokens += out.n_tokens_of.back();
  }
  out.values.assign(static_cast<std::size_t>(out.n_texts * width), 0.0f);
  {
    const std::lock_guard lock(mutex_);
    if (state_->encoder) {
      STILL_TRY_STATUS(run_encoder(texts, options, out));
    } else {
      STILL_TRY_STATUS(run_decoder(texts, options, out));
    }
  }
  const std::int64_t kept = options.dimensions > 0 ? options.dimensions : width;
  for (std::int64_t text = 0; text < out.n_texts; ++text) {
    const float* from = out.values.data() + text * width;
    float* to = out.values.data() + text * kept;
    double squares = 0;
    for (std::int64_t i = 0; i < kept; ++i) squares += static_cast<double>(from[i]) * static_cast<double>(from[i]);
    const double scale = options.normalize && squares > 0 ? 1.0 / std::sqrt(squares) : 1.0;
    for (std::int64_t i = 0; i < kept; ++i) to[i] = static_cast<float>(static_cast<double>(from[i]) * scale);
  }
  out.dimensions = kept;
  out.values.resize(static_cast<std::size_t>(out.n_texts * kept));
  return out;
}

Status Embedder::run_encoder(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options,
                             Embeddings& out) {
  const std::int64_t width = state_->width();
  std::vector<TokenId> ids;
  std::vector<std::int32_t> q_start;
  for (std::size_t begin = 0; begin < texts.size();) {
    ids.clear();
    q_start.assign(1, 0);
    std::size_t end = begin;
    while (end < texts.size() && static_cast<std::int64_t>(ids.size() + texts[end].size()) <= state_->batch_tokens) {
      ids.insert(ids.end(), texts[end].begin(), texts[end].end());
      q_start.push_back(static_cast<std::int32_t>(ids.size()));
      ++end;
    }
    STILL_CHECK(end > begin);  // a text fits, for batch_tokens >= max_seq_len
    STILL_TRY_STATUS(check_wanted(options));
    state_->encoder->forward(*state_->exec, ids, q_start, state_->encoder_buffers);
    for (std::size_t i = begin; i < end; ++i) {
      const std::int64_t first = q_start[i - begin], last = q_start[i - begin + 1] - 1;
      const float* hidden = state_->encoder_buffers.hidden;
      float* vector = out.values.data() + static_cast<std::int64_t>(i) * width;
      if (state_->pooling == Pooling::kMean) {
        for (std::int64_t d = 0; d < width; ++d) {
          double sum = 0;
          for (std::int64_t row = first; row <= last; ++row) sum += static_cast<double>(hidden[row * width + d]);
          vector[d] = static_cast<float>(sum / static_cast<double>(last - first + 1));
        }
      } else {
        std::copy_n(hidden + (state_->pooling == Pooling::kCls ? first : last) * width, width, vector);
      }
    }
    begin = end;
  }
  return ok();
}

Status Embedder::run_decoder(std::span<const std::vector<TokenId>> texts, const EmbedOptions& options,
                             Embeddings& out) {
  const std::int64_t width = state_->width();
  std::vector<std::int32_t> positions;
  std::vector<double> sums(static_cast<std::size_t>(width));
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto n = static_cast<std::int64_t>(texts[i].size());
    float* vector = out.values.data() + static_cast<std::int64_t>(i) * width;
    std::ranges::fill(sums, 0.0);
    for (std::int64_t begin = 0; begin < n; begin += state_->batch_tokens) {
      STILL_TRY_STATUS(check_wanted(options));
      const std::int64_t end = std::min(begin + state_->batch_tokens, n);
      positions.resize(static_cast<std::size_t>(end - begin));
      std::iota(positions.begin(), positions.end(), static_cast<std::int32_t>(begin));
      const std::int32_t q_start[] = {0, static_cast<std::int32_t>(end - begin)};
      // The last norm is only applied where logits are wanted; one row is enough for all.
      const std::int32_t wanted[] = {static_cast<std::int32_t>(end - begin - 1)};
      const std::int32_t kv_len[] = {static_cast<std::int32_t>(end)};
      const RaggedBatch batch{.ids = std::span(texts[i]).subspan(static_cast<std::size_t>(begin), positions.size()),
                              .positions = positions,
                              .q_start = q_start,
                              .kv_len = kv_len,
                              .block_tables = state_->block_table,
                              .max_blocks = static_cast<std::int64_t>(state_->block_table.size()),
                              .logit_rows = wanted,
                              .wants_all_states = true};
      STILL_TRY_STATUS(
          forward(*state_->model, *state_->exec, batch, state_->cache, state_->rope, state_->step_buffers));
      // `normed` holds the states behind the last norm.
      const auto* states = static_cast<const float*>(static_cast<const void*>(state_->step_buffers.normed));
      if (state_->pooling == Pooling::kCls && begin == 0) std::copy_n(states, width, vector);
      if (state_->pooling == Pooling::kLast && end == n) std::copy_n(states + (end - begin - 1) * width, width, vector);
      if (state_->pooling != Pooling::kMean) continue;
      for (std::int64_t row = 0; row < end - begin; ++row)
        for (std::int64_t d = 0; d < width; ++d)
          sums[static_cast<std::size_t>(d)] += static_cast<double>(states[row * width + d]);
    }
    if (state_->pooling != Pooling::kMean) continue;
    for (std::int64_t d = 0; d < width; ++d)
      vector[d] = static_cast<float>(sums[static_cast<std::size_t>(d)] / static_cast<double>(n));
  }
  return ok();
}

}  // namespace still

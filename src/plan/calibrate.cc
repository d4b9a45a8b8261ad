#include "plan/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <vector>

#include "kernels/packing.h"
#include "models/registry.h"
#include "plan/memory.h"

namespace still {

namespace {

constexpr std::int64_t kColdBytes = std::int64_t{448} << 20;  // a slice should be far larger than the last cache
constexpr std::int64_t kTableRows = 16;                       // token ids used
// A byte that makes small normal floats of 16 and 32 bits and middling integers: no denormals, no infinities.
constexpr int kFill = 0x2c;

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The slice: weights of the first `config.n_layers` layers, whose types are those of layers spread over the model.
struct Slice {
  ModelConfig config;
  Arena arena, table_arena;
  WeightSet weights;
  std::int64_t max_k = 0;
};

DType type_of(const ModelShape& shape, const Quantisation& q, TensorPart part, std::int64_t layer) {
  for (const PlannedTensor& t : shape.tensors)
    if (t.part == part && t.layer == layer && !t.is_vector) return planned_type(q, shape, t);
  // A tied head is the embedding again.
  for (const PlannedTensor& t : shape.tensors)
    if (t.part == TensorPart::kEmbedding && t.group != WeightGroup::kMtp) return planned_type(q, shape, t);
  return DType::kF16;
}

std::int32_t layer_of(std::string_view name) {
  std::int32_t layer = -1;
  if (name.starts_with("model.layers.")) layer = std::atoi(std::string(name.substr(13)).c_str());
  return layer;
}

Result<Slice> make_slice(const Arch& arch, const ModelShape& shape, const Quantisation& q, std::int64_t n_layers) {
  Slice slice{.config = shape.config};
  slice.config.n_layers = static_cast<std::int32_t>(n_layers);
  const std::vector<TensorSpec> specs = arch.tensors(slice.config);
  std::vector<PackedFormat> formats(specs.size());
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    if (spec.role == TensorRole::kVector) bytes += Arena::rounded(4 * spec.shape.n_elements());
    if (spec.role != TensorRole::kMatrix) continue;
    const std::int64_t layer = layer_of(spec.name);
    const DType type =
        type_of(shape, q, part_of_name(spec.name), layer < 0 ? -1 : layer * shape.config.n_layers / n_layers);
    const auto format = packed_format(type);
    if (!format) return error(Code::kUnsupported, "{}: the engine does not compute {} yet", q.name, dtype_name(type));
    formats[i] = *format;
    bytes += Arena::rounded(packed_bytes(*format, spec.shape[0], spec.shape[1]));
  }
  STILL_TRY(slice.arena, Arena::create(bytes, "calibration"));
  STILL_TRY(slice.table_arena,
            Arena::create(Arena::rounded(4 * kTableRows * shape.config.hidden_size), "calibration table"));
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    if (spec.role == TensorRole::kEmbedding) {
      auto* table = slice.table_arena.allocate_array<float>(kTableRows * shape.config.hidden_size);
      for (std::int64_t j = 0; j < kTableRows * shape.config.hidden_size; ++j)
        table[j] = static_cast<float>(j % 7) - 3.0f;
      slice.weights.embeddings.push_back({.name = spec.name,
                                          .dtype = DType::kF32,
                                          .n_rows = kTableRows,
                                          .row_size = shape.config.hidden_size,
                                          .data = reinterpret_cast<const std::byte*>(table)});
    } else if (spec.role == TensorRole::kVector) {
      auto* values = slice.arena.allocate_array<float>(spec.shape.n_elements());
      std::fill_n(values, spec.shape.n_elements(), 1.0f);
      slice.weights.vectors.push_back({spec.name, {reinterpret_cast<std::byte*>(values), DType::kF32, spec.shape}});
    } else {
      const std::int64_t size = Arena::rounded(packed_bytes(formats[i], spec.shape[0], spec.shape[1]));
      std::byte* memory = slice.arena.allocate(size);
      std::memset(memory, kFill, static_cast<std::size_t>(size));
      slice.weights.matrices.push_back({.name = spec.name,
                                        .format = formats[i],
                                        .n_out = spec.shape[0],
                                        .k = spec.shape[1],
                                        .packed = reinterpret_cast<const std::uint8_t*>(memory),
                                        .panel_bytes = packed_panel_bytes(formats[i], spec.shape[1])});
      slice.max_k = std::max(slice.max_k, spec.shape[1]);
    }
  }
  return slice;
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Forward passes of a slice's first layers.
class Runner {
 public:
  static Result<Runner> create(const Arch& arch, const Slice& slice, const CalibrationSettings& settings,
                               std::int64_t n_layers) {
    Runner r;
    r.arch_ = &arch;
    r.config_ = slice.config;
    r.config_.n_layers = static_cast<std::int32_t>(n_layers);
    const std::int64_t context = std::max({settings.n_prompt, settings.decode_kv_len, settings.deep_kv_len}) + 64;
    r.config_.max_seq_len = std::max(r.config_.max_seq_len, context);
    EngineSettings engine{
        .n_threads = settings.n_threads, .context = context, .kv_tokens = context, .chunk_tokens = settings.n_prompt};
    STILL_TRY(const MemoryPlan plan, plan_memory(r.config_, 0, slice.max_k, engine));
    STILL_TRY(r.exec_, Exec::create(exec_options(r.config_, slice.max_k, plan)));
    STILL_TRY(r.cache_, KvCache::create(kv_geometry(r.config_, plan.settings), plan.n_blocks));
    STILL_TRY(r.buffers_, StepBuffers::create(r.config_, plan.settings.chunk_tokens, plan.max_logit_rows, r.arena_));
    r.rope_ = RopeTable(r.config_.rope, context);
    r.bound_ = arch.bind(r.config_, slice.weights);
    r.n_blocks_ = plan.n_blocks;
    return r;
  }
  // Seconds of one forward of n_tokens at the end of kv_len: the median of n_runs after one that is not counted.
  double seconds(std::int64_t n_tokens, std::int64_t kv_len, int n_runs) {
    std::vector<TokenId> ids;
    std::vector<std::int32_t> positions, blocks;
    for (std::int64_t i = 0; i < n_tokens; ++i) {
      ids.push_back(static_cast<TokenId>(i % kTableRows));
      positions.push_back(static_cast<std::int32_t>(kv_len - n_tokens + i));
    }
    for (std::int64_t b = 0; b < n_blocks_; ++b) blocks.push_back(static_cast<std::int32_t>(b));
    const std::int32_t q_start[2] = {0, static_cast<std::int32_t>(n_tokens)},
                       lengths[1] = {static_cast<std::int32_t>(kv_len)};
    const std::int32_t rows[1] = {static_cast<std::int32_t>(n_tokens - 1)};
    const RaggedBatch batch{ids, positions, q_start, lengths, blocks, n_blocks_, rows};
    std::vector<double> runs;
    for (int i = 0; i <= n_runs; ++i) {
      const double start = now_s();
      arch_->forward({*exec_, config_, *bound_, rope_, batch, cache_, buffers_});
      if (i > 0 || n_runs == 0) runs.push_back(now_s() - start);
    }
    return median(std::move(runs));
  }

 private:
  const Arch* arch_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  StepBuffers buffers_;
  RopeTable rope_;
  std::unique_ptr<ArchWeights> bound_;
  std::int64_t n_blocks_ = 0;
};

}  // namespace

double HostSpeed::tok_per_s_at(double kv_len) const {
  return 1 / (1 / decode_tok_per_s + (kv_len - decode_kv_len) * decode_s_per_kv_token);
}

struct Calibrator::State {
  CalibrationSettings settings;
  Slice slice;
  std::unique_ptr<Runner> whole, part;  // part: null where the slice is the whole model
  std::int64_t n_layers = 0, part_layers = 0, all_layers = 0;
  double begin_s = 0;
  // One value a round, seconds.
  std::vector<double> decode, decode_deep, prefill, decode_part, prefill_part;
};

Calibrator::Calibrator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Calibrator::Calibrator(Calibrator&&) noexcept = default;
Calibrator& Calibrator::operator=(Calibrator&&) noexcept = default;
Calibrator::~Calibrator() = default;

Result<Calibrator> Calibrator::create(const ModelShape& shape, const Quantisation& q,
                                      const CalibrationSettings& settings) {
  if (settings.n_prompt < 1 || settings.decode_kv_len < 1 || settings.deep_kv_len <= settings.decode_kv_len ||
      !(settings.budget_s > 0))
    return error(Code::kInvalidArgument, "prompt, context and time of a calibration must be above 0");
  if (q.kind == Quantisation::Kind::kOwn && !shape.has_own_types)
    return error(Code::kInvalidArgument, "{} is a shape without a file: name a quantisation", shape.name);
  auto state = std::make_unique<State>();
  state->settings = settings;
  state->begin_s = now_s();
  STILL_TRY(const Arch* arch, find_arch(shape.config.model_type));
  std::int64_t layer_bytes = 1, rest_bytes = 0;
  for (const PlannedTensor& t : shape.tensors)
    if (t.group != WeightGroup::kMtp) (t.layer >= 0 ? layer_bytes : rest_bytes) += planned_bytes(q, shape, t);
  const std::int64_t all = shape.config.n_layers;
  layer_bytes = layer_bytes / all + 1;
  // The whole model where it is small: caches then act on the slice as they do on the model.
  std::int64_t n_layers = all;
  if (rest_bytes + all * layer_bytes > settings.max_slice_bytes)
    n_layers = std::clamp<std::int64_t>(2 * (kColdBytes / layer_bytes / 2 + 1), std::min<std::int64_t>(2, all), all);
  if (rest_bytes + n_layers * layer_bytes > settings.max_slice_bytes)
    return error(Code::kResourceExhausted, "a slice of {} layers and the head takes {} MiB, {} MiB are allowed",
                 n_layers, (rest_bytes + n_layers * layer_bytes) >> 20, settings.max_slice_bytes >> 20);
  STILL_TRY(state->slice, make_slice(*arch, shape, q, n_layers));
  STILL_TRY(Runner whole, Runner::create(*arch, state->slice, settings, n_layers));
  state->whole = std::make_unique<Runner>(std::move(whole));
  state->n_layers = n_layers;
  state->all_layers = all;
  if (n_layers < all && n_layers > 1) {
    state->part_layers = std::max<std::int64_t>(1, n_layers / 4);
    STILL_TRY(Runner part, Runner::create(*arch, state->slice, settings, state->part_layers));
    state->part = std::make_unique<Runner>(std::move(part));
  }
  // The cache is written once to its depth: memory that was never written is one page of zeros, and fast to read.
  for (Runner* runner : {state->whole.get(), state->part.get()}) {
    if (runner == nullptr) continue;
    for (std::int64_t end = settings.n_prompt; end < settings.deep_kv_len; end += settings.n_prompt)
      runner->seconds(settings.n_prompt, end, 0);
    if (settings.deep_kv_len > settings.n_prompt) runner->seconds(settings.n_prompt, settings.deep_kv_len, 0);
  }
  return Calibrator(std::move(state));
}

void Calibrator::round() {
  State& s = *state_;
  constexpr int kDecodes = 8;
  const CalibrationSettings& o = s.settings;
  s.decode.push_back(s.whole->seconds(1, o.decode_kv_len, kDecodes));
  s.decode_deep.push_back(s.whole->seconds(1, o.deep_kv_len, kDecodes));
  s.prefill.push_back(s.whole->seconds(o.n_prompt, o.n_prompt, 0));
  if (s.part == nullptr) return;
  s.decode_part.push_back(s.part->seconds(1, o.decode_kv_len, kDecodes));
  s.prefill_part.push_back(s.part->seconds(o.n_prompt, o.n_prompt, 0));
}

HostSpeed Calibrator::speed() const {
  const State& s = *state_;
  const auto all = static_cast<double>(s.all_layers), n = static_cast<double>(s.n_layers);
  const auto prompt = static_cast<double>(s.settings.n_prompt);
  HostSpeed speed{.slice_layers = s.n_layers, .slice_bytes = s.slice.arena.size()};
  speed.decode_kv_len = static_cast<double>(s.settings.decode_kv_len);
  const double decode = median(s.decode), prefill = median(s.prefill);
  const auto deeper = static_cast<double>(s.settings.deep_kv_len - s.settings.decode_kv_len);
  // Differences are taken within a round, where the machine is one and the same.
  std::vector<double> steps;
  for (std::size_t i = 0; i < s.decode.size(); ++i) steps.push_back((s.decode_deep[i] - s.decode[i]) / deeper);
  speed.decode_s_per_kv_token = std::max(0.0, median(steps)) * all / n;
  if (s.part == nullptr) {
    speed.decode_layer_s = decode / all;
    speed.decode_tok_per_s = 1 / decode;
    speed.prefill_tok_per_s = prompt / prefill;
  } else {
    const double difference = n - static_cast<double>(s.part_layers);
    std::vector<double> layers, prefill_layers;
    for (std::size_t i = 0; i < s.decode.size(); ++i) {
      layers.push_back(std::max(0.0, s.decode[i] - s.decode_part[i]) / difference);
      prefill_layers.push_back(std::max(0.0, s.prefill[i] - s.prefill_part[i]) / difference);
    }
    speed.decode_layer_s = median(layers);
    speed.decode_rest_s = std::max(0.0, decode - n * speed.decode_layer_s);
    speed.decode_tok_per_s = 1 / (decode + (all - n) * speed.decode_layer_s);
    speed.prefill_tok_per_s = prompt / (prefill + (all - n) * median(prefill_layers));
  }
  speed.seconds = now_s() - s.begin_s;
  return speed;
}

Result<HostSpeed> calibrate_host(const ModelShape& shape, const Quantisation& q, const CalibrationSettings& settings) {
  STILL_TRY(Calibrator calibrator, Calibrator::create(shape, q, settings));
  const double begin = now_s();
  do calibrator.round();
  while (now_s() - begin < settings.budget_s);
  return calibrator.speed();
}

}  // namespace still

#include "plan/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/packing.h"
#include "models/registry.h"
#include "ops/attention.h"
#include "plan/memory.h"

namespace still {

namespace {

constexpr std::int64_t kColdBytes = std::int64_t{320} << 20;  // a slice should be far larger than the last cache
constexpr std::int64_t kWholeBytes = std::int64_t{1} << 30;   // up to here the slice is the whole model
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
    const std::int64_t layer = spec.layer;
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

// The q-th part of the values lies below.
double quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), at, values.end());
  return *at;
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
    constexpr std::int64_t kMostSeqs = HostRound::kSeqs.back();
    const std::int64_t context = std::max({settings.n_prompt, settings.decode_kv_len, settings.deep_kv_len}) + 64;
    r.config_.max_seq_len = std::max(r.config_.max_seq_len, context);
    EngineSettings engine{
        .n_threads = settings.n_threads, .context = context, .max_seqs = kMostSeqs, .chunk_tokens = settings.n_prompt};
    const std::int64_t seq_tokens = (settings.decode_kv_len / engine.block_size + 1) * engine.block_size;
    engine.kv_tokens = std::max(context, kMostSeqs * seq_tokens);
    STILL_TRY(const MemoryPlan plan, plan_memory(r.config_, 0, slice.max_k, engine));
    STILL_TRY(r.exec_, Exec::create(exec_options(r.config_, slice.max_k, plan)));
    STILL_TRY(r.cache_, KvCache::create(kv_geometry(r.config_, plan.settings), plan.n_blocks));
    STILL_TRY(r.buffers_, StepBuffers::create(r.config_, plan.settings.chunk_tokens, plan.max_logit_rows, r.arena_));
    r.rope_ = RopeTable(r.config_.rope, context);
    r.bound_ = arch.bind(r.config_, slice.weights);
    r.n_blocks_ = plan.n_blocks;
    r.block_size_ = plan.settings.block_size;
    r.fill_cache(settings.n_prompt);
    return r;
  }
  // Seconds of one forward of n_tokens at the end of kv_len in each of n_seqs: the median of n_runs after one that is
  // not counted; n_runs 0: a single run, counted.
  double seconds(std::int64_t n_seqs, std::int64_t n_tokens, std::int64_t kv_len, int n_runs) {
    const Steps steps = make_steps(n_seqs, n_tokens, kv_len);
    std::vector<double> runs;
    for (int i = 0; i <= n_runs; ++i) {
      const double start = now_s();
      arch_->forward({*exec_, config_, *bound_, rope_, steps.batch(), cache_, buffers_, 0, config_.n_layers});
      if (i > 0 || n_runs == 0) runs.push_back(now_s() - start);
    }
    return quantile(std::move(runs), 0.5);
  }

 private:
  struct Steps {
    std::vector<TokenId> ids;
    std::vector<std::int32_t> positions, blocks, q_start, lengths, rows;
    std::int64_t max_blocks = 0;
    RaggedBatch batch() const { return {ids, positions, q_start, lengths, blocks, max_blocks, rows}; }
  };
  Steps make_steps(std::int64_t n_seqs, std::int64_t n_tokens, std::int64_t kv_len) const {
    Steps steps{.q_start = {0}, .max_blocks = n_blocks_ / n_seqs};
    for (std::int64_t seq = 0; seq < n_seqs; ++seq) {
      for (std::int64_t i = 0; i < n_tokens; ++i) {
        steps.ids.push_back(static_cast<TokenId>(i % kTableRows));
        steps.positions.push_back(static_cast<std::int32_t>(kv_len - n_tokens + i));
      }
      for (std::int64_t b = 0; b < steps.max_blocks; ++b)
        steps.blocks.push_back(static_cast<std::int32_t>(seq * steps.max_blocks + b));
      steps.q_start.push_back(static_cast<std::int32_t>(steps.ids.size()));
      steps.lengths.push_back(static_cast<std::int32_t>(kv_len));
      steps.rows.push_back(static_cast<std::int32_t>(steps.ids.size() - 1));
    }
    return steps;
  }
  // The cache is written once: memory that was never written is one page of zeros, and fast to read.
  void fill_cache(std::int64_t chunk) {
    const std::int64_t width = config_.n_kv_heads * config_.head_dim, end = n_blocks_ * block_size_;
    std::vector<float> values(static_cast<std::size_t>(chunk * width), 0.25f);
    for (std::int64_t from = 0; from < end; from += chunk) {
      const std::int64_t n = std::min(chunk, end - from);
      const Steps steps = make_steps(1, n, from + n);
      const TensorView view{reinterpret_cast<std::byte*>(values.data()), DType::kF32, Shape{n, width}};
      for (std::int32_t layer = 0; layer < config_.n_layers; ++layer)
        kv_write(*exec_, cache_, layer, view, view, steps.batch());
    }
  }

  const Arch* arch_ = nullptr;
  ModelConfig config_;
  std::unique_ptr<Exec> exec_;
  KvCache cache_;
  Arena arena_;
  StepBuffers buffers_;
  RopeTable rope_;
  std::unique_ptr<ArchWeights> bound_;
  std::int64_t n_blocks_ = 0, block_size_ = 0;
};

}  // namespace

namespace {

template <class F>
Interval over_rounds(const std::vector<HostRound>& rounds, F&& value_of) {
  std::vector<double> values;
  for (const HostRound& round : rounds) values.push_back(value_of(round));
  return {quantile(values, 0.5), quantile(values, 0.1), quantile(values, 0.9)};
}

// Between the numbers of sequences that were measured linear, beyond them by the last two.
double step_of_round(const HostRound& round, std::int64_t n_seqs) {
  const auto& seqs = HostRound::kSeqs;
  std::size_t i = 1;
  while (i + 1 < seqs.size() && n_seqs > seqs[i]) ++i;
  const auto x = static_cast<double>(n_seqs), x0 = static_cast<double>(seqs[i - 1]), x1 = static_cast<double>(seqs[i]);
  return round.decode[i - 1] + (x - x0) / (x1 - x0) * (round.decode[i] - round.decode[i - 1]);
}

}  // namespace

Interval HostSpeed::step_s(std::int64_t n_seqs, double kv_len) const {
  const double more = static_cast<double>(n_seqs) * (kv_len - static_cast<double>(decode_kv_len));
  return over_rounds(rounds,
                     [&](const HostRound& round) { return step_of_round(round, n_seqs) + more * round.kv_token; });
}

Interval HostSpeed::prefill_s(std::int64_t n_tokens, std::int64_t chunk_tokens) const {
  const auto n = static_cast<double>(n_tokens), chunk = static_cast<double>(n_prompt);
  // Pairs beyond those that chunks of the measured length have by themselves.
  const double pairs = n > chunk ? n * (n - chunk) / 2 : 0;
  const double n_chunks = std::ceil(n / static_cast<double>(std::max<std::int64_t>(1, chunk_tokens)));
  return over_rounds(rounds, [&](const HostRound& round) {
    return std::max(round.prefill * n / chunk + pairs * prefill_pair_s, n_chunks * round.decode.front());
  });
}

SpeedPoint HostSpeed::point(std::int64_t n_seqs, double kv_len) const {
  const Interval step = step_s(n_seqs, kv_len);
  const auto n = static_cast<double>(n_seqs);
  return {.concurrency = n_seqs,
          .tok_per_s_user = {1 / step.value, 1 / step.high, 1 / step.low},
          .tok_per_s_total = {n / step.value, n / step.high, n / step.low},
          .step_s = step.value};
}

struct Calibrator::State {
  CalibrationSettings settings;
  Slice slice;
  std::unique_ptr<Runner> whole, part;  // part: null where the slice is the whole model
  std::int64_t n_layers = 0, part_layers = 0, all_layers = 0;
  double begin_s = 0, prefill_pair_s = 0;
  std::vector<HostRound> rounds;

  // Of all layers, by what the slice and its part take.
  double of_all(double whole_s, double part_s) const {
    if (part == nullptr) return whole_s;
    const double layer = std::max(0.0, whole_s - part_s) / static_cast<double>(n_layers - part_layers);
    return whole_s + static_cast<double>(all_layers - n_layers) * layer;
  }
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
    if (t.group != WeightGroup::kMtp && (t.part != TensorPart::kEmbedding || shape.config.tied_embeddings))
      (t.layer >= 0 ? layer_bytes : rest_bytes) += planned_bytes(q, shape, t);
  const std::int64_t all = shape.config.n_layers;
  layer_bytes = layer_bytes / all + 1;
  // The whole model where it is small: caches then act on the slice as they do on the model.
  std::int64_t n_layers = all;
  const std::int64_t most_bytes = std::min(settings.max_slice_bytes, available_memory() / 2);
  if (rest_bytes + all * layer_bytes > std::min(kWholeBytes, most_bytes))
    n_layers = std::clamp<std::int64_t>(2 * (kColdBytes / layer_bytes / 2 + 1), std::min<std::int64_t>(2, all), all);
  if (rest_bytes + n_layers * layer_bytes > most_bytes)
    return error(Code::kResourceExhausted, "a slice of {} layers and the head takes {} MiB, {} MiB may be used",
                 n_layers, (rest_bytes + n_layers * layer_bytes) >> 20, most_bytes >> 20);
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
  return Calibrator(std::move(state));
}

void Calibrator::round() {
  State& s = *state_;
  const CalibrationSettings& o = s.settings;
  const auto both = [&](std::int64_t n_seqs, std::int64_t n_tokens, std::int64_t kv_len, int n_runs) {
    const double whole = s.whole->seconds(n_seqs, n_tokens, kv_len, n_runs);
    return s.of_all(whole, s.part == nullptr ? 0 : s.part->seconds(n_seqs, n_tokens, kv_len, n_runs));
  };
  constexpr int kDecodes = 8, kWideDecodes = 3;
  HostRound round;
  for (std::size_t i = 0; i < HostRound::kSeqs.size(); ++i)
    round.decode[i] = both(HostRound::kSeqs[i], 1, o.decode_kv_len, i == 0 ? kDecodes : kWideDecodes);
  // Only layers have attention: their share of the difference is that of all.
  const double of_slice = static_cast<double>(s.all_layers) / static_cast<double>(s.n_layers);
  const double shallow = s.whole->seconds(1, 1, o.decode_kv_len, kDecodes),
               deep = s.whole->seconds(1, 1, o.deep_kv_len, kDecodes);
  round.kv_token = std::max(0.0, deep - shallow) / static_cast<double>(o.deep_kv_len - o.decode_kv_len) * of_slice;
  round.prefill = both(1, o.n_prompt, o.n_prompt, 0);
  const std::int64_t further = std::min(o.deep_kv_len, 2 * o.n_prompt) - o.n_prompt;
  if (s.rounds.empty() && further > 0) {
    const double first = s.whole->seconds(1, o.n_prompt, o.n_prompt, 0),
                 second = s.whole->seconds(1, o.n_prompt, o.n_prompt + further, 0);
    s.prefill_pair_s = std::max(0.0, second - first) / static_cast<double>(o.n_prompt * further) * of_slice;
  }
  s.rounds.push_back(round);
}

HostSpeed Calibrator::speed() const {
  const State& s = *state_;
  return {.rounds = s.rounds,
          .n_prompt = s.settings.n_prompt,
          .decode_kv_len = s.settings.decode_kv_len,
          .prefill_pair_s = s.prefill_pair_s,
          .slice_layers = s.n_layers,
          .slice_bytes = s.slice.arena.size(),
          .seconds = now_s() - s.begin_s};
}

Result<HostSpeed> calibrate_host(const ModelShape& shape, const Quantisation& q, const CalibrationSettings& settings) {
  const double begin = now_s();
  STILL_TRY(Calibrator calibrator, Calibrator::create(shape, q, settings));
  const double end = begin + settings.budget_s;
  double longest = 0;
  do {
    const double start = now_s();
    calibrator.round();
    longest = std::max(longest, now_s() - start);
  } while (now_s() + longest < end);
  return calibrator.speed();
}

}  // namespace still

// Prediction against measurement on this machine: rounds of the calibration (layers with made-up weights) and of the
// engine with the real model in turn, so that both meet the same neighbours.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>

#include "base/json.h"
#include "base/rng.h"
#include "cli/model_ref.h"
#include "cli/plan_options.h"
#include "cli/table.h"
#include "engine/engine.h"
#include "plan/calibrate.h"

namespace still {

namespace {

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<std::size_t>(q * static_cast<double>(values.size() - 1) + 0.5)];
}

class CountingSink : public EventSink {
 public:
  void on_event(const Event& event) override {
    if (std::holds_alternative<TokenEvent>(event)) ++n_tokens;
    if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
      is_finished = true;
      if (finished->reason == FinishReason::kError) problem = finished->error;
    }
  }
  std::int64_t n_tokens = 0;
  bool is_finished = false;
  std::optional<Error> problem;
};

// An engine whose sequences stay alive between the rounds: their prompts are computed once.
class EngineProbe {
 public:
  static Result<EngineProbe> create(const std::shared_ptr<const Model>& model, int n_threads, std::int64_t n_seqs,
                                    std::int64_t n_prompt, std::int64_t n_new) {
    EngineProbe probe;
    const std::int64_t context = n_prompt + n_new + 64;
    STILL_TRY(probe.engine_, Engine::create(model, {.settings = {.n_threads = n_threads,
                                                                 .context = context,
                                                                 .max_seqs = n_seqs,
                                                                 .kv_tokens = n_seqs * (context + 64)},
                                                    .prefix_cache = false,
                                                    .step = {.target_s = 0}}));
    return probe;
  }
  // Until the first token of the answer is there, seconds; the request then ends. Other ids at each call.
  Result<double> prefill(std::int64_t n_prompt) {
    STILL_TRY(const auto sink, submit(n_prompt, 1));
    const double start = now_s();
    while (!sink->is_finished) engine_->step();
    if (sink->problem) return tl::unexpected(*sink->problem);
    return now_s() - start;
  }
  Status begin(std::int64_t n_seqs, std::int64_t n_prompt, std::int64_t n_new) {
    for (std::int64_t i = 0; i < n_seqs; ++i) {
      STILL_TRY(sinks_.emplace_back(), submit(n_prompt, n_new));
    }
    const auto has_token = [](const auto& sink) { return sink->is_finished || sink->n_tokens > 0; };
    while (!std::all_of(sinks_.begin(), sinks_.end(), has_token)) engine_->step();
    n_prompt_ = n_prompt;
    return ok();
  }
  // The median of n_runs decoding steps after one that is not counted, seconds.
  Result<double> decode(int n_runs) {
    std::vector<double> runs;
    for (int i = 0; i <= n_runs; ++i) {
      const double start = now_s();
      engine_->step();
      if (i > 0) runs.push_back(now_s() - start);
    }
    for (const auto& sink : sinks_) {
      if (sink->problem) return tl::unexpected(*sink->problem);
      if (sink->is_finished) return error(Code::kInternal, "a sequence ended before the last round");
    }
    return quantile(std::move(runs), 0.5);
  }
  // Tokens in the caches, on average.
  double kv_len() const {
    double sum = 0;
    for (const auto& sink : sinks_) sum += static_cast<double>(n_prompt_ + sink->n_tokens);
    return sum / static_cast<double>(sinks_.size());
  }

 private:
  static double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  Result<std::shared_ptr<CountingSink>> submit(std::int64_t n_prompt, std::int64_t n_new) {
    Request request;
    Rng rng(++seed_);
    const std::int64_t n_words =
        std::min(engine_->model().config().vocab_size, engine_->model().tokenizer().vocab_size());
    for (std::int64_t i = 0; i < n_prompt; ++i) request.prompt.push_back(static_cast<TokenId>(rng.below(n_words)));
    request.max_tokens = n_new;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.thinking.mode = ThinkingMode::kUntracked;
    request.keep_prefix = false;
    auto sink = std::make_shared<CountingSink>();
    STILL_TRY(const RequestId id, engine_->submit(std::move(request), sink));
    (void)id;
    return sink;
  }

  std::unique_ptr<Engine> engine_;
  std::vector<std::shared_ptr<CountingSink>> sinks_;
  std::int64_t n_prompt_ = 0;
  std::uint64_t seed_ = 0;
};

// Of one quantity, tokens a second.
struct Comparison {
  Message what;
  Interval predicted;
  std::vector<double> measured;
  double error() const { return predicted.value / quantile(measured, 0.5) - 1; }
};

}  // namespace

Status print_verification(const Context& context, const PlanOptions& o, const PlanWorld& world, const std::string& name,
                          const ModelShape& shape, const Quantisation& q) {
  constexpr int kRounds = 7, kRuns = 8, kWideRuns = 3;
  constexpr std::int64_t kNew = kRounds * (kRuns + 1) + 2;
  const Words& say = world.say;
  STILL_TRY(const std::filesystem::path path, plan_model_file(context, name, "--verify"));
  const CalibrationSettings settings{.n_threads = static_cast<int>(o.threads.value_or(0))};
  STILL_TRY(const std::shared_ptr<const Model> model, Model::load(path, {.n_threads = settings.n_threads}));
  if (model->config().max_seq_len < settings.deep_kv_len + kNew)
    return error(Code::kUnsupported, "--verify needs a context of {} tokens, {} has {}", settings.deep_kv_len + kNew,
                 name, model->config().max_seq_len);
  ProgressLine line(context.err, std::chrono::milliseconds(0));
  line.update("layers with made-up weights", -1, "");
  STILL_TRY(Calibrator calibrator, Calibrator::create(shape, q, settings));
  // Prompts are shorter than the lengths that are compared by half of what the rounds add.
  struct Case {
    std::int64_t n_seqs, kv_len;
  };
  const Case cases[] = {{1, settings.decode_kv_len},
                        {1, settings.deep_kv_len},
                        {HostRound::kSeqs[1], settings.decode_kv_len},
                        {HostRound::kSeqs[2], settings.decode_kv_len}};
  std::vector<EngineProbe> probes;
  std::vector<double> kv_lengths;
  for (const Case& c : cases) {
    line.update("the engine's prompts", -1, "");
    const int runs = c.n_seqs == 1 ? kRuns : kWideRuns;
    const std::int64_t n_prompt = c.kv_len - kRounds * (runs + 1) / 2;
    STILL_TRY(EngineProbe probe, EngineProbe::create(model, settings.n_threads, c.n_seqs, n_prompt, kNew));
    STILL_TRY_STATUS(probe.begin(c.n_seqs, n_prompt, kNew));
    kv_lengths.push_back(probe.kv_len());
    probes.push_back(std::move(probe));
  }
  STILL_TRY(EngineProbe prefill_probe, EngineProbe::create(model, settings.n_threads, 1, settings.n_prompt, 1));
  STILL_TRY(const double warm, prefill_probe.prefill(settings.n_prompt));
  (void)warm;
  std::vector<std::vector<double>> measured(std::size(cases) + 1);
  for (int round = 0; round < kRounds; ++round) {
    line.update("slice and engine in turn", static_cast<double>(round) / kRounds, "");
    calibrator.round();
    for (std::size_t i = 0; i < probes.size(); ++i) {
      STILL_TRY(const double step, probes[i].decode(cases[i].n_seqs == 1 ? kRuns : kWideRuns));
      measured[i].push_back(static_cast<double>(cases[i].n_seqs) / step);
    }
    STILL_TRY(const double seconds, prefill_probe.prefill(settings.n_prompt));
    measured.back().push_back(static_cast<double>(settings.n_prompt) / seconds);
  }
  line.clear();
  const HostSpeed speed = calibrator.speed();
  std::vector<Comparison> rows;
  for (std::size_t i = 0; i < probes.size(); ++i) {
    const double kv_len = (kv_lengths[i] + probes[i].kv_len()) / 2;
    rows.push_back({message("decode of {} at {:.0f} tokens", cases[i].n_seqs, kv_len),
                    speed.point(cases[i].n_seqs, kv_len).tok_per_s_total, measured[i]});
  }
  const Interval prefill = speed.prefill_s(settings.n_prompt, settings.n_prompt);
  const auto n_prompt = static_cast<double>(settings.n_prompt);
  rows.push_back({message("prefill of {} tokens", settings.n_prompt),
                  {n_prompt / prefill.value, n_prompt / prefill.high, n_prompt / prefill.low},
                  measured.back()});

  std::vector<std::vector<std::string>> table = {{say("MODEL"), say("TEST"), say("PREDICTED tok/s"), say("INTERVAL"),
                                                  say("MEASURED tok/s"), say("INTERVAL"), say("ERROR")}};
  JsonArray array;
  for (const Comparison& row : rows) {
    const double low = quantile(row.measured, 0.1), high = quantile(row.measured, 0.9);
    table.push_back({shape.name, say(row.what), fmt::format("{:.1f}", row.predicted.value),
                     fmt::format("{:.1f} - {:.1f}", row.predicted.low, row.predicted.high),
                     fmt::format("{:.1f}", quantile(row.measured, 0.5)), fmt::format("{:.1f} - {:.1f}", low, high),
                     fmt::format("{:+.1f} %", 100 * row.error())});
    array.push_back(JsonObject{{"model", shape.name},
                               {"test", row.what.english},
                               {"predicted", row.predicted.value},
                               {"predicted_low", row.predicted.low},
                               {"predicted_high", row.predicted.high},
                               {"measured", quantile(row.measured, 0.5)},
                               {"measured_low", low},
                               {"measured_high", high},
                               {"error", row.error()}});
  }
  using enum Align;
  if (o.json)
    fmt::print("{}\n", to_json(array));
  else
    fmt::print("{}{}\n", format_table({kLeft, kLeft, kRight, kRight, kRight, kRight, kRight}, table),
               say(message("{} of {} layers with made-up weights against the engine with the model, {} rounds in turn, "
                           "medians",
                           speed.slice_layers, shape.config.n_layers, kRounds)));
  return ok();
}

}  // namespace still

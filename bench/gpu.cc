// still_gpu_bench: speed of the engine on a GPU with random weights in the shapes of real models, beside what the card
// itself can read in the same run.
//
//   still_gpu_bench [--model 1.5b|7b|8b|14b|32b] [--type bf16|fp8|q8_0|q4_k_m] [--seqs 1,16,64] [--context 512]
//                   [--new 128] [--prefill 512] [--prompts 16] [--repeat 3] [--serve IN,OUT] [--rounds 2]
//                   [--idle 1] [--overlap 0] [--reproducible 1] [--sampling 1] [--chunk 8192] [--tensor-parallel 1,2]
//                   [--kv-type f16|bf16|int8|fp8]
//
// decode: tokens a second of all sequences after `context` tokens each; floor: bytes that a step must read over the
// read bandwidth measured here. prefill: `prompts` prompts of that length at once. serve: for each number of --seqs so
// many requests at a time, each followed by another until there were rounds as many; tokens of answers over all the
// time; after a round of short answers that warms up. --idle: events around each step; the GPU's time between steps
// that followed one another.
// --sampling: temperature 0.8, top-k 50, top-p 0.95 instead of the best token.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>

#include "base/rng.h"
#include "engine/bench.h"
#include "engine/engine.h"
#include "kernels/cuda/cuda_kernels.h"
#include "tensor/cuda.h"

namespace still {
namespace {

struct Shape4 {
  std::string_view name, type;
  std::int32_t n_layers;
  std::int64_t hidden, ffn;
  std::int32_t n_heads, n_kv_heads;
  std::int64_t vocab;
  double theta;
};
// DeepSeek-R1-Distill-*: config.json of each. Heads are 128 wide.
constexpr Shape4 kShapes[] = {{"1.5b", "qwen2", 28, 1536, 8960, 12, 2, 151936, 10000},
                              {"7b", "qwen2", 28, 3584, 18944, 28, 4, 152064, 10000},
                              {"8b", "llama", 32, 4096, 14336, 32, 8, 128256, 500000},
                              {"14b", "qwen2", 48, 5120, 13824, 40, 8, 152064, 1000000},
                              {"32b", "qwen2", 64, 5120, 27648, 40, 8, 152064, 1000000}};

ModelConfig config_of(const Shape4& shape) {
  ModelConfig config;
  config.model_type = shape.type;
  config.n_layers = shape.n_layers;
  config.hidden_size = shape.hidden;
  config.intermediate_size = shape.ffn;
  config.n_heads = shape.n_heads;
  config.n_kv_heads = shape.n_kv_heads;
  config.head_dim = 128;
  config.vocab_size = shape.vocab;
  config.max_seq_len = 131072;
  config.attention_bias = shape.type == "qwen2";
  config.rope.n_rot = 128;
  config.rope.theta = shape.theta;
  return config;
}

// llama.cpp's Q4_K_M: values and down projections of half of the layers and the head in Q6_K.
DType q4_k_m(const TensorSpec& spec, std::int32_t n_layers) {
  if (spec.name == "lm_head.weight") return DType::kQ6_K;
  if (!spec.name.ends_with("v_proj.weight") && !spec.name.ends_with("down_proj.weight")) return DType::kQ4_K;
  const int layer = std::atoi(spec.name.c_str() + std::string_view("model.layers.").size());
  const bool is_more = layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
  return is_more ? DType::kQ6_K : DType::kQ4_K;
}

struct Sink : EventSink {
  void on_event(const Event& event) override {
    if (std::holds_alternative<TokenEvent>(event)) ++n_tokens;
    if (const auto* end = std::get_if<FinishedEvent>(&event)) {
      is_finished = true;
      if (end->reason == FinishReason::kError) error = end->error.message;
    }
  }
  std::int64_t n_tokens = 0;
  bool is_finished = false;
  std::string error;
};

// Tokens a second of many prompts at once, until each has its first token.
Result<double> prefill(Engine& engine, std::int64_t n_prompts, std::int64_t length, std::uint64_t seed) {
  std::vector<std::shared_ptr<Sink>> sinks;
  Rng rng(seed);
  for (std::int64_t i = 0; i < n_prompts; ++i) {
    Request request;
    for (std::int64_t t = 0; t < length; ++t)
      request.prompt.push_back(static_cast<TokenId>(rng.below(engine.model().config().vocab_size)));
    request.max_tokens = 1;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.thinking.mode = ThinkingMode::kUntracked;
    request.keep_prefix = false;
    sinks.push_back(std::make_shared<Sink>());
    STILL_TRY([[maybe_unused]] const RequestId id, engine.submit(std::move(request), sinks.back()));
  }
  const auto start = std::chrono::steady_clock::now();
  while (engine.step()) {
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const auto& sink : sinks)
    if (!sink->error.empty()) return error(Code::kInternal, "{}", sink->error);
  return static_cast<double>(n_prompts * length) / seconds;
}

// Random prompts of n_in tokens and answers of n_out, `at_once` of them at a time, `n_requests` in all.
Status serve(Engine& engine, std::int64_t at_once, std::int64_t n_requests, std::int64_t n_in, std::int64_t n_out) {
  Rng rng(99);
  std::vector<std::shared_ptr<Sink>> sinks;
  std::int64_t n_sent = 0, n_tokens = 0;
  const EngineStats before = engine.stats();
  const auto start = std::chrono::steady_clock::now();
  while (n_sent < n_requests || !sinks.empty()) {
    while (n_sent < n_requests && static_cast<std::int64_t>(sinks.size()) < at_once) {
      Request request;
      for (std::int64_t t = 0; t < n_in; ++t)
        request.prompt.push_back(static_cast<TokenId>(rng.below(engine.model().config().vocab_size)));
      request.max_tokens = n_out;
      request.sampling.temperature = 0;
      request.sampling.ignore_eos = true;
      request.thinking.mode = ThinkingMode::kUntracked;
      request.keep_prefix = false;
      sinks.push_back(std::make_shared<Sink>());
      STILL_TRY([[maybe_unused]] const RequestId id, engine.submit(std::move(request), sinks.back()));
      ++n_sent;
    }
    engine.step();
    for (const auto& sink : sinks) {
      if (!sink->is_finished) continue;
      if (!sink->error.empty()) return error(Code::kInternal, "{}", sink->error);
      n_tokens += sink->n_tokens;
    }
    std::erase_if(sinks, [](const auto& sink) { return sink->is_finished; });
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const EngineStats after = engine.stats();
  fmt::print(
      "serve {} in, {} out, {} at once, {} requests: {:.0f} output tok/s, first token after {:.2f} s, {:.2f} ms "
      "between tokens (means), {} steps in {:.1f} s\n",
      n_in, n_out, at_once, n_requests, static_cast<double>(n_tokens) / seconds,
      (after.ttft.sum - before.ttft.sum) / static_cast<double>(after.ttft.n - before.ttft.n),
      1e3 * (after.inter_token.sum - before.inter_token.sum) /
          static_cast<double>(after.inter_token.n - before.inter_token.n),
      after.n_steps - before.n_steps, seconds);
  std::fflush(stdout);
  return ok();
}

// What the GPU did between two snapshots.
void print_idle(const EngineStats& before, const EngineStats& after) {
  const double idle = after.device_idle_s - before.device_idle_s, busy = after.device_busy_s - before.device_busy_s;
  const auto n = static_cast<double>(after.n_steps - before.n_steps);
  if (busy <= 0 || n <= 0) return;
  fmt::print("  GPU: {:.3f} ms busy a step, {:.1f} us idle between steps, {:.2f} %\n", 1e3 * busy / n, 1e6 * idle / n,
             100 * idle / (idle + busy));
  std::fflush(stdout);
}

constexpr std::int64_t kWarmTokens = 48;  // more than steps with prompts in them

struct Arguments {
  std::string model = "7b", type = "bf16";
  std::vector<std::int64_t> seqs = {1};
  std::int64_t context = 512, n_new = 128, prefill = 0, prompts = 16, repeat = 3, rounds = 2, chunk = 0;
  std::vector<std::int64_t> serve;  // tokens in, tokens out
  bool idle = false, overlap = true, reproducible = false, sampling = false;
  std::vector<std::int64_t> tensor_parallel = {1};
  KvType kv_type = KvType::kF16;
};

std::vector<std::int64_t> numbers(std::string_view text) {
  std::vector<std::int64_t> values;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    values.push_back(std::atoll(std::string(text.substr(0, comma)).c_str()));
    text.remove_prefix(std::min(text.size(), comma + 1));
  }
  return values;
}

Status run(const Arguments& arguments, std::int64_t n_ranks) {
  std::string reason;
  const auto devices = list_cuda_devices(&reason);
  if (devices.empty()) return error(Code::kUnavailable, "no GPU: {}", reason);
  const auto* shape =
      std::find_if(std::begin(kShapes), std::end(kShapes), [&](const Shape4& s) { return s.name == arguments.model; });
  if (shape == std::end(kShapes)) return error(Code::kInvalidArgument, "--model {}: unknown", arguments.model);
  STILL_TRY(const double bandwidth, measure_cuda_read_bandwidth());
  RandomModelSpec spec;
  spec.config = config_of(*shape);
  spec.type_of = [&](const TensorSpec& tensor) {
    if (arguments.type == "q4_k_m") return q4_k_m(tensor, shape->n_layers);
    return arguments.type == "q8_0" ? DType::kQ8_0 : DType::kBF16;
  };
  spec.to_f8 = arguments.type == "fp8";
  std::vector<std::int32_t> ranks;
  for (const CudaDeviceInfo& device : devices)
    if (static_cast<std::int64_t>(ranks.size()) < n_ranks) ranks.push_back(device.index);
  if (static_cast<std::int64_t>(ranks.size()) < n_ranks)
    return error(Code::kUnavailable, "--tensor-parallel {}: there are {} GPUs", n_ranks, devices.size());
  STILL_TRY(const std::shared_ptr<const Model> model, Model::over_devices(ranks, [&](Rank rank, std::int32_t device) {
              spec.rank = rank;
              spec.cuda_device = device;
              return Model::make_random(spec);
            }));
  EngineOptions options;
  options.prefix_cache = false;
  options.max_queue = 4096;
  options.step = {.target_s = 0, .max_stall = 0};
  const std::int64_t most = std::max(*std::max_element(arguments.seqs.begin(), arguments.seqs.end()),
                                     arguments.prefill > 0 ? arguments.prompts : 1);
  options.settings.max_seqs = most;
  std::int64_t length = std::max(arguments.context + (arguments.repeat + 2) * arguments.n_new, arguments.prefill) + 64;
  if (arguments.serve.size() == 2) length = arguments.serve[0] + arguments.serve[1] + 32;
  options.settings.reproducible = arguments.reproducible;
  options.settings.kv_type = arguments.kv_type;
  options.settings.measure_idle = arguments.idle;
  options.run_ahead = arguments.overlap;
  if (arguments.chunk > 0) options.settings.chunk_tokens = arguments.chunk;
  options.settings.context = length;
  options.settings.kv_tokens = most * (length + 64);
  STILL_TRY(const std::unique_ptr<Engine> engine, Engine::create(model, options));
  const MemoryPlan& plan = engine->plan();
  fmt::print("# {} x {} (driver CUDA {}), {:.2f} TB/s read; {} {}: {:.2f} GB of weights, {:.2f} GB a token\n", n_ranks,
             devices[0].name, devices[0].driver, bandwidth * 1e-12, arguments.model, arguments.type,
             static_cast<double>(model->weight_bytes()) * 1e-9, static_cast<double>(model->bytes_per_token()) * 1e-9);
  for (const std::int64_t n : arguments.seqs) {
    if (n <= 0) continue;
    const EngineStats before = engine->stats();
    if (arguments.serve.size() == 2) {
      // Algorithms are measured and steps captured when a size first comes: not in the figure.
      STILL_TRY_STATUS(serve(*engine, n, n, arguments.serve[0], kWarmTokens));
      const EngineStats warm = engine->stats();
      STILL_TRY_STATUS(serve(*engine, n, arguments.rounds * n, arguments.serve[0], arguments.serve[1]));
      print_idle(warm, engine->stats());
      continue;
    }
    STILL_TRY(const BenchRuns runs, bench_decode(*engine, arguments.n_new, arguments.context, n,
                                                 static_cast<int>(arguments.repeat), arguments.sampling));
    const double kv = static_cast<double>(arguments.context) + static_cast<double>(arguments.n_new) / 2;
    const double bytes = static_cast<double>(model->bytes_per_token()) +
                         static_cast<double>(n) * kv * static_cast<double>(plan.kv_bytes_per_token);
    const double floor = static_cast<double>(n) / (bytes / bandwidth);
    fmt::print(
        "decode {:>5} {:>6} seqs {:>3} context {}: {:>9.1f} tok/s (min {:.1f}, max {:.1f}), {:.3f} ms a step, floor "
        "{:.0f}, {:.0f} %\n",
        arguments.model, arguments.type, n, arguments.context, runs.median(), runs.min(), runs.max(),
        1e3 * static_cast<double>(n) / runs.median(), floor, 100 * runs.median() / floor);
    print_idle(before, engine->stats());
    std::fflush(stdout);
  }
  if (arguments.prefill > 0) {
    for (const std::int64_t prompts : {std::int64_t{1}, arguments.prompts}) {
      double best = 0, worst = 1e30;
      for (std::int64_t i = 0; i <= arguments.repeat; ++i) {
        STILL_TRY(const double rate, prefill(*engine, prompts, arguments.prefill, 7 + static_cast<std::uint64_t>(i)));
        if (i == 0) continue;
        best = std::max(best, rate);
        worst = std::min(worst, rate);
      }
      const double flops = 2 * static_cast<double>(model->macs_per_token());
      fmt::print("prefill {:>4} {:>6} {} x {}: {:.0f} to {:.0f} tok/s, {:.2f} ms, {:.0f} TFLOP/s\n", arguments.model,
                 arguments.type, prompts, arguments.prefill, worst, best,
                 1e3 * static_cast<double>(prompts * arguments.prefill) / best, best * flops * 1e-12);
      std::fflush(stdout);
    }
  }
  return ok();
}

}  // namespace
}  // namespace still

int main(int argc, char** argv) {
  still::Arguments arguments;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    const std::string value = argv[i + 1];
    if (name == "--model") arguments.model = value;
    if (name == "--type") arguments.type = value;
    if (name == "--tensor-parallel") arguments.tensor_parallel = still::numbers(value);
    if (name == "--seqs") arguments.seqs = still::numbers(value);
    if (name == "--context") arguments.context = std::atoll(value.c_str());
    if (name == "--new") arguments.n_new = std::atoll(value.c_str());
    if (name == "--prefill") arguments.prefill = std::atoll(value.c_str());
    if (name == "--prompts") arguments.prompts = std::atoll(value.c_str());
    if (name == "--repeat") arguments.repeat = std::atoll(value.c_str());
    if (name == "--rounds") arguments.rounds = std::atoll(value.c_str());
    if (name == "--chunk") arguments.chunk = std::atoll(value.c_str());
    if (name == "--serve") arguments.serve = still::numbers(value);
    if (name == "--idle") arguments.idle = value != "0";
    if (name == "--overlap") arguments.overlap = value != "0";
    if (name == "--reproducible") arguments.reproducible = value != "0";
    if (name == "--sampling") arguments.sampling = value != "0";
    if (name == "--kv-type") arguments.kv_type = still::kv_type_of(value).value_or(still::KvType::kF16);
  }
  for (const std::int64_t n_ranks : arguments.tensor_parallel) {
    if (const still::Status done = still::run(arguments, n_ranks); !done) {
      fmt::print(stderr, "still_gpu_bench: {}\n", done.error().message);
      return 1;
    }
  }
  return 0;
}

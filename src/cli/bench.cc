// still bench: tokens a second of prefill, decode, decode at depth and batched decode, each with its share of what the
// machine itself can do, measured in the same run (docs/bench.md has the formulas).
#include "engine/bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "base/json.h"
#include "base/machine_limits.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/model_ref.h"
#include "cli/table.h"
#include "hub/file_io.h"
#include "kernels/dispatch.h"
#include "kernels/int8_peak.h"

namespace still {
namespace {

struct BenchOptions {
  std::string model;
  std::vector<std::int64_t> prefill = {512};
  std::vector<std::int64_t> decode = {128};
  std::vector<std::int64_t> depth;  // empty: 0 and 1024 for one sequence, 0 for several
  std::vector<std::int64_t> seqs = {1, 4};
  std::int64_t repeat = 3;
  EngineArguments engine;
  bool json = false;
};

struct Case {
  std::string_view test;  // "prefill", "decode", "batched"
  std::int64_t n_prompt = 0, n_gen = 0, depth = 0, n_seqs = 1;
};

struct Row {
  Case what;
  BenchRuns runs;
  std::optional<double> limit_share;
};

struct Limits {
  double bytes_per_s = 0;
  double macs_per_s = 0;  // 0: unknown
};

std::vector<Case> list_cases(const BenchOptions& options) {
  std::vector<Case> cases;
  for (const std::int64_t n_prompt : options.prefill) {
    if (n_prompt > 0) cases.push_back({.test = "prefill", .n_prompt = n_prompt});
  }
  for (const std::int64_t n_seqs : options.seqs) {
    std::vector<std::int64_t> depths = options.depth;
    if (depths.empty()) depths = n_seqs == 1 ? std::vector<std::int64_t>{0, 1024} : std::vector<std::int64_t>{0};
    for (const std::int64_t depth : depths) {
      for (const std::int64_t n_gen : options.decode) {
        if (n_gen <= 0) continue;
        cases.push_back({.test = n_seqs == 1 ? "decode" : "batched", .n_gen = n_gen, .depth = depth, .n_seqs = n_seqs});
      }
    }
  }
  return cases;
}

// Tokens a second that the machine allows: a step can be no faster than reading what it reads (weights once, each
// sequence's keys and values) and no faster than its integer products. Attention's own arithmetic is not counted.
std::optional<double> roof(const Case& what, const Model& model, const MemoryPlan& plan, const Limits& limits) {
  const auto macs = static_cast<double>(model.macs_per_token());
  const auto head_macs = static_cast<double>(model.head_macs());
  if (what.test == "prefill") {
    if (limits.macs_per_s <= 0) return std::nullopt;
    const auto n_prompt = static_cast<double>(what.n_prompt);
    return n_prompt / ((n_prompt * macs + head_macs) / limits.macs_per_s);
  }
  const auto n_seqs = static_cast<double>(what.n_seqs);
  const double kv_len = static_cast<double>(what.depth) + static_cast<double>(what.n_gen) / 2;
  const double step_bytes =
      static_cast<double>(model.bytes_per_token()) + n_seqs * kv_len * static_cast<double>(plan.kv_bytes_per_token);
  double seconds = step_bytes / limits.bytes_per_s;
  if (limits.macs_per_s > 0) seconds = std::max(seconds, n_seqs * (macs + head_macs) / limits.macs_per_s);
  return n_seqs / seconds;
}

Json to_json_row(const Row& row, int n_threads) {
  return JsonObject{
      {"test", row.what.test},
      {"n_prompt", row.what.n_prompt},
      {"n_gen", row.what.n_gen},
      {"depth", row.what.depth},
      {"n_seqs", row.what.n_seqs},
      {"threads", n_threads},
      {"tokens_per_s", JsonObject{{"median", row.runs.median()}, {"min", row.runs.min()}, {"max", row.runs.max()}}},
      {"limit_share", row.limit_share ? Json(*row.limit_share) : Json(nullptr)}};
}

void print_rows(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> cells = {
      {"TEST", "PROMPT", "NEW", "DEPTH", "SEQS", "TOK/S", "MIN", "MAX", "OF LIMIT"}};
  for (const Row& row : rows) {
    cells.push_back({std::string(row.what.test), std::to_string(row.what.n_prompt), std::to_string(row.what.n_gen),
                     std::to_string(row.what.depth), std::to_string(row.what.n_seqs),
                     fmt::format("{:.1f}", row.runs.median()), fmt::format("{:.1f}", row.runs.min()),
                     fmt::format("{:.1f}", row.runs.max()),
                     row.limit_share ? fmt::format("{:.0f} %", 100 * *row.limit_share) : "-"});
  }
  using enum Align;
  fmt::print("{}", format_table({kLeft, kRight, kRight, kRight, kRight, kRight, kRight, kRight, kRight}, cells));
}

Status check_options(const BenchOptions& options, const std::vector<Case>& cases) {
  if (options.repeat < 1) return error(Code::kInvalidArgument, "--repeat {}: expected 1 or more", options.repeat);
  for (const std::int64_t n_seqs : options.seqs) {
    if (n_seqs < 1) return error(Code::kInvalidArgument, "--seqs {}: expected 1 or more", n_seqs);
  }
  const auto check_lengths = [](const char* name, const std::vector<std::int64_t>& values) -> Status {
    for (const std::int64_t value : values) {
      if (value < 0) return error(Code::kInvalidArgument, "{} {}: expected 0 or more tokens", name, value);
    }
    return ok();
  };
  STILL_TRY_STATUS(check_lengths("--prefill", options.prefill));
  STILL_TRY_STATUS(check_lengths("--decode", options.decode));
  STILL_TRY_STATUS(check_lengths("--depth", options.depth));
  if (cases.empty()) return error(Code::kInvalidArgument, "nothing to measure: --prefill and --decode are 0");
  return ok();
}

Result<Limits> measure_limits(const Context& context, const Model& model, int n_threads) {
  if (model.cuda_device() >= 0) {
    Limits limits;
    STILL_TRY(limits.bytes_per_s, measure_cuda_read_bandwidth());
    return limits;
  }
  ProgressLine line(context.err, std::chrono::milliseconds(0));
  line.update("measuring the machine", -1, "");
  STILL_TRY(const CpuKernels* kernels, default_cpu_kernels());
  ThreadPool threads({.n_threads = n_threads});
  Limits limits;
  STILL_TRY(limits.bytes_per_s, measure_read_bandwidth(threads));
  limits.macs_per_s = measure_int8_peak(threads, kernels->name);
  return limits;
}

Status bench(const BenchOptions& options, const Context& context) {
  const std::vector<Case> cases = list_cases(options);
  STILL_TRY_STATUS(check_options(options, cases));
  STILL_TRY(EngineOptions engine_options, to_engine_options(options.engine));
  STILL_TRY(const ResolvedModel found, find_model_here(context, options.model));
  STILL_TRY(const std::shared_ptr<const Model> model,
            load_model(context, found, engine_options.settings.n_threads, &options.engine));

  // Room for the longest case, and as many sequences as the widest.
  EngineSettings& settings = engine_options.settings;
  settings.context = 0;
  settings.max_seqs = 1;
  std::int64_t kv_tokens = 0;
  for (const Case& what : cases) {
    const std::int64_t n_tokens =
        std::max<std::int64_t>(what.n_prompt, 1) + what.depth + what.n_gen + 2 * settings.block_size;
    settings.context = std::max(settings.context, n_tokens);
    settings.max_seqs = std::max(settings.max_seqs, what.n_seqs);
    kv_tokens = std::max(kv_tokens, what.n_seqs * (n_tokens + settings.block_size));
  }
  settings.kv_tokens = std::max(kv_tokens, settings.context);
  engine_options.prefix_cache = false;
  STILL_TRY(engine_options.draft, load_draft(context, options.engine));
  STILL_TRY(const std::unique_ptr<Engine> engine, Engine::create(model, engine_options));
  const int n_threads = engine->plan().settings.n_threads;
  STILL_TRY(const Limits limits, measure_limits(context, *model, n_threads));

  std::vector<Row> rows;
  const auto n_repeats = static_cast<int>(options.repeat);
  for (const Case& what : cases) {
    ProgressLine line(context.err, std::chrono::milliseconds(0));
    line.update(fmt::format("{}: prompt {}, new {}, depth {}, sequences {}", what.test, what.n_prompt, what.n_gen,
                            what.depth, what.n_seqs),
                static_cast<double>(rows.size()) / static_cast<double>(cases.size()), "");
    Row row{.what = what};
    if (what.test == "prefill") {
      STILL_TRY(row.runs, bench_prefill(*engine, what.n_prompt, n_repeats));
    } else {
      STILL_TRY(row.runs, bench_decode(*engine, what.n_gen, what.depth, what.n_seqs, n_repeats));
    }
    if (const std::optional<double> limit = roof(what, *model, engine->plan(), limits)) {
      row.limit_share = row.runs.median() / *limit;
    }
    rows.push_back(std::move(row));
  }

  if (options.json) {
    JsonArray array;
    for (const Row& row : rows) array.push_back(to_json_row(row, n_threads));
    fmt::print("{}\n", to_json(array));
    return ok();
  }
  STILL_TRY(const CpuKernels* kernels, default_cpu_kernels());
  if (model->cuda_device() >= 0) {
    fmt::print("{}: {} packed, on GPU {}", found.name, format_bytes(model->weight_bytes()), model->cuda_device());
    if (const std::size_t n_ranks = model->ranks().size(); n_ranks > 0) fmt::print(", one of {}", n_ranks);
    if (model->n_host_layers() > 0)
      fmt::print(", and {} for {} of {} layers on the CPU", format_bytes(model->host_weight_bytes()),
                 model->n_host_layers(), model->config().n_layers);
    fmt::print("\n");
  } else {
    fmt::print("{}: {} packed, kernels {}, {} threads\n", found.name, format_bytes(model->weight_bytes()),
               kernels->name, n_threads);
  }
  fmt::print("limits of this machine: {:.1f} GB/s read", limits.bytes_per_s * 1e-9);
  if (limits.macs_per_s > 0) fmt::print(", {:.0f} G int8 multiply-accumulates/s", limits.macs_per_s * 1e-9);
  fmt::print("\n\n");
  print_rows(rows);
  const EngineStats stats = engine->stats();
  if (const std::int64_t n = stats.screened_rows + stats.unscreened_rows; n > 0 && stats.screened_panels > 0) {
    fmt::print("\noutput head: {:.0f} % of {} rows of logits from its coarse copy and {:.1f} % of its exact rows\n",
               100.0 * static_cast<double>(stats.screened_rows) / static_cast<double>(n), n,
               100.0 * static_cast<double>(stats.exact_panels) / static_cast<double>(stats.screened_panels));
  }
  return ok();
}

Command::Action declare_bench(Options& options) {
  auto chosen = std::make_shared<BenchOptions>();
  options.required("MODEL", &chosen->model, "A store name, or the path of a file or folder");
  options.list("-p,--prefill", &chosen->prefill, "Prompt lengths to measure; 0: none [512]");
  options.list("-n,--decode", &chosen->decode, "New tokens to measure; 0: none [128]");
  options.list("-d,--depth", &chosen->depth, "Tokens in the context before decoding [0,1024; 0 for several sequences]");
  options.list("-s,--seqs", &chosen->seqs, "Sequences decoded together [1,4]");
  options.value("-r,--repeat", &chosen->repeat, "Counted runs of each test, after one that is not");
  declare_engine_arguments(options, chosen->engine);
  options.flag("--json", &chosen->json, "An array of rows");
  return [chosen](const Context& context) { return bench(*chosen, context); };
}

}  // namespace

extern const Command kBenchCommand;
const Command kBenchCommand{
    .name = "bench",
    .alias = nullptr,
    .summary = "Measure speed: prefill, decode, decode at depth, batched decode",
    .examples =
        "  still bench smollm2:135m\n"
        "  still bench qwen2.5:0.5b --threads 2 --prefill 512 --decode 128 --depth 0,4096 --seqs 1,4,16\n"
        "  still bench --json ./model.gguf --decode 0 | jq '.[].tokens_per_s.median'",
    .declare = declare_bench};

}  // namespace still

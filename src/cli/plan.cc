// still plan: what a model takes, whether it fits, how fast it is and what it costs, before anything is fetched or
// rented. The figures are plan/'s (docs/plan.md has the formulas); this file reads options and decides what is printed;
// the parts are in plan_*.cc.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "base/text_file.h"
#include "cli/command.h"
#include "cli/plan_options.h"

namespace still {
namespace {

// --lang, else the locale's language.
bool wants_chinese(const std::string& lang) {
  if (!lang.empty()) return lang == "zh";
  for (const char* name : {"LC_ALL", "LC_MESSAGES", "LANG"}) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return std::string_view(value).starts_with("zh");
  }
  return false;
}

Status check_numbers(const PlanOptions& o) {
  for (const std::int64_t n : o.contexts)
    if (n < 1) return error(Code::kInvalidArgument, "--context {}: expected 1 token or more", n);
  for (const std::int64_t n : o.concurrencies)
    if (n < 1) return error(Code::kInvalidArgument, "--seqs {}: expected 1 or more", n);
  struct Number {
    const char* name;
    const std::optional<double>& value;
    double most;
  };
  const Number numbers[] = {{"utilisation", o.utilisation, 1},
                            {"latency", o.latency_ms, 1e7},
                            {"usd-per-hour", o.usd_per_hour, 1e7},
                            {"answer-tokens", o.answer_tokens, 1e8},
                            {"min-rate", o.min_rate, 1e6},
                            {"host-memory", o.host_gib, 1e7},
                            {"network", o.network_gbs, 1e5},
                            {"purchase", o.purchase_usd, 1e10},
                            {"power", o.power_w, 1e8},
                            {"usd-per-kwh", o.usd_per_kwh, 1e3},
                            {"years", o.years, 100}};
  for (const Number& number : numbers)
    if (number.value && (!(*number.value > 0) || *number.value > number.most))
      return error(Code::kInvalidArgument, "--{} {}: expected more than 0, at most {}", number.name, *number.value,
                   number.most);
  if (o.threads && (*o.threads < 1 || *o.threads > 1024))
    return error(Code::kInvalidArgument, "--threads {}: expected 1 to 1024", *o.threads);
  return ok();
}

// What an answer would not depend on is refused rather than ignored.
Status check_relevance(const PlanOptions& o) {
  struct Given {
    const char* name;
    bool is_given;
  };
  const auto refuse = [](std::initializer_list<Given> options, std::string_view why) -> Status {
    for (const Given& option : options)
      if (option.is_given) return error(Code::kInvalidArgument, "--{}: {}", option.name, why);
    return ok();
  };
  const ShapeOptions& s = o.shape;
  if (s.arch.empty())
    STILL_TRY_STATUS(refuse({{"layers", s.layers.has_value()},
                             {"hidden", s.hidden.has_value()},
                             {"heads", s.heads.has_value()},
                             {"kv-heads", s.kv_heads.has_value()},
                             {"head-dim", s.head_dim.has_value()},
                             {"ffn", s.ffn.has_value()},
                             {"vocab", s.vocab.has_value()},
                             {"max-context", s.context.has_value()},
                             {"window", s.window.has_value()},
                             {"tied", s.tied},
                             {"q-rank", s.q_rank.has_value()},
                             {"kv-rank", s.kv_rank.has_value()},
                             {"nope-dim", s.nope.has_value()},
                             {"rope-dim", s.rope.has_value()},
                             {"value-dim", s.value.has_value()},
                             {"experts", s.experts.has_value()},
                             {"experts-per-token", s.experts_per_tok.has_value()},
                             {"shared-experts", s.shared_experts.has_value()},
                             {"expert-ffn", s.expert_ffn.has_value()},
                             {"dense-layers", s.dense_layers.has_value()},
                             {"mtp-layers", s.mtp_layers.has_value()}},
                            "part of a bare shape, which needs --arch; a named model has its own"));
  const std::initializer_list<Given> deployment = {{"engine", o.engine.has_value()},
                                                   {"tensor", o.tensor.has_value()},
                                                   {"pipeline", o.pipeline.has_value()},
                                                   {"expert", o.expert.has_value()},
                                                   {"data", o.data.has_value()},
                                                   {"redundant-experts", o.redundant.has_value()},
                                                   {"network", o.network_gbs.has_value()},
                                                   {"utilisation", o.utilisation.has_value()},
                                                   {"overhead", o.overhead_gib.has_value()},
                                                   {"mtp", o.mtp},
                                                   {"experts-on-host", o.experts_on_host}};
  const std::initializer_list<Given> files = {{"csv", o.csv}, {"chart", o.chart.has_value()}};
  const std::string first = o.words.empty() ? "" : o.words.front();
  if (first == "check" || first == "devices" || first == "machine") {
    STILL_TRY_STATUS(refuse(files, "not of this list (--json is)"));
    return refuse(deployment, "this list depends on no deployment");
  }
  if (o.advise) {
    if (!o.words.empty())
      return error(Code::kInvalidArgument, "\"{}\": --advise chooses the model; leave its name out", first);
    STILL_TRY_STATUS(refuse(files, "an advice has none (--json is)"));
    return refuse(deployment, "--advise takes the best use of the devices; leave it out");
  }
  if (o.fit || o.break_even) {
    STILL_TRY_STATUS(refuse(files, o.fit ? "--fit has none (--json is)" : "--break-even has none (--json is)"));
    return ok();
  }
  STILL_TRY_STATUS(refuse({{"min-rate", o.min_rate.has_value()},
                           {"answer-tokens", o.answer_tokens.has_value()},
                           {"permissive", o.permissive}},
                          "only --advise asks for it"));
  if (!o.devices.empty()) return ok();
  STILL_TRY_STATUS(refuse(files, "needs --on DEVICES: the plan of this machine has none (--json is)"));
  STILL_TRY_STATUS(refuse(deployment, "needs --on DEVICES: without it the plan is of this machine and this engine"));
  STILL_TRY_STATUS(refuse({{"usd-per-hour", o.usd_per_hour.has_value()}}, "needs --on DEVICES"));
  return refuse({{"latency", o.latency_ms.has_value() && !o.calibrate}},
                "needs --on DEVICES, or --calibrate on this machine");
}

Status plan(const PlanOptions& o, const Context& context) {
  PlanWorld world;
  world.say.is_chinese = wants_chinese(o.lang);
  STILL_TRY(world.data, ClaimWorld::read());
  if (o.device_file) {
    STILL_TRY(const std::string text, read_text_file(*o.device_file, std::int64_t{16} << 20));
    STILL_TRY(std::vector<Device> own, read_devices(text, *o.device_file));
    own.insert(own.end(), world.data.devices.begin(), world.data.devices.end());
    world.data.devices = std::move(own);
  }
  STILL_TRY_STATUS(check_numbers(o));
  STILL_TRY_STATUS(check_relevance(o));
  if (o.chart && !o.chart->ends_with(".svg") && !o.chart->ends_with(".html") && !o.chart->ends_with(".htm"))
    return error(Code::kInvalidArgument, "--chart {}: expected a name that ends with .svg or .html", *o.chart);
  const std::string first = o.words.empty() ? "" : o.words.front();
  if (o.json && o.csv) return error(Code::kInvalidArgument, "--json and --csv: choose one of them");
  if ((first == "devices" || first == "machine") && o.words.size() > 1)
    return error(Code::kInvalidArgument, "\"{}\": nothing can follow {}", o.words[1], first);
  if (first == "check") return check_claim(o, world);
  if (first == "devices") return list_devices(o, world);
  if (first == "machine") return print_machine(o, world);
  if ((o.calibrate || o.verify || o.contract) && !o.devices.empty())
    return error(Code::kInvalidArgument, "--{} measures this machine: leave --on out",
                 o.calibrate ? "calibrate"
                 : o.verify  ? "verify"
                             : "contract");
  if (o.advise && o.devices.size() > 1)
    return error(Code::kInvalidArgument, "--advise: {} device sets, expected one --on", o.devices.size());
  if (o.advise) return print_advice(o, world);
  if (o.words.empty() && o.shape.arch.empty())
    return error(Code::kInvalidArgument, "name a model, a file, a source, or a shape (--arch qwen2 --layers ...)");

  struct Wanted {
    std::string name, quant;
    ModelShape shape;
  };
  std::vector<Wanted> models;
  if (!o.shape.arch.empty()) {
    STILL_TRY(ModelShape shape, shape_of_options(o.shape));
    models.push_back({.quant = "Q4_K_M", .shape = std::move(shape)});
  }
  for (const std::string& name : o.words) {
    Wanted wanted{.name = name};
    STILL_TRY(wanted.shape, find_plan_shape(context, world, name, wanted.quant));
    if (wanted.quant.empty()) wanted.quant = wanted.shape.has_own_types ? "own" : "Q4_K_M";
    models.push_back(std::move(wanted));
  }
  std::vector<DeviceSet> sets;
  for (const std::string& text : o.devices) {
    STILL_TRY(DeviceSet set, parse_device_set(world.data.devices, text));
    sets.push_back(std::move(set));
  }
  if (o.break_even && sets.empty())
    return error(Code::kInvalidArgument, "--break-even needs --on DEVICES (`still plan devices` lists them)");
  if (o.fit && sets.empty()) return error(Code::kInvalidArgument, "--fit needs --on DEVICES");

  std::vector<PlannedCell> cells;
  std::string csv = csv_header();
  const std::size_t n_models = models.size(), n_types = std::max<std::size_t>(1, o.quants.size()),
                    n_cells = n_models * n_types * sets.size() * std::max<std::size_t>(1, o.contexts.size()) *
                              std::max<std::size_t>(1, o.concurrencies.size());
  const bool has_curve = o.json || o.chart || n_cells == 1;
  const ModelShape* last_shape = nullptr;
  Quantisation last_quant;
  DeviceSet last_set;
  for (const Wanted& wanted : models) {
    const ModelShape& shape = wanted.shape;
    for (const std::string& name : o.quants.empty() ? std::vector<std::string>{wanted.quant} : o.quants) {
      STILL_TRY(const Quantisation q, find_quantisation(name));
      if (sets.empty()) {
        STILL_TRY_STATUS(plan_here(context, o, world, wanted.name, shape, q));
        continue;
      }
      for (const DeviceSet& set : sets) {
        if (o.fit || o.break_even) {
          STILL_TRY_STATUS((o.fit ? print_offload : print_break_even)(o, world, shape, q, set));
          continue;
        }
        STILL_TRY(PlannedDeployment deployment, PlannedDeployment::make(world, o, shape, q, set));
        const std::vector<std::int64_t> usual = {std::min<std::int64_t>(8192, shape.config.max_seq_len)};
        for (const std::int64_t n_context : o.contexts.empty() ? usual : o.contexts) {
          for (const std::int64_t n_seqs : o.concurrencies.empty() ? std::vector<std::int64_t>{1} : o.concurrencies) {
            STILL_TRY(PlannedCell cell, deployment.cell(n_context, n_seqs, !o.csv, has_curve));
            if (o.csv) append_csv(csv, cell);
            if (!o.csv || o.chart) cells.push_back(std::move(cell));
            last_shape = &shape;
            last_quant = q;
            last_set = set;
          }
        }
      }
    }
  }
  if (n_cells == 1 && !cells.empty() && !cells.front().impossible.empty())
    return error(Code::kInvalidArgument, "{}", cells.front().impossible);
  if (n_cells == 0 || o.fit || o.break_even) return ok();
  if (o.chart) STILL_TRY_STATUS(write_chart(cells, *o.chart, world.say));
  if (o.json)
    print_json(cells);
  else if (o.csv)
    fmt::print("{}", csv);
  else if (cells.size() == 1)
    print_cell(cells.front(), *last_shape, last_quant, last_set, o, world);
  else
    print_matrix(cells, world.say);
  return ok();
}

void declare_shape(Options& options, ShapeOptions& o) {
  options.value(
      "--arch", &o.arch,
      "A bare shape: llama, mistral, mixtral, qwen2, qwen3, qwen3_moe, phi3, gemma2, gpt_oss, deepseek2, ...");
  options.value("--layers", &o.layers, "of the shape");
  options.value("--hidden", &o.hidden, "of the shape");
  options.value("--heads", &o.heads, "of the shape");
  options.value("--kv-heads", &o.kv_heads, "of the shape");
  options.value("--head-dim", &o.head_dim, "of the shape");
  options.value("--ffn", &o.ffn, "of the shape");
  options.value("--vocab", &o.vocab, "of the shape");
  options.value("--max-context", &o.context, "of the shape [131072]");
  options.value("--window", &o.window, "Sliding window of the shape, tokens");
  options.flag("--tied", &o.tied, "Head and embedding of the shape are one");
  options.value("--q-rank", &o.q_rank, "Latent rank of queries (MLA)");
  options.value("--kv-rank", &o.kv_rank, "Latent rank of keys and values (MLA)");
  options.value("--nope-dim", &o.nope, "Unrotated part of a head (MLA)");
  options.value("--rope-dim", &o.rope, "Rotated part of a head (MLA)");
  options.value("--value-dim", &o.value, "Value part of a head (MLA)");
  options.value("--experts", &o.experts, "Routed experts of a layer");
  options.value("--experts-per-token", &o.experts_per_tok, "Experts chosen for a token");
  options.value("--shared-experts", &o.shared_experts, "Experts that are always on");
  options.value("--expert-ffn", &o.expert_ffn, "Inner width of an expert");
  options.value("--dense-layers", &o.dense_layers, "Leading layers without experts");
  options.value("--mtp-layers", &o.mtp_layers, "Modules that predict further tokens");
}

Command::Action declare_plan(Options& options) {
  auto o = std::make_shared<PlanOptions>();
  options.rest("MODEL", &o->words, false,
               "Known names, store names, files, headers, sources; or: check SENTENCE; devices; machine");
  options.repeated(
      "-q,--quant", &o->quants,
      "Quantisations: Q4_K_M, BF16, GPTQ, AWQ, INT8, FP8, FP8-BLOCK, 4.25bpw, ... (default: the file's own)");
  options.repeated("--on", &o->devices, "Devices: 2x3090, h100, 8xh200, ... (default: this machine, exact)");
  options.list("-c,--context", &o->contexts, "Tokens of a sequence; several with commas");
  options.list("-n,--seqs", &o->concurrencies, "Sequences at once; several with commas");
  options.value("-t,--threads", &o->threads, "On this machine: threads [the physical cores]");
  options.value("--kv", &o->kv, "KV type: f16, q8_0, fp8, ...");
  options.value("--engine", &o->engine,
                "Profile: still, vllm, llama.cpp, llama.cpp-no-fa, llama.cpp-2025-02, transformers");
  options.value("--tensor", &o->tensor, "Tensor-parallel ranks");
  options.value("--pipeline", &o->pipeline, "Pipeline stages");
  options.value("--expert", &o->expert, "Expert-parallel ranks");
  options.value("--data", &o->data, "Ranks that share out the sequences (with --expert)");
  options.value("--redundant-experts", &o->redundant, "Copies of busy experts");
  options.value("--network", &o->network_gbs, "GB/s of a device to other nodes [50]");
  options.value("--chunk", &o->chunk, "Tokens of one step at most");
  options.value("--utilisation", &o->utilisation, "Share of a device's memory that may be used");
  options.value("--overhead", &o->overhead_gib, "GiB a device for runtime and driver");
  options.flag("--mtp", &o->mtp, "With the multi-token-prediction module");
  options.flag("--experts-on-host", &o->experts_on_host, "Routed experts in host memory");
  options.flag("--fit", &o->fit, "Choose layers on the GPU, KV type, context and concurrency");
  options.value("--host-memory", &o->host_gib, "GiB of host memory (default: what this machine has)");
  options.value("--host", &o->host, "The host's row of the database (xeon-6454s, desktop, ...), for its speed");
  options.value("--latency", &o->latency_ms, "Milliseconds between a user's tokens at most");
  options.flag("--advise", &o->advise, "Recommend a version for --on (default: this machine), with reasons");
  options.choice("--task", &o->task, {"math", "code", "science", "general"}, "What for");
  options.choice("--language", &o->language, {"any", "en", "zh"}, "Language of the users");
  options.flag("--permissive", &o->permissive, "No community licences");
  options.value("--min-rate", &o->min_rate, "Tokens/s of a user at least");
  options.value("--answer-tokens", &o->answer_tokens, "Tokens of a typical answer");
  options.value("--usd-per-hour", &o->usd_per_hour, "Price of all devices together");
  options.flag("--break-even", &o->break_even, "Own hardware against the APIs' prices");
  options.value("--api", &o->api, "--break-even: only APIs whose name holds this");
  options.value("--purchase", &o->purchase_usd, "--break-even: price of all hardware, USD");
  options.value("--power", &o->power_w, "--break-even: W in all [the devices' limits and 300 W a machine]");
  options.value("--usd-per-kwh", &o->usd_per_kwh, "--break-even: price of energy [0.15]");
  options.value("--years", &o->years, "--break-even: written off over [3]");
  options.value("--devices", &o->device_file, "A file of own devices, as data/plan/devices.json");
  declare_shape(options, o->shape);
  options.flag("--calibrate", &o->calibrate, "On this machine: measure a slice of the layers and predict tokens/s");
  options.flag("--verify", &o->verify, "As --calibrate, and compare with the engine, turn by turn (a model file)");
  options.flag("--contract", &o->contract, "Compare plan, engine and operating system at many settings (a model file)");
  options.flag("--explain", &o->explain, "Every line with its formula");
  options.flag("--json", &o->json, "JSON");
  options.flag("--csv", &o->csv, "CSV");
  options.value("--chart,--svg,--html", &o->chart, "Write a chart to FILE.svg or FILE.html");
  options.choice("--lang", &o->lang, {"en", "zh"}, "Language of tables and sentences [of the locale]");
  return [o](const Context& context) { return plan(*o, context); };
}

}  // namespace

extern const Command kPlanCommand;
const Command kPlanCommand{.name = "plan",
                           .alias = nullptr,
                           .summary = "Plan memory, speed and cost of a model on any devices, before it is fetched",
                           .examples =
                               "  still plan deepseek-r1:32b --on 2x3090 -q Q4_K_M -c 32768 --explain\n"
                               "  still plan 7b 14b 32b -q F16 --on v100 --on 2xa100-40 -c 8192\n"
                               "  still plan --advise --on 3090 --task code\n"
                               "  still plan r1 -q Q4_K_M --on 3090 --fit --host xeon-6454s --host-memory 512\n"
                               "  still plan 32b --on 2x3090 --break-even --purchase 3500\n"
                               "  still plan check \"V3 is a dense model\"",
                           .declare = declare_plan};

}  // namespace still

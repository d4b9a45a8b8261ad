// This machine: what it is, what the engine takes for a model (exact), how fast it will be (calibrated), and both
// compared with the engine itself.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>

#include "base/json.h"
#include "cli/model_ref.h"
#include "cli/plan_contract.h"
#include "cli/plan_options.h"
#include "cli/table.h"
#include "plan/calibrate.h"
#include "plan/host_plan.h"

namespace still {

namespace {

EngineSettings engine_settings(const PlanOptions& o) {
  EngineSettings settings;
  settings.n_threads = static_cast<int>(o.threads.value_or(0));
  settings.context = o.contexts.empty() ? 0 : o.contexts.front();
  settings.max_seqs = o.concurrencies.empty() ? 1 : o.concurrencies.front();
  if (o.chunk) settings.chunk_tokens = *o.chunk;
  settings.kv_type = kv_type_of(o.kv.value_or("f16")).value_or(KvType::kF16);
  if (o.host_gib) settings.memory_limit = static_cast<std::int64_t>(*o.host_gib * (std::int64_t{1} << 30));
  return settings;
}

Status print_contract(const Context& context, const PlanOptions& o, const Words& say, const std::string& name,
                      const ModelShape& shape) {
  STILL_TRY(const std::filesystem::path path, plan_model_file(context, name, "--contract"));
  const std::int64_t fill =
      o.contexts.empty() ? std::clamp<std::int64_t>(400'000'000'000 / shape.n_params(), 256, 2048) : o.contexts.front();
  std::vector<std::vector<std::string>> rows = {{say("CONTEXT"), say("SEQS"), "KV", say("CHUNK"), say("THREADS"),
                                                 say("PLANNED MiB"), say("ALLOCATED"), say("RESIDENT"),
                                                 say("DIFFERENCE"), say("MAPPED FILE"), say("HOLDS")}};
  JsonArray array;
  int n_broken = 0;
  for (const EngineSettings& settings : contract_settings(std::min(shape.config.max_seq_len, fill), fill)) {
    STILL_TRY(const ContractRun run, run_contract(path, settings, fill));
    const auto mib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
    n_broken += !run.holds();
    const std::string kv(kv_type_name(settings.kv_type));
    rows.push_back(
        {std::to_string(settings.context), std::to_string(settings.max_seqs), kv, std::to_string(settings.chunk_tokens),
         std::to_string(settings.n_threads), fmt::format("{:.1f}", mib(run.plan.total_bytes())),
         fmt::format("{:.1f}", mib(run.allocated)), fmt::format("{:.1f}", mib(run.resident)),
         fmt::format("{:+.1f}", mib(run.resident - run.plan.total_bytes())), fmt::format("{:.1f}", mib(run.mapped)),
         run.holds() ? say("yes") : say("no") + (run.refusal.empty() ? "" : ": " + run.refusal)});
    array.push_back(JsonObject{{"context", settings.context},
                               {"sequences", settings.max_seqs},
                               {"kv", kv},
                               {"chunk", settings.chunk_tokens},
                               {"threads", settings.n_threads},
                               {"planned_bytes", run.plan.total_bytes()},
                               {"allocated_bytes", run.allocated},
                               {"resident_bytes", run.resident},
                               {"mapped_bytes", run.mapped},
                               {"mapped_max_bytes", run.mapped_max},
                               {"holds", run.holds()},
                               {"refusal", run.refusal}});
  }
  using enum Align;
  if (o.json)
    fmt::print("{}\n", to_json(array));
  else
    fmt::print(
        "{}{}\n",
        format_table({kRight, kRight, kLeft, kRight, kRight, kRight, kRight, kRight, kRight, kRight, kLeft}, rows),
        say("resident: anonymous memory after every sequence filled its context; at most 32 MiB or 1 % apart"));
  if (n_broken > 0) return error(Code::kInternal, "{}: plan and engine disagree under {} settings", name, n_broken);
  return ok();
}

std::string size_text(std::int64_t bytes) {
  return fmt::format("{:.1f} GiB", to_gib(bytes));
}

}  // namespace

Result<std::filesystem::path> plan_model_file(const Context& context, const std::string& name, const char* option) {
  if (name.empty()) return error(Code::kInvalidArgument, "{} needs a model that is here, not a bare shape", option);
  std::error_code code;
  if (std::filesystem::exists(name, code)) return std::filesystem::path(name);
  STILL_TRY(const ResolvedModel found, find_model(context, name));
  return found.path;
}

Status print_machine(const PlanOptions& o, const PlanWorld& world) {
  const Machine machine = detect_machine(world.data.devices);
  const Words& say = world.say;
  if (o.json) {
    JsonArray isas, nodes, gpus;
    for (const std::string& isa : machine.isas) isas.emplace_back(isa);
    for (const NumaNode& node : machine.nodes)
      nodes.push_back(JsonObject{{"node", node.id}, {"cpus", node.cpus}, {"memory_bytes", node.memory_bytes}});
    for (const DetectedGpu& gpu : machine.gpus) {
      JsonArray links;
      for (const std::string& link : gpu.links) links.emplace_back(link);
      gpus.push_back(JsonObject{{"name", gpu.device.name},
                                {"memory_bytes", gpu.device.usable_bytes},
                                {"free_bytes", gpu.free_bytes},
                                {"compute_capability", gpu.device.sm},
                                {"nvlinks", gpu.n_nvlinks},
                                {"database_row", gpu.row},
                                {"links", std::move(links)}});
    }
    fmt::print("{}\n", to_json(JsonObject{{"cpu", machine.cpu},
                                          {"cores", machine.n_cores},
                                          {"isas", std::move(isas)},
                                          {"memory_bytes", machine.memory_bytes},
                                          {"available_bytes", machine.available_bytes},
                                          {"numa_nodes", std::move(nodes)},
                                          {"gpus", std::move(gpus)}}));
    return ok();
  }
  std::string isas;
  for (const std::string& isa : machine.isas) isas += (isas.empty() ? "" : ", ") + isa;
  fmt::print("{}\n", say(message("CPU: {}, {} cores, kernels for {}", machine.cpu, machine.n_cores, isas)));
  fmt::print("{}\n", say(message("memory: {}, {} available", size_text(machine.memory_bytes),
                                 size_text(machine.available_bytes))));
  for (const NumaNode& node : machine.nodes)
    fmt::print("{}\n", say(message("NUMA node {}: CPUs {}, {}", node.id, node.cpus, size_text(node.memory_bytes))));
  if (machine.gpus.empty()) fmt::print("{}\n", say("GPUs: none found (no NVIDIA driver answers)"));
  for (std::size_t i = 0; i < machine.gpus.size(); ++i) {
    const DetectedGpu& gpu = machine.gpus[i];
    fmt::print("{}\n",
               say(message("GPU {}: {}, {} ({} free), compute capability {}.{}, {} NVLinks, database row: {}", i,
                           gpu.device.name, size_text(gpu.device.usable_bytes), size_text(gpu.free_bytes),
                           gpu.device.sm / 10, gpu.device.sm % 10, gpu.n_nvlinks, gpu.row.empty() ? "-" : gpu.row)));
    for (std::size_t j = i + 1; j < machine.gpus.size(); ++j)
      fmt::print("  {}\n", say(message("to GPU {}: {}", j, say(gpu.links[j]))));
  }
  return ok();
}

Status plan_here(const Context& context, const PlanOptions& o, const PlanWorld& world, const std::string& name,
                 const ModelShape& shape, const Quantisation& q) {
  if (o.contract) return print_contract(context, o, world.say, name, shape);
  if (o.verify) return print_verification(context, o, world, name, shape, q);
  if (o.kv && *o.kv != "f16" && *o.kv != "f32" && *o.kv != "int8")
    return error(Code::kInvalidArgument, "--kv {}: the engine keeps f16, f32 or int8 on this machine", *o.kv);
  const Machine machine = detect_machine(world.data.devices);
  STILL_TRY(const HostWeights weights, plan_host_weights(shape, q));
  EngineSettings settings = engine_settings(o);
  settings.screens_head = weights.screens_head;
  STILL_TRY(const MemoryPlan plan, plan_memory(shape.config, weights.arena_bytes, weights.max_k, settings));
  std::optional<HostSpeed> speed;
  if (o.calibrate) {
    ProgressLine line(context.err, std::chrono::milliseconds(0));
    line.update("measuring a slice of the model's layers", -1, "");
    STILL_TRY(speed, calibrate_host(shape, q, {.n_threads = static_cast<int>(o.threads.value_or(0))}));
  }
  // As many sequences as memory has room for, whole contexts each; half of the context is full on average.
  constexpr std::int64_t kMostSeqs = 64, kUsualContext = 2048;
  const std::int64_t curve_context =
      o.contexts.empty() ? std::min(kUsualContext, plan.settings.context) : plan.settings.context;
  SpeedCurve curve;
  if (speed) {
    const std::int64_t room = plan.settings.memory_limit - plan.total_bytes() + plan.kv_bytes;
    const std::int64_t most = std::clamp<std::int64_t>(room / (plan.kv_bytes_per_token * curve_context), 1, kMostSeqs);
    const double kv_len = static_cast<double>(curve_context) / 2;
    curve = speed_curve([&](std::int64_t n) { return speed->point(n, kv_len); }, most, o.latency_ms.value_or(0) * 1e-3);
  }
  // The engine shares the cache out: more sequences may run than can be full at the same time.
  const std::int64_t block = plan.settings.block_size,
                     n_full = plan.settings.kv_tokens / ((plan.settings.context + block - 1) / block * block);
  if (o.json) {
    JsonObject result{{"model", shape.name},
                      {"quantisation", q.name},
                      {"devices", machine.cpu},
                      {"context", plan.settings.context},
                      {"concurrency", plan.settings.max_seqs},
                      {"fits", true},
                      {"kv_tokens", plan.settings.kv_tokens},
                      {"full_sequences", std::min(n_full, plan.settings.max_seqs)},
                      {"weight_bytes", plan.weight_bytes},
                      {"kv_bytes", plan.kv_bytes},
                      {"workspace_bytes", plan.workspace_bytes},
                      {"rope_bytes", plan.rope_bytes},
                      {"screen_bytes", plan.screen_bytes},
                      {"runtime_bytes", plan.runtime_bytes},
                      {"mapped_bytes", weights.mapped_bytes},
                      {"total_bytes", plan.total_bytes()},
                      {"available_bytes", machine.available_bytes}};
    if (speed) {
      const Interval decode = speed->point(1, static_cast<double>(speed->decode_kv_len)).tok_per_s_user;
      result["decode_tok_per_s"] = decode.value;
      result["decode_tok_per_s_low"] = decode.low;
      result["decode_tok_per_s_high"] = decode.high;
      result["prefill_tok_per_s"] =
          static_cast<double>(speed->n_prompt) / speed->prefill_s(speed->n_prompt, speed->n_prompt).value;
      result["calibration_s"] = speed->seconds;
      result["knee"] = curve.knee;
      result["within_latency"] = curve.within_goal;
      JsonArray points;
      for (const SpeedPoint& p : curve.points)
        points.push_back(JsonObject{{"concurrency", p.concurrency},
                                    {"tok_per_s_user", p.tok_per_s_user.value},
                                    {"tok_per_s_total", p.tok_per_s_total.value},
                                    {"low", p.tok_per_s_total.low},
                                    {"high", p.tok_per_s_total.high}});
      result["curve"] = std::move(points);
    }
    fmt::print("{}\n", to_json(result));
    return ok();
  }
  const Words& say = world.say;
  fmt::print("{}\n", say(message("{} {} on this machine: {}, {} cores, {}, {:.1f} GiB available", shape.name, q.name,
                                 machine.cpu, machine.n_cores, machine.isas.back(), to_gib(machine.available_bytes))));
  std::vector<std::vector<std::string>> rows = {{say("EXACT, AS THE ENGINE ALLOCATES"), say("BYTES"), "GB", "GiB"}};
  if (o.explain) rows.front().push_back(say("HOW"));
  const auto add = [&](const std::string& part, std::int64_t bytes, const Message& how) {
    rows.push_back(
        {part, std::to_string(bytes), fmt::format("{:.3f}", to_gb(bytes)), fmt::format("{:.3f}", to_gib(bytes))});
    if (o.explain) rows.back().push_back(say(how));
  };
  const EngineSettings& s = plan.settings;
  add(say("packed weights"), plan.weight_bytes,
      message("every matrix in the kernels' own layout, vectors in f32; whole huge pages of 2 MiB"));
  add(say("KV cache"), plan.kv_bytes,
      message("{} blocks of {} positions, {} B a token", plan.n_blocks, s.block_size, plan.kv_bytes_per_token));
  add(say("workspace"), plan.workspace_bytes,
      message("activations of {} tokens, {} rows of logits, scratch of {} threads", s.chunk_tokens, plan.max_logit_rows,
              s.n_threads));
  add("rope", plan.rope_bytes, message("cosine and sine of {} positions, f32", s.context));
  if (plan.screen_bytes > 0)
    add(say("coarse output head"), plan.screen_bytes,
        message("4 bits a weight, for greedy answers; where memory is left"));
  add(say("runtime (estimate)"), plan.runtime_bytes,
      message("program, tokenizer of {} words, bookkeeping", shape.config.vocab_size));
  add(say("all"), plan.total_bytes(), message("sum"));
  add(say("embedding, read in the file (page cache)"), weights.mapped_bytes,
      message("the system may drop these pages and read them again"));
  using enum Align;
  fmt::print("{}", format_table({kLeft, kRight, kRight, kRight, kLeft}, rows));
  if (n_full >= s.max_seqs)
    fmt::print("{}\n", say(message("fits: {} sequences, {} tokens of context each, {} tokens of KV in all", s.max_seqs,
                                   s.context, s.kv_tokens)));
  else
    fmt::print("{}\n",
               say(message("fits in part: of {} sequences {} at once can have their whole context of {} tokens; "
                           "all share {} tokens of KV",
                           s.max_seqs, n_full, s.context, s.kv_tokens)));
  if (!speed) return ok();
  fmt::print("{}\n", say(message("measured on {} of {} layers in {:.1f} s, {} rounds:", speed->slice_layers,
                                 shape.config.n_layers, speed->seconds, speed->rounds.size())));
  for (std::int64_t n_prompt = 512; n_prompt <= std::min<std::int64_t>(s.context, 8192); n_prompt *= 4) {
    const Interval ttft = speed->prefill_s(n_prompt, s.chunk_tokens);
    fmt::print("  {}\n", say(message("first token of a prompt of {} tokens: {:.2f} s ({:.2f} - {:.2f})", n_prompt,
                                     ttft.value, ttft.low, ttft.high)));
  }
  for (std::int64_t depth = 64; depth <= s.context; depth *= 4) {
    const Interval rate = speed->point(1, static_cast<double>(depth)).tok_per_s_user;
    fmt::print("  {}\n", say(message("decode at {} tokens: {:.1f} tok/s ({:.1f} - {:.1f})", depth, rate.value, rate.low,
                                     rate.high)));
  }
  fmt::print("{}\n", say(message("several sequences at once, {} tokens in each cache:", curve_context / 2)));
  std::vector<std::vector<std::string>> table = {{say("SEQS"), say("TOK/S EACH"), say("TOK/S ALL"), say("INTERVAL")}};
  for (const SpeedPoint& p : curve.points)
    table.push_back({std::to_string(p.concurrency), fmt::format("{:.1f}", p.tok_per_s_user.value),
                     fmt::format("{:.1f}", p.tok_per_s_total.value),
                     fmt::format("{:.1f} - {:.1f}", p.tok_per_s_total.low, p.tok_per_s_total.high)});
  fmt::print("{}", format_table({kRight, kRight, kRight, kRight}, table));
  fmt::print("{}\n", knee_text(curve, say));
  if (o.latency_ms)
    fmt::print("{}\n", say(message("most sequences with at most {:.0f} ms between a user's tokens: {}", *o.latency_ms,
                                   curve.within_goal)));
  return ok();
}

}  // namespace still

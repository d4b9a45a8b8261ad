// still plan: what a model takes, whether it fits, how fast it is and what it costs, before anything is fetched or
// rented. The figures are plan/'s (docs/plan.md has the formulas); this file reads options and prints.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>

#include "base/json.h"
#include "base/text_file.h"
#include "cli/command.h"
#include "cli/model_ref.h"
#include "cli/table.h"
#include "hub/remote_header.h"
#include "plan/advice.h"
#include "plan/calibrate.h"
#include "plan/chart.h"
#include "plan/claims.h"
#include "plan/host_plan.h"

namespace still {
namespace {

struct PlanOptions {
  std::vector<std::string> words;  // models; or "check" and a sentence, or "devices"
  std::vector<std::string> quants, devices, prices;
  std::vector<std::int64_t> contexts, concurrencies;
  std::string kv = "f16", engine = "still", task = "math", lang = "en", arch;
  std::optional<std::string> device_file, svg, gpu_host;
  std::optional<std::int64_t> tensor, pipeline, expert, chunk, layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
  std::optional<double> utilisation, overhead_gib, latency_ms, usd_per_hour, answer_tokens, min_rate, host_gib;
  bool explain = false, json = false, csv = false, advise = false, fit = false, permissive = false, mtp = false,
       tied = false, calibrate = false;
};

// The two languages of the tables.
struct Words {
  bool is_chinese = false;
  std::string operator()(const char* english, const char* chinese) const { return is_chinese ? chinese : english; }
};

struct World {
  ClaimWorld data;
  Words say;
};

Result<ModelShape> shape_of_arguments(const PlanOptions& o) {
  const auto need = [](const char* name, const std::optional<std::int64_t>& value) -> Result<std::int64_t> {
    if (value) return *value;
    return error(Code::kInvalidArgument, "--arch needs --{} too (and --layers, --hidden, --heads, --ffn, --vocab)",
                 name);
  };
  JsonObject config{{"model_type", o.arch}};
  STILL_TRY(config["num_hidden_layers"], need("layers", o.layers));
  STILL_TRY(config["hidden_size"], need("hidden", o.hidden));
  STILL_TRY(config["num_attention_heads"], need("heads", o.heads));
  STILL_TRY(config["intermediate_size"], need("ffn", o.ffn));
  STILL_TRY(config["vocab_size"], need("vocab", o.vocab));
  config["max_position_embeddings"] = 131072;
  config["tie_word_embeddings"] = o.tied;
  if (o.kv_heads) config["num_key_value_heads"] = *o.kv_heads;
  if (o.head_dim) config["head_dim"] = *o.head_dim;
  STILL_TRY(const ModelConfig read, read_plan_config(config));
  return shape_from_config(read, o.arch + " shape");
}

Result<ModelShape> shape_of_path(const std::filesystem::path& path, const std::string& name) {
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(path, {.allow_missing_data = true}));
  return shape_from_checkpoint(checkpoint, name);
}

Result<ModelShape> shape_of_remote(const Context& context, const std::string& what) {
  ProgressLine line(context.err);
  line.update("reading the header of " + what, -1, "");
  STILL_TRY(const RemoteModel remote, read_remote_model(what, context.environment.hub, CancelToken{}));
  std::error_code code;
  std::string pattern = (std::filesystem::temp_directory_path(code) / "still-plan-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) return error(Code::kInternal, "{}: no temporary folder", pattern);
  const std::filesystem::path folder = pattern;
  const auto read = [&]() -> Result<ModelShape> {
    STILL_TRY(const std::filesystem::path path, save_headers(remote, folder));
    return shape_of_path(path, what);
  };
  Result<ModelShape> shape = read();
  std::filesystem::remove_all(folder, code);
  return shape;
}

// A path, a source, a known shape, or a name in the store; "deepseek-r1:7b-q4_k_m" is a shape and a quantisation.
Result<ModelShape> find_shape(const Context& context, const World& world, const std::string& name, std::string& quant) {
  std::error_code code;
  if (std::filesystem::exists(name, code)) return shape_of_path(name, name);
  if (is_source(name)) return shape_of_remote(context, name);
  Result<ModelShape> known = find_known_shape(world.data.models, name);
  if (known) return known;
  if (const std::size_t dash = name.rfind('-'); dash != std::string::npos && dash > 0) {
    if (const auto q = find_quantisation(name.substr(dash + 1))) {
      if (Result<ModelShape> base = find_known_shape(world.data.models, name.substr(0, dash))) {
        quant = q->name;
        return base;
      }
    }
  }
  if (const auto found = find_model(context, name)) return shape_of_path(found->path, name);
  return known;
}

Result<DeploymentSettings> settings_of(const PlanOptions& o, const ModelShape& shape, const Quantisation& q,
                                       std::int64_t n_devices) {
  DeploymentSettings s;
  STILL_TRY(s.kv, find_kv_storage(o.kv));
  STILL_TRY(s.engine, find_engine_profile(o.engine));
  if (o.utilisation) s.engine.utilisation = *o.utilisation;
  if (o.overhead_gib) {
    if (!(*o.overhead_gib >= 0) || *o.overhead_gib > 1e4)
      return error(Code::kInvalidArgument, "--overhead {}: expected GiB, 0 or more", *o.overhead_gib);
    s.engine.runtime_bytes = static_cast<std::int64_t>(*o.overhead_gib * (std::int64_t{1} << 30));
  }
  if (o.chunk) s.chunk_tokens = *o.chunk;
  s.with_mtp = o.mtp;
  if (o.tensor || o.pipeline || o.expert) {
    s.parallelism = {
        .tensor = o.tensor.value_or(0), .pipeline = o.pipeline.value_or(1), .expert = o.expert.value_or(1)};
    if (!o.tensor)
      s.parallelism.tensor = std::max<std::int64_t>(1, n_devices / std::max<std::int64_t>(1, s.parallelism.pipeline));
    STILL_TRY_STATUS(check_parallelism(shape, q, s.parallelism));
  } else {
    STILL_TRY(s.parallelism, choose_parallelism(shape, q, n_devices));
  }
  return s;
}

std::string tokens_text(std::int64_t n) {
  return n >= 10000 ? fmt::format("{}k", n / 1000) : std::to_string(n);
}

// --- one deployment ---------------------------------------------------------------------------------------------

struct Line {
  std::string name;
  std::int64_t bytes;
  std::string formula;
};

std::vector<Line> explain_lines(const ModelShape& shape, const Quantisation& q, const FitAnswer& a,
                                const DeploymentSettings& s, const Words& say) {
  std::vector<Line> lines;
  for (int g = 0; g < kWeightGroupCount; ++g) {
    const std::int64_t bytes = a.weights.groups[static_cast<std::size_t>(g)];
    if (bytes > 0)
      lines.push_back({say("weights: ", "\u6743\u91cd: ") + std::string(group_name(static_cast<WeightGroup>(g))), bytes,
                       fmt::format("sum of tensors in {}, fullest of {} ranks", q.name, s.parallelism.n_ranks())});
  }
  const ModelConfig& c = shape.config;
  const std::string kv = shape.is_mla() ? fmt::format("{} layers x ({} + {}) values of {}", c.n_layers, c.kv_lora_rank,
                                                      c.qk_rope_head_dim, s.kv.name)
                                        : fmt::format("2 x {} layers x {} KV heads x {} values of {}", c.n_layers,
                                                      c.n_kv_heads, c.head_dim, s.kv.name);
  lines.push_back({say("KV cache", "KV \u7f13\u5b58"), a.memory.kv_bytes,
                   fmt::format("{} = {} B a token, x {} tokens x {} sequences, over {} stages and {} tensor ranks", kv,
                               kv_bytes_per_token(shape, s.kv), s.context, s.concurrency, s.parallelism.pipeline,
                               s.parallelism.tensor)});
  lines.push_back({say("activations", "\u6fc0\u6d3b"), a.memory.activation_bytes,
                   fmt::format("a step of {} tokens, 16 bits (estimate)", std::max(s.chunk_tokens, s.concurrency))});
  lines.push_back({"logits", a.memory.logit_bytes,
                   fmt::format("{} rows x {} x 4 B", std::max<std::int64_t>(16, s.concurrency), c.vocab_size)});
  lines.push_back({say("runtime and driver", "\u8fd0\u884c\u65f6\u4e0e\u9a71\u52a8"), a.memory.runtime_bytes,
                   fmt::format("profile of {} (estimate)", s.engine.name)});
  return lines;
}

struct PlannedCell {
  std::string model, quant, devices;
  DeploymentSettings settings;
  FitAnswer fit;
  SpeedCurve curve;
  Interval ttft;
  double usd_per_million = 0;
  std::string impossible;
};

Result<PlannedCell> plan_cell(const World& world, const PlanOptions& o, const ModelShape& shape, const Quantisation& q,
                              const DeviceSet& set, std::int64_t context, std::int64_t concurrency) {
  (void)world;
  PlannedCell cell{.model = shape.name, .quant = q.name, .devices = set.label()};
  Result<DeploymentSettings> settings = settings_of(o, shape, q, set.count);
  if (!settings) {
    if (settings.error().code != Code::kInvalidArgument || o.tensor) return tl::unexpected(settings.error());
    cell.impossible = settings.error().message;
    return cell;
  }
  cell.settings = *settings;
  cell.settings.context = context;
  cell.settings.concurrency = concurrency;
  STILL_TRY(cell.fit, check_fit(shape, q, set, cell.settings));
  const SpeedModel speed = make_speed_model(shape, q, set.device, cell.fit.weights, cell.settings);
  const double kv_len = static_cast<double>(context) / 2;
  cell.curve = predict_curve(speed, std::max(concurrency, std::min<std::int64_t>(256, cell.fit.max_concurrency)),
                             kv_len, o.latency_ms.value_or(0) * 1e-3);
  cell.ttft = predict_ttft(speed, std::min<std::int64_t>(context, 1024), cell.settings.chunk_tokens);
  const double price = o.usd_per_hour.value_or(set.device.price.middle() * static_cast<double>(set.count));
  if (price > 0)
    cell.usd_per_million = usd_per_million(price, predict_decode(speed, concurrency, kv_len).tok_per_s_total.value);
  return cell;
}

const SpeedPoint* point_at(const PlannedCell& cell, std::int64_t concurrency) {
  const SpeedPoint* best = nullptr;
  for (const SpeedPoint& p : cell.curve.points)
    if (p.concurrency <= concurrency) best = &p;
  return best;
}

JsonObject to_json_cell(const PlannedCell& c) {
  JsonArray nearest, notes, curve;
  for (const std::string& text : c.fit.nearest) nearest.emplace_back(text);
  for (const std::string& text : c.fit.notes) notes.emplace_back(text);
  for (const SpeedPoint& p : c.curve.points)
    curve.push_back(JsonObject{{"concurrency", p.concurrency},
                               {"tok_per_s_user", p.tok_per_s_user.value},
                               {"tok_per_s_total", p.tok_per_s_total.value},
                               {"low", p.tok_per_s_total.low},
                               {"high", p.tok_per_s_total.high},
                               {"bandwidth_share", p.bandwidth_share}});
  JsonObject groups;
  for (int g = 0; g < kWeightGroupCount; ++g)
    groups[group_name(static_cast<WeightGroup>(g))] = c.fit.weights.groups[static_cast<std::size_t>(g)];
  return {{"model", c.model},
          {"quantisation", c.quant},
          {"devices", c.devices},
          {"context", c.settings.context},
          {"concurrency", c.settings.concurrency},
          {"tensor", c.settings.parallelism.tensor},
          {"pipeline", c.settings.parallelism.pipeline},
          {"expert", c.settings.parallelism.expert},
          {"fits", c.fit.fits},
          {"reason", c.impossible.empty() ? c.fit.reason : c.impossible},
          {"nearest", std::move(nearest)},
          {"notes", std::move(notes)},
          {"file_bytes", c.fit.weights.file_bytes},
          {"device_capacity_bytes", c.fit.capacity},
          {"device_need_bytes", c.fit.memory.need()},
          {"weight_bytes", c.fit.memory.weight_bytes},
          {"weight_groups", std::move(groups)},
          {"kv_bytes", c.fit.memory.kv_bytes},
          {"activation_bytes", c.fit.memory.activation_bytes},
          {"logit_bytes", c.fit.memory.logit_bytes},
          {"runtime_bytes", c.fit.memory.runtime_bytes},
          {"reserved_bytes", c.fit.reserved},
          {"max_kv_tokens", c.fit.max_kv_tokens},
          {"max_context", c.fit.max_context},
          {"max_concurrency", c.fit.max_concurrency},
          {"ttft_s", c.ttft.value},
          {"usd_per_million_tokens", c.usd_per_million},
          {"knee", c.curve.knee},
          {"within_latency", c.curve.within_goal},
          {"curve", std::move(curve)}};
}

void print_csv(const std::vector<PlannedCell>& cells) {
  fmt::print(
      "model,quantisation,devices,tensor,pipeline,context,concurrency,fits,need_bytes,capacity_bytes,weight_bytes,kv_"
      "bytes,max_kv_tokens,tok_per_s_user,tok_per_s_total,usd_per_million,reason\n");
  for (const PlannedCell& c : cells) {
    const SpeedPoint* p = point_at(c, c.settings.concurrency);
    std::string reason = c.impossible.empty() ? c.fit.reason : c.impossible;
    std::replace(reason.begin(), reason.end(), '"', '\'');
    fmt::print("{},{},{},{},{},{},{},{},{},{},{},{},{},{:.2f},{:.2f},{:.4f},\"{}\"\n", c.model, c.quant, c.devices,
               c.settings.parallelism.tensor, c.settings.parallelism.pipeline, c.settings.context,
               c.settings.concurrency, c.fit.fits ? "yes" : "no", c.fit.memory.need(), c.fit.capacity,
               c.fit.memory.weight_bytes, c.fit.memory.kv_bytes, c.fit.max_kv_tokens, p ? p->tok_per_s_user.value : 0,
               p ? p->tok_per_s_total.value : 0, c.usd_per_million, reason);
  }
}

void print_matrix(const std::vector<PlannedCell>& cells, const Words& say) {
  std::vector<std::vector<std::string>> rows = {
      {say("MODEL", "\u6a21\u578b"), say("TYPE", "\u7cbe\u5ea6"), say("DEVICES", "\u8bbe\u5907"), "TPxPP",
       say("CONTEXT", "\u4e0a\u4e0b\u6587"), say("SEQS", "\u5e76\u53d1"), say("FITS", "\u80fd\u5426"),
       say("NEED/USABLE GiB", "\u9700\u8981/\u53ef\u7528 GiB"), say("KV TOKENS", "KV \u8bcd\u5143"), "TOK/S",
       say("WHY NOT; NEAREST", "\u539f\u56e0; \u6700\u8fd1\u7684\u53ef\u884c\u65b9\u6848")}};
  for (const PlannedCell& c : cells) {
    if (!c.impossible.empty()) {
      rows.push_back({c.model, c.quant, c.devices, "-", "-", "-", say("no", "\u5426"), "-", "-", "-", c.impossible});
      continue;
    }
    const SpeedPoint* p = point_at(c, c.settings.concurrency);
    std::string why = c.fit.reason;
    if (!c.fit.nearest.empty()) why += "; " + c.fit.nearest.front();
    rows.push_back({c.model, c.quant, c.devices,
                    fmt::format("{}x{}", c.settings.parallelism.tensor, c.settings.parallelism.pipeline),
                    tokens_text(c.settings.context), std::to_string(c.settings.concurrency),
                    c.fit.fits ? say("yes", "\u80fd") : say("no", "\u5426"),
                    fmt::format("{:.1f}/{:.1f}", to_gib(c.fit.memory.need()), to_gib(c.fit.capacity)),
                    tokens_text(c.fit.max_kv_tokens),
                    c.fit.fits && p ? fmt::format("{:.0f}", p->tok_per_s_total.value) : "-", why});
  }
  using enum Align;
  fmt::print("{}",
             format_table({kLeft, kLeft, kLeft, kRight, kRight, kRight, kLeft, kRight, kRight, kRight, kLeft}, rows));
}

void print_one(const PlannedCell& c, const ModelShape& shape, const Quantisation& q, const DeviceSet& set,
               const PlanOptions& o, const World& world) {
  const Words& say = world.say;
  if (!c.impossible.empty()) {
    fmt::print("{}\n", c.impossible);
    return;
  }
  const DeploymentSettings& s = c.settings;
  fmt::print("{} {} {} {} (tensor {}, pipeline {}{})\n", shape.title.empty() ? shape.name : shape.title,
             say("in", "\u7cbe\u5ea6"), q.name, "on " + set.label(), s.parallelism.tensor, s.parallelism.pipeline,
             s.parallelism.expert > 1 ? fmt::format(", expert {}", s.parallelism.expert) : "");
  fmt::print("{} {:.2f} B ({:.2f} B {}), {} {}\n", say("parameters", "\u53c2\u6570"),
             static_cast<double>(shape.n_params()) * 1e-9, static_cast<double>(shape.n_active_params()) * 1e-9,
             say("read for a token", "\u6bcf\u8bcd\u5143\u6fc0\u6d3b"), say("file", "\u6587\u4ef6"),
             both_units(c.fit.weights.file_bytes));
  std::vector<std::vector<std::string>> rows = {{say("OF ONE DEVICE", "\u6bcf\u5757\u8bbe\u5907"), "GB", "GiB"}};
  if (o.explain) rows.front().push_back(say("HOW", "\u8ba1\u7b97\u65b9\u5f0f"));
  const auto add = [&](const std::string& name, std::int64_t bytes, const std::string& formula) {
    rows.push_back({name, fmt::format("{:.3f}", to_gb(bytes)), fmt::format("{:.3f}", to_gib(bytes))});
    if (o.explain) rows.back().push_back(formula);
  };
  if (o.explain) {
    for (const Line& line : explain_lines(shape, q, c.fit, s, say)) add(line.name, line.bytes, line.formula);
  } else {
    add(say("weights", "\u6743\u91cd"), c.fit.memory.weight_bytes, "");
    add(say("KV cache", "KV \u7f13\u5b58"), c.fit.memory.kv_bytes, "");
    add(say("workspace and logits", "\u5de5\u4f5c\u533a\u4e0e logits"),
        c.fit.memory.activation_bytes + c.fit.memory.logit_bytes, "");
    add(say("runtime and driver", "\u8fd0\u884c\u65f6\u4e0e\u9a71\u52a8"), c.fit.memory.runtime_bytes, "");
  }
  add(say("needed", "\u5408\u8ba1\u9700\u8981"), c.fit.memory.need(), "sum");
  add(say("usable", "\u53ef\u7528"), c.fit.capacity,
      fmt::format("{:.0f} % of {} MiB that the driver reports", 100 * s.engine.utilisation,
                  set.device.usable_bytes >> 20));
  if (c.fit.reserved > 0)
    add(say("the engine reserves", "\u5f15\u64ce\u9884\u7559"), c.fit.reserved,
        s.engine.name + " takes its whole share whatever is needed");
  using enum Align;
  fmt::print("\n{}\n", format_table({kLeft, kRight, kRight, kLeft}, rows));
  fmt::print("{}: {}\n", say("fits", "\u80fd\u5426\u8fd0\u884c"),
             c.fit.fits ? say("yes", "\u80fd") : say("no", "\u5426") + ": " + c.fit.reason);
  for (const std::string& text : c.fit.nearest) fmt::print("  {} {}\n", say("would fit:", "\u53ef\u884c:"), text);
  for (const std::string& text : c.fit.notes) fmt::print("  {} {}\n", say("note:", "\u6ce8\u610f:"), text);
  fmt::print("{} {} {} {}, {} {} ({} x {})\n", say("room for", "\u53ef\u5bb9\u7eb3"), c.fit.max_kv_tokens,
             say("tokens of KV: a context of up to", "\u4e2a KV \u8bcd\u5143: \u6700\u957f\u4e0a\u4e0b\u6587"),
             c.fit.max_context, say("or so many sequences at once:", "\u6216\u5e76\u53d1"), c.fit.max_concurrency,
             c.fit.max_concurrency, s.context);
  if (!c.fit.fits) return;
  fmt::print("\n{} {:.2f} s ({:.2f} - {:.2f})\n",
             say("first token of a 1024-token prompt (or the context):", "\u9996\u8bcd\u5143\u5ef6\u8fdf:"),
             c.ttft.value, c.ttft.low, c.ttft.high);
  std::vector<std::vector<std::string>> speed = {
      {say("SEQS", "\u5e76\u53d1"), say("TOK/S EACH", "\u6bcf\u7528\u6237 tok/s"), say("TOK/S ALL", "\u603b tok/s"),
       say("INTERVAL", "\u533a\u95f4"), say("OF BANDWIDTH", "\u5e26\u5bbd\u5360\u6bd4")}};
  for (const SpeedPoint& p : c.curve.points)
    speed.push_back({std::to_string(p.concurrency), fmt::format("{:.1f}", p.tok_per_s_user.value),
                     fmt::format("{:.0f}", p.tok_per_s_total.value),
                     fmt::format("{:.0f} - {:.0f}", p.tok_per_s_total.low, p.tok_per_s_total.high),
                     fmt::format("{:.0f} %{}", 100 * p.bandwidth_share, p.compute_bound ? " (compute)" : "")});
  fmt::print("{}", format_table({kRight, kRight, kRight, kRight, kRight}, speed));
  fmt::print("{} {}\n", say("knee of throughput (doubling gains less than 20 %):", "\u541e\u5410\u62d0\u70b9:"),
             c.curve.knee);
  if (o.latency_ms)
    fmt::print("{} {:.0f} ms: {}\n",
               say("most sequences within", "\u6ee1\u8db3\u5ef6\u8fdf\u7684\u6700\u5927\u5e76\u53d1"), *o.latency_ms,
               c.curve.within_goal);
  if (c.usd_per_million > 0)
    fmt::print("{} ${:.3f} ({})\n",
               say("a million output tokens at this concurrency:", "\u6bcf\u767e\u4e07\u8f93\u51fa\u8bcd\u5143:"),
               c.usd_per_million,
               o.usd_per_hour ? std::string("--usd-per-hour")
                              : fmt::format("${:.2f}/h a device, {} {}", set.device.price.middle(),
                                            set.device.price.provider, set.device.price.date));
  fmt::print("{} {}\n", say("efficiency:", "\u6548\u7387\u6765\u6e90:"), set.device.efficiency.source);
}

// --- this machine -----------------------------------------------------------------------------------------------

Status plan_here(const Context& context, const PlanOptions& o, const World& world, const ModelShape& shape,
                 const Quantisation& q) {
  const Machine machine = detect_machine(world.data.devices);
  EngineSettings settings;
  settings.context = o.contexts.empty() ? 0 : o.contexts.front();
  settings.max_seqs = o.concurrencies.empty() ? 1 : o.concurrencies.front();
  if (o.chunk) settings.chunk_tokens = *o.chunk;
  settings.kv_type = o.kv == "f32" ? KvType::kF32 : o.kv == "int8" ? KvType::kInt8 : KvType::kF16;
  if (o.host_gib) settings.memory_limit = static_cast<std::int64_t>(*o.host_gib * (std::int64_t{1} << 30));
  HostSpeed speed;
  if (o.calibrate) {
    ProgressLine line(context.err, std::chrono::milliseconds(0));
    line.update("measuring a slice of the model's layers", -1, "");
    STILL_TRY(speed, calibrate_host(shape, q, {}));
  }
  STILL_TRY(const HostWeights weights, plan_host_weights(shape, q));
  STILL_TRY(const MemoryPlan plan, plan_memory(shape.config, weights.arena_bytes, weights.max_k, settings));
  if (o.json) {
    fmt::print("{}\n", to_json(JsonObject{{"model", shape.name},
                                          {"quantisation", q.name},
                                          {"devices", machine.cpu},
                                          {"context", plan.settings.context},
                                          {"concurrency", plan.settings.max_seqs},
                                          {"fits", true},
                                          {"weight_bytes", plan.weight_bytes},
                                          {"kv_bytes", plan.kv_bytes},
                                          {"workspace_bytes", plan.workspace_bytes},
                                          {"rope_bytes", plan.rope_bytes},
                                          {"runtime_bytes", plan.runtime_bytes},
                                          {"mapped_bytes", weights.mapped_bytes},
                                          {"total_bytes", plan.total_bytes()},
                                          {"available_bytes", machine.available_bytes},
                                          {"decode_tok_per_s", speed.decode_tok_per_s},
                                          {"prefill_tok_per_s", speed.prefill_tok_per_s}}));
    return ok();
  }
  const Words& say = world.say;
  fmt::print("{} {} {}: {}, {} cores, {} NUMA, {}, {:.1f} GiB available\n", shape.name, q.name,
             say("on this machine", "\u5728\u672c\u673a"), machine.cpu, machine.n_cores, machine.n_numa_nodes,
             machine.isas.back(), to_gib(machine.available_bytes));
  for (const Device& gpu : machine.gpus) fmt::print("GPU: {}, {:.1f} GiB\n", gpu.name, to_gib(gpu.usable_bytes));
  std::vector<std::vector<std::string>> rows = {
      {say("EXACT, AS THE ENGINE ALLOCATES", "\u4e0e\u5f15\u64ce\u5206\u914d\u4e00\u81f4"), "BYTES", "GB", "GiB"}};
  const auto add = [&](const std::string& name, std::int64_t bytes) {
    rows.push_back(
        {name, std::to_string(bytes), fmt::format("{:.3f}", to_gb(bytes)), fmt::format("{:.3f}", to_gib(bytes))});
  };
  add(say("packed weights", "\u6743\u91cd"), plan.weight_bytes);
  add(fmt::format("{} ({} x {} B)", say("KV cache", "KV \u7f13\u5b58"), plan.settings.kv_tokens,
                  plan.kv_bytes_per_token),
      plan.kv_bytes);
  add(say("workspace", "\u5de5\u4f5c\u533a"), plan.workspace_bytes);
  add("rope", plan.rope_bytes);
  add(say("runtime (estimate)", "\u8fd0\u884c\u65f6 (\u4f30\u8ba1)"), plan.runtime_bytes);
  add(say("all", "\u5408\u8ba1"), plan.total_bytes());
  add(say("embedding, read in the file (page cache)", "\u8bcd\u8868\u6620\u5c04"), weights.mapped_bytes);
  using enum Align;
  fmt::print("{}", format_table({kLeft, kRight, kRight, kRight}, rows));
  fmt::print("{} {} x {}, {}\n", say("context", "\u4e0a\u4e0b\u6587"), plan.settings.context, plan.settings.max_seqs,
             say("fits", "\u80fd\u8fd0\u884c"));
  if (o.calibrate)
    fmt::print("{}: {:.1f} tok/s, {}: {:.1f} tok/s ({} {} {}, {:.1f} s)\n", say("decode", "\u89e3\u7801"),
               speed.decode_tok_per_s, say("prefill of 512", "\u9884\u586b\u5145 512"), speed.prefill_tok_per_s,
               say("measured on a slice of", "\u5b9e\u6d4b\u5c42\u6570"), speed.slice_layers, say("layers", "\u5c42"),
               speed.seconds);
  return ok();
}

// --- claims, devices, advice -------------------------------------------------------------------------------------

Status check_claim(const PlanOptions& o, const World& world) {
  STILL_TRY(const std::vector<Claim> claims, read_claims());
  std::string sentence;
  for (std::size_t i = 1; i < o.words.size(); ++i) sentence += (i > 1 ? " " : "") + o.words[i];
  std::vector<const Claim*> found;
  if (sentence.empty())
    for (const Claim& claim : claims) found.push_back(&claim);
  else
    found = match_claims(claims, sentence);
  if (found.empty())
    return error(Code::kNotFound, "no known claim is in \"{}\"; `still plan check` alone lists all {}", sentence,
                 claims.size());
  if (!sentence.empty() && found.size() > 3) found.resize(3);
  JsonArray array;
  int n_wrong = 0, n_checks = 0;
  for (const Claim* claim : found) {
    JsonArray checks;
    if (!o.json)
      fmt::print("{}: \"{}\"\n  {}: {}\n  {}: {}\n", claim->id, claim->claim, claim->verdict, claim->right,
                 world.say("source", "\u6765\u6e90"), claim->source);
    for (const ClaimCheck& check : claim->checks) {
      STILL_TRY(const double got, answer_check(world.data, check));
      const bool agrees = std::abs(got - check.expect) <= check.tolerance + 1e-9;
      n_wrong += !agrees;
      ++n_checks;
      checks.push_back(
          JsonObject{{"query", check.text()}, {"value", got}, {"expected", check.expect}, {"agrees", agrees}});
      if (!o.json) fmt::print("  {} = {:.6g}{}\n", check.text(), got, agrees ? "" : " DISAGREES");
    }
    array.push_back(JsonObject{{"id", claim->id},
                               {"claim", claim->claim},
                               {"verdict", claim->verdict},
                               {"right", claim->right},
                               {"source", claim->source},
                               {"checks", std::move(checks)}});
  }
  if (o.json)
    fmt::print("{}\n", to_json(array));
  else if (sentence.empty())
    fmt::print("\n{} claims, {} checks, {} disagree\n", found.size(), n_checks, n_wrong);
  return ok();
}

Status list_devices(const PlanOptions& o, const World& world) {
  std::vector<std::vector<std::string>> rows = {
      {"DEVICE", "GiB", "GB/s", "F16 TF", "INT8", "FP8", "LINK GB/s", "$/H", "DATE", "CONFIDENCE", "SOURCE"}};
  JsonArray array;
  for (const Device& d : world.data.devices) {
    const auto tf = [](double x) { return x > 0 ? fmt::format("{:.0f}", x * 1e-12) : std::string("-"); };
    rows.push_back({d.name, fmt::format("{:.1f}", to_gib(d.usable_bytes)), fmt::format("{:.0f}", d.bandwidth * 1e-9),
                    tf(d.f16_f32_accumulate), tf(d.int8), tf(d.fp8),
                    d.link_bandwidth > 0 ? fmt::format("{:.0f}", d.link_bandwidth * 1e-9) : "-",
                    d.price.usd_per_hour_low > 0
                        ? fmt::format("{:.2f}-{:.2f}", d.price.usd_per_hour_low, d.price.usd_per_hour_high)
                        : "-",
                    d.price.date, d.confidence, d.source});
    array.push_back(JsonObject{{"name", d.name},
                               {"usable_bytes", d.usable_bytes},
                               {"bandwidth", d.bandwidth},
                               {"confidence", d.confidence},
                               {"source", d.source}});
  }
  using enum Align;
  if (o.json)
    fmt::print("{}\n", to_json(array));
  else
    fmt::print(
        "{}", format_table({kLeft, kRight, kRight, kRight, kRight, kRight, kRight, kRight, kLeft, kLeft, kLeft}, rows));
  return ok();
}

Status print_advice(const PlanOptions& o, const World& world) {
  AdviceRequest request{.task = o.task, .permissive_licence = o.permissive, .usd_per_hour = o.usd_per_hour};
  if (o.devices.empty())
    return error(Code::kInvalidArgument,
                 "--advise needs --on DEVICES (2x3090, h100, ...; `still plan devices` lists them)");
  STILL_TRY(request.devices, parse_device_set(world.data.devices, o.devices.front()));
  if (!o.contexts.empty()) request.context = o.contexts.front();
  if (!o.concurrencies.empty()) request.concurrency = o.concurrencies.front();
  if (o.min_rate) request.min_tok_per_s = *o.min_rate;
  if (o.answer_tokens) request.answer_tokens = *o.answer_tokens;
  if (!o.quants.empty()) request.quantisation = o.quants.front();
  STILL_TRY(const Advice advice, advise(world.data, request));
  const auto is_good = [](const Candidate& c) { return c.fits && c.fast_enough && c.licence_ok; };
  if (o.json) {
    JsonArray rows, because, unknowns;
    for (const Candidate& c : advice.candidates)
      rows.push_back(JsonObject{{"model", c.model},
                                {"quantisation", c.quantisation},
                                {"chosen_possible", is_good(c)},
                                {"score", c.score},
                                {"tok_per_s_user", c.tok_per_s_user.value},
                                {"tok_per_s_total", c.tok_per_s_total.value},
                                {"usd_per_million_tokens", c.usd_per_million},
                                {"usd_per_correct", c.usd_per_correct},
                                {"reason", c.reason}});
    for (const std::string& text : advice.because) because.emplace_back(text);
    for (const std::string& text : advice.unknowns) unknowns.emplace_back(text);
    fmt::print("{}\n", to_json(JsonObject{{"because", std::move(because)},
                                          {"unknowns", std::move(unknowns)},
                                          {"candidates", std::move(rows)}}));
    return ok();
  }
  const Words& say = world.say;
  if (!advice.candidates.empty() && is_good(advice.candidates.front()))
    fmt::print("{}: {} {} {}\n", say("choose", "\u5efa\u8bae"), advice.candidates.front().title,
               say("in", "\u7cbe\u5ea6"), advice.candidates.front().quantisation);
  for (const std::string& text : advice.because) fmt::print("  {}\n", text);
  std::vector<std::vector<std::string>> rows = {
      {say("MODEL", "\u6a21\u578b"), say("TYPE", "\u7cbe\u5ea6"), "GB", say("SCORE", "\u5206\u6570"), "TOK/S", "$/M",
       "$/" + say("CORRECT", "\u6b63\u786e"), say("WHY NOT", "\u4e0d\u9009\u539f\u56e0")}};
  std::size_t n_good = 0, n_bad = 0;
  for (const Candidate& c : advice.candidates) {
    if (is_good(c) ? ++n_good > 8 : ++n_bad > 6) continue;
    rows.push_back({c.title, c.quantisation, fmt::format("{:.1f}", to_gb(c.weight_bytes)),
                    fmt::format("{:.1f}", c.score), fmt::format("{:.0f}", c.tok_per_s_user.value),
                    c.usd_per_million > 0 ? fmt::format("{:.2f}", c.usd_per_million) : "-",
                    c.usd_per_correct > 0 ? fmt::format("{:.4f}", c.usd_per_correct) : "-",
                    is_good(c) ? "" : c.reason});
  }
  using enum Align;
  fmt::print("\n{}\n{}\n", format_table({kLeft, kLeft, kRight, kRight, kRight, kRight, kRight, kLeft}, rows),
             say("not known:", "\u672a\u77e5:"));
  for (const std::string& text : advice.unknowns) fmt::print("  {}\n", text);
  return ok();
}

Status print_offload(const PlanOptions& o, const World& world, const ModelShape& shape, const Quantisation& q,
                     const DeviceSet& set) {
  const Machine machine = detect_machine(world.data.devices);
  const std::int64_t host =
      o.host_gib ? static_cast<std::int64_t>(*o.host_gib * (std::int64_t{1} << 30)) : machine.available_bytes;
  STILL_TRY(DeploymentSettings s, settings_of(o, shape, q, set.count));
  s.concurrency = o.concurrencies.empty() ? 1 : o.concurrencies.front();
  // The first KV type and context, largest first, with everything on the GPU; else with layers or experts on the host.
  std::vector<std::int64_t> contexts = o.contexts;
  if (contexts.empty()) contexts = {131072, 65536, 32768, 16384, 8192, 4096};
  const std::int64_t model_context = shape.config.max_seq_len;
  for (const std::int64_t context : contexts) {
    if (context > model_context) continue;
    for (const char* kv : {"f16", "q8_0"}) {
      s.context = context;
      STILL_TRY(s.kv, find_kv_storage(kv));
      STILL_TRY(const FitAnswer fit, check_fit(shape, q, set, s, false));
      if (!fit.fits) continue;
      fmt::print("{} {} on {}: all {} layers on the GPU, context {}, KV {}, up to {} sequences\n", shape.name, q.name,
                 set.label(), shape.config.n_layers, context, kv, fit.max_concurrency);
      return ok();
    }
  }
  s.context = std::min(model_context, contexts.back());
  STILL_TRY(s.kv, find_kv_storage(o.kv));
  STILL_TRY(const OffloadPlan plan, plan_offload(shape, q, set, host, s));
  if (!plan.fits)
    return error(Code::kResourceExhausted, "{} {} does not fit {} with {:.1f} GiB of host memory: {}", shape.name,
                 q.name, set.label(), to_gib(host), plan.reason);
  fmt::print("{} {} on {}: context {}, KV {}, {} {} of {} layers on the GPU ({}), {} in host memory\n", shape.name,
             q.name, set.label(), s.context, s.kv.name,
             plan.experts_on_host ? "attention and dense parts of all layers, routed experts of" : "", plan.gpu_layers,
             shape.config.n_layers, both_units(plan.gpu_bytes), both_units(plan.host_bytes));
  return ok();
}

Status plan(const PlanOptions& o, const Context& context) {
  World world;
  world.say.is_chinese = o.lang == "zh";
  STILL_TRY(world.data, ClaimWorld::read());
  if (o.device_file) {
    STILL_TRY(const std::string text, read_text_file(*o.device_file, std::int64_t{16} << 20));
    STILL_TRY(std::vector<Device> own, read_devices(text, *o.device_file));
    own.insert(own.end(), world.data.devices.begin(), world.data.devices.end());
    world.data.devices = std::move(own);
  }
  if (!o.words.empty() && o.words.front() == "check") return check_claim(o, world);
  if (!o.words.empty() && o.words.front() == "devices") return list_devices(o, world);
  if (o.advise) return print_advice(o, world);
  for (const std::int64_t n : o.contexts)
    if (n < 1) return error(Code::kInvalidArgument, "--context {}: expected 1 token or more", n);
  for (const std::int64_t n : o.concurrencies)
    if (n < 1) return error(Code::kInvalidArgument, "--seqs {}: expected 1 or more", n);
  if (o.words.empty() && o.arch.empty())
    return error(Code::kInvalidArgument, "name a model, a file, a source, or a shape (--arch qwen2 --layers ...)");

  std::vector<ModelShape> shapes;
  std::vector<std::string> own_quants;
  if (!o.arch.empty()) {
    STILL_TRY(ModelShape shape, shape_of_arguments(o));
    shapes.push_back(std::move(shape));
    own_quants.emplace_back();
  }
  for (const std::string& name : o.words) {
    std::string quant;
    STILL_TRY(ModelShape shape, find_shape(context, world, name, quant));
    own_quants.push_back(quant.empty() ? (shape.has_own_types ? "own" : "Q4_K_M") : quant);
    shapes.push_back(std::move(shape));
  }
  std::vector<DeviceSet> sets;
  for (const std::string& text : o.devices) {
    STILL_TRY(DeviceSet set, parse_device_set(world.data.devices, text));
    sets.push_back(std::move(set));
  }
  std::vector<PlannedCell> cells;
  const ModelShape* last_shape = nullptr;
  Quantisation last_quant;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    std::vector<std::string> quants = o.quants;
    if (quants.empty()) quants.push_back(own_quants[i].empty() ? "Q4_K_M" : own_quants[i]);
    for (const std::string& name : quants) {
      STILL_TRY(const Quantisation q, find_quantisation(name));
      if (sets.empty()) {
        STILL_TRY_STATUS(plan_here(context, o, world, shapes[i], q));
        continue;
      }
      for (const DeviceSet& set : sets) {
        if (o.fit) {
          STILL_TRY_STATUS(print_offload(o, world, shapes[i], q, set));
          continue;
        }
        for (const std::int64_t n_context :
             o.contexts.empty() ? std::vector<std::int64_t>{std::min<std::int64_t>(8192, shapes[i].config.max_seq_len)}
                                : o.contexts) {
          for (const std::int64_t n_seqs : o.concurrencies.empty() ? std::vector<std::int64_t>{1} : o.concurrencies) {
            STILL_TRY(PlannedCell cell, plan_cell(world, o, shapes[i], q, set, n_context, n_seqs));
            cells.push_back(std::move(cell));
            last_shape = &shapes[i];
            last_quant = q;
          }
        }
      }
    }
  }
  if (cells.empty()) return ok();
  if (o.svg) {
    std::vector<MemoryBar> bars;
    for (const PlannedCell& c : cells)
      bars.push_back({.label = fmt::format("{} {}", c.model, c.quant),
                      .parts = {{"weights", c.fit.memory.weight_bytes},
                                {"KV cache", c.fit.memory.kv_bytes},
                                {"workspace", c.fit.memory.activation_bytes + c.fit.memory.logit_bytes},
                                {"runtime", c.fit.memory.runtime_bytes}},
                      .capacity = c.fit.capacity});
    std::ofstream file(*o.svg);
    file << plan_chart_svg(
        fmt::format("{} on {}: memory of one device, and speed", cells.back().model, cells.back().devices), bars,
        cells.back().curve);
    if (!file.flush()) return error(Code::kPermissionDenied, "{}: cannot be written", *o.svg);
  }
  if (o.json) {
    JsonArray array;
    for (const PlannedCell& c : cells) array.push_back(to_json_cell(c));
    fmt::print("{}\n", to_json(array));
  } else if (o.csv) {
    print_csv(cells);
  } else if (cells.size() == 1) {
    print_one(cells.front(), *last_shape, last_quant, sets.front(), o, world);
  } else {
    print_matrix(cells, world.say);
  }
  return ok();
}

Command::Action declare(Options& options) {
  auto o = std::make_shared<PlanOptions>();
  options.rest("MODEL", &o->words, false,
               "Known names, store names, files, headers, sources; or: check SENTENCE; or: devices");
  options.repeated(
      "-q,--quant", &o->quants,
      "Quantisations: Q4_K_M, BF16, GPTQ, AWQ, INT8, FP8, FP8-BLOCK, 4.25bpw, ... (default: the file's own)");
  options.repeated("--on", &o->devices, "Devices: 2x3090, h100, 8xh200, ... (default: this machine, exact)");
  options.list("-c,--context", &o->contexts, "Tokens of a sequence; several with commas");
  options.list("-n,--seqs", &o->concurrencies, "Sequences at once; several with commas");
  options.value("--kv", &o->kv, "KV type: f16, q8_0, fp8, ...");
  options.value("--engine", &o->engine, "Profile: still, vllm, llama.cpp");
  options.value("--tensor", &o->tensor, "Tensor-parallel ranks");
  options.value("--pipeline", &o->pipeline, "Pipeline stages");
  options.value("--expert", &o->expert, "Expert-parallel ranks");
  options.value("--chunk", &o->chunk, "Tokens of one step at most");
  options.value("--utilisation", &o->utilisation, "Share of a device's memory that may be used");
  options.value("--overhead", &o->overhead_gib, "GiB a device for runtime and driver");
  options.flag("--mtp", &o->mtp, "With the multi-token-prediction module");
  options.flag("--fit", &o->fit, "Choose layers on the GPU, KV type and context");
  options.value("--host-memory", &o->host_gib, "GiB of host memory (default: what this machine has)");
  options.value("--latency", &o->latency_ms, "Milliseconds between a user's tokens at most");
  options.flag("--advise", &o->advise, "Recommend a version for --on, with reasons");
  options.choice("--task", &o->task, {"math", "code", "science", "general"}, "What for");
  options.flag("--permissive", &o->permissive, "No community licences");
  options.value("--min-rate", &o->min_rate, "Tokens/s of a user at least");
  options.value("--answer-tokens", &o->answer_tokens, "Tokens of a typical answer");
  options.value("--usd-per-hour", &o->usd_per_hour, "Price of all devices together");
  options.value("--devices", &o->device_file, "A file of own devices, as data/plan/devices.json");
  options.value("--arch", &o->arch, "A bare shape: llama, qwen2, qwen3");
  options.value("--layers", &o->layers, "of the shape");
  options.value("--hidden", &o->hidden, "of the shape");
  options.value("--heads", &o->heads, "of the shape");
  options.value("--kv-heads", &o->kv_heads, "of the shape");
  options.value("--head-dim", &o->head_dim, "of the shape");
  options.value("--ffn", &o->ffn, "of the shape");
  options.value("--vocab", &o->vocab, "of the shape");
  options.flag("--tied", &o->tied, "Head and embedding of the shape are one");
  options.flag("--calibrate", &o->calibrate, "On this machine: measure a slice of the layers and predict tokens/s");
  options.flag("--explain", &o->explain, "Every line with its formula");
  options.flag("--json", &o->json, "JSON");
  options.flag("--csv", &o->csv, "CSV");
  options.value("--svg", &o->svg, "Write a chart to this file");
  options.choice("--lang", &o->lang, {"en", "zh"}, "Language of the tables");
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
                               "  still plan check \"V3 is a dense model\"",
                           .declare = declare};

}  // namespace still

// One deployment in full (memory line by line, fit, speed over concurrency, cost), or many as a matrix, CSV, JSON or a
// chart.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "base/json.h"
#include "cli/plan_options.h"
#include "cli/table.h"
#include "plan/chart.h"
#include "plan/host_plan.h"

namespace still {

namespace {

// Of drafts by the model's own module, second tokens were accepted in 85 to 90 %.  DeepSeek-V3, arXiv:2412.19437, 5.4.3
constexpr double kMtpAcceptance = 0.85;

struct Line {
  std::string name;
  std::int64_t bytes;
  Message formula;
};

std::vector<Line> explain_lines(const ModelShape& shape, const Quantisation& q, const FitAnswer& a,
                                const DeploymentSettings& s, const Words& say) {
  std::vector<Line> lines;
  for (int g = 0; g < kWeightGroupCount; ++g) {
    const std::int64_t bytes = a.weights.groups[static_cast<std::size_t>(g)];
    if (bytes > 0)
      lines.push_back({say("weights: ") + say(group_name(static_cast<WeightGroup>(g))), bytes,
                       message("sum of tensors in {}, fullest of {} ranks", q.name, s.parallelism.n_ranks())});
  }
  const ModelConfig& c = shape.config;
  std::string kv;
  if (shape.is_mla() && s.engine.latent_kv)
    kv = say(message("{} layers x ({} + {}) values of {}", c.n_layers, c.kv_lora_rank, c.qk_rope_head_dim, s.kv.name));
  else if (shape.is_mla())
    kv = say(message("{} layers x {} heads x ({} + {}) values of {} (no latent cache)", c.n_layers, c.n_heads,
                     c.qk_nope_head_dim + c.qk_rope_head_dim, c.v_head_dim, s.kv.name));
  else
    kv = say(message("2 x {} layers x {} KV heads x {} values of {}", c.n_layers, c.n_kv_heads, c.head_dim, s.kv.name));
  // Of a window no more is kept than itself; a rank of data has its share of the sequences.
  const std::int64_t kept = c.sliding_window > 0 ? std::min(c.sliding_window, s.context) : s.context;
  const std::int64_t n_seqs = (s.concurrency + s.parallelism.data - 1) / s.parallelism.data;
  lines.push_back({say("KV cache"), a.memory.kv_bytes,
                   message("{} = {} B a token, x {} tokens x {} sequences, over {} stages, {} tensor and {} data ranks",
                           kv, kv_bytes_per_token(shape, s.kv, s.engine.latent_kv), kept, s.concurrency,
                           s.parallelism.pipeline, s.parallelism.tensor, s.parallelism.data)});
  const std::string dispatch = c.n_experts > 0
                                   ? say(message(" + {} experts x ({} + 2 x {})", c.n_experts_per_tok, c.hidden_size,
                                                 c.moe_intermediate_size / s.parallelism.tensor))
                                   : std::string();
  const std::int64_t step =
      s.engine.whole_prompt ? (s.context - s.answer_tokens) * n_seqs : std::max(s.chunk_tokens, n_seqs);
  const Message activations = message("a step of {} tokens x (4 x {} + 3 x widest inner part{}) x {} B (estimate)",
                                      step, c.hidden_size, dispatch, s.engine.activation_bytes);
  lines.push_back({say("activations"), a.memory.activation_bytes,
                   s.engine.whole_prompt
                       ? message("{}; or the last token's, where its KV makes that moment the larger", say(activations))
                       : activations});
  lines.push_back({say("logits"), a.memory.logit_bytes,
                   s.engine.whole_prompt
                       ? message("{} rows x {} x {} B", n_seqs, c.vocab_size, 2)
                       : message("{} rows x {} x {} B", std::max<std::int64_t>(16, n_seqs), c.vocab_size, 4)});
  lines.push_back(
      {say("runtime and driver"), a.memory.runtime_bytes, message("profile of {} (estimate)", s.engine.name)});
  return lines;
}

std::string split_text(const Parallelism& p, const Words& say) {
  std::string text = say(message("tensor {}, pipeline {}", p.tensor, p.pipeline));
  if (p.data > 1) text += say(message(", data {}", p.data));
  if (p.expert > 1) text += say(message(", expert {}", p.expert));
  return text;
}

JsonObject to_json_cell(const PlannedCell& c) {
  JsonArray nearest, notes, curve;
  for (const Message& text : c.fit.nearest) nearest.emplace_back(text.english);
  for (const Message& text : c.fit.notes) notes.emplace_back(text.english);
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
          {"engine", c.settings.engine.name},
          {"context", c.settings.context},
          {"concurrency", c.settings.concurrency},
          {"tensor", c.settings.parallelism.tensor},
          {"pipeline", c.settings.parallelism.pipeline},
          {"data", c.settings.parallelism.data},
          {"expert", c.settings.parallelism.expert},
          {"fits", c.fit.fits},
          {"reason", c.impossible.empty() ? c.fit.reason.english : c.impossible},
          {"nearest", std::move(nearest)},
          {"notes", std::move(notes)},
          {"file_bytes", c.fit.weights.file_bytes},
          {"all_ranks_weight_bytes", c.fit.weights.all_ranks_bytes},
          {"host_bytes", c.fit.weights.host_bytes},
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
          {"ttft_low_s", c.ttft.low},
          {"ttft_high_s", c.ttft.high},
          {"usd_per_million_tokens", c.usd_per_million},
          {"knee", c.curve.knee},
          {"knee_reached", c.curve.has_knee},
          {"within_latency", c.curve.within_goal},
          {"curve", std::move(curve)}};
}

void print_speed(const PlannedCell& c, const ModelShape& shape, const DeviceSet& set, const PlanOptions& o,
                 const Words& say) {
  const std::int64_t prompt = std::min<std::int64_t>(c.settings.context, 1024);
  fmt::print("\n{}\n", say(message("first token of a prompt of {} tokens: {:.2f} s ({:.2f} - {:.2f})", prompt,
                                   c.ttft.value, c.ttft.low, c.ttft.high)));
  fmt::print("{}\n", say(message("decoding with {:.0f} tokens in each cache, the mean of a sequence that grows to {}",
                                 mean_kv_tokens(shape, c.settings.context), c.settings.context)));
  std::vector<std::vector<std::string>> speed = {
      {say("SEQS"), say("TOK/S EACH"), say("TOK/S ALL"), say("INTERVAL"), say("OF BANDWIDTH")}};
  for (const SpeedPoint& p : c.curve.points)
    speed.push_back({std::to_string(p.concurrency), fmt::format("{:.1f}", p.tok_per_s_user.value),
                     fmt::format("{:.0f}", p.tok_per_s_total.value),
                     fmt::format("{:.0f} - {:.0f}", p.tok_per_s_total.low, p.tok_per_s_total.high),
                     fmt::format("{:.0f} %{}", 100 * p.bandwidth_share, p.compute_bound ? say(" (compute)") : "")});
  using enum Align;
  fmt::print("{}", format_table({kRight, kRight, kRight, kRight, kRight}, speed));
  const bool is_end = !c.curve.has_knee && c.curve.knee == c.fit.max_concurrency;
  fmt::print("{}{}\n", knee_text(c.curve, say), is_end ? say(", where memory ends") : "");
  if (o.latency_ms)
    fmt::print("{}\n", say(message("most sequences with at most {:.0f} ms between a user's tokens: {}", *o.latency_ms,
                                   c.curve.within_goal)));
  if (o.mtp && shape.config.n_mtp_layers > 0)
    fmt::print("{}\n", say(message("with the MTP module, {:.0f} % of its drafts accepted, a step gives {:.2f} tokens "
                                   "while memory is the bound (not in the table)",
                                   100 * kMtpAcceptance, expected_tokens_per_step(kMtpAcceptance, 1))));
  if (c.usd_per_million > 0)
    fmt::print("{}\n",
               say(message("a million output tokens at this concurrency: ${:.3f} ({})", c.usd_per_million,
                           o.usd_per_hour ? std::string("--usd-per-hour")
                                          : fmt::format("${:.2f}/h x {}, {}, {}", set.device.price.middle(), set.count,
                                                        say(set.device.price.provider), set.device.price.date))));
  fmt::print("{}\n", say(message("efficiency: {}", say(set.device.efficiency.source))));
}

}  // namespace

std::string tokens_text(std::int64_t n) {
  return n >= 10000 ? fmt::format("{}k", n / 1000) : std::to_string(n);
}

std::string knee_text(const SpeedCurve& curve, const Words& say) {
  if (curve.has_knee)
    return say(message("knee of throughput (doubling gains less than 20 %): {} sequences", curve.knee));
  return say(message("knee of throughput (doubling gains less than 20 %): not reached up to {} sequences", curve.knee));
}

Result<Device> host_device(const PlanOptions& o, const PlanWorld& world) {
  if (o.host) {
    STILL_TRY(const Device device, find_device(world.data.devices, *o.host));
    if (!device.is_host()) return error(Code::kInvalidArgument, "--host {}: this is no CPU", *o.host);
    return device;
  }
  // Hypervisors hide the model: an EPYC without AVX-512 is one of the 7003 series or older.
  const Machine machine = detect_machine({});
  const bool has_avx512 = std::any_of(machine.isas.begin(), machine.isas.end(),
                                      [](const std::string& isa) { return isa.starts_with("avx512"); });
  const char* row = machine.cpu.find("EPYC") == std::string::npos ? "desktop" : has_avx512 ? "epyc-9004" : "epyc-7003";
  return find_device(world.data.devices, row);
}

Result<std::int64_t> host_capacity(const PlanOptions& o, const PlanWorld& world) {
  if (o.host_gib) return static_cast<std::int64_t>(*o.host_gib * (std::int64_t{1} << 30));
  if (!o.host) return detect_machine({}).available_bytes;
  STILL_TRY(const Device row, host_device(o, world));
  return row.usable_bytes;
}

Result<DeploymentSettings> deployment_of(const PlanOptions& o, const ModelShape& shape, const Quantisation& q,
                                         std::int64_t n_devices) {
  DeploymentSettings s;
  STILL_TRY(s.kv, find_kv_storage(o.kv.value_or("f16")));
  STILL_TRY(s.engine, find_engine_profile(o.engine.value_or("still")));
  if (o.utilisation) s.engine.utilisation = *o.utilisation;
  if (o.overhead_gib) {
    if (!(*o.overhead_gib >= 0) || *o.overhead_gib > 1e4)
      return error(Code::kInvalidArgument, "--overhead {}: expected GiB, 0 or more", *o.overhead_gib);
    s.engine.runtime_bytes = static_cast<std::int64_t>(*o.overhead_gib * (std::int64_t{1} << 30));
  }
  if (o.chunk) s.chunk_tokens = *o.chunk;
  if (o.network_gbs) s.network_bandwidth = *o.network_gbs * 1e9;
  s.with_mtp = o.mtp;
  s.experts_on_host = o.experts_on_host;
  if (o.experts_on_host && !shape.is_moe())
    return error(Code::kInvalidArgument, "--experts-on-host: {} has no experts", shape.name);
  if (o.tensor || o.pipeline || o.expert || o.data || o.redundant) {
    s.parallelism = {.tensor = o.tensor.value_or(1),
                     .pipeline = o.pipeline.value_or(1),
                     .expert = o.expert.value_or(1),
                     .data = o.data.value_or(1),
                     .redundant = o.redundant.value_or(0)};
    const std::int64_t others = std::max<std::int64_t>(1, s.parallelism.pipeline * s.parallelism.data);
    if (!o.tensor) s.parallelism.tensor = std::max<std::int64_t>(1, n_devices / others);
    STILL_TRY_STATUS(check_parallelism(shape, q, s.parallelism));
  } else {
    STILL_TRY(s.parallelism, choose_parallelism(shape, q, n_devices, s.engine));
  }
  return s;
}

Result<PlannedDeployment> PlannedDeployment::make(const PlanWorld& world, const PlanOptions& o, const ModelShape& shape,
                                                  const Quantisation& q, const DeviceSet& set) {
  PlannedDeployment plan;
  plan.shape_ = &shape;
  plan.start_.model = shape.name;
  plan.start_.quant = q.name;
  plan.start_.devices = set.label();
  Result<DeploymentSettings> settings = deployment_of(o, shape, q, set.count);
  if (!settings) {
    // Asked for in so many words it is an error; a device set of the matrix that cannot share the model is a cell.
    if (settings.error().code != Code::kInvalidArgument || o.tensor || o.pipeline || o.expert || o.data ||
        o.redundant || o.overhead_gib || o.experts_on_host)
      return tl::unexpected(settings.error());
    plan.start_.impossible = settings.error().message;
    return plan;
  }
  Device host;
  if (o.experts_on_host) {
    STILL_TRY(settings->host_capacity, host_capacity(o, world));
    STILL_TRY(host, host_device(o, world));
  }
  STILL_TRY(FitPlanner planner, FitPlanner::make(shape, q, set, *settings));
  plan.start_.settings = *settings;
  plan.start_.speed = std::make_shared<const SpeedModel>(
      make_speed_model(shape, q, set.device, planner.weights(), *settings, o.experts_on_host ? &host : nullptr));
  plan.planner_.emplace(std::move(planner));
  plan.goal_s_ = o.latency_ms.value_or(0) * 1e-3;
  plan.usd_per_hour_ = o.usd_per_hour.value_or(set.device.price.middle() * static_cast<double>(set.count));
  return plan;
}

Result<PlannedCell> PlannedDeployment::cell(std::int64_t context, std::int64_t concurrency, bool has_nearest,
                                            bool has_curve) {
  PlannedCell cell = start_;
  if (!cell.impossible.empty()) return cell;
  cell.settings.context = context;
  cell.settings.concurrency = concurrency;
  STILL_TRY(cell.fit, planner_->at(context, concurrency, has_nearest));
  const double kv_len = mean_kv_tokens(*shape_, context);
  cell.asked = predict_decode(*cell.speed, concurrency, kv_len);
  if (usd_per_hour_ > 0) cell.usd_per_million = usd_per_million(usd_per_hour_, cell.asked.tok_per_s_total.value);
  if (!has_curve) return cell;
  const std::int64_t usual = std::min<std::int64_t>(256 * cell.settings.parallelism.data, cell.fit.max_concurrency);
  cell.curve = predict_curve(*cell.speed, std::max(concurrency, usual), kv_len, goal_s_, concurrency);
  cell.ttft = predict_ttft(*cell.speed, std::min<std::int64_t>(context, 1024), cell.settings.chunk_tokens);
  return cell;
}

Result<PlannedCell> plan_cell(const PlanWorld& world, const PlanOptions& o, const ModelShape& shape,
                              const Quantisation& q, const DeviceSet& set, std::int64_t context,
                              std::int64_t concurrency) {
  STILL_TRY(PlannedDeployment plan, PlannedDeployment::make(world, o, shape, q, set));
  return plan.cell(context, concurrency, true, true);
}

void print_json(const std::vector<PlannedCell>& cells) {
  JsonArray array;
  for (const PlannedCell& c : cells) array.push_back(to_json_cell(c));
  fmt::print("{}\n", to_json(array));
}

namespace {

// RFC 4180: a field with a comma, a quote or a line break is quoted, its quotes doubled.
std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

}  // namespace

std::string csv_header() {
  return "model,quantisation,devices,tensor,pipeline,context,concurrency,fits,need_bytes,capacity_bytes,weight_bytes,"
         "kv_"
         "bytes,max_kv_tokens,tok_per_s_user,tok_per_s_total,usd_per_million,reason\n";
}

void append_csv(std::string& out, const PlannedCell& c) {
  const std::string& reason = c.impossible.empty() ? c.fit.reason.english : c.impossible;
  fmt::format_to(std::back_inserter(out), "{},{},{},{},{},{},{},{},{},{},{},{},{},{:.2f},{:.2f},{:.4f},{}\n",
                 csv_field(c.model), csv_field(c.quant), csv_field(c.devices), c.settings.parallelism.tensor,
                 c.settings.parallelism.pipeline, c.settings.context, c.settings.concurrency, c.fit.fits ? "yes" : "no",
                 c.fit.memory.need(), c.fit.capacity, c.fit.memory.weight_bytes, c.fit.memory.kv_bytes,
                 c.fit.max_kv_tokens, c.asked.tok_per_s_user.value, c.asked.tok_per_s_total.value, c.usd_per_million,
                 csv_field(reason));
}

void print_matrix(const std::vector<PlannedCell>& cells, const Words& say) {
  std::vector<std::vector<std::string>> rows = {{say("MODEL"), say("TYPE"), say("DEVICES"), "TPxPP", say("CONTEXT"),
                                                 say("SEQS"), say("FITS"), say("NEED/USABLE GiB"), say("KV TOKENS"),
                                                 say("TOK/S"), say("WHY NOT; NEAREST")}};
  for (const PlannedCell& c : cells) {
    if (!c.impossible.empty()) {
      rows.push_back({c.model, c.quant, c.devices, "-", "-", "-", say("no"), "-", "-", "-", c.impossible});
      continue;
    }
    std::string why = say(c.fit.reason);
    if (!c.fit.nearest.empty()) why += "; " + say(c.fit.nearest.front());
    rows.push_back({c.model, c.quant, c.devices,
                    fmt::format("{}x{}", c.settings.parallelism.tensor, c.settings.parallelism.pipeline),
                    tokens_text(c.settings.context), std::to_string(c.settings.concurrency),
                    c.fit.fits ? say("yes") : say("no"),
                    fmt::format("{:.1f}/{:.1f}", to_gib(c.fit.memory.need()), to_gib(c.fit.capacity)),
                    tokens_text(c.fit.max_kv_tokens),
                    c.fit.fits ? fmt::format("{:.0f}", c.asked.tok_per_s_total.value) : "-", why});
  }
  using enum Align;
  fmt::print("{}",
             format_table({kLeft, kLeft, kLeft, kRight, kRight, kRight, kLeft, kRight, kRight, kRight, kLeft}, rows));
}

void print_cell(const PlannedCell& c, const ModelShape& shape, const Quantisation& q, const DeviceSet& set,
                const PlanOptions& o, const PlanWorld& world) {
  const Words& say = world.say;
  const DeploymentSettings& s = c.settings;
  const std::int64_t n_nodes = (s.parallelism.n_ranks() + s.devices_per_node - 1) / s.devices_per_node;
  fmt::print(
      "{}{}\n",
      say(message("{} in {} on {} ({})", shape.title.empty() ? shape.name : shape.title,
                  q.kind == Quantisation::Kind::kOwn ? say(message("its own types, most of it {}", shape.own_type_name))
                                                     : q.name,
                  set.label(), split_text(s.parallelism, say))),
      n_nodes > 1 ? say(message(", {} nodes of {}", n_nodes, s.devices_per_node)) : "");
  if (s.engine.name != "still")
    fmt::print("{}\n", say(message("an estimate of what {} takes, from its sources and published measurements",
                                   s.engine.name)));
  fmt::print("{}\n",
             say(message("parameters {:.2f} B ({:.2f} B read for a token), file {}",
                         static_cast<double>(shape.n_params()) * 1e-9,
                         static_cast<double>(shape.n_active_params()) * 1e-9, both_units(c.fit.weights.file_bytes))));
  std::vector<std::vector<std::string>> rows = {{say("OF ONE DEVICE"), "GB", "GiB"}};
  if (o.explain) rows.front().push_back(say("HOW"));
  const auto add = [&](const std::string& name, std::int64_t bytes, const std::string& formula) {
    rows.push_back({name, fmt::format("{:.3f}", to_gb(bytes)), fmt::format("{:.3f}", to_gib(bytes))});
    if (o.explain) rows.back().push_back(formula);
  };
  if (o.explain) {
    for (const Line& line : explain_lines(shape, q, c.fit, s, say)) add(line.name, line.bytes, say(line.formula));
  } else {
    add(say("weights"), c.fit.memory.weight_bytes, "");
    add(say("KV cache"), c.fit.memory.kv_bytes, "");
    add(say("workspace and logits"), c.fit.memory.activation_bytes + c.fit.memory.logit_bytes, "");
    add(say("runtime and driver"), c.fit.memory.runtime_bytes, "");
  }
  add(say("needed"), c.fit.memory.need(), say("sum"));
  add(say("usable"), c.fit.capacity,
      say(message("{:.0f} % of {} MiB that the driver reports", 100 * s.engine.utilisation,
                  set.device.usable_bytes >> 20)));
  if (c.fit.reserved > 0)
    add(say("the engine reserves"), c.fit.reserved,
        say(message("{} takes its whole share whatever is needed", s.engine.name)));
  using enum Align;
  fmt::print("\n{}\n", format_table({kLeft, kRight, kRight, kLeft}, rows));
  if (s.parallelism.n_ranks() > 1)
    fmt::print(
        "{}\n",
        say(message(
            "all ranks together hold {} of weights, {:.1f} % of it copies", both_units(c.fit.weights.all_ranks_bytes),
            100 * (1 - static_cast<double>(c.fit.weights.file_bytes) /
                           static_cast<double>(std::max(c.fit.weights.all_ranks_bytes, c.fit.weights.file_bytes))))));
  if (c.fit.weights.host_bytes > 0)
    fmt::print("{}\n", say(message("host memory: {} of weights", both_units(c.fit.weights.host_bytes))));
  fmt::print("{}\n", say(message("disk: {} for the file", both_units(c.fit.weights.file_bytes))));
  fmt::print("{}\n", c.fit.fits ? say("fits: yes") : say(message("fits: no: {}", say(c.fit.reason))));
  for (const Message& text : c.fit.nearest) fmt::print("  {} {}\n", say("would fit:"), say(text));
  for (const Message& text : c.fit.notes) fmt::print("  {} {}\n", say("note:"), say(text));
  if (s.parallelism.pipeline > 1 && s.concurrency < s.parallelism.pipeline)
    fmt::print(
        "  {} {}\n", say("note:"),
        say(message("{} pipeline stages work at once only on {} sequences or more: one stage at a time otherwise",
                    s.parallelism.pipeline, s.parallelism.pipeline)));
  fmt::print("{}\n", say(message("room for {} tokens of KV: a context of up to {}, or {} sequences of {} at once",
                                 c.fit.max_kv_tokens, c.fit.max_context, c.fit.max_concurrency, s.context)));
  if (c.fit.fits) print_speed(c, shape, set, o, say);
}

Status write_chart(const std::vector<PlannedCell>& cells, const std::string& path, const Words& say) {
  std::vector<MemoryBar> bars;
  const PlannedCell *last = nullptr, *drawn = nullptr;  // a curve is drawn only of what fits
  for (const PlannedCell& c : cells) {
    if (!c.impossible.empty()) continue;
    last = &c;
    if (c.fit.fits) drawn = &c;
    bars.push_back({.label = fmt::format("{} {}", c.model, c.quant),
                    .parts = {{say("weights"), c.fit.memory.weight_bytes},
                              {say("KV cache"), c.fit.memory.kv_bytes},
                              {say("workspace"), c.fit.memory.activation_bytes + c.fit.memory.logit_bytes},
                              {say("runtime"), c.fit.memory.runtime_bytes}},
                    .capacity = c.fit.capacity});
  }
  if (last == nullptr) return error(Code::kInvalidArgument, "{}: no deployment to draw", path);
  const bool is_one_set =
      std::all_of(cells.begin(), cells.end(), [&](const PlannedCell& c) { return c.devices == cells.front().devices; });
  for (std::size_t i = 0, bar = 0; i < cells.size() && !is_one_set; ++i)
    if (cells[i].impossible.empty()) bars[bar++].label += ", " + cells[i].devices;
  const ChartWords words{
      .title = is_one_set ? say(message("Memory of one device of {}, GiB", last->devices))
                          : std::string(say("Memory of one device, GiB")),
      .capacity = say("usable"),
      .curve = drawn == nullptr ? std::string()
                                : say(message("Tokens/s of {} {} on {}, context {}", drawn->model, drawn->quant,
                                              drawn->devices, drawn->settings.context)),
      .caption = say("sequences at once; blue: tokens/s in all with its interval, green: of one user")};
  const std::string svg = plan_chart_svg(words, bars, drawn == nullptr ? SpeedCurve{} : drawn->curve);
  std::ofstream file(path);
  file << (path.ends_with(".html") || path.ends_with(".htm") ? plan_chart_html(words.title, svg, say.is_chinese) : svg);
  if (!file.flush()) return error(Code::kPermissionDenied, "{}: cannot be written", path);
  return ok();
}

}  // namespace still

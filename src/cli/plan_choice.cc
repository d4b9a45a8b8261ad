// What to choose: common claims checked, the device database, the advice, own hardware against an API, and a GPU beside
// host memory.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "base/json.h"
#include "cli/plan_options.h"
#include "cli/table.h"
#include "plan/advice.h"
#include "plan/host_plan.h"

namespace still {

namespace {

// "70B fits 2x80 GB", "671B in FP8 runs on 8 H200": a model, perhaps a type, and devices in a sentence that holds no
// known claim are answered by a plan. The type is 16 bits if none is named (of a model with experts FP8 in blocks, as
// published), a card of 80 GB an A100.
std::optional<Message> answer_of_sentence(const PlanWorld& world, const std::string& sentence) {
  std::vector<std::string> words(1);
  for (const char c : sentence) {
    const bool is_space = c == ' ' || c == ',' || c == ';' || c == '?' || c == '!' || c == '(' || c == ')';
    if (!is_space)
      words.back() += c;
    else if (!words.back().empty())
      words.emplace_back();
  }
  std::optional<ModelShape> shape;
  std::optional<Quantisation> type;
  std::optional<DeviceSet> set;
  std::int64_t count = 1;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.empty() || word == "own") continue;
    const std::string next = i + 1 < words.size() ? words[i + 1] : "";
    if (!shape) {
      if (auto found = find_known_shape(world.data.models, word)) {
        shape = std::move(*found);
        continue;
      }
    }
    if (!type) {
      if (auto found = find_quantisation(word)) {
        type = std::move(*found);
        continue;
      }
    }
    if (set) continue;
    if (auto found = parse_device_set(world.data.devices, word)) {
      set = std::move(*found);
      if (set->count == 1) set->count = count;
    } else if (next == "GB" || next == "GB." || word.ends_with("GB")) {
      const std::size_t times = word.find('x');
      std::string size = times == std::string::npos ? word : word.substr(times + 1);
      if (size.ends_with("GB")) size.resize(size.size() - 2);
      if (size == "80" || size == "40") {
        const std::string n = times == std::string::npos ? std::to_string(count) : word.substr(0, times);
        if (auto cards = parse_device_set(world.data.devices, n + "xa100-" + size)) set = std::move(*cards);
      }
    } else if (!word.empty() && word.size() < 6 &&
               std::all_of(word.begin(), word.end(), [](char c) { return c >= '0' && c <= '9'; })) {
      count = std::max<std::int64_t>(1, std::stoll(word));
    }
  }
  if (!shape || !set) return std::nullopt;
  if (!type || (type->name == "FP8" && shape->is_moe()))
    type = *find_quantisation(shape->is_moe() ? "FP8-BLOCK" : "BF16");
  DeploymentSettings s{.context = std::min<std::int64_t>(4096, shape->config.max_seq_len)};
  const auto split = choose_parallelism(*shape, *type, set->count);
  if (!split) return std::nullopt;
  s.parallelism = *split;
  const auto fit = check_fit(*shape, *type, *set, s, false);
  if (!fit) return std::nullopt;
  const Message verdict = fit->fits ? message("fits: yes") : message("fits: no: {}", world.say(fit->reason));
  return message("no known claim; planned: {} in {} on {}, one sequence of {} tokens: {}", shape->title, type->name,
                 set->label(), s.context, world.say(verdict));
}

}  // namespace

Status check_claim(const PlanOptions& o, const PlanWorld& world) {
  STILL_TRY(const std::vector<Claim> claims, read_claims());
  std::string sentence;
  for (std::size_t i = 1; i < o.words.size(); ++i) sentence += (i > 1 ? " " : "") + o.words[i];
  std::vector<const Claim*> found;
  if (sentence.empty())
    for (const Claim& claim : claims) found.push_back(&claim);
  else
    found = match_claims(claims, sentence);
  if (found.empty()) {
    if (const auto answer = answer_of_sentence(world, sentence)) {
      if (o.json)
        fmt::print("{}\n", to_json(JsonArray{JsonObject{{"planned", answer->english}}}));
      else
        fmt::print("{}\n", world.say(*answer));
      return ok();
    }
  }
  if (found.empty())
    return error(Code::kNotFound, "no known claim is in \"{}\"; `still plan check` alone lists all {}", sentence,
                 claims.size());
  if (!sentence.empty() && found.size() > 3) found.resize(3);
  JsonArray array;
  int n_wrong = 0, n_checks = 0;
  for (const Claim* claim : found) {
    JsonArray checks;
    const std::string verdict = !sentence.empty() && may_deny(*claim, sentence) ? "about" : claim->verdict;
    if (!o.json)
      fmt::print("{}: \"{}\"\n  {}: {}\n  {}: {}\n", claim->id, world.say(claim->claim), world.say(verdict),
                 world.say(claim->right), world.say("source"), claim->source);
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
                               {"verdict", verdict},
                               {"right", claim->right},
                               {"source", claim->source},
                               {"checks", std::move(checks)}});
  }
  if (o.json)
    fmt::print("{}\n", to_json(array));
  else if (sentence.empty())
    fmt::print("\n{}\n", world.say(message("{} claims, {} checks, {} disagree", found.size(), n_checks, n_wrong)));
  return ok();
}

Status list_devices(const PlanOptions& o, const PlanWorld& world) {
  std::vector<std::vector<std::string>> rows = {{world.say("DEVICE"), "GiB", "GB/s", "F16 TF", "INT8", "FP8",
                                                 world.say("LINK GB/s"), "$/H", world.say("DATE"),
                                                 world.say("CONFIDENCE"), world.say("SOURCE")}};
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
                               {"vendor", d.vendor},
                               {"arch", d.arch},
                               {"compute_capability", d.sm},
                               {"label_gb", d.label_gb},
                               {"link", d.link},
                               {"usable_bytes", d.usable_bytes},
                               {"bandwidth", d.bandwidth},
                               {"f16", d.f16},
                               {"f16_f32_accumulate", d.f16_f32_accumulate},
                               {"bf16", d.bf16},
                               {"int8", d.int8},
                               {"fp8", d.fp8},
                               {"fp4", d.fp4},
                               {"link_bandwidth", d.link_bandwidth},
                               {"pcie_bandwidth", d.pcie_bandwidth},
                               {"power_w", d.tdp_w},
                               {"usd_per_hour_low", d.price.usd_per_hour_low},
                               {"usd_per_hour_high", d.price.usd_per_hour_high},
                               {"price_class", d.price.provider},
                               {"price_date", d.price.date},
                               {"decode_efficiency", d.efficiency.decode},
                               {"prefill_efficiency", d.efficiency.prefill},
                               {"n_efficiency", d.efficiency.n},
                               {"efficiency_source", d.efficiency.source},
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

namespace {

// This machine: its GPUs of the first one's kind, else its CPU with the memory that is free.
Result<DeviceSet> devices_here(const PlanOptions& o, const PlanWorld& world) {
  const Machine machine = detect_machine(world.data.devices);
  if (!machine.gpus.empty() && !machine.gpus.front().row.empty()) {
    const DetectedGpu& first = machine.gpus.front();
    const auto n = std::count_if(machine.gpus.begin(), machine.gpus.end(),
                                 [&](const DetectedGpu& gpu) { return gpu.row == first.row; });
    return DeviceSet{first.device, n};
  }
  STILL_TRY(Device host, host_device(o, world));
  host.name = fmt::format("{} (speed of {})", machine.cpu, host.name);
  host.usable_bytes = machine.available_bytes;
  return DeviceSet{host, 1};
}

}  // namespace

Status print_advice(const PlanOptions& o, const PlanWorld& world) {
  AdviceRequest request{.task = o.task,
                        .permissive_licence = o.permissive,
                        .max_itl_s = o.latency_ms.value_or(0) * 1e-3,
                        .language = o.language,
                        .usd_per_hour = o.usd_per_hour};
  if (o.devices.empty()) {
    STILL_TRY(request.devices, devices_here(o, world));
  } else {
    STILL_TRY(request.devices, parse_device_set(world.data.devices, o.devices.front()));
  }
  if (!o.contexts.empty()) request.context = o.contexts.front();
  if (!o.concurrencies.empty()) request.concurrency = o.concurrencies.front();
  if (o.min_rate) request.min_tok_per_s = *o.min_rate;
  if (o.host || o.host_gib) {
    STILL_TRY(request.host, host_device(o, world));
    STILL_TRY(request.host_capacity, host_capacity(o, world));
  }
  if (o.kv) {
    STILL_TRY(request.kv, find_kv_storage(*o.kv));
  }
  if (o.answer_tokens) request.answer_tokens = *o.answer_tokens;
  if (!o.quants.empty()) request.quantisation = o.quants.front();
  STILL_TRY(Advice advice, advise(world.data, request));
  if (o.devices.empty() && request.devices.device.is_host())
    advice.unknowns.push_back(message("the real speed of this machine: `still plan MODEL --calibrate` measures it"));
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
                                {"ttft_s", c.ttft.value},
                                {"host_bytes", c.host_bytes},
                                {"reason", c.reason.english},
                                {"nearest", c.nearest.english}});
    for (const Message& text : advice.because) because.emplace_back(text.english);
    for (const Message& text : advice.unknowns) unknowns.emplace_back(text.english);
    fmt::print("{}\n", to_json(JsonObject{{"because", std::move(because)},
                                          {"unknowns", std::move(unknowns)},
                                          {"candidates", std::move(rows)}}));
    return ok();
  }
  const Words& say = world.say;
  if (!advice.candidates.empty() && is_good(advice.candidates.front()))
    fmt::print("{}\n", say(message("choose: {} in {}", advice.candidates.front().title,
                                   advice.candidates.front().quantisation)));
  for (const Message& text : advice.because) fmt::print("  {}\n", say(text));
  std::vector<std::vector<std::string>> rows = {
      {say("MODEL"), say("TYPE"), "GB", say("SCORE"), "TOK/S", "$/M", "$/" + say("CORRECT"), say("WHY NOT; NEAREST")}};
  std::size_t n_good = 0;
  // Of what is not possible, of each model the smallest: the neighbour of what is.
  const auto is_smallest_refused = [&](const Candidate& c) {
    return std::none_of(advice.candidates.begin(), advice.candidates.end(), [&](const Candidate& other) {
      return !is_good(other) && other.model == c.model && other.weight_bytes < c.weight_bytes;
    });
  };
  for (const Candidate& c : advice.candidates) {
    if (is_good(c) ? ++n_good > 8 : !is_smallest_refused(c)) continue;
    rows.push_back({c.title, c.quantisation, fmt::format("{:.1f}", to_gb(c.weight_bytes)),
                    c.has_score ? fmt::format("{:.1f}", c.score) : "-", fmt::format("{:.0f}", c.tok_per_s_user.value),
                    c.usd_per_million > 0 ? fmt::format("{:.2f}", c.usd_per_million) : "-",
                    c.usd_per_correct > 0 ? fmt::format("{:.4f}", c.usd_per_correct) : "-",
                    is_good(c)          ? ""
                    : c.nearest.empty() ? say(c.reason)
                                        : say(c.reason) + "; " + say(c.nearest)});
  }
  using enum Align;
  fmt::print("\n{}\n{}\n", format_table({kLeft, kLeft, kRight, kRight, kRight, kRight, kRight, kLeft}, rows),
             say("not known:"));
  for (const Message& text : advice.unknowns) fmt::print("  {}\n", say(text));
  return ok();
}

Status print_break_even(const PlanOptions& o, const PlanWorld& world, const ModelShape& shape, const Quantisation& q,
                        const DeviceSet& set) {
  if (!o.purchase_usd)
    return error(Code::kInvalidArgument, "--break-even needs --purchase USD, the price of all hardware");
  const std::int64_t context =
      o.contexts.empty() ? std::min<std::int64_t>(8192, shape.config.max_seq_len) : o.contexts.front();
  const std::int64_t wanted = o.concurrencies.empty() ? 1 : o.concurrencies.front();
  STILL_TRY(PlannedCell cell, plan_cell(world, o, shape, q, set, context, wanted));
  if (!cell.impossible.empty() || !cell.fit.fits)
    return error(Code::kResourceExhausted, "{} {} does not fit {}: {}", shape.name, q.name, set.label(),
                 cell.impossible.empty() ? cell.fit.reason.english : cell.impossible);
  // As many users as reach the knee, if not said otherwise.
  const std::int64_t n = o.concurrencies.empty() ? std::min(cell.curve.knee, cell.fit.max_concurrency) : wanted;
  const SpeedPoint point = predict_decode(*cell.speed, n, mean_kv_tokens(shape, context));
  constexpr double kMachineW = 300;  // CPU, memory, fans of one machine
  const double n_nodes = std::ceil(static_cast<double>(set.count) / 8);
  OwnHardware own{
      .purchase_usd = *o.purchase_usd,
      .power_w = o.power_w.value_or(set.device.tdp_w * static_cast<double>(set.count) + kMachineW * n_nodes),
      .usd_per_kwh = o.usd_per_kwh.value_or(0.15),
      .years = o.years.value_or(3),
      .tok_per_s = point.tok_per_s_total.value};
  const Words& say = world.say;
  std::vector<std::vector<std::string>> rows = {{"API", say("DATE"), say("$/M OUT"), say("OWN $/M AT FULL USE"),
                                                 say("FROM TOKENS A DAY"), say("OF CAPACITY"), say("SOURCE")}};
  JsonArray array;
  std::vector<std::string> names;
  for (const ApiPrice& api : world.data.quality.api_prices) {
    names.push_back(api.name);
    if (o.api && api.name.find(*o.api) == std::string::npos) continue;
    const BreakEven even = break_even(own, api.out);
    const bool is_possible = even.tokens_per_day > 0 && even.share_of_capacity <= 1;
    rows.push_back({api.name, api.date, fmt::format("{:.2f}", api.out),
                    fmt::format("{:.2f}", even.own_usd_per_million_full),
                    is_possible ? fmt::format("{:.2f} M", even.tokens_per_day * 1e-6) : say("never"),
                    is_possible ? fmt::format("{:.0f} %", 100 * even.share_of_capacity) : "-", api.source});
    array.push_back(JsonObject{{"api", api.name},
                               {"date", api.date},
                               {"source", api.source},
                               {"usd_per_million_out", api.out},
                               {"own_usd_per_million", even.own_usd_per_million_full},
                               {"tokens_per_day", is_possible ? even.tokens_per_day : 0},
                               {"share_of_capacity", even.share_of_capacity}});
  }
  if (array.empty()) {
    std::string all;
    for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
    return error(Code::kNotFound, "--api {}: no API of that name; known are {}", *o.api, all);
  }
  if (o.json) {
    fmt::print("{}\n", to_json(JsonObject{{"model", shape.name},
                                          {"quantisation", q.name},
                                          {"devices", set.label()},
                                          {"sequences", n},
                                          {"tok_per_s", own.tok_per_s},
                                          {"power_w", own.power_w},
                                          {"rows", std::move(array)}}));
    return ok();
  }
  fmt::print("{}\n",
             say(message("{} {} on {}: {:.0f} tok/s with {} sequences at once; ${:.0f} over {:.1f} years, {:.0f} W "
                         "at ${:.2f}/kWh",
                         shape.name, q.name, set.label(), own.tok_per_s, n, own.purchase_usd, own.years, own.power_w,
                         own.usd_per_kwh)));
  using enum Align;
  fmt::print("{}", format_table({kLeft, kLeft, kRight, kRight, kRight, kRight, kLeft}, rows));
  fmt::print("{}\n",
             say("not counted: input tokens, people, rooms, idle power, and that the API's model may be a larger "
                 "one"));
  return ok();
}

Status print_offload(const PlanOptions& o, const PlanWorld& world, const ModelShape& shape, const Quantisation& q,
                     const DeviceSet& set) {
  STILL_TRY(const Device host_row, host_device(o, world));
  STILL_TRY(const std::int64_t host, host_capacity(o, world));
  STILL_TRY(DeploymentSettings s, deployment_of(o, shape, q, set.count));
  s.concurrency = o.concurrencies.empty() ? 1 : o.concurrencies.front();
  const Words& say = world.say;
  const auto print = [&](const Message& text, JsonObject json) {
    json["model"] = shape.name;
    json["quantisation"] = q.name;
    json["devices"] = set.label();
    json["context"] = s.context;
    json["kv"] = s.kv.name;
    if (o.json)
      fmt::print("{}\n", to_json(json));
    else
      fmt::print("{}\n", say(text));
  };
  const auto rates = [&](const SpeedModel& model) {
    const double kv_len = mean_kv_tokens(shape, s.context);
    return std::pair(predict_decode(model, s.concurrency, kv_len).tok_per_s_user,
                     predict_ttft(model, std::min<std::int64_t>(1024, s.context), s.chunk_tokens));
  };
  // The first KV type and context, largest first, with everything on the GPU; else with layers or experts on the host.
  std::vector<std::int64_t> contexts = o.contexts;
  if (contexts.empty()) {
    for (const std::int64_t context : {131072, 65536, 32768, 16384, 8192, 4096})
      if (context <= shape.config.max_seq_len) contexts.push_back(context);
    if (contexts.empty()) contexts.push_back(shape.config.max_seq_len);
  }
  std::sort(contexts.begin(), contexts.end(), std::greater<>());
  for (const std::int64_t context : contexts) {
    for (const std::string& kv : o.kv ? std::vector<std::string>{*o.kv} : std::vector<std::string>{"f16", "q8_0"}) {
      s.context = context;
      STILL_TRY(s.kv, find_kv_storage(kv));
      STILL_TRY(const FitAnswer fit, check_fit(shape, q, set, s, false));
      if (!fit.fits) continue;
      const auto [rate, ttft] = rates(make_speed_model(shape, q, set.device, fit.weights, s));
      print(message("{} {} on {}: all {} layers on the GPU, context {}, KV {}, up to {} sequences; about {:.1f} tok/s "
                    "for a user ({:.1f} - {:.1f}), first token of 1024 after {:.2f} s",
                    shape.name, q.name, set.label(), shape.config.n_layers, context, kv, fit.max_concurrency,
                    rate.value, rate.low, rate.high, ttft.value),
            {{"gpu_layers", shape.config.n_layers},
             {"max_concurrency", fit.max_concurrency},
             {"tok_per_s_user", rate.value},
             {"ttft_s", ttft.value}});
      return ok();
    }
  }
  // In part on the host: the longest context at which the rate is still near that of the shortest.
  constexpr double kRateKept = 0.9;
  STILL_TRY(s.kv, find_kv_storage(o.kv.value_or("f16")));
  OffloadPlan plan;
  Interval rate, ttft;
  double best = 0;
  std::int64_t chosen = 0;
  Message refusal;
  for (auto context = contexts.rbegin(); context != contexts.rend(); ++context) {
    s.context = *context;
    STILL_TRY(const OffloadPlan tried, plan_offload(shape, q, set, host, s));
    if (!tried.fits) {
      if (refusal.empty()) refusal = tried.reason;
      continue;
    }
    const auto [tried_rate, tried_ttft] = rates(make_offload_model(shape, q, set.device, s, tried, host_row));
    best = std::max(best, tried_rate.value);
    if (chosen > 0 && tried_rate.value < kRateKept * best) continue;
    plan = tried;
    rate = tried_rate;
    ttft = tried_ttft;
    chosen = *context;
  }
  if (chosen == 0)
    return error(Code::kResourceExhausted, "{} {} does not fit {} with {:.1f} GiB of host memory: {}", shape.name,
                 q.name, set.label(), to_gib(host), refusal.english);
  s.context = chosen;
  // The most sequences of that context that leave the placement as it is.
  constexpr std::int64_t kMostSeqs = 64;
  DeploymentSettings wider = s;
  std::int64_t most = s.concurrency;
  for (wider.concurrency = most + 1; wider.concurrency <= kMostSeqs; ++wider.concurrency) {
    const auto tried = plan_offload(shape, q, set, host, wider);
    if (!tried || !tried->fits || tried->experts_on_host != plan.experts_on_host || tried->gpu_layers < plan.gpu_layers)
      break;
    most = wider.concurrency;
  }
  const Message where =
      plan.experts_on_host
          ? message("attention, dense and shared parts of all layers and the experts of {} of {} layers on the GPU",
                    plan.gpu_layers, shape.config.n_layers)
          : message("{} of {} layers on the GPU", plan.gpu_layers, shape.config.n_layers);
  print(message("{} {} on {}: context {}, KV {}, up to {} sequences, {} ({}), {} in host memory; about {:.1f} tok/s "
                "for a user ({:.1f} - {:.1f}) and {:.1f} s to the first token of 1024, with the memory of {}",
                shape.name, q.name, set.label(), s.context, s.kv.name, most, say(where), both_units(plan.gpu_bytes),
                both_units(plan.host_bytes), rate.value, rate.low, rate.high, ttft.value, host_row.name),
        {{"gpu_layers", plan.gpu_layers},
         {"max_concurrency", most},
         {"experts_on_host", plan.experts_on_host},
         {"gpu_bytes", plan.gpu_bytes},
         {"host_bytes", plan.host_bytes},
         {"tok_per_s_user", rate.value},
         {"ttft_s", ttft.value}});
  return ok();
}

}  // namespace still

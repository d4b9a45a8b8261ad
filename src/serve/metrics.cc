#include "serve/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <iterator>

#include "engine/event.h"

namespace still {
namespace {

// A label's value: backslash, quote and line end are escaped.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (c == '\\' || c == '"') result += '\\';
    if (c == '\n') {
      result += "\\n";
    } else {
      result += c;
    }
  }
  return result;
}

std::int64_t resident_pages() {
  long total = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &total, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident;
}

class Page {
 public:
  void family(std::string_view name, std::string_view type, std::string_view help) {
    fmt::format_to(out(), "# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  template <class Number>
  void sample(std::string_view name, std::string_view labels, Number value) {
    if (labels.empty()) {
      fmt::format_to(out(), "{} {}\n", name, value);
    } else {
      fmt::format_to(out(), "{}{{{}}} {}\n", name, labels, value);
    }
  }
  template <class Number>
  void single(std::string_view name, std::string_view type, std::string_view help, Number value) {
    family(name, type, help);
    sample(name, "", value);
  }
  template <class Counts>
  void histogram(std::string_view name, const std::string& labels, const Counts& histogram) {
    const std::string begin = labels.empty() ? "" : labels + ",";
    std::int64_t below = 0;
    for (std::size_t i = 0; i < Counts::kBounds.size(); ++i) {
      below += histogram.counts[i];
      fmt::format_to(out(), "{}_bucket{{{}le=\"{}\"}} {}\n", name, begin, Counts::kBounds[i], below);
    }
    fmt::format_to(out(), "{}_bucket{{{}le=\"+Inf\"}} {}\n", name, begin, histogram.n);
    sample(std::string(name) + "_sum", labels, histogram.sum);
    sample(std::string(name) + "_count", labels, histogram.n);
  }
  std::string take() { return std::move(text_); }

 private:
  std::back_insert_iterator<std::string> out() { return std::back_inserter(text_); }
  std::string text_;
};

// What all engines of a model have counted, those of earlier loads included.
using Totals = std::map<std::string, EngineStats>;

// A family with one sample for each model: gauges of those that are loaded, counters of all that ever were.
struct ModelPage {
  Page& page;
  const std::vector<LoadedModelInfo>& models;
  const Totals& totals;

  static std::string label(std::string_view name) { return fmt::format("model_name=\"{}\"", escaped(name)); }
  static std::string label(const LoadedModelInfo& model) { return label(model.name); }
  template <class Value>
  void gauge(std::string_view name, std::string_view help, Value value) {
    page.family(name, "gauge", help);
    for (const LoadedModelInfo& model : models) page.sample(name, label(model), value(model));
  }
  template <class Value>
  void counter(std::string_view name, std::string_view help, Value value) {
    page.family(name, "counter", help);
    for (const auto& [model, stats] : totals) page.sample(name, label(model), value(stats));
  }
  template <class Counts>
  void histograms(std::string_view name, std::string_view help, const Counts EngineStats::* which) {
    page.family(name, "histogram", help);
    for (const auto& [model, stats] : totals) page.histogram(name, label(model), stats.*which);
  }
};

double kv_use(const LoadedModelInfo& model) {
  const EngineStats& stats = model.stats;
  return stats.n_blocks > 0 ? static_cast<double>(stats.n_blocks_used) / static_cast<double>(stats.n_blocks) : 0.0;
}

void add_vllm_names(ModelPage& each, Page& page) {
  using Info = LoadedModelInfo;
  each.gauge("vllm:num_requests_running", "Requests that compute.", [](const Info& m) { return m.stats.n_running; });
  each.gauge("vllm:num_requests_waiting", "Requests that wait for a place.",
             [](const Info& m) { return m.stats.n_waiting; });
  each.gauge("vllm:kv_cache_usage_perc", "Share of the KV cache in use by running requests; 1 is all.", kv_use);
  each.gauge("vllm:gpu_cache_usage_perc", "The same under its older name.", kv_use);
  each.counter("vllm:num_preemptions_total", "Times that a request gave its KV blocks up.",
               [](const EngineStats& s) { return s.n_preemptions; });
  each.counter("vllm:prefix_cache_queries_total", "Prompt tokens looked for in the prefix cache.",
               [](const EngineStats& s) { return s.queried_tokens; });
  each.counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
               [](const EngineStats& s) { return s.cached_tokens; });
  each.counter("vllm:prompt_tokens_total", "Prompt tokens, those of the prefix cache included.",
               [](const EngineStats& s) { return s.prompt_tokens + s.cached_tokens; });
  each.counter("vllm:generation_tokens_total", "Tokens of answers.",
               [](const EngineStats& s) { return s.completion_tokens; });
  page.family("vllm:request_success_total", "counter", "Requests that ended, by reason.");
  for (const auto& [model, stats] : each.totals) {
    // Those that vLLM knows; errors are not among them.
    static constexpr std::pair<FinishReason, const char*> kReasons[] = {
        {FinishReason::kStop, "stop"}, {FinishReason::kLength, "length"}, {FinishReason::kCancelled, "abort"}};
    for (const auto& [reason, word] : kReasons) {
      std::int64_t n = stats.n_finished[static_cast<std::size_t>(reason)];
      if (reason == FinishReason::kStop) n += stats.n_finished[static_cast<std::size_t>(FinishReason::kStopString)];
      page.sample("vllm:request_success_total", fmt::format("{},finished_reason=\"{}\"", ModelPage::label(model), word),
                  n);
    }
  }
  each.histograms("vllm:time_to_first_token_seconds", "From a request to its first token.", &EngineStats::ttft);
  each.histograms("vllm:inter_token_latency_seconds", "Between two tokens of a request.", &EngineStats::inter_token);
  each.histograms("vllm:time_per_output_token_seconds", "The same under its older name.", &EngineStats::inter_token);
  each.histograms("vllm:e2e_request_latency_seconds", "From a request to its end.", &EngineStats::end_to_end);
  each.histograms("vllm:request_queue_time_seconds", "Until a request begins to compute.", &EngineStats::queue);
  each.histograms("vllm:request_prefill_time_seconds", "From there to a request's first token.", &EngineStats::prefill);
  each.histograms("vllm:request_decode_time_seconds", "From a request's first token to its last.",
                  &EngineStats::decode);
  each.histograms("vllm:request_inference_time_seconds", "Both: the time that a request computes.",
                  &EngineStats::inference);
  each.histograms("vllm:request_prompt_tokens", "Prompt tokens of a request.", &EngineStats::request_prompt_tokens);
  each.histograms("vllm:request_generation_tokens", "Tokens of a request's answer.",
                  &EngineStats::request_completion_tokens);
  each.histograms("vllm:iteration_tokens_total", "Tokens computed in a step.", &EngineStats::step_tokens);
}

void add_model_names(ModelPage& each, Page& page) {
  using Info = LoadedModelInfo;
  each.gauge("still_model_memory_bytes", "Planned memory of a loaded model: weights, KV cache, workspace.",
             [](const Info& m) { return m.memory_bytes; });
  each.gauge("still_model_context_tokens", "Tokens of one sequence at most.", [](const Info& m) { return m.context; });
  each.gauge("still_model_requests", "Requests that keep the model loaded.", [](const Info& m) { return m.n_leases; });
  page.family("still_tokens_total", "counter",
              "Tokens by kind: prompt (computed), cached, completion, reasoning (of "
              "completion), recomputed, drafted, accepted.");
  for (const auto& [model, stats] : each.totals) {
    const std::pair<const char*, std::int64_t> kinds[] = {
        {"prompt", stats.prompt_tokens},         {"cached", stats.cached_tokens},
        {"completion", stats.completion_tokens}, {"reasoning", stats.reasoning_tokens},
        {"recomputed", stats.recomputed_tokens}, {"drafted", stats.drafted_tokens},
        {"accepted", stats.accepted_tokens}};
    for (const auto& [kind, n] : kinds) {
      page.sample("still_tokens_total", fmt::format("{},kind=\"{}\"", ModelPage::label(model), kind), n);
    }
  }
  page.family("still_kv_blocks", "gauge", "KV blocks by state: used by running requests, cached (free to take), all.");
  for (const Info& model : each.models) {
    const std::pair<const char*, std::int64_t> states[] = {
        {"used", model.stats.n_blocks_used}, {"cached", model.stats.n_blocks_cached}, {"all", model.stats.n_blocks}};
    for (const auto& [state, n] : states) {
      page.sample("still_kv_blocks", fmt::format("{},state=\"{}\"", ModelPage::label(model), state), n);
    }
  }
  page.family("still_requests_finished_total", "counter", "Requests that ended in the engine, by reason.");
  for (const auto& [model, stats] : each.totals) {
    for (std::size_t i = 0; i < stats.n_finished.size(); ++i) {
      page.sample("still_requests_finished_total",
                  fmt::format("{},reason=\"{}\"", ModelPage::label(model), to_string(static_cast<FinishReason>(i))),
                  stats.n_finished[i]);
    }
  }
  each.counter("still_steps_total", "Forward passes.", [](const EngineStats& s) { return s.n_steps; });
  each.counter("still_requests_rejected_total", "Requests that the engine's queue had no place for.",
               [](const EngineStats& s) { return s.n_rejected; });
  each.histograms("still_step_seconds", "Length of a forward pass.", &EngineStats::step);
}

}  // namespace

void Metrics::count_http(const HttpRecord& record) {
  // Only routes that exist become labels: a label must not be a client's invention.
  const std::string route = record.request->route.empty() ? "none" : record.request->route;
  static constexpr std::string_view kMethods[] = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"};
  std::string method = "other";
  for (const std::string_view known : kMethods) {
    if (record.request->method == known) method = known;
  }
  const std::lock_guard lock(mutex_);
  ++requests_[{route, method, record.status}];
  seconds_[route].observe(std::chrono::duration<double>(record.total).count());
  n_in_ += record.n_in;
  n_out_ += record.n_out;
  n_gone_ += record.outcome == HttpOutcome::kClientGone;
  n_slow_ += record.outcome == HttpOutcome::kTooSlow;
  n_aborted_ += record.outcome == HttpOutcome::kAborted;
}

void Metrics::count_refused_key() {
  const std::lock_guard lock(mutex_);
  ++n_refused_keys_;
}

void Metrics::count_limited(std::string_view key, std::string_view limit) {
  const std::lock_guard lock(mutex_);
  ++limited_[{std::string(key), std::string(limit)}];
}

void Metrics::count_truncated() {
  const std::lock_guard lock(mutex_);
  ++n_truncated_;
}

void Metrics::count_load(bool is_ok) {
  const std::lock_guard lock(mutex_);
  ++(is_ok ? n_loads_ : n_failed_loads_);
}

std::string Metrics::render(const Facts& facts) const {
  Page page;
  Totals totals = facts.ended;
  for (const LoadedModelInfo& model : facts.models) totals[model.name].add_counters(model.stats);
  ModelPage each{page, facts.models, totals};
  add_vllm_names(each, page);
  add_model_names(each, page);

  const std::lock_guard lock(mutex_);
  page.family("still_http_requests_total", "counter", "HTTP requests by route, method and status.");
  for (const auto& [key, n] : requests_) {
    const auto& [route, method, status] = key;
    page.sample("still_http_requests_total",
                fmt::format("route=\"{}\",method=\"{}\",status=\"{}\"", escaped(route), method, status), n);
  }
  page.family("still_http_request_seconds", "histogram", "From a request's first byte to its response's last.");
  for (const auto& [route, histogram] : seconds_) {
    page.histogram("still_http_request_seconds", fmt::format("route=\"{}\"", escaped(route)), histogram);
  }
  page.family("still_http_ended_early_total", "counter", "Responses that no client took whole, by cause.");
  page.sample("still_http_ended_early_total", "cause=\"client_gone\"", n_gone_);
  page.sample("still_http_ended_early_total", "cause=\"client_too_slow\"", n_slow_);
  page.sample("still_http_ended_early_total", "cause=\"aborted\"", n_aborted_);
  page.single("still_http_received_bytes_total", "counter", "Bytes of requests.", n_in_);
  page.single("still_http_sent_bytes_total", "counter", "Bytes of responses.", n_out_);
  page.single("still_http_connections", "gauge", "Open connections.", facts.http.n_connections);
  page.single("still_http_active", "gauge", "Connections with a request under way.", facts.http.n_active);
  page.single("still_http_accepted_total", "counter", "Connections accepted.", facts.http.n_accepted);
  page.single("still_http_refused_total", "counter", "Connections refused: there were too many.", facts.http.n_refused);
  page.single("still_auth_failures_total", "counter", "Requests without a valid key.", n_refused_keys_);
  page.family("still_limited_total", "counter", "Requests beyond a limit of their key, by key and limit.");
  for (const auto& [key, n] : limited_) {
    page.sample("still_limited_total", fmt::format("key=\"{}\",limit=\"{}\"", escaped(key.first), key.second), n);
  }
  page.single("still_truncated_prompts_total", "counter", "Prompts that lost turns to fit their context.",
              n_truncated_);
  page.family("still_model_loads_total", "counter", "Models loaded, by result.");
  page.sample("still_model_loads_total", "result=\"ok\"", n_loads_);
  page.sample("still_model_loads_total", "result=\"failed\"", n_failed_loads_);
  page.single("still_generations", "gauge", "Generations under way, those that wait for a model included.",
              facts.n_generations);
  page.single("still_log_lines_lost_total", "counter", "Lines of the access log that could not be written in time.",
              facts.n_log_lost);
  page.family("still_build_info", "gauge", "1, with the version.");
  page.sample("still_build_info", "version=\"" STILL_VERSION "\"", 1);

  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  page.single("process_resident_memory_bytes", "gauge", "Memory in use.", resident_pages() * sysconf(_SC_PAGESIZE));
  page.single("process_cpu_seconds_total", "counter", "Processor time.",
              seconds(usage.ru_utime) + seconds(usage.ru_stime));
  page.single("process_start_time_seconds", "gauge", "Start, since 1970.",
              std::chrono::duration<double>(started_.time_since_epoch()).count());
  return page.take();
}

}  // namespace still

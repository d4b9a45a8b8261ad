// The page of metrics, read back as Prometheus reads it: every line parses, families are whole, histograms add up, and
// the names that dashboards ask for are there.
#include "serve/metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <sstream>

namespace still {
namespace {

using Labels = std::map<std::string, std::string>;

struct Sample {
  std::string name;
  Labels labels;
  double value = 0;
};

struct Family {
  std::string type, help;
  std::vector<Sample> samples;
};
using Families = std::map<std::string, Family>;

bool is_name(std::string_view text) {
  static constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:0123456789";
  return !text.empty() && text.find_first_not_of(kLetters) == std::string_view::npos &&
         (text[0] < '0' || text[0] > '9');
}

// name{label="value",...} number, with the escapes \\ \" \n; nullopt for anything else.
std::optional<Sample> parse_sample(std::string_view line) {
  Sample sample;
  std::size_t at = line.find_first_of("{ ");
  if (at == std::string_view::npos) return std::nullopt;
  sample.name = line.substr(0, at);
  if (!is_name(sample.name)) return std::nullopt;
  if (line[at] == '{') {
    ++at;
    while (true) {
      const std::size_t equals = line.find("=\"", at);
      if (equals == std::string_view::npos) return std::nullopt;
      const std::string label(line.substr(at, equals - at));
      if (!is_name(label) || label.find(':') != std::string::npos || sample.labels.contains(label)) return std::nullopt;
      std::string value;
      for (at = equals + 2; at < line.size() && line[at] != '"'; ++at) {
        if (line[at] != '\\') {
          value += line[at];
          continue;
        }
        if (++at >= line.size() || std::string_view("\\\"n").find(line[at]) == std::string_view::npos) {
          return std::nullopt;
        }
        value += line[at] == 'n' ? '\n' : line[at];
      }
      if (at + 1 >= line.size()) return std::nullopt;
      sample.labels[label] = value;
      if (line[++at] == '}') break;
      if (line[at++] != ',') return std::nullopt;
    }
    ++at;
  }
  if (at >= line.size() || line[at] != ' ') return std::nullopt;
  const std::string number(line.substr(at + 1));
  char* end = nullptr;
  sample.value = std::strtod(number.c_str(), &end);
  if (number.empty() || *end != 0) return std::nullopt;
  return sample;
}

// Fails the test where the text is not a valid exposition: a family is announced once, before its samples, which stand
// together; no sample comes twice.
Families parse(const std::string& text) {
  Families families;
  std::set<std::pair<std::string, Labels>> seen;
  std::string current;
  std::istringstream lines(text);
  EXPECT_TRUE(text.ends_with('\n'));
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, word, name;
    if (line.starts_with("# ")) {
      words >> hash >> word >> name;
      std::string rest;
      std::getline(words >> std::ws, rest);
      EXPECT_TRUE(is_name(name)) << line;
      if (word == "HELP") {
        EXPECT_FALSE(families.contains(name)) << "announced twice: " << name;
        families[name].help = rest;
        current = name;
      } else {
        EXPECT_EQ(word, "TYPE") << line;
        EXPECT_EQ(name, current) << line;
        EXPECT_TRUE(rest == "counter" || rest == "gauge" || rest == "histogram") << line;
        families[name].type = rest;
      }
      continue;
    }
    const std::optional<Sample> sample = parse_sample(line);
    if (!sample) {
      ADD_FAILURE() << "no sample: " << line;
      continue;
    }
    EXPECT_TRUE(seen.emplace(sample->name, sample->labels).second) << "twice: " << line;
    const bool is_histogram = families[current].type == "histogram";
    const bool belongs = is_histogram ? sample->name == current + "_bucket" || sample->name == current + "_sum" ||
                                            sample->name == current + "_count"
                                      : sample->name == current;
    EXPECT_TRUE(belongs) << line << " under " << current;
    families[current].samples.push_back(*sample);
  }
  return families;
}

double value_of(const Families& families, const std::string& family, const std::string& name, const Labels& labels) {
  const auto it = families.find(family);
  if (it == families.end()) return std::nan("");
  for (const Sample& sample : it->second.samples) {
    if (sample.name == name && sample.labels == labels) return sample.value;
  }
  return std::nan("");
}

LoadedModelInfo busy_model(const std::string& name) {
  LoadedModelInfo info{.name = name, .memory_bytes = 12345678901, .context = 4096, .n_leases = 3};
  EngineStats& stats = info.stats;
  stats.n_running = 2;
  stats.n_waiting = 5;
  stats.n_blocks = 8;
  stats.n_blocks_used = 2;
  stats.prompt_tokens = 100;
  stats.cached_tokens = 40;
  stats.queried_tokens = 140;
  stats.completion_tokens = 77;
  stats.reasoning_tokens = 11;
  stats.n_finished = {1, 2, 3, 4, 5};
  for (const double seconds : {0.0005, 0.3, 0.3, 9.0, 1000.0}) stats.ttft.observe(seconds);
  stats.inter_token.observe(0.03, 70);
  return info;
}

HttpRecord record_of(const std::string& route, const std::string& method, int status, double seconds) {
  const auto request = std::make_shared<HttpRequest>();
  request->route = route;
  request->method = method;
  HttpRecord record;
  record.request = request;
  record.status = status;
  record.total = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
  return record;
}

TEST(Metrics, AnEmptyServerHasAValidPage) {
  const Families families = parse(Metrics().render({}));
  EXPECT_TRUE(families.contains("vllm:num_requests_running"));
  EXPECT_EQ(value_of(families, "still_generations", "still_generations", {}), 0);
  EXPECT_GT(value_of(families, "process_resident_memory_bytes", "process_resident_memory_bytes", {}), 1e5);
  EXPECT_GT(value_of(families, "process_start_time_seconds", "process_start_time_seconds", {}), 1.7e9);
}

TEST(Metrics, NamesAndTypesAreThoseOfTheDocs) {
  const Families families = parse(Metrics().render({.models = {busy_model("m:latest")}}));
  const std::pair<const char*, const char*> wanted[] = {{"vllm:num_requests_running", "gauge"},
                                                        {"vllm:num_requests_waiting", "gauge"},
                                                        {"vllm:kv_cache_usage_perc", "gauge"},
                                                        {"vllm:gpu_cache_usage_perc", "gauge"},
                                                        {"vllm:prefix_cache_queries_total", "counter"},
                                                        {"vllm:prefix_cache_hits_total", "counter"},
                                                        {"vllm:prompt_tokens_total", "counter"},
                                                        {"vllm:generation_tokens_total", "counter"},
                                                        {"vllm:request_success_total", "counter"},
                                                        {"vllm:num_preemptions_total", "counter"},
                                                        {"vllm:time_to_first_token_seconds", "histogram"},
                                                        {"vllm:inter_token_latency_seconds", "histogram"},
                                                        {"vllm:e2e_request_latency_seconds", "histogram"},
                                                        {"vllm:request_queue_time_seconds", "histogram"},
                                                        {"vllm:request_prefill_time_seconds", "histogram"},
                                                        {"vllm:request_decode_time_seconds", "histogram"},
                                                        {"vllm:request_inference_time_seconds", "histogram"},
                                                        {"vllm:request_prompt_tokens", "histogram"},
                                                        {"vllm:request_generation_tokens", "histogram"},
                                                        {"vllm:iteration_tokens_total", "histogram"},
                                                        {"still_tokens_total", "counter"},
                                                        {"still_kv_blocks", "gauge"},
                                                        {"still_model_memory_bytes", "gauge"},
                                                        {"still_http_requests_total", "counter"},
                                                        {"still_http_request_seconds", "histogram"},
                                                        {"still_http_ended_early_total", "counter"},
                                                        {"still_http_connections", "gauge"},
                                                        {"still_limited_total", "counter"},
                                                        {"still_auth_failures_total", "counter"}};
  for (const auto& [name, type] : wanted) {
    const auto it = families.find(name);
    ASSERT_NE(it, families.end()) << name;
    EXPECT_EQ(it->second.type, type) << name;
    EXPECT_FALSE(it->second.help.empty()) << name;
  }
  for (const auto& [name, family] : families) {
    if (name == "vllm:iteration_tokens_total") continue;  // vLLM's own exception
    // By convention, and what promtool asks for.
    EXPECT_EQ(family.type == "counter", name.ends_with("_total")) << name;
  }
}

TEST(Metrics, ValuesAreTheEngines) {
  const Families families = parse(Metrics().render({.models = {busy_model("a:latest"), busy_model("b:1")}}));
  const auto of = [&](const std::string& name, Labels more) {
    more["model_name"] = "b:1";
    return value_of(families, name, name, more);
  };
  EXPECT_EQ(of("vllm:num_requests_running", {}), 2);
  EXPECT_EQ(of("vllm:num_requests_waiting", {}), 5);
  EXPECT_EQ(of("vllm:kv_cache_usage_perc", {}), 0.25);
  EXPECT_EQ(of("vllm:prompt_tokens_total", {}), 140);
  EXPECT_EQ(of("vllm:prefix_cache_queries_total", {}), 140);
  EXPECT_EQ(of("vllm:prefix_cache_hits_total", {}), 40);
  EXPECT_EQ(of("vllm:generation_tokens_total", {}), 77);
  EXPECT_EQ(of("still_tokens_total", {{"kind", "reasoning"}}), 11);
  EXPECT_EQ(of("still_model_memory_bytes", {}), 12345678901.0);
  // stop and stop string are one to vLLM; errors are no success.
  EXPECT_EQ(of("vllm:request_success_total", {{"finished_reason", "stop"}}), 1 + 3);
  EXPECT_EQ(of("vllm:request_success_total", {{"finished_reason", "length"}}), 2);
  EXPECT_EQ(of("vllm:request_success_total", {{"finished_reason", "abort"}}), 4);
  EXPECT_EQ(of("still_requests_finished_total", {{"reason", "error"}}), 5);
}

TEST(Metrics, HistogramsAreCumulativeAndAddUp) {
  Metrics metrics;
  metrics.count_http(record_of("/v1/chat/completions", "POST", 200, 0.3));
  metrics.count_http(record_of("/v1/chat/completions", "POST", 200, 500));
  const Families families = parse(metrics.render({.models = {busy_model("m:latest")}}));
  int n_histograms = 0;
  for (const auto& [name, family] : families) {
    if (family.type != "histogram") continue;
    std::map<Labels, std::vector<std::pair<double, double>>> buckets;  // labels but le to (bound, count)
    std::map<Labels, double> counts;
    for (const Sample& sample : family.samples) {
      Labels labels = sample.labels;
      if (sample.name.ends_with("_count")) counts[labels] = sample.value;
      if (!sample.name.ends_with("_bucket")) continue;
      const double bound = std::strtod(labels.at("le").c_str(), nullptr);
      labels.erase("le");
      buckets[labels].emplace_back(bound, sample.value);
    }
    for (const auto& [labels, row] : buckets) {
      ++n_histograms;
      EXPECT_EQ(row.size(), Histogram::kBounds.size() + 1) << name;
      for (std::size_t i = 1; i < row.size(); ++i) {
        EXPECT_LT(row[i - 1].first, row[i].first) << name;
        EXPECT_LE(row[i - 1].second, row[i].second) << name;
      }
      EXPECT_TRUE(std::isinf(row.back().first)) << name;
      EXPECT_EQ(row.back().second, counts.at(labels)) << name;
    }
  }
  EXPECT_GE(n_histograms, 6);
  const std::string ttft = "vllm:time_to_first_token_seconds";
  const auto below = [&](const std::string& bound) {
    return value_of(families, ttft, ttft + "_bucket", {{"model_name", "m:latest"}, {"le", bound}});
  };
  EXPECT_EQ(below("0.001"), 1);
  EXPECT_EQ(below("0.25"), 1);
  EXPECT_EQ(below("0.5"), 3);
  EXPECT_EQ(below("120"), 4);
  EXPECT_EQ(below("+Inf"), 5);
  EXPECT_NEAR(value_of(families, ttft, ttft + "_sum", {{"model_name", "m:latest"}}), 1009.6005, 1e-6);
}

TEST(Metrics, TokensOfRequestsHaveBucketsOfTheirOwn) {
  LoadedModelInfo model = busy_model("m:latest");
  model.stats.request_prompt_tokens.observe(7);
  model.stats.request_prompt_tokens.observe(3e6);
  model.stats.step_tokens.observe(512, 3);
  const Families families = parse(Metrics().render({.models = {model}}));
  const std::string prompts = "vllm:request_prompt_tokens", steps = "vllm:iteration_tokens_total";
  const auto value = [&](const std::string& family, const std::string& name, const std::string& bound) {
    Labels labels{{"model_name", "m:latest"}};
    if (!bound.empty()) labels["le"] = bound;
    return value_of(families, family, name, labels);
  };
  EXPECT_EQ(value(prompts, prompts + "_bucket", "5"), 0);
  EXPECT_EQ(value(prompts, prompts + "_bucket", "10"), 1);
  EXPECT_EQ(value(prompts, prompts + "_bucket", "2000000"), 1);
  EXPECT_EQ(value(prompts, prompts + "_bucket", "+Inf"), 2);
  EXPECT_EQ(value(steps, steps + "_sum", ""), 1536);
}

TEST(Metrics, CountersOutliveTheirModel) {
  Metrics metrics;
  const EngineStats once = busy_model("m:latest").stats;
  EngineStats twice = once;
  twice.add_counters(once);
  const std::string tokens = "vllm:generation_tokens_total", ttft = "vllm:time_to_first_token_seconds";
  const auto values = [&](const Metrics::Facts& facts) {
    const Families families = parse(metrics.render(facts));
    return std::pair(value_of(families, tokens, tokens, {{"model_name", "m:latest"}}),
                     value_of(families, ttft, ttft + "_count", {{"model_name", "m:latest"}}));
  };
  const auto loaded = values({.models = {busy_model("m:latest")}});
  EXPECT_GT(loaded.first, 0);
  EXPECT_EQ(values({.ended = {{"m:latest", once}}}), loaded);
  EXPECT_EQ(values({.models = {busy_model("m:latest")}, .ended = {{"m:latest", once}}}),
            std::pair(2 * loaded.first, 2 * loaded.second));
  EXPECT_EQ(twice.n_finished[0], 2 * once.n_finished[0]);
  EXPECT_EQ(twice.n_running, once.n_running) << "a gauge is not summed up";
  // Gauges are of what is loaded.
  const std::string page = metrics.render({.ended = {{"m:latest", once}}});
  EXPECT_EQ(page.find("vllm:num_requests_running{"), std::string::npos);
  EXPECT_EQ(page.find("still_model_memory_bytes{"), std::string::npos);
}

TEST(Metrics, ClientsInventNoLabels) {
  Metrics metrics;
  metrics.count_http(record_of("/v1/models", "GET", 200, 0.001));
  metrics.count_http(record_of("", "BREW", 404, 0.001));
  metrics.count_http(record_of("", "GET", 404, 0.001));
  metrics.count_http(record_of("", "PROPFIND", 404, 0.001));
  const std::string name = "still_http_requests_total";
  const Families families = parse(metrics.render({}));
  EXPECT_EQ(value_of(families, name, name, {{"route", "/v1/models"}, {"method", "GET"}, {"status", "200"}}), 1);
  EXPECT_EQ(value_of(families, name, name, {{"route", "none"}, {"method", "GET"}, {"status", "404"}}), 1);
  EXPECT_EQ(value_of(families, name, name, {{"route", "none"}, {"method", "other"}, {"status", "404"}}), 2);
}

TEST(Metrics, LabelsAreEscaped) {
  const std::string odd = "a\"b\\c\nd{e=\"f\"} 1";
  Metrics metrics;
  metrics.count_limited(odd, "tokens");
  metrics.count_limited(odd, "tokens");
  const Families families = parse(metrics.render({.models = {busy_model(odd)}}));
  EXPECT_EQ(value_of(families, "vllm:num_requests_running", "vllm:num_requests_running", {{"model_name", odd}}), 2);
  EXPECT_EQ(value_of(families, "still_limited_total", "still_limited_total", {{"key", odd}, {"limit", "tokens"}}), 2);
}

TEST(Metrics, TheParserOfThisTestRefusesWhatIsWrong) {
  EXPECT_TRUE(parse_sample("a{b=\"c\"} 1"));
  EXPECT_TRUE(parse_sample("a 1e-3"));
  for (const char* bad : {"", "a", "a{} 1 2", "1a 1", "a{b=c} 1", "a{b=\"c\" 1", "a{b=\"\\x\"} 1", "a{b=\"c\"}1",
                          "a one", "a{b=\"c\",b=\"d\"} 1"}) {
    EXPECT_FALSE(parse_sample(bad)) << bad;
  }
}

TEST(Metrics, EarlyEndsAndFailuresAreCounted) {
  Metrics metrics;
  HttpRecord gone = record_of("/api/chat", "POST", 200, 1);
  gone.outcome = HttpOutcome::kClientGone;
  metrics.count_http(gone);
  metrics.count_refused_key();
  metrics.count_load(true);
  metrics.count_load(false);
  metrics.count_load(false);
  const Families families = parse(metrics.render({.n_generations = 4, .n_log_lost = 7}));
  const auto one = [&](const std::string& name, const Labels& labels) {
    return value_of(families, name, name, labels);
  };
  EXPECT_EQ(one("still_http_ended_early_total", {{"cause", "client_gone"}}), 1);
  EXPECT_EQ(one("still_http_ended_early_total", {{"cause", "aborted"}}), 0);
  EXPECT_EQ(one("still_auth_failures_total", {}), 1);
  EXPECT_EQ(one("still_model_loads_total", {{"result", "ok"}}), 1);
  EXPECT_EQ(one("still_model_loads_total", {{"result", "failed"}}), 2);
  EXPECT_EQ(one("still_generations", {}), 4);
  EXPECT_EQ(one("still_log_lines_lost_total", {}), 7);
}

}  // namespace
}  // namespace still

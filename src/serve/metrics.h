// Metrics: what is counted of HTTP, and the text that Prometheus reads (exposition format 0.0.4): vLLM's names, as
// dashboards know them, and ours (still_*). Counters of engines come from EngineStats, and outlive their model; gauges
// do not. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "engine/stats.h"
#include "serve/http/server.h"
#include "serve/model_pool.h"

namespace still {

class Metrics {
 public:
  void count_http(const HttpRecord& record);
  void count_refused_key();                                          // 401
  void count_limited(std::string_view key, std::string_view limit);  // 429
  void count_truncated();                                            // a prompt lost turns to fit its context
  void count_load(bool is_ok);

  struct Facts {
    std::vector<LoadedModelInfo> models;
    std::map<std::string, EngineStats> ended;  // counters of models' engines that are gone
    HttpServerStats http;
    std::int64_t n_generations = 0;
    std::int64_t n_log_lost = 0;
  };
  std::string render(const Facts& facts) const;

 private:
  mutable std::mutex mutex_;
  std::map<std::tuple<std::string, std::string, int>, std::int64_t> requests_;  // route, method, status
  std::map<std::string, Histogram> seconds_;                                    // by route
  std::map<std::pair<std::string, std::string>, std::int64_t> limited_;         // key, limit
  std::int64_t n_in_ = 0, n_out_ = 0, n_gone_ = 0, n_slow_ = 0, n_aborted_ = 0, n_refused_keys_ = 0, n_truncated_ = 0;
  std::int64_t n_loads_ = 0, n_failed_loads_ = 0;
  const std::chrono::system_clock::time_point started_ = std::chrono::system_clock::now();
};

}  // namespace still

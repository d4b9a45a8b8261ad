// ServeContext: what the handlers of every API share. Made once by Server (serve/server.h), lives as long as it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "hub/source.h"
#include "plan/memory.h"
#include "serve/grammar_cache.h"
#include "serve/http/message.h"
#include "serve/model_pool.h"
#include "serve/router.h"

namespace still {

class GenerationRegistry;  // serve/generation_registry.h
class Metrics;             // serve/metrics.h
class Auth;                // serve/auth.h
class AccessLog;           // serve/access_log.h
class HttpServer;          // serve/http/server.h

struct ServeOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 11434;
  std::filesystem::path models;         // root of the store
  std::filesystem::path ollama_models;  // root of Ollama's store, read in place; empty: none
  HubOptions hub;                       // of /api/pull
  Speculation speculation = Speculation::kOff;
  std::filesystem::path draft;  // ModelPoolOptions
  EngineSettings engine;        // of each model that is loaded; max_seqs: sequences decoded together
  DeviceChoice device = DeviceChoice::kCpu;
  std::chrono::nanoseconds keep_alive = std::chrono::minutes(5);  // negative: for ever
  std::int64_t max_models = 0;                                    // 0: as many as fit
  std::int64_t max_queue = 512;  // requests waiting for a model or an engine; the next gets 503
  std::int64_t max_body_bytes = 32 << 20;
  std::int64_t max_connections = 4096;
  std::int64_t max_backlog_bytes = 4 << 20;  // unsent bytes of a stream; a client behind by more counts as gone
  std::chrono::seconds header_timeout{30}, body_timeout{120}, idle_timeout{300}, write_timeout{60}, drain_timeout{30};
  std::vector<std::string> origins;                // CORS, beside loopback and the app schemes
  std::filesystem::path keys_file;                 // API keys with their limits; empty: none
  std::vector<std::string> keys;                   // from the environment
  std::filesystem::path tls_certificate, tls_key;  // PEM; both or none
  std::filesystem::path unix_socket;               // beside the port; empty: none
  std::filesystem::path access_log;                // empty: standard error
  bool log_prompts = false;
};

struct ServeContext {
  ServeOptions options;
  std::unique_ptr<ModelPool> pool;
  std::unique_ptr<GenerationRegistry> generations;
  std::unique_ptr<Metrics> metrics;
  GrammarCache grammars;
  // Of the server's parts; null where a test has none.
  Auth* auth = nullptr;
  AccessLog* access_log = nullptr;
  const HttpServer* http = nullptr;
  std::atomic<bool> is_draining{false};
};

// Each API adds its routes (serve/api/*.cc).
void add_ollama_routes(Router& router, ServeContext& context);
void add_openai_routes(Router& router, ServeContext& context);
void add_responses_routes(Router& router, ServeContext& context);
void add_anthropic_routes(Router& router, ServeContext& context);
void add_embedding_routes(Router& router, ServeContext& context);
void add_operation_routes(Router& router, ServeContext& context);  // /, /health, /metrics, /v1/generations/...

}  // namespace still

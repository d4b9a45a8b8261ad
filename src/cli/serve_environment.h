// The environment variables of the server and of the commands that talk to it: Ollama's, so that existing set-ups go
// on, and STILL_* that come first.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace still {

struct ServerAddress {
  std::string scheme = "http", host = "127.0.0.1";  // host without brackets
  std::uint16_t port = 11434;
  std::string url() const;
  // As a client reaches it: an address that means "all" is loopback.
  ServerAddress for_client() const;
};

// [scheme://]host[:port][/path], as Ollama reads OLLAMA_HOST: without a scheme port 11434, http 80, https 443; a port
// that is none is the default; quotes and blanks around it do not count.
ServerAddress parse_server_address(std::string_view text);

// "5m", "1h30m", "-1s", "300" (seconds), "-1": for ever.
Result<std::chrono::nanoseconds> parse_keep_alive(std::string_view text);

struct ServeEnvironment {
  ServerAddress address;                   // STILL_HOST, OLLAMA_HOST
  std::optional<std::string> keep_alive;   // OLLAMA_KEEP_ALIVE
  std::optional<std::int64_t> n_parallel;  // OLLAMA_NUM_PARALLEL
  std::optional<std::int64_t> max_models;  // OLLAMA_MAX_LOADED_MODELS
  std::optional<std::int64_t> max_queue;   // OLLAMA_MAX_QUEUE
  std::optional<std::int64_t> context;     // OLLAMA_CONTEXT_LENGTH
  std::string kv_type;                     // OLLAMA_KV_CACHE_TYPE: f16, q8_0; empty: not set
  std::vector<std::string> origins;        // OLLAMA_ORIGINS
  std::vector<std::string> keys;           // STILL_API_KEYS, comma-separated
  std::string client_ca;   // STILL_CA_FILE, SSL_CERT_FILE: who may sign the server's certificate; empty: the system's
  std::string client_key;  // STILL_API_KEY, OLLAMA_API_KEY: of the commands that talk to a server
};

// kInvalidArgument for a number that is none.
Result<ServeEnvironment> read_serve_environment();

}  // namespace still

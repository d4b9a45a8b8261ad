// Auth: API keys and what each may use. Keys are kept and compared as SHA-256 digests in constant time; the limits of a
// key are of requests a minute, requests at once, and tokens a minute. Thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "serve/http/message.h"
#include "serve/router.h"

namespace still {

struct KeyLimits {
  std::int64_t requests_per_minute = 0;  // 0: no limit
  std::int64_t tokens_per_minute = 0;    // prompts' and answers'; counted when a request is done
  std::int64_t max_concurrent = 0;
  bool is_admin = true;  // may pull, create, copy, delete and stop models
};

inline constexpr const char* kMayNotChangeModels = "this API key may use models, but not change them";

class Auth {
 public:
  using Clock = std::chrono::steady_clock;

  // keys_file: lines "KEY [NAME]" with # comments, or JSON {"keys": [{"name", "key" or "sha256", "requests_per_minute",
  // "tokens_per_minute", "max_concurrent", "admin"}]}. Without any key everybody may do everything.
  static Result<std::unique_ptr<Auth>> create(const std::filesystem::path& keys_file,
                                              const std::vector<std::string>& keys);

  bool has_keys() const { return !keys_.empty(); }
  bool is_admin(std::string_view key) const;  // by its name; unknown: false

  struct Verdict {
    int status = 0;   // 0: go on; 401, 403, 429
    std::string key;  // its name
    std::string sentence;
    std::string limit;  // 429: "requests", "tokens", "concurrency"
    std::chrono::seconds retry_after{};
  };
  // An admitted kCompute request counts as running until end(request.id).
  Verdict admit(const HttpRequest& request, RouteClass route_class, Clock::time_point now = Clock::now());
  void end(std::uint64_t request_id);
  // What a request of this key has used. Unknown names are ignored: not every user is a key.
  void count_tokens(std::string_view key, std::int64_t n_tokens, Clock::time_point now = Clock::now());

 private:
  struct Key {
    std::string name, digest;  // 32 bytes
    KeyLimits limits;
    // What is left, refilled evenly up to a minute's worth; tokens may go below zero.
    double requests_left = 0, tokens_left = 0;
    Clock::time_point refilled;
    std::int64_t n_running = 0;
  };
  Status add(std::string name, std::string digest, KeyLimits limits);
  Status read_file(const std::filesystem::path& path);
  Status read_json(std::string_view text, const std::string& what);
  Key* find(std::string_view presented);
  static void refill(Key& key, Clock::time_point now);

  std::mutex mutex_;
  std::vector<Key> keys_;
  std::map<std::uint64_t, std::size_t> running_;  // request to key
};

// The key that a request brings: "Authorization: Bearer KEY", "x-api-key: KEY" or "api-key: KEY"; empty: none.
std::string_view presented_key(const HttpRequest& request);

}  // namespace still

#include "serve/auth.h"

#include <fmt/format.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>

#include <algorithm>
#include <cmath>

#include "base/json.h"
#include "base/text_file.h"
#include "serve/http/text.h"

namespace still {
namespace {

constexpr std::size_t kDigestBytes = 32;
constexpr std::int64_t kMaxKeysFile = 16 << 20;

std::string sha256_of(std::string_view text) {
  std::string digest(kDigestBytes, '\0');
  unsigned int n = 0;
  EVP_Digest(text.data(), text.size(), reinterpret_cast<unsigned char*>(digest.data()), &n, EVP_sha256(), nullptr);
  return digest;
}

Result<std::string> from_hex(std::string_view text, const std::string& what) {
  std::string bytes;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
  for (std::size_t i = 0; i + 1 < text.size(); i += 2) {
    const int high = digit(text[i]), low = digit(text[i + 1]);
    if (high < 0 || low < 0) break;
    bytes.push_back(static_cast<char>(high * 16 + low));
  }
  if (text.size() != 2 * kDigestBytes || bytes.size() != kDigestBytes) {
    return error(Code::kInvalidArgument, "{}: sha256: expected 64 digits 0-9 a-f", what);
  }
  return bytes;
}

Result<std::int64_t> read_limit(const JsonObject& object, std::string_view name, const std::string& what) {
  const Json* value = object.if_contains(name);
  if (value == nullptr || value->is_null()) return 0;
  if (!value->is_int64() || value->get_int64() < 0) {
    return error(Code::kInvalidArgument, "{}: {}: expected a whole number from 0 (no limit)", what, name);
  }
  return value->get_int64();
}

// Seconds until `left` of a bucket that gains per_minute a minute reaches `wanted`.
std::chrono::seconds wait_for(double left, double wanted, std::int64_t per_minute) {
  return std::chrono::seconds(
      std::max<std::int64_t>(1, std::llround(std::ceil((wanted - left) * 60.0 / static_cast<double>(per_minute)))));
}

}  // namespace

std::string_view presented_key(const HttpRequest& request) {
  const std::string_view authorization = trim_spaces(request.header("Authorization"));
  constexpr std::string_view kBearer = "bearer ";
  if (authorization.size() > kBearer.size() && equals_without_case(authorization.substr(0, kBearer.size()), kBearer)) {
    return trim_spaces(authorization.substr(kBearer.size()));
  }
  for (const char* name : {"x-api-key", "api-key"}) {
    if (const std::string_view key = trim_spaces(request.header(name)); !key.empty()) return key;
  }
  return {};
}

Result<std::unique_ptr<Auth>> Auth::create(const std::filesystem::path& keys_file,
                                           const std::vector<std::string>& keys) {
  auto auth = std::make_unique<Auth>();
  if (!keys_file.empty()) STILL_TRY_STATUS(auth->read_file(keys_file));
  for (std::size_t i = 0; i < keys.size(); ++i) {
    STILL_TRY_STATUS(auth->add(fmt::format("environment-{}", i + 1), sha256_of(keys[i]), {}));
  }
  return auth;
}

Status Auth::add(std::string name, std::string digest, KeyLimits limits) {
  for (const Key& key : keys_) {
    if (key.name == name) return error(Code::kInvalidArgument, "API keys: two are called \"{}\"", name);
    if (key.digest == digest)
      return error(Code::kInvalidArgument, "API keys: \"{}\" and \"{}\" are the same", key.name, name);
  }
  keys_.push_back({.name = std::move(name),
                   .digest = std::move(digest),
                   .limits = limits,
                   .requests_left = static_cast<double>(limits.requests_per_minute),
                   .tokens_left = static_cast<double>(limits.tokens_per_minute),
                   .refilled = Clock::now()});
  return ok();
}

Status Auth::read_json(std::string_view text, const std::string& what) {
  STILL_TRY(const Json json, parse_json(text, what));
  const Json* list = json.is_object() ? json.get_object().if_contains("keys") : nullptr;
  if (list == nullptr || !list->is_array())
    return error(Code::kInvalidArgument, "{}: expected {{\"keys\": [...]}}", what);
  for (const Json& item : list->get_array()) {
    if (!item.is_object()) return error(Code::kInvalidArgument, "{}: keys: expected objects", what);
    const JsonObject& object = item.get_object();
    const auto text_of = [&](std::string_view name) {
      const Json* value = object.if_contains(name);
      return value && value->is_string() ? std::string(value->get_string()) : std::string();
    };
    const std::string name = text_of("name"), key = text_of("key"), sha256 = text_of("sha256");
    if (name.empty()) return error(Code::kInvalidArgument, "{}: a key without a name", what);
    const std::string where = what + ": key " + name;
    if (key.empty() == sha256.empty())
      return error(Code::kInvalidArgument, "{}: expected \"key\" or \"sha256\"", where);
    std::string digest = sha256_of(key);
    if (key.empty()) {
      STILL_TRY(digest, from_hex(sha256, where));
    }
    KeyLimits limits;
    STILL_TRY(limits.requests_per_minute, read_limit(object, "requests_per_minute", where));
    STILL_TRY(limits.tokens_per_minute, read_limit(object, "tokens_per_minute", where));
    STILL_TRY(limits.max_concurrent, read_limit(object, "max_concurrent", where));
    if (const Json* admin = object.if_contains("admin"); admin != nullptr) {
      if (!admin->is_bool()) return error(Code::kInvalidArgument, "{}: admin: expected true or false", where);
      limits.is_admin = admin->get_bool();
    }
    STILL_TRY_STATUS(add(name, std::move(digest), limits));
  }
  return ok();
}

Status Auth::read_file(const std::filesystem::path& path) {
  STILL_TRY(const std::string text, read_text_file(path, kMaxKeysFile));
  const std::string what = "API keys " + path.string();
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '{') {
    STILL_TRY_STATUS(read_json(text, what));
  } else {
    std::string_view rest = text;
    for (int line = 1; !rest.empty(); ++line) {
      const std::size_t end = std::min(rest.find('\n'), rest.size());
      std::string_view words = rest.substr(0, end);
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (words.ends_with('\r')) words.remove_suffix(1);
      words = trim_spaces(words);
      if (words.empty() || words.starts_with('#')) continue;
      const std::size_t blank = std::min(words.find_first_of(" \t"), words.size());
      const std::string_view name = trim_spaces(words.substr(blank));
      STILL_TRY_STATUS(
          add(name.empty() ? fmt::format("line-{}", line) : std::string(name), sha256_of(words.substr(0, blank)), {}));
    }
  }
  // An empty file by mistake must not open the server to everybody.
  if (keys_.empty()) return error(Code::kInvalidArgument, "{}: holds no key", what);
  return ok();
}

Auth::Key* Auth::find(std::string_view presented) {
  // All are compared, each in constant time: how long it takes does not tell how near a guess is.
  const std::string digest = sha256_of(presented);
  Key* found = nullptr;
  for (Key& key : keys_) {
    if (CRYPTO_memcmp(key.digest.data(), digest.data(), kDigestBytes) == 0) found = &key;
  }
  return found;
}

bool Auth::is_admin(std::string_view name) const {
  return std::ranges::any_of(keys_, [&](const Key& key) { return key.name == name && key.limits.is_admin; });
}

void Auth::refill(Key& key, Clock::time_point now) {
  const double minutes = std::max(0.0, std::chrono::duration<double>(now - key.refilled).count() / 60.0);
  const auto fill = [minutes](double left, std::int64_t per_minute) {
    return std::min(static_cast<double>(per_minute), left + minutes * static_cast<double>(per_minute));
  };
  key.requests_left = fill(key.requests_left, key.limits.requests_per_minute);
  key.tokens_left = fill(key.tokens_left, key.limits.tokens_per_minute);
  key.refilled = std::max(key.refilled, now);
}

Auth::Verdict Auth::admit(const HttpRequest& request, RouteClass route_class, Clock::time_point now) {
  if (keys_.empty() || route_class == RouteClass::kOpen) return {};
  const std::string_view presented = presented_key(request);
  const std::lock_guard lock(mutex_);
  Key* key = presented.empty() ? nullptr : find(presented);
  if (key == nullptr) {
    return {.status = 401,
            .sentence = presented.empty() ? "this server needs an API key: Authorization: Bearer KEY, or x-api-key: KEY"
                                          : "this API key is not known"};
  }
  Verdict verdict{.key = key->name};
  const KeyLimits& limits = key->limits;
  if (route_class == RouteClass::kAdmin && !limits.is_admin) {
    verdict.status = 403;
    verdict.sentence = kMayNotChangeModels;
    return verdict;
  }
  if (route_class != RouteClass::kCompute) return verdict;
  refill(*key, now);
  const auto refuse = [&](const char* limit, std::string sentence, std::chrono::seconds retry_after) {
    verdict.status = 429;
    verdict.limit = limit;
    verdict.sentence = std::move(sentence);
    verdict.retry_after = retry_after;
    return verdict;
  };
  if (limits.max_concurrent > 0 && key->n_running >= limits.max_concurrent) {
    return refuse("concurrency", fmt::format("this API key may run {} requests at once", limits.max_concurrent),
                  std::chrono::seconds(1));
  }
  if (limits.tokens_per_minute > 0 && key->tokens_left <= 0) {
    return refuse("tokens", fmt::format("this API key may use {} tokens a minute", limits.tokens_per_minute),
                  wait_for(key->tokens_left, 1, limits.tokens_per_minute));
  }
  if (limits.requests_per_minute > 0 && key->requests_left < 1) {
    return refuse("requests", fmt::format("this API key may send {} requests a minute", limits.requests_per_minute),
                  wait_for(key->requests_left, 1, limits.requests_per_minute));
  }
  if (limits.requests_per_minute > 0) key->requests_left -= 1;
  ++key->n_running;
  running_[request.id] = static_cast<std::size_t>(key - keys_.data());
  return verdict;
}

void Auth::end(std::uint64_t request_id) {
  const std::lock_guard lock(mutex_);
  const auto it = running_.find(request_id);
  if (it == running_.end()) return;
  --keys_[it->second].n_running;
  running_.erase(it);
}

void Auth::count_tokens(std::string_view name, std::int64_t n_tokens, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  for (Key& key : keys_) {
    if (key.name != name || key.limits.tokens_per_minute == 0) continue;
    refill(key, now);
    key.tokens_left -= static_cast<double>(n_tokens);
  }
}

}  // namespace still

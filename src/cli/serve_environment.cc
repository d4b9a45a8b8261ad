#include "cli/serve_environment.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace still {
namespace {

std::string trimmed_variable(const char* name) {
  const char* value = std::getenv(name);
  std::string_view text = value ? value : "";
  const std::size_t first = text.find_first_not_of(" \t\"'");
  if (first == std::string_view::npos) return "";
  return std::string(text.substr(first, text.find_last_not_of(" \t\"'") - first + 1));
}

std::vector<std::string> comma_list(const std::string& text) {
  std::vector<std::string> words;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    std::string_view word = std::string_view(text).substr(begin, end - begin);
    while (word.starts_with(' ')) word.remove_prefix(1);
    while (word.ends_with(' ')) word.remove_suffix(1);
    if (!word.empty()) words.emplace_back(word);
    begin = end + 1;
  }
  return words;
}

Result<std::optional<std::int64_t>> number(const char* name, std::int64_t min) {
  const std::string text = trimmed_variable(name);
  if (text.empty()) return std::optional<std::int64_t>();
  std::int64_t value = 0;
  const auto [stop, problem] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (problem != std::errc() || stop != text.data() + text.size() || value < min) {
    return error(Code::kInvalidArgument, "{}={}: expected a whole number from {}", name, text, min);
  }
  return std::optional(value);
}

}  // namespace

std::string ServerAddress::url() const {
  const bool is_v6 = host.find(':') != std::string::npos;
  return fmt::format("{}://{}{}{}:{}", scheme, is_v6 ? "[" : "", host, is_v6 ? "]" : "", port);
}

ServerAddress ServerAddress::for_client() const {
  ServerAddress address = *this;
  if (host.empty() || host == "0.0.0.0") address.host = "127.0.0.1";
  if (host == "::") address.host = "::1";
  return address;
}

ServerAddress parse_server_address(std::string_view text) {
  ServerAddress address;
  std::uint16_t default_port = address.port;
  if (const std::size_t mark = text.find("://"); mark != std::string_view::npos) {
    address.scheme = std::string(text.substr(0, mark));
    text.remove_prefix(mark + 3);
    default_port = address.scheme == "https" ? 443 : 80;
  }
  text = text.substr(0, text.find('/'));
  address.port = default_port;
  std::string_view port;
  if (text.starts_with('[')) {
    const std::size_t end = std::min(text.find(']'), text.size());
    address.host = std::string(text.substr(1, end - 1));
    if (end + 1 < text.size() && text[end + 1] == ':') port = text.substr(end + 2);
  } else if (const std::size_t colon = text.find(':'); colon != std::string_view::npos && colon == text.rfind(':')) {
    if (colon > 0) address.host = std::string(text.substr(0, colon));
    port = text.substr(colon + 1);
  } else if (!text.empty()) {
    address.host = std::string(text);
  }
  std::uint16_t value = 0;
  const auto [stop, problem] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (problem == std::errc() && stop == port.data() + port.size()) address.port = value;
  return address;
}

Result<std::chrono::nanoseconds> parse_keep_alive(std::string_view text) {
  const auto bad = [&] {
    return error(Code::kInvalidArgument, "keep-alive \"{}\": expected a duration (5m, 1h30m), seconds, or -1 for ever",
                 text);
  };
  constexpr double kMost = 100.0 * 365 * 24 * 3600;  // seconds; beyond is for ever
  std::string_view rest = text;
  const bool is_negative = rest.starts_with('-');
  if (is_negative || rest.starts_with('+')) rest.remove_prefix(1);
  if (rest.empty()) return bad();
  double seconds = 0;
  while (!rest.empty()) {
    double value = 0;
    const auto [stop, problem] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
    if (problem != std::errc() || !std::isfinite(value) || value < 0) return bad();
    rest.remove_prefix(static_cast<std::size_t>(stop - rest.data()));
    const std::size_t end = std::min(rest.find_first_of("0123456789."), rest.size());
    const std::string_view unit = rest.substr(0, end);
    rest.remove_prefix(end);
    if (unit == "h") {
      seconds += value * 3600;
    } else if (unit == "m") {
      seconds += value * 60;
    } else if (unit == "s" || unit.empty()) {
      seconds += value;
    } else if (unit == "ms") {
      seconds += value / 1e3;
    } else if (unit == "us") {
      seconds += value / 1e6;
    } else if (unit == "ns") {
      seconds += value / 1e9;
    } else {
      return bad();
    }
  }
  if (is_negative) return std::chrono::nanoseconds(-1);
  return std::chrono::nanoseconds(static_cast<std::int64_t>(std::min(seconds, kMost) * 1e9));
}

Result<ServeEnvironment> read_serve_environment() {
  ServeEnvironment environment;
  std::string host = trimmed_variable("STILL_HOST");
  if (host.empty()) host = trimmed_variable("OLLAMA_HOST");
  if (!host.empty()) environment.address = parse_server_address(host);
  if (std::string text = trimmed_variable("OLLAMA_KEEP_ALIVE"); !text.empty()) environment.keep_alive = std::move(text);
  STILL_TRY(environment.n_parallel, number("OLLAMA_NUM_PARALLEL", 0));
  STILL_TRY(environment.max_models, number("OLLAMA_MAX_LOADED_MODELS", 0));
  STILL_TRY(environment.max_queue, number("OLLAMA_MAX_QUEUE", 0));
  STILL_TRY(environment.context, number("OLLAMA_CONTEXT_LENGTH", 0));
  environment.kv_type = trimmed_variable("OLLAMA_KV_CACHE_TYPE");
  environment.origins = comma_list(trimmed_variable("OLLAMA_ORIGINS"));
  environment.keys = comma_list(trimmed_variable("STILL_API_KEYS"));
  environment.client_ca = trimmed_variable("STILL_CA_FILE");
  if (environment.client_ca.empty()) environment.client_ca = trimmed_variable("SSL_CERT_FILE");
  environment.client_key = trimmed_variable("STILL_API_KEY");
  if (environment.client_key.empty()) environment.client_key = trimmed_variable("OLLAMA_API_KEY");
  return environment;
}

}  // namespace still

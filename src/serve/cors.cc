#include "serve/cors.h"

#include <arpa/inet.h>

#include <array>
#include <cstdint>

#include "serve/http/text.h"

namespace still {
namespace {

bool matches_wildcard(std::string_view pattern, std::string_view text) {
  // Greedy with one step back: linear but for the last '*'.
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

// "host:port" or "[v6]:port" without the port and the brackets, lower-case, without a final dot.
std::string host_only(std::string_view authority) {
  std::string_view host = authority;
  if (host.starts_with('[')) {
    const std::size_t end = host.find(']');
    host = host.substr(1, end == std::string_view::npos ? std::string_view::npos : end - 1);
  } else if (const std::size_t colon = host.rfind(':'); colon != std::string_view::npos && host.find(':') == colon) {
    host = host.substr(0, colon);
  }
  if (host.ends_with('.')) host.remove_suffix(1);
  return to_lower(host);
}

bool is_private_v4(const std::array<unsigned char, 4>& a) {
  return a[0] == 127 || a[0] == 10 || (a[0] == 172 && a[1] >= 16 && a[1] < 32) || (a[0] == 192 && a[1] == 168) ||
         (a[0] == 169 && a[1] == 254) || (a[0] == 0 && a[1] == 0 && a[2] == 0 && a[3] == 0);
}

bool is_private_v6(const std::array<unsigned char, 16>& a) {
  bool is_zero = true;
  for (int i = 0; i < 15; ++i) is_zero = is_zero && a[static_cast<std::size_t>(i)] == 0;
  return (is_zero && a[15] <= 1) || (a[0] & 0xfe) == 0xfc || (a[0] == 0xfe && (a[1] & 0xc0) == 0x80);
}

}  // namespace

bool is_origin_allowed(std::string_view origin, const std::vector<std::string>& extra) {
  const std::string lower = to_lower(origin);
  for (const std::string_view scheme : {"app://", "file://", "tauri://", "vscode-webview://", "vscode-file://",
                                        "chrome-extension://", "moz-extension://", "safari-web-extension://"}) {
    if (lower.starts_with(scheme)) return true;
  }
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (!lower.starts_with(scheme)) continue;
    const std::string host = host_only(std::string_view(lower).substr(scheme.size()));
    if (host == "localhost" || host == "127.0.0.1" || host == "0.0.0.0" || host == "::1") return true;
  }
  for (const std::string& pattern : extra) {
    if (matches_wildcard(to_lower(pattern), lower)) return true;
  }
  return false;
}

bool is_same_origin(std::string_view origin, std::string_view host) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (origin.starts_with(scheme)) return equals_without_case(origin.substr(scheme.size()), host);
  }
  return false;
}

std::vector<HttpHeader> cors_headers(std::string_view origin) {
  return {{"Access-Control-Allow-Origin", std::string(origin)},
          {"Vary", "Origin"},
          {"Access-Control-Expose-Headers", "X-Request-Id, X-Still-Generation, Retry-After"}};
}

std::vector<HttpHeader> preflight_headers(const HttpRequest& request) {
  std::vector<HttpHeader> headers = {{"Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS"},
                                     {"Access-Control-Max-Age", "43200"}};
  // Whatever headers a client asks for: clients of the published libraries send a dozen of their own (x-stainless-*).
  const std::string_view wanted = request.header("Access-Control-Request-Headers");
  headers.push_back({"Access-Control-Allow-Headers",
                     wanted.empty() ? "Authorization, Content-Type, User-Agent, Accept, X-Requested-With, x-api-key"
                                    : std::string(wanted)});
  if (!request.header("Access-Control-Request-Private-Network").empty()) {
    headers.push_back({"Access-Control-Allow-Private-Network", "true"});
  }
  return headers;
}

bool is_loopback_host(std::string_view host) {
  const std::string name = host_only(
      host.find(':') != host.rfind(':') && !host.starts_with('[') ? "[" + std::string(host) + "]" : std::string(host));
  return name == "localhost" || name == "::1" || name.starts_with("127.");
}

bool is_host_allowed_on_loopback(std::string_view host_header, std::string_view machine_name) {
  const std::string host = host_only(host_header);
  if (host.empty() || host == "localhost" || (!machine_name.empty() && host == to_lower(machine_name))) return true;
  for (const std::string_view end : {".localhost", ".local", ".internal"}) {
    if (host.ends_with(end)) return true;
  }
  std::array<unsigned char, 16> address{};
  if (inet_pton(AF_INET6, host.c_str(), address.data()) == 1) return is_private_v6(address);
  std::array<unsigned char, 4> v4{};
  if (inet_pton(AF_INET, host.c_str(), v4.data()) == 1) return is_private_v4(v4);
  return false;
}

}  // namespace still

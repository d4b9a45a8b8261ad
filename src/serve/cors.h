// Which web pages may use the server (CORS), and which names it may be called by (DNS rebinding). Pure functions.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "serve/http/message.h"

namespace still {

// Loopback on any port, the schemes of desktop applications and browser extensions, and `extra` (OLLAMA_ORIGINS): whole
// origins, "*", or with '*' for any run of characters.
bool is_origin_allowed(std::string_view origin, const std::vector<std::string>& extra);
// The page came from this very server: its origin's host and port are the request's Host.
bool is_same_origin(std::string_view origin, std::string_view host);

// Of a response to an allowed origin; for a preflight (OPTIONS) with the methods and headers that may be used.
std::vector<HttpHeader> cors_headers(std::string_view origin);
std::vector<HttpHeader> preflight_headers(const HttpRequest& request);

// A server on loopback answers only to names that no foreign DNS entry can hold: addresses of loopback and private
// networks, localhost, this machine's name, *.localhost, *.local, *.internal.
bool is_host_allowed_on_loopback(std::string_view host_header, std::string_view machine_name);
bool is_loopback_host(std::string_view host);  // "127.0.0.1", "::1", "localhost"

}  // namespace still

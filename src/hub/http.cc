// See http.h.
#include "hub/http.h"

#include <algorithm>
#include <charconv>
#include <mutex>
#include <thread>

#include "hub/ascii.h"

namespace still {

namespace {

constexpr long kMaxRedirects = 10;

struct Transfer {
  const HttpGet* request = nullptr;
  const CancelToken* cancel = nullptr;
  HttpReply response;
  bool too_long = false;
  bool range_ignored = false;
};

std::size_t on_header(char* data, std::size_t size, std::size_t n, void* user) {
  static_cast<Transfer*>(user)->response.head.take_line({data, size * n});
  return size * n;
}

std::size_t on_body(char* data, std::size_t size, std::size_t n, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (transfer.request->head_only) return 0;
  transfer.range_ignored = !transfer.request->range.empty() && transfer.response.head.status == 200;
  if (transfer.range_ignored) return 0;
  if (static_cast<std::int64_t>(transfer.response.body.size() + size * n) > transfer.request->max_bytes) {
    transfer.too_long = true;
    return 0;
  }
  transfer.response.body.append(data, size * n);
  return size * n;
}

int on_tick(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<Transfer*>(user)->cancel->is_cancelled() ? 1 : 0;
}

CURLcode transfer_once(const HttpGet& request, const HubOptions& options, Transfer& transfer) {
  const CurlHandle curl = make_curl(options);
  const CurlHeaders headers = make_headers(request.headers);
  curl_easy_setopt(curl.get(), CURLOPT_URL, request.url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  if (!request.range.empty()) curl_easy_setopt(curl.get(), CURLOPT_RANGE, request.range.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_HEADERFUNCTION, on_header);
  curl_easy_setopt(curl.get(), CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl.get(), CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl.get(), CURLOPT_XFERINFOFUNCTION, on_tick);
  curl_easy_setopt(curl.get(), CURLOPT_XFERINFODATA, &transfer);
  const CURLcode code = curl_easy_perform(curl.get());
  const char* effective = nullptr;
  if (curl_easy_getinfo(curl.get(), CURLINFO_EFFECTIVE_URL, &effective) == CURLE_OK && effective != nullptr) {
    transfer.response.head.effective_url = effective;
  }
  return code;
}

}  // namespace

std::string HttpHead::header(std::string_view name) const {
  const auto it = headers.find(name);
  return it == headers.end() ? std::string() : it->second;
}

void HttpHead::take_line(std::string_view line) {
  line = trim(line);
  if (line.starts_with("HTTP/")) {  // a new response: of a redirect, or after "100 Continue"
    headers.clear();
    status = 0;
    const auto space = line.find(' ');
    if (space != std::string_view::npos) std::from_chars(line.data() + space + 1, line.data() + line.size(), status);
    return;
  }
  const auto colon = line.find(':');
  if (colon == std::string_view::npos) return;
  headers[to_lower(line.substr(0, colon))] = trim(line.substr(colon + 1));
}

Result<ContentRange> parse_content_range(std::string_view text) {
  const auto fail = [&] { return error(Code::kCorrupt, "the server sent the Content-Range \"{}\"", text); };
  if (!text.starts_with("bytes ")) return fail();
  const std::string_view rest = text.substr(6);
  ContentRange range;
  const char* const end = rest.data() + rest.size();
  std::int64_t last = 0;
  auto [dash, first_error] = std::from_chars(rest.data(), end, range.begin);
  if (first_error != std::errc() || dash == end || *dash != '-') return fail();
  auto [slash, last_error] = std::from_chars(dash + 1, end, last);
  if (last_error != std::errc() || slash == end || *slash != '/' || range.begin < 0 || last < range.begin)
    return fail();
  range.end = last + 1;
  if (std::string_view(slash + 1, static_cast<std::size_t>(end - slash - 1)) == "*") return range;
  auto [stop, total_error] = std::from_chars(slash + 1, end, range.total);
  if (total_error != std::errc() || stop != end || range.total < range.end) return fail();
  return range;
}

CurlHandle make_curl(const HubOptions& options) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  CurlHandle curl(curl_easy_init());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl.get(), CURLOPT_REDIR_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl.get(), CURLOPT_FOLLOWLOCATION, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_MAXREDIRS, kMaxRedirects);
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_USERAGENT, "still/" STILL_VERSION);
  curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(options.connect_timeout.count()));
  curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_LIMIT, 1000L);
  const auto stall = std::chrono::duration_cast<std::chrono::seconds>(options.stall_timeout).count();
  curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_TIME, std::max<long>(1, static_cast<long>(stall)));
  // One connection a transfer: parallel ranges should not share one by HTTP/2 multiplexing.
  curl_easy_setopt(curl.get(), CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  return curl;
}

CurlHeaders make_headers(const std::vector<std::string>& headers) {
  curl_slist* list = nullptr;
  for (const std::string& header : headers) list = curl_slist_append(list, header.c_str());
  return CurlHeaders(list);
}

std::string host_of(std::string_view url) {
  if (const auto scheme = url.find("://"); scheme != std::string_view::npos) url = url.substr(scheme + 3);
  url = url.substr(0, url.find_first_of("/?#"));
  if (const auto at = url.rfind('@'); at != std::string_view::npos) url = url.substr(at + 1);
  return std::string(url);
}

std::string url_encode_path(std::string_view path) {
  std::string out;
  for (const char c : path) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       std::string_view("-._~/").find(c) != std::string_view::npos;
    out += plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<unsigned char>(c));
  }
  return out;
}

bool is_retriable_status(long status) {
  return status == 408 || status == 429 || status >= 500;
}

bool is_unreachable(CURLcode code) {
  return code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY || code == CURLE_COULDNT_CONNECT;
}

tl::unexpected<Error> http_status_error(long status, std::string_view url, std::string_view help) {
  const std::string host = host_of(url);
  const std::string_view shown = url.substr(0, url.find('?'));  // a query may hold a signature
  const std::string advice = help.empty() ? "" : fmt::format(": {}", help);
  if (status == 401 || status == 403) {
    return error(Code::kPermissionDenied, "{} refuses access to {} ({}){}", host, shown, status, advice);
  }
  if (status == 404 || status == 410) {
    return error(Code::kNotFound, "{} has no {} ({}): check the spelling{}", host, shown, status,
                 help.empty() ? "" : fmt::format("; if it is private, {}", help));
  }
  if (status == 429) return error(Code::kUnavailable, "{} wants fewer requests (429): try again in some minutes", host);
  return error(Code::kUnavailable, "{} answered {} for {}", host, status, shown);
}

tl::unexpected<Error> curl_error(CURLcode code, std::string_view url) {
  const std::string host = host_of(url);
  switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
      return error(Code::kUnavailable, "{} cannot be found (no network, or a wrong host name)", host);
    case CURLE_COULDNT_RESOLVE_PROXY:
      return error(Code::kUnavailable, "the proxy for {} cannot be found", host);
    case CURLE_COULDNT_CONNECT:
      return error(Code::kUnavailable, "{} cannot be reached (connection refused)", host);
    case CURLE_OPERATION_TIMEDOUT:
      return error(Code::kUnavailable, "{} does not answer in time", host);
    case CURLE_PEER_FAILED_VERIFICATION:
      return error(Code::kPermissionDenied, "{}: its certificate is not valid here ({})", host,
                   curl_easy_strerror(code));
    case CURLE_UNSUPPORTED_PROTOCOL:
      return error(Code::kInvalidArgument, "{}: not http or https", url);
    case CURLE_TOO_MANY_REDIRECTS:
      return error(Code::kUnavailable, "{} redirects more than {} times, expected a file: check the address {}", host,
                   kMaxRedirects, url);
    default:
      return error(Code::kUnavailable, "{}: {}; try again later", host, curl_easy_strerror(code));
  }
}

Result<HttpReply> http_get(const HttpGet& request, const HubOptions& options, const CancelToken& cancel) {
  const int n_retries = request.n_retries >= 0 ? request.n_retries : std::min(options.n_retries, 2);
  for (int attempt = 0;; ++attempt) {
    Transfer transfer{.request = &request, .cancel = &cancel};
    const CURLcode code = transfer_once(request, options, transfer);
    const long status = transfer.response.head.status;
    if (cancel.is_cancelled()) return error(Code::kCancelled, "stopped while asking {}", host_of(request.url));
    if (transfer.too_long) {
      return error(Code::kCorrupt, "{}: the answer is longer than {} bytes", request.url, request.max_bytes);
    }
    if (transfer.range_ignored) {
      return error(Code::kUnavailable, "{} does not serve parts of files: pull the whole file instead",
                   host_of(request.url));
    }
    const bool headers_only = request.head_only && code == CURLE_WRITE_ERROR && status != 0;
    if (code == CURLE_OK || headers_only) {
      if (status < 400) return std::move(transfer.response);
      if (!is_retriable_status(status) || attempt >= n_retries) {
        return http_status_error(status, request.url, request.help);
      }
    } else if (is_unreachable(code) || (code == CURLE_OPERATION_TIMEDOUT && status == 0) || attempt >= n_retries) {
      return curl_error(code, request.url);
    }
    const auto until = std::chrono::steady_clock::now() + options.backoff * (1 << attempt);
    while (!cancel.is_cancelled() && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }
}

}  // namespace still

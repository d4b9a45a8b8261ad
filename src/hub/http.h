// HTTP by libcurl: small requests (metadata, headers, single ranges) and what they share with downloads. Only http and
// https, also after redirects. curl itself honours http_proxy, https_proxy and no_proxy.
#pragma once

#include <curl/curl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "hub/cancel.h"
#include "hub/source.h"

namespace still {

struct CurlDeleter {
  void operator()(CURL* curl) const { curl_easy_cleanup(curl); }
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};
using CurlHandle = std::unique_ptr<CURL, CurlDeleter>;
using CurlHeaders = std::unique_ptr<curl_slist, CurlDeleter>;

// Headers of the last response of a redirect chain; names in lower case.
struct HttpHead {
  long status = 0;
  std::map<std::string, std::string, std::less<>> headers;
  std::string effective_url;

  std::string header(std::string_view name) const;  // empty if there is none
  void take_line(std::string_view line);            // one header line as curl gives it
};

struct ContentRange {
  std::int64_t begin = 0, end = 0;  // half open
  std::int64_t total = -1;          // -1: "*"
};
// "bytes 0-99/1234"; kCorrupt if it is none.
Result<ContentRange> parse_content_range(std::string_view text);

struct HttpGet {
  std::string url;
  std::vector<std::string> headers;
  std::string help;
  std::string range;                  // "0-1023"; empty: the whole body
  std::int64_t max_bytes = 64 << 20;  // kCorrupt beyond; with head_only the body is not read
  bool head_only = false;             // stop at the end of the headers (a GET, since servers treat HEAD differently)
  int n_retries = -1;                 // -1: as in the options
};
struct HttpReply {
  HttpHead head;
  std::string body;
};

// A GET, following redirects. Statuses of 400 and above are errors in words (http_status_error). Retries what may pass
// (429, 5xx, a connection cut midway), not a host that cannot be found or reached.
Result<HttpReply> http_get(const HttpGet& request, const HubOptions& options, const CancelToken& cancel);

// Sets what all transfers share: protocols, redirects, timeouts, the program's name.
CurlHandle make_curl(const HubOptions& options);
CurlHeaders make_headers(const std::vector<std::string>& headers);
std::string host_of(std::string_view url);
std::string url_encode_path(std::string_view path);  // keeps '/'

// "huggingface.co refuses ... (403): <help>".
tl::unexpected<Error> http_status_error(long status, std::string_view url, std::string_view help);
tl::unexpected<Error> curl_error(CURLcode code, std::string_view url);
bool is_retriable_status(long status);
bool is_unreachable(CURLcode code);  // no such host, refused, no answer: other sources should be tried at once

}  // namespace still

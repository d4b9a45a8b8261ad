// https://: one file of a web server, or all parts of a split GGUF; its size comes from a request for the first byte.
#include <algorithm>
#include <charconv>

#include "hub/http.h"
#include "hub/store.h"

namespace still {

namespace {

constexpr std::string_view kHelp = "the page may want a login; download the file with a browser and pull file:<path>";

std::int64_t size_of(const HttpHead& head) {
  if (head.status == 206) {
    const Result<ContentRange> range = parse_content_range(head.header("content-range"));
    return range ? range->total : -1;
  }
  const std::string length = head.header("content-length");
  std::int64_t size = -1;
  std::from_chars(length.data(), length.data() + length.size(), size);
  return size;
}

}  // namespace

Result<SourceListing> list_http(const SourceRef& source, const HubOptions& options, const CancelToken& cancel) {
  std::vector<std::string> urls = {source.repository};
  // name-00001-of-00005.gguf stands for all five.
  const std::string_view path = std::string_view(source.repository).substr(0, source.repository.find('?'));
  constexpr std::string_view kEnd = "-00001-of-00000.gguf";
  if (const auto at = path.rfind("-00001-of-"); at != std::string_view::npos && path.size() - at == kEnd.size()) {
    int n_parts = 0;
    std::from_chars(path.data() + at + 10, path.data() + at + 15, n_parts);
    urls.clear();
    for (int i = 1; i <= n_parts; ++i) {
      std::string url = source.repository;
      urls.push_back(url.replace(at, 10, fmt::format("-{:05}-of-", i)));
    }
  }
  SourceListing listing;
  for (const std::string& url : urls) {
    STILL_TRY(const HttpReply response,
              http_get({.url = url, .help = std::string(kHelp), .range = "0-0", .head_only = true}, options, cancel));
    const std::string_view place = std::string_view(url).substr(0, url.find('?'));
    std::string name(place.substr(place.rfind('/') + 1));
    if (!check_file_name(name)) name = "model.gguf";
    listing.files.push_back({.name = std::move(name),
                             .size = size_of(response.head),
                             .sha256 = urls.size() == 1 ? source.sha256 : "",
                             .fetch = UrlFetch{.url = url, .headers = {}, .help = std::string(kHelp)}});
  }
  return listing;
}

}  // namespace still

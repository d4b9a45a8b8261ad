// hf: the tree of a repository (its API gives the SHA-256 of every large file), then resolve/<revision>/<path>.
#include "base/json.h"
#include "hub/http.h"
#include "hub/sha256.h"

namespace still {

namespace {

constexpr int kMaxPages = 50;

// Link: <https://...&cursor=x>; rel="next"
std::string next_page(const HttpHead& head) {
  const std::string link = head.header("link");
  const auto end = link.find(">; rel=\"next\"");
  if (end == std::string::npos) return "";
  const auto begin = link.rfind('<', end);
  return begin == std::string::npos ? "" : link.substr(begin + 1, end - begin - 1);
}

std::string text_of(const JsonObject& object, std::string_view key) {
  const Json* value = object.if_contains(key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

std::int64_t size_of(const JsonObject& object) {
  const Json* value = object.if_contains("size");
  return value != nullptr && value->is_int64() ? value->get_int64() : -1;
}

}  // namespace

Result<SourceListing> list_hf(const SourceRef& source, const HubOptions& options, const CancelToken& cancel) {
  std::string endpoint = options.hf_endpoint;
  while (endpoint.ends_with('/')) endpoint.pop_back();
  UrlFetch access;
  access.help =
      options.hf_token.empty()
          ? fmt::format("accept the terms on {}/{} if it has some, and set HF_TOKEN", endpoint, source.repository)
          : fmt::format("the account of HF_TOKEN must be given access on {}/{}", endpoint, source.repository);
  if (!options.hf_token.empty()) access.headers.push_back("Authorization: Bearer " + options.hf_token);

  std::vector<SourceFile> files;
  std::string url =
      fmt::format("{}/api/models/{}/tree/{}?recursive=true", endpoint, source.repository, source.revision);
  for (int page = 0; !url.empty() && page < kMaxPages; ++page) {
    const bool same_host = host_of(url) == host_of(endpoint);
    STILL_TRY(
        const HttpReply response,
        http_get({.url = url, .headers = same_host ? access.headers : std::vector<std::string>(), .help = access.help},
                 options, cancel));
    STILL_TRY(const Json json, parse_json(response.body, url));
    if (!json.is_array()) return error(Code::kCorrupt, "{}: expected a JSON array of files", url);
    for (const Json& entry : json.get_array()) {
      const JsonObject* file = entry.if_object();
      if (file == nullptr || text_of(*file, "type") != "file") continue;
      SourceFile found{.name = text_of(*file, "path"), .size = size_of(*file)};
      if (const Json* lfs = file->if_contains("lfs"); lfs != nullptr && lfs->is_object()) {
        found.sha256 = text_of(lfs->get_object(), "oid");
        found.size = size_of(lfs->get_object());
      }
      if (!is_sha256_hex(found.sha256)) found.sha256.clear();
      access.url =
          fmt::format("{}/{}/resolve/{}/{}", endpoint, source.repository, source.revision, url_encode_path(found.name));
      found.fetch = access;
      files.push_back(std::move(found));
    }
    url = next_page(response.head);
  }
  SourceListing listing;
  STILL_TRY(listing.files, choose_model_files(std::move(files), source.file, source.text));
  return listing;
}

}  // namespace still

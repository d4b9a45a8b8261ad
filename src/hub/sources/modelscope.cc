// modelscope: the file list of a repository (with SHA-256), then the same API with FilePath.
#include "base/json.h"
#include "hub/http.h"
#include "hub/sha256.h"

namespace still {

namespace {

const Json* member(const Json* json, std::string_view key) {
  const JsonObject* object = json != nullptr ? json->if_object() : nullptr;
  return object != nullptr ? object->if_contains(key) : nullptr;
}

std::string text_of(const Json& json, std::string_view key) {
  const Json* value = member(&json, key);
  return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
}

}  // namespace

Result<SourceListing> list_modelscope(const SourceRef& source, const HubOptions& options, const CancelToken& cancel) {
  std::string endpoint = options.modelscope_endpoint;
  while (endpoint.ends_with('/')) endpoint.pop_back();
  UrlFetch access{
      .help = fmt::format("the model may want a login: get access on {}/models/{}", endpoint, source.repository)};
  if (!options.modelscope_token.empty()) access.headers.push_back("Authorization: Bearer " + options.modelscope_token);

  const std::string url = fmt::format("{}/api/v1/models/{}/repo/files?Revision={}&Recursive=true", endpoint,
                                      source.repository, source.revision);
  STILL_TRY(const HttpReply response,
            http_get({.url = url, .headers = access.headers, .help = access.help}, options, cancel));
  STILL_TRY(const Json json, parse_json(response.body, url));
  const Json* list = member(member(&json, "Data"), "Files");
  if (list == nullptr || !list->is_array()) {
    const std::string reason = text_of(json, "Message");
    return error(Code::kNotFound, "{}: {}", source.text, reason.empty() ? "the answer holds no list of files" : reason);
  }
  std::vector<SourceFile> files;
  for (const Json& entry : list->get_array()) {
    if (text_of(entry, "Type") != "blob") continue;
    SourceFile file{.name = text_of(entry, "Path"), .sha256 = text_of(entry, "Sha256")};
    if (const Json* size = member(&entry, "Size"); size != nullptr && size->is_int64()) file.size = size->get_int64();
    if (!is_sha256_hex(file.sha256)) file.sha256.clear();
    access.url = fmt::format("{}/api/v1/models/{}/repo?Revision={}&FilePath={}", endpoint, source.repository,
                             source.revision, url_encode_path(file.name));
    file.fetch = access;
    files.push_back(std::move(file));
  }
  SourceListing listing;
  STILL_TRY(listing.files, choose_model_files(std::move(files), source.file, source.text));
  return listing;
}

}  // namespace still

// ollama: a manifest (Docker's v2 form) lists layers by digest; the model layer is a GGUF, small layers hold sampling
// parameters, a system prompt, the licence. Its Go template is left out: the GGUF brings the model's own Jinja
// template.
#include <algorithm>

#include "base/json.h"
#include "hub/http.h"
#include "hub/sha256.h"

namespace still {

namespace {

constexpr std::int64_t kMaxFetchedLayer = 1 << 20;
constexpr std::string_view kMediaPrefix = "application/vnd.ollama.image.";

struct RemoteLayer {
  std::string type;  // after kMediaPrefix: "model", "params"
  std::string sha256;
  std::int64_t size = 0;
};

Result<std::vector<RemoteLayer>> read_layers(const Json& json, std::string_view what) {
  std::vector<RemoteLayer> layers;
  const JsonObject* object = json.if_object();
  const Json* list = object != nullptr ? object->if_contains("layers") : nullptr;
  if (list == nullptr || !list->is_array()) return error(Code::kCorrupt, "{}: the manifest has no layers", what);
  for (const Json& entry : list->get_array()) {
    const JsonObject* layer = entry.if_object();
    const Json* type = layer != nullptr ? layer->if_contains("mediaType") : nullptr;
    const Json* digest = layer != nullptr ? layer->if_contains("digest") : nullptr;
    const Json* size = layer != nullptr ? layer->if_contains("size") : nullptr;
    if (type == nullptr || !type->is_string() || digest == nullptr || !digest->is_string() || size == nullptr ||
        !size->is_int64()) {
      return error(Code::kCorrupt, "{}: a layer without mediaType, digest or size", what);
    }
    const std::string_view media = type->get_string(), sha = digest->get_string();
    if (!sha.starts_with("sha256:") || !is_sha256_hex(sha.substr(7))) {
      return error(Code::kCorrupt, "{}: layer digest \"{}\"", what, sha);
    }
    if (!media.starts_with(kMediaPrefix)) continue;
    layers.push_back({std::string(media.substr(kMediaPrefix.size())), std::string(sha.substr(7)), size->get_int64()});
  }
  return layers;
}

}  // namespace

Result<SourceListing> list_ollama(const SourceRef& source, const HubOptions& options, const CancelToken& cancel) {
  std::string registry = options.ollama_registry;
  while (registry.ends_with('/')) registry.pop_back();
  const std::string base = fmt::format("{}/v2/{}", registry, source.repository);
  const std::string url = fmt::format("{}/manifests/{}", base, source.file);
  STILL_TRY(const HttpReply response,
            http_get({.url = url, .headers = {"Accept: application/vnd.docker.distribution.manifest.v2+json"}}, options,
                     cancel));
  STILL_TRY(const Json json, parse_json(response.body, url));
  STILL_TRY(const std::vector<RemoteLayer> layers, read_layers(json, source.text));
  SourceListing listing;
  for (const RemoteLayer& layer : layers) {
    const std::string blob = fmt::format("{}/blobs/sha256:{}", base, layer.sha256);
    if (layer.type == "model") {
      const std::string stem = source.repository.substr(source.repository.find('/') + 1) + "-" + source.file;
      listing.files.push_back({.name = stem + ".gguf",
                               .size = layer.size,
                               .sha256 = layer.sha256,
                               .fetch = UrlFetch{.url = blob, .headers = {}, .help = ""}});
      continue;
    }
    if (layer.type != "params" && layer.type != "system" && layer.type != "license") continue;
    if (layer.size > kMaxFetchedLayer) continue;
    STILL_TRY(const HttpReply small, http_get({.url = blob, .max_bytes = kMaxFetchedLayer}, options, cancel));
    if (sha256_hex(small.body) != layer.sha256) {
      return error(Code::kCorrupt, "{}: the {} layer has another digest than the manifest says", source.text,
                   layer.type);
    }
    if (layer.type == "system") listing.system = small.body;
    if (layer.type == "license" && listing.licence.empty()) {
      const auto begin = small.body.find_first_not_of(" \t\r\n");
      if (begin != std::string::npos) listing.licence = small.body.substr(begin, small.body.find('\n', begin) - begin);
    }
    if (layer.type == "params") {
      STILL_TRY(const Json params, parse_json(small.body, blob));
      if (params.is_object()) listing.parameters = params.get_object();
    }
  }
  if (listing.files.empty()) return error(Code::kUnsupported, "{}: the manifest has no model layer", source.text);
  if (listing.files.size() > 1) {
    return error(Code::kUnsupported, "{}: has {} model layers, one can be used", source.text, listing.files.size());
  }
  return listing;
}

}  // namespace still

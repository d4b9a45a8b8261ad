// See ollama_store.h.
#include "hub/ollama_store.h"

#include <algorithm>
#include <cctype>
#include <system_error>

#include "base/text_file.h"
#include "hub/ascii.h"
#include "hub/model_name.h"
#include "hub/sha256.h"

namespace still {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kLayerPrefix = "application/vnd.ollama.image.";
constexpr std::int64_t kMaxManifest = 4 << 20;
constexpr std::int64_t kMaxSmallLayer = 8 << 20;
constexpr std::size_t kMaxPart = 350;

bool equal_but_case(std::string_view a, std::string_view b) {
  return to_lower(a) == to_lower(b);
}

bool is_part(std::string_view part, bool is_host) {
  if (part.empty() || part.size() > kMaxPart || part.find("..") != std::string_view::npos) return false;
  if (std::isalnum(static_cast<unsigned char>(part[0])) == 0 && part[0] != '_') return false;
  return std::ranges::all_of(part, [&](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-' || c == '.' ||
           (is_host && c == ':');
  });
}

struct Layer {
  std::string type;  // "model", "params", ...; "" for the configuration
  std::string sha256;
  std::int64_t size = 0;
};

Result<Layer> read_layer(const Json& json) {
  const JsonObject* object = json.if_object();
  if (object == nullptr) return error(Code::kCorrupt, "a layer that is no object");
  const auto text = [&](std::string_view key) -> std::string_view {
    const Json* value = object->if_contains(key);
    return value != nullptr && value->is_string() ? std::string_view(value->get_string()) : std::string_view();
  };
  std::string_view media = text("mediaType"), digest = text("digest");
  const Json* size = object->if_contains("size");
  if (!digest.starts_with("sha256:") || !is_sha256_hex(digest.substr(7)))
    return error(Code::kCorrupt, "a layer with the digest \"{}\"", digest.substr(0, 80));
  if (size == nullptr || !size->is_int64() || size->get_int64() < 0)
    return error(Code::kCorrupt, "layer {} has no size", digest.substr(0, 19));
  // "application/vnd.ollama.image.tensor; name=..." and the like have parameters.
  media = media.substr(0, media.find(';'));
  return Layer{.type = std::string(media.starts_with(kLayerPrefix) ? media.substr(kLayerPrefix.size()) : media),
               .sha256 = std::string(digest.substr(7)),
               .size = size->get_int64()};
}

}  // namespace

Result<OllamaName> OllamaName::parse(std::string_view text) {
  OllamaName name;
  std::string_view rest = text;
  if (const std::size_t scheme = rest.find("://"); scheme != std::string_view::npos) rest.remove_prefix(scheme + 3);
  // A colon before the last slash belongs to the host's port.
  const std::size_t slash = rest.rfind('/'), colon = rest.rfind(':');
  if (colon != std::string_view::npos && (slash == std::string_view::npos || colon > slash)) {
    name.tag = rest.substr(colon + 1);
    rest = rest.substr(0, colon);
  }
  std::vector<std::string_view> parts;
  for (std::size_t at = 0;;) {
    const std::size_t end = rest.find('/', at);
    parts.push_back(rest.substr(at, end == std::string_view::npos ? end : end - at));
    if (end == std::string_view::npos) break;
    at = end + 1;
  }
  if (parts.size() > 3)
    return error(Code::kInvalidArgument, "{} is not a model name: too many \"/\"", quoted_name(text));
  name.model = parts.back();
  if (parts.size() >= 2) name.space = parts[parts.size() - 2];
  if (parts.size() == 3) name.host = parts[0];
  if (!is_part(name.host, true) || !is_part(name.space, false) || !is_part(name.model, false) ||
      !is_part(name.tag, false))
    return error(Code::kInvalidArgument, "{} is not a model name; names look like qwen2.5:0.5b", quoted_name(text));
  return name;
}

std::string OllamaName::str() const {
  const OllamaName usual;
  std::string text;
  const bool usual_host = equal_but_case(host, usual.host);
  if (!usual_host) text += host + "/";
  if (!usual_host || !equal_but_case(space, usual.space)) text += space + "/";
  return text + model + ":" + tag;
}

bool is_same_name(const OllamaName& a, const OllamaName& b) {
  return equal_but_case(a.host, b.host) && equal_but_case(a.space, b.space) && equal_but_case(a.model, b.model) &&
         equal_but_case(a.tag, b.tag);
}

bool OllamaStore::exists() const {
  std::error_code failure;
  return !root_.empty() && fs::is_directory(root_ / "manifests", failure);
}

std::vector<std::pair<OllamaName, fs::path>> OllamaStore::manifests(std::vector<std::string>& problems) const {
  std::vector<std::pair<OllamaName, fs::path>> found;
  if (!exists()) return found;
  const auto entries = [&](const fs::path& folder, bool folders) {
    std::vector<fs::path> paths;
    std::error_code failure;
    for (fs::directory_iterator it(folder, failure), end; !failure && it != end; it.increment(failure)) {
      std::error_code ignored;
      if (it->path().filename().string().starts_with('.')) continue;
      if (folders ? it->is_directory(ignored) : it->is_regular_file(ignored)) paths.push_back(it->path());
    }
    if (failure) problems.push_back(fmt::format("cannot list {}: {}", folder.string(), failure.message()));
    std::ranges::sort(paths);
    return paths;
  };
  for (const fs::path& host : entries(root_ / "manifests", true))
    for (const fs::path& space : entries(host, true))
      for (const fs::path& model : entries(space, true))
        for (const fs::path& tag : entries(model, false)) {
          const OllamaName name{.host = host.filename().string(),
                                .space = space.filename().string(),
                                .model = model.filename().string(),
                                .tag = tag.filename().string()};
          found.emplace_back(name, tag);
        }
  return found;
}

Result<fs::path> OllamaStore::blob(std::string_view sha256, std::int64_t size) const {
  // Stores of 2023 have a colon where newer ones have a hyphen.
  for (const std::string_view prefix : {"sha256-", "sha256:"}) {
    fs::path path = root_ / "blobs" / (std::string(prefix) + std::string(sha256));
    std::error_code failure;
    const std::uintmax_t found = fs::file_size(path, failure);
    if (failure) continue;
    if (found != static_cast<std::uintmax_t>(size))
      return error(Code::kCorrupt, "{} has {} bytes, expected {}", path.string(), found, size);
    return path;
  }
  return error(Code::kCorrupt, "{} is missing", (root_ / "blobs" / ("sha256-" + std::string(sha256))).string());
}

Result<std::string> OllamaStore::read_small(std::string_view sha256, std::int64_t size) const {
  STILL_TRY(const fs::path path, blob(sha256, size));
  STILL_TRY(std::string bytes, read_text_file(path, kMaxSmallLayer));
  if (sha256_hex(bytes) != sha256) return error(Code::kCorrupt, "{} has another digest than its name", path.string());
  return bytes;
}

Result<OllamaModel> OllamaStore::read(const OllamaName& name, const fs::path& manifest) const {
  STILL_TRY(const std::string bytes, read_text_file(manifest, kMaxManifest));
  STILL_TRY(const Json json, parse_json(bytes, manifest.string()));
  const JsonObject* object = json.if_object();
  const Json* layers = object != nullptr ? object->if_contains("layers") : nullptr;
  if (layers == nullptr || !layers->is_array()) return error(Code::kCorrupt, "the manifest has no layers");
  OllamaModel model{.name = name, .digest = sha256_hex(bytes)};
  std::error_code ignored;
  if (const auto time = fs::last_write_time(manifest, ignored); !ignored) {
    model.modified =
        std::chrono::time_point_cast<std::chrono::system_clock::duration>(std::chrono::file_clock::to_sys(time));
  }
  if (const Json* config = object->if_contains("config"); config != nullptr && config->is_object()) {
    STILL_TRY(const Layer layer, read_layer(*config));
    model.size += layer.size;
    STILL_TRY(const std::string text, read_small(layer.sha256, layer.size));
    STILL_TRY(const Json parsed, parse_json(text, "configuration"));
    if (parsed.is_object()) model.config = parsed.get_object();
  }
  for (const Json& entry : layers->get_array()) {
    STILL_TRY(const Layer layer, read_layer(entry));
    if (model.size > (std::int64_t{1} << 60) - layer.size) return error(Code::kCorrupt, "impossible sizes of layers");
    model.size += layer.size;
    if (layer.type == "model") {
      if (!model.path.empty())
        return error(Code::kUnsupported, "several model layers (a split model); one can be used");
      STILL_TRY(model.path, blob(layer.sha256, layer.size));
      model.model_sha256 = layer.sha256;
      model.model_size = layer.size;
    } else if (layer.type == "adapter" || layer.type == "projector") {
      STILL_TRY(fs::path path, blob(layer.sha256, layer.size));
      (layer.type == "adapter" ? model.adapters : model.projectors).push_back(std::move(path));
    } else if (layer.type == "template" || layer.type == "prompt") {  // prompt: the template's name of 2023
      STILL_TRY(model.template_text, read_small(layer.sha256, layer.size));
    } else if (layer.type == "system") {
      STILL_TRY(model.system, read_small(layer.sha256, layer.size));
    } else if (layer.type == "license") {
      STILL_TRY(std::string text, read_small(layer.sha256, layer.size));
      model.licences.push_back(std::move(text));
    } else if (layer.type == "params") {
      STILL_TRY(const std::string text, read_small(layer.sha256, layer.size));
      STILL_TRY(const Json parsed, parse_json(text, "parameters"));
      if (!parsed.is_object()) return error(Code::kCorrupt, "the parameters are no JSON object");
      model.parameters = parsed.get_object();
    } else if (layer.type == "messages") {
      STILL_TRY(const std::string text, read_small(layer.sha256, layer.size));
      STILL_TRY(const Json parsed, parse_json(text, "messages"));
      if (!parsed.is_array()) return error(Code::kCorrupt, "the messages are no JSON array");
      model.messages = parsed.get_array();
    }
  }
  return model;
}

OllamaListing OllamaStore::list() const {
  OllamaListing listing;
  for (const auto& [name, path] : manifests(listing.problems)) {
    Result<OllamaModel> model = read(name, path);
    if (model) {
      listing.models.push_back(std::move(*model));
    } else {
      listing.problems.push_back(fmt::format("{} in {}: {}", name.str(), root_.string(), model.error().message));
    }
  }
  std::ranges::sort(listing.models, {}, [](const OllamaModel& model) { return model.name.str(); });
  return listing;
}

Result<OllamaModel> OllamaStore::find(std::string_view text) const {
  STILL_TRY(const OllamaName wanted, OllamaName::parse(text));
  std::vector<std::string> problems;
  const fs::path exact = root_ / "manifests" / wanted.host / wanted.space / wanted.model / wanted.tag;
  std::error_code failure;
  std::vector<std::pair<OllamaName, fs::path>> candidates;
  if (exists() && fs::is_regular_file(exact, failure)) {
    candidates.emplace_back(wanted, exact);
  } else {
    for (auto& entry : manifests(problems))
      if (is_same_name(entry.first, wanted)) candidates.push_back(std::move(entry));
  }
  if (candidates.empty()) return error(Code::kNotFound, "there is no model {} in {}", wanted.str(), root_.string());
  Result<OllamaModel> model = read(candidates[0].first, candidates[0].second);
  if (!model) {
    return error(model.error().code, "{} in {}: {}", candidates[0].first.str(), root_.string(), model.error().message);
  }
  return model;
}

}  // namespace still

// See library.h.
#include "hub/library.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <set>
#include <system_error>

#include "hub/file_io.h"

namespace still {
namespace fs = std::filesystem;

namespace {

std::chrono::system_clock::time_point parse_utc(const std::string& text) {
  std::tm parts{};
  if (strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts) == nullptr) return {};
  return std::chrono::system_clock::from_time_t(timegm(&parts));
}

std::string format_utc(std::chrono::system_clock::time_point time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

LibraryModel from_ollama(OllamaModel model, const fs::path& root) {
  LibraryModel found{
      .name = model.name.str(),
      .origin = ModelOrigin::kOllama,
      .path = std::move(model.path),
      .digest = std::move(model.digest),
      .size = model.size,
      .files = {{.name = "model.gguf", .size = model.model_size, .sha256 = std::move(model.model_sha256)}},
      .modified = model.modified,
      .source = "Ollama's store " + root.string(),
      .parameters = std::move(model.parameters),
      .template_text = std::move(model.template_text),
      .system = std::move(model.system),
      .licences = std::move(model.licences),
      .messages = std::move(model.messages),
      .config = std::move(model.config)};
  if (!found.template_text.empty()) found.template_language = kTemplateGo;
  if (!model.adapters.empty()) {
    found.problem = fmt::format("{} has an adapter, which is not supported yet", found.name);
  } else if (found.path.empty()) {
    found.problem = fmt::format("{} has no GGUF layer: it is kept elsewhere or in another format", found.name);
  }
  return found;
}

// The first line that says something, shortened.
std::string first_line(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return "";
  text.remove_prefix(begin);
  return std::string(text.substr(0, std::min<std::size_t>(text.find_first_of("\r\n"), 200)));
}

}  // namespace

Result<ResolvedModel> LibraryModel::resolved() const {
  if (!problem.empty()) return error(Code::kUnsupported, "{}", problem);
  ResolvedModel model{.name = name, .path = path, .is_stored = origin != ModelOrigin::kPath};
  if (origin == ModelOrigin::kPath) return model;
  Manifest& manifest = model.manifest;
  // A name of three parts is none of the store's; `name` above is what people see.
  if (Result<ModelName> parsed = ModelName::parse(name)) manifest.name = std::move(*parsed);
  manifest.source = source;
  manifest.created = format_utc(modified);
  if (!licences.empty()) manifest.licence = first_line(licences[0]);
  manifest.files = {{.name = "model.gguf", .size = size, .sha256 = digest}};
  manifest.parameters = parameters;
  manifest.template_text = template_text;
  manifest.template_language = template_language;
  manifest.system = system;
  manifest.messages = messages;
  return model;
}

Result<Library> Library::open(const LibraryOptions& options) {
  STILL_TRY(Store store, Store::open(options.store));
  return Library(std::move(store), OllamaStore(options.ollama));
}

Result<LibraryModel> Library::from_store(const Manifest& manifest) const {
  LibraryModel found{.name = manifest.name.str(),
                     .origin = ModelOrigin::kStore,
                     .digest = manifest.digest(),
                     .size = manifest.total_bytes(),
                     .files = manifest.files,
                     .modified = parse_utc(manifest.created),
                     .source = manifest.source,
                     .parameters = manifest.parameters,
                     .template_text = manifest.template_text,
                     .system = manifest.system,
                     .messages = manifest.messages};
  if (!found.template_text.empty())
    found.template_language =
        manifest.template_language.empty() ? std::string(kTemplateJinja) : manifest.template_language;
  if (!manifest.licence.empty()) found.licences.push_back(manifest.licence);
  STILL_TRY(found.path, store_.model_path(manifest));
  return found;
}

LibraryListing Library::list() const {
  LibraryListing listing;
  std::set<std::string> names;
  if (Result<StoreListing> own = store_.list()) {
    listing.problems = std::move(own->problems);
    for (const Manifest& manifest : own->models) {
      names.insert(manifest.name.str());
      Result<LibraryModel> model = from_store(manifest);
      if (model) {
        listing.models.push_back(std::move(*model));
      } else {
        listing.problems.push_back(model.error().message);
      }
    }
  } else {
    listing.problems.push_back(own.error().message);
  }
  OllamaListing theirs = ollama_.list();
  listing.problems.insert(listing.problems.end(), theirs.problems.begin(), theirs.problems.end());
  for (OllamaModel& model : theirs.models) {
    const Result<ModelName> name = ModelName::parse(model.name.str());
    if (name && names.contains(name->str())) continue;
    listing.models.push_back(from_ollama(std::move(model), ollama_.root()));
  }
  std::ranges::stable_sort(listing.models, {}, &LibraryModel::name);
  return listing;
}

std::vector<std::string> Library::closest(std::string_view name) const {
  std::vector<std::string> names;
  for (const LibraryModel& model : list().models) names.push_back(model.name);
  std::string wanted(name);
  std::ranges::transform(wanted, wanted.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return closest_names(wanted, names);
}

std::string Library::not_found_sentence(std::string_view name) const {
  const std::vector<std::string> close = closest(name);
  return fmt::format("model '{}' not found{}", name,
                     close.empty() ? "" : fmt::format("; did you mean {}?", fmt::join(close, ", ")));
}

Result<LibraryModel> Library::find_stored(std::string_view name) const {
  const Result<ModelName> own = find_stored_name(store_, name);
  if (own) {
    STILL_TRY(const Manifest manifest, store_.read(*own));
    return from_store(manifest);
  }
  Result<OllamaModel> theirs = ollama_.find(name);
  if (theirs) return from_ollama(std::move(*theirs), ollama_.root());
  const bool is_absent =
      theirs.error().code == Code::kNotFound || theirs.error().code == Code::kInvalidArgument || !ollama_.exists();
  if (!is_absent) return tl::unexpected(theirs.error());
  // The own store's sentence names its closest models and what could be pulled; Ollama's are added where it has some.
  if (ollama_.exists()) {
    const std::vector<std::string> close = closest(name);
    if (!close.empty())
      return error(Code::kNotFound, "there is no model {}; did you mean {}?", name, fmt::join(close, ", "));
    // "host/owner/model" is a name of Ollama's alone.
    if (own.error().code == Code::kInvalidArgument) return tl::unexpected(theirs.error());
  }
  return tl::unexpected(own.error());
}

Result<LibraryModel> Library::find(std::string_view name) const {
  const Result<ResolvedModel> own = resolve_model(store_, name);
  if (own && own->is_stored) return from_store(own->manifest);
  if (!own && own.error().code != Code::kNotFound && own.error().code != Code::kInvalidArgument)
    return tl::unexpected(own.error());
  // A path that is written as one is never looked up in Ollama's store; a bare word that is a file is the last choice.
  const bool is_written_as_path =
      (name.find('/') == 0 || name.starts_with("./") || name.starts_with("../") || name == "." || name == ".." ||
       name.ends_with('/') || name.ends_with(".gguf") || name.ends_with(".safetensors"));
  if (!is_written_as_path) {
    Result<LibraryModel> stored = find_stored(name);
    if (stored || !own) return stored;
  }
  if (!own) return tl::unexpected(own.error());
  LibraryModel found{.name = own->name, .origin = ModelOrigin::kPath, .path = own->path, .source = own->path.string()};
  std::error_code failure;
  if (fs::is_regular_file(own->path, failure)) {
    const std::uintmax_t size = fs::file_size(own->path, failure);
    if (!failure) found.size = static_cast<std::int64_t>(size);
  }
  if (const auto time = fs::last_write_time(own->path, failure); !failure) {
    found.modified =
        std::chrono::time_point_cast<std::chrono::system_clock::duration>(std::chrono::file_clock::to_sys(time));
  }
  return found;
}

fs::path find_ollama_root(const fs::path& ollama_models, const fs::path& home) {
  if (!ollama_models.empty()) return ollama_models;
  if (!home.empty()) {
    const fs::path in_home = home / ".ollama" / "models";
    if (OllamaStore(in_home).exists()) return in_home;
  }
  const fs::path shared = "/usr/share/ollama/.ollama/models";
  return OllamaStore(shared).exists() ? shared : fs::path();
}

}  // namespace still

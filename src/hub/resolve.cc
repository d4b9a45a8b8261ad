// Which model a command line means. See pull.h.
#include <algorithm>
#include <system_error>

#include "hub/catalogue.h"
#include "hub/pull.h"

namespace still {
namespace fs = std::filesystem;

namespace {

bool looks_like_path(std::string_view text) {
  return text.starts_with('/') || text.starts_with("./") || text.starts_with("../") || text == "." || text == ".." ||
         text.ends_with(".gguf") || text.ends_with(".safetensors") || text.ends_with('/');
}

tl::unexpected<Error> not_found(const Store& store, std::string_view argument, const ModelName& name) {
  std::vector<std::string> names;
  if (const Result<StoreListing> listing = store.list()) {
    for (const Manifest& manifest : listing->models) names.push_back(manifest.name.str());
  }
  const bool has_tag = argument.find(':') != std::string_view::npos;
  std::vector<std::string> close = closest_names(has_tag ? name.str() : name.repository(), names);
  const auto join = [](const std::vector<std::string>& items) {
    std::string text;
    for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
    return text;
  };
  if (const auto entry = find_in_catalogue(name)) {
    return error(Code::kNotFound, "there is no model {} yet: get it with \"still pull {}\"{}", argument,
                 entry->name.str(), close.empty() ? "" : fmt::format("; there is {}", join(close)));
  }
  if (!close.empty()) return error(Code::kNotFound, "there is no model {}; did you mean {}?", argument, join(close));
  names.clear();
  for (const CatalogueEntry& entry : list_catalogue()) names.push_back(entry.name.str());
  close = closest_names(name.str(), names);
  return error(Code::kNotFound, "there is no model {}, neither in {} nor as a file{}", argument, store.root().string(),
               close.empty() ? "; \"still list\" shows what is there"
                             : fmt::format("; \"still pull\" could bring {}", join(close)));
}

}  // namespace

Result<ModelName> find_stored_name(const Store& store, std::string_view argument) {
  STILL_TRY(const ModelName name, ModelName::parse(argument));
  if (store.contains(name)) return name;
  if (const auto entry = find_in_catalogue(name); entry && store.contains(entry->name)) return entry->name;
  return not_found(store, argument, name);
}

Result<ResolvedModel> resolve_model(const Store& store, std::string_view argument) {
  if (argument.empty()) return error(Code::kInvalidArgument, "the name of the model is empty");
  std::error_code failure;
  const bool exists = fs::exists(fs::path(argument), failure);
  const ResolvedModel as_path{.name = std::string(argument), .path = fs::path(argument)};
  if (looks_like_path(argument)) {
    if (exists) return as_path;
    return error(Code::kNotFound, "there is no file or folder {}", argument);
  }
  Result<ModelName> name = find_stored_name(store, argument);
  if (!name) {
    if (exists) return as_path;
    return tl::unexpected(name.error());
  }
  ResolvedModel model{.name = name->str(), .is_stored = true};
  STILL_TRY(model.manifest, store.read(*name));
  STILL_TRY(model.path, store.model_path(model.manifest));
  return model;
}

}  // namespace still

// Which model a command line means. See pull.h.
#include <algorithm>
#include <system_error>

#include "hub/catalogue.h"
#include "hub/pull.h"

namespace still {
namespace fs = std::filesystem;

bool looks_like_path(std::string_view text) {
  return text.starts_with('/') || text.starts_with("./") || text.starts_with("../") || text == "." || text == ".." ||
         text.ends_with(".gguf") || text.ends_with(".safetensors") || text.ends_with('/');
}

namespace {

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
  const auto find = [&](std::string_view text) -> Result<ModelName> {
    STILL_TRY(const ModelName name, ModelName::parse(text));
    if (store.contains(name)) return name;
    if (const auto entry = find_in_catalogue(name); entry && store.contains(entry->name)) return entry->name;
    return not_found(store, argument, name);
  };
  Result<ModelName> found = find(argument);
  if (found) return found;
  // Ollama's clients write the same name in full, too.
  std::string_view shorter = argument;
  for (const std::string_view prefix : {"registry.ollama.ai/", "library/"})
    if (shorter.starts_with(prefix)) shorter.remove_prefix(prefix.size());
  if (shorter.size() == argument.size()) return found;
  Result<ModelName> as_short = find(shorter);
  return as_short ? as_short : found;
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

Error explain_failure(Error problem, const ResolvedModel& model) {
  const bool is_damaged = problem.code == Code::kCorrupt || problem.code == Code::kNotFound;
  if (!is_damaged && problem.code != Code::kUnsupported) return problem;
  const std::string path = model.path.string();
  if (problem.message.find(path) == std::string::npos) {
    problem.message = fmt::format("{}: {}", model.is_stored ? model.name : path, problem.message);
  }
  if (problem.code == Code::kUnsupported) {
    problem.message += "; choose another file of this model, or another model: still list --catalogue";
  } else if (model.is_stored) {
    const bool is_known = is_source(model.manifest.source);
    problem.message +=
        fmt::format("; get it again: still rm {0} && still pull {1}{2}", model.name,
                    is_known ? model.manifest.source : model.name, is_known ? " --name " + model.name : std::string());
  } else {
    problem.message += "; download or copy it again, or name another file or folder of a model";
  }
  return problem;
}

}  // namespace still

// Ollama's routes about the models that are here: list, facts, loaded ones, copy, delete.
#include <fmt/format.h>

#include <algorithm>

#include "hub/modelfile.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"
#include "tensor/dtype.h"

namespace still {

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;

// A model whose header cannot be read is listed with what is known.
JsonObject details_of(OllamaService& service, const LibraryModel& model, JsonArray* capabilities) {
  const auto facts = service.facts.get(model);
  if (!facts) {
    return ModelFacts{.format = "unknown", .family = "unknown", .parameter_size = "0", .quantization = "unknown"}
        .details();
  }
  if (capabilities != nullptr) {
    for (const std::string& capability : (*facts)->capabilities) capabilities->emplace_back(capability);
  }
  return (*facts)->details();
}

JsonObject entry_of(OllamaService& service, const LibraryModel& model) {
  JsonArray capabilities;
  JsonObject details = details_of(service, model, &capabilities);
  return {{"name", model.name},
          {"model", model.name},
          {"modified_at", rfc3339(model.modified)},
          {"size", model.size},
          {"digest", model.digest},
          {"details", std::move(details)},
          {"capabilities", std::move(capabilities)}};
}

void send_tags(OllamaService& service, ResponseWriter& writer) {
  const Result<Library> library = service.library();
  if (!library) return send_ollama_error(writer, library.error(), "");
  LibraryListing listing = library->list();
  std::ranges::stable_sort(listing.models, std::greater(), &LibraryModel::modified);
  JsonArray models;
  for (const LibraryModel& model : listing.models) models.push_back(entry_of(service, model));
  send_json(writer, JsonObject{{"models", std::move(models)}});
}

void send_loaded(OllamaService& service, ResponseWriter& writer) {
  using Time = std::chrono::system_clock::time_point;
  std::vector<LoadedModelInfo> loaded = service.context.pool->loaded();
  const auto expiry = [](const LoadedModelInfo& info) { return info.expires_at.value_or(Time::max()); };
  std::ranges::stable_sort(loaded, std::greater(), expiry);
  JsonArray models;
  for (const LoadedModelInfo& info : loaded) {
    if (info.is_loading) continue;
    const Result<LibraryModel> model = service.find(info.name);
    JsonObject details = model ? details_of(service, *model, nullptr) : JsonObject();
    // Clients compute with the time: "never" is a date far ahead, as Ollama has it.
    const Time never = std::chrono::system_clock::now() + std::chrono::hours(24 * 365 * 100);
    models.push_back(JsonObject{{"name", info.name},
                                {"model", info.name},
                                {"size", info.memory_bytes},
                                {"digest", info.digest},
                                {"details", std::move(details)},
                                {"expires_at", rfc3339(info.expires_at.value_or(never))},
                                {"size_vram", 0},
                                {"context_length", info.context}});
  }
  send_json(writer, JsonObject{{"models", std::move(models)}});
}

JsonArray tensors_of(const Checkpoint& checkpoint) {
  JsonArray out;
  for (const CheckpointTensor& tensor : checkpoint.tensors()) {
    JsonArray shape;  // as Ollama tells it: innermost first
    for (int i = tensor.shape.rank - 1; i >= 0; --i) shape.emplace_back(tensor.shape[i]);
    out.push_back(JsonObject{
        {"name", tensor.file_name}, {"type", std::string(dtype_name(tensor.dtype))}, {"shape", std::move(shape)}});
  }
  return out;
}

Result<JsonObject> show_model(OllamaService& service, const LibraryModel& model, const OllamaFields& fields) {
  STILL_TRY(const std::optional<bool> verbose, fields.flag("verbose"));
  STILL_TRY(const std::string system, fields.text("system"));
  STILL_TRY(const auto facts, service.facts.get(model));
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(model.path, {.allow_missing_data = true}));
  LibraryModel shown = model;
  if (!system.empty()) shown.system = system;
  const std::string& chat_template = model.template_text.empty() ? facts->chat_template : model.template_text;
  JsonArray capabilities;
  for (const std::string& capability : facts->capabilities) capabilities.emplace_back(capability);
  JsonObject out{{"modelfile", modelfile_text(shown, chat_template)},
                 {"parameters", format_parameters(shown.parameters)},
                 {"template", chat_template},
                 {"details", facts->details()},
                 {"model_info", model_info(checkpoint, *facts, verbose.value_or(false))},
                 {"capabilities", std::move(capabilities)},
                 {"modified_at", rfc3339(model.modified)}};
  if (!shown.licences.empty()) out["license"] = fmt::format("{}", fmt::join(shown.licences, "\n"));
  if (!shown.system.empty()) out["system"] = shown.system;
  if (!shown.messages.empty()) out["messages"] = shown.messages;
  if (verbose.value_or(false)) out["tensors"] = tensors_of(checkpoint);
  return out;
}

void handle_show(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<OllamaFields> fields = OllamaFields::parse(request.body);
  if (!fields) return send_ollama_error(writer, fields.error(), "");
  const Result<std::string> name = fields->model();
  if (!name) return send_ollama_error(writer, name.error(), "");
  const Result<LibraryModel> model = service.find(*name);
  if (!model && model.error().code == Code::kNotFound) return send_model_not_found(writer, service, *name);
  if (!model) return send_ollama_error(writer, model.error(), *name);
  const Result<JsonObject> shown = show_model(service, *model, *fields);
  if (!shown) return send_ollama_error(writer, shown.error(), *name);
  send_json(writer, *shown);
}

Status must_be_own(const LibraryModel& model, std::string_view what) {
  if (model.origin == ModelOrigin::kStore) return ok();
  return error(Code::kPermissionDenied, "{} is kept by Ollama and only read here: {} it with ollama", model.name, what);
}

void handle_delete(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<OllamaFields> fields = OllamaFields::parse(request.body);
  if (!fields) return send_ollama_error(writer, fields.error(), "");
  const Result<std::string> name = fields->model();
  if (!name) return send_ollama_error(writer, name.error(), "");
  const auto remove = [&]() -> Status {
    STILL_TRY(const Library library, service.library());
    STILL_TRY(const LibraryModel model, library.find_stored(*name));
    STILL_TRY_STATUS(must_be_own(model, "remove"));
    STILL_TRY(const ModelName stored, ModelName::parse(model.name));
    STILL_TRY(Store store, Store::open(service.context.options.models));
    STILL_TRY(const RemoveReport report, store.remove(stored));
    service.context.pool->refresh();
    // A model that is not loaded is no error here.
    if (Status unloaded = service.context.pool->unload(model.name); !unloaded) return ok();
    return ok();
  };
  const Status status = remove();
  if (!status && status.error().code == Code::kNotFound) return send_model_not_found(writer, service, *name);
  if (!status) return send_ollama_error(writer, status.error(), *name);
  writer.send({});
}

// The bytes of Ollama's models are linked or copied into the own store.
Result<std::vector<StagedFile>> stage_foreign(const Store& store, const LibraryModel& model, Manifest& manifest) {
  namespace fs = std::filesystem;
  STILL_TRY(const ResolvedModel resolved, model.resolved());
  manifest = resolved.manifest;
  manifest.files = model.files;
  std::vector<StagedFile> staged;
  for (const StoredFile& file : manifest.files) {
    if (store.has_blob(file.sha256, file.size)) continue;
    const fs::path to = store.partial_folder() / fmt::format("link-{}.part", file.sha256);
    std::error_code failure;
    fs::remove(to, failure);
    const fs::path from = fs::is_directory(model.path) ? model.path / file.name : model.path;
    fs::copy_file(from, to, failure);  // never a link: Ollama may change its file
    if (failure) return error(Code::kInternal, "cannot copy {}: {}", from.string(), failure.message());
    staged.push_back({to, file.sha256});
  }
  return staged;
}

void handle_copy(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<OllamaFields> fields = OllamaFields::parse(request.body);
  if (!fields) return send_ollama_error(writer, fields.error(), "");
  std::string source;
  bool is_unknown = false;
  const auto copy = [&]() -> Status {
    STILL_TRY(source, fields->text("source"));
    STILL_TRY(const std::string destination, fields->text("destination"));
    const Result<ModelName> to = ModelName::parse(destination);
    if (!to) return error(Code::kInvalidArgument, "destination \"{}\" is invalid", destination);
    if (source.empty()) return error(Code::kInvalidArgument, "source \"\" is invalid");
    STILL_TRY(const Library library, service.library());
    Result<LibraryModel> found = library.find_stored(source);
    is_unknown = !found && found.error().code == Code::kNotFound;
    STILL_TRY(const LibraryModel model, std::move(found));
    STILL_TRY(Store store, Store::open(service.context.options.models));
    if (model.origin == ModelOrigin::kStore) {
      STILL_TRY(const ModelName from, ModelName::parse(model.name));
      if (from == *to) return ok();
      STILL_TRY_STATUS(store.copy(from, *to));
    } else {
      Manifest manifest;
      STILL_TRY(const std::vector<StagedFile> staged, stage_foreign(store, model, manifest));
      manifest.name = *to;
      STILL_TRY_STATUS(store.commit(manifest, staged));
    }
    service.context.pool->refresh();
    return ok();
  };
  const Status status = copy();
  if (!status && is_unknown) return send_model_not_found(writer, service, source);
  if (!status) return send_ollama_error(writer, status.error(), source);
  writer.send({});
}

}  // namespace

std::string modelfile_text(const LibraryModel& model, std::string_view chat_template) {
  Modelfile file{.from = {model.path.string()},
                 .parameters = model.parameters,
                 .template_text = std::string(chat_template),
                 .system = model.system,
                 .licences = model.licences,
                 .messages = model.messages};
  return fmt::format(
             "# Modelfile generated by \"still show\"\n# To build a new Modelfile based on this, replace FROM with:\n"
             "# FROM {}\n\n",
             model.name) +
         write_modelfile(file);
}

void send_model_not_found(ResponseWriter& writer, const OllamaService& service, std::string_view name,
                          std::string sentence) {
  if (sentence.empty()) sentence = fmt::format("model '{}' not found", name);
  JsonObject body{{"error", std::move(sentence)}};
  if (const Result<Library> library = service.library()) {
    JsonArray closest;
    for (const std::string& candidate : library->closest(name)) closest.emplace_back(candidate);
    if (!closest.empty()) body["closest"] = std::move(closest);
  }
  send_json(writer, body, 404);
}

void add_ollama_model_routes(Router& router, const OllamaServicePtr& service) {
  router.add({"GET", "/api/tags", RouteClass::kRead,
              [service](const RequestPtr&, const WriterPtr& writer) { send_tags(*service, *writer); }});
  router.add({"GET", "/api/ps", RouteClass::kRead,
              [service](const RequestPtr&, const WriterPtr& writer) { send_loaded(*service, *writer); }});
  router.add({"POST", "/api/show", RouteClass::kRead, [service](const RequestPtr& request, const WriterPtr& writer) {
                handle_show(*service, *request, *writer);
              }});
  router.add({"POST", "/api/copy", RouteClass::kAdmin, [service](const RequestPtr& request, const WriterPtr& writer) {
                handle_copy(*service, *request, *writer);
              }});
  router.add(
      {"DELETE", "/api/delete", RouteClass::kAdmin,
       [service](const RequestPtr& request, const WriterPtr& writer) { handle_delete(*service, *request, *writer); }});
}

}  // namespace still

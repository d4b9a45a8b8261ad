// /api/blobs and /api/create: a model made of another one or of uploaded files, with its own template, system prompt,
// parameters and messages. Uploads lie in the store's folder of partial downloads until a model refers to them, where
// old ones are swept.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <filesystem>

#include "hub/file_io.h"
#include "hub/sha256.h"
#include "serve/api/json_fields.h"
#include "serve/api/ollama_service.h"
#include "serve/api/ollama_wire.h"
#include "text/chat_template.h"

namespace still {
namespace fs = std::filesystem;

namespace {

using RequestPtr = std::shared_ptr<const HttpRequest>;
using WriterPtr = std::shared_ptr<ResponseWriter>;

// The 64 digits of "sha256:<hex>" or "sha256-<hex>".
Result<std::string> digest_hex(std::string_view digest) {
  const bool has_prefix = digest.starts_with("sha256:") || digest.starts_with("sha256-");
  const std::string_view hex = has_prefix ? digest.substr(7) : std::string_view();
  if (!is_sha256_hex(hex)) return error(Code::kInvalidArgument, "invalid digest format");
  return std::string(hex);
}

fs::path upload_path(const Store& store, const std::string& hex) {
  return store.partial_folder() / fmt::format("upload-{}.part", hex);
}

// Where the bytes of a digest are: a blob of the store or an upload. kNotFound.
Result<fs::path> find_bytes(const Store& store, const std::string& hex) {
  if (store.has_blob(hex)) return store.blob_path(hex);
  std::error_code failure;
  if (fs::is_regular_file(upload_path(store, hex), failure)) return upload_path(store, hex);
  return error(Code::kNotFound, "blob sha256:{} not found", hex);
}

void handle_blob_head(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<std::string> hex = digest_hex(request.capture("digest"));
  if (!hex) return send_ollama_error(writer, hex.error(), "");
  const Result<Store> store = Store::open(service.context.options.models);
  if (!store) return send_ollama_error(writer, store.error(), "");
  if (!find_bytes(*store, *hex)) {
    return send_ollama_error(writer, 404, fmt::format("blob \"{}\" not found", request.capture("digest")));
  }
  writer.send({});
}

// The bytes of an upload on their way to disk: hashed and written as they come, kept once the digest is right.
class UploadSink : public BodySink {
 public:
  UploadSink(const Store& store, std::int64_t expected) : folder_(store.partial_folder()), expected_(expected) {}
  ~UploadSink() override {
    if (file_.get() >= 0) ::unlink(path_.c_str());
  }

  Status write(std::string_view bytes) override {
    const auto size = static_cast<std::int64_t>(bytes.size());
    if (file_.get() < 0) STILL_TRY_STATUS(create());
    // What a client says its body's size is may be nothing or too little.
    if (n_written_ >= n_checked_) {
      n_checked_ = n_written_ + kStep;
      STILL_TRY_STATUS(check_free_bytes(folder_, std::max(expected_ - n_written_, size), "the uploaded blob"));
    }
    STILL_TRY_STATUS(write_at(file_.get(), bytes.data(), size, n_written_, path_));
    hash_.update(bytes.data(), size);
    n_written_ += size;
    // So that the sync at the end finds little to do.
    if (n_written_ - n_synced_ >= kStep) {
      ::sync_file_range(file_.get(), n_synced_, n_written_ - n_synced_, SYNC_FILE_RANGE_WRITE);
      n_synced_ = n_written_;
    }
    return ok();
  }

  Status keep(const std::string& hex, const fs::path& to) {
    if (file_.get() < 0) STILL_TRY_STATUS(create());
    const std::string found = hash_.finish_hex();
    if (found != hex) {
      return error(Code::kInvalidArgument, "digest mismatch, expected \"sha256:{}\", got \"sha256:{}\"", hex, found);
    }
    if (::fsync(file_.get()) != 0) return system_error(errno, "cannot sync", path_);
    STILL_TRY_STATUS(rename_durably(path_, to));
    file_.reset();
    return ok();
  }

 private:
  static constexpr std::int64_t kStep = 16 << 20;

  Status create() {
    static std::atomic<std::uint64_t> n_uploads{0};
    path_ = folder_ / fmt::format("upload-{}-{}.work", ::getpid(), ++n_uploads);
    STILL_TRY(file_, open_file(path_, O_WRONLY | O_CREAT | O_TRUNC));
    return ok();
  }

  fs::path folder_, path_;
  std::int64_t expected_, n_written_ = 0, n_checked_ = 0, n_synced_ = 0;
  UniqueFd file_;
  Sha256 hash_;
};

// Null where the answer needs no body: a digest that is none, or bytes that are there.
std::shared_ptr<BodySink> open_upload(OllamaService& service, const HttpRequest& request) {
  const Result<std::string> hex = digest_hex(request.capture("digest"));
  const Result<Store> store = Store::open(service.context.options.models);
  if (!hex || !store || find_bytes(*store, *hex)) return nullptr;
  const std::string_view length = request.header("Content-Length");
  std::int64_t expected = 0;  // chunked: not known
  std::from_chars(length.data(), length.data() + length.size(), expected);
  return std::make_shared<UploadSink>(*store, expected);
}

void handle_blob_post(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<std::string> hex = digest_hex(request.capture("digest"));
  if (!hex) return send_ollama_error(writer, hex.error(), "");
  const Result<Store> store = Store::open(service.context.options.models);
  if (!store) return send_ollama_error(writer, store.error(), "");
  if (find_bytes(*store, *hex)) return writer.send({});
  auto* upload = dynamic_cast<UploadSink*>(request.sink.get());
  UploadSink gathered(*store, static_cast<std::int64_t>(request.body.size()));
  Status saved = ok();
  if (upload == nullptr) {
    upload = &gathered;
    saved = gathered.write(request.body);
  }
  if (saved) saved = upload->keep(*hex, upload_path(*store, *hex));
  if (!saved) return send_ollama_error(writer, saved.error(), "");
  writer.send({.status = 201});
}

// Lines of the status stream, gathered: making a model copies no weights and is quick.
struct CreateLog {
  std::vector<std::string> lines;
  void add(std::string line) { lines.push_back(std::move(line)); }
};

// A folder of links under the files' own names, to look at them before they become a model.
class LinkFolder {
 public:
  LinkFolder() = default;
  LinkFolder(const LinkFolder&) = delete;
  LinkFolder& operator=(const LinkFolder&) = delete;
  ~LinkFolder() {
    std::error_code ignored;  // a temporary folder that stays behind is no reason to fail
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  Result<fs::path> create(const Store& store) {
    std::string name = (store.partial_folder() / "create-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) return system_error(errno, "cannot make the folder", name);
    path_ = name;
    return path_;
  }

 private:
  fs::path path_;
};

Status check_is_model(const Store& store, const std::vector<std::pair<StoredFile, fs::path>>& files) {
  if (files.size() == 1 && files[0].first.name.ends_with(".gguf")) {
    STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(files[0].second));
    return ok();
  }
  LinkFolder links;
  STILL_TRY(const fs::path folder, links.create(store));
  for (const auto& [file, path] : files) {
    STILL_TRY_STATUS(make_folders((folder / file.name).parent_path()));
    std::error_code failure;
    fs::create_symlink(path, folder / file.name, failure);
    if (failure) return system_error(failure.value(), "cannot link", folder / file.name);
  }
  STILL_TRY(const Checkpoint checkpoint, Checkpoint::open(folder));
  return ok();
}

// files: {"model.gguf": "sha256:..."}.
Status take_files(const Store& store, const JsonObject& files, Manifest& manifest, std::vector<StagedFile>& staged,
                  CreateLog& log) {
  std::vector<std::pair<StoredFile, fs::path>> found;
  for (const auto& [name, digest] : files) {
    if (!digest.is_string()) return error(Code::kInvalidArgument, "files: a digest must be of type string");
    STILL_TRY(const std::string hex, digest_hex(digest.get_string()));
    STILL_TRY(const fs::path path, [&]() -> Result<fs::path> {
      Result<fs::path> bytes = find_bytes(store, hex);
      if (!bytes) return error(Code::kInvalidArgument, "{}: upload it to /api/blobs first", bytes.error().message);
      return bytes;
    }());
    std::string stored_name = fs::path(std::string_view(name)).filename().string();
    STILL_TRY_STATUS(check_file_name(stored_name));
    std::error_code failure;
    const auto size = static_cast<std::int64_t>(fs::file_size(path, failure));
    if (failure) return system_error(failure.value(), "cannot find", path);
    found.push_back({{std::move(stored_name), size, hex}, path});
  }
  // A file of one GGUF may have any name.
  if (found.size() == 1 && !found[0].first.name.ends_with(".gguf") && !found[0].first.name.ends_with(".safetensors")) {
    found[0].first.name += ".gguf";
  }
  const bool is_gguf = found[0].first.name.ends_with(".gguf");
  log.add(is_gguf ? "parsing GGUF" : "reading safetensors");
  if (Status status = check_is_model(store, found); !status) {
    return error(Code::kInvalidArgument, "invalid model files: {}", status.error().message);
  }
  for (auto& [file, path] : found) {
    const bool is_new = !store.has_blob(file.sha256);
    log.add(fmt::format("{} layer sha256:{}", is_new ? "creating new" : "using existing", file.sha256));
    if (is_new) staged.push_back({path, file.sha256});
    manifest.files.push_back(file);
  }
  manifest.source = "uploaded";
  return ok();
}

// Everything of the model but its own name.
Status take_from(OllamaService& service, const Store& store, const std::string& from, Manifest& manifest,
                 std::vector<StagedFile>& staged, CreateLog& log) {
  STILL_TRY(const LibraryModel model, service.find(from));
  STILL_TRY(const ResolvedModel resolved, model.resolved());
  manifest = resolved.manifest;
  manifest.files = model.files;
  manifest.source = manifest.source.empty() ? "model " + model.name : manifest.source;
  for (const StoredFile& file : manifest.files) {
    log.add(fmt::format("using existing layer sha256:{}", file.sha256));
    if (store.has_blob(file.sha256, file.size)) continue;
    const fs::path bytes = fs::is_directory(model.path) ? model.path / file.name : model.path;
    const fs::path to = store.partial_folder() / fmt::format("copy-{}.part", file.sha256);
    std::error_code failure;
    fs::copy_file(bytes, to, fs::copy_options::overwrite_existing, failure);
    if (failure) return system_error(failure.value(), "cannot copy", bytes);
    staged.push_back({to, file.sha256});
  }
  return ok();
}

Result<std::string> licence_text(const OllamaFields& fields) {
  const Json* value = fields.find("license");
  if (value == nullptr || value->is_string()) return fields.text("license");
  if (!value->is_array()) return error(Code::kInvalidArgument, "license must be a string or an array of strings");
  std::string text;
  for (const Json& part : value->get_array()) {
    if (!part.is_string()) return error(Code::kInvalidArgument, "license must be a string or an array of strings");
    text += (text.empty() ? "" : "\n") + std::string(part.get_string());
  }
  return text;
}

Status take_overrides(const OllamaFields& fields, Manifest& manifest, CreateLog& log) {
  STILL_TRY(const std::string chat_template, fields.text("template"));
  STILL_TRY(const std::string system, fields.text("system"));
  STILL_TRY(const std::string licence, licence_text(fields));
  STILL_TRY(const JsonObject parameters, fields.object("parameters"));
  STILL_TRY(JsonArray messages, fields.array("messages"));
  if (!chat_template.empty()) {
    const bool is_jinja = chat_template.find("{%") != std::string::npos;
    const auto parsed =
        load_chat_template(chat_template, "template", is_jinja ? TemplateLanguage::kJinja : TemplateLanguage::kGo);
    if (!parsed) return error(Code::kInvalidArgument, "template error: {}", parsed.error().message);
    manifest.template_text = chat_template;
    manifest.template_language = is_jinja ? kTemplateJinja : kTemplateGo;
  }
  if (!system.empty()) manifest.system = system;
  if (!licence.empty()) manifest.licence = licence;
  GenerationInput checked;
  std::vector<std::string> warnings;
  STILL_TRY_STATUS(apply_ollama_options(parameters, checked, warnings));
  for (const std::string& warning : warnings) log.add("warning: " + warning);
  for (const auto& [key, value] : parameters) {
    if (value.is_null()) {
      manifest.parameters.erase(key);
    } else {
      manifest.parameters[key] = value;
    }
  }
  for (const Json& message : messages) {
    const JsonObject* object = message.if_object();
    const Json* role = object != nullptr ? object->if_contains("role") : nullptr;
    const Json* content = object != nullptr ? object->if_contains("content") : nullptr;
    if (role == nullptr || !role->is_string() || content == nullptr || !content->is_string()) {
      return error(Code::kInvalidArgument, "messages must have a role and a content");
    }
  }
  if (!messages.empty()) manifest.messages = std::move(messages);
  return ok();
}

Status create_model(OllamaService& service, const OllamaFields& fields, CreateLog& log) {
  STILL_TRY(const std::string wanted, fields.model());
  const Result<ModelName> name = ModelName::parse(wanted);
  if (!name) return error(Code::kInvalidArgument, "invalid model name: {}", name.error().message);
  STILL_TRY(const std::string from, fields.text("from"));
  STILL_TRY(const JsonObject files, fields.object("files"));
  STILL_TRY(const JsonObject adapters, fields.object("adapters"));
  STILL_TRY(std::string quantize, fields.text("quantize"));
  if (quantize.empty()) {
    STILL_TRY(quantize, fields.text("quantization"));
  }
  if (!adapters.empty()) return error(Code::kUnsupported, "adapters are not supported yet");
  if (!quantize.empty()) {
    return error(Code::kUnsupported, "quantize is not supported here yet: upload a file that is quantised ({})",
                 quantize);
  }
  for (const char* key : {"renderer", "parser", "draft_files"}) {
    if (fields.find(key) != nullptr) log.add(fmt::format("warning: \"{}\" has no effect here", key));
  }
  if (from.empty() == files.empty()) {
    return error(
        Code::kInvalidArgument, "{}",
        from.empty() ? "neither 'from' or 'files' was specified" : "only one of 'from' and 'files' may be given");
  }
  STILL_TRY(Store store, Store::open(service.context.options.models));
  Manifest manifest;
  std::vector<StagedFile> staged;
  if (!from.empty()) {
    STILL_TRY_STATUS(take_from(service, store, from, manifest, staged, log));
  } else {
    STILL_TRY_STATUS(take_files(store, files, manifest, staged, log));
  }
  manifest.name = *name;
  manifest.created = utc_now();
  manifest.version = STILL_VERSION;
  manifest.command = "POST /api/create";
  STILL_TRY_STATUS(take_overrides(fields, manifest, log));
  log.add("writing manifest");
  STILL_TRY_STATUS(store.commit(manifest, staged));
  service.context.pool->refresh();
  log.add("success");
  return ok();
}

void handle_create(OllamaService& service, const HttpRequest& request, ResponseWriter& writer) {
  const Result<OllamaFields> fields = OllamaFields::parse(request.body);
  if (!fields) return send_ollama_error(writer, fields.error(), "");
  const Result<std::optional<bool>> stream = fields->flag("stream");
  if (!stream) return send_ollama_error(writer, stream.error(), "");
  CreateLog log;
  const Status status = create_model(service, *fields, log);
  if (!status) {
    const Json* from = fields->find("from");
    const std::string name = from != nullptr && from->is_string() ? std::string(from->get_string()) : "";
    if (status.error().code == Code::kNotFound) return send_model_not_found(writer, service, name);
    return send_ollama_error(writer, status.error(), name);
  }
  if (!stream->value_or(true)) return send_json(writer, JsonObject{{"status", "success"}});
  std::string lines;
  for (const std::string& line : log.lines) {
    lines += "{\"status\":";
    append_json_string(lines, line);
    lines += "}\n";
  }
  writer.send({.content_type = "application/x-ndjson", .body = std::move(lines)});
}

}  // namespace

void add_ollama_create_routes(Router& router, const OllamaServicePtr& service) {
  router.add({"HEAD", "/api/blobs/{digest}", RouteClass::kAdmin,
              [service](const RequestPtr& request, const WriterPtr& writer) {
                handle_blob_head(*service, *request, *writer);
              }});
  router.add(
      {"POST", "/api/blobs/{digest}", RouteClass::kAdmin,
       [service](const RequestPtr& request, const WriterPtr& writer) { handle_blob_post(*service, *request, *writer); },
       [service](const HttpRequest& request) { return open_upload(*service, request); }});
  router.add({"POST", "/api/create", RouteClass::kAdmin, [service](const RequestPtr& request, const WriterPtr& writer) {
                handle_create(*service, *request, *writer);
              }});
}

}  // namespace still

// See store.h.
#include "hub/store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <ctime>
#include <set>

#include "hub/file_io.h"
#include "hub/sha256.h"

namespace still {
namespace fs = std::filesystem;

namespace {

constexpr int kSchema = 1;
constexpr std::int64_t kMaxManifestBytes = 16 << 20;

Result<LockFile> lock_store(const fs::path& root) {
  return LockFile::acquire(root / "lock", LockFile::Keep::kKeep, CancelToken());
}

bool is_single_gguf(const Manifest& manifest) {
  return manifest.files.size() == 1 && manifest.files[0].name.ends_with(".gguf");
}

// The name that a manifest's place says it has; an error for a file that is no manifest's place.
Result<ModelName> name_of_place(const fs::path& relative) {
  const std::string repository = relative.parent_path().generic_string();
  return ModelName::parse(repository + ":" + relative.stem().string());
}

}  // namespace

std::int64_t Manifest::total_bytes() const {
  std::int64_t total = 0;
  for (const StoredFile& file : files) total += file.size;
  return total;
}

std::string Manifest::digest() const {
  if (files.size() == 1) return files[0].sha256;
  std::vector<std::string> lines;
  for (const StoredFile& file : files) lines.push_back(file.sha256 + "  " + file.name + "\n");
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return sha256_hex(text);
}

std::string utc_now() {
  const std::time_t now = std::chrono::system_clock::to_time_t(std::chrono::system_clock::now());
  std::tm utc{};
  ::gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday,
                     utc.tm_hour, utc.tm_min, utc.tm_sec);
}

Status check_file_name(std::string_view name) {
  const auto fail = [&](std::string_view why) {
    return error(Code::kInvalidArgument, "the file name \"{}\" {}", name, why);
  };
  if (name.empty() || name.size() > 1024) return fail("is empty or too long");
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\') return fail("has a forbidden character");
  }
  std::string_view rest = name;
  for (;;) {
    const auto slash = rest.find('/');
    const std::string_view part = rest.substr(0, slash);
    if (part.empty() || part == "." || part == ".." || part.size() > 255) return fail("leaves its folder");
    if (slash == std::string_view::npos) return ok();
    rest = rest.substr(slash + 1);
  }
}

Json manifest_to_json(const Manifest& manifest) {
  JsonArray files;
  for (const StoredFile& file : manifest.files) {
    files.push_back(JsonObject{{"name", file.name}, {"size", file.size}, {"sha256", file.sha256}});
  }
  JsonObject json{{"schema", kSchema},           {"name", manifest.name.str()}, {"source", manifest.source},
                  {"created", manifest.created}, {"version", manifest.version}, {"command", manifest.command},
                  {"seconds", manifest.seconds}, {"licence", manifest.licence}, {"files", std::move(files)}};
  if (!manifest.parameters.empty()) json["parameters"] = manifest.parameters;
  if (!manifest.template_text.empty()) json["template"] = manifest.template_text;
  if (!manifest.template_language.empty()) json["template_language"] = manifest.template_language;
  if (!manifest.system.empty()) json["system"] = manifest.system;
  if (!manifest.messages.empty()) json["messages"] = manifest.messages;
  return json;
}

Result<Manifest> manifest_from_json(const Json& json, std::string_view what) {
  const JsonObject* object = json.if_object();
  if (object == nullptr) return error(Code::kCorrupt, "{}: not a JSON object", what);
  const auto text = [&](std::string_view key) -> std::string {
    const Json* value = object->if_contains(key);
    return value != nullptr && value->is_string() ? std::string(value->get_string()) : std::string();
  };
  const Json* schema = object->if_contains("schema");
  if (schema == nullptr || !schema->is_int64() || schema->get_int64() != kSchema) {
    return error(Code::kUnsupported, "{}: schema {}, this version reads {}", what,
                 schema != nullptr ? to_json(*schema) : "missing", kSchema);
  }
  Manifest manifest;
  STILL_TRY(manifest.name, ModelName::parse(text("name")));
  manifest.source = text("source");
  manifest.created = text("created");
  manifest.version = text("version");
  manifest.command = text("command");
  manifest.licence = text("licence");
  manifest.template_text = text("template");
  manifest.template_language = text("template_language");
  manifest.system = text("system");
  if (const Json* messages = object->if_contains("messages"); messages != nullptr && messages->is_array()) {
    manifest.messages = messages->get_array();
  }
  if (const Json* seconds = object->if_contains("seconds"); seconds != nullptr && seconds->is_double()) {
    manifest.seconds = seconds->get_double();
  }
  if (const Json* parameters = object->if_contains("parameters"); parameters != nullptr && parameters->is_object()) {
    manifest.parameters = parameters->get_object();
  }
  const Json* files = object->if_contains("files");
  if (files == nullptr || !files->is_array() || files->get_array().empty()) {
    return error(Code::kCorrupt, "{}: no files", what);
  }
  for (const Json& entry : files->get_array()) {
    const JsonObject* file = entry.if_object();
    const Json* name = file != nullptr ? file->if_contains("name") : nullptr;
    const Json* size = file != nullptr ? file->if_contains("size") : nullptr;
    const Json* sha256 = file != nullptr ? file->if_contains("sha256") : nullptr;
    if (name == nullptr || !name->is_string() || size == nullptr || !size->is_int64() || size->get_int64() < 0 ||
        sha256 == nullptr || !sha256->is_string() || !is_sha256_hex(std::string(sha256->get_string()))) {
      return error(Code::kCorrupt, "{}: a file without name, size or sha256", what);
    }
    StoredFile stored{std::string(name->get_string()), size->get_int64(), std::string(sha256->get_string())};
    STILL_TRY_STATUS(check_file_name(stored.name));
    manifest.files.push_back(std::move(stored));
  }
  return manifest;
}

Result<Store> Store::open(const fs::path& root) {
  if (root.empty()) return error(Code::kInvalidArgument, "the folder of the models has an empty name");
  std::error_code failure;
  const fs::path absolute = fs::absolute(root, failure);
  if (failure) return system_error(failure.value(), "cannot find", root);
  for (const char* folder : {"blobs", "manifests", "views", "partial"}) {
    STILL_TRY_STATUS(make_folders(absolute / folder));
  }
  return Store(absolute);
}

fs::path Store::blob_path(const std::string& sha256) const {
  return root_ / "blobs" / ("sha256-" + sha256);
}

fs::path Store::manifest_path(const ModelName& name) const {
  return root_ / "manifests" / name.repository() / (name.tag + ".json");
}

bool Store::has_blob(const std::string& sha256, std::int64_t size) const {
  std::error_code failure;
  const auto found = fs::file_size(blob_path(sha256), failure);
  return !failure && (size < 0 || static_cast<std::int64_t>(found) == size);
}

bool Store::contains(const ModelName& name) const {
  std::error_code failure;
  return fs::is_regular_file(manifest_path(name), failure);
}

Result<Manifest> Store::read(const ModelName& name) const {
  const fs::path path = manifest_path(name);
  if (!contains(name)) return error(Code::kNotFound, "there is no model {} in {}", name.str(), root_.string());
  STILL_TRY(const std::string text, read_text_file(path, kMaxManifestBytes));
  STILL_TRY(const Json json, parse_json(text, path.string()));
  STILL_TRY(Manifest manifest, manifest_from_json(json, path.string()));
  if (manifest.name != name) {
    return error(Code::kCorrupt, "{}: is the manifest of {}, expected {}", path.string(), manifest.name.str(),
                 name.str());
  }
  return manifest;
}

Result<StoreListing> Store::list() const {
  StoreListing listing;
  std::error_code failure;
  const fs::path folder = root_ / "manifests";
  for (fs::recursive_directory_iterator it(folder, failure), end; !failure && it != end; it.increment(failure)) {
    if (it->path().extension() != ".json" || !it->is_regular_file()) continue;
    if (it->path().filename().string().starts_with('.')) continue;  // a temporary file of a write under way
    Result<ModelName> name = name_of_place(fs::relative(it->path(), folder));
    Result<Manifest> manifest = name ? read(*name) : Result<Manifest>(tl::unexpected(name.error()));
    if (manifest) {
      listing.models.push_back(std::move(*manifest));
    } else if (manifest.error().code != Code::kNotFound) {  // kNotFound: removed since we saw it
      listing.problems.push_back(manifest.error().message);
    }
  }
  if (failure) return system_error(failure.value(), "cannot list", folder);
  std::sort(listing.models.begin(), listing.models.end(),
            [](const Manifest& a, const Manifest& b) { return a.name < b.name; });
  return listing;
}

Result<fs::path> Store::model_path(const Manifest& manifest) const {
  for (const StoredFile& file : manifest.files) {
    if (has_blob(file.sha256, file.size)) continue;
    return error(Code::kCorrupt, "{}: {} ({}, expected {} bytes) is missing or of another size; pull {} again",
                 manifest.name.str(), file.name, blob_path(file.sha256).string(), file.size, manifest.name.str());
  }
  if (is_single_gguf(manifest)) return blob_path(manifest.files[0].sha256);
  const fs::path view = root_ / "views" / manifest.digest();
  std::error_code failure;
  const bool complete = std::all_of(manifest.files.begin(), manifest.files.end(),
                                    [&](const StoredFile& file) { return fs::exists(view / file.name, failure); });
  if (!complete) STILL_TRY_STATUS(make_view(manifest));
  return view;
}

Status Store::make_view(const Manifest& manifest) const {
  const fs::path view = root_ / "views" / manifest.digest();
  for (const StoredFile& file : manifest.files) {
    const fs::path link = view / file.name;
    STILL_TRY_STATUS(make_folders(link.parent_path()));
    const fs::path target = fs::path(blob_path(file.sha256)).lexically_relative(link.parent_path());
    if (::symlink(target.c_str(), link.c_str()) == 0) continue;
    if (errno != EEXIST) return system_error(errno, "cannot link", link);
    std::error_code failure;
    if (fs::read_symlink(link, failure) == target) continue;
    fs::remove(link, failure);
    if (::symlink(target.c_str(), link.c_str()) != 0) return system_error(errno, "cannot link", link);
  }
  return ok();
}

Status Store::commit(const Manifest& manifest, const std::vector<StagedFile>& staged) {
  STILL_TRY(const LockFile lock, lock_store(root_));
  for (const StagedFile& file : staged) {
    std::error_code failure;
    const auto size = fs::file_size(file.path, failure);
    if (failure) return system_error(failure.value(), "cannot find", file.path);
    if (has_blob(file.sha256, static_cast<std::int64_t>(size))) {
      ::unlink(file.path.c_str());
      continue;
    }
    ::chmod(file.path.c_str(), 0444);
    STILL_TRY_STATUS(rename_durably(file.path, blob_path(file.sha256)));
  }
  for (const StoredFile& file : manifest.files) {
    STILL_TRY_STATUS(check_file_name(file.name));
    if (!has_blob(file.sha256, file.size)) {
      return error(Code::kNotFound, "{}: the bytes of {} are not in the store", manifest.name.str(), file.name);
    }
  }
  if (!is_single_gguf(manifest)) STILL_TRY_STATUS(make_view(manifest));
  const fs::path path = manifest_path(manifest.name);
  const bool replaces = contains(manifest.name);
  STILL_TRY_STATUS(make_folders(path.parent_path()));
  STILL_TRY_STATUS(write_file_atomic(path, to_json_pretty(manifest_to_json(manifest)) + "\n"));
  if (replaces) {
    Result<RemoveReport> swept = collect_garbage_locked();
    if (!swept) return tl::unexpected(swept.error());
  }
  return ok();
}

Result<RemoveReport> Store::remove(const ModelName& name) {
  STILL_TRY(const LockFile lock, lock_store(root_));
  if (!contains(name)) return error(Code::kNotFound, "there is no model {} in {}", name.str(), root_.string());
  const fs::path path = manifest_path(name);
  if (::unlink(path.c_str()) != 0) return system_error(errno, "cannot remove", path);
  // Folders of the name that are empty now; a folder in use stays.
  for (fs::path folder = path.parent_path(); folder != root_ / "manifests"; folder = folder.parent_path()) {
    if (::rmdir(folder.c_str()) != 0) break;
  }
  STILL_TRY(RemoveReport report, collect_garbage_locked());
  report.removed.push_back(name.str());
  return report;
}

Status Store::copy(const ModelName& from, const ModelName& to) {
  if (from == to) return error(Code::kInvalidArgument, "{}: cannot be copied onto itself", from.str());
  STILL_TRY(Manifest manifest, read(from));
  manifest.name = to;
  return commit(manifest, {});
}

Result<RemoveReport> Store::collect_garbage() {
  STILL_TRY(const LockFile lock, lock_store(root_));
  return collect_garbage_locked();
}

Result<RemoveReport> Store::collect_garbage_locked() {
  STILL_TRY(const StoreListing listing, list());
  RemoveReport report;
  if (!listing.problems.empty()) {
    report.problems = listing.problems;
    report.problems.push_back("no bytes were removed: the models above may still need them");
    return report;
  }
  std::set<std::string> blobs, views;
  for (const Manifest& manifest : listing.models) {
    for (const StoredFile& file : manifest.files) blobs.insert("sha256-" + file.sha256);
    if (!is_single_gguf(manifest)) views.insert(manifest.digest());
  }
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(root_ / "views", failure)) {
    if (!views.contains(entry.path().filename().string())) fs::remove_all(entry.path(), failure);
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(root_ / "blobs", failure)) {
    const std::string name = entry.path().filename().string();
    if (blobs.contains(name) || !name.starts_with("sha256-")) continue;
    const auto size = entry.file_size(failure);
    if (::unlink(entry.path().c_str()) != 0) return system_error(errno, "cannot remove", entry.path());
    report.freed_bytes += static_cast<std::int64_t>(size);
  }
  return report;
}

Result<std::int64_t> Store::remove_partials(std::chrono::seconds age) {
  std::int64_t freed = 0;
  std::error_code failure;
  const auto now = fs::file_time_type::clock::now();
  std::set<std::string> keys;
  for (const fs::directory_entry& entry : fs::directory_iterator(partial_folder(), failure)) {
    const fs::path path = entry.path();
    if (path.extension() != ".lock") keys.insert(path.stem().string());
  }
  for (const std::string& key : keys) {
    STILL_TRY(const std::optional<LockFile> lock,
              LockFile::try_acquire(partial_folder() / (key + ".lock"), LockFile::Keep::kRemove));
    if (!lock) continue;
    for (const char* extension : {".part", ".json", ".work"}) {
      const fs::path path = partial_folder() / (key + extension);
      const auto changed = fs::last_write_time(path, failure);
      if (failure || now - changed < age) continue;
      freed += allocated_bytes(path);
      fs::remove_all(path, failure);
    }
  }
  return freed;
}

Status Store::verify(const Manifest& manifest) const {
  for (const StoredFile& file : manifest.files) {
    STILL_TRY(const std::string digest, sha256_file(blob_path(file.sha256), CancelToken()));
    if (digest != file.sha256) {
      return error(Code::kCorrupt, "{}: {} has sha256 {}, expected {}; remove the model and pull it again",
                   manifest.name.str(), file.name, digest, file.sha256);
    }
  }
  return ok();
}

Result<std::int64_t> Store::total_bytes() const {
  std::int64_t total = 0;
  std::error_code failure;
  for (const fs::directory_entry& entry : fs::directory_iterator(root_ / "blobs", failure)) {
    const auto size = entry.file_size(failure);
    if (!failure) total += static_cast<std::int64_t>(size);
  }
  return total;
}

}  // namespace still
